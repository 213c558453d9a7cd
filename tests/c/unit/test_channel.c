/* The shared memory and the channel in it: records of all sizes, the bound, the order, states; with
 * threads as peers (for ThreadSanitizer) and with processes, which may die at any moment. */
#include "../kit.h"

#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

/* --------------------------------------------------------------------------- shared memory */

TEST(blocks_of_all_sizes_do_not_overlap_and_are_used_again) {
    pyper__shm *shm;
    CHECK_EQ(pyper__shm_create(100, &shm), 0);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t blocks[400], sizes[400];
    for (int round = 0; round < 2; round++) {
        for (uint64_t i = 0; i < 400; i++) {
            sizes[i] = 1 + i * i * 7 % 20011;
            blocks[i] = pyper__shm_alloc(shm, sizes[i]);
            CHECK(blocks[i] != 0);
            CHECK_EQ(blocks[i] % (sizes[i] > page ? page : 64), 0);
            memset(pyper__shm_at(shm, blocks[i]), (int)i, sizes[i]);
        }
        for (uint64_t i = 0; i < 400; i++) {
            unsigned char *bytes = pyper__shm_at(shm, blocks[i]);
            for (uint64_t k = 0; k < sizes[i]; k++) CHECK_EQ(bytes[k], i & 255);
        }
        for (uint64_t i = 0; i < 400; i++) pyper__shm_free(shm, blocks[i], sizes[i]);
    }
    uint64_t big = pyper__shm_alloc(shm, 5000000);
    pyper__shm_free(shm, big, 5000000);
    CHECK_EQ(pyper__shm_alloc(shm, 5000000), big);
    pyper__shm_unref(shm);
}

/* To keep it is to map its pages anew, and what else lay in them would be lost to the others.
 * Where pages are large it does not fill its last one. */
TEST(what_may_be_kept_has_its_pages_to_itself) {
    for (uint64_t page = 4096; page <= 262144; page *= 4) {
        pyper__shm *shm;
        atomic_store(&pyper__shm_page, page);
        CHECK_EQ(pyper__shm_create(100, &shm), 0);
        CHECK_EQ(shm->blocks % page, 0);
        uint64_t behind = shm->blocks;
        for (uint64_t i = 0; i < 40; i++) {
            uint64_t size = PYPER__SHM_KEEP_MIN + i * 5000;
            uint64_t block = pyper__shm_alloc(shm, size), other = pyper__shm_alloc(shm, 100);
            CHECK(block >= behind && other > block);
            CHECK_EQ(block % page, 0);
            CHECK(other / page > (block + size - 1) / page);
            behind = other + 100;
        }
        pyper__shm_unref(shm);
    }
    atomic_store(&pyper__shm_page, 0);
}

TEST(what_cannot_be_had_is_refused) {
    pyper__shm *shm;
    CHECK_EQ(pyper__shm_create(100, &shm), 0);
    CHECK_EQ(pyper__shm_alloc(shm, UINT64_MAX), 0);
    CHECK_EQ(pyper__shm_alloc(shm, shm->size), 0);
    CHECK(pyper__shm_alloc(shm, 100) != 0);
    pyper__shm_unref(shm);
}

/* How many signals come, each while memory is made: as Linux before 6.10 has it, such a call has
 * made nothing. */
static _Atomic int signals_to_come;

int fallocate(int fd, int mode, off_t offset, off_t size) {
    sigset_t blocked;
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &blocked), 0);
    if (!sigismember(&blocked, SIGPROF) && atomic_fetch_sub(&signals_to_come, 1) > 0) {
        errno = EINTR;
        return -1;
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, size);
}

TEST(memory_is_made_at_once_however_many_signals_come) {
    pyper__shm *shm;
    atomic_store(&signals_to_come, 1000);
    CHECK_EQ(pyper__shm_create(100, &shm), 0);
    CHECK(pyper__shm_alloc(shm, 50000000) != 0);
    CHECK_EQ(atomic_load(&signals_to_come), 1000);
    sigset_t blocked;
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &blocked), 0);
    CHECK(!sigismember(&blocked, SIGPROF));
    pyper__shm_unref(shm);
}

TEST(another_door_leads_to_the_same_memory) {
    pyper__shm *shm, *other;
    CHECK_EQ(pyper__shm_create(100, &shm), 0);
    uint64_t block = pyper__shm_alloc(shm, 10000);
    strcpy(pyper__shm_at(shm, block), "hello");
    CHECK_EQ(pyper__shm_attach(dup(shm->fd), &other), 0);
    CHECK(other->base != shm->base);
    CHECK_STR(pyper__shm_at(other, block), "hello");
    CHECK(pyper__shm_alloc(other, 10000) != block);
    pyper__shm_unref(shm);
    CHECK_STR(pyper__shm_at(other, block), "hello");
    pyper__shm_unref(other);
}

TEST(foreign_files_are_refused) {
    pyper__shm *shm;
    CHECK_EQ(pyper__shm_attach(-1, &shm), PYPER_EINVAL);
    int empty = memfd_create("empty", 0);
    CHECK_EQ(pyper__shm_attach(dup(empty), &shm), PYPER_EINVAL);
    CHECK_EQ(ftruncate(empty, 100000), 0);
    CHECK_EQ(pyper__shm_attach(empty, &shm), PYPER_EINVAL);
}

