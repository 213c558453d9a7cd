/* edge - what lies between two stages: a queue inside this process, or a channel to another one.
 *
 * A queue whose `channel` is set holds nothing itself: its items cross through the channel as bytes
 * (transfer.h).  What moves items on the quick way asks for that first; all that is not on the way
 * of an item comes here. */
#ifndef PYPER_EDGE_H
#define PYPER_EDGE_H

#include "channel.h"
#include "queue.h"

#if PYPER__PROCESSES

static inline void pyper__edge_set_state(pyper__queue *edge, int state) {
    if (edge->channel)
        pyper__channel_set_state(edge->channel, state);
    else
        pyper__queue_set_state(edge, state);
}

static inline int pyper__edge_state(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_state(edge->channel) : pyper__queue_state(edge);
}

static inline int64_t pyper__edge_pushed(pyper__queue *edge) {
    return edge->channel ? pyper__channel_pushed(edge->channel) : pyper__queue_pushed(edge);
}

static inline int64_t pyper__edge_popped(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_popped(edge->channel) : pyper__queue_popped(edge);
}

static inline int64_t pyper__edge_started(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_popped(edge->channel) : pyper__queue_started(edge);
}

static inline int pyper__edge_state_of_items(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_state(edge->channel) : pyper__queue_state_of_items(edge);
}

static inline void pyper__edge_settle(pyper__queue *edge) {
    if (edge->channel)
        pyper__channel_settle(edge->channel);
    else
        pyper__queue_settle(edge);
}

static inline int64_t pyper__edge_there(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_there(edge->channel) : pyper__queue_there(edge);
}

static inline int64_t pyper__edge_room(const pyper__queue *edge) {
    return edge->channel ? pyper__channel_room(edge->channel) : pyper__queue_room(edge);
}

static inline pyper__event *pyper__edge_items(pyper__queue *edge) {
    return edge->channel ? pyper__channel_items(edge->channel) : &edge->items;
}

static inline pyper__event *pyper__edge_places(pyper__queue *edge) {
    return edge->channel ? pyper__channel_places(edge->channel) : &edge->places;
}

#else

#define pyper__edge_set_state pyper__queue_set_state
#define pyper__edge_state pyper__queue_state
#define pyper__edge_pushed pyper__queue_pushed
#define pyper__edge_popped pyper__queue_popped
#define pyper__edge_started pyper__queue_started
#define pyper__edge_state_of_items pyper__queue_state_of_items
#define pyper__edge_settle pyper__queue_settle
#define pyper__edge_there pyper__queue_there
#define pyper__edge_room pyper__queue_room
#define pyper__edge_items(edge) (&(edge)->items)
#define pyper__edge_places(edge) (&(edge)->places)

#endif

/* The stage before has ended, and all that it has pushed was popped.  The state is read first:
 * where it says ended, what was pushed is the last word. */
static inline bool pyper__edge_is_complete(pyper__queue *edge) {
    return pyper__edge_state(edge) == PYPER__ENDED &&
           pyper__edge_pushed(edge) == pyper__edge_popped(edge);
}

/* These three are for who waits without sleeping (park.h): they read seq_cst, and with what is
 * still to come in mind.  Is the edge no longer open? */
static inline bool pyper__edge_is_over(const pyper__queue *edge) {
    return pyper__edge_state_of_items(edge) != PYPER__OPEN;
}

/* How many items can be popped; INT64_MAX at the end, which everybody must see. */
static inline int64_t pyper__edge_items_or_end(const pyper__queue *edge) {
    int state = pyper__edge_state_of_items(edge);
    int64_t count = pyper__edge_there(edge);
    return state == PYPER__CANCELLED || (state == PYPER__ENDED && count == 0) ? INT64_MAX : count;
}

/* How many can be pushed; INT64_MAX there likewise, and without a bound. */
static inline int64_t pyper__edge_room_or_end(const pyper__queue *edge) {
    return pyper__edge_is_over(edge) ? INT64_MAX : pyper__edge_room(edge);
}

#endif
