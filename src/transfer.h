/* transfer - an item on its way through a channel: encoded by the sender, decoded by the receiver,
 * with their failures turned into the run's.  Also the item types that come with the library. */
#ifndef PYPER_TRANSFER_H
#define PYPER_TRANSFER_H

#include "edge.h"
#include "run.h"

/* Encode an item into the channel of `output` and destroy it; waits for room.  `lane` is the number
 * of the worker.
 *
 * Returns 0, or PYPER_ECANCELED, PYPER_ENOMEM, PYPER_EFAILED (it could not be encoded: the run has
 * failed): then the item is still the caller's.  `stage` is the one to blame; `input` is the edge
 * that this producer consumes, or NULL: before waiting, its free places are given back. */
int pyper__send(pyper_run *run, const pyper__stage *stage, pyper__queue *output, int64_t lane,
                void *item, int64_t ticket, pyper__seat *seat, pyper__queue *input);

/* The same without waiting: PYPER__AGAIN, and *ret_wait says what to wait for.  Encodes nothing
 * before there is room. */
int pyper__try_send(pyper_run *run, const pyper__stage *stage, pyper__queue *output, void *item,
                    int64_t ticket, pyper__channel_wait *ret_wait);

/* The call with this ticket is done; for a channel with an order.  0 or as pyper__send(). */
int pyper__send_done(pyper__queue *output, int64_t ticket, pyper__seat *seat, pyper__queue *input);

/* Take the next item of the channel of `input` and decode it; waits for one.
 *
 * Returns as pyper__queue_pop(), or PYPER_EFAILED (it could not be decoded: the run has failed). */
int pyper__receive(pyper_run *run, const pyper__stage *stage, pyper__queue *input, void **ret_item,
                   int64_t *ret_ticket, pyper__seat *seat, int64_t deadline_ns, bool interruptible);

/* The same without waiting: PYPER__AGAIN if there is none. */
int pyper__try_receive(pyper_run *run, const pyper__stage *stage, pyper__queue *input,
                       void **ret_item, int64_t *ret_ticket);

#endif
