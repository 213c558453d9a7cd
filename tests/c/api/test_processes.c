/* Process workers: every option means what it means for threads, wherever the task stands; failures
 * and deaths reach the caller; nothing is left, whoever dies.  Black-box: pyper.h only.
 *
 * What workers do is counted in memory that all processes share; a failed check in a worker ends
 * its process, which fails the run and with it the test. */
#include "../kit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define INTS .type = &pyper_type_int

/* Zeroed memory that all processes share; given back with the process. */
static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

/* What the library waits with, in the place of libc's: the next `interrupted` calls that would
 * block are interrupted by a signal at once. */
static int interrupted;

pid_t waitpid(pid_t pid, int *ret_status, int options) {
    if (interrupted > 0 && !(options & WNOHANG)) {
        interrupted--;
        errno = EINTR;
        return -1;
    }
    return (pid_t)syscall(SYS_wait4, pid, ret_status, options, NULL);
}

/* How many lines of a file have a word. */
static long lines_with(const char *path, const char *word) {
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    char line[600];
    long count = 0;
    while (fgets(line, sizeof line, file)) count += strstr(line, word) != NULL;
    fclose(file);
    return count;
}

/* Nothing of a run is left in this process: no child, no shared memory.  (check.h counts the
 * descriptors and the threads.) */
static void nothing_is_left(void) {
    int status;
    CHECK_EQ(waitpid(-1, &status, WNOHANG), -1);
    CHECK_EQ(errno, ECHILD);
    CHECK_EQ(lines_with("/proc/self/maps", "memfd:pyper"), 0);
}

static void finish(pyper_run *run, pyper_pipeline *p) {
    close_both(run, p);
    nothing_is_left();
}

/* A process that this one has not forked itself has ended, or ends. */
static void await_end_of(pid_t pid) {
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        CHECK_EQ(errno, ESRCH);
        return;
    }
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    while (poll(&ended, 1, -1) < 0) CHECK_EQ(errno, EINTR);
    close(pidfd);
}

/* For ever in the function, without a look at the run. */
static _Noreturn void stay(void) {
    for (;;) pause();
}

/* ------------------------------------------------------------------------------- the options */

EACH_HOST(a_process_works_in_any_position) {
    for (int where = 0; where < 8; where++) {
        bool first = where & 1, middle = where & 2, last = where & 4;
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, INTS, .multiprocess = first),
                       pyper_task(add_one, INTS, .multiprocess = middle),
                       pyper_task(add_one, INTS, .multiprocess = last));
        pyper_run *run = START(p, PTR(1000), .type = &pyper_type_int);
        for (long i = 0; i < 1000; i++) NEXT_IS(run, i + 2);
        ENDS_WITH(run, 0);
        finish(run, p);
    }
}

static int pid_of_worker(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, PTR(getpid()));
}

TEST(a_worker_is_a_process_of_its_own) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(pid_of_worker, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(100));
    void *first, *other;
    CHECK_EQ(pyper_next(run, &first), 1);
    CHECK(INT(first) != getpid());
    for (int i = 1; i < 100; i++) {
        CHECK_EQ(pyper_next(run, &other), 1);
        CHECK_EQ(INT(other), INT(first));
    }
    ENDS_WITH(run, 0);
    CHECK_EQ(kill((pid_t)INT(first), 0), -1); /* and has been waited for */
    finish(run, p);
}

EACH_HOST(several_workers_share_the_inputs) {
    for (int ordered = 0; ordered < 2; ordered++) {
        long n = check_times(5000), seen = 0;
        pyper_pipeline *p = pyper_pipe(
            pyper_task(count_up, .branch = true, INTS, .throttle = 100),
            pyper_task(add_one, INTS, .multiprocess = true, .workers = 3, .ordered = ordered),
            pyper_task(add_one, INTS, .multiprocess = true, .workers = 2, .ordered = ordered,
                       .throttle = 10));
        char *times = calloc(1, (size_t)n);
        pyper_run *run = START(p, PTR(n));
        for (void *out; pyper_next(run, &out) > 0; seen++) {
            CHECK(INT(out) >= 2 && INT(out) < n + 2);
            CHECK_EQ(times[INT(out) - 2]++, 0);
            if (ordered) CHECK_EQ(INT(out), seen + 2);
        }
        CHECK_EQ(seen, n);
        CHECK_EQ(pyper_failed(run), 0);
        free(times);
        finish(run, p);
    }
}

/* Branch: as many outputs as the number says, its own number each. */
static int repeat(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item) % 5; i++)
        if (pyper_emit(w, item) < 0) return PYPER_ECANCELED;
    return 0;
}

EACH_HOST(branching_processes_keep_the_order) {
    static const int64_t throttles[] = {0, 1, 2, 50};
    for (size_t t = 0; t < 4; t++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, INTS, .throttle = throttles[t]),
                       pyper_task(repeat, .branch = true, INTS, .multiprocess = true, .workers = 3,
                                  .ordered = true, .throttle = throttles[t]));
        pyper_run *run = START(p, PTR(500));
        for (long i = 0; i < 500; i++)
            for (long k = 0; k < i % 5; k++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        finish(run, p);
    }
}

EACH_HOST(ordered_threads_feed_a_process) {
    long n = check_times(2000);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(add_one, INTS, .workers = 4, .ordered = true, .throttle = 5),
                   pyper_task(add_one, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(n));
    for (long i = 0; i < n; i++) NEXT_IS(run, i + 2);
    ENDS_WITH(run, 0);
    finish(run, p);
}

EACH_HOST(each_item_goes_to_exactly_one_joined_process) {
    long n = check_times(5000), total = 0;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS, .throttle = 50),
                   pyper_task(sum, .join = true, INTS, .multiprocess = true, .workers = 3));
    pyper_run *run = START(p, PTR(n));
    for (int i = 0; i < 3; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        total += INT(out);
    }
    ENDS_WITH(run, 0);
    CHECK_EQ(total, n * (n - 1) / 2);
    finish(run, p);
}

EACH_HOST(threads_join_what_processes_make) {
    long n = check_times(2000);
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS, .multiprocess = true),
                                   pyper_task(sum, .join = true, INTS));
    pyper_run *run = START(p, PTR(n), .type = &pyper_type_int);
    NEXT_IS(run, n * (n - 1) / 2);
    ENDS_WITH(run, 0);
    finish(run, p);
}

/* Join: the first three only. */
static int three(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    void *x;
    for (int i = 0; i < 3; i++) {
        int rc = pyper_pull(w, &x);
        if (rc < 0) return rc;
        rc = pyper_emit(w, x);
        if (rc < 0) return rc;
    }
    return 0;
}

EACH_HOST(a_joined_process_that_has_enough_ends_those_before_it) {
    for (int where = 0; where < 4; where++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 10,
                                  .multiprocess = where & 1),
                       pyper_task(add_one, INTS, .throttle = 10, .multiprocess = where & 2),
                       pyper_task(three, .branch = true, .join = true, INTS, .multiprocess = true));
        pyper_run *run = START(p, PTR(0), .type = &pyper_type_int);
        for (long i = 0; i < 3; i++) NEXT_IS(run, i + 1);
        ENDS_WITH(run, 0);
        CHECK_EQ(pyper_failed(run), 0);
        finish(run, p);
    }
}

static int multiply(pyper_worker *w, void *item, void *bind) {
    kit_in_task(w);
    return pyper_emit(w, PTR(INT(item) * *(const long *)bind));
}

EACH_HOST(bind_is_as_it_was_when_the_run_started) {
    static long by;
    by = 10;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(multiply, .bind = &by, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(100));
    by = 77;
    for (long i = 0; i < 100; i++) NEXT_IS(run, 10 * i);
    ENDS_WITH(run, 0);
    finish(run, p);
}

typedef struct counts {
    _Atomic long emitted, started;
} counts;

static int count_emits(pyper_worker *w, void *item, void *bind) {
    kit_in_task(w);
    counts *c = bind;
    for (long i = 0; i < INT(item); i++) {
        if (pyper_emit(w, PTR(i)) < 0) return PYPER_ECANCELED;
        atomic_fetch_add(&c->emitted, 1);
    }
    return 0;
}

