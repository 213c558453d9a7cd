/* run - see run.h, and pyper.h for what the public functions promise. */
#include "run.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "child.h"
#include "claim.h"
#include "edge.h"
#include "loop.h"
#include "order.h"
#include "process.h"
#include "ring.h"
#include "text.h"
#include "thread.h"
#include "transfer.h"

/* Who joins the workers' threads and clears the queues, once all workers have left. */
enum { JOIN_OPEN, JOIN_BUSY, JOIN_DONE };

/* With no throttle an ordered task may be this many inputs ahead of the one whose turn it is. */
#define WINDOW 1024
/* Unordered outputs draw tickets only where there are no more workers and places than this: with 64
 * workers a lock is better, since whoever finds it taken lets others run; and places take turns, so
 * many of them fill the cache, where chunks come back soon. */
#define DRAW_WORKERS_MAX 32
#define DRAW_PLACES_MAX 8192
/* A larger throttle does not widen the window any more: a place in it is 72 bytes. */
#define WINDOW_MAX 65536

/* What there is to return when there is no memory for a run.  Never freed, never counted. */
static pyper_run out_of_memory = {.failed = PYPER_ENOMEM,
                                  .failure = {.code = PYPER_ENOMEM,
                                              .task = -1,
                                              .message = "out of memory while starting the run"}};

/* ------------------------------------------------------------------------------- stopping */

void pyper__run_enter(pyper_run *run) {
#if PYPER__PROCESSES
    if (run->processes) pyper__processes_enter(run);
#endif
}

void pyper__run_leave(pyper_run *run) {
#if PYPER__PROCESSES
    if (run->processes) pyper__processes_leave(run);
#endif
}

/* Tell the stages before `upto` to stop, and cancel the first `queues` queues.  In this order:
 * whoever is refused by a queue finds that he was told to stop; and the last queue first, so that
 * no stage takes the end of a stopped one before it for the end of its inputs. */
static void stop(pyper_run *run, size_t upto, size_t queues) {
    size_t before = atomic_load(&run->stopped);
    while (before < upto && !atomic_compare_exchange_weak(&run->stopped, &before, upto)) {
    }
    pyper__run_enter(run);
#if PYPER__PROCESSES
    /* Also when they were told here before: he who does that may not have come to this line yet. */
    if (run->processes) pyper__processes_stop(run, upto);
#endif
    for (size_t i = queues; i > 0; i--)
        pyper__edge_set_state(&run->queues[i - 1], PYPER__CANCELLED);
    if (run->loop) pyper__waker_wake(&run->loop->waker);
    pyper__run_leave(run);
}

void pyper__run_stop(pyper_run *run, size_t upto) {
    if (upto > 0) stop(run, upto, upto < run->count ? upto + 1 : upto);
}

bool pyper__run_stopped(const pyper_run *run, size_t stage) {
#if PYPER__PROCESSES
    if ((run->child || run->processes) && pyper__processes_stopped(run, stage)) return true;
#endif
    return atomic_load_explicit(&run->stopped, memory_order_acquire) > stage;
}

void pyper_cancel(pyper_run *run) {
    if (!run || run == &out_of_memory || pyper__run_inherited(run)) return;
#if PYPER__PROCESSES
    if (run->child) {
        pyper__child_cancel(run);
        return;
    }
#endif
    atomic_store(&run->cancelled, true);
    if (run->count > 0) stop(run, run->count, run->count + 1);
}

/* Record a failure, unless there is one.  `data` is taken when true is returned. */
static bool record(pyper_run *run, int answer, const pyper__stage *stage, int code,
                   const char *message, void *payload, void (*destroy)(void *payload), void *data,
                   size_t size) {
    pyper__lock_take(&run->lock);
    bool first = atomic_load(&run->failed) == 0;
    if (first) {
        run->failure.code = code;
        run->failure.task = stage ? (int64_t)stage->index : -1;
        run->failure.payload = payload;
        run->failure.destroy = destroy;
        run->failure.data = data;
        run->failure.size = size;
        if (stage)
            snprintf(run->failure.message, sizeof run->failure.message,
                     "task '%.*s' (%zu of %zu): %s", PYPER__SHOWN(stage->task->name),
                     stage->index + 1, run->pipeline ? run->pipeline->count : 0, message);
        else
            snprintf(run->failure.message, sizeof run->failure.message, "%s", message);
        pyper__text_end(run->failure.message);
        atomic_store(&run->failed, answer);
    }
    pyper__lock_give(&run->lock);
    if (first && run->count > 0) {
        stop(run, run->count, run->count);
        pyper__edge_set_state(&run->queues[run->count], PYPER__ENDED);
    }
    return first;
}

