/* shm - the memory that the processes of a run share: one anonymous memfd, nothing with a name, so
 * that nothing is left of it when the last descriptor and the last mapping go, however they go.
 *
 * Address space is reserved once, sparse; the file's pages are made by fallocate() before anybody
 * touches them (touching a page that cannot be had is SIGBUS, not an error).  Each process may have
 * it at another address: what lies in it refers to itself by offsets, 0 being none.
 *
 * A block is taken with pyper__shm_alloc() by any process and given back with pyper__shm_free() by
 * any other, with the size it was taken with.  Blocks given back are kept, warm, for the next of
 * their size class.  A block of a page or more, or one that may be kept, begins on a page; any
 * other on 64 bytes.
 *
 * A process that dies in the middle costs at most the block it was after: each step commits with
 * one store, and the lock survives its owner (pyper__shared_lock, park.h). */
#ifndef PYPER_SHM_H
#define PYPER_SHM_H

#include "park.h"

/* One process's door to the memory.
 *
 * Synchronization
 *   refs                atomic.
 *   fd, base, size      set by create and attach; fd and size change when it is given up, and size
 *                       when the last kept block goes.
 *   blocks, space       where the blocks behind the first one begin, and how far they may reach;
 *                       set by create and attach, never change.
 *   crossed             set before a second process or thread uses it: other processes do.
 *   lost, kept, keep    the lock of all that is kept (shm.c). */
typedef struct pyper__shm {
    _Atomic int64_t refs;
    int fd;
    char *base;
    uint64_t size, blocks, space;
    bool crossed;
    bool lost;     /* a forked child may still read parts of the file */
    uint64_t kept; /* bytes of the blocks that this process keeps */
    uint64_t keep; /* how much is to stay when it is given up; 0: nobody wants that yet */
} pyper__shm;

/* Make a new memory with a first block of `first` zeroed bytes: 0 and a reference, or as
 * pyper__why_refused().  The offset of the first block is PYPER__SHM_FIRST. */
int pyper__shm_create(uint64_t first, pyper__shm **ret_shm);

/* Map a memory made by another process; takes `fd`, also on failure.  0, PYPER_ENOMEM or
 * PYPER_EINVAL (this is no memory of ours). */
int pyper__shm_attach(int fd, pyper__shm **ret_shm);

/* Give the memory up, and its descriptor, but for the first `keep` bytes and the blocks that are
 * kept: they stay where they are, as memory of this process alone.  Nobody uses another block, or
 * takes one, any more.
 *
 * To have them alone costs a copy of what is kept: where that is much (more than PYPER__SHM_APART)
 * the memory waits for some of it to be given back, and only what is free goes.  (If it cannot be
 * had everything stays as it is.)  To be called again costs little. */
#define PYPER__SHM_APART ((uint64_t)16 << 20)
void pyper__shm_retire(pyper__shm *shm, uint64_t keep);

pyper__shm *pyper__shm_ref(pyper__shm *shm);
void pyper__shm_unref(pyper__shm *shm); /* NULL is accepted */

#define PYPER__SHM_FIRST ((uint64_t)4096)

/* As many bytes, or a few more, so that what comes behind them begins on a cache line. */
static inline uint64_t pyper__shm_align(uint64_t size) {
    return (size + PYPER__CACHE_LINE - 1) / PYPER__CACHE_LINE * PYPER__CACHE_LINE;
}

static inline void *pyper__shm_at(const pyper__shm *shm, uint64_t offset) {
    return shm->base + offset;
}

/* Offsets and sizes that stand in the shared memory are another process's word for it: who follows
 * one asks first whether it lies among the blocks that are handed out, behind the first one, which
 * says who is there.  The last PYPER__SHM_SPARE bytes are never handed out, so that one comparison
 * is enough for what is not larger. */
#define PYPER__SHM_SPARE ((uint64_t)8192)

/* Blocks begin on this, at least. */
#define PYPER__SHM_ALIGNMENT ((uint64_t)64)

static inline bool pyper__shm_has(const pyper__shm *shm, uint64_t offset) {
    return pyper__likely(offset - shm->blocks < shm->space);
}

/* A block of this size. */
static inline bool pyper__shm_holds(const pyper__shm *shm, uint64_t offset, uint64_t size) {
    return pyper__shm_has(shm, offset) && size <= shm->size - offset &&
           offset % PYPER__SHM_ALIGNMENT == 0;
}

/* ThreadSanitizer sees the threads of one process only.  That memory went to another process and
 * came back, and so orders two threads here, it has to be told: before memory is handed over
 * (published or freed), and after it was taken over (received or allocated).  Only where other
 * processes are: what a channel does between threads it is to see for itself. */
#if defined(__SANITIZE_THREAD__)
#define PYPER__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PYPER__TSAN 1
#endif
#endif
#ifdef PYPER__TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define pyper__shm_hand_over(shm) ((shm)->crossed ? __tsan_release((shm)->base) : (void)0)
#define pyper__shm_take_over(shm) ((shm)->crossed ? __tsan_acquire((shm)->base) : (void)0)
#else
#define pyper__shm_hand_over(shm) ((void)(shm))
#define pyper__shm_take_over(shm) ((void)(shm))
#endif

/* A block that has become memory of this process, for as long as somebody needs it, the end of the
 * run included.  Nobody else reads or writes it, so it stays where everybody can see it: mapping it
 * once more would cost as much as copying it.  At a fork, and when the file is given up, what is
 * kept is set apart: it becomes memory like any other, and no part of the file any more.
 *
 * Synchronization
 *   shm, offset, size, forks   set by keep, never change.
 *   next, prev, apart, lost    the lock of all that is kept (shm.c), which a fork takes, too. */
typedef struct pyper__shm_kept {
    struct pyper__shm *shm; /* a reference */
    uint64_t offset, size;
    uint32_t forks; /* pyper__forks when it was taken: else it is the parent's to give back */
    bool apart;     /* no part of the file any more */
    bool lost;      /* cannot be given back: a forked child may still read it */
    struct pyper__shm_kept *next, *prev;
} pyper__shm_kept;

/* Blocks that have whole pages to themselves: smaller ones cannot be kept. */
#define PYPER__SHM_KEEP_MIN ((uint64_t)64 << 10)

/* Keep a block; it is given back with unkeep, by any thread. */
void pyper__shm_keep(pyper__shm *shm, uint64_t offset, uint64_t size, pyper__shm_kept *ret_kept);
void pyper__shm_unkeep(pyper__shm_kept *kept);

/* A block of at least `size` bytes, not zeroed; 0: there is no memory. */
uint64_t pyper__shm_alloc(pyper__shm *shm, uint64_t size);
void pyper__shm_free(pyper__shm *shm, uint64_t offset, uint64_t size);

#ifdef PYPER_TESTING
/* As if pages had so many bytes; 0: as many as they have. */
extern _Atomic uint64_t pyper__shm_page;
#endif

#endif
