/* park - see park.h. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "park.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

/* ---------------------------------------------------------------------------------- waker */

int pyper__waker_init(pyper__waker *waker, _Atomic int *state) {
    waker->state = state ? state : &waker->own_state;
    atomic_init(waker->state, PYPER__ASLEEP);
    return pyper__bell_open(waker->bell);
}

void pyper__waker_fini(pyper__waker *waker) {
    pyper__bell_close(waker->bell);
}

/* -------------------------------------------------------------------------------- yields */

/* After a yield that took as long as this, a sleep would have been: the processor went to somebody
 * with work of his own for all of a time slice, and Linux (since 6.17) also holds a yield against a
 * thread when it wakes up the next time. */
#define LONG_YIELD_NS 1000000
/* Whoever has work for a time slice is either a thread of this process, and his work is what is
 * waited for, or a stranger.  Strangers will most likely be there for longer, and each yield would
 * give them a time slice, of 3 ms and more, where who sleeps is woken at once.  So for this many
 * times as long as such a yield has taken only those yield who know that it is of use. */
#define CROWDED_TIMES 16
/* They are strangers if between two such yields, no further apart than this, the process had less
 * than half of one processor (a thread whose virtual processor was taken away seems to have run
 * meanwhile); and if the thread has yielded less often than this since the last time that it took
 * so long.  (Else it was just the end of a time slice: of a group of processes, say, within which a
 * yield stays.) */
#define CROWDED_WITHIN_NS 50000000
#define CROWDED_YIELDS 16

/* Over all runs of the process: until when strangers are expected; when the last long yield was
 * over, and how long the process had had processors by then.  Hints and no more, so relaxed. */
static _Atomic int64_t crowded_until_ns, long_yield_ns, long_yield_busy_ns;
static _Thread_local uint32_t yields_since_long;

static bool is_crowded(int64_t now) {
    return now < atomic_load_explicit(&crowded_until_ns, memory_order_relaxed);
}

static PYPER__COLD void judge_long_yield(int64_t now, int64_t took) {
    bool seldom = yields_since_long > CROWDED_YIELDS;
    yields_since_long = 0;
    int64_t since = now - atomic_load_explicit(&long_yield_ns, memory_order_relaxed);
    if (since < LONG_YIELD_NS) return; /* another thread has just done this */
    atomic_store_explicit(&long_yield_ns, now, memory_order_relaxed);
    int64_t busy = pyper__process_busy_ns();
    int64_t before = atomic_exchange_explicit(&long_yield_busy_ns, busy, memory_order_relaxed);
    if (!seldom && since < CROWDED_WITHIN_NS && busy - before < since / 2)
        atomic_store_explicit(&crowded_until_ns, now + took * CROWDED_TIMES, memory_order_relaxed);
}

/* Let others run, once.  True: that took them a time slice.  *now is when it began, then when it is
 * over. */
static bool yield_was_long(int64_t *now) {
    int64_t before = *now;
    pyper__yield();
    *now = pyper_now();
    yields_since_long++;
    bool was_long = *now - before > LONG_YIELD_NS;
    if (pyper__unlikely(was_long)) judge_long_yield(*now, *now - before);
    return was_long;
}

/* ----------------------------------------------------------------------------------- lock */

/* A lock is held for some 10 ns: it is most likely free again when another thread has run. */
#define LOCK_YIELDS 3

void pyper__lock_take_slow(pyper__lock *lock) {
    for (int i = 0; i < LOCK_YIELDS; i++) {
        uint32_t state = 0;
        if (atomic_compare_exchange_strong_explicit(&lock->word, &state, 1, memory_order_acquire,
                                                    memory_order_relaxed))
            return;
        pyper__yield();
    }
    while (atomic_exchange_explicit(&lock->word, 2, memory_order_acquire) != 0)
        pyper__futex_wait(&lock->word, 2, PYPER_FOREVER, false);
}

