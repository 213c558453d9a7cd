/* paths - the hot paths of the engine, one after the other, for callgrind to count instructions.
 *
 *     valgrind --tool=callgrind paths      counts between marks (marks.h), ITEMS times each path
 *
 * Instructions can be compared with a budget, because they are the same each time: nobody runs
 * beside the path that is counted.  The functions of the tasks see to that: each waits until the
 * ones before it have done all they have to do, and while one path is counted the others sleep on a
 * semaphore. */
#include <pyper.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "marks.h"

#define ITEMS 20000 /* scripts/check-instructions divides by it */

/* What the tasks count, and whether the second one has two workers. */
struct paths {
    const char *push, *turn, *pop;
    bool shared;
};

static long emissions = ITEMS;

static struct paths paths;
static sem_t pushed, turned, first_may_go_on, last_may_go_on;
static _Atomic long turns;

static void begin(const char *name) {
    if (name) mark_begin();
}

static void end(const char *name) {
    if (name) mark_end(name);
}

/* The first task: emits ITEMS, each a push. */
static int source(pyper_worker *worker, void *unused, void *bind) {
    begin(paths.push);
    for (intptr_t i = 0; i < emissions; i++)
        if (pyper_emit(worker, (void *)i) < 0) return PYPER_ECANCELED;
    end(paths.push);
    sem_post(&pushed);
    return 0;
}

/* The second one: a turn is to take an input, to be called, and to emit.  Of two workers one is
 * held in its first call, and the other one has all the turns that are counted. */
static int pass(pyper_worker *worker, void *item, void *bind) {
    long turn = turns++;
    if (paths.shared && turn == 0) {
        sem_wait(&first_may_go_on);
        return pyper_emit(worker, item);
    }
    if (turn == paths.shared) {
        sem_wait(&pushed);
        begin(paths.turn);
    }
    int rc = pyper_emit(worker, item);
    if (turn == ITEMS - 1) {
        end(paths.turn);
        sem_post(&turned);
    }
    return rc;
}

/* With two workers and an order: the first one is held in its first call, so the other one's
 * outputs are kept, and leave when it lets go.  Counted from the first that is kept until all have
 * left. */
static int pass_in_order(pyper_worker *worker, void *item, void *bind) {
    long turn = turns++;
    if (turn == 0) sem_wait(&first_may_go_on);
    if (turn == 1) {
        sem_wait(&pushed);
        begin(paths.turn);
    }
    if (turn == ITEMS - 1) {
        sem_post(&first_may_go_on);
        sem_wait(&last_may_go_on);
    }
    if (turn == ITEMS) {
        end(paths.turn);
        sem_post(&last_may_go_on);
        sem_post(&turned);
    }
    return pyper_emit(worker, item);
}

/* A task with join: it pulls. */
static int pull_all(pyper_worker *worker, void *unused, void *bind) {
    sem_wait(&pushed);
    begin(paths.turn);
    long pulled = 0;
    for (void *item; pyper_pull(worker, &item) > 0;)
        if (++pulled == ITEMS) end(paths.turn);
    sem_post(&turned);
    return pyper_emit(worker, (void *)pulled);
}

/* Run the pipeline, and count the paths that have a name. */
static void count(pyper_pipeline *p, struct paths counted, long outputs) {
    paths = counted;
    turns = 0;
    sem_init(&pushed, 0, 0);
    sem_init(&turned, 0, 0);
    sem_init(&first_may_go_on, 0, 0);
    sem_init(&last_may_go_on, 0, 0);
    pyper_run *run = pyper_start(p, NULL);
    sem_wait(&turned);
    sem_post(&first_may_go_on);
    begin(paths.pop);
    long taken = 0;
    for (void *item; pyper_next(run, &item) > 0;)
        if (++taken == outputs) end(paths.pop);
    if (pyper_failed(run) || taken != outputs) abort();
    pyper_close(run);
    pyper_unref(p);
}

int main(void) {
    count(pyper_pipe(pyper_task(source, .branch = true), pyper_task(pass)),
          (struct paths){"push", "turn", "pop by the caller", false}, ITEMS);
    count(pyper_pipe(pyper_task(source, .branch = true, .throttle = ITEMS),
                     pyper_task(pass, .throttle = ITEMS)),
          (struct paths){"push, bounded", "turn, bounded", "pop by the caller, bounded", false},
          ITEMS);
    count(pyper_pipe(pyper_task(source, .branch = true), pyper_task(pass, .workers = 2)),
          (struct paths){NULL, "turn, one of two workers", NULL, true}, ITEMS);
    count(pyper_pipe(pyper_task(source, .branch = true), pyper_task(pull_all, .join = true)),
          (struct paths){NULL, "pull, in a join", NULL, false}, 1);
    /* The window of an order is as wide as its throttle. */
    emissions = ITEMS + 1;
    count(
        pyper_pipe(pyper_task(source, .branch = true),
                   pyper_task(pass_in_order, .workers = 2, .ordered = true, .throttle = 2 * ITEMS)),
        (struct paths){NULL, "turn and leaving, two workers, ordered",
                       "pop by the caller, two workers, ordered", true},
        ITEMS + 1);
    return 0;
}
