/* claim - the part of a queue that the workers who share its consuming end have taken ahead.
 *
 * To take an item from an end that several share costs its lock.  So a worker whose calls are short
 * claims several at once, and begins one after the other without touching anything that others
 * write.  Claimed is not begun: until a call begins its item counts as waiting, in the bound and in
 * the statistics, and a worker who has nothing else to do takes it away.
 *
 * (Between processes the hands of channel.h are what claims are here.)
 *
 * Promises
 *   - Nobody gets an item later for it: a worker who finds the queue empty, or at its end, takes
 *     half of what another has claimed and not begun before he goes to sleep, or leaves.
 *   - What a worker claims is no more than his share of what waits, and as much as his calls take
 *     32 to 128 us for, by the measure of his last ones (of very short ones it takes them less).
 *     Calls that take longer are claimed one by one.
 *   - All that may be claimed together is a quarter of the bound, and of the window of an order
 *     behind.
 *   - When the queue is cancelled nothing that was claimed begins any more; the worker destroys it.
 *
 * Taking away.  The owner says that an item has begun (`at`), then looks whether it still is his
 * (`end`); who takes away moves `end` first, lets all threads pass a fence, and then looks at `at`.
 * One of the two sees the other: so either the owner learns that the item is gone and comes to the
 * lock, or the other one that it has begun, and puts `end` back.  Where there is no such fence
 * nobody claims.
 *
 * Synchronization
 *   count, most, share   set by create, never change.  (What changes with each claim lies in the
 *                 queue, beside the lock: a line of its own would go from processor to processor as
 *                 well.)
 *   Of a claim; its items have numbers, from 0 on for as long as its owner lives:
 *   at        atomic; written by the owner: where he begins next (or, for a moment, one further).
 *   end       atomic; written under pop_lock: what was claimed ends here.
 *   begun     atomic, relaxed: written by the owner; only grows.  Read by whoever adds up what was
 *             popped (statistics, pyper__edge_is_complete()) and, under pop_lock, by who counts
 *             what can be given back.
 *   items, ticket   written by the owner under pop_lock; read by him, and by others under pop_lock.
 *   noted     how many of `begun` are in the queue's `counted`; pop_lock.
 *   pace, head, claimed, seldom, since_ns  the owner's.
 * Tested by unit/test_claim.c, stress/, and in every order of its threads by
 * tests/model/model_queue.c. */
#ifndef PYPER_CLAIM_H
#define PYPER_CLAIM_H

#include "queue.h"

/* With so many the lock is a small part of what an item costs; twice as many gain nothing. */
#define PYPER__CLAIM_MAX 16

typedef struct pyper__claim {
    _Alignas(PYPER__CACHE_LINE) _Atomic int64_t at;
    _Atomic int64_t end;
    _Atomic int64_t begun;
    int64_t ticket; /* of item number 0, if it had been claimed with the others */
    int64_t noted;
    int64_t since_ns;              /* when he claimed the last time; 0: never */
    int64_t pace;                  /* how many he may claim */
    int64_t head;                  /* of the queue, when he claimed */
    int64_t claimed;               /* how many he claimed the last time */
    bool seldom;                   /* a call takes longer than cache lines to come */
    void *items[PYPER__CLAIM_MAX]; /* item n is at n % PYPER__CLAIM_MAX */
} pyper__claim;

struct pyper__claims {
    int64_t count; /* of the workers */
    int64_t most;  /* that one of them may claim */
    int share;     /* of what waits, his is one of 2^share */
    pyper__claim claim[];
};

/* Let the `workers` who share the queue's consuming end claim.  `window`: of the order of their
 * outputs, 0 without one.  Nothing happens where claiming would be of no use.  Before anybody uses
 * the queue.  0 or PYPER_ENOMEM. */
int pyper__claims_create(pyper__queue *queue, int64_t workers, int64_t window);
void pyper__claims_free(struct pyper__claims *claims); /* NULL is accepted */

/* How many calls have begun. */
int64_t pyper__claims_begun(const struct pyper__claims *claims);

/* The quick way to the next item: true if it was claimed already; false: call pyper__claim_pop().
 * The owner only; makes no call. */
static inline bool pyper__claim_take(pyper__queue *queue, pyper__claim *claim, void **ret_item,
                                     int64_t *ret_ticket) {
    int64_t at = atomic_load_explicit(&claim->at, memory_order_relaxed);
    if (at >= atomic_load_explicit(&claim->end, memory_order_relaxed)) return false;
    if (pyper__unlikely(pyper__queue_state(queue) == PYPER__CANCELLED)) return false;
    atomic_store_explicit(&claim->at, at + 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    if (pyper__unlikely(at >= atomic_load_explicit(&claim->end, memory_order_relaxed))) {
        atomic_store_explicit(&claim->at, at, memory_order_relaxed);
        return false;
    }
    *ret_item = claim->items[at % PYPER__CLAIM_MAX];
    *ret_ticket = claim->ticket + at;
    atomic_store_explicit(&claim->begun, at + 1, memory_order_relaxed);
    return true;
}

/* The next item, claiming; waits for one.  As pyper__queue_pop(). */
int pyper__claim_pop(pyper__queue *queue, pyper__claim *claim, void **ret_item, int64_t *ret_ticket,
                     pyper__seat *seat);

/* The owner leaves, and his stage was told to stop if anything is left: destroy it. */
void pyper__claim_drop(pyper__queue *queue, pyper__claim *claim, pyper__seat *seat);

/* Under pop_lock: count what all have begun; returns how many that are. */
int64_t pyper__claims_count_locked(pyper__queue *queue);

#endif
