/* process - see process.h. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "process.h"

#include "edge.h"
#include "text.h"
#include "transfer.h"

#if PYPER__PROCESSES

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "thread.h"

/* ------------------------------------------------------------------------------------ board */

enum { NOT_FAILED, BEING_WRITTEN, WRITTEN };
enum { UNBORN, AT_WORK, LEAVING, LEFT };

/* Synchronization: state only grows; it is the process's until that has ended, or has turned out
 * not to be startable, and then the caller's side takes it to LEFT; read by everybody (seq_cst).
 * A worker is alive until LEAVING: as each has a word of its own for it, nobody counts one twice,
 * whenever it is killed.  clock see park.h. */
struct seat {
    _Alignas(PYPER__CACHE_LINE) _Atomic int state;
    pyper__clock clock;
};

/* Set before any process is started, never changes. */
struct post {
    char name[64];
    bool multiprocess, branch, join;
    uint64_t input, output; /* the channels */
    int64_t workers, first_seat;
};

/* Synchronization
 *   count, seats, channels, posts   set before any process is started, never change.
 *   stopped     atomic, only grows; stages below it have been told to stop.
 *   cancelled   atomic, only false -> true: a worker wants the run to be cancelled.
 *   loop_state  of the waker of the run's event loop, see park.h.
 *   failing     atomic; whoever takes it from NOT_FAILED to BEING_WRITTEN owns `failure` until he
 *               sets WRITTEN; then it does not change any more. */
struct board {
    uint64_t count; /* of stages */
    uint64_t seats;
    _Atomic uint64_t stopped;
    _Atomic bool cancelled;
    _Atomic int loop_state;
    _Atomic int failing;
    struct {
        int answer, code;
        uint64_t stage;
        uint64_t data, size; /* a block of the shared memory, or 0 */
        char message[400];
    } failure;
    struct post posts[];
};

static struct board *board_at(const pyper__shm *shm) {
    return pyper__shm_at(shm, PYPER__SHM_FIRST);
}

static struct seat *seat_at(const pyper__shm *shm, size_t stage, int64_t worker) {
    const struct board *board = board_at(shm);
    return (struct seat *)pyper__shm_at(shm, board->seats) + board->posts[stage].first_seat +
           worker;
}

static int64_t alive_at(const pyper__shm *shm, size_t stage) {
    int64_t alive = 0;
    for (int64_t k = 0; k < board_at(shm)->posts[stage].workers; k++)
        alive += atomic_load(&seat_at(shm, stage, k)->state) < LEAVING;
    return alive;
}

/* ---------------------------------------------------------------------------- caller's side */

struct process {
    pid_t pid;
    int pidfd; /* -1: it has gone */
    size_t stage;
    int64_t worker;
    void *handle;        /* of the host */
    bool killed;         /* by us */
    int64_t deadline_ns; /* it must have gone by then; 0: no hurry */
};

/* Synchronization
 *   shm, doors     set by create, never change (but for the doors' waker).
 *   waker          set before the processes are started, never changes.
 *   bell, caller, silent   set by create; closed by retire, under `lock`.  `silent` stands for the
 *              bell of a loop where there is none: a host gets no descriptor twice.
 *   inside         atomic; callers who may be using the memory.
 *   retiring, retired   atomic, only false -> true; who sets `retired` does it.
 *   processes, count   written by start, then the supervisor's own.
 *   thread, has_thread   as a worker's. */
struct pyper__processes {
    pyper__shm *shm;
    uint64_t board_size; /* with the seats and the channels */
    int bell, caller, silent;
    pyper__lock lock;
    _Atomic int64_t inside;
    _Atomic bool retiring, retired;
    pyper__channel *doors; /* one for each edge; not all are used */
    pyper__waker *waker;   /* of the run's event loop, borrowed; NULL: it has none */
    struct process *processes;
    struct pollfd *polled;
    size_t count;
    void *thread;
    bool has_thread;
};

/* ----------------------------------------------------------------------------- child's side */

/* Synchronization: set before the worker starts, never changes. */
struct pyper__child {
    pyper__shm *shm;
    int bell;
    size_t stage;
    pyper__waker waker;
};

static void ring(int bell) {
    pyper__bell_ring((const int[2]){bell, bell});
}

