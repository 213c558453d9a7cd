/* The room `park`: no wake-up is lost, whoever waits for how long; the lock excludes.
 *
 * A lost wake-up shows as a test that times out. */
#include "../kit.h"

#include "park.h"

/* ------------------------------------------------------------------------------------- lock */

static pyper__lock lock;
static long guarded; /* no atomic: ThreadSanitizer would see a lock that does not exclude */

static void add_under_lock(void *arg) {
    for (long i = 0; i < (long)(intptr_t)arg; i++) {
        pyper__lock_take(&lock);
        guarded++;
        pyper__lock_give(&lock);
        if (i % 1000 == 0) sched_yield();
    }
}

TEST(the_lock_excludes) {
    long n = check_times(100000);
    thread threads[4];
    for (int i = 0; i < 4; i++) thread_start(&threads[i], add_under_lock, (void *)(intptr_t)n);
    for (int i = 0; i < 4; i++) thread_join(&threads[i]);
    CHECK_EQ(guarded, 4 * n);
}

/* Held for long: everybody sleeps, and everybody gets it in the end. */
TEST(sleepers_get_the_lock) {
    for (int round = 0; round < 20; round++) {
        guarded = 0;
        pyper__lock_take(&lock);
        thread threads[4];
        for (int i = 0; i < 4; i++) thread_start(&threads[i], add_under_lock, (void *)1);
        all_asleep();
        pyper__lock_give(&lock);
        for (int i = 0; i < 4; i++) thread_join(&threads[i]);
        CHECK_EQ(guarded, 4);
    }
}

/* ------------------------------------------------------------------------------- owned lock */

static pyper__owned_lock owned;

static void add_as_owner_or_not(void *arg) {
    for (long i = 0; i < (long)(intptr_t)arg; i++) {
        bool as_owner = pyper__owned_lock_take(&owned);
        guarded++;
        pyper__owned_lock_give(&owned, as_owner);
    }
}

/* The first to come owns it from its second time on, until another comes; then nobody does. */
TEST(the_first_to_come_owns_the_lock) {
    pyper__owned_lock_init(&owned, false);
    CHECK(pyper__can_fence_others());
    CHECK(!pyper__owned_lock_take(&owned));
    pyper__owned_lock_give(&owned, false);
    for (int i = 0; i < 3; i++) {
        CHECK(pyper__owned_lock_take(&owned));
        pyper__owned_lock_give(&owned, true);
    }
    thread other;
    thread_start(&other, add_as_owner_or_not, (void *)1);
    thread_join(&other);
    CHECK(!pyper__owned_lock_take(&owned));
    pyper__owned_lock_give(&owned, false);
    CHECK_EQ(atomic_load(&owned.owner), PYPER__NOBODY);
    /* Where there are many from the start, nobody ever owns it. */
    pyper__owned_lock_init(&owned, true);
    for (int i = 0; i < 3; i++) {
        CHECK(!pyper__owned_lock_take(&owned));
        pyper__owned_lock_give(&owned, false);
    }
}

/* Who comes while the owner is inside sleeps until it is out. */
TEST(the_owner_is_waited_for) {
    for (int round = 0; round < 20; round++) {
        pyper__owned_lock_init(&owned, false);
        guarded = 0;
        pyper__owned_lock_give(&owned, pyper__owned_lock_take(&owned));
        CHECK(pyper__owned_lock_take(&owned));
        thread other;
        thread_start(&other, add_as_owner_or_not, (void *)1);
        all_asleep();
        CHECK_EQ(guarded, 0);
        guarded++;
        pyper__owned_lock_give(&owned, true);
        thread_join(&other);
        CHECK_EQ(guarded, 2);
    }
}

