/* chain - what an item costs on its way through a chain of tasks, in one of several systems.
 *
 *     chain SYSTEM TASKS WORKERS BOUND [LOOPS]     items on standard input -> seconds an item
 *     chain calibrate                              -> loops of work that take a microsecond
 *
 * TASKS counts the source and the sink, so 3 is source -> f -> sink; WORKERS is for the tasks in
 * between, and so is LOOPS, the work of an item (bench.h).  BOUND is how many items may wait behind
 * a task; 0 is no bound (`textbook` then takes 1024).  Items are pointer-sized, f adds 1, the sink
 * adds up and the sum is checked.  Systems:
 *
 *     pyper, pyper-ordered
 *     textbook   a mutex and two condition variables an edge, one item at a time
 *     loop       no pipeline: the floor
 *     threads    WORKERS bare threads that share the items out beforehand: the floor for work */
#include <inttypes.h>
#include <pthread.h>
#include <pyper.h>
#include <string.h>

#include "bench.h"

struct shape {
    const char *system;
    int tasks, workers, bound;
    long loops;
    intptr_t items;
};

static intptr_t expected(const struct shape *shape) {
    return shape->items * (shape->items - 1) / 2 + shape->items * (shape->tasks - 2);
}

/* ------------------------------------------------------------------------------------ pyper */

