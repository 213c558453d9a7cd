/* Asynchronous tasks: operations that are completed later, elsewhere.  Black-box: pyper.h only. */
#include "../elsewhere.h"

/* ------------------------------------------------------------------------------ At once */

EACH_HOST(an_async_task_may_complete_at_once) {
    for (int64_t workers = 1; workers <= 5; workers += 4) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(add_one, .async = true, .workers = workers));
        pyper_run *run = START(p, PTR(2000));
        for (long i = 0; i < 2000; i++) NEXT_IS(run, i + 1);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

EACH_HOST(all_tasks_may_be_async) {
    for (int64_t throttle = 0; throttle <= 2; throttle++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(add_one, .async = true),
                                       pyper_task(add_one, .async = true, .workers = 3),
                                       pyper_task(add_one, .async = true, .throttle = throttle));
        pyper_run *run = START(p, PTR(1));
        NEXT_IS(run, 4);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

EACH_HOST(sync_and_async_tasks_mix_in_any_order) {
    for (int mix = 0; mix < 16; mix++) {
        for (int64_t throttle = 0; throttle <= 3; throttle += 3) {
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                           pyper_task(add_one, .async = mix & 1, .workers = 3, .throttle = throttle,
                                      .ordered = true),
                           pyper_task(add_one, .async = mix & 2, .throttle = throttle),
                           pyper_task(add_one, .async = mix & 4, .workers = 2, .throttle = throttle,
                                      .ordered = true),
                           pyper_task(add_one, .async = mix & 8, .throttle = throttle));
            pyper_run *run = START(p, PTR(300));
            for (long i = 0; i < 300; i++) NEXT_IS(run, i + 4);
            ENDS_WITH(run, 0);
            close_both(run, p);
        }
    }
}

/* ------------------------------------------------------------------------------- Elsewhere */

EACH_HOST(operations_are_completed_from_other_threads) {
    for (int threads = 1; threads <= 3; threads += 2) {
        elsewhere e;
        elsewhere_begin(&e, threads, NULL);
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(begin, .async = true, .workers = 20, .bind = &e));
        long count, total, n = check_times(5000);
        pyper_run *run = START(p, PTR(n));
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, n);
        CHECK_EQ(total, n * (n - 1) / 2 + n);
        CHECK_LE(e.most, 20);
        close_both(run, p);
        elsewhere_end(&e);
    }
}

EACH_HOST(as_many_operations_as_workers_are_under_way_at_once) {
    elsewhere e;
    elsewhere_begin(&e, 1, NULL);
    e.let = false;
    e.hold = 50;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(begin, .async = true, .workers = 50, .bind = &e));
    pyper_run *run = START(p, PTR(500));
    for (long i = 0; i < 451; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
    }
    CHECK_EQ(e.most, 50);
    elsewhere_let(&e);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 49);
    CHECK_EQ(e.most, 50);
    close_both(run, p);
    elsewhere_end(&e);
}

EACH_HOST(outputs_keep_the_order_of_the_inputs) {
    for (int64_t throttle = 0; throttle <= 5; throttle += 5) {
        elsewhere e;
        elsewhere_begin(&e, 2, NULL);
        e.lifo = true;
        long n = check_times(4000);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(begin, .async = true, .workers = 30, .ordered = true,
                                  .throttle = throttle, .bind = &e));
        pyper_run *run = START(p, PTR(n));
        for (long i = 0; i < n; i++) NEXT_IS(run, i + 1);
        ENDS_WITH(run, 0);
        close_both(run, p);
        elsewhere_end(&e);
    }
}

/* The first operation is held back until nobody else can get on: all others are beyond the
 * window. */
static tally arrived = TALLY, first_may_go = TALLY;
static void hold_the_first(operation *op) {
    if (INT(op->item) == 0) gate_wait(&first_may_go);
    complete_one(op);
    tally_add(&arrived, 1);
}

EACH_HOST(nobody_gets_further_ahead_than_the_window) {
    elsewhere e;
    elsewhere_begin(&e, 2, hold_the_first);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(begin, .async = true, .workers = 5, .ordered = true, .bind = &e));
    pyper_run *run = START(p, PTR(3000));
    void *out;
    /* 1 to 1023 are done, and four workers have one each that is beyond. */
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    while (tally_count(&arrived) < 1023 + 4)
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(tally_count(&arrived), 1023 + 4);
    gate_open(&first_may_go);
    for (long i = 0; i < 3000; i++) NEXT_IS(run, i + 1);
    ENDS_WITH(run, 0);
    close_both(run, p);
    elsewhere_end(&e);
}

/* Several outputs of one operation, from another thread. */
static void complete_with_many(operation *op) {
    long n = INT(op->item);
    for (long i = 0; i < n; i++) pyper_emit(op->worker, PTR(i));
    pyper_done(op->worker, 0);
}

EACH_HOST(a_branching_operation_emits_none_one_or_many) {
    for (int64_t throttle = 0; throttle <= 2; throttle++) {
        elsewhere e;
        elsewhere_begin(&e, 2, complete_with_many);
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(begin, .async = true, .branch = true,
                                                  .workers = 4, .throttle = throttle, .bind = &e),
                                       pyper_task(add_one));
        pyper_run *run = START(p, PTR(40));
        long count, total;
        CHECK_EQ(drain(run, &count, &total), 0);
        CHECK_EQ(count, 40 * 39 / 2);
        CHECK_EQ(total, 38 * 39 * 40 / 6 + count);
        close_both(run, p);
        elsewhere_end(&e);
    }
}

/* --------------------------------------------------------------------------------- Throttle */

static _Atomic long made, taken;

/* A branching operation that obeys: after PYPER_KEPT it goes on when it is resumed. */
static int make_more(pyper_worker *w, void *item, void *bind) {
    (void)item;
    long *next = *pyper_worker_state(w);
    while (*next < INT(bind)) {
        atomic_fetch_add(&made, 1);
        int rc = pyper_emit(w, PTR((*next)++));
        if (rc == PYPER_KEPT) return PYPER_PENDING;
        if (rc < 0) break;
    }
    free(next);
    return pyper_cancelled(w) ? PYPER_ECANCELED : 0;
}

static int make_until_full(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long *next = calloc(1, sizeof *next);
    CHECK(next != NULL);
    *pyper_worker_state(w) = next;
    return make_more(w, item, bind);
}

