/* The queue between threads: no wake-up is lost, each item arrives once and in order, the bound is
 * exact, and whoever closes it wakes everybody, whatever they were doing. */
#include <string.h>

#include "claim.h"
#include "explorer.h"
#include "order.h"
#include "queue.h"
#include "ring.h"

enum { ITEMS = 8 };

static struct {
    pyper__queue queue;
    _Atomic long producers; /* that have not finished */
    long pushed, popped;    /* calls that have returned */
    long refused;           /* of the pushed: told of a cancel, although the queue has the item */
    long arrived[ITEMS];    /* how often each item has */
    long last;
    long destroyed;
    bool told;
    bool watched; /* the flag says that the queue is cancelled */
    _Atomic long flag;
    pyper__event flag_event;
    pyper__seat seats[5];
    int producer_count, consumer_count;
    long tickets, outputs; /* of an order */
    bool one_each;         /* the order knows that there is one */
    long at_once; /* a bit for each item: the calls with these last until all of them have begun */
} state;

void *const model_state = &state;
const size_t model_state_size = sizeof state;
const bool model_whole_runs = false;

static void count_destroyed(void *item) {
    state.destroyed++;
}
static const pyper_item_type type = {.size = sizeof type, .destroy = count_destroyed};

static void name(void) {
    pyper__queue *q = &state.queue;
    model_name(&q->state, sizeof q->state, "queue.state");
    model_name(&q->items, 8, "queue.items");
    model_name(&q->places, 8, "queue.places");
    model_name(&q->tail, sizeof q->tail, "queue.tail");
    model_name(&q->head, sizeof q->head, "queue.head");
    model_name(&q->given_back, sizeof q->given_back, "queue.given_back");
    model_name(&q->push_lock, sizeof q->push_lock, "queue.push_lock");
    model_name(&q->pop_lock, sizeof q->pop_lock, "queue.pop_lock");
    model_name(&q->spare, sizeof q->spare, "queue.spare");
    model_name(&state.producers, sizeof state.producers, "producers");
    model_name(&state.flag, sizeof state.flag, "flag");
    model_name(&state.flag_event, 8, "flag_event");
}

static void make_queue(int64_t limit, int producers, int consumers, int64_t window) {
    state.producer_count = producers;
    state.consumer_count = consumers;
    state.producers = producers;
    state.last = -1;
    if (pyper__queue_init(&state.queue, limit, producers > 1, consumers > 1, window, &type) < 0)
        model_fail(__FILE__, __LINE__, "no memory");
    pyper__event_init(&state.flag_event);
    for (int i = 0; i < 5; i++) pyper__seat_init(&state.seats[i], NULL, NULL);
    model_private(state.seats, sizeof state.seats);
    /* Hints and statistics. */
    model_private(&state.queue.items.yields, sizeof(uint32_t));
    model_private(&state.queue.places.yields, sizeof(uint32_t));
    model_private(&state.flag_event.yields, sizeof(uint32_t));
    model_private(&state.queue.drained, sizeof state.queue.drained);
    model_own(&state.queue.tail, sizeof state.queue.tail);
    model_own(&state.queue.head, sizeof state.queue.head);
    model_own(&state.queue.given_back, sizeof state.queue.given_back);
    if (!window) pyper__queue_push_quickly(&state.queue);
    name();
}

static void destroy_queue(void) {
    pyper__queue_fini(&state.queue, &state.seats[0]);
}

/* Seen by the explorer between two steps.  A pop counts when it has returned, a push from the
 * moment its item is visible: so this is never less than what really waits.  A single producer may
 * have one more in its hand, but not when its push is done. */
static void check_bound(void) {
    pyper__queue *q = &state.queue;
    int64_t tail = q->tail, head = q->head, given_back = q->given_back, kept = q->kept;
    MODEL_CHECK(given_back <= head && (head <= tail || q->ring != NULL));
    if (q->claims) MODEL_CHECK(given_back <= pyper__claims_begun(q->claims));
    if (q->limit == INT64_MAX) return;
    bool from_hand = state.producer_count == 1 && !q->order;
    MODEL_CHECK(tail + kept - given_back <= q->limit + from_hand);
    /* What waits in an order without a lock is counted nowhere but here. */
    if (from_hand || state.one_each)
        MODEL_CHECK(state.pushed - state.refused - given_back <= q->limit);
}

