/* Running pipelines: order and completeness, workers that really work at once, many runs of one
 * pipeline, several readers, deadlines.  Black-box: pyper.h only. */
#include "../kit.h"

static int doubled(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, PTR(2 * INT(item)));
}

EACH_HOST(the_example_of_the_header_works) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 1000),
                                   pyper_task(doubled, .workers = 4, .ordered = true));
    pyper_run *run = START(p, PTR(1000));
    for (long i = 0; i < 1000; i++) NEXT_IS(run, 2 * i);
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    CHECK_STR(pyper_error_message(run), "");
    CHECK_EQ(pyper_error_task(run), -1);
    CHECK(pyper_error_payload(run) == NULL);
    close_both(run, p);
}

EACH_HOST(one_task_gives_one_output) {
    pyper_pipeline *p = pyper_task(add_one);
    pyper_run *run = START(p, PTR(41));
    NEXT_IS(run, 42);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(null_is_an_item_like_any_other) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(pass, .ordered = true));
    pyper_run *run = START(p, NULL);
    void *out = &out;
    CHECK_EQ(pyper_next(run, &out), 1);
    CHECK(out == NULL);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(no_outputs_are_an_end) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 3),
                   pyper_task(pass, .workers = 3, .ordered = true));
    pyper_run *run = START(p, PTR(0));
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
}

EACH_HOST(one_worker_per_task_keeps_the_order) {
    static const int64_t throttles[] = {0, 1, 2, 7, 1000};
    for (size_t t = 0; t < sizeof throttles / sizeof *throttles; t++) {
        long n = check_times(throttles[t] == 1 ? 1000 : 5000);
        pyper_pipeline *parts[5] = {pyper_task(count_up, .branch = true, .throttle = throttles[t])};
        for (int i = 1; i < 5; i++) parts[i] = pyper_task(add_one, .throttle = throttles[t]);
        pyper_pipeline *p = pyper_pipe_from(parts, 5);
        pyper_run *run = START(p, PTR(n));
        for (long i = 0; i < n; i++) NEXT_IS(run, i + 4);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

EACH_HOST(several_workers_lose_and_double_nothing) {
    static const int64_t throttles[] = {0, 1, 3, 100};
    for (size_t t = 0; t < sizeof throttles / sizeof *throttles; t++) {
        long n = check_times(3000);
        unsigned char *seen = calloc((size_t)n, 1);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttles[t]),
                       pyper_task(pass, .workers = 8, .throttle = throttles[t]),
                       pyper_task(pass, .workers = 3, .throttle = throttles[t]),
                       pyper_task(pass, .workers = 8, .throttle = throttles[t]));
        pyper_run *run = START(p, PTR(n));
        void *out;
        long count = 0;
        for (; pyper_next(run, &out) > 0; count++) {
            CHECK(INT(out) >= 0 && INT(out) < n);
            CHECK_EQ(seen[INT(out)]++, 0);
        }
        CHECK_EQ(count, n);
        CHECK_EQ(pyper_failed(run), 0);
        close_both(run, p);
        free(seen);
    }
}

/* ----------------------------------------------------------------------------- Real workers */

static const long width_all = 64;
static tally together = TALLY;

/* Does not return before 64 are in here at once. */
static int meet_64(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) >= 0) barrier(&together, width_all);
    return pyper_emit(w, item);
}

EACH_HOST(sixty_four_workers_are_all_inside_at_once) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(meet_64, .workers = width_all));
    pyper_run *run = START(p, PTR(2 * width_all));
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 2 * width_all);
    close_both(run, p);
}

/* `bind` fast items, and then those that meet. */
static int fast_ones_first(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < *(const long *)bind; i++)
        if (pyper_emit(w, PTR(-1)) < 0) return PYPER_ECANCELED;
    return count_up(w, item, NULL);
}

EACH_HOST(sixty_four_workers_are_all_inside_after_fast_items) {
    static const long fast = 1000;
    for (int throttled = 0; throttled < 2; throttled++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(fast_ones_first, .branch = true, .bind = &fast,
                                                  .throttle = throttled ? 5 : 0),
                                       pyper_task(meet_64, .workers = width_all));
        pyper_run *run = START(p, PTR(width_all));
        long count;
        CHECK_EQ(drain(run, &count, NULL), 0);
        CHECK_EQ(count, width_all + fast);
        close_both(run, p);
    }
}