EACH_HOST(the_throttle_is_exact_for_an_operation_that_obeys) {
    for (int64_t throttle = 1; throttle <= 7; throttle += 3) {
        atomic_store(&made, 0);
        pyper_pipeline *p = pyper_task(make_until_full, .async = true, .branch = true,
                                       .throttle = throttle, .resume = make_more, .bind = PTR(500));
        pyper_run *run = START(p, NULL);
        for (long i = 0; i < 500; i++) {
            NEXT_IS(run, i);
            CHECK_LE(atomic_load(&made), i + 1 + throttle + 1);
        }
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

static int count_made(pyper_worker *w, void *item, void *bind) {
    atomic_fetch_add(&made, 1);
    return begin(w, item, bind);
}

static int count_taken(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long started = atomic_fetch_add(&taken, 1) + 1;
    CHECK_LE(atomic_load(&made), started + INT(bind));
    return pyper_emit(w, item);
}

EACH_HOST(the_throttle_is_exact_without_branch) {
    for (int ordered = 0; ordered < 2; ordered++) {
        for (int64_t throttle = 1; throttle <= 4; throttle += 3) {
            elsewhere e;
            elsewhere_begin(&e, 2, NULL);
            atomic_store(&made, 0);
            atomic_store(&taken, 0);
            int64_t workers = 6;
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true),
                           pyper_task(count_made, .async = true, .workers = workers,
                                      .ordered = ordered, .throttle = throttle, .bind = &e),
                           pyper_task(count_taken, .bind = PTR(throttle + workers), .throttle = 2));
            pyper_run *run = START(p, PTR(500));
            long count;
            CHECK_EQ(drain(run, &count, NULL), 0);
            CHECK_EQ(count, 500);
            close_both(run, p);
            elsewhere_end(&e);
        }
    }
}

EACH_HOST(a_paused_async_worker_resumes_when_items_are_taken) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
                   pyper_task(pass, .async = true, .throttle = 2, .type = &item_type));
    pyper_run *run = START(p, PTR(-1));
    for (long i = 0; i < 1000; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        CHECK_EQ(item_deliver(out), i);
    }
    close_both(run, p);
}

/* Slots that are blocked by what they have just taken must learn of room, too. */
EACH_HOST(a_paused_async_worker_resumes_when_a_thread_takes) {
    for (int64_t workers = 1; workers <= 3; workers++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                       pyper_task(add_one, .async = true, .workers = workers, .throttle = 2),
                       pyper_task(sum, .join = true));
        long n = check_times(20000);
        pyper_run *run = START(p, PTR(n));
        NEXT_IS(run, n * (n + 1) / 2);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* What becomes of its outputs is nothing that the caller would be woken for. */
static int drop_item(pyper_worker *w, void *item, void *bind) {
    item_deliver(item);
    return 0;
}

EACH_HOST(a_paused_async_worker_resumes_when_its_outputs_come_to_nothing) {
    for (int64_t throttle = 1; throttle <= 4; throttle += 3) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                       pyper_task(pass, .async = true, .throttle = throttle, .type = &item_type),
                       pyper_task(drop_item, .branch = true, .type = &item_type));
        pyper_run *run = START(p, PTR(3000));
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* ------------------------------------------------------------------------------------- Join */

typedef struct total {
    long sum;
} total;

static int sum_up(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK(item == NULL);
    total **state = (total **)pyper_worker_state(w);
    if (!*state) CHECK(*state = calloc(1, sizeof **state));
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0;) (*state)->sum += INT(x);
    if (rc == PYPER_EAGAIN) return PYPER_PENDING;
    long sum_of = (*state)->sum;
    free(*state);
    return rc < 0 ? rc : pyper_emit(w, PTR(sum_of));
}

EACH_HOST(an_async_join_sums_its_inputs) {
    for (int64_t workers = 1; workers <= 3; workers += 2) {
        for (int64_t throttle = 0; throttle <= 2; throttle += 2) {
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                           pyper_task(sum_up, .async = true, .join = true, .workers = workers));
            pyper_run *run = START(p, PTR(3000));
            long count, sum_of;
            CHECK_EQ(drain(run, &count, &sum_of), 0);
            CHECK_EQ(count, workers);
            CHECK_EQ(sum_of, 3000 * 2999 / 2);
            close_both(run, p);
        }
    }
}

static int running_total(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0;) {
        void **state = pyper_worker_state(w);
        *state = PTR(INT(*state) + INT(x));
        int emitted = pyper_emit(w, *state);
        if (emitted < 0) return emitted;
    }
    return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
}

EACH_HOST(an_async_join_may_branch) {
    for (int64_t throttle = 0; throttle <= 2; throttle++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(running_total, .async = true, .join = true,
                                                  .branch = true, .throttle = throttle));
        pyper_run *run = START(p, PTR(500));
        for (long i = 0, sum_of = 0; i < 500; i++) {
            sum_of += i;
            NEXT_IS(run, sum_of);
        }
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

static int ten_and_no_more(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long *count = (long *)pyper_worker_state(w);
    int rc = 0;
    for (void *x; *count < 10 && (rc = pyper_try_pull(w, &x)) > 0; ++*count) item_deliver(x);
    if (rc < 0) return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
    return pyper_emit(w, PTR(*count));
}

EACH_HOST(an_async_join_that_leaves_early_ends_the_tasks_before) {
    for (int64_t workers = 1; workers <= 3; workers++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
            pyper_task(pass, .async = true, .workers = 2, .throttle = 3, .type = &item_type),
            pyper_task(ten_and_no_more, .async = true, .join = true, .workers = workers));
        pyper_run *run = START(p, PTR(-1));
        for (long i = 0; i < workers; i++) NEXT_IS(run, 10);
        ENDS_WITH(run, 0);
        CHECK_EQ(pyper_failed(run), 0);
        close_both(run, p);
    }
}

EACH_HOST(an_async_join_is_called_without_inputs_too) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(sum_up, .async = true, .join = true, .workers = 3));
    pyper_run *run = START(p, PTR(0));
    for (int i = 0; i < 3; i++) NEXT_IS(run, 0);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* ----------------------------------------------------------------------------------- Failing */

static void complete_badly(operation *op) {
    if (INT(op->item) == 7)
        pyper_done(op->worker, pyper_fail(op->worker, 42, "no %d", 7));
    else
        complete_one(op);
}

EACH_HOST(an_operation_that_fails_elsewhere_fails_the_run) {
    elsewhere e;
    elsewhere_begin(&e, 2, complete_badly);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(begin, .async = true, .workers = 3, .bind = &e, .name = "op"));
    pyper_run *run = START(p, PTR(1000));
    CHECK_EQ(drain(run, NULL, NULL), PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 42);
    CHECK_HAS(pyper_error_message(run), "task 'op' (2 of 2): no 7");
    close_both(run, p);
    elsewhere_end(&e);
}