/* -------------------------------------------------------------------------------- who does what */

static void arrive(long item) {
    MODEL_CHECK(item >= 0 && item < ITEMS);
    MODEL_CHECK(state.arrived[item] == 0);
    state.arrived[item]++;
    state.popped++;
    if (state.producer_count == 1 && state.consumer_count == 1) {
        MODEL_CHECK(item == state.last + 1);
        state.last = item;
    }
}

/* What begins after a cancel has returned is refused, however much was allowed before. */
static bool is_over(void) {
    return state.watched && atomic_load(&state.flag) != 0;
}

static bool push(long item, pyper__seat *seat) {
    void *pointer = (void *)(intptr_t)item;
    bool over = is_over(), seldom = item % 2 == 0;
    uintptr_t near = 0;
    bool at_once = false;
    if (state.producer_count == 1)
        at_once = pyper__queue_push_at_once(&state.queue, pointer);
    else if (!state.queue.ring)
        at_once = pyper__queue_push_shared(&state.queue, pointer, seldom, &near);
    if (at_once) {
        MODEL_CHECK(!over);
        /* As pyper_emit() does. */
        if (pyper__event_has_waiters_light(&state.queue.items))
            pyper__event_notify_slow(&state.queue.items, 1);
        state.pushed++;
        return true;
    }
    int rc = pyper__queue_push(&state.queue, pointer, item, seat, NULL);
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED || rc == PYPER__TAKEN);
    MODEL_CHECK(!over || rc == PYPER_ECANCELED);
    if (rc != PYPER_ECANCELED) state.pushed++;
    if (rc == PYPER__TAKEN) state.refused++;
    return rc == 0;
}

/* Items first, first + 1, ...; the last producer to finish ends the queue. */
static void produce(void *which) {
    long number = (intptr_t)which >> 8, count = (intptr_t)which & 255;
    for (long i = 0; i < count; i++)
        if (!push(number * count + i, &state.seats[number])) return;
    if (atomic_fetch_sub(&state.producers, 1) == 1)
        pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
#define PRODUCER(number, count) (void *)((intptr_t)(number) << 8 | (count))

static int pop(pyper__seat *seat, bool interruptible) {
    void *item;
    int64_t ticket;
    bool over = is_over();
    /* As workers do. */
    bool at_once =
        state.consumer_count > 1 && pyper__queue_pop_shared(&state.queue, &item, &ticket);
    int rc = at_once ? 1
                     : pyper__queue_pop(&state.queue, &item, &ticket, seat, PYPER_FOREVER,
                                        interruptible);
    if (rc == 1) {
        MODEL_CHECK(!over);
        arrive((intptr_t)item);
        MODEL_CHECK(state.consumer_count > 1 || ticket == state.popped - 1);
    }
    return rc;
}

static void consume(void *number) {
    int rc;
    while ((rc = pop(&state.seats[2 + (intptr_t)number], false)) > 0) continue;
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED);
    if (rc < 0) state.told = true;
}

static void consume_with_interruptions(void *number) {
    int rc;
    while ((rc = pop(&state.seats[2 + (intptr_t)number], true)) > 0 || rc == PYPER_EINTR) continue;
    MODEL_CHECK(rc == 0);
}

/* ------------------------------------------------------------------------------------ claiming */

static bool flag_is_up(const void *unused) {
    return atomic_load(&state.flag) != 0;
}
static void raise_flag(void) {
    atomic_store(&state.flag, 1);
    pyper__event_notify_all(&state.flag_event);
}
static void await_flag(pyper__seat *seat) {
    pyper__await(seat, &state.flag_event, flag_is_up, NULL, PYPER_FOREVER, PYPER__OTHER, false);
}

/* What the function does with an item. */
static void call(long item, pyper__seat *seat) {
    arrive(item);
    if (!(state.at_once >> item & 1)) return;
    bool all = true;
    for (long i = 0; i < ITEMS; i++) all = all && state.arrived[i] >= (state.at_once >> i & 1);
    if (all) raise_flag();
    await_flag(seat);
}

