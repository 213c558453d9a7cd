/* worker - see worker.h, and pyper.h for what functions may call. */
#include "worker.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

#include "ring.h"
#include "text.h"
#include "transfer.h"

_Thread_local pyper_worker *pyper__worker_current PYPER__TLS_MODEL;

void pyper__worker_title(const pyper_worker *worker, char *ret_title, size_t size) {
    const pyper__task *task = worker->stage->task;
    if (task->workers == 1)
        pyper__text_copy(ret_title, size, task->name);
    else
        snprintf(ret_title, size, "%.*s-%" PRId64, pyper__text_fit(task->name, 100), task->name,
                 worker->index);
}

/* The function has forked, and this is the child. */
static bool is_in_fork(const pyper_worker *worker) {
    return pyper__run_inherited(worker->run);
}

/* The same, seen by whoever looks at how much has been emitted: no output goes the quick way any
 * more, no input comes, and no call of the function is as it should be. */
static void disown(pyper_worker *worker) {
    worker->emitted = worker->allowed = worker->at_once = INT64_MIN;
    worker->pulls = false;
}

static void in_child(void) {
    for (pyper_worker *worker = pyper__worker_current; worker; worker = worker->outer)
        disown(worker);
}

static void watch(void) {
    pthread_atfork(NULL, NULL, in_child);
}

void pyper__worker_watch_forks(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch);
}

/* ----------------------------------------------------------------------------- the loop */

void pyper__worker_fail(pyper_worker *worker, int answer, int code, const char *message) {
    pyper__run_fail(worker->run, answer, worker->stage, code, message, NULL, NULL);
}

/* The function's answer was negative: is that a failure, and has it been reported? */
void pyper__worker_judge(pyper_worker *worker, int rc) {
    if (rc == PYPER_ECANCELED && pyper__worker_stopped(worker)) return;
    char message[128];
    if (rc == PYPER_ECANCELED)
        snprintf(message, sizeof message, "returned PYPER_ECANCELED, but the run is not cancelled");
    else
        snprintf(message, sizeof message, "returned %d (%s)", rc, pyper_strerror(rc));
    /* After pyper_fail() the run has failed already, and this one is not recorded. */
    pyper__worker_fail(worker, PYPER_EFAILED, rc, message);
}

/* A call has returned: is this worker to go on? */
static PYPER__COLD bool after_odd_call(pyper_worker *worker, int rc) {
    if (is_in_fork(worker)) return false;
    if (rc < 0)
        pyper__worker_judge(worker, rc);
    else if (!pyper__worker_stopped(worker))
        pyper__worker_fail(worker, PYPER_EFAILED, PYPER_EINVAL,
                           "returned without an output; emit exactly one, or set branch");
    return false;
}

/* With an order: pass the turn on. */
static bool after_ordered_call(pyper_worker *worker) {
    pyper__queue *output = worker->output;
    int rc;
#if PYPER__PROCESSES
    if (output->channel)
        rc = pyper__send_done(output, worker->ticket, &worker->seat, worker->stage->input);
    else
#endif
        rc = pyper__order_done(output->order, worker->ticket, &worker->seat, worker->stage->input);
    if (rc == PYPER_ENOMEM) pyper__worker_fail(worker, PYPER_ENOMEM, rc, pyper_strerror(rc));
    return rc == 0;
}

/* One call of the function.  False: this worker is done. */
static inline bool call(pyper_worker *worker, const pyper__task *task, void *item, bool plain) {
    worker->emitted = 0;
    int rc = task->fn(worker, item, task->bind);
    if (pyper__unlikely(rc < 0 || (worker->emitted != 1 && (!task->branch || worker->emitted < 0))))
        return after_odd_call(worker, rc);
    if (pyper__unlikely(!plain && worker->output->passes_turn)) return after_ordered_call(worker);
    return true;
}

/* There may be something to do, or to wait for. */
static PYPER__NOINLINE int take_slow(pyper_worker *worker, pyper__queue *input, void **ret_item,
                                     int64_t deadline_ns) {
#if PYPER__PROCESSES
    if (input->channel)
        return pyper__receive(worker->run, worker->stage, input, ret_item, &worker->ticket,
                              &worker->seat, deadline_ns, false);
#endif
    return pyper__queue_pop(input, ret_item, &worker->ticket, &worker->seat, deadline_ns, false);
}

