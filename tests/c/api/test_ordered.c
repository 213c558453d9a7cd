/* `ordered`: outputs leave in the order of the inputs, as soon as all earlier ones have left, with
 * no more kept than the window.  Black-box: pyper.h only. */
#include "../kit.h"

/* A call whose length depends on the item and the seed. */
static int some_work(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    uint64_t state = (uint64_t)INT(item) + (uint64_t)(uintptr_t)bind;
    long turns = random_below(&state, 100) < 90 ? random_below(&state, 50) : 3000;
    for (volatile long i = 0; i < turns; i++) continue;
    if (random_below(&state, 20) == 0) others();
    return pyper_emit(w, item);
}

EACH_HOST(outputs_leave_in_the_order_of_the_inputs) {
    static const int64_t throttles[] = {0, 1, 2, 5, 1000};
    for (uint64_t seed = 1; seed <= 2; seed++) {
        for (int t = 0; t < 5; t++) {
            for (int64_t workers = 1; workers <= 8; workers += workers == 1 ? 2 : 5) {
                long n = check_times(throttles[t] == 1 ? 300 : 2000);
                pyper_pipeline *p =
                    pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttles[t]),
                               pyper_task(some_work, .workers = workers, .ordered = true,
                                          .throttle = throttles[t], .bind = PTR(1000 * seed)),
                               pyper_task(some_work, .workers = workers, .ordered = true,
                                          .throttle = throttles[4 - t], .bind = PTR(2000 * seed)));
                pyper_run *run = START(p, PTR(n));
                for (long i = 0; i < n; i++) NEXT_IS(run, i);
                ENDS_WITH(run, 0);
                close_both(run, p);
            }
        }
    }
}

/* Emits item % 4 outputs that tell where they come from. */
static int branch_out(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    uint64_t state = (uint64_t)INT(item) + (uint64_t)(uintptr_t)bind;
    for (long i = 0; i < INT(item) % 4; i++) {
        for (volatile long turns = random_below(&state, 500); turns > 0; turns--) continue;
        if (pyper_emit(w, PTR(INT(item) * 10 + i)) < 0) return PYPER_ECANCELED;
    }
    return 0;
}

EACH_HOST(branching_outputs_leave_in_the_order_of_the_inputs) {
    static const int64_t throttles[] = {0, 1, 2, 5, 1000};
    for (int t = 0; t < 5; t++) {
        for (int64_t workers = 1; workers <= 8; workers += workers == 1 ? 2 : 5) {
            long n = check_times(throttles[t] == 1 ? 300 : 2000);
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true, .throttle = throttles[t]),
                           pyper_task(branch_out, .branch = true, .workers = workers,
                                      .ordered = true, .throttle = throttles[t], .bind = PTR(77)),
                           pyper_task(pass, .throttle = throttles[t]));
            pyper_run *run = START(p, PTR(n));
            for (long i = 0; i < n; i++)
                for (long j = 0; j < i % 4; j++) NEXT_IS(run, i * 10 + j);
            ENDS_WITH(run, 0);
            close_both(run, p);
        }
    }
}

/* ------------------------------------------------------------------------------- Streaming */

typedef struct held {
    long which; /* this call waits for the gate ... */
    tally gate;
    tally entered; /* calls begun */
    tally emitted; /* calls that have emitted */
} held;

static int hold_one(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    tally_add(&h->entered, 1);
    if (INT(item) == h->which) gate_wait(&h->gate);
    int rc = pyper_emit(w, item);
    if (rc == 0) tally_add(&h->emitted, 1);
    return rc;
}