bool pyper__run_record(pyper_run *run, int answer, const pyper__stage *stage, int code,
                       const char *message, const void *data, size_t size) {
    void *copy = data ? pyper__alloc(size ? size : 1) : NULL;
    if (copy) memcpy(copy, data, size);
    bool first = record(run, answer, stage, code, message, NULL, NULL, copy, copy ? size : 0);
    if (!first) pyper__free(copy);
    return first;
}

/* May this failure be recorded here?  Not in a child that a function has forked.  In a worker's
 * process it has to be the first of the run's; and in the caller's, what fails may do so because a
 * process has failed and told everybody to stop, but not yet the supervisor. */
static bool may_record(pyper_run *run, int answer, const pyper__stage *stage, int code,
                       const char *message, const void *data, size_t size) {
    if (pyper__run_inherited(run)) return false;
#if PYPER__PROCESSES
    if (run->child) return pyper__child_fail(run, answer, stage->index, code, message, data, size);
    pyper__run_enter(run);
    if (run->processes && !pyper_failed(run)) pyper__processes_hear(run);
    pyper__run_leave(run);
#endif
    return true;
}

bool pyper__run_fail(pyper_run *run, int answer, const pyper__stage *stage, int code,
                     const char *message, void *payload, void (*destroy)(void *payload)) {
    return may_record(run, answer, stage, code, message, NULL, 0) &&
           record(run, answer, stage, code, message, payload, destroy, NULL, 0);
}

bool pyper__run_fail_bytes(pyper_run *run, int answer, const pyper__stage *stage, int code,
                           const char *message, const void *data, size_t size) {
    return may_record(run, answer, stage, code, message, data, size) &&
           pyper__run_record(run, answer, stage, code, message, data, size);
}

/* ------------------------------------------------------------------------ workers, in and out */

static bool gate_is_open(const void *arg) {
    const pyper_run *run = arg;
    return atomic_load(&run->gate_open);
}

/* No thread begins before all are there: one that has begun would keep a shared token from those
 * that start after it, or fill the memory meanwhile; and if one cannot be started, none calls a
 * function.  Processes are started first and do not wait for that: in theirs the gate is open (see
 * child.c), and they may have called functions when a later worker cannot be started. */
void pyper__run_wait_for_gate(pyper_run *run, pyper__seat *seat) {
    pyper__await(seat, &run->gate, gate_is_open, run, PYPER_FOREVER, PYPER__OTHER, false);
}

static void open_gate(pyper_run *run) {
    atomic_store(&run->gate_open, true);
    pyper__event_notify_all(&run->gate);
}

/* One less of those whom the end of the run waits for. */
static void one_less(pyper_run *run, int64_t how_many) {
    pyper__run_enter(run);
    if (atomic_fetch_sub(&run->alive, how_many) == how_many) pyper__event_notify_all(&run->done);
    pyper__run_leave(run);
}

void pyper__run_worker_left(pyper_run *run, pyper__stage *stage) {
    if (atomic_fetch_sub(&stage->alive, 1) == 1) {
        /* The last one.  If inputs were left (a joined task that had enough), nobody will take
         * them: the stages before are done. */
        if (!pyper__edge_is_complete(stage->input)) stop(run, stage->index, stage->index + 1);
        /* A stage that was told to stop has not ended its stream: whoever told it sees to that
         * queue. */
        if (!pyper__run_stopped(run, stage->index))
            pyper__edge_set_state(stage->output, PYPER__ENDED);
    }
    one_less(run, 1);
}

void pyper__run_left(pyper_run *run) {
    one_less(run, 1);
    pyper__run_release(run);
}

/* ---------------------------------------------------------------------------------- freeing */

/* Free the stages and the queues, and destroy what is left in them.  Nobody works any more. */
static void clear(pyper_run *run) {
    for (size_t i = 0; i < run->count; i++) {
        pyper__stage *stage = &run->stages[i];
        for (int64_t k = 0; stage->workers && k < stage->task->workers; k++)
            pyper__thread_forget(&stage->workers[k]);
        pyper__free(stage->workers);
    }
    for (size_t i = 0; run->count > 0 && i <= run->count; i++)
        pyper__queue_fini(&run->queues[i], &run->callers);
    pyper__loop_free(run->loop);
#if PYPER__PROCESSES
    pyper__processes_free(run);
#endif
    pyper__free(run->stages);
    pyper__free(run->queues);
    run->loop = NULL;
    run->stages = NULL;
    run->queues = NULL;
    run->count = 0;
}

