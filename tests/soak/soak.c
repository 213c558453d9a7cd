/* One soaker in C: random pipelines with faults, each checked against all promises.
 *
 * usage: soak SEED [--seconds S | --times N]
 *
 * The twin of soak.py, which explains it and what is printed: a plan made of a seed, a number n
 * that becomes 4n, 4n + 1, ... in each task, an end that most often is a fault, and checks of
 * outputs, of the error, and of what is left over.  An item is an allocated number, of which each
 * must be delivered or destroyed.  A broken promise ends the program with a message and abort(). */
#define _GNU_SOURCE
#include "../random.h"

#include <pyper.h>

#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SOURCE, PLAIN, BRANCH, JOIN, NESTED, SUM };
enum { THREAD, PROCESS, ASYNC };
enum {
    ALL,
    CLOSE,
    CANCEL_ELSEWHERE,
    CLOSE_ELSEWHERE,
    DROP,
    FAILURE,
    KILL,
    FORK,
    DEADLINES,
    NO_DESCRIPTORS,
    NO_THREADS,
    ENDS
};
static const char *const end_names[] = {
    "all",           "close", "cancel_elsewhere", "close_elsewhere", "dropped",    "task_fails",
    "worker_killed", "fork",  "deadlines",        "no_descriptors",  "no_threads",
};
enum { STEPS_MAX = 6, PATIENCE = 240 };
#define ENDLESS INT64_MAX

static _Noreturn void broken(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) broken("%s:%d: not true: %s", __FILE__, __LINE__, #condition);           \
    } while (0)

/* ----------------------------------------------------------------------------------- items */

typedef struct item {
    int64_t number;
    size_t size; /* of what follows: it is there to be copied */
    unsigned char more[];
} item;

static _Atomic int64_t items_alive; /* in this process */
static size_t item_size;            /* of this plan */

static item *item_new(int64_t number) {
    item *it = malloc(sizeof *it + item_size);
    if (!it) return NULL;
    it->number = number;
    it->size = item_size;
    memset(it->more, (int)(number & 255), item_size);
    atomic_fetch_add(&items_alive, 1);
    return it;
}

static void item_destroy(void *it) {
    free(it);
    atomic_fetch_sub(&items_alive, 1);
}

static int64_t item_take(void *op) {
    item *it = op;
    int64_t number = it->number;
    for (size_t i = 0; i < it->size; i += 97) CHECK(it->more[i] == (number & 255));
    item_destroy(it);
    return number;
}

static int item_encode(void *op, pyper_transfer *to) {
    item *it = op;
    void *place = pyper_transfer_reserve(to, sizeof *it + it->size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, it, sizeof *it + it->size);
    return 0;
}

static int item_decode(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    (void)from;
    void *it = malloc(size);
    if (!it) return PYPER_ENOMEM;
    memcpy(it, data, size);
    atomic_fetch_add(&items_alive, 1);
    *ret_item = it;
    return 0;
}

static const pyper_item_type item_type = {.size = sizeof item_type,
                                          .destroy = item_destroy,
                                          .encode = item_encode,
                                          .decode = item_decode};

/* ------------------------------------------------------------------------------------ plan */

typedef struct step {
    int kind, shape, depth;
    int64_t workers, throttle, fail_at; /* the number of the source; negative: never */
    bool ordered;
} step;

typedef struct plan {
    uint64_t seed;
    int end, count;
    int64_t limit, take;
    bool loop; /* an event loop drives the run */
    step steps[STEPS_MAX];
} plan;

static int64_t how_many(const step *s, int64_t number) {
    return s->shape == BRANCH || s->shape == NESTED ? number * 2654435761 >> 8 & 3 : 1;
}

