/* The matrix: every end of a run, in every kind of run.
 *
 *     workers   threads, processes, operations on a loop, mixtures: a source, a middle, a last task
 *     shape     of the middle: plain, branch (two outputs each), join, nested (it runs a pipeline)
 *     throttle  of each task: 0 (none), 1, 1000
 *     crowd     workers of the middle: 1, 2, 64
 *     end       see below
 *     source    finite or endless
 *
 * Each cell is one run.  It must end within the hang guard, with the right code; each output that
 * was promised is delivered once (ids are counted, and are in order where each task has one
 * worker); each item is delivered or destroyed once, in whatever process it is (but for what a
 * process held that had to be killed); and then nothing is left: no thread, process, descriptor,
 * mapped memory, allocation of the library.
 *
 * The table is a full product of 7 236 cells, but for one thing: 64 processes take some 50 ms to
 * start and end.  Of the cells with processes and 64 workers there is a *cover* in place of the
 * product: a cell is left out if each pair of its settings stands in one before it.  That leaves 5
 * 719 cells, which take half a minute on two processors.  Under a sanitizer there is a cover of
 * everything.
 *
 *     PYPER_MATRIX=full (or cover)        all of it, some two minutes (or as under a sanitizer)
 *     PYPER_MATRIX_CELL=threads/join/...  only cells with this in their name (whatever else is set)
 *     PYPER_TEST_SEED                     of the random moments */
#include "../elsewhere.h"

#include "os.h"

#include <errno.h>
#include <sys/mman.h>

enum { PLAIN_SHAPE, BRANCH, JOIN, NESTED, SHAPES };
static const char *const shape_names[] = {"plain", "branch", "join", "nested"};

static const int64_t throttles[] = {0, 1, 1000};
static const int64_t crowds[] = {1, 2, 64};
enum { THROTTLES = 3, CROWDS = 3, SOURCES = 2 };

enum {
    NORMAL,       /* all is read */
    CLOSE,        /* after the first output */
    CLOSE_BESIDE, /* by another thread, at a random moment, while this one reads */
    DROP,         /* the last reference, after some outputs or none */
    FAIL_FIRST,   /* a task's function fails */
    FAIL_MIDDLE,
    FAIL_LAST,
    FAIL_CONSUMER, /* who reads has had enough: cancels, reads what it is told, closes */
    CANCEL,        /* by another thread, at a random moment, while this one reads */
    KILL,          /* a worker's process is killed inside of a call */
    CALLER_ENDS, /* the thread that started the run and read from it is no more; another goes on */
    FORK,        /* a child inherits the run, finds it dead, and exits */
    ENDS
};
static const char *const end_names[] = {
    "normal",    "close",         "close-beside", "drop", "fail-first",  "fail-middle",
    "fail-last", "fail-consumer", "cancel",       "kill", "caller-ends", "fork"};

/* The kinds of workers, of the three tasks. */
typedef struct kinds {
    const char *name;
    const char *of; /* 't'hread, 'p'rocess, 'a'sync */
} kinds;

typedef struct cell {
    const kinds *kinds;
    int shape, throttle, crowd, end;
    bool endless;
    char name[120];
} cell;

static bool has_processes(const cell *c) {
    return strchr(c->kinds->of, 'p') != NULL;
}

static bool has_operations(const cell *c) {
    return strchr(c->kinds->of, 'a') != NULL;
}

/* ------------------------------------------------------------------------- The run under way */

enum { FAULT_AT = 7, FINITE = 20, FINITE_NESTED = 10, CODE = 77 };

/* What the functions go by; set before the run is started. */
static struct plan {
    long count; /* of the source; negative: endless */
    int shape;
    long fault_stage; /* -1: none */
    bool fault_kills;
} plan;

static elsewhere place;
static tally released; /* the pipeline */

/* In memory that all processes share: items that were made, and that came to their end; inputs that
 * the source has made for the middle, and that this has begun with. */
typedef struct census {
    _Atomic long made, ended, sourced, begun;
} census;

static census *everywhere;
static _Atomic long here; /* in this process: made - ended */

/* ------------------------------------------------------------------------------------ items */

enum { ALIVE = 0x616c6976, DEAD = 0x64656164 };

typedef struct thing {
    _Atomic int state;
    long id;
} thing;

