/* Leaving before the end: cancel, close, giving up references, forks.  Black-box: pyper.h only. */
#include "../kit.h"

#include <sys/syscall.h>
#include <sys/wait.h>

/* A chain with an infinite producer and full queues everywhere. */
static pyper_pipeline *endless(int64_t throttle, int64_t workers, bool ordered) {
    return pyper_pipe(
        pyper_task(make_items, .branch = true, .throttle = throttle, .type = &item_type),
        pyper_task(pass, .workers = workers, .throttle = throttle, .type = &item_type,
                   .ordered = ordered),
        pyper_task(pass, .workers = workers, .throttle = throttle, .type = &item_type));
}

EACH_HOST(an_endless_run_with_full_queues_can_be_closed) {
    for (int64_t throttle = 1; throttle < 200; throttle = 3 * throttle + 1) {
        for (int64_t workers = 1; workers <= 4; workers += 3) {
            pyper_pipeline *p = endless(throttle, workers, workers > 1);
            pyper_run *run = START(p, PTR(-1));
            all_asleep();
            close_both(run, p);
        }
    }
}

EACH_HOST(a_run_can_be_closed_at_once) {
    for (int i = 0; i < 50; i++) {
        pyper_pipeline *p = endless(1 + i % 5, 1 + i % 4, i % 2);
        pyper_run *run = START(p, PTR(-1));
        for (int k = 0; k < i % 7; k++) others();
        close_both(run, p);
    }
}

EACH_HOST(a_run_can_be_closed_after_some_outputs) {
    for (long n = 0; n < 100; n += 9) {
        pyper_pipeline *p = endless(1 + n % 4, 1 + n % 3, n % 2);
        pyper_run *run = START(p, PTR(-1));
        for (long i = 0; i < n; i++) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1);
            item_deliver(out);
        }
        close_both(run, p);
    }
}

EACH_HOST(a_run_that_nobody_reads_can_be_closed_after_its_end) {
    pyper_pipeline *p = endless(0, 2, true);
    pyper_run *run = START(p, PTR(500));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    CHECK_EQ(atomic_load(&items_destroyed), 0);
    close_both(run, p);
    CHECK_EQ(atomic_load(&items_destroyed), 500);
}

EACH_HOST(a_cancelled_run_says_so_and_has_not_failed) {
    pyper_pipeline *p = endless(3, 2, false);
    pyper_run *run = START(p, PTR(-1));
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    item_deliver(out);
    pyper_cancel(run);
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_failed(run), 0);
    CHECK_STR(pyper_error_message(run), "");
    CHECK_EQ(pyper_error_task(run), -1);
    pyper_cancel(run);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    ENDS_WITH(run, PYPER_ECANCELED);
    close_both(run, p);
}

EACH_HOST(a_run_can_be_closed_through_two_references) {
    pyper_pipeline *p = endless(2, 2, false);
    pyper_run *run = START(p, PTR(-1));
    pyper_run *mine = pyper_run_ref(run);
    CHECK(mine == run);
    CHECK_EQ(pyper_close(run), 0);
    ENDS_WITH(mine, PYPER_ECANCELED);
    pyper_task_stats stats[3];
    CHECK_EQ(pyper_stats(mine, stats, 3), 3);
    CHECK_EQ(stats[0].alive + stats[1].alive + stats[2].alive, 0);
    CHECK_EQ(pyper_close(mine), 0);
    pyper_unref(p);
}

static void close_run(void *run) {
    CHECK_EQ(pyper_close(run), 0);
}

EACH_HOST(several_threads_may_close_at_once) {
    for (int i = 0; i < 20; i++) {
        pyper_pipeline *p = endless(2, 3, i % 2);
        pyper_run *run = START(p, PTR(-1));
        thread threads[4];
        for (int k = 0; k < 4; k++) thread_start(&threads[k], close_run, pyper_run_ref(run));
        CHECK_EQ(pyper_close(run), 0);
        for (int k = 0; k < 4; k++) thread_join(&threads[k]);
        pyper_unref(p);
    }
}

