/* child - see child.h. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "child.h"

#include "edge.h"
#include "text.h"
#include "transfer.h"

#if PYPER__PROCESSES

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "thread.h"

/* ------------------------------------------------------------------------ telling the caller */

/* Tell the stages before `upto` to stop, and cancel the channels up to their end; the queues in the
 * caller's process are the supervisor's to cancel. */
static void child_stop(struct pyper__child *child, uint64_t upto) {
    pyper__board *board = pyper__board_at(child->shm);
    (void)pyper__board_stop(board, upto);
    for (uint64_t i = 0; i <= upto && i < board->count; i++) {
        pyper__board_stage *entry = &board->stages[i];
        if (!entry->multiprocess && !(i > 0 && board->stages[i - 1].multiprocess)) continue;
        pyper__channel input;
        pyper__channel_attach(&input, child->shm, entry->input, &child->waker, 0);
        pyper__channel_set_state(&input, PYPER__CANCELLED);
    }
    pyper__bell_ring(child->bell);
}

/* Write a failure on the board, unless there is one.  Returns whether it was written. */
static bool child_fail(struct pyper__child *child, int answer, size_t stage, int code,
                       const char *message, const void *data, size_t size) {
    pyper__board *board = pyper__board_at(child->shm);
    int before = PYPER__NOT_FAILED;
    if (!atomic_compare_exchange_strong(&board->failing, &before, PYPER__BEING_WRITTEN))
        return false;
    board->failure.answer = answer;
    board->failure.code = code;
    board->failure.stage = stage;
    pyper__text_copy(board->failure.message, sizeof board->failure.message, message);
    uint64_t block = data ? pyper__shm_alloc(child->shm, size) : 0;
    if (block) memcpy(pyper__shm_at(child->shm, block), data, size);
    board->failure.data = block;
    board->failure.size = size;
    atomic_store(&board->failing, PYPER__WRITTEN);
    child_stop(child, board->count);
    return true;
}

bool pyper__child_fail(pyper_run *run, int answer, size_t stage, int code, const char *message,
                       const void *data, size_t size) {
    return child_fail(run->child, answer, stage, code, message, data, size);
}

void pyper__child_cancel(pyper_run *run) {
    atomic_store(&pyper__board_at(run->child->shm)->cancelled, true);
    child_stop(run->child, pyper__board_at(run->child->shm)->count);
}

/* The worker has left: the last one of its stage ends it, as pyper__run_worker_left().  Two that
 * leave together may both find that they are, and may both end it. */
static void child_left(struct pyper__child *child, pyper__stage *stage, pyper__board_worker *me) {
    atomic_store(&me->state, PYPER__LEAVING);
    if (pyper__board_alive(child->shm, child->stage) == 0) {
        if (!pyper__edge_is_complete(stage->input)) child_stop(child, child->stage);
        /* As there: a stage that was told to stop has not ended its stream. */
        if (atomic_load(&pyper__board_at(child->shm)->stopped) <= child->stage)
            pyper__edge_set_state(stage->output, PYPER__ENDED);
    }
    /* Until now its death is one, for the stage may not have been ended. */
    atomic_store(&me->state, PYPER__LEFT);
}

/* -------------------------------------------------------------------------------------- work */

/* The thread that ends this process when the caller's has gone. */
static void follow(void *arg) {
    struct pollfd caller = {.fd = (int)(intptr_t)arg, .events = POLLIN};
    while (poll(&caller, 1, -1) < 0 && errno == EINTR) continue;
    _exit(1);
}

