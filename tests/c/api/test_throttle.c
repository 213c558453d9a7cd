/* The throttle is exact: at every moment emitted - started <= throttle.
 *
 * What can be observed from outside?  A function counts `emitted` after pyper_emit() has returned,
 * so this count is never ahead of the truth; that makes it sound on the left side.  On the right
 * side the truth must be bounded from above.  Two ways are used here:
 *
 *   stepped  the consumers' calls end only with a permit of the test, so at most
 *            workers + permits items have ever been started;
 *   free     a consumer counts `started` first thing in its call; at most one item per worker has
 *            been handed over and is not counted yet.
 *
 * Stepped also shows the other direction, that the places can be used and are used again.
 * Black-box: pyper.h only. */
#include "../kit.h"

typedef struct flow {
    long throttle, producers, consumers;
    _Atomic long generated, emitted, started;
    _Atomic long permits; /* given so far; raised before the permit can be used */
    tally permitted;
    _Atomic long permits_used;
} flow;

/* At most this many items have been started. */
static long most_started(flow *f) {
    return f->consumers + atomic_load(&f->permits);
}

static void count_generated(flow *f) {
    long generated = atomic_fetch_add(&f->generated, 1) + 1;
    CHECK_LE(generated, most_started(f) + f->throttle + f->producers);
}

static void count_emitted(flow *f) {
    long emitted = atomic_fetch_add(&f->emitted, 1) + 1;
    CHECK_LE(emitted, most_started(f) + f->throttle);
}

/* The producer as the first task. */
static int produce(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    for (long i = 0; i < INT(item); i++) {
        count_generated(f);
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
        count_emitted(f);
    }
    return 0;
}

/* The producer as a task of several workers. */
static int reproduce(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    count_generated(f);
    if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    count_emitted(f);
    return 0;
}

static int consume_with_permit(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    atomic_fetch_add(&f->started, 1);
    tally_wait(&f->permitted, atomic_fetch_add(&f->permits_used, 1) + 1);
    return pyper_emit(w, item);
}

static void permit(flow *f, long n) {
    atomic_fetch_add(&f->permits, n);
    tally_add(&f->permitted, n);
}

/* Everybody sleeps: each consumer and each producer holds an item.  A paused producer resumes at
 * the latest when half of the places are free, so fewer than half of them are. */
static void is_filled(flow *f) {
    all_asleep();
    long free_places = most_started(f) + f->throttle - atomic_load(&f->emitted);
    CHECK_EQ(atomic_load(&f->started), most_started(f));
    CHECK_GE(free_places, 0);
    if (free_places > 0) CHECK_LE(2 * free_places + 1, f->throttle);
    CHECK_EQ(atomic_load(&f->generated), atomic_load(&f->emitted) + f->producers);
}

static void stepped(long throttle, long producers, long consumers, bool ordered) {
    flow f = {
        .throttle = throttle, .producers = producers, .consumers = consumers, .permitted = TALLY};
    long n = consumers + 6 * (throttle + 1) + producers;
    pyper_pipeline *consumer = pyper_task(consume_with_permit, .workers = consumers, .bind = &f);
    pyper_pipeline *p =
        producers == 1
            ? pyper_pipe(pyper_task(produce, .branch = true, .throttle = throttle, .bind = &f,
                                    .ordered = ordered),
                         consumer)
            : pyper_pipe(pyper_task(count_up, .branch = true),
                         pyper_task(reproduce, .workers = producers, .throttle = throttle,
                                    .bind = &f, .ordered = ordered),
                         consumer);
    pyper_run *run = START(p, PTR(n));
    is_filled(&f);
    for (int round = 0; round < 3; round++) {
        permit(&f, (throttle + 1) / 2);
        is_filled(&f);
        permit(&f, throttle);
        is_filled(&f);
    }
    permit(&f, n);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, n);
    CHECK_EQ(atomic_load(&f.emitted), n);
    close_both(run, p);
}

static const long throttles[] = {1, 2, 5, 1000, 1023};
#define THROTTLES ((int)(sizeof throttles / sizeof *throttles))

EACH_HOST(exact_with_one_producer) {
    for (int i = 0; i < THROTTLES; i++)
        for (long consumers = 1; consumers <= 8; consumers += 3)
            stepped(throttles[i], 1, consumers, false);
}

EACH_HOST(exact_with_several_producers) {
    for (int i = 0; i < THROTTLES; i++)
        for (long producers = 2; producers <= 8; producers += 3)
            for (long consumers = 1; consumers <= 8; consumers += 7)
                stepped(throttles[i], producers, consumers, false);
}

EACH_HOST(exact_with_an_ordered_producer) {
    for (int i = 0; i < THROTTLES; i++)
        for (long consumers = 1; consumers <= 8; consumers += 7)
            stepped(throttles[i], 1, consumers, true);
}

/* Each output has the place of its input. */
EACH_HOST(exact_with_several_ordered_producers) {
    for (int i = 0; i < THROTTLES; i++)
        for (long producers = 2; producers <= 8; producers += 3)
            for (long consumers = 1; consumers <= 8; consumers += 7)
                stepped(throttles[i], producers, consumers, true);
}