/* Some 100 ns: until a cache line or two have come to who holds it, and back. */
#define LOCK_RELAXES 4

void pyper__lock_take_patiently_slow(pyper__lock *lock) {
    for (int i = 0; i < LOCK_RELAXES; i++) {
        pyper__relax();
        if (atomic_load_explicit(&lock->word, memory_order_relaxed) == 0) break;
    }
    pyper__lock_take_slow(lock);
}

void pyper__lock_wake(pyper__lock *lock) {
    pyper__futex_wake(&lock->word, 1, false);
}

/* ---------------------------------------------------------------------------- owned lock */

void pyper__owned_lock_init(pyper__owned_lock *lock, bool many) {
    bool wanted = !many && pyper__can_fence_others();
    atomic_init(&lock->owner, wanted ? PYPER__TO_BE_HAD : PYPER__NOBODY);
}

/* With `lock` held: wait until the owner is out, and see to it that it does not come back. */
static void disown(pyper__owned_lock *lock) {
    atomic_store(&lock->owner, PYPER__NOBODY);
    /* The process has forbidden itself the fence since the run began.  Whatever is done now could
     * be done while the owner is inside: there is no way to go on. */
    if (!pyper__fence_others()) abort();
    while (atomic_load_explicit(&lock->inside, memory_order_acquire) != 0)
        pyper__futex_wait(&lock->inside, 1, PYPER_FOREVER, false);
}

void pyper__owned_lock_take_slow(pyper__owned_lock *lock) {
    pyper__lock_take(&lock->lock);
    uint64_t owner = atomic_load_explicit(&lock->owner, memory_order_relaxed);
    if (owner == PYPER__TO_BE_HAD)
        atomic_store_explicit(&lock->owner, pyper__number_thread(), memory_order_relaxed);
    else if (owner != PYPER__NOBODY)
        disown(lock);
}

void pyper__owned_lock_leave_slow(pyper__owned_lock *lock) {
    pyper__futex_wake(&lock->inside, 1, false);
}

/* ---------------------------------------------------------------------------------- event */

/* The high half of the word: how many wait, and above that the mark for careful notifiers, which is
 * how many more of them may find nobody.  At about 10 ns each that many take a small part of what a
 * sleep costs; the exact number does not matter much. */
#define ONE_WAITER ((uint64_t)1 << 32)
#define ONE_IN_VAIN ((uint64_t)1 << 56)
#define CAREFUL (16 * ONE_IN_VAIN)
/* There are not as many threads by far, so most of those that are counted have left. */
#define WAITERS_MAX ((uint32_t)1 << 23)

/* How often to let others run before sleeping, at most.  Between two running threads a yield costs
 * 0.3 to 0.5 us, and a sleep with its wake-up up to 50 us; the exact number does not matter
 * much. */
#define YIELDS_MAX 50
/* After a sleep as short as this, yielding would have been the better choice. */
#define SHORT_SLEEP_NS 50000
/* Where yielding was of no use, one is tried again after this many sleeps: then it costs next to
 * nothing, and is learned anew soon enough.  The exact number does not matter much. */
#define SLEEPS_BETWEEN 16
/* An event at which nobody has waited yet. */
#define YIELDS_UNTRIED UINT32_MAX

/* The half of the word that counts notifications. */
static _Atomic uint32_t *sleeping_word(pyper__event *event) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return &event->half[1];
#else
    return &event->half[0];
#endif
}

void pyper__event_init(pyper__event *event) {
    atomic_init(&event->word, 0);
    atomic_init(&event->yields, YIELDS_UNTRIED);
    event->shared = event->looped = event->no_sleepers = event->light = event->adapts = false;
    event->waker = NULL;
}

void pyper__event_init_shared(pyper__event *event) {
    pyper__event_init(event);
    event->shared = true;
}

bool pyper__event_let_notify_lightly(pyper__event *event, bool adapts) {
    event->light = pyper__can_fence_others();
    event->adapts = event->light && adapts;
    return event->light;
}