static int pidfd_open_(pid_t pid) {
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

static void kill_(int pidfd) {
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

static void close_(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* --------------------------------------------------------------------------------- building */

bool pyper__processes_wanted(const pyper_pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->count; i++)
        if (pipeline->tasks[i]->multiprocess) return true;
    return false;
}

static bool crosses(const pyper_pipeline *pipeline, size_t edge) {
    return (edge > 0 && pipeline->tasks[edge - 1]->multiprocess) ||
           (edge < pipeline->count && pipeline->tasks[edge]->multiprocess);
}

static int64_t crowd(const pyper__task *task) {
    return pyper__task_is_crowded(task) ? task->workers : 1;
}

/* What the channel of an edge is like. */
static pyper__channel_shape shape_of(const pyper_pipeline *pipeline, size_t edge) {
    const pyper__task *from = edge > 0 ? pipeline->tasks[edge - 1] : NULL;
    const pyper__task *to = edge < pipeline->count ? pipeline->tasks[edge] : NULL;
    return (pyper__channel_shape){
        .throttle = from ? from->throttle : 0,
        .producers = crowd(from),
        .consumers = to ? crowd(to) : 2, /* any number of threads may ask for outputs */
        .apart = to && to->multiprocess,
        .one_at_a_time = to && to->ordered,
        .order_window = from && from->ordered ? pyper__run_window(from->throttle) : 0,
    };
}

/* How much memory it takes; 0: the edge crosses nothing. */
static uint64_t size_of_channel(const pyper_pipeline *pipeline, size_t edge) {
    pyper__channel_shape shape = shape_of(pipeline, edge);
    return crosses(pipeline, edge) ? pyper__channel_size(&shape) : 0;
}

/* Lay the board out and fill it in. */
static int make_board(pyper_run *run, struct pyper__processes *all) {
    const pyper_pipeline *pipeline = run->pipeline;
    size_t count = pipeline->count;
    int64_t seats = 0;
    for (size_t i = 0; i < count; i++)
        if (pipeline->tasks[i]->multiprocess) seats += pipeline->tasks[i]->workers;
    uint64_t seats_at =
        PYPER__SHM_FIRST + pyper__shm_align(sizeof(struct board) + count * sizeof(struct post));
    uint64_t channels_at = seats_at + (uint64_t)seats * sizeof(struct seat);
    uint64_t size = channels_at - PYPER__SHM_FIRST;
    for (size_t i = 0; i <= count; i++) size += size_of_channel(pipeline, i);
    all->board_size = size;
    int rc = pyper__shm_create(size, &all->shm);
    if (rc < 0) return rc;
    all->shm->crossed = true;
    struct board *board = board_at(all->shm);
    board->count = count;
    board->seats = seats_at;
    int64_t seat = 0;
    for (size_t i = 0; i < count; i++) {
        const pyper__task *task = pipeline->tasks[i];
        struct post *post = &board->posts[i];
        pyper__text_copy(post->name, sizeof post->name, task->name);
        post->multiprocess = task->multiprocess;
        post->branch = task->branch;
        post->join = task->join;
        post->input = channels_at;
        channels_at += size_of_channel(pipeline, i);
        post->output = channels_at;
        post->workers = task->workers;
        post->first_seat = seat;
        if (task->multiprocess) seat += task->workers;
    }
    all->processes = pyper__alloc((size_t)seat * sizeof *all->processes);
    all->polled = pyper__alloc(((size_t)seat + 1) * sizeof *all->polled);
    return all->processes && all->polled ? 0 : PYPER_ENOMEM;
}

static int make_channels(pyper_run *run, struct pyper__processes *all) {
    const pyper_pipeline *pipeline = run->pipeline;
    all->doors = pyper__alloc((pipeline->count + 1) * sizeof *all->doors);
    if (!all->doors) return PYPER_ENOMEM;
    uint64_t at = board_at(all->shm)->posts[0].input;
    for (size_t i = 0; i <= pipeline->count; i++) {
        uint64_t here = at;
        at += size_of_channel(pipeline, i);
        if (!crosses(pipeline, i)) continue;
        const pyper__task *from = i > 0 ? pipeline->tasks[i - 1] : NULL;
        pyper__channel_shape shape = shape_of(pipeline, i);
        int rc = pyper__channel_init(&all->doors[i], all->shm, here, &shape);
        if (rc < 0) return rc;
        pyper__queue_cross(&run->queues[i], &all->doors[i], from && from->ordered);
    }
    return 0;
}

int pyper__processes_create(pyper_run *run) {
    struct pyper__processes *all = pyper__alloc(sizeof *all);
    if (!all) return PYPER_ENOMEM;
    all->bell = all->caller = all->silent = -1;
    run->processes = all;
    int rc = make_board(run, all);
    if (rc == 0) rc = make_channels(run, all);
    if (rc < 0) return rc;
    all->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (all->bell < 0) return pyper__no_descriptor();
    all->silent = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (all->silent < 0) return pyper__no_descriptor();
    all->caller = pidfd_open_(getpid()); /* closed on exec, by its nature */
    if (all->caller >= 0) return 0;
    return errno == ENOSYS ? PYPER_ENOTSUP : pyper__no_descriptor();
}

void pyper__processes_free(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    if (!all) return;
    if (all->has_thread) pyper__carrier_forget(run, all->thread);
    close_(&all->bell);
    close_(&all->caller);
    close_(&all->silent);
    pyper__shm_unref(all->shm);
    pyper__free(all->doors);
    pyper__free(all->processes);
    pyper__free(all->polled);
    pyper__free(all);
    run->processes = NULL;
}

_Atomic int *pyper__processes_waker_state(pyper_run *run) {
    return &board_at(run->processes->shm)->loop_state;
}

void pyper__processes_set_waker(pyper_run *run, pyper__waker *waker) {
    run->processes->waker = waker;
    for (size_t i = 0; i <= run->count; i++) run->processes->doors[i].waker = waker;
}

void pyper__processes_stop(pyper_run *run, size_t upto) {
    struct pyper__processes *all = run->processes;
    struct board *board = board_at(all->shm);
    uint64_t before = atomic_load(&board->stopped);
    while (before < upto && !atomic_compare_exchange_weak(&board->stopped, &before, upto)) {
    }
    if (before >= upto) return; /* and the supervisor knows, or is being told */
    pyper__lock_take(&all->lock);
    if (all->bell >= 0) ring(all->bell);
    pyper__lock_give(&all->lock);
}

static void retire_if_alone(struct pyper__processes *all) {
    if (!atomic_load(&all->retiring) || atomic_load(&all->inside) != 0) return;
    if (atomic_exchange(&all->retired, true)) return;
    pyper__shm_retire(all->shm, PYPER__SHM_FIRST + all->board_size);
}

void pyper__processes_retire(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    pyper__lock_take(&all->lock);
    close_(&all->bell);
    close_(&all->caller);
    close_(&all->silent);
    pyper__lock_give(&all->lock);
    atomic_store(&all->retiring, true);
    retire_if_alone(all);
}

/* Whoever enters when all is over finds no item, and uses nothing but the board.  What he writes
 * there while it is being copied may be lost: nobody waits for it any more. */
void pyper__processes_enter(pyper_run *run) {
    atomic_fetch_add(&run->processes->inside, 1);
}

void pyper__processes_leave(pyper_run *run) {
    if (atomic_fetch_sub(&run->processes->inside, 1) == 1) retire_if_alone(run->processes);
}

int pyper__processes_join(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    if (!all->has_thread) return 0;
    int rc = pyper__carrier_await(run, all->thread);
    if (rc == 0) all->has_thread = false;
    return rc;
}

/* -------------------------------------------------------------------------- a worker's process */

/* For a forked child of a function the run is over. */
bool pyper__processes_stopped(const pyper_run *run, size_t stage) {
    if (pyper__run_inherited(run)) return true;
    const pyper__shm *shm = run->child ? run->child->shm : run->processes->shm;
    return atomic_load(&board_at(shm)->stopped) > stage;
}

/* Tell the stages before `upto` to stop, and cancel the channels up to their end; the queues in the
 * caller's process are the supervisor's to cancel. */
static void child_stop(struct pyper__child *child, uint64_t upto) {
    struct board *board = board_at(child->shm);
    uint64_t before = atomic_load(&board->stopped);
    while (before < upto && !atomic_compare_exchange_weak(&board->stopped, &before, upto)) {
    }
    for (uint64_t i = 0; i <= upto && i < board->count; i++) {
        struct post *post = &board->posts[i];
        if (!post->multiprocess && !(i > 0 && board->posts[i - 1].multiprocess)) continue;
        pyper__channel input;
        pyper__channel_attach(&input, child->shm, post->input, &child->waker, 0);
        pyper__channel_set_state(&input, PYPER__CANCELLED);
    }
    ring(child->bell);
}

/* Write a failure on the board, unless there is one.  Returns whether it was written. */
static bool child_fail(struct pyper__child *child, int answer, size_t stage, int code,
                       const char *message, const void *data, size_t size) {
    struct board *board = board_at(child->shm);
    int before = NOT_FAILED;
    if (!atomic_compare_exchange_strong(&board->failing, &before, BEING_WRITTEN)) return false;
    board->failure.answer = answer;
    board->failure.code = code;
    board->failure.stage = stage;
    pyper__text_copy(board->failure.message, sizeof board->failure.message, message);
    uint64_t block = data ? pyper__shm_alloc(child->shm, size) : 0;
    if (block) memcpy(pyper__shm_at(child->shm, block), data, size);
    board->failure.data = block;
    board->failure.size = size;
    atomic_store(&board->failing, WRITTEN);
    child_stop(child, board->count);
    return true;
}

bool pyper__child_fail(pyper_run *run, int answer, size_t stage, int code, const char *message,
                       const void *data, size_t size) {
    return child_fail(run->child, answer, stage, code, message, data, size);
}

void pyper__child_cancel(pyper_run *run) {
    atomic_store(&board_at(run->child->shm)->cancelled, true);
    child_stop(run->child, board_at(run->child->shm)->count);
}

/* The worker has left: the last one of its stage ends it, as pyper__run_worker_left().  Two that
 * leave together may both find that they are, and may both end it. */
static void child_left(struct pyper__child *child, pyper__stage *stage, struct seat *seat) {
    atomic_store(&seat->state, LEAVING);
    if (alive_at(child->shm, child->stage) == 0) {
        if (!pyper__edge_is_complete(stage->input)) child_stop(child, child->stage);
        /* As there: a stage that was told to stop has not ended its stream. */
        if (atomic_load(&board_at(child->shm)->stopped) <= child->stage)
            pyper__edge_set_state(stage->output, PYPER__ENDED);
    }
    /* Until now its death is one, for the stage may not have been ended. */
    atomic_store(&seat->state, LEFT);
}

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

/* Be a worker: 0; or a code, and the run has been told why not.  Everything of `options` is known
 * to be sound.  fds[2] belongs to the follower if there is one, and to the caller after a failure;
 * so the follower comes last, for it lives as long as the process. */
static int be_worker(const pyper_attach_options *options, pyper__shm *shm) {
    struct board *board = board_at(shm);
    size_t index = (size_t)options->task;
    struct post *post = &board->posts[index];
    struct seat *seat = seat_at(shm, index, options->worker);

    struct pyper__child child = {.shm = shm, .bell = options->fds[1], .stage = index};
    child.waker.state = &board->loop_state;
    child.waker.bell[0] = child.waker.bell[1] = options->fds[3];
    size_t name = strlen(post->name) + 1;
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
                 options->worker + 1, post->workers, pyper_strerror(rc));
        child_fail(&child, rc, index, rc, message, NULL, 0);
        return rc;
    }
    pyper__channel input, output;
    pyper__channel_attach(&input, shm, post->input, &child.waker, options->worker);
    pyper__channel_attach(&output, shm, post->output, &child.waker, 0);
    pyper__queue from = {.type = options->input_type};
    pyper__queue to = {.type = options->output_type};
    pyper__queue_cross(&from, &input, false);
    pyper__queue_cross(&to, &output, pyper__channel_is_ordered(&output));

    memcpy(task->name, post->name, name);
    task->fn = options->fn;
    task->bind = options->bind;
    task->branch = post->branch;
    task->join = post->join;
    task->workers = post->workers;
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
    worker->seat.clock = &seat->clock;
    atomic_store(&seat->state, AT_WORK);
    pyper__worker_work(worker);
    if (!pyper__run_inherited(run)) child_left(&child, &stage, seat);

    if (run->failure.destroy) run->failure.destroy(run->failure.payload);
    pyper__free(run->failure.data);
    pyper__free(worker);
    pyper__free(task);
    pyper__free(run);
    return 0;
}