void pyper__run_release(pyper_run *run) {
    if (atomic_fetch_sub_explicit(&run->refs, 1, memory_order_acq_rel) != 1) return;
    clear(run);
    if (run->failure.destroy) run->failure.destroy(run->failure.payload);
    run->failure.payload = NULL;
    pyper_unref(run->pipeline);
    run->pipeline = NULL;
    if (run->host && run->host->release) run->host->release(run->host_data, run);
    pyper__free(run->failure.data);
    pyper__free(run);
}

pyper_run *pyper_run_ref(pyper_run *run) {
    if (run && run != &out_of_memory) atomic_fetch_add(&run->handles, 1);
    return run;
}

void pyper_run_unref(pyper_run *run) {
    if (!run || run == &out_of_memory || pyper__run_inherited(run)) return;
    if (atomic_fetch_sub(&run->handles, 1) != 1) return;
    pyper_cancel(run);
    if (run->loop) pyper__loop_abandon(run->loop);
    pyper__run_release(run);
}

/* --------------------------------------------------------------------------------- starting */

static void destroy_argument(const pyper_start_options *options) {
    if (options->type && options->type->destroy) options->type->destroy(options->argument);
}

int64_t pyper__run_window(int64_t throttle) {
    return throttle == 0 ? WINDOW : throttle < WINDOW_MAX ? throttle : WINDOW_MAX;
}

/* Several threads that get one input at a time may claim some ahead. */
static int let_claim(pyper__stage *stage) {
    const pyper__task *task = stage->task;
    if (task->workers == 1 || task->join || task->async || stage->input->channel) return 0;
    int64_t window = task->ordered ? pyper__run_window(task->throttle) : 0;
    return pyper__claims_create(stage->input, task->workers, window);
}

/* Ordered, with a bound and one output each, and no event loop that would have to wait for places:
 * then the places keep the order (ring.h), and nobody needs another. */
static bool has_ordered_places(const pyper__task *task) {
    return task->ordered && !task->branch && !task->async && task->throttle > 0 &&
           task->throttle <= WINDOW_MAX;
}

/* How several threads emit into their queue. */
static int choose_places(pyper__stage *stage) {
    const pyper__task *task = stage->task;
    pyper__queue *output = stage->output;
    if (task->workers == 1 || task->async || output->channel) return 0;
    if (has_ordered_places(task)) return pyper__ring_create(output, false);
    bool bounded = output->limit < INT64_MAX;
    if (task->ordered) {
        if (!task->branch && !bounded) pyper__order_expect_one_each(output->order);
        return 0;
    }
    bool drawn = bounded && output->limit <= DRAW_PLACES_MAX && task->workers <= DRAW_WORKERS_MAX;
    return drawn ? pyper__ring_create(output, true) : 0;
}

/* What the stages and the queues need, nobody working yet: 0, PYPER_ENOMEM, PYPER_EMFILE or
 * PYPER_ENOTSUP; clear() either way. */
