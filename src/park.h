/* park - sleeping and waking.
 *
 * An *event* is where threads wait for a condition that others make true.  The one legal way to
 * wait is pyper__await(), which holds the wait loop; no other file waits for threads.  (Two threads
 * watch descriptors, for the death of processes: in process.c and child.c.)  A *seat* is what a
 * thread brings to a wait: its host, whose token is given up meanwhile, and the clock of its
 * waiting time.
 *
 *     waiting:                                    making it true:
 *         pyper__await(seat, &e, ready, arg, ..)      change the condition   (seq_cst)
 *                                                     pyper__event_notify(&e, 1)
 *
 * `ready` reads atomics with seq_cst and nothing else: it is called without any lock and without
 * the host's token.  It is a hint: after pyper__await() has returned 0, look again, under your
 * lock.
 *
 * Why no wake-up is lost: the sleeper first counts itself in (seq_cst), then tests the condition;
 * the other side first changes the condition (seq_cst), then reads the count.  In the single order
 * of these four one of the two sees the other.
 *
 * Light notifiers: where the condition is changed for each item, even that order costs too much
 * there, so the sleeper pays for both.  The other side changes the condition with release and reads
 * the count right behind it; the sleeper counts itself in, then lets every running thread of the
 * process pass a full fence (pyper__fence_others()), then tests the condition.  A notifier that
 * read the count before that fence had changed the condition before it, too, and the sleeper sees
 * that; one that reads it after the fence sees the sleeper.
 *
 * Careful notifiers: that fence interrupts every running thread of the process, and takes 20 to 80
 * us.  So a sleeper who has passed it leaves a mark beside the count, and while that is there the
 * notifiers pass a fence each and the sleepers none.  To a notifier the mark looks as if somebody
 * waited, so nothing more is asked of those who are light; and when some have found nobody it is
 * gone.  The mark is left by a sleeper who was counted in all the time since before his fence, and
 * whoever counts himself in while it is there may rely on that fence: behind it no notifier has
 * read a 0, nor will one as long as anybody of these is counted in.
 *
 * Waiting costs nothing: no polling, no timers (but at a lock between processes: somebody may have
 * died with it).  A waiter lets other threads run (sched_yield) a bounded number of times before it
 * sleeps: where that was of use a moment ago, or nobody knows yet; not where it would most likely
 * let other programs run, which compute. */
#ifndef PYPER_PARK_H
#define PYPER_PARK_H

#include "os.h"

#if PYPER__PROCESSES
#include <pthread.h>
#endif

/* ---------------------------------------------------------------------------------- lock */

/* A mutex in one word: 0 free, 1 taken, 2 taken and somebody may sleep on it (the three states of
 * U. Drepper, "Futexes are tricky", 2005).  A tenth of the instructions of a pthread mutex when it
 * is free, which is what pyper_next() pays for each item.
 *
 * Held for a few instructions; never while user code runs, the host is called, or the thread waits
 * for anything that takes longer (a lock between processes, an owner on its way out: see below).
 * No thread holds two. */
typedef struct pyper__lock {
    _Atomic uint32_t word;
} pyper__lock;

PYPER__COLD void pyper__lock_take_slow(pyper__lock *lock);
PYPER__COLD void pyper__lock_take_patiently_slow(pyper__lock *lock);
PYPER__COLD void pyper__lock_wake(pyper__lock *lock);

static inline void pyper__lock_take(pyper__lock *lock) {
    uint32_t state = 0;
    if (pyper__unlikely(!atomic_compare_exchange_strong_explicit(
            &lock->word, &state, 1, memory_order_acquire, memory_order_relaxed)))
        pyper__lock_take_slow(lock);
}

/* The same, but if it is taken wait for as long as somebody may hold it before letting others run.
 * For who comes seldom: who comes all the time had better stand back, and meets nobody for a
 * while. */
