/* The host's callbacks.  Most tests of the other files run under the fake hosts of kit.h too; here
 * is what is about the hosts themselves: handing an exclusive token over, interruptions, threads
 * that cannot be started, and how often and in which order everything is called.
 * Black-box: pyper.h only. */
#include "../kit.h"

#include <sys/wait.h>
#include <unistd.h>

/* Start with a record of ours, to look at. */
static pyper_run *start_with(kit_host *record, const pyper_host *host, pyper_pipeline *p, void *arg,
                             const pyper_item_type *type) {
    return pyper_start(p, arg, .type = type, .host = host, .host_data = record);
}

static const pyper_host *this_host(void) {
    return kit_variant == FREE ? &kit_free_host : &kit_token_host;
}

/* Twice instead of three times: without the plain variant. */
#define BOTH_HOSTS(test)                                                                           \
    static void test_##test(void);                                                                 \
    CHECK_REGISTER(test, 1)                                                                        \
    CHECK_REGISTER(test, 2)                                                                        \
    static void test_##test(void)

BOTH_HOSTS(each_worker_has_a_thread_of_the_host) {
    kit_host *record = kit_host_new();
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 5));
    pyper_run *run = start_with(record, this_host(), p, PTR(100), NULL);
    CHECK_EQ(atomic_load(&record->started), 6);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100);
    CHECK_EQ(atomic_load(&record->joined), 6);
    CHECK_EQ(atomic_load(&record->dropped), 0);
    CHECK_EQ(atomic_load(&record->released), 0);
    pyper_run *mine = pyper_run_ref(run);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(atomic_load(&record->released), 0);
    pyper_run_unref(mine);
    CHECK_EQ(atomic_load(&record->released), 1);
    pyper_unref(p);
}

BOTH_HOSTS(threads_are_dropped_when_nobody_waits) {
    kit_host *record = kit_host_new();
    pyper_pipeline *p = pyper_task(count_for_ever, .branch = true, .throttle = 1);
    pyper_run *run = start_with(record, this_host(), p, NULL, NULL);
    pyper_unref(p);
    NEXT_IS(run, 0);
    pyper_run_unref(run);
    while (!atomic_load(&record->released)) others();
    CHECK_EQ(atomic_load(&record->joined), 0);
    CHECK_EQ(atomic_load(&record->dropped), 1);
}

BOTH_HOSTS(a_run_that_cannot_start_releases_its_host) {
    kit_host *record = kit_host_new();
    pyper_pipeline *p = pyper_task(NULL);
    pyper_run *run = start_with(record, this_host(), p, item_new(1), &item_type);
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_EQ(atomic_load(&record->started), 0);
    CHECK_EQ(atomic_load(&record->released), 0);
    close_both(run, p);
    CHECK_EQ(atomic_load(&record->released), 1);
}

/* The order of the last things: the payload, then bind (with the pipeline), then the host. */
static _Atomic long steps;
static void destroy_payload(void *payload) {
    CHECK(kit_token_mine);
    (void)payload;
    CHECK_EQ(atomic_fetch_add(&steps, 1), 0);
}
static void release_bind(void *bind) {
    CHECK(kit_token_mine);
    CHECK_EQ(atomic_load(&((kit_host *)bind)->released), 0);
    CHECK_EQ(atomic_fetch_add(&steps, 1), 1);
}

static int fail_with_payload(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_fail_with(w, -1, "with a payload", bind, destroy_payload);
}

BOTH_HOSTS(release_is_the_last_callback) {
    kit_host *record = kit_host_new();
    pyper_pipeline *p = pyper_task(fail_with_payload, .bind = record, .release = release_bind);
    pyper_run *run = start_with(record, this_host(), p, NULL, NULL);
    pyper_unref(p);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(atomic_load(&steps), 0);
    CHECK_EQ(pyper_close(run), 0);
    CHECK_EQ(atomic_load(&steps), 2);
    CHECK_EQ(atomic_load(&record->released), 1);
}

/* ---------------------------------------------------------------- Threads that do not start */