/* Between tasks with the caller as the consumer: what is started is what was asked for. */
EACH_HOST(exact_towards_the_caller) {
    for (int i = 0; i < THROTTLES; i++) {
        flow f = {.throttle = throttles[i], .producers = 1, .permitted = TALLY};
        long n = 3 * throttles[i] + 10;
        pyper_pipeline *p =
            pyper_task(produce, .branch = true, .throttle = throttles[i], .bind = &f);
        pyper_run *run = START(p, PTR(n));
        for (long taken = 0; taken < n; taken++) {
            if (taken % throttles[i] == 0 && taken + throttles[i] < n) is_filled(&f);
            /* Nothing has been taken yet: every place is used. */
            if (taken == 0) CHECK_EQ(atomic_load(&f.emitted), throttles[i]);
            atomic_fetch_add(&f.permits, 1);
            atomic_fetch_add(&f.started, 1);
            NEXT_IS(run, taken);
        }
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* A lone producer that waits for its place shows the item in its hand: whoever takes the items that
 * wait gets that one, too, without waiting for the producer. */
typedef struct hand {
    _Atomic long generated, emitted;
    _Atomic int answer;
    tally gate;
} hand;

static int make_and_count(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    hand *h = bind;
    for (long i = 0;; i++) {
        atomic_fetch_add(&h->generated, 1);
        int rc = pyper_emit(w, item_new(i));
        if (rc < 0) {
            atomic_store(&h->answer, rc);
            return rc;
        }
        atomic_fetch_add(&h->emitted, 1);
    }
}

/* Takes `n` of them without waiting, from a producer that sleeps. */
static void take_at_once(pyper_run *run, long first, long n) {
    for (long i = 0; i < n; i++) {
        void *item;
        CHECK_EQ(pyper_next_until(run, &item, PYPER_NOWAIT), 1);
        CHECK_EQ(item_deliver(item), first + i);
    }
}

EACH_HOST(what_is_in_the_hand_can_be_taken) {
    for (int i = 0; i < THROTTLES; i++) {
        hand h = {.gate = TALLY};
        pyper_pipeline *p = pyper_task(make_and_count, .branch = true, .throttle = throttles[i],
                                       .bind = &h, .type = &item_type);
        pyper_run *run = START(p, PTR(0));
        all_asleep();
        CHECK_EQ(atomic_load(&h.generated), throttles[i] + 1);
        CHECK_EQ(atomic_load(&h.emitted), throttles[i]);
        pyper_task_stats stats;
        CHECK_EQ(pyper_stats(run, &stats, 1), 1);
        CHECK_EQ(stats.items_out, throttles[i]);
        CHECK_EQ(stats.queued, throttles[i]);
        take_at_once(run, 0, throttles[i] + 1);
        all_asleep();
        long generated = atomic_load(&h.generated), room = 2 * throttles[i] + 2 - generated;
        CHECK(room >= 0 && 2 * room <= throttles[i]);
        /* Cancelled, it goes the way of the others, and the producer is told. */
        pyper_cancel(run);
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
        CHECK_EQ(atomic_load(&h.answer), PYPER_ECANCELED);
        CHECK_EQ(atomic_load(&h.generated), generated);
        CHECK_EQ(pyper_stats(run, &stats, 1), 1);
        /* Among many places one that is free may not have been given back yet. */
        long place = stats.items_out - atomic_load(&h.emitted);
        CHECK(place == 0 || (place == 1 && throttles[i] > 3));
        CHECK_EQ(atomic_load(&items_live), 0);
        close_both(run, p);
    }
}

/* Emits one, and fails when it is told to. */
static int emit_and_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    hand *h = bind;
    if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    gate_wait(&h->gate);
    return pyper_fail(w, 7, "on purpose");
}

/* After a failure what had reached the caller's queue is delivered, the item in the hand included.
 * But the producer does not go on. */
EACH_HOST(what_is_in_the_hand_at_a_failure_is_delivered) {
    hand h = {.gate = TALLY};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(emit_and_fail, .branch = true, .bind = &h),
        pyper_task(make_and_count, .branch = true, .throttle = 2, .bind = &h, .type = &item_type));
    pyper_run *run = START(p, PTR(0));
    all_asleep();
    CHECK_EQ(atomic_load(&h.generated), 3);
    gate_open(&h.gate);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    CHECK_EQ(atomic_load(&h.answer), PYPER_ECANCELED);
    CHECK_EQ(atomic_load(&h.generated), 3);
    take_at_once(run, 0, 3);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 7);
    CHECK_EQ(atomic_load(&items_live), 0);
    close_both(run, p);
}

/* A join's reader starts an item by pulling it. */
static int pull_with_permit(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;) {
        atomic_fetch_add(&f->started, 1);
        tally_wait(&f->permitted, atomic_fetch_add(&f->permits_used, 1) + 1);
        if ((rc = pyper_emit(w, x)) < 0) break;
    }
    return rc;
}

