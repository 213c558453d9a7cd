/* Random pipelines of threads and asynchronous tasks, with operations completed by several threads
 * in random order; left at a random moment, or read to the end.  PYPER_TEST_SEED chooses the runs,
 * PYPER_TEST_ROUNDS how many. */
#include "../kit.h"

#include <poll.h>

/* Operations under way, taken out at random by the threads below. */
static struct pool {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct operation {
        pyper_worker *worker;
        void *item;
    } ops[256];
    int count;
    bool stop;
    uint64_t seed;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void pool_work(void *arg) {
    (void)arg;
    for (;;) {
        bool mine = kit_detach();
        pthread_mutex_lock(&pool.lock);
        while (!pool.stop && pool.count == 0) pthread_cond_wait(&pool.changed, &pool.lock);
        bool over = pool.count == 0;
        struct operation op = {0};
        if (!over) {
            long i = random_below(&pool.seed, pool.count);
            op = pool.ops[i];
            pool.ops[i] = pool.ops[--pool.count];
        }
        pthread_mutex_unlock(&pool.lock);
        kit_attach(mine);
        if (over) return;
        pyper_emit(op.worker, op.item);
        pyper_done(op.worker, 0);
    }
}

/* Some calls complete at once, some elsewhere. */
static int later(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (item_value(item) % 5 == 0) return pyper_emit(w, item);
    pthread_mutex_lock(&pool.lock);
    CHECK(pool.count < 256);
    pool.ops[pool.count++] = (struct operation){w, item};
    pthread_cond_signal(&pool.changed);
    pthread_mutex_unlock(&pool.lock);
    return PYPER_PENDING;
}

static int take(pyper_run *run, bool loop, void **ret_item) {
    if (!loop) return pyper_next(run, ret_item);
    for (;;) {
        int rc = pyper_try_next(run, ret_item);
        if (rc != PYPER_EAGAIN) return rc;
        struct pollfd watched = {.fd = pyper_fd(run), .events = POLLIN};
        bool mine = kit_detach();
        CHECK_EQ(poll(&watched, 1, -1), 1);
        kit_attach(mine);
        CHECK_EQ(pyper_drive(run), 0);
    }
}

static void one_run(uint64_t *seed) {
    long items = random_below(seed, 400), count = 1 + random_below(seed, 5);
    bool loop = random_below(seed, 2), ordered = random_below(seed, 2);
    bool leave = random_below(seed, 3) == 0, drop = leave && random_below(seed, 2);
    pyper_pipeline *p = pyper_task(make_items, .branch = true, .type = &item_type,
                                   .throttle = leave + random_below(seed, 4));
    for (long i = 0; i < count; i++) {
        bool async = random_below(seed, 3) > 0;
        int64_t throttle = leave + random_below(seed, 5), workers = 1 + random_below(seed, 6);
        p = pyper_pipe(p, pyper_task(async ? later : pass, .async = async, .workers = workers,
                                     .ordered = ordered, .throttle = throttle, .type = &item_type));
    }
    pyper_run *run = START(p, PTR(leave ? -1 : items), .loop = loop);
    long sum_of = 0, taken = 0;
    void *out;
    int rc = 1;
    while ((!leave || taken < items) && (rc = take(run, loop, &out)) > 0) {
        long value = item_deliver(out);
        if (ordered) CHECK_EQ(value, taken);
        sum_of += value;
        taken++;
    }
    if (!leave) {
        CHECK_EQ(rc, 0);
        CHECK_EQ(taken, items);
        CHECK_EQ(sum_of, items * (items - 1) / 2);
    }
    if (drop)
        pyper_run_unref(run);
    else
        CHECK_EQ(pyper_close(run), 0);
    pyper_unref(p);
}

EACH_HOST(random_async_pipelines) {
    uint64_t seed = (uint64_t)check_environment("PYPER_TEST_SEED", 1);
    long rounds = check_environment("PYPER_TEST_ROUNDS", check_times(150));
    pool.seed = seed;
    thread threads[3];
    for (int i = 0; i < 3; i++) thread_start(&threads[i], pool_work, NULL);
    for (long i = 0; i < rounds; i++) {
        one_run(&seed);
    }
    pthread_mutex_lock(&pool.lock);
    pool.stop = true;
    pthread_cond_broadcast(&pool.changed);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < 3; i++) thread_join(&threads[i]);
}