/* What has been emitted and not started is never more than the bound. */
static int count_starts(pyper_worker *w, void *item, void *bind) {
    kit_in_task(w);
    counts *c = bind;
    long started = atomic_fetch_add(&c->started, 1) + 1;
    CHECK_LE(atomic_load(&c->emitted) - atomic_load(&c->started), 5 + 4);
    (void)started;
    return pyper_emit(w, item);
}

EACH_HOST(the_bound_holds_between_processes) {
    counts *c = shared(sizeof *c);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_emits, .branch = true, INTS, .throttle = 5, .bind = c,
                              .multiprocess = true),
                   pyper_task(count_starts, INTS, .workers = 4, .bind = c, .multiprocess = true));
    pyper_run *run = START(p, PTR(2000), .type = &pyper_type_int);
    long seen = 0;
    for (void *out; pyper_next(run, &out) > 0; seen++) continue;
    CHECK_EQ(seen, 2000);
    finish(run, p);
}

EACH_HOST(a_producer_stops_at_the_bound) {
    counts *c = shared(sizeof *c);
    pyper_pipeline *p = pyper_task(count_emits, .branch = true, INTS, .throttle = 7, .bind = c,
                                   .multiprocess = true);
    pyper_run *run = START(p, PTR(1000000), .type = &pyper_type_int);
    pyper_task_stats stats;
    do {
        others();
        pyper_stats(run, &stats, 1);
    } while (stats.blocked_ns == 0);
    pyper_stats(run, &stats, 1); /* the counters of the last look were read before its times */
    CHECK_EQ(atomic_load(&c->emitted), 7);
    CHECK_EQ(stats.items_out, 7);
    CHECK_EQ(stats.queued, 7);
    finish(run, p);
}

TEST(statistics_tell_of_processes) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS, .name = "count"),
                                   pyper_task(repeat, .branch = true, INTS, .multiprocess = true,
                                              .workers = 2, .name = "repeat"));
    pyper_run *run = START(p, PTR(1000));
    long seen = 0;
    for (void *out; pyper_next(run, &out) > 0; seen++) continue;
    pyper_task_stats stats[2];
    CHECK_EQ(pyper_stats(run, stats, 2), 2);
    CHECK_STR(stats[1].name, "repeat");
    CHECK_EQ(stats[1].workers, 2);
    CHECK_EQ(stats[1].alive, 0);
    CHECK_EQ(stats[1].items_in, 1000);
    CHECK_EQ(stats[1].items_out, 2000);
    CHECK_EQ(stats[1].queued, 0);
    CHECK(stats[1].busy_ns > 0);
    finish(run, p);
}

/* ------------------------------------------------------------------------------------ items */

static pyper_blob *blob_new(size_t size, unsigned seed) {
    pyper_blob *blob = malloc(sizeof *blob + size);
    CHECK(blob != NULL);
    blob->size = size;
    for (size_t i = 0; i < size; i++) blob->data[i] = (unsigned char)(seed + i * 7);
    return blob;
}

static void blob_check(const pyper_blob *blob, size_t size, unsigned seed) {
    CHECK_EQ(blob->size, size);
    for (size_t i = 0; i < size; i++) CHECK_EQ(blob->data[i], (unsigned char)(seed + i * 7));
}

static const size_t blob_sizes[] = {0, 1, 7, 512, 513, 5000, 65536, 100000, 8388608};
#define BLOBS (sizeof blob_sizes / sizeof *blob_sizes)

static int make_blobs(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (unsigned i = 0; i < BLOBS; i++)
        if (pyper_emit(w, blob_new(blob_sizes[i], i)) < 0) return PYPER_ECANCELED;
    return 0;
}

static int check_blob(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_blob *blob = item;
    blob_check(blob, blob->size, blob->size ? blob->data[0] : 0);
    return pyper_emit(w, item);
}

EACH_HOST(blobs_of_all_sizes_arrive_whole) {
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_blobs, .branch = true, .type = &pyper_type_blob),
        pyper_task(check_blob, .type = &pyper_type_blob, .multiprocess = true),
        pyper_task(check_blob, .type = &pyper_type_blob, .multiprocess = true, .throttle = 1));
    pyper_run *run = START(p, NULL);
    for (unsigned i = 0; i < BLOBS; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        blob_check(out, blob_sizes[i], i);
        free(out);
    }
    ENDS_WITH(run, 0);
    finish(run, p);
}

/* The function forks.  Its child does whatever functions do, in vain. */
static int fork_and_go_on(pyper_worker *w, void *item, void *bind) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) {
        child_ends_well(child);
    } else if (INT(item) % 3 == 0) {
        return pyper_fail(w, 1, "in the child");
    } else if (INT(item) % 3 == 1) {
        pyper_cancel(pyper_worker_run(w));
        return 0;
    }
    return pyper_emit(w, item);
}

EACH_HOST(a_forked_child_of_a_function_has_no_part_in_the_run) {
    for (int ordered = 0; ordered < 2; ordered++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                       pyper_task(fork_and_go_on, INTS, .multiprocess = true, .ordered = ordered));
        pyper_run *run = START(p, PTR(10));
        for (long i = 0; i < 10; i++) NEXT_IS(run, i);
        ENDS_WITH(run, 0);
        finish(run, p);
    }
}

/* An item of the kit as its value: destroyed by the sender, made again by the receiver. */
static int encode_item(void *i, pyper_transfer *to) {
    long value = item_value(i);
    void *place = pyper_transfer_reserve(to, sizeof value);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, &value, sizeof value);
    return 0;
}

static int decode_item(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    long value;
    CHECK_EQ(size, sizeof value);
    memcpy(&value, data, sizeof value);
    *ret_item = item_new(value);
    return 0;
}

static const pyper_item_type crossing = {
    .size = sizeof crossing, .destroy = item_destroy, .encode = encode_item, .decode = decode_item};

EACH_HOST(each_item_is_destroyed_once_where_it_is) {
    pyper_pipeline *p = pyper_pipe(pyper_task(make_items, .branch = true, .type = &crossing),
                                   pyper_task(pass, .type = &crossing, .multiprocess = true));
    pyper_run *run = START(p, PTR(1000));
    for (long i = 0; i < 500; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        CHECK_EQ(item_deliver(out), i);
    }
    finish(run, p); /* the kit counts the items that are left */
}

#define BIG ((size_t)1000000)

static int encode_big(void *item, pyper_transfer *to) {
    const pyper_blob *blob = item;
    void *place = pyper_transfer_reserve(to, blob->size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, blob->data, blob->size);
    return 0;
}

static int make_big(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    for (long i = 0; i < INT(item); i++)
        if (pyper_emit(w, blob_new(BIG, (unsigned)i)) < 0) return PYPER_ECANCELED;
    return 0;
}

/* A blob whose memory the receiver keeps. */
typedef struct kept_blob {
    pyper_kept *kept;
    unsigned char *data;
} kept_blob;

static int decode_kept(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    kept_blob *blob = calloc(1, sizeof *blob);
    void *mine;
    CHECK(blob != NULL);
    blob->kept = pyper_transfer_keep(from, &mine);
    CHECK(blob->kept != NULL);
    CHECK(mine == data);
    blob->data = mine;
    *ret_item = blob;
    return 0;
}

static const pyper_item_type keeping = {
    .size = sizeof keeping, .destroy = free, .encode = encode_big, .decode = decode_kept};

static kept_blob *next_kept(pyper_run *run) {
    void *out = NULL;
    CHECK_EQ(pyper_next(run, &out), 1);
    return out;
}

static void release_kept(kept_blob *blob) {
    pyper_kept_release(blob->kept);
    free(blob);
}

TEST(what_is_kept_outlives_the_run_and_is_private) {
    pyper_pipeline *p =
        pyper_task(make_big, .branch = true, .type = &keeping, .multiprocess = true);
    pyper_run *run = pyper_start(p, PTR(4), .type = &pyper_type_int);
    kept_blob *blobs[4];
    for (int i = 0; i < 4; i++) {
        void *out;
        CHECK_EQ(pyper_next(run, &out), 1);
        blobs[i] = out;
    }
    ENDS_WITH(run, 0);
    close_both(run, p);
    CHECK(lines_with("/proc/self/maps", "memfd:pyper") > 0);
    for (int i = 0; i < 4; i++) {
        for (size_t k = 0; k < BIG; k++)
            CHECK_EQ(blobs[i]->data[k], (unsigned char)((size_t)i + k * 7));
        memset(blobs[i]->data, 99, BIG);
    }
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(blobs[i]->data[BIG - 1], 99);
        release_kept(blobs[i]);
    }
    nothing_is_left();
}

