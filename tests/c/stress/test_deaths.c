/* Peers of a channel and workers of runs are killed at random moments.  PYPER_TEST_SEED repeats a
 * schedule (as far as the kernel allows), PYPER_TEST_KILLS says how many. */
#include "../kit.h"

#include "channel.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* Under a sanitizer a fork takes its time. */
#define SLOW (CHECK_TSAN || CHECK_ASAN)

static uint64_t seed(void) {
    uint64_t s = (uint64_t)check_environment("PYPER_TEST_SEED", (long)(pyper_now() & 0xffffff));
    fprintf(stderr, "PYPER_TEST_SEED=%llu\n", (unsigned long long)s);
    return s;
}

static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* Let a random number of instructions go by, up to 2^log2_most, few as often as many: the moment of
 * a kill is not to be a round one. */
static void linger(uint64_t *random, int log2_most) {
    volatile long n = random_below(random, 1 << random_below(random, log2_most));
    while (n > 0) n = n - 1;
}

/* ------------------------------------------------------------------------------- a channel */

#define PEERS 4
#define NUMBERS 20000000
#define LEAD 20000

/* What all peers share.  An item is a number: `pushed` and `popped` count how often. */
typedef struct party {
    pyper__shm *shm;
    pyper__channel channel;
    _Atomic long next, popped_by_anybody;
    _Atomic bool enough; /* the producers leave */
    _Atomic unsigned char *pushed, *popped;
} party;

static _Noreturn void producer(party *p, int64_t lane, uint64_t random) {
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    while (!atomic_load(&p->enough)) {
        /* Without a bound, too, nobody is so far ahead that the rest takes for ever to pop. */
        while (atomic_load(&p->next) - atomic_load(&p->popped_by_anybody) > LEAD &&
               !atomic_load(&p->enough))
            sched_yield();
        long number = atomic_fetch_add(&p->next, 1);
        CHECK(number < NUMBERS);
        uint64_t size = random_below(&random, 10) == 0 ? 600 + (uint64_t)random_below(&random, 9000)
                                                       : 8 + (uint64_t)random_below(&random, 100);
        pyper__record record;
        pyper__channel_wait wait;
        if (pyper__record_reserve(&p->channel, lane, &record, size) < 0) _exit(2);
        unsigned char *bytes = record.data;
        memset(bytes, (int)(number & 255), size);
        memcpy(bytes, &number, sizeof number);
        int rc;
        while ((rc = pyper__channel_try_push(&p->channel, lane, &record, 0, &wait)) == PYPER__AGAIN)
            pyper__channel_await(&wait, &seat);
        CHECK_EQ(rc, 0);
        atomic_fetch_add(&p->pushed[number], 1);
    }
    _exit(0);
}

/* Pop one item: 1, or what pop answers. */
static int pop_one(party *p, pyper__channel *channel, pyper__seat *seat, int64_t deadline_ns) {
    pyper__record record;
    int64_t ticket;
    int rc = pyper__channel_pop(channel, &record, &ticket, seat, deadline_ns, false);
    if (rc <= 0) return rc;
    long number;
    unsigned char *bytes = record.data;
    memcpy(&number, bytes, sizeof number);
    CHECK(number >= 0 && number < NUMBERS);
    for (uint64_t i = sizeof number; i < record.size; i++) CHECK_EQ(bytes[i], number & 255);
    pyper__channel_release(channel, &record);
    CHECK_EQ(atomic_fetch_add(&p->popped[number], 1), 0);
    atomic_fetch_add(&p->popped_by_anybody, 1);
    return 1;
}

static _Noreturn void consumer(party *p, int64_t hand) {
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    pyper__channel channel;
    pyper__channel_attach(&channel, p->shm, PYPER__SHM_FIRST, NULL, hand);
    while (pop_one(p, &channel, &seat, PYPER_FOREVER) > 0) continue;
    _exit(0);
}