TEST(a_lock_outlives_its_owner) {
    pyper__shared_lock *lock =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK_EQ(pyper__shared_lock_init(lock), 0);
    CHECK(!pyper__shared_lock_take(lock));
    pyper__shared_lock_give(lock);
    pid_t pid = fork();
    if (pid == 0) {
        pyper__shared_lock_take(lock);
        _exit(0);
    }
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    CHECK(pyper__shared_lock_take(lock));
    pyper__shared_lock_give(lock);
    CHECK(!pyper__shared_lock_take(lock));
    pyper__shared_lock_give(lock);
    munmap(lock, 4096);
}

/* A lock, and how many processes have been on their way into it. */
typedef struct entrance {
    pyper__shared_lock lock;
    _Atomic long came;
} entrance;

static entrance *entrance_new(void) {
    entrance *e = mmap(NULL, sizeof *e, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(e != MAP_FAILED);
    CHECK_EQ(pyper__shared_lock_init(&e->lock), 0);
    return e;
}

static bool sleeps(pid_t pid) {
    char path[60], state = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *stat = fopen(path, "r");
    CHECK(stat != NULL);
    CHECK_EQ(fscanf(stat, "%*d (%*[^)]) %c", &state), 1);
    fclose(stat);
    return state == 'S';
}

/* A process that takes the lock and gives it back; its exit status is what the taking has said.  It
 * sleeps at the lock, which somebody has. */
static pid_t sleeper_at(entrance *e) {
    long came = atomic_load(&e->came);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
        atomic_fetch_add(&e->came, 1);
        bool died = pyper__shared_lock_take(&e->lock);
        pyper__shared_lock_give(&e->lock);
        _exit(died);
    }
    CHECK_GE(pid, 0);
    while (atomic_load(&e->came) == came || !sleeps(pid)) sched_yield();
    return pid;
}

