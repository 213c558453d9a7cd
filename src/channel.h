/* channel - an edge between processes: a queue (queue.h) whose items are bytes in shared memory.
 *
 * Each producer has a *lane* of its own (lane.h), which it fills with records without any lock;
 * with an order (order.h) all share one lane, and a lock.
 *
 * A lone consumer reads the records where they lie.  Several threads of one process take one after
 * the other, under a lock of their own.  Several processes claim what lies next in a lane, a share
 * of it, into their *hands*, and go on from there without any lock: one item at a time where items
 * are slow, many where they are quick.  Whoever finds the lanes empty takes half of what another
 * has in his hand and has not started; and so does whoever sees that another has started nothing
 * meanwhile.  So nobody waits for an item that lies in the hand of somebody who is slow, no item is
 * overtaken for long, and nobody has to know beforehand which will be slow.
 *
 * Promises
 *   - What queue.h promises: an item is visible when push returns; throttle is exact, what is in a
 *     hand counts as waiting; a producer resumes at the latest when half of the places are free,
 *     and those that wait get places in the order in which they have come.
 *     Items of one producer leave in the order in which they were pushed (when there are hands: are
 *     claimed in that order), or, `ordered`, all in the order of their tickets (the same rules as
 *     in order.h, kept in shared memory).
 *   - An item of any size passes, as long as there is memory.
 *   - A peer may die at any moment.  What it has pushed is there, and is delivered once; what it
 *     has popped, or not pushed yet, is gone; everybody else goes on.  (If it dies while it fills
 *     its hand, what it was about to claim is gone.  If it was a producer, see
 *     pyper__channel_bury().)  An order in which it has died is not mended: all its producers wait
 *     until the channel is ended or cancelled.
 *   - No waiting without a futex; a change of state wakes everybody.
 *
 * A peer that writes where it should not (by a mistake in the functions it runs) may stop
 * everybody, as it may end the run in other ways, but a record makes nobody read or write beyond
 * the shared memory: what it says of itself (where it lies, how large it is) is looked at before it
 * is followed, and is PYPER__BROKEN if it cannot be.  What says who is there (how many lanes, the
 * bound, the locks) is believed.
 *
 * An end may belong to an event loop of the process that has made the channel (loop.h): it never
 * waits here, and whoever has something for it, in whatever process, wakes it through the waker of
 * his door.
 *
 * What it does not do: it knows no items, only bytes; no tasks and no runs.
 *
 * Synchronization (in the shared memory)
 *   limit, block, lanes, hands, hands_at, consumers, one_at_a_time, order   set by init, never
 *                change.
 *   state        atomic; only grows, see queue.h.
 *   of a lane    see lane.h; its producing end is the producer's own (with an order: push_lock),
 *                and so is room_until.
 *   current      the consuming end's own.
 *   popped       atomic; written by the consuming end: how many were taken out of the lanes.
 *   hand.state   atomic; its owner takes the first of what is left, others, with pop_lock, the last
 *                ones; it is filled again by its owner, with pop_lock.
 *   hand.at, bytes, origin, ticket   written by its owner with pop_lock; read by him, and by others
 *                with pop_lock.  hand.noticed   pop_lock.
 *   lost         atomic; pop_lock.
 *   pushed, line   push_lock.  lane.in_line, waiting   atomic; push_lock to write, not to read.
 *   given_back   atomic; written by the consuming end: the license to use that many places again.
 *   order->*     push_lock; turn, kept, blocked and broken are also read without (atomic): who
 *                waits out of turn for room says so before he looks for it, and who makes room
 *                looks there after he has made it.
 * "The consuming end's own": nobody else's if it is alone, else under the door's pop_lock (threads)
 * or under the shared one (processes).
 * Lock order: push_lock or pop_lock, then the lock of the shared memory's heap.
 * Tested by unit/test_channel.c, stress/test_deaths.c, and in every order of its processes, with a
 * death at every step, by tests/model/model_channel.c. */
#ifndef PYPER_CHANNEL_H
#define PYPER_CHANNEL_H

#include "lane.h"
#include "queue.h"

/* A process that consumes beside others claims up to this many items at once. */
#define PYPER__HAND_ITEMS 64

struct pyper__channel_shared;

/* One process's door to a channel.
 *
 * Synchronization
 *   shm, shared, hand   set by init and attach, never change; waker   also set by the loop's
 *              pyper__processes_set_waker(), before a second process is started.
 *   pop_lock   see park.h.
 *   told       atomic; only grows.
 *   ungiven, claim, claimed, claimed_ns   of the one thread that consumes here. */
typedef struct pyper__channel {
    pyper__shm *shm; /* borrowed from the run */
    struct pyper__channel_shared *shared;
    pyper__waker *waker;        /* of the run's event loop, borrowed; NULL: nobody needs it */
    pyper__owned_lock pop_lock; /* of the threads of this process that consume together */
    _Atomic int told; /* this process has told everybody that the state is at least this */
    /* Of a process that consumes beside others: the number of its hand; how many items it has
     * started since it gave places back; how many records to claim at once; how many it has claimed
     * last, and when. */
    int64_t hand, ungiven, claim, claimed, claimed_ns;
} pyper__channel;