/* How many descriptors the process has. */
static long descriptors(void) {
    return check_entries("/proc/self/fd");
}

TEST(what_is_kept_holds_no_descriptor) {
    long before = descriptors();
    kept_blob *first[10];
    for (int ending = 0; ending < 2; ending++) {
        for (int i = 0; i < 10; i++) {
            pyper_pipeline *p =
                pyper_task(make_big, .branch = true, .type = &keeping, .multiprocess = true);
            pyper_run *run = pyper_start(p, PTR(3), .type = &pyper_type_int);
            first[i] = next_kept(run);
            for (int k = 0; k < 2; k++) release_kept(next_kept(run));
            if (ending == 0) ENDS_WITH(run, 0);
            close_both(run, p);
        }
        CHECK_EQ(descriptors(), before);
        for (int i = 0; i < 10; i++) {
            for (size_t k = 0; k < BIG; k++) CHECK_EQ(first[i]->data[k], (unsigned char)(k * 7));
            release_kept(first[i]);
        }
        nothing_is_left();
    }
}

static off_t allocated(void) {
    for (int fd = 0; fd < 100; fd++) {
        char path[40], target[40] = "";
        struct stat facts;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, "memfd:pyper") &&
            fstat(fd, &facts) == 0)
            return facts.st_blocks * 512;
    }
    return 0;
}

/* What would be much to copy waits for some of it to be given back. */
TEST(of_much_that_is_kept_the_rest_is_given_back) {
    enum { ALL = 60, KEPT = 20 };
    kept_blob *blobs[ALL];
    long before = descriptors();
    pyper_pipeline *p =
        pyper_task(make_big, .branch = true, .type = &keeping, .multiprocess = true);
    pyper_run *run = pyper_start(p, PTR(ALL), .type = &pyper_type_int);
    for (int i = 0; i < ALL; i++) blobs[i] = next_kept(run);
    for (int i = KEPT; i < ALL; i++) release_kept(blobs[i]);
    CHECK(allocated() > (off_t)(ALL * BIG));
    ENDS_WITH(run, 0);
    close_both(run, p);
    CHECK_EQ(descriptors(), before + 1);
    CHECK(allocated() >= (off_t)(KEPT * BIG));
    CHECK(allocated() < (off_t)(KEPT * BIG * 3 / 2));
    int released = 0;
    for (; allocated() > 0; released++) {
        CHECK(allocated() < (off_t)((size_t)(KEPT - released) * BIG * 3 / 2));
        release_kept(blobs[released]);
    }
    CHECK(released > 0 && released < KEPT);
    CHECK_EQ(descriptors(), before);
    for (int i = released; i < KEPT; i++) {
        for (size_t k = 0; k < BIG; k++)
            CHECK_EQ(blobs[i]->data[k], (unsigned char)((size_t)i + k * 7));
        release_kept(blobs[i]);
    }
    nothing_is_left();
}

/* Each call of decode waits until as many may go on as there have been. */
static tally decoding = TALLY, go_on = TALLY;

static int decode_slowly(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    tally_wait(&go_on, tally_add(&decoding, 1));
    pyper_blob *blob = malloc(sizeof *blob + size);
    CHECK(blob != NULL);
    blob->size = size;
    memcpy(blob->data, data, size);
    *ret_item = blob;
    return 0;
}

static const pyper_item_type slow_to_decode = {
    .size = sizeof slow_to_decode, .destroy = free, .encode = encode_big, .decode = decode_slowly};

static int make_blob(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_emit(w, blob_new((size_t)INT(item), 3));
}

static void *take_blob(void *run) {
    void *out = NULL;
    CHECK_EQ(pyper_next(run, &out), 1);
    return out;
}

/* In its record, and in an extent. */
TEST(what_is_being_decoded_stays_while_others_end_the_run) {
    static const size_t sizes[] = {64, BIG};
    for (size_t i = 0; i < 2; i++) {
        pyper_pipeline *p = pyper_task(make_blob, .type = &slow_to_decode, .multiprocess = true);
        pyper_run *run = pyper_start(p, PTR(sizes[i]), .type = &pyper_type_int);
        pthread_t taker;
        void *out, *taken;
        CHECK_EQ(pthread_create(&taker, NULL, take_blob, run), 0);
        tally_wait(&decoding, (long)i + 1);
        pyper_cancel(run);
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
        CHECK_EQ(pyper_next(run, &out), PYPER_ECANCELED);
        tally_add(&go_on, 1);
        CHECK_EQ(pthread_join(taker, &taken), 0);
        blob_check(taken, sizes[i], 3);
        free(taken);
        CHECK_EQ(lines_with("/proc/self/maps", "memfd:pyper"), 0);
        finish(run, p);
    }
}

static bool all_are(const kept_blob *blob, int byte) {
    for (size_t k = 0; k < BIG; k++)
        if (blob->data[k] != byte) return false;
    return true;
}

/* Parent and child change their own, and neither sees that the other gives it back or that the
 * memory is used for later items. */
TEST(what_is_kept_is_each_ones_own_after_a_fork) {
    pyper_pipeline *p =
        pyper_task(make_big, .branch = true, .type = &keeping, .multiprocess = true, .throttle = 2);
    pyper_run *run = pyper_start(p, PTR(40), .type = &pyper_type_int);
    kept_blob *mine = next_kept(run), *theirs = next_kept(run);
    memset(mine->data, 1, BIG);
    memset(theirs->data, 2, BIG);
    int ready[2], go[2];
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    char byte = 0;
    pid_t child = fork();
    if (child == 0) {
        bool good = all_are(mine, 1) && all_are(theirs, 2);
        memset(mine->data, 3, BIG);
        good = good && write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1;
        good = good && all_are(mine, 3) && all_are(theirs, 2);
        memset(theirs->data, 4, BIG);
        release_kept(mine);
        good = good && all_are(theirs, 4);
        release_kept(theirs);
        _exit(good ? 0 : 1);
    }
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    CHECK(all_are(mine, 1));
    memset(mine->data, 5, BIG);
    memset(theirs->data, 6, BIG);
    release_kept(theirs);
    /* The memory given back is used again, by later items. */
    for (int i = 2; i < 40; i++) {
        kept_blob *blob = next_kept(run);
        CHECK_EQ(blob->data[BIG - 1], (unsigned char)((size_t)i + (BIG - 1) * 7));
        memset(blob->data, 7, BIG);
        release_kept(blob);
    }
    CHECK_EQ(write(go[1], &byte, 1), 1);
    child_ends_well(child);
    CHECK(all_are(mine, 5));
    ENDS_WITH(run, 0);
    release_kept(mine);
    close_both(run, p);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(go[i]);
    }
    nothing_is_left();
}

static pyper_run *closed_before_fork;
static kept_blob *kept_before_fork, *kept_after_fork;
static int refused_after_fork;

static void close_before_fork(void) {
    if (!kept_before_fork) return;
    release_kept(kept_before_fork);
    CHECK_EQ(pyper_close(closed_before_fork), 0);
    kept_before_fork = NULL;
}

static void give_back_after_fork(void) {
    if (kept_after_fork) release_kept(kept_after_fork);
    kept_after_fork = NULL;
}

static pyper_run *inherited;

static void ask_after_fork(void) {
    void *out;
    give_back_after_fork();
    if (inherited) refused_after_fork = pyper_next(inherited, &out);
}

/* Handlers that were there before anything was kept, and before the first run. */
TEST(fork_handlers_of_the_program_may_use_the_library) {
    CHECK_EQ(pthread_atfork(close_before_fork, give_back_after_fork, ask_after_fork), 0);
    pyper_pipeline *p =
        pyper_task(make_big, .branch = true, .type = &keeping, .multiprocess = true, .throttle = 2);
    pyper_run *run = pyper_start(p, PTR(40), .type = &pyper_type_int);
    pyper_run *closed = pyper_start(p, PTR(40), .type = &pyper_type_int);
    kept_blob *before = next_kept(closed);
    kept_after_fork = next_kept(run);
    inherited = run;
    closed_before_fork = closed;
    kept_before_fork = before;
    pid_t child = fork();
    if (child == 0) _exit(refused_after_fork == PYPER_EFORKED ? 0 : 1);
    child_ends_well(child);
    CHECK(!kept_before_fork && !kept_after_fork);
    finish(run, p);
    nothing_is_left();
}

