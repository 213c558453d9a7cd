/* kit.h - what the C tests of pyper share, on top of check.h.
 *
 *  - EACH_HOST(name) { ... }: a test that runs three times: with plain threads, with a fake host
 *    whose token is one mutex ("token"), and with one whose threads attach but exclude nobody
 *    ("free", as an interpreter without a lock).  Such a test starts its runs with START() and
 *    begins its functions with IN_TASK(w), which checks that the token is held.  The test itself
 *    runs with the token, as every caller of pyper.h must.
 *  - tally: a number that only grows, and that can be waited for: latch, gate and barrier in one.
 *  - item: a value that knows whether it has been delivered or destroyed, and insists on exactly
 *    one of them.  After each test none may be left.
 *  - all_asleep(): wait until every other thread of the process sleeps in the kernel.
 *
 * Whatever waits here gives the token up meanwhile, as code under an interpreter lock would.
 */
#ifndef KIT_H
#define KIT_H

#include "check.h"

#include "../random.h"

#include <pyper.h>
#include <stdatomic.h>

#define KIT CHECK_UNUSED static

/* ------------------------------------------------------------------------- The fake hosts */

enum { PLAIN, TOKEN, FREE };

/* One per run: what the library has done with its host. */
typedef struct kit_host {
    struct kit_host *next;
    _Atomic long started, joined, dropped, released;
    long fail_at; /* starting this thread (1 is the first) fails; 0: none does */
} kit_host;

typedef struct kit_carrier {
    pthread_t id;
    void (*entry)(void *);
    void *arg;
} kit_carrier;

static int kit_variant;
static pthread_mutex_t kit_token = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool kit_token_mine;
static _Thread_local long kit_detachments; /* of this thread, by the library */
static _Atomic(kit_host *) kit_hosts;

static void token_take(void) {
    CHECK(!kit_token_mine);
    if (kit_variant == TOKEN) pthread_mutex_lock(&kit_token);
    kit_token_mine = true;
}

static void token_give(void) {
    CHECK(kit_token_mine);
    kit_token_mine = false;
    if (kit_variant == TOKEN) pthread_mutex_unlock(&kit_token);
}

/* Around anything that waits; a thread without the token stays without. */
KIT bool kit_detach(void) {
    bool mine = kit_token_mine;
    if (mine) token_give();
    return mine;
}

KIT void kit_attach(bool mine) {
    if (mine) token_take();
}

static kit_host *kit_living(void *host_data) {
    kit_host *host = host_data;
    CHECK(host != NULL);
    CHECK_EQ(atomic_load(&host->released), 0);
    return host;
}

static int kit_detached(void *host_data, int (*call)(void *), void *arg) {
    (void)kit_living(host_data);
    kit_detachments++;
    token_give();
    int rc = call(arg);
    token_take();
    return rc;
}

static void *kit_carry(void *arg) {
    kit_carrier carrier = *(kit_carrier *)arg;
    free(arg);
    token_take();
    carrier.entry(carrier.arg);
    token_give();
    return NULL;
}

static int kit_start_thread(void *host_data, const char *name, void (*entry)(void *), void *arg,
                            void **ret_thread) {
    kit_host *host = kit_living(host_data);
    CHECK(kit_token_mine);
    CHECK(name && *name);
    if (host->fail_at == atomic_load(&host->started) + 1) return -1000;
    pthread_t *id = malloc(sizeof *id);
    kit_carrier *carrier = malloc(sizeof *carrier);
    CHECK(id && carrier);
    *carrier = (kit_carrier){.entry = entry, .arg = arg};
    CHECK_EQ(pthread_create(id, NULL, kit_carry, carrier), 0);
    atomic_fetch_add(&host->started, 1);
    *ret_thread = id;
    return 0;
}

static int kit_join_thread(void *host_data, void *thread) {
    kit_host *host = kit_living(host_data);
    token_give();
    CHECK_EQ(pthread_join(*(pthread_t *)thread, NULL), 0);
    token_take();
    free(thread);
    atomic_fetch_add(&host->joined, 1);
    return 0;
}

static void kit_drop_thread(void *host_data, void *thread) {
    kit_host *host = kit_living(host_data);
    CHECK(kit_token_mine);
    pthread_detach(*(pthread_t *)thread);
    free(thread);
    atomic_fetch_add(&host->dropped, 1);
}

