/* loop - what carries the workers of asynchronous tasks: slots, all of a run on one thread at a
 * time.
 *
 * A *slot* carries a worker without a thread of its own.  It is a C operation under way, or a
 * coroutine of the host, or it waits here for an input or for room.  The *crew* of a stage is all
 * its slots.  The *driver* is the thread that the slots live on at the moment: whoever waits in
 * pyper_next() and the like, or, in a run with an event loop of the user's, whoever called
 * pyper_drive() last.  To drive is to look at everything that somebody may wait for, and to resume
 * who may go on.
 *
 * Both ends of a queue that belong to an asynchronous stage are the driver's own, so they need no
 * lock.  What other threads do for a slot (an operation completed elsewhere) they post; the driver
 * carries it out, at the latest before it emits for a slot itself or finds that an operation has
 * ended: so outputs keep the order in which they were emitted, by whomever, and all of them come
 * before the end.  A slot never sleeps: it is put into one of its crew's two lists, and the loop
 * counts itself in at the queue's event (park.h), which then wakes the loop.
 *
 * Where the next stage (or the one before) is of processes, the edge is a channel: an item is
 * encoded when there is room for it, and decoded when its slot takes it, here, on the driver's
 * thread.  The processes wake the loop as threads do, see park.h.
 *
 * Promises
 *   - Slots that wait are resumed in the order in which they began to wait; not more of them than
 *     there are items (or places), so that few are resumed in vain.
 *   - A slot gets its first input only when no slot that has worked before waits for one: a crew of
 *     thousands costs what it uses.
 *   - An item that finds no room stays in its slot's hand, in order, and the slot takes no other
 *     input until it has gone.
 *   - Driving ends after a bounded number of calls of user code, and of posts, with the bell rung if
 *     there is more.
 *
 * Synchronization
 *   run, crews, count, host_slots, yours   set by create, never change.
 *   waker      see park.h.
 *   owner      atomic; which thread the driver is (its number, see os.h), or 0.  Who finds 0 may
 *              take it (compare and swap: acquires what the last driver has left).
 *   posts      under posts_lock; any_posts is a hint of it, atomic.  A slot's `posted` is
 *              atomic: grows under the lock, and is read by the driver without it.
 *   abandoned  atomic, only false -> true: nobody holds the run any more.  Then whoever posts
 *              drives.
 *   everything else, and all of crews, slots, and the ends of their queues: the driver's own. */
#ifndef PYPER_LOOP_H
#define PYPER_LOOP_H

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

/* What the loop waits for, of one event. */
typedef struct pyper__watch {
    pyper__event *event;
    bool in;       /* counted in */
    uint32_t seen; /* as pyper__event_enter() returned it */
} pyper__watch;

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

typedef struct pyper__loop {
    pyper_run *run;
    pyper__waker waker;
    bool yours;      /* driven by an event loop of the user's */
    bool host_slots; /* slots are carried by the host */
    size_t count;    /* of crews */
    pyper__crew *crews;
    _Atomic uint64_t owner;
    _Atomic bool abandoned;

    pyper__lock posts_lock;
    pyper__posts posts;
    _Atomic bool any_posts;
    pyper__post *taken;                   /* out of `posts`, and not carried out yet */
    pyper__slot *touched, **last_touched; /* in the order of the posts */

    pyper__watch outputs, end; /* the caller's: his queue, and the end of the run */
    bool caller_waits;
    int64_t budget;  /* calls of user code left in this slice */
    int64_t carried; /* posts carried out in this slice */
} pyper__loop;

/* Create the loop of a run that has asynchronous tasks, or one of the user's (`yours`): 0 or
 * PYPER_ENOMEM or PYPER_EMFILE.  Does nothing for other runs.  Its queues and workers are there,
 * nobody works yet. */
int pyper__loop_create(pyper_run *run, bool yours);
void pyper__loop_free(pyper__loop *loop);

/* The worker's slot takes part from now on. */
void pyper__slot_enlist(pyper_worker *worker);

/* Wait for an output, as pyper__queue_pop(); drives meanwhile, unless somebody else does. */
int pyper__loop_pop(pyper__loop *loop, void **ret_item, int64_t deadline_ns);

/* Wait until all workers have left: 0, PYPER_ETIMEDOUT, PYPER_EINTR. */
int pyper__loop_await_end(pyper__loop *loop, int64_t deadline_ns);

/* Nobody holds the run any more (it is cancelled). */
void pyper__loop_abandon(pyper__loop *loop);

#endif
