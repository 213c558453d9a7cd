/* queue - an edge inside a process: the output queue of one task, the input of the next.
 *
 * A list of chunks of slots, with one end for the task that produces and one for whoever consumes.
 * Each end is used by one thread at a time.  An end with a single worker is that worker's own and
 * needs no lock; an end with several has a lock that they take for one item.  The two ends meet
 * only in two counters: `tail`, how many items were published, and `given_back`, how many places of
 * the bound are free again.  (Where several workers emit and there is a bound, their items mostly
 * lie in places of their own instead of chunks: ring.h.)
 *
 * Promises
 *   - An item is visible to the consumer when push returns.
 *   - throttle is exact: pushed - popped never exceeds `limit` (a pop is the start of its item).  A
 *     push is done when it returns; until then its item is in the producer's hand.
 *   - A single producer without an order shows what it has in its hand: if there is no room, its
 *     item goes behind the others all the same, and the push waits until it is within the bound.
 *     So whoever has emptied a narrow queue finds one more, without a switch between threads.
 *   - A producer that waits for room resumes at the latest when half of the places are free, or
 *     when the consumer is about to wait.
 *   - Items leave in the order in which they were pushed; with an `order` (order.h) in the order of
 *     the tickets they were pushed with.
 *   - A single consumer takes an item without touching memory that the producer writes, as long as
 *     there are more that it has seen.
 *   - Each end has one number, `push_until` and `pop_until`, up to which nothing has to be looked
 *     after: no end of a chunk, no full queue, no places to give back, no cancel.  Up to there an
 *     item costs a dozen instructions (and where several share an end, its lock); past it the end
 *     looks after everything and sets its number anew.
 *   - 8 bytes an item that waits, and an eighth of slack at most, or a page; what is drained is
 *     given back to the system, but for twenty pages at most.
 *
 * What it does not do: it knows no tasks, no runs and no errors but its own.
 *
 * Synchronization
 *   limit, block, many_producers, many_consumers, type, order, channel, passes_turn, claims,
 *                wake_from, ring   set by init (and pyper__queue_cross(),
 *                pyper__order_expect_one_each(), pyper__claims_create(), pyper__ring_create()),
 *                never change.
 *   state        atomic; only grows: open -> ended -> cancelled.  Decides what push and pop answer.
 *   tail         atomic; written by the producing end after it has written the slot (pairs with
 *                every read of it by the consuming end): seq_cst, but with `quick_push` or an order
 *                release, and whoever sleeps on `items` makes up for it (park.h, light notifiers).
 *   kept         atomic; how many items the order keeps: written under push_lock, 0 without an
 *                order, and with one that has no lock and sees to its bound itself.
 *   given_back   atomic; written by the consuming end, read by the producing end; the license to
 *                use that many places of the bound again.
 *   head         atomic; written by the consuming end (relaxed).  Read without that end by who is
 *                about to sleep there, by producers (for the size of a new chunk; with a ring, for
 *                whom to wake), by pyper__edge_is_complete() and by statistics.  With claims what
 *                lies before it has been claimed, if not begun.
 *   drained      atomic, relaxed: how many of those that head has passed were destroyed instead.
 *   spare        atomic; a list of drained chunks of a page each, on their way back to the
 *                producing end: the consuming end puts one before the others, the producing end
 *                takes all.
 *   push_*, shared_until, room_until   the producing end's own (push_lock, if many_producers; or
 *                see order.h).
 *   pop_*, seen, give_at, counted   the consuming end's own (pop_lock, if many_consumers).
 *   push_until, pop_until   atomic: a licence that a change of state takes away.  Written by their
 *                end, which then looks at the state, and made 0 by whoever has changed that (all
 *                seq_cst): so either the end sees the change, or its licence is the one that is
 *                taken away.
 *   quick_push   set by pyper__queue_push_quickly(), before a producer starts.
 *   A slot of a chunk belongs to the producing end until tail has passed it, then to the consuming
 *   end.  A chunk belongs to the consuming end from its first published slot on, until it is among
 *   the spare.
 * Invariants
 *   given_back <= begun <= head <= tail, where all that was popped has begun, but for claims; with
 *   a limit: tail + kept - given_back <= limit, or limit + 1 while a single producer without an
 *   order waits in its push.  (With a ring what is there is told by that, and tail is what it makes
 *   of it.)
 * Wake-ups
 *   items    push wakes one consumer for each item; a change of state wakes all.
 *   places   give_back wakes one producer for each free place; a change of state wakes all.
 * Tested by unit/test_queue.c, stress/, and in every order of its threads by
 * tests/model/model_queue.c. */
