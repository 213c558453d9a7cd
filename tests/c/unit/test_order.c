/* The room `order`: whatever the workers' order, outputs leave in the order of the tickets, with no
 * more kept than the bounds allow. */
#include "../kit.h"

#include "order.h"
#include "ring.h"

static pyper__queue queue;
static pyper__seat seat;

static void open_queue(int64_t throttle, int64_t window) {
    memset(&queue, 0, sizeof queue);
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    CHECK_EQ(pyper__queue_init(&queue, throttle, true, false, window, &item_type), 0);
}

static int try_push(int64_t ticket, void *item) {
    struct pyper__turn turn;
    return queue.ring ? pyper__ring_try_push(&queue, item, ticket)
                      : pyper__order_try_push(queue.order, item, ticket, &turn);
}

static int done(int64_t ticket) {
    return pyper__order_done(queue.order, ticket, &seat, NULL);
}

static int try_pop(void **ret_item) {
    int64_t ticket;
    int rc = pyper__queue_pop(&queue, ret_item, &ticket, &seat, PYPER_NOWAIT, false);
    return rc == PYPER_ETIMEDOUT ? 0 : rc;
}

static long waiting(void) {
    return pyper__queue_pushed(&queue) - pyper__queue_popped(&queue);
}

/* ------------------------------------------------------------------------------- By hand */

