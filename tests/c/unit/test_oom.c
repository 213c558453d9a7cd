/* Each allocation fails in turn, and each thread: once only, and from then on.  Whatever comes of
 * it, nothing crashes, nothing leaks, each item has one end, and the code says what it was. */
#include "../elsewhere.h"

#include "os.h"

static void count_release(void *bind) {
    tally_add(bind, 1);
}

static int branch_items(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc = pyper_emit(w, item);
    for (long i = 0; rc == 0 && i < 3; i++) rc = pyper_emit(w, item_new(-1));
    return rc;
}

/* Builds, starts, reads (or not) to the end and closes; returns how it ended: 0 or a code.  `n`
 * items pass, of which each becomes four in an ordered task. */
static int everything(long n, bool read) {
    tally released = TALLY;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_items, .branch = true, .type = &item_type),
        pyper_task(branch_items, .branch = true, .workers = 2, .ordered = true, .type = &item_type),
        pyper_task(pass, .workers = 2, .throttle = 3, .type = &item_type, .bind = &released,
                   .release = count_release));
    int built = pyper_pipeline_error(p);
    CHECK(built == 0 || built == PYPER_ENOMEM);
    pyper_run *run = START(p, PTR(n));
    CHECK(run != NULL);
    int rc = 0;
    long count = 0;
    if (read) {
        for (void *out; (rc = pyper_next(run, &out)) > 0; count++) item_deliver(out);
        CHECK_EQ(pyper_failed(run), rc);
        if (rc < 0) {
            ENDS_WITH(run, rc);
            CHECK(*pyper_error_message(run));
        } else {
            CHECK_EQ(count, 4 * n);
            CHECK_STR(pyper_error_message(run), "");
        }
        if (built < 0) CHECK_EQ(rc, built);
    }
    (void)pyper_failed(run);
    (void)pyper_error_code(run);
    (void)pyper_error_task(run);
    CHECK(pyper_error_payload(run) == NULL);
    pyper_task_stats stats[3];
    size_t tasks = pyper_stats(run, stats, 3);
    CHECK(tasks == 0 || tasks == 3);
    pyper_cancel(run);
    pyper_run *mine = pyper_run_ref(run);
    CHECK_EQ(pyper_close(run), 0);
    nobody_is_alive(run);
    pyper_run_unref(mine);
    pyper_unref(p);
    tally_wait(&released, 1);
    CHECK_EQ(tally_count(&released), 1);
    CHECK_EQ(atomic_load(&items_live), 0);
    return rc;
}

/* Each allocation of everything(n, read) fails in turn: once, or (`stays`) with all that follow.
 * With `processes` it may fail in one of them as well: then that one may die, and how far the count
 * has come there is not known here. */
static void each_allocation(int (*everything)(long n, bool read), long n, bool stays, bool read,
                            bool processes) {
    long at = 0, failed = 0;
    for (bool reached = true; reached;) {
        at++;
        atomic_store(&pyper__fail_alloc_stays, stays);
        atomic_store(&pyper__fail_alloc_at, at);
        int rc = everything(n, read);
        reached = atomic_load(&pyper__fail_alloc_at) <= 0;
        atomic_store(&pyper__fail_alloc_at, -1);
        atomic_store(&pyper__fail_alloc_stays, 0);
        CHECK(rc == 0 || rc == PYPER_ENOMEM || (processes && rc == PYPER_EDIED));
        if (!reached && !processes) CHECK_EQ(rc, 0);
        if (rc < 0) failed++;
        if (processes) CHECK_EQ(atomic_load(&pyper__allocs_live), 0);
        /* The library is as good as before. */
        if (at % 10 == 0) CHECK_EQ(everything(5, true), 0);
        CHECK(at < 10000);
    }
    /* Building alone takes several allocations, starting more: all of them must have been seen. */
    CHECK(at > 10);
    if (read) CHECK(failed > 10);
    CHECK_EQ(everything(n, true), 0);
}

EACH_HOST(each_allocation_fails_once) {
    each_allocation(everything, 5, false, true, false);
}
EACH_HOST(each_allocation_fails_and_all_that_follow) {
    each_allocation(everything, 5, true, true, false);
}
EACH_HOST(each_allocation_fails_and_nobody_reads) {
    each_allocation(everything, 5, true, false, false);
}