static pid_t start_peer(party *p, int who, int64_t lane, uint64_t random) {
    pid_t pid = fork();
    CHECK_GE(pid, 0);
    if (pid > 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
    if (who < PEERS) producer(p, lane, random);
    consumer(p, who - PEERS);
}

/* Whoever dies, the others go on; what was pushed is popped once, but for what the dead held. */
TEST(a_channel_survives_its_peers) {
    uint64_t random = seed();
    static const int64_t throttles[] = {0, 1, 10, 1000};
    long kills = check_environment("PYPER_TEST_KILLS", SLOW ? 40 : 200);
    for (size_t t = 0; t < 4; t++) {
        party *p = shared(sizeof *p);
        p->pushed = shared(NUMBERS);
        p->popped = shared(NUMBERS);
        const pyper__channel_shape shape = {
            .throttle = throttles[t],
            .producers = 2 * PEERS + kills, /* nobody goes on in the lane of a dead one */
            .consumers = PEERS,
            .apart = true};
        CHECK_EQ(pyper__shm_create(pyper__channel_size(&shape), &p->shm), 0);
        CHECK_EQ(pyper__channel_init(&p->channel, p->shm, PYPER__SHM_FIRST, &shape), 0);
        pid_t pids[2 * PEERS];
        long dead[2] = {0, 0}; /* producers, consumers */
        int64_t lanes[2 * PEERS], next = 0;
        for (int i = 0; i < 2 * PEERS; i++) {
            lanes[i] = next++;
            pids[i] = start_peer(p, i, lanes[i], random_next(&random));
        }
        for (long k = 0; k < kills / 4; k++) {
            /* They have done something since the last death. */
            long before = atomic_load(&p->popped_by_anybody);
            while (atomic_load(&p->popped_by_anybody) < before + 20) sched_yield();
            linger(&random, 20);
            int victim = (int)random_below(&random, 2 * PEERS), status;
            CHECK_EQ(kill(pids[victim], SIGKILL), 0);
            CHECK_EQ(waitpid(pids[victim], &status, 0), pids[victim]);
            CHECK(WIFSIGNALED(status));
            dead[victim / PEERS]++;
            if (victim < PEERS) {
                pyper__channel_bury(&p->channel, lanes[victim]);
                lanes[victim] = next++;
            }
            pids[victim] = start_peer(p, victim, lanes[victim], random_next(&random));
        }
        atomic_store(&p->enough, true);
        for (int i = 0; i < 2 * PEERS; i++) {
            int status;
            if (i == PEERS) pyper__channel_set_state(&p->channel, PYPER__ENDED);
            CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
            CHECK_EQ(status, 0);
        }
        pyper__seat seat = {0};
        pyper__seat_init(&seat, NULL, NULL);
        CHECK_EQ(pop_one(p, &p->channel, &seat, PYPER_NOWAIT), 0);
        long lost = 0, unmarked = 0;
        for (long i = 0; i < atomic_load(&p->next); i++) {
            int pushed = atomic_load(&p->pushed[i]), popped = atomic_load(&p->popped[i]);
            CHECK_LE(popped, 1);
            lost += pushed == 1 && popped == 0;
            unmarked += pushed == 0 && popped == 1;
        }
        /* What a dead consumer had started, or was about to claim. */
        CHECK_LE(lost, dead[1] * PYPER__HAND_ITEMS);
        CHECK_LE(unmarked,
                 dead[0]); /* what a dead producer had pushed and could not note any more */
        pyper__shm_unref(p->shm);
        munmap((void *)p->pushed, NUMBERS);
        munmap((void *)p->popped, NUMBERS);
        munmap(p, sizeof *p);
    }
}

/* ------------------------------------------------------------------------------------- runs */

/* The workers' processes, by task and worker. */
static _Atomic long *pids;
#define PIDS 64

static int work(pyper_worker *w, void *item, void *bind) {
    atomic_store(&pids[pyper_worker_task(w) * 8 + (size_t)pyper_worker_index(w)], (long)getpid());
    return pyper_emit(w, item);
}

/* Branch: small and large blobs for ever. */
static int blobs(pyper_worker *w, void *item, void *bind) {
    (void)item;
    uint64_t random = (uint64_t)(uintptr_t)bind;
    for (long i = 0;; i++) {
        size_t size = random_below(&random, 20) == 0 ? 100000 : (size_t)random_below(&random, 1000);
        pyper_blob *blob = malloc(sizeof *blob + size);
        if (!blob) return PYPER_ENOMEM;
        blob->size = size;
        memset(blob->data, (int)(i & 255), size);
        if (pyper_emit(w, blob) < 0) return PYPER_ECANCELED;
    }
}

/* Join: one output for each input. */
static int relay(pyper_worker *w, void *item, void *bind) {
    atomic_store(&pids[pyper_worker_task(w) * 8 + (size_t)pyper_worker_index(w)], (long)getpid());
    int rc;
    for (void *x; (rc = pyper_pull(w, &x)) > 0;)
        if (pyper_emit(w, x) < 0) return PYPER_ECANCELED;
    return rc;
}

static long maps_of_ours(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[600];
    long count = 0;
    while (fgets(line, sizeof line, maps)) count += strstr(line, "memfd:pyper") != NULL;
    fclose(maps);
    return count;
}

static void nothing_is_left(void) {
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_EQ(errno, ECHILD);
    CHECK_EQ(maps_of_ours(), 0);
}

/* A random pipeline, a random victim, a random moment: always the right error, never a hang. */
static void kill_once(uint64_t *random) {
    memset((void *)pids, 0, PIDS * sizeof *pids);
    int64_t throttle = random_below(random, 2) ? random_below(random, 50) + 1 : 200;
    bool join = random_below(random, 4) == 0;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(blobs, .branch = true, .type = &pyper_type_blob, .throttle = throttle,
                   .bind = (void *)(uintptr_t)(random_next(random) | 1)),
        pyper_task(work, .type = &pyper_type_blob, .multiprocess = true, .throttle = throttle,
                   .workers = 1 + random_below(random, 4), .ordered = random_below(random, 2)),
        pyper_task(work, .type = &pyper_type_blob, .throttle = throttle,
                   .multiprocess = random_below(random, 2)),
        pyper_task(join ? relay : work, .branch = join, .join = join, .type = &pyper_type_blob,
                   .multiprocess = true, .throttle = throttle,
                   .workers = 1 + random_below(random, 3)));
    pyper_run *run = pyper_start(p, NULL);
    CHECK_EQ(pyper_failed(run), 0);
    void *out;
    int rc;
    for (long n = 1 + random_below(random, 200); n > 0; n--) {
        CHECK_EQ(pyper_next(run, &out), 1);
        free(out);
    }
    linger(random, 20);
    long victim = 0, place = 0;
    while (victim == 0 || victim == (long)getpid()) {
        place = random_below(random, PIDS);
        victim = atomic_load(&pids[place]);
    }
    CHECK_EQ(kill((pid_t)victim, SIGKILL), 0);
    while ((rc = pyper_next(run, &out)) > 0) free(out);
    CHECK_EQ(rc, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), -SIGKILL);
    CHECK_EQ(pyper_error_task(run), place / 8);
    char worker[40];
    snprintf(worker, sizeof worker, "worker %ld of", place % 8 + 1);
    CHECK_HAS(pyper_error_message(run), worker);
    close_both(run, p);
    nothing_is_left();
}