#ifndef PYPER_QUEUE_H
#define PYPER_QUEUE_H

#include "park.h"

typedef struct pyper__chunk {
    struct pyper__chunk *next;
    int64_t slots;
    void *slot[];
} pyper__chunk;

/* Most chunks are a page; the more wait, the larger new ones are.  So there never are more of a
 * page than some twenty, and all of them are kept. */
#define PYPER__CHUNK_SIZE 4096
#define PYPER__CHUNK_SIZE_MAX (64 * PYPER__CHUNK_SIZE)
#define PYPER__CHUNK_SLOTS                                                                         \
    ((PYPER__CHUNK_SIZE - (int64_t)sizeof(pyper__chunk)) / (int64_t)sizeof(void *))

struct pyper__ring;
struct pyper__order;
struct pyper__channel;
struct pyper__claims;

enum { PYPER__OPEN, PYPER__ENDED, PYPER__CANCELLED };

/* A bound beyond this is none, of any edge: so there is room for the sums of counters. */
#define PYPER__LIMIT_MAX (INT64_MAX / 4)

static inline int64_t pyper__least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Answers of the functions of all edges that are not codes of pyper.h.  They are told apart also
 * where one may come from either kind of edge. */
enum { PYPER__AGAIN = -1000, PYPER__TAKEN = -1001, PYPER__BROKEN = -1002 };

typedef struct pyper__queue {
    /* Set by init. */
    int64_t limit;     /* how many items may wait; INT64_MAX without a bound */
    int64_t block;     /* how many places are given back at once */
    int64_t wake_from; /* who waits for room is woken when so many are free: half of them */
    bool many_producers, many_consumers;
    const pyper_item_type *type;
    struct pyper__order *order;     /* NULL: outputs leave as they come, or through the channel */
    struct pyper__channel *channel; /* if set, the items go through it instead; see edge.h */
    bool passes_turn;               /* who has made a call says so: see order, or the channel */
    struct pyper__claims *claims;   /* NULL: nobody claims items ahead; see claim.h */
    struct pyper__ring *ring;       /* if set, the items lie there and not in chunks; see ring.h */
    _Alignas(PYPER__CACHE_LINE) _Atomic int state;
    pyper__event items;

    /* The producing end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t tail;
    _Atomic int64_t push_until; /* items before this one go in without further ado; 0 unless
                                 * quick_push, or if many_producers: then it is shared_until */
    uintptr_t push_base; /* where the slot of item 0 would be, if push_chunk reached back to it */
    int64_t push_end;    /* the first item that is behind push_chunk */
    int64_t room_until;  /* tail may grow to this without looking at given_back again */
    _Atomic int64_t kept;
    pyper__chunk *push_chunk;
    pyper__chunk *push_spare; /* to be used before `spare` is looked at again */
    pyper__lock push_lock;
    bool quick_push;
    int64_t shared_until;

    /* The consuming end. */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t head;
    _Atomic int64_t pop_until; /* items before this one come out without further ado */
    uintptr_t pop_base;        /* as push_base */
    pyper__owned_lock pop_lock;
    int64_t seen;            /* how far it has looked: tail, or the first place that was not done */
    int64_t give_at;         /* places are given back when this many have begun */
    int64_t counted;         /* with claims: how many have begun, as far as anybody has looked */
    int64_t pop_end;         /* as push_end; with a ring there is none */
    pyper__chunk *pop_chunk; /* with a ring: what it has seen there is copied to this */
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t given_back;
    pyper__event places;
    _Atomic int64_t drained;

    /* Between the two. */
    pyper__chunk *_Atomic spare;
} pyper__queue;

/* `order_window` > 0: the producers push with tickets.  0, PYPER_ENOMEM; fini either way. */
int pyper__queue_init(pyper__queue *queue, int64_t throttle, bool many_producers,
                      bool many_consumers, int64_t order_window, const pyper_item_type *type);

/* Its one producer may use pyper__queue_push_at_once(), or its many pyper__queue_push_shared():
 * nothing, if there is no way to do that.  Not for one with an order. */
void pyper__queue_push_quickly(pyper__queue *queue);

/* Its items go through a channel, which has an order of its own: nobody takes the quick way here
 * any more.  Before anybody uses it. */