static bool sound(const pyper_attach_options *options, pyper__shm *shm) {
    struct board *board = board_at(shm);
    if (!options->fn || options->task < 0 || (uint64_t)options->task >= board->count) return false;
    struct post *post = &board->posts[options->task];
    return post->multiprocess && options->worker >= 0 && options->worker < post->workers &&
           pyper__type_crosses(options->input_type) && pyper__type_crosses(options->output_type);
}

int pyper_attach_from(const pyper_attach_options *given) {
    pyper_attach_options options = {.size = sizeof options, .fds = {-1, -1, -1, -1}};
    if (!given) return PYPER_EINVAL;
    memcpy(&options, given, given->size < sizeof options ? given->size : sizeof options);
    pyper__shm *shm = NULL;
    pyper__watch_forks();
    int rc = pyper__shm_attach(options.fds[0], &shm);
    if (rc == 0) shm->crossed = true;
    if (rc == 0 && !sound(&options, shm)) rc = PYPER_EINVAL;
    if (rc == 0) rc = be_worker(&options, shm);
    close_(&options.fds[1]);
    close_(&options.fds[3]);
    if (rc < 0) close_(&options.fds[2]);
    pyper__shm_unref(shm);
    return rc;
}

static int bell_of_loop(const struct pyper__processes *all) {
    return all->waker ? all->waker->bell[1] : all->silent;
}

