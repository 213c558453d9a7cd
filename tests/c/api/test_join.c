/* Tasks that pull their inputs, and tasks with any number of outputs.  Black-box: pyper.h only. */
#include "../kit.h"

EACH_HOST(a_join_reads_everything) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(add_one, .workers = 3),
                   pyper_task(sum, .join = true));
    pyper_run *run = START(p, PTR(1000));
    NEXT_IS(run, 1000 * 999 / 2 + 1000);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(the_workers_of_a_join_share_their_inputs) {
    for (int64_t workers = 1; workers <= 5; workers++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = workers),
                                       pyper_task(sum, .join = true, .workers = workers));
        pyper_run *run = START(p, PTR(1000));
        long count, total;
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, workers);
        CHECK_EQ(total, 1000 * 999 / 2);
        close_both(run, p);
    }
}

static int running_total(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long total = 0;
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;)
        if ((rc = pyper_emit(w, PTR(total += INT(x)))) < 0) return rc;
    return rc;
}

EACH_HOST(a_join_may_branch) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 3),
                                       pyper_task(running_total, .join = true, .branch = true,
                                                  .ordered = ordered, .throttle = 2));
        pyper_run *run = START(p, PTR(300));
        for (long i = 0, total = 0; i < 300; i++) NEXT_IS(run, total += i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

EACH_HOST(a_join_is_called_also_when_there_is_nothing) {
    for (int64_t workers = 1; workers <= 4; workers++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(sum, .join = true, .workers = workers));
        pyper_run *run = START(p, PTR(0));
        long count, total;
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, workers);
        CHECK_EQ(total, 0);
        close_both(run, p);
    }
}

/* Pulls on after the end. */
static int pull_after_end(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    long count = 0;
    while (pyper_pull(w, &x) > 0) count++;
    x = &x;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pyper_pull(w, &x), 0);
        CHECK_EQ(pyper_pull_until(w, &x, PYPER_NOWAIT), 0);
    }
    CHECK(x == &x);
    return pyper_emit(w, PTR(count));
}

EACH_HOST(the_inputs_stay_at_their_end) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pull_after_end, .join = true));
    pyper_run *run = START(p, PTR(10));
    NEXT_IS(run, 10);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(joins_in_a_row) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(running_total, .join = true, .branch = true),
                   pyper_task(sum, .join = true, .workers = 3), pyper_task(sum, .join = true));
    pyper_run *run = START(p, PTR(100));
    long expected = 0;
    for (long i = 0, total = 0; i < 100; i++) expected += total += i;
    NEXT_IS(run, expected);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* ------------------------------------------------------------------------- Pulling in detail */

static tally timed_out = TALLY;

static int gated_two(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(&timed_out);
    return count_up(w, PTR(2), NULL);
}

static int pull_with_deadlines(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x = &x;
    CHECK_EQ(pyper_pull_until(w, &x, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    int64_t deadline = pyper_now() + 1000000;
    CHECK_EQ(pyper_pull_until(w, &x, deadline), PYPER_ETIMEDOUT);
    CHECK_GE(pyper_now(), deadline);
    CHECK(x == &x);
    gate_open(&timed_out);
    CHECK_EQ(pyper_pull_until(w, &x, PYPER_FOREVER), 1);
    CHECK_EQ(INT(x), 0);
    CHECK_EQ(pyper_pull(w, &x), 1);
    CHECK_EQ(INT(x), 1);
    CHECK_EQ(pyper_pull(w, &x), 0);
    return pyper_emit(w, PTR(77));
}

EACH_HOST(a_pull_may_have_a_deadline) {
    pyper_pipeline *p = pyper_pipe(pyper_task(gated_two, .branch = true),
                                   pyper_task(pull_with_deadlines, .join = true));
    pyper_run *run = START(p, NULL);
    NEXT_IS(run, 77);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

static int pull_without_join(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x = &x;
    CHECK_EQ(pyper_pull(w, &x), PYPER_EINVAL);
    CHECK_EQ(pyper_pull_until(w, &x, PYPER_NOWAIT), PYPER_EINVAL);
    CHECK(x == &x);
    return pyper_emit(w, item);
}

EACH_HOST(only_a_join_can_pull) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(pull_without_join), pyper_task(pull_without_join, .workers = 2));
    pyper_run *run = START(p, PTR(5));
    NEXT_IS(run, 5);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* --------------------------------------------------------------------------- Leaving early */

/* Takes ten, delivers them, and leaves. */
static int ten_are_enough(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long total = 0;
    for (int i = 0; i < 10; i++) {
        void *x;
        CHECK_EQ(pyper_pull(w, &x), 1);
        total += item_deliver(x);
    }
    return pyper_emit(w, PTR(total));
}

EACH_HOST(a_join_that_leaves_early_ends_the_tasks_before) {
    for (int64_t throttle = 0; throttle < 4; throttle++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_items, .branch = true, .throttle = throttle, .type = &item_type),
            pyper_task(ten_are_enough, .join = true), pyper_task(add_one));
        pyper_run *run = START(p, PTR(-1));
        NEXT_IS(run, 46);
        ENDS_WITH(run, 0);
        CHECK_EQ(pyper_failed(run), 0);
        CHECK_STR(pyper_error_message(run), "");
        close_both(run, p);
    }
}