void pyper__queue_cross(pyper__queue *queue, struct pyper__channel *channel, bool passes_turn);

/* Destroy what is left and free.  Nobody uses the queue any more. */
void pyper__queue_fini(pyper__queue *queue, pyper__seat *seat);

/* Destroy what is left.  No producer uses the queue any more; consumers only get refusals. */
void pyper__queue_drain(pyper__queue *queue, pyper__seat *seat);

/* Ended: no more pushes, what is there can be popped.  Cancelled: neither.  So it is when this
 * returns, even if somebody else is about to do the same. */
void pyper__queue_set_state(pyper__queue *queue, int state);

static inline int pyper__queue_state(const pyper__queue *queue) {
    return atomic_load_explicit(&queue->state, memory_order_acquire);
}

/* How many items have been pushed (what is in a producer's hand has not); popped (what was claimed
 * and has not begun has not). */
int64_t pyper__queue_pushed(pyper__queue *queue);
int64_t pyper__queue_popped(const pyper__queue *queue);
int64_t pyper__queue_started(const pyper__queue *queue); /* popped, but not to be destroyed */

/* How many items can be popped at this moment (with a ring: at least, but 0 only if there is none),
 * and pushed (INT64_MAX: there is no bound). */
int64_t pyper__queue_there(const pyper__queue *queue);

/* Never fewer places than there are at the last of the three reads: an item goes from `kept` to
 * `tail`, and its place is given back after that, so read in this order none is counted twice.  One
 * may be missed on its way, and there seem to be more: a hint.  Under push_lock, where tail and
 * kept stand still, it is exact, and only grows. */
static inline int64_t pyper__queue_room(const pyper__queue *queue) {
    if (queue->limit == INT64_MAX) return INT64_MAX;
    int64_t tail = atomic_load(&queue->tail);
    int64_t kept = atomic_load(&queue->kept);
    return queue->limit - (tail + kept - atomic_load(&queue->given_back));
}

/* Append an item; waits for room.  (The quick way is pyper__queue_push_at_once().)
 *
 * Returns 0, PYPER_ECANCELED (the queue is not open) or PYPER_ENOMEM; or PYPER__TAKEN: it has
 * ceased to be open while the item, which is in it already, was waiting to be within the bound;
 * what becomes of it is the queue's affair.  Takes the item when it returns 0 or PYPER__TAKEN, not
 * otherwise.  `ticket` is for queues with an order.  `input` is the queue that this producer
 * consumes (or NULL): before waiting, its free places are given back. */
int pyper__queue_push(pyper__queue *queue, void *item, int64_t ticket, pyper__seat *seat,
                      pyper__queue *input);

/* Take the first item; waits for one.  (The quick way is pyper__queue_try_pop().)
 *
 * Returns 1 and sets *ret_item and *ret_ticket (its place in the stream: 0, 1, 2, ...); 0 at the
 * end; PYPER_ECANCELED; PYPER_ETIMEDOUT; PYPER_EINTR if `interruptible`. */
int pyper__queue_pop(pyper__queue *queue, void **ret_item, int64_t *ret_ticket, pyper__seat *seat,
                     int64_t deadline_ns, bool interruptible);

/* The consumer is about to wait, for whatever: give all free places back. */
void pyper__queue_settle(pyper__queue *queue);

/* For consumers: PYPER__OPEN as well while it has ended, and an item that was being pushed then is
 * not there yet: there will be one more. */
int pyper__queue_state_of_items(const pyper__queue *queue);

/* For claims: up to `slack` may have begun that nobody has counted yet. */
void pyper__queue_expect_slack(pyper__queue *queue, int64_t slack);

/* So many have begun: give their places back.  The consuming end only. */
PYPER__COLD void pyper__queue_give_back(pyper__queue *queue, int64_t begun);

/* For claims: is there an item, or will there be none? */
bool pyper__queue_items_or_over(const void *queue);

/* For claims: destroy an item that was popped, and count it among the drained. */
void pyper__queue_destroy_item(pyper__queue *queue, void *item, pyper__seat *seat);

PYPER__COLD int pyper__queue_add_chunk(pyper__queue *queue);
PYPER__COLD int pyper__queue_pop_with_care(pyper__queue *queue, void **ret_item);

static inline void **pyper__queue_slot(uintptr_t base, int64_t number) {
    return (void **)(base + (uintptr_t)number * sizeof(void *));
}