static void kit_release(void *host_data, pyper_run *run) {
    CHECK(kit_token_mine);
    CHECK_EQ(atomic_fetch_add(&((kit_host *)host_data)->released, 1), 0);
}

#define KIT_HOST                                                                                   \
    .size = sizeof(pyper_host), .detached = kit_detached, .start_thread = kit_start_thread,        \
    .join_thread = kit_join_thread, .drop_thread = kit_drop_thread, .release = kit_release

static const pyper_host kit_token_host = {KIT_HOST, .exclusive = true};
static const pyper_host kit_free_host = {KIT_HOST, .exclusive = false};

/* A record for one run; it lives until the test is over. */
KIT kit_host *kit_host_new(void) {
    kit_host *host = calloc(1, sizeof *host);
    CHECK(host != NULL);
    host->next = atomic_load(&kit_hosts);
    while (!atomic_compare_exchange_weak(&kit_hosts, &host->next, host)) continue;
    return host;
}

KIT pyper_run *kit_start(const pyper_start_options *options) {
    pyper_start_options mine = *options;
    if (kit_variant != PLAIN && !mine.host) {
        mine.host = kit_variant == TOKEN ? &kit_token_host : &kit_free_host;
        mine.host_data = kit_host_new();
    }
    return pyper_start_from(&mine);
}

/* pyper_start(), with the host that this test runs under. */
#define START(...)                                                                                 \
    kit_start(&(const pyper_start_options){.size = sizeof(pyper_start_options),                    \
                                           .pipeline = __VA_ARGS__})

/* The first line of a task's function. */
KIT void kit_in_task(const pyper_worker *worker) {
    CHECK(worker != NULL);
    if (kit_variant == PLAIN) return;
    CHECK(kit_token_mine);
    (void)kit_living(pyper_worker_host_data(worker));
}
#define IN_TASK(worker)                                                                            \
    kit_in_task(worker);                                                                           \
    (void)item;                                                                                    \
    (void)bind

/* ------------------------------------------------------------------------- Waiting for events */

typedef struct tally {
    pthread_mutex_t lock;
    pthread_cond_t grown;
    long count;
} tally;
#define TALLY                                                                                      \
    { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 }

KIT long tally_add(tally *t, long n) {
    pthread_mutex_lock(&t->lock);
    long count = t->count += n;
    pthread_cond_broadcast(&t->grown);
    pthread_mutex_unlock(&t->lock);
    return count;
}

KIT long tally_count(tally *t) {
    return tally_add(t, 0);
}

KIT void tally_wait(tally *t, long at_least) {
    bool mine = kit_detach();
    pthread_mutex_lock(&t->lock);
    while (t->count < at_least) pthread_cond_wait(&t->grown, &t->lock);
    pthread_mutex_unlock(&t->lock);
    kit_attach(mine);
}

/* A gate that is open or not. */
KIT void gate_open(tally *t) {
    tally_add(t, 1);
}
KIT void gate_wait(tally *t) {
    tally_wait(t, 1);
}

/* Arrive, and wait until `width` have arrived (again and again, in rounds). */
KIT void barrier(tally *t, long width) {
    long place = tally_add(t, 1);
    tally_wait(t, (place + width - 1) / width * width);
}

/* Give the others a turn. */
KIT void others(void) {
    bool mine = kit_detach();
    sched_yield();
    kit_attach(mine);
}

/* The context switches of all other threads, or -1 if one of them does not sleep, or was not seen:
 * the list ends early when the thread that it has come to ends meanwhile. */
static long kit_switches(void) {
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) CHECK_FAIL("all_asleep() needs /proc");
    long sum = 0, seen = 0;
    for (struct dirent *entry; sum >= 0 && (entry = readdir(tasks));) {
        char path[300], line[200];
        if (entry->d_name[0] == '.') continue;
        seen++;
        if (strtol(entry->d_name, NULL, 10) == (long)gettid()) continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        FILE *status = fopen(path, "r");
        if (!status) continue; /* it has ended */
        while (fgets(line, sizeof line, status)) {
            char state;
            long switches;
            if (sscanf(line, "State: %c", &state) == 1 && state != 'S') sum = -1;
            if (sum >= 0 && (sscanf(line, "voluntary_ctxt_switches: %ld", &switches) == 1 ||
                             sscanf(line, "nonvoluntary_ctxt_switches: %ld", &switches) == 1))
                sum += switches;
            if (sum < 0) break;
        }
        fclose(status);
    }
    closedir(tasks);
    struct stat about;
    CHECK_EQ(stat("/proc/self/task", &about), 0);
    return seen == (long)about.st_nlink - 2 ? sum : -1;
}