static uint32_t waiters_of(uint64_t word) {
    return (uint32_t)(word % ONE_IN_VAIN / ONE_WAITER);
}

static bool is_careful(uint64_t word) {
    return word >= ONE_IN_VAIN;
}

/* A notifier has found nobody, as `word` says. */
static void count_in_vain(pyper__event *event, uint64_t word) {
    if (is_careful(word)) atomic_compare_exchange_strong(&event->word, &word, word - ONE_IN_VAIN);
}

bool pyper__event_is_awaited(pyper__event *event) {
    uint64_t word = atomic_load(&event->word);
    if (waiters_of(word) > 0) return true;
    count_in_vain(event, word);
    return false;
}

void pyper__event_notify_slow(pyper__event *event, uint32_t count) {
    pyper__event_notify_through(event, count, event->waker);
}

void pyper__event_notify_through(pyper__event *event, uint32_t count, pyper__waker *waker) {
    /* A light notifier has found the word not 0: so far he has passed none. */
    if (event->light) atomic_thread_fence(memory_order_seq_cst);
    uint64_t word = atomic_load(&event->word), next;
    uint32_t woken;
    do {
        uint32_t waiters = waiters_of(word);
        bool all = event->shared && count == UINT32_MAX;
        if (waiters == 0 && !all) {
            count_in_vain(event, word);
            return;
        }
        woken = waiters < count && !all ? waiters : count;
        next = (waiters < woken ? 0 : waiters - woken) * ONE_WAITER +
               (uint32_t)((uint32_t)word + 1) + (is_careful(word) ? CAREFUL : 0);
    } while (!atomic_compare_exchange_weak(&event->word, &word, next));
    if (waker) pyper__waker_wake(waker);
    if (!event->no_sleepers)
        pyper__futex_wake(sleeping_word(event), woken > INT_MAX ? INT_MAX : (int)woken,
                          event->shared);
}

/* I have counted myself in, and found no mark.  If the system has taken the fence away since the
 * event was made, nobody may sleep here any more: being notified at once, the waiter looks again
 * and again. */
static void fence_notifiers(pyper__event *event, uint32_t seen) {
    if (pyper__unlikely(!pyper__fence_others())) {
        pyper__event_notify_slow(event, 1);
        return;
    }
    if (!event->adapts) return;
    uint64_t word = atomic_load(&event->word);
    while ((uint32_t)word == seen && !is_careful(word) &&
           !atomic_compare_exchange_weak(&event->word, &word, word + CAREFUL)) {
    }
}

/* Count myself in; returns the notification count to compare with.  Should the count be about to
 * run into the mark, all are notified, which makes it exact again. */
uint32_t pyper__event_enter(pyper__event *event) {
    uint64_t before = atomic_fetch_add(&event->word, ONE_WAITER);
    uint32_t seen = (uint32_t)before;
    if (event->light && !is_careful(before)) fence_notifiers(event, seen);
    if (pyper__unlikely(waiters_of(before) >= WAITERS_MAX))
        pyper__event_notify_slow(event, UINT32_MAX);
    return seen;
}

/* Count myself out, unless a notification has come since pyper__event_enter(): it has counted out
 * one of those it may have been meant for, and this could have been me. */
void pyper__event_leave(pyper__event *event, uint32_t seen) {
    uint64_t word = atomic_load(&event->word);
    while ((uint32_t)word == seen &&
           !atomic_compare_exchange_weak(&event->word, &word, word - ONE_WAITER)) {
    }
}

/* ----------------------------------------------------------------------------------- seat */

/* How long a thread keeps a host's token while others of the library want it.  Short at first, when
 * the first items are on their way through an idle pipeline, and twice as long with each hand-over,
 * because each costs 10 to 50 us.  And at the most, wanted or not, as there may be threads that the
 * library does not know: that of an event loop, say, whose timer is due.  That is clearly less than
 * the 5 ms after which Python makes a thread give its token up: if both came at about the same
 * time, the one would make the other begin anew. */