typedef struct reader {
    pyper_run *run;
    int expected;
} reader;

static void read_to_the_end(void *arg) {
    reader *r = arg;
    int rc;
    for (void *out; (rc = pyper_next(r->run, &out)) > 0;) item_deliver(out);
    CHECK_EQ(rc, r->expected);
}

static int wait_for_gate(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return pyper_emit(w, item);
}

EACH_HOST(who_waits_while_another_closes_is_told) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_task(wait_for_gate, .bind = &gate, .type = &item_type);
    pyper_run *run = START(p, item_new(0), .type = &item_type);
    reader r = {pyper_run_ref(run), PYPER_ECANCELED};
    thread readers[2], closer;
    for (int k = 0; k < 2; k++) thread_start(&readers[k], read_to_the_end, &r);
    all_asleep(); /* the readers wait in pyper_next(), the function at its gate */
    thread_start(&closer, close_run, run);
    for (int k = 0; k < 2; k++) thread_join(&readers[k]); /* they need not wait for the function */
    gate_open(&gate);
    thread_join(&closer);
    CHECK_EQ(pyper_close(r.run), 0);
    pyper_unref(p);
}

EACH_HOST(closing_under_busy_readers) {
    for (int i = 0; i < 20; i++) {
        pyper_pipeline *p = endless(1 + i % 3, 2, i % 2);
        pyper_run *run = START(p, PTR(-1));
        reader r = {pyper_run_ref(run), PYPER_ECANCELED};
        thread readers[3];
        for (int k = 0; k < 3; k++) thread_start(&readers[k], read_to_the_end, &r);
        for (int k = 0; k < i; k++) others();
        CHECK_EQ(pyper_close(run), 0);
        for (int k = 0; k < 3; k++) thread_join(&readers[k]);
        CHECK_EQ(pyper_close(r.run), 0);
        pyper_unref(p);
    }
}

/* A close waits until the calls in progress have returned. */
static _Atomic bool returned;
static tally inside = TALLY;
static int linger(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_open(&inside);
    while (!pyper_cancelled(w)) others();
    for (int i = 0; i < 100; i++) others();
    int rc = pyper_emit(w, item);
    CHECK_EQ(rc, PYPER_ECANCELED);
    atomic_store(&returned, true);
    return rc;
}

EACH_HOST(a_close_waits_for_the_calls_in_progress) {
    pyper_pipeline *p = pyper_task(linger, .type = &item_type);
    pyper_run *run = START(p, item_new(1), .type = &item_type);
    gate_wait(&inside);
    close_both(run, p);
    CHECK(atomic_load(&returned));
}

/* After a cancel nothing new is called: one item is in progress, the rest waits. */
static _Atomic long calls;
static int count_calls(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_fetch_add(&calls, 1);
    gate_open(&inside);
    while (!pyper_cancelled(w)) others();
    return pyper_emit(w, item);
}

EACH_HOST(no_new_call_starts_after_a_cancel) {
    pyper_pipeline *p = pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                                   pyper_task(count_calls, .type = &item_type));
    pyper_run *run = START(p, PTR(100));
    gate_wait(&inside);
    close_both(run, p);
    CHECK_EQ(atomic_load(&calls), 1);
}

/* --------------------------------------------------------------------- From inside the run */

static int cancel_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (item_value(item) == INT(bind)) {
        CHECK(!pyper_cancelled(w));
        pyper_cancel(pyper_worker_run(w));
        CHECK(pyper_cancelled(w));
    }
    return pyper_emit(w, item);
}

EACH_HOST(a_function_may_cancel_its_run) {
    for (int64_t workers = 1; workers <= 3; workers += 2) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
                       pyper_task(cancel_own_run, .bind = PTR(50), .workers = workers,
                                  .type = &item_type, .throttle = 2),
                       pyper_task(pass, .type = &item_type));
        pyper_run *run = START(p, PTR(-1));
        int rc;
        for (void *out; (rc = pyper_next(run, &out)) > 0;) item_deliver(out);
        CHECK_EQ(rc, PYPER_ECANCELED);
        CHECK_EQ(pyper_failed(run), 0);
        close_both(run, p);
    }
}