static int encode_badly(void *i, pyper_transfer *to) {
    return -77;
}

static int decode_badly(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    return pyper_transfer_fail(from, 88, "odd bytes", "\1\2\3", 3);
}

static const pyper_item_type unencodable = {.size = sizeof unencodable,
                                            .destroy = item_destroy,
                                            .encode = encode_badly,
                                            .decode = decode_item};
static const pyper_item_type undecodable = {.size = sizeof undecodable,
                                            .destroy = item_destroy,
                                            .encode = encode_item,
                                            .decode = decode_badly};

EACH_HOST(an_item_that_cannot_be_encoded_fails_the_run) {
    for (int in_process = 0; in_process < 2; in_process++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &unencodable,
                                  .multiprocess = in_process),
                       pyper_task(pass, .type = &crossing, .multiprocess = !in_process));
        pyper_run *run = START(p, PTR(10), .type = &pyper_type_int);
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(pyper_error_code(run), -77);
        CHECK_EQ(pyper_error_task(run), 0);
        CHECK_HAS(pyper_error_message(run), "could not be encoded");
        finish(run, p);
    }
}

EACH_HOST(an_item_that_cannot_be_decoded_fails_the_run) {
    for (int in_process = 0; in_process < 2; in_process++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_items, .branch = true, .type = &undecodable,
                                  .multiprocess = !in_process),
                       pyper_task(pass, .type = &crossing, .multiprocess = in_process));
        pyper_run *run = START(p, PTR(10), .type = &pyper_type_int);
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(pyper_error_code(run), 88);
        CHECK_EQ(pyper_error_task(run), 1);
        CHECK_HAS(pyper_error_message(run), "odd bytes");
        size_t size;
        const char *bytes = pyper_error_bytes(run, &size);
        CHECK_EQ(size, 3);
        CHECK_EQ(memcmp(bytes, "\1\2\3", 3), 0);
        finish(run, p);
    }
}

static int decode_all_but_three(pyper_transfer *from, const void *data, size_t size,
                                void **ret_item) {
    void *item;
    int rc = pyper_type_int.decode(from, data, size, &item);
    if (rc < 0 || INT(item) == 3) return -66;
    *ret_item = item;
    return 0;
}

EACH_HOST(an_output_that_cannot_be_decoded_ends_the_stream) {
    pyper_item_type type = pyper_type_int;
    type.decode = decode_all_but_three;
    for (int workers = 1; workers <= 3; workers += 2) {
        pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                       pyper_task(pass, .type = &type, .multiprocess = true,
                                                  .workers = workers, .ordered = workers > 1));
        pyper_run *run = START(p, PTR(100));
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0); /* all of them are there */
        for (long i = 0; i < 3; i++) NEXT_IS(run, i);
        ENDS_WITH(run, PYPER_EFAILED);
        CHECK_EQ(pyper_error_code(run), -66);
        finish(run, p);
    }
}

static int pull_all(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    long *last = bind;
    int rc;
    while ((rc = pyper_pull(w, &item)) > 0) item_destroy(item);
    *last = rc;
    CHECK(pyper_cancelled(w));
    return PYPER_ECANCELED; /* it has been told that the run is over */
}

EACH_HOST(a_join_learns_that_an_input_cannot_be_decoded) {
    long last = 1;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(make_items, .branch = true, .type = &undecodable, .multiprocess = true),
        pyper_task(pull_all, .join = true, .bind = &last));
    pyper_run *run = START(p, PTR(10), .type = &pyper_type_int);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 88);
    CHECK_EQ(last, PYPER_EFAILED);
    finish(run, p);
}

TEST(an_argument_that_cannot_be_encoded_fails_the_run) {
    pyper_pipeline *p = pyper_task(pass, .type = &crossing, .multiprocess = true);
    pyper_run *run = START(p, item_new(5), .type = &unencodable);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), -77);
    finish(run, p);
}

TEST(what_cannot_cross_is_refused) {
    pyper_pipeline *p = pyper_task(pass, .multiprocess = true, .name = "worker");
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK_HAS(pyper_pipeline_message(p), "'worker'");
    CHECK_HAS(pyper_pipeline_message(p), "encode");
    pyper_unref(p);
    p = pyper_pipe(pyper_task(count_up, .branch = true, .name = "source"),
                   pyper_task(pass, INTS, .multiprocess = true, .name = "worker"));
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK_HAS(pyper_pipeline_message(p), "'source'");
    CHECK_HAS(pyper_pipeline_message(p), "'worker'");
    pyper_unref(p);
    p = pyper_task(pass, INTS, .multiprocess = true, .name = "worker");
    pyper_run *run = START(p, PTR(1));
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_HAS(pyper_error_message(run), "'worker'");
    CHECK_HAS(pyper_error_message(run), "argument");
    finish(run, p);
}

/* The longest of these messages, with names that are shown as far as any is. */
TEST(a_refusal_is_not_cut_before_the_mend) {
    static const char name[] = "0123456789012345678901234567890123456789012345678901234567890123";
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, .name = name),
                                   pyper_task(pass, INTS, .multiprocess = true, .name = name));
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK_HAS(pyper_pipeline_message(p), "(pyper_type_int, pyper_type_blob or your own)");
    pyper_unref(p);
}

TEST(a_type_that_only_lacks_its_size_is_refused_in_words_that_say_so) {
    const pyper_item_type sizeless = {.encode = crossing.encode, .decode = crossing.decode};
    pyper_pipeline *p = pyper_task(pass, .type = &sizeless, .multiprocess = true);
    CHECK_EQ(pyper_pipeline_error(p), PYPER_EINVAL);
    CHECK_HAS(pyper_pipeline_message(p), "no size");
    pyper_unref(p);
    p = pyper_task(pass, INTS, .multiprocess = true);
    pyper_run *run = START(p, PTR(1), .type = &sizeless);
    ENDS_WITH(run, PYPER_EINVAL);
    CHECK_HAS(pyper_error_message(run), "no size");
    close_both(run, p);
}

/* --------------------------------------------------------------------------------- failures */

static int stop_and_emit(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    CHECK_EQ(pyper_emit(w, item_new(1)), 0);
    if (bind)
        pyper_cancel(pyper_worker_run(w));
    else
        pyper_fail(w, 7, "enough");
    CHECK(pyper_cancelled(w));
    CHECK_EQ(pyper_emit(w, item_new(2)), PYPER_ECANCELED);
    return PYPER_ECANCELED;
}

/* Also before the caller's process has heard of it. */
EACH_HOST(who_has_stopped_the_run_emits_nothing_more) {
    for (int i = 0; i < 20; i++) {
        pyper_pipeline *p = pyper_task(stop_and_emit, .branch = true, .bind = PTR(i % 2),
                                       .type = &crossing, .multiprocess = true);
        pyper_run *run = START(p, PTR(0), .type = &pyper_type_int);
        void *out;
        int rc;
        while ((rc = pyper_next(run, &out)) > 0) CHECK_EQ(item_deliver(out), 1);
        CHECK_EQ(rc, i % 2 ? PYPER_ECANCELED : PYPER_EFAILED);
        close_both(run, p);
    }
}

static int fail_at_10(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 10) return pyper_fail(w, 404, "no item %ld", INT(item));
    return pyper_emit(w, item);
}

EACH_HOST(a_failure_travels_with_its_code_and_words) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(fail_at_10, INTS, .multiprocess = true, .name = "finder"));
    pyper_run *run = START(p, PTR(1000));
    for (long i = 0; i < 10; i++) NEXT_IS(run, i);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 404);
    CHECK_EQ(pyper_error_task(run), 1);
    CHECK_STR(pyper_error_message(run), "task 'finder' (2 of 2): no item 10");
    finish(run, p);
}

static int return_oddly(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return -4711;
}

static int fail_with_payload(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_fail_with(w, 5, "with a payload", item_new(1), item_destroy);
}

static int fail_with_bytes(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    return pyper_fail_bytes(w, 6, "with bytes", "abc", 4);
}