static int exit_status_of(pid_t pid) {
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* Of two that sleep at a lock the first is woken, and before it runs somebody else takes the lock
 * and the woken one is killed: the second one has to get it all the same.  That the woken one does
 * not run is seen to by giving it what nobody else wants of the only processor. */
TEST(a_lock_forgets_nobody_when_who_was_woken_dies) {
    entrance *e = entrance_new();
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    CHECK_EQ(sched_setaffinity(0, sizeof here, &here), 0);
    for (int i = 0; i < 10; i++) {
        CHECK(!pyper__shared_lock_take(&e->lock));
        pid_t first = sleeper_at(e), second = sleeper_at(e);
        /* (Not by the C library: that of musl refuses it.) */
        CHECK_EQ(syscall(SYS_sched_setscheduler, first, SCHED_IDLE, &(struct sched_param){0}), 0);
        pyper__shared_lock_give(&e->lock);
        CHECK(!pyper__shared_lock_take(&e->lock));
        CHECK_EQ(kill(first, SIGKILL), 0);
        CHECK_EQ(waitpid(first, NULL, 0), first);
        pyper__shared_lock_give(&e->lock);
        CHECK_EQ(exit_status_of(second), 0);
    }
    munmap(e, sizeof *e);
}

/* The sleepers of a lock see by themselves that its owner has died; one of them is told. */
TEST(a_lock_whose_owner_dies_goes_to_those_who_sleep) {
    entrance *e = entrance_new();
    pid_t owner = fork();
    if (owner == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pyper__shared_lock_take(&e->lock);
        atomic_fetch_add(&e->came, 1);
        for (;;) pause();
    }
    CHECK_GE(owner, 0);
    while (atomic_load(&e->came) == 0) sched_yield();
    pid_t first = sleeper_at(e), second = sleeper_at(e);
    CHECK_EQ(kill(owner, SIGKILL), 0);
    CHECK_EQ(waitpid(owner, NULL, 0), owner);
    CHECK_EQ(exit_status_of(first) + exit_status_of(second), 1);
    munmap(e, sizeof *e);
}

/* And that it has given it back, though it has died before it could tell anybody. */
TEST(a_lock_goes_to_those_whom_nobody_wakes) {
    entrance *e = entrance_new();
    CHECK(!pyper__shared_lock_take(&e->lock));
    pid_t first = sleeper_at(e), second = sleeper_at(e);
    pthread_mutex_unlock(&e->lock.mutex);
    CHECK_EQ(exit_status_of(first) + exit_status_of(second), 0);
    munmap(e, sizeof *e);
}

/* ------------------------------------------------------------------------------- the channel */

typedef struct fixture {
    pyper__shm *shm;
    pyper__channel channel;
    pyper__seat seat;
} fixture;

static void setup_shape(fixture *f, const pyper__channel_shape *shape) {
    memset(f, 0, sizeof *f);
    CHECK_EQ(pyper__shm_create(pyper__channel_size(shape), &f->shm), 0);
    CHECK_EQ(pyper__channel_init(&f->channel, f->shm, PYPER__SHM_FIRST, shape), 0);
    pyper__seat_init(&f->seat, NULL, NULL);
}

static void setup(fixture *f, int64_t throttle, bool many_producers, bool many_consumers,
                  int64_t window) {
    setup_shape(f, &(pyper__channel_shape){.throttle = throttle,
                                           .producers = many_producers ? 3 : 1,
                                           .consumers = many_consumers ? 3 : 1,
                                           .order_window = window});
}

static void teardown(fixture *f) {
    pyper__shm_unref(f->shm);
}

/* Fill a record with a number and `size` bytes that follow from it. */
static void fill(fixture *f, int64_t lane, pyper__record *record, uint64_t number, uint64_t size) {
    CHECK_EQ(pyper__record_reserve(&f->channel, lane, record, size), 0);
    unsigned char *bytes = record->data;
    for (uint64_t i = 0; i < size; i++) bytes[i] = (unsigned char)(number + i * 31);
    if (size >= sizeof number) memcpy(bytes, &number, sizeof number);
}

/* The number in a record, whose other bytes must be right; releases it. */
static uint64_t unfill(pyper__channel *channel, pyper__record *record) {
    uint64_t number = 0;
    unsigned char *bytes = record->data;
    CHECK_GE(record->size, sizeof number);
    memcpy(&number, bytes, sizeof number);
    for (uint64_t i = sizeof number; i < record->size; i++)
        CHECK_EQ(bytes[i], (unsigned char)(number + i * 31));
    pyper__channel_release(channel, record);
    return number;
}

static int try_push(fixture *f, uint64_t number, uint64_t size, int64_t ticket) {
    pyper__record record;
    pyper__channel_wait wait;
    fill(f, 0, &record, number, size);
    int rc = pyper__channel_try_push(&f->channel, 0, &record, ticket, &wait);
    if (rc != 0) pyper__record_drop(&f->channel, &record);
    return rc;
}

/* A peer has written where it should not have: what is no record is not followed.  The first record
 * lies behind the size of its chunk, the first block. */
static int pop_overwritten(const pyper__channel_shape *shape, uint64_t size, uint64_t at,
                           uint64_t value, size_t bytes) {
    fixture f;
    pyper__record record;
    int64_t ticket;
    setup_shape(&f, shape);
    CHECK_EQ(try_push(&f, 7, size, 0), 0);
    memcpy((char *)pyper__shm_at(f.shm, f.shm->blocks) + 8 + at, &value, bytes);
    int rc = pyper__channel_try_pop(&f.channel, &record, &ticket);
    teardown(&f);
    return rc;
}

TEST(what_is_no_record_is_not_followed) {
    const pyper__channel_shape shapes[] = {
        {.producers = 1, .consumers = 1},
        {.producers = 1, .consumers = 2},
        {.producers = 1, .consumers = 2, .apart = true},
    };
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(pop_overwritten(&shapes[i], 8, 4, 8, 4), 1); /* as it was */
        CHECK_EQ(pop_overwritten(&shapes[i], 8, 4, UINT32_MAX, 4), PYPER__BROKEN);
        CHECK_EQ(pop_overwritten(&shapes[i], 8, 4, PYPER__RECORD_BYTES + 1, 4), PYPER__BROKEN);
        CHECK_EQ(pop_overwritten(&shapes[i], 8, 0, 77, 4), PYPER__BROKEN); /* a kind that is none */
        CHECK_EQ(pop_overwritten(&shapes[i], 2000, 8, UINT64_MAX / 2, 8), PYPER__BROKEN);
        CHECK_EQ(pop_overwritten(&shapes[i], 2000, 16, UINT64_MAX - 100, 8), PYPER__BROKEN);
        CHECK_EQ(pop_overwritten(&shapes[i], 2000, 16, PYPER__SHM_FIRST, 8), PYPER__BROKEN);
    }
}

TEST(a_lane_that_leads_out_of_the_memory_is_not_followed) {
    fixture f;
    pyper__record record;
    int64_t ticket;
    setup(&f, 0, false, false, 0);
    /* In place of the second record. */
    const uint64_t nowhere = UINT64_MAX / 3;
    for (uint64_t i = 0; i < 60; i++) CHECK_EQ(try_push(&f, i, 64, (int64_t)i), 0);
    char *chunk = pyper__shm_at(f.shm, f.shm->blocks);
    const uint64_t link = 2; /* its kind; the offset follows after the word */
    memcpy(chunk + 8 + (8 + 64), &link, sizeof link);
    memcpy(chunk + 8 + (8 + 64) + 8, &nowhere, sizeof nowhere);
    CHECK_EQ(pyper__channel_try_pop(&f.channel, &record, &ticket), 1);
    CHECK_EQ(unfill(&f.channel, &record), 0);
    CHECK_EQ(pyper__channel_try_pop(&f.channel, &record, &ticket), PYPER__BROKEN);
    teardown(&f);
}

static int push(fixture *f, int64_t lane, pyper__seat *seat, uint64_t number, uint64_t size,
                int64_t ticket) {
    pyper__record record;
    pyper__channel_wait wait;
    fill(f, lane, &record, number, size);
    for (;;) {
        int rc = pyper__channel_try_push(&f->channel, lane, &record, ticket, &wait);
        if (rc != PYPER__AGAIN) {
            if (rc != 0) pyper__record_drop(&f->channel, &record);
            return rc;
        }
        pyper__channel_await(&wait, seat);
    }
}