static plan make_plan(uint64_t seed) {
    static const int64_t crowds[] = {1, 1, 1, 2, 2, 3, 6, 16};
    static const int64_t bounds[] = {1, 1, 2, 3, 10, 1000}, free_bounds[] = {0, 0, 1, 2, 10, 1000};
    static const int often[] = {ALL,
                                ALL,
                                ALL,
                                ALL,
                                CLOSE,
                                CLOSE,
                                FAILURE,
                                DROP,
                                DROP,
                                KILL,
                                FAILURE,
                                CANCEL_ELSEWHERE,
                                KILL,
                                FORK,
                                FORK,
                                DEADLINES,
                                KILL,
                                CLOSE_ELSEWHERE,
                                NO_DESCRIPTORS,
                                NO_THREADS};
    uint64_t r = seed * 1000003;
    plan p = {.seed = seed};
    p.end = often[random_below(&r, sizeof often / sizeof *often)];
    p.loop = random_below(&r, 3) == 0 && p.end != DEADLINES && p.end != CLOSE_ELSEWHERE;
    bool finite = p.end == ALL || p.end == FORK || p.end == DEADLINES || p.end == NO_DESCRIPTORS ||
                  p.end == NO_THREADS;
    bool large = random_below(&r, 10) == 0;
    p.limit = !finite ? ENDLESS : random_below(&r, large ? 40 : 400);
    p.take = random_below(&r, 60);
    item_size = (size_t)random_below(&r, large ? 200000 : 200);
    p.count = 1 + (int)random_below(&r, STEPS_MAX - 2);
    bool process = false;
    for (int i = 0; i < p.count; i++) {
        step *s = &p.steps[i];
        s->depth = i;
        s->kind = i == 0                ? random_below(&r, 8) == 0
                  : p.end == NO_THREADS ? THREAD
                  : random_below(&r, 2) ? THREAD
                                        : (int)random_below(&r, 3);
        if (p.end == NO_THREADS) s->kind = THREAD;
        s->shape = i == 0 ? SOURCE : PLAIN + (int)random_below(&r, 4);
        if (s->kind == ASYNC && s->shape > BRANCH) s->shape = PLAIN;
        s->workers = i == 0 ? 1 : p.end == NO_THREADS ? 64 : crowds[random_below(&r, 8)];
        if (s->kind == PROCESS && s->workers > 3) s->workers = 3;
        s->throttle = large    ? 1 + random_below(&r, 3)
                      : finite ? free_bounds[random_below(&r, 6)]
                               : bounds[random_below(&r, 6)];
        s->ordered = random_below(&r, 2) && !(s->shape == JOIN && s->workers > 1);
        s->fail_at = -1;
        process = process || s->kind == PROCESS;
    }
    if (p.end == KILL && !process) p.steps[random_below(&r, p.count)].kind = PROCESS;
    if (p.end == FAILURE) p.steps[random_below(&r, p.count)].fail_at = random_below(&r, 300);
    if ((p.end == ALL || p.end == FAILURE) && random_below(&r, 4) == 0)
        p.steps[p.count++] = (step){.kind = random_below(&r, 3) == 0 ? PROCESS : THREAD,
                                    .shape = SUM,
                                    .depth = p.count - 1,
                                    .workers = 1 + random_below(&r, 3),
                                    .fail_at = -1};
    for (int i = 0; i < p.count; i++) /* a killed one among asynchronous ones of the same kind */
        if (p.steps[i].kind == PROCESS && p.steps[i].workers > 3) p.steps[i].workers = 3;
    return p;
}

static void print_plan(const plan *p) {
    static const char *const shapes[] = {"source", "plain", "branch", "join", "nested", "sum"};
    static const char *const kinds[] = {"thread", "process", "async"};
    printf("run %llu %s ", (unsigned long long)p->seed, end_names[p->end]);
    if (p->limit == ENDLESS)
        printf("endless");
    else
        printf("%lld", (long long)p->limit);
    for (int i = 0; i < p->count; i++) {
        const step *s = &p->steps[i];
        printf("%s%s:%s*%lld/%lld%s", i ? " | " : " ", kinds[s->kind], shapes[s->shape],
               (long long)s->workers, (long long)s->throttle, s->ordered ? ",ordered" : "");
    }
    puts(p->loop ? " on a loop" : "");
    fflush(stdout);
}

/* ------------------------------------------------------------------- functions of the tasks */

/* The processes that work for this run note their numbers, so that one can be killed. */
enum { PIDS = STEPS_MAX * 4 };
static _Atomic int *pids;

/* Emit a number as an output of this task, or fail if the plan says so. */
static int give(pyper_worker *w, const step *s, int64_t number) {
    if (s->fail_at >= 0 && number >> 2 * s->depth >= s->fail_at)
        return pyper_fail(w, 4711, "as planned");
    item *it = item_new(number);
    return it ? pyper_emit(w, it) : pyper_fail(w, PYPER_ENOMEM, "out of memory");
}

