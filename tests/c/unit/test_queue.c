/* The room `queue`: order, bounds, both ends with one or several threads, the ends of a stream, and
 * what becomes of the memory. */
#include "../kit.h"

#include "queue.h"
#include "ring.h"

static pyper__queue queue; /* aligned to its cache lines */

/* How often the quick way was open. */
static _Atomic long quick_pushes, quick_pops;

/* Several producers of a queue with a bound draw tickets. */
static bool draw;

static void open_queue(int64_t throttle, bool many_producers, bool many_consumers) {
    memset(&queue, 0, sizeof queue);
    CHECK_EQ(pyper__queue_init(&queue, throttle, many_producers, many_consumers, 0, &item_type), 0);
    if (draw && many_producers && throttle > 0)
        CHECK_EQ(pyper__ring_create(&queue, true), 0);
    else
        pyper__queue_push_quickly(&queue);
    atomic_store(&quick_pushes, 0);
    atomic_store(&quick_pops, 0);
}

static void seat_init(pyper__seat *seat) {
    memset(seat, 0, sizeof *seat);
    pyper__seat_init(seat, NULL, NULL);
}

static void close_queue(void) {
    pyper__seat seat;
    seat_init(&seat);
    pyper__queue_fini(&queue, &seat);
}

static bool push_quickly(void *item) {
    static _Thread_local uintptr_t near;
    bool seldom = (uintptr_t)item % 32 == 0; /* some */
    if (queue.ring) return false;
    return queue.many_producers ? pyper__queue_push_shared(&queue, item, seldom, &near)
                                : pyper__queue_push_at_once(&queue, item);
}

/* As workers do: the quick way, and the slow one. */
static int push(pyper__seat *seat, void *item) {
    if (push_quickly(item)) {
        if (pyper__event_has_waiters_light(&queue.items)) pyper__event_notify_slow(&queue.items, 1);
        atomic_fetch_add_explicit(&quick_pushes, 1, memory_order_relaxed);
        return 0;
    }
    return pyper__queue_push(&queue, item, 0, seat, NULL);
}

static int pop(pyper__seat *seat, void **ret_item, int64_t *ret_ticket) {
    if (!queue.many_consumers) {
        int rc = pyper__queue_try_pop(&queue, ret_item, ret_ticket);
        if (rc != PYPER__AGAIN) return rc;
    } else if (pyper__queue_pop_shared(&queue, ret_item, ret_ticket)) {
        atomic_fetch_add_explicit(&quick_pops, 1, memory_order_relaxed);
        return 1;
    }
    return pyper__queue_pop(&queue, ret_item, ret_ticket, seat, PYPER_FOREVER, false);
}

static int pop_at_once(pyper__seat *seat, void **ret_item) {
    int64_t ticket;
    return pyper__queue_pop(&queue, ret_item, &ticket, seat, PYPER_NOWAIT, false);
}

/* ----------------------------------------------------------------------------- One thread */

TEST(items_leave_in_their_order_across_chunks) {
    pyper__seat seat;
    seat_init(&seat);
    open_queue(0, false, false);
    long next = 0, pushed = 0;
    uint64_t state = 1;
    while (next < 20000) {
        for (long n = random_below(&state, 1200); n > 0; n--)
            CHECK_EQ(push(&seat, PTR(pushed++)), 0);
        for (long n = random_below(&state, 1400); n > 0 && next < pushed; n--) {
            void *item;
            int64_t ticket;
            CHECK_EQ(pop(&seat, &item, &ticket), 1);
            CHECK_EQ(INT(item), next);
            CHECK_EQ(ticket, next);
            next++;
        }
        CHECK_EQ(pyper__queue_pushed(&queue), pushed);
        CHECK_EQ(pyper__queue_popped(&queue), next);
    }
    queue.type = NULL; /* those that are left are no items */
    close_queue();
}

static size_t memory_of(const pyper__chunk *chunk) {
    size_t size = 0;
    for (; chunk; chunk = chunk->next)
        size += sizeof *chunk + (size_t)chunk->slots * sizeof(void *);
    return size;
}

static size_t memory_of_chunks(void) {
    return memory_of(queue.pop_chunk) + memory_of(queue.push_spare) +
           memory_of(atomic_load(&queue.spare));
}

