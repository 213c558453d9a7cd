/* The room `claim`: what is claimed ahead counts as waiting until it begins, goes to whoever has
 * nothing else to do, and begins no more after a cancel. */
#include "../kit.h"

#include "claim.h"

enum { WORKERS = 2, MANY = 200 };

static pyper__queue queue; /* aligned to its cache lines */
static pyper__seat seat;
static long pushed, begun;

static void open_queue(int64_t throttle, int64_t window) {
    memset(&queue, 0, sizeof queue);
    memset(&seat, 0, sizeof seat);
    pyper__seat_init(&seat, NULL, NULL);
    pushed = begun = 0;
    CHECK_EQ(pyper__queue_init(&queue, throttle, false, true, 0, &item_type), 0);
    CHECK_EQ(pyper__claims_create(&queue, WORKERS, window), 0);
}

/* Both workers leave. */
static void close_queue(void) {
    for (int i = 0; queue.claims && i < WORKERS; i++)
        pyper__claim_drop(&queue, &queue.claims->claim[i], &seat);
    pyper__queue_fini(&queue, &seat);
}

static pyper__claim *claim_of(int worker) {
    return &queue.claims->claim[worker];
}

static int64_t unbegun(int worker) {
    return atomic_load(&claim_of(worker)->end) - atomic_load(&claim_of(worker)->at);
}

static void push(long count) {
    for (; count > 0; count--)
        CHECK_EQ(pyper__queue_push(&queue, item_new(pushed++), 0, &seat, NULL), 0);
}

/* As a worker takes an input: its number, -1 at the end, or a code. */
static long pop(int worker) {
    void *item;
    int64_t ticket;
    int rc = 1;
    if (!pyper__claim_take(&queue, claim_of(worker), &item, &ticket))
        rc = pyper__claim_pop(&queue, claim_of(worker), &item, &ticket, &seat);
    if (rc != 1) return rc == 0 ? -1 : rc;
    CHECK_EQ(item_deliver(item), ticket);
    begun++;
    CHECK_EQ(pyper__queue_popped(&queue), begun);
    CHECK_EQ(pyper__queue_there(&queue), pushed - begun);
    return (long)ticket;
}

/* Until the worker has just claimed as many as he may, which he soon does while his calls are
 * quick; `waiting` of them are there all the time.  The number of the one that he has begun. */
static long claim_a_hand(int worker, long waiting) {
    long number;
    do {
        push(waiting - (pushed - begun));
        number = pop(worker);
        CHECK_GE(number, 0);
    } while (unbegun(worker) < queue.claims->most - 1);
    return number;
}

TEST(quick_calls_claim_a_hand_full) {
    open_queue(0, 0);
    CHECK_EQ(queue.claims->most, PYPER__CLAIM_MAX);
    long first = claim_a_hand(0, MANY);
    CHECK_EQ(atomic_load(&queue.head), first + PYPER__CLAIM_MAX);
    for (long i = 1; i < PYPER__CLAIM_MAX; i++) CHECK_EQ(pop(0), first + i);
    CHECK_EQ(unbegun(0), 0);
    close_queue();
}

TEST(nobody_claims_more_than_his_share) {
    open_queue(0, 0);
    claim_a_hand(0, MANY);
    while (pop(0) + 1 < pushed) {
        long left = pushed - (long)atomic_load(&queue.head);
        CHECK_LE(unbegun(0), WORKERS * (left + 1));
    }
    close_queue();
}

/* However quick the calls: what took so little time was one item, not as many as he might have
 * claimed. */
TEST(where_few_wait_nobody_learns_to_claim_more) {
    open_queue(0, 0);
    for (int i = 0; i < MANY; i++) {
        push(1);
        CHECK_EQ(pop(0), i);
        CHECK_LE(claim_of(0)->pace, 2);
    }
    close_queue();
}