typedef struct meeting {
    tally met;
    long width;
} meeting;

static int meet(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    meeting *m = bind;
    barrier(&m->met, m->width);
    return pyper_emit(w, item);
}

EACH_HOST(several_tasks_in_a_row_with_throttle_one_starve_nobody) {
    enum { TASKS = 4, WIDTH = 12 };
    meeting meetings[TASKS];
    pyper_pipeline *parts[TASKS + 1] = {pyper_task(count_up, .branch = true, .throttle = 1)};
    for (int i = 0; i < TASKS; i++) {
        meetings[i] = (meeting){TALLY, WIDTH};
        parts[i + 1] = pyper_task(meet, .workers = WIDTH, .throttle = 1, .bind = &meetings[i]);
    }
    pyper_pipeline *p = pyper_pipe_from(parts, TASKS + 1);
    pyper_run *run = START(p, PTR(5 * WIDTH));
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 5 * WIDTH);
    close_both(run, p);
}

TEST(hundreds_of_workers_are_real) {
    meeting m = {TALLY, CHECK_TSAN ? 100 : 500};
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(meet, .workers = m.width, .bind = &m));
    pyper_run *run = START(p, PTR(m.width));
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, m.width);
    close_both(run, p);
}

/* Item 0 does not return before all others have been emitted. */
static tally emitted = TALLY;
static int first_waits_for_all(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 0) tally_wait(&emitted, (long)(intptr_t)bind - 1);
    int rc = pyper_emit(w, item);
    tally_add(&emitted, 1);
    return rc;
}

/* What a busy worker has claimed another one takes away: two workers suffice. */
EACH_HOST(a_slow_call_holds_nobody_up) {
    enum { N = 3000 };
    for (long throttle = 0; throttle < 3; throttle++) {
        emitted = (tally)TALLY;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                       pyper_task(first_waits_for_all, .workers = 2, .bind = PTR(N)));
        pyper_run *run = START(p, PTR(N));
        long count;
        CHECK_EQ(drain(run, &count, NULL), 0);
        CHECK_EQ(count, N);
        close_both(run, p);
    }
}

/* The slow one comes after the worker has seen very many fast ones, each as fast as can be. */
static int late_one_waits_for_rest(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long n = (long)(intptr_t)bind;
    if (INT(item) == n / 2) tally_wait(&emitted, n - 1);
    int rc = pyper_emit(w, item);
    tally_add(&emitted, 1);
    return rc;
}

EACH_HOST(a_slow_call_after_fast_ones_holds_nobody_up) {
    enum { N = 4000 };
    for (int workers = 2; workers <= 4; workers++) {
        emitted = (tally)TALLY;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(late_one_waits_for_rest, .workers = workers, .bind = PTR(N)));
        pyper_run *run = START(p, PTR(N));
        long count;
        CHECK_EQ(drain(run, &count, NULL), 0);
        CHECK_EQ(count, N);
        close_both(run, p);
    }
}

/* Emits i + 1 only when the caller has received i. */
static tally received = TALLY;
static int one_by_one(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++) {
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
        tally_wait(&received, i + 1);
    }
    return 0;
}

