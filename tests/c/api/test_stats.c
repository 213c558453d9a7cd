/* The counters of a run, at any moment of it and after it.  Black-box: pyper.h only. */
#include "../kit.h"

static void are_plausible(const pyper_task_stats *s, size_t count) {
    for (size_t i = 0; i < count; i++) {
        CHECK(s[i].name != NULL);
        CHECK_GE(s[i].workers, 1);
        CHECK_GE(s[i].alive, 0);
        CHECK_LE(s[i].alive, s[i].workers);
        CHECK_GE(s[i].items_in, 0);
        CHECK_GE(s[i].items_out, 0);
        CHECK_GE(s[i].queued, 0);
        CHECK_GE(s[i].busy_ns, 0);
        CHECK_GE(s[i].starved_ns, 0);
        CHECK_GE(s[i].blocked_ns, 0);
    }
}

EACH_HOST(the_counters_of_a_finished_run) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true, .throttle = 10, .name = "source"),
            pyper_task(pass, .workers = 3, .throttle = 10, .ordered = ordered, .name = "middle"),
            pyper_task(sum, .join = true, .name = "total"));
        pyper_run *run = START(p, PTR(1000));
        NEXT_IS(run, 1000 * 999 / 2);
        ENDS_WITH(run, 0);
        pyper_task_stats s[3];
        CHECK_EQ(pyper_stats(run, s, 3), 3);
        are_plausible(s, 3);
        CHECK_STR(s[0].name, "source");
        CHECK_STR(s[1].name, "middle");
        CHECK_STR(s[2].name, "total");
        static const int64_t workers[] = {1, 3, 1}, in[] = {1, 1000, 1000}, out[] = {1000, 1000, 1};
        for (int i = 0; i < 3; i++) {
            CHECK_EQ(s[i].workers, workers[i]);
            CHECK_EQ(s[i].alive, 0);
            CHECK_EQ(s[i].items_in, in[i]);
            CHECK_EQ(s[i].items_out, out[i]);
            CHECK_EQ(s[i].queued, 0);
            CHECK(s[i].busy_ns > 0);
        }
        close_both(run, p);
    }
}

EACH_HOST(as_many_records_as_there_is_room_for) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(pass), pyper_task(pass));
    pyper_run *run = START(p, NULL);
    CHECK_EQ(pyper_stats(run, NULL, 0), 3);
    pyper_task_stats s[5];
    memset(s, 0x55, sizeof s);
    CHECK_EQ(pyper_stats(run, s, 2), 3);
    CHECK_EQ(s[1].workers, 1);
    CHECK_EQ(s[2].workers, 0x5555555555555555);
    CHECK_EQ(pyper_stats(run, s, 5), 3);
    CHECK_EQ(s[2].workers, 1);
    CHECK_EQ(s[3].workers, 0x5555555555555555);
    close_both(run, p);
}

/* An older caller knows fewer counters, a newer one more. */
EACH_HOST(records_of_other_sizes) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass, .name = "a"), pyper_task(pass, .name = "b"));
    pyper_run *run = START(p, NULL);
    struct old {
        const char *name;
        int64_t workers;
    } old[3];
    memset(old, 0x55, sizeof old);
    CHECK_EQ(pyper_stats_read(run, (pyper_task_stats *)old, 2, sizeof *old), 2);
    CHECK_STR(old[0].name, "a");
    CHECK_STR(old[1].name, "b");
    CHECK_EQ(old[1].workers, 1);
    CHECK_EQ(old[2].workers, 0x5555555555555555);
    struct newer {
        pyper_task_stats known;
        int64_t unknown;
    } newer[2];
    memset(newer, 0x55, sizeof newer);
    CHECK_EQ(pyper_stats_read(run, &newer[0].known, 2, sizeof *newer), 2);
    CHECK_STR(newer[0].known.name, "a");
    CHECK_STR(newer[1].known.name, "b");
    CHECK_EQ(newer[1].known.workers, 1);
    close_both(run, p);
}

static int gated(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return pyper_emit(w, item);
}