static int done(fixture *f, pyper__seat *seat, int64_t ticket) {
    pyper__channel_wait wait;
    int rc;
    while ((rc = pyper__channel_try_done(&f->channel, ticket, &wait)) == PYPER__AGAIN)
        pyper__channel_await(&wait, seat);
    return rc;
}

static int pop_until(pyper__channel *channel, pyper__seat *seat, uint64_t *ret_number,
                     int64_t *ret_ticket, int64_t deadline_ns) {
    pyper__record record;
    int rc = pyper__channel_pop(channel, &record, ret_ticket, seat, deadline_ns, false);
    if (rc > 0) *ret_number = unfill(channel, &record);
    return rc;
}

#define POP_IS(f, value)                                                                           \
    do {                                                                                           \
        uint64_t pop_number = 0;                                                                   \
        int64_t pop_ticket;                                                                        \
        CHECK_EQ(pop_until(&(f)->channel, &(f)->seat, &pop_number, &pop_ticket, PYPER_NOWAIT), 1); \
        CHECK_EQ(pop_number, value);                                                               \
    } while (0)

#define POP_ANSWERS(f, code)                                                                       \
    do {                                                                                           \
        uint64_t pop_number = 0;                                                                   \
        int64_t pop_ticket;                                                                        \
        CHECK_EQ(pop_until(&(f)->channel, &(f)->seat, &pop_number, &pop_ticket, PYPER_NOWAIT),     \
                 code);                                                                            \
    } while (0)

static const uint64_t some_sizes[] = {8, 9, 64, 511, 512, 513, 4096, 65536, 70000, 3000000};
#define SIZES (sizeof some_sizes / sizeof *some_sizes)

TEST(records_of_all_sizes_arrive_whole_and_in_order) {
    fixture f;
    setup(&f, 0, false, false, 0);
    uint64_t next = 0;
    for (uint64_t i = 0; i < 5000; i++) {
        CHECK_EQ(try_push(&f, i, i % 500 < SIZES ? some_sizes[i % 500] : 8 + i % 500, 0), 0);
        if (i % 3 == 2) POP_IS(&f, next++);
    }
    CHECK_EQ(pyper__channel_pushed(&f.channel) - pyper__channel_popped(&f.channel), 5000 - next);
    pyper__channel_set_state(&f.channel, PYPER__ENDED);
    while (next < 5000) POP_IS(&f, next++);
    POP_ANSWERS(&f, 0);
    teardown(&f);
}

TEST(an_empty_item_is_an_item) {
    fixture f;
    setup(&f, 0, true, true, 0);
    pyper__record record;
    pyper__channel_wait wait;
    int64_t ticket;
    CHECK_EQ(pyper__record_reserve(&f.channel, 0, &record, 0), 0);
    CHECK_EQ(pyper__channel_try_push(&f.channel, 0, &record, 0, &wait), 0);
    record.size = 5;
    CHECK_EQ(pyper__channel_pop(&f.channel, &record, &ticket, &f.seat, PYPER_NOWAIT, false), 1);
    CHECK_EQ(record.size, 0);
    CHECK_EQ(ticket, 0);
    teardown(&f);
}

TEST(the_bound_is_exact) {
    static const int64_t throttles[] = {1, 2, 3, 4, 5, 100};
    for (size_t t = 0; t < sizeof throttles / sizeof *throttles; t++) {
        fixture f;
        int64_t n = throttles[t];
        setup(&f, n, t % 2, t % 3, 0);
        for (int64_t i = 0; i < n; i++) CHECK_EQ(try_push(&f, (uint64_t)i, 8, 0), 0);
        CHECK_EQ(try_push(&f, 0, 8, 0), PYPER__AGAIN);
        for (int64_t i = 0; i < 3 * n; i++) {
            POP_IS(&f, (uint64_t)i);
            pyper__channel_settle(&f.channel);
            CHECK_EQ(try_push(&f, (uint64_t)(n + i), 8, 0), 0);
            CHECK_EQ(try_push(&f, 0, 8, 0), PYPER__AGAIN);
        }
        teardown(&f);
    }
}

TEST(who_asks_for_room_wakes_nobody) {
    fixture f;
    setup(&f, 2, false, true, 0);
    pyper__event *items = pyper__channel_items(&f.channel);
    uint32_t seen = pyper__event_enter(items);
    pyper__channel_wait wait;
    CHECK_EQ(pyper__channel_try_push(&f.channel, 0, NULL, -1, &wait), 0);
    CHECK(!pyper__event_notified(items, seen));
    CHECK_EQ(try_push(&f, 0, 8, 0), 0);
    CHECK(pyper__event_notified(items, seen));
    POP_IS(&f, 0);
    teardown(&f);
}

TEST(a_channel_that_is_not_open_refuses) {
    fixture f;
    setup(&f, 0, false, false, 0);
    CHECK_EQ(try_push(&f, 1, 8, 0), 0);
    CHECK_EQ(try_push(&f, 2, 8, 0), 0);
    POP_IS(&f, 1);
    pyper__channel_set_state(&f.channel, PYPER__ENDED);
    CHECK_EQ(try_push(&f, 3, 8, 0), PYPER_ECANCELED);
    POP_IS(&f, 2);
    POP_ANSWERS(&f, 0);
    pyper__channel_set_state(&f.channel, PYPER__CANCELLED);
    POP_ANSWERS(&f, PYPER_ECANCELED);
    pyper__channel_set_state(&f.channel, PYPER__OPEN);
    CHECK_EQ(pyper__channel_state(&f.channel), PYPER__CANCELLED);
    teardown(&f);
}

