/* Several threads start, read, cancel, close and give up runs of the same pipelines all the time,
 * their own and those of others.
 *
 * PYPER_STRESS_SECONDS says for how long (2); PYPER_TEST_SEED repeats one seed. */
#include "../kit.h"

enum { THREADS = 4, PIPELINES = 4, SHARED = 3 };

static pyper_pipeline *pipelines[PIPELINES];
static int64_t until;

/* Runs that everybody may get at: a slot has one reference, taken out and put back under the
 * lock. */
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static pyper_run *slots[SHARED];

static pyper_run *exchange(long slot, pyper_run *run) {
    pthread_mutex_lock(&slots_lock);
    pyper_run *before = slots[slot];
    slots[slot] = run;
    pthread_mutex_unlock(&slots_lock);
    return before;
}

static pyper_run *share(long slot) {
    pthread_mutex_lock(&slots_lock);
    pyper_run *run = pyper_run_ref(slots[slot]);
    pthread_mutex_unlock(&slots_lock);
    return run;
}

static void read_some(pyper_run *run, long n) {
    int rc = 1;
    for (void *out; n > 0 && (rc = pyper_next(run, &out)) > 0; n--) item_deliver(out);
    CHECK(rc >= 0 || rc == PYPER_ECANCELED || rc == PYPER_EFAILED);
    CHECK(pyper_failed(run) == 0 || pyper_failed(run) == PYPER_EFAILED);
    pyper_task_stats stats[4];
    CHECK_LE(pyper_stats(run, stats, 4), 4);
}

static void leave(pyper_run *run, uint64_t *state) {
    switch (random_below(state, 3)) {
    case 0:
        CHECK_EQ(pyper_close(run), 0);
        break;
    case 1:
        pyper_run_unref(run);
        break;
    default:
        pyper_cancel(run);
        pyper_run_unref(run);
        break;
    }
}

static void storm(void *arg) {
    uint64_t state = (uint64_t)(uintptr_t)arg;
    while (pyper_now() < until) {
        pyper_pipeline *p = pyper_ref(pipelines[random_below(&state, PIPELINES)]);
        pyper_run *run = START(p, PTR(random_below(&state, 3) ? random_below(&state, 50) : -1));
        pyper_unref(p);
        switch (random_below(&state, 5)) {
        case 0:
            leave(run, &state);
            break;
        case 1:
            read_some(run, random_below(&state, 60));
            leave(run, &state);
            break;
        case 2: /* let the others have it, and deal with what they had */
        case 3:
            run = exchange(random_below(&state, SHARED), run);
            if (run) leave(run, &state);
            break;
        default:
            leave(run, &state);
            run = share(random_below(&state, SHARED));
            if (!run) break;
            read_some(run, random_below(&state, 60));
            leave(run, &state);
        }
    }
}

static int fail_at_40(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (item_value(item) != 40) return pyper_emit(w, item);
    return pyper_fail_with(w, -40, "forty", item, item_destroy) == PYPER_EFAILED
               ? PYPER_EFAILED
               : (item_deliver(item), PYPER_ECANCELED);
}

EACH_HOST(threads_start_and_leave_runs_all_the_time) {
    long fixed = check_environment("PYPER_TEST_SEED", 0);
    uint64_t seed = fixed ? (uint64_t)fixed : (uint64_t)pyper_now();
    CHECK_NOTE("PYPER_TEST_SEED=%llu", (unsigned long long)seed);
    until = pyper_now() + 1000000000 * (int64_t)check_environment("PYPER_STRESS_SECONDS", 2);
    pyper_pipeline *source =
        pyper_task(make_items, .branch = true, .throttle = 3, .type = &item_type);
    pipelines[0] = pyper_ref(source);
    pipelines[1] = pyper_pipe(pyper_ref(source),
                              pyper_task(pass, .workers = 3, .throttle = 1, .type = &item_type));
    pipelines[2] =
        pyper_pipe(pyper_ref(source), pyper_task(fail_at_40, .workers = 2, .ordered = true,
                                                 .throttle = 2, .type = &item_type));
    pipelines[3] = pyper_pipe(
        source, pyper_task(pass, .throttle = 1, .type = &item_type),
        pyper_task(pass, .workers = 2, .type = &item_type, .ordered = true, .throttle = 5));
    thread threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        thread_start(&threads[i], storm, (void *)(uintptr_t)(seed + i));
    for (int i = 0; i < THREADS; i++) thread_join(&threads[i]);
    for (int i = 0; i < SHARED; i++) pyper_run_unref(slots[i]);
    for (int i = 0; i < PIPELINES; i++) pyper_unref(pipelines[i]);
}