/* Long enough that the queues grow underway. */
EACH_HOST(each_allocation_underway_fails_once) {
    each_allocation(everything, CHECK_TSAN ? 600 : 1500, false, true, false);
}

TEST(each_thread_fails_to_start) {
    for (long at = 1; at <= 6; at++) {
        for (int read = 0; read < 2; read++) {
            atomic_store(&pyper__fail_thread_at, at);
            int rc = everything(20, read);
            atomic_store(&pyper__fail_thread_at, -1);
            if (read) CHECK_EQ(rc, at <= 5 ? PYPER_ETHREAD : 0);
            CHECK_EQ(everything(5, true), 0);
        }
    }
}

TEST(a_thread_that_fails_to_start_is_named) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 1),
                                   pyper_task(pass, .workers = 5, .name = "crowd"));
    atomic_store(&pyper__fail_thread_at, 4);
    pyper_run *run = pyper_start(p, NULL);
    atomic_store(&pyper__fail_thread_at, -1);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    int rc;
    void *out;
    while ((rc = pyper_next(run, &out)) > 0) continue;
    CHECK_EQ(rc, PYPER_ETHREAD);
    CHECK_EQ(pyper_failed(run), PYPER_ETHREAD);
    CHECK_HAS(pyper_error_message(run), "crowd");
    close_both(run, p);
}

/* In each kind of task, and in the supervisor of the processes (which are started first). */
TEST(workers_that_could_not_be_started_are_not_alive) {
    for (long at = 1; at <= 5; at++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true, .type = &pyper_type_int),
            pyper_task(pass, .multiprocess = true, .workers = 2, .type = &pyper_type_int),
            pyper_task(pass, .async = true, .workers = 2), pyper_task(pass),
            pyper_task(pass, .workers = 3));
        atomic_store(&pyper__fail_thread_at, at);
        pyper_run *run = pyper_start(p, PTR(5));
        atomic_store(&pyper__fail_thread_at, -1);
        ENDS_WITH(run, PYPER_ETHREAD);
        CHECK_EQ(pyper_task_count(p), pyper_stats(run, NULL, 0));
        nobody_is_alive(run);
        close_both(run, p);
    }
}

/* The argument is taken also when nothing can be started. */
EACH_HOST(the_argument_is_destroyed_when_nothing_starts) {
    for (long at = 1; at < 30; at++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(pass, .type = &item_type),
                                       pyper_task(pass, .workers = 2, .type = &item_type));
        atomic_store(&pyper__fail_alloc_at, at);
        pyper_run *run = START(p, item_new(1), .type = &item_type);
        int rc;
        for (void *out; (rc = pyper_next(run, &out)) > 0;) item_deliver(out);
        atomic_store(&pyper__fail_alloc_at, -1);
        CHECK(rc == 0 || rc == PYPER_ENOMEM);
        close_both(run, p);
        CHECK_EQ(atomic_load(&items_live), 0);
    }
}

/* A run given up while memory is short. */
EACH_HOST(given_up_without_memory) {
    for (long at = 1; at < 40; at++) {
        tally released = TALLY;
        atomic_store(&pyper__fail_alloc_stays, 1);
        atomic_store(&pyper__fail_alloc_at, at);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type, .throttle = 2),
                       pyper_task(pass, .workers = 2, .ordered = true, .type = &item_type,
                                  .bind = &released, .release = count_release));
        pyper_run *run = START(p, PTR(-1));
        pyper_unref(p);
        pyper_run_unref(run);
        tally_wait(&released, 1);
        atomic_store(&pyper__fail_alloc_at, -1);
        atomic_store(&pyper__fail_alloc_stays, 0);
    }
}

/* -------------------------------------------------------------------------- asynchronous tasks */

static void complete_with_item(operation *op) {
    pyper_emit(op->worker, op->item);
    pyper_done(op->worker, 0);
}

/* Four outputs at once, whether there is room or not. */
static int four_at_once(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc = pyper_emit(w, item);
    for (long i = 0; rc >= 0 && i < 3; i++) rc = pyper_emit(w, item_new(-1));
    return rc < 0 ? rc : 0;
}

static int count_items(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void **count = pyper_worker_state(w);
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0; *count = PTR(INT(*count) + 1)) item_deliver(x);
    if (rc == PYPER_EAGAIN) return PYPER_PENDING;
    return rc < 0 ? rc : pyper_emit(w, item_new(INT(*count)));
}

/* Operations completed by other threads, outputs that find no room, and a join; driven by a loop or
 * by its reader.  As everything(). */
