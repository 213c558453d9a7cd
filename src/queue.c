/* queue - see queue.h. */
#include "queue.h"

#include "claim.h"
#include "order.h"
#include "ring.h"

/* --------------------------------------------------------------------------------- chunks */

static size_t size_of(int64_t slots) {
    return sizeof(pyper__chunk) + (size_t)slots * sizeof(void *);
}

static pyper__chunk *chunk_new(size_t size) {
    bool large = size > PYPER__CHUNK_SIZE;
    pyper__chunk *chunk = large ? pyper__map(size) : pyper__alloc_unset(size);
    if (!chunk) return NULL;
    chunk->next = NULL;
    chunk->slots = (int64_t)((size - sizeof *chunk) / sizeof(void *));
    return chunk;
}

static void chunk_free(pyper__chunk *chunk) {
    if (chunk->slots > PYPER__CHUNK_SLOTS)
        pyper__unmap(chunk, size_of(chunk->slots));
    else
        pyper__free(chunk);
}

static void chunks_free(pyper__chunk *chunk) {
    while (chunk) {
        pyper__chunk *next = chunk->next;
        chunk_free(chunk);
        chunk = next;
    }
}

/* Where the slot of item 0 would be: the slot of the first item of the chunk, moved back. */
static uintptr_t base_of(pyper__chunk *chunk, int64_t first) {
    return (uintptr_t)chunk->slot - (uintptr_t)first * sizeof(void *);
}

/* A power of two that has slots for an eighth of those that wait. */
static size_t size_wanted(const pyper__queue *queue) {
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    int64_t slots = (queue->push_end - head) / 8;
    size_t size = PYPER__CHUNK_SIZE;
    while (size * 2 <= size_of(slots) && size < PYPER__CHUNK_SIZE_MAX) size *= 2;
    return size;
}

static pyper__chunk *take_spare(pyper__queue *queue) {
    pyper__chunk *chunk = queue->push_spare;
    if (!chunk) chunk = atomic_exchange_explicit(&queue->spare, NULL, memory_order_acquire);
    if (chunk) queue->push_spare = chunk->next;
    return chunk;
}

static void give_spare(pyper__queue *queue, pyper__chunk *chunk) {
    chunk->next = atomic_load_explicit(&queue->spare, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&queue->spare, &chunk->next, chunk,
                                                  memory_order_release, memory_order_relaxed)) {
    }
}

int pyper__queue_add_chunk(pyper__queue *queue) {
    pyper__chunk *chunk = take_spare(queue);
    if (!chunk) chunk = chunk_new(size_wanted(queue));
    if (!chunk) return PYPER_ENOMEM;
    chunk->next = NULL;
    /* The consumer follows `next` only when tail says that there is a slot behind it. */
    queue->push_chunk->next = chunk;
    queue->push_chunk = chunk;
    queue->push_base = base_of(chunk, queue->push_end);
    queue->push_end += chunk->slots;
    return 0;
}

static void next_chunk(pyper__queue *queue) {
    pyper__chunk *drained = queue->pop_chunk;
    queue->pop_chunk = drained->next;
    queue->pop_base = base_of(queue->pop_chunk, queue->pop_end);
    queue->pop_end += queue->pop_chunk->slots;
    if (drained->slots == PYPER__CHUNK_SLOTS)
        give_spare(queue, drained);
    else
        chunk_free(drained);
}

/* ------------------------------------------------------------------------------ life time */

/* Half of the places would do; a quarter lets both ends run without waiting for each other.  What
 * has begun uncounted makes both less, so that who waits is woken in time. */
void pyper__queue_expect_slack(pyper__queue *queue, int64_t slack) {
    int64_t half = queue->limit / 2 - slack;
    queue->block = queue->limit == INT64_MAX || half < 4 ? 1 : half / 2;
    queue->wake_from = half / queue->block * queue->block;
    queue->give_at = queue->limit == INT64_MAX ? INT64_MAX : queue->block;
}