EACH_HOST(an_output_leaves_while_a_later_call_is_running) {
    enum { HELD = 5, N = 40 };
    for (int64_t workers = 1; workers <= 4; workers++) {
        held h = {HELD, TALLY, TALLY, TALLY};
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(hold_one, .workers = workers, .ordered = true, .bind = &h));
        pyper_run *run = START(p, PTR(N));
        for (long i = 0; i < HELD; i++) NEXT_IS(run, i);
        /* All later ones are done, and must wait for it. */
        if (workers > 1) tally_wait(&h.emitted, N - 1);
        void *out;
        CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_ETIMEDOUT);
        gate_open(&h.gate);
        for (long i = HELD; i < N; i++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* Call 0 emits, waits for the gate, and emits again. */
static int branch_with_pause(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    for (long i = 0; i < 3; i++) {
        if (INT(item) == h->which && i == 2) gate_wait(&h->gate);
        if (pyper_emit(w, PTR(INT(item) * 10 + i)) < 0) return PYPER_ECANCELED;
    }
    tally_add(&h->emitted, 1);
    return 0;
}

EACH_HOST(a_branching_call_whose_turn_it_is_emits_straight) {
    held h = {0, TALLY, TALLY, TALLY};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true),
        pyper_task(branch_with_pause, .branch = true, .workers = 3, .ordered = true, .bind = &h));
    pyper_run *run = START(p, PTR(20));
    NEXT_IS(run, 0);
    NEXT_IS(run, 1);
    tally_wait(&h.emitted, 19); /* the others are kept, though call 0 is not over */
    void *out;
    CHECK_EQ(pyper_next_until(run, &out, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    gate_open(&h.gate);
    NEXT_IS(run, 2);
    for (long i = 1; i < 20; i++)
        for (long j = 0; j < 3; j++) NEXT_IS(run, i * 10 + j);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* A call out of turn becomes the one whose turn it is, in the middle of its outputs. */
static int turn_comes(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    if (INT(item) == 0) {
        gate_wait(&h->gate);
        return 0;
    }
    for (long i = 0; i < 4; i++) {
        if (i == 2) tally_add(&h->emitted, 1);
        if (i == 3) tally_wait(&h->entered, 1);
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    }
    return 0;
}

EACH_HOST(the_turn_may_come_in_the_middle_of_a_call) {
    held h = {0, TALLY, TALLY, TALLY};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true),
        pyper_task(turn_comes, .branch = true, .workers = 2, .ordered = true, .bind = &h));
    pyper_run *run = START(p, PTR(2));
    tally_wait(&h.emitted, 1); /* call 1 has kept two, and call 0 has given nothing yet */
    gate_open(&h.gate);
    NEXT_IS(run, 0);
    NEXT_IS(run, 1);
    NEXT_IS(run, 2);
    gate_open(&h.entered);
    NEXT_IS(run, 3);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* ---------------------------------------------------------------------------------- Bounds */

/* While call 0 is held, the others fill the window, which has a place for each of the tickets 0 to
 * W - 1, and no more. */
static void fills_the_window(long throttle, long workers) {
    long window = throttle ? throttle : 1024;
    held h = {0, TALLY, TALLY, TALLY};
    long n = window + workers + 50;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                   pyper_task(hold_one, .workers = workers, .ordered = true,
                                              .bind = &h, .throttle = throttle));
    pyper_run *run = START(p, PTR(n));
    all_asleep();
    CHECK_EQ(tally_count(&h.emitted), window - 1);
    CHECK_EQ(tally_count(&h.entered), window - 1 + workers);
    gate_open(&h.gate);
    for (long i = 0; i < n; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(no_more_than_the_window_is_kept) {
    static const long throttles[] = {1, 2, 5, 100, 0};
    for (int t = 0; t < 5; t++)
        for (long workers = 2; workers <= 8; workers += 3) fills_the_window(throttles[t], workers);
}

/* A branching call out of turn keeps at most a window of outputs and pauses. */
static int hold_or_flood(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    if (INT(item) == 0) gate_wait(&h->gate);
    for (long i = 0; i < 5000; i++) {
        if (pyper_emit(w, PTR(INT(item) * 10000 + i)) < 0) return PYPER_ECANCELED;
        tally_add(&h->emitted, 1);
    }
    return 0;
}

EACH_HOST(a_branching_call_out_of_turn_pauses) {
    static const long throttles[] = {1, 3, 0};
    for (int t = 0; t < 3; t++) {
        enum { WORKERS = 4 };
        long window = throttles[t] ? throttles[t] : 1024;
        held h = {0, TALLY, TALLY, TALLY};
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(hold_or_flood, .branch = true, .workers = WORKERS,
                                  .ordered = true, .bind = &h, .throttle = throttles[t]));
        pyper_run *run = START(p, PTR(5));
        all_asleep();
        CHECK_LE(tally_count(&h.emitted), (WORKERS - 1) * window);
        gate_open(&h.gate);
        for (long i = 0; i < 5; i++)
            for (long j = 0; j < 5000; j++) NEXT_IS(run, i * 10000 + j);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* A call out of turn that was paused because there was no room goes on when there is, though the
 * call whose turn it is takes its time, and whoever else waits for his turn.  Call 0 is the first
 * to emit: if it were the last, all of the window would have. */
static int linger_at_first(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    if (INT(item) > 0) tally_wait(&h->emitted, 1);
    int rc = pyper_emit(w, item);
    if (rc < 0) return rc;
    tally_add(&h->emitted, 1);
    if (INT(item) == 0) gate_wait(&h->gate);
    return 0;
}

EACH_HOST(room_is_for_whoever_is_within_the_window) {
    enum { THROTTLE = 8, N = 100 };
    for (long workers = 2; workers <= 20; workers = 2 * workers - 1) {
        held h = {0, TALLY, TALLY, TALLY};
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true),
                       pyper_task(linger_at_first, .branch = true, .workers = workers,
                                  .ordered = true, .bind = &h, .throttle = THROTTLE));
        pyper_run *run = START(p, PTR(N));
        all_asleep();
        /* Call 0 has emitted and lingers.  Six of the seven behind it in the window have emitted:
         * the last place is not for them.  One waits for room, and the rest, beyond the window, for
         * the turn to move. */
        CHECK_EQ(tally_count(&h.emitted), THROTTLE - 1);
        NEXT_IS(run, 0);
        void *out;
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
        tally_wait(&h.emitted, THROTTLE);
        gate_open(&h.gate);
        for (long i = 1; i < N; i++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}

/* Who can have one output only holds nobody up once it has emitted. */
EACH_HOST(a_call_that_lingers_after_its_output_holds_nobody_up) {
    enum { N = 100 };
    held h = {0, TALLY, TALLY, TALLY};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true),
        pyper_task(linger_at_first, .workers = 2, .ordered = true, .bind = &h, .throttle = 8));
    pyper_run *run = START(p, PTR(N));
    for (long i = 0; i < N; i++) NEXT_IS(run, i);
    gate_open(&h.gate);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* --------------------------------------------------------------------- Failing and leaving */

/* Outputs kept out of turn, in full windows, are all accounted for when the run is given up. */
static int hold_items(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    if (item_value(item) == 0) gate_wait(&h->gate);
    return pyper_emit(w, item);
}

static void open_when_asleep(void *arg) {
    held *h = arg;
    tally_wait(&h->entered, 1);
    gate_open(&h->gate);
}

EACH_HOST(what_was_kept_is_destroyed_by_a_close) {
    static const int64_t throttles[] = {1, 2, 5, 0};
    for (int t = 0; t < 4; t++) {
        held h = {0, TALLY, TALLY, TALLY};
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type, .throttle = 7),
                       pyper_task(hold_items, .workers = 4, .ordered = true, .bind = &h,
                                  .type = &item_type, .throttle = throttles[t]));
        pyper_run *run = START(p, PTR(3000));
        all_asleep();
        pyper_cancel(run);
        thread opener;
        thread_start(&opener, open_when_asleep, &h);
        tally_add(&h.entered, 1);
        CHECK_EQ(pyper_close(run), 0);
        thread_join(&opener);
        pyper_unref(p);
    }
}