static void note_process(pyper_worker *w, const step *s) {
    if (s->kind != PROCESS) return;
    size_t place = pyper_worker_task(w) * 4 + (size_t)pyper_worker_index(w);
    atomic_store(&pids[place], (int)getpid());
}

static int produce(pyper_worker *w, void *limit, void *bind) {
    note_process(w, bind);
    int64_t most = item_take(limit);
    int rc = 0;
    for (int64_t n = 0; n < most && rc >= 0; n++) rc = give(w, bind, n);
    return rc < 0 ? rc : 0;
}

static int work(pyper_worker *w, void *op, void *bind) {
    const step *s = bind;
    note_process(w, s);
    int64_t number = item_take(op);
    int rc = 0;
    for (int64_t i = 0; i < how_many(s, number) && rc >= 0; i++) rc = give(w, s, 4 * number + i);
    return rc < 0 ? rc : 0;
}

static int join(pyper_worker *w, void *unused, void *bind) {
    (void)unused;
    note_process(w, bind);
    int rc;
    for (void *op; (rc = pyper_pull(w, &op)) > 0;)
        if ((rc = work(w, op, bind)) < 0) break;
    return rc;
}

static int sum(pyper_worker *w, void *unused, void *bind) {
    (void)unused;
    note_process(w, bind);
    int64_t total = 0;
    int rc;
    for (void *op; (rc = pyper_pull(w, &op)) > 0;) total += item_take(op);
    return rc < 0 ? rc : give(w, bind, total);
}

static int count(pyper_worker *w, void *limit, void *bind) {
    (void)bind;
    for (intptr_t i = 0; i < (intptr_t)limit; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int pass(pyper_worker *w, void *op, void *bind) {
    (void)bind;
    return pyper_emit(w, op);
}

/* Runs a pipeline of its own for each item. */
static int nested(pyper_worker *w, void *op, void *bind) {
    const step *s = bind;
    note_process(w, s);
    int64_t number = item_take(op);
    pyper_pipeline *inner = pyper_pipe(pyper_task(count, .branch = true, .throttle = 1),
                                       pyper_task(pass, .workers = 2, .ordered = true));
    pyper_run *run = pyper_start(inner, (void *)(intptr_t)how_many(s, number));
    int rc, ended;
    void *out;
    for (rc = 0; rc >= 0 && (ended = pyper_next(run, &out)) > 0;)
        rc = give(w, s, 4 * number + (intptr_t)out);
    if (rc >= 0 && ended < 0) rc = pyper_fail(w, ended, "%s", pyper_error_message(run));
    pyper_close(run);
    pyper_unref(inner);
    return rc < 0 ? rc : 0;
}

/* Asynchronous operations are completed elsewhere: by two threads, the last one first. */
typedef struct operation {
    struct operation *next;
    pyper_worker *worker;
    void *item;
    const step *step;
} operation;

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pool_grown = PTHREAD_COND_INITIALIZER;
static operation *pool;

static int begin(pyper_worker *w, void *op, void *bind) {
    if (((item *)op)->number % 5 == 0) return work(w, op, bind); /* at once */
    operation *o = malloc(sizeof *o);
    if (!o) return item_destroy(op), pyper_fail(w, PYPER_ENOMEM, "out of memory");
    *o = (operation){.worker = w, .item = op, .step = bind};
    pthread_mutex_lock(&pool_lock);
    o->next = pool;
    pool = o;
    pthread_cond_signal(&pool_grown);
    pthread_mutex_unlock(&pool_lock);
    return PYPER_PENDING;
}

static void *complete(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&pool_lock);
        while (!pool) pthread_cond_wait(&pool_grown, &pool_lock);
        operation o = *pool, *first = pool;
        pool = o.next;
        pthread_mutex_unlock(&pool_lock);
        free(first);
        int rc = work(o.worker, o.item, (void *)o.step);
        pyper_done(o.worker, rc);
    }
    return NULL;
}