static PYPER__NOINLINE int take_alone(pyper_worker *worker, pyper__queue *input, void **ret_item,
                                      int64_t deadline_ns) {
    int rc = pyper__queue_pop_with_care(input, ret_item);
    return rc != PYPER__AGAIN ? rc : take_slow(worker, input, ret_item, deadline_ns);
}

static PYPER__NOINLINE int take_shared(pyper_worker *worker, pyper__queue *input, void **ret_item,
                                       int64_t deadline_ns) {
    if (!input->channel && pyper__queue_pop_shared(input, ret_item, &worker->ticket)) return 1;
    return take_slow(worker, input, ret_item, deadline_ns);
}

/* The next input of a worker; waits for it.  Most come out at once, and then stay in registers:
 * what the slow ways write to is another variable. */
static PYPER__ALWAYS_INLINE int take_own(pyper_worker *worker, pyper__queue *input, void **ret_item,
                                         int64_t deadline_ns) {
    void *at_once, *slowly;
    if (pyper__likely(pyper__queue_pop_at_once(input, &at_once))) {
        *ret_item = at_once;
        return 1;
    }
    int rc = take_alone(worker, input, &slowly, deadline_ns);
    if (rc > 0) *ret_item = slowly;
    return rc;
}

/* The same where several share the inputs, and claim some ahead. */
static PYPER__ALWAYS_INLINE int take_claimed(pyper_worker *worker, pyper__queue *input,
                                             void **ret_item) {
    void *at_once, *slowly;
    int64_t ticket;
    if (pyper__likely(pyper__claim_take(input, worker->claim, &at_once, &ticket))) {
        worker->ticket = ticket;
        *ret_item = at_once;
        return 1;
    }
    int rc = pyper__claim_pop(input, worker->claim, &slowly, &worker->ticket, &worker->seat);
    if (rc > 0) *ret_item = slowly;
    return rc;
}

/* The same wherever nobody claims. */
static inline int take(pyper_worker *worker, pyper__queue *input, void **ret_item,
                       int64_t deadline_ns) {
    if (pyper__unlikely(input->many_consumers))
        return take_shared(worker, input, ret_item, deadline_ns);
    worker->ticket = atomic_load_explicit(&input->head, memory_order_relaxed);
    return take_own(worker, input, ret_item, deadline_ns);
}

/* Most workers have their input for themselves, nobody behind them asks for a ticket, and there is
 * no token to share: then nothing is to be looked after from one item to the next. */
static bool is_plain(const pyper_worker *worker) {
    const pyper__queue *output = worker->output;
    return !worker->stage->input->many_consumers && !output->order && !output->channel &&
           !worker->seat.shares_token;
}

/* In each of the three loops nothing is held at the top: no item, no lock; only the host's
 * token. */

static void work_plainly(pyper_worker *worker) {
    const pyper__task *task = worker->stage->task;
    pyper__queue *input = worker->stage->input;
    for (void *item; take_own(worker, input, &item, PYPER_FOREVER) > 0;)
        if (!call(worker, task, item, true)) return;
}

static void work_claiming(pyper_worker *worker) {
    const pyper__task *task = worker->stage->task;
    pyper__queue *input = worker->stage->input;
    for (void *item; take_claimed(worker, input, &item) > 0;) {
        if (!call(worker, task, item, false)) break;
        pyper__seat_share_token(&worker->seat);
    }
    if (!is_in_fork(worker)) pyper__claim_drop(input, worker->claim, &worker->seat);
}

static void work_with_care(pyper_worker *worker) {
    const pyper__task *task = worker->stage->task;
    pyper__queue *input = worker->stage->input;
    for (void *item; take(worker, input, &item, PYPER_FOREVER) > 0;) {
        if (!call(worker, task, item, false)) return;
        pyper__seat_share_token(&worker->seat);
    }
}

