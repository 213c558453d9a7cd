/* Asynchronous tasks and process workers in one pipeline: the loop takes from channels and gives to
 * them without ever waiting there, and the processes wake it.  Black-box: pyper.h only. */
#include "../elsewhere.h"

#include <errno.h>
#include <sys/mman.h>

#define INTS .type = &pyper_type_int

/* Zeroed memory that all processes share; given back with the process. */
static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static void finish(pyper_run *run, pyper_pipeline *p) {
    close_both(run, p);
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_EQ(errno, ECHILD);
}

/* The next output, by pyper_next() or by poll(). */
static int take(pyper_run *run, bool loop, void **ret_item) {
    return loop ? loop_take(run, ret_item) : pyper_next(run, ret_item);
}

static int take_all(pyper_run *run, bool loop, long *ret_count, long *ret_sum) {
    long count = 0, sum_of = 0;
    int rc;
    for (void *out; (rc = take(run, loop, &out)) > 0; count++) sum_of += INT(out);
    if (ret_count) *ret_count = count;
    if (ret_sum) *ret_sum = sum_of;
    return rc;
}

/* ------------------------------------------------------------------------------ All mixtures */

enum { THREADS, ASYNC, PROCESSES, KINDS };

/* Four tasks, each of any kind, with several workers and a bound: outputs in order. */
static void mixtures(bool loop, int64_t throttle) {
    for (int mix = 0; mix < KINDS * KINDS * KINDS * KINDS; mix++) {
        int kinds[] = {mix % KINDS, mix / KINDS % KINDS, mix / KINDS / KINDS % KINDS,
                       mix / KINDS / KINDS / KINDS};
        if (CHECK_TSAN && mix % 4) continue;
        pyper_pipeline *p = pyper_task(count_up, .branch = true, .throttle = throttle, INTS,
                                       .async = false, .multiprocess = kinds[0] == PROCESSES);
        for (int i = 0; i < 4; i++)
            p = pyper_pipe(p,
                           pyper_task(add_one, .async = kinds[i] == ASYNC,
                                      .multiprocess = kinds[i] == PROCESSES, .throttle = throttle,
                                      .workers = 1 + i % 3, .ordered = true, INTS));
        CHECK_EQ(pyper_pipeline_error(p), 0);
        pyper_run *run = START(p, PTR(200), .loop = loop, INTS);
        void *out;
        for (long i = 0; i < 200; i++) {
            CHECK_EQ(take(run, loop, &out), 1);
            CHECK_EQ(INT(out), i + 4);
        }
        CHECK_EQ(take(run, loop, &out), 0);
        CHECK_EQ(take(run, loop, &out), 0);
        finish(run, p);
    }
}

EACH_HOST(all_kinds_mix_in_any_order) {
    mixtures(false, 0);
}
EACH_HOST(all_kinds_mix_with_a_bound) {
    mixtures(false, 3);
}
EACH_HOST(all_kinds_mix_on_a_loop) {
    mixtures(true, 0);
}
EACH_HOST(all_kinds_mix_on_a_loop_with_a_bound) {
    mixtures(true, 3);
}

/* A run without asynchronous tasks may be driven by a loop, too. */
EACH_HOST(a_loop_may_wait_for_processes_alone) {
    for (int64_t throttle = 0; throttle <= 2; throttle++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true, INTS, .throttle = throttle),
            pyper_task(add_one, INTS, .multiprocess = true, .workers = 2, .throttle = throttle));
        pyper_run *run = START(p, PTR(1000), .loop = true);
        long count, total;
        CHECK_EQ(take_all(run, true, &count, &total), 0);
        CHECK_EQ(count, 1000);
        CHECK_EQ(total, 1000 * 999 / 2 + 1000);
        finish(run, p);
    }
}