EACH_HOST(all_kinds_of_failure_travel) {
    static const struct {
        pyper_fn fn;
        int code;
        const char *word;
    } kinds[] = {{return_oddly, -4711, "returned -4711"},
                 {fail_with_payload, 5, "with a payload"},
                 {fail_with_bytes, 6, "with bytes"}};
    for (size_t i = 0; i < 3; i++) {
        for (int in_process = 0; in_process < 2; in_process++) {
            pyper_pipeline *p = pyper_task(kinds[i].fn, INTS, .multiprocess = in_process);
            pyper_run *run = START(p, PTR(1), .type = &pyper_type_int);
            ENDS_WITH(run, PYPER_EFAILED);
            CHECK_EQ(pyper_error_code(run), kinds[i].code);
            CHECK_HAS(pyper_error_message(run), kinds[i].word);
            size_t size = 0;
            const char *bytes = pyper_error_bytes(run, &size);
            CHECK_EQ(size, i == 2 ? 4 : 0);
            if (i == 2) CHECK_STR(bytes, "abc");
            finish(run, p);
        }
    }
}

/* The last callback may ask what nobody has asked for. */
static void release_and_ask(void *host_data, pyper_run *run) {
    CHECK_EQ(pyper_failed(run), PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 6);
    CHECK_EQ(pyper_error_task(run), 0);
    CHECK_HAS(pyper_error_message(run), "with bytes");
    CHECK(pyper_error_payload(run) == NULL);
    size_t size;
    CHECK_STR(pyper_error_bytes(run, &size), "abc");
    CHECK_EQ(size, 4);
    tally_add(host_data, 1);
}

TEST(the_last_callback_of_a_host_may_ask_for_the_failure) {
    static const pyper_host host = {.size = sizeof host, .release = release_and_ask};
    for (int in_process = 0; in_process < 2; in_process++) {
        tally released = TALLY;
        pyper_pipeline *p = pyper_task(fail_with_bytes, INTS, .multiprocess = in_process);
        pyper_run *run =
            pyper_start(p, PTR(1), .type = &pyper_type_int, .host = &host, .host_data = &released);
        CHECK_EQ(pyper_wait_until(run, PYPER_FOREVER), 0);
        CHECK_EQ(tally_count(&released), 0);
        finish(run, p);
        CHECK_EQ(tally_count(&released), 1);
    }
}

static int stay_at_5(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 5) stay();
    return pyper_emit(w, item);
}

EACH_HOST(a_failure_elsewhere_ends_a_long_call) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(stay_at_5, INTS, .multiprocess = true, .workers = 2),
                                   pyper_task(fail_at_10, INTS));
    pyper_run *run = START(p, PTR(1000));
    void *out;
    int rc;
    while ((rc = pyper_next(run, &out)) > 0) continue;
    CHECK_EQ(rc, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 404);
    finish(run, p);
}

/* A process fails, and tells those behind it to stop, one after the other.  The first of them stops
 * it in the midst of that, and leaves: that is not the end of its outputs.  (What the process must
 * do first takes it long: there may be very many who wait for their turn.)  Nobody else tells them:
 * the thread that looks after the processes is held up until they have all been told. */
enum { SUMS = 3, WIDE = 65536 };
static tally told = TALLY;
static _Thread_local bool looks_after;
static _Atomic int
    *who; /* fails; is told first; has the second stopped the first?; how many wait */

static int fail_at_9(pyper_worker *w, void *item, void *bind) {
    if (INT(item) != 9) return pyper_emit(w, item);
    while (atomic_load(&who[3]) < 1 + SUMS) sched_yield();
    atomic_store(&who[0], (int)getpid());
    return pyper_fail(w, 404, "no nine");
}

static int stop_who_fails(pyper_worker *w, void *item, void *bind) {
    int rc;
    atomic_store(&who[1], (int)getpid());
    atomic_fetch_add(&who[3], 1);
    for (void *x; (rc = pyper_pull(w, &x)) > 0;) continue;
    CHECK_EQ(kill(atomic_load(&who[0]), SIGSTOP), 0);
    atomic_store(&who[2], 1);
    return rc;
}

/* Let the one who was stopped go on, when everybody else has done what there was to do: when the
 * one who stopped it has left, or waits for a lock that it has.  (On a busy machine it may have
 * told them all before it was stopped; then it has perhaps been killed meanwhile, as one that
 * overstays.) */
static void continue_who_fails(void *unused) {
    while (atomic_load(&who[2]) == 0) sched_yield();
    char path[40];
    snprintf(path, sizeof path, "/proc/%d/status", atomic_load(&who[1]));
    while (lines_with(path, "State:\tZ") + lines_with(path, "State:\tS") == 0) sched_yield();
    all_asleep();
    CHECK(kill(atomic_load(&who[0]), SIGCONT) == 0 || errno == ESRCH);
}

static int sum_of_what_never_ends(pyper_worker *w, void *item, void *bind) {
    int rc;
    atomic_fetch_add(&who[3], 1);
    for (void *x; (rc = pyper_pull(w, &x)) > 0;) continue;
    tally_add(&told, 1);
    CHECK_EQ(rc, PYPER_ECANCELED);
    return rc;
}

typedef struct carrier {
    pthread_t id;
    bool looks_after;
    void (*entry)(void *);
    void *arg;
} carrier;

static void *carry(void *arg) {
    carrier *c = arg;
    looks_after = c->looks_after;
    c->entry(c->arg);
    return NULL;
}

static int start_carrier(void *host_data, const char *name, void (*entry)(void *), void *arg,
                         void **ret_thread) {
    carrier *c = malloc(sizeof *c);
    CHECK(c != NULL);
    *c = (carrier){.looks_after = !strcmp(name, "pyper-processes"), .entry = entry, .arg = arg};
    CHECK_EQ(pthread_create(&c->id, NULL, carry, c), 0);
    *ret_thread = c;
    return 0;
}

static int join_carrier(void *host_data, void *thread) {
    carrier *c = thread;
    CHECK_EQ(pthread_join(c->id, NULL), 0);
    free(c);
    return 0;
}

static int detached_late(void *host_data, int (*call)(void *), void *arg) {
    int rc = call(arg);
    if (looks_after) tally_wait(&told, SUMS);
    return rc;
}

static const pyper_host late_host = {.size = sizeof late_host,
                                     .detached = detached_late,
                                     .start_thread = start_carrier,
                                     .join_thread = join_carrier};

TEST(the_end_of_a_stopped_process_is_not_the_end_of_its_outputs) {
    who = shared(4 * sizeof *who);
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(fail_at_9, INTS, .multiprocess = true, .workers = 2, .ordered = true,
                              .throttle = WIDE),
                   pyper_task(stop_who_fails, .join = true, INTS, .multiprocess = true),
                   pyper_task(sum_of_what_never_ends, .join = true, INTS, .workers = SUMS));
    pyper_run *run = pyper_start(p, PTR(10), .host = &late_host);
    thread continuer;
    thread_start(&continuer, continue_who_fails, NULL);
    ENDS_WITH(run, PYPER_EFAILED);
    CHECK_EQ(pyper_error_code(run), 404);
    thread_join(&continuer);
    finish(run, p);
}

static int cancel_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_cancel(pyper_worker_run(w));
    CHECK(pyper_cancelled(w));
    void *out;
    CHECK_EQ(pyper_next(pyper_worker_run(w), &out), PYPER_EDEADLK);
    return PYPER_ECANCELED;
}

EACH_HOST(a_worker_may_cancel_the_run) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 10),
                                   pyper_task(cancel_own_run, INTS, .multiprocess = true));
    pyper_run *run = START(p, NULL);
    ENDS_WITH(run, PYPER_ECANCELED);
    CHECK_EQ(pyper_failed(run), 0);
    finish(run, p);
}

static void cannot_wait(pyper_run *run, int code) {
    void *out;
    CHECK_EQ(pyper_next(run, &out), code);
    CHECK_EQ(pyper_wait_until(run, PYPER_NOWAIT), code);
    CHECK_EQ(pyper_drive(run), code);
    CHECK_EQ(pyper_try_next(run, &out), code);
    CHECK_EQ(pyper_fd(run), PYPER_EINVAL);
}

static void other_thread_cannot_wait(void *run) {
    cannot_wait(run, PYPER_EDEADLK);
}