int pyper__queue_init(pyper__queue *queue, int64_t throttle, bool many_producers,
                      bool many_consumers, int64_t order_window, const pyper_item_type *type) {
    bool bounded = throttle > 0 && throttle < PYPER__LIMIT_MAX;
    queue->limit = bounded ? throttle : INT64_MAX;
    pyper__queue_expect_slack(queue, 0);
    queue->many_producers = many_producers;
    queue->many_consumers = many_consumers;
    queue->type = type;
    pyper__event_init(&queue->items);
    pyper__event_init(&queue->places);
    pyper__owned_lock_init(&queue->pop_lock, true);
    queue->room_until = queue->limit;
    queue->push_chunk = queue->pop_chunk = chunk_new(PYPER__CHUNK_SIZE);
    if (!queue->push_chunk) return PYPER_ENOMEM;
    queue->push_base = queue->pop_base = base_of(queue->push_chunk, 0);
    queue->push_end = queue->pop_end = PYPER__CHUNK_SLOTS;
    if (order_window > 0) {
        queue->order = pyper__order_create(queue, order_window);
        if (!queue->order) return PYPER_ENOMEM;
        queue->passes_turn = true;
    }
    return 0;
}

void pyper__queue_push_quickly(pyper__queue *queue) {
    queue->quick_push = !queue->channel && !queue->order && !queue->ring &&
                        pyper__event_let_notify_lightly(&queue->items, true);
}

void pyper__queue_cross(pyper__queue *queue, struct pyper__channel *channel, bool passes_turn) {
    queue->many_producers = queue->many_consumers = true;
    queue->channel = channel;
    queue->passes_turn = passes_turn;
    pyper__order_free(queue->order);
    queue->order = NULL;
}

/* ------------------------------------------------------------------------------ what is there */

/* With a ring nobody counts what is there, so the consuming end looks; this far at once.  Who
 * claims shares what was seen, and so looks further. */
#define LOOK_AHEAD 16
#define LOOK_AHEAD_CLAIMING 64

/* What was seen has to fit into a chunk. */
static int64_t look_ahead(const pyper__queue *queue) {
    return pyper__least(queue->claims ? LOOK_AHEAD_CLAIMING : LOOK_AHEAD, PYPER__CHUNK_SLOTS);
}

/* What can be popped, from `head` on, ends here; or further on. */
static int64_t there_until(const pyper__queue *queue, int64_t head) {
    if (!queue->ring) return atomic_load(&queue->tail);
    int64_t until = head, most = head + look_ahead(queue);
    while (until < most && pyper__ring_has(queue->ring, until)) until++;
    return until;
}

int pyper__queue_state_of_items(const pyper__queue *queue) {
    int state = atomic_load(&queue->state);
    bool more = state == PYPER__ENDED && queue->ring && pyper__ring_expect_next(queue);
    return more ? PYPER__OPEN : state;
}

/* Has the consuming end seen the first item?  If it has popped all that it had seen it looks for
 * more.  What lies in the ring is copied to its chunk, and leaves from there like any other. */
static bool has_seen_first(pyper__queue *queue, int64_t head) {
    if (head < queue->seen) return true;
    queue->seen = there_until(queue, head);
    if (queue->ring) {
        queue->pop_base = base_of(queue->pop_chunk, head);
        for (int64_t t = head; t < queue->seen; t++)
            *pyper__queue_slot(queue->pop_base, t) = pyper__ring_item(queue->ring, t);
    }
    return head < queue->seen;
}

static bool is_any_there(const pyper__queue *queue, int64_t head) {
    if (queue->ring) return pyper__ring_has(queue->ring, head);
    return head != atomic_load(&queue->tail);
}