static int minus_nine(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return -9;
}

static int nothing(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return 0;
}

static int twice(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_emit(w, item_new(1));
    CHECK_EQ(pyper_emit(w, item_new(2)), PYPER_EINVAL);
    return 0;
}

EACH_HOST(what_an_operation_must_not_do_fails_the_run) {
    static const struct {
        pyper_fn fn;
        int code;
        const char *message;
    } cases[] = {{minus_nine, -9, "returned -9"},
                 {nothing, PYPER_EINVAL, "without an output"},
                 {twice, PYPER_EINVAL, "emitted twice"}};
    for (int i = 0; i < 3; i++) {
        pyper_pipeline *p = pyper_task(cases[i].fn, .async = true, .type = &item_type);
        pyper_run *run = START(p, NULL);
        void *out;
        int rc;
        while ((rc = pyper_next(run, &out)) > 0) item_deliver(out);
        CHECK_EQ(rc, PYPER_EFAILED);
        CHECK_EQ(pyper_error_code(run), cases[i].code);
        CHECK_HAS(pyper_error_message(run), cases[i].message);
        close_both(run, p);
    }
}

EACH_HOST(a_failing_thread_cancels_the_operations_under_way) {
    elsewhere e;
    elsewhere_begin(&e, 0, NULL);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(begin, .async = true, .workers = 5, .bind = &e, .cancel = give_up));
    pyper_run *run = START(p, PTR(5));
    void *out;
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    while (e.count < 5)
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(e.cancelled, 5);
    pyper_unref(p);
    elsewhere_end(&e);
}

/* ----------------------------------------------------------------------------------- Leaving */

static void complete_with_item(operation *op) {
    pyper_emit(op->worker, op->item);
    pyper_done(op->worker, 0);
}

EACH_HOST(an_endless_async_run_can_be_closed) {
    for (int i = 0; i < 20; i++) {
        elsewhere e;
        elsewhere_begin(&e, 2, complete_with_item);
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_items, .branch = true, .throttle = 1 + i % 3, .type = &item_type),
            pyper_task(begin, .async = true, .workers = 1 + i % 4, .ordered = i % 2,
                       .throttle = 1 + i % 3, .type = &item_type, .bind = &e),
            pyper_task(pass, .throttle = 1, .type = &item_type));
        pyper_run *run = START(p, PTR(-1));
        for (int k = 0; k < i; k++) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1);
            item_deliver(out);
        }
        close_both(run, p);
        elsewhere_end(&e);
    }
}

/* Without a cancel the run waits until the operations are done, and takes nothing from them. */
EACH_HOST(closing_waits_for_the_operations_under_way) {
    elsewhere e;
    elsewhere_begin(&e, 1, complete_with_item);
    e.let = false;
    e.hold = 3;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                   pyper_task(begin, .async = true, .workers = 3, .type = &item_type, .bind = &e));
    pyper_run *run = START(p, PTR(2));
    void *out;
    while (e.count < 2)
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    pyper_cancel(run);
    CHECK_EQ(pyper_wait_until(run, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    elsewhere_let(&e);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(e.completed, 2);
    pyper_unref(p);
    elsewhere_end(&e);
}

/* Nobody holds the run: the last operation frees it (kit_settled checks that). */
EACH_HOST(an_abandoned_run_is_freed_by_its_last_operation) {
    for (int i = 0; i < 10; i++) {
        elsewhere e;
        elsewhere_begin(&e, 1 + i % 3, complete_with_item);
        e.let = false;
        e.hold = 100;
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_items, .branch = true, .throttle = 5, .type = &item_type),
            pyper_task(begin, .async = true, .workers = 4, .type = &item_type, .bind = &e));
        pyper_run *run = START(p, PTR(-1));
        void *out;
        while (e.count < 4)
            CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
        pyper_run_unref(run);
        pyper_unref(p);
        elsewhere_let(&e);
        elsewhere_end(&e);
        CHECK_EQ(e.completed, 4);
    }
}

EACH_HOST(a_run_that_was_never_driven_can_be_dropped) {
    pyper_pipeline *p = pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                                   pyper_task(pass, .async = true, .type = &item_type));
    pyper_run_unref(START(p, PTR(10)));
    pyper_unref(p);
}

static int ask_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *out;
    CHECK_EQ(pyper_next(pyper_worker_run(w), &out), PYPER_EDEADLK);
    CHECK_EQ(pyper_wait_until(pyper_worker_run(w), PYPER_FOREVER), PYPER_EDEADLK);
    CHECK_EQ(pyper_pull(w, &out), PYPER_EINVAL);
    CHECK_EQ(pyper_try_pull(w, &out), PYPER_EINVAL);
    return pyper_emit(w, item);
}

EACH_HOST(an_async_function_cannot_wait_for_its_own_run) {
    pyper_pipeline *p = pyper_task(ask_own_run, .async = true);
    pyper_run *run = START(p, PTR(3));
    NEXT_IS(run, 3);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* --------------------------------------------------------------------------- Several callers */

EACH_HOST(several_threads_may_take_the_outputs) {
    elsewhere e;
    elsewhere_begin(&e, 2, NULL);
    long n = check_times(10000);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(begin, .async = true, .workers = 8, .throttle = 4, .bind = &e));
    pyper_run *run = START(p, PTR(n));
    long count, total;
    drain_together(run, &count, &total);
    CHECK_EQ(count, n);
    CHECK_EQ(total, n * (n - 1) / 2 + n);
    close_both(run, p);
    elsewhere_end(&e);
}

/* ------------------------------------------------------------------ An event loop of the user's */

EACH_HOST(a_run_can_be_driven_by_poll) {
    for (int64_t throttle = 0; throttle <= 3; throttle += 3) {
        elsewhere e;
        elsewhere_begin(&e, 2, NULL);
        long n = check_times(3000);
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                       pyper_task(begin, .async = true, .workers = 10, .ordered = true, .bind = &e),
                       pyper_task(add_one, .throttle = throttle),
                       pyper_task(add_one, .async = true, .throttle = throttle));
        pyper_run *run = START(p, PTR(n), .loop = true);
        CHECK_GE(pyper_fd(run), 0);
        void *out;
        for (long i = 0; i < n; i++) {
            CHECK_EQ(loop_take(run, &out), 1);
            CHECK_EQ(INT(out), i + 3);
        }
        CHECK_EQ(loop_take(run, &out), 0);
        CHECK_EQ(pyper_try_next(run, &out), 0);
        close_both(run, p);
        elsewhere_end(&e);
    }
}

