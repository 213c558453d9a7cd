/* Whole runs, at random: a seed gives a chain of tasks (threads and asynchronous ones, branching,
 * joining, ordered or not), what the caller does (reads on, alone or with another thread; closes,
 * gives up, cancels from elsewhere), what goes wrong (a task fails, memory runs out, waits are
 * interrupted), whether there is a host with a token, and then every single choice of who goes on.
 *
 * A run that ends by itself has delivered what a plain loop would have, in that order where it is
 * promised; no other end is taken for that one; every item has been delivered or destroyed once; no
 * thread, no memory is left.  And it ends. */
#include <stdio.h>
#include <string.h>

#include "explorer.h"
#include "loop.h"

enum { PASS, DOUBLE, FILTER, JOIN, JOIN_SOME, ASYNC, KINDS };
enum { READ, READ_WITH_ANOTHER, CLOSE, CANCEL, GIVE_UP, FAIL, NO_MEMORY, ENDS };
enum { TASKS = 4, SOURCE = 12, ITEMS = 4000, OPERATIONS = 64, SLOTS = 16 };

typedef struct stage {
    int kind;
    int64_t workers, throttle;
    bool ordered;
    long until_failure; /* calls; negative: never */
} stage;

static struct {
    stage stages[TASKS];
    long tasks, source, take, end;
    int64_t source_throttle;
    const pyper_host *host;

    struct {
        long value;
        int state; /* 0 never made, 1 alive, 2 delivered or destroyed */
    } items[ITEMS];
    long made, gone;

    long got[ITEMS];
    long got_count;
    int answer; /* the last one of pyper_next() */

    int token;
    int releases;
    bool loop; /* the caller has an event loop of its own */

    /* Workers of asynchronous tasks as the host's coroutines: what each has in hand, and whether
     * it waits for something of its own. */
    struct slot {
        pyper_worker *worker;
        void *item;
        bool waiting;
    } slots[SLOTS];
    long slot_count;

    /* Operations under way, completed by a thread of their own. */
    struct {
        pyper_worker *worker;
        void *item;
    } operations[OPERATIONS];
    long operation_count;
    bool over;
    _Atomic uint32_t changed;

    pyper_run *run;
    int reader;
    bool reader_started;
} state;

void *const model_state = &state;
const size_t model_state_size = sizeof state;
const bool model_whole_runs = true;

/* ------------------------------------------------------------------------------------- the host */

typedef struct start {
    void (*entry)(void *arg);
    void *arg;
} start;

static void take_token(void) {
    if (state.host) model_lock(&state.token);
}
static void give_token(void) {
    if (state.host) model_unlock(&state.token);
}

static int detached(void *data, int (*call)(void *arg), void *arg) {
    give_token();
    int rc = call(arg);
    take_token();
    return rc;
}

static void thread_main(void *memory) {
    start begun = *(start *)memory;
    model_free(memory);
    take_token();
    begun.entry(begun.arg);
    give_token();
}

static int start_thread(void *data, const char *name, void (*entry)(void *arg), void *arg,
                        void **ret_thread) {
    start *memory = model_alloc(sizeof *memory);
    if (!memory) return PYPER_ENOMEM;
    *memory = (start){entry, arg};
    *ret_thread = (void *)(intptr_t)model_thread(name, thread_main, memory, 0);
    return 0;
}

static int join_thread(void *data, void *thread) {
    give_token();
    model_await_end_of((int)(intptr_t)thread);
    take_token();
    return 0;
}

static void drop_thread(void *data, void *thread) {}

static void release(void *data) {
    state.releases++;
}

static void go_on(struct slot *slot);

static struct slot *slot_of(const pyper_worker *worker) {
    for (long i = 0; i < state.slot_count; i++)
        if (state.slots[i].worker == worker) return &state.slots[i];
    MODEL_CHECK(false);
    return NULL;
}

static int start_slot(void *data, pyper_worker *worker) {
    MODEL_CHECK(state.slot_count < SLOTS);
    struct slot *slot = &state.slots[state.slot_count++];
    slot->worker = worker;
    go_on(slot);
    return 0;
}

static void resume_slot(void *data, pyper_worker *worker) {
    go_on(slot_of(worker));
}

static void resume_caller(void *data) {}

static void cancel_slot(void *data, pyper_worker *worker);

static const pyper_host host = {
    .size = sizeof host,
    .exclusive = true,
    .detached = detached,
    .interruptible = true,
    .start_thread = start_thread,
    .join_thread = join_thread,
    .drop_thread = drop_thread,
    .release = release,
};