/* Write item `number` behind the last one, unpublished.  The producing end only. */
static inline int pyper__queue_write(pyper__queue *queue, int64_t number, void *item) {
    if (pyper__unlikely(number == queue->push_end)) {
        int rc = pyper__queue_add_chunk(queue);
        if (rc < 0) return rc;
    }
    *pyper__queue_slot(queue->push_base, number) = item;
    return 0;
}

/* The quick way of a push: true if the item was taken at once; then look after the sleepers with
 * pyper__event_has_waiters_light().  False: nothing has happened, call pyper__queue_push().  Makes
 * no call, so that an emit needs no stack frame. */
static inline bool pyper__queue_push_at_once(pyper__queue *queue, void *item) {
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    if (pyper__unlikely(tail >= atomic_load_explicit(&queue->push_until, memory_order_relaxed)))
        return false;
    /* The consuming end has read that slot last, maybe on another processor. */
    pyper__fetch_to_write(pyper__queue_slot(queue->push_base, tail + PYPER__FETCH_AHEAD(void *)));
    *pyper__queue_slot(queue->push_base, tail) = item;
    atomic_store_explicit(&queue->tail, tail + 1, memory_order_release);
    return true;
}

/* The same where there are several producers.
 *
 * `*near` is the producer's own, of any value at first: where it has written last.  `seldom`: it
 * does other things for longer than two cache lines take to come.  The others will have been here
 * meanwhile, so both the lock and the next slot have to come, which they do at the same time if the
 * slot is asked for first; it is mostly in the line behind the last one, or in the same. */
static inline bool pyper__queue_push_shared(pyper__queue *queue, void *item, bool seldom,
                                            uintptr_t *near) {
    if (!queue->many_producers || !queue->quick_push) return false;
    if (seldom) {
        pyper__fetch_to_write((const void *)(*near + 2 * sizeof(void *)));
        pyper__lock_take_patiently(&queue->push_lock);
    } else {
        pyper__lock_take(&queue->push_lock);
    }
    int64_t tail = atomic_load_explicit(&queue->tail, memory_order_relaxed);
    bool taken = tail < queue->shared_until && pyper__queue_state(queue) == PYPER__OPEN;
    if (pyper__likely(taken)) {
        void **slot = pyper__queue_slot(queue->push_base, tail);
        *slot = item;
        *near = (uintptr_t)slot;
        atomic_store_explicit(&queue->tail, tail + 1, memory_order_release);
    }
    pyper__lock_give(&queue->push_lock);
    return taken;
}

/* 0, PYPER_ECANCELED, PYPER_ENOMEM or PYPER__AGAIN (no room).  The producing end only; notifies
 * nobody. */
int pyper__queue_try_push(pyper__queue *queue, void *item);

/* The quick way of a pop: true if there was an item and nothing else to do; false: nothing has
 * happened, call pyper__queue_try_pop().  The consuming end only; makes no call. */
static inline bool pyper__queue_pop_at_once(pyper__queue *queue, void **ret_item) {
    int64_t head = atomic_load_explicit(&queue->head, memory_order_relaxed);
    if (pyper__unlikely(head >= atomic_load_explicit(&queue->pop_until, memory_order_relaxed)))
        return false;
    *ret_item = *pyper__queue_slot(queue->pop_base, head);
    atomic_store_explicit(&queue->head, head + 1, memory_order_relaxed);
    return true;
}

/* The same where workers share the end (it has no owner then); false: call pyper__queue_pop(). */
static inline bool pyper__queue_pop_shared(pyper__queue *queue, void **ret_item,
                                           int64_t *ret_ticket) {
    pyper__lock_take(&queue->pop_lock.lock);
    *ret_ticket = atomic_load_explicit(&queue->head, memory_order_relaxed);
    bool taken = pyper__queue_pop_at_once(queue, ret_item) ||
                 (queue->ring && pyper__queue_pop_with_care(queue, ret_item) == 1);
    pyper__lock_give(&queue->pop_lock.lock);
    return taken;
}

/* 1, 0 (end), PYPER_ECANCELED or PYPER__AGAIN (empty).  The consuming end only. */
static inline int pyper__queue_try_pop(pyper__queue *queue, void **ret_item, int64_t *ret_ticket) {
    *ret_ticket = atomic_load_explicit(&queue->head, memory_order_relaxed);
    if (pyper__likely(pyper__queue_pop_at_once(queue, ret_item))) return 1;
    return pyper__queue_pop_with_care(queue, ret_item);
}

#endif