static int wait_for_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *run = pyper_worker_run(w);
    void *out = &out;
    CHECK_EQ(pyper_next(run, &out), PYPER_EDEADLK);
    CHECK(out == &out);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), PYPER_EDEADLK);
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), PYPER_EDEADLK);
    return pyper_emit(w, item);
}

EACH_HOST(a_function_cannot_wait_for_its_own_run) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(wait_for_own_run, .workers = 3, .ordered = true));
    pyper_run *run = START(p, PTR(20));
    for (long i = 0; i < 20; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* Also not when there is an output that could be had. */
static tally in_queue = TALLY;
static int read_own_output(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < 3; i++)
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    void *out = &out;
    CHECK_EQ(pyper_next(pyper_worker_run(w), &out), PYPER_EDEADLK);
    CHECK_EQ(pyper_next_until(pyper_worker_run(w), &out, PYPER_NOWAIT), PYPER_EDEADLK);
    CHECK(out == &out);
    gate_open(&in_queue);
    return 0;
}

EACH_HOST(a_function_cannot_take_its_own_runs_outputs) {
    pyper_pipeline *p = pyper_task(read_own_output, .branch = true);
    pyper_run *run = START(p, NULL);
    gate_wait(&in_queue);
    for (long i = 0; i < 3; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

static int close_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK_EQ(pyper_close(pyper_run_ref(pyper_worker_run(w))), PYPER_EDEADLK);
    CHECK(pyper_cancelled(w));
    return pyper_emit(w, item);
}

EACH_HOST(a_function_that_closes_its_own_run_cancels_it) {
    pyper_pipeline *p = pyper_task(close_own_run, .type = &item_type);
    pyper_run *run = START(p, item_new(0), .type = &item_type);
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
}

/* A function of an inner run is none of the outer run's. */
static int use_other_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *run = START(bind, item);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(pyper_wait_until(pyper_worker_run(w), PYPER_NOWAIT), PYPER_EDEADLK);
    return pyper_emit(w, out);
}

EACH_HOST(a_function_may_close_other_runs) {
    pyper_pipeline *inner = pyper_pipe(pyper_task(pass), pyper_task(wait_for_own_run));
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(use_other_run, .bind = inner, .workers = 2));
    pyper_run *run = START(p, PTR(10));
    long count, total;
    CHECK_EQ(drain(run, &count, &total), 0);
    CHECK_EQ(count, 10);
    CHECK_EQ(total, 45);
    close_both(run, p);
    pyper_unref(inner);
}

/* An outer run that is cancelled while one of its functions closes an inner one. */
static int read_inner_for_ever(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *run = START(bind, PTR(-1));
    void *out;
    while (pyper_next(run, &out) > 0)
        if (pyper_emit(w, out) < 0) break;
    CHECK_EQ(pyper_close(run), 0);
    return PYPER_ECANCELED;
}

EACH_HOST(closing_a_run_that_reads_another) {
    pyper_pipeline *inner = endless(2, 2, true);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(read_inner_for_ever, .branch = true, .throttle = 2, .bind = inner,
                              .type = &item_type),
                   pyper_task(pass, .workers = 2, .throttle = 2, .type = &item_type));
    pyper_run *run = START(p, NULL);
    for (int i = 0; i < 20; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        item_deliver(out);
    }
    close_both(run, p);
    pyper_unref(inner);
}

/* --------------------------------------------------------------------------- Without waiting */

static void count_release(void *bind) {
    tally_add(bind, 1);
}

