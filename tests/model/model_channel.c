/* The channel between processes: what holds for a queue (model_queue.c), and that a process may
 * die at any moment, between any two writes: what it has pushed arrives once, what it was
 * pushing arrives whole or not at all, nobody waits for its locks, and who ends the run then
 * reaches everybody. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <string.h>

#include "explorer.h"
/* With what they keep to themselves: for a heap without a file, and to see the channel's fields. */
#include "channel.c"
#include "shm.c"

enum { ITEMS = 8, MEMORY = 6 << 10 };

static struct {
    _Alignas(64) char memory[MEMORY];
    pyper__shm shm;
    _Atomic long producers; /* that have not finished */
    pyper__channel_shape shape;
    bool large; /* every other item is too large for its record */
    /* Private: what the scenario knows of itself, and what each process has for itself. */
    pyper__channel doors[4]; /* shared by the threads of a process */
    struct {
        long pushed[2], popped; /* calls that have returned */
        long arrived[ITEMS];
        long last[2];
        int threads[4];
        pyper__seat seats[4];
    } own;
} state;

void *const model_state = &state;
const size_t model_state_size = sizeof state;
const bool model_whole_runs = false;

static void name(const void *field, size_t size, const char *what) {
    model_name(field, size, what);
}
#define NAME(field) name(&(field), sizeof(field), #field)

/* `throttle`, producers, consumers, apart, one at a time, order's window. */
static void make_channel(pyper__channel_shape shape) {
    state.shape = shape;
    state.producers = shape.producers;
    state.own.last[0] = state.own.last[1] = -1;
    state.shm.base = state.memory;
    state.shm.size = state.shm.space = MEMORY;
    struct heap *heap = (struct heap *)(void *)state.memory;
    uint64_t size = pyper__shm_align(pyper__channel_size(&shape));
    heap->top = PYPER__SHM_FIRST + size;
    heap->made = MEMORY;
    MODEL_CHECK(pyper__channel_init(&state.doors[0], &state.shm, PYPER__SHM_FIRST, &shape) == 0);
    for (int i = 0; i < 4; i++) {
        pyper__channel_attach(&state.doors[i], &state.shm, PYPER__SHM_FIRST, NULL, i & 1);
        pyper__seat_init(&state.own.seats[i], NULL, NULL);
    }
    struct pyper__channel_shared *channel = state.doors[0].shared;
    for (int64_t i = 0; i < channel->lanes; i++) {
        struct pyper__lane *lane = &channel->lane[i];
        model_own(&lane->tail, sizeof lane->tail);
        model_own(&lane->head, sizeof lane->head);
        model_own(&lane->steps, sizeof lane->steps);
        NAME(lane->tail);
        NAME(lane->head);
        NAME(lane->steps);
        NAME(lane->stands);
        name(lane, sizeof *lane, "lane");
    }
    for (int64_t i = 0; i < channel->hands; i++) {
        struct hand *hand = hand_of(&state.doors[0], i);
        NAME(hand->state);
        name(hand, sizeof *hand, "hand");
    }
    model_own(&channel->popped, sizeof channel->popped);
    model_private(&state.own, sizeof state.own);
    model_private(&channel->items.yields, sizeof(uint32_t));
    model_private(&channel->places.yields, sizeof(uint32_t));
    name(&channel->items, 8, "channel->items");
    name(&channel->places, 8, "channel->places");
    NAME(channel->state);
    NAME(channel->push_lock);
    NAME(channel->pop_lock);
    /* Its model's mutex is one to wait for (see run.py): nobody sleeps there. */
    model_private(&channel->push_lock.freed, sizeof channel->push_lock.freed);
    model_private(&channel->pop_lock.freed, sizeof channel->pop_lock.freed);
    model_private(&heap->lock.freed, sizeof heap->lock.freed);
    NAME(channel->given_back);
    NAME(channel->popped);
    NAME(heap->lock);
    NAME(state.producers);
    name(state.memory, PYPER__SHM_FIRST, "heap");
    name(channel, size, "channel");
    name(state.memory + heap->top - size, MEMORY, "chunks");
}
#define CHANNEL(...) make_channel((pyper__channel_shape){__VA_ARGS__})

/* -------------------------------------------------------------------------------- who does what */

#define OF_PRODUCER ((void *)1)
#define OF_CONSUMER ((void *)0)

/* Producers have the doors and seats 0 and 1, consumers 2 and 3. */
static void set_state(int number, int to) {
    pyper__channel_set_state(&state.doors[number], to);
}