static int furnish(pyper_run *run, const pyper_start_options *options) {
    size_t count = run->pipeline->count;
    run->stages = pyper__alloc(count * sizeof *run->stages);
    run->queues = pyper__alloc((count + 1) * sizeof *run->queues);
    if (!run->stages || !run->queues) return PYPER_ENOMEM;
    run->count = count;
    int rc = 0;
    for (size_t i = 0; i <= count; i++) {
        const pyper__task *from = i > 0 ? run->pipeline->tasks[i - 1] : NULL;
        const pyper__task *to = i < count ? run->pipeline->tasks[i] : NULL;
        int64_t throttle = from ? from->throttle : 0;
        bool has_order = from && from->ordered && !has_ordered_places(from);
        int bad = pyper__queue_init(&run->queues[i], throttle, pyper__task_is_crowded(from),
                                    !to || pyper__task_is_crowded(to),
                                    has_order ? pyper__run_window(throttle) : 0,
                                    from ? from->type : options->type);
        if (bad) rc = bad;
    }
#if PYPER__PROCESSES
    if (rc == 0 && pyper__processes_wanted(run->pipeline)) rc = pyper__processes_create(run);
#endif
    for (size_t i = 0; i < count; i++) {
        pyper__stage *stage = &run->stages[i];
        const pyper__task *task = run->pipeline->tasks[i];
        stage->task = task;
        stage->index = i;
        stage->input = &run->queues[i];
        stage->output = &run->queues[i + 1];
        atomic_init(&stage->alive, task->workers);
        stage->workers = pyper__alloc((size_t)task->workers * sizeof *stage->workers);
        if (!stage->workers) return PYPER_ENOMEM;
        if (rc == 0) rc = choose_places(stage);
        if (!task->async) pyper__queue_push_quickly(stage->output);
        if (rc == 0) rc = let_claim(stage);
        for (int64_t k = 0; k < task->workers; k++) {
            pyper_worker *worker = &stage->workers[k];
            worker->run = run;
            worker->stage = stage;
            worker->output = stage->output;
            worker->allowed = task->branch ? INT64_MAX : 1;
            worker->at_once = stage->output->many_producers ? 0 : worker->allowed;
            worker->seat.clock = &worker->seat.own_clock;
            worker->index = k;
            if (stage->input->claims) worker->claim = &stage->input->claims->claim[k];
        }
    }
    if (rc == 0) rc = pyper__loop_create(run, options->loop);
    if (rc < 0 || run->loop || run->queues[count].channel) return rc;
    run->outputs = &run->queues[count];
    pyper__owned_lock_init(&run->outputs->pop_lock, false);
    return 0;
}

/* Start every worker, the processes first: 0, or the code of the one that could not be started
 * (*ret_worker; NULL if it was not one of them). */
static int start_workers(pyper_run *run, pyper_worker **ret_worker) {
#if PYPER__PROCESSES
    int bad = run->processes ? pyper__processes_start(run, ret_worker) : 0;
    if (bad < 0) return bad;
#endif
    for (size_t i = 0; i < run->count; i++) {
        if (run->stages[i].task->multiprocess) continue;
        for (int64_t k = 0; k < run->stages[i].task->workers; k++) {
            pyper_worker *worker = &run->stages[i].workers[k];
            atomic_fetch_add(&run->refs, 1);
            atomic_fetch_add(&run->alive, 1);
            int rc = 0;
            if (worker->slot)
                pyper__slot_enlist(worker);
            else
                rc = pyper__thread_carry(worker);
            if (rc < 0) {
                atomic_fetch_sub(&run->alive, 1);
                atomic_fetch_sub(&run->refs, 1);
                *ret_worker = worker;
                return rc;
            }
            run->stages[i].started++;
        }
    }
    return 0;
}

/* Some workers could not be started: they will not leave, either. */
static void count_unstarted_out(pyper_run *run) {
    for (size_t i = 0; i < run->count; i++) {
        pyper__stage *stage = &run->stages[i];
#if PYPER__PROCESSES
        if (stage->task->multiprocess) pyper__processes_count_unstarted_out(run, stage);
#endif
        atomic_fetch_sub(&stage->alive, stage->task->workers - stage->started);
    }
}

/* What only the start can tell, of the first task: a code, and what is wrong with it. */
static int refuse(pyper_run *run, const pyper_start_options *options, const char **ret_message) {
    const pyper__task *first = run->pipeline->tasks[0];
    if (first->join)
        *ret_message = "it is the first of the pipeline, so there is nothing for it to join; leave "
                       "join out, or pipe another task into it";
    if (first->workers > 1)
        *ret_message = "it is the first of the pipeline and called once, so it cannot have several "
                       "workers; leave workers out, or pipe another task into it";
    if (*ret_message) return PYPER_EINVAL;
    if (!first->multiprocess || pyper__type_crosses(options->type)) return 0;
    *ret_message = "its worker is a process, and the type of the run's argument has no encode and "
                   "decode, or no size; give pyper_start() a .type that has all three";
    return PYPER_EINVAL;
}

/* The argument is all that the first task gets. */
static int put_argument(pyper_run *run, void *argument) {
    pyper__queue *first = &run->queues[0];
    int rc;
#if PYPER__PROCESSES
    if (first->channel)
        rc = pyper__send(run, &run->stages[0], first, 0, argument, 0, &run->callers, NULL);
    else
#endif
        rc = pyper__queue_push(first, argument, 0, &run->callers, NULL);
    if (rc == 0) pyper__edge_set_state(first, PYPER__ENDED);
    return rc;
}