static void work(pyper_worker *worker) {
    const pyper__task *task = worker->stage->task;
    if (task->join) {
        if (!pyper__worker_stopped(worker)) call(worker, task, NULL, false);
    } else if (is_plain(worker)) {
        work_plainly(worker);
    } else if (worker->claim) {
        work_claiming(worker);
    } else {
        work_with_care(worker);
    }
}

void pyper__worker_work(pyper_worker *worker) {
    pyper_run *run = worker->run;
    worker->pulls = worker->stage->task->join;
    pyper__worker_current = worker;
    pyper__seat_init(&worker->seat, run->host, run->host_data);
    pyper__run_wait_for_gate(run, &worker->seat);
    pyper__clock *clock = worker->seat.clock;
    atomic_store_explicit(&clock->started_ns, pyper_now(), memory_order_relaxed);
    work(worker);
    if (!is_in_fork(worker))
        atomic_store_explicit(&clock->left_ns, pyper_now(), memory_order_relaxed);
    pyper__worker_current = NULL;
}

void pyper__worker_main(void *arg) {
    pyper_worker *worker = arg;
    pyper_run *run = worker->run;
    pyper__seat_has_come(run->host);
    pyper__worker_work(worker);
    if (is_in_fork(worker)) return;
    pyper__run_worker_left(run, worker->stage);
    pyper__run_release(run);
}

/* --------------------------------------------------------------- what functions may call */

PYPER__COLD int pyper__worker_refuse(pyper_worker *worker, void *item, int rc) {
    const pyper_item_type *type = worker->stage->task->type;
    if (type && type->destroy) type->destroy(item);
    if (rc == PYPER_EINVAL)
        pyper__worker_fail(worker, PYPER_EFAILED, rc,
                           "emitted twice in one call; emit exactly one, or set branch");
    else if (rc == PYPER_ENOMEM)
        pyper__worker_fail(worker, PYPER_ENOMEM, rc, pyper_strerror(rc));
    return rc;
}

static PYPER__NOINLINE int share_token(pyper_worker *worker) {
    pyper__seat_share_token(&worker->seat);
    return 0;
}

static PYPER__NOINLINE int notify(pyper_worker *worker) {
    pyper__event_notify_slow(&worker->output->items, 1);
    return worker->seat.shares_token ? share_token(worker) : 0;
}

/* An item went into the queue at once. */
static inline int after_push(pyper_worker *worker, pyper__queue *output) {
    worker->emitted++;
    if (pyper__unlikely(pyper__event_has_waiters_light(&output->items))) return notify(worker);
    if (pyper__unlikely(worker->seat.shares_token)) return share_token(worker);
    return 0;
}

static PYPER__NOINLINE int push_and_wait(pyper_worker *worker, void *item) {
    pyper__queue *output = worker->output, *input = worker->stage->input;
#if PYPER__PROCESSES
    /* A worker's process that has failed or cancelled the run knows so before the caller's does,
     * who is to close this edge. */
    if (worker->run->child && pyper__worker_stopped(worker)) return PYPER_ECANCELED;
    if (output->channel)
        return pyper__send(worker->run, worker->stage, output, worker->index, item, worker->ticket,
                           &worker->seat, input);
#endif
    return pyper__queue_push(output, item, worker->ticket, &worker->seat, input);
}

/* The queue has the item, but the worker must not go on: the queue is open no more, or, with an
 * order, there was no memory to move the turn on. */
static PYPER__COLD int taken_in_vain(pyper_worker *worker) {
    if (worker->output->order)
        pyper__worker_fail(worker, PYPER_ENOMEM, PYPER_ENOMEM, pyper_strerror(PYPER_ENOMEM));
    return PYPER_ECANCELED;
}