/* Wait until every other thread sleeps: in two looks in a row all sleep and none has run between.
 * Returns the number of context switches they have had.  Keeps the token, if this thread has it. */
KIT long others_asleep(void) {
    for (;;) {
        long before = kit_switches();
        sched_yield();
        if (before >= 0 && kit_switches() == before) return before;
    }
}

/* The same, and the token may be had meanwhile. */
KIT long all_asleep(void) {
    bool mine = kit_detach();
    long switches = others_asleep();
    kit_attach(mine);
    return switches;
}

/* ------------------------------------------------------------------------------- Test threads */

typedef struct thread {
    pthread_t id;
    void (*run)(void *);
    void *arg;
} thread;

static void *kit_thread(void *arg) {
    thread *t = arg;
    token_take();
    t->run(t->arg);
    token_give();
    return NULL;
}

/* A thread of the test, known to the host: it runs with the token. */
KIT void thread_start(thread *t, void (*run)(void *), void *arg) {
    t->run = run;
    t->arg = arg;
    CHECK_EQ(pthread_create(&t->id, NULL, kit_thread, t), 0);
}

KIT void thread_join(thread *t) {
    bool mine = kit_detach();
    CHECK_EQ(pthread_join(t->id, NULL), 0);
    kit_attach(mine);
}

/* --------------------------------------------------------------------------------- Test items */

enum { ITEM_LIVE, ITEM_DELIVERED, ITEM_DESTROYED };

typedef struct item {
    struct item *next;
    _Atomic int state;
    long value;
} item;

static _Atomic(item *) kit_items;
static _Atomic long items_live, items_destroyed;

KIT void *item_new(long value) {
    item *i = malloc(sizeof *i);
    CHECK(i != NULL);
    i->value = value;
    atomic_init(&i->state, ITEM_LIVE);
    atomic_fetch_add(&items_live, 1);
    i->next = atomic_load(&kit_items);
    while (!atomic_compare_exchange_weak(&kit_items, &i->next, i)) continue;
    return i;
}

static void kit_item_end(item *i, int how) {
    CHECK(i != NULL);
    int state = atomic_exchange(&i->state, how);
    if (state != ITEM_LIVE)
        CHECK_FAIL("item %ld is %s, but has been %s before", i->value,
                   how == ITEM_DELIVERED ? "delivered" : "destroyed",
                   state == ITEM_DELIVERED ? "delivered" : "destroyed");
    atomic_fetch_sub(&items_live, 1);
}

/* The destroy function of items. */
KIT void item_destroy(void *i) {
    if (kit_variant != PLAIN) CHECK(kit_token_mine);
    kit_item_end(i, ITEM_DESTROYED);
    atomic_fetch_add(&items_destroyed, 1);
}

/* The item has reached its receiver; returns its value. */
KIT long item_deliver(void *i) {
    kit_item_end(i, ITEM_DELIVERED);
    return ((item *)i)->value;
}

KIT long item_value(void *i) {
    CHECK_EQ(atomic_load(&((item *)i)->state), ITEM_LIVE);
    return ((item *)i)->value;
}

CHECK_UNUSED static const pyper_item_type item_type = {.size = sizeof(pyper_item_type),
                                                       .destroy = item_destroy};

/* ------------------------------------------------------------------------ Functions for tasks */

#define INT(x) ((long)(intptr_t)(x))
#define PTR(x) ((void *)(intptr_t)(x))

/* Branch: 0, 1, ... argument - 1. */
KIT int count_up(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++)
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    return 0;
}

/* Branch: 0, 1, ... until told to stop. */
KIT int count_for_ever(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; pyper_emit(w, PTR(i)) >= 0; i++) continue;
    return PYPER_ECANCELED;
}

KIT int pass(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, item);
}

KIT int add_one(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, PTR(INT(item) + 1));
}

/* Join: the sum of what this worker has pulled. */
KIT int sum(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK(item == NULL);
    long total = 0;
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;) total += INT(x);
    return rc < 0 ? rc : pyper_emit(w, PTR(total));
}

