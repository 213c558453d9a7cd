/* Random pipelines with a random end, against a plain-loop model.
 *
 * A seed gives a chain of tasks (passing on, renewing, branching, joining; some number of workers,
 * some throttle, ordered or not) and an end: all is read, or the run is closed, cancelled by
 * another thread, given up, or failed by one of its tasks, at some moment.  A run that ends by
 * itself must have delivered what the model says, in its order where that is promised; and after
 * each run every item has been delivered or destroyed exactly once.
 *
 * The same again on a busy machine.
 *
 * PYPER_STRESS_SECONDS says for how long (2, 1); PYPER_TEST_SEED repeats one seed. */
#include "../kit.h"

#if defined(__linux__)
#include <sys/prctl.h>
#endif

enum { PASS, RENEW, BRANCH, FILTER, JOIN, JOIN_SOME, KINDS };
enum { READ_ALL, CLOSE, CANCEL, GIVE_UP, FAIL, ENDS };
enum { TASKS_MAX = 6, SOURCE_MAX = 400 };

typedef struct stage {
    int kind;
    int64_t workers, throttle;
    bool ordered;
    long salt;
    _Atomic long until_failure; /* calls; negative: never */
} stage;

typedef struct plan {
    long tasks, source, take;
    int64_t source_throttle;
    int end;
    tally freed; /* with the pipeline, by the run's last worker if need be */
    stage stages[TASKS_MAX];
} plan;

static plan make_plan(uint64_t seed) {
    static const int64_t throttles[] = {0, 0, 1, 1, 2, 3, 5, 20, 1000};
    uint64_t state = seed;
    plan p = {.tasks = random_below(&state, TASKS_MAX + 1),
              .source = random_below(&state, 4) ? random_below(&state, SOURCE_MAX)
                                                : random_below(&state, 4),
              .source_throttle = throttles[random_below(&state, 9)],
              .end = (int)random_below(&state, ENDS),
              .freed = TALLY};
    p.take = random_below(&state, p.source + 1);
    for (long i = 0; i < p.tasks; i++) {
        stage *s = &p.stages[i];
        s->kind = (int)random_below(&state, KINDS);
        if (s->kind == JOIN_SOME && random_below(&state, 3)) s->kind = PASS; /* rarely */
        s->workers = random_below(&state, 2) ? 1 : 1 + random_below(&state, 6);
        s->throttle = throttles[random_below(&state, 9)];
        s->ordered = random_below(&state, 2);
        if (s->kind >= JOIN && s->workers > 1) s->ordered = false;
        s->salt = random_below(&state, 1000);
        atomic_init(&s->until_failure, -1);
    }
    if (p.end == FAIL && p.tasks > 0)
        atomic_init(&p.stages[random_below(&state, p.tasks)].until_failure,
                    random_below(&state, SOURCE_MAX));
    return p;
}

/* How many outputs a call gives, and what they are: the tasks' functions and the model agree. */
static long how_many(const stage *s, long value) {
    return s->kind == BRANCH   ? (value + s->salt) % 4
           : s->kind == FILTER ? (value + s->salt) % 3 != 0
                               : 1;
}

static long which(const stage *s, long value, long i) {
    return s->kind == RENEW || s->kind == BRANCH ? (value * 5 + i + s->salt) % 1000003 : value;
}

/* ------------------------------------------------------------------------------- The tasks */

static int call(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    stage *s = bind;
    if (atomic_load(&s->until_failure) >= 0 && atomic_fetch_sub(&s->until_failure, 1) == 0) {
        item_deliver(item);
        return pyper_fail(w, -1234, "as planned");
    }
    if (s->kind == PASS) return pyper_emit(w, item);
    long value = item_deliver(item);
    for (long i = 0; i < how_many(s, value); i++) {
        int rc = pyper_emit(w, item_new(which(s, value, i)));
        if (rc < 0) return rc;
    }
    return 0;
}

static int pull_and_call(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    stage *s = bind;
    int rc = 1;
    for (long i = 0; s->kind != JOIN_SOME || i < s->salt % 50; i++) {
        void *x;
        if ((rc = pyper_pull(w, &x)) <= 0) break;
        if ((rc = call(w, x, bind)) < 0) break;
    }
    return rc;
}

static void count_release(void *bind) {
    tally_add(bind, 1);
}

static pyper_pipeline *build(plan *p) {
    pyper_pipeline *pipeline =
        pyper_task(make_items, .branch = true, .type = &item_type, .throttle = p->source_throttle,
                   .name = "source", .bind = &p->freed, .release = count_release);
    for (long i = 0; i < p->tasks; i++) {
        stage *s = &p->stages[i];
        bool joins = s->kind == JOIN || s->kind == JOIN_SOME;
        pipeline = pyper_pipe(
            pipeline,
            pyper_task(joins ? pull_and_call : call, .join = joins, .bind = s, .type = &item_type,
                       .branch = joins || s->kind == BRANCH || s->kind == FILTER,
                       .workers = s->workers, .throttle = s->throttle, .ordered = s->ordered));
    }
    return pipeline;
}

/* ------------------------------------------------------------------------------- The model */

typedef struct list {
    long *values;
    long count;
} list;

static list list_new(long most) {
    list l = {malloc((size_t)(most + 1) * sizeof(long)), 0};
    CHECK(l.values != NULL);
    return l;
}

