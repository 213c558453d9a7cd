/* Random pipelines of threads, processes and asynchronous tasks, driven by their caller or by a
 * loop; read to the end, or closed, cancelled by another thread, dropped, or with a worker killed,
 * at a random moment.  PYPER_TEST_SEED chooses the runs, PYPER_TEST_ROUNDS how many. */
#include "../elsewhere.h"

#include <errno.h>
#include <sys/mman.h>

enum { THREADS, ASYNC, PROCESSES, KINDS };
enum { READ_ALL, CLOSE, CANCEL, DROP, KILL, ENDS };
enum { TASKS_MAX = 5, WORKERS_MAX = 4 };

static _Atomic long *pids; /* of the worker processes, in shared memory */

/* In a process: note its number, so that it can be killed. */
static int pass_in_process(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_store(&pids[pyper_worker_task(w) * WORKERS_MAX + (size_t)pyper_worker_index(w)],
                 (long)getpid());
    return pyper_emit(w, item);
}

/* On the loop: some calls complete at once, some elsewhere. */
static int pass_later(pyper_worker *w, void *item, void *bind) {
    return INT(item) % 5 == 0 ? pyper_emit(w, item) : begin(w, item, bind);
}

static void complete_unchanged(operation *op) {
    pyper_emit(op->worker, op->item);
    pyper_done(op->worker, 0);
}

static void cancel_soon(void *run) {
    static _Atomic unsigned moment;
    for (unsigned n = atomic_fetch_add(&moment, 7) % 50; n > 0; n--) others();
    pyper_cancel(run);
}

static int take(pyper_run *run, bool loop, void **ret_item) {
    return loop ? loop_take(run, ret_item) : pyper_next(run, ret_item);
}

/* Kill one of the processes that have worked; false if there is none. */
static bool kill_one(uint64_t *seed) {
    long from = random_below(seed, TASKS_MAX * WORKERS_MAX);
    for (long i = 0; i < TASKS_MAX * WORKERS_MAX; i++) {
        long pid = atomic_load(&pids[(from + i) % (TASKS_MAX * WORKERS_MAX)]);
        if (pid == 0) continue;
        CHECK_EQ(kill((pid_t)pid, SIGKILL), 0); /* endless runs: nobody has left before */
        return true;
    }
    return false;
}

/* A run that was dropped ends by itself; until then its processes note their numbers. */
static void no_process_is_left(void) {
    bool mine = kit_detach();
    siginfo_t child;
    while (waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) == 0) sched_yield();
    CHECK_EQ(errno, ECHILD);
    kit_attach(mine);
}

static void one_run(uint64_t *seed, elsewhere *e) {
    memset((void *)pids, 0, TASKS_MAX * WORKERS_MAX * sizeof *pids);
    long items = random_below(seed, 300), count = 1 + random_below(seed, TASKS_MAX - 1);
    bool loop = random_below(seed, 2), ordered = random_below(seed, 2);
    int end = random_below(seed, 2) ? READ_ALL : (int)random_below(seed, ENDS);
    bool endless = end != READ_ALL;
    pyper_pipeline *p =
        pyper_task(endless ? count_for_ever : count_up, .branch = true, .type = &pyper_type_int,
                   .throttle = endless + random_below(seed, 4));
    for (long i = 0; i < count; i++) {
        int kind = (int)random_below(seed, KINDS);
        int64_t throttle = endless + random_below(seed, 5);
        p = pyper_pipe(p, pyper_task(kind == THREADS ? pass
                                     : kind == ASYNC ? pass_later
                                                     : pass_in_process,
                                     .async = kind == ASYNC, .multiprocess = kind == PROCESSES,
                                     .workers = 1 + random_below(seed, WORKERS_MAX), .bind = e,
                                     .ordered = ordered, .throttle = throttle,
                                     .type = &pyper_type_int));
    }
    CHECK_EQ(pyper_pipeline_error(p), 0);
    pyper_run *run = START(p, PTR(items), .loop = loop);
    thread canceller;
    if (end == CANCEL) thread_start(&canceller, cancel_soon, run);
    long sum_of = 0, taken = 0;
    void *out;
    int rc = 1;
    while ((!endless || end == CANCEL || taken < items) && (rc = take(run, loop, &out)) > 0) {
        if (ordered) CHECK_EQ(INT(out), taken);
        sum_of += INT(out);
        taken++;
    }
    if (end == READ_ALL) {
        CHECK_EQ(rc, 0);
        CHECK_EQ(taken, items);
        CHECK_EQ(sum_of, items * (items - 1) / 2);
    }
    if (end == CANCEL) {
        CHECK_EQ(rc, PYPER_ECANCELED);
        thread_join(&canceller);
    }
    if (end == KILL && kill_one(seed)) {
        while ((rc = take(run, loop, &out)) > 0) continue;
        CHECK_EQ(rc, PYPER_EDIED);
        CHECK_EQ(pyper_error_code(run), -SIGKILL);
    }
    if (end == DROP)
        pyper_run_unref(run);
    else
        CHECK_EQ(pyper_close(run), 0);
    pyper_unref(p);
    if (end == DROP) no_process_is_left();
}

EACH_HOST(random_mixed_pipelines) {
    uint64_t seed = (uint64_t)check_environment("PYPER_TEST_SEED", 1);
    long rounds = check_environment("PYPER_TEST_ROUNDS", check_times(150));
    void *memory = mmap(NULL, TASKS_MAX * WORKERS_MAX * sizeof *pids, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    pids = memory;
    elsewhere e;
    elsewhere_begin(&e, 3, complete_unchanged);
    for (long i = 0; i < rounds; i++) {
        CHECK_NOTE("PYPER_TEST_SEED=%llu", (unsigned long long)seed);
        e.lifo = i % 2;
        one_run(&seed, &e);
    }
    elsewhere_end(&e);
}