EACH_HOST(a_run_without_async_tasks_can_be_driven_by_poll) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                                   pyper_task(add_one, .throttle = 2));
    pyper_run *run = START(p, PTR(1000), .loop = true);
    void *out;
    for (long i = 0; i < 1000; i++) {
        CHECK_EQ(loop_take(run, &out), 1);
        CHECK_EQ(INT(out), i + 1);
    }
    CHECK_EQ(loop_take(run, &out), 0);
    close_both(run, p);
}

EACH_HOST(a_loop_may_wait_before_it_has_asked) {
    pyper_pipeline *const tasks[] = {pyper_task(add_one), pyper_task(add_one, .async = true)};
    for (int i = 0; i < 2; i++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), tasks[i]);
        pyper_run *run = START(p, PTR(10), .loop = true);
        void *out;
        int rc = PYPER_EAGAIN, count = 0;
        while (rc == PYPER_EAGAIN) {
            CHECK(readable(pyper_fd(run), -1));
            CHECK_EQ(pyper_drive(run), 0);
            while ((rc = pyper_try_next(run, &out)) == 1) count++;
        }
        CHECK_EQ(rc, 0);
        CHECK_EQ(count, 10);
        close_both(run, p);
    }
}

EACH_HOST(the_descriptor_is_silent_while_there_is_nothing_to_do) {
    elsewhere e;
    elsewhere_begin(&e, 1, NULL);
    e.let = false;
    e.hold = 100;
    pyper_pipeline *p = pyper_task(begin, .async = true, .bind = &e);
    pyper_run *run = START(p, PTR(1), .loop = true);
    void *out;
    CHECK_EQ(pyper_drive(run), 0);
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EAGAIN);
    CHECK_EQ(pyper_drive(run), 0);
    CHECK_EQ(pyper_drive(run), 0);
    CHECK(!readable(pyper_fd(run), 0));
    elsewhere_let(&e);
    CHECK(readable(pyper_fd(run), -1));
    CHECK_EQ(loop_take(run, &out), 1);
    CHECK_EQ(INT(out), 2);
    CHECK_EQ(loop_take(run, &out), 0);
    close_both(run, p);
    elsewhere_end(&e);
}

/* An operation completed by the loop's own thread, between two calls of pyper_drive(). */
EACH_HOST(operations_may_be_completed_by_the_driver) {
    elsewhere e;
    elsewhere_begin(&e, 0, NULL);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(begin, .async = true, .workers = 3, .throttle = 2, .bind = &e));
    pyper_run *run = START(p, PTR(100), .loop = true);
    long count = 0, sum_of = 0;
    for (;;) {
        void *out;
        int rc = pyper_try_next(run, &out);
        if (rc == 0) break;
        if (rc == 1) {
            count++;
            sum_of += INT(out);
            continue;
        }
        CHECK_EQ(rc, PYPER_EAGAIN);
        CHECK_LE(e.count, 3);
        if (e.count > 0) {
            operation *op = elsewhere_take(&e);
            complete_one(op);
            free(op);
        } else {
            CHECK(readable(pyper_fd(run), -1));
        }
        CHECK_EQ(pyper_drive(run), 0);
    }
    CHECK_EQ(count, 100);
    CHECK_EQ(sum_of, 100 * 99 / 2 + 100);
    close_both(run, p);
    elsewhere_end(&e);
}

/* Threads of a test one after the other: they have the same memory, as a rule. */
static void drive_once(void *run) {
    CHECK_EQ(pyper_drive(run), 0);
}

static void complete_from_outside(void *arg) {
    operation *op = elsewhere_take(arg);
    CHECK_EQ(pyper_emit(op->worker, PTR(INT(op->item) + 1)), PYPER_KEPT);
    pyper_done(op->worker, 0);
    free(op);
}

EACH_HOST(a_thread_that_comes_after_the_driver_is_not_taken_for_it) {
    elsewhere e;
    elsewhere_begin(&e, 0, NULL);
    pyper_pipeline *p = pyper_task(begin, .async = true, .bind = &e);
    pyper_run *run = START(p, PTR(1), .loop = true);
    void (*const one_after_the_other[])(void *) = {drive_once, complete_from_outside};
    void *const args[] = {run, &e};
    for (int i = 0; i < 2; i++) {
        thread t;
        thread_start(&t, one_after_the_other[i], args[i]);
        thread_join(&t);
    }
    void *out;
    CHECK_EQ(loop_take(run, &out), 1);
    CHECK_EQ(INT(out), 2);
    CHECK_EQ(loop_take(run, &out), 0);
    close_both(run, p);
    elsewhere_end(&e);
}

/* A run with a loop, whose three operations nobody will complete: they can be given up. */
static pyper_run *three_under_way(elsewhere *e) {
    elsewhere_begin(e, 0, NULL);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 2),
                   pyper_task(begin, .async = true, .workers = 3, .bind = e, .cancel = give_up));
    pyper_run *run = START(p, NULL, .loop = true);
    pyper_unref(p);
    while (e->count < 3) {
        CHECK(readable(pyper_fd(run), -1));
        CHECK_EQ(pyper_drive(run), 0);
    }
    return run;
}

EACH_HOST(a_cancelled_run_says_so_to_the_loop) {
    elsewhere e;
    pyper_run *run = three_under_way(&e);
    void *out;
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EAGAIN);
    pyper_cancel(run);
    CHECK_EQ(loop_take(run, &out), PYPER_ECANCELED);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(e.cancelled, 3);
    elsewhere_end(&e);
}

static void close_run(void *run) {
    CHECK_EQ(pyper_close(run), 0);
}

/* Whoever closes a run waits for operations that only the loop can end. */
EACH_HOST(a_loop_drives_to_the_end_what_another_thread_closes) {
    elsewhere e;
    pyper_run *run = three_under_way(&e);
    void *out;
    thread closer;
    thread_start(&closer, close_run, pyper_run_ref(run));
    CHECK_EQ(loop_take(run, &out), PYPER_ECANCELED);
    pyper_task_stats stats[2];
    CHECK_EQ(pyper_stats(run, stats, 2), 2);
    CHECK_EQ(stats[0].alive + stats[1].alive, 0);
    pyper_run_unref(run);
    thread_join(&closer);
    CHECK_EQ(e.cancelled, 3);
    elsewhere_end(&e);
}