TEST(an_order_is_kept_whoever_is_first) {
    fixture f;
    setup(&f, 0, true, true, 8);
    for (int64_t ticket = 7; ticket >= 0; ticket--) {
        for (uint64_t k = 0; k < 3; k++)
            CHECK_EQ(try_push(&f, (uint64_t)ticket * 10 + k, k == 1 ? 2000 : 30, ticket), 0);
        if (ticket > 0) CHECK_EQ(done(&f, &f.seat, ticket), 0);
    }
    CHECK_EQ(pyper__channel_pushed(&f.channel), 24);
    for (uint64_t k = 0; k < 3; k++) POP_IS(&f, k);
    POP_ANSWERS(&f, PYPER_ETIMEDOUT);
    CHECK_EQ(done(&f, &f.seat, 0), 0);
    for (uint64_t ticket = 1; ticket < 8; ticket++)
        for (uint64_t k = 0; k < 3; k++) POP_IS(&f, ticket * 10 + k);
    POP_ANSWERS(&f, PYPER_ETIMEDOUT);
    teardown(&f);
}

TEST(an_order_has_a_window) {
    fixture f;
    setup(&f, 0, true, true, 4);
    CHECK_EQ(try_push(&f, 4, 8, 4), PYPER__AGAIN);
    pyper__channel_wait wait;
    CHECK_EQ(pyper__channel_try_done(&f.channel, 4, &wait), PYPER__AGAIN);
    for (uint64_t i = 0; i < 4; i++) CHECK_EQ(try_push(&f, i, 8, 3), 0);
    CHECK_EQ(try_push(&f, 4, 8, 3), PYPER__AGAIN);
    CHECK_EQ(done(&f, &f.seat, 0), 0);
    CHECK_EQ(try_push(&f, 4, 8, 4), 0);
    teardown(&f);
}

TEST(the_bound_of_an_order_leaves_the_last_place_to_the_turn) {
    fixture f;
    setup(&f, 3, true, true, 3);
    CHECK_EQ(try_push(&f, 10, 8, 1), 0);
    CHECK_EQ(try_push(&f, 11, 8, 1), 0);
    CHECK_EQ(try_push(&f, 12, 8, 1), PYPER__AGAIN);
    CHECK_EQ(try_push(&f, 0, 8, 0), 0);
    CHECK_EQ(try_push(&f, 1, 8, 0), PYPER__AGAIN);
    POP_IS(&f, 0);
    CHECK_EQ(done(&f, &f.seat, 0), 0);
    POP_IS(&f, 10);
    POP_IS(&f, 11);
    POP_ANSWERS(&f, PYPER_ETIMEDOUT);
    teardown(&f);
}

static void *push_out_of_turn(void *arg) {
    fixture *f = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    CHECK_EQ(push(f, 0, &seat, 20, 8, 2), 0);
    return NULL;
}

TEST(who_waits_out_of_turn_for_room_gets_it) {
    fixture f;
    setup(&f, 3, true, true, 3);
    CHECK_EQ(try_push(&f, 0, 8, 0), 0);
    CHECK_EQ(try_push(&f, 10, 8, 1), 0);
    CHECK_EQ(try_push(&f, 20, 8, 2), PYPER__AGAIN);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, push_out_of_turn, &f), 0);
    (void)all_asleep();
    POP_IS(&f, 0); /* the turn is still with ticket 0 */
    pyper__channel_settle(&f.channel);
    pthread_join(thread, NULL);
    CHECK_EQ(pyper__channel_pushed(&f.channel), 3);
    teardown(&f);
}

/* ------------------------------------------------------------------------------------ hands */

/* Two consumers that are processes, as two doors of this one. */
typedef struct pair {
    fixture f;
    pyper__channel other;
} pair;

static void setup_pair(pair *p, int64_t throttle) {
    setup_shape(&p->f, &(pyper__channel_shape){
                           .throttle = throttle, .producers = 1, .consumers = 2, .apart = true});
    pyper__channel_attach(&p->other, p->f.shm, PYPER__SHM_FIRST, NULL, 1);
}

/* What the door pops, or minus the answer. */
static int64_t popped_by(pair *p, pyper__channel *door) {
    uint64_t number = 0;
    int64_t ticket;
    int rc = pop_until(door, &p->f.seat, &number, &ticket, PYPER_NOWAIT);
    return rc == 1 ? (int64_t)number : rc < 0 ? rc : -1;
}

/* Let both doors know that items are quick: they claim `claim` at once from now on. */
static void quicken(pair *p, int64_t claim) {
    int64_t now = pyper_now();
    p->f.channel.claim = p->other.claim = claim;
    p->f.channel.claimed = p->other.claimed = 64;
    p->f.channel.claimed_ns = p->other.claimed_ns = now;
}