EACH_HOST(operations_elsewhere_between_processes) {
    for (int loop = 0; loop < 2; loop++) {
        for (int64_t throttle = 0; throttle <= 4; throttle += 4) {
            elsewhere e;
            elsewhere_begin(&e, 2, NULL);
            long n = check_times(3000);
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_up, .branch = true, INTS, .throttle = throttle),
                           pyper_task(begin, .async = true, .workers = 20, .bind = &e, INTS,
                                      .throttle = throttle, .ordered = true),
                           pyper_task(add_one, .multiprocess = true, .workers = 2, INTS,
                                      .throttle = throttle, .ordered = true),
                           pyper_task(begin, .async = true, .workers = 20, .bind = &e, INTS,
                                      .throttle = throttle, .ordered = true));
            pyper_run *run = START(p, PTR(n), .loop = loop);
            void *out;
            for (long i = 0; i < n; i++) {
                CHECK_EQ(take(run, loop, &out), 1);
                CHECK_EQ(INT(out), i + 3);
            }
            CHECK_EQ(take(run, loop, &out), 0);
            finish(run, p);
            elsewhere_end(&e);
        }
    }
}

/* Larger than a record, and flat blobs of all sizes. */
static int make_blobs(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++) {
        size_t size = (size_t)(i * i % 5000);
        pyper_blob *blob = malloc(sizeof *blob + size);
        CHECK(blob != NULL);
        blob->size = size;
        memset(blob->data, (int)(i & 255), size);
        if (pyper_emit(w, blob) < 0) return PYPER_ECANCELED;
    }
    return 0;
}

EACH_HOST(large_items_cross_from_and_to_the_loop) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_blobs, .branch = true, .type = &pyper_type_blob, .throttle = 10),
                   pyper_task(pass, .async = true, .type = &pyper_type_blob, .throttle = 5),
                   pyper_task(pass, .multiprocess = true, .type = &pyper_type_blob, .throttle = 5),
                   pyper_task(pass, .async = true, .type = &pyper_type_blob));
    pyper_run *run = START(p, PTR(500));
    for (long i = 0; i < 500; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        pyper_blob *blob = out;
        CHECK_EQ(blob->size, i * i % 5000);
        for (size_t k = 0; k < blob->size; k++) CHECK_EQ(blob->data[k], i & 255);
        free(blob);
    }
    ENDS_WITH(run, 0);
    finish(run, p);
}

/* --------------------------------------------------------------------------------- Waking up */

/* How often the bell behind a descriptor was rung since it was silenced. */
static long rung(int fd) {
    char path[64], line[200];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(path, "r");
    CHECK(info != NULL);
    long count = -1;
    while (fgets(line, sizeof line, info)) {
        char *number = strstr(line, "eventfd-count:");
        if (number) count = strtol(number + strlen("eventfd-count:"), NULL, 16);
    }
    fclose(info);
    CHECK_GE(count, 0);
    return count;
}

static _Atomic long *gates; /* in shared memory */

/* Wait (in a process) until the gate is open. */
static void at_gate(int gate) {
    while (!atomic_load(&gates[gate])) sched_yield();
}

static int gated_range(pyper_worker *w, void *item, void *bind) {
    at_gate(0);
    int rc = count_up(w, item, bind);
    atomic_store(&gates[1], 1);
    at_gate(2);
    return rc;
}

TEST(a_process_wakes_the_loop_once_however_much_it_has) {
    gates = shared(3 * sizeof *gates);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(gated_range, .branch = true, .multiprocess = true, INTS),
                   pyper_task(add_one, .async = true, .workers = 5, INTS));
    pyper_run *run = START(p, PTR(1000), .loop = true, INTS);
    void *out;
    CHECK_EQ(pyper_drive(run), 0);
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EAGAIN);
    CHECK_EQ(pyper_drive(run), 0);
    CHECK_EQ(pyper_drive(run), 0);
    CHECK(!readable(pyper_fd(run), 0));
    atomic_store(&gates[0], 1);
    CHECK(readable(pyper_fd(run), -1));
    while (!atomic_load(&gates[1])) sched_yield();
    CHECK_EQ(rung(pyper_fd(run)), 1);
    atomic_store(&gates[2], 1);
    long count;
    CHECK_EQ(take_all(run, true, &count, NULL), 0);
    CHECK_EQ(count, 1000);
    finish(run, p);
}