static const pyper_host host_with_slots = {
    .size = sizeof host,
    .exclusive = true,
    .detached = detached,
    .interruptible = true,
    .start_thread = start_thread,
    .join_thread = join_thread,
    .drop_thread = drop_thread,
    .release = release,
    .start_slot = start_slot,
    .resume_slot = resume_slot,
    .cancel_slot = cancel_slot,
    .resume_caller = resume_caller,
};

/* ------------------------------------------------------------------------------------ the items */

static void *make(long value) {
    MODEL_CHECK(state.made < ITEMS - 1);
    long number = ++state.made;
    state.items[number].value = value;
    state.items[number].state = 1;
    return (void *)(intptr_t)number;
}

static long end(void *item) {
    long number = (intptr_t)item;
    MODEL_CHECK(number > 0 && number <= state.made && state.items[number].state == 1);
    state.items[number].state = 2;
    state.gone++;
    return state.items[number].value;
}

static void destroy(void *item) {
    end(item);
}
static const pyper_item_type type = {.size = sizeof type, .destroy = destroy};

/* ------------------------------------------------------------------------------------ the tasks */

static int make_items(pyper_worker *w, void *unused, void *bind) {
    for (long i = 0; i < state.source; i++) {
        int rc = pyper_emit(w, make(i));
        if (rc < 0) return rc;
    }
    return 0;
}

static bool fails(stage *s) {
    return s->until_failure >= 0 && s->until_failure-- == 0;
}

static int call(pyper_worker *w, void *item, void *bind) {
    stage *s = bind;
    if (fails(s)) {
        end(item);
        return pyper_fail(w, -1234, "as planned");
    }
    if (s->kind == PASS || s->kind == ASYNC || s->kind == JOIN || s->kind == JOIN_SOME)
        return pyper_emit(w, item);
    long value = end(item);
    if (s->kind == FILTER) return value % 3 ? pyper_emit(w, make(value)) : 0;
    int rc = pyper_emit(w, make(2 * value));
    return rc < 0 ? rc : pyper_emit(w, make(2 * value + 1));
}

static int pull_and_call(pyper_worker *w, void *unused, void *bind) {
    stage *s = bind;
    int rc = 1;
    void *item;
    for (long i = 0; rc > 0 && (s->kind == JOIN || i < 3); i++) {
        rc = pyper_pull(w, &item);
        if (rc > 0) {
            int bad = call(w, item, bind);
            if (bad < 0) return bad;
        }
    }
    return rc < 0 ? rc : 0;
}

static int begin_operation(pyper_worker *w, void *item, void *bind) {
    if (fails(bind)) {
        end(item);
        return pyper_fail(w, -1234, "as planned");
    }
    if (model_random(3) == 0) return pyper_emit(w, item);
    MODEL_CHECK(state.operation_count < OPERATIONS);
    state.operations[state.operation_count].worker = w;
    state.operations[state.operation_count++].item = item;
    state.changed++;
    model_wake(&state.changed, 1);
    return PYPER_PENDING;
}

static void complete(void *unused) {
    for (;;) {
        uint32_t seen = state.changed;
        if (state.operation_count == 0) {
            if (state.over) return;
            model_sleep(&state.changed, seen, false);
            continue;
        }
        long i = (long)model_random((uint64_t)state.operation_count);
        pyper_worker *worker = state.operations[i].worker;
        void *item = state.operations[i].item;
        state.operations[i] = state.operations[--state.operation_count];
        take_token();
        pyper_emit(worker, item);
        pyper_done(worker, 0);
        give_token();
    }
}

/* A coroutine of the host's goes on until it waits: for the library, or for something of its
 * own. */
static void go_on(struct slot *slot) {
    stage *s = pyper_worker_bind(slot->worker);
    for (;;) {
        int rc = 1;
        if (!slot->item) {
            rc = pyper_try_pull(slot->worker, &slot->item);
            if (rc == PYPER_EAGAIN) return;
            slot->waiting = rc > 0 && model_random(2);
            if (slot->waiting) return;
        }
        if (rc > 0 && fails(s)) {
            end(slot->item);
            rc = pyper_fail(slot->worker, -1234, "as planned");
        }
        if (rc > 0) {
            rc = pyper_try_emit(slot->worker, slot->item);
            if (rc == PYPER_EAGAIN) return;
            slot->item = NULL;
            if (rc == 0) continue;
        }
        pyper_slot_left(slot->worker);
        return;
    }
}

static void cancel_slot(void *data, pyper_worker *worker) {
    struct slot *slot = slot_of(worker);
    MODEL_CHECK(slot->waiting);
    slot->waiting = false;
    end(slot->item);
    pyper_slot_left(worker);
}