BOTH_HOSTS(a_thread_that_does_not_start_fails_the_run) {
    for (long k = 1; k <= 8; k++) {
        kit_host *record = kit_host_new();
        record->fail_at = k;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 2, .type = &item_type),
                       pyper_task(pass, .workers = 3, .type = &item_type, .ordered = k % 2),
                       pyper_task(pass, .workers = 3, .type = &item_type));
        pyper_run *run = start_with(record, this_host(), p, PTR(20), NULL);
        int rc, count = 0;
        for (void *out; (rc = pyper_next(run, &out)) > 0; count++) item_deliver(out);
        if (k == 8) { /* there are seven */
            CHECK_EQ(rc, 0);
            CHECK_EQ(count, 20);
        } else {
            CHECK_EQ(rc, PYPER_ETHREAD);
            ENDS_WITH(run, PYPER_ETHREAD);
            CHECK_EQ(pyper_failed(run), PYPER_ETHREAD);
            CHECK(*pyper_error_message(run));
            CHECK_EQ(atomic_load(&record->started), k - 1);
        }
        nobody_is_alive(run);
        close_both(run, p);
        CHECK_EQ(atomic_load(&record->released), 1);
    }
}

/* The argument has an owner all the same. */
BOTH_HOSTS(without_the_first_thread_the_argument_is_destroyed) {
    kit_host *record = kit_host_new();
    record->fail_at = 1;
    pyper_pipeline *p = pyper_task(pass, .type = &item_type);
    pyper_run *run = start_with(record, this_host(), p, item_new(1), &item_type);
    ENDS_WITH(run, PYPER_ETHREAD);
    close_both(run, p);
    CHECK_EQ(atomic_load(&items_destroyed), 1);
}

/* Given up, not closed. */
BOTH_HOSTS(a_run_with_a_missing_thread_can_be_given_up) {
    for (long k = 1; k <= 3; k++) {
        kit_host *record = kit_host_new();
        record->fail_at = k;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .throttle = 2, .type = &item_type),
                       pyper_task(pass, .workers = 2, .type = &item_type));
        pyper_run *run = start_with(record, this_host(), p, PTR(-1), NULL);
        pyper_unref(p);
        pyper_run_unref(run);
        while (!atomic_load(&record->released)) others();
    }
}

/* --------------------------------------------------------------------- Handing the token over */

/* The functions here never wait: they run until somebody else has got on.  With a token that is
 * never handed over, nobody else would, and the test would time out. */
static _Atomic bool somebody_got_on;

static int busy_until_somebody_got_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    while (!atomic_load(&somebody_got_on))
        if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    return 0;
}

static int get_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_store(&somebody_got_on, true);
    return 0;
}

EACH_HOST(a_busy_producer_lets_the_consumer_get_on) {
    pyper_pipeline *p = pyper_pipe(pyper_task(busy_until_somebody_got_on, .branch = true),
                                   pyper_task(get_on, .branch = true));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

EACH_HOST(a_busy_producer_lets_the_caller_get_on) {
    pyper_pipeline *p = pyper_task(busy_until_somebody_got_on, .branch = true);
    pyper_run *run = START(p, NULL);
    NEXT_IS(run, 0);
    atomic_store(&somebody_got_on, true);
    CHECK_EQ(drain(run, NULL, NULL), 0);
    close_both(run, p);
}

/* A consumer that always finds something to read, and a caller that waits for its sum: each of its
 * calls is an item. */
static tally filled = TALLY;
static int fill(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < 100; i++)
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    gate_open(&filled);
    /* The consumer emits for as long as it is not seen. */
    return busy_until_somebody_got_on(w, NULL, NULL);
}

EACH_HOST(busy_workers_in_a_row_let_the_caller_get_on) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(fill, .branch = true), pyper_task(pass, .workers = 3),
                   pyper_task(pass, .workers = 2, .ordered = true), pyper_task(pass));
    pyper_run *run = START(p, NULL);
    void *out;
    for (int i = 0; i < 500; i++) CHECK_EQ(pyper_next(run, &out), 1);
    atomic_store(&somebody_got_on, true);
    CHECK_EQ(drain(run, NULL, NULL), 0);
    close_both(run, p);
}

/* Also a busy reader of a long queue. */
static int read_until_somebody_got_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long count = 0;
    for (void *x; pyper_pull(w, &x) > 0;) count++;
    return count < 0 ? -1 : pyper_emit(w, PTR(count));
}

static int tell_once(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; !atomic_load(&somebody_got_on); i++)
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
    return 0;
}

static void get_on_later(void *arg) {
    gate_wait(arg);
    atomic_store(&somebody_got_on, true);
}

