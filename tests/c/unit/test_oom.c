/* Each allocation fails in turn, and each thread: once only, and from then on.  Whatever comes of it,
 * nothing crashes, nothing leaks, each item has one end, and the code says what it was. */
#include "../kit.h"

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

/* Builds, starts, reads to the end and closes; returns how it ended: 0 or a code.  `n` items pass, of
 * which each becomes four in an ordered task. */
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
    pyper_run_unref(mine);
    pyper_unref(p);
    tally_wait(&released, 1);
    CHECK_EQ(tally_count(&released), 1);
    CHECK_EQ(atomic_load(&items_live), 0);
    return rc;
}

static void each_allocation(bool stays, bool read, long n) {
    long at = 0, failed = 0;
    for (bool reached = true; reached;) {
        at++;
        atomic_store(&pyper__fail_alloc_stays, stays);
        atomic_store(&pyper__fail_alloc_at, at);
        int rc = everything(n, read);
        reached = atomic_load(&pyper__fail_alloc_at) <= 0;
        atomic_store(&pyper__fail_alloc_at, -1);
        atomic_store(&pyper__fail_alloc_stays, 0);
        CHECK(rc == 0 || rc == PYPER_ENOMEM);
        if (!reached) CHECK_EQ(rc, 0);
        if (rc < 0) failed++;
        /* The library is as good as before. */
        if (at % 10 == 0) CHECK_EQ(everything(5, true), 0);
        CHECK(at < 10000);
    }
    /* Building alone takes several allocations, starting more: all of them must have been seen. */
    CHECK(at > 10);
    if (read) CHECK(failed > 10);
}

EACH_HOST(each_allocation_fails_once) {
    each_allocation(false, true, 5);
}
EACH_HOST(each_allocation_fails_and_all_that_follow) {
    each_allocation(true, true, 5);
}
EACH_HOST(each_allocation_fails_and_nobody_reads) {
    each_allocation(true, false, 5);
}

/* Long enough that the queues grow underway. */
EACH_HOST(each_allocation_underway_fails_once) {
    each_allocation(false, true, CHECK_TSAN ? 600 : 1500);
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