static void kill_again_and_again(long kills, void (*kill_one)(uint64_t *random)) {
    uint64_t random = seed();
    kills = check_environment("PYPER_TEST_KILLS", kills);
    pids = shared(PIDS * sizeof *pids);
    for (long i = 0; i < kills; i++) kill_one(&random);
    munmap((void *)pids, PIDS * sizeof *pids);
}

TEST(a_hundred_kills) {
    kill_again_and_again(SLOW ? 20 : 100, kill_once);
}

/* ---------------------------------------------------------------------------------- leaving */

#define RELAYS 3

/* Branch: no output, and none of the inputs of `relay` ends until *bind says so. */
static int end_later(pyper_worker *w, void *item, void *bind) {
    (void)item;
    _Atomic bool *may_end = bind;
    while (!atomic_load(may_end) && !pyper_cancelled(w)) sched_yield();
    return 0;
}

/* One of several processes that leave together is killed: whichever step of that it was at, the run
 * ends, well or with that death, and none of them is counted out twice. */
static void kill_while_they_leave(uint64_t *random) {
    memset((void *)pids, 0, PIDS * sizeof *pids);
    _Atomic bool may_end = false;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(end_later, .branch = true, .type = &pyper_type_blob, .bind = &may_end),
        pyper_task(relay, .branch = true, .join = true, .type = &pyper_type_blob,
                   .multiprocess = true, .workers = RELAYS));
    pyper_run *run = pyper_start(p, NULL);
    int victims[RELAYS];
    for (size_t k = 0; k < RELAYS; k++) {
        long pid;
        while ((pid = atomic_load(&pids[8 + k])) == 0) sched_yield();
        victims[k] = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
        CHECK_GE(victims[k], 0);
    }
    atomic_store(&may_end, true);
    /* The moment is one at which somebody has just left, or is about to. */
    long left = random_below(random, RELAYS + 1);
    for (pyper_task_stats stats[2]; left > 0;) {
        pyper_stats(run, stats, 2);
        if (stats[1].alive <= RELAYS - left) break;
    }
    linger(random, 12);
    int victim = victims[random_below(random, RELAYS)];
    if (syscall(SYS_pidfd_send_signal, victim, SIGKILL, NULL, 0) < 0) CHECK_EQ(errno, ESRCH);
    void *out;
    int rc = pyper_next(run, &out);
    if (rc != 0) CHECK_EQ(rc, PYPER_EDIED);
    nobody_is_alive(run);
    close_both(run, p);
    for (size_t k = 0; k < RELAYS; k++) close(victims[k]);
    nothing_is_left();
}

TEST(killed_while_they_leave) {
    kill_again_and_again(SLOW ? 100 : 200, kill_while_they_leave);
}