#define HOLD_FIRST_NS 50000
#define HOLD_NS 500000
#define HOLD_MAX_NS 2000000
/* Functions that give the token up themselves, each for a moment (to read a file, say), make a
 * crowd in which whoever wants it has his turn sooner or later.  A hand-over is of no use there: it
 * goes to any of the crowd, and costs some 350 us.  So whoever has handed it over to others than
 * those it was for, and then waited for TAKEN_NS and longer to have it back, leaves that to the
 * host (to Python, after 5 ms) for as long as this.  The exact number does not matter much. */
#define HOLD_LEFT_NS 50000000
#define TAKEN_NS 100000
/* The clock is read about this often, learned from how many items went by since the last time. */
#define CHECK_NS 50000
#define PATIENCE_MAX 64
/* A thread that waits for the token may have to be woken on an idle processor, which takes some 50
 * us (40 to 45 on a virtual machine, where 100 yields took 35: it always came too late).  Whether
 * one whom the library does not know has come cannot be seen: he has this time every time.  One who
 * is known to be there has as long as it takes, unless others have taken his processor. */
#define LET_OTHERS_NS 200000
#define LET_UNKNOWN_NS 75000
/* Who has taken the token for tiny items gives it up as soon as his queue is full or empty.  Who
 * has had it for longer than this may keep it for any time.  It is about as long as being woken
 * takes: so waiting for it in vain no more than doubles what the wait costs (competitive spinning;
 * Karlin and others, 1991).  If another one takes it meanwhile the time begins anew. */
#define SOON_NS 50000

/* Threads that want an exclusive host's token, over all runs of the process: how many have come,
 * and how many of them have got it (or will not begin); and how many let others run before they
 * sleep.  Hints and no more, so relaxed.  A forked child, which has none of these threads, begins
 * anew: counted_forks is pyper__forks when that was last done, by a thread with the token. */
static _Atomic uint32_t came, served;
static _Atomic int32_t yielding;
static _Atomic uint32_t counted_forks;
/* When one of them took it, or was about to; 0: whoever had it has given it up.  A hint as well: it
 * may long have been given up to somebody whom the library does not know. */
static _Atomic int64_t taken_ns;

static bool is_shared(const pyper_host *host) {
    return host && host->detached && host->exclusive;
}

static void token_wanted(bool shares_token) {
    if (shares_token) atomic_fetch_add_explicit(&came, 1, memory_order_relaxed);
}

static void token_had(bool shares_token) {
    if (shares_token) atomic_fetch_add_explicit(&served, 1, memory_order_relaxed);
}

static bool is_wanted(void) {
    return atomic_load_explicit(&came, memory_order_relaxed) !=
           atomic_load_explicit(&served, memory_order_relaxed);
}

void pyper__seat_is_coming(const pyper_host *host) {
    token_wanted(is_shared(host));
}

void pyper__seat_has_come(const pyper_host *host) {
    token_had(is_shared(host));
}

static void forget_threads_of_parent(void) {
    uint32_t forks = atomic_load_explicit(&pyper__forks, memory_order_relaxed);
    if (atomic_exchange_explicit(&counted_forks, forks, memory_order_relaxed) == forks) return;
    atomic_store_explicit(&served, atomic_load_explicit(&came, memory_order_relaxed),
                          memory_order_relaxed);
    atomic_store_explicit(&yielding, 0, memory_order_relaxed);
}

void pyper__seat_init(pyper__seat *seat, const pyper_host *host, void *host_data) {
    if (!seat->clock) seat->clock = &seat->own_clock;
    seat->host = host;
    seat->host_data = host_data;
    seat->shares_token = is_shared(host);
    atomic_init(&seat->patience, 1);
    atomic_init(&seat->granted, 1);
    atomic_init(&seat->hold_ns, HOLD_FIRST_NS);
    if (seat->shares_token) {
        forget_threads_of_parent();
        int64_t now = pyper_now();
        atomic_init(&seat->checked_ns, now);
        atomic_init(&seat->held_since_ns, now);
        atomic_init(&seat->busy_ns, pyper__thread_busy_ns());
    }
}