/* The moment in which the owner is disowned is another one each time. */
TEST(the_owned_lock_excludes) {
    long rounds = check_times(300);
    uint64_t random = 7;
    for (long round = 0; round < rounds; round++) {
        long mine = (long)random_below(&random, 20000), others = 100;
        pyper__owned_lock_init(&owned, false);
        guarded = 0;
        thread threads[2];
        thread_start(&threads[0], add_as_owner_or_not, (void *)(intptr_t)others);
        add_as_owner_or_not((void *)(intptr_t)(mine / 2));
        thread_start(&threads[1], add_as_owner_or_not, (void *)(intptr_t)others);
        add_as_owner_or_not((void *)(intptr_t)(mine - mine / 2));
        for (int i = 0; i < 2; i++) thread_join(&threads[i]);
        CHECK_EQ(guarded, mine + 2 * others);
    }
}

static void tell_number(void *arg) {
    *(uint64_t *)arg = pyper__number_thread();
}

TEST(no_two_threads_have_a_number) {
    uint64_t numbers[3] = {pyper__number_thread()};
    CHECK_EQ(pyper__number_thread(), numbers[0]);
    CHECK_LE(PYPER__THREAD_NUMBER_FIRST, numbers[0]);
    for (int i = 1; i < 3; i++) {
        thread other;
        thread_start(&other, tell_number, &numbers[i]);
        thread_join(&other);
        for (int k = 0; k < i; k++) CHECK(numbers[k] != numbers[i]);
    }
}

/* --------------------------------------------------------------------------------- ping-pong */

static pyper__event events[2];
static _Atomic long ball;

static bool ball_is_even(const void *arg) {
    return (void)arg, atomic_load(&ball) % 2 == 0;
}
static bool ball_is_odd(const void *arg) {
    return (void)arg, atomic_load(&ball) % 2 == 1;
}

static void play(long rounds, int side) {
    pyper__seat seat;
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    for (long i = 0; i < rounds; i++) {
        CHECK_EQ(pyper__await(&seat, &events[side], side ? ball_is_odd : ball_is_even, NULL,
                              PYPER_FOREVER, PYPER__STARVED, false),
                 0);
        CHECK_EQ(atomic_fetch_add(&ball, 1) % 2, side);
        pyper__event_notify(&events[!side], 1);
        if (i % 7 == 0) sched_yield();
    }
}

static void play_odd(void *rounds) {
    play((long)(intptr_t)rounds, 1);
}

TEST(two_threads_wake_each_other) {
    long rounds = check_times(30000);
    pyper__event_init(&events[0]);
    pyper__event_init(&events[1]);
    thread other;
    thread_start(&other, play_odd, (void *)(intptr_t)rounds);
    play(rounds, 0);
    thread_join(&other);
    CHECK_EQ(atomic_load(&ball), 2 * rounds);
}

/* ------------------------------------------------------------------------------- semaphores */

/* `places` and `items`, both counted by one event each: a queue without the queue.  Every unit is
 * announced by one notify(1), as the engine does; one lost is a hang. */
static struct {
    _Atomic long units;
    pyper__event event;
} items, places;

static bool have_units(const void *arg) {
    return atomic_load((_Atomic long *)(uintptr_t)arg) > 0;
}

static bool take_unit(_Atomic long *units) {
    long n = atomic_load(units);
    while (n > 0)
        if (atomic_compare_exchange_weak(units, &n, n - 1)) return true;
    return false;
}

/* Takes a unit from one and puts one into the other, n times; with short deadlines now and then, so
 * that waiters leave by themselves while they are being notified. */
typedef struct mover {
    _Atomic long *from, *to;
    pyper__event *from_event, *to_event;
    long n;
    bool impatient;
} mover;

static void move_units(void *arg) {
    mover *m = arg;
    pyper__seat seat;
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    for (long i = 0; i < m->n;) {
        if (!take_unit(m->from)) {
            int64_t deadline = m->impatient ? pyper_now() + 1000 * (20 + i % 50) : PYPER_FOREVER;
            int rc = pyper__await(&seat, m->from_event, have_units, m->from, deadline,
                                  PYPER__BLOCKED, false);
            CHECK(rc == 0 || (m->impatient && rc == PYPER_ETIMEDOUT));
            continue;
        }
        atomic_fetch_add(m->to, 1);
        pyper__event_notify(m->to_event, 1);
        i++;
    }
}