EACH_HOST(who_may_not_drive_is_told) {
    void *out;
    CHECK_EQ(pyper_fd(NULL), PYPER_EINVAL);
    CHECK_EQ(pyper_drive(NULL), PYPER_EINVAL);
    CHECK_EQ(pyper_try_next(NULL, &out), PYPER_EINVAL);
    pyper_pipeline *p = pyper_task(add_one, .async = true);
    pyper_run *run = START(p, PTR(1));
    CHECK_EQ(pyper_fd(run), PYPER_EINVAL);
    CHECK_EQ(pyper_drive(run), PYPER_EINVAL);
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EINVAL);
    NEXT_IS(run, 2);
    close_both(run, p);
    pyper_pipeline *bad = pyper_task(NULL, .async = true);
    run = START(bad, NULL, .loop = true);
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EINVAL);
    close_both(run, bad);
}

/* ------------------------------------------------------------------------------ Host's slots */

/* A host whose slots are little state machines on a loop of its own: a list of those that are
 * ready, run one after the other; each takes what it can get and emits it. */
typedef struct co {
    struct co *next;
    pyper_worker *worker;
    void *item;
    bool has_item, cancelled, ready;
} co;

typedef struct co_host {
    kit_host kit; /* first: the kit's callbacks take it for theirs */
    co *ready, **last;
    long started, left, resumed, cancelled;
    bool caller;
} co_host;

static void co_ready(co_host *host, co *c) {
    if (c->ready) return;
    c->ready = true;
    c->next = NULL;
    *host->last = c;
    host->last = &c->next;
}

static int co_start(void *host_data, pyper_worker *worker) {
    co_host *host = host_data;
    CHECK(kit_token_mine);
    if (host->kit.fail_at == ++host->started) {
        host->left++;
        return -77;
    }
    co *c = calloc(1, sizeof *c);
    CHECK(c != NULL);
    c->worker = worker;
    *pyper_worker_state(worker) = c;
    co_ready(host, c);
    return 0;
}

static void co_resume(void *host_data, pyper_worker *worker) {
    ((co_host *)host_data)->resumed++;
    co_ready(host_data, *pyper_worker_state(worker));
}

static void co_cancel(void *host_data, pyper_worker *worker) {
    co *c = *pyper_worker_state(worker);
    CHECK(pyper_cancelled(worker));
    CHECK(!c->cancelled);
    c->cancelled = true;
    ((co_host *)host_data)->cancelled++;
    co_ready(host_data, c);
}

static void co_resume_caller(void *host_data) {
    ((co_host *)host_data)->caller = true;
}

#define CO_HOST                                                                                    \
    .start_slot = co_start, .resume_slot = co_resume, .cancel_slot = co_cancel,                    \
    .resume_caller = co_resume_caller
static const pyper_host co_host_plain = {
    .size = sizeof(pyper_host), .release = kit_release, CO_HOST};
static const pyper_host co_host_token = {KIT_HOST, .exclusive = true, CO_HOST};
static const pyper_host co_host_free = {KIT_HOST, .exclusive = false, CO_HOST};
static const pyper_host *const co_hosts[] = {&co_host_plain, &co_host_token, &co_host_free};

/* Run a slot until it must wait or ends.  After each item it has it stops half of the time, as a
 * coroutine that awaits something else does. */
static void co_run(co_host *host, co *c) {
    int rc;
    c->ready = false;
    for (int round = 0;; round++) {
        if (c->has_item) {
            rc = pyper_try_emit(c->worker, PTR(INT(c->item) + 1));
            if (rc == PYPER_EAGAIN) return;
            c->has_item = false;
            if (rc < 0) break;
        }
        rc = pyper_try_pull(c->worker, &c->item);
        if (rc == PYPER_EAGAIN) return;
        if (rc <= 0) break;
        c->has_item = true;
        if (INT(c->item) % 2) {
            co_ready(host, c);
            return;
        }
    }
    host->left++;
    pyper_worker *worker = c->worker;
    free(c);
    pyper_slot_left(worker);
}

/* One turn of the host's loop; says whether it did anything. */
static bool co_turn(co_host *host) {
    co *list = host->ready;
    host->ready = NULL;
    host->last = &host->ready;
    bool any = list != NULL;
    while (list) {
        co *c = list;
        list = c->next;
        co_run(host, c);
    }
    return any;
}

static int co_take(pyper_run *run, co_host *host, void **ret_item) {
    for (;;) {
        int rc = pyper_try_next(run, ret_item);
        if (rc != PYPER_EAGAIN) return rc;
        host->caller = false;
        while (!host->caller) {
            bool busy = co_turn(host);
            if (readable(pyper_fd(run), busy || host->ready ? 0 : -1))
                CHECK_EQ(pyper_drive(run), 0);
        }
    }
}

static int not_called(pyper_worker *w, void *item, void *bind) {
    (void)w, (void)item, (void)bind;
    CHECK_FAIL("a host's slot is not a C function");
}

static co_host *co_host_new(void) {
    co_host *host = calloc(1, sizeof *host);
    CHECK(host != NULL);
    host->kit.next = atomic_load(&kit_hosts);
    atomic_store(&kit_hosts, &host->kit);
    host->last = &host->ready;
    return host;
}

EACH_HOST(slots_of_a_host_do_the_work) {
    for (int64_t throttle = 0; throttle <= 3; throttle += 3) {
        for (int ordered = 0; ordered < 2; ordered++) {
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttle),
                           pyper_task(not_called, .async = true, .workers = 7, .throttle = throttle,
                                      .ordered = ordered),
                           pyper_task(add_one, .throttle = throttle),
                           pyper_task(not_called, .async = true, .workers = 2, .throttle = throttle,
                                      .ordered = ordered));
            co_host *host = co_host_new();
            pyper_run *run =
                START(p, PTR(1000), .loop = true, .host = co_hosts[kit_variant], .host_data = host);
            long sum_of = 0;
            for (long i = 0; i < 1000; i++) {
                void *out;
                CHECK_EQ(co_take(run, host, &out), 1);
                if (ordered) CHECK_EQ(INT(out), i + 3);
                sum_of += INT(out);
            }
            CHECK_EQ(sum_of, 1000 * 999 / 2 + 3000);
            void *out;
            CHECK_EQ(co_take(run, host, &out), 0);
            CHECK_LE(host->started, 9);
            CHECK_EQ(host->left, host->started);
            close_both(run, p);
        }
    }
}

