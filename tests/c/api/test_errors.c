/* Functions that fail, and what becomes of the run.  Black-box: pyper.h only. */
#include "../kit.h"

/* The run has failed in task `task` with `code`, and says so in every way. */
static void has_failed(pyper_run *run, int code, long task, const char *name) {
    CHECK_EQ(pyper_failed(run), PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), code);
    CHECK_EQ(pyper_error_task(run), task);
    CHECK_HAS(pyper_error_message(run), name);
}

static int answer_bind(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(bind) > 0) {
        int rc = pyper_emit(w, item);
        if (rc < 0) return rc;
    }
    return (int)INT(bind);
}

EACH_HOST(a_code_of_its_own_fails_the_run) {
    static const int codes[] = {-77,          -1000,         INT32_MIN,      PYPER_ENOMEM,
                                PYPER_EINVAL, PYPER_EFAILED, PYPER_ETIMEDOUT};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(pass), pyper_task(answer_bind, .bind = PTR(codes[i]), .name = "boom"),
            pyper_task(pass));
        pyper_run *run = START(p, PTR(1));
        ENDS_WITH(run, PYPER_EFAILED);
        has_failed(run, codes[i], 1, "boom");
        CHECK(pyper_error_payload(run) == NULL);
        close_both(run, p);
    }
}

EACH_HOST(a_number_above_zero_is_no_failure) {
    pyper_pipeline *p = pyper_pipe(pyper_task(answer_bind, .bind = PTR(1)),
                                   pyper_task(answer_bind, .bind = PTR(INT32_MAX)));
    pyper_run *run = START(p, PTR(5));
    NEXT_IS(run, 5);
    ENDS_WITH(run, 0);
    CHECK_EQ(pyper_failed(run), 0);
    close_both(run, p);
}

static int not_found(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_fail(w, 404, "no such page: %s (%d of %d)", (const char *)bind, 1, 2);
}

EACH_HOST(a_failure_has_a_code_a_message_and_a_place) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(pass),
                                   pyper_task(not_found, .bind = "x.html", .name = "fetch page"));
    pyper_run *run = START(p, PTR(1));
    ENDS_WITH(run, PYPER_EFAILED);
    has_failed(run, 404, 2, "fetch page");
    CHECK_HAS(pyper_error_message(run), "no such page: x.html (1 of 2)");
    CHECK_HAS(pyper_error_message(run), "3"); /* its place, as people count */
    /* Nothing of it changes any more. */
    const char *message = pyper_error_message(run);
    pyper_run *mine = pyper_run_ref(run);
    CHECK(mine == run);
    CHECK_EQ(pyper_close(run), 0);
    CHECK(pyper_error_message(mine) == message);
    CHECK_HAS(message, "no such page: x.html (1 of 2)");
    pyper_run_unref(mine);
    pyper_unref(p);
}

static int fail_at_length(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    char *text = malloc(100001);
    CHECK(text != NULL);
    memset(text, '%', 100000);
    text[100000] = 0;
    int rc = INT(bind) ? pyper_fail(w, -1, "%s", text) : pyper_fail_with(w, -1, text, NULL, NULL);
    free(text);
    return rc;
}

EACH_HOST(a_message_may_have_any_length) {
    for (long way = 0; way < 2; way++) {
        pyper_pipeline *p = pyper_task(fail_at_length, .bind = PTR(way), .name = "lengthy");
        pyper_run *run = START(p, NULL);
        ENDS_WITH(run, PYPER_EFAILED);
        has_failed(run, -1, 0, "lengthy");
        CHECK_HAS(pyper_error_message(run), "%%%%%%%%");
        close_both(run, p);
    }
}

/* -------------------------------------------------------------------------------- Payloads */

static int fail_with_item(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *payload = item_new(99);
    CHECK_EQ(pyper_fail_with(w, -9, "with a payload", payload, bind ? NULL : item_destroy),
             PYPER_EFAILED);
    return PYPER_EFAILED;
}

EACH_HOST(a_payload_is_destroyed_once_when_the_run_is_freed) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(fail_with_item, .name = "thrower"));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    has_failed(run, -9, 1, "thrower");
    CHECK_HAS(pyper_error_message(run), "with a payload");
    CHECK_EQ(item_value(pyper_error_payload(run)), 99);
    pyper_run *mine = pyper_run_ref(run);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(item_value(pyper_error_payload(mine)), 99);
    CHECK_EQ(atomic_load(&items_destroyed), 0);
    CHECK_EQ(pyper_close(mine), 0);
    CHECK_EQ(atomic_load(&items_destroyed), 1);
    pyper_unref(p);
}

