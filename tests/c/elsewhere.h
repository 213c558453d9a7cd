/* elsewhere.h - what the tests of asynchronous tasks share: a place where their operations are
 * completed later, by threads of the test, and an event loop, which is poll(). */
#ifndef ELSEWHERE_H
#define ELSEWHERE_H

#include "kit.h"

#include <poll.h>

/* --------------------------------------------------------------- Where operations are completed */

/* An operation under way: what a network or a timer would have. */
typedef struct operation {
    struct operation *next;
    pyper_worker *worker;
    void *item;
} operation;

/* Some threads of the test that complete operations in the order of their arrival: but only as long
 * as at least `hold` are there (or `let` is set), so that a test can insist on how many are under
 * way at once. */
typedef struct elsewhere {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    operation *first, **last;
    long count, most, hold, completed, cancelled;
    long inside; /* threads that complete an operation at this moment */
    bool let, stop, lifo;
    void (*complete)(operation *op);
    thread threads[4];
    int thread_count;
} elsewhere;

static void elsewhere_lock(elsewhere *e) {
    bool mine = kit_detach();
    pthread_mutex_lock(&e->lock);
    pthread_mutex_unlock(&e->lock);
    kit_attach(mine);
    pthread_mutex_lock(&e->lock);
}

/* Each with its item plus one. */
KIT void complete_one(operation *op) {
    pyper_emit(op->worker, PTR(INT(op->item) + 1));
    pyper_done(op->worker, 0);
}

KIT operation *elsewhere_take(elsewhere *e) {
    bool mine = kit_detach();
    pthread_mutex_lock(&e->lock);
    while (!e->stop && (!e->first || (!e->let && e->count < e->hold)))
        pthread_cond_wait(&e->changed, &e->lock);
    operation *op = e->first;
    if (op) {
        e->first = op->next;
        if (!e->first) e->last = &e->first;
        e->count--;
        e->completed++;
        e->inside++;
    }
    pthread_mutex_unlock(&e->lock);
    kit_attach(mine);
    return op;
}

static void elsewhere_work(void *arg) {
    elsewhere *e = arg;
    for (operation *op; (op = elsewhere_take(e));) {
        e->complete(op);
        free(op);
        elsewhere_lock(e);
        e->inside--;
        pthread_cond_broadcast(&e->changed);
        pthread_mutex_unlock(&e->lock);
    }
}

/* Wait until nobody is inside pyper_done(): until then the run has its descriptor. */
KIT void elsewhere_rest(elsewhere *e) {
    bool mine = kit_detach();
    pthread_mutex_lock(&e->lock);
    while (e->inside > 0) pthread_cond_wait(&e->changed, &e->lock);
    pthread_mutex_unlock(&e->lock);
    kit_attach(mine);
}

KIT void elsewhere_begin(elsewhere *e, int threads, void (*complete)(operation *op)) {
    *e = (elsewhere){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    e->last = &e->first;
    e->let = true;
    e->complete = complete ? complete : complete_one;
    e->thread_count = threads;
    for (int i = 0; i < threads; i++) thread_start(&e->threads[i], elsewhere_work, e);
}

KIT void elsewhere_end(elsewhere *e) {
    elsewhere_lock(e);
    e->stop = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    for (int i = 0; i < e->thread_count; i++) thread_join(&e->threads[i]);
    CHECK(e->first == NULL);
}

KIT void elsewhere_let(elsewhere *e) {
    elsewhere_lock(e);
    e->let = true;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

KIT void elsewhere_put(elsewhere *e, operation *op) {
    elsewhere_lock(e);
    if (e->lifo) {
        op->next = e->first;
        e->first = op;
        if (!op->next) e->last = &op->next;
    } else {
        *e->last = op;
        e->last = &op->next;
    }
    if (++e->count > e->most) e->most = e->count;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

/* The function of a task: hand the operation over. */
KIT int begin(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    operation *op = malloc(sizeof *op);
    CHECK(op != NULL);
    *op = (operation){.worker = w, .item = item};
    *pyper_worker_state(w) = op;
    elsewhere_put(bind, op);
    return PYPER_PENDING;
}

/* The cancel of a task: complete it here and now. */
KIT void give_up(pyper_worker *w, void *bind) {
    kit_in_task(w);
    CHECK(pyper_cancelled(w));
    elsewhere *e = bind;
    elsewhere_lock(e);
    operation **link = &e->first;
    while (*link && *link != *pyper_worker_state(w)) link = &(*link)->next;
    operation *op = *link;
    if (op) {
        *link = op->next;
        if (!op->next) e->last = link;
        e->count--;
        e->cancelled++;
    }
    pthread_mutex_unlock(&e->lock);
    if (!op) return; /* it is being completed */
    free(op);
    pyper_done(w, PYPER_ECANCELED);
}

/* ------------------------------------------------------------------ An event loop of the user's */

KIT bool readable(int fd, int timeout_ms) {
    struct pollfd watched = {.fd = fd, .events = POLLIN};
    bool mine = kit_detach();
    int count = poll(&watched, 1, timeout_ms);
    kit_attach(mine);
    CHECK(count >= 0);
    return count == 1;
}

/* The whole loop of a program: wait, drive, take what is there. */
KIT int loop_take(pyper_run *run, void **ret_item) {
    for (;;) {
        int rc = pyper_try_next(run, ret_item);
        if (rc != PYPER_EAGAIN) return rc;
        CHECK(readable(pyper_fd(run), -1));
        CHECK_EQ(pyper_drive(run), 0);
    }
}

#endif /* ELSEWHERE_H */