EACH_HOST(a_slot_starts_only_when_there_is_work_for_it) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(not_called, .async = true, .workers = 1000, .ordered = true));
    co_host *host = co_host_new();
    pyper_run *run =
        START(p, PTR(3), .loop = true, .host = co_hosts[kit_variant], .host_data = host);
    for (long i = 0; i < 3; i++) {
        void *out;
        CHECK_EQ(co_take(run, host, &out), 1);
        CHECK_EQ(INT(out), i + 1);
    }
    void *out;
    CHECK_EQ(co_take(run, host, &out), 0);
    CHECK_LE(host->started, 3);
    close_both(run, p);
}

EACH_HOST(slots_of_a_cancelled_run_are_told_once) {
    for (int64_t throttle = 0; throttle <= 2; throttle++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 3),
                       pyper_task(not_called, .async = true, .workers = 5, .throttle = throttle));
        co_host *host = co_host_new();
        pyper_run *run =
            START(p, NULL, .loop = true, .host = co_hosts[kit_variant], .host_data = host);
        void *out;
        for (long i = 0; i < 20; i++) CHECK_EQ(co_take(run, host, &out), 1);
        pyper_cancel(run);
        CHECK_EQ(co_take(run, host, &out), PYPER_ECANCELED);
        while (host->left < host->started) {
            bool busy = co_turn(host);
            if (readable(pyper_fd(run), busy || host->ready ? 0 : -1))
                CHECK_EQ(pyper_drive(run), 0);
        }
        close_both(run, p);
    }
}

EACH_HOST(a_slot_that_cannot_be_started_fails_the_run) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(not_called, .async = true, .workers = 3, .name = "slots"));
    co_host *host = co_host_new();
    host->kit.fail_at = 2;
    pyper_run *run =
        START(p, PTR(1000), .loop = true, .host = co_hosts[kit_variant], .host_data = host);
    void *out;
    int rc;
    while ((rc = co_take(run, host, &out)) > 0) continue;
    CHECK_EQ(rc, -77);
    CHECK_HAS(pyper_error_message(run), "'slots'");
    close_both(run, p);
}

/* -------------------------------------------------------------------------------- Statistics */

EACH_HOST(async_tasks_are_counted_like_others) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(add_one, .async = true, .workers = 3, .name = "a"));
    pyper_run *run = START(p, PTR(100));
    CHECK_EQ(drain(run, NULL, NULL), 0);
    pyper_task_stats stats[2];
    CHECK_EQ(pyper_stats(run, stats, 2), 2);
    CHECK_STR(stats[1].name, "a");
    CHECK_EQ(stats[1].workers, 3);
    CHECK_EQ(stats[1].alive, 0);
    CHECK_EQ(stats[1].items_in, 100);
    CHECK_EQ(stats[1].items_out, 100);
    CHECK_EQ(stats[1].queued, 0);
    CHECK_GE(stats[1].busy_ns, 0);
    close_both(run, p);
}

/* ---------------------------------------------------- Kept for an operation, then refused */

static int note_worker(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    *(pyper_worker **)bind = w;
    return PYPER_PENDING;
}

static int leave_when_told(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_cancelled(w) ? PYPER_ECANCELED : PYPER_PENDING;
}

static void emit_elsewhere(void *w) {
    CHECK_EQ(pyper_emit(w, item_new(1)), PYPER_KEPT);
}

/* Another thread emits for an operation, which is to be resumed when the item has left.  The run is
 * closed before the driver has seen to it: the operation is resumed all the same. */
EACH_HOST(an_operation_whose_item_is_refused_is_resumed) {
    pyper_worker *worker = NULL;
    pyper_pipeline *p = pyper_task(note_worker, .async = true, .branch = true, .bind = &worker,
                                   .resume = leave_when_told, .type = &item_type);
    pyper_run *run = START(p, NULL);
    void *out;
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1), PYPER_ETIMEDOUT);
    CHECK(worker != NULL);
    thread other;
    thread_start(&other, emit_elsewhere, worker);
    thread_join(&other);
    close_both(run, p);
    CHECK_EQ(atomic_load(&items_destroyed), 1);
}

static int join_and_pass(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0;)
        if ((rc = pyper_emit(w, x)) < 0) return rc;
    return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
}

/* However much there is to pull, the driver comes back to its caller in between. */
EACH_HOST(a_join_with_many_inputs_lets_the_driver_go) {
    enum { N = 20000 };
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(join_and_pass, .async = true, .join = true, .branch = true));
    pyper_run *run = START(p, PTR(N));
    pyper_task_stats stats[2];
    do {
        others();
        CHECK_EQ(pyper_stats(run, stats, 2), 2);
    } while (stats[0].alive > 0);
    NEXT_IS(run, 0);
    CHECK_EQ(pyper_stats(run, stats, 2), 2);
    CHECK_LE(stats[1].items_in, N / 2);
    for (long i = 1; i < N; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* ------------------------------------------- Other threads on behalf of a function under way */

typedef struct emission {
    pyper_worker *worker;
    void *item;
    bool done; /* is that all? */
} emission;

static void emit_for(void *arg) {
    emission *e = arg;
    CHECK_EQ(pyper_emit(e->worker, e->item), PYPER_KEPT);
    if (e->done) pyper_done(e->worker, 0);
}

/* Emit by a thread that has ended when this returns. */
static void let_emit(emission e) {
    thread other;
    thread_start(&other, emit_for, &e);
    thread_join(&other);
}

static int end_by_returning(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    let_emit((emission){w, item, false});
    return 0;
}

static int end_by_done(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    let_emit((emission){w, item, false});
    pyper_done(w, 0);
    return PYPER_PENDING;
}

static int end_by_another_thread(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    let_emit((emission){w, item, true});
    return PYPER_PENDING;
}

EACH_HOST(an_output_by_another_thread_counts_however_the_operation_ends) {
    static const pyper_fn fns[] = {end_by_returning, end_by_done, end_by_another_thread};
    for (int i = 0; i < 3; i++) {
        for (int64_t throttle = 0; throttle <= 1; throttle++) {
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true),
                           pyper_task(fns[i], .async = true, .workers = 2, .throttle = throttle));
            pyper_run *run = START(p, PTR(10));
            long count, total;
            CHECK_EQ(drain(run, &count, &total), 0);
            CHECK_EQ(count, 10);
            CHECK_EQ(total, 10 * 9 / 2);
            close_both(run, p);
        }
    }
}

static int emit_in_turns(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < 6; i += 2) {
        let_emit((emission){w, PTR(INT(item) * 6 + i), false});
        CHECK_GE(pyper_emit(w, PTR(INT(item) * 6 + i + 1)), 0);
    }
    return 0;
}