/* Many that wait take 8 bytes each and little more, and all of it is given back. */
TEST(memory_grows_and_goes_with_the_items) {
    pyper__seat seat;
    seat_init(&seat);
    open_queue(0, false, false);
    for (int round = 0; round < 3; round++) {
        long many = 1000000 << round, first = pyper__queue_pushed(&queue);
        for (long i = 0; i < many; i++) CHECK_EQ(push(&seat, PTR(i)), 0);
        CHECK_LE(memory_of_chunks(), (size_t)many * 17 / 2);
        for (long i = 0; i < many; i++) {
            void *item;
            int64_t ticket;
            CHECK_EQ(pop(&seat, &item, &ticket), 1);
            CHECK_EQ(INT(item), i);
            CHECK_EQ(ticket, first + i);
        }
        CHECK_LE(memory_of_chunks(), PYPER__CHUNK_SIZE_MAX + 20 * PYPER__CHUNK_SIZE);
        /* The large one goes, too, as the items go on through smaller ones. */
        for (long i = 0; i < PYPER__CHUNK_SIZE_MAX / 4; i++) {
            void *item;
            int64_t ticket;
            CHECK_EQ(push(&seat, PTR(i)), 0);
            CHECK_EQ(pop(&seat, &item, &ticket), 1);
        }
        CHECK_LE(memory_of_chunks(), 20 * PYPER__CHUNK_SIZE);
    }
    queue.type = NULL;
    close_queue();
}

/* What is drained is used again: a narrow queue needs no new memory, however many pass. */
TEST(a_narrow_queue_takes_no_more_memory) {
    enum { LIMIT = 1000 };
    pyper__seat seat;
    seat_init(&seat);
    open_queue(LIMIT, false, false);
    size_t taken = 0;
    for (int round = 0; round < 50; round++) {
        for (long i = 0; i < LIMIT; i++) CHECK_EQ(push(&seat, PTR(i)), 0);
        for (long i = 0; i < LIMIT; i++) {
            void *item;
            int64_t ticket;
            CHECK_EQ(pop(&seat, &item, &ticket), 1);
        }
        pyper__queue_settle(&queue);
        if (round == 1) taken = memory_of_chunks();
        if (round > 1) CHECK_EQ(memory_of_chunks(), taken);
    }
    CHECK_LE(taken, 4 * PYPER__CHUNK_SIZE);
    queue.type = NULL;
    close_queue();
}

TEST(exactly_as_many_as_there_are_places) {
    static const int64_t limits[] = {1, 2, 3, 4, 5, 511, 512, 1000};
    pyper__seat seat;
    seat_init(&seat);
    for (size_t i = 0; i < 3 * (sizeof limits / sizeof *limits); i++) {
        int64_t limit = limits[i / 3];
        bool many = i % 3 > 0;
        draw = i % 3 == 2;
        open_queue(limit, many, many);
        for (int round = 0; round < 5; round++) {
            /* The quick way may give up early (it does not look at the other end), never late. */
            for (int64_t n = 0; n < limit; n++) CHECK_EQ(push(&seat, item_new(n)), 0);
            void *late = item_new(-1);
            CHECK(!push_quickly(late));
            if (draw) CHECK_EQ(pyper__ring_try_push(&queue, late, 0), PYPER__AGAIN);
            item_deliver(late);
            CHECK_EQ(pyper__queue_pushed(&queue) - pyper__queue_popped(&queue), limit);
            for (int64_t n = 0; n < limit; n++) {
                void *item;
                int64_t ticket;
                CHECK_EQ(pop(&seat, &item, &ticket), 1);
                CHECK_EQ(item_deliver(item), n);
            }
            void *none;
            CHECK_EQ(pop_at_once(&seat, &none), PYPER_ETIMEDOUT); /* and gives all places back */
        }
        /* Of a large queue most went the quick way, unless the system has none. */
        if (limit >= 511 && pyper__can_fence_others()) {
            if (!draw) CHECK(atomic_load(&quick_pushes) > 4 * limit);
            if (many) CHECK(atomic_load(&quick_pops) > 4 * limit);
        }
        close_queue();
    }
}

