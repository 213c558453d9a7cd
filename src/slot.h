/* slot - what carries one worker of an asynchronous task, without a thread of its own.
 *
 * A slot is a C operation under way, or a coroutine of the host; or it waits, for an input or for
 * room.  The *crew* of a stage is all its slots.  They live on one thread at a time, the *driver*
 * (loop.h), which takes their steps: to begin an operation with the next input, to resume it, to
 * hand on what it has emitted, to judge its end.  A host's slot takes these steps itself, by what
 * its coroutine calls; here is only what it calls.
 *
 * A slot never sleeps.  Where there is nothing for it, it is put into one of its crew's two lists,
 * and the loop counts itself in at the queue's event.  What other threads do for it (an operation
 * completed elsewhere) they post to the loop; it is carried out at the latest before the driver
 * emits for the slot itself or finds that its operation has ended: so outputs keep the order in
 * which they were emitted, by whomever, and all of them come before the end.
 *
 * An item that finds no room stays in its slot's hand, in order, and the slot takes no other input
 * until it has gone.
 *
 * Synchronization: everything is the driver's own, but for
 *   posted      atomic: it grows under the loop's posts_lock, and is read by the driver without it.
 *   state       the operation's, on whatever thread that is.
 *   done_post   of whoever calls pyper_done(), which nobody does twice; then as any post.
 *   worker, crew; of a crew loop, stage and slots   set by the loop's create, never change. */
#ifndef PYPER_SLOT_H
#define PYPER_SLOT_H

#include "edge.h"
#include "order.h"
#include "worker.h"

/* Something done for a slot by another thread; and an item in a slot's hand. */
typedef struct pyper__post {
    struct pyper__post *next;
    struct pyper__slot *slot;
    void *item;
    bool done; /* pyper_done(), not an item */
    int rc;
} pyper__post;

typedef struct pyper__posts {
    pyper__post *first, *last;
} pyper__posts;

static inline void pyper__posts_append(pyper__posts *posts, pyper__post *post) {
    post->next = NULL;
    if (posts->first)
        posts->last->next = post;
    else
        posts->first = post;
    posts->last = post;
}

/* What the loop waits for, of one event. */
typedef struct pyper__watch {
    pyper__event *event;
    bool in;       /* counted in */
    uint32_t seen; /* as pyper__event_enter() returned it */
} pyper__watch;

/* Count in; false if that is so already and nothing has come since: then there is no need to look
 * again. */
static inline bool pyper__watch_enter(pyper__watch *watch) {
    if (watch->in && !pyper__event_notified(watch->event, watch->seen)) return false;
    watch->seen = pyper__event_enter(watch->event);
    watch->in = true;
    return true;
}

static inline void pyper__watch_leave(pyper__watch *watch) {
    if (watch->in) pyper__event_leave(watch->event, watch->seen);
    watch->in = false;
}

typedef struct pyper__waiters {
    struct pyper__slot *first, *last;
} pyper__waiters;

typedef struct pyper__slot {
    pyper_worker *worker;
    struct pyper__crew *crew;
    struct pyper__slot *next, *previous; /* in the list it waits in */
    pyper__waiters *list;                /* which one; NULL: it does not wait */
    struct pyper__turn turn;             /* blocked: what for (turn.event NULL: room) */
    pyper__channel_wait wait;            /* the same, if the output is a channel */
    pyper__posts hand;                   /* outputs that found no room */
    pyper__post done_post;
    void *state;     /* the operation's */
    int64_t emitted; /* outputs of the call under way, those in the hand included */
    int rc;          /* if done: what pyper_done() was given, or the function has returned */
    bool started;    /* a host's slot exists; a join has been called */
    bool resumed;    /* a host's slot has been resumed and has not come to it yet */
    bool ticketed;   /* has an input whose ticket is not done */
    bool operating;  /* an operation is under way */
    bool calling;    /* its function is being called */
    bool done;       /* the operation has ended, by pyper_done() or a return */
    bool wants;      /* the operation is to be resumed when its hand is empty */
    bool told;       /* its cancel has been called */
    bool left;
    _Atomic int64_t posted; /* how many posts there were for it, */
    int64_t carried;        /* and how many of them have been carried out */
    bool touched;           /* other threads' posts have changed it: it is to be looked at */
    struct pyper__slot *next_touched; /* in the loop's list of those */
} pyper__slot;

typedef struct pyper__crew {
    struct pyper__loop *loop;
    pyper__stage *stage;
    pyper__slot *slots;
    int64_t count; /* slots[0 .. count) take part (all, unless starting the run went wrong) */
    int64_t fresh; /* slots[fresh .. count) have never had an input */
    int64_t due;   /* host's slots resumed for an input that they have not come to yet */
    pyper__waiters starved, blocked;
    pyper__watch items, places;
    bool told; /* that the stage is to stop: nobody begins any more */
} pyper__crew;

/* The worker's slot takes part from now on. */
void pyper__slot_enlist(pyper_worker *worker);

/* The rest is the driver's to call. */

/* Let a slot go on that waited, or has never worked. */
void pyper__slot_resume(pyper__slot *slot);

/* May a slot that is blocked try again?  *room is what its output has left, of which it takes its
 * part. */
bool pyper__slot_may_go_on(const pyper__slot *slot, int64_t *room);

/* Do what was posted for the slot, and mark it as touched: it goes on later. */
void pyper__slot_carry_out(pyper__post *post);

/* It has been touched: let it go on. */
void pyper__slot_see_to(pyper__slot *slot);

/* Its stage has been told to stop: so is the slot, unless it waits here.  Then it finds out when it
 * goes on. */
void pyper__slot_tell(pyper__slot *slot);

/* What was under way is over for good: the worker leaves. */
void pyper__slot_leave(pyper__slot *slot);

#endif