/* The first bytes of an item say what it is, and the last ones as well. */
static bool push(long item, long ticket, long producer) {
    pyper__channel *channel = &state.doors[producer];
    pyper__record record;
    uint64_t size = state.large && item % 2 ? PYPER__RECORD_BYTES + 8 : 8;
    MODEL_CHECK(pyper__record_reserve(channel, producer, &record, size) == 0);
    memcpy(record.data, &item, sizeof item);
    memcpy(record.data + size - sizeof item, &item, sizeof item);
    int rc;
    pyper__channel_wait wait;
    while ((rc = pyper__channel_try_push(channel, producer, &record, ticket, &wait)) ==
           PYPER__AGAIN)
        pyper__channel_await(&wait, &state.own.seats[producer]);
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED);
    if (rc == 0) state.own.pushed[producer]++;
    if (rc < 0) pyper__record_drop(channel, &record);
    return rc == 0;
}

/* Producer p's items are p * 4, p * 4 + 1, ...; the last producer to finish ends the channel. */
static void produce(void *which) {
    int number = (int)((intptr_t)which >> 8), count = (int)((intptr_t)which & 255);
    for (int i = 0; i < count; i++)
        if (!push(number * 4 + i, 0, number)) return;
    if (atomic_fetch_sub(&state.producers, 1) == 1) set_state(number, PYPER__ENDED);
}
#define PRODUCER(number, count) (void *)((intptr_t)(number) << 8 | (count))

static int pop_by(int door, int number) {
    pyper__channel *channel = &state.doors[door];
    pyper__record record;
    int64_t ticket;
    int rc = pyper__channel_pop(channel, &record, &ticket, &state.own.seats[number], PYPER_FOREVER,
                                false);
    if (rc != 1) return rc;
    long item, again;
    memcpy(&item, record.data, sizeof item);
    memcpy(&again, record.data + record.size - sizeof again, sizeof again);
    MODEL_CHECK(item == again && item >= 0 && item < ITEMS);
    MODEL_CHECK(record.size == (state.large && item % 2 ? PYPER__RECORD_BYTES + 8 : 8));
    MODEL_CHECK(state.own.arrived[item]++ == 0);
    state.own.popped++;
    if (state.shape.consumers == 1) {
        long *last = &state.own.last[item / 4];
        MODEL_CHECK(item % 4 == *last + 1);
        *last = item % 4;
    }
    pyper__channel_release(channel, &record);
    return 1;
}

static int pop(int number) {
    return pop_by(number, number);
}

static void consume(void *number) {
    int rc;
    while ((rc = pop(2 + (int)(intptr_t)number)) > 0) continue;
    MODEL_CHECK(rc == 0 || rc == PYPER_ECANCELED);
}

static void take_one_and_cancel(void *unused) {
    MODEL_CHECK(pop(2) == 1);
    set_state(2, PYPER__CANCELLED);
}

/* What the supervisor of a run does when it sees a worker end: nothing if all was well, else it
 * ends what the dead one produced for, and cancels what it consumed from. */
static void supervise(void *number) {
    int mortal = state.own.threads[0];
    model_await_end_of(mortal);
    if (model_has_died(mortal))
        set_state(3, number == OF_PRODUCER ? PYPER__ENDED : PYPER__CANCELLED);
}

/* ----------------------------------------------------------------------------------------- ends */

static void check_bound(void) {
    const pyper__channel *door = &state.doors[0];
    int64_t pushed = pyper__channel_pushed(door), popped = pyper__channel_popped(door);
    if (model_has_died(state.own.threads[0])) return; /* maybe between two of the counters */
    MODEL_CHECK(popped <= pushed && door->shared->given_back <= popped);
    MODEL_CHECK(pushed - popped <= door->shared->limit);
}

static long arrived_of(long producer) {
    long count = 0;
    for (long i = producer * 4; i < producer * 4 + 4; i++) count += state.own.arrived[i];
    return count;
}

static void all_arrived(void) {
    for (long p = 0; p < 2; p++) MODEL_CHECK(arrived_of(p) == state.own.pushed[p]);
}

static void once_at_most(void) {
    for (long p = 0; p < 2; p++) MODEL_CHECK(arrived_of(p) <= state.own.pushed[p] + 1);
}