/* --------------------------------------------------------------------------------- Throttle */

static _Atomic long *made, *started, *most;

static void note_waiting(void) {
    long waiting = atomic_load(made) - atomic_load(started), seen = atomic_load(most);
    while (seen < waiting && !atomic_compare_exchange_weak(most, &seen, waiting)) continue;
}

static int count_made(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_fetch_add(made, 1);
    note_waiting();
    return pyper_emit(w, item);
}

static int count_started(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_fetch_add(started, 1);
    return pyper_emit(w, item);
}

/* At every moment generated <= started + throttle + workers, on either side of a channel. */
EACH_HOST(the_throttle_is_exact_between_loop_and_processes) {
    for (int way = 0; way < 2; way++) {
        for (int ordered = 0; ordered < 2; ordered++) {
            for (int64_t throttle = 1; throttle <= 5; throttle += 4) {
                made = shared(3 * sizeof *made);
                started = made + 1;
                most = made + 2;
                int64_t workers = 3, takers = 2;
                pyper_pipeline *p = pyper_pipe(
                    pyper_task(count_up, .branch = true, INTS, .throttle = 10),
                    pyper_task(count_made, .async = way == 0, .multiprocess = way == 1,
                               .workers = workers, .throttle = throttle, .ordered = ordered, INTS),
                    pyper_task(count_started, .async = way == 1, .multiprocess = way == 0,
                               .workers = takers, .throttle = 1, INTS));
                pyper_run *run = START(p, PTR(500));
                long count;
                CHECK_EQ(take_all(run, false, &count, NULL), 0);
                CHECK_EQ(count, 500);
                /* What a taker has popped counts as started, before its function says so. */
                CHECK_LE(atomic_load(most), throttle + workers + takers);
                finish(run, p);
            }
        }
    }
}

/* The first operation is held back: the others get as far as the window, and wait there. */
static tally arrived = TALLY, first_may_go = TALLY;
static void hold_the_first(operation *op) {
    if (INT(op->item) == 0) gate_wait(&first_may_go);
    complete_one(op);
    tally_add(&arrived, 1);
}

EACH_HOST(nobody_gets_further_ahead_than_the_window_of_a_channel) {
    elsewhere e;
    elsewhere_begin(&e, 2, hold_the_first);
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true, INTS),
        pyper_task(begin, .async = true, .workers = 5, .ordered = true, .bind = &e, INTS),
        pyper_task(add_one, .multiprocess = true, INTS));
    pyper_run *run = START(p, PTR(3000));
    void *out;
    while (tally_count(&arrived) < 1023 + 4)
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 1000000), PYPER_ETIMEDOUT);
    CHECK_EQ(tally_count(&arrived), 1023 + 4);
    gate_open(&first_may_go);
    for (long i = 0; i < 3000; i++) NEXT_IS(run, i + 2);
    ENDS_WITH(run, 0);
    finish(run, p);
    elsewhere_end(&e);
}

/* ------------------------------------------------------------------------------------- Join */

static int sum_up(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void **state = pyper_worker_state(w);
    int rc;
    for (void *x; (rc = pyper_try_pull(w, &x)) > 0;) *state = PTR(INT(*state) + INT(x));
    if (rc == PYPER_EAGAIN) return PYPER_PENDING;
    return rc < 0 ? rc : pyper_emit(w, *state);
}

EACH_HOST(a_join_reads_from_the_other_kind) {
    for (int64_t throttle = 0; throttle <= 2; throttle += 2) {
        for (int64_t workers = 1; workers <= 3; workers += 2) {
            pyper_pipeline *from_processes = pyper_pipe(
                pyper_task(count_up, .branch = true, INTS, .throttle = throttle),
                pyper_task(add_one, .multiprocess = true, .workers = 2, INTS, .throttle = throttle),
                pyper_task(sum_up, .async = true, .join = true, .workers = workers, INTS));
            pyper_pipeline *from_the_loop = pyper_pipe(
                pyper_task(count_up, .branch = true, INTS, .throttle = throttle),
                pyper_task(add_one, .async = true, .workers = 2, INTS, .throttle = throttle),
                pyper_task(sum, .multiprocess = true, .join = true, .workers = workers, INTS));
            pyper_pipeline *both[] = {from_processes, from_the_loop};
            for (int i = 0; i < 2; i++) {
                pyper_run *run = START(both[i], PTR(1000));
                long count, total;
                CHECK_EQ(take_all(run, false, &count, &total), 0);
                CHECK_EQ(count, workers);
                CHECK_EQ(total, 1000 * 1001 / 2);
                finish(run, both[i]);
            }
        }
    }
}

