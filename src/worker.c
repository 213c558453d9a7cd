/* worker - see worker.h, and pyper.h for what functions may call. */
#include "worker.h"

#include <stdarg.h>
#include <stdio.h>

/* The worker that this thread carries, if any. */
static _Thread_local const pyper_worker *current;

bool pyper__worker_is_inside(const pyper_run *run) {
    return (current && current->run == run) || pyper__slot_is_inside(run);
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

/* One call of the function.  False: this worker is done. */
static bool call(pyper_worker *worker, void *item) {
    const pyper__task *task = worker->stage->task;
    worker->emitted = 0;
    int rc = task->fn(worker, item, task->bind);
    if (pyper__unlikely(rc < 0)) {
        pyper__worker_judge(worker, rc);
        return false;
    }
    if (pyper__unlikely(!task->branch && worker->emitted != 1)) {
        if (!pyper__worker_stopped(worker))
            pyper__worker_fail(worker, PYPER_EFAILED, PYPER_EINVAL,
                               "returned without an output; emit exactly one, or set branch");
        return false;
    }
    if (worker->output->order) {
        rc = pyper__order_done(worker->output->order, worker->ticket, &worker->seat,
                               worker->stage->input);
        if (rc == PYPER_ENOMEM) pyper__worker_fail(worker, PYPER_ENOMEM, rc, pyper_strerror(rc));
        if (rc < 0) return false;
    }
    return true;
}

static void work(pyper_worker *worker) {
    pyper__stage *stage = worker->stage;
    if (stage->task->join) {
        if (!pyper__worker_stopped(worker)) call(worker, NULL);
        return;
    }
    /* At the top nothing is held: no item, no lock; only the host's token. */
    void *item;
    while (pyper__queue_pop(stage->input, &item, &worker->ticket, &worker->seat) > 0) {
        if (!call(worker, item)) return;
        pyper__seat_share_token(&worker->seat);
    }
}

void pyper__worker_main(void *arg) {
    pyper_worker *worker = arg;
    pyper_run *run = worker->run;
    current = worker;
    pyper__seat_init(&worker->seat, run->host, run->host_data);
    pyper__run_wait_for_gate(run, &worker->seat);
    atomic_store_explicit(&worker->started_ns, pyper_now(), memory_order_relaxed);
    work(worker);
    atomic_store_explicit(&worker->left_ns, pyper_now(), memory_order_relaxed);
    current = NULL;
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

int pyper_emit(pyper_worker *worker, void *item) {
    /* A slot looks like a call that has emitted: so that it takes the slow way. */
    if (pyper__unlikely(!worker->branch && worker->emitted > 0))
        return worker->slot ? pyper__slot_emit(worker, item)
                            : pyper__worker_refuse(worker, item, PYPER_EINVAL);
    int rc = pyper__queue_push(worker->output, item, worker->ticket, &worker->seat,
                               worker->stage->input);
    if (pyper__unlikely(rc < 0)) return pyper__worker_refuse(worker, item, rc);
    worker->emitted++;
    if (worker->branch) pyper__seat_share_token(&worker->seat);
    return 0;
}

int pyper_pull_until(pyper_worker *worker, void **ret_item, int64_t deadline_ns) {
    if (!worker->stage->task->join || worker->slot) return PYPER_EINVAL;
    pyper__queue *input = worker->stage->input;
    void *item;
    int rc = PYPER__AGAIN;
    if (!input->many_consumers) rc = pyper__queue_try_pop(input, &item, &worker->ticket);
    if (rc == PYPER__AGAIN)
        rc = pyper__queue_pop_slow(input, &item, &worker->ticket, &worker->seat, deadline_ns, false);
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
    pyper__worker_fail(worker, PYPER_EFAILED, code, message);
    return PYPER_EFAILED;
}

int pyper_fail_with(pyper_worker *worker, int code, const char *message, void *payload,
                    void (*destroy)(void *payload)) {
    bool first = pyper__run_fail(worker->run, PYPER_EFAILED, worker->stage, code,
                                 message ? message : "failed", payload, destroy);
    return first ? PYPER_EFAILED : PYPER_ECANCELED;
}

bool pyper_cancelled(const pyper_worker *worker) {
    return pyper__worker_stopped(worker);
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