static int start_following(int caller) {
    sigset_t all, before;
    void *thread;
    sigfillset(&all); /* signals are the worker's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pyper__thread_start("pyper-follow", follow, (void *)(intptr_t)caller, &thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) pyper__thread_drop(thread);
    return rc;
}

/* The follower lives as long as the process, so it comes last of what may fail. */
int pyper__child_work(const pyper_attach_options *options, pyper__shm *shm) {
    pyper__board *board = pyper__board_at(shm);
    size_t index = (size_t)options->task;
    pyper__board_stage *entry = &board->stages[index];
    pyper__board_worker *me = pyper__board_worker_at(shm, index, options->worker);

    struct pyper__child child = {
        .shm = shm, .bell = {options->fds[1], options->fds[1]}, .stage = index};
    child.waker.state = &board->loop_state;
    child.waker.bell[0] = child.waker.bell[1] = options->fds[3];
    size_t name = strlen(entry->name) + 1;
    pyper_run *run = pyper__alloc(sizeof *run);
    pyper__task *task = pyper__alloc(sizeof *task + name);
    pyper_worker *worker = pyper__alloc(sizeof *worker);
    int rc = run && task && worker ? start_following(options->fds[2]) : PYPER_ENOMEM;
    if (rc < 0) {
        pyper__free(run);
        pyper__free(task);
        pyper__free(worker);
        char message[120];
        snprintf(message, sizeof message, "worker %" PRId64 " of %" PRId64 " could not begin: %s",
                 options->worker + 1, entry->workers, pyper_strerror(rc));
        child_fail(&child, rc, index, rc, message, NULL, 0);
        return rc;
    }
    pyper__channel input, output;
    pyper__channel_attach(&input, shm, entry->input, &child.waker, options->worker);
    pyper__channel_attach(&output, shm, entry->output, &child.waker, 0);
    pyper__queue from = {.type = options->input_type};
    pyper__queue to = {.type = options->output_type};
    pyper__queue_cross(&from, &input, false);
    pyper__queue_cross(&to, &output, pyper__channel_is_ordered(&output));

    memcpy(task->name, entry->name, name);
    task->fn = options->fn;
    task->bind = options->bind;
    task->branch = entry->branch;
    task->join = entry->join;
    task->workers = entry->workers;
    task->type = options->output_type;
    task->multiprocess = true;

    pyper__stage stage = {.task = task, .index = index, .input = &from, .output = &to};
    stage.workers = worker;
    atomic_init(&run->refs, 1);
    atomic_init(&run->handles, 1);
    run->child = &child;
    atomic_init(&run->gate_open, true);
    pyper__run_set_host(run, options->host, options->host_data);
    run->forks = atomic_load(&pyper__forks);
    pyper__seat_init(&run->callers, run->host, run->host_data);

    worker->run = run;
    worker->stage = &stage;
    worker->output = &to;
    worker->allowed = task->branch ? INT64_MAX : 1;
    worker->index = options->worker;
    worker->seat.clock = &me->clock;
    atomic_store(&me->state, PYPER__AT_WORK);
    pyper__worker_work(worker);
    if (!pyper__run_inherited(run)) child_left(&child, &stage, me);

    if (run->failure.destroy) run->failure.destroy(run->failure.payload);
    pyper__free(run->failure.data);
    pyper__free(worker);
    pyper__free(task);
    pyper__free(run);
    return 0;
}

/* --------------------------------------------------------------------------------- attaching */

static bool sound(const pyper_attach_options *options, pyper__shm *shm) {
    pyper__board *board = pyper__board_at(shm);
    if (!options->fn || options->task < 0 || (uint64_t)options->task >= board->count) return false;
    pyper__board_stage *entry = &board->stages[options->task];
    return entry->multiprocess && options->worker >= 0 && options->worker < entry->workers &&
           pyper__type_crosses(options->input_type) && pyper__type_crosses(options->output_type);
}

int pyper_attach_from(const pyper_attach_options *given) {
    pyper_attach_options options = {.size = sizeof options, .fds = {-1, -1, -1, -1}};
    if (!given) return PYPER_EINVAL;
    pyper__copy_known(&options, sizeof options, given);
    pyper__shm *shm = NULL;
    pyper__watch_forks();
    int rc = pyper__shm_attach(options.fds[0], &shm);
    if (rc == 0) shm->crossed = true;
    if (rc == 0 && !sound(&options, shm)) rc = PYPER_EINVAL;
    if (rc == 0) rc = pyper__child_work(&options, shm);
    pyper__fd_close(&options.fds[1]);
    pyper__fd_close(&options.fds[3]);
    if (rc < 0) pyper__fd_close(&options.fds[2]);
    pyper__shm_unref(shm);
    return rc;
}

#else

int pyper_attach_from(const pyper_attach_options *options) {
    return PYPER_ENOTSUP;
}

#endif