TEST(a_share_is_claimed_and_half_of_it_taken_away) {
    pair p;
    setup_pair(&p, 0);
    for (uint64_t i = 0; i < 20; i++) CHECK_EQ(try_push(&p.f, i, 8 + i * 40, 0), 0);
    pyper__channel_set_state(&p.f.channel, PYPER__ENDED);
    quicken(&p, 64);
    CHECK_EQ(popped_by(&p, &p.f.channel), 0); /* has claimed 0 to 9 */
    quicken(&p, 64);
    for (int64_t i = 10; i < 15; i++) CHECK_EQ(popped_by(&p, &p.other), i);
    CHECK_EQ(popped_by(&p, &p.f.channel), 1); /* not stuck */
    quicken(&p, 64);
    CHECK_EQ(popped_by(&p, &p.other), 15);
    CHECK_EQ(popped_by(&p, &p.other), 16);
    CHECK_EQ(popped_by(&p, &p.f.channel), 2);
    CHECK_EQ(pyper__channel_popped(&p.f.channel), 10);
    int64_t sum = 0, item, last = -1;
    while ((item = popped_by(&p, &p.other)) >= 0) {
        CHECK(item != last);
        sum += last = item;
    }
    CHECK_EQ(item, -1);
    CHECK_EQ(sum, 3 + 4 + 5 + 6 + 7 + 8 + 9 + 17 + 18 + 19);
    CHECK_EQ(popped_by(&p, &p.f.channel), -1);
    CHECK_EQ(pyper__channel_popped(&p.f.channel), 20);
    teardown(&p.f);
}

TEST(one_is_claimed_at_a_time_until_they_are_quick) {
    pair p;
    setup_pair(&p, 0);
    for (uint64_t i = 0; i < 1000; i++) CHECK_EQ(try_push(&p.f, i, 8, 0), 0);
    CHECK_EQ(popped_by(&p, &p.f.channel), 0);
    CHECK_EQ(popped_by(&p, &p.other), 1);
    p.f.channel.claimed_ns -= 1000000; /* it has taken a millisecond */
    CHECK_EQ(popped_by(&p, &p.f.channel), 2);
    CHECK_EQ(p.f.channel.claimed, 1);
    quicken(&p, 4);
    CHECK_EQ(popped_by(&p, &p.f.channel), 3);
    CHECK_EQ(p.f.channel.claimed, 8);
    p.f.channel.claimed_ns -= 400000; /* 50 us each, and more */
    for (int64_t i = 4; i < 12; i++) CHECK_EQ(popped_by(&p, &p.f.channel), i);
    CHECK_EQ(p.f.channel.claimed, 1);
    teardown(&p.f);
}

TEST(nothing_is_overtaken_for_long) {
    pair p;
    setup_pair(&p, 0);
    for (uint64_t i = 0; i < 1000; i++) CHECK_EQ(try_push(&p.f, i, 8, 0), 0);
    quicken(&p, 8);
    CHECK_EQ(popped_by(&p, &p.f.channel), 0); /* has claimed 0 to 15, and starts no other */
    int64_t at[16] = {0};
    for (int64_t i = 0; i < 200; i++) {
        int64_t item = popped_by(&p, &p.other);
        if (item < 16) at[item] = i;
        p.other.claim = 8;
    }
    for (int i = 1; i < 16; i++) CHECK(at[i] > 0 && at[i] < 100);
    teardown(&p.f);
}

TEST(what_is_in_a_hand_counts_as_waiting) {
    pair p;
    setup_pair(&p, 8);
    for (uint64_t i = 0; i < 8; i++) CHECK_EQ(try_push(&p.f, i, 8, 0), 0);
    quicken(&p, 64);
    CHECK_EQ(popped_by(&p, &p.f.channel), 0); /* has claimed 0 to 3 */
    CHECK_EQ(pyper__channel_there(&p.f.channel), 7);
    CHECK_EQ(try_push(&p.f, 8, 8, 0), 0);
    CHECK_EQ(try_push(&p.f, 9, 8, 0), PYPER__AGAIN);
    for (int64_t i = 1; i < 4; i++) CHECK_EQ(popped_by(&p, &p.f.channel), i);
    for (uint64_t i = 9; i < 12; i++) CHECK_EQ(try_push(&p.f, i, 8, 0), 0);
    CHECK_EQ(try_push(&p.f, 12, 8, 0), PYPER__AGAIN);
    teardown(&p.f);
}

static void *pop_the_rest(void *arg) {
    pair *p = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    uint64_t number;
    int64_t ticket;
    while (pop_until(&p->other, &seat, &number, &ticket, PYPER_FOREVER) > 0) continue;
    return NULL;
}

/* One starts an item and is never heard of again; the other one does all the rest. */
TEST(nobody_waits_for_what_lies_in_the_hand_of_another) {
    pair p;
    setup_pair(&p, 0);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, pop_the_rest, &p), 0);
    (void)all_asleep();
    for (uint64_t i = 0; i < 100; i++) CHECK_EQ(try_push(&p.f, i, 8, 0), 0);
    (void)popped_by(&p, &p.f.channel); /* and a share of them lies in this hand, if it was quick */
    pyper__channel_set_state(&p.f.channel, PYPER__ENDED);
    pthread_join(thread, NULL);
    CHECK_EQ(pyper__channel_popped(&p.f.channel), 100);
    teardown(&p.f);
}

