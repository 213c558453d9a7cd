/* run - one execution of a pipeline: its stages (a task at work), the queues between them, and how
 * it ends.
 *
 *     argument -> queue 0 -> stage 0 -> queue 1 -> stage 1 -> ... -> queue n -> pyper_next()
 *
 * How a run ends
 *   - Normally: a stage's last worker to leave ends its output queue; the next stage drains it, and
 *     so on to the caller.
 *   - Stopped up to a stage: its input queues and all before are cancelled, `stopped` tells the
 *     functions.  A failure stops all stages and *ends* the last queue (its outputs are delivered);
 *     a cancel stops all stages and cancels the last queue as well; a joined task that nobody runs
 *     any more stops those before it.
 *   - When all workers have left, somebody who waits joins their threads and destroys what is left
 *     in the queues.
 *
 * Synchronization
 *   pipeline, host, host_data, own_host, count, stages, queues, outputs, forks, processes, child,
 *              loop   set by start before any worker runs; of a stage, all but alive and started.
 *   refs       atomic; one for all handles together, one for each worker that has been started (of
 *              processes: for their supervisor), and one while somebody posts to its loop.
 *   handles    atomic; the references of users; the last one to go cancels the run.
 *   alive      atomic; workers that have not left (of processes: their supervisor), and one for
 *              pyper_start() itself.
 *   stopped    atomic, only grows; stages below it have been told to stop.
 *   cancelled  atomic, only false -> true.
 *   failure    written once, under `lock`, before failed (atomic) becomes non-zero; read by anybody
 *              who has seen that (acquire), and never changed again.
 *   gate_open  atomic, only false -> true.
 *   joining    atomic; see run.c; whoever sets it to JOIN_BUSY may touch the workers' threads.
 *   lock       leaf: held for a few instructions, no other lock is taken under it. */
#ifndef PYPER_RUN_H
#define PYPER_RUN_H

#include "pipeline.h"
#include "queue.h"

typedef struct pyper__stage {
    const pyper__task *task;
    size_t index;
    pyper__queue *input, *output;
    pyper_worker *workers;    /* task->workers of them */
    _Atomic int64_t alive;    /* workers started (before all are: to be started) that have not left;
                               * whoever takes it to 0 ends the stage.  Processes: see board.h */
    int64_t started;          /* workers that could be started; pyper_start()'s own */
    struct pyper__crew *crew; /* of a loop, if the task is asynchronous; else NULL */
} pyper__stage;

struct pyper_run {
    _Atomic int64_t refs;
    _Atomic int64_t handles;
    pyper_pipeline *pipeline;
    const pyper_host *host; /* own_host, or NULL */
    void *host_data;
    uint32_t forks; /* pyper__forks when the run was started */

    size_t count; /* of stages; 0 if there was no memory for them */
    pyper__stage *stages;
    pyper__queue *queues;  /* count + 1 */
    pyper__queue *outputs; /* the last of them, if callers may take from it themselves */

    pyper__event gate;
    _Atomic bool gate_open;

    _Atomic int64_t alive;
    pyper__event done; /* alive == 0, and changes of joining */
    _Atomic int joining;

    _Atomic size_t stopped;
    _Atomic bool cancelled;

    pyper__lock lock;
    _Atomic int failed;
    struct {
        int code;
        int64_t task;
        void *payload;
        void (*destroy)(void *payload);
        void *data;
        size_t size; /* of data */
        char message[512];
    } failure;

    pyper__seat callers; /* of whoever waits in pyper_next() and the like */

    struct pyper__processes *processes; /* of a run with process workers; see process.h */
    struct pyper__child *child;         /* this is the run as a worker's process sees it */
    struct pyper__loop *loop;           /* of a run that has to be driven; see loop.h */
    pyper_host own_host;
};

/* Give the run a host, or none (NULL). */
void pyper__run_set_host(pyper_run *run, const pyper_host *host, void *host_data);

/* Record a failure and stop the run, unless one was recorded before; says whether it was this one.
 * `answer` is what pyper_next() will return, `stage` the one to blame or NULL.  Takes payload when
 * true is returned. */
bool pyper__run_fail(pyper_run *run, int answer, const pyper__stage *stage, int code,
                     const char *message, void *payload, void (*destroy)(void *payload));

/* The same with bytes, which are copied, in place of a payload. */
bool pyper__run_fail_bytes(pyper_run *run, int answer, const pyper__stage *stage, int code,
                           const char *message, const void *data, size_t size);

/* What a process has told of its failure; the run has been told to stop, or is being told. */
bool pyper__run_record(pyper_run *run, int answer, const pyper__stage *stage, int code,
                       const char *message, const void *data, size_t size);

/* Tell the stages before `upto` to stop, and cancel the edges up to their end. */
void pyper__run_stop(pyper_run *run, size_t upto);

/* Has this stage been told to stop? */
bool pyper__run_stopped(const pyper_run *run, size_t stage);

/* Have all workers left?  (Of a pyper_run, as what is waited for.) */
static inline bool pyper__run_all_left(const void *run) {
    return atomic_load(&((const pyper_run *)run)->alive) == 0;
}

/* Does a signal end the waits of its callers? */
static inline bool pyper__run_is_interruptible(const pyper_run *run) {
    return run->host && run->host->interruptible;
}

/* `rc` has come of receiving an output for the caller: what that means to him.  An output that
 * could not be decoded has failed the run and ends the stream: those behind it would come after a
 * gap. */
int pyper__run_received(pyper_run *run, int rc);

/* How far an ordered task with this throttle may be ahead of the one whose turn it is. */
int64_t pyper__run_window(int64_t throttle);

/* A worker's way in and out; see worker.c. */
void pyper__run_wait_for_gate(pyper_run *run, pyper__seat *seat);
void pyper__run_worker_left(pyper_run *run, pyper__stage *stage);

/* Join the threads of workers that have all left, and clear the queues: 0, PYPER_EINTR, or
 * PYPER_ETIMEDOUT (somebody else is at it). */
int pyper__run_join_once(pyper_run *run, int64_t deadline_ns);

/* All outputs have been taken, and all workers have left: what the caller is told now, again and
 * again. */
int pyper__run_outcome(pyper_run *run);

/* Around what may still be done with the memory of a run's processes when all workers have left
 * (process.h); nothing for other runs. */
void pyper__run_enter(pyper_run *run);
void pyper__run_leave(pyper_run *run);

/* Was the run started by the parent of this forked process? */
static inline bool pyper__run_inherited(const pyper_run *run) {
    return run->forks != atomic_load_explicit(&pyper__forks, memory_order_relaxed);
}

/* Give up a worker's reference: the last thing a worker does. */
void pyper__run_release(pyper_run *run);

/* The way out of the supervisor (process.c): the last thing it does. */
void pyper__run_left(pyper_run *run);

#endif