static void do_nothing(int signal) {}

/* A forked worker: only this thread exists, and pyper__forks has grown. */
static _Noreturn void forked(pyper_run *run, const pyper__stage *stage, int64_t worker) {
    struct pyper__processes *all = run->processes;
    const pyper__task *task = stage->task;
    struct sigaction ignore = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &ignore, NULL);
    __fpurge(stdout);
    __fpurge(stderr);
    for (size_t i = 0; i < all->count; i++) close_(&all->processes[i].pidfd);
    pyper_attach_options options = {
        .size = sizeof options,
        .fds = {all->shm->fd, all->bell, all->caller, bell_of_loop(all)},
        .task = (int64_t)stage->index,
        .worker = worker,
        .fn = task->fn,
        .bind = task->bind,
        .input_type = stage->input->type,
        .output_type = stage->output->type,
        .host = run->host,
        .host_data = run->host_data,
    };
    be_worker(&options, all->shm);
    fflush(stdout);
    fflush(stderr);
    _exit(0);
}

/* ----------------------------------------------------------------------------------- starting */

static int start_process(pyper_run *run, pyper_worker *worker, struct process *process) {
    struct pyper__processes *all = run->processes;
    pyper__stage *stage = worker->stage;
    const pyper_host *host = run->host;
    process->stage = stage->index;
    process->worker = worker->index;
    if (host && host->start_process) {
        char name[128];
        pyper__worker_title(worker, name, sizeof name);
        const pyper_process what = {
            .size = sizeof what,
            .name = name,
            .fds = {all->shm->fd, all->bell, all->caller, bell_of_loop(all)},
            .task = (int64_t)stage->index,
            .worker = worker->index,
            .bind = stage->task->bind,
        };
        int64_t pid = 0;
        int rc = host->start_process(run->host_data, &what, &process->handle, &pid);
        /* Whatever a host calls it. */
        if (rc < 0) return rc == PYPER_ENOMEM ? rc : PYPER_EPROCESS;
        process->pid = (pid_t)pid;
    } else {
        process->pid = fork();
        if (process->pid == 0) forked(run, stage, worker->index);
        if (process->pid < 0) return PYPER_EPROCESS;
    }
    process->pidfd = pidfd_open_(process->pid);
    /* ESRCH: it has ended already, and somebody has waited for it (as Python does for all children
     * now and then).  The supervisor knows it by its missing descriptor. */
    if (process->pidfd >= 0 || errno == ESRCH) {
        all->count++;
        stage->started++;
        return 0;
    }
    /* Without a descriptor nobody would see it end. */
    int rc = pyper__no_descriptor();
    kill(process->pid, SIGKILL);
    if (host && host->start_process) {
        int status;
        host->join_process(run->host_data, process->handle, &status);
    } else {
        waitpid(process->pid, NULL, 0);
    }
    return rc;
}

