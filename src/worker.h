/* worker - the loop of every task: take an input, call the function, let it emit.  What carries it
 * (a thread, say) is another room's affair. */
#ifndef PYPER_WORKER_H
#define PYPER_WORKER_H

#include "claim.h"
#include "order.h"
#include "run.h"

/* Synchronization
 *   run, stage, output, allowed, at_once, index, claim   set before the worker starts.
 *   thread, has_thread   written by pyper_start() and by whoever joins, see run.c.
 *   ticket, emitted, near, pulls   the worker's own.
 *   slot                 set before the worker starts.
 *   outer                written and read by the thread that calls the function, during the call.
 *   seat                 see park.h. */
struct pyper_worker {
    _Alignas(PYPER__CACHE_LINE) pyper_run *run;
    pyper__stage *stage;
    pyper__queue *output;
    int64_t emitted;     /* outputs of the call under way; negative: see disown() */
    int64_t allowed;     /* how many outputs a call may have */
    int64_t at_once;     /* the same, if they may go the quick way; else 0 */
    bool pulls;          /* its function may call pyper_pull() */
    int64_t ticket;      /* of the input it works on */
    pyper__claim *claim; /* NULL: it takes one input at a time */
    uintptr_t near;      /* its last output, see pyper__queue_push_shared() */
    pyper__seat seat;
    int64_t index;
    void *thread;
    bool has_thread;
    struct pyper__slot *slot;   /* what carries it on an event loop (slot.h); NULL: a thread does */
    struct pyper_worker *outer; /* whose function has made its thread drive the loop, if any */
};

/* What a worker says of its function: it failed; its answer was negative (judge finds out why). */
void pyper__worker_fail(pyper_worker *worker, int answer, int code, const char *message);
void pyper__worker_judge(pyper_worker *worker, int rc);

/* Has the worker been told to stop? */
static inline bool pyper__worker_stopped(const pyper_worker *worker) {
    return pyper__run_stopped(worker->run, worker->stage->index);
}

/* An item that cannot be emitted, because of `rc`: destroy it, and fail the run if it must.
 * Returns rc. */
int pyper__worker_refuse(pyper_worker *worker, void *item, int rc);

/* pyper_emit() for a worker on an event loop; in slot.c. */
int pyper__slot_emit(pyper_worker *worker, void *item);

/* Run the worker to its end: on its own thread, with the host's token. */
void pyper__worker_main(void *worker);

/* Its work alone, without the way in and out of a thread: what a process calls. */
void pyper__worker_work(pyper_worker *worker);

/* From now on a function that forks takes its child out of the run. */
PYPER__AT_LOAD void pyper__worker_watch_forks(void);

/* What to call it: its task, and its number if it is not the only one. */
void pyper__worker_title(const pyper_worker *worker, char *ret_title, size_t size);

/* The worker whose function the calling thread is in, if any: the innermost, for a function may
 * take the outputs of another run, and so call its asynchronous functions; see `outer`. */
extern _Thread_local pyper_worker *pyper__worker_current PYPER__TLS_MODEL;

/* Is the calling thread in a function of this run? */
static inline bool pyper__worker_is_inside(const pyper_run *run) {
    const pyper_worker *worker = pyper__worker_current;
    while (worker && worker->run != run) worker = worker->outer;
    return worker != NULL;
}

#endif