/* A busy run lets another run of the same process get on. */
EACH_HOST(a_busy_run_lets_another_run_get_on) {
    pyper_pipeline *busy = pyper_pipe(pyper_task(tell_once, .branch = true),
                                      pyper_task(read_until_somebody_got_on, .join = true));
    pyper_pipeline *quick = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 1),
                                       pyper_task(pass, .workers = 2, .throttle = 1));
    pyper_run *first = START(busy, NULL), *second = START(quick, PTR(50));
    tally done = TALLY;
    thread other;
    thread_start(&other, get_on_later, &done);
    long count;
    CHECK_EQ(drain(second, &count, NULL), 0);
    CHECK_EQ(count, 50);
    gate_open(&done);
    thread_join(&other);
    CHECK_EQ(drain(first, &count, NULL), 0);
    CHECK_EQ(count, 1);
    close_both(first, busy);
    close_both(second, quick);
}

/* A caller that reads a long queue without ever waiting lets the workers of another run get on. */
EACH_HOST(a_busy_caller_lets_workers_get_on) {
    pyper_pipeline *source = pyper_task(count_for_ever, .branch = true);
    pyper_pipeline *other = pyper_task(get_on, .branch = true);
    pyper_run *endless = START(source, NULL), *waits = START(other, NULL);
    while (!atomic_load(&somebody_got_on)) {
        void *out;
        CHECK_EQ(pyper_next(endless, &out), 1);
    }
    ENDS_WITH(waits, 0);
    close_both(endless, source);
    close_both(waits, other);
}

/* A worker that never waits, and wants nothing but its next input, lets a thread get on that the
 * library does not know. */
static tally reading = TALLY, source_may_end = TALLY;
static int keep_open(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(&source_may_end);
    return 0;
}

static int look_until_somebody_got_on(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_open(&reading);
    void *x;
    while (!atomic_load(&somebody_got_on))
        CHECK_EQ(pyper_pull_until(w, &x, PYPER_NOWAIT), PYPER_ETIMEDOUT);
    gate_open(&source_may_end);
    return 0;
}

static void take_the_token(void *arg) {
    (void)arg;
    gate_wait(&reading);
    for (int i = 0; i < 20; i++) {
        CHECK(kit_detach());
        kit_attach(true);
    }
    atomic_store(&somebody_got_on, true);
}

EACH_HOST(a_busy_worker_lets_an_unknown_thread_get_on) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(keep_open, .branch = true),
                   pyper_task(look_until_somebody_got_on, .join = true, .branch = true));
    thread other;
    thread_start(&other, take_the_token, NULL);
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, 0);
    close_both(run, p);
    thread_join(&other);
}

/* A function that gives the token up and sleeps has not held it: the library offers it to nobody.
 * Now and then a thread may look busy that was not, for the kernel counts what interrupts its
 * processor as its own time; taken for held, each of the 20 calls would be. */
static tally all_made = TALLY, all_slept = TALLY;
static int make_twenty(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < 20; i++) CHECK_EQ(pyper_emit(w, PTR(i)), 0);
    gate_open(&all_made);
    return 0;
}

static int sleep_without_the_token(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    static _Thread_local long before;
    if (item == PTR(0)) {
        gate_wait(&all_made);
        before = kit_detachments;
    }
    bool mine = kit_detach();
    struct timespec longer_than_a_hold = {.tv_nsec = 3000000};
    nanosleep(&longer_than_a_hold, NULL);
    kit_attach(mine);
    if (item == PTR(19)) {
        CHECK_LE(kit_detachments - before, 9);
        gate_open(&all_slept);
    }
    return pyper_emit(w, item);
}

EACH_HOST(a_function_that_sleeps_without_the_token_has_not_held_it) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(make_twenty, .branch = true), pyper_task(sleep_without_the_token));
    pyper_run *run = START(p, NULL);
    gate_wait(&all_slept);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 20);
    close_both(run, p);
}

/* Nor is it offered to anybody while nobody of the library wants it: not even to threads that
 * wanted it once, but could not be started, or are the parent's of this forked process.  Each try
 * computes for less time than the token is kept anyway, and may be unlucky with a processor that
 * others take. */
static tally tries = TALLY;
static _Atomic bool was_left_alone;
static int compute_alone(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long before = kit_detachments;
    for (int64_t end = pyper_now() + 1000000; pyper_now() < end;) CHECK_EQ(pyper_emit(w, item), 0);
    if (kit_detachments == before) atomic_store(&was_left_alone, true);
    tally_add(&tries, 1);
    return 0;
}