/* A producer may have died in a push: then that item may have arrived, too. */
static void all_arrived_but_one(void) {
    for (long p = 0; p < 2; p++) {
        long rest = arrived_of(p) - state.own.pushed[p];
        MODEL_CHECK(rest == 0 || (rest == 1 && p == 0 && model_has_died(state.own.threads[0])));
    }
}

/* ------------------------------------------------------------------------------------ scenarios */

static void one_to_one(int64_t limit, long items) {
    CHANNEL(limit, 1, 1);
    model_thread("producer", produce, PRODUCER(0, items), 0);
    model_thread("consumer", consume, NULL, 0);
}
static void unbounded(void) {
    one_to_one(0, 3);
}
static void bound_of_1(void) {
    one_to_one(1, 2);
}
static void large_items(void) {
    one_to_one(0, 2);
    state.large = true;
}

static void two_producers(void) {
    CHANNEL(1, 2, 1);
    model_thread("producer 0", produce, PRODUCER(0, 1), 0);
    model_thread("producer 1", produce, PRODUCER(1, 1), 0);
    model_thread("consumer", consume, NULL, 0);
}

/* All is there before anybody starts, so that there is something to share. */
static void fill_and_end(long items) {
    for (long i = 0; i < items; i++) MODEL_CHECK(push(i, 0, 0));
    set_state(0, PYPER__ENDED);
}

/* Processes, each with a hand; and threads of one, who share its door. */
static void two_consumers(void) {
    CHANNEL(0, 1, 2, true);
    model_thread("producer", produce, PRODUCER(0, 1), 0);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("consumer 1", consume, (void *)1, 0);
}
static void two_consumers_bound_of_1(void) {
    CHANNEL(1, 1, 2, true);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("consumer 1", consume, (void *)1, 0);
}
static void consume_together(void *number) {
    int rc;
    while ((rc = pop_by(2, 2 + (int)(intptr_t)number)) > 0) continue;
    MODEL_CHECK(rc == 0);
}
static void two_together(void) {
    CHANNEL(0, 1, 2);
    fill_and_end(3);
    model_thread("consumer 0", consume_together, (void *)0, 0);
    model_thread("consumer 1", consume_together, (void *)1, 0);
}

/* One of them is elsewhere. */
static void one_hand(void) {
    CHANNEL(1, 1, 2, true);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("consumer", consume, (void *)0, 0);
}

static void stealing(void) {
    CHANNEL(0, 1, 2, true);
    fill_and_end(4);
    model_thread("consumer 0", consume, (void *)0, 0);
    model_thread("consumer 1", consume, (void *)1, 0);
}

static void close_against_push(void) {
    CHANNEL(1, 1, 1);
    model_thread("producer", produce, PRODUCER(0, 4), 0);
    model_thread("consumer", take_one_and_cancel, NULL, 0);
}

static void producer_dies(void) {
    CHANNEL(0, 1, 1);
    state.large = true;
    state.own.threads[0] = model_thread("producer", produce, PRODUCER(0, 3), MODEL_MORTAL);
    model_thread("consumer", consume, NULL, 0);
    model_thread("supervisor", supervise, OF_PRODUCER, 0);
}

/* The other producer goes on; then he is the supervisor. */
static void produce_and_supervise(void *unused) {
    for (long i = 0; i < 2; i++) MODEL_CHECK(push(4 + i, 0, 1));
    model_await_end_of(state.own.threads[0]);
    set_state(1, PYPER__ENDED);
}
static void produce_mortally(void *unused) {
    push(0, 0, 0);
    push(1, 0, 0);
}
static void one_of_two_producers_dies(void) {
    CHANNEL(0, 2, 1);
    state.own.threads[0] = model_thread("mortal", produce_mortally, NULL, MODEL_MORTAL);
    model_thread("producer", produce_and_supervise, NULL, 0);
    model_thread("consumer", consume, NULL, 0);
}

static void consumer_dies(void) {
    CHANNEL(1, 1, 1);
    state.own.threads[0] = model_thread("consumer", consume, (void *)0, MODEL_MORTAL);
    model_thread("producer", produce, PRODUCER(0, 2), 0);
    model_thread("supervisor", supervise, OF_CONSUMER, 0);
}

static void produce_and_supervise_consumer(void *unused) {
    for (long i = 0; i < 2; i++) MODEL_CHECK(push(i, 0, 0));
    model_await_end_of(state.own.threads[0]);
    set_state(0, model_has_died(state.own.threads[0]) ? PYPER__CANCELLED : PYPER__ENDED);
}
static void take_one(void *unused) {
    pop(2);
}
/* The other one takes what the dead one had in its hand and had not started; at most that, or what
 * was on the way into its hand, is lost. */