static int ten_of_the_loop(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void **count = pyper_worker_state(w);
    int rc = 1;
    for (void *x; INT(*count) < 10 && (rc = pyper_try_pull(w, &x)) > 0;)
        *count = PTR(INT(*count) + 1);
    if (rc == PYPER_EAGAIN) return PYPER_PENDING;
    return rc < 0 ? rc : pyper_emit(w, *count);
}

static int ten_of_a_process(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long count = 0;
    int rc = 1;
    for (void *x; count < 10 && (rc = pyper_pull(w, &x)) > 0;) count++;
    return rc < 0 ? rc : pyper_emit(w, PTR(count));
}

EACH_HOST(a_join_that_has_enough_ends_the_other_kind) {
    for (int loop = 0; loop < 2; loop++) {
        for (int64_t workers = 1; workers <= 2; workers++) {
            pyper_pipeline *both[] = {
                pyper_pipe(
                    pyper_task(count_for_ever, .branch = true, INTS, .throttle = 3),
                    pyper_task(add_one, .multiprocess = true, .workers = 2, INTS, .throttle = 3),
                    pyper_task(ten_of_the_loop, .async = true, .join = true, .workers = workers,
                               INTS)),
                pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 3),
                           pyper_task(add_one, .async = true, .workers = 2, INTS, .throttle = 3),
                           pyper_task(ten_of_a_process, .multiprocess = true, .join = true,
                                      .workers = workers, INTS),
                           pyper_task(add_one, .async = true, INTS)),
            };
            for (int i = 0; i < 2; i++) {
                pyper_run *run = START(both[i], NULL, .loop = loop);
                long count, total;
                int rc = take_all(run, loop, &count, &total);
                CHECK_STR(pyper_error_message(run), "");
                CHECK_EQ(rc, 0);
                CHECK_EQ(count, workers);
                CHECK_EQ(total, workers * (10 + i));
                finish(run, both[i]);
            }
        }
    }
}

/* ------------------------------------------------------------------------- Failures and deaths */

/* From seven on: of several workers the one that has it may stand still while others go on. */
static int fail_at_seven(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) >= 7) return pyper_fail(w, 77, "no %d", 7);
    return pyper_emit(w, item);
}

static int die_at_seven(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) >= 7) kill(getpid(), SIGKILL);
    return pyper_emit(w, item);
}

/* Operations under way that nobody completes are given up, whoever fails. */
EACH_HOST(whoever_fails_the_others_end) {
    for (int who = 0; who < 4; who++) {
        for (int loop = 0; loop < 2; loop++) {
            elsewhere e;
            elsewhere_begin(&e, 0, NULL);
            pyper_fn fn = who == 1 ? die_at_seven : fail_at_seven;
            pyper_pipeline *p = pyper_pipe(
                pyper_task(count_for_ever, .branch = true, INTS, .throttle = 20),
                pyper_task(who == 2 ? fail_at_seven : pass, .async = true, INTS, .throttle = 5),
                pyper_task(who < 2 ? fn : pass, .multiprocess = true, .workers = 2, INTS,
                           .throttle = 5, .name = "process"),
                pyper_task(who == 3 ? fail_at_seven : pass, INTS, .throttle = 5),
                pyper_task(begin, .async = true, .workers = 100, INTS, .bind = &e,
                           .cancel = give_up));
            pyper_run *run = START(p, NULL, .loop = loop);
            long count;
            CHECK_EQ(take_all(run, loop, &count, NULL), who == 1 ? PYPER_EDIED : PYPER_EFAILED);
            CHECK_EQ(count, 0);
            CHECK_EQ(pyper_error_code(run), who == 1 ? -SIGKILL : 77);
            CHECK_EQ(pyper_error_task(run), who < 2 ? 2 : who == 2 ? 1 : 3);
            if (who == 1) CHECK_HAS(pyper_error_message(run), "killed by signal 9");
            CHECK_EQ(e.count, 0);
            finish(run, p);
            elsewhere_end(&e);
        }
    }
}