int64_t pyper__queue_there(const pyper__queue *queue) {
    /* Popped before pushed, so that it is never negative. */
    int64_t popped = pyper__queue_popped(queue);
    if (!queue->ring) return atomic_load(&queue->tail) - popped;
    return there_until(queue, atomic_load(&queue->head)) - popped;
}

/* ------------------------------------------------------------------------------ clearing */

/* Destroy in slices, so that a host's token is not held for long. */
static void destroy(pyper__queue *queue, void *item, pyper__seat *seat) {
    if (!queue->type || !queue->type->destroy) return;
    queue->type->destroy(item);
    pyper__seat_share_token(seat);
}

void pyper__queue_destroy_item(pyper__queue *queue, void *item, pyper__seat *seat) {
    atomic_fetch_add_explicit(&queue->drained, 1, memory_order_relaxed);
    destroy(queue, item, seat);
}

/* The first item, which has been seen. */
static void *item_at(pyper__queue *queue, int64_t head) {
    if (head == queue->pop_end) next_chunk(queue);
    return *pyper__queue_slot(queue->pop_base, head);
}

/* The next item that is left, whatever the state. */
static bool take_any(pyper__queue *queue, void **ret_item) {
    bool as_owner = pyper__owned_lock_take(&queue->pop_lock);
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    bool any = has_seen_first(queue, head);
    if (any) {
        *ret_item = item_at(queue, head);
        atomic_store_explicit(&queue->head, head + 1, memory_order_relaxed);
        atomic_store_explicit(&queue->pop_until, 0, memory_order_relaxed); /* to be set anew */
    }
    pyper__owned_lock_give(&queue->pop_lock, as_owner);
    return any;
}

void pyper__queue_drain(pyper__queue *queue, pyper__seat *seat) {
    void *item;
    while (queue->pop_chunk && take_any(queue, &item)) pyper__queue_destroy_item(queue, item, seat);
    while ((queue->order && pyper__order_take_any(queue->order, &item)) ||
           (queue->ring && pyper__ring_take_any(queue, &item))) {
        /* As if it had joined the queue. */
        atomic_fetch_add(&queue->tail, 1);
        atomic_fetch_add(&queue->head, 1);
        pyper__queue_destroy_item(queue, item, seat);
    }
}

void pyper__queue_fini(pyper__queue *queue, pyper__seat *seat) {
    pyper__queue_drain(queue, seat);
    pyper__order_free(queue->order);
    pyper__ring_free(queue->ring);
    pyper__claims_free(queue->claims);
    chunks_free(queue->pop_chunk);
    chunks_free(queue->push_spare);
    chunks_free(atomic_load(&queue->spare));
}

void pyper__queue_set_state(pyper__queue *queue, int state) {
    int before = atomic_load(&queue->state);
    while (before < state && !atomic_compare_exchange_weak(&queue->state, &before, state)) {
    }
    atomic_store(&queue->push_until, 0);
    if (state == PYPER__CANCELLED) atomic_store(&queue->pop_until, 0);
    if (before >= state) return;
    pyper__event_notify_all(&queue->items);
    pyper__event_notify_all(&queue->places);
    if (queue->order) pyper__order_notify_all(queue->order);
    if (queue->ring) pyper__ring_notify_all(queue->ring);
}

int64_t pyper__queue_pushed(pyper__queue *queue) {
    if (queue->order) return pyper__order_pushed(queue->order);
    if (queue->ring) return pyper__ring_pushed(queue);
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (queue->limit == INT64_MAX) return tail;
    return pyper__least(tail, pyper__queue_started(queue) + queue->limit);
}

int64_t pyper__queue_popped(const pyper__queue *queue) {
    if (!queue->claims) return atomic_load_explicit(&queue->head, memory_order_relaxed);
    return pyper__claims_begun(queue->claims) +
           atomic_load_explicit(&queue->drained, memory_order_relaxed);
}

int64_t pyper__queue_started(const pyper__queue *queue) {
    int64_t drained = atomic_load_explicit(&queue->drained, memory_order_relaxed);
    return pyper__queue_popped(queue) - drained;
}

