/* chain - what an item costs on its way through a chain of tasks, in one of several systems.
 *
 *     chain SYSTEM TASKS WORKERS ITEMS BOUND    ->  nanoseconds an item, processor seconds an item
 *
 * TASKS counts the source and the sink, so 3 is source -> f -> sink; WORKERS is for the tasks in
 * between.  SYSTEM is `pyper`, `pyper-ordered`, `textbook` (a mutex and two condition variables an
 * edge, one item at a time) or `loop` (no pipeline: the floor).  Items are pointer-sized, f adds 1,
 * the sink adds up and the sum is checked. */
#include <inttypes.h>
#include <pthread.h>
#include <pyper.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct shape {
    int tasks, workers;
    intptr_t items;
    int bound;
};

static intptr_t expected(const struct shape *shape) {
    return shape->items * (shape->items - 1) / 2 + shape->items * (shape->tasks - 2);
}

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
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

static intptr_t run_pyper(const struct shape *shape, bool ordered) {
    pyper_pipeline *p = pyper_task(source, .branch = true, .throttle = shape->bound);
    for (int i = 0; i < shape->tasks - 2; i++)
        p = pyper_pipe(p, pyper_task(add_one, .workers = shape->workers, .ordered = ordered,
                                     .throttle = shape->bound));
    pyper_run *run = pyper_start(p, (void *)shape->items);
    intptr_t sum = 0;
    for (void *x; pyper_next(run, &x) > 0;) sum += (intptr_t)x;
    if (pyper_failed(run)) fprintf(stderr, "%s\n", pyper_error_message(run));
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
    for (intptr_t x; edge_get(stage->in, &x);) edge_put(stage->out, x + 1);
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

/* ------------------------------------------------------------------------------------- loop */

static __attribute__((noinline)) intptr_t plus_one(intptr_t x) {
    return x + 1;
}

static intptr_t run_loop(const struct shape *shape) {
    intptr_t sum = 0;
    for (intptr_t i = 0; i < shape->items; i++) {
        intptr_t x = i;
        for (int k = 0; k < shape->tasks - 2; k++) {
            intptr_t (*volatile f)(intptr_t) = plus_one;
            x = f(x);
        }
        sum += x;
    }
    return sum;
}

/* ------------------------------------------------------------------------------------- main */

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: chain SYSTEM TASKS WORKERS ITEMS BOUND\n");
        return 2;
    }
    struct shape shape = {atoi(argv[2]), atoi(argv[3]), atol(argv[4]), atoi(argv[5])};
    if (shape.tasks < 2 || shape.tasks > 64 || shape.workers < 1 || shape.workers > 64) return 2;
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    intptr_t sum = strcmp(argv[1], "pyper") == 0           ? run_pyper(&shape, false)
                   : strcmp(argv[1], "pyper-ordered") == 0 ? run_pyper(&shape, true)
                   : strcmp(argv[1], "textbook") == 0      ? run_textbook(&shape)
                                                           : run_loop(&shape);
    wall = seconds(CLOCK_MONOTONIC) - wall;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    if (sum != expected(&shape)) {
        fprintf(stderr, "the sum is %" PRIdPTR ", not %" PRIdPTR "\n", sum, expected(&shape));
        return 1;
    }
    printf("%.3f %.3f\n", wall / (double)shape.items * 1e9, cpu / (double)shape.items * 1e9);
    return 0;
}
