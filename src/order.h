/* order - outputs leave in the order of the inputs, although several workers make them.
 *
 * Each input gets a ticket in the step in which it is claimed (its place in the input queue), and
 * its outputs are pushed with it.  One ticket has the *turn*: its outputs go straight into the
 * queue.  Outputs of later tickets are kept here; when a call is done the turn moves on, and what
 * the next ticket has kept joins the queue at once.  So an output leaves as soon as all earlier
 * ones have.
 *
 * There are two ways to do that.  If a call may have any number of outputs, what it has kept may
 * have to leave before it is done: so all of it is under the queue's push_lock.  If each has
 * exactly one (pyper__order_expect_one_each()), that is all that is ever kept of a ticket, and
 * nobody needs a lock: whoever has the turn has the producing end of the queue.  A worker out of
 * turn leaves its output in the record of its ticket, and exchanges how that stands for DONE; who
 * moves the turn on to a ticket exchanges it for TURN.  The second of the two sees the first: so
 * either the worker learns that it has the turn, or who moves the turn that the output is there.
 *
 * (With a bound, one output each needs no turns: see ring.h.)
 *
 * Bounds
 *   - Only tickets below turn + window keep anything or are done; later ones wait.
 *   - With a throttle, what is kept counts as waiting in the queue, and the last place is only for
 *     the turn: so the bound is exact, and the one whose turn it is always gets on.
 *   - Without a throttle one call keeps at most `window` outputs, and then waits for its turn (with
 *     one, INT32_MAX).
 *
 * Synchronization
 *   Any number of outputs: all fields are protected by push_lock, except: the turn and `pushed` are
 *   also read without it; how many outputs are kept is the queue's `kept`.
 *   One output each:
 *   stands    of a record: atomic, as above; never goes back while workers run.
 *   first     of a record: its worker's until DONE, then of who has the turn.
 *   upto      atomic: earlier tickets may be pushed.  Any value that turn + window has ever had is
 *             right.
 *   The producing end of the queue belongs to who has the turn; its tail is the turn.
 *   Both:
 *   trouble   atomic; written by who has the turn or the lock, once.
 *   blocked, waiting   atomic: who goes to sleep counts himself in before he looks at what he waits
 *             for; who has made a place or moved the turn reads them after that.
 *   one_each  set before workers run.  drain_*   used when none does any more.
 *   Who moves the turn or publishes outputs reads after that whether anybody waits, without a fence
 *   between the two: who goes to sleep has all others pass one (light notifiers, see park.h).
 *   Where there is no such thing he passes one himself. */
#ifndef PYPER_ORDER_H
#define PYPER_ORDER_H

#include "queue.h"

typedef struct pyper__order pyper__order;

/* What a worker waits for. */
struct pyper__turn {
    pyper__event *event; /* NULL: it is his turn, wait for room in the queue */
    const pyper__queue *queue;
    pyper__order *order;
    int64_t until;     /* turn >= until */
    int64_t place_for; /* >= 0: or for a place for this ticket */
};

pyper__order *pyper__order_create(pyper__queue *queue, int64_t window);
void pyper__order_free(pyper__order *order); /* NULL is accepted */

/* Wakes consumers for what can be taken now.
 *
 * 0, PYPER_ECANCELED, PYPER_ENOMEM; PYPER__AGAIN, and *ret_wait says what to wait for; or, with one
 * output each, PYPER__TAKEN: the item is in, but there was no memory to move the turn on. */
int pyper__order_try_push(pyper__order *order, void *item, int64_t ticket,
                          struct pyper__turn *ret_wait);

/* Each ticket has exactly one output, and is done with it: the queue's passes_turn is taken back.
 * Only without a bound.  Before anybody pushes. */
void pyper__order_expect_one_each(pyper__order *order);

/* Without one output each: the call with this ticket is done; if it had the turn, the turn moves
 * on.
 *
 * Returns 0, PYPER_ECANCELED, PYPER_ENOMEM; or PYPER__AGAIN (beyond the window) and *ret_wait says
 * what to wait for. */
int pyper__order_try_done(pyper__order *order, int64_t ticket, struct pyper__turn *ret_wait);

/* The same, but wait while the ticket is beyond the window: 0, PYPER_ECANCELED or PYPER_ENOMEM.
 * `input` is the queue that this producer consumes (or NULL): before waiting, its free places are
 * given back. */
int pyper__order_done(pyper__order *order, int64_t ticket, pyper__seat *seat, pyper__queue *input);

/* Wait for what pyper__order_try_push() or pyper__order_try_done() has said, if it has an event. */
void pyper__order_await(const struct pyper__turn *turn, pyper__seat *seat);
bool pyper__order_turn_has_come(const void *turn);
void pyper__order_notify_all(pyper__order *order);

/* There is room again: `count` of those who wait for it out of turn may try again. */
void pyper__order_notify_blocked(pyper__order *order, int64_t count);

/* How many outputs were pushed with a ticket, kept or not. */
int64_t pyper__order_pushed(const pyper__order *order);

/* Any output that is kept, for destroying; false: none.  Nobody pushes any more. */
bool pyper__order_take_any(pyper__order *order, void **ret_item);

#endif
