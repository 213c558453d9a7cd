/* ring - the items of a queue with a bound, each in the place that its ticket says.
 *
 * Where several workers emit into a queue, whatever they write in common goes from processor to
 * processor with each item: the lock of the end, its counter.  With a bound there is a fixed number
 * of places, and a ticket says which one is its own: that of ticket t is place t % size.  A worker
 * writes its output there and then that it is done; the consuming end takes one after the other (a
 * few at a time, to a chunk of its own, from which they are popped), and waits where one is not
 * done.
 *
 * Tickets come from one of two places.
 *   - Ordered, one output for each input: the ticket is that of the input.  So outputs leave in the
 *     order of the inputs, and workers who have claimed their inputs together touch nothing in
 *     common at all.
 *   - Drawn: whoever emits draws the next one, exchanging the queue's tail for one more.  So they
 *     leave in the order in which they were emitted.
 *
 * Promises (besides those of queue.h)
 *   - The bound is exact: what is there, or has drawn, is before given_back + limit.  A ticket is
 *     drawn only if its place is free, and between that and being done nobody waits for anything.
 *   - An item is visible to the consumer when its push has returned, and those with earlier tickets
 *     have.
 *   - Who waits for a place resumes at the latest when half of them are free, or when the consumer
 *     is about to wait.
 *   - An item that was being pushed when the queue ended is still to come, and the stream ends
 *     behind it (pyper__queue_state_of_items()).
 *
 * Synchronization
 *   size, drawn   set by create, never change.
 *   done   of a place: atomic; t + 1 once the item of ticket t is there.  Written with release
 *          behind the item (pairs with every read of it by the consuming end).  Never goes back
 *          while workers run.
 *   A place belongs to who has ticket t from when given_back + limit has passed t until he has
 *          written that he is done, then to the consuming end.
 *   tail   (of the queue) drawn: the next ticket.  Else unused.
 *   upto   atomic: earlier tickets have their places.  Any value that given_back + limit has ever
 *          had is right.
 *   told   atomic: who waits with an earlier ticket knows that its place is free.  Any value as
 *          well.
 *   blocked   atomic: how many wait for the place of their ticket.  Who goes to sleep counts
 *          himself in before he looks at given_back; who gives back reads it after that.
 *   drain_*   used when no worker runs any more.
 * Wake-ups
 *   Consumers sleep on `items`, as ever, and are told without a fence where the sleeper makes up
 *   for it (light notifiers, park.h).  The last one to fill a gap has to wake them for all behind
 *   it as well; so who finds them asleep passes a fence between saying that he is done and looking
 *   whether the others are.  Of any two the second to pass it sees both.
 *   Drawn: producers sleep on the queue's `places`.  Else on one of a few events, by their tickets.
 * Tested by unit/test_order.c, unit/test_queue.c, api/test_throttle.c, stress/, and in every order
 * of its threads by tests/model/model_queue.c. */
#ifndef PYPER_RING_H
#define PYPER_RING_H

#include "queue.h"

/* Those who wait for a place have tickets close to each other, so a few events will do. */
#define PYPER__RING_EVENTS 64

typedef struct pyper__place {
    _Alignas(16) void *item;
    _Atomic int64_t done;
} pyper__place;

typedef struct pyper__ring {
    int64_t size; /* a power of two, no less than the bound */
    bool drawn;
    int64_t drain_at, drain_end; /* the tickets that pyper__ring_take_any() has still to look at */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t upto;
    _Atomic int64_t told;
    _Atomic int64_t blocked;
    pyper__event free[PYPER__RING_EVENTS]; /* where the worker with ticket t waits: t % 64 */
    pyper__place place[];
} pyper__ring;

/* Its items lie in a ring from now on; an order is done without (`drawn` is false then: the ticket
 * of a push is that of its input, and each has exactly one).  Only with a bound, and before anybody
 * uses the queue.  0 or PYPER_ENOMEM. */
int pyper__ring_create(pyper__queue *queue, bool drawn);
void pyper__ring_free(pyper__ring *ring); /* NULL is accepted */

static inline pyper__place *pyper__ring_place(pyper__ring *ring, int64_t ticket) {
    return &ring->place[ticket & (ring->size - 1)];
}

/* Is the item of this ticket there, or has it even been taken? */
static inline bool pyper__ring_has(pyper__ring *ring, int64_t ticket) {
    return atomic_load(&pyper__ring_place(ring, ticket)->done) > ticket;
}

/* It is there. */
static inline void *pyper__ring_item(pyper__ring *ring, int64_t ticket) {
    return pyper__ring_place(ring, ticket)->item;
}

/* 0, PYPER_ECANCELED, or PYPER__AGAIN: there is no place.  `ticket` is of no account if it is
 * drawn.  Wakes consumers. */
int pyper__ring_try_push(pyper__queue *queue, void *item, int64_t ticket);

/* Not drawn: wait for the place of this ticket, or for the end. */
void pyper__ring_await_place(pyper__queue *queue, int64_t ticket, pyper__seat *seat);

/* Not drawn: places have been given back; if there are `from` of which nobody was told, tell who
 * waits. */
void pyper__ring_tell_of_places(pyper__queue *queue, int64_t from);
void pyper__ring_notify_all(pyper__ring *ring);

/* Has the next ticket been drawn whose item is not there?  (Then whoever has drawn it will find the
 * queue ended, and wakes all.  A head that has moved on since it was read says no.) */
static inline bool pyper__ring_expect_next(const pyper__queue *queue) {
    int64_t head = atomic_load(&queue->head);
    return queue->ring->drawn && atomic_load(&queue->tail) > head &&
           !pyper__ring_has(queue->ring, head);
}

/* How many items are there, or were. */
int64_t pyper__ring_pushed(const pyper__queue *queue);

/* Any item that is left, for destroying; false: none.  Nobody pushes or pops any more. */
bool pyper__ring_take_any(pyper__queue *queue, void **ret_item);

#endif