EACH_HOST(a_payload_need_not_be_destroyed) {
    pyper_pipeline *p = pyper_task(fail_with_item, .bind = "no");
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    void *payload = pyper_error_payload(run);
    close_both(run, p);
    CHECK_EQ(item_deliver(payload), 99);
}

/* ---------------------------------------------------------------------------- The first one */

typedef struct race {
    tally met;
    _Atomic long taken, refused, winner;
} race;

static int race_to_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    race *r = bind;
    barrier(&r->met, 8);
    char message[40];
    snprintf(message, sizeof message, "number %ld", INT(item));
    void *payload = item_new(INT(item));
    int rc = pyper_fail_with(w, (int)(1000 + INT(item)), message, payload, item_destroy);
    if (rc == PYPER_EFAILED) {
        atomic_fetch_add(&r->taken, 1);
        atomic_store(&r->winner, INT(item));
    } else {
        CHECK_EQ(rc, PYPER_ECANCELED);
        atomic_fetch_add(&r->refused, 1);
        item_deliver(payload);
    }
    return rc;
}

EACH_HOST(the_first_failure_counts) {
    for (int i = 0; i < 10; i++) {
        race r = {.met = TALLY};
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(race_to_fail, .workers = 8, .bind = &r));
        pyper_run *run = START(p, PTR(8));
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(r.taken, 1);
        CHECK_EQ(r.refused, 7);
        char expected[40];
        snprintf(expected, sizeof expected, "number %ld", r.winner);
        has_failed(run, (int)(1000 + r.winner), 1, expected);
        CHECK_EQ(item_value(pyper_error_payload(run)), r.winner);
        close_both(run, p);
    }
}

static int fail_twice(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK_EQ(pyper_fail(w, 1, "first"), PYPER_EFAILED);
    CHECK(pyper_cancelled(w));
    CHECK_EQ(pyper_emit(w, item_new(1)), PYPER_ECANCELED);
    void *payload = item_new(2);
    CHECK_EQ(pyper_fail_with(w, 2, "second", payload, item_destroy), PYPER_ECANCELED);
    CHECK_EQ(item_deliver(payload), 2);
    CHECK_EQ(pyper_fail(w, 3, "third"), PYPER_EFAILED);
    return (int)INT(bind);
}

EACH_HOST(a_second_failure_loses) {
    static const int codes[] = {PYPER_EFAILED, PYPER_ECANCELED, -44, 0, 7};
    for (int i = 0; i < 5; i++) {
        pyper_pipeline *p = pyper_task(fail_twice, .bind = PTR(codes[i]), .type = &item_type);
        pyper_run *run = START(p, NULL);
        ENDS_WITH(run, PYPER_EFAILED);
        has_failed(run, 1, 0, "first");
        CHECK(pyper_error_payload(run) == NULL);
        close_both(run, p);
    }
}

/* ------------------------------------------------------------------------ Breaking the rules */

static int emit_times(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(bind); i++) {
        int rc = pyper_emit(w, item_new(i));
        if (i > 0)
            CHECK_EQ(rc, PYPER_EINVAL);
        else if (rc < 0)
            return rc;
    }
    return 0;
}

EACH_HOST(a_call_that_emits_nothing_fails_the_run) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(emit_times, .bind = PTR(0), .type = &item_type, .name = "silent",
                                  .workers = 1 + ordered, .ordered = ordered));
        pyper_run *run = START(p, PTR(3));
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(pyper_failed(run), PYPER_EFAILED);
        CHECK_EQ(pyper_error_task(run), 1);
        CHECK_HAS(pyper_error_message(run), "silent");
        CHECK_HAS(pyper_error_message(run), "branch"); /* the mend */
        close_both(run, p);
    }
}

EACH_HOST(a_call_that_emits_twice_fails_the_run) {
    for (long times = 2; times < 5; times++) {
        pyper_pipeline *p =
            pyper_task(emit_times, .bind = PTR(times), .type = &item_type, .name = "chatty");
        pyper_run *run = START(p, NULL);
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        CHECK_EQ(item_deliver(out), 0);
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(pyper_error_task(run), 0);
        CHECK_HAS(pyper_error_message(run), "chatty");
        CHECK_HAS(pyper_error_message(run), "branch");
        close_both(run, p);
    }
}