/* What some coroutine waits for has come. */
static bool anything_comes(void) {
    long waiting = 0, which = 0;
    for (long i = 0; i < state.slot_count; i++) waiting += state.slots[i].waiting;
    if (waiting == 0) return false;
    which = (long)model_random((uint64_t)waiting);
    struct slot *slot = state.slots;
    for (; which > 0 || !slot->waiting; slot++) which -= slot->waiting;
    slot->waiting = false;
    go_on(slot);
    return true;
}

static pyper_pipeline *build(void) {
    pyper_pipeline *p = pyper_task(make_items, .branch = true, .type = &type, .name = "source",
                                   .throttle = state.source_throttle);
    for (long i = 0; i < state.tasks; i++) {
        stage *s = &state.stages[i];
        bool joins = s->kind == JOIN || s->kind == JOIN_SOME;
        p = pyper_pipe(p, pyper_task(s->kind == ASYNC ? begin_operation
                                     : joins          ? pull_and_call
                                                      : call,
                                     .async = s->kind == ASYNC, .join = joins, .bind = s,
                                     .branch = joins || s->kind == DOUBLE || s->kind == FILTER,
                                     .type = &type, .workers = s->workers, .throttle = s->throttle,
                                     .ordered = s->ordered));
    }
    return p;
}

/* ----------------------------------------------------------------------------------- the caller */

static void expect(void) {
    static long now[ITEMS], next[ITEMS];
    long count = 0;
    bool in_order = true;
    for (; count < state.source; count++) now[count] = count;
    for (long i = 0; i < state.tasks; i++) {
        const stage *s = &state.stages[i];
        if (s->kind == JOIN_SOME) return;
        in_order = in_order && (s->workers == 1 || s->ordered);
        long made = 0;
        for (long k = 0; k < count; k++) {
            if (s->kind == DOUBLE) {
                next[made++] = 2 * now[k];
                next[made++] = 2 * now[k] + 1;
            } else if (s->kind != FILTER || now[k] % 3) {
                next[made++] = now[k];
            }
        }
        memcpy(now, next, (size_t)made * sizeof *now);
        count = made;
    }
    MODEL_CHECK(state.got_count == count);
    for (long i = 0; i < count; i++) {
        if (in_order && state.end != READ_WITH_ANOTHER) MODEL_CHECK(state.got[i] == now[i]);
        long want = 0, have = 0;
        for (long k = 0; k < count; k++) {
            want += now[k] == now[i];
            have += state.got[k] == now[i];
        }
        MODEL_CHECK(want == have);
    }
}

/* The event loop of the caller: its timers, and the descriptor of the run. */
static int wait_for_bell(void *bell) {
    return pyper__bell_await(bell, PYPER_FOREVER);
}
static int next_in_loop(void **ret_item) {
    int rc;
    while ((rc = pyper_try_next(state.run, ret_item)) == PYPER_EAGAIN) {
        if (model_random(2) && anything_comes()) continue;
        bool timers = false;
        for (long i = 0; i < state.slot_count; i++) timers = timers || state.slots[i].waiting;
        if (!timers) detached(NULL, wait_for_bell, state.run->loop->waker.bell);
        rc = pyper_drive(state.run);
        MODEL_CHECK(rc == 0);
    }
    return rc;
}

static int read_next(void) {
    void *item;
    int rc;
    if (state.loop) {
        rc = next_in_loop(&item);
        if (rc > 0) state.got[state.got_count++] = end(item);
        return rc;
    }
    /* A deadline passes, and an interruption comes, whenever it likes. */
    do rc = pyper_next_until(state.run, &item, model_random(4) ? PYPER_FOREVER : 1000);
    while (rc == PYPER_ETIMEDOUT || rc == PYPER_EINTR);
    if (rc > 0) state.got[state.got_count++] = end(item);
    return rc;
}

static void read_as_well(void *unused) {
    take_token();
    while (read_next() > 0) continue;
    give_token();
}

static void cancel_some_time(void *unused) {
    take_token();
    pyper_cancel(state.run);
    give_token();
}

static void close_run(void) {
    int rc;
    do rc = pyper_close(state.run);
    while (rc == PYPER_EINTR);
    MODEL_CHECK(rc == 0);
}