/* Why something could not be had, on this thread and just now. */
static void why(int rc, char *ret_text, size_t size) {
    const char *refused = rc == PYPER_ENOTSUP ? pyper__refused_call() : NULL;
    if (refused)
        snprintf(ret_text, size, "the system refuses %s(), which the run needs", refused);
    else
        snprintf(ret_text, size, "%s", pyper_strerror(rc));
}

/* What the run needs could not be had: fail it. */
static void fail_to_furnish(pyper_run *run, int rc) {
    char text[80];
    why(rc, text, sizeof text);
    pyper__run_fail(run, rc, NULL, rc, rc == PYPER_ENOMEM ? out_of_memory.failure.message : text,
                    NULL, NULL);
}

/* Not all workers could be started; `unstarted` is the one, NULL: it was the supervisor. */
static void fail_to_start(pyper_run *run, const pyper_worker *unstarted, int rc) {
    char reason[80], text[160];
    why(rc, reason, sizeof reason);
    if (unstarted)
        snprintf(text, sizeof text, "worker %" PRId64 " of %" PRId64 " could not be started: %s",
                 unstarted->index + 1, unstarted->stage->task->workers, reason);
    else
        snprintf(text, sizeof text, "the processes could not be looked after: %s", reason);
    pyper__run_fail(run, rc, unstarted ? unstarted->stage : NULL, rc, text, NULL, NULL);
}

static void start(pyper_run *run, const pyper_start_options *options) {
    pyper_pipeline *pipeline = run->pipeline;
    const char *message = NULL;
    int rc = pyper_pipeline_error(pipeline);
    if (rc < 0) {
        pyper__run_fail(run, rc, NULL, rc, pyper_pipeline_message(pipeline), NULL, NULL);
        destroy_argument(options);
        return;
    }
    rc = refuse(run, options, &message);
    if (rc < 0) {
        pyper__stage refused = {.task = pipeline->tasks[0]};
        pyper__run_fail(run, rc, &refused, rc, message, NULL, NULL);
        destroy_argument(options);
        return;
    }
    rc = furnish(run, options);
    if (rc == 0) rc = put_argument(run, options->argument);
    if (rc < 0) {
        clear(run);
        /* Unless the argument could not be encoded: that has failed the run already. */
        fail_to_furnish(run, rc);
        destroy_argument(options);
        return;
    }
    pyper_worker *unstarted = NULL;
    rc = start_workers(run, &unstarted);
    if (rc < 0) {
        fail_to_start(run, unstarted, rc);
        count_unstarted_out(run);
    }
    open_gate(run);
}

static pyper_host complete(const pyper_host *host) {
    pyper_host all = {.size = sizeof all};
    if (host) pyper__copy_known(&all, sizeof all, host);
    return all;
}

void pyper__run_set_host(pyper_run *run, const pyper_host *host, void *host_data) {
    run->own_host = complete(host);
    run->host = host ? &run->own_host : NULL;
    run->host_data = host_data;
}

pyper_run *pyper_start_from(const pyper_start_options *given) {
    pyper_start_options options = {.size = sizeof options};
    if (given) pyper__copy_known(&options, sizeof options, given);
    pyper__watch_forks();
    pyper__worker_watch_forks();
    pyper_run *run = pyper__alloc(sizeof *run);
    if (!run) {
        destroy_argument(&options);
        pyper_host host = complete(options.host);
        if (host.release) host.release(options.host_data, &out_of_memory);
        return &out_of_memory;
    }
    atomic_init(&run->refs, 1);
    atomic_init(&run->handles, 1);
    atomic_init(&run->alive, 1);
    run->pipeline = pyper_ref(options.pipeline);
    pyper__run_set_host(run, options.host, options.host_data);
    run->forks = atomic_load(&pyper__forks);
    pyper__event_init(&run->gate);
    pyper__event_init(&run->done);
    pyper__seat_init(&run->callers, run->host, run->host_data);
    run->callers.shared = true;
    start(run, &options);
    one_less(run, 1);
    return run;
}

/* ---------------------------------------------------------------------------------- waiting */

static bool not_busy(const void *arg) {
    const pyper_run *run = arg;
    return atomic_load(&run->joining) != JOIN_BUSY;
}

static int await(pyper_run *run, bool (*ready)(const void *), int64_t deadline_ns) {
    return pyper__await(&run->callers, &run->done, ready, run, deadline_ns, PYPER__OTHER,
                        pyper__run_is_interruptible(run));
}