/* ------------------------------------------------------------------------------------ lanes */

TEST(each_lane_has_its_turn) {
    fixture f;
    setup(&f, 0, true, false, 0);
    for (uint64_t i = 0; i < 300; i++)
        for (int64_t lane = 0; lane < 3; lane++) {
            pyper__record record;
            pyper__channel_wait wait;
            fill(&f, lane, &record, (uint64_t)lane * 1000 + i, 8 + i);
            CHECK_EQ(pyper__channel_try_push(&f.channel, lane, &record, 0, &wait), 0);
        }
    uint64_t next[3] = {0, 0, 0};
    for (int i = 0; i < 900; i++) {
        uint64_t number = 0;
        int64_t ticket;
        CHECK_EQ(pop_until(&f.channel, &f.seat, &number, &ticket, PYPER_NOWAIT), 1);
        CHECK_EQ(ticket, i);
        CHECK_EQ(number % 1000, next[number / 1000]++);
        if (i == 3 * 64) CHECK(next[0] >= 64 && next[1] >= 64 && next[2] >= 64);
    }
    POP_ANSWERS(&f, PYPER_ETIMEDOUT);
    teardown(&f);
}

/* -------------------------------------------------------------------------- peers at work */

#define PRODUCERS 3
#define CONSUMERS 3

/* What all peers share: the fixture is at the same address in forked ones. */
typedef struct party {
    fixture f;
    long n; /* items of each producer */
    bool ordered, apart;
    _Atomic long next_ticket, popped, left;
    _Atomic unsigned char *seen; /* how often each item was popped */
} party;

static uint64_t size_of_item(uint64_t number) {
    return number % 50 == 0 ? 3000 : number % 7 == 0 ? 600 : 8 + number % 64;
}

static void produce(party *p, long who) {
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    for (long i = 0; i < p->n; i++) {
        int64_t ticket = 0;
        uint64_t number = (uint64_t)(who * p->n + i);
        if (p->ordered) {
            ticket = atomic_fetch_add(&p->next_ticket, 1);
            number = (uint64_t)ticket;
        }
        if (push(&p->f, who, &seat, number, size_of_item(number), ticket) < 0) return;
        if (p->ordered && done(&p->f, &seat, ticket) < 0) return;
    }
    if (atomic_fetch_add(&p->left, 1) == PRODUCERS - 1)
        pyper__channel_set_state(&p->f.channel, PYPER__ENDED);
}

static void consume(party *p, long who) {
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    uint64_t number = 0;
    int64_t ticket = 0, last = -1;
    pyper__channel own, *door = &p->f.channel;
    if (p->apart) {
        pyper__channel_attach(&own, p->f.shm, PYPER__SHM_FIRST, NULL, who - PRODUCERS);
        door = &own;
    }
    while (pop_until(door, &seat, &number, &ticket, PYPER_FOREVER) > 0) {
        if (!p->apart) CHECK(ticket > last); /* what was taken from others may be older */
        last = ticket;
        if (p->ordered) CHECK_EQ(number, ticket);
        CHECK(number < (uint64_t)(PRODUCERS * p->n));
        CHECK_EQ(atomic_fetch_add(&p->seen[number], 1), 0);
        atomic_fetch_add(&p->popped, 1);
    }
}

static party *party_new(int64_t throttle, bool ordered, bool apart, long n) {
    party *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    p->n = n;
    p->ordered = ordered;
    p->apart = apart;
    p->seen = mmap(NULL, (size_t)(PRODUCERS * n), PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK((void *)p->seen != MAP_FAILED);
    setup_shape(&p->f, &(pyper__channel_shape){.throttle = throttle,
                                               .producers = PRODUCERS,
                                               .consumers = CONSUMERS,
                                               .apart = apart,
                                               .order_window = ordered ? 16 : 0});
    return p;
}

static void party_free(party *p) {
    teardown(&p->f);
    munmap((void *)p->seen, (size_t)(PRODUCERS * p->n));
    munmap(p, sizeof *p);
}

typedef struct member {
    party *p;
    long who;
} member;

static void *member_main(void *arg) {
    member *m = arg;
    if (m->who < PRODUCERS)
        produce(m->p, m->who);
    else
        consume(m->p, m->who);
    return NULL;
}

static void with_threads(int64_t throttle, bool ordered, bool apart) {
    party *p = party_new(throttle, ordered, apart, check_times(5000));
    pthread_t threads[PRODUCERS + CONSUMERS];
    member members[PRODUCERS + CONSUMERS];
    for (long i = 0; i < PRODUCERS + CONSUMERS; i++) {
        members[i] = (member){p, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, member_main, &members[i]), 0);
    }
    for (long i = 0; i < PRODUCERS + CONSUMERS; i++) pthread_join(threads[i], NULL);
    CHECK_EQ(atomic_load(&p->popped), PRODUCERS * p->n);
    CHECK_EQ(pyper__channel_popped(&p->f.channel), PRODUCERS * p->n);
    party_free(p);
}