/* The same, but it asks for room. */
static int try_in_turns(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < 6; i += 2) {
        let_emit((emission){w, PTR(INT(item) * 6 + i), false});
        CHECK_EQ(pyper_try_emit(w, PTR(INT(item) * 6 + i + 1)), 0);
    }
    return 0;
}

EACH_HOST(outputs_leave_in_the_order_of_the_calls_whichever_thread_made_them) {
    for (int64_t throttle = 0; throttle <= 3; throttle++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(throttle ? emit_in_turns : try_in_turns, .async = true,
                                  .branch = true, .throttle = throttle));
        pyper_run *run = START(p, PTR(20));
        for (long i = 0; i < 20 * 6; i++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* ------------------------------- Kept for an operation that waits for something else as well */

static long resumed_times, told_times;

static int emit_until_kept(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (long i = 0; (rc = pyper_emit(w, PTR(i))) == 0; i++) continue;
    CHECK_EQ(rc, PYPER_KEPT);
    return PYPER_PENDING;
}

static int emit_and_stay(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK_GE(pyper_emit(w, item), 0);
    return PYPER_PENDING;
}

static int stay(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    resumed_times++;
    return PYPER_PENDING;
}

static void end_when_told(pyper_worker *w, void *bind) {
    kit_in_task(w);
    CHECK(pyper_cancelled(w));
    told_times++;
    pyper_done(w, PYPER_ECANCELED);
}

EACH_HOST(an_operation_with_a_kept_item_is_told_when_the_run_is_over) {
    for (int resume = 0; resume < 2; resume++) {
        resumed_times = told_times = 0;
        pyper_pipeline *p =
            pyper_task(emit_until_kept, .async = true, .branch = true, .throttle = 2,
                       .resume = resume ? stay : NULL, .cancel = end_when_told);
        pyper_run *run = START(p, NULL);
        NEXT_IS(run, 0);
        CHECK_EQ(pyper_close(run), 0);
        pyper_unref(p);
        CHECK_LE(resumed_times, resume);
        CHECK_EQ(told_times, 1);
    }
}

EACH_HOST(operations_that_wait_after_their_output_are_told_whether_it_has_left_or_not) {
    told_times = 0;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(emit_and_stay, .async = true, .throttle = 1,
                                              .workers = 3, .cancel = end_when_told));
    pyper_run *run = START(p, PTR(3), .loop = true);
    for (pyper_task_stats stats[2] = {0}; stats[1].items_in < 3;) {
        CHECK(readable(pyper_fd(run), -1));
        CHECK_EQ(pyper_drive(run), 0);
        CHECK_EQ(pyper_stats(run, stats, 2), 2);
    }
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(told_times, 3);
    pyper_unref(p);
}

/* --------------------------------------------------------- Asking in vain, and then leaving */

static long room_for;

static int try_until_full(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    while ((rc = pyper_try_emit(w, PTR(room_for))) == 0) room_for++;
    CHECK_EQ(rc, PYPER_EAGAIN);
    return 0;
}

EACH_HOST(an_operation_that_finds_no_room_may_end_without_its_item) {
    room_for = 0;
    pyper_pipeline *p = pyper_task(try_until_full, .async = true, .branch = true, .throttle = 2);
    pyper_run *run = START(p, NULL);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    CHECK_GE(room_for, 2);
    for (long i = 0; i < room_for; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* Takes what is there, and does not wait for more. */
static int take_and_leave(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    while (pyper_try_pull(w, &x) > 0) continue;
    return 0;
}

EACH_HOST(a_join_that_pulls_in_vain_may_leave_and_ends_the_tasks_before) {
    elsewhere e;
    elsewhere_begin(&e, 0, NULL);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(begin, .async = true, .bind = &e, .cancel = give_up),
        pyper_task(take_and_leave, .async = true, .join = true, .branch = true, .workers = 2));
    pyper_run *run = START(p, PTR(1));
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
    elsewhere_end(&e);
}

/* Emits more than there is room for, and asks for room when the next task has taken what it
 * could. */
static int keep_one_and_try(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long *next = (long *)pyper_worker_state(w);
    if (*next == 0) {
        while (pyper_emit(w, PTR((*next)++)) == 0) continue;
        all_asleep();
    }
    while (*next < 10) {
        int rc = pyper_try_emit(w, PTR(*next));
        if (rc == PYPER_EAGAIN) return PYPER_PENDING;
        CHECK_EQ(rc, 0);
        ++*next;
    }
    return 0;
}

EACH_HOST(who_has_kept_an_item_may_ask_for_room_for_the_next) {
    pyper_pipeline *p = pyper_pipe(pyper_task(keep_one_and_try, .async = true, .branch = true,
                                              .throttle = 2, .resume = keep_one_and_try),
                                   pyper_task(pass));
    pyper_run *run = START(p, NULL);
    for (long i = 0; i < 10; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* Pulls until there is nothing more, and then emits more than there is room for. */
static int total_and_more(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    int rc;
    while ((rc = pyper_try_pull(w, &x)) > 0) continue;
    if (rc != PYPER_EAGAIN) return rc;
    bool *emitted = (bool *)pyper_worker_state(w);
    for (long i = 0; i < 5 && !*emitted; i++) CHECK_GE(pyper_emit(w, PTR(i)), 0);
    *emitted = true;
    return PYPER_PENDING;
}

/* The input comes to no end before all outputs have been taken. */
EACH_HOST(what_a_join_that_waits_for_an_input_has_kept_leaves_when_there_is_room) {
    elsewhere e;
    elsewhere_begin(&e, 0, NULL);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(begin, .async = true, .branch = true, .bind = &e, .cancel = give_up),
        pyper_task(total_and_more, .async = true, .join = true, .branch = true, .throttle = 2));
    pyper_run *run = START(p, PTR(1));
    for (long i = 0; i < 5; i++) NEXT_IS(run, i);
    close_both(run, p);
    elsewhere_end(&e);
}

/* Emits one more number each time that the other one has asked in vain as often. */
typedef struct asking {
    tally asked, may_end;
    pyper_worker *worker; /* the driver's */
    long sum;
} asking;

static int one_each_time(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    asking *a = bind;
    for (long i = 1; i <= 3; i++) {
        tally_wait(&a->asked, i);
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    }
    tally_wait(&a->may_end, 1);
    return 0;
}

static int pull_all_there_is(pyper_worker *w, asking *a) {
    void *x;
    int rc;
    while ((rc = pyper_try_pull(w, &x)) > 0) a->sum += INT(x);
    return rc;
}

static int say_that_it_waits(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    asking *a = bind;
    int rc = pull_all_there_is(w, a);
    if (rc != PYPER_EAGAIN) return rc;
    CHECK_EQ(pyper_try_emit(w, PTR(1)), 0);
    if (tally_add(&a->asked, 1) == 4) tally_add(&a->may_end, 1);
    return PYPER_PENDING;
}

/* It goes on when there is an input, and not again and again. */
TEST(who_waits_for_an_input_may_emit_meanwhile) {
    asking a = {TALLY, TALLY, NULL, 0};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(one_each_time, .branch = true, .bind = &a),
        pyper_task(say_that_it_waits, .async = true, .join = true, .branch = true, .bind = &a));
    pyper_run *run = START(p, NULL);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, tally_count(&a.asked));
    CHECK_EQ(a.sum, 6);
    close_both(run, p);
}

static int wait_for_inputs(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    asking *a = bind;
    a->worker = w;
    int rc = pull_all_there_is(w, a);
    if (rc == 0) return pyper_emit(w, PTR(a->sum)) < 0 ? PYPER_ECANCELED : 0;
    if (rc == PYPER_EAGAIN) tally_add(&a->asked, 1);
    return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
}

static void drive_until_it_has_asked(pyper_run *run, asking *a) {
    while (tally_count(&a->asked) == 0) {
        struct pollfd bell = {.fd = pyper_fd(run), .events = POLLIN};
        CHECK_EQ(poll(&bell, 1, -1), 1);
        CHECK_EQ(pyper_drive(run), 0);
    }
}

/* Its program, on the driver's thread, emits for it between two calls. */
TEST(who_waits_for_an_input_is_not_forgotten_when_something_is_emitted_for_it) {
    asking a = {TALLY, TALLY, NULL, 0};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(one_each_time, .branch = true, .bind = &a),
        pyper_task(wait_for_inputs, .async = true, .join = true, .branch = true, .bind = &a));
    pyper_run *run = START(p, NULL, .loop = true);
    drive_until_it_has_asked(run, &a);
    CHECK_EQ(pyper_try_emit(a.worker, PTR(100)), 0);
    tally_add(&a.may_end, 1);
    tally_add(&a.asked, 3);
    void *out;
    CHECK_EQ(loop_take(run, &out), 1);
    CHECK_EQ(INT(out), 100);
    CHECK_EQ(loop_take(run, &out), 1);
    CHECK_EQ(INT(out), 6);
    CHECK_EQ(loop_take(run, &out), 0);
    close_both(run, p);
}