static int everything_async(long n, bool read, bool loop) {
    tally released = TALLY;
    elsewhere e;
    elsewhere_begin(&e, 2, complete_with_item);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_items, .branch = true, .type = &item_type, .throttle = 2),
        pyper_task(begin, .async = true, .workers = 3, .ordered = true, .throttle = 2,
                   .type = &item_type, .bind = &e),
        pyper_task(four_at_once, .async = true, .branch = true, .workers = 2, .throttle = 2,
                   .type = &item_type, .bind = &released, .release = count_release),
        pyper_task(pass, .throttle = 1, .type = &item_type),
        pyper_task(count_items, .async = true, .join = true, .type = &item_type));
    pyper_run *run = START(p, PTR(n), .loop = loop);
    CHECK(run != NULL);
    int rc = 0;
    if (read) {
        long value = -1;
        void *out;
        while ((rc = loop ? loop_take(run, &out) : pyper_next(run, &out)) > 0)
            value = item_deliver(out);
        CHECK_EQ(pyper_failed(run), rc);
        if (rc == 0) CHECK_EQ(value, 4 * n);
        if (rc < 0) CHECK(*pyper_error_message(run));
    }
    pyper_cancel(run);
    CHECK_EQ(pyper_close(run), 0);
    pyper_unref(p);
    elsewhere_end(&e);
    tally_wait(&released, 1);
    CHECK_EQ(tally_count(&released), 1);
    CHECK_EQ(atomic_load(&items_live), 0);
    return rc;
}

static int everything_by_its_reader(long n, bool read) {
    return everything_async(n, read, false);
}

static int everything_on_a_loop(long n, bool read) {
    return everything_async(n, read, true);
}

EACH_HOST(each_allocation_of_an_async_run_fails_once) {
    each_allocation(everything_by_its_reader, 20, false, true, false);
}
EACH_HOST(each_allocation_of_an_async_run_fails_and_all_that_follow) {
    each_allocation(everything_by_its_reader, 20, true, true, false);
}
EACH_HOST(each_allocation_on_a_loop_fails_once) {
    each_allocation(everything_on_a_loop, 20, false, true, false);
}
EACH_HOST(each_allocation_on_a_loop_fails_and_nobody_reads) {
    each_allocation(everything_on_a_loop, 20, true, false, false);
}

/* With a process between two asynchronous tasks; in the process, too, the allocation may fail. */
static int everything_mixed(long n, bool read) {
    CHECK(read);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true, .type = &pyper_type_int, .throttle = 2),
        pyper_task(pass, .async = true, .workers = 2, .throttle = 2, .type = &pyper_type_int),
        pyper_task(add_one, .multiprocess = true, .ordered = true, .workers = 2, .throttle = 2,
                   .type = &pyper_type_int),
        pyper_task(pass, .async = true, .type = &pyper_type_int));
    pyper_run *run = START(p, PTR(n));
    long count;
    int rc = drain(run, &count, NULL);
    if (rc == 0) CHECK_EQ(count, n);
    if (rc < 0) CHECK(*pyper_error_message(run));
    close_both(run, p);
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    return rc;
}

EACH_HOST(each_allocation_of_a_mixed_run_fails_once) {
    each_allocation(everything_mixed, 20, false, true, true);
}

/* All in processes, with items that lie in extents, and a join.  What a process has no memory for
 * to begin, it says by ending. */
static int make_blobs(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++) {
        size_t size = i % 2 ? 10 : 5000;
        pyper_blob *blob = calloc(1, sizeof *blob + size);
        CHECK(blob != NULL);
        blob->size = size;
        if (pyper_emit(w, blob) < 0) return PYPER_ECANCELED;
    }
    return 0;
}

static int count_bytes(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long total = 0;
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0; free(x)) total += (long)((pyper_blob *)x)->size;
    return rc < 0 ? rc : pyper_emit(w, PTR(total));
}

static int everything_in_processes(long n, bool read) {
    CHECK(read);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_blobs, .branch = true, .type = &pyper_type_blob, .throttle = 2,
                   .multiprocess = true),
        pyper_task(pass, .workers = 2, .ordered = true, .throttle = 2, .type = &pyper_type_blob,
                   .multiprocess = true),
        pyper_task(count_bytes, .join = true, .type = &pyper_type_int, .multiprocess = true));
    pyper_run *run = START(p, PTR(n), .type = &pyper_type_int);
    long count, total;
    int rc = drain(run, &count, &total);
    if (rc == 0) {
        CHECK_EQ(count, 1);
        CHECK_EQ(total, (n + 1) / 2 * 5000 + n / 2 * 10);
    }
    if (rc < 0) CHECK(*pyper_error_message(run));
    close_both(run, p);
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    return rc;
}