static void with_processes(int64_t throttle, bool ordered) {
    party *p = party_new(throttle, ordered, true, check_times(5000));
    pid_t pids[PRODUCERS + CONSUMERS];
    for (long i = 0; i < PRODUCERS + CONSUMERS; i++) {
        pids[i] = fork();
        CHECK_GE(pids[i], 0);
        if (pids[i] == 0) {
            member_main(&(member){p, i});
            _exit(0);
        }
    }
    for (long i = 0; i < PRODUCERS + CONSUMERS; i++) {
        int status;
        CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
        CHECK_EQ(status, 0);
    }
    CHECK_EQ(atomic_load(&p->popped), PRODUCERS * p->n);
    CHECK_EQ(pyper__channel_popped(&p->f.channel), PRODUCERS * p->n);
    party_free(p);
}

TEST(threads_lose_and_double_nothing) {
    with_threads(0, false, false);
}
TEST(threads_with_a_bound) {
    with_threads(3, false, false);
}
TEST(threads_with_an_order) {
    with_threads(0, true, false);
}
TEST(threads_with_an_order_and_a_bound) {
    with_threads(4, true, false);
}
/* As processes would, with hands: where ThreadSanitizer sees it. */
TEST(threads_with_hands) {
    with_threads(0, false, true);
}
TEST(threads_with_hands_and_a_bound) {
    with_threads(30, false, true);
}
TEST(threads_with_hands_and_an_order) {
    with_threads(0, true, true);
}
TEST(processes_lose_and_double_nothing) {
    with_processes(0, false);
}
TEST(processes_with_a_bound) {
    with_processes(3, false);
}
TEST(processes_with_an_order) {
    with_processes(0, true);
}
TEST(processes_with_an_order_and_a_bound) {
    with_processes(4, true);
}

static void *one_alone(void *arg) {
    party *p = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    for (long i = 0; i < p->n; i++)
        CHECK_EQ(push(&p->f, 0, &seat, (uint64_t)i, size_of_item((uint64_t)i), 0), 0);
    pyper__channel_set_state(&p->f.channel, PYPER__ENDED);
    return NULL;
}

TEST(one_producer_and_one_consumer_need_no_lock) {
    static const int64_t throttles[] = {0, 1, 7, 1000};
    for (size_t t = 0; t < 4; t++) {
        party *p = party_new(0, false, false, check_times(5000));
        teardown(&p->f);
        setup(&p->f, throttles[t], false, false, 0);
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, one_alone, p), 0);
        consume(p, 0);
        pthread_join(thread, NULL);
        CHECK_EQ(atomic_load(&p->popped), p->n);
        party_free(p);
    }
}

/* Each producer in a lane of its own. */
typedef struct blocked {
    fixture *f;
    int64_t lane;
} blocked;

static void *push_blocked(void *arg) {
    const blocked *b = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    CHECK_EQ(push(b->f, b->lane, &seat, 2, 8, 0), PYPER_ECANCELED);
    return NULL;
}

static void *pop_starved(void *arg) {
    fixture *f = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    uint64_t number;
    int64_t ticket;
    CHECK_EQ(pop_until(&f->channel, &seat, &number, &ticket, PYPER_FOREVER), PYPER_ECANCELED);
    return NULL;
}

static void *push_one_more(void *arg) {
    fixture *f = arg;
    pyper__seat seat = {0};
    pyper__seat_init(&seat, NULL, NULL);
    CHECK_EQ(push(f, 0, &seat, 0, 8, 0), 0);
    return NULL;
}

/* Although the consumer goes on, and does not say that it is about to wait. */
TEST(who_waits_for_room_resumes_when_half_of_the_places_are_free) {
    static const int64_t throttles[] = {1, 2, 5, 6, 100, 1023};
    for (size_t t = 0; t < sizeof throttles / sizeof *throttles; t++) {
        fixture f;
        int64_t n = throttles[t];
        setup(&f, n, false, t % 2, 0);
        for (int64_t i = 0; i < n; i++) CHECK_EQ(try_push(&f, (uint64_t)i, 8, 0), 0);
        pthread_t producer;
        CHECK_EQ(pthread_create(&producer, NULL, push_one_more, &f), 0);
        (void)all_asleep();
        for (int64_t i = 0; i < (n + 1) / 2; i++) POP_IS(&f, (uint64_t)i);
        pthread_join(producer, NULL);
        CHECK_EQ(pyper__channel_pushed(&f.channel), n + 1);
        teardown(&f);
    }
}

TEST(a_change_of_state_wakes_everybody) {
    fixture full, empty;
    setup(&full, 1, true, true, 0);
    setup(&empty, 1, true, true, 0);
    CHECK_EQ(try_push(&full, 1, 8, 0), 0);
    pthread_t threads[6];
    blocked producers[3];
    for (int i = 0; i < 3; i++) {
        producers[i] = (blocked){&full, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, push_blocked, &producers[i]), 0);
        CHECK_EQ(pthread_create(&threads[3 + i], NULL, pop_starved, &empty), 0);
    }
    (void)all_asleep();
    pyper__channel_set_state(&full.channel, PYPER__CANCELLED);
    pyper__channel_set_state(&empty.channel, PYPER__CANCELLED);
    for (int i = 0; i < 6; i++) pthread_join(threads[i], NULL);
    teardown(&full);
    teardown(&empty);
}