static int read_and_say_nothing(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    int rc;
    while ((rc = pyper_pull(w, &x)) > 0) continue;
    return rc;
}

EACH_HOST(a_join_that_emits_nothing_fails_the_run) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true),
                   pyper_task(read_and_say_nothing, .join = true, .name = "silent join"));
    pyper_run *run = START(p, PTR(10));
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_HAS(pyper_error_message(run), "silent join");
    close_both(run, p);
}

EACH_HOST(to_pretend_a_cancel_is_a_failure) {
    pyper_pipeline *p = pyper_pipe(
        pyper_task(pass), pyper_task(answer_bind, .bind = PTR(PYPER_ECANCELED), .name = "liar"));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    has_failed(run, PYPER_ECANCELED, 1, "liar");
    close_both(run, p);
}

static int cancel_and_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_cancel(pyper_worker_run(w));
    return pyper_fail(w, 7, "too late");
}

EACH_HOST(a_failure_after_a_cancel_is_recorded) {
    pyper_pipeline *p = pyper_task(cancel_and_fail);
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0); /* the call may still be on its way */
    CHECK_EQ(pyper_failed(run), PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 7);
    CHECK_HAS(pyper_error_message(run), "too late");
    close_both(run, p);
}

/* ------------------------------------------------------------ What happens to everybody else */

static int emit_then_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++)
        if (pyper_emit(w, item_new(i)) < 0) return PYPER_ECANCELED;
    return pyper_fail(w, -3, "after all");
}

EACH_HOST(outputs_in_the_callers_queue_come_before_the_failure) {
    for (long n = 0; n < 2000; n = n * 3 + 1) {
        pyper_pipeline *p = pyper_task(emit_then_fail, .branch = true, .type = &item_type);
        pyper_run *run = START(p, PTR(n));
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
        CHECK_EQ(pyper_failed(run), PYPER_EFAILED); /* known at once ... */
        for (long i = 0; i < n; i++) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1); /* ... reported in its turn */
            CHECK_EQ(item_deliver(out), i);
        }
        ENDS_WITH(run, PYPER_EFAILED);
        close_both(run, p);
    }
}

static int fail_at(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (item_value(item) != INT(bind)) return pyper_emit(w, item);
    item_deliver(item);
    return pyper_fail(w, -8, "at %ld", INT(bind));
}

EACH_HOST(a_failure_ends_infinite_producers_with_full_queues) {
    for (int64_t workers = 1; workers <= 4; workers++) {
        for (int ordered = 0; ordered < 2; ordered++) {
            pyper_pipeline *p = pyper_pipe(
                pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type),
                pyper_task(pass, .workers = workers, .throttle = 2, .type = &item_type,
                           .ordered = ordered),
                pyper_task(fail_at, .workers = workers, .type = &item_type, .ordered = ordered,
                           .bind = PTR(500), .name = "breaks"));
            pyper_run *run = START(p, PTR(-1));
            void *out;
            int rc;
            while ((rc = pyper_next(run, &out)) > 0) CHECK(item_deliver(out) != 500);
            CHECK_EQ(rc, PYPER_EFAILED);
            has_failed(run, -8, 2, "at 500");
            close_both(run, p);
        }
    }
}

/* The caller takes nothing: every queue is full when the last task fails. */
static _Atomic long told_calls;
static int fail_when_told(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (atomic_fetch_add(&told_calls, 1) != 2) return pyper_emit(w, item);
    gate_wait(bind);
    item_deliver(item);
    return pyper_fail(w, -6, "told to");
}

EACH_HOST(a_failure_wakes_everybody) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_items, .branch = true, .throttle = 2, .type = &item_type),
        pyper_task(pass, .workers = 5, .throttle = 2, .type = &item_type),
        pyper_task(fail_when_told, .workers = 3, .type = &item_type, .bind = &gate, .throttle = 1),
        pyper_task(pass, .workers = 3, .type = &item_type, .throttle = 1),
        pyper_task(pass, .workers = 3, .type = &item_type, .throttle = 1));
    pyper_run *run = START(p, PTR(-1));
    all_asleep();
    gate_open(&gate);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    has_failed(run, -6, 2, "told to");
    int rc;
    for (void *out; (rc = pyper_next(run, &out)) > 0;) item_deliver(out);
    CHECK_EQ(rc, PYPER_EFAILED);
    close_both(run, p);
}