static void *thing_new(long id) {
    thing *t = malloc(sizeof *t);
    CHECK(t != NULL);
    atomic_init(&t->state, ALIVE);
    t->id = id;
    atomic_fetch_add(&everywhere->made, 1);
    atomic_fetch_add(&here, 1);
    return t;
}

static long thing_end(void *item) {
    thing *t = item;
    CHECK_EQ(atomic_exchange(&t->state, DEAD), ALIVE);
    long id = t->id;
    atomic_fetch_add(&everywhere->ended, 1);
    atomic_fetch_sub(&here, 1);
    free(t);
    return id;
}

static void thing_destroy(void *item) {
    thing_end(item);
}

static int thing_encode(void *item, pyper_transfer *to) {
    const thing *t = item;
    void *bytes = pyper_transfer_reserve(to, sizeof t->id);
    if (!bytes) return PYPER_ENOMEM;
    memcpy(bytes, &t->id, sizeof t->id);
    return 0;
}

static int thing_decode(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    (void)from;
    long id;
    CHECK_EQ(size, sizeof id);
    memcpy(&id, data, sizeof id);
    *ret_item = thing_new(id);
    return 0;
}

static const pyper_item_type thing_type = {.size = sizeof thing_type,
                                           .destroy = thing_destroy,
                                           .encode = thing_encode,
                                           .decode = thing_decode};

/* ------------------------------------------------------------------------------- functions */

/* 0, or the planned end of this call. */
static int fault(pyper_worker *w, long id) {
    if ((long)pyper_worker_task(w) != plan.fault_stage || id != FAULT_AT) return 0;
    if (!plan.fault_kills) return pyper_fail(w, CODE, "as planned");
    raise(SIGKILL);
    return 0;
}

/* Is the source far ahead?  An endless one is not to fill the memory, nor to keep all others from
 * the processor. */
static bool far_ahead(void) {
    long lead = atomic_load(&everywhere->sourced) - atomic_load(&everywhere->begun);
    return plan.count < 0 && lead > (plan.shape == NESTED ? 8 : 500);
}

static int source(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; plan.count < 0 || i < plan.count; i++) {
        int rc = fault(w, i);
        atomic_fetch_add(&everywhere->sourced, 1);
        if (rc == 0) rc = pyper_emit(w, thing_new(i));
        if (rc < 0) return rc;
        while (far_ahead() && !pyper_cancelled(w)) sched_yield();
    }
    return 0;
}

/* The two outputs of an input, or the one. */
static long outputs_of(long id, long ret_ids[2]) {
    bool two = plan.shape == BRANCH || plan.shape == NESTED;
    ret_ids[0] = two ? 2 * id : id;
    ret_ids[1] = 2 * id + 1;
    return two ? 2 : 1;
}

static long begin_with(void *item) {
    atomic_fetch_add(&everywhere->begun, 1);
    return thing_end(item);
}

/* Plain and branch. */
static int middle(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long id = begin_with(item), ids[2];
    int rc = fault(w, id);
    for (long i = 0; rc >= 0 && i < outputs_of(id, ids); i++) rc = pyper_emit(w, thing_new(ids[i]));
    return rc < 0 ? rc : 0;
}

static int join(pyper_worker *w, void *unused, void *bind) {
    (void)unused, (void)bind;
    int rc;
    for (void *item; (rc = pyper_pull(w, &item)) > 0;)
        if ((rc = middle(w, item, NULL)) < 0) break;
    return rc;
}

static int inner_source(pyper_worker *w, void *id, void *bind) {
    (void)bind;
    long ids[2];
    for (long i = 0; i < outputs_of(INT(id), ids); i++)
        if (pyper_emit(w, thing_new(ids[i])) < 0) return PYPER_ECANCELED;
    return 0;
}

static int inner_pass(pyper_worker *w, void *item, void *bind) {
    (void)bind;
    return pyper_emit(w, item);
}

static int nested(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long id = begin_with(item);
    int rc = fault(w, id);
    if (rc < 0) return rc;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(inner_source, .branch = true, .throttle = 1, .type = &thing_type),
                   pyper_task(inner_pass, .type = &thing_type));
    pyper_run *run = pyper_start(p, PTR(id));
    pyper_unref(p);
    for (void *x; (rc = pyper_next(run, &x)) > 0;)
        if ((rc = pyper_emit(w, x)) < 0) break;
    CHECK_EQ(pyper_close(run), 0);
    return rc < 0 ? rc : 0;
}

