/* channel - an edge between processes: a queue (queue.h) whose items are bytes in shared memory.
 *
 * A list of chunks that are filled with records, with one end for the task that produces and one for
 * whoever consumes; threads and processes may mix at each.  A small item lies in its record; of a
 * larger one the record says where it lies: an *extent*, a block of the shared memory that its
 * producer has filled without any lock and that its consumer gives back.  So the locks protect
 * indices and the copying of a few bytes; an end with a single worker takes none.
 *
 * Promises
 *   - What queue.h promises: an item is visible when push returns; throttle is exact; a producer
 *     resumes at the latest when half of the places are free; items leave in the order in which
 *     they were pushed, or, `ordered`, in the order of their tickets (see order.h: the same rules,
 *     kept in shared memory).
 *   - An item of any size passes, as long as there is memory.
 *   - A peer may die at any moment.  What it has pushed is there, and is delivered once; what it has
 *     popped, or not pushed yet, is gone; everybody else goes on.  An order in which it has died is
 *     not mended: all its producers wait until the channel is ended or cancelled.
 *   - No waiting without a futex; a change of state wakes everybody.
 *
 * How a death leaves the indices whole: each end has two records of where it stands, and the number
 * of its steps so far (head, tail) says by its lowest bit which of the two counts.  A step writes
 * the other one, and commits with one store to that number.
 *
 * What it does not do: it knows no items, only bytes; no tasks and no runs.
 *
 * Synchronization (in the shared memory)
 *   limit, block, many_producers, many_consumers, order   set by init, never change.
 *   state        atomic; only grows, see queue.h.
 *   tail         atomic; written by the producing end after the record (seq_cst; pairs with every
 *                read of it by the consuming end).
 *   given_back   atomic; written by the consuming end: the license to use that many places again.
 *   head         atomic; written by the consuming end, read by statistics and by its own waiters.
 *   room_until, push   the producing end's own (push_lock, if many_producers).
 *   seen, pop          the consuming end's own (pop_lock, if many_consumers).
 *   order->*           push_lock; turn, kept and blocked are also read without (atomic): who waits
 *                out of turn for room says so before he looks for it, and who makes room looks there
 *                after he has made it.
 * Lock order: push_lock or pop_lock, then the lock of the shared memory's heap. */
#ifndef PYPER_CHANNEL_H
#define PYPER_CHANNEL_H

#include "queue.h"
#include "shm.h"

/* An item of up to this many bytes lies in its record. */
#define PYPER__RECORD_BYTES 512

/* An item as bytes, on its way in or out. */
typedef struct pyper__record {
    uint64_t size;
    uint64_t extent; /* where it lies in the shared memory; 0: in `bytes` */
    _Alignas(16) unsigned char bytes[PYPER__RECORD_BYTES];
} pyper__record;

struct pyper__channel_shared;

/* One process's door to a channel. */
typedef struct pyper__channel {
    pyper__shm *shm; /* borrowed from the run */
    struct pyper__channel_shared *shared;
    _Atomic int told; /* this process has told everybody that the state is at least this */
} pyper__channel;

/* What somebody who got PYPER__AGAIN waits for. */
typedef struct pyper__channel_wait {
    const pyper__channel *channel;
    pyper__event *event;
    int64_t turn; /* for an order: the turn must have reached this; -1: not that */
    bool room;    /* there must be room */
    bool or_room; /* or there must be room for one out of turn */
} pyper__channel_wait;

/* What a channel takes, the records apart; with room for an order, if order_window > 0. */
uint64_t pyper__channel_size(int64_t order_window);

/* In zeroed shared memory of pyper__channel_size() bytes at `offset`: 0 or PYPER_ENOMEM. */
int pyper__channel_init(pyper__channel *channel, pyper__shm *shm, uint64_t offset, int64_t throttle,
                        bool many_producers, bool many_consumers, int64_t order_window);

/* The door to a channel that another process has made. */
void pyper__channel_attach(pyper__channel *channel, pyper__shm *shm, uint64_t offset);

/* The bytes of a record. */
static inline void *pyper__record_data(const pyper__channel *channel, pyper__record *record) {
    return record->extent ? pyper__shm_at(channel->shm, record->extent) : record->bytes;
}

/* Make room for `size` bytes in a record: 0 or PYPER_ENOMEM. */
int pyper__record_reserve(const pyper__channel *channel, pyper__record *record, uint64_t size);

/* Give the extent of a record back, if it has one. */
void pyper__record_drop(const pyper__channel *channel, pyper__record *record);

/* Append a record; takes its extent when it returns 0.
 *
 * Returns 0, PYPER_ECANCELED (the channel is not open), PYPER_ENOMEM, or PYPER__AGAIN: see
 * pyper__channel_await(). */
int pyper__channel_try_push(pyper__channel *channel, const pyper__record *record, int64_t ticket,
                            pyper__channel_wait *ret_wait);

/* An order: the call with this ticket is done; answers as pyper__channel_try_push(). */
int pyper__channel_try_done(pyper__channel *channel, int64_t ticket, pyper__channel_wait *ret_wait);

/* Wait until it is worth trying again. */
void pyper__channel_await(const pyper__channel_wait *wait, pyper__seat *seat);

/* Take the first record and its extent; waits for one.  Returns as pyper__queue_pop_slow(). */
int pyper__channel_pop(pyper__channel *channel, pyper__record *ret_record, int64_t *ret_ticket,
                       pyper__seat *seat, int64_t deadline_ns, bool interruptible);

/* The consumer is about to wait, for whatever: give all free places back. */
void pyper__channel_settle(pyper__channel *channel);

bool pyper__channel_is_ordered(const pyper__channel *channel);
void pyper__channel_set_state(pyper__channel *channel, int state);
int pyper__channel_state(const pyper__channel *channel);
int64_t pyper__channel_pushed(const pyper__channel *channel);
int64_t pyper__channel_popped(const pyper__channel *channel);

#endif