static tally calls = TALLY;
static int fail_at_third(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    tally_add(&calls, 1);
    return INT(item) == 3 ? -4 : pyper_emit(w, item);
}

EACH_HOST(no_new_call_starts_after_a_failure) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(fail_at_third));
    pyper_run *run = START(p, PTR(1000));
    for (long i = 0; i < 3; i++) NEXT_IS(run, i);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(tally_count(&calls), 4);
    close_both(run, p);
}

/* A total over half of the data must never look like a total. */
static tally pulled_one = TALLY;
static int pull_until_cancelled(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    CHECK_EQ(pyper_pull(w, &x), 1);
    gate_open(&pulled_one);
    int rc;
    while ((rc = pyper_pull(w, &x)) > 0) continue;
    CHECK_EQ(rc, PYPER_ECANCELED);
    CHECK_EQ(pyper_pull_until(w, &x, PYPER_NOWAIT), PYPER_ECANCELED);
    CHECK(pyper_cancelled(w));
    return rc;
}

static int one_then_fail(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc = pyper_emit(w, PTR(1));
    if (rc < 0) return rc;
    gate_wait(&pulled_one);
    return -70;
}

EACH_HOST(a_join_is_told_that_its_inputs_are_not_complete) {
    pyper_pipeline *p = pyper_pipe(pyper_task(one_then_fail, .branch = true, .name = "source"),
                                   pyper_task(pull_until_cancelled, .join = true));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    has_failed(run, -70, 0, "source");
    close_both(run, p);
}

typedef struct waiting {
    pyper_run *run;
    tally met;
} waiting;

static void wait_for_failure(void *arg) {
    waiting *w = arg;
    tally_add(&w->met, 1);
    ENDS_WITH(w->run, PYPER_EFAILED);
}

static int fail_after_gate(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return -1;
}

EACH_HOST(every_reader_is_told) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_task(fail_after_gate, .bind = &gate);
    waiting w = {START(p, NULL), TALLY};
    thread threads[3];
    for (int i = 0; i < 3; i++) thread_start(&threads[i], wait_for_failure, &w);
    tally_wait(&w.met, 3);
    gate_open(&gate);
    for (int i = 0; i < 3; i++) thread_join(&threads[i]);
    close_both(w.run, p);
}

/* Other calls in progress are waited for. */
static tally entered = TALLY;
static int slow_or_failing(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    tally_add(&entered, 1);
    tally_wait(&entered, 3);
    if (INT(item) == 0) return -1;
    while (!pyper_cancelled(w)) others();
    gate_wait(bind);
    return pyper_emit(w, item) < 0 ? PYPER_ECANCELED : 0;
}

EACH_HOST(calls_in_progress_are_waited_for) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(slow_or_failing, .workers = 3, .bind = &gate));
    pyper_run *run = START(p, PTR(3));
    tally_wait(&entered, 3);
    while (!pyper_failed(run)) others();
    void *out;
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    gate_open(&gate);
    ENDS_WITH(run, PYPER_EFAILED);
    close_both(run, p);
}

/* One run's failure is no other's business. */
EACH_HOST(a_failure_stays_in_its_run) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(fail_at_third));
    pyper_run *good = START(p, PTR(3)), *bad = START(p, PTR(4));
    for (long i = 0; i < 3; i++) {
        NEXT_IS(bad, i);
        NEXT_IS(good, i);
    }
    ENDS_WITH(bad, PYPER_EFAILED);
    ENDS_WITH(good, 0);
    CHECK_EQ(pyper_failed(good), 0);
    CHECK_EQ(pyper_close(bad), 0);
    close_both(good, p);
}

/* ------------------------------------------------------------------- Who emits meanwhile */

static int fail_at_twenty(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long value = item_value(item);
    int rc = pyper_emit(w, item);
    return rc < 0 ? rc : value == 20 ? pyper_fail(w, 20, "twenty") : 0;
}

/* The failure is the last that the caller hears of the run, also when others were just emitting. */
EACH_HOST(no_output_follows_the_failure) {
    for (long round = 0; round < check_times(100); round++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                       pyper_task(fail_at_twenty, .workers = 4, .type = &item_type));
        pyper_run *run = START(p, PTR(-1));
        int rc;
        for (void *out; (rc = pyper_next(run, &out)) > 0;) item_deliver(out);
        CHECK_EQ(rc, PYPER_EFAILED);
        ENDS_WITH(run, PYPER_EFAILED);
        close_both(run, p);
        kit_settle_items();
    }
}