/* Everything stands still: the numbers must be exact. */
EACH_HOST(the_counters_of_a_run_that_stands_still) {
    tally gate = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 7),
                   pyper_task(pass, .workers = 2, .throttle = 4),
                   pyper_task(gated, .workers = 3, .bind = &gate), pyper_task(pass));
    pyper_run *run = START(p, PTR(1000));
    all_asleep();
    pyper_task_stats s[4];
    CHECK_EQ(pyper_stats(run, s, 4), 4);
    are_plausible(s, 4);
    CHECK_EQ(s[0].alive, 1);
    CHECK_EQ(s[1].alive, 2);
    CHECK_EQ(s[2].alive, 3);
    CHECK_EQ(s[3].alive, 1);
    CHECK_EQ(s[0].items_in, 1);
    CHECK_EQ(s[0].items_out, s[1].items_in + s[0].queued);
    CHECK_EQ(s[1].items_out, s[2].items_in + s[1].queued);
    CHECK_EQ(s[1].items_in, s[1].items_out + 2); /* one in each hand */
    CHECK_EQ(s[2].items_in, 3);
    CHECK_EQ(s[2].items_out, 0);
    CHECK_LE(s[0].queued, 7);
    CHECK_LE(s[1].queued, 4);
    CHECK(2 * s[0].queued > 7); /* fewer than half of the places are free */
    CHECK(2 * s[1].queued > 4);
    /* A wait that goes on counts already. */
    CHECK(s[0].blocked_ns > 0);
    CHECK(s[1].blocked_ns > 0);
    CHECK(s[3].starved_ns > 0);
    CHECK_EQ(s[3].blocked_ns, 0);
    gate_open(&gate);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 1000);
    close_both(run, p);
}

EACH_HOST(outputs_that_nobody_takes_are_queued) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass));
    pyper_run *run = START(p, PTR(100));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    for (long taken = 0; taken <= 100; taken++) {
        pyper_task_stats s[2];
        CHECK_EQ(pyper_stats(run, s, 2), 2);
        CHECK_EQ(s[1].items_out, 100);
        CHECK_EQ(s[1].queued, 100 - taken);
        CHECK_EQ(s[0].queued, 0);
        if (taken < 100) NEXT_IS(run, taken);
    }
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* What an ordered task keeps because an earlier call is not over has been emitted, and waits. */
static int gated_zero(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 0) gate_wait(bind);
    return pyper_emit(w, item);
}

EACH_HOST(what_is_kept_for_the_order_is_queued) {
    tally gate = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(gated_zero, .workers = 2, .ordered = true, .bind = &gate));
    pyper_run *run = START(p, PTR(50));
    all_asleep();
    pyper_task_stats s[2];
    CHECK_EQ(pyper_stats(run, s, 2), 2);
    CHECK_EQ(s[1].items_out, 49);
    CHECK_EQ(s[1].queued, 49);
    gate_open(&gate);
    for (long i = 0; i < 50; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* What is destroyed in the end was emitted all the same, and nobody has started on it. */
EACH_HOST(outputs_stay_counted_when_they_are_destroyed) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true),
        pyper_task(gated_zero, .workers = 2, .ordered = true, .bind = &gate), pyper_task(pass));
    pyper_run *run = START(p, PTR(50));
    all_asleep();
    pyper_cancel(run);
    gate_open(&gate);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    pyper_task_stats s[3];
    CHECK_EQ(pyper_stats(run, s, 3), 3);
    CHECK_EQ(s[0].items_out, 50);
    CHECK_EQ(s[1].items_in, 50);
    CHECK_EQ(s[1].items_out, 49);
    CHECK_EQ(s[2].items_in, 0);
    for (int i = 0; i < 3; i++) CHECK_EQ(s[i].queued, 0);
    close_both(run, p);
}

/* ------------------------------------------------------------------------- During the run */

typedef struct watched {
    pyper_run *run;
    _Atomic bool over;
} watched;

static void watch(void *arg) {
    watched *w = arg;
    pyper_task_stats before[3] = {{0}};
    while (!atomic_load(&w->over)) {
        pyper_task_stats s[3];
        CHECK_EQ(pyper_stats(w->run, s, 3), 3);
        are_plausible(s, 3);
        for (int i = 0; i < 3; i++) {
            CHECK_GE(s[i].items_in, before[i].items_in);
            CHECK_GE(s[i].items_out, before[i].items_out);
            CHECK_LE(s[i].alive, before[i].alive + (before[i].workers ? 0 : s[i].workers));
        }
        memcpy(before, s, sizeof s);
        others();
    }
}