static inline void pyper__lock_take_patiently(pyper__lock *lock) {
    uint32_t state = 0;
    if (pyper__unlikely(!atomic_compare_exchange_strong_explicit(
            &lock->word, &state, 1, memory_order_acquire, memory_order_relaxed)))
        pyper__lock_take_patiently_slow(lock);
}

static inline void pyper__lock_give(pyper__lock *lock) {
    if (pyper__unlikely(atomic_exchange_explicit(&lock->word, 0, memory_order_release) == 2))
        pyper__lock_wake(lock);
}

/* -------------------------------------------------------------------------- owned lock */

/* A lock that mostly one thread takes, its owner: the first to come.  The owner's way is two plain
 * stores and three loads.  The first other thread ends the ownership for good and pays for both, as
 * with light notifiers below; from then on it is `lock` for everybody.
 *
 * The owner says that it is inside, then looks whether it still is the owner.  The other one says
 * that nobody is, lets all threads pass a fence, then waits until the owner is not inside.  If the
 * owner looked before that fence, the other one sees it inside; if after it, it sees itself
 * disowned.  On its way out the owner looks again, and wakes who waits: for the same reason.
 *
 * Synchronization
 *   owner   atomic: the number of a thread, or one of the two below; written under `lock`.
 *   inside  atomic; written by the owner, and by a thread that has just been disowned.
 *   What the lock protects belongs to the owner while it is inside, else to the holder of
 *   `lock`. */
typedef struct pyper__owned_lock {
    pyper__lock lock;
    _Atomic uint32_t inside;
    _Atomic uint64_t owner;
} pyper__owned_lock;

/* In place of an owner: the first to come will be it; there never will be one (again). */
enum { PYPER__TO_BE_HAD = 1, PYPER__NOBODY };

/* `many`: there is no use in an owner. */
void pyper__owned_lock_init(pyper__owned_lock *lock, bool many);
PYPER__COLD void pyper__owned_lock_take_slow(pyper__owned_lock *lock);
PYPER__COLD void pyper__owned_lock_leave_slow(pyper__owned_lock *lock);

static inline bool pyper__owned_lock_is_mine(const pyper__owned_lock *lock) {
    return atomic_load_explicit(&lock->owner, memory_order_relaxed) == pyper__thread_number;
}