/* In the worker's process there is nothing of the run but the worker, and its end waits for other
 * threads there as well; in a child of it there is not even that. */
static int wait_for_own_run(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    pyper_run *run = pyper_worker_run(w);
    pid_t child = fork();
    CHECK_GE(child, 0);
    cannot_wait(run, child == 0 ? PYPER_EFORKED : PYPER_EDEADLK);
    if (child == 0) _exit(0);
    child_ends_well(child);
    thread other;
    thread_start(&other, other_thread_cannot_wait, run);
    thread_join(&other);
    return pyper_emit(w, item);
}

EACH_HOST(a_worker_cannot_wait_for_its_own_run) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(wait_for_own_run, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(3));
    for (long i = 0; i < 3; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    finish(run, p);
}

/* ----------------------------------------------------------------------------------- deaths */

static int die_of_signal(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 5) kill(getpid(), *(const int *)bind);
    if (INT(item) == 5) stay();
    return pyper_emit(w, item);
}

static int die_by_exit(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 5) _exit(*(const int *)bind);
    return pyper_emit(w, item);
}

static void dies(pyper_fn fn, int how, int code, const char *word) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 10),
                   pyper_task(fn, INTS, .multiprocess = true, .bind = &how, .name = "victim"));
    pyper_run *run = START(p, NULL);
    for (long i = 0; i < 5; i++) NEXT_IS(run, i);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), code);
    CHECK_EQ(pyper_error_task(run), 1);
    CHECK_HAS(pyper_error_message(run), "'victim'");
    CHECK_HAS(pyper_error_message(run), "worker 1 of 1");
    CHECK_HAS(pyper_error_message(run), word);
    finish(run, p);
}

EACH_HOST(a_death_is_named) {
    dies(die_of_signal, SIGKILL, -SIGKILL, "signal 9");
    dies(die_of_signal, SIGTERM, -SIGTERM, "signal 15");
    dies(die_by_exit, 3, 3, "exit code 3");
    dies(die_by_exit, 0, 0, "exit code 0");
}

EACH_HOST(the_kernel_may_wait_for_the_processes) {
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    CHECK_EQ(sigaction(SIGCHLD, &ignore, &before), 0);
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(add_one, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(10));
    for (long i = 0; i < 10; i++) NEXT_IS(run, i + 1);
    ENDS_WITH(run, 0);
    finish(run, p);
    dies(die_of_signal, SIGKILL, PYPER_STATUS_UNKNOWN, "how is not known");
    CHECK_EQ(sigaction(SIGCHLD, &before, NULL), 0);
}

#if !CHECK_TSAN && !CHECK_ASAN /* which have handlers of their own */
static int die_of_fault(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (INT(item) == 5) *(volatile int *)bind = 1;
    return pyper_emit(w, item);
}

TEST(a_fault_is_a_death) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(die_of_fault, INTS, .multiprocess = true));
    pyper_run *run = START(p, PTR(100));
    for (long i = 0; i < 5; i++) NEXT_IS(run, i);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), -SIGSEGV);
    finish(run, p);
}
#endif

static int tell_pid(pyper_worker *w, void *item, void *bind) {
    kit_in_task(w);
    atomic_store((_Atomic long *)bind, (long)getpid());
    return pyper_emit(w, item);
}

/* Emits its process's number, and then nothing more. */
static int tell_pid_and_stay(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    if (pyper_emit(w, PTR(getpid())) < 0) return PYPER_ECANCELED;
    stay();
}

EACH_HOST(an_idle_worker_may_die) {
    _Atomic long *pid = shared(sizeof *pid);
    tally gate = TALLY;
    (void)gate;
    pyper_pipeline *p = pyper_pipe(pyper_task(three, .branch = true, .join = true, INTS));
    pyper_unref(p);
    /* The first task emits one item and stays: the second has nothing more to do. */
    p = pyper_pipe(pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true),
                   pyper_task(tell_pid, INTS, .multiprocess = true, .bind = (void *)pid));
    pyper_run *run = START(p, NULL, .type = &pyper_type_int);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    pyper_task_stats stats[2];
    do {
        others();
        pyper_stats(run, stats, 2);
    } while (stats[1].starved_ns == 0);
    CHECK_EQ(kill((pid_t)atomic_load(pid), SIGKILL), 0);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_task(run), 1);
    finish(run, p);
}

EACH_HOST(a_worker_inside_a_call_may_die) {
    pyper_pipeline *p = pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true);
    pyper_run *run = START(p, NULL, .type = &pyper_type_int);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    CHECK_EQ(kill((pid_t)INT(out), SIGKILL), 0);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), -SIGKILL);
    finish(run, p);
}

/* Dies half-way through writing an item: space is reserved, nothing is published. */
static int encode_and_die(void *i, pyper_transfer *to) {
    char *place = pyper_transfer_reserve(to, 100000);
    CHECK(place != NULL);
    memset(place, 1, 50000);
    kill(getpid(), SIGKILL);
    stay();
}

static const pyper_item_type deadly = {
    .size = sizeof deadly, .encode = encode_and_die, .decode = decode_badly};

EACH_HOST(a_worker_may_die_half_way_through_an_item) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(pass, .type = &deadly, .multiprocess = true, .workers = 2));
    pyper_run *run = START(p, PTR(100));
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), -SIGKILL);
    finish(run, p);
}

/* ---------------------------------------------------------------------------------- leaving */

EACH_HOST(close_ends_long_calls_after_the_grace) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true),
                   pyper_task(pass, INTS, .multiprocess = true, .workers = 2));
    pyper_run *run = START(p, NULL, .type = &pyper_type_int);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    finish(run, p);
    CHECK_EQ(kill((pid_t)INT(out), 0), -1);
    CHECK_EQ(errno, ESRCH);
}

/* Notices that the run is over, and takes its time to leave. */
static int leave_properly(pyper_worker *w, void *item, void *bind) {
    kit_in_task(w);
    pyper_emit(w, item);
    while (!pyper_cancelled(w)) sched_yield();
    atomic_fetch_add((_Atomic long *)bind, 1);
    return PYPER_ECANCELED;
}

EACH_HOST(within_the_grace_a_call_may_return) {
    _Atomic long *left = shared(sizeof *left);
    pyper_pipeline *p = pyper_task(leave_properly, .branch = true, INTS, .multiprocess = true,
                                   .bind = (void *)left);
    pyper_run *run = START(p, PTR(1), .type = &pyper_type_int);
    NEXT_IS(run, 1);
    finish(run, p);
    CHECK_EQ(atomic_load(left), 1);
}

EACH_HOST(an_abandoned_run_leaves_nothing) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 10),
                   pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true));
    pyper_run *run = START(p, NULL);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    pyper_run_unref(run);
    pyper_unref(p);
    bool mine = kit_detach();
    await_end_of((pid_t)INT(out));
    while (lines_with("/proc/self/maps", "memfd:pyper") > 0) sched_yield();
    kit_attach(mine);
}

TEST(ctrl_c_is_the_callers) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS, .throttle = 1),
                                   pyper_task(pass, INTS, .multiprocess = true, .workers = 2));
    CHECK_EQ(setpgid(0, 0), 0);
    signal(SIGINT, SIG_IGN);
    pyper_run *run = START(p, PTR(1000));
    long seen = 0;
    for (void *out; pyper_next(run, &out) > 0; seen++)
        if (seen % 100 == 0) CHECK_EQ(kill(0, SIGINT), 0);
    CHECK_EQ(seen, 1000);
    CHECK_EQ(pyper_failed(run), 0);
    finish(run, p);
}

static volatile pid_t interrupted_in;

static void note_interrupt(int number) {
    interrupted_in = getpid();
}

static void interrupt_child(void) {
    raise(SIGINT);
}

static int pass_unless_interrupted(pyper_worker *w, void *item, void *bind) {
    return interrupted_in ? pyper_fail(w, 1, "interrupted") : pass(w, item, bind);
}

