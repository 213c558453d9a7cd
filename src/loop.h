/* loop - what drives the slots of a run: all of them on one thread at a time.
 *
 * The workers of asynchronous tasks are carried by slots (slot.h).  The *driver* is the thread that
 * the slots live on at the moment: whoever waits in pyper_next() and the like, or, in a run with an
 * event loop of the user's, whoever called pyper_drive() last.  To drive is to look at everything
 * that somebody may wait for, and to resume who may go on.
 *
 * Both ends of a queue that belong to an asynchronous stage are the driver's own, so they need no
 * lock.  The loop counts itself in at the queue's event (park.h), which then wakes the loop.  What
 * other threads do for a slot they post; the driver carries it out.
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
 *   - Driving ends after a bounded number of calls of user code, and of posts, with the bell rung
 *     if there is more.
 *
 * Synchronization
 *   run, crews, count, host_slots, yours   set by create, never change.
 *   waker      see park.h.
 *   owner      atomic; which thread the driver is (its number, see os.h), or 0.  Who finds 0 may
 *              take it (compare and swap: acquires what the last driver has left).
 *   posts      under posts_lock; any_posts is a hint of it, atomic.
 *   abandoned  atomic, only false -> true: nobody holds the run any more.  Then whoever posts
 *              drives.
 *   everything else, and all of crews, slots, and the ends of their queues: the driver's own. */
#ifndef PYPER_LOOP_H
#define PYPER_LOOP_H

#include "slot.h"

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

/* Create the loop of a run that has asynchronous tasks, or one of the user's (`yours`): 0,
 * PYPER_ENOMEM, or as pyper__bell_open().  Does nothing for other runs.  Its queues and workers are
 * there, nobody works yet. */
int pyper__loop_create(pyper_run *run, bool yours);
void pyper__loop_free(pyper__loop *loop);

/* Wait for an output, as pyper__queue_pop(); drives meanwhile, unless somebody else does. */
int pyper__loop_pop(pyper__loop *loop, void **ret_item, int64_t deadline_ns);

/* Wait until all workers have left: 0, PYPER_ETIMEDOUT, PYPER_EINTR. */
int pyper__loop_await_end(pyper__loop *loop, int64_t deadline_ns);

/* Nobody holds the run any more (it is cancelled). */
void pyper__loop_abandon(pyper__loop *loop);

/* The calling thread.  Not the address of something of its own: when it has ended the next thread
 * may get the same memory, and would be taken for the driver. */
static inline uint64_t pyper__this_thread(void) {
    return pyper__likely(pyper__thread_number) ? pyper__thread_number : pyper__number_thread();
}

/* Is the calling thread the driver?  And: it is from now on, see pyper_drive(). */
static inline bool pyper__loop_is_driver(const pyper__loop *loop) {
    return atomic_load_explicit(&loop->owner, memory_order_relaxed) == pyper__this_thread();
}
static inline void pyper__loop_become_driver(pyper__loop *loop) {
    atomic_store(&loop->owner, pyper__this_thread());
}

/* Hand a post to the driver, from any thread. */
void pyper__loop_post(pyper__loop *loop, pyper__post *post);

/* Carry out the next post, if there is one.  Nobody is called for it who might emit or end in turn:
 * so the driver may do this inside of a call, too. */
bool pyper__loop_take_post(pyper__loop *loop);

#endif