/* Branch: as many fresh items as the argument says, or for ever if it is negative. */
KIT int make_items(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; INT(item) < 0 || i < INT(item); i++)
        if (pyper_emit(w, item_new(i)) < 0) return PYPER_ECANCELED;
    return 0;
}

/* ---------------------------------------------------------------------------- Reading a run */

#define NEXT_IS(run, value)                                                                        \
    do {                                                                                           \
        void *next_is = NULL;                                                                      \
        CHECK_EQ(pyper_next(run, &next_is), 1);                                                    \
        CHECK_EQ(INT(next_is), value);                                                             \
    } while (0)

/* The run answers `code` (0: it is at its end), again and again, and leaves the item alone. */
#define ENDS_WITH(run, code)                                                                       \
    do {                                                                                           \
        char ends_with;                                                                            \
        void *untouched = &ends_with;                                                              \
        CHECK_EQ(pyper_next(run, &untouched), code);                                               \
        CHECK_EQ(pyper_next_until(run, &untouched, PYPER_NOWAIT), code);                           \
        CHECK_EQ(pyper_next(run, &untouched), code);                                               \
        CHECK(untouched == &ends_with);                                                            \
    } while (0)

/* All workers have left: so the statistics say, also of those that could not be started. */
KIT void nobody_is_alive(pyper_run *run) {
    pyper_task_stats stats[8];
    size_t count = pyper_stats(run, stats, 8);
    CHECK_LE(count, 8);
    for (size_t i = 0; i < count; i++) CHECK_EQ(stats[i].alive, 0);
}

/* Take whatever comes; returns the code of the end. */
KIT int drain(pyper_run *run, long *ret_count, long *ret_sum) {
    long count = 0, sum_of = 0;
    int rc;
    for (void *out; (rc = pyper_next(run, &out)) > 0; count++) sum_of += INT(out);
    if (ret_count) *ret_count = count;
    if (ret_sum) *ret_sum = sum_of;
    return rc;
}

/* Three threads take the outputs, to the end, which is a good one: what they have got together. */
typedef struct kit_share {
    thread thread;
    pyper_run *run;
    long count, sum;
} kit_share;

static void kit_take_share(void *arg) {
    kit_share *share = arg;
    CHECK_EQ(drain(share->run, &share->count, &share->sum), 0);
}

KIT void drain_together(pyper_run *run, long *ret_count, long *ret_sum) {
    kit_share shares[3] = {{.run = run}, {.run = run}, {.run = run}};
    for (int i = 0; i < 3; i++) thread_start(&shares[i].thread, kit_take_share, &shares[i]);
    *ret_count = *ret_sum = 0;
    for (int i = 0; i < 3; i++) {
        thread_join(&shares[i].thread);
        *ret_count += shares[i].count;
        *ret_sum += shares[i].sum;
    }
}

KIT void close_both(pyper_run *run, pyper_pipeline *pipeline) {
    CHECK_EQ(pyper_close(run), 0);
    pyper_unref(pipeline);
}

/* ------------------------------------------------------------------- Around each test */

static const char *kit_variant_name(int variant) {
    return variant == TOKEN ? "token" : "free";
}

static void kit_before(int variant) {
    kit_variant = variant;
    token_take();
}

static void kit_after(void) {
    token_give();
}

/* Every item has had its end: forget them. */
static void kit_settle_items(void) {
    long left = atomic_load(&items_live);
    if (left != 0) CHECK_FAIL("%ld items were neither delivered nor destroyed", left);
    for (item *i = atomic_exchange(&kit_items, NULL), *next; i; i = next) {
        next = i->next;
        free(i);
    }
}

static void kit_settled(void) {
    kit_settle_items();
    for (kit_host *h = atomic_exchange(&kit_hosts, NULL), *next; h; h = next) {
        next = h->next;
        CHECK_EQ(atomic_load(&h->released), 1);
        CHECK_EQ(atomic_load(&h->started), atomic_load(&h->joined) + atomic_load(&h->dropped));
        free(h);
    }
}

__attribute__((constructor)) static void kit_hook(void) {
    check_hooks = (struct check_hooks){kit_variant_name, kit_before, kit_after, kit_settled};
}

#define EACH_HOST(test)                                                                            \
    static void test_##test(void);                                                                 \
    CHECK_REGISTER(test, 0)                                                                        \
    CHECK_REGISTER(test, 1)                                                                        \
    CHECK_REGISTER(test, 2)                                                                        \
    static void test_##test(void)

#endif /* KIT_H */
