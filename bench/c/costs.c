/* costs - what a pipeline costs beside its items, in one of several systems.
 *
 *     costs latency PERCENT SYSTEM   items, one a millisecond, through source -> f -> sink ->
 *                                    seconds from leaving the source to arriving, that percentile
 *     costs wake SYSTEM              items, one each 200 us -> seconds from giving an item to a
 *                                    sleeping consumer, on another processor, until it has it, the
 *     median costs wake-process SYSTEM      the same, and who gives the item is another process
 *     costs start SYSTEM             runs of three tasks and one item -> seconds a run
 *     costs idle SYSTEM              tenths of a second that three tasks wait for their source ->
 *                                    processor seconds that takes meanwhile
 *     costs memory SYSTEM            items that wait in a queue without a bound -> bytes each
 *     costs kept SYSTEM              the same -> bytes each that are still taken when all have left
 *     costs growth SYSTEM            items -> the cost of one among so many, as a multiple of the
 *                                    cost of one among a hundredth
 *     costs distance bare            hops -> seconds until a cache line that one processor has
 *                                    written is read by another that spins on it
 *
 * Systems: `pyper`; `futex`, the bare system call (latency, wake); `threads`, three bare threads
 * (start); `sleep`, nothing but a sleep (idle).
 * The number of rounds and the counts come on standard input (bench.h). */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <pyper.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

static double percent = 50;
static double *latencies; /* of the round */
static double pause_seconds;
static sem_t finished;

static void sleep_for(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
}

/* Without sleeping: the processor stays awake, and only the consumer sleeps. */
static void spin_for(double seconds) {
    double until = bench_now() + seconds;
    while (bench_now() < until) {
    }
}

static int64_t now_ns(void) {
    return (int64_t)(bench_now() * 1e9);
}

/* ------------------------------------------------------------------------- latency and wake */

static void (*wait_before_each)(double seconds);
static bool in_process; /* the source is one */

/* Who gives and who sleeps each stay on a processor of their own.  Else what is measured is where
 * the scheduler happens to put them: to wake a thread beside the one who gives takes a change of
 * threads, elsewhere a processor has to be woken, which takes some times as long. */
static bool apart;
static cpu_set_t allowed;

enum { GIVER, SLEEPER };

static void stay_on_own_processor(int who) {
    if (!apart || CPU_COUNT(&allowed) < 2) return;
    int processor = 0;
    for (int before = who;; processor++)
        if (CPU_ISSET(processor, &allowed) && before-- == 0) break;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(processor, &own);
    if (sched_setaffinity(0, sizeof own, &own) < 0) abort();
}

/* Its items are the times at which they were given away. */
static int clock_source(pyper_worker *worker, void *items, void *bind) {
    (void)bind;
    stay_on_own_processor(GIVER);
    for (intptr_t i = 0; i < (intptr_t)items; i++) {
        wait_before_each(pause_seconds);
        if (pyper_emit(worker, (void *)(intptr_t)now_ns()) < 0) return PYPER_ECANCELED;
    }
    return 0;
}

static int pass(pyper_worker *worker, void *item, void *bind) {
    (void)bind;
    return pyper_emit(worker, item);
}

static void finish(pyper_run *run) {
    if (pyper_failed(run)) bench_fail(pyper_error_message(run));
    pyper_close(run);
}

static void through_pyper(long items, int hops) {
    pyper_pipeline *p = pyper_task(clock_source, .branch = true, .multiprocess = in_process,
                                   .type = &pyper_type_int);
    for (int i = 1; i < hops; i++) p = pyper_pipe(p, pyper_task(pass));
    pyper_run *run = pyper_start(p, (void *)items, .type = &pyper_type_int);
    stay_on_own_processor(SLEEPER);
    long taken = 0;
    for (void *sent; pyper_next(run, &sent) > 0;)
        latencies[taken++] = (double)(now_ns() - (int64_t)(intptr_t)sent) * 1e-9;
    finish(run);
    pyper_unref(p);
    if (taken != items) bench_fail("items are missing");
}

/* A hand-over by the bare system call: one place, full while `word` is 1.  A consumer that is more
 * than a pause late is waited for without a system call of its own. */
struct place {
    _Atomic uint32_t word;
    int64_t item;
};

static struct place *places; /* two; all processes see them */

static int scope(void) {
    return in_process ? 0 : FUTEX_PRIVATE_FLAG;
}

static void give(struct place *place, int64_t item) {
    while (atomic_load(&place->word)) sched_yield();
    place->item = item;
    atomic_store(&place->word, 1);
    syscall(SYS_futex, &place->word, FUTEX_WAKE | scope(), 1, NULL, NULL, 0);
}