/* As workers do who may claim. */
static void consume_claiming(void *number) {
    pyper__claim *claim = &state.queue.claims->claim[(intptr_t)number];
    pyper__seat *seat = &state.seats[2 + (intptr_t)number];
    for (;;) {
        void *item;
        int64_t ticket;
        bool over = is_over();
        int rc = 1;
        if (!pyper__claim_take(&state.queue, claim, &item, &ticket))
            rc = pyper__claim_pop(&state.queue, claim, &item, &ticket, seat);
        MODEL_CHECK(rc == 1 || rc == 0 || rc == PYPER_ECANCELED);
        if (rc != 1) break;
        MODEL_CHECK(!over);
        MODEL_CHECK(ticket == (intptr_t)item);
        call((intptr_t)item, seat);
    }
    pyper__claim_drop(&state.queue, claim, seat);
}

static void cancel(void *unused) {
    pyper__queue_set_state(&state.queue, PYPER__CANCELLED);
    if (state.watched) atomic_store(&state.flag, 1);
}

static void take_one_and_cancel(void *unused) {
    MODEL_CHECK(pop(&state.seats[2], false) == 1);
    pyper__queue_set_state(&state.queue, PYPER__CANCELLED);
}

/* ----------------------------------------------------------------------------------------- ends */

static void all_arrived(void) {
    MODEL_CHECK(state.popped == state.pushed);
    for (long i = 0; i < state.pushed; i++) MODEL_CHECK(state.arrived[i] == 1);
    destroy_queue();
    MODEL_CHECK(state.destroyed == 0);
}

static void all_arrived_or_destroyed(void) {
    destroy_queue();
    MODEL_CHECK(state.popped + state.destroyed == state.pushed);
}

/* ------------------------------------------------------------------------------------ scenarios */

static void one_to_one(int64_t limit, long items) {
    make_queue(limit, 1, 1, 0);
    model_thread("producer", produce, PRODUCER(0, items), 0);
    model_thread("consumer", consume, NULL, 0);
}
static void unbounded(void) {
    one_to_one(0, 3);
}
static void bound_of_1(void) {
    one_to_one(1, 3);
}
static void bound_of_2(void) {
    one_to_one(2, 4);
}

static void two_producers(void) {
    make_queue(1, 2, 1, 0);
    model_thread("producer 0", produce, PRODUCER(0, 1), 0);
    model_thread("producer 1", produce, PRODUCER(1, 1), 0);
    model_thread("consumer", consume, NULL, 0);
}

static void two_producers_bound_of_2(void) {
    make_queue(2, 2, 1, 0);
    model_thread("producer 0", produce, PRODUCER(0, 2), 0);
    model_thread("producer 1", produce, PRODUCER(1, 2), 0);
    model_thread("consumer", consume, NULL, 0);
}

static void two_consumers(void) {
    make_queue(0, 1, 2, 0);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("consumer 1", consume, (void *)1, 0);
}

static void two_consumers_bound_of_1(void) {
    make_queue(1, 1, 2, 0);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("consumer 1", consume, (void *)1, 0);
}

static void close_against_push(void) {
    make_queue(1, 1, 1, 0);
    model_thread("producer", produce, PRODUCER(0, 4), 0);
    model_thread("consumer", take_one_and_cancel, NULL, 0);
}

static void close_by_a_third(void) {
    make_queue(1, 1, 1, 0);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer", consume, NULL, 0);
    model_thread("canceller", cancel, NULL, 0);
}

/* Both ends have a licence when the cancel comes, or are about to get one. */
static void cancel_against_licences(void) {
    make_queue(0, 1, 1, 0);
    state.watched = true;
    model_thread("producer", produce, PRODUCER(0, 3), 0);
    model_thread("consumer", consume, NULL, 0);
    model_thread("canceller", cancel, NULL, 0);
}

static void cancel_against_a_shared_licence(void) {
    make_queue(0, 1, 2, 0);
    state.watched = true;
    model_thread("producer", produce, PRODUCER(0, 3), 0);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("canceller", cancel, NULL, 0);
}