static void hammer(long capacity, int producers, int consumers, bool impatient) {
    long total = check_times(6000) / 12 * 12;
    atomic_store(&items.units, 0);
    atomic_store(&places.units, capacity);
    pyper__event_init(&items.event);
    pyper__event_init(&places.event);
    thread threads[8];
    mover movers[8];
    for (int i = 0; i < producers + consumers; i++) {
        movers[i] = i < producers ? (mover){&places.units, &items.units,      &places.event,
                                            &items.event,  total / producers, impatient && i % 2}
                                  : (mover){&items.units,  &places.units,     &items.event,
                                            &places.event, total / consumers, impatient && i % 2};
        thread_start(&threads[i], move_units, &movers[i]);
    }
    for (int i = 0; i < producers + consumers; i++) thread_join(&threads[i]);
    CHECK_EQ(atomic_load(&items.units), 0);
    CHECK_EQ(atomic_load(&places.units), capacity);
}

TEST(no_wake_up_is_lost) {
    for (int capacity = 1; capacity <= 3; capacity++)
        for (int impatient = 0; impatient < 2; impatient++) {
            hammer(capacity, 1, 1, impatient);
            hammer(capacity, 1, 4, impatient);
            hammer(capacity, 4, 1, impatient);
            hammer(capacity, 3, 4, impatient);
        }
}

/* ---------------------------------------------------------------------------------- everybody */

static _Atomic long generation;
static tally arrived = TALLY;

static bool next_generation(const void *arg) {
    return atomic_load(&generation) > *(const long *)arg;
}

static void follow(void *arg) {
    pyper__seat seat;
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    for (long seen = 0; seen < (long)(intptr_t)arg; seen++) {
        CHECK_EQ(pyper__await(&seat, &events[0], next_generation, &seen, PYPER_FOREVER,
                              PYPER__OTHER, false),
                 0);
        tally_add(&arrived, 1);
    }
}

TEST(notify_all_wakes_everybody) {
    enum { FOLLOWERS = 6 };
    long rounds = check_times(1000);
    pyper__event_init(&events[0]);
    thread threads[FOLLOWERS];
    for (int i = 0; i < FOLLOWERS; i++) thread_start(&threads[i], follow, (void *)(intptr_t)rounds);
    for (long i = 0; i < rounds; i++) {
        if (i % 100 == 0) all_asleep();
        atomic_fetch_add(&generation, 1);
        pyper__event_notify_all(&events[0]);
        tally_wait(&arrived, (i + 1) * FOLLOWERS);
    }
    for (int i = 0; i < FOLLOWERS; i++) thread_join(&threads[i]);
}

/* ---------------------------------------------------------------------------- deadlines, clocks */

static bool never(const void *arg) {
    return (void)arg, false;
}
static bool always(const void *arg) {
    return (void)arg, true;
}

TEST(a_wait_ends_at_its_deadline_and_is_counted) {
    pyper__seat seat;
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    pyper__event_init(&events[0]);
    int64_t before = pyper_now();
    for (int what = 0; what < PYPER__WAITS; what++) {
        int64_t deadline = pyper_now() + 1000000;
        CHECK_EQ(pyper__await(&seat, &events[0], never, NULL, deadline, what, false),
                 PYPER_ETIMEDOUT);
        CHECK_GE(pyper_now(), deadline);
        CHECK(atomic_load(&seat.clock->waited_ns[what]) > 0);
    }
    int64_t passed = pyper_now() - before, waited = 0;
    for (int what = 0; what < PYPER__WAITS; what++)
        waited += atomic_load(&seat.clock->waited_ns[what]);
    CHECK_LE(waited, passed);
    CHECK_EQ(pyper__await(&seat, &events[0], never, NULL, PYPER_NOWAIT, 0, false), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper__await(&seat, &events[0], always, NULL, PYPER_NOWAIT, 0, false), 0);
    CHECK(!pyper__event_has_waiters(&events[0]));
}

/* After whatever ends they had, no waiter stays counted in when it has not been notified. */
static void wait_briefly(void *arg) {
    (void)arg;
    pyper__seat seat;
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(pyper__await(&seat, &events[0], never, NULL, pyper_now() + 20000, 0, false),
                 PYPER_ETIMEDOUT);
}