static int last(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc = fault(w, ((thing *)item)->id);
    if (rc == 0) return pyper_emit(w, item);
    thing_end(item);
    return rc;
}

/* The same as operations on a loop.  A slice of the source at a time: in between the operation
 * waits for room, or for somebody elsewhere who emits the next item. */
static int source_slice(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void **state = pyper_worker_state(w);
    for (long i = INT(*state); plan.count < 0 || i < plan.count; i++) {
        int rc = fault(w, i);
        if (rc < 0) return rc;
        *state = PTR(i + 1);
        atomic_fetch_add(&everywhere->sourced, 1);
        if (i % 16 == 15 || far_ahead()) {
            operation *op = malloc(sizeof *op);
            CHECK(op != NULL);
            *op = (operation){.worker = w, .item = thing_new(i)};
            elsewhere_put(&place, op);
            return PYPER_PENDING;
        }
        rc = pyper_emit(w, thing_new(i));
        if (rc < 0) return rc;
        if (rc == PYPER_KEPT) return PYPER_PENDING;
    }
    return 0;
}

/* Some operations are done at once, some elsewhere. */
static int last_later(pyper_worker *w, void *item, void *bind) {
    long id = ((thing *)item)->id;
    return id % 3 ? last(w, item, bind) : begin(w, item, &place);
}

static void complete(operation *op) {
    if (pyper_worker_task(op->worker) == 0) { /* the source's: it is resumed when this has left */
        int rc = pyper_emit(op->worker, op->item);
        if (rc < 0) pyper_done(op->worker, rc);
        return;
    }
    pyper_done(op->worker, last(op->worker, op->item, NULL));
}

static int join_later(pyper_worker *w, void *unused, void *bind) {
    (void)unused, (void)bind;
    int rc;
    for (void *item; (rc = pyper_try_pull(w, &item)) > 0;)
        if ((rc = middle(w, item, NULL)) < 0) return rc;
    return rc == PYPER_EAGAIN ? PYPER_PENDING : rc;
}

/* ------------------------------------------------------------------------------ the pipeline */

/* The pipeline is no more, and so nobody goes by the plan any more. */
static void release(void *bind) {
    (void)bind;
    gate_open(&released);
}

static pyper_pipeline *build(const cell *c) {
    const char *of = c->kinds->of;
    bool several = c->shape != PLAIN_SHAPE, joins = c->shape == JOIN;
    int64_t throttle = throttles[c->throttle];
    pyper_pipeline *p = pyper_pipe(
        pyper_task(of[0] == 'a' ? source_slice : source, .name = "source", .branch = true,
                   .throttle = throttle, .type = &thing_type, .multiprocess = of[0] == 'p',
                   .async = of[0] == 'a', .resume = of[0] == 'a' ? source_slice : NULL,
                   .release = release),
        pyper_task(joins                ? (of[1] == 'a' ? join_later : join)
                   : c->shape == NESTED ? nested
                                        : middle,
                   .name = "middle", .branch = several, .join = joins, .workers = crowds[c->crowd],
                   .throttle = throttle, .type = &thing_type, .multiprocess = of[1] == 'p',
                   .async = of[1] == 'a'),
        pyper_task(of[2] == 'a' ? last_later : last, .name = "last", .throttle = throttle,
                   .type = &thing_type, .multiprocess = of[2] == 'p', .async = of[2] == 'a'));
    CHECK_EQ(pyper_pipeline_error(p), 0);
    return p;
}

static void make_plan(const cell *c) {
    plan = (struct plan){.count = c->endless           ? -1
                                  : c->shape == NESTED ? FINITE_NESTED
                                                       : FINITE,
                         .shape = c->shape,
                         .fault_stage = -1};
    if (c->end >= FAIL_FIRST && c->end <= FAIL_LAST) plan.fault_stage = c->end - FAIL_FIRST;
    if (c->end != KILL) return;
    plan.fault_stage = strchr(c->kinds->of, 'p') - c->kinds->of;
    plan.fault_kills = true;
}

/* ---------------------------------------------------------------------------- what comes out */

static struct outputs { long *ids, count, capacity; } outputs;