/* It comes when the worker has only just been forked. */
TEST(ctrl_c_is_the_callers_also_while_a_worker_is_forked) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(pass_unless_interrupted, INTS, .multiprocess = true));
    CHECK_EQ(pthread_atfork(NULL, NULL, interrupt_child), 0);
    void (*const handlers[])(int) = {SIG_DFL, note_interrupt};
    for (int i = 0; i < 2; i++) {
        CHECK(signal(SIGINT, handlers[i]) != SIG_ERR);
        sigset_t before, after;
        CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &before), 0);
        pyper_run *run = START(p, PTR(10));
        for (long k = 0; k < 10; k++) NEXT_IS(run, k);
        ENDS_WITH(run, 0);
        CHECK_EQ(pyper_close(run), 0);
        CHECK_EQ(interrupted_in, 0);
        CHECK_EQ(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
        CHECK(sigismember(&after, SIGINT) == sigismember(&before, SIGINT));
    }
    pyper_unref(p);
}

/* Start a run, tell its workers' numbers through a pipe, and wait for the end. */
static _Noreturn void be_a_caller(int numbers) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true),
                   pyper_task(pass, INTS, .multiprocess = true, .workers = 3),
                   pyper_task(tell_pid_and_stay, .branch = true, INTS, .multiprocess = true));
    pyper_run *run = pyper_start(p, NULL, .type = &pyper_type_int);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    pid_t pid = (pid_t)INT(out);
    CHECK_EQ(write(numbers, &pid, sizeof pid), sizeof pid);
    CHECK_EQ(pyper_next(run, &out), 0);
    _exit(0);
}

TEST(workers_follow_a_caller_that_is_killed) {
    int numbers[2];
    pid_t pid;
    CHECK_EQ(pipe(numbers), 0);
    pid_t caller = fork();
    CHECK_GE(caller, 0);
    if (caller == 0) be_a_caller(numbers[1]);
    close(numbers[1]);
    CHECK_EQ(read(numbers[0], &pid, sizeof pid), sizeof pid);
    CHECK_EQ(kill(caller, SIGKILL), 0);
    CHECK_EQ(waitpid(caller, NULL, 0), caller);
    /* Every worker has an end of the pipe: when all have gone it is at its end. */
    CHECK_EQ(read(numbers[0], &pid, sizeof pid), 0);
    close(numbers[0]);
    nothing_is_left();
}

/* ---------------------------------------------------------------------------------- nesting */

/* Runs a pipeline with a process task of its own. */
static int nested(pyper_worker *w, void *item, void *bind) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(sum, .join = true, INTS, .multiprocess = true));
    pyper_run *run = pyper_start(p, item);
    void *out;
    CHECK_EQ(pyper_next(run, &out), 1);
    CHECK_EQ(pyper_close(run), 0);
    pyper_unref(p);
    return pyper_emit(w, out);
}

TEST(a_worker_may_run_processes_of_its_own) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(nested, INTS, .multiprocess = true, .workers = 2, .ordered = true));
    pyper_run *run = pyper_start(p, PTR(20));
    for (long i = 0; i < 20; i++) NEXT_IS(run, i * (i - 1) / 2);
    ENDS_WITH(run, 0);
    finish(run, p);
}

TEST(runs_in_progress_are_dead_in_a_worker) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_for_ever, .branch = true, INTS, .throttle = 5),
                                   pyper_task(pass, INTS, .multiprocess = true, .workers = 2));
    pyper_run *runs[3];
    for (int i = 0; i < 3; i++) runs[i] = pyper_start(p, NULL);
    for (long k = 0; k < 100; k++)
        for (int i = 0; i < 3; i++) {
            void *out;
            CHECK_EQ(pyper_next(runs[i], &out), 1);
        }
    for (int i = 0; i < 3; i++) CHECK_EQ(pyper_close(runs[i]), 0);
    pyper_unref(p);
    nothing_is_left();
}

static int say(pyper_worker *w, void *item, void *bind) {
    printf("from the worker %ld\n", INT(item));
    return pyper_emit(w, item);
}

TEST(what_a_worker_prints_is_printed_once) {
    char path[] = "/tmp/pyper-test-XXXXXX";
    int file = mkstemp(path), before = dup(1);
    CHECK(file >= 0 && before >= 0);
    fflush(stdout);
    dup2(file, 1);
    printf("from the caller\n"); /* still in the buffer when the worker is forked */
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(say, INTS, .multiprocess = true));
    pyper_run *run = pyper_start(p, PTR(3));
    for (long i = 0; i < 3; i++) NEXT_IS(run, i);
    ENDS_WITH(run, 0);
    finish(run, p);
    fflush(stdout);
    dup2(before, 1);
    close(file);
    close(before);
    CHECK_EQ(lines_with(path, "from the worker"), 3);
    CHECK_EQ(lines_with(path, "from the caller"), 1);
    unlink(path);
}

/* ------------------------------------------------------------ a host that starts processes */

typedef struct starter {
    long started, joined;
} starter;

static int never_detached(void *host_data, int (*call)(void *arg), void *arg) {
    CHECK_FAIL("not a part of the table");
    return -1;
}

/* Of an older header. */
static const pyper_host short_host = {.size = offsetof(pyper_host, detached),
                                      .detached = never_detached};

/* As an interpreter would: the child knows nothing but the descriptors and the numbers. */
static int start_process(void *host_data, const pyper_process *process, void **ret_process,
                         int64_t *ret_pid) {
    starter *s = host_data;
    int fds[PYPER_PROCESS_FDS];
    for (int i = 0; i < PYPER_PROCESS_FDS; i++) fds[i] = dup(process->fds[i]);
    pid_t pid = fork();
    if (pid == 0) {
        int rc = pyper_attach(.fds = {fds[0], fds[1], fds[2], fds[3]}, .task = process->task,
                              .worker = process->worker, .fn = multiply, .bind = process->bind,
                              .input_type = &pyper_type_int, .output_type = &pyper_type_int,
                              .host = &short_host, .host_data = host_data);
        _exit(rc < 0 ? 9 : 0);
    }
    for (int i = 0; i < PYPER_PROCESS_FDS; i++) close(fds[i]);
    s->started++;
    *ret_process = s;
    *ret_pid = pid;
    long *ids = calloc(1, sizeof *ids);
    *ids = pid;
    *ret_process = ids;
    return pid < 0 ? PYPER_EPROCESS : 0;
}

static void join_process(void *host_data, void *process, int *ret_status) {
    starter *s = host_data;
    int status;
    CHECK_EQ(waitpid((pid_t) * (long *)process, &status, 0), *(long *)process);
    *ret_status = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    free(process);
    s->joined++;
}

static const pyper_host starting_host = {
    .size = sizeof starting_host, .start_process = start_process, .join_process = join_process};

TEST(a_host_may_start_the_processes) {
    starter s = {0};
    long ten = 10;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(multiply, .bind = &ten, INTS, .multiprocess = true,
                                              .workers = 3, .ordered = true),
                                   pyper_task(multiply, .bind = &ten, INTS, .multiprocess = true));
    pyper_run *run = pyper_start(p, PTR(500), .host = &starting_host, .host_data = &s);
    for (long i = 0; i < 500; i++) NEXT_IS(run, 100 * i);
    ENDS_WITH(run, 0);
    CHECK_EQ(s.started, 4);
    CHECK_EQ(s.joined, 4);
    finish(run, p);
}

static int refuse_process(void *host_data, const pyper_process *process, void **ret_process,
                          int64_t *ret_pid) {
    starter *s = host_data;
    return s->started == 2 ? -5000 : start_process(host_data, process, ret_process, ret_pid);
}

static const pyper_host refusing_host = {
    .size = sizeof refusing_host, .start_process = refuse_process, .join_process = join_process};

TEST(a_process_that_cannot_be_started_fails_the_run) {
    starter s = {0};
    long ten = 10;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(multiply, .bind = &ten, INTS, .multiprocess = true, .workers = 3));
    pyper_run *run = pyper_start(p, PTR(500), .host = &refusing_host, .host_data = &s);
    ENDS_WITH(run, PYPER_EPROCESS);
    CHECK_HAS(pyper_error_message(run), "worker 3 of 3 could not be started");
    CHECK_EQ(s.joined, 2);
    nobody_is_alive(run);
    finish(run, p);
}

/* With each number of descriptors that is not enough: the run says what it lacks, and leaves
 * none. */