static int start_all(pyper_run *run, pyper_worker **ret_worker) {
    struct pyper__processes *all = run->processes;
    for (size_t i = 0; i < run->count; i++) {
        if (!run->stages[i].task->multiprocess) continue;
        for (int64_t k = 0; k < run->stages[i].task->workers; k++) {
            *ret_worker = &run->stages[i].workers[k];
            int rc = start_process(run, *ret_worker, &all->processes[all->count]);
            if (rc < 0) return rc;
        }
    }
    *ret_worker = NULL;
    return 0;
}

/* --------------------------------------------------------------------------------- supervisor */

static const char *signal_text(int number) {
    const char *text = strsignal(number);
    return text ? text : "unknown signal";
}

/* A process has died: those who wait behind it, or whom it was just about to wake, do not know. */
static void rouse(pyper_run *run, const struct process *dead) {
    struct pyper__processes *all = run->processes;
    pyper__channel_bury(&all->doors[dead->stage + 1], dead->worker);
    for (size_t i = 0; i <= run->count; i++)
        if (run->queues[i].channel) pyper__channel_rouse(&all->doors[i]);
    if (all->waker) pyper__waker_wake_again(all->waker);
}

/* The process has ended: was it a death?  Then the run has failed. */
static void judge(pyper_run *run, struct process *process, int status) {
    struct pyper__processes *all = run->processes;
    struct seat *seat = seat_at(all->shm, process->stage, process->worker);
    int state = atomic_load(&seat->state);
    if (state == LEFT) return;
    rouse(run, process);
    pyper__clock *clock = &seat->clock;
    if (!atomic_load_explicit(&clock->left_ns, memory_order_relaxed))
        atomic_store_explicit(&clock->left_ns, pyper_now(), memory_order_relaxed);
    if (!process->killed && !pyper__run_stopped(run, process->stage)) {
        char message[200], who[64];
        snprintf(who, sizeof who, "worker %" PRId64 " of %" PRId64, process->worker + 1,
                 run->stages[process->stage].task->workers);
        if (status == PYPER_STATUS_UNKNOWN)
            snprintf(message, sizeof message,
                     "%s has died; how is not known, for SIGCHLD is ignored or somebody else has "
                     "waited for it",
                     who);
        else if (status < 0)
            snprintf(message, sizeof message, "%s was killed by signal %d (%s)", who, -status,
                     signal_text(-status));
        else if (state == UNBORN)
            snprintf(message, sizeof message,
                     "%s ended with exit code %d before it could begin; can its process load the "
                     "function?",
                     who, status);
        else
            snprintf(message, sizeof message,
                     "%s ended with exit code %d in the middle of its work", who, status);
        pyper__run_fail(run, PYPER_EDIED, &run->stages[process->stage], status, message, NULL,
                        NULL);
    }
    /* What it can no longer do itself.  Its stage has been told to stop in any case, so its outputs
     * have no end; whoever told it sees to both channels. */
    atomic_store(&seat->state, LEFT);
}

