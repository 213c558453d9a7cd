/* Many workers, queues of one place: everybody sleeps and is woken all the time, and a single
 * wake-up that got lost would be a hang.
 *
 * PYPER_STRESS_SECONDS says for how long (2, shared by the tests); PYPER_TEST_SEED repeats one
 * seed. */
#include "../kit.h"

typedef struct shape {
    uint64_t seed;
    int64_t workers, throttle;
    bool ordered;
} shape;

/* Now and then a call lets others run, so that the workers get out of step. */
static int pass_uneasily(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    uint64_t state = ((const shape *)bind)->seed + (uint64_t)INT(item);
    if (random_below(&state, 8) == 0) others();
    return pyper_emit(w, item);
}

static int pull_uneasily(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    uint64_t state = ((const shape *)bind)->seed + (uint64_t)pyper_worker_index(w);
    for (;;) {
        /* Deadlines that pass while others are being woken. */
        int64_t deadline =
            random_below(&state, 3) ? PYPER_FOREVER : pyper_now() + random_below(&state, 100000);
        void *x;
        int rc = pyper_pull_until(w, &x, deadline);
        if (rc == PYPER_ETIMEDOUT) continue;
        if (rc <= 0) return rc;
        if ((rc = pyper_emit(w, x)) < 0) return rc;
    }
}

static void once(shape *s, long n, bool join) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, .throttle = s->throttle),
                   pyper_task(pass_uneasily, .workers = s->workers, .throttle = s->throttle,
                              .bind = s, .ordered = s->ordered),
                   join ? pyper_task(pull_uneasily, .join = true, .branch = true,
                                     .workers = s->workers, .throttle = s->throttle, .bind = s)
                        : pyper_task(pass_uneasily, .workers = s->workers, .throttle = s->throttle,
                                     .bind = s, .ordered = s->ordered),
                   pyper_task(pass_uneasily, .throttle = s->throttle, .bind = s));
    pyper_run *run = START(p, PTR(n));
    uint64_t state = s->seed;
    long count = 0, total = 0;
    for (int rc = 1; rc != 0;) {
        void *out;
        int64_t deadline =
            random_below(&state, 3) ? PYPER_FOREVER : pyper_now() + random_below(&state, 100000);
        rc = pyper_next_until(run, &out, deadline);
        if (rc == PYPER_ETIMEDOUT) continue;
        CHECK_GE(rc, 0);
        if (rc == 0) break;
        count++;
        total += INT(out);
    }
    CHECK_EQ(count, n);
    CHECK_EQ(total, n * (n - 1) / 2);
    close_both(run, p);
}

static void for_a_while(bool join) {
    long fixed = check_environment("PYPER_TEST_SEED", 0);
    uint64_t seed = fixed ? (uint64_t)fixed : (uint64_t)pyper_now();
    int64_t until = pyper_now() + 500000000 * (int64_t)check_environment("PYPER_STRESS_SECONDS", 2);
    while (pyper_now() < until) {
        CHECK_NOTE("PYPER_TEST_SEED=%llu", (unsigned long long)seed);
        uint64_t state = seed;
        shape s = {seed, 1 + random_below(&state, 12), 1 + random_below(&state, 2),
                   random_below(&state, 2)};
        once(&s, check_times(500), join);
        if (!fixed) seed++;
    }
}

EACH_HOST(no_wake_up_is_lost_between_calls) {
    for_a_while(false);
}
EACH_HOST(no_wake_up_is_lost_between_pulls) {
    for_a_while(true);
}