/* Called without the token, by who is about to take it.  If somebody has it he sleeps until it is
 * given up, and to be woken takes longer than tiny items need the token for.  So while it has only
 * just been taken he lets others run instead (unless those would be others that the library does
 * not know). */
static void await_token(void) {
    int64_t taken = atomic_load_explicit(&taken_ns, memory_order_relaxed);
    int64_t now = pyper_now();
    for (;;) {
        if (taken == 0 && atomic_compare_exchange_weak_explicit(
                              &taken_ns, &taken, now, memory_order_relaxed, memory_order_relaxed))
            return;
        if (taken != 0 && (now - taken > SOON_NS || is_crowded(now))) return;
        (void)yield_was_long(&now);
        taken = atomic_load_explicit(&taken_ns, memory_order_relaxed);
    }
}

struct without_token {
    int (*call)(void *arg);
    void *arg;
};

static int call_without_token(void *arg) {
    const struct without_token *without = arg;
    atomic_store_explicit(&taken_ns, 0, memory_order_relaxed);
    int rc = without->call(without->arg);
    await_token();
    return rc;
}

/* Everything between giving the host's token up and having it back. */
static int detached(pyper__seat *seat, int (*call)(void *arg), void *arg) {
    if (!seat->host || !seat->host->detached) return call(arg);
    if (!seat->shares_token) return seat->host->detached(seat->host_data, call, arg);
    struct without_token without = {call, arg};
    int rc = seat->host->detached(seat->host_data, call_without_token, &without);
    int64_t now = pyper_now();
    atomic_store_explicit(&taken_ns, now, memory_order_relaxed);
    atomic_store_explicit(&seat->held_since_ns, now, memory_order_relaxed);
    return rc;
}

/* A hand-over: how many had been served before it, and when I stopped waiting for somebody to come
 * and wanted it back. */
struct handing_over {
    uint32_t served_before;
    int64_t waited_until_ns;
};

/* Called without the token: somebody who wants it should get it before I take it back. */
static int let_others(void *arg) {
    struct handing_over *handing = arg;
    int64_t now = pyper_now(), until = now + (is_wanted() ? LET_OTHERS_NS : LET_UNKNOWN_NS);
    do {
        (void)yield_was_long(&now);
    } while (atomic_load_explicit(&served, memory_order_relaxed) == handing->served_before &&
             now < until);
    handing->waited_until_ns = now;
    return 0;
}

/* Returns for how long to keep it the next time, after it was kept for `hold`. */
static int64_t hand_over(pyper__seat *seat, bool wanted, int64_t hold) {
    struct handing_over handing = {.served_before =
                                       atomic_load_explicit(&served, memory_order_relaxed)};
    detached(seat, let_others, &handing);
    bool was_of_use = atomic_load_explicit(&served, memory_order_relaxed) != handing.served_before;
    bool was_taken = pyper_now() - handing.waited_until_ns > TAKEN_NS;
    if (wanted && !was_of_use && was_taken) return HOLD_LEFT_NS;
    if (wanted && hold == HOLD_LEFT_NS) return HOLD_NS;
    return hold < HOLD_NS ? hold * 2 : hold;
}

/* By the clock the token was held for HOLD_MAX_NS.  But has the thread computed, or has a function
 * given the token up and slept?  Then everybody had his chance, and the time begins anew. */
static bool has_been_busy(pyper__seat *seat, int64_t now) {
    int64_t busy = pyper__thread_busy_ns();
    int64_t before = atomic_exchange_explicit(&seat->busy_ns, busy, memory_order_relaxed);
    if (busy - before >= HOLD_MAX_NS / 2) return true;
    atomic_store_explicit(&seat->held_since_ns, now, memory_order_relaxed);
    return false;
}