static bool a_worker_is_left_alone(void) {
    for (long i = 1; i <= 100 && !atomic_load(&was_left_alone); i++) {
        pyper_pipeline *p = pyper_task(compute_alone, .branch = true);
        pyper_run *run = START(p, NULL);
        tally_wait(&tries, i);
        close_both(run, p);
    }
    return atomic_load(&was_left_alone);
}

BOTH_HOSTS(a_thread_that_did_not_start_wants_no_token) {
    kit_host *record = kit_host_new();
    record->fail_at = 2;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 3));
    pyper_run *run = start_with(record, this_host(), p, PTR(10), NULL);
    ENDS_WITH(run, PYPER_ETHREAD);
    close_both(run, p);
    CHECK(a_worker_is_left_alone());
}

BOTH_HOSTS(threads_of_the_parent_want_no_token) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 3));
    pyper_run *run = START(p, PTR(10)); /* they begin when this thread waits */
    /* Not while one is being born: of its locks a sanitizer does not see to it that the child finds
     * them free. */
    others_asleep();
    fflush(NULL);
    /* ThreadSanitizer forbids such a child to start threads. */
    pid_t child = CHECK_TSAN ? 0 : fork();
    CHECK_GE(child, 0);
    if (child == 0 && !CHECK_TSAN) {
        alarm(check_seconds());
        _exit(a_worker_is_left_alone() ? 0 : 1);
    }
    int status = 0;
    if (child > 0) CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK_EQ(drain(run, NULL, NULL), 0);
    close_both(run, p);
}

/* Many destroy calls in a row: the token is free now and then here as well, and all are made. */
EACH_HOST(closing_a_long_queue) {
    pyper_pipeline *p = pyper_task(make_items, .branch = true, .type = &item_type);
    pyper_run *run = START(p, PTR(check_times(50000)));
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
    close_both(run, p);
    CHECK_EQ(atomic_load(&items_destroyed), check_times(50000));
}

/* ----------------------------------------------------------------------------- Interruptions */

static _Atomic long signals;
static void on_signal(int number) {
    (void)number;
    atomic_fetch_add(&signals, 1);
}

/* With SA_RESTART the system goes on with what it can, sleeping on a futex without a limit among
 * it; a wait of an interruptible host ends all the same. */
static int signal_flags = 0;

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = signal_flags};
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
}

typedef struct pest {
    pthread_t victim;
    _Atomic bool enough;
} pest;

/* Sends signals until told that it is enough: one of them comes while the victim waits. */
static void *send_signals(void *arg) {
    pest *p = arg;
    while (!atomic_load(&p->enough)) {
        pthread_kill(p->victim, SIGUSR1);
        sched_yield();
    }
    return NULL;
}

static pthread_t pest_start(pest *p) {
    catch_signals();
    p->victim = pthread_self();
    atomic_store(&p->enough, false);
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, send_signals, p), 0);
    return id;
}

static void pest_stop(pest *p, pthread_t id) {
    atomic_store(&p->enough, true);
    CHECK_EQ(pthread_join(id, NULL), 0);
}

static int wait_for_gate(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    gate_wait(bind);
    return pyper_emit(w, item);
}

/* A host that is interruptible, with or without a token. */
static pyper_host interruptible(void) {
    pyper_host host = *this_host();
    host.interruptible = true;
    return host;
}

static void is_interrupted(void) {
    pyper_host host = interruptible();
    tally gate = TALLY;
    pyper_pipeline *p = pyper_pipe(pyper_task(wait_for_gate, .bind = &gate, .type = &item_type),
                                   pyper_task(pass, .type = &item_type));
    pyper_run *run = start_with(kit_host_new(), &host, p, item_new(5), &item_type);
    pest signaller;
    void *out = &out;

    pthread_t id = pest_start(&signaller);
    CHECK_EQ(pyper_next(run, &out), PYPER_EINTR);
    CHECK_EQ(pyper_next_until(run, &out, PYPER_FOREVER - 1), PYPER_EINTR);
    CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), PYPER_EINTR);
    pest_stop(&signaller, id);
    CHECK(out == &out);

    /* The run is intact. */
    CHECK_EQ(pyper_failed(run), 0);
    gate_open(&gate);
    CHECK_EQ(pyper_next(run, &out), 1);
    CHECK_EQ(item_deliver(out), 5);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