static pyper_pipeline *build(const plan *p) {
    static const pyper_fn functions[] = {produce, work, work, join, nested, sum};
    pyper_pipeline *parts[STEPS_MAX];
    for (int i = 0; i < p->count; i++) {
        const step *s = &p->steps[i];
        parts[i] = pyper_task(s->kind == ASYNC ? begin : functions[s->shape],
                              .branch = s->shape != PLAIN && s->shape != SUM,
                              .join = s->shape == JOIN || s->shape == SUM, .workers = s->workers,
                              .throttle = s->throttle, .ordered = s->ordered, .bind = s,
                              .multiprocess = s->kind == PROCESS, .async = s->kind == ASYNC,
                              .type = &item_type);
    }
    pyper_pipeline *pipeline = pyper_pipe_from(parts, (size_t)p->count);
    if (pyper_pipeline_error(pipeline)) broken("%s", pyper_pipeline_message(pipeline));
    return pipeline;
}

/* --------------------------------------------------------------------------- what is left over */

/* A list of threads ends early when the one that it has come to ends meanwhile, so these are asked
 * for by their number. */
static long entries(const char *path) {
    struct stat facts;
    if (strcmp(path, "/proc/self/task") == 0 && stat(path, &facts) == 0)
        return (long)facts.st_nlink;
    DIR *directory = opendir(path);
    if (!directory) broken("%s: %s", path, strerror(errno));
    long n = 0;
    while (readdir(directory)) n++;
    closedir(directory);
    return n;
}

static long shared_memory(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) broken("no /proc/self/maps: %s", strerror(errno));
    char line[600];
    long n = 0;
    while (fgets(line, sizeof line, maps)) n += strstr(line, "memfd:pyper") != NULL;
    fclose(maps);
    return n;
}

static long threads, descriptors; /* between two runs */

static const char *surplus(void) {
    siginfo_t child;
    if (waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) == 0) return "processes";
    if (entries("/proc/self/task") != threads) return "threads";
    if (entries("/proc/self/fd") != descriptors) return "descriptors";
    if (shared_memory() != 0) return "shared memory";
    if (atomic_load(&items_alive) != 0) return "items";
    return NULL;
}

static void settle(void) {
    int64_t deadline = pyper_now() + (int64_t)PATIENCE * 1000000000;
    for (const char *left; (left = surplus()); sched_yield())
        if (pyper_now() > deadline) broken("left over: %s", left);
}

/* -------------------------------------------------------------------------------------- outputs */

typedef struct numbers {
    int64_t *of;
    int64_t count, room;
} numbers;

static void add(numbers *ns, int64_t n) {
    if (ns->count == ns->room) {
        ns->room = 2 * ns->room + 100;
        ns->of = realloc(ns->of, (size_t)ns->room * sizeof *ns->of);
        if (!ns->of) broken("no memory for the numbers");
    }
    ns->of[ns->count++] = n;
}