/* A thread of an operation's own that emits until it is told that it is over; whoever tells it ends
 * the operation, under the same lock. */
static struct stream {
    pthread_mutex_t lock;
    pyper_worker *worker;
    bool begun, over;
    thread thread;
} streams[3];

static bool emit_one(struct stream *s) {
    pthread_mutex_lock(&s->lock);
    bool over = s->over;
    if (!over) pyper_emit(s->worker, item_new(0));
    pthread_mutex_unlock(&s->lock);
    return !over;
}

static void keep_emitting(void *arg) {
    while (emit_one(arg)) continue;
}

static int begin_stream(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    struct stream *s = &streams[item_deliver(item)];
    s->worker = w;
    s->begun = true;
    s->over = false;
    *pyper_worker_state(w) = s;
    thread_start(&s->thread, keep_emitting, s);
    return PYPER_PENDING;
}

static void end_stream(pyper_worker *w, void *bind) {
    kit_in_task(w);
    struct stream *s = *pyper_worker_state(w);
    pthread_mutex_lock(&s->lock);
    s->over = true;
    pthread_mutex_unlock(&s->lock);
    pyper_done(w, PYPER_ECANCELED);
}

/* (kit_settled() finds what was not destroyed.) */
TEST(operations_that_are_fed_by_other_threads_can_be_cancelled) {
    for (int i = 0; i < 3; i++) pthread_mutex_init(&streams[i].lock, NULL);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_items, .branch = true, .type = &item_type),
                   pyper_task(begin_stream, .async = true, .branch = true, .workers = 3,
                              .cancel = end_stream, .type = &item_type));
    for (long i = 0, n = check_times(100); i < n; i++) {
        pyper_run *run = START(p, PTR(3));
        for (int k = 0; k < 30; k++) {
            void *out;
            CHECK_EQ(pyper_next(run, &out), 1);
            item_deliver(out);
        }
        CHECK_EQ(pyper_close(run), 0);
        for (int k = 0; k < 3; k++) {
            if (streams[k].begun) thread_join(&streams[k].thread);
            streams[k].begun = false;
        }
    }
    pyper_unref(p);
}

/* Each operation has a thread that emits until it is told that it is enough. */
static _Atomic bool enough;

static void emit_until_enough(void *worker) {
    while (!atomic_load(&enough)) pyper_emit(worker, PTR(1));
    pyper_done(worker, 0);
}

static int begin_flood(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    thread_start((thread *)bind + INT(item), emit_until_enough, w);
    return PYPER_PENDING;
}

TEST(outputs_reach_the_caller_while_other_threads_keep_emitting) {
    thread threads[4];
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true),
        pyper_task(begin_flood, .async = true, .branch = true, .workers = 4, .bind = threads));
    for (long i = 0, n = check_times(5); i < n; i++) {
        atomic_store(&enough, false);
        pyper_run *run = START(p, PTR(4));
        for (int k = 0; k < 10; k++) NEXT_IS(run, 1);
        atomic_store(&enough, true);
        CHECK_EQ(drain(run, NULL, NULL), 0);
        CHECK_EQ(pyper_close(run), 0);
        for (int k = 0; k < 4; k++) thread_join(&threads[k]);
    }
    pyper_unref(p);
}

/* Every eighth operation goes on until it is told that it is over. */
static int begin_some(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return INT(item) % 8 == 7 ? PYPER_PENDING : pyper_emit(w, item);
}