EACH_HOST(an_output_is_visible_at_once) {
    for (int shape = 0; shape < 4; shape++) {
        long n = check_times(1000);
        received = (tally)TALLY;
        pyper_pipeline *p = pyper_pipe(
            pyper_task(one_by_one, .branch = true, .throttle = shape, .ordered = shape == 2),
            pyper_task(pass, .workers = 1 + shape, .throttle = shape, .ordered = shape % 2),
            pyper_task(pass, .throttle = shape));
        pyper_run *run = START(p, PTR(n));
        for (long i = 0; i < n; i++) {
            NEXT_IS(run, i);
            tally_add(&received, 1);
        }
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

typedef struct seats {
    _Atomic long calls[6], inside[6];
    pyper_run *_Atomic run;
} seats;

static int take_seat(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    seats *s = bind;
    int64_t index = pyper_worker_index(w);
    CHECK(index >= 0 && index < 6);
    CHECK_EQ(pyper_worker_task(w), 1);
    CHECK_STR(pyper_worker_name(w), "seats");
    CHECK(pyper_worker_run(w) == atomic_load(&s->run));
    CHECK(!pyper_cancelled(w));
    CHECK_EQ(atomic_fetch_add(&s->inside[index], 1), 0);
    atomic_fetch_add(&s->calls[index], 1);
    barrier(&together, 6);
    atomic_fetch_sub(&s->inside[index], 1);
    return pyper_emit(w, item);
}

static int when_known(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK_EQ(pyper_worker_task(w), 0);
    CHECK_EQ(pyper_worker_index(w), 0);
    gate_wait(bind);
    return count_up(w, item, NULL);
}

EACH_HOST(each_worker_knows_its_place) {
    seats s = {0};
    tally known = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(when_known, .branch = true, .bind = &known),
                   pyper_task(take_seat, .workers = 6, .bind = &s, .name = "seats"));
    pyper_run *run = START(p, PTR(60));
    atomic_store(&s.run, run);
    gate_open(&known);
    long count, calls = 0;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 60);
    for (int i = 0; i < 6; i++) {
        CHECK_GE(s.calls[i], 1);
        calls += s.calls[i];
    }
    CHECK_EQ(calls, 60);
    close_both(run, p);
}

static int host_data_is_bind(pyper_worker *w, void *item, void *bind) {
    CHECK(pyper_worker_host_data(w) == bind);
    return pyper_emit(w, item);
}

TEST(host_data_reaches_the_worker_without_a_host) {
    int mine;
    pyper_pipeline *p = pyper_task(host_data_is_bind, .bind = &mine);
    pyper_run *run = pyper_start(p, PTR(3), .host_data = &mine);
    NEXT_IS(run, 3);
    close_both(run, p);
    p = pyper_task(host_data_is_bind);
    run = pyper_start(p, PTR(3));
    NEXT_IS(run, 3);
    close_both(run, p);
}

/* -------------------------------------------------------------------------------- Many runs */

static void run_often(void *pipeline) {
    for (int i = 0; i < 10; i++) {
        pyper_run *run = START(pipeline, PTR(200));
        long count, total;
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, 200);
        CHECK_EQ(total, 200 * 199 / 2 + 200);
        CHECK_EQ(pyper_close(run), 0);
    }
}

EACH_HOST(a_pipeline_may_be_run_many_times) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 5),
                                   pyper_task(add_one, .workers = 3, .throttle = 5));
    for (int i = 0; i < 5; i++) run_often(p);
    pyper_unref(p);
}

EACH_HOST(a_pipeline_may_be_run_by_several_threads_at_once) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 5),
                                   pyper_task(add_one, .workers = 3, .throttle = 5));
    thread threads[4];
    for (int i = 0; i < 4; i++) thread_start(&threads[i], run_often, p);
    for (int i = 0; i < 4; i++) thread_join(&threads[i]);
    pyper_unref(p);
}

EACH_HOST(several_runs_may_be_read_in_turn) {
    enum { RUNS = 10 };
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 3),
                                   pyper_task(add_one, .throttle = 3));
    pyper_run *runs[RUNS];
    for (int r = 0; r < RUNS; r++) runs[r] = START(p, PTR(100));
    for (long i = 0; i < 100; i++)
        for (int r = 0; r < RUNS; r++) NEXT_IS(runs[r], i + 1);
    for (int r = 0; r < RUNS; r++) {
        ENDS_WITH(runs[r], 0);
        CHECK_EQ(pyper_close(runs[r]), 0);
    }
    pyper_unref(p);
}

/* Runs another pipeline for each item and emits the sum of its outputs. */
static int run_inner(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *run = START(bind, item);
    long total;
    CHECK_EQ(drain(run, NULL, &total), 0);
    CHECK_EQ(pyper_close(run), 0);
    return pyper_emit(w, PTR(total));
}

EACH_HOST(a_function_may_run_a_pipeline) {
    pyper_pipeline *innermost = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                                           pyper_task(pass, .workers = 2, .throttle = 2));
    pyper_pipeline *inner = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(run_inner, .workers = 2, .bind = innermost));
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(run_inner, .workers = 3, .bind = inner));
    pyper_run *run = START(p, PTR(8));
    long expected = 0, total;
    for (long i = 0; i < 8; i++)
        for (long j = 0; j < i; j++)
            for (long k = 0; k < j; k++) expected += k;
    CHECK_EQ(drain(run, NULL, &total), 0);
    CHECK_EQ(total, expected);
    close_both(run, p);
    pyper_unref(inner);
    pyper_unref(innermost);
}

