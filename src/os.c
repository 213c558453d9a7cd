/* os - see os.h.  Linux sleeps on a futex, because a signal must end the sleep (a handled signal
 * never returns from pthread_cond_wait()).  Other systems share one lock and condition variable per
 * bucket of addresses; there a signal is noticed when the sleep ends. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "os.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "text.h"

#if defined(__linux__) && !defined(PYPER_NO_FUTEX)
#define USE_FUTEX 1
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#else
#define USE_FUTEX 0
#endif

#if defined(__linux__)
#include <sys/eventfd.h>
#endif

/* ------------------------------------------------------------------------------- memory */

#ifdef PYPER_TESTING
_Atomic long pyper__fail_alloc_at = -1;
_Atomic int pyper__fail_alloc_stays = 0;
_Atomic long pyper__fail_thread_at = -1;
_Atomic long pyper__allocs_live;

static bool fails_now(_Atomic long *countdown, bool stays) {
    long before = atomic_load(countdown);
    if (before < 0) return false;
    if (before == 0) return stays;
    return atomic_fetch_sub(countdown, 1) == 1;
}

static bool alloc_fails(void) {
    return fails_now(&pyper__fail_alloc_at, atomic_load(&pyper__fail_alloc_stays));
}

static void *counted(void *memory) {
    if (memory) atomic_fetch_add_explicit(&pyper__allocs_live, 1, memory_order_relaxed);
    return memory;
}

static void counted_out(const void *memory) {
    if (memory) atomic_fetch_sub_explicit(&pyper__allocs_live, 1, memory_order_relaxed);
}
#else
#define alloc_fails() false
#define counted(memory) (memory)
#define counted_out(memory) ((void)(memory))
#endif

void *pyper__alloc_unset(size_t size) {
    if (alloc_fails()) return NULL;
    if (size < PYPER__CACHE_LINE) return counted(malloc(size));
    if (size > PTRDIFF_MAX - PYPER__CACHE_LINE) return NULL;
    size_t lines = (size + PYPER__CACHE_LINE - 1) / PYPER__CACHE_LINE;
    return counted(aligned_alloc(PYPER__CACHE_LINE, lines * PYPER__CACHE_LINE));
}

void *pyper__alloc(size_t size) {
    void *memory = pyper__alloc_unset(size);
    if (memory) memset(memory, 0, size);
    return memory;
}

void pyper__free(void *memory) {
    counted_out(memory);
    free(memory);
}

void *pyper__map(size_t size) {
    if (alloc_fails()) return NULL;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : counted(memory);
}

void pyper__unmap(void *memory, size_t size) {
    counted_out(memory);
    munmap(memory, size);
}

/* -------------------------------------------------------------------------------- clock */

static int64_t in_ns(struct timespec t) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t pyper_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return in_ns(t);
}

static int64_t busy_ns(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) == 0 ? in_ns(t) : pyper_now();
}

/* POSIX says for each of the two whether there is such a clock. */
#ifndef CLOCK_THREAD_CPUTIME_ID
#define CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC
#endif
#ifndef CLOCK_PROCESS_CPUTIME_ID
#define CLOCK_PROCESS_CPUTIME_ID CLOCK_MONOTONIC
#endif

int64_t pyper__thread_busy_ns(void) {
    return busy_ns(CLOCK_THREAD_CPUTIME_ID);
}

int64_t pyper__process_busy_ns(void) {
    return busy_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* ----------------------------------------------------------------------------- sleeping */

void pyper__yield(void) {
    sched_yield();
}

#if USE_FUTEX

bool pyper__fence_others(void) {
    return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
}

/* Which of the processes that were forked from each other has found out that it can (1 + forks). */
static _Atomic uint64_t can_fence;

bool pyper__can_fence_others(void) {
    uint64_t here = (uint64_t)atomic_load_explicit(&pyper__forks, memory_order_relaxed) + 1;
    if (atomic_load_explicit(&can_fence, memory_order_relaxed) == here) return true;
    bool can = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0 &&
               pyper__fence_others();
    if (can) atomic_store_explicit(&can_fence, here, memory_order_relaxed);
    return can;
}

int pyper__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns, bool shared) {
    /* FUTEX_WAIT_BITSET takes an absolute time of the monotonic clock.  There always is one (for
     * ever is some 292 years), for without one the kernel restarts the call after a handler that
     * was installed with SA_RESTART, and the signal would not end the sleep. */
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                             .tv_nsec = (long)(deadline_ns % 1000000000)};
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG),
                      expected, &until, NULL, FUTEX_BITSET_MATCH_ANY);
    if (rc == 0 || errno == EAGAIN) return 0;
    return errno == ETIMEDOUT ? PYPER_ETIMEDOUT : errno == EINTR ? PYPER_EINTR : 0;
}

void pyper__futex_wake(_Atomic uint32_t *word, int count, bool shared) {
    syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), count, NULL, NULL, 0);
}