typedef struct pyper__channel_shape {
    int64_t throttle;
    int64_t producers, consumers; /* how many; an event loop is one */
    bool apart;                   /* the consumers are processes */
    bool one_at_a_time;           /* each claims one item at a time */
    int64_t order_window;         /* > 0: there is an order */
} pyper__channel_shape;

/* What somebody who got PYPER__AGAIN waits for. */
typedef struct pyper__channel_wait {
    const pyper__channel *channel;
    pyper__event *event;
    int64_t turn; /* for an order: the turn must have reached this; -1: not that */
    bool room;    /* there must be room */
    bool or_room; /* or there must be room for one out of turn */
    int64_t lane; /* of several */
} pyper__channel_wait;

/* What a channel takes, the records apart. */
uint64_t pyper__channel_size(const pyper__channel_shape *shape);

/* In zeroed shared memory of pyper__channel_size() bytes at `offset`: 0 or PYPER_ENOMEM. */
int pyper__channel_init(pyper__channel *channel, pyper__shm *shm, uint64_t offset,
                        const pyper__channel_shape *shape);

/* The door to a channel that another process has made. */
void pyper__channel_attach(pyper__channel *channel, pyper__shm *shm, uint64_t offset,
                           pyper__waker *waker, int64_t hand);

/* What the consuming (the producing) end waits for.  For a loop, which marks them as `looped`
 * before there is another process. */
pyper__event *pyper__channel_items(const pyper__channel *channel);
pyper__event *pyper__channel_places(const pyper__channel *channel);

/* Make room for `size` bytes in a record that the producer `lane` is going to push next; they are
 * to be written to record->data.  0 or PYPER_ENOMEM. */
int pyper__record_reserve(pyper__channel *channel, int64_t lane, pyper__record *record,
                          uint64_t size);

/* Give the extent of a record back, if it has one. */
static inline void pyper__record_drop(const pyper__channel *channel, pyper__record *record) {
    if (pyper__unlikely(record->extent != 0))
        pyper__shm_free(channel->shm, record->extent, record->size);
    record->extent = 0;
}

/* Append a record; takes its extent when it returns 0.  With `record` NULL it only says whether
 * there is room for one: then the only one who pushes can count on it.
 *
 * Returns 0, PYPER_ECANCELED (the channel is not open), PYPER_ENOMEM, or PYPER__AGAIN: see
 * pyper__channel_await(). */
int pyper__channel_try_push(pyper__channel *channel, int64_t lane, const pyper__record *record,
                            int64_t ticket, pyper__channel_wait *ret_wait);

/* The producer of this lane has died: nobody needs to wait behind it any more. */
void pyper__channel_bury(pyper__channel *channel, int64_t lane);

/* An order: the call with this ticket is done; answers as pyper__channel_try_push(). */
int pyper__channel_try_done(pyper__channel *channel, int64_t ticket, pyper__channel_wait *ret_wait);

/* Is it worth trying again?  (`wait` is a pyper__channel_wait.)  And: wait until it is. */
bool pyper__channel_may_try_again(const void *wait);
void pyper__channel_await(const pyper__channel_wait *wait, pyper__seat *seat);

/* Take the first record and its extent: 1, 0 (end), PYPER_ECANCELED, PYPER__AGAIN (empty), or
 * PYPER__BROKEN: what is in the shared memory is no record, for somebody has written there who
 * should not have.  What has been popped must be released before this consumer pops again. */
int pyper__channel_try_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket);

/* The same, but wait for one.  Returns as pyper__queue_pop(), or PYPER__BROKEN. */
int pyper__channel_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket,
                       pyper__seat *seat, int64_t deadline_ns, bool interruptible);

/* A popped record is not needed any more; gives its extent back, unless it was kept. */
void pyper__channel_release(pyper__channel *channel, pyper__record *record);

/* The consumer is about to wait, for whatever: give all free places back. */
void pyper__channel_settle(pyper__channel *channel);

bool pyper__channel_is_ordered(const pyper__channel *channel);
void pyper__channel_set_state(pyper__channel *channel, int state);
int pyper__channel_state(const pyper__channel *channel);
int64_t pyper__channel_pushed(const pyper__channel *channel);
int64_t pyper__channel_popped(const pyper__channel *channel);
int64_t pyper__channel_there(const pyper__channel *channel); /* items that can be popped */
int64_t pyper__channel_room(const pyper__channel *channel);  /* INT64_MAX: there is no bound */

/* Have everybody who sleeps at this channel look again: its state has changed, or a peer has
 * died. */
void pyper__channel_rouse(const pyper__channel *channel);

#endif