TEST(waiters_that_leave_count_themselves_out) {
    pyper__event_init(&events[0]);
    thread threads[4];
    for (int i = 0; i < 4; i++) thread_start(&threads[i], wait_briefly, NULL);
    for (int i = 0; i < 4; i++) thread_join(&threads[i]);
    CHECK(!pyper__event_has_waiters(&events[0]));
    /* With notifications in between, too many may stay counted in (never too few): the next ones
     * count them out. */
    for (int i = 0; i < 4; i++) thread_start(&threads[i], wait_briefly, NULL);
    for (int i = 0; i < 300; i++) {
        pyper__event_notify(&events[0], 1);
        sched_yield();
    }
    for (int i = 0; i < 4; i++) thread_join(&threads[i]);
    pyper__event_notify_all(&events[0]);
    CHECK(!pyper__event_has_waiters(&events[0]));
}

/* -------------------------------------------------------------------------- careful notifiers */

/* Whoever has slept leaves a mark, so that notifiers look more closely; it is gone when some of
 * them have found nobody, in a row. */
/* Somebody who leaves when another one has been notified stays in the count.  Seconds of that would
 * make it as large as this. */
TEST(a_count_of_waiters_that_is_too_large_costs_no_wake_up) {
    pyper__event event;
    pyper__event_init(&event);
    for (uint32_t gone = 0; gone < 10; gone++) {
        uint32_t seen = pyper__event_enter(&event);
        pyper__event_enter(&event);
        pyper__event_notify(&event, 1);
        pyper__event_leave(&event, seen);
        CHECK((atomic_load(&event.word) >> 32) == gone + 1);
    }
    const uint64_t most = 0xffffff; /* there is no room for more */
    for (uint64_t gone = most - 20; gone < most; gone++) {
        atomic_store(&event.word, gone << 32);
        uint32_t seen = pyper__event_enter(&event);
        if (pyper__event_notified(&event, seen)) seen = pyper__event_enter(&event);
        CHECK(!pyper__event_notified(&event, seen));
        pyper__event_notify(&event, 1);
        CHECK(pyper__event_notified(&event, seen));
        CHECK((atomic_load(&event.word) >> 32) == 0);
    }
}

TEST(a_sleeper_asks_notifiers_to_be_careful) {
    pyper__event *event = &events[0];
    pyper__event_init(event);
    CHECK(pyper__event_let_notify_lightly(event, true));
    CHECK(!pyper__event_has_waiters_light(event));

    uint32_t seen = pyper__event_enter(event);
    CHECK(pyper__event_is_awaited(event));
    pyper__event_leave(event, seen);
    CHECK(!pyper__event_is_awaited(event));
    CHECK(pyper__event_has_waiters_light(event));

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 5; i++) pyper__event_notify_slow(event, 1);
        CHECK(pyper__event_has_waiters_light(event));
        seen = pyper__event_enter(event);
        pyper__event_notify_slow(event, 1);
        CHECK(pyper__event_notified(event, seen));
        pyper__event_leave(event, seen);
        CHECK(!pyper__event_is_awaited(event));
    }

    int in_vain = 0;
    while (pyper__event_has_waiters_light(event) && in_vain < 1000) {
        pyper__event_notify_slow(event, 1);
        in_vain++;
    }
    CHECK_GE(in_vain, 5);
    CHECK_LE(in_vain, 255);
    pyper__event_notify_slow(event, 1);
    CHECK_EQ(atomic_load(&event->word) >> 32, 0);
}

TEST(where_more_than_the_event_is_looked_at_nobody_is_asked_to_be_careful) {
    pyper__event_init(&events[0]);
    CHECK(pyper__event_let_notify_lightly(&events[0], false));
    uint32_t seen = pyper__event_enter(&events[0]);
    CHECK(pyper__event_has_waiters_light(&events[0]));
    pyper__event_leave(&events[0], seen);
    CHECK(!pyper__event_has_waiters_light(&events[0]));
}