EACH_HOST(the_counters_only_grow) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 20),
                       pyper_task(pass, .workers = 3, .throttle = 5, .ordered = ordered),
                       pyper_task(pass, .throttle = 20));
        watched w = {.run = START(p, PTR(check_times(10000)))};
        thread watchers[2];
        for (int i = 0; i < 2; i++) thread_start(&watchers[i], watch, &w);
        CHECK_EQ(drain(w.run, NULL, NULL), 0);
        atomic_store(&w.over, true);
        for (int i = 0; i < 2; i++) thread_join(&watchers[i]);
        close_both(w.run, p);
    }
}

/* The clocks: together they are no more than the time that has passed, times the workers. */
EACH_HOST(the_clocks_add_up) {
    int64_t before = pyper_now();
    tally gate = TALLY;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 3),
                                   pyper_task(pass, .workers = 3, .throttle = 3),
                                   pyper_task(gated, .bind = &gate), pyper_task(pass));
    pyper_run *run = START(p, PTR(500));
    all_asleep();
    int64_t still = pyper_now();
    while (pyper_now() < still + 2000000) others(); /* so that there is something to measure */
    pyper_task_stats s[4];
    CHECK_EQ(pyper_stats(run, s, 4), 4);
    CHECK_GE(s[0].blocked_ns, 2000000);     /* waits for room */
    CHECK_GE(s[1].blocked_ns, 3 * 2000000); /* all three do */
    CHECK_GE(s[2].busy_ns, 2000000);        /* waits on its own account */
    CHECK_GE(s[3].starved_ns, 2000000);     /* waits for an input */
    gate_open(&gate);
    CHECK_EQ(drain(run, NULL, NULL), 0);
    CHECK_EQ(pyper_stats(run, s, 4), 4);
    int64_t passed = pyper_now() - before;
    for (int i = 0; i < 4; i++) {
        CHECK_LE(s[i].busy_ns + s[i].starved_ns + s[i].blocked_ns, passed * s[i].workers);
        CHECK_GE(s[i].busy_ns + s[i].starved_ns + s[i].blocked_ns, 2000000 * s[i].workers);
    }
    /* They stand still after the run. */
    pyper_task_stats later[4];
    CHECK_EQ(pyper_stats(run, later, 4), 4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(later[i].busy_ns, s[i].busy_ns);
        CHECK_EQ(later[i].starved_ns, s[i].starved_ns);
        CHECK_EQ(later[i].blocked_ns, s[i].blocked_ns);
    }
    close_both(run, p);
}

/* After a failure and after a cancel they can be read as well. */
static int fail_now(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return -1;
}

EACH_HOST(the_counters_of_runs_that_ended_badly) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 2), pyper_task(fail_now));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    pyper_task_stats s[2];
    CHECK_EQ(pyper_stats(run, s, 2), 2);
    are_plausible(s, 2);
    CHECK_EQ(s[0].alive + s[1].alive, 0);
    CHECK_EQ(s[1].items_in, 1);
    CHECK_EQ(s[1].items_out, 0);
    close_both(run, p);
    p = pyper_task(count_for_ever, .branch = true, .throttle = 2);
    run = START(p, NULL);
    pyper_cancel(run);
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0); /* a cancel is reported at once */
    CHECK_EQ(pyper_stats(run, s, 1), 1);
    are_plausible(s, 1);
    CHECK_EQ(s[0].alive, 0);
    close_both(run, p);
}

static int read_counters(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_task_stats s[2];
    CHECK_EQ(pyper_stats(pyper_worker_run(w), s, 2), 2);
    are_plausible(s, 2);
    CHECK_GE(s[1].alive, 1);
    CHECK_GE(s[1].items_in, 1);
    return pyper_emit(w, item);
}

EACH_HOST(a_function_may_read_the_counters) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(read_counters, .workers = 2));
    pyper_run *run = START(p, PTR(100));
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100);
    close_both(run, p);
}
