/* Each item is delivered or destroyed exactly once, whatever happens at whatever moment.  The items
 * themselves insist on "at most once", and the kit on "at least once" after each test.
 * Black-box: pyper.h only. */
#include "../kit.h"

EACH_HOST(all_delivered_when_all_goes_well) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 5, .type = &item_type),
                   pyper_task(pass, .workers = 3, .type = &item_type, .ordered = true),
                   pyper_task(pass, .workers = 3, .throttle = 2, .type = &item_type));
    pyper_run *run = START(p, PTR(1000));
    long count = 0, total = 0;
    int rc;
    for (void *out; (rc = pyper_next(run, &out)) > 0; count++) total += item_deliver(out);
    CHECK_EQ(rc, 0);
    CHECK_EQ(count, 1000);
    CHECK_EQ(total, 1000 * 999 / 2);
    CHECK_EQ(atomic_load(&items_destroyed), 0);
    close_both(run, p);
}

EACH_HOST(the_argument_is_delivered_or_destroyed) {
    for (int i = 0; i < 30; i++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(pass, .type = &item_type), pyper_task(pass, .type = &item_type));
        pyper_run *run = START(p, item_new(i), .type = &item_type);
        for (int k = 0; k < i % 4; k++) others();
        if (i % 2) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1);
            CHECK_EQ(item_deliver(out), i);
        }
        close_both(run, p);
    }
}

EACH_HOST(without_a_type_nothing_is_destroyed) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .type = NULL),
                   pyper_task(pass, .type = &(pyper_item_type){.size = sizeof item_type}));
    pyper_run *run = START(p, PTR(50));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    void *out;
    for (long i = 0; i < 25; i++) {
        CHECK_EQ(pyper_next(run, &out), 1);
        CHECK_EQ(item_deliver(out), i);
    }
    close_both(run, p);
    CHECK_EQ(atomic_load(&items_destroyed), 0);
    CHECK_EQ(atomic_load(&items_live), 25);
    for (item *i = atomic_load(&kit_items); i; i = i->next)
        if (atomic_load(&i->state) == ITEM_LIVE) item_deliver(i);
}

/* Each task has a type of its own: an item is destroyed as an output of the task that emitted
 * it. */
typedef struct typed {
    int owner;
} typed;
static _Atomic long destroyed_by[3], made_by[3];

static void destroy_typed(void *memory, int owner) {
    typed *t = memory;
    CHECK_EQ(t->owner, owner);
    free(t);
    atomic_fetch_add(&destroyed_by[owner], 1);
}
static void destroy_0(void *item) {
    destroy_typed(item, 0);
}
static void destroy_1(void *item) {
    destroy_typed(item, 1);
}
static void destroy_2(void *item) {
    destroy_typed(item, 2);
}
static const pyper_item_type types[3] = {{.size = sizeof *types, .destroy = destroy_0},
                                         {.size = sizeof *types, .destroy = destroy_1},
                                         {.size = sizeof *types, .destroy = destroy_2}};

static typed *typed_new(int owner) {
    typed *t = malloc(sizeof *t);
    CHECK(t != NULL);
    t->owner = owner;
    atomic_fetch_add(&made_by[owner], 1);
    return t;
}

static int make_typed(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    destroy_0(item);
    while (pyper_emit(w, typed_new(1)) == 0) continue;
    return PYPER_ECANCELED;
}

static int retype(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    destroy_1(item);
    return pyper_emit(w, typed_new(2));
}

EACH_HOST(each_item_is_destroyed_as_what_it_is) {
    for (int i = 0; i < 20; i++) {
        pyper_pipeline *p = pyper_pipe(
            pyper_task(make_typed, .branch = true, .throttle = 10, .type = &types[1]),
            pyper_task(retype, .workers = 3, .throttle = 10, .type = &types[2], .ordered = i % 2));
        pyper_run *run = START(p, typed_new(0), .type = &types[0]);
        for (int k = 0; k < i; k++) others();
        close_both(run, p);
        for (int k = 0; k < 3; k++)
            CHECK_EQ(atomic_load(&made_by[k]), atomic_load(&destroyed_by[k]));
    }
}

/* -------------------------------------------------------------------------- Random moments */

typedef struct moment {
    _Atomic long left; /* calls until it happens */
    int what;          /* what the function then does */
} moment;
enum { NOTHING, FAIL, FAIL_WITH, CANCEL, KEEP_SILENT, EMIT_TWICE, HOW_MANY };

static int until_the_moment(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    moment *m = bind;
    if (atomic_fetch_sub(&m->left, 1) != 0) return pyper_emit(w, item);
    switch (m->what) {
    case FAIL:
        item_deliver(item);
        return pyper_fail(w, -1, "the moment has come");
    case FAIL_WITH:
        if (pyper_fail_with(w, -1, "the moment has come", item, item_destroy) == PYPER_ECANCELED)
            item_deliver(item);
        return PYPER_EFAILED;
    case CANCEL:
        pyper_cancel(pyper_worker_run(w));
        return pyper_emit(w, item);
    case KEEP_SILENT:
        item_deliver(item);
        return 0;
    case EMIT_TWICE:
        if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
        CHECK(pyper_emit(w, item_new(-1)) < 0);
        return 0;
    default:
        return pyper_emit(w, item);
    }
}

static int pass_pulled(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;)
        if (pyper_emit(w, x) < 0) return PYPER_ECANCELED;
    return rc;
}

static void once(uint64_t seed) {
    uint64_t state = seed;
    long n = random_below(&state, 300);
    moment m = {.what = (int)random_below(&state, HOW_MANY)};
    atomic_init(&m.left, random_below(&state, 300));
    int64_t throttle = random_below(&state, 6), workers = 1 + random_below(&state, 4);
    bool ordered = random_below(&state, 2);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .throttle = throttle, .type = &item_type),
                   pyper_task(until_the_moment, .workers = workers, .ordered = ordered, .bind = &m,
                              .throttle = random_below(&state, 4), .type = &item_type),
                   random_below(&state, 2)
                       ? pyper_task(pass, .workers = workers, .ordered = !ordered,
                                    .type = &item_type, .throttle = random_below(&state, 4))
                       : pyper_task(pass_pulled, .join = true, .branch = true, .workers = workers,
                                    .type = &item_type, .throttle = random_below(&state, 4)));
    pyper_run *run = START(p, PTR(n));
    long take = random_below(&state, 2) ? INT32_MAX : random_below(&state, 300);
    int rc = 1;
    for (void *out; take > 0 && (rc = pyper_next(run, &out)) > 0; take--) item_deliver(out);
    if (rc == 0) CHECK_EQ(pyper_failed(run), 0);
    if (rc < 0) CHECK(rc == PYPER_EFAILED || rc == PYPER_ECANCELED);
    CHECK_EQ(pyper_close(run), 0);
    pyper_unref(p);
    CHECK_EQ(atomic_load(&items_live), 0);
}

EACH_HOST(nothing_is_lost_at_random_moments) {
    uint64_t seed = (uint64_t)check_environment("PYPER_TEST_SEED", 20240);
    for (long i = 0; i < check_times(400); i++) once(seed + (uint64_t)i);
}