static void end_at_once(pyper_worker *w, void *bind) {
    kit_in_task(w);
    CHECK(pyper_cancelled(w));
    pyper_done(w, PYPER_ECANCELED);
}

typedef struct leaving {
    pyper_run *run;
    tally taken;
    long after; /* so many outputs */
} leaving;

static void cancel_after(void *arg) {
    leaving *l = arg;
    tally_wait(&l->taken, l->after);
    pyper_cancel(l->run);
}

/* Runs that are cancelled from another thread, each after some outputs. */
static void cancel_many(pyper_pipeline *p) {
    uint64_t seed = (uint64_t)check_environment("PYPER_TEST_SEED", 1);
    for (long i = 0, n = check_times(100); i < n; i++) {
        leaving l = {START(p), TALLY, random_below(&seed, 300)};
        thread other;
        thread_start(&other, cancel_after, &l);
        for (void *out; pyper_next(l.run, &out) > 0;) tally_add(&l.taken, 1);
        thread_join(&other);
        CHECK_EQ(pyper_close(l.run), 0);
    }
}

/* Stopping a run takes a while, the more tasks the longer, and its driver may look in between. */
TEST(operations_that_begin_while_a_run_is_being_cancelled_are_told_too) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 100),
                   pyper_task(begin_some, .async = true, .workers = 10000, .cancel = end_at_once));
    for (int i = 0; i < 30; i++) p = pyper_pipe(p, pyper_task(pass));
    cancel_many(p);
    pyper_unref(p);
}

/* Operations in memory of their own, which is freed when pyper_done() has returned: as pyper.h
 * says, whoever ends one takes it out of pyper_worker_state() before, under a lock that `cancel`
 * takes as well. */
typedef struct request {
    struct request *next;
    pyper_worker *worker;
    bool hurry;
} request;

static struct desk {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    request *first;
    bool stop;
} desk = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int make_request(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    request *r = calloc(1, sizeof *r);
    CHECK(r != NULL);
    r->worker = w;
    *pyper_worker_state(w) = r;
    pthread_mutex_lock(&desk.lock);
    r->next = desk.first;
    desk.first = r;
    pthread_cond_signal(&desk.changed);
    pthread_mutex_unlock(&desk.lock);
    return PYPER_PENDING;
}

static request *take_request(void) {
    pthread_mutex_lock(&desk.lock);
    while (!desk.stop && !desk.first) pthread_cond_wait(&desk.changed, &desk.lock);
    request *r = desk.first;
    if (r) {
        desk.first = r->next;
        *pyper_worker_state(r->worker) = NULL;
    }
    pthread_mutex_unlock(&desk.lock);
    return r;
}

static void answer_requests(void *arg) {
    (void)arg;
    for (request *r; (r = take_request());) {
        pyper_emit(r->worker, PTR(1));
        pyper_done(r->worker, 0);
        free(r);
    }
}

static void hurry(pyper_worker *w, void *bind) {
    kit_in_task(w);
    pthread_mutex_lock(&desk.lock);
    request *r = *pyper_worker_state(w);
    if (r) {
        CHECK(r->worker == w && !r->hurry);
        r->hurry = true;
    }
    pthread_mutex_unlock(&desk.lock);
}

TEST(operations_may_be_freed_when_they_are_done_while_the_run_is_being_cancelled) {
    thread threads[2];
    for (int i = 0; i < 2; i++) thread_start(&threads[i], answer_requests, NULL);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, .throttle = 100),
                   pyper_task(make_request, .async = true, .workers = 16, .cancel = hurry));
    cancel_many(p);
    pthread_mutex_lock(&desk.lock);
    desk.stop = true;
    pthread_cond_broadcast(&desk.changed);
    pthread_mutex_unlock(&desk.lock);
    for (int i = 0; i < 2; i++) thread_join(&threads[i]);
    pyper_unref(p);
}