TEST(who_has_nothing_takes_half_of_what_another_has_claimed) {
    open_queue(0, 0);
    long first = claim_a_hand(0, MANY);
    pyper__queue_set_state(&queue, PYPER__ENDED);
    bool seen[MANY + 1] = {false};
    /* The second worker does all that the first one, who is in a call, leaves to him. */
    for (long n; (n = pop(1)) >= 0;) {
        CHECK(n > first && n <= first + MANY && !seen[n - first]);
        seen[n - first] = true;
    }
    CHECK_EQ(begun, pushed);
    for (long n = first + 1; n < pushed; n++) CHECK(seen[n - first]);
    CHECK_EQ(pop(0), -1);
    close_queue();
}

TEST(what_is_claimed_begins_no_more_after_a_cancel) {
    open_queue(0, 0);
    claim_a_hand(0, MANY);
    long destroyed = atomic_load(&items_destroyed);
    pyper__queue_set_state(&queue, PYPER__CANCELLED);
    CHECK_EQ(pop(0), PYPER_ECANCELED);
    pyper__claim_drop(&queue, claim_of(0), &seat);
    CHECK_EQ(atomic_load(&items_destroyed) - destroyed, PYPER__CLAIM_MAX - 1);
    CHECK_EQ(pyper__queue_started(&queue), begun);
    CHECK_EQ(pyper__queue_popped(&queue), begun + PYPER__CLAIM_MAX - 1);
    close_queue();
}

/* Places are given back for what has begun, and of a bound no more than a quarter is ever
 * claimed. */
TEST(what_is_claimed_takes_its_place_in_the_bound) {
    enum { BOUND = 64 };
    open_queue(BOUND, 0);
    CHECK_EQ(queue.claims->most * WORKERS * 4, BOUND);
    claim_a_hand(0, BOUND / 2); /* so that no push waits */
    CHECK_LE(atomic_load(&queue.given_back), begun);
    pyper__queue_settle(&queue);
    CHECK_EQ(atomic_load(&queue.given_back), begun);
    CHECK_EQ(pyper__queue_room(&queue), BOUND - (pushed - begun));
    close_queue();
}

TEST(where_it_would_be_of_no_use_nobody_claims) {
    open_queue(4 * 7 * WORKERS, 0);
    CHECK(!queue.claims);
    close_queue();
    open_queue(0, 4 * 7 * WORKERS);
    CHECK(!queue.claims);
    CHECK_EQ(pyper__claims_create(&queue, 1000, 0), 0);
    CHECK(!queue.claims);
    close_queue();
}

/* Two threads take all they can from each other. */
static _Atomic long total;

static void work(void *number) {
    void *item;
    int64_t ticket;
    pyper__seat own = {0};
    pyper__claim *claim = claim_of((int)(intptr_t)number);
    pyper__seat_init(&own, NULL, NULL);
    for (;;) {
        if (!pyper__claim_take(&queue, claim, &item, &ticket) &&
            pyper__claim_pop(&queue, claim, &item, &ticket, &own) != 1)
            break;
        atomic_fetch_add(&total, item_deliver(item));
        if (ticket % 64 == 0) others();
    }
    pyper__claim_drop(&queue, claim, &own);
}

TEST(two_threads_lose_and_double_nothing) {
    enum { ITEMS = 20000 };
    for (int round = 0; round < 5; round++) {
        open_queue(round % 2 ? 64 : 0, 0);
        atomic_store(&total, 0);
        thread threads[WORKERS];
        for (int i = 0; i < WORKERS; i++) thread_start(&threads[i], work, PTR(i));
        for (long i = 0; i < ITEMS; i++)
            CHECK_EQ(pyper__queue_push(&queue, item_new(i), 0, &seat, NULL), 0);
        pyper__queue_set_state(&queue, PYPER__ENDED);
        for (int i = 0; i < WORKERS; i++) thread_join(&threads[i]);
        CHECK_EQ(atomic_load(&total), (long)ITEMS * (ITEMS - 1) / 2);
        CHECK_EQ(pyper__queue_popped(&queue), ITEMS);
        close_queue();
    }
}