static list expected(const plan *p) {
    list now = list_new(p->source);
    for (; now.count < p->source; now.count++) now.values[now.count] = now.count;
    for (long i = 0; i < p->tasks; i++) {
        list next = list_new(4 * now.count);
        for (long k = 0; k < now.count; k++)
            for (long n = 0; n < how_many(&p->stages[i], now.values[k]); n++)
                next.values[next.count++] = which(&p->stages[i], now.values[k], n);
        free(now.values);
        now = next;
    }
    return now;
}

static int by_value(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static void is_as_expected(const plan *p, list got) {
    bool in_order = true;
    for (long i = 0; i < p->tasks; i++) {
        if (p->stages[i].kind == JOIN_SOME) return; /* anything goes */
        in_order = in_order && (p->stages[i].workers == 1 || p->stages[i].ordered);
    }
    list want = expected(p);
    CHECK_EQ(got.count, want.count);
    if (!in_order) {
        qsort(got.values, (size_t)got.count, sizeof(long), by_value);
        qsort(want.values, (size_t)want.count, sizeof(long), by_value);
    }
    for (long i = 0; i < got.count; i++) CHECK_EQ(got.values[i], want.values[i]);
    free(want.values);
}

/* --------------------------------------------------------------------------------- The run */

static void cancel_soon(void *run) {
    static _Atomic unsigned moment;
    for (unsigned n = atomic_fetch_add(&moment, 7) % 50; n > 0; n--) others();
    pyper_cancel(run);
}

static void run_plan(uint64_t seed) {
    CHECK_NOTE("PYPER_TEST_SEED=%llu", (unsigned long long)seed);
    plan p = make_plan(seed);
    pyper_pipeline *pipeline = build(&p);
    CHECK_EQ(pyper_pipeline_error(pipeline), 0);
    pyper_run *run = START(pipeline, PTR(p.source));
    thread canceller;
    if (p.end == CANCEL) thread_start(&canceller, cancel_soon, run);
    list got = list_new(p.source * 4096);
    int rc = 1;
    for (void *out; !((p.end == CLOSE || p.end == GIVE_UP) && got.count >= p.take);) {
        if ((rc = pyper_next(run, &out)) <= 0) break;
        got.values[got.count++] = item_deliver(out);
    }
    if (rc == 0) is_as_expected(&p, got);
    if (rc < 0) CHECK(p.end == FAIL || p.end == CANCEL);
    if (rc < 0) CHECK_EQ(rc, p.end == FAIL ? PYPER_EFAILED : PYPER_ECANCELED);
    if (rc == 0 || rc == PYPER_EFAILED) { /* nothing of the run is left but its memory */
        pyper_task_stats stats[TASKS_MAX + 1];
        CHECK_EQ(pyper_stats(run, stats, TASKS_MAX + 1), p.tasks + 1);
        for (long i = 0; i <= p.tasks; i++) CHECK_EQ(stats[i].alive, 0);
        if (rc == 0) CHECK_EQ(stats[p.tasks].items_out, got.count);
    }
    CHECK_EQ(pyper_failed(run), rc == PYPER_EFAILED ? PYPER_EFAILED : 0);
    if (p.end == CANCEL) thread_join(&canceller);
    if (p.end == GIVE_UP)
        pyper_run_unref(run);
    else
        CHECK_EQ(pyper_close(run), 0);
    pyper_unref(pipeline);
    free(got.values);
    tally_wait(&p.freed, 1); /* the functions need the plan until then */
}

static void run_plans(long seconds) {
    long fixed = check_environment("PYPER_TEST_SEED", 0);
    uint64_t seed = fixed ? (uint64_t)fixed : (uint64_t)pyper_now();
    int64_t until =
        pyper_now() + 1000000000 * (int64_t)check_environment("PYPER_STRESS_SECONDS", seconds);
    long runs = 0;
    for (; pyper_now() < until; runs++) {
        run_plan(seed);
        kit_settle_items();
        if (!fixed) seed++;
    }
    printf("        %ld runs up to seed %llu\n", runs, (unsigned long long)seed);
}

EACH_HOST(random_pipelines_behave_like_plain_loops) {
    run_plans(2);
}

#if defined(__linux__)

/* A process that only computes, on this processor, for as long as this one lives. */
static pid_t start_stranger(int processor) {
    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child > 0) return child;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(processor, &only);
    if (sched_setaffinity(0, sizeof only, &only) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        _exit(1);
    while (getppid() == parent) {
    }
    _exit(0);
}

/* Where processors are kept busy by others, waiting is another matter (park.c, yields). */
EACH_HOST(beside_strangers) {
    cpu_set_t allowed;
    CHECK_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    pid_t strangers[CPU_SETSIZE];
    int count = 0;
    for (int processor = 0; processor < CPU_SETSIZE; processor++)
        if (CPU_ISSET(processor, &allowed)) strangers[count++] = start_stranger(processor);
    run_plans(1);
    for (int i = 0; i < count; i++) {
        int status;
        CHECK_EQ(kill(strangers[i], SIGKILL), 0);
        CHECK_EQ(waitpid(strangers[i], &status, 0), strangers[i]);
        CHECK(WIFSIGNALED(status)); /* it was there until now */
    }
}

#endif