void pyper__seat_check_token(pyper__seat *seat) {
    int64_t now = pyper_now();
    int64_t held = now - atomic_load_explicit(&seat->held_since_ns, memory_order_relaxed);
    int64_t since_check = now - atomic_load_explicit(&seat->checked_ns, memory_order_relaxed);
    bool wanted = is_wanted();
    int64_t hold = atomic_load_explicit(&seat->hold_ns, memory_order_relaxed);
    if (wanted ? held >= hold : held >= HOLD_MAX_NS && has_been_busy(seat, now)) {
        hold = hand_over(seat, wanted, hold);
        now = pyper_now();
        atomic_store_explicit(&seat->hold_ns, hold, memory_order_relaxed);
    } else if (held >= hold && held - since_check < hold && since_check < HOLD_NS &&
               atomic_load_explicit(&yielding, memory_order_relaxed) > 0) {
        /* A thread that lets others run may wait for the very processor that this one is on.  What
         * it waits for may be there by now, but it cannot even say that it wants the token.  So it
         * is let run as well, once for each time that the token is held: as often as the clock is
         * read made two tasks 2 % slower.  Not by a function that takes long, which may have slept:
         * that made an item through an idle pipeline 4 us slower. */
        if (!is_crowded(now)) (void)yield_was_long(&now);
    }
    atomic_store_explicit(&seat->checked_ns, now, memory_order_relaxed);
    int32_t granted = atomic_load_explicit(&seat->granted, memory_order_relaxed);
    granted = since_check > CHECK_NS ? granted / 4 : granted * 2;
    if (granted < 1) granted = 1;
    if (granted > PATIENCE_MAX) granted = PATIENCE_MAX;
    atomic_store_explicit(&seat->granted, granted, memory_order_relaxed);
    atomic_store_explicit(&seat->patience, granted, memory_order_relaxed);
}

/* ---------------------------------------------------------------------------------- await */

struct wait {
    pyper__event *event;
    bool (*ready)(const void *arg);
    bool (*rather)(const void *arg); /* NULL: there is nothing better to do than sleep */
    const void *arg;
    int64_t since_ns, deadline_ns;
    bool interruptible;
    bool shares_token;
};

/* None are tried where they were of no use, but now and then that is looked at again: where many
 * threads share few processors sleeping would otherwise make itself necessary. */
static uint32_t yields_to_try(pyper__event *event, int64_t now) {
    uint32_t yields = atomic_load_explicit(&event->yields, memory_order_relaxed);
    if (yields != 0 && yields != YIELDS_UNTRIED) return yields;
    if (is_crowded(now)) return 0;
    if (yields == YIELDS_UNTRIED) return YIELDS_MAX / 2;
    uint32_t sleeps = atomic_load_explicit(&event->sleeps, memory_order_relaxed) + 1;
    bool try_one = sleeps >= SLEEPS_BETWEEN;
    atomic_store_explicit(&event->sleeps, try_one ? 0 : sleeps, memory_order_relaxed);
    return try_one ? 1 : 0;
}

/* As yield_was_long(), by who waits. */
static bool waiting_yield_was_long(int64_t *now, bool shares_token) {
    if (shares_token) atomic_fetch_add_explicit(&yielding, 1, memory_order_relaxed);
    bool was_long = yield_was_long(now);
    if (shares_token) atomic_fetch_sub_explicit(&yielding, 1, memory_order_relaxed);
    return was_long;
}

static bool should_not_sleep(const struct wait *wait) {
    return wait->ready(wait->arg) || (wait->rather && wait->rather(wait->arg));
}

/* Sleep until a notification, if it is not ready: 0 (look again), PYPER_ETIMEDOUT or
 * PYPER_EINTR. */