EACH_HOST(a_run_given_up_ends_by_itself) {
    for (int i = 0; i < 20; i++) {
        tally released = TALLY;
        pyper_pipeline *p = pyper_pipe(
            endless(1 + i % 3, 1 + i % 4, i % 2),
            pyper_task(pass, .type = &item_type, .bind = &released, .release = count_release));
        pyper_run *run = START(p, PTR(-1));
        pyper_unref(p);
        for (int k = 0; k < i % 5; k++) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1);
            item_deliver(out);
        }
        pyper_run_unref(run);
        tally_wait(&released, 1); /* the last worker has freed it */
    }
}

EACH_HOST(a_run_given_up_at_its_end_is_freed) {
    tally released = TALLY;
    pyper_pipeline *p = pyper_task(pass, .bind = &released, .release = count_release);
    pyper_run *run = START(p, PTR(1));
    pyper_unref(p);
    NEXT_IS(run, 1);
    ENDS_WITH(run, 0);
    pyper_run_unref(run);
    tally_wait(&released, 1);
}

/* bind: how many are there, and the gate. */
static int arrive_at_gate(pyper_worker *w, void *item, void *bind) {
    tally_add(bind, 1);
    return wait_for_gate(w, item, (tally *)bind + 1);
}

EACH_HOST(a_run_given_up_waits_for_nobody) {
    tally gate[] = {TALLY, TALLY}, released = TALLY;
    pyper_pipeline *p = pyper_pipe(pyper_task(arrive_at_gate, .bind = gate, .type = &item_type),
                                   pyper_task(pass, .bind = &released, .release = count_release));
    pyper_run *run = START(p, item_new(1), .type = &item_type);
    pyper_unref(p);
    tally_wait(&gate[0], 1); /* else it may be cancelled before it begins */
    pyper_run_unref(run);    /* returns though the function is at its gate */
    CHECK_EQ(tally_count(&released), 0);
    gate_open(&gate[1]);
    tally_wait(&released, 1);
}

EACH_HOST(only_the_last_reference_cancels) {
    pyper_pipeline *p = pyper_task(count_for_ever, .branch = true, .throttle = 3);
    pyper_run *run = START(p, NULL);
    pyper_run_unref(pyper_run_ref(run));
    for (long i = 0; i < 100; i++) NEXT_IS(run, i);
    close_both(run, p);
}

/* The last reference is given up by one of the run's own functions. */
static tally handed = TALLY;
static int give_up_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(&handed);
    pyper_run_unref(pyper_worker_run(w));
    CHECK(pyper_cancelled(w));
    return pyper_emit(w, item);
}

EACH_HOST(a_function_may_give_up_the_last_reference) {
    tally released = TALLY;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(give_up_own_run, .type = &item_type),
        pyper_task(pass, .bind = &released, .release = count_release, .type = &item_type));
    (void)START(p, item_new(1), .type = &item_type);
    pyper_unref(p);
    gate_open(&handed);
    tally_wait(&released, 1);
}

static void cancel_run(void *arg) {
    pyper_cancel(arg);
}

EACH_HOST(cancelling_from_another_thread) {
    for (int i = 0; i < 30; i++) {
        pyper_pipeline *p = endless(1 + i % 3, 1 + i % 4, i % 2);
        pyper_run *run = START(p, PTR(-1));
        thread canceller;
        thread_start(&canceller, cancel_run, run);
        int rc;
        for (void *out; (rc = pyper_next(run, &out)) > 0;) item_deliver(out);
        CHECK_EQ(rc, PYPER_ECANCELED);
        thread_join(&canceller);
        close_both(run, p);
    }
}

/* What was cut off never looks like the whole: neither to the caller nor to a join. */
static int count_pulled(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long count = 0;
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0; count++) continue;
    if (rc == 0)
        CHECK_EQ(count, INT(bind));
    else
        CHECK_EQ(rc, PYPER_ECANCELED);
    return rc < 0 ? rc : pyper_emit(w, PTR(count));
}

/* Looks whether it has been told to stop, so that it leaves before the queues tell. */
static int pass_while_wanted(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (pyper_cancelled(w)) return PYPER_ECANCELED;
    return pyper_emit(w, item);
}

static int pass_or_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return item == bind ? -1 : pyper_emit(w, item);
}