TEST(the_ends_of_a_stream) {
    pyper__seat seat;
    seat_init(&seat);
    void *item;
    int64_t ticket;
    /* Ended: what is there can be popped, nothing more can be pushed. */
    open_queue(0, false, false);
    for (long i = 0; i < 3; i++) CHECK_EQ(push(&seat, item_new(i)), 0);
    pyper__queue_set_state(&queue, PYPER__ENDED);
    void *late = item_new(9);
    CHECK_EQ(push(&seat, late), PYPER_ECANCELED);
    item_deliver(late); /* it was not taken */
    for (long i = 0; i < 3; i++) {
        CHECK_EQ(pop(&seat, &item, &ticket), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    CHECK_EQ(pop(&seat, &item, &ticket), 0);
    CHECK_EQ(pop(&seat, &item, &ticket), 0);
    /* It cannot be opened again, but cancelled. */
    pyper__queue_set_state(&queue, PYPER__OPEN);
    CHECK_EQ(pyper__queue_state(&queue), PYPER__ENDED);
    pyper__queue_set_state(&queue, PYPER__CANCELLED);
    CHECK_EQ(pop(&seat, &item, &ticket), PYPER_ECANCELED);
    pyper__queue_set_state(&queue, PYPER__ENDED);
    CHECK_EQ(pyper__queue_state(&queue), PYPER__CANCELLED);
    close_queue();
    /* Cancelled: what is there is destroyed. */
    open_queue(0, false, false);
    for (long i = 0; i < 2000; i++) CHECK_EQ(push(&seat, item_new(i)), 0);
    pyper__queue_set_state(&queue, PYPER__CANCELLED);
    CHECK_EQ(pop(&seat, &item, &ticket), PYPER_ECANCELED);
    pyper__queue_drain(&queue, &seat);
    CHECK_EQ(atomic_load(&items_destroyed), 2000);
    pyper__queue_drain(&queue, &seat);
    close_queue();
}

/* The testing library counts allocations down. */
static long allocations_since(long start) {
    return start - atomic_load(&pyper__fail_alloc_at);
}

TEST(a_steady_flow_allocates_nothing) {
    enum { MANY = 1 << 30 };
    pyper__seat seat;
    seat_init(&seat);
    for (int64_t throttle = 0; throttle < 3000; throttle += 1000) {
        open_queue(throttle, false, false);
        for (long i = 0; i < 600; i++) CHECK_EQ(push(&seat, PTR(i)), 0);
        atomic_store(&pyper__fail_alloc_at, MANY);
        for (long i = 0; i < 100000; i++) {
            void *item;
            int64_t ticket;
            CHECK_EQ(pop(&seat, &item, &ticket), 1);
            CHECK_EQ(push(&seat, PTR(i)), 0);
        }
        CHECK_LE(allocations_since(MANY), 2);
        atomic_store(&pyper__fail_alloc_at, -1);
        queue.type = NULL;
        close_queue();
    }
}

TEST(a_push_without_memory_takes_nothing_and_can_be_repeated) {
    pyper__seat seat;
    seat_init(&seat);
    open_queue(0, false, false);
    long next = 0;
    for (int chunks = 0; chunks < 3; chunks++) {
        atomic_store(&pyper__fail_alloc_at, 1);
        void *refused;
        int rc;
        while ((rc = push(&seat, refused = item_new(next))) == 0) next++;
        CHECK_EQ(rc, PYPER_ENOMEM);
        CHECK_EQ(pyper__queue_pushed(&queue), next);
        atomic_store(&pyper__fail_alloc_at, -1);
        CHECK_EQ(push(&seat, refused), 0);
        next++;
    }
    for (long i = 0; i < next; i++) {
        void *item;
        int64_t ticket;
        CHECK_EQ(pop(&seat, &item, &ticket), 1);
        CHECK_EQ(item_deliver(item), i);
    }
    close_queue();
}

TEST(a_queue_without_memory_can_be_given_up) {
    for (int at = 1; at < 3; at++) {
        memset(&queue, 0, sizeof queue);
        atomic_store(&pyper__fail_alloc_at, at);
        int rc = pyper__queue_init(&queue, 5, true, true, 16, NULL);
        atomic_store(&pyper__fail_alloc_at, -1);
        CHECK_EQ(rc, PYPER_ENOMEM);
        close_queue();
    }
}

/* ------------------------------------------------------------------------- Several threads */

enum { ITEMS_MAX = 200000 };
static _Atomic unsigned char seen[ITEMS_MAX], seen_ticket[ITEMS_MAX];
static _Atomic long next_item, pushed, taken, refused;
static long wanted;

/* Pushes the numbers that are left, together with the other producers. */
static void produce(void *arg) {
    (void)arg;
    pyper__seat seat;
    seat_init(&seat);
    for (long i; (i = atomic_fetch_add(&next_item, 1)) < wanted;) {
        int rc = push(&seat, PTR(i));
        atomic_fetch_add(rc == 0 ? &pushed : &refused, 1);
        /* A single producer may have put it into the queue. */
        bool may_be_taken = !queue.many_producers && queue.limit != INT64_MAX;
        if (rc < 0) CHECK(rc == PYPER_ECANCELED || (rc == PYPER__TAKEN && may_be_taken));
    }
}

static void consume(void *arg) {
    bool in_order = arg != NULL;
    pyper__seat seat;
    seat_init(&seat);
    void *item;
    int64_t ticket;
    int rc;
    for (long last = -1; (rc = pop(&seat, &item, &ticket)) > 0;) {
        CHECK(INT(item) >= 0 && INT(item) < wanted);
        CHECK_EQ(atomic_fetch_add(&seen[INT(item)], 1), 0);
        CHECK(ticket >= 0 && ticket < wanted);
        CHECK_EQ(atomic_fetch_add(&seen_ticket[ticket], 1), 0);
        if (in_order) CHECK(INT(item) > last);
        last = INT(item);
        atomic_fetch_add(&taken, 1);
        /* The bound holds at every moment; popped is read last, so the difference is no larger than
         * it was when pushed was read. */
        if (queue.limit != INT64_MAX) {
            long done = atomic_load(&pushed);
            CHECK_LE(done - pyper__queue_popped(&queue), queue.limit);
            int64_t counted = pyper__queue_pushed(&queue);
            CHECK_GE(counted, done);
            CHECK_LE(counted - pyper__queue_popped(&queue), queue.limit);
        }
    }
    CHECK(rc == 0 || rc == PYPER_ECANCELED);
}

static void flow(int64_t throttle, int producers, int consumers, int end, long n) {
    memset(seen, 0, sizeof seen);
    memset(seen_ticket, 0, sizeof seen_ticket);
    atomic_store(&next_item, 0);
    atomic_store(&pushed, 0);
    atomic_store(&taken, 0);
    atomic_store(&refused, 0);
    wanted = n;
    open_queue(throttle, producers > 1, consumers > 1);
    queue.type = NULL;
    thread threads[8];
    for (int i = 0; i < producers; i++) thread_start(&threads[i], produce, NULL);
    for (int i = 0; i < consumers; i++)
        thread_start(&threads[producers + i], consume, producers == 1 ? &queue : NULL);
    if (end == PYPER__CANCELLED) { /* under way, after some items */
        while (atomic_load(&taken) < n / 7) sched_yield();
        pyper__queue_set_state(&queue, end);
    }
    for (int i = 0; i < producers; i++) thread_join(&threads[i]);
    pyper__queue_set_state(&queue, PYPER__ENDED);
    for (int i = 0; i < consumers; i++) thread_join(&threads[producers + i]);
    if (end == PYPER__ENDED) CHECK_EQ(atomic_load(&taken), n);
    /* Each was pushed or refused, and what was pushed was taken or is left; but one that a single
     * producer had in its hand may be either. */
    bool in_hand = end == PYPER__CANCELLED && producers == 1 && throttle > 0;
    CHECK_EQ(atomic_load(&pushed) + atomic_load(&refused), n);
    long left = pyper__queue_pushed(&queue) - pyper__queue_popped(&queue);
    CHECK_LE(labs(atomic_load(&taken) + left - atomic_load(&pushed)), in_hand);
    close_queue();
}

TEST(one_producer_one_consumer) {
    static const int64_t limits[] = {0, 1, 2, 3, 7, 64, 511, 512, 513, 1023};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        flow(limits[i], 1, 1, PYPER__ENDED,
             check_times(limits[i] && limits[i] < 7 ? 10000 : 100000));
}

static void flow_many_to_many(void) {
    static const int64_t limits[] = {0, 1, 2, 7, 600};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        long n = check_times(limits[i] && limits[i] < 7 ? 4000 : 20000);
        flow(limits[i], 4, 1, PYPER__ENDED, n);
        flow(limits[i], 1, 4, PYPER__ENDED, n);
        flow(limits[i], 3, 3, PYPER__ENDED, n);
    }
}

TEST(several_producers_and_consumers) {
    flow_many_to_many();
}

TEST(several_producers_who_draw_tickets) {
    draw = true;
    flow_many_to_many();
}

static void cancel_under_way(void) {
    static const int64_t limits[] = {0, 1, 5, 600};
    for (int round = 0; round < 10; round++) {
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            flow(limits[i], 1, 1, PYPER__CANCELLED, 1000);
            flow(limits[i], 3, 3, PYPER__CANCELLED, 1000);
        }
    }
}