static int join_threads(pyper_run *run) {
#if PYPER__PROCESSES
    int bad = run->processes ? pyper__processes_join(run) : 0;
    if (bad < 0) return bad;
#endif
    for (size_t i = 0; i < run->count; i++) {
        pyper__stage *stage = &run->stages[i];
        for (int64_t k = 0; k < stage->task->workers; k++) {
            int rc = pyper__thread_await(&stage->workers[k]);
            if (rc < 0) return rc;
        }
    }
    return 0;
}

/* All workers have left: be the one who joins their threads, or wait for him. */
int pyper__run_join_once(pyper_run *run, int64_t deadline_ns) {
    for (;;) {
        int state = JOIN_OPEN;
        if (atomic_compare_exchange_strong(&run->joining, &state, JOIN_BUSY)) {
            int rc = join_threads(run);
            /* The caller's own queue is his to empty, unless he has cancelled. */
            size_t drained = run->count;
            if (atomic_load(&run->cancelled)) drained++;
            for (size_t i = 0; rc == 0 && run->count > 0 && i < drained; i++)
                pyper__queue_drain(&run->queues[i], &run->callers);
            atomic_store(&run->joining, rc == 0 ? JOIN_DONE : JOIN_OPEN);
            pyper__event_notify_all(&run->done);
            return rc;
        }
        if (state == JOIN_DONE) return 0;
        int rc = await(run, not_busy, deadline_ns);
        if (rc < 0) return rc;
    }
}

int pyper_wait_until(pyper_run *run, int64_t deadline_ns) {
    if (!run) return PYPER_EINVAL;
    if (run == &out_of_memory) return 0;
    if (pyper__run_inherited(run)) return PYPER_EFORKED;
    if (pyper__worker_is_inside(run)) return PYPER_EDEADLK;
    /* The end waits for this very process, so for all of its threads. */
    if (run->child) return PYPER_EDEADLK;
    int rc = run->loop ? pyper__loop_await_end(run->loop, deadline_ns)
                       : await(run, pyper__run_all_left, deadline_ns);
    if (rc == 0) rc = pyper__run_join_once(run, deadline_ns);
#if PYPER__PROCESSES
    if (rc == 0 && run->processes && atomic_load(&run->cancelled)) pyper__processes_retire(run);
#endif
    return rc;
}

int pyper_close(pyper_run *run) {
    if (!run || run == &out_of_memory) return 0;
    pyper_cancel(run);
    int rc = pyper_wait_until(run, PYPER_FOREVER);
    if (rc != PYPER_EINTR) pyper_run_unref(run);
    return rc;
}

/* ----------------------------------------------------------------------------------- outputs */

int pyper__run_outcome(pyper_run *run) {
#if PYPER__PROCESSES
    if (run->processes) pyper__processes_retire(run);
#endif
    /* A worker's process can end the last edge before its wish to cancel has got here. */
    return atomic_load(&run->cancelled) ? PYPER_ECANCELED : atomic_load(&run->failed);
}

#if PYPER__PROCESSES
int pyper__run_received(pyper_run *run, int rc) {
    if (rc == PYPER_EFAILED) {
        pyper__edge_set_state(&run->queues[run->count], PYPER__CANCELLED);
        return 0;
    }
    return rc == PYPER_ECANCELED && !atomic_load(&run->cancelled) ? 0 : rc;
}

static int receive_output(pyper_run *run, void **ret_item, int64_t deadline_ns,
                          bool interruptible) {
    int64_t ticket;
    int rc = pyper__receive(run, &run->stages[run->count - 1], &run->queues[run->count], ret_item,
                            &ticket, &run->callers, deadline_ns, interruptible);
    if (rc > 0) pyper__seat_share_token(&run->callers);
    int answer = pyper__run_received(run, rc);
    /* Perhaps a host was interrupted while it decoded: let it look before it waits. */
    return rc == PYPER_EFAILED && interruptible ? PYPER_EINTR : answer;
}
#endif

/* The next output, of whatever kind of edge. */
static int pop_output(pyper_run *run, void **ret_item, int64_t deadline_ns) {
    if (run->loop) return pyper__loop_pop(run->loop, ret_item, deadline_ns);
    pyper__queue *queue = &run->queues[run->count];
    bool interruptible = pyper__run_is_interruptible(run);
#if PYPER__PROCESSES
    if (queue->channel) return receive_output(run, ret_item, deadline_ns, interruptible);
#endif
    int64_t ticket;
    return pyper__queue_pop(queue, ret_item, &ticket, &run->callers, deadline_ns, interruptible);
}