EACH_HOST(each_allocation_of_a_run_in_processes_fails_once) {
    each_allocation(everything_in_processes, 20, false, true, true);
}
EACH_HOST(each_allocation_of_a_run_in_processes_fails_and_all_that_follow) {
    each_allocation(everything_in_processes, 20, true, true, true);
}

/* ------------------------------------------------------- processes that a host has started */

/* Which allocation or thread a process does not get; and how it has ended. */
typedef struct short_host {
    long no_alloc, no_thread;
    pid_t pid;
    int status;
} short_host;

enum { ATTACHED = 20 }; /* the exit status of a process that pyper_attach() said 0 to */

/* What was open before is open after it: but for its descriptors, one of which is kept by the
 * thread that follows the caller, if it began. */
static int attach_with_too_little(const short_host *host, const pyper_process *process) {
    int fds[PYPER_PROCESS_FDS];
    long descriptors = check_entries("/proc/self/fd"), allocs = atomic_load(&pyper__allocs_live);
    for (int i = 0; i < PYPER_PROCESS_FDS; i++) fds[i] = dup(process->fds[i]);
    atomic_store(&pyper__fail_alloc_at, host->no_alloc);
    atomic_store(&pyper__fail_thread_at, host->no_thread);
    int rc = pyper_attach(.fds = {fds[0], fds[1], fds[2], fds[3]}, .task = process->task,
                          .worker = process->worker, .fn = pass, .input_type = &pyper_type_int,
                          .output_type = &pyper_type_int);
    atomic_store(&pyper__fail_alloc_at, -1);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors + (rc == 0));
    if (rc < 0) CHECK_EQ(atomic_load(&pyper__allocs_live), allocs);
    return rc;
}

static int start_with_too_little(void *host_data, const pyper_process *process, void **ret_process,
                                 int64_t *ret_pid) {
    short_host *host = host_data;
    host->pid = fork();
    if (host->pid == 0) _exit(ATTACHED - attach_with_too_little(host, process));
    *ret_process = host;
    *ret_pid = host->pid;
    return host->pid < 0 ? PYPER_EPROCESS : 0;
}

static void join_with_too_little(void *host_data, void *process, int *ret_status) {
    short_host *host = host_data;
    CHECK(process == host);
    CHECK_EQ(waitpid(host->pid, &host->status, 0), host->pid);
    CHECK(WIFEXITED(host->status));
    *ret_status = host->status = WEXITSTATUS(host->status);
}

static const pyper_host too_little = {.size = sizeof too_little,
                                      .start_process = start_with_too_little,
                                      .join_process = join_with_too_little};

/* Returns what pyper_attach() has said, and the run: the same, unless the process could not even
 * tell (it did not get to the shared memory). */
static int attach_short_of(long alloc, long thread, bool can_tell) {
    short_host host = {.no_alloc = alloc, .no_thread = thread};
    pyper_pipeline *p = pyper_task(pass, .multiprocess = true, .type = &pyper_type_int);
    pyper_run *run =
        pyper_start(p, PTR(5), .type = &pyper_type_int, .host = &too_little, .host_data = &host);
    int rc = drain(run, NULL, NULL), said = ATTACHED - host.status;
    if (said < 0) {
        CHECK_EQ(rc, can_tell ? said : PYPER_EDIED);
        CHECK_HAS(pyper_error_message(run),
                  can_tell ? "worker 1 of 1 could not begin" : "before it could begin");
    } else {
        CHECK_EQ(rc, 0);
    }
    close_both(run, p);
    return said;
}

TEST(a_process_that_cannot_begin_says_so_and_keeps_nothing) {
    long at = 1;
    while (attach_short_of(at, -1, at > 1) == PYPER_ENOMEM) at++;
    CHECK_GE(at, 5);
    CHECK_EQ(attach_short_of(at, -1, true), 0);
    CHECK_EQ(attach_short_of(-1, 1, true), PYPER_ETHREAD);
    CHECK_EQ(attach_short_of(-1, -1, true), 0);
}