/* Take one: what pyper_next() says. */
static int take(pyper_run *run) {
    void *item;
    int rc = pyper_next(run, &item);
    if (rc <= 0) return rc;
    if (outputs.count == outputs.capacity) {
        outputs.capacity = outputs.capacity ? 2 * outputs.capacity : 1024;
        outputs.ids = realloc(outputs.ids, (size_t)outputs.capacity * sizeof *outputs.ids);
        CHECK(outputs.ids != NULL);
    }
    outputs.ids[outputs.count++] = thing_end(item);
    return rc;
}

/* Up to n of them, or all (negative); what the last said. */
static int take_some(pyper_run *run, long n) {
    int rc = 1;
    for (; n != 0 && rc > 0; n--) rc = take(run);
    return rc;
}

static int ascending(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

/* No output came twice, and in their order where they have one; `all`: and none is missing. */
static void outputs_are_right(const cell *c, bool all) {
    if (c->crowd != 0 && outputs.count > 0)
        qsort(outputs.ids, (size_t)outputs.count, sizeof(long), ascending);
    for (long i = 1; i < outputs.count; i++) CHECK_LE(outputs.ids[i - 1] + 1, outputs.ids[i]);
    /* With one worker everywhere nothing is left out in between. */
    if (all || c->crowd == 0)
        for (long i = 0; i < outputs.count; i++) CHECK_EQ(outputs.ids[i], i);
    long ids[2];
    if (all) CHECK_EQ(outputs.count, plan.count * outputs_of(0, ids));
}

/* ---------------------------------------------------------------------------------- the ends */

typedef struct beside {
    pyper_run *run;
    bool close;
    long moment;
} beside;

static void end_beside(void *arg) {
    beside *b = arg;
    for (long n = b->moment; n > 0; n--) sched_yield();
    if (b->close)
        CHECK_EQ(pyper_close(b->run), 0);
    else
        pyper_cancel(b->run);
}

/* Another thread closes or cancels while this one reads. */
static void end_from_beside(const cell *c, pyper_run *run, uint64_t *random) {
    beside b = {run, c->end == CLOSE_BESIDE, random_below(random, 1 << random_below(random, 9))};
    thread other;
    if (b.close) pyper_run_ref(run);
    thread_start(&other, end_beside, &b);
    int rc = take_some(run, -1);
    CHECK(rc == PYPER_ECANCELED || (rc == 0 && !c->endless));
    outputs_are_right(c, rc == 0);
    thread_join(&other);
    CHECK_STR(pyper_error_message(run), "");
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_close(run), 0);
}

static void fails(const cell *c, pyper_run *run) {
    int expected = c->end == KILL ? PYPER_EDIED : PYPER_EFAILED;
    CHECK_EQ(take_some(run, -1), expected);
    ENDS_WITH(run, expected);
    outputs_are_right(c, false);
    CHECK_EQ(pyper_failed(run), expected);
    CHECK_EQ(pyper_error_code(run), c->end == KILL ? -SIGKILL : CODE);
    CHECK_EQ(pyper_error_task(run), plan.fault_stage);
    CHECK_HAS(pyper_error_message(run), c->end == KILL ? "was killed by signal" : "as planned");
    CHECK_EQ(pyper_close(run), 0);
}

/* To the end if there is one, and close. */
static void ends_well(const cell *c, pyper_run *run) {
    int rc = take_some(run, c->endless ? 40 : -1);
    CHECK_EQ(rc, c->endless ? 1 : 0);
    if (!c->endless) ENDS_WITH(run, 0);
    outputs_are_right(c, !c->endless);
    CHECK_STR(pyper_error_message(run), "");
    CHECK_EQ(pyper_close(run), 0);
}

typedef struct starter {
    pyper_pipeline *pipeline;
    pyper_run *run;
} starter;

static void start_and_take_one(void *arg) {
    starter *s = arg;
    s->run = START(s->pipeline, NULL, .type = &pyper_type_int);
    CHECK_EQ(take(s->run), 1);
}

static void inherit(pyper_run *run) {
    fflush(NULL);
    pid_t child = fork();
    CHECK_GE(child, 0);
    if (child == 0) {
        void *item;
        if (pyper_next(run, &item) != PYPER_EFORKED) _exit(2);
        if (pyper_wait_until(run, PYPER_FOREVER) != PYPER_EFORKED) _exit(3);
        pyper_cancel(run);
        if (pyper_close(run) != PYPER_EFORKED) _exit(4);
        _exit(0);
    }
    child_ends_well(child);
}