/* There was nothing to take at once. */
static PYPER__NOINLINE int next_slow(pyper_run *run, void **ret_item, int64_t deadline_ns) {
    if (!run) return PYPER_EINVAL;
    if (pyper__run_inherited(run) && run != &out_of_memory) return PYPER_EFORKED;
    if (pyper__worker_is_inside(run)) return PYPER_EDEADLK;
    if (run->child) return PYPER_EDEADLK;
    if (run->count == 0) return atomic_load(&run->failed);
    for (;;) {
        /* A failure ends the stream under workers who may be emitting: what they have put there
         * when they leave comes first. */
        bool complete = pyper__run_all_left(run);
        pyper__run_enter(run);
        int rc = pop_output(run, ret_item, deadline_ns);
        pyper__run_leave(run);
        if (rc != 0) return rc;
        rc = pyper_wait_until(run, deadline_ns);
        if (rc < 0) return rc;
        if (complete) return pyper__run_outcome(run);
    }
}

/* Inside as the owner, and not everything is as usual: no output, say, or places to give back. */
static PYPER__NOINLINE int next_with_care(pyper_run *run, void **ret_item, int64_t deadline_ns) {
    pyper__queue *queue = run->outputs;
    int64_t ticket;
    int rc = pyper__owned_lock_is_mine(&queue->pop_lock)
                 ? pyper__queue_try_pop(queue, ret_item, &ticket)
                 : PYPER__AGAIN;
    pyper__owned_lock_leave(&queue->pop_lock);
    if (rc != 1) return next_slow(run, ret_item, deadline_ns);
    pyper__seat_share_token(&run->callers);
    return 1;
}

/* There was an output, and something is left to do. */
static PYPER__NOINLINE int share_token(pyper_run *run) {
    pyper__seat_share_token(&run->callers);
    return 1;
}

static PYPER__NOINLINE int leave_slow(pyper_run *run) {
    pyper__owned_lock_leave_slow(&run->outputs->pop_lock);
    return share_token(run);
}

/* The way of most outputs: a caller who is the only one (so far), and there is an output.  It makes
 * no call, and so needs no stack frame.  Who owns the outputs has asked for one before, in this
 * process and from outside of the run. */
static inline int next(pyper_run *run, void **ret_item, int64_t deadline_ns) {
    pyper__queue *queue = run ? run->outputs : NULL;
    if (pyper__unlikely(!queue || !pyper__owned_lock_is_mine(&queue->pop_lock)))
        return next_slow(run, ret_item, deadline_ns);
    if (pyper__unlikely(!pyper__owned_lock_enter(&queue->pop_lock) ||
                        !pyper__queue_pop_at_once(queue, ret_item)))
        return next_with_care(run, ret_item, deadline_ns);
    if (pyper__unlikely(!pyper__owned_lock_leave_at_once(&queue->pop_lock))) return leave_slow(run);
    return pyper__likely(!run->callers.shares_token) ? 1 : share_token(run);
}

int pyper_next_until(pyper_run *run, void **ret_item, int64_t deadline_ns) {
    return next(run, ret_item, deadline_ns);
}

int pyper_next(pyper_run *run, void **ret_item) {
    return next(run, ret_item, PYPER_FOREVER);
}

/* ---------------------------------------------------------------------------------- failures */

int pyper_failed(pyper_run *run) {
    return run ? atomic_load(&run->failed) : PYPER_EINVAL;
}

int pyper_error_code(pyper_run *run) {
    return pyper_failed(run) && run ? run->failure.code : 0;
}

const char *pyper_error_message(pyper_run *run) {
    return pyper_failed(run) && run ? run->failure.message : "";
}

int64_t pyper_error_task(pyper_run *run) {
    return pyper_failed(run) && run ? run->failure.task : -1;
}

const void *pyper_error_bytes(pyper_run *run, size_t *ret_size) {
    if (!run || !pyper_failed(run) || !run->failure.data) return NULL;
    *ret_size = run->failure.size;
    return run->failure.data;
}

void *pyper_error_payload(pyper_run *run) {
    return pyper_failed(run) && run ? run->failure.payload : NULL;
}