static void name_things(void) {
    char name[48];
    model_name(&state.token, sizeof state.token, "token");
    model_name(&state.run->done, 8, "done");
    model_name(&state.run->alive, sizeof state.run->alive, "alive");
    model_name(&state.run->gate, 8, "gate");
    if (state.run->loop) {
        pyper__loop *loop = state.run->loop;
        model_name(&loop->waker, sizeof loop->waker, "loop.waker");
        model_name(&loop->owner, sizeof loop->owner, "loop.owner");
        model_name(&loop->any_posts, sizeof loop->any_posts, "loop.any_posts");
    }
    for (size_t i = 0; state.run->queues && i <= state.run->count; i++) {
        pyper__queue *q = &state.run->queues[i];
        struct {
            const void *place;
            size_t size;
            const char *name;
        } const parts[] = {{&q->state, sizeof q->state, "state"},
                           {&q->items, 8, "items"},
                           {&q->places, 8, "places"},
                           {&q->tail, 8, "tail"},
                           {&q->head, 8, "head"},
                           {&q->given_back, 8, "given_back"},
                           {&q->push_lock, 4, "push_lock"},
                           {&q->pop_lock, 4, "pop_lock"}};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            snprintf(name, sizeof name, "queue%zu.%s", i, parts[k].name);
            model_name(parts[k].place, parts[k].size, name);
        }
    }
}

static void caller(void *unused) {
    take_token();
    pyper_pipeline *pipeline = build();
    bool built = pyper_pipeline_error(pipeline) == 0;
    MODEL_CHECK(built || state.end == NO_MEMORY);
    state.run = pyper_start(pipeline, NULL, .host = state.host, .loop = state.loop);
    pyper_unref(pipeline);
    name_things();
    int other = -1;
    if (state.end == READ_WITH_ANOTHER) other = model_thread("reader", read_as_well, NULL, 0);
    if (state.end == CANCEL) other = model_thread("canceller", cancel_some_time, NULL, 0);
    int rc = 1;
    while (!((state.end == CLOSE || state.end == GIVE_UP) && state.got_count >= state.take) &&
           (rc = read_next()) > 0)
        continue;
    if (other >= 0) {
        give_token();
        model_await_end_of(other);
        take_token();
    }
    state.answer = rc;
    if (rc == 0) expect();
    if (rc < 0)
        MODEL_CHECK((state.end == FAIL && rc == PYPER_EFAILED) ||
                    (state.end == CANCEL && rc == PYPER_ECANCELED) ||
                    (state.end == NO_MEMORY && rc == PYPER_ENOMEM));
    if (rc == 0) MODEL_CHECK(pyper_failed(state.run) == 0);
    if (state.end == GIVE_UP)
        pyper_run_unref(state.run);
    else
        close_run();
    give_token();
    state.over = true;
    state.changed++;
    model_wake(&state.changed, 1);
}

/* ------------------------------------------------------------------------------------ scenarios */

static void begin(void) {
    static const int64_t throttles[] = {0, 0, 1, 1, 2, 3, 5};
    state.tasks = (long)model_random(TASKS + 1);
    state.source = (long)model_random(SOURCE + 1);
    state.take = (long)model_random((uint64_t)state.source + 1);
    state.source_throttle = throttles[model_random(7)];
    state.end = (long)model_random(ENDS);
    state.loop = state.end != READ_WITH_ANOTHER && model_random(3) == 0;
    state.host = model_random(3) ? NULL : &host;
    if (state.loop && model_random(2)) state.host = &host_with_slots;
    for (long i = 0; i < state.tasks; i++) {
        stage *s = &state.stages[i];
        s->kind = (int)model_random(KINDS);
        if (s->kind == JOIN_SOME && model_random(3)) s->kind = PASS;
        s->workers = model_random(2) ? 1 : 1 + (int64_t)model_random(3);
        s->throttle = throttles[model_random(7)];
        s->ordered = model_random(2);
        if ((s->kind == JOIN || s->kind == JOIN_SOME) && s->workers > 1) s->ordered = false;
        s->until_failure = -1;
    }
    if (state.end == FAIL && state.tasks > 0)
        state.stages[model_random((uint64_t)state.tasks)].until_failure = (long)model_random(10);
    if (state.end != NO_MEMORY) model_fail_allocations(0);
    if (!state.host) model_interrupt(0);
    model_thread_local((void *)(uintptr_t)&pyper__worker_current, sizeof pyper__worker_current);
    model_thread("caller", caller, NULL, 0);
    model_thread("completer", complete, NULL, 0);
}

static void all_is_gone(void) {
    MODEL_CHECK(state.made == state.gone);
    MODEL_CHECK(state.token == 0);
    MODEL_CHECK(state.releases == (state.host ? 1 : 0));
}

const scenario scenarios[] = {
    {"whole_runs", begin, NULL, all_is_gone, 5, 0, 1},
    {NULL, NULL, NULL, NULL, 0, 0, 0},
};