static int source(pyper_worker *worker, void *items, void *bind) {
    (void)bind;
    for (intptr_t i = 0; i < (intptr_t)items; i++)
        if (pyper_emit(worker, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int add_one(pyper_worker *worker, void *x, void *bind) {
    (void)bind;
    return pyper_emit(worker, (void *)((intptr_t)x + 1));
}

static int work_and_add_one(pyper_worker *worker, void *x, void *loops) {
    bench_burn((long)(intptr_t)loops);
    return pyper_emit(worker, (void *)((intptr_t)x + 1));
}

static intptr_t run_pyper(const struct shape *shape, bool ordered) {
    pyper_pipeline *p = pyper_task(source, .branch = true, .throttle = shape->bound);
    for (int i = 0; i < shape->tasks - 2; i++)
        p = pyper_pipe(p, pyper_task(shape->loops ? work_and_add_one : add_one,
                                     .workers = shape->workers, .ordered = ordered,
                                     .throttle = shape->bound, .bind = (void *)shape->loops));
    pyper_run *run = pyper_start(p, (void *)shape->items);
    intptr_t sum = 0;
    for (void *x; pyper_next(run, &x) > 0;) sum += (intptr_t)x;
    if (pyper_failed(run)) bench_fail(pyper_error_message(run));
    pyper_close(run);
    pyper_unref(p);
    return sum;
}

/* --------------------------------------------------------------------------------- textbook */

struct edge {
    pthread_mutex_t lock;
    pthread_cond_t not_empty, not_full;
    intptr_t *ring;
    int bound, head, count, producers;
};

struct stage {
    const struct shape *shape;
    struct edge *in, *out;
};

static void edge_put(struct edge *edge, intptr_t x) {
    pthread_mutex_lock(&edge->lock);
    while (edge->count == edge->bound) pthread_cond_wait(&edge->not_full, &edge->lock);
    edge->ring[(edge->head + edge->count++) % edge->bound] = x;
    pthread_cond_signal(&edge->not_empty);
    pthread_mutex_unlock(&edge->lock);
}

static bool edge_get(struct edge *edge, intptr_t *ret_x) {
    pthread_mutex_lock(&edge->lock);
    while (edge->count == 0 && edge->producers > 0)
        pthread_cond_wait(&edge->not_empty, &edge->lock);
    bool any = edge->count > 0;
    if (any) {
        *ret_x = edge->ring[edge->head];
        edge->head = (edge->head + 1) % edge->bound;
        edge->count--;
        pthread_cond_signal(&edge->not_full);
    }
    pthread_mutex_unlock(&edge->lock);
    return any;
}

static void edge_end(struct edge *edge) {
    pthread_mutex_lock(&edge->lock);
    edge->producers--;
    pthread_cond_broadcast(&edge->not_empty);
    pthread_mutex_unlock(&edge->lock);
}

static void *textbook_source(void *arg) {
    struct stage *stage = arg;
    for (intptr_t i = 0; i < stage->shape->items; i++) edge_put(stage->out, i);
    edge_end(stage->out);
    return NULL;
}

static void *textbook_add_one(void *arg) {
    struct stage *stage = arg;
    for (intptr_t x; edge_get(stage->in, &x);) {
        bench_burn(stage->shape->loops);
        edge_put(stage->out, x + 1);
    }
    edge_end(stage->out);
    return NULL;
}

static intptr_t run_textbook(const struct shape *shape) {
    int edges = shape->tasks - 1, threads = 0;
    int bound = shape->bound ? shape->bound : 1024;
    struct edge edge[64];
    struct stage stage[64];
    pthread_t thread[64 * 64];
    for (int i = 0; i < edges; i++) {
        edge[i] = (struct edge){.ring = malloc((size_t)bound * sizeof(intptr_t)),
                                .bound = bound,
                                .producers = i == 0 ? 1 : shape->workers};
        if (!edge[i].ring) abort();
        pthread_mutex_init(&edge[i].lock, NULL);
        pthread_cond_init(&edge[i].not_empty, NULL);
        pthread_cond_init(&edge[i].not_full, NULL);
        stage[i] = (struct stage){shape, i == 0 ? NULL : &edge[i - 1], &edge[i]};
    }
    for (int i = 0; i < edges; i++)
        for (int k = 0; k < (i == 0 ? 1 : shape->workers); k++)
            if (pthread_create(&thread[threads++], NULL,
                               i == 0 ? textbook_source : textbook_add_one, &stage[i]))
                abort();
    intptr_t sum = 0;
    for (intptr_t x; edge_get(&edge[edges - 1], &x);) sum += x;
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < edges; i++) free(edge[i].ring);
    return sum;
}

/* --------------------------------------------------------------------------- loop and threads */

static __attribute__((noinline)) intptr_t plus_one(intptr_t x) {
    return x + 1;
}

/* The items from `first` on, every `step`th, one after the other. */
static intptr_t do_items(const struct shape *shape, intptr_t first, intptr_t step) {
    intptr_t sum = 0;
    for (intptr_t i = first; i < shape->items; i += step) {
        intptr_t x = i;
        for (int k = 0; k < shape->tasks - 2; k++) {
            intptr_t (*volatile f)(intptr_t) = plus_one;
            bench_burn(shape->loops);
            x = f(x);
        }
        sum += x;
    }
    return sum;
}

struct part {
    const struct shape *shape;
    intptr_t first, sum;
};

static void *do_part(void *arg) {
    struct part *part = arg;
    part->sum = do_items(part->shape, part->first, part->shape->workers);
    return NULL;
}

static intptr_t run_threads(const struct shape *shape) {
    struct part part[64];
    pthread_t thread[64];
    intptr_t sum = 0;
    for (int i = 0; i < shape->workers; i++) {
        part[i] = (struct part){shape, i, 0};
        if (pthread_create(&thread[i], NULL, do_part, &part[i])) abort();
    }
    for (int i = 0; i < shape->workers; i++) {
        pthread_join(thread[i], NULL);
        sum += part[i].sum;
    }
    return sum;
}

/* ------------------------------------------------------------------------------------- main */

static double round_of(long items, void *arg) {
    struct shape *shape = arg;
    const char *system = shape->system;
    shape->items = items;
    double started = bench_now();
    intptr_t sum = strcmp(system, "pyper") == 0           ? run_pyper(shape, false)
                   : strcmp(system, "pyper-ordered") == 0 ? run_pyper(shape, true)
                   : strcmp(system, "textbook") == 0      ? run_textbook(shape)
                   : strcmp(system, "threads") == 0       ? run_threads(shape)
                                                          : do_items(shape, 0, 1);
    double seconds = bench_now() - started;
    if (sum != expected(shape)) bench_fail("the sum is wrong");
    return seconds / (double)items;
}

/* The fastest of many tries: what the work takes when nothing disturbs it. */
static void calibrate(void) {
    const long loops = 100000;
    double best = 1;
    for (int i = 0; i < 200; i++) {
        double started = bench_now();
        bench_burn(loops);
        double seconds = bench_now() - started;
        if (seconds < best) best = seconds;
    }
    printf("%.0f\n", (double)loops / (best * 1e6));
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "calibrate") == 0) {
        calibrate();
        return 0;
    }
    if (argc < 5) bench_fail("usage: chain SYSTEM TASKS WORKERS BOUND [LOOPS]");
    struct shape shape = {.system = argv[1],
                          .tasks = atoi(argv[2]),
                          .workers = atoi(argv[3]),
                          .bound = atoi(argv[4]),
                          .loops = argc > 5 ? atol(argv[5]) : 0};
    if (shape.tasks < 2 || shape.tasks > 64 || shape.workers < 1 || shape.workers > 64) return 2;
    return bench_rounds(round_of, &shape);
}