static int64_t take(struct place *place) {
    while (!atomic_load(&place->word))
        syscall(SYS_futex, &place->word, FUTEX_WAIT | scope(), 0, NULL, NULL, 0);
    int64_t item = place->item;
    atomic_store(&place->word, 0);
    return item;
}

static void *futex_source(void *items) {
    stay_on_own_processor(GIVER);
    for (intptr_t i = 0; i < (intptr_t)items; i++) {
        wait_before_each(pause_seconds);
        give(&places[0], now_ns());
    }
    return NULL;
}

static void *futex_pass(void *items) {
    for (intptr_t i = 0; i < (intptr_t)items; i++) give(&places[1], take(&places[0]));
    return NULL;
}

static void through_futex(long items, int hops) {
    pthread_t threads[2];
    pid_t source = 0;
    places =
        mmap(NULL, 2 * sizeof *places, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (places == MAP_FAILED) abort();
    if (in_process) {
        source = fork();
        if (source < 0) abort();
        if (source == 0) {
            futex_source((void *)items);
            _exit(0);
        }
    } else if (pthread_create(&threads[0], NULL, futex_source, (void *)items)) {
        abort();
    }
    if (hops > 1 && pthread_create(&threads[1], NULL, futex_pass, (void *)items)) abort();
    stay_on_own_processor(SLEEPER);
    for (long i = 0; i < items; i++) {
        int64_t sent = take(&places[hops - 1]);
        latencies[i] = (double)(now_ns() - sent) * 1e-9;
    }
    for (int i = in_process ? 1 : 0; i < hops; i++) pthread_join(threads[i], NULL);
    if (in_process && waitpid(source, NULL, 0) != source) abort();
    munmap(places, 2 * sizeof *places);
}

static double hops_round(long items, bool pyper, int hops) {
    latencies = malloc((size_t)items * sizeof *latencies);
    if (!latencies) abort();
    (pyper ? through_pyper : through_futex)(items, hops);
    double figure = bench_percentile(latencies, items, percent);
    free(latencies);
    return figure;
}

static double latency_round(long items, void *pyper) {
    wait_before_each = sleep_for;
    pause_seconds = 0.001;
    return hops_round(items, pyper != NULL, 2);
}

static double wake_round(long items, void *pyper) {
    wait_before_each = spin_for;
    pause_seconds = 0.0002;
    apart = true;
    if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) abort();
    double figure = hops_round(items, pyper != NULL, 1);
    if (sched_setaffinity(0, sizeof allowed, &allowed) < 0) abort();
    return figure;
}

/* -------------------------------------------------------------------------------------- start */

static void *nothing(void *arg) {
    return arg;
}

static void start_threads(void) {
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        if (pthread_create(&threads[i], NULL, nothing, NULL)) abort();
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
}

static void start_pyper(const pyper_pipeline *pipeline) {
    pyper_run *run = pyper_start((pyper_pipeline *)pipeline, (void *)1);
    long outputs = 0;
    for (void *x; pyper_next(run, &x) > 0;) outputs++;
    finish(run);
    if (outputs != 1) bench_fail("not one output");
}

static double start_round(long runs, void *pyper) {
    pyper_pipeline *p = pyper_pipe(pyper_task(pass), pyper_task(pass), pyper_task(pass));
    double started = bench_now();
    for (long i = 0; i < runs; i++) {
        if (pyper)
            start_pyper(p);
        else
            start_threads();
    }
    double seconds = bench_now() - started;
    pyper_unref(p);
    return seconds / (double)runs;
}

/* --------------------------------------------------------------------------------------- idle */

/* So long after an item all have gone to sleep. */
#define SETTLE_SECONDS 0.1

/* Processor seconds of this process while its caller sleeps. */
static double cpu_while_asleep(long tenths) {
    sleep_for(SETTLE_SECONDS);
    double before = bench_cpu();
    sleep_for((double)tenths / 10);
    return bench_cpu() - before;
}

static double idle_cpu;

static int slow_source(pyper_worker *worker, void *tenths, void *bind) {
    (void)bind;
    if (pyper_emit(worker, NULL) < 0) return PYPER_ECANCELED; /* all threads are there */
    idle_cpu = cpu_while_asleep((long)(intptr_t)tenths);
    return 0;
}

static double idle_round(long tenths, void *pyper) {
    if (!pyper) return cpu_while_asleep(tenths);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(slow_source, .branch = true), pyper_task(pass), pyper_task(pass));
    pyper_run *run = pyper_start(p, (void *)tenths);
    for (void *x; pyper_next(run, &x) > 0;) {
    }
    finish(run);
    pyper_unref(p);
    return idle_cpu;
}

/* ----------------------------------------------------------------------------- memory, growth */