static void run_to_its_end(const cell *c, uint64_t *random) {
    pyper_pipeline *p = build(c);
    pyper_run *run = NULL;
    if (c->end == CALLER_ENDS) {
        starter s = {.pipeline = p};
        thread caller;
        thread_start(&caller, start_and_take_one, &s);
        thread_join(&caller);
        run = s.run;
    } else {
        run = START(p, NULL, .type = &pyper_type_int);
    }
    pyper_unref(p);
    switch (c->end) {
    case NORMAL:
    case CALLER_ENDS:
        ends_well(c, run);
        break;
    case CLOSE:
        CHECK_EQ(take(run), 1);
        CHECK_EQ(pyper_close(run), 0);
        break;
    case DROP:
        CHECK_EQ(take_some(run, random_below(random, 4)), 1);
        pyper_run_unref(run);
        break;
    case FAIL_FIRST:
    case FAIL_MIDDLE:
    case FAIL_LAST:
    case KILL:
        fails(c, run);
        break;
    case FAIL_CONSUMER:
        CHECK_EQ(take_some(run, 5), 1);
        pyper_cancel(run);
        ENDS_WITH(run, PYPER_ECANCELED);
        outputs_are_right(c, false);
        CHECK_EQ(pyper_close(run), 0);
        break;
    case FORK:
        CHECK_EQ(take_some(run, 3), 1);
        inherit(run);
        ends_well(c, run);
        break;
    default:
        end_from_beside(c, run, random);
    }
}

/* ------------------------------------------------------------------------- what must be gone */

static long maps_of_ours(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    char line[600];
    long count = 0;
    while (fgets(line, sizeof line, maps)) count += strstr(line, "memfd:pyper") != NULL;
    fclose(maps);
    return count;
}

/* A run that was dropped ends when it ends, and so may one whose operations are done elsewhere:
 * that thread may be the last to let go of it.  The hang guard is for whoever takes for ever. */
static void nothing_is_left(const cell *c, long threads, long descriptors) {
    if (c->end == DROP || has_operations(c)) {
        siginfo_t child;
        while (waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) == 0) sched_yield();
        while (atomic_load(&pyper__allocs_live) > 0) sched_yield();
        while (check_entries("/proc/self/fd") > descriptors) sched_yield();
    }
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_EQ(errno, ECHILD);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
    CHECK_EQ(atomic_load(&pyper__allocs_live), 0);
    /* The kernel takes its time with threads that have ended. */
    while (check_entries("/proc/self/task") > threads) sched_yield();
    CHECK_EQ(atomic_load(&here), 0);
    if (has_processes(c)) CHECK_EQ(maps_of_ours(), 0);
    long made = atomic_load(&everywhere->made), ended = atomic_load(&everywhere->ended);
    /* What a process held that was killed, or that was slow to leave when told to, is gone. */
    if (has_processes(c) && c->end != NORMAL)
        CHECK_LE(ended, made);
    else
        CHECK_EQ(ended, made);
}

/* --------------------------------------------------------------------------------- the table */

