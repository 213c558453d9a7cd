/* os - everything the library asks of the operating system: memory, the clock, sleeping on a word,
 * threads, and whether this process was forked.
 *
 * The only room with platform branches, but for what there is only where workers may be processes
 * (PYPER__PROCESSES: shm, board, lane, channel, process, child, and the lines of others that call
 * them).  Codes of the system are translated here: what comes out is a PYPER_E... code.  All memory
 * of the library goes through pyper__alloc() and its like (but for what processes share, and
 * items), so that a test can fail each allocation in turn; the same for threads. */
#ifndef PYPER_OS_H
#define PYPER_OS_H

#include <stdatomic.h>
#include <stdint.h>

#include "pyper.h"

#define PYPER__CACHE_LINE 64

#if defined(__GNUC__)
#define pyper__likely(x) __builtin_expect(!!(x), 1)
#define pyper__unlikely(x) __builtin_expect(!!(x), 0)
#define PYPER__COLD __attribute__((cold, noinline))
#define PYPER__NOINLINE __attribute__((noinline))
#define PYPER__ALWAYS_INLINE inline __attribute__((always_inline))
/* Quick to reach from a shared library, too: pyper_next() looks there for each item. */
#define PYPER__TLS_MODEL __attribute__((tls_model("initial-exec")))
/* Called when the library is loaded: its fork handlers are to be there before the program's.  So
 * they are the last to run before a fork and the first after it, and the program's may use the
 * library. */
#define PYPER__AT_LOAD __attribute__((constructor))
#else
#define pyper__likely(x) (x)
#define pyper__unlikely(x) (x)
#define PYPER__COLD
#define PYPER__NOINLINE
#define PYPER__ALWAYS_INLINE inline
#define PYPER__TLS_MODEL
#define PYPER__AT_LOAD
#endif

/* Zeroed memory, aligned to a cache line if it is that large; NULL when there is none. */
void *pyper__alloc(size_t size);
/* The same, but not zeroed: for what is written before it is read. */
void *pyper__alloc_unset(size_t size);
void pyper__free(void *memory);
/* Whole pages, zeroed, that go back to the system when they are unmapped: for much that comes and
 * goes.  NULL when there are none. */
void *pyper__map(size_t size);
void pyper__unmap(void *memory, size_t size);

/* Workers may be processes: what it takes is there (a futex between processes, anonymous shared
 * memory, descriptors of processes). */
#if defined(__linux__) && !defined(PYPER_NO_FUTEX)
#define PYPER__PROCESSES 1
#else
#define PYPER__PROCESSES 0
#endif

/* How long this thread, and all threads of this process together, have had a processor, in ns;
 * where nobody knows that, what pyper_now() says. */
int64_t pyper__thread_busy_ns(void);
int64_t pyper__process_busy_ns(void);

/* Sleep while *word == expected, until woken, interrupted by a handled signal, or `deadline_ns`.
 * `shared`: the word lies in memory that processes share.
 * Returns 0 (woken, or the word had changed, or for no reason), PYPER_ETIMEDOUT or PYPER_EINTR.
 * A signal ends the sleep on Linux; elsewhere it does not (see os.c). */
int pyper__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns, bool shared);

/* Wake at most `count` sleepers. */
void pyper__futex_wake(_Atomic uint32_t *word, int count, bool shared);

/* Let every thread of this process that runs now pass a full memory fence (Linux: membarrier).
 * false: there is no way to do that here.  It costs the caller a system call, and the others
 * nothing until then; pyper__can_fence_others() has tried it, and once it is true it stays true but
 * for a process that forbids itself the call later. */
bool pyper__fence_others(void);
bool pyper__can_fence_others(void);

/* Let other threads run: a hint, returns soon. */
void pyper__yield(void);

/* Between two looks at what another processor is about to change. */
static inline void pyper__relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* The cache line there will be written soon: have it come meanwhile, no longer shared with the
 * processor that has written or read it last.  Any address will do.  For x86-64 compilers take
 * __builtin_prefetch() as a fetch to read, unless they are told what processor it is; one that
 * knows no PREFETCHW does nothing. */