/* --------------------------------------------------------------------------------- places */

/* See queue.h: it shows the item for which it has no room yet. */
static bool pushes_from_hand(const pyper__queue *queue) {
    return !queue->many_producers && !queue->order;
}

/* With a bound: wake producers if half of the places are free (or, `all`, if any is).  Too few
 * woken now are woken by a later call: at the latest when the consumer is about to wait. */
static void wake_producers(pyper__queue *queue, bool all) {
    if (queue->ring && !queue->ring->drawn) {
        pyper__ring_tell_of_places(queue, all ? 1 : queue->wake_from);
        return;
    }
    int64_t free_places = pyper__queue_room(queue);
    /* A place for an item that is waiting in the queue already. */
    if (pushes_from_hand(queue)) free_places++;
    if (free_places <= 0 || (!all && free_places < queue->wake_from)) return;
    pyper__event_notify(&queue->places,
                        free_places > INT32_MAX ? INT32_MAX : (uint32_t)free_places);
    if (queue->order) pyper__order_notify_blocked(queue->order, free_places);
}

void pyper__queue_give_back(pyper__queue *queue, int64_t begun) {
    queue->give_at = begun + queue->block;
    atomic_store(&queue->given_back, begun);
    wake_producers(queue, false);
}

/* The item that takes head to give_at is popped with care. */
static void allow_pops(pyper__queue *queue, int64_t head) {
    int64_t until = pyper__least(queue->seen, queue->pop_end);
    if (!queue->claims) until = pyper__least(until, queue->give_at - 1);
    if (until <= head) return; /* as it is */
    atomic_store(&queue->pop_until, until);
    if (atomic_load(&queue->state) == PYPER__CANCELLED) atomic_store(&queue->pop_until, 0);
}

void pyper__queue_settle(pyper__queue *queue) {
    if (queue->limit == INT64_MAX) return;
    bool as_owner = queue->many_consumers && pyper__owned_lock_take(&queue->pop_lock);
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    int64_t begun = queue->claims ? pyper__claims_count_locked(queue) : head;
    queue->give_at = begun + queue->block;
    allow_pops(queue, head);
    if (atomic_load_explicit(&queue->given_back, memory_order_relaxed) != begun)
        atomic_store(&queue->given_back, begun);
    if (queue->many_consumers) pyper__owned_lock_give(&queue->pop_lock, as_owner);
    wake_producers(queue, true);
}

/* -------------------------------------------------------------------------------- pushing */

/* The producing end looks at given_back only when it seems to have no room. */
static bool has_room(pyper__queue *queue, int64_t tail) {
    if (tail < queue->room_until) return true;
    int64_t given_back = atomic_load(&queue->given_back);
    if (queue->limit < INT64_MAX) queue->room_until = given_back + queue->limit;
    return tail < queue->room_until;
}

static void allow_pushes(pyper__queue *queue) {
    int64_t until = pyper__least(queue->room_until, queue->push_end);
    if (queue->many_producers) {
        queue->shared_until = until;
        return;
    }
    atomic_store(&queue->push_until, until);
    if (atomic_load(&queue->state) != PYPER__OPEN) atomic_store(&queue->push_until, 0);
}

int pyper__queue_try_push(pyper__queue *queue, void *item) {
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (!has_room(queue, tail)) return PYPER__AGAIN;
    int rc = pyper__queue_write(queue, tail, item);
    if (rc < 0) return rc;
    atomic_store(&queue->tail, tail + 1);
    if (queue->quick_push) allow_pushes(queue);
    return 0;
}

static bool room_or_over(const void *arg) {
    const pyper__queue *queue = arg;
    return atomic_load(&queue->state) != PYPER__OPEN || pyper__queue_room(queue) > 0;
}