EACH_HOST(a_join_that_leaves_early_ends_the_whole_chain_before) {
    for (int64_t workers = 1; workers <= 4; workers++) {
        for (int ordered = 0; ordered < 2; ordered++) {
            pyper_pipeline *p = pyper_pipe(
                pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
                pyper_task(pass, .workers = workers, .throttle = 2, .type = &item_type,
                           .ordered = ordered),
                pyper_task(pass, .workers = workers, .throttle = 1, .type = &item_type),
                pyper_task(ten_are_enough, .join = true, .workers = workers));
            pyper_run *run = START(p, PTR(-1));
            long count;
            CHECK_EQ(drain(run, &count, NULL), 0);
            CHECK_EQ(count, workers);
            CHECK_EQ(pyper_failed(run), 0);
            close_both(run, p);
        }
    }
}

static int never_mind(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, PTR(1));
}

EACH_HOST(a_join_need_not_read_at_all) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
                   pyper_task(never_mind, .join = true, .workers = 3));
    pyper_run *run = START(p, PTR(-1));
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 3);
    close_both(run, p);
}

/* As long as one worker of the join reads on, nothing is cancelled. */
static int first_leaves(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_worker_index(w) == 0 ? pyper_emit(w, PTR(0)) : sum(w, NULL, NULL);
}

static int after_the_first_output(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return count_up(w, item, NULL);
}

EACH_HOST(a_join_goes_on_while_one_of_its_workers_reads) {
    tally gate = TALLY;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(after_the_first_output, .branch = true, .throttle = 2, .bind = &gate),
                   pyper_task(first_leaves, .join = true, .workers = 2));
    pyper_run *run = START(p, PTR(1000));
    NEXT_IS(run, 0);
    gate_open(&gate);
    NEXT_IS(run, 1000 * 999 / 2);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* What a join emits before it leaves early goes all the way, though it is emitted by a task whose
 * own inputs have been cancelled. */
static int emit_many_and_leave(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    CHECK_EQ(pyper_pull(w, &x), 1);
    return count_up(w, PTR(1000), NULL);
}

EACH_HOST(what_an_early_leaver_emitted_is_delivered) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 3),
                   pyper_task(emit_many_and_leave, .join = true, .branch = true, .throttle = 5),
                   pyper_task(add_one, .workers = 3, .ordered = true, .throttle = 5));
    pyper_run *run = START(p, NULL);
    for (long i = 0; i < 1000; i++) NEXT_IS(run, i + 1);
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
}

/* The producer is told so, by emit and by pyper_cancelled(), while the rest of the run goes on. */
static tally told = TALLY;
static int until_told(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    while (pyper_emit(w, item_new(1)) == 0) continue;
    CHECK(pyper_cancelled(w));
    CHECK_EQ(pyper_emit(w, item_new(2)), PYPER_ECANCELED);
    gate_open(&told);
    return PYPER_ECANCELED;
}

/* Takes one, so that the producer has certainly been called. */
static int one_is_enough(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    CHECK_EQ(pyper_pull(w, &x), 1);
    return pyper_emit(w, PTR(item_deliver(x)));
}

static int wait_until_told(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(&told);
    CHECK(!pyper_cancelled(w));
    return pyper_emit(w, item);
}

EACH_HOST(only_the_part_before_an_early_leaver_is_over) {
    pyper_pipeline *p = pyper_pipe(
        pyper_task(until_told, .branch = true, .throttle = 1, .type = &item_type),
        pyper_task(one_is_enough, .join = true), pyper_task(wait_until_told, .name = "rest"));
    pyper_run *run = START(p, NULL);
    NEXT_IS(run, 1);
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
}

/* ------------------------------------------------------------------------------- Branching */

static int item_times(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++)
        if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    return 0;
}

EACH_HOST(a_branch_emits_none_one_or_many) {
    static const int64_t workers[] = {1, 4};
    for (int i = 0; i < 4; i++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true),
            pyper_task(item_times, .branch = true, .workers = workers[i / 2], .ordered = i % 2));
        pyper_run *run = START(p, PTR(60));
        long count, total;
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, 60 * 59 / 2);
        CHECK_EQ(total, 59 * 60 * 119 / 6);
        close_both(run, p);
    }
}

static int drop_all(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    item_deliver(item);
    return 0;
}

EACH_HOST(a_branch_may_emit_nothing_at_all) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_items, .branch = true, .throttle = 4, .type = &item_type),
            pyper_task(drop_all, .branch = true, .workers = 3, .throttle = 1, .ordered = ordered),
            pyper_task(sum, .join = true));
        pyper_run *run = START(p, PTR(3000));
        NEXT_IS(run, 0);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}