TEST(a_cancel_against_pushes_and_pops) {
    cancel_under_way();
}

TEST(a_cancel_against_drawn_tickets) {
    draw = true;
    cancel_under_way();
}

/* A queue is ended by somebody else while its producers push, as the last one of a run that fails:
 * what was pushed before comes out, and every consumer learns of the end. */
static void push_until_the_end(void *arg) {
    (void)arg;
    pyper__seat seat;
    seat_init(&seat);
    for (long i; (i = atomic_fetch_add(&next_item, 1)) < wanted;)
        if (push(&seat, PTR(i)) == 0) atomic_fetch_add(&pushed, 1);
}

TEST(an_end_against_drawn_tickets) {
    draw = true;
    for (int round = 0; round < check_times(300); round++) {
        memset(seen, 0, sizeof seen);
        memset(seen_ticket, 0, sizeof seen_ticket);
        atomic_store(&next_item, 0);
        atomic_store(&pushed, 0);
        atomic_store(&taken, 0);
        wanted = 400;
        open_queue(600, true, true);
        queue.type = NULL;
        thread threads[5];
        for (int i = 0; i < 3; i++) thread_start(&threads[i], push_until_the_end, NULL);
        for (int i = 3; i < 5; i++) thread_start(&threads[i], consume, NULL);
        while (atomic_load(&taken) < round % 50) sched_yield();
        long before = atomic_load(&pushed);
        pyper__queue_set_state(&queue, PYPER__ENDED);
        for (int i = 3; i < 5; i++) thread_join(&threads[i]);
        CHECK_GE(atomic_load(&taken), before);
        for (int i = 0; i < 3; i++) thread_join(&threads[i]);
        close_queue();
    }
}

