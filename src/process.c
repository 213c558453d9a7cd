/* process - see process.h. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "process.h"

#include "board.h"
#include "child.h"
#include "edge.h"
#include "text.h"

#if PYPER__PROCESSES

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "signals.h"
#include "thread.h"

/* One worker's process; see `processes` below. */
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
 *   shm, board_size, doors   set by create, never change (but for the doors' waker).
 *   waker          set before the processes are started, never changes.
 *   bell, caller, silent   set by create; closed by retire, under `lock`.  `silent` stands for the
 *              bell of a loop where there is none: a host gets no descriptor twice.
 *   inside         atomic; callers who may be using the memory.
 *   retiring, retired   atomic, only false -> true; who sets `retired` does it.
 *   processes, count, polled   written by start, then the supervisor's own.
 *   thread, has_thread   as a worker's. */
struct pyper__processes {
    pyper__shm *shm;
    uint64_t board_size; /* with the channels */
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

static int pidfd_open_(pid_t pid) {
    return pyper__fd_keep((int)syscall(SYS_pidfd_open, pid, 0));
}

static void kill_(int pidfd) {
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
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
    int64_t workers = 0;
    for (size_t i = 0; i < count; i++)
        if (pipeline->tasks[i]->multiprocess) workers += pipeline->tasks[i]->workers;
    uint64_t workers_at = PYPER__SHM_FIRST + pyper__shm_align(sizeof(pyper__board) +
                                                              count * sizeof(pyper__board_stage));
    uint64_t channels_at = workers_at + (uint64_t)workers * sizeof(pyper__board_worker);
    uint64_t size = channels_at - PYPER__SHM_FIRST;
    for (size_t i = 0; i <= count; i++) size += size_of_channel(pipeline, i);
    all->board_size = size;
    int rc = pyper__shm_create(size, &all->shm);
    if (rc < 0) return rc;
    all->shm->crossed = true;
    pyper__board *board = pyper__board_at(all->shm);
    board->count = count;
    board->workers = workers_at;
    int64_t worker = 0;
    for (size_t i = 0; i < count; i++) {
        const pyper__task *task = pipeline->tasks[i];
        pyper__board_stage *entry = &board->stages[i];
        pyper__text_copy(entry->name, sizeof entry->name, task->name);
        entry->multiprocess = task->multiprocess;
        entry->branch = task->branch;
        entry->join = task->join;
        entry->input = channels_at;
        channels_at += size_of_channel(pipeline, i);
        entry->output = channels_at;
        entry->workers = task->workers;
        entry->first_worker = worker;
        if (task->multiprocess) worker += task->workers;
    }
    all->processes = pyper__alloc((size_t)workers * sizeof *all->processes);
    all->polled = pyper__alloc(((size_t)workers + 1) * sizeof *all->polled);
    return all->processes && all->polled ? 0 : PYPER_ENOMEM;
}

static int make_channels(pyper_run *run, struct pyper__processes *all) {
    const pyper_pipeline *pipeline = run->pipeline;
    all->doors = pyper__alloc((pipeline->count + 1) * sizeof *all->doors);
    if (!all->doors) return PYPER_ENOMEM;
    uint64_t at = pyper__board_at(all->shm)->stages[0].input;
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
    all->bell = pyper__fd_keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (all->bell < 0) return pyper__why_refused("eventfd");
    all->silent = pyper__fd_keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (all->silent < 0) return pyper__why_refused("eventfd");
    all->caller = pidfd_open_(getpid()); /* closed on exec, by its nature */
    return all->caller < 0 ? pyper__why_refused("pidfd_open") : 0;
}

static void close_own(struct pyper__processes *all) {
    pyper__fd_close(&all->bell);
    pyper__fd_close(&all->caller);
    pyper__fd_close(&all->silent);
}

void pyper__processes_free(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    if (!all) return;
    if (all->has_thread) pyper__carrier_forget(run, all->thread);
    close_own(all);
    /* Nobody looks at the board any more; items that are kept may still need some of the memory. */
    if (all->shm) pyper__shm_retire(all->shm, PYPER__SHM_FIRST);
    pyper__shm_unref(all->shm);
    pyper__free(all->doors);
    pyper__free(all->processes);
    pyper__free(all->polled);
    pyper__free(all);
    run->processes = NULL;
}

_Atomic int *pyper__processes_waker_state(pyper_run *run) {
    return &pyper__board_at(run->processes->shm)->loop_state;
}

void pyper__processes_set_waker(pyper_run *run, pyper__waker *waker) {
    run->processes->waker = waker;
    for (size_t i = 0; i <= run->count; i++) run->processes->doors[i].waker = waker;
}

void pyper__processes_stop(pyper_run *run, size_t upto) {
    struct pyper__processes *all = run->processes;
    pyper__board *board = pyper__board_at(all->shm);
    if (!pyper__board_stop(board, upto)) return; /* and the supervisor knows, or is being told */
    pyper__lock_take(&all->lock);
    if (all->bell >= 0) pyper__bell_ring((const int[2]){all->bell, all->bell});
    pyper__lock_give(&all->lock);
}

/* For a forked child of a function the run is over. */
bool pyper__processes_stopped(const pyper_run *run, size_t stage) {
    if (pyper__run_inherited(run)) return true;
    const pyper__shm *shm = run->child ? run->child->shm : run->processes->shm;
    return atomic_load(&pyper__board_at(shm)->stopped) > stage;
}

static void retire_if_alone(struct pyper__processes *all) {
    if (!atomic_load(&all->retiring) || atomic_load(&all->inside) != 0) return;
    if (atomic_exchange(&all->retired, true)) return;
    pyper__shm_retire(all->shm, PYPER__SHM_FIRST + all->board_size);
}

void pyper__processes_retire(pyper_run *run) {
    struct pyper__processes *all = run->processes;
    pyper__lock_take(&all->lock);
    close_own(all);
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

static int bell_of_loop(const struct pyper__processes *all) {
    return all->waker ? all->waker->bell[1] : all->silent;
}

static void do_nothing(int signal) {}

/* A forked worker: only this thread exists, and pyper__forks has grown.  Signals are `held`. */
static _Noreturn void forked(pyper_run *run, const pyper__stage *stage, int64_t worker,
                             const sigset_t *held) {
    struct pyper__processes *all = run->processes;
    const pyper__task *task = stage->task;
    struct sigaction deaf = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    sigaction(SIGINT, &deaf, NULL);
    pyper__let_signals(held);
    (void)pyper__hold_cancel(); /* if the caller's thread is to be cancelled, this one is not */
    __fpurge(stdout);
    __fpurge(stderr);
    for (size_t i = 0; i < all->count; i++) pyper__fd_close(&all->processes[i].pidfd);
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
    pyper__child_work(&options, all->shm);
    fflush(stdout);
    fflush(stderr);
    _exit(0);
}

/* ----------------------------------------------------------------------------------- starting */

/* The process ends, or has ended: its status, as host->join_process() tells it. */
static int wait_for(pyper_run *run, const struct process *process) {
    const pyper_host *host = run->host;
    int status = PYPER_STATUS_UNKNOWN;
    if (host && host->start_process) {
        host->join_process(run->host_data, process->handle, &status);
        return status;
    }
    int raw = 0;
    pid_t pid;
    int held = pyper__hold_cancel();
    do pid = waitpid(process->pid, &raw, 0);
    while (pid < 0 && errno == EINTR);
    pyper__let_cancel(held);
    if (pid == process->pid) status = WIFSIGNALED(raw) ? -WTERMSIG(raw) : WEXITSTATUS(raw);
    return status;
}

/* Signals wait meanwhile: a Ctrl-C that found the worker without its handler would end it, or run
 * the caller's in it. */
static pid_t fork_worker(pyper_run *run, const pyper_worker *worker) {
    sigset_t held;
    pyper__hold_signals(&held);
    pid_t pid = fork();
    if (pid == 0) forked(run, worker->stage, worker->index, &held);
    pyper__let_signals(&held);
    return pid;
}

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
        process->pid = fork_worker(run, worker);
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
    int rc = pyper__why_refused("pidfd_open");
    kill(process->pid, SIGKILL);
    wait_for(run, process);
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
    pyper__board_worker *worker = pyper__board_worker_at(all->shm, process->stage, process->worker);
    int state = atomic_load(&worker->state);
    if (state == PYPER__LEFT) return;
    rouse(run, process);
    pyper__clock *clock = &worker->clock;
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
        else if (state == PYPER__UNBORN)
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
    atomic_store(&worker->state, PYPER__LEFT);
}

static void reap(pyper_run *run, struct process *process) {
    int status = wait_for(run, process);
    pyper__fd_close(&process->pidfd);
    judge(run, process, status);
}

void pyper__processes_hear(pyper_run *run) {
    pyper__shm *shm = run->processes->shm;
    pyper__board *board = pyper__board_at(shm);
    if (atomic_load(&board->failing) != PYPER__WRITTEN) return;
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
    pyper__board *board = pyper__board_at(all->shm);
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

/* Has a process that has not been reaped yet ended?  For where poll() cannot say so. */
static bool has_ended(const struct process *process) {
    siginfo_t info = {.si_pid = 0};
    if (pyper__process_has_gone(process->pidfd)) return true; /* somebody else has reaped it */
    return waitid(P_PID, (id_t)process->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == process->pid;
}

/* Sleep until something happens.  Without the host's token. */
static int sleep_(void *arg) {
    struct pyper__processes *all = arg;
    all->polled[0] = (struct pollfd){.fd = all->bell, .events = POLLIN};
    for (size_t i = 0; i < all->count; i++)
        all->polled[i + 1] = (struct pollfd){.fd = all->processes[i].pidfd, .events = POLLIN};
    if (pyper__poll(all->polled, all->count + 1, timeout(all)) < 0) {
        bool refused = errno != EINTR;
        for (size_t i = 0; i < all->count; i++)
            all->polled[i + 1].revents = refused && has_ended(&all->processes[i]) ? POLLIN : 0;
        return 0;
    }
    if (all->polled[0].revents) pyper__bell_silence((const int[2]){all->bell, all->bell});
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
            stage->workers[k].seat.clock = &pyper__board_worker_at(shm, i, k)->clock;
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
        atomic_store(&pyper__board_worker_at(run->processes->shm, stage->index, k)->state,
                     PYPER__LEFT);
}

int64_t pyper__processes_alive(const pyper_run *run, const pyper__stage *stage) {
    return pyper__board_alive(run->processes->shm, stage->index);
}

#endif