/* The same where the program asks for an input, although an output waits for room. */
TEST(what_was_kept_is_not_forgotten_when_an_input_is_asked_for) {
    asking a = {TALLY, TALLY, NULL, 0};
    pyper_pipeline *p = pyper_pipe(pyper_task(one_each_time, .branch = true, .bind = &a),
                                   pyper_task(wait_for_inputs, .async = true, .join = true,
                                              .branch = true, .throttle = 1, .bind = &a));
    pyper_run *run = START(p, NULL, .loop = true);
    drive_until_it_has_asked(run, &a);
    CHECK_EQ(pyper_emit(a.worker, PTR(101)), 0);
    CHECK_EQ(pyper_emit(a.worker, PTR(102)), PYPER_KEPT);
    CHECK_EQ(pyper_emit(a.worker, PTR(103)), PYPER_KEPT);
    void *x, *out;
    CHECK_EQ(pyper_try_pull(a.worker, &x), PYPER_EAGAIN);
    tally_add(&a.may_end, 1);
    tally_add(&a.asked, 3);
    const long expected[] = {101, 102, 103, 6};
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(loop_take(run, &out), 1);
        CHECK_EQ(INT(out), expected[i]);
    }
    CHECK_EQ(loop_take(run, &out), 0);
    close_both(run, p);
}

/* ------------------------------------------------------------------ Ended, and told no more */

static struct {
    pyper_worker *worker[5];
    bool ended[5];
    int begun;
} group;

static int join_group(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    group.worker[group.begun] = w;
    *pyper_worker_state(w) = &group.ended[group.begun++];
    return PYPER_PENDING;
}

static void end_all(void *unused) {
    (void)unused;
    for (int i = 0; i < group.begun; i++) {
        CHECK(!group.ended[i]);
        group.ended[i] = true;
        pyper_done(group.worker[i], PYPER_ECANCELED);
    }
}

/* Whoever of the group is told first ends all of it, or lets another thread do so. */
static void end_group(pyper_worker *w, void *elsewhere) {
    kit_in_task(w);
    CHECK(!*(bool *)*pyper_worker_state(w));
    if (elsewhere) {
        thread other;
        thread_start(&other, end_all, NULL);
        thread_join(&other);
    } else {
        end_all(NULL);
    }
}

EACH_HOST(nobody_is_told_after_his_operation_was_ended_by_another) {
    for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
        memset(&group, 0, sizeof group);
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(join_group, .async = true, .workers = 5,
                                                  .cancel = end_group, .bind = PTR(elsewhere)));
        pyper_run *run = START(p, PTR(5));
        void *out;
        while (group.begun < 5)
            CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
        close_both(run, p);
        CHECK(group.ended[0] && group.ended[4]);
    }
}

/* ---------------------------------------------------------------------- A run inside a run */

/* Asks the run that its own run's caller works for. */
static int ask_outer_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *outer = bind;
    void *out;
    CHECK_EQ(pyper_next(outer, &out), PYPER_EDEADLK);
    CHECK_EQ(pyper_wait_until(outer, PYPER_FOREVER), PYPER_EDEADLK);
    CHECK_EQ(pyper_next(pyper_worker_run(w), &out), PYPER_EDEADLK);
    return pyper_emit(w, item);
}

static int run_another(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_pipeline *p = pyper_task(ask_outer_run, .async = true, .bind = pyper_worker_run(w));
    pyper_run *run = START(p, item);
    NEXT_IS(run, INT(item));
    ENDS_WITH(run, 0);
    close_both(run, p);
    void *out;
    CHECK_EQ(pyper_next(pyper_worker_run(w), &out), PYPER_EDEADLK);
    return pyper_emit(w, item);
}

EACH_HOST(an_async_function_cannot_wait_for_the_run_that_waits_for_its_own) {
    for (int async = 0; async < 2; async++) {
        pyper_pipeline *p = pyper_task(run_another, .async = async);
        pyper_run *run = START(p, PTR(3));
        NEXT_IS(run, 3);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}