TEST(an_output_out_of_turn_waits_for_the_earlier_ones) {
    open_queue(0, 16);
    void *item;
    CHECK_EQ(try_push(2, item_new(2)), 0);
    CHECK_EQ(done(2), 0);
    CHECK_EQ(try_push(1, item_new(1)), 0);
    CHECK_EQ(done(1), 0);
    CHECK_EQ(atomic_load(&queue.kept), 2);
    CHECK_EQ(try_pop(&item), 0);
    CHECK_EQ(try_push(0, item_new(0)), 0);
    CHECK_EQ(try_pop(&item), 1); /* at once, before its call is done */
    CHECK_EQ(item_deliver(item), 0);
    CHECK_EQ(try_pop(&item), 0);
    CHECK_EQ(done(0), 0);
    for (long i = 1; i < 3; i++) {
        CHECK_EQ(try_pop(&item), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    CHECK_EQ(atomic_load(&queue.kept), 0);
    pyper__queue_fini(&queue, &seat);
}

TEST(the_turn_may_come_before_the_call_is_done) {
    open_queue(0, 16);
    void *item;
    CHECK_EQ(try_push(1, item_new(10)), 0);
    CHECK_EQ(try_push(1, item_new(11)), 0);
    CHECK_EQ(done(0), 0); /* without an output */
    for (long i = 10; i < 12; i++) {
        CHECK_EQ(try_pop(&item), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    CHECK_EQ(try_push(1, item_new(12)), 0); /* straight now */
    CHECK_EQ(try_pop(&item), 1);
    CHECK_EQ(item_deliver(item), 12);
    CHECK_EQ(done(1), 0);
    pyper__queue_fini(&queue, &seat);
}

/* As a run decides. */
static void expect_one_each(void) {
    if (queue.limit < INT64_MAX)
        CHECK_EQ(pyper__ring_create(&queue, false), 0);
    else
        pyper__order_expect_one_each(queue.order);
    CHECK(!queue.passes_turn);
}

TEST(with_one_output_each_the_turn_moves_with_it) {
    open_queue(2, 2);
    expect_one_each();
    void *item, *late = item_new(2);
    CHECK_EQ(try_push(1, item_new(1)), 0);
    CHECK_EQ(try_pop(&item), 0);
    CHECK_EQ(try_push(2, late), PYPER__AGAIN); /* beyond the window */
    CHECK_EQ(try_push(0, item_new(0)), 0);
    CHECK_EQ(atomic_load(&queue.kept), 0);
    for (long i = 0; i < 2; i++) {
        CHECK_EQ(try_pop(&item), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    CHECK_EQ(try_pop(&item), 0);
    CHECK_EQ(try_push(2, late), 0);
    CHECK_EQ(try_pop(&item), 1);
    CHECK_EQ(item_deliver(item), 2);
    CHECK_EQ(pyper__queue_pushed(&queue), 3);
    pyper__queue_fini(&queue, &seat);
}

/* The push has taken its item, but those behind it are stuck. */
TEST(no_memory_to_move_the_turn) {
    open_queue(0, 1024);
    expect_one_each();
    for (long i = 1; i <= PYPER__CHUNK_SLOTS; i++) CHECK_EQ(try_push(i, item_new(i)), 0);
    atomic_store(&pyper__fail_alloc_at, 1);
    CHECK_EQ(try_push(0, item_new(0)), PYPER__TAKEN);
    atomic_store(&pyper__fail_alloc_at, -1);
    void *late = item_new(-1);
    CHECK_EQ(try_push(PYPER__CHUNK_SLOTS + 1, late), PYPER_ENOMEM);
    item_deliver(late);
    void *item;
    for (long i = 0; i < PYPER__CHUNK_SLOTS; i++) {
        CHECK_EQ(try_pop(&item), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    CHECK_EQ(try_pop(&item), 0);
    CHECK_EQ(waiting(), 1);
    pyper__queue_fini(&queue, &seat);
}

/* What is out of turn lies in its place of the bound, counts as pushed, and is destroyed with the
 * rest. */
TEST(with_a_bound_each_ticket_has_its_place) {
    open_queue(70, 70);
    expect_one_each();
    void *item, *late = item_new(-1);
    for (long lap = 0; lap < 5; lap++) {
        long first = 70 * lap;
        for (long i = 69; i > 0; i--) {
            CHECK_EQ(try_push(first + i, item_new(first + i)), 0);
            CHECK_EQ(try_pop(&item), 0);
            CHECK_EQ(pyper__queue_there(&queue), 0);
            CHECK_EQ(waiting(), 70 - i);
        }
        CHECK_EQ(try_push(first + 70, late), PYPER__AGAIN);
        CHECK_EQ(try_push(first, item_new(first)), 0);
        CHECK_GE(pyper__queue_there(&queue), 1);
        for (long i = 0; i < 70; i++) {
            CHECK_EQ(try_pop(&item), 1);
            CHECK_EQ(item_deliver(item), first + i);
        }
        pyper__queue_settle(&queue);
    }
    for (long i = 350; i < 420; i += 3) CHECK_EQ(try_push(i, item_new(i)), 0);
    CHECK_EQ(try_push(351, late), 0);
    CHECK_EQ(try_pop(&item), 1);
    CHECK_EQ(item_deliver(item), 350);
    long pushed = pyper__queue_pushed(&queue), destroyed = atomic_load(&items_destroyed);
    CHECK_EQ(pushed, 350 + 25);
    pyper__queue_set_state(&queue, PYPER__CANCELLED);
    pyper__queue_drain(&queue, &seat);
    CHECK_EQ(atomic_load(&items_destroyed) - destroyed, 24);
    CHECK_EQ(pyper__queue_pushed(&queue), pushed);
    CHECK_EQ(pyper__queue_popped(&queue), pushed);
    CHECK_EQ(pyper__queue_started(&queue), 351);
    pyper__queue_fini(&queue, &seat);
}

TEST(places_that_cannot_be_had_leave_the_order_as_it_is) {
    open_queue(100, 100);
    atomic_store(&pyper__fail_alloc_at, 1);
    CHECK_EQ(pyper__ring_create(&queue, false), PYPER_ENOMEM);
    atomic_store(&pyper__fail_alloc_at, -1);
    CHECK(queue.passes_turn && queue.order && !queue.ring);
    pyper__queue_fini(&queue, &seat);
}

TEST(the_last_place_is_for_the_turn) {
    static const int64_t throttles[] = {1, 2, 3, 10};
    for (int t = 0; t < 4; t++) {
        open_queue(throttles[t], throttles[t]);
        void *item = item_new(0);
        long kept = 0;
        /* Later tickets, as many as the window has, one output each. */
        for (long ticket = 1; ticket < throttles[t]; ticket++, kept++)
            CHECK_EQ(try_push(ticket, item_new(ticket)), 0);
        CHECK_EQ(kept, throttles[t] - 1);
        void *late = item_new(-1);
        CHECK_EQ(try_push(throttles[t] > 1 ? 1 : 5, late), PYPER__AGAIN);
        CHECK_EQ(try_push(throttles[t] + 3, late), PYPER__AGAIN);
        item_deliver(late);
        CHECK_EQ(try_push(0, item), 0);
        CHECK_EQ(waiting(), throttles[t]);
        late = item_new(-2);
        CHECK_EQ(try_push(0, late), PYPER__AGAIN);
        item_deliver(late);
        pyper__queue_fini(&queue, &seat);
    }
}

TEST(a_call_out_of_turn_keeps_no_more_than_a_window) {
    open_queue(0, 8);
    for (long i = 0; i < 8; i++) CHECK_EQ(try_push(3, item_new(i)), 0);
    void *late = item_new(8);
    CHECK_EQ(try_push(3, late), PYPER__AGAIN);
    CHECK_EQ(try_push(8, late), PYPER__AGAIN); /* beyond the window */
    CHECK_EQ(try_push(7, late), 0);
    pyper__queue_fini(&queue, &seat);
}

TEST(memory_that_cannot_be_had) {
    open_queue(0, 4096);
    CHECK_EQ(try_push(1, item_new(0)), 0); /* the first output of a call has a place */
    atomic_store(&pyper__fail_alloc_at, 1);
    void *item = item_new(1);
    CHECK_EQ(try_push(1, item), PYPER_ENOMEM);
    CHECK_EQ(try_push(1, item), 0); /* it is not taken, and may be pushed again */
    /* When kept outputs join the queue as well: nothing is lost. */
    for (long i = 2; i < 1500; i++) CHECK_EQ(try_push(1, item_new(i)), 0);
    atomic_store(&pyper__fail_alloc_at, 1);
    CHECK_EQ(done(0), PYPER_ENOMEM);
    atomic_store(&pyper__fail_alloc_at, -1);
    /* Nor does anything pass what is left, by somebody who does not know yet that the run has
     * failed. */
    void *late = item_new(1500);
    CHECK_EQ(try_push(1, late), PYPER_ENOMEM);
    CHECK_EQ(try_push(2, late), PYPER_ENOMEM);
    item_deliver(late);
    CHECK_EQ(done(1), PYPER_ENOMEM);
    pyper__queue_fini(&queue, &seat);
    CHECK_EQ(atomic_load(&items_destroyed), 1500);
}

/* ---------------------------------------------------------------------- Random, by a model */

/* `width` calls at once; at random one of them pushes its next output or is done, or the consumer
 * takes one.  All in one thread: whoever would have to wait is left alone until he can go on. */
static void random_calls(uint64_t seed, bool one_each) {
    uint64_t state = seed;
    enum { WIDTH_MAX = 8, TICKETS = 300 };
    long width = 1 + random_below(&state, WIDTH_MAX);
    long throttle = random_below(&state, 3) ? 1 + random_below(&state, 10) : 0;
    long window = throttle ? throttle : 1 + random_below(&state, 20);
    long most = 1 + random_below(&state, 4);
    open_queue(throttle, window);
    if (one_each) expect_one_each();
    struct {
        long ticket, pushed, outputs;
    } call[WIDTH_MAX];
    long next_ticket = 0, alive = 0, expected_ticket = 0, expected_output = 0;
    static long outputs_of[TICKETS];
    for (long i = 0; i < TICKETS; i++)
        outputs_of[i] = one_each ? 1 : random_below(&state, most + 1);
    for (long i = 0; i < width; i++, alive++) {
        call[i].ticket = next_ticket++;
        call[i].pushed = 0;
    }
    while (alive > 0 || waiting() > 0) {
        if (throttle) CHECK_LE(waiting(), throttle);
        void *item;
        if (alive == 0 || random_below(&state, 3) == 0) {
            if (try_pop(&item) == 0) continue;
            while (expected_output == outputs_of[expected_ticket]) {
                expected_ticket++;
                expected_output = 0;
            }
            CHECK_EQ(item_deliver(item), expected_ticket * 100 + expected_output);
            expected_output++;
            continue;
        }
        long k = random_below(&state, alive);
        if (call[k].pushed < outputs_of[call[k].ticket]) {
            item = item_new(call[k].ticket * 100 + call[k].pushed);
            int rc = try_push(call[k].ticket, item);
            if (rc == PYPER__AGAIN)
                item_deliver(item);
            else {
                CHECK_EQ(rc, 0);
                call[k].pushed++;
            }
            continue;
        }
        /* A ticket beyond the window would wait for being done. */
        long first = call[0].ticket;
        for (long i = 1; i < alive; i++)
            if (call[i].ticket < first) first = call[i].ticket;
        if (call[k].ticket >= first + window) continue;
        if (!one_each) CHECK_EQ(done(call[k].ticket), 0);
        if (next_ticket < TICKETS) {
            call[k].ticket = next_ticket++;
            call[k].pushed = 0;
        } else {
            call[k] = call[--alive];
        }
    }
    CHECK_EQ(atomic_load(&queue.kept), 0);
    long left = 0;
    for (long i = expected_ticket; i < TICKETS; i++) left += outputs_of[i];
    CHECK_EQ(left, expected_output);
    pyper__queue_fini(&queue, &seat);
}

TEST(random_calls_leave_in_order) {
    uint64_t seed = (uint64_t)check_environment("PYPER_TEST_SEED", 7);
    for (long i = 0; i < check_times(500); i++) random_calls(seed + (uint64_t)i, i % 2);
}

/* ------------------------------------------------------------------------- Several threads */

static _Atomic long next_ticket;
static bool one_each;
enum { TICKETS = 3000 };

static long outputs(long ticket) {
    return one_each ? 1 : ticket % 3;
}

static void call_at_random(void *arg) {
    pyper__seat mine;
    memset(&mine, 0, sizeof mine);
    pyper__seat_init(&mine, NULL, NULL);
    uint64_t state = (uint64_t)(uintptr_t)arg;
    for (long ticket; (ticket = atomic_fetch_add(&next_ticket, 1)) < TICKETS;) {
        if (random_below(&state, 10) == 0) sched_yield();
        for (long i = 0; i < outputs(ticket); i++) {
            void *item = item_new(ticket * 10 + i);
            int rc = pyper__queue_push(&queue, item, ticket, &mine, NULL);
            if (rc == 0) continue;
            CHECK_EQ(rc, PYPER_ECANCELED);
            item_destroy(item);
        }
        if (one_each) continue;
        int rc = pyper__order_done(queue.order, ticket, &mine, NULL);
        CHECK(rc == 0 || rc == PYPER_ECANCELED);
    }
}

static void threads_call(int64_t throttle, bool cancelled) {
    enum { THREADS = 4 };
    atomic_store(&next_ticket, 0);
    open_queue(throttle, throttle ? throttle : 32);
    if (one_each) expect_one_each();
    thread threads[THREADS];
    for (int i = 0; i < THREADS; i++) thread_start(&threads[i], call_at_random, PTR(i + 1));
    for (long ticket = 0; ticket < TICKETS; ticket++) {
        if (cancelled && ticket == TICKETS / 2) {
            pyper__queue_set_state(&queue, PYPER__CANCELLED);
            break;
        }
        for (long i = 0; i < outputs(ticket); i++) {
            void *item;
            int64_t place;
            CHECK_EQ(pyper__queue_pop(&queue, &item, &place, &seat, PYPER_FOREVER, false), 1);
            CHECK_EQ(item_deliver(item), ticket * 10 + i);
        }
    }
    for (int i = 0; i < THREADS; i++) thread_join(&threads[i]);
    pyper__queue_fini(&queue, &seat);
}

TEST(threads_leave_in_order) {
    static const int64_t throttles[] = {0, 1, 2, 3, 10, 1000};
    for (int t = 0; t < 6; t++) threads_call(throttles[t], false);
    one_each = true;
    for (int t = 0; t < 6; t++) threads_call(throttles[t], false);
}

TEST(a_cancel_wakes_those_out_of_turn) {
    static const int64_t throttles[] = {0, 1, 2, 3, 10, 1000};
    for (int round = 0; round < 5; round++)
        for (int t = 0; t < 12; t++) {
            one_each = t >= 6;
            threads_call(throttles[t % 6], true);
        }
}