static void reap(pyper_run *run, struct process *process) {
    const pyper_host *host = run->host;
    int status = PYPER_STATUS_UNKNOWN;
    if (host && host->start_process) {
        host->join_process(run->host_data, process->handle, &status);
    } else {
        int raw = 0;
        pid_t pid;
        do pid = waitpid(process->pid, &raw, 0);
        while (pid < 0 && errno == EINTR);
        if (pid == process->pid) status = WIFSIGNALED(raw) ? -WTERMSIG(raw) : WEXITSTATUS(raw);
    }
    close_(&process->pidfd);
    judge(run, process, status);
}

void pyper__processes_hear(pyper_run *run) {
    pyper__shm *shm = run->processes->shm;
    struct board *board = board_at(shm);
    if (atomic_load(&board->failing) != WRITTEN) return;
    /* A worker's word for it, see shm.h. */
    uint64_t offset = board->failure.data, size = board->failure.size;
    uint64_t stage = board->failure.stage < run->count ? board->failure.stage : run->count - 1;
    bool has_data = offset && pyper__shm_holds(shm, offset, size);
    char message[sizeof board->failure.message];
    pyper__text_copy(message, sizeof message, board->failure.message);
    pyper__run_record(run, board->failure.answer, &run->stages[stage], board->failure.code, message,
                      has_data ? pyper__shm_at(shm, offset) : NULL, has_data ? size : 0);
}

/* What the processes ask for on the board, and what the run asks of them. */
static void attend(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    struct board *board = board_at(all->shm);
    pyper__processes_hear(run);
    if (atomic_load(&board->cancelled)) pyper_cancel(run);
    size_t stopped = atomic_load(&board->stopped);
    if (stopped > run->count) stopped = run->count;
    pyper__run_stop(run, stopped);
    if (stopped == 0) return;
    int64_t now = pyper_now();
    for (size_t i = 0; i < all->count; i++) {
        struct process *process = &all->processes[i];
        if (process->stage < stopped && process->deadline_ns == 0)
            process->deadline_ns = now + (int64_t)PYPER_GRACE_MS * 1000000;
        if (process->pidfd >= 0 && process->deadline_ns && !process->killed &&
            process->deadline_ns <= now) {
            process->killed = true;
            kill_(process->pidfd);
        }
    }
}