static void one_dies_stealing(void) {
    CHANNEL(0, 1, 2, true);
    fill_and_end(4);
    state.own.threads[0] = model_thread("mortal", consume, (void *)0, MODEL_MORTAL);
    model_thread("consumer", consume, (void *)1, 0);
}
static void one_of_two_consumers_dies(void) {
    CHANNEL(0, 1, 2, true);
    state.own.threads[0] = model_thread("mortal", take_one, NULL, MODEL_MORTAL);
    model_thread("consumer", take_one, NULL, 0);
    model_thread("producer", produce_and_supervise_consumer, NULL, 0);
}

/* Each worker has one ticket; the first may die with the order half changed: then nobody changes
 * it any more, and the supervisor cancels, and must reach the other one, wherever he waits. */
static void order_is_whole(void) {
    MODEL_CHECK(model_mutex_deaths(&state.doors[0].shared->push_lock.mutex) == 0);
}
static void work_in_order(void *ticket) {
    int t = (int)(intptr_t)ticket;
    if (!push(t * 4, t, t)) return;
    order_is_whole();
    int rc;
    pyper__channel_wait wait;
    while ((rc = pyper__channel_try_done(&state.doors[t], t, &wait)) == PYPER__AGAIN)
        pyper__channel_await(&wait, &state.own.seats[t]);
    if (rc < 0) return;
    order_is_whole();
    if (atomic_fetch_sub(&state.producers, 1) == 1) set_state(t, PYPER__ENDED);
}
static void ordered(void) {
    CHANNEL(0, 2, 1, .order_window = 2);
    model_thread("worker 0", work_in_order, (void *)0, 0);
    model_thread("worker 1", work_in_order, (void *)1, 0);
    model_thread("consumer", consume, (void *)0, 0);
}
static void one_of_an_order_dies(void) {
    CHANNEL(0, 2, 1, .order_window = 1);
    state.own.threads[0] = model_thread("mortal", work_in_order, (void *)0, MODEL_MORTAL);
    model_thread("worker", work_in_order, (void *)1, 0);
    model_thread("supervisor", supervise, OF_CONSUMER, 0);
}
/* And this one out of turn. */
static void the_later_one_of_an_order_dies(void) {
    CHANNEL(0, 2, 1, .order_window = 2);
    state.own.threads[0] = model_thread("mortal", work_in_order, (void *)1, MODEL_MORTAL);
    model_thread("worker", work_in_order, (void *)0, 0);
    model_thread("supervisor", supervise, OF_CONSUMER, 0);
}

const scenario scenarios[] = {
    {"unbounded", unbounded, check_bound, all_arrived, 0, 0, 0},
    {"bound_of_1", bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"large_items", large_items, check_bound, all_arrived, 0, 0, 0},
    {"two_producers", two_producers, check_bound, all_arrived, 0, 0, 0},
    {"two_consumers", two_consumers, check_bound, all_arrived, 0, 0, 0},
    {"two_consumers_bound_of_1", two_consumers_bound_of_1, check_bound, all_arrived, 0, 0, 0},
    {"two_together", two_together, check_bound, all_arrived, 0, 0, 0},
    {"one_hand", one_hand, check_bound, all_arrived, 0, 0, 0},
    {"stealing", stealing, check_bound, all_arrived, 0, 0, 0},
    {"one_dies_stealing", one_dies_stealing, NULL, once_at_most, 0, 1, 0},
    {"close_against_push", close_against_push, check_bound, once_at_most, 0, 0, 0},
    {"producer_dies", producer_dies, check_bound, all_arrived_but_one, 0, 1, 0},
    {"one_of_two_producers_dies", one_of_two_producers_dies, check_bound, all_arrived_but_one, 0, 1,
     0},
    {"consumer_dies", consumer_dies, check_bound, once_at_most, 0, 1, 0},
    {"one_of_two_consumers_dies", one_of_two_consumers_dies, check_bound, once_at_most, 0, 1, 0},
    {"ordered", ordered, check_bound, all_arrived, 0, 0, 0},
    {"one_of_an_order_dies", one_of_an_order_dies, check_bound, once_at_most, 0, 1, 0},
    {"the_later_one_of_an_order_dies", the_later_one_of_an_order_dies, check_bound, once_at_most, 0,
     1, 0},
    {NULL, NULL, NULL, NULL, 0, 0, 0},
};