BOTH_HOSTS(a_signal_interrupts_the_waits_of_an_interruptible_host) {
    is_interrupted();
}

BOTH_HOSTS(a_signal_interrupts_also_if_its_handler_restarts_system_calls) {
    signal_flags = SA_RESTART;
    is_interrupted();
}

BOTH_HOSTS(a_close_can_be_interrupted_and_repeated) {
    pyper_host host = interruptible();
    for (int again = 0; again < 2; again++) {
        tally gate = TALLY;
        kit_host *record = kit_host_new();
        pyper_pipeline *p = pyper_task(wait_for_gate, .bind = &gate, .type = &item_type);
        pyper_run *run = start_with(record, &host, p, item_new(5), &item_type);
        /* The function must have been called, else there is nothing to wait for. */
        all_asleep();
        pest signaller;
        pthread_t id = pest_start(&signaller);
        CHECK_EQ(pyper_close(run), PYPER_EINTR);
        CHECK_EQ(pyper_close(run), PYPER_EINTR);
        pest_stop(&signaller, id);
        gate_open(&gate);
        if (again)
            CHECK_EQ(pyper_close(run), 0);
        else
            pyper_run_unref(run);
        while (!atomic_load(&record->released)) others();
        pyper_unref(p);
    }
}

/* Elsewhere signals go by unnoticed. */
EACH_HOST(a_signal_does_not_end_the_waits_of_others) {
    tally gate = TALLY;
    pyper_pipeline *p = pyper_task(wait_for_gate, .bind = &gate);
    pyper_run *run = START(p, PTR(5));
    pest signaller;
    pthread_t id = pest_start(&signaller);
    void *out = NULL;
    for (int i = 0; i < 20; i++) {
        long before = atomic_load(&signals);
        CHECK_EQ(pyper_next_until(run, &out, pyper_now() + 5000000), PYPER_ETIMEDOUT);
        CHECK_EQ(pyper_wait_until(run, pyper_now() + 5000000), PYPER_ETIMEDOUT);
        while (atomic_load(&signals) == before) others();
    }
    pest_stop(&signaller, id);
    gate_open(&gate);
    NEXT_IS(run, 5);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* join_thread may be interrupted too: it is called again for the same thread. */
static _Atomic long refusals;
static int refuse_once_to_join(void *host_data, void *thread) {
    if (atomic_fetch_add(&refusals, 1) % 2 == 0) return PYPER_EINTR;
    return kit_join_thread(host_data, thread);
}

BOTH_HOSTS(joining_can_be_interrupted) {
    pyper_host host = interruptible();
    host.join_thread = refuse_once_to_join;
    kit_host *record = kit_host_new();
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass, .workers = 3));
    pyper_run *run = start_with(record, &host, p, PTR(10), NULL);
    void *out;
    int rc, interruptions = 0, count = 0;
    while ((rc = pyper_next(run, &out)) != 0) {
        if (rc > 0)
            count++;
        else {
            CHECK_EQ(rc, PYPER_EINTR);
            interruptions++;
        }
    }
    CHECK_EQ(count, 10);
    CHECK_EQ(interruptions, 4);
    CHECK_EQ(atomic_load(&record->joined), 4);
    close_both(run, p);
}

/* ------------------------------------------------------------------------ Hosts in part */

/* A host needs not give all callbacks. */
TEST(a_host_without_threads_of_its_own) {
    kit_host *record = kit_host_new();
    const pyper_host host = {.size = sizeof host, .release = kit_release};
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                                   pyper_task(pass, .workers = 3));
    /* Without the fake host the functions do not look at the token. */
    pyper_run *run = start_with(record, &host, p, PTR(100), NULL);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100);
    close_both(run, p);
    CHECK_EQ(atomic_load(&record->released), 1);
    CHECK_EQ(atomic_load(&record->started), 0);
}

static void run_with_plain_threads(const pyper_host *host) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true), pyper_task(pass));
    pyper_run *run = start_with(NULL, host, p, PTR(100), NULL);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100);
    close_both(run, p);
}

TEST(a_host_with_nothing_at_all) {
    const pyper_host host = {.size = sizeof host};
    run_with_plain_threads(&host);
}