static int source(pyper_worker *worker, void *items, void *bind) {
    (void)bind;
    for (intptr_t i = 0; i < (intptr_t)items; i++)
        if (pyper_emit(worker, (void *)i) < 0) return PYPER_ECANCELED;
    sem_post(&finished);
    return 0;
}

static double memory_round(long items, void *kept) {
    pyper_pipeline *p = pyper_task(source, .branch = true);
    sem_init(&finished, 0, 0);
    double before = bench_resident();
    pyper_run *run = pyper_start(p, (void *)items);
    sem_wait(&finished);
    double full = bench_resident();
    long taken = 0;
    for (void *x; pyper_next(run, &x) > 0;) taken++;
    double drained = bench_resident();
    finish(run);
    pyper_unref(p);
    if (taken != items) bench_fail("items are missing");
    return ((kept ? drained : full) - before) / (double)items;
}

/* Seconds an item through source -> f -> sink, no bound. */
static double cost_among(long items) {
    pyper_pipeline *p = pyper_pipe(pyper_task(source, .branch = true), pyper_task(pass));
    sem_init(&finished, 0, 0);
    double started = bench_now();
    pyper_run *run = pyper_start(p, (void *)items);
    long taken = 0;
    for (void *x; pyper_next(run, &x) > 0;) taken++;
    double seconds = bench_now() - started;
    finish(run);
    pyper_unref(p);
    if (taken != items) bench_fail("items are missing");
    return seconds / (double)items;
}

static double growth_round(long items, void *arg) {
    (void)arg;
    /* The few are run several times, so that one late wake-up does not decide. */
    double few = 0;
    for (int i = 0; i < 10; i++) few += cost_among(items / 100 > 0 ? items / 100 : 1) / 10;
    return cost_among(items) / few;
}

/* ----------------------------------------------------------------------------------- distance */

static _Alignas(128) _Atomic long ball; /* how often it has been hit; alone in its cache line */

/* Run on the `index`th processor that this thread may use. */
static void stay_on(int index) {
    cpu_set_t allowed, one;
    if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) abort();
    if (CPU_COUNT(&allowed) < 2) bench_fail("there is only one processor");
    int cpu = 0;
    for (; !CPU_ISSET(cpu, &allowed) || index-- > 0; cpu++) {
    }
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (pthread_setaffinity_np(pthread_self(), sizeof one, &one)) abort();
}

/* Hit the ball each time it has come, which is every other time. */
static void hit(long first, long hops) {
    for (long i = first; i < hops; i += 2) {
        while (atomic_load_explicit(&ball, memory_order_acquire) != i) {
        }
        atomic_store_explicit(&ball, i + 1, memory_order_release);
    }
}

static void *hit_back(void *hops) {
    stay_on(1);
    hit(1, (long)(intptr_t)hops);
    return NULL;
}

static void *play(void *figure) {
    long hops = (long)*(double *)figure;
    pthread_t other;
    atomic_store(&ball, -1);
    if (pthread_create(&other, NULL, hit_back, (void *)(intptr_t)hops)) abort();
    stay_on(0);
    double started = bench_now();
    atomic_store(&ball, 0);
    hit(0, hops);
    while (atomic_load(&ball) != hops) {
    }
    *(double *)figure = (bench_now() - started) / (double)hops;
    pthread_join(other, NULL);
    return NULL;
}

static double distance_round(long hops, void *arg) {
    (void)arg;
    double figure = (double)hops;
    pthread_t thread;
    if (pthread_create(&thread, NULL, play, &figure)) abort();
    pthread_join(thread, NULL);
    return figure;
}

/* --------------------------------------------------------------------------------------- main */

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "", *system = argv[argc - 1];
    void *pyper = strcmp(system, "pyper") == 0 ? &percent : NULL;
    void *kept = strcmp(what, "kept") == 0 ? &percent : NULL;
    if (strcmp(what, "latency") == 0 && argc == 4) {
        percent = atof(argv[2]);
        return bench_rounds(latency_round, pyper);
    }
    in_process = strcmp(what, "wake-process") == 0;
    if (in_process || strcmp(what, "wake") == 0) return bench_rounds(wake_round, pyper);
    if (strcmp(what, "start") == 0) return bench_rounds(start_round, pyper);
    if (strcmp(what, "idle") == 0) return bench_rounds(idle_round, pyper);
    if (kept || strcmp(what, "memory") == 0) return bench_rounds(memory_round, kept);
    if (strcmp(what, "growth") == 0) return bench_rounds(growth_round, NULL);
    if (strcmp(what, "distance") == 0) return bench_rounds(distance_round, NULL);
    bench_fail(
        "usage: costs latency|wake|wake-process|start|idle|memory|kept|growth|distance ... SYSTEM");
}