static int fail_at_zero(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    held *h = bind;
    if (item_value(item) != 0) {
        tally_add(&h->entered, 1);
        return pyper_emit(w, item);
    }
    gate_wait(&h->gate);
    item_deliver(item);
    return pyper_fail(w, -5, "zero fails");
}

EACH_HOST(a_failure_destroys_what_waits_behind_it) {
    held h = {0, TALLY, TALLY, TALLY};
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_items, .branch = true, .type = &item_type),
        pyper_task(fail_at_zero, .workers = 4, .ordered = true, .bind = &h, .type = &item_type));
    pyper_run *run = START(p, PTR(100));
    tally_wait(&h.entered, 99);
    gate_open(&h.gate);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), -5);
    close_both(run, p);
}

/* An ordered task may pass nothing on for a long time, and the tickets must not run dry. */
static int every_thousandth(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return INT(item) % 1000 == 999 ? pyper_emit(w, item) : 0;
}

EACH_HOST(an_ordered_filter_lets_little_through) {
    for (long throttle = 0; throttle < 3; throttle++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true),
                                       pyper_task(every_thousandth, .branch = true, .workers = 4,
                                                  .ordered = true, .throttle = throttle));
        pyper_run *run = START(p, PTR(10000));
        for (long i = 999; i < 10000; i += 1000) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        close_both(run, p);
    }
}