EACH_HOST(half_of_a_stream_never_looks_whole) {
    for (long i = 0; i < check_times(400); i++) {
        enum { N = 200 };
        bool joined = i % 4 < 2, fails = i % 2;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = i % 3),
                       pyper_task(pass_or_fail, .bind = PTR(fails ? i % N : -1), .throttle = i % 5),
                       pyper_task(pass_while_wanted, .workers = 1 + i % 2, .throttle = i % 2),
                       joined ? pyper_task(count_pulled, .join = true, .bind = PTR(N))
                              : pyper_task(pass_while_wanted));
        pyper_run *run = START(p, PTR(N));
        thread canceller;
        if (!fails) thread_start(&canceller, cancel_run, run);
        long count;
        int rc = drain(run, &count, NULL);
        if (fails)
            CHECK_EQ(rc, PYPER_EFAILED);
        else if (rc != PYPER_ECANCELED)
            CHECK_EQ(rc, 0);
        if (joined) CHECK_LE(count, fails ? 0 : 1);
        if (rc == 0) CHECK_EQ(count, joined ? 1 : N);
        if (!fails) thread_join(&canceller);
        close_both(run, p);
    }
}

/* ------------------------------------------------------------------------------------- Forks */

/* Runs `child` in a forked process and says how it ended.  A process that is forked while it has
 * threads must not start others under ThreadSanitizer; these do not. */
static void in_child(void (*child)(pyper_run *), pyper_run *run) {
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(check_seconds());
        child(run);
        _exit(0);
    }
    child_ends_well(pid);
}

static void use_inherited(pyper_run *run) {
    void *out = &out;
    CHECK_EQ(pyper_next(run, &out), PYPER_EFORKED);
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_EFORKED);
    CHECK(out == &out);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), PYPER_EFORKED);
    pyper_cancel(run);
    CHECK_EQ(pyper_close(pyper_run_ref(run)), PYPER_EFORKED);
    CHECK_EQ(pyper_close(run), PYPER_EFORKED);
}

static void give_up_inherited(pyper_run *run) {
    pyper_run_unref(run);
}

EACH_HOST(in_a_forked_child_a_run_is_dead) {
    pyper_pipeline *p = endless(3, 2, true);
    pyper_run *run = START(p, PTR(-1));
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    item_deliver(out);
    in_child(use_inherited, run);
    in_child(give_up_inherited, run);
    /* The parent's goes on. */
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(pyper_next(run, &out), 1);
        item_deliver(out);
    }
    close_both(run, p);
}

/* Whatever the workers were doing at that moment, locks included. */
EACH_HOST(forking_under_way) {
    pyper_pipeline *p = endless(3, 3, true);
    pyper_run *run = START(p, PTR(-1));
    for (int i = 0; i < 20; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        item_deliver(out);
        in_child(i % 2 ? use_inherited : give_up_inherited, run);
    }
    close_both(run, p);
}

static void run_anew(pyper_run *unused) {
    (void)unused;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(add_one, .workers = 3, .ordered = true));
    pyper_run *run = pyper_start(p, PTR(100));
    for (long i = 0; i < 100; i++) NEXT_IS(run, i + 1);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

TEST(in_a_forked_child_new_runs_work) {
    if (!CHECK_TSAN) { /* which allows no threads in the child of a process that has several */
        pyper_pipeline *p = endless(3, 2, true);
        pyper_run *run = START(p, PTR(-1));
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        item_deliver(out);
        /* AddressSanitizer (of LLVM 14) has an allocator whose locks stay taken in the child if a
         * thread of the parent was in it. */
        all_asleep();
        in_child(run_anew, run);
        close_both(run, p);
    }
    in_child(run_anew, NULL);
}

static pid_t runner;
static pthread_key_t last_key;

/* ThreadSanitizer, which sees _exit(), would report those of the parent's threads that nobody
 * joined. */
static void end_process(void *unused) {
    syscall(SYS_exit_group, 0);
}