/* Types that refuse to cross: on the loop's side the one, and on the other. */
static int refuse_seven(void *item, pyper_transfer *to) {
    if (INT(item) == 7) return pyper_transfer_fail(to, 5, "seven does not cross", NULL, 0);
    return pyper_type_int.encode(item, to);
}

static int refuse_to_be_seven(pyper_transfer *from, const void *data, size_t size,
                              void **ret_item) {
    int rc = pyper_type_int.decode(from, data, size, ret_item);
    return rc == 0 && INT(*ret_item) == 7 ? -55 : rc;
}

EACH_HOST(what_cannot_cross_fails_the_run) {
    pyper_item_type types[] = {pyper_type_int, pyper_type_int};
    types[0].encode = refuse_seven;
    types[1].decode = refuse_to_be_seven;
    for (int type = 0; type < 2; type++) {
        for (int way = 0; way < 3; way++) { /* to processes, from processes, to the caller */
            pyper_pipeline *p =
                pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 3),
                           pyper_task(pass, .async = way == 0, .multiprocess = way == 1,
                                      .type = way < 2 ? &types[type] : &pyper_type_int),
                           pyper_task(pass, .async = way == 1, .multiprocess = way != 1,
                                      .type = way == 2 ? &types[type] : &pyper_type_int));
            if (way == 2) p = pyper_pipe(p, pyper_task(pass, .async = true, INTS));
            pyper_run *run = START(p, NULL);
            CHECK_EQ(take_all(run, false, NULL, NULL), PYPER_EFAILED);
            CHECK_EQ(pyper_error_code(run), type == 0 ? 5 : -55);
            CHECK_HAS(pyper_error_message(run),
                      type == 0 ? "seven does not cross" : "could not be decoded");
            finish(run, p);
        }
    }
}

/* An output that the caller cannot decode: those before it come, those behind it would come after a
 * gap. */
EACH_HOST(an_output_that_cannot_be_decoded_ends_the_stream) {
    pyper_item_type type = pyper_type_int;
    type.decode = refuse_to_be_seven;
    for (int loop = 0; loop < 2; loop++) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                       pyper_task(pass, .async = true, INTS),
                                       pyper_task(pass, .multiprocess = true, .type = &type));
        pyper_run *run = START(p, PTR(100), .loop = loop);
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0); /* all of them are there */
        long count, total;
        CHECK_EQ(take_all(run, loop, &count, &total), PYPER_EFAILED);
        CHECK_EQ(count, 7);
        CHECK_EQ(total, 6 * 7 / 2);
        CHECK_EQ(pyper_error_code(run), -55);
        void *out;
        CHECK_EQ(take(run, loop, &out), PYPER_EFAILED);
        finish(run, p);
    }
}

/* ----------------------------------------------------------------------------------- Leaving */

static int forever_in_a_process(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    while (pause() < 0) continue; /* until it is killed */
    return 0;
}

EACH_HOST(a_mixed_run_can_be_left_at_any_moment) {
    for (int i = 0; i < (CHECK_TSAN ? 12 : 60); i++) {
        elsewhere e;
        elsewhere_begin(&e, 2, NULL);
        bool loop = i % 2;
        int64_t throttle = 1 + i % 4;
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_for_ever, .branch = true, INTS, .throttle = throttle),
            pyper_task(begin, .async = true, .workers = 3, INTS, .bind = &e, .throttle = throttle),
            pyper_task(pass, .multiprocess = true, .workers = 2, INTS, .ordered = i % 3 == 0,
                       .throttle = throttle),
            pyper_task(begin, .async = true, .workers = 3, INTS, .bind = &e, .throttle = throttle));
        pyper_run *run = START(p, NULL, .loop = loop);
        void *out;
        for (int k = 0; k < i % 7 * 3; k++) CHECK_EQ(take(run, loop, &out), 1);
        if (i % 5 == 4) {
            pyper_cancel(run);
            CHECK_EQ(take(run, loop, &out), PYPER_ECANCELED);
        }
        finish(run, p);
        elsewhere_end(&e);
    }
}

