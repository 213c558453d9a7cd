/* shm - see shm.h.
 *
 * The first PYPER__SHM_FIRST bytes of the file are the heap's own: a lock, where the blocks behind
 * the first one begin (`blocks`), how far the file is handed out (`top`) and how far it has pages
 * (`made`), and for each size class the blocks that were given back, linked through their first 8
 * bytes.  Size classes are the powers of two from 128 bytes on and three steps between each two, so
 * that of all but the smallest at most a fifth is wasted. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "shm.h"

#if PYPER__PROCESSES

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "signals.h"

/* Pages have this many bytes, or more: 16 or 64 KiB are not rare on ARM. */
#define PAGE_MIN ((uint64_t)4096)
#define SMALLEST_SHIFT 7
#define CLASSES (4 * (48 - SMALLEST_SHIFT))
#define MAGIC UINT64_C(0x3172657079704d53)

/* The file grows by an eighth of itself, within these bounds: few calls, little to spare. */
#define GROW_MIN ((uint64_t)256 << 10)
#define GROW_MAX ((uint64_t)16 << 20)

/* With less address space than this there is no sense in beginning. */
#define SPACE_MIN ((uint64_t)16 << 20)

/* Synchronization: magic, blocks   set by create, never change; everything else is protected by
 * `lock`. */
struct heap {
    uint64_t magic;
    pyper__shared_lock lock;
    uint64_t blocks, top, made;
    uint64_t given_back[CLASSES];
};
_Static_assert(sizeof(struct heap) <= PYPER__SHM_FIRST, "the heap's own bytes");

/* ------------------------------------------------------------------------------------ pages */

#ifdef PYPER_TESTING
_Atomic uint64_t pyper__shm_page;
#endif

/* What the system maps, and takes back, no part of. */
static uint64_t page_size(void) {
#ifdef PYPER_TESTING
    uint64_t as_if = atomic_load_explicit(&pyper__shm_page, memory_order_relaxed);
    if (as_if) return as_if;
#endif
    long size = sysconf(_SC_PAGESIZE);
    return size > (long)PAGE_MIN ? (uint64_t)size : PAGE_MIN;
}

static uint64_t whole(uint64_t size, uint64_t unit) {
    return (size + unit - 1) / unit * unit;
}

/* ------------------------------------------------------------------------------- life time */

/* As much address space as twice the machine's memory: it costs nothing until it is used.  Where
 * the address space of a process is limited (ulimit -v), an eighth of the limit: the rest is for
 * the stacks of threads, for other runs, and for everybody else.  Never more than a file may have
 * (ulimit -f), though that may be too little: who asks for more gets SIGXFSZ, which ends a process
 * that has no handler for it.  To make pages within the file's size raises nothing. */
static uint64_t space_to_reserve(void) {
    long pages = sysconf(_SC_PHYS_PAGES);
    uint64_t wanted = pages > 0 ? (uint64_t)pages * page_size() * 2 : 0;
    uint64_t size = (uint64_t)1 << 30;
    while (size < wanted) size *= 2;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        while (size > SPACE_MIN && size > limit.rlim_cur / 8) size /= 2;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0)
        while (size > limit.rlim_cur) size /= 2;
    return size;
}