/* An end against waiting consumers: everybody wakes. */
static void expect_end(void *arg) {
    pyper__seat seat;
    seat_init(&seat);
    void *item;
    int64_t ticket;
    CHECK_EQ(pop(&seat, &item, &ticket), (int)(intptr_t)arg);
}

TEST(everybody_who_waits_is_told_of_the_end) {
    for (int round = 0; round < 30; round++) {
        int end = round % 2 ? PYPER__ENDED : PYPER__CANCELLED;
        open_queue(1, true, true);
        thread threads[4];
        for (int i = 0; i < 4; i++)
            thread_start(&threads[i], expect_end,
                         (void *)(intptr_t)(round % 2 ? 0 : PYPER_ECANCELED));
        if (round % 3 == 0) all_asleep();
        pyper__queue_set_state(&queue, end);
        for (int i = 0; i < 4; i++) thread_join(&threads[i]);
        close_queue();
    }
}

static void push_into_full(void *arg) {
    (void)arg;
    pyper__seat seat;
    seat_init(&seat);
    void *item = item_new(7);
    CHECK_EQ(push(&seat, item), PYPER_ECANCELED);
    item_deliver(item);
}

TEST(everybody_who_waits_for_room_is_told_of_the_end) {
    for (int round = 0; round < 30; round++) {
        draw = round % 2;
        open_queue(1, true, false);
        pyper__seat seat;
        seat_init(&seat);
        CHECK_EQ(push(&seat, item_new(1)), 0);
        thread threads[4];
        for (int i = 0; i < 4; i++) thread_start(&threads[i], push_into_full, NULL);
        if (round % 3 == 0) all_asleep();
        pyper__queue_set_state(&queue, PYPER__CANCELLED);
        for (int i = 0; i < 4; i++) thread_join(&threads[i]);
        close_queue();
    }
}

/* A producer that waits for room gives the free places of its own input back first: else the one
 * before it could wait for ever. */
static pyper__queue input;

static void push_with_input(void *arg) {
    (void)arg;
    pyper__seat seat;
    seat_init(&seat);
    CHECK_EQ(pyper__queue_push(&queue, PTR(2), 0, &seat, &input), 0);
}

TEST(who_waits_for_room_gives_back_what_it_has) {
    pyper__seat seat;
    seat_init(&seat);
    memset(&input, 0, sizeof input);
    CHECK_EQ(pyper__queue_init(&input, 100, false, false, 0, NULL), 0);
    open_queue(1, false, false);
    queue.type = NULL;
    for (long i = 0; i < 100; i++) CHECK_EQ(pyper__queue_push(&input, PTR(i), 0, &seat, NULL), 0);
    CHECK_EQ(push(&seat, PTR(1)), 0);
    void *item;
    int64_t ticket;
    for (long i = 0; i < 3; i++) CHECK_EQ(pyper__queue_try_pop(&input, &item, &ticket), 1);
    thread pusher;
    thread_start(&pusher, push_with_input, NULL);
    all_asleep();
    for (long i = 0; i < 3; i++) CHECK_EQ(pyper__queue_push(&input, PTR(i), 0, &seat, NULL), 0);
    for (long i = 1; i <= 2; i++) {
        CHECK_EQ(pop(&seat, &item, &ticket), 1);
        CHECK_EQ(INT(item), i);
    }
    thread_join(&pusher);
    pyper__queue_fini(&input, &seat);
    close_queue();
}