#else

bool pyper__fence_others(void) {
    return false;
}

bool pyper__can_fence_others(void) {
    return false;
}

/* A sleeper re-tests *word under its bucket's lock, and a waker takes that lock after it has
 * changed the word: so no wake-up is lost.  Everybody of a bucket wakes; most go back to sleep. */
#define BUCKETS 64
static struct bucket {
    pthread_mutex_t lock;
    pthread_cond_t wake;
} buckets[BUCKETS];
static pthread_once_t buckets_once = PTHREAD_ONCE_INIT;

static void buckets_init(void) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
#if !defined(__APPLE__)
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
#endif
    for (int i = 0; i < BUCKETS; i++) {
        pthread_mutex_init(&buckets[i].lock, NULL);
        pthread_cond_init(&buckets[i].wake, &attr);
    }
    pthread_condattr_destroy(&attr);
}

static struct bucket *bucket_of(_Atomic uint32_t *word) {
    pthread_once(&buckets_once, buckets_init);
    return &buckets[((uintptr_t)word >> 6) % BUCKETS];
}

int pyper__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns, bool shared) {
    struct bucket *bucket = bucket_of(word);
    int rc = 0;
    assert(!shared);
    (void)shared;
    int held = pyper__hold_cancel();
    pthread_mutex_lock(&bucket->lock);
    if (atomic_load(word) == expected) {
        if (deadline_ns == PYPER_FOREVER) {
            pthread_cond_wait(&bucket->wake, &bucket->lock);
        } else {
#if defined(__APPLE__)
            int64_t left = deadline_ns - pyper_now();
            if (left < 0) left = 0;
            struct timespec t = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
            if (pthread_cond_timedwait_relative_np(&bucket->wake, &bucket->lock, &t) == ETIMEDOUT)
                rc = PYPER_ETIMEDOUT;
#else
            struct timespec t = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                                 .tv_nsec = (long)(deadline_ns % 1000000000)};
            if (pthread_cond_timedwait(&bucket->wake, &bucket->lock, &t) == ETIMEDOUT)
                rc = PYPER_ETIMEDOUT;
#endif
        }
    }
    pthread_mutex_unlock(&bucket->lock);
    pyper__let_cancel(held);
    return rc;
}

void pyper__futex_wake(_Atomic uint32_t *word, int count, bool shared) {
    struct bucket *bucket = bucket_of(word);
    (void)count;
    (void)shared;
    pthread_mutex_lock(&bucket->lock);
    pthread_cond_broadcast(&bucket->wake);
    pthread_mutex_unlock(&bucket->lock);
}

#endif

/* ------------------------------------------------------------------------------ threads */

/* A started thread: its first act is to copy and free this. */
struct thread_start {
    void (*entry)(void *arg);
    void *arg;
    char name[16]; /* what Linux takes, its NUL included */
};

static void *thread_main(void *memory) {
    struct thread_start start = *(struct thread_start *)memory;
    pyper__free(memory);
#if defined(__linux__)
    pthread_setname_np(pthread_self(), start.name);
#elif defined(__APPLE__)
    pthread_setname_np(start.name);
#endif
    start.entry(start.arg);
    return NULL;
}

int pyper__thread_start(const char *name, void (*entry)(void *arg), void *arg, void **ret_thread) {
#ifdef PYPER_TESTING
    if (fails_now(&pyper__fail_thread_at, false)) return PYPER_ETHREAD;
#endif
    struct thread_start *start = pyper__alloc(sizeof *start);
    if (!start) return PYPER_ENOMEM;
    start->entry = entry;
    start->arg = arg;
    pyper__text_copy(start->name, sizeof start->name, name);
    pthread_t thread;
    if (pthread_create(&thread, NULL, thread_main, start) != 0) {
        pyper__free(start);
        return PYPER_ETHREAD;
    }
    _Static_assert(sizeof thread <= sizeof *ret_thread, "pthread_t fits into a pointer");
    *ret_thread = NULL;
    memcpy(ret_thread, &thread, sizeof thread);
    return 0;
}

static pthread_t thread_of(void *handle) {
    pthread_t thread;
    memcpy(&thread, &handle, sizeof thread);
    return thread;
}

void pyper__thread_join(void *thread) {
    int held = pyper__hold_cancel();
    pthread_join(thread_of(thread), NULL);
    pyper__let_cancel(held);
}

void pyper__thread_drop(void *thread) {
    pthread_detach(thread_of(thread));
}

int pyper__hold_cancel(void) {
    int held;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &held);
    return held;
}

void pyper__let_cancel(int held) {
    pthread_setcancelstate(held, NULL);
}

/* ---------------------------------------------------------------- descriptors and bells */

int pyper__fd_keep(int fd) {
    if (fd < 0 || fd > STDERR_FILENO) return fd;
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int why = errno == EINVAL ? EMFILE : errno; /* EINVAL: the limit is no higher than that */
    pyper__fd_close(&fd);
    errno = why;
    return kept;
}