/* Do as the owner: true if the calling thread is it.  False: leave. */
static inline bool pyper__owned_lock_enter(pyper__owned_lock *lock) {
    atomic_store_explicit(&lock->inside, 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    return pyper__likely(pyper__owned_lock_is_mine(lock));
}

/* False: somebody waits for that; pyper__owned_lock_leave_slow() tells him. */
static inline bool pyper__owned_lock_leave_at_once(pyper__owned_lock *lock) {
    atomic_store_explicit(&lock->inside, 0, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    return pyper__likely(pyper__owned_lock_is_mine(lock));
}

static inline void pyper__owned_lock_leave(pyper__owned_lock *lock) {
    if (!pyper__owned_lock_leave_at_once(lock)) pyper__owned_lock_leave_slow(lock);
}

/* True: as its owner, which pyper__owned_lock_give() wants to know. */
static inline bool pyper__owned_lock_take(pyper__owned_lock *lock) {
    if (pyper__owned_lock_is_mine(lock)) {
        if (pyper__owned_lock_enter(lock)) return true;
        pyper__owned_lock_leave(lock);
    }
    if (pyper__likely(atomic_load_explicit(&lock->owner, memory_order_relaxed) == PYPER__NOBODY))
        pyper__lock_take(&lock->lock);
    else
        pyper__owned_lock_take_slow(lock);
    return false;
}

static inline void pyper__owned_lock_give(pyper__owned_lock *lock, bool as_owner) {
    if (as_owner)
        pyper__owned_lock_leave(lock);
    else
        pyper__lock_give(&lock->lock);
}

/* --------------------------------------------------------------------------------- waker */

/* What wakes an event loop (loop.h): a bell, and whether it has been rung.  However often it is
 * told between two looks of the loop, the bell is rung once, and while the loop is driven not at
 * all.
 *
 * Other processes wake it like other threads: the state lies in memory that all share then, and
 * each process has a waker of its own, with a descriptor of the same bell.
 *
 * Synchronization
 *   *state  atomic.  Asleep: whoever has something for the loop makes it WOKEN and rings.  DRIVEN:
 *           he makes it WOKEN, and the driving thread sees that before it goes.
 *   state, bell   set by init, never change. */
enum { PYPER__ASLEEP, PYPER__WOKEN, PYPER__DRIVEN };

typedef struct pyper__waker {
    _Atomic int *state;
    _Atomic int own_state;
    int bell[2];
} pyper__waker;

/* `state` is where the state lies, NULL: in the waker itself.  0, or as
 * pyper__bell_open(). */
int pyper__waker_init(pyper__waker *waker, _Atomic int *state);
void pyper__waker_fini(pyper__waker *waker);

static inline void pyper__waker_wake(pyper__waker *waker) {
    if (atomic_exchange(waker->state, PYPER__WOKEN) == PYPER__ASLEEP) pyper__bell_ring(waker->bell);
}

/* The same, after somebody may have died between the two. */
static inline void pyper__waker_wake_again(pyper__waker *waker) {
    atomic_store(waker->state, PYPER__WOKEN);
    pyper__bell_ring(waker->bell);
}

/* --------------------------------------------------------------------------------- event */

/* Synchronization
 *   word    atomic; low half: how many notifications there were (what the futex compares), high
 *           half: how many have counted themselves in and were not notified since.  The high half
 *           may be too large (somebody left on his own while another was notified), which costs a
 *           system call; never too small, which would cost a wake-up (but see
 *           pyper__event_notify_all()).  It is exact again when as many, or all, are notified; and
 *           before it could run into its highest byte, the mark for careful notifiers, all are.
 *   yields, sleeps   atomic, relaxed: hints learned from the last waits; any value is right.
 *   shared  set by init: it lies in memory that processes share.
 *   light, adapts   set by pyper__event_let_notify_lightly(), before others see it: some notifiers
 *           are, and all of them are careful where they are asked to.
 *   looped, waker, no_sleepers   set after init by who owns the event, before others see it.
 *           looped: a loop may be among the waiters (it counts itself in like everybody else, with
 *           pyper__event_enter()); no_sleepers: nobody else is.  What wakes the loop is `waker`,
 *           or, since that is each process's own, what pyper__event_notify_through() is given. */
typedef struct pyper__event {
    union {
        _Atomic uint64_t word;
        _Atomic uint32_t half[2];
    };
    _Atomic uint32_t yields; /* how many before a sleep */
    _Atomic uint32_t sleeps; /* how many since a yield was last tried */
    bool shared, looped, no_sleepers, light, adapts;
    pyper__waker *waker; /* NULL in memory that processes share */
} pyper__event;

void pyper__event_init(pyper__event *event);
void pyper__event_init_shared(pyper__event *event);

/* False: there are no fences for others here; all notifiers have to be seq_cst.  `adapts`: they may
 * be asked to be careful, since they read nothing but the event to find out whether anybody
 * waits. */
bool pyper__event_let_notify_lightly(pyper__event *event, bool adapts);

/* For who waits without sleeping: count in, then test the condition (seq_cst); once
 * pyper__event_notified() is true, or after leave(), enter again before waiting again. */
uint32_t pyper__event_enter(pyper__event *event);
void pyper__event_leave(pyper__event *event, uint32_t seen);
static inline bool pyper__event_notified(pyper__event *event, uint32_t seen) {
    return (uint32_t)atomic_load(&event->word) != seen;
}

/* `count` is 1 at least: to notify nobody, and yet count a notification, would leave those who then
 * look again in the count. */
PYPER__COLD void pyper__event_notify_slow(pyper__event *event, uint32_t count);

/* Of an event that is `looped`: with what wakes the loop.  Only when somebody waits. */
PYPER__COLD void pyper__event_notify_through(pyper__event *event, uint32_t count,
                                             pyper__waker *waker);

/* False: nobody waits.  True: somebody does, or a careful notifier has to look more closely. */
static inline bool pyper__event_has_waiters(pyper__event *event) {
    return atomic_load(&event->word) >> 32 != 0;
}

/* The same for a light notifier, right behind its change of the condition. */
static inline bool pyper__event_has_waiters_light(pyper__event *event) {
    atomic_signal_fence(memory_order_seq_cst);
    return atomic_load_explicit(&event->word, memory_order_relaxed) >> 32 != 0;
}

/* For a notifier who has passed a fence and is about to find out how many to wake: does anybody
 * wait? */
PYPER__COLD bool pyper__event_is_awaited(pyper__event *event);

/* Wake up to `count` waiters.  Cheap when nobody waits. */
static inline void pyper__event_notify(pyper__event *event, uint32_t count) {
    if (pyper__unlikely(pyper__event_has_waiters(event))) pyper__event_notify_slow(event, count);
}

/* In memory that processes share the count is not to be trusted when all are meant: a process that
 * has counted others out may have died before it woke them. */
static inline void pyper__event_notify_all(pyper__event *event) {
    if (event->shared || pyper__event_has_waiters(event))
        pyper__event_notify_slow(event, UINT32_MAX);
}

/* --------------------------------------------------------------------------- shared lock */

#if PYPER__PROCESSES
/* A lock between processes, in memory that they share: held for a few instructions, never while
 * anybody waits or calls user code.  No process holds two, but for the pair that channel.h names.
 *
 * What is taken is a robust mutex of the system, which knows when its owner has died; it is only
 * ever tried.  Who finds it taken sleeps at `freed`, and who gives it back notifies one sleeper.
 * (Sleeping is not left to the mutex: of its sleepers it wakes one, who then has to note in it that
 * there are more.  If he is killed before he does, while somebody who came in between has it, the
 * others sleep for ever.)
 *
 * Why no wake-up is lost while nobody dies: as with any event; changing the condition is to unlock
 * the mutex, testing it is to try to lock it, and a fence on either side makes up for what these
 * are not: seq_cst.
 *
 * Deaths: the owner may die with the lock, or between giving it back and waking somebody; who is
 * woken may die before he takes it.  Then nobody tells the others, and nobody can be relied upon to
 * do it later: the supervisor, who sees deaths, takes such locks himself, and before it does
 * anything it waits for the host's token, which somebody may hold who sleeps here.  So each looks
 * for himself: a sleep ends after LOOK_AGAIN_NS (park.c) at the latest.  The lock is held for so
 * short a time that this happens to nobody else but who waits for a process that gets no processor.
 *
 * Synchronization
 *   mutex   the system's; what the lock protects belongs to who has it.
 *   freed   see there: shared, and notified behind the fence that follows the unlocking. */
typedef struct pyper__shared_lock {
    pthread_mutex_t mutex;
    pyper__event freed;
} pyper__shared_lock;

/* 0 or PYPER_ENOMEM. */
int pyper__shared_lock_init(pyper__shared_lock *lock);

/* Take it; true: its last owner died with it, and what it protects may be half-way through a
 * step. */
bool pyper__shared_lock_take(pyper__shared_lock *lock);
void pyper__shared_lock_give(pyper__shared_lock *lock);
#endif

/* ---------------------------------------------------------------------------------- seat */

/* What a thread waits for: the index of its clock; nobody asks how long it waits for anything
 * other. */
enum { PYPER__STARVED, PYPER__BLOCKED, PYPER__WAITS, PYPER__OTHER = PYPER__WAITS };

/* Where a worker's time goes.  It lies apart from the seat because a process worker's lies in
 * memory that the caller's process reads.
 * Synchronization: written by the thread in the seat, read by statistics; relaxed. */
typedef struct pyper__clock {
    _Atomic int64_t waited_ns[PYPER__WAITS];
    _Atomic int64_t started_ns, left_ns;
} pyper__clock;

/* Synchronization
 *   host, host_data, shares_token   set by init, never change.
 *   clock        set before the seat is taken, by init if nobody else has; never changes.
 *   shared       set before others see the seat: several callers of pyper_next() use it at once, so
 *       its clocks stand still.
 *   patience, granted, hold_ns, checked_ns, held_since_ns, busy_ns   belong to the thread in the
 *       seat; atomic (relaxed) because several callers of pyper_next() share one seat, where a lost
 *       update only moves a hand-over.
 *   clock->*     written by the thread in the seat, read by statistics; relaxed.  One clock for
 *       each thing to wait for: how long it was waited for; while it is, that less the time since
 *       when, which is negative.  So one store begins a wait and one ends it. */
typedef struct pyper__seat {
    const pyper_host *host;
    void *host_data;
    bool shares_token;
    bool shared;
    _Atomic int32_t patience; /* items until the clock is asked again */
    _Atomic int32_t granted;  /* what patience was set to */
    _Atomic int64_t hold_ns;  /* how long to keep the token while others want it */
    _Atomic int64_t checked_ns;
    _Atomic int64_t held_since_ns;
    _Atomic int64_t busy_ns; /* the thread's processor time when the clock last said HOLD_MAX_NS */
    pyper__clock *clock;
    pyper__clock own_clock;
} pyper__seat;

void pyper__seat_init(pyper__seat *seat, const pyper_host *host, void *host_data);

/* A thread that is being started waits for the host's token first of all, before it takes its seat:
 * whoever has the token should know.  Each thread that is coming comes once, with the token; one
 * that could not be started counts as come. */
void pyper__seat_is_coming(const pyper_host *host);
void pyper__seat_has_come(const pyper_host *host);

/* Begin and end a wait on one of the seat's clocks. */
static inline void pyper__seat_begin_wait(pyper__seat *seat, int what_for, int64_t now) {
    int64_t waited = atomic_load_explicit(&seat->clock->waited_ns[what_for], memory_order_relaxed);
    atomic_store_explicit(&seat->clock->waited_ns[what_for], waited - now, memory_order_relaxed);
}
static inline void pyper__seat_end_wait(pyper__seat *seat, int what_for, int64_t now) {
    int64_t waited = atomic_load_explicit(&seat->clock->waited_ns[what_for], memory_order_relaxed);
    atomic_store_explicit(&seat->clock->waited_ns[what_for], waited + now, memory_order_relaxed);
}

/* Wait on `event` until ready(arg), with the host's token given up.
 *
 * Returns 0 when ready; PYPER_ETIMEDOUT; PYPER_EINTR if `interruptible` and a signal came. */
int pyper__await(pyper__seat *seat, pyper__event *event, bool (*ready)(const void *arg),
                 const void *arg, int64_t deadline_ns, int what_for, bool interruptible);

/* The same, for ever, for a waiter who has better things to do than sleep: when he is about to,
 * rather(arg), which is like `ready`, ends the wait as well. */
void pyper__await_rather(pyper__seat *seat, pyper__event *event, bool (*ready)(const void *arg),
                         bool (*rather)(const void *arg), const void *arg, int what_for);

/* Sleep until the waker's bell is rung, with the host's token given up; the like of
 * pyper__await(). */
int pyper__await_bell(pyper__seat *seat, pyper__waker *waker, int64_t deadline_ns,
                      bool interruptible);

/* Between two items: hand the host's token over if others have been wanting it for long enough.
 * Call it with no lock held. */
PYPER__COLD void pyper__seat_check_token(pyper__seat *seat);

static inline void pyper__seat_share_token(pyper__seat *seat) {
    if (pyper__likely(!seat->shares_token)) return;
    int32_t left = atomic_load_explicit(&seat->patience, memory_order_relaxed) - 1;
    atomic_store_explicit(&seat->patience, left, memory_order_relaxed);
    if (pyper__unlikely(left <= 0)) pyper__seat_check_token(seat);
}

#endif