static int sleep_once(const struct wait *wait) {
    pyper__event *event = wait->event;
    uint32_t seen = pyper__event_enter(event);
    int rc = 0;
    if (!should_not_sleep(wait)) {
        rc = pyper__futex_wait(sleeping_word(event), seen, wait->deadline_ns, event->shared);
        /* Woken, but not notified: the wake-up was meant for somebody who slept before me, and who
         * has been counted out (a thread of a higher priority is woken first).  Have everybody look
         * again, him among them; waking him alone cannot be asked for. */
        if (rc == 0 && !pyper__event_notified(event, seen))
            pyper__event_notify_slow(event, UINT32_MAX);
    }
    pyper__event_leave(event, seen);
    return rc;
}

static int yield_and_sleep(const struct wait *wait) {
    pyper__event *event = wait->event;
    int64_t now = wait->since_ns;
    uint32_t yields = yields_to_try(event, now);
    for (uint32_t i = 0; i < yields; i++) {
        bool was_long = waiting_yield_was_long(&now, wait->shares_token);
        bool ready = wait->ready(wait->arg);
        if (was_long)
            yields = 0;
        else if (ready)
            yields = yields + 4 < YIELDS_MAX ? yields + 4 : YIELDS_MAX;
        if (ready) {
            atomic_store_explicit(&event->yields, yields, memory_order_relaxed);
            return 0;
        }
    }
    int64_t asleep = pyper_now();
    int rc;
    for (;;) {
        rc = sleep_once(wait);
        bool ready = should_not_sleep(wait);
        if (ready) rc = 0;
        if (ready || rc == PYPER_ETIMEDOUT || (rc == PYPER_EINTR && wait->interruptible)) break;
    }
    now = pyper_now();
    bool was_short = rc == 0 && now - asleep < SHORT_SLEEP_NS && !is_crowded(now);
    atomic_store_explicit(&event->yields, was_short ? YIELDS_MAX / 4 : yields / 2,
                          memory_order_relaxed);
    return rc;
}

static int wait_detached(void *arg) {
    const struct wait *wait = arg;
    int rc = yield_and_sleep(wait);
    token_wanted(wait->shares_token);
    return rc;
}

static int await(pyper__seat *seat, struct wait *wait, int what_for) {
    int64_t since = pyper_now();
    bool is_over = wait->deadline_ns <= since;
    /* Whoever comes has just looked.  He lets others run before he looks again: what he looks at is
     * being written, and goes from processor to processor with each look.  To leave a host for
     * that costs more. */
    if ((is_over || seat->host) && wait->ready(wait->arg)) return 0;
    if (is_over) return PYPER_ETIMEDOUT;
    wait->since_ns = since;
    wait->shares_token = seat->shares_token;
    bool clocked = what_for != PYPER__OTHER && !seat->shared;
    if (clocked) pyper__seat_begin_wait(seat, what_for, since);
    int rc = detached(seat, wait_detached, wait);
    token_had(seat->shares_token);
    if (clocked) pyper__seat_end_wait(seat, what_for, pyper_now());
    return rc;
}

int pyper__await(pyper__seat *seat, pyper__event *event, bool (*ready)(const void *arg),
                 const void *arg, int64_t deadline_ns, int what_for, bool interruptible) {
    struct wait wait = {.event = event,
                        .ready = ready,
                        .arg = arg,
                        .deadline_ns = deadline_ns,
                        .interruptible = interruptible};
    return await(seat, &wait, what_for);
}

void pyper__await_rather(pyper__seat *seat, pyper__event *event, bool (*ready)(const void *arg),
                         bool (*rather)(const void *arg), const void *arg, int what_for) {
    struct wait wait = {
        .event = event, .ready = ready, .rather = rather, .arg = arg, .deadline_ns = PYPER_FOREVER};
    await(seat, &wait, what_for);
}

/* ---------------------------------------------------------------------------- shared lock */

#if PYPER__PROCESSES