/* Without an order: as pyper__queue_try_push(), by any producer. */
static int push_unordered(pyper__queue *queue, void *item) {
    if (queue->many_producers) pyper__lock_take(&queue->push_lock);
    int rc = pyper__queue_try_push(queue, item);
    if (queue->many_producers) pyper__lock_give(&queue->push_lock);
    if (rc == 0) pyper__event_notify(&queue->items, 1);
    return rc;
}

static bool within_bound_or_over(const void *arg) {
    const pyper__queue *queue = arg;
    return atomic_load(&queue->state) != PYPER__OPEN || pyper__queue_room(queue) >= 0;
}

/* The single producer, when there is no room. */
static int push_from_hand(pyper__queue *queue, void *item, pyper__seat *seat) {
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    int rc = pyper__queue_write(queue, tail, item);
    if (rc < 0) return rc;
    atomic_store(&queue->tail, tail + 1);
    pyper__event_notify(&queue->items, 1);
    pyper__await(seat, &queue->places, within_bound_or_over, queue, PYPER_FOREVER, PYPER__BLOCKED,
                 false);
    return pyper__queue_state(queue) == PYPER__OPEN ? 0 : PYPER__TAKEN;
}

int pyper__queue_push(pyper__queue *queue, void *item, int64_t ticket, pyper__seat *seat,
                      pyper__queue *input) {
    for (;;) {
        struct pyper__turn wait_for;
        wait_for.event = NULL; /* wait for room */
        int rc = queue->order  ? pyper__order_try_push(queue->order, item, ticket, &wait_for)
                 : queue->ring ? pyper__ring_try_push(queue, item, ticket)
                               : push_unordered(queue, item);
        if (rc != PYPER__AGAIN) return rc;
        if (input) pyper__queue_settle(input);
        if (queue->ring && !queue->ring->drawn) {
            pyper__ring_await_place(queue, ticket, seat);
            continue;
        }
        if (pushes_from_hand(queue)) return push_from_hand(queue, item, seat);
        if (wait_for.event) {
            pyper__order_await(&wait_for, seat);
        } else {
            pyper__await(seat, &queue->places, room_or_over, queue, PYPER_FOREVER, PYPER__BLOCKED,
                         false);
        }
    }
}

/* -------------------------------------------------------------------------------- popping */

int pyper__queue_pop_with_care(pyper__queue *queue, void **ret_item) {
    int state = pyper__queue_state_of_items(queue);
    if (state == PYPER__CANCELLED) return PYPER_ECANCELED;
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    /* state was read before: if it said ended, nothing comes after this. */
    if (!has_seen_first(queue, head)) return state == PYPER__ENDED ? 0 : PYPER__AGAIN;
    *ret_item = item_at(queue, head);
    atomic_store_explicit(&queue->head, ++head, memory_order_relaxed);
    if (!queue->claims && head == queue->give_at) pyper__queue_give_back(queue, head);
    allow_pops(queue, head);
    return 1;
}

bool pyper__queue_items_or_over(const void *arg) {
    const pyper__queue *queue = arg;
    return pyper__queue_state_of_items(queue) != PYPER__OPEN ||
           is_any_there(queue, atomic_load(&queue->head));
}

int pyper__queue_pop(pyper__queue *queue, void **ret_item, int64_t *ret_ticket, pyper__seat *seat,
                     int64_t deadline_ns, bool interruptible) {
    for (;;) {
        bool as_owner = queue->many_consumers && pyper__owned_lock_take(&queue->pop_lock);
        int rc = pyper__queue_try_pop(queue, ret_item, ret_ticket);
        if (queue->many_consumers) pyper__owned_lock_give(&queue->pop_lock, as_owner);
        if (rc != PYPER__AGAIN) return rc;
        pyper__queue_settle(queue);
        rc = pyper__await(seat, &queue->items, pyper__queue_items_or_over, queue, deadline_ns,
                          PYPER__STARVED, interruptible);
        if (rc < 0) return rc;
    }
}