/* The function forks, for each input.  Its child does whatever functions do, in vain, and ends with
 * its thread; or where it asks for outputs, if it is an operation. */
static int fork_and_emit(pyper_worker *w, void *item) {
    CHECK_EQ(getpid(), runner);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) {
        child_ends_well(child);
        return pyper_emit(w, item);
    }
    alarm(check_seconds());
    CHECK_EQ(pthread_setspecific(last_key, &last_key), 0);
    CHECK(pyper_cancelled(w));
    if (INT(item) % 3 == 0) return pyper_fail(w, 1, "in the child");
    if (INT(item) % 3 == 1) {
        pyper_cancel(pyper_worker_run(w));
        return 0;
    }
    CHECK_EQ(pyper_emit(w, item), PYPER_ECANCELED);
    CHECK_EQ(pyper_emit(w, item), PYPER_ECANCELED);
    return 0;
}

static int fork_and_go_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return fork_and_emit(w, item);
}

static int pull_fork_and_go_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;) (void)fork_and_emit(w, x);
    CHECK(getpid() == runner || rc == PYPER_ECANCELED);
    return rc;
}

static int try_pull_fork_and_go_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0;) (void)fork_and_emit(w, x);
    CHECK(getpid() == runner || rc == PYPER_ECANCELED);
    return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
}

static void has_no_part_in_the_run(pyper_pipeline *p) {
    enum { COUNT = 12 };
    pyper_run *run = START(p, PTR(COUNT));
    int rc;
    void *out;
    bool seen[COUNT] = {false};
    while ((rc = pyper_next(run, &out)) > 0) {
        CHECK(!seen[INT(out)]);
        seen[INT(out)] = true;
    }
    if (getpid() != runner) {
        CHECK_EQ(rc, PYPER_EFORKED);
        CHECK_EQ(pyper_close(run), PYPER_EFORKED);
        end_process(NULL);
    }
    CHECK_EQ(rc, 0);
    for (int i = 0; i < COUNT; i++) CHECK(seen[i]);
    close_both(run, p);
}

EACH_HOST(a_forked_child_of_a_function_has_no_part_in_the_run) {
    runner = getpid();
    CHECK_EQ(pthread_key_create(&last_key, end_process), 0);
    for (int i = 0; i < 32; i++) {
        bool async = i & 1, join = i & 2;
        pyper_fn fn = !join   ? fork_and_go_on
                      : async ? try_pull_fork_and_go_on
                              : pull_fork_and_go_on;
        has_no_part_in_the_run(
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(fn, .async = async, .join = join, .branch = join || i & 4,
                                  .workers = i & 8 ? 3 : 1, .ordered = !join && i & 16,
                                  .throttle = i & 16 ? 1 : 0)));
    }
}

/* ------------------------------------------------------------------ Threads that are cancelled */

static void *run_to_the_end(void *pipeline) {
    pthread_cancel(pthread_self()); /* at the next cancellation point: none of those below is one */
    pyper_run *run = pyper_start(pipeline, PTR(100), .type = &pyper_type_int);
    long sum = 0;
    for (void *out; pyper_next(run, &out) > 0;) sum += INT(out);
    int rc = pyper_failed(run);
    return pyper_close(run) == 0 && rc == 0 ? PTR(sum) : NULL;
}

TEST(no_call_is_a_cancellation_point) {
    enum { THREADS, PROCESSES, OPERATIONS, KINDS };
    for (int kind = 0; kind < KINDS; kind++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true, .throttle = 1, .type = &pyper_type_int),
            pyper_task(add_one, .workers = 2, .throttle = 1, .multiprocess = kind == PROCESSES,
                       .async = kind == OPERATIONS, .type = &pyper_type_int));
        pthread_t caller;
        void *sum;
        CHECK_EQ(pthread_create(&caller, NULL, run_to_the_end, p), 0);
        CHECK_EQ(pthread_join(caller, &sum), 0);
        CHECK_EQ(INT(sum), 100 * 101 / 2);
        pyper_unref(p);
    }
}