static uint64_t hash(const char *text) {
    uint64_t h = 14695981039346656037u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

static void run_cell(const cell *c, long threads, long descriptors) {
    alarm(check_seconds()); /* the hang guard, for each cell anew */
    CHECK_NOTE("PYPER_MATRIX_CELL=%s", c->name);
    uint64_t random = hash(c->name) ^ (uint64_t)check_environment("PYPER_TEST_SEED", 0);
    atomic_store(&everywhere->made, 0);
    atomic_store(&everywhere->ended, 0);
    atomic_store(&everywhere->sourced, 0);
    atomic_store(&everywhere->begun, 0);
    outputs.count = 0;
    released = (tally)TALLY;
    make_plan(c);
    run_to_its_end(c, &random);
    gate_wait(&released);
    nothing_is_left(c, threads, descriptors);
}

enum { SETTINGS = 5, VALUES = 12 };

/* Which pairs of settings have been shown. */
typedef struct cover {
    bool shown[SETTINGS][VALUES][SETTINGS][VALUES];
} cover;

/* Does the cell show a pair that was not shown before?  Then it is now. */
static bool is_news(cover *shown, const cell *c) {
    int values[SETTINGS] = {c->shape, c->throttle, c->crowd, c->end, c->endless};
    bool news = false;
    for (int a = 0; a < SETTINGS; a++)
        for (int b = 0; b < a; b++) {
            bool *pair = &shown->shown[a][values[a]][b][values[b]];
            news = news || !*pair;
            *pair = true;
        }
    return news;
}

static bool makes_sense(const cell *c) {
    if (c->end == NORMAL && c->endless) return false;
    return c->end != KILL || has_processes(c);
}

/* All cells of one kind of workers; the caller frees them. */
static cell *all_cells(const kinds *k, long *ret_count) {
    cell *cells = malloc(sizeof(cell) * SHAPES * THROTTLES * CROWDS * ENDS * SOURCES);
    CHECK(cells != NULL);
    long count = 0;
    for (int end = 0; end < ENDS; end++)
        for (int shape = 0; shape < SHAPES; shape++)
            for (int throttle = 0; throttle < THROTTLES; throttle++)
                for (int crowd = 0; crowd < CROWDS; crowd++)
                    for (int endless = 0; endless < SOURCES; endless++) {
                        cell c = {k, shape, throttle, crowd, end, endless, ""};
                        snprintf(c.name, sizeof c.name, "%s/%s/throttle-%ld/workers-%ld/%s/%s",
                                 k->name, shape_names[shape], (long)throttles[throttle],
                                 (long)crowds[crowd], end_names[end],
                                 endless ? "endless" : "finite");
                        if (makes_sense(&c)) cells[count++] = c;
                    }
    *ret_count = count;
    return cells;
}

/* In another order, the same each time. */
static void shuffle(cell *cells, long count, uint64_t seed) {
    for (long i = count - 1; i > 0; i--) {
        long k = random_below(&seed, i + 1);
        cell c = cells[i];
        cells[i] = cells[k];
        cells[k] = c;
    }
}

static void table(const kinds *k) {
    const char *only = getenv("PYPER_MATRIX_CELL"), *how = getenv("PYPER_MATRIX");
    if (!how) how = CHECK_TSAN || CHECK_ASAN ? "cover" : "";
    bool full = strcmp(how, "full") == 0, covered = strcmp(how, "cover") == 0;
    everywhere =
        mmap(NULL, sizeof *everywhere, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(everywhere != MAP_FAILED);
    elsewhere_begin(&place, 2, complete);
    long threads = check_entries("/proc/self/task"), descriptors = check_entries("/proc/self/fd");
    long count, ran = 0;
    cell *cells = all_cells(k, &count);
    shuffle(cells, count, hash(k->name));
    cover *shown = calloc(1, sizeof *shown);
    CHECK(shown != NULL);
    int64_t began = pyper_now();
    for (long i = 0; i < count; i++) {
        bool dear = has_processes(&cells[i]) && crowds[cells[i].crowd] > 2;
        bool news = is_news(shown, &cells[i]);
        bool wanted =
            only ? strstr(cells[i].name, only) != NULL : news || full || !(dear || covered);
        if (!wanted) continue;
        run_cell(&cells[i], threads, descriptors);
        ran++;
    }
    printf("        %s: %ld cells of %ld in %.1f s\n", k->name, ran, count,
           (double)(pyper_now() - began) / 1e9);
    free(shown);
    free(cells);
    free(outputs.ids);
    elsewhere_end(&place);
    munmap(everywhere, sizeof *everywhere);
}

#define KINDS(test, text, letters)                                                                 \
    TEST(test) {                                                                                   \
        table(&(const kinds){text, letters});                                                      \
    }

KINDS(threads, "threads", "ttt")
KINDS(processes, "processes", "ppp")
KINDS(operations, "operations", "aaa")
KINDS(threads_around_processes, "threads-processes-threads", "tpt")
KINDS(threads_around_operations, "threads-operations-threads", "tat")
KINDS(processes_around_operations, "processes-operations-processes", "pap")
KINDS(operations_around_processes, "operations-processes-operations", "apa")
KINDS(all_three, "threads-processes-operations", "tpa")
KINDS(all_three_the_other_way, "operations-threads-processes", "atp")