static char *map(int fd, uint64_t size) {
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* Signals wait meanwhile.  When one comes, Linux (before 6.10) gives back what it has made so far:
 * where a timer sends them (a profiler's, say), what takes longer than from one to the next would
 * be begun anew for ever, with the heap's lock held. */
static int allocate(int fd, int mode, uint64_t offset, uint64_t size) {
    sigset_t signals;
    int rc;
    pyper__hold_signals(&signals);
    int held = pyper__hold_cancel();
    do rc = fallocate(fd, mode, (off_t)offset, (off_t)size);
    while (rc < 0 && errno == EINTR);
    int why = errno;
    pyper__let_cancel(held);
    pyper__let_signals(&signals);
    errno = why;
    return rc;
}

static int grow(int fd, uint64_t from, uint64_t upto) {
    return allocate(fd, 0, from, upto - from) < 0 ? pyper__why_refused("fallocate") : 0;
}

/* Give pages back to the system. */
static void punch(const pyper__shm *shm, uint64_t offset, uint64_t size) {
    (void)allocate(shm->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size);
}

static void set_bounds(pyper__shm *shm, uint64_t blocks) {
    shm->blocks = blocks;
    shm->space = shm->size - PYPER__SHM_SPARE - blocks;
}

static int furnish(pyper__shm *shm, uint64_t first) {
    shm->fd = pyper__fd_keep(memfd_create("pyper", MFD_CLOEXEC));
    if (shm->fd < 0) return pyper__why_refused("memfd_create");
    for (shm->size = space_to_reserve(); shm->size >= SPACE_MIN; shm->size /= 2) {
        if (ftruncate(shm->fd, (off_t)shm->size) == 0) shm->base = map(shm->fd, shm->size);
        if (shm->base) break;
    }
    uint64_t top = whole(PYPER__SHM_FIRST + first, page_size());
    uint64_t made = top + GROW_MIN;
    if (!shm->base || made > shm->size) return PYPER_ENOMEM;
    int rc = grow(shm->fd, 0, made);
    if (rc < 0) return rc;
    struct heap *heap = (struct heap *)shm->base;
    heap->magic = MAGIC;
    heap->top = heap->blocks = top;
    heap->made = made;
    set_bounds(shm, top);
    return pyper__shared_lock_init(&heap->lock);
}

int pyper__shm_create(uint64_t first, pyper__shm **ret_shm) {
    pyper__shm *shm = pyper__alloc(sizeof *shm);
    if (!shm) return PYPER_ENOMEM;
    atomic_init(&shm->refs, 1);
    shm->fd = -1;
    int rc = furnish(shm, first);
    if (rc < 0)
        pyper__shm_unref(shm);
    else
        *ret_shm = shm;
    return rc;
}

int pyper__shm_attach(int fd, pyper__shm **ret_shm) {
    struct stat facts;
    pyper__shm *shm = pyper__alloc(sizeof *shm);
    if (!shm) {
        pyper__fd_close(&fd);
        return PYPER_ENOMEM;
    }
    atomic_init(&shm->refs, 1);
    shm->fd = fd;
    int rc = fstat(fd, &facts) == 0 && facts.st_size > (off_t)(PYPER__SHM_FIRST + PYPER__SHM_SPARE)
                 ? 0
                 : PYPER_EINVAL;
    if (rc == 0) {
        shm->size = (uint64_t)facts.st_size;
        shm->base = map(fd, shm->size);
        if (!shm->base) rc = PYPER_ENOMEM;
    }
    const struct heap *heap = (const struct heap *)(void *)shm->base;
    if (rc == 0 && (heap->magic != MAGIC || heap->blocks > shm->size - PYPER__SHM_SPARE))
        rc = PYPER_EINVAL;
    if (rc == 0) set_bounds(shm, heap->blocks);
    if (rc < 0)
        pyper__shm_unref(shm);
    else
        *ret_shm = shm;
    return rc;
}

pyper__shm *pyper__shm_ref(pyper__shm *shm) {
    atomic_fetch_add_explicit(&shm->refs, 1, memory_order_relaxed);
    return shm;
}

void pyper__shm_unref(pyper__shm *shm) {
    if (!shm || atomic_fetch_sub_explicit(&shm->refs, 1, memory_order_acq_rel) != 1) return;
    if (shm->base) munmap(shm->base, shm->size);
    pyper__fd_close(&shm->fd);
    pyper__free(shm);
}

/* ---------------------------------------------------------------------------------- blocks */

/* The class of a size, and the size of its blocks. */
static unsigned class_of(uint64_t size, uint64_t *ret_block) {
    if (size <= (uint64_t)1 << SMALLEST_SHIFT) {
        *ret_block = (uint64_t)1 << SMALLEST_SHIFT;
        return 0;
    }
    unsigned top_bit =
        63 - (unsigned)__builtin_clzll(size - 1); /* 2^top_bit < size <= 2^(top_bit+1) */
    uint64_t step = ((uint64_t)1 << top_bit) / 4;
    uint64_t steps = (size - ((uint64_t)1 << top_bit) + step - 1) / step; /* 1 to 4 */
    *ret_block = ((uint64_t)1 << top_bit) + steps * step;
    return (top_bit - SMALLEST_SHIFT) * 4 + (unsigned)steps;
}

static uint64_t size_of_class(unsigned class) {
    uint64_t power = (uint64_t)1 << (SMALLEST_SHIFT + class / 4);
    return power + class % 4 * (power / 4);
}

static uint64_t *link_of(pyper__shm *shm, uint64_t offset) {
    return (uint64_t *)(void *)(shm->base + offset);
}

/* A block from the end of the file.  With the lock held. */
static uint64_t extend_locked(pyper__shm *shm, struct heap *heap, uint64_t block) {
    uint64_t page = page_size();
    bool pages = block >= page || block >= PYPER__SHM_KEEP_MIN;
    uint64_t offset = whole(heap->top, pages ? page : PYPER__SHM_ALIGNMENT);
    uint64_t upto = shm->blocks + shm->space;
    if (block > upto || offset > upto - block) return 0;
    uint64_t end = offset + block;
    /* What is kept is mapped anew, by whole pages: no other block may begin in its last one. */
    if (block >= PYPER__SHM_KEEP_MIN) end = whole(end, page);
    if (end > heap->made) {
        uint64_t more = heap->made / 8;
        if (more < GROW_MIN) more = GROW_MIN;
        if (more > GROW_MAX) more = GROW_MAX;
        uint64_t made = whole(end + more, page);
        if (made > shm->size) made = shm->size;
        if (grow(shm->fd, heap->made, made) < 0) {
            made = whole(end, page); /* no more than it takes */
            if (grow(shm->fd, heap->made, made) < 0) return 0;
        }
        heap->made = made;
    }
    heap->top = end;
    return offset;
}

uint64_t pyper__shm_alloc(pyper__shm *shm, uint64_t size) {
    struct heap *heap = (struct heap *)(void *)shm->base;
    uint64_t block;
    if (size > shm->size) return 0;
    unsigned class = class_of(size, &block);
    pyper__shared_lock_take(&heap->lock);
    pyper__shm_take_over(shm);
    uint64_t offset = heap->given_back[class];
    if (offset && pyper__shm_holds(shm, offset, block))
        heap->given_back[class] = *link_of(shm, offset);
    else
        offset = extend_locked(shm, heap, block);
    pyper__shared_lock_give(&heap->lock);
    return offset;
}

void pyper__shm_free(pyper__shm *shm, uint64_t offset, uint64_t size) {
    struct heap *heap = (struct heap *)(void *)shm->base;
    uint64_t block;
    unsigned class = class_of(size, &block);
    pyper__shared_lock_take(&heap->lock);
    *link_of(shm, offset) = heap->given_back[class];
    heap->given_back[class] = offset;
    pyper__shm_hand_over(shm);
    pyper__shared_lock_give(&heap->lock);
}

/* ------------------------------------------------------------------------------------ kept */

/* Everything that is kept, and the lock of the list.  A fork takes it, so that the child finds it
 * free and the list whole. */
static pthread_mutex_t keeping = PTHREAD_MUTEX_INITIALIZER;
static pyper__shm_kept *all_kept;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static void *map_over(const pyper__shm_kept *kept, int flags) {
    void *at = pyper__shm_at(kept->shm, kept->offset);
    return mmap(at, kept->size, PROT_READ | PROT_WRITE, flags | MAP_FIXED | MAP_NORESERVE,
                kept->shm->fd, (off_t)kept->offset);
}

/* In one step nothing that is written reaches the file any more; then each page gets a copy, so
 * that nothing that happens to the file is seen here.  What another thread writes meanwhile is not
 * lost. */
static void set_apart(pyper__shm_kept *kept) {
    if (kept->apart) return;
    void *at = map_over(kept, MAP_PRIVATE);
    kept->apart = at != MAP_FAILED;
    kept->lost = !kept->apart || madvise(at, kept->size, MADV_POPULATE_WRITE) < 0;
    if (kept->lost) kept->shm->lost = true;
}

/* Give what nobody uses any more back to the system: the blocks that were given back, of a page and
 * more, and what was never handed out. */
static void give_free_back(pyper__shm *shm) {
    struct heap *heap = (struct heap *)(void *)shm->base;
    uint64_t page = page_size();
    pyper__shared_lock_take(&heap->lock);
    for (unsigned class = 0; class < CLASSES; class ++) {
        uint64_t size = size_of_class(class), offset = heap->given_back[class], next;
        if (size < page) continue;
        heap->given_back[class] = 0;
        for (; offset && pyper__shm_holds(shm, offset, size); offset = next) {
            next = *link_of(shm, offset);
            punch(shm, offset, size);
        }
    }
    if (heap->top <= heap->made && heap->made <= shm->size)
        punch(shm, whole(heap->top, page), heap->made - heap->top);
    pyper__shared_lock_give(&heap->lock);
}

static void unmap_behind(pyper__shm *shm, uint64_t end) {
    if (shm->size > end) munmap(shm->base + end, shm->size - end);
    shm->size = end;
}

/* See pyper__shm_retire(). */
static void give_up_locked(pyper__shm *shm) {
    if (!shm->keep || shm->fd < 0 || shm->kept > PYPER__SHM_APART) return;
    uint64_t keep = shm->keep, end = keep;
    for (pyper__shm_kept *kept = all_kept; kept; kept = kept->next) {
        if (kept->shm != shm) continue;
        set_apart(kept);
        if (kept->lost) return;
        uint64_t behind = whole(kept->offset + kept->size, page_size());
        if (behind > end) end = behind;
    }
    void *copy = mmap(NULL, keep, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) return;
    /* Word by word: somebody may be counting himself in or out there, which nobody will miss. */
    _Atomic uint64_t *from = (_Atomic uint64_t *)(void *)shm->base;
    for (uint64_t i = 0; i < keep / sizeof *from; i++)
        ((uint64_t *)copy)[i] = atomic_load_explicit(&from[i], memory_order_relaxed);
    /* In one step: who reads meanwhile sees the one or the other. */
    if (mremap(copy, keep, keep, MREMAP_MAYMOVE | MREMAP_FIXED, shm->base) == MAP_FAILED) {
        munmap(copy, keep);
        return;
    }
    /* What lies between the kept blocks stays mapped, but is empty. */
    if (end > keep && !shm->lost) punch(shm, 0, shm->size);
    unmap_behind(shm, end);
    pyper__fd_close(&shm->fd);
}

void pyper__shm_retire(pyper__shm *shm, uint64_t keep) {
    pthread_mutex_lock(&keeping);
    if (!shm->keep) shm->keep = whole(keep, page_size());
    give_up_locked(shm);
    if (shm->fd >= 0) give_free_back(shm);
    pthread_mutex_unlock(&keeping);
}

static void before_fork(void) {
    pthread_mutex_lock(&keeping);
    for (pyper__shm_kept *kept = all_kept; kept; kept = kept->next) set_apart(kept);
}

static void after_fork(void) {
    pthread_mutex_unlock(&keeping);
}

static void watch(void) {
    pthread_atfork(before_fork, after_fork, after_fork);
}

static PYPER__AT_LOAD void watch_forks(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch);
}

void pyper__shm_keep(pyper__shm *shm, uint64_t offset, uint64_t size, pyper__shm_kept *ret_kept) {
    uint64_t block;
    watch_forks();
    class_of(size, &block);
    *ret_kept = (pyper__shm_kept){.shm = pyper__shm_ref(shm), .offset = offset, .size = block};
    pthread_mutex_lock(&keeping);
    shm->kept += block;
    ret_kept->forks = atomic_load(&pyper__forks);
    ret_kept->next = all_kept;
    if (all_kept) all_kept->prev = ret_kept;
    all_kept = ret_kept;
    pthread_mutex_unlock(&keeping);
}

void pyper__shm_unkeep(pyper__shm_kept *kept) {
    pyper__shm *shm = kept->shm;
    pthread_mutex_lock(&keeping);
    if (kept->next) kept->next->prev = kept->prev;
    *(kept->prev ? &kept->prev->next : &all_kept) = kept->next;
    bool ours = kept->forks == atomic_load(&pyper__forks);
    if (ours) shm->kept -= kept->size;
    if (ours && shm->fd >= 0 && !shm->keep) {
        if (kept->apart && !kept->lost) kept->lost = map_over(kept, MAP_SHARED) == MAP_FAILED;
        if (!kept->lost) pyper__shm_free(shm, kept->offset, kept->size);
    } else if (kept->apart) {
        madvise(pyper__shm_at(shm, kept->offset), kept->size, MADV_DONTNEED);
    }
    if (ours && shm->keep) {
        if (shm->fd >= 0 && !kept->lost) punch(shm, kept->offset, kept->size);
        if (shm->fd < 0 && shm->kept == 0) unmap_behind(shm, shm->keep);
        give_up_locked(shm);
    }
    pthread_mutex_unlock(&keeping);
    pyper__shm_unref(shm);
}

#endif