/* What becomes of a number in the tasks from `first` on. */
static void expand(const plan *p, int first, int64_t number, numbers *ns) {
    const step *s = &p->steps[first];
    if (first == p->count || s->shape == SUM) {
        add(ns, number);
        return;
    }
    for (int64_t i = 0; i < how_many(s, number); i++) expand(p, first + 1, 4 * number + i, ns);
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Nothing lost (if the run ended by itself), nothing twice, nothing that never was. */
static void check_outputs(const plan *p, numbers got, bool complete) {
    const step *last = &p->steps[p->count - 1];
    numbers all = {0};
    bool in_order = true;
    for (int i = 0; i < p->count; i++)
        in_order = in_order && (p->steps[i].workers == 1 || p->steps[i].ordered);
    if (last->shape == SUM && !complete) CHECK(got.count == 0); /* half a total is none */
    if (last->shape == SUM && complete) {
        CHECK(got.count == last->workers);
        int64_t total = 0;
        for (int64_t n = 0; n < p->limit; n++) expand(p, 1, n, &all);
        for (int64_t i = 0; i < all.count; i++) total += all.of[i];
        for (int64_t i = 0; i < got.count; i++) total -= got.of[i];
        CHECK(total == 0);
    }
    if (last->shape != SUM) {
        if (!in_order) qsort(got.of, (size_t)got.count, sizeof *got.of, by_value);
        for (int64_t i = 1; i < got.count; i++) CHECK(got.of[i - 1] < got.of[i]);
        int64_t most = complete    ? p->limit
                       : got.count ? (got.of[got.count - 1] >> 2 * (p->count - 1)) + 1
                                   : 0;
        for (int64_t n = 0; n < most; n++) expand(p, 1, n, &all);
        if (complete) CHECK(got.count == all.count);
        for (int64_t i = 0, k = 0; i < got.count; i++, k++) {
            while (k < all.count && all.of[k] < got.of[i]) k++;
            CHECK(k < all.count && all.of[k] == got.of[i]);
            CHECK(!in_order || k == i); /* no gap */
        }
    }
    free(all.of);
}

/* ------------------------------------------------------------------------------------- the runs */

static int take(const plan *p, pyper_run *run, void **ret_item) {
    if (p->end == DEADLINES) {
        int rc;
        while ((rc = pyper_next_until(run, ret_item, pyper_now() + p->take * 1000)) ==
               PYPER_ETIMEDOUT)
            continue;
        return rc;
    }
    if (!p->loop) return pyper_next(run, ret_item);
    for (;;) {
        int rc = pyper_try_next(run, ret_item);
        if (rc != PYPER_EAGAIN) return rc;
        struct pollfd watched = {.fd = pyper_fd(run), .events = POLLIN};
        CHECK(poll(&watched, 1, -1) == 1);
        CHECK(pyper_drive(run) == 0);
    }
}

static int read_some(const plan *p, pyper_run *run, numbers *got, int64_t most) {
    int rc = 1;
    for (void *op; got->count < most && (rc = take(p, run, &op)) > 0;) add(got, item_take(op));
    return rc;
}

typedef struct helper {
    pthread_t id;
    const plan *plan;
    pyper_run *run;
} helper;

static void *act_elsewhere(void *arg) {
    helper *h = arg;
    uint64_t r = h->plan->seed;
    for (int64_t n = random_below(&r, INT64_C(1) << random_below(&r, 12)); n > 0; n--)
        sched_yield();
    if (h->plan->end == CANCEL_ELSEWHERE)
        pyper_cancel(h->run);
    else
        CHECK(pyper_close(h->run) == 0);
    return NULL;
}

static void kill_one(const plan *p) {
    for (uint64_t r = p->seed;;) {
        int pid = atomic_load(&pids[random_below(&r, PIDS)]);
        if (pid == 0) continue;
        CHECK(kill(pid, SIGKILL) == 0);
        return;
    }
}

static void fork_and_close(pyper_run *run) {
    pid_t child = fork();
    if (child == 0) {
        void *op;
        bool dead = pyper_next(run, &op) == PYPER_EFORKED && pyper_close(run) == PYPER_EFORKED;
        _exit(dead ? 0 : 1);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

/* Lower what the process may have; says what it was. */
static struct rlimit lower(const plan *p) {
    struct rlimit before, now;
    int which = p->end == NO_DESCRIPTORS ? RLIMIT_NOFILE : RLIMIT_AS;
    CHECK(getrlimit(which, &before) == 0);
    now = before;
    if (which == RLIMIT_NOFILE) {
        now.rlim_cur = (rlim_t)(entries("/proc/self/fd") - 3 + (long)(p->seed % 10));
    } else {
        FILE *statm = fopen("/proc/self/statm", "r");
        long pages;
        CHECK(statm && fscanf(statm, "%ld", &pages) == 1);
        fclose(statm);
        now.rlim_cur = (rlim_t)pages * 4096 + (rlim_t)(20 << 20) + p->seed % (100 << 20);
    }
    CHECK(setrlimit(which, &now) == 0);
    return before;
}

/* Returns how many outputs there were; *ret_hit: did the fault come in time? */
static int64_t one_run(const plan *p, bool *ret_hit) {
    memset((void *)pids, 0, PIDS * sizeof *pids);
    numbers got = {0};
    bool lacking = p->end == NO_DESCRIPTORS || p->end == NO_THREADS;
    pyper_pipeline *pipeline = build(p);
    item *limit = item_new(p->limit);
    CHECK(limit != NULL);
    struct rlimit before = {0};
    if (lacking) before = lower(p);
    pyper_run *run = pyper_start(pipeline, limit, .type = &item_type, .loop = p->loop);
    int rc = 1;
    *ret_hit = true;
    switch (p->end) {
    case CLOSE:
    case DROP:
        rc = read_some(p, run, &got, p->take);
        CHECK(rc == 1);
        break;
    case CANCEL_ELSEWHERE:
    case CLOSE_ELSEWHERE: {
        helper h = {.plan = p, .run = p->end == CLOSE_ELSEWHERE ? pyper_run_ref(run) : run};
        CHECK(pthread_create(&h.id, NULL, act_elsewhere, &h) == 0);
        rc = read_some(p, run, &got, ENDLESS);
        CHECK(rc == PYPER_ECANCELED && pyper_failed(run) == 0);
        pthread_join(h.id, NULL);
        break;
    }
    case FAILURE:
        rc = read_some(p, run, &got, ENDLESS);
        CHECK(rc == PYPER_EFAILED && pyper_error_code(run) == 4711);
        CHECK(strstr(pyper_error_message(run), "as planned"));
        CHECK(p->steps[pyper_error_task(run)].fail_at >= 0);
        break;
    case KILL:
        /* One that has had something to do is there: the first output came through all tasks. */
        rc = read_some(p, run, &got, p->take + 1);
        CHECK(rc == 1);
        kill_one(p);
        rc = read_some(p, run, &got, ENDLESS);
        CHECK(rc == PYPER_EDIED && pyper_error_code(run) == -SIGKILL);
        CHECK(p->steps[pyper_error_task(run)].kind == PROCESS);
        break;
    case FORK:
        rc = read_some(p, run, &got, p->take);
        fork_and_close(run);
        if (rc == 1) rc = read_some(p, run, &got, ENDLESS);
        CHECK(rc == 0);
        break;
    default:
        rc = read_some(p, run, &got, ENDLESS);
        *ret_hit = !lacking || rc < 0;
        if (rc < 0) {
            if (!lacking) broken("%s: %s", pyper_err_name(rc), pyper_error_message(run));
            const char *why = pyper_error_message(run); /* a nested run may have had none */
            bool thread = strstr(why, "thread could not be started"),
                 memory = strstr(why, "memory");
            CHECK(p->end == NO_DESCRIPTORS ? strstr(why, "no file descriptors are left") != NULL
                                           : thread || memory);
        }
    }
    if (lacking) {
        CHECK(setrlimit(p->end == NO_DESCRIPTORS ? RLIMIT_NOFILE : RLIMIT_AS, &before) == 0);
    }
    check_outputs(p, got, rc == 0);
    if (p->end == DROP) {
        pyper_run_unref(run);
    } else {
        CHECK(pyper_close(run) == 0);
        CHECK(p->end == CLOSE_ELSEWHERE || shared_memory() == 0);
    }
    pyper_unref(pipeline);
    free(got.of);
    settle();
    return got.count;
}

static long resident_kb(void) {
    FILE *statm = fopen("/proc/self/statm", "r");
    long all, resident;
    CHECK(statm && fscanf(statm, "%ld %ld", &all, &resident) == 2);
    fclose(statm);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: soak SEED [--seconds S | --times N]\n"), 2;
    uint64_t seed = strtoull(argv[1], NULL, 10);
    bool timed = argc > 3 && strcmp(argv[2], "--seconds") == 0;
    int64_t amount = argc > 3 ? strtoll(argv[3], NULL, 10) : 1;
    pids =
        mmap(NULL, PIDS * sizeof *pids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK((void *)pids != MAP_FAILED);
    for (int i = 0; i < 2; i++) {
        pthread_t id;
        CHECK(pthread_create(&id, NULL, complete, NULL) == 0);
    }
    threads = entries("/proc/self/task");
    descriptors = entries("/proc/self/fd");
    int64_t until = pyper_now() + (timed ? amount * 1000000000 : 0), next_state = 0;
    for (int64_t i = 0; timed ? pyper_now() < until : i < amount; i++) {
        plan p = make_plan(seed + (timed ? (uint64_t)i : 0));
        print_plan(&p);
        bool hit;
        int64_t items = one_run(&p, &hit);
        printf("ok %lld %d\n", (long long)items, hit);
        if (pyper_now() >= next_state) {
            next_state = pyper_now() + 1000000000;
            printf("state rss_kb=%ld bytes=%zu\n", resident_kb(), mallinfo2().uordblks);
        }
        fflush(stdout);
    }
    return 0;
}