static void start_with_few_descriptors(pyper_pipeline *p, bool loop, long at_least) {
    struct rlimit before, few;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    long open = check_entries("/proc/self/fd"), refused = 0;
    few.rlim_cur = 1;
    for (int rc = -1; rc < 0; few.rlim_cur++) {
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
        pyper_run *run = pyper_start(p, PTR(1), .loop = loop);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
        rc = pyper_failed(run);
        if (rc < 0) {
            ENDS_WITH(run, PYPER_EMFILE);
            CHECK_HAS(pyper_error_message(run), "no file descriptors are left");
            nobody_is_alive(run);
            refused++;
        }
        CHECK_EQ(pyper_close(run), 0);
        nothing_is_left();
        CHECK_EQ(check_entries("/proc/self/fd"), open);
    }
    CHECK_GE(refused, at_least);
    pyper_unref(p);
}

TEST(without_descriptors_the_run_says_so) {
    /* The memory, two bells, the caller, and one for each process. */
    start_with_few_descriptors(
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(pass, INTS, .multiprocess = true, .workers = 3)),
        false, 7);
    start_with_few_descriptors(pyper_task(count_up, .branch = true), true, 1);
}

/* It waits for the process that it cannot watch. */
TEST(a_signal_while_a_process_is_given_up_leaves_no_zombie) {
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(pass, INTS, .multiprocess = true));
    struct rlimit before, few;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    /* The memory, two bells and the caller. */
    int next = dup(0);
    CHECK_GE(next, 0);
    close(next);
    few = (struct rlimit){.rlim_cur = (rlim_t)next + 4, .rlim_max = before.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    interrupted = 3;
    pyper_run *run = pyper_start(p, PTR(1));
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    CHECK_EQ(interrupted, 0);
    ENDS_WITH(run, PYPER_EMFILE);
    CHECK_HAS(pyper_error_message(run), "worker 1 of 1 could not be started");
    finish(run, p);
}

/* As daemons do: close those of the standard descriptors whose bit is set. */
static void close_standard(long which, int ret_before[3]) {
    for (int fd = 0; fd < 3; fd++) {
        ret_before[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 20);
        CHECK_GE(ret_before[fd], 20);
        if (which & 1 << fd) close(fd);
    }
}

static void open_standard_again(const int before[3]) {
    for (int fd = 0; fd < 3; fd++) {
        CHECK_EQ(dup2(before[fd], fd), fd);
        close(before[fd]);
    }
}

/* Those that are closed. */
static long closed_standard(void) {
    long closed = 0;
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0) closed |= 1 << fd;
    return closed;
}

static int tell_closed(pyper_worker *w, void *item, void *bind) {
    return pyper_emit(w, PTR(closed_standard()));
}

TEST(no_standard_descriptor_that_is_closed_becomes_the_librarys) {
    for (int loop = 0; loop < 2; loop++) {
        for (long which = 1; which < 8; which++) {
            pyper_pipeline *p = pyper_pipe(
                pyper_task(count_up, .branch = true, INTS),
                pyper_task(tell_closed, INTS, .multiprocess = true, .workers = 2, .ordered = true));
            int before[3], fd;
            void *there = PTR(which);
            close_standard(which, before);
            pyper_run *run = pyper_start(p, PTR(1), .loop = loop);
            long here = closed_standard();
            fd = pyper_fd(run);
            if (!loop) pyper_next(run, &there);
            CHECK_EQ(pyper_close(run), 0);
            open_standard_again(before);
            CHECK_EQ(here, which);
            CHECK_EQ(INT(there), which);
            if (loop) CHECK_GE(fd, 3);
            pyper_unref(p);
            nothing_is_left();
        }
    }
}

TEST(without_descriptors_but_closed_ones_the_run_says_so) {
    int before[3];
    close_standard(7, before);
    start_with_few_descriptors(
        pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                   pyper_task(pass, INTS, .multiprocess = true, .workers = 3)),
        false, 9);
    start_with_few_descriptors(pyper_task(count_up, .branch = true), true, 3);
    open_standard_again(before);
}

/* As in a sandbox: from now on the system refuses a call to this process.  False: here nobody can
 * have that. */
static bool refuse_call(long number, int error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void starts_without(long number, int error, bool loop, const char *message) {
    if (!refuse_call(number, error)) return;
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(pass, INTS, .multiprocess = !loop));
    pyper_run *run = pyper_start(p, PTR(1), .loop = loop);
    ENDS_WITH(run, PYPER_ENOTSUP);
    CHECK_STR(pyper_error_message(run), message);
    finish(run, p);
}

TEST(a_call_that_the_system_refuses_is_named) {
    static const struct {
        long number;
        bool loop;
        const char *message;
    } calls[] = {
        {SYS_memfd_create, false, "the system refuses memfd_create(), which the run needs"},
        {SYS_fallocate, false, "the system refuses fallocate(), which the run needs"},
        {SYS_eventfd2, false, "the system refuses eventfd(), which the run needs"},
        {SYS_pidfd_open, false, "the system refuses pidfd_open(), which the run needs"},
        {SYS_eventfd2, true, "the system refuses eventfd(), which the run needs"},
    };
    static const int errors[] = {EPERM, EACCES, ENOSYS};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
            pid_t child = fork(); /* what is refused once is refused for good */
            CHECK_GE(child, 0);
            if (child == 0) {
                starts_without(calls[i].number, errors[e], calls[i].loop, calls[i].message);
                _exit(0);
            }
            child_ends_well(child);
        }
    }
}

static int start_nothing(void *host_data, const pyper_process *process, void **ret_process,
                         int64_t *ret_pid) {
    starter *s = host_data;
    pid_t pid = fork();
    if (pid == 0) _exit(1);
    s->started++;
    long *ids = calloc(1, sizeof *ids);
    *ids = pid;
    *ret_process = ids;
    *ret_pid = pid;
    return 0;
}

static const pyper_host lifeless_host = {
    .size = sizeof lifeless_host, .start_process = start_nothing, .join_process = join_process};

TEST(a_process_that_never_attaches_is_an_error_of_its_own) {
    starter s = {0};
    pyper_pipeline *p = pyper_task(pass, INTS, .multiprocess = true);
    pyper_run *run =
        pyper_start(p, PTR(1), .type = &pyper_type_int, .host = &lifeless_host, .host_data = &s);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), 1);
    CHECK_HAS(pyper_error_message(run), "before it could begin");
    finish(run, p);
}

/* Before the library sees it, it has ended and been waited for, so that its number names nobody. */
static int start_and_wait(void *host_data, const pyper_process *process, void **ret_process,
                          int64_t *ret_pid) {
    int rc = start_nothing(host_data, process, ret_process, ret_pid), status;
    CHECK_EQ(waitpid((pid_t)*ret_pid, &status, 0), *ret_pid);
    *(long *)*ret_process = WEXITSTATUS(status);
    return rc;
}

static void join_again(void *host_data, void *process, int *ret_status) {
    starter *s = host_data;
    *ret_status = (int)*(long *)process;
    free(process);
    s->joined++;
}

static const pyper_host waiting_host = {
    .size = sizeof waiting_host, .start_process = start_and_wait, .join_process = join_again};

TEST(a_process_that_has_gone_already_has_died) {
    starter s = {0};
    pyper_pipeline *p = pyper_pipe(pyper_task(count_up, .branch = true, INTS),
                                   pyper_task(pass, INTS, .multiprocess = true, .workers = 2));
    pyper_run *run = pyper_start(p, PTR(5), .host = &waiting_host, .host_data = &s);
    ENDS_WITH(run, PYPER_EDIED);
    CHECK_EQ(pyper_error_code(run), 1);
    CHECK_HAS(pyper_error_message(run), "before it could begin");
    finish(run, p);
    CHECK_EQ(s.joined, 2);
}

TEST(attaching_to_nothing_is_refused) {
    CHECK_EQ(pyper_attach_from(NULL), PYPER_EINVAL);
    long descriptors = check_entries("/proc/self/fd");
    int fds[PYPER_PROCESS_FDS] = {dup(0), dup(0), dup(0), dup(0)};
    CHECK_EQ(pyper_attach(.fds = {fds[0], fds[1], fds[2], fds[3]}, .fn = pass,
                          .input_type = &pyper_type_int, .output_type = &pyper_type_int),
             PYPER_EINVAL);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
    /* Of one that is too old to have any descriptors none is taken. */
    const pyper_attach_options nothing = {.size = sizeof nothing.size};
    CHECK_EQ(pyper_attach_from(&nothing), PYPER_EINVAL);
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
}