void pyper__fd_close(int *fd) {
    int held = pyper__hold_cancel();
    if (*fd >= 0) close(*fd);
    pyper__let_cancel(held);
    *fd = -1;
}

static _Thread_local const char *refused_call; /* see pyper__refused_call() */

int pyper__why_refused(const char *call) {
    if (errno == EMFILE || errno == ENFILE) return PYPER_EMFILE;
    if (errno != ENOSYS && errno != EPERM && errno != EACCES) return PYPER_ENOMEM;
    refused_call = call;
    return PYPER_ENOTSUP;
}

const char *pyper__refused_call(void) {
    return refused_call;
}

#if defined(__linux__)

int pyper__bell_open(int ret_bell[2]) {
    int fd = pyper__fd_keep(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (fd < 0) return pyper__why_refused("eventfd");
    ret_bell[0] = ret_bell[1] = fd;
    return 0;
}

#else

int pyper__bell_open(int ret_bell[2]) {
    if (pipe(ret_bell) < 0) return pyper__why_refused("pipe");
    int rc = 0;
    for (int i = 0; i < 2; i++) {
        ret_bell[i] = pyper__fd_keep(ret_bell[i]);
        if (ret_bell[i] < 0) rc = pyper__why_refused("pipe");
        fcntl(ret_bell[i], F_SETFD, FD_CLOEXEC);
        fcntl(ret_bell[i], F_SETFL, O_NONBLOCK);
    }
    for (int i = 0; rc < 0 && i < 2; i++) pyper__fd_close(&ret_bell[i]);
    return rc;
}

#endif

void pyper__bell_close(const int bell[2]) {
    int held = pyper__hold_cancel();
    close(bell[0]);
    if (bell[1] != bell[0]) close(bell[1]);
    pyper__let_cancel(held);
}

/* Eight bytes are what an eventfd takes; a pipe does not mind.  Where there is no room for them it
 * is rung already. */
void pyper__bell_ring(const int bell[2]) {
    uint64_t one = 1;
    int held = pyper__hold_cancel();
    while (write(bell[1], &one, sizeof one) < 0 && errno == EINTR) {
    }
    pyper__let_cancel(held);
}

void pyper__bell_silence(const int bell[2]) {
    uint64_t bytes[16];
    ssize_t count;
    int held = pyper__hold_cancel();
    do {
        count = read(bell[0], bytes, bell[0] == bell[1] ? sizeof bytes[0] : sizeof bytes);
    } while ((count < 0 && errno == EINTR) || count == (ssize_t)sizeof bytes);
    pyper__let_cancel(held);
}

/* Where the system refuses to wait, the caller looks again and again: the one place where that is
 * so.  A thousand times a second costs next to nothing; the exact number does not matter much. */
#define REST_NS 1000000

int pyper__poll(struct pollfd *watched, size_t count, int timeout_ms) {
    int held = pyper__hold_cancel();
    int ready = poll(watched, (nfds_t)count, timeout_ms);
    int why = errno;
    if (ready < 0 && why != EINTR) nanosleep(&(struct timespec){.tv_nsec = REST_NS}, NULL);
    pyper__let_cancel(held);
    errno = why;
    return ready;
}

/* poll() counts in milliseconds: the wait is at most one too long. */
int pyper__bell_await(const int bell[2], int64_t deadline_ns) {
    int timeout = -1;
    if (deadline_ns != PYPER_FOREVER) {
        int64_t left_ns = deadline_ns - pyper_now();
        if (left_ns <= 0) return PYPER_ETIMEDOUT;
        int64_t left_ms = left_ns / 1000000 + 1;
        timeout = left_ms > INT_MAX ? INT_MAX : (int)left_ms;
    }
    struct pollfd watched = {.fd = bell[0], .events = POLLIN};
    int count = pyper__poll(&watched, 1, timeout);
    if (count < 0) return errno == EINTR ? PYPER_EINTR : 0;
    return count == 0 && timeout != INT_MAX ? PYPER_ETIMEDOUT : 0;
}

/* --------------------------------------------------------------------------------- fork */

_Atomic uint32_t pyper__forks;
_Thread_local uint64_t pyper__thread_number PYPER__TLS_MODEL;
static _Atomic uint64_t next_number = PYPER__THREAD_NUMBER_FIRST;

uint64_t pyper__number_thread(void) {
    if (pyper__thread_number == 0)
        pyper__thread_number = atomic_fetch_add_explicit(&next_number, 1, memory_order_relaxed);
    return pyper__thread_number;
}

static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_child(void) {
    atomic_fetch_add_explicit(&pyper__forks, 1, memory_order_relaxed);
    pyper__thread_number = 0;
}

static void watch(void) {
    pthread_atfork(NULL, NULL, in_child);
}

void pyper__watch_forks(void) {
    pthread_once(&fork_once, watch);
}