/* A table is copied, as far as its size says. */
static int never_start(void *host_data, const char *name, void (*entry)(void *), void *arg,
                       void **ret_thread) {
    CHECK_FAIL("not a part of the table");
    return -1;
}

static void never_release(void *host_data, pyper_run *run) {
    CHECK_FAIL("not a part of the table");
}

TEST(a_host_with_a_shorter_table_has_nothing_beyond_it) {
    const pyper_host host = {.size = offsetof(pyper_host, start_thread),
                             .start_thread = never_start,
                             .release = never_release};
    run_with_plain_threads(&host);
}

BOTH_HOSTS(a_host_s_table_may_go_when_the_run_has_been_started) {
    kit_host *record = kit_host_new();
    pyper_host host = *this_host();
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                                   pyper_task(pass, .workers = 3, .ordered = true));
    pyper_run *run = start_with(record, &host, p, PTR(100), NULL);
    host = (pyper_host){0};
    for (long i = 0; i < 100; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    close_both(run, p);
    CHECK_EQ(atomic_load(&record->joined), 4);
    CHECK_EQ(atomic_load(&record->released), 1);
}

/* Threads of the host's, but no token. */
TEST(a_host_with_threads_but_no_token) {
    kit_host *record = kit_host_new();
    const pyper_host host = {.size = sizeof host,
                             .start_thread = kit_start_thread,
                             .join_thread = kit_join_thread,
                             .drop_thread = kit_drop_thread,
                             .release = kit_release};
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 2),
                                   pyper_task(pass, .workers = 3));
    pyper_run *run = start_with(record, &host, p, PTR(100), NULL);
    long count;
    CHECK_EQ(drain(run, &count, NULL), 0);
    CHECK_EQ(count, 100);
    close_both(run, p);
    CHECK_EQ(atomic_load(&record->joined), 4);
}

/* The name that the host gets is that of the task. */
static char names[4][200];
static _Atomic int named;
static int start_and_note(void *host_data, const char *name, void (*entry)(void *), void *arg,
                          void **ret_thread) {
    snprintf(names[atomic_fetch_add(&named, 1)], sizeof *names, "%s", name);
    return kit_start_thread(host_data, name, entry, arg, ret_thread);
}

BOTH_HOSTS(threads_are_called_after_their_task) {
    pyper_host host = *this_host();
    host.start_thread = start_and_note;
    pyper_pipeline *p = pyper_pipe(pyper_task(pass, .name = "list the files"),
                                   pyper_task(pass, .workers = 3, .name = "read them"));
    pyper_run *run = start_with(kit_host_new(), &host, p, PTR(1), NULL);
    NEXT_IS(run, 1);
    ENDS_WITH(run, 0);
    close_both(run, p);
    CHECK_EQ(atomic_load(&named), 4);
    CHECK_HAS(names[0], "list the files");
    for (int i = 1; i < 4; i++) {
        CHECK_HAS(names[i], "read them");
        for (int k = i + 1; k < 4; k++) CHECK(strcmp(names[i], names[k]) != 0);
    }
}

/* Plain threads have names too, as far as the system takes them. */
#if defined(__linux__)
static int name_of_thread(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    char name[32];
    CHECK_EQ(pthread_getname_np(pthread_self(), name, sizeof name), 0);
    CHECK_HAS(name, "read the file");
    return pyper_emit(w, item);
}

TEST(plain_threads_are_called_after_their_task) {
    pyper_pipeline *p = pyper_task(name_of_thread, .name = "read the files of a folder");
    pyper_run *run = START(p, PTR(1));
    NEXT_IS(run, 1);
    ENDS_WITH(run, 0);
    close_both(run, p);
}
#endif

/* Runs of both kinds of host side by side. */
TEST(runs_of_different_hosts_side_by_side) {
    const pyper_host host = {.size = sizeof host, .release = kit_release};
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, .throttle = 1),
                   pyper_task(add_one, .workers = 2, .throttle = 1, .ordered = true));
    pyper_run *plain = pyper_start(p, PTR(50));
    pyper_run *hosted = start_with(kit_host_new(), &host, p, PTR(50), NULL);
    for (long i = 0; i < 50; i++) {
        NEXT_IS(plain, i + 1);
        NEXT_IS(hosted, i + 1);
    }
    ENDS_WITH(plain, 0);
    ENDS_WITH(hosted, 0);
    CHECK_EQ(pyper_close(hosted), 0);
    close_both(plain, p);
}