#if defined(__x86_64__)
#define pyper__fetch_to_write(address)                                                             \
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(address)))
#elif defined(__GNUC__)
#define pyper__fetch_to_write(address) __builtin_prefetch(address, 1)
#else
#define pyper__fetch_to_write(address) ((void)(address))
#endif

/* How far ahead of what is being written: so many of them fill four lines. */
#define PYPER__FETCH_AHEAD(type) (4 * PYPER__CACHE_LINE / (int64_t)sizeof(type))

/* Behind pthread_mutex_unlock(): a full fence.  C libraries unlock with release, which lets what is
 * read behind it be read before; but on x86 that is a locked instruction, and a full fence by
 * itself. */
static inline void pyper__fence_after_unlock(void) {
#if defined(__x86_64__) || defined(__i386__)
    atomic_signal_fence(memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Start a thread: 0, PYPER_ETHREAD or PYPER_ENOMEM.  `name` is cut to what the system takes. */
int pyper__thread_start(const char *name, void (*entry)(void *arg), void *arg, void **ret_thread);
void pyper__thread_join(void *thread);
void pyper__thread_drop(void *thread);

/* No call of the library is a cancellation point: a thread that pthread_cancel() ended within it
 * would leave locks taken, and others waiting for what it has begun.  So around each call of the
 * system that is one (what `hold` has returned goes back to `let`). */
int pyper__hold_cancel(void);
void pyper__let_cancel(int held);

/* A descriptor that has just been opened, to be kept: itself; or a duplicate in its place (closed
 * on exec), if it has the number of stdin, stdout or stderr.  A program may have closed these, and
 * what anybody then prints must not get into what is the library's.
 * -1, as from who has opened it: `fd` was that, or no number is left (and `fd` has been closed). */
int pyper__fd_keep(int fd);

/* Close it, unless it is -1, and make it that. */
void pyper__fd_close(int *fd);

/* A bell: a descriptor that becomes readable when it is rung, and stays so until it is silenced.
 * Two numbers, the end to watch and the end to ring; the same one where the system has such a
 * thing. */
int pyper__bell_open(int ret_bell[2]); /* 0, or as pyper__why_refused() */
void pyper__bell_close(const int bell[2]);
void pyper__bell_ring(const int bell[2]);
void pyper__bell_silence(const int bell[2]);

/* Why `call` (a constant string), which is to give descriptors or memory, has failed, by errno:
 * PYPER_EMFILE, PYPER_ENOMEM, or PYPER_ENOTSUP: a sandbox refuses the call, or the system does not
 * have it. */
int pyper__why_refused(const char *call);
/* Of which call it has said so last, on this thread; NULL: of none. */
const char *pyper__refused_call(void);

/* poll(), but no cancellation point.  Where the system refuses the call this returns -1 after a
 * short rest, and the caller has to look for himself: a program that shuts itself in may set
 * RLIMIT_NOFILE below what it has open, and poll() takes no more descriptors than that. */
struct pollfd;
int pyper__poll(struct pollfd *watched, size_t count, int timeout_ms);

/* Sleep until the bell is rung: 0, PYPER_ETIMEDOUT or PYPER_EINTR. */
int pyper__bell_await(const int bell[2], int64_t deadline_ns);

/* How often this process was forked from one that had called pyper__watch_forks(): changes in a
 * forked child, never in the process itself.  Written by the child before it has a second
 * thread. */
extern _Atomic uint32_t pyper__forks;
PYPER__AT_LOAD void pyper__watch_forks(void);

/* What tells the calling thread from all others that there have been: 0 until it is asked for; in a
 * forked child 0 again. */
extern _Thread_local uint64_t pyper__thread_number PYPER__TLS_MODEL;
#define PYPER__THREAD_NUMBER_FIRST 16 /* those below mean something else to others */
uint64_t pyper__number_thread(void);

#ifdef PYPER_TESTING
/* Count down with every allocation (thread); the one that reaches 0 fails; negative: never.  With
 * fail_alloc_stays all later ones fail too. */
extern _Atomic long pyper__fail_alloc_at;
extern _Atomic int pyper__fail_alloc_stays;
extern _Atomic long pyper__fail_thread_at;
/* How many allocations of this process have not been freed. */
extern _Atomic long pyper__allocs_live;
#endif

#endif