/* ------------------------------------------------------------------------- Several readers */

typedef struct readers {
    pyper_run *run;
    _Atomic long count, sum;
    _Atomic unsigned char seen[10000];
} readers;

static void read_some(void *arg) {
    readers *r = arg;
    int rc;
    for (void *out; (rc = pyper_next(r->run, &out)) > 0;) {
        CHECK(INT(out) >= 0 && INT(out) < 10000);
        CHECK_EQ(atomic_fetch_add(&r->seen[INT(out)], 1), 0);
        atomic_fetch_add(&r->count, 1);
    }
    CHECK_EQ(rc, 0);
}

EACH_HOST(several_readers_get_each_output_once) {
    for (int shape = 0; shape < 4; shape++) {
        long n = check_times(shape % 2 ? 2000 : 10000);
        readers *r = calloc(1, sizeof *r);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(pass, .workers = 3, .throttle = shape % 2, .ordered = shape / 2));
        r->run = START(p, PTR(n));
        thread threads[4];
        for (int i = 0; i < 4; i++) thread_start(&threads[i], read_some, r);
        for (int i = 0; i < 4; i++) thread_join(&threads[i]);
        CHECK_EQ(r->count, n);
        ENDS_WITH(r->run, 0);
        close_both(r->run, p);
        free(r);
    }
}

/* ------------------------------------------------------------------------------- Deadlines */

static int wait_for_gate(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return pyper_emit(w, item);
}

EACH_HOST(a_deadline_ends_the_wait_but_not_the_run) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_task(wait_for_gate, .bind = &gate);
    pyper_run *run = START(p, PTR(7));
    void *out = &out;
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() - 1), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, -1), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, INT64_MIN), PYPER_ETIMEDOUT);
    for (int i = 0; i < 3; i++) {
        int64_t deadline = pyper_now() + 1000000;
        CHECK_EQ(pyper_next_until(run, &out, deadline), PYPER_ETIMEDOUT);
        CHECK_GE(pyper_now(), deadline);
        deadline = pyper_now() + 1000000;
        CHECK_EQ(pyper_wait_until(run, deadline), PYPER_ETIMEDOUT);
        CHECK_GE(pyper_now(), deadline);
    }
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    CHECK(out == &out);
    gate_open(&gate);
    CHECK_EQ(pyper_next_until(run, &out, INT64_MAX - 1), 1);
    CHECK_EQ(INT(out), 7);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(without_waiting_there_is_what_is_there) {
    tally gate = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(wait_for_gate, .bind = &gate));
    pyper_run *run = START(p, PTR(10));
    void *out;
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    gate_open(&gate);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    for (long i = 0; i < 10; i++) {
        CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), 1);
        CHECK_EQ(INT(out), i);
    }
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), 0);
    close_both(run, p);
}

EACH_HOST(waiting_does_not_stop_the_run) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 3),
                                   pyper_task(pass, .workers = 2, .ordered = true));
    pyper_run *run = START(p, PTR(500));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), 0);
    for (long i = 0; i < 500; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

static void wait_for_run(void *run) {
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
}

EACH_HOST(several_threads_may_wait_for_the_run) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_task(wait_for_gate, .bind = &gate);
    pyper_run *run = START(p, PTR(7));
    thread threads[3];
    for (int i = 0; i < 3; i++) thread_start(&threads[i], wait_for_run, run);
    gate_open(&gate);
    for (int i = 0; i < 3; i++) thread_join(&threads[i]);
    NEXT_IS(run, 7);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* The end is reported only when every worker has left. */
EACH_HOST(after_the_end_nothing_of_the_run_is_left) {
    for (int i = 0; i < 30; i++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 4));
        pyper_run *run = START(p, PTR(20));
        CHECK_EQ(drain(run, NULL, NULL), 0);
        CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), 0);
        pyper_task_stats stats[2];
        CHECK_EQ(pyper_stats(run, stats, 2), 2);
        CHECK_EQ(stats[0].alive + stats[1].alive, 0);
        close_both(run, p);
    }
}