EACH_HOST(a_process_that_stays_is_killed) {
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true, INTS), pyper_task(add_one, .async = true, INTS),
        pyper_task(forever_in_a_process, .multiprocess = true, .workers = 2, INTS),
        pyper_task(add_one, .async = true, INTS));
    pyper_run *run = START(p, PTR(5), .loop = true);
    void *out;
    CHECK_EQ(pyper_drive(run), 0);
    CHECK_EQ(pyper_try_next(run, &out), PYPER_EAGAIN);
    CHECK_EQ(pyper_failed(run), 0);
    finish(run, p);
}

static void count_release(void *bind) {
    tally_add(bind, 1);
}

/* Nobody holds the run: its last process, or its last operation, frees it. */
EACH_HOST(a_mixed_run_can_be_dropped) {
    for (int i = 0; i < (CHECK_TSAN ? 5 : 20); i++) {
        tally released = TALLY;
        elsewhere e;
        elsewhere_begin(&e, 1 + i % 2, NULL);
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_for_ever, .branch = true, INTS, .throttle = 3),
            pyper_task(begin, .async = true, .workers = 3, INTS, .bind = &e, .throttle = 3),
            pyper_task(pass, .multiprocess = true, .workers = 2, INTS, .throttle = 3),
            pyper_task(pass, .async = true, INTS, .throttle = 2, .bind = &released,
                       .release = count_release));
        pyper_run *run = START(p, NULL, .loop = i % 2);
        void *out;
        for (int k = 0; k < i; k++) CHECK_EQ(take(run, i % 2, &out), 1);
        pyper_run_unref(run);
        pyper_unref(p);
        tally_wait(&released, 1);
        CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
        elsewhere_end(&e);
    }
}

/* ----------------------------------------------------------------------------------- The rest */

EACH_HOST(several_threads_may_take_what_processes_make) {
    elsewhere e;
    elsewhere_begin(&e, 2, NULL);
    long n = check_times(5000);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS, .throttle = 50),
                   pyper_task(begin, .async = true, .workers = 8, .bind = &e, .throttle = 4, INTS),
                   pyper_task(add_one, .multiprocess = true, .workers = 2, .throttle = 4, INTS));
    pyper_run *run = START(p, PTR(n));
    long count, total;
    drain_together(run, &count, &total);
    CHECK_EQ(count, n);
    CHECK_EQ(total, n * (n - 1) / 2 + 2 * n);
    finish(run, p);
    elsewhere_end(&e);
}

EACH_HOST(mixed_tasks_are_counted_like_others) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(add_one, .async = true, .workers = 3, INTS),
                                   pyper_task(add_one, .multiprocess = true, .workers = 2, INTS),
                                   pyper_task(add_one, .async = true, INTS));
    pyper_run *run = START(p, PTR(100));
    CHECK_EQ(drain(run, NULL, NULL), 0);
    pyper_task_stats stats[4];
    CHECK_EQ(pyper_stats(run, stats, 4), 4);
    for (int i = 1; i < 4; i++) {
        CHECK_EQ(stats[i].alive, 0);
        CHECK_EQ(stats[i].items_in, 100);
        CHECK_EQ(stats[i].items_out, 100);
        CHECK_EQ(stats[i].queued, 0);
    }
    finish(run, p);
}

TEST(one_task_is_not_both) {
    pyper_pipeline *p = pyper_task(pass, .async = true, .multiprocess = true, INTS, .name = "both");
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK_HAS(pyper_pipeline_message(p), "task 'both': an asynchronous task has no process");
    pyper_unref(p);
}