static void close_against_two_producers(void) {
    make_queue(1, 2, 1, 0);
    model_thread("producer 0", produce, PRODUCER(0, 2), 0);
    model_thread("producer 1", produce, PRODUCER(1, 2), 0);
    model_thread("consumer", take_one_and_cancel, NULL, 0);
}

static void interrupted(void) {
    make_queue(1, 1, 1, 0);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer", consume_with_interruptions, NULL, 0);
}

static void two_interrupted(void) {
    make_queue(0, 1, 2, 0);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer 0", consume_with_interruptions, (void *)0, 0);
    model_thread("consumer 1", consume_with_interruptions, (void *)1, 0);
}

/* A consumer that waits for something else lets go of the places it has freed: or the producer,
 * who has to get on first, would never. */
static void produce_and_raise(void *unused) {
    for (long i = 0; i < 5; i++) push(i, &state.seats[0]);
    raise_flag();
    pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
static void take_one_and_wait(void *unused) {
    MODEL_CHECK(pop(&state.seats[2], false) == 1);
    pyper__queue_settle(&state.queue);
    await_flag(&state.seats[2]);
    consume(NULL);
}
static void settles_before_another_wait(void) {
    make_queue(4, 1, 1, 0);
    model_thread("producer", produce_and_raise, NULL, 0);
    model_thread("consumer", take_one_and_wait, NULL, 0);
}

/* A producer that goes on only when all has been taken: no later push makes up for a wake-up that
 * an earlier one has lost. */
static void produce_and_wait(void *count) {
    for (long i = 0; i < (intptr_t)count; i++) push(i, &state.seats[0]);
    await_flag(&state.seats[0]);
    pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
static void take_two_and_raise(void *unused) {
    for (int i = 0; i < 2; i++) MODEL_CHECK(pop(&state.seats[2], false) == 1);
    raise_flag();
    consume(NULL);
}
static void waits_for_an_answer(void) {
    make_queue(0, 1, 1, 0);
    model_thread("producer", produce_and_wait, (void *)2, 0);
    model_thread("consumer", take_two_and_raise, NULL, 0);
}

/* Consumers who claim. */
static void make_claims(int64_t limit, int consumers) {
    static const char *const names[][2] = {{"claim 0.at", "claim 0.end"},
                                           {"claim 1.at", "claim 1.end"},
                                           {"claim 2.at", "claim 2.end"}};
    make_queue(limit, 1, consumers, 0);
    if (pyper__claims_create(&state.queue, consumers, 0) < 0)
        model_fail(__FILE__, __LINE__, "no memory");
    MODEL_CHECK(state.queue.claims);
    for (int i = 0; i < consumers; i++) {
        pyper__claim *claim = &state.queue.claims->claim[i];
        model_private(&claim->begun, sizeof claim->begun);
        model_name(&claim->at, sizeof claim->at, names[i][0]);
        model_name(&claim->end, sizeof claim->end, names[i][1]);
        model_thread(names[i][0], consume_claiming, (void *)(intptr_t)i, 0);
    }
}
static void claiming(int64_t limit, long items) {
    make_claims(limit, 2);
    model_thread("producer", produce, PRODUCER(0, items), 0);
}
static void claims(void) {
    claiming(0, 4);
}
static void claims_bound_of_2(void) {
    claiming(2, 4);
}
/* The calls with the first two items have to be under way at once, and one consumer may have
 * claimed both. */
static void claims_taken_away_at_the_end(void) {
    claiming(0, 3);
    state.at_once = 3;
}
static void claims_taken_away(void) {
    make_claims(0, 2);
    state.at_once = 3;
    model_thread("producer", produce_and_wait, (void *)3, 0);
}
/* The first consumer has claimed all four that there are. */
static void four_claimed(int consumers) {
    make_claims(0, consumers);
    pyper__claim *claim = &state.queue.claims->claim[0];
    int64_t ticket;
    for (long i = 0; i < 4; i++) {
        push(i, &state.seats[0]);
        MODEL_CHECK(pyper__queue_try_pop(&state.queue, &claim->items[i], &ticket) == 1);
    }
    claim->end = 4;
}
static void claims_of_two(void) {
    four_claimed(2);
    model_thread("producer", produce, PRODUCER(0, 0), 0);
}
/* The first has been begun.  The second consumer takes away two of the others, and the third one of
 * these: three calls at once. */
static void claims_of_three(void) {
    four_claimed(3);
    pyper__claim *claim = &state.queue.claims->claim[0];
    claim->at = claim->begun = 1;
    arrive(0);
    state.at_once = 1 << 1 | 1 << 2 | 1 << 3;
    model_thread("producer", produce_and_wait, (void *)0, 0);
}
static void claims_cancelled(void) {
    claiming(0, 3);
    state.watched = true;
    model_thread("canceller", cancel, NULL, 0);
}

/* Ordered: each worker has every other ticket, and gives `outputs` for one. */
static void work_in_order(void *arg) {
    long number = (intptr_t)arg;
    pyper__seat *seat = &state.seats[number];
    for (long t = number; t < state.tickets; t += 2) {
        for (long i = state.outputs * t; i < state.outputs * (t + 1); i++) {
            if (pyper__queue_push(&state.queue, (void *)(intptr_t)i, t, seat, NULL) < 0) return;
            state.pushed++;
        }
        if (state.one_each) continue;
        if (pyper__order_done(state.queue.order, t, seat, NULL) < 0) return;
    }
    /* So that the end does not make up for a wake-up that has been lost. */
    if (state.at_once) await_flag(&state.seats[number]);
    if (atomic_fetch_sub(&state.producers, 1) == 1)
        pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
static void consume_in_order(void *number) {
    void *item;
    int64_t ticket;
    int rc;
    while ((rc = pyper__queue_pop(&state.queue, &item, &ticket, &state.seats[2], PYPER_FOREVER,
                                  false)) > 0) {
        MODEL_CHECK((intptr_t)item == ++state.last);
        arrive((intptr_t)item);
        if (state.at_once && state.popped == state.tickets) raise_flag();
    }
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED);
}
static void in_order(int64_t limit, int64_t window, long tickets, long outputs) {
    make_queue(limit, 2, 1, window);
    state.tickets = tickets;
    state.outputs = outputs;
    model_thread("worker 0", work_in_order, (void *)0, 0);
    model_thread("worker 1", work_in_order, (void *)1, 0);
    model_thread("consumer", consume_in_order, NULL, 0);
}
static void make_slots(bool drawn) {
    if (pyper__ring_create(&state.queue, drawn) < 0) model_fail(__FILE__, __LINE__, "no memory");
}
static void expect_one_each(void) {
    if (state.queue.limit < INT64_MAX)
        make_slots(false);
    else
        pyper__order_expect_one_each(state.queue.order);
    state.one_each = true;
}
static void one_each(int64_t limit, int64_t window, long tickets) {
    in_order(limit, window, tickets, 1);
    expect_one_each();
}
/* The first two calls have to be under way at once, whoever of the workers was the first to be
 * done. */
static void consume_and_call(void *number) {
    pyper__seat *seat = &state.seats[2 + (intptr_t)number];
    void *item;
    int64_t ticket;
    while (pyper__queue_pop(&state.queue, &item, &ticket, seat, PYPER_FOREVER, false) > 0) {
        MODEL_CHECK(ticket == (intptr_t)item || state.queue.ring->drawn);
        call((intptr_t)item, seat);
    }
}
static void ordered_for_two_consumers(void) {
    make_queue(4, 2, 2, 4);
    expect_one_each();
    state.tickets = 2;
    state.outputs = 1;
    state.at_once = 3;
    model_thread("worker 0", work_in_order, (void *)0, 0);
    model_thread("worker 1", work_in_order, (void *)1, 0);
    model_thread("consumer 0", consume_and_call, (void *)0, 0);
    model_thread("consumer 1", consume_and_call, (void *)1, 0);
}
/* Nor does anything the workers do later. */
static void ordered_waits_for_an_answer(void) {
    in_order(4, 4, 2, 1);
    expect_one_each();
    state.at_once = 3;
}
static void ordered(void) {
    in_order(0, 1, 2, 1);
}
static void ordered_one_each(void) {
    one_each(0, 4, 4);
}
static void ordered_one_each_window_of_1(void) {
    one_each(0, 1, 3);
}
static void ordered_one_each_bound_of_1(void) {
    one_each(1, 1, 3);
}
static void ordered_one_each_bound_of_2(void) {
    one_each(2, 2, 4);
}
static void ordered_one_each_close(void) {
    one_each(1, 1, 3);
    model_thread("canceller", cancel, NULL, 0);
}
/* Tickets drawn by those who push. */
static void drawing(int64_t limit, long items) {
    make_queue(limit, 2, 1, 0);
    make_slots(true);
    model_thread("producer 0", produce, PRODUCER(0, items), 0);
    model_thread("producer 1", produce, PRODUCER(1, items), 0);
}
static void drawn(void) {
    drawing(2, 2);
    model_thread("consumer", consume, NULL, 0);
}
static void drawn_bound_of_1(void) {
    drawing(1, 1);
    model_thread("consumer", consume, NULL, 0);
}
static void drawn_close(void) {
    drawing(1, 2);
    model_thread("consumer", take_one_and_cancel, NULL, 0);
}
/* One item of each producer, who goes on only when both calls are under way. */
static void produce_one_and_wait(void *number) {
    push((intptr_t)number, &state.seats[(intptr_t)number]);
    await_flag(&state.seats[(intptr_t)number]);
    if (atomic_fetch_sub(&state.producers, 1) == 1)
        pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
static void drawn_for_two_consumers(void) {
    make_queue(2, 2, 2, 0);
    make_slots(true);
    state.at_once = 3;
    model_thread("producer 0", produce_one_and_wait, (void *)0, 0);
    model_thread("producer 1", produce_one_and_wait, (void *)1, 0);
    model_thread("consumer 0", consume_and_call, (void *)0, 0);
    model_thread("consumer 1", consume_and_call, (void *)1, 0);
}
/* A run fails: somebody else ends the queue while its outputs are being pushed.  Whose push had
 * returned before finds that his item is taken, and everybody learns of the end. */
static void push_one(void *number) {
    pyper__seat *seat = &state.seats[(intptr_t)number];
    void *item = (void *)number;
    int rc = pyper__queue_push(&state.queue, item, 0, seat, NULL);
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED);
    if (rc == 0) state.pushed++;
}
static void push_one_and_end(void *number) {
    push_one(number);
    if (state.pushed > 0) state.at_once |= 1L << (intptr_t)number; /* pushed before the end */
    pyper__queue_set_state(&state.queue, PYPER__ENDED);
}
static void consume_to_the_end(void *number) {
    pyper__seat *seat = &state.seats[2 + (intptr_t)number];
    void *item;
    int64_t ticket;
    int rc;
    while ((rc = pyper__queue_pop(&state.queue, &item, &ticket, seat, PYPER_FOREVER, false)) > 0)
        arrive((intptr_t)item);
    MODEL_CHECK(rc == 0);
}
static void drawn_when_it_ends(void) {
    make_queue(4, 2, 2, 0);
    make_slots(true);
    model_thread("producer 0", push_one, (void *)0, 0);
    model_thread("producer 1", push_one_and_end, (void *)1, 0);
    model_thread("consumer 0", consume_to_the_end, (void *)0, 0);
    model_thread("consumer 1", consume_to_the_end, (void *)1, 0);
}
static void taken_if_pushed_before_the_end(void) {
    for (long i = 0; i < ITEMS; i++)
        if (state.at_once >> i & 1) MODEL_CHECK(state.arrived[i] == 1);
    all_arrived_or_destroyed();
}
static void ordered_branching(void) {
    in_order(0, 2, 2, 2);
}
static void ordered_bound_of_1(void) {
    in_order(1, 1, 2, 1);
}
static void ordered_bound_of_2(void) {
    in_order(2, 2, 2, 2);
}
static void ordered_close(void) {
    in_order(1, 1, 2, 1);
    model_thread("canceller", cancel, NULL, 0);
}

const scenario scenarios[] = {
    {"unbounded", unbounded, check_bound, all_arrived, 0, 0, 0},
    {"bound_of_1", bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"bound_of_2", bound_of_2, check_bound, all_arrived, 0, 0, 0},
    {"two_producers", two_producers, check_bound, all_arrived, 0, 0, 0},
    {"two_producers_bound_of_2", two_producers_bound_of_2, check_bound, all_arrived, 0, 0, 0},
    {"two_consumers", two_consumers, check_bound, all_arrived, 0, 0, 0},
    {"two_consumers_bound_of_1", two_consumers_bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"close_against_push", close_against_push, check_bound, all_arrived_or_destroyed, 0, 0, 0},
    {"close_by_a_third", close_by_a_third, check_bound, all_arrived_or_destroyed, 0, 0, 0},
    {"cancel_against_licences", cancel_against_licences, check_bound, all_arrived_or_destroyed, 0,
     0, 0},
    {"cancel_against_a_shared_licence", cancel_against_a_shared_licence, check_bound,
     all_arrived_or_destroyed, 0, 0, 0},
    {"close_against_two_producers", close_against_two_producers, check_bound,
     all_arrived_or_destroyed, 0, 0, 0},
    {"interrupted", interrupted, check_bound, all_arrived, 2, 0, 0},
    {"two_interrupted", two_interrupted, check_bound, all_arrived, 1, 0, 0},
    {"settles_before_another_wait", settles_before_another_wait, check_bound, all_arrived, 0, 0, 0},
    {"waits_for_an_answer", waits_for_an_answer, check_bound, all_arrived, 0, 0, 0},
    {"claims", claims, check_bound, all_arrived, 0, 0, 0},
    {"claims_bound_of_2", claims_bound_of_2, check_bound, all_arrived, 0, 0, 0},
    {"claims_taken_away", claims_taken_away, check_bound, all_arrived, 0, 0, 0},
    {"claims_taken_away_at_the_end", claims_taken_away_at_the_end, check_bound, all_arrived, 0, 0,
     0},
    {"claims_of_two", claims_of_two, check_bound, all_arrived, 0, 0, 0},
    {"claims_of_three", claims_of_three, check_bound, all_arrived, 0, 0, 0},
    {"claims_cancelled", claims_cancelled, check_bound, all_arrived_or_destroyed, 0, 0, 0},
    {"ordered", ordered, check_bound, all_arrived, 0, 0, 0},
    {"ordered_branching", ordered_branching, check_bound, all_arrived, 0, 0, 0},
    {"ordered_bound_of_1", ordered_bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"ordered_bound_of_2", ordered_bound_of_2, check_bound, all_arrived, 0, 0, 0},
    {"ordered_close", ordered_close, check_bound, all_arrived_or_destroyed, 0, 0, 0},
    {"ordered_one_each", ordered_one_each, check_bound, all_arrived, 0, 0, 0},
    {"ordered_one_each_window_of_1", ordered_one_each_window_of_1, check_bound, all_arrived, 0, 0,
     0},
    {"ordered_one_each_bound_of_1", ordered_one_each_bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"ordered_one_each_bound_of_2", ordered_one_each_bound_of_2, check_bound, all_arrived, 0, 0, 0},
    {"ordered_waits_for_an_answer", ordered_waits_for_an_answer, check_bound, all_arrived, 0, 0, 0},
    {"ordered_for_two_consumers", ordered_for_two_consumers, check_bound, all_arrived, 0, 0, 0},
    {"drawn", drawn, check_bound, all_arrived, 0, 0, 0},
    {"drawn_bound_of_1", drawn_bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"drawn_for_two_consumers", drawn_for_two_consumers, check_bound, all_arrived, 0, 0, 0},
    {"drawn_when_it_ends", drawn_when_it_ends, check_bound, taken_if_pushed_before_the_end, 0, 0,
     0},
    {"drawn_close", drawn_close, check_bound, all_arrived_or_destroyed, 0, 0, 0},
    {"ordered_one_each_close", ordered_one_each_close, check_bound, all_arrived_or_destroyed, 0, 0,
     0},
    {NULL, NULL, NULL, NULL, 0, 0, 0},
};