/* How many milliseconds until a process is overdue; -1: none will be. */
static int timeout(const struct pyper__processes *all) {
    int64_t next = PYPER_FOREVER;
    for (size_t i = 0; i < all->count; i++) {
        const struct process *process = &all->processes[i];
        if (process->pidfd >= 0 && process->deadline_ns && !process->killed &&
            process->deadline_ns < next)
            next = process->deadline_ns;
    }
    if (next == PYPER_FOREVER) return -1;
    int64_t left = next - pyper_now();
    return left <= 0 ? 0 : (int)(left / 1000000) + 1;
}

/* Sleep until something happens.  Without the host's token. */
static int sleep_(void *arg) {
    struct pyper__processes *all = arg;
    all->polled[0] = (struct pollfd){.fd = all->bell, .events = POLLIN};
    for (size_t i = 0; i < all->count; i++)
        all->polled[i + 1] = (struct pollfd){.fd = all->processes[i].pidfd, .events = POLLIN};
    if (poll(all->polled, all->count + 1, timeout(all)) < 0) {
        for (size_t i = 0; i <= all->count; i++) all->polled[i].revents = 0;
        return 0;
    }
    uint64_t count;
    if (all->polled[0].revents && read(all->bell, &count, sizeof count) < 0) return 0;
    return 0;
}

static void supervise(void *arg) {
    pyper_run *run = arg;
    struct pyper__processes *all = run->processes;
    size_t left = all->count;
    for (size_t i = 0; i < all->count; i++) {
        if (all->processes[i].pidfd >= 0) continue;
        reap(run, &all->processes[i]);
        left--;
    }
    while (left > 0) {
        if (run->host && run->host->detached)
            run->host->detached(run->host_data, sleep_, all);
        else
            sleep_(all);
        attend(run);
        for (size_t i = 0; i < all->count; i++) {
            if (all->processes[i].pidfd < 0 || !all->polled[i + 1].revents) continue;
            /* What it has put on the board before it ended comes first. */
            attend(run);
            reap(run, &all->processes[i]);
            left--;
        }
    }
    attend(run);
    pyper__run_left(run);
}

/* The workers' clocks stand on the board. */
static void read_from_board(pyper_run *run) {
    const pyper__shm *shm = run->processes->shm;
    for (size_t i = 0; i < run->count; i++) {
        pyper__stage *stage = &run->stages[i];
        if (!stage->task->multiprocess) continue;
        for (int64_t k = 0; k < stage->task->workers; k++)
            stage->workers[k].seat.clock = &seat_at(shm, i, k)->clock;
    }
}

int pyper__processes_start(pyper_run *run, pyper_worker **ret_worker) {
    struct pyper__processes *all = run->processes;
    read_from_board(run);
    int rc = start_all(run, ret_worker);
    if (all->count == 0) return rc;
    atomic_fetch_add(&run->refs, 1);
    atomic_fetch_add(&run->alive, 1);
    int bad = pyper__carrier_start(run, "pyper-processes", supervise, run, &all->thread);
    if (bad == 0) {
        all->has_thread = true;
        return rc;
    }
    /* Nobody could see them end: they must end here. */
    for (size_t i = 0; i < all->count; i++) {
        all->processes[i].killed = true;
        kill_(all->processes[i].pidfd);
        reap(run, &all->processes[i]);
    }
    all->count = 0;
    atomic_fetch_sub(&run->alive, 1);
    atomic_fetch_sub(&run->refs, 1);
    return rc < 0 ? rc : bad;
}

void pyper__processes_count_unstarted_out(pyper_run *run, const pyper__stage *stage) {
    for (int64_t k = stage->started; k < stage->task->workers; k++)
        atomic_store(&seat_at(run->processes->shm, stage->index, k)->state, LEFT);
}

int64_t pyper__processes_alive(const pyper_run *run, const pyper__stage *stage) {
    return alive_at(run->processes->shm, stage->index);
}

#else

int pyper_attach_from(const pyper_attach_options *options) {
    return PYPER_ENOTSUP;
}

#endif