EACH_HOST(exact_towards_a_join) {
    for (int i = 0; i < THROTTLES; i++) {
        for (long readers = 1; readers <= 4; readers += 3) {
            flow f = {
                .throttle = throttles[i], .producers = 1, .consumers = readers, .permitted = TALLY};
            long n = readers + 3 * (throttles[i] + 1);
            pyper_pipeline *p = pyper_pipe(
                pyper_task(produce, .branch = true, .throttle = throttles[i], .bind = &f),
                pyper_task(pull_with_permit, .join = true, .branch = true, .workers = readers,
                           .bind = &f));
            pyper_run *run = START(p, PTR(n));
            is_filled(&f);
            permit(&f, throttles[i]);
            is_filled(&f);
            permit(&f, n);
            long count;
            CHECK_EQ(drain(run, &count, NULL), 0);
            CHECK_EQ(count, n);
            close_both(run, p);
        }
    }
}

/* A consumer that is about to wait, for whatever, gives all free places back: the queue before it
 * is full while it waits. */
EACH_HOST(full_before_a_consumer_that_waits) {
    for (int i = 0; i < THROTTLES; i++) {
        for (long consumers = 1; consumers <= 4; consumers += 3) {
            flow f = {.throttle = throttles[i],
                      .producers = 1,
                      .consumers = consumers,
                      .permitted = TALLY};
            pyper_pipeline *p = pyper_pipe(
                pyper_task(produce, .branch = true, .throttle = throttles[i], .bind = &f),
                pyper_task(pass, .workers = consumers, .throttle = 1));
            atomic_store(&f.permits, 1); /* one output in the last queue */
            pyper_run *run = START(p, PTR(throttles[i] + consumers + 10));
            all_asleep();
            CHECK_EQ(atomic_load(&f.emitted), most_started(&f) + throttles[i]);
            atomic_fetch_add(&f.permits, 100);
            for (int k = 0; k < 3; k++) {
                void *out;
                CHECK_EQ(pyper_next(run, &out), 1);
                all_asleep();
                CHECK_EQ(atomic_load(&f.emitted), consumers + 2 + k + throttles[i]);
            }
            close_both(run, p);
        }
    }
}

/* ------------------------------------------------------------------------- Running freely */

static int consume_freely(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    atomic_fetch_add(&f->started, 1);
    return pyper_emit(w, item);
}

static int reproduce_freely(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    flow *f = bind;
    /* Each count is read before the one that it may not exceed. */
    long generated = atomic_fetch_add(&f->generated, 1) + 1;
    CHECK_LE(generated, atomic_load(&f->started) + f->consumers + f->throttle + f->producers);
    if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    long emitted = atomic_fetch_add(&f->emitted, 1) + 1;
    CHECK_LE(emitted, atomic_load(&f->started) + f->consumers + f->throttle);
    return 0;
}

EACH_HOST(never_exceeded_when_running_freely) {
    for (int i = 0; i < THROTTLES; i++) {
        for (long width = 1; width <= 8; width += width + 1) {
            for (int ordered = 0; ordered < 2; ordered++) {
                flow f = {.throttle = throttles[i],
                          .producers = width,
                          .consumers = 9 - width,
                          .permitted = TALLY};
                long n = check_times(throttles[i] == 1 ? 1000 : 4000);
                pyper_pipeline *p =
                    pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttles[i]),
                               pyper_task(reproduce_freely, .workers = width,
                                          .throttle = throttles[i], .bind = &f, .ordered = ordered),
                               pyper_task(consume_freely, .workers = 9 - width, .bind = &f));
                pyper_run *run = START(p, PTR(n));
                long count;
                CHECK_EQ(drain(run, &count, NULL), 0);
                CHECK_EQ(count, n);
                CHECK_EQ(atomic_load(&f.started), n);
                close_both(run, p);
            }
        }
    }
}

/* --------------------------------------------------------------------------- At its edges */

/* No bound: a producer runs to its end though nobody takes anything. */
EACH_HOST(no_throttle_is_no_bound) {
    pyper_pipeline *p = pyper_task(count_up, .branch = true);
    pyper_run *run = START(p, PTR(100000));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100000);
    close_both(run, p);
}

/* A consumer that is about to wait gets the producer going, whatever the throttle. */
EACH_HOST(a_throttle_never_stops_the_flow) {
    for (long throttle = 1; throttle <= 70; throttle += throttle < 10 ? 1 : 13) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                       pyper_task(pass, .throttle = throttle), pyper_task(pass, .throttle = 1));
        long n = check_times(500);
        pyper_run *run = START(p, PTR(n));
        for (long i = 0; i < n; i++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* Paused, starved and full: nobody runs meanwhile, no polling, no timers. */
TEST(waiting_costs_nothing) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 2),
                                   pyper_task(pass, .workers = 4, .throttle = 2),
                                   pyper_task(pass, .workers = 4, .throttle = 2, .ordered = true));
    pyper_run *run = START(p, NULL);
    long before = all_asleep();
    struct timespec watch = {.tv_nsec = 100 * 1000 * 1000}; /* for how long nothing may happen */
    nanosleep(&watch, NULL);
    /* ThreadSanitizer has a thread of its own that does wake. */
    if (!CHECK_TSAN) CHECK_EQ(all_asleep(), before);
    close_both(run, p);
}