/* Anything but an item that goes into the queue at once. */
static PYPER__NOINLINE int emit_slow(pyper_worker *worker, void *item) {
    if (worker->slot) return pyper__slot_emit(worker, item);
    if (worker->emitted >= worker->allowed)
        return pyper__worker_refuse(worker, item,
                                    is_in_fork(worker) ? PYPER_ECANCELED : PYPER_EINVAL);
    pyper__queue *output = worker->output;
    int rc = PYPER__AGAIN;
    if (output->order) {
        struct pyper__turn wait;
        rc = pyper__order_try_push(output->order, item, worker->ticket, &wait);
    } else if (output->ring) {
        rc = pyper__ring_try_push(output, item, worker->ticket);
    } else {
        bool seldom = worker->claim && worker->claim->seldom;
        if (pyper__queue_push_shared(output, item, seldom, &worker->near))
            return after_push(worker, output);
    }
    if (pyper__unlikely(rc == PYPER__AGAIN)) rc = push_and_wait(worker, item);
    if (pyper__unlikely(rc == PYPER__TAKEN)) return taken_in_vain(worker);
    if (pyper__unlikely(rc < 0)) return pyper__worker_refuse(worker, item, rc);
    worker->emitted++;
    if (worker->allowed > 1) pyper__seat_share_token(&worker->seat);
    return 0;
}

int pyper_emit(pyper_worker *worker, void *item) {
    pyper__queue *output = worker->output;
    /* Where several share the end its first touch is the taking of its lock: to read there before
     * would fetch the same cache line twice. */
    if (pyper__unlikely(worker->emitted >= worker->at_once ||
                        !pyper__queue_push_at_once(output, item)))
        return emit_slow(worker, item);
    return after_push(worker, output);
}

int pyper_pull_until(pyper_worker *worker, void **ret_item, int64_t deadline_ns) {
    if (pyper__unlikely(!worker->pulls)) return is_in_fork(worker) ? PYPER_ECANCELED : PYPER_EINVAL;
    void *item;
    int rc = take(worker, worker->stage->input, &item, deadline_ns);
    if (rc > 0) *ret_item = item;
    pyper__seat_share_token(&worker->seat);
    return rc;
}

int pyper_pull(pyper_worker *worker, void **ret_item) {
    return pyper_pull_until(worker, ret_item, PYPER_FOREVER);
}

int pyper_fail(pyper_worker *worker, int code, const char *format, ...) {
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    pyper__text_end(message);
    pyper__worker_fail(worker, PYPER_EFAILED, code, message);
    return PYPER_EFAILED;
}

int pyper_fail_with(pyper_worker *worker, int code, const char *message, void *payload,
                    void (*destroy)(void *payload)) {
    bool first = pyper__run_fail(worker->run, PYPER_EFAILED, worker->stage, code,
                                 message ? message : "failed", payload, destroy);
    return first ? PYPER_EFAILED : PYPER_ECANCELED;
}

int pyper_fail_bytes(pyper_worker *worker, int code, const char *message, const void *data,
                     size_t size) {
    bool first = pyper__run_fail_bytes(worker->run, PYPER_EFAILED, worker->stage, code,
                                       message ? message : "failed", data, size);
    return first ? PYPER_EFAILED : PYPER_ECANCELED;
}

/* A cancel tells the stages first and then the queues, the last one first (see stop() in run.c).  A
 * function on a thread learns of it when its own input refuses: so whoever has seen it knows that
 * no call begins after that.  If its output refuses already, and it may know that, the input is the
 * next to be cancelled; that is done here, or at least complete when this returns. */
bool pyper_cancelled(const pyper_worker *worker) {
    if (is_in_fork(worker)) return true;
    if (!pyper__worker_stopped(worker)) return false;
    pyper__queue *input = worker->stage->input;
    if (worker->slot || input->channel) return true;
    if (pyper__queue_state(input) != PYPER__CANCELLED &&
        pyper__edge_state(worker->output) != PYPER__CANCELLED)
        return false;
    pyper__queue_set_state(input, PYPER__CANCELLED);
    return true;
}

pyper_run *pyper_worker_run(const pyper_worker *worker) {
    return worker->run;
}

size_t pyper_worker_task(const pyper_worker *worker) {
    return worker->stage->index;
}

int64_t pyper_worker_index(const pyper_worker *worker) {
    return worker->index;
}

const char *pyper_worker_name(const pyper_worker *worker) {
    return worker->stage->task->name;
}

void *pyper_worker_bind(const pyper_worker *worker) {
    return worker->stage->task->bind;
}

void *pyper_worker_host_data(const pyper_worker *worker) {
    return worker->run->host_data;
}