/* Trying this often costs less than going to sleep once; the exact number does not matter much. */
#define TRIES 64
/* For so long at most a death goes unnoticed by those who sleep at a lock; the exact number does
 * not matter much. */
#define LOOK_AGAIN_NS 10000000

int pyper__shared_lock_init(pyper__shared_lock *lock) {
    pthread_mutexattr_t attr;
    if (pthread_mutexattr_init(&attr) != 0) return PYPER_ENOMEM;
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    int rc = pthread_mutex_init(&lock->mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    pyper__event_init_shared(&lock->freed);
    return rc == 0 ? 0 : PYPER_ENOMEM;
}

/* Somebody on his way into a lock, and what trying it has answered last: once that is not EBUSY it
 * is his. */
struct taking {
    pyper__shared_lock *lock;
    int *answer;
};

static bool try_to_take(const void *arg) {
    const struct taking *taking = arg;
    if (*taking->answer != EBUSY) return true;
    /* Having counted myself in: whoever unlocks it after this sees that. */
    atomic_thread_fence(memory_order_seq_cst);
    *taking->answer = pthread_mutex_trylock(&taking->lock->mutex);
    return *taking->answer != EBUSY;
}

static PYPER__COLD int sleep_and_take(pyper__shared_lock *lock) {
    int answer = EBUSY;
    const struct taking taking = {lock, &answer};
    struct wait wait = {.event = &lock->freed, .ready = try_to_take, .arg = &taking};
    do {
        wait.deadline_ns = pyper_now() + LOOK_AGAIN_NS;
        sleep_once(&wait);
    } while (!try_to_take(&taking));
    return answer;
}

bool pyper__shared_lock_take(pyper__shared_lock *lock) {
    int rc = EBUSY;
    for (int i = 0; rc == EBUSY && i < TRIES; i++) {
        rc = pthread_mutex_trylock(&lock->mutex);
        if (rc == EBUSY) pyper__relax();
    }
    if (pyper__unlikely(rc == EBUSY)) rc = sleep_and_take(lock);
    if (pyper__likely(rc == 0)) return false;
    assert(rc == EOWNERDEAD);
    pthread_mutex_consistent(&lock->mutex);
    return true;
}

void pyper__shared_lock_give(pyper__shared_lock *lock) {
    pthread_mutex_unlock(&lock->mutex);
    pyper__fence_after_unlock();
    pyper__event_notify(&lock->freed, 1);
}

#endif

/* ----------------------------------------------------------------------------------- bell */

struct bell_wait {
    pyper__waker *waker;
    int64_t deadline_ns;
    bool interruptible;
    bool shares_token;
};

/* While the loop counts as driven, what wakes it costs no system call. */
static bool woken_soon(pyper__waker *waker, bool shares_token) {
    int64_t now = pyper_now();
    for (int i = 0; i < YIELDS_MAX / 4; i++) {
        if (atomic_load(waker->state) == PYPER__WOKEN) return true;
        if (is_crowded(now) || waiting_yield_was_long(&now, shares_token)) break;
    }
    int state = PYPER__DRIVEN;
    return !atomic_compare_exchange_strong(waker->state, &state, PYPER__ASLEEP);
}

static int bell_detached(void *arg) {
    struct bell_wait *wait = arg;
    int rc = 0;
    if (!woken_soon(wait->waker, wait->shares_token)) {
        do {
            rc = pyper__bell_await(wait->waker->bell, wait->deadline_ns);
        } while (rc == PYPER_EINTR && !wait->interruptible);
        pyper__bell_silence(wait->waker->bell);
    }
    token_wanted(wait->shares_token);
    return rc;
}

int pyper__await_bell(pyper__seat *seat, pyper__waker *waker, int64_t deadline_ns,
                      bool interruptible) {
    struct bell_wait wait = {waker, deadline_ns, interruptible, seat->shares_token};
    int rc = detached(seat, bell_detached, &wait);
    token_had(seat->shares_token);
    return rc;
}
