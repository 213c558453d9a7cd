/* ring - see ring.h. */
#include "ring.h"

#include <assert.h>

#include "order.h"

/* So that those who wait for different tickets have different events, however narrow the bound. */
#define SIZE_MIN 64

int pyper__ring_create(pyper__queue *queue, bool drawn) {
    assert(queue->limit < INT64_MAX);
    size_t size = SIZE_MIN;
    while (size < (size_t)queue->limit) size *= 2;
    pyper__ring *ring = pyper__alloc(sizeof *ring + size * sizeof ring->place[0]);
    if (!ring) return PYPER_ENOMEM;
    ring->size = (int64_t)size;
    ring->drawn = drawn;
    atomic_init(&ring->upto, queue->limit);
    atomic_init(&ring->told, queue->limit);
    (void)pyper__event_let_notify_lightly(&queue->items, true);
    for (int i = 0; i < PYPER__RING_EVENTS; i++) pyper__event_init(&ring->free[i]);
    pyper__order_free(queue->order);
    queue->order = NULL;
    queue->passes_turn = false;
    queue->pop_end = INT64_MAX; /* its chunk is filled anew, and never drained */
    queue->ring = ring;
    return 0;
}

void pyper__ring_free(pyper__ring *ring) {
    pyper__free(ring);
}

/* ------------------------------------------------------------------------------------- pushing */

/* Earlier tickets have their places. */
static int64_t places_until(const pyper__queue *queue) {
    return atomic_load(&queue->given_back) + queue->limit;
}

static bool has_place(pyper__queue *queue, int64_t ticket) {
    pyper__ring *ring = queue->ring;
    if (pyper__likely(ticket < atomic_load_explicit(&ring->upto, memory_order_acquire)))
        return true;
    int64_t upto = places_until(queue);
    if (ticket >= upto) return false;
    atomic_store_explicit(&ring->upto, upto, memory_order_release);
    return true;
}

/* The next ticket, if it has a place; else -1. */
static int64_t draw(pyper__queue *queue) {
    pyper__fetch_to_write(&queue->tail);
    int64_t ticket = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    while (has_place(queue, ticket))
        if (atomic_compare_exchange_weak(&queue->tail, &ticket, ticket + 1)) return ticket;
    return -1;
}

/* Consumers sleep, and the ticket is done.  If all before it are, what they can take now, as far as
 * nobody else will tell them, are this one and those behind it.  If the queue has ended it may be
 * the last one that they wait for, all of them. */
static PYPER__COLD void wake_for(pyper__queue *queue, int64_t ticket) {
    pyper__ring *ring = queue->ring;
    atomic_thread_fence(memory_order_seq_cst);
    if (!pyper__event_is_awaited(&queue->items)) return;
    if (pyper__queue_state(queue) != PYPER__OPEN) {
        pyper__event_notify_all(&queue->items);
        return;
    }
    int64_t first = atomic_load(&queue->head);
    while (first < ticket && pyper__ring_has(ring, first)) first++;
    if (first < ticket) return;
    int64_t until = first, most = first + queue->limit;
    while (until < most && pyper__ring_has(ring, until)) until++;
    if (until > first) pyper__event_notify(&queue->items, (uint32_t)(until - first));
}

int pyper__ring_try_push(pyper__queue *queue, void *item, int64_t ticket) {
    pyper__ring *ring = queue->ring;
    if (pyper__queue_state(queue) != PYPER__OPEN) return PYPER_ECANCELED;
    if (ring->drawn) {
        ticket = draw(queue);
        if (ticket < 0) return PYPER__AGAIN;
    } else if (!has_place(queue, ticket)) {
        return PYPER__AGAIN;
    }
    /* It was last read on the consumer's processor; and whoever draws waits for all that he has
     * written. */
    pyper__fetch_to_write(pyper__ring_place(ring, ticket + PYPER__FETCH_AHEAD(pyper__place)));
    pyper__place *place = pyper__ring_place(ring, ticket);
    place->item = item;
    atomic_store_explicit(&place->done, ticket + 1, memory_order_release);
    if (!queue->items.light) atomic_thread_fence(memory_order_seq_cst);
    if (pyper__unlikely(pyper__event_has_waiters_light(&queue->items))) wake_for(queue, ticket);
    return 0;
}

/* -------------------------------------------------------------------------- waiting for a place */

struct wait_for {
    const pyper__queue *queue;
    int64_t ticket;
};

static bool place_or_over(const void *arg) {
    const struct wait_for *wait = arg;
    const pyper__queue *queue = wait->queue;
    return atomic_load(&queue->state) != PYPER__OPEN || wait->ticket < places_until(queue);
}

static pyper__event *event_of(pyper__ring *ring, int64_t ticket) {
    return &ring->free[ticket % PYPER__RING_EVENTS];
}

void pyper__ring_await_place(pyper__queue *queue, int64_t ticket, pyper__seat *seat) {
    pyper__ring *ring = queue->ring;
    struct wait_for wait = {queue, ticket};
    atomic_fetch_add(&ring->blocked, 1);
    pyper__await(seat, event_of(ring, ticket), place_or_over, &wait, PYPER_FOREVER, PYPER__BLOCKED,
                 false);
    atomic_fetch_sub(&ring->blocked, 1);
}

/* given_back is read before blocked, so that who is not counted there will see it. */
void pyper__ring_tell_of_places(pyper__queue *queue, int64_t from) {
    pyper__ring *ring = queue->ring;
    int64_t upto = places_until(queue);
    if (atomic_load(&ring->blocked) == 0 || upto - atomic_load(&ring->told) < from) return;
    int64_t told = atomic_exchange(&ring->told, upto);
    for (int64_t t = told; t < upto && t < told + PYPER__RING_EVENTS; t++)
        pyper__event_notify_all(event_of(ring, t));
}

void pyper__ring_notify_all(pyper__ring *ring) {
    for (int i = 0; i < PYPER__RING_EVENTS; i++) pyper__event_notify_all(&ring->free[i]);
}

/* --------------------------------------------------------------------------- counting, clearing */

/* Whether an item is there never changes from yes to no, so nor does their number go back. */
int64_t pyper__ring_pushed(const pyper__queue *queue) {
    pyper__ring *ring = queue->ring;
    int64_t head = atomic_load(&queue->head), count = head;
    for (int64_t t = head; t < head + ring->size; t++) count += pyper__ring_has(ring, t);
    return count;
}

bool pyper__ring_take_any(pyper__queue *queue, void **ret_item) {
    pyper__ring *ring = queue->ring;
    if (ring->drain_end == 0) {
        ring->drain_at = atomic_load(&queue->head);
        ring->drain_end = ring->drain_at + ring->size;
    }
    for (; ring->drain_at < ring->drain_end; ring->drain_at++) {
        pyper__place *place = pyper__ring_place(ring, ring->drain_at);
        if (atomic_load(&place->done) != ring->drain_at + 1) continue;
        atomic_store(&place->done, 0);
        *ret_item = place->item;
        return true;
    }
    return false;
}
