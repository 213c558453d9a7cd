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
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "signals.h"
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

bool pyper__process_has_gone(int pidfd) {
    return syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) < 0 && errno == ESRCH;
}

/* The thread that ends this process when the caller's has gone. */
static void follow(void *arg) {
    struct pollfd caller = {.fd = (int)(intptr_t)arg, .events = POLLIN};
    while (pyper__poll(&caller, 1, -1) < 0 && !pyper__process_has_gone(caller.fd)) continue;
    _exit(1);
}

static int start_following(int caller) {
    sigset_t held;
    void *thread;
    pyper__hold_signals(&held); /* they are the worker's */
    int rc = pyper__thread_start("pyper-follow", follow, (void *)(intptr_t)caller, &thread);
    pyper__let_signals(&held);
    if (rc == 0) pyper__thread_drop(thread);
    return rc;
}

/* The run as it is seen from here: one stage, of one worker, between two channels. */
struct view {
    pyper_run *run;
    pyper__task *task;
    pyper_worker *worker;
    pyper__stage stage;
    pyper__queue input, output;
    pyper__channel input_door, output_door;
};

/* 0 or a code; view_free() either way.  The follower lives as long as the process, so it comes last
 * of what may fail. */
static int view_make(struct view *view, const pyper__board_stage *entry, int caller) {
    view->run = pyper__alloc(sizeof *view->run);
    view->task = pyper__alloc(sizeof *view->task + sizeof entry->name);
    view->worker = pyper__alloc(sizeof *view->worker);
    if (!view->run || !view->task || !view->worker) return PYPER_ENOMEM;
    return start_following(caller);
}

static void view_free(struct view *view) {
    if (view->run && view->run->failure.destroy)
        view->run->failure.destroy(view->run->failure.payload);
    if (view->run) pyper__free(view->run->failure.data);
    pyper__free(view->worker);
    pyper__free(view->task);
    pyper__free(view->run);
}

static void fill_task(pyper__task *task, const pyper__board_stage *entry,
                      const pyper_attach_options *options) {
    memcpy(task->name, entry->name, sizeof entry->name);
    task->fn = options->fn;
    task->bind = options->bind;
    task->branch = entry->branch;
    task->join = entry->join;
    task->workers = entry->workers;
    task->type = options->output_type;
    task->multiprocess = true;
}

static void fill_edges(struct view *view, const pyper__board_stage *entry,
                       struct pyper__child *child, const pyper_attach_options *options) {
    pyper__channel_attach(&view->input_door, child->shm, entry->input, &child->waker,
                          options->worker);
    pyper__channel_attach(&view->output_door, child->shm, entry->output, &child->waker, 0);
    view->input.type = options->input_type;
    view->output.type = options->output_type;
    pyper__queue_cross(&view->input, &view->input_door, false);
    pyper__queue_cross(&view->output, &view->output_door,
                       pyper__channel_is_ordered(&view->output_door));
}

static void fill_run(pyper_run *run, struct pyper__child *child,
                     const pyper_attach_options *options) {
    atomic_init(&run->refs, 1);
    atomic_init(&run->handles, 1);
    run->child = child;
    atomic_init(&run->gate_open, true);
    pyper__run_set_host(run, options->host, options->host_data);
    run->forks = atomic_load(&pyper__forks);
    pyper__seat_init(&run->callers, run->host, run->host_data);
}

static void fill_worker(struct view *view, pyper__board_worker *me, int64_t index) {
    pyper_worker *worker = view->worker;
    worker->run = view->run;
    worker->stage = &view->stage;
    worker->output = &view->output;
    worker->allowed = view->task->branch ? INT64_MAX : 1;
    worker->index = index;
    worker->seat.clock = &me->clock;
}

static void work(struct view *view, struct pyper__child *child, pyper__board_worker *me) {
    atomic_store(&me->state, PYPER__AT_WORK);
    pyper__worker_work(view->worker);
    if (!pyper__run_inherited(view->run)) child_left(child, &view->stage, me);
}

int pyper__child_work(const pyper_attach_options *options, pyper__shm *shm) {
    pyper__board *board = pyper__board_at(shm);
    size_t index = (size_t)options->task;
    const pyper__board_stage *entry = &board->stages[index];
    pyper__board_worker *me = pyper__board_worker_at(shm, index, options->worker);
    struct pyper__child child = {
        .shm = shm, .bell = {options->fds[1], options->fds[1]}, .stage = index};
    child.waker.state = &board->loop_state;
    child.waker.bell[0] = child.waker.bell[1] = options->fds[3];
    struct view view = {.stage = {.index = index}};
    int rc = view_make(&view, entry, options->fds[2]);
    if (rc == 0) {
        fill_task(view.task, entry, options);
        fill_edges(&view, entry, &child, options);
        fill_run(view.run, &child, options);
        fill_worker(&view, me, options->worker);
        view.stage.task = view.task;
        view.stage.workers = view.worker;
        view.stage.input = &view.input;
        view.stage.output = &view.output;
        work(&view, &child, me);
    } else {
        char message[120];
        snprintf(message, sizeof message, "worker %" PRId64 " of %" PRId64 " could not begin: %s",
                 options->worker + 1, entry->workers, pyper_strerror(rc));
        child_fail(&child, rc, index, rc, message, NULL, 0);
    }
    view_free(&view);
    return rc;
}

/* --------------------------------------------------------------------------------- attaching */

static bool sound(const pyper_attach_options *options, pyper__shm *shm) {
    pyper__board *board = pyper__board_at(shm);
    if (!options->fn || options->task < 0 || (uint64_t)options->task >= board->count) return false;
    pyper__board_stage *entry = &board->stages[options->task];
    return entry->multiprocess && options->worker >= 0 && options->worker < entry->workers &&
           pyper__type_crosses(options->input_type) && pyper__type_crosses(options->output_type);
}

/* A host may have passed them through an exec or a socket, so they need not be.  What the function
 * executes is to have none of them: it may outlive the run. */
static void close_on_exec(const int *fds) {
    for (int i = 0; i < PYPER_PROCESS_FDS; i++) (void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
}

int pyper_attach_from(const pyper_attach_options *given) {
    pyper_attach_options options = {.size = sizeof options, .fds = {-1, -1, -1, -1}};
    if (!given) return PYPER_EINVAL;
    pyper__copy_known(&options, sizeof options, given);
    close_on_exec(options.fds);
    pyper__shm *shm = NULL;
    pyper__watch_forks();
    pyper__worker_watch_forks();
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
