/* Something runs out while a run is started or under way: threads, processes, descriptors, shared
 * memory, address space.  The run says what, is cleaned up, and the process is able to go on: the
 * same pipelines run well as soon as the limit is gone.  Black-box: pyper.h only.
 *
 * Limits of the process are set in a child of the test (which may not come back to where it was: an
 * identity, say), and lowered step by step from "nothing works" to "all works". */
#include "../elsewhere.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define SANITIZED (CHECK_TSAN || CHECK_ASAN)

enum { ITEMS = 30, STEPS_MAX = 400 };

static int pass_later(pyper_worker *w, void *item, void *bind) {
    return INT(item) % 3 ? pass(w, item, bind) : begin(w, item, bind);
}

static void complete_unchanged(operation *op) {
    pyper_emit(op->worker, op->item);
    pyper_done(op->worker, 0);
}

static elsewhere place;

/* The kinds of runs: their three tasks run in 't'hreads, 'p'rocesses or as operations on a loop. */
static const char *const kinds[] = {"ttt", "ppp", "aaa", "tpt", "apa", "tpa"};
enum { KINDS = sizeof kinds / sizeof *kinds };

static pyper_pipeline *build(const char *kind) {
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .name = "source", .branch = true, .throttle = 3,
                   .type = &pyper_type_int, .multiprocess = kind[0] == 'p',
                   .async = kind[0] == 'a'),
        pyper_task(kind[1] == 'a' ? pass_later : pass, .name = "middle", .workers = 3,
                   .throttle = 3, .type = &pyper_type_int, .multiprocess = kind[1] == 'p',
                   .async = kind[1] == 'a', .bind = &place),
        pyper_task(kind[2] == 'a' ? pass_later : pass, .name = "last", .type = &pyper_type_int,
                   .multiprocess = kind[2] == 'p', .async = kind[2] == 'a', .bind = &place));
    CHECK_EQ(pyper_pipeline_error(p), 0);
    return p;
}

/* Run to the end and close: the code; `*ret_message` holds its message. */
static int run(const char *kind, char ret_message[600]) {
    long descriptors = check_entries("/proc/self/fd");
    pyper_pipeline *p = build(kind);
    pyper_run *run = pyper_start(p, PTR(ITEMS), .type = &pyper_type_int);
    long count, total;
    int rc = drain(run, &count, &total);
    CHECK_EQ(pyper_failed(run), rc);
    if (rc == 0) {
        CHECK_EQ(count, ITEMS);
        CHECK_EQ(total, ITEMS * (ITEMS - 1) / 2);
    } else {
        ENDS_WITH(run, rc);
        CHECK(*pyper_error_message(run));
    }
    nobody_is_alive(run);
    snprintf(ret_message, 600, "%s", pyper_error_message(run));
    close_both(run, p);
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    CHECK_EQ(errno, ECHILD);
    elsewhere_rest(&place);
    /* -1: what it takes to count them has run out. */
    long after = check_entries("/proc/self/fd");
    if (descriptors >= 0 && after >= 0) CHECK_EQ(after, descriptors);
    return rc;
}

static void set_soft_limit(int resource, rlim_t soft) {
    struct rlimit limit;
    CHECK_EQ(getrlimit(resource, &limit), 0);
    limit.rlim_cur = soft < limit.rlim_max ? soft : limit.rlim_max;
    CHECK_EQ(setrlimit(resource, &limit), 0);
}

static rlim_t soft_limit(int resource) {
    struct rlimit limit;
    CHECK_EQ(getrlimit(resource, &limit), 0);
    return limit.rlim_cur;
}

/* With the limit at `from`, then a step higher, until the run succeeds: each failure is one that
 * `fits`, and after each the same run succeeds without the limit. */
static void step_by_step(const char *kind, int resource, rlim_t from, rlim_t step,
                         bool (*fits)(int rc, const char *message)) {
    rlim_t before = soft_limit(resource);
    int failed = 0, rc;
    char message[600];
    do {
        CHECK_NOTE("%s, limit %llu", kind, (unsigned long long)from);
        set_soft_limit(resource, from);
        rc = run(kind, message);
        set_soft_limit(resource, before);
        if (rc < 0 && !fits(rc, message))
            CHECK_FAIL("%s with limit %llu: %d (%s)", kind, (unsigned long long)from, rc, message);
        if (rc < 0 && ++failed % 4 == 1) CHECK_EQ(run(kind, message), 0);
        CHECK_LE(failed, STEPS_MAX);
        from += step;
    } while (rc < 0);
    CHECK_GE(failed, 1);
    CHECK_EQ(run(kind, message), 0);
}

/* In a child that leaves without further ado. */
static void in_child(void (*body)(void)) {
    fflush(NULL);
    pid_t child = fork();
    CHECK_GE(child, 0);
    if (child == 0) {
        alarm(check_seconds());
        elsewhere_begin(&place, 1, complete_unchanged);
        body();
        elsewhere_end(&place);
        fflush(NULL);
        _exit(0);
    }
    child_ends_well(child);
}

/* ------------------------------------------------------------------- threads and processes */

/* A worker's process that gets no thread to follow its caller with ends before it has begun. */
static bool no_thread(int rc, const char *message) {
    if (rc == PYPER_ETHREAD) return strstr(message, "thread could not be started") != NULL;
    if (rc == PYPER_EPROCESS) return strstr(message, "process could not be started") != NULL;
    return rc == PYPER_EDIED && strstr(message, "before it could begin") != NULL;
}

static void refuse_threads(void) {
    rlim_t first = 1; /* whoever we are: that many are there already */
    bool alone = false;
    if (geteuid() == 0) {
        /* The limit does not hold for root.  Of this user there is nobody but us. */
        uid_t nobody = 1000000000 + (uid_t)getpid();
        alone = setresuid(nobody, nobody, nobody) == 0;
        if (!alone) CHECK_FAIL("cannot take another user's place: %s", strerror(errno));
    }
    for (int k = 0; k < KINDS; k++) {
        if (strcmp(kinds[k], "aaa") == 0) continue; /* starts nothing */
        if (alone) {
            step_by_step(kinds[k], RLIMIT_NPROC, first, 1, no_thread);
            continue;
        }
        char message[600];
        rlim_t before = soft_limit(RLIMIT_NPROC);
        set_soft_limit(RLIMIT_NPROC, first);
        int rc = run(kinds[k], message);
        set_soft_limit(RLIMIT_NPROC, before);
        CHECK(no_thread(rc, message));
        CHECK_EQ(run(kinds[k], message), 0);
    }
}

TEST(no_threads_and_processes_are_left) {
    in_child(refuse_threads);
}

/* ------------------------------------------------------------------------------ descriptors */

static bool no_descriptor(int rc, const char *message) {
    /* Of a process that cannot be watched for lack of one we only know that it was not started. */
    if (rc == PYPER_EPROCESS) return strstr(message, "could not be started") != NULL;
    return rc == PYPER_EMFILE && strstr(message, pyper_strerror(PYPER_EMFILE)) != NULL;
}

static void refuse_descriptors(void) {
    int next = dup(0);
    CHECK_GE(next, 0);
    close(next);
    for (int k = 0; k < KINDS; k++) {
        if (strcmp(kinds[k], "ttt") == 0) continue; /* needs none */
        step_by_step(kinds[k], RLIMIT_NOFILE, (rlim_t)next, 1, no_descriptor);
    }
}

TEST(no_descriptors_are_left) {
    in_child(refuse_descriptors);
}

/* A program that shuts itself in may set the limit below what it has open: that stays usable, but
 * poll() takes no more descriptors than the limit. */
static void shut_in(void) {
    set_soft_limit(RLIMIT_NOFILE, 0);
}

static int pass_or_die(pyper_worker *w, void *item, void *bind) {
    if (INT(item) == ITEMS / 2) raise(SIGKILL);
    return pyper_emit(w, item);
}

/* With three processes, the first output taken: it ends with `code`, or (1) is closed before. */
static void ends_while_shut_in(pyper_fn fn, int code) {
    rlim_t before = soft_limit(RLIMIT_NOFILE);
    long count, total;
    void *out;
    pyper_pipeline *p = pyper_pipe(
        pyper_task(count_up, .branch = true, .throttle = 2, .type = &pyper_type_int),
        pyper_task(fn, .workers = 3, .multiprocess = true, .throttle = 2, .type = &pyper_type_int));
    pyper_run *run = pyper_start(p, PTR(ITEMS), .type = &pyper_type_int);
    CHECK_EQ(pyper_next(run, &out), 1);
    shut_in();
    if (code <= 0) CHECK_EQ(drain(run, &count, &total), code);
    if (code == 0) CHECK_EQ(count, ITEMS - 1);
    if (code == PYPER_EDIED) CHECK_EQ(pyper_error_code(run), -SIGKILL);
    close_both(run, p);
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    set_soft_limit(RLIMIT_NOFILE, before);
}

TEST(a_caller_that_shuts_itself_in_sees_its_processes_end) {
    ends_while_shut_in(pass, 0);
    ends_while_shut_in(pass_or_die, PYPER_EDIED);
    ends_while_shut_in(pass, 1);
}

/* poll() in the place of libc's.  In a worker's process it does not begin before the process has
 * shut itself in, and says how often it has come back. */
static struct shut_worker {
    pid_t caller;
    _Atomic bool shut;
    _Atomic int polled;
} * shut_worker;

int poll(struct pollfd *watched, nfds_t count, int timeout_ms) {
    bool in_worker = shut_worker && getpid() != shut_worker->caller;
    while (in_worker && !atomic_load(&shut_worker->shut)) sched_yield();
    int rc = (int)syscall(SYS_poll, watched, count, timeout_ms);
    if (in_worker) atomic_fetch_add(&shut_worker->polled, 1);
    return rc;
}

static int shut_in_and_pass(pyper_worker *w, void *item, void *bind) {
    shut_in();
    atomic_store(&shut_worker->shut, true);
    while (atomic_load(&shut_worker->polled) < 3) sched_yield();
    return pyper_emit(w, item);
}

TEST(a_worker_that_shuts_itself_in_goes_on) {
    shut_worker =
        mmap(NULL, sizeof *shut_worker, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shut_worker != MAP_FAILED);
    shut_worker->caller = getpid();
    pyper_pipeline *p = pyper_task(shut_in_and_pass, .multiprocess = true, .type = &pyper_type_int);
    pyper_run *run = pyper_start(p, PTR(7), .type = &pyper_type_int);
    NEXT_IS(run, 7);
    ENDS_WITH(run, 0);
    close_both(run, p);
}

/* ------------------------------------------------------------------------------ shared memory */

static bool no_memory(int rc, const char *message) {
    return rc == PYPER_ENOMEM && strstr(message, "memory") != NULL;
}

/* The limit on the size of files is one on shared memory.  Who goes beyond it is killed, by
 * SIGXFSZ: so nobody may try. */
static void refuse_shared_memory(void) {
    signal(SIGXFSZ, SIG_DFL);
    for (int k = 0; k < KINDS; k++)
        if (strchr(kinds[k], 'p')) step_by_step(kinds[k], RLIMIT_FSIZE, 0, 8 << 20, no_memory);
}

TEST(no_shared_memory_is_left) {
    in_child(refuse_shared_memory);
}

/* -------------------------------------------------------------- an item larger than the memory */

static _Atomic long *blobs_made, *blobs_freed;

static int encode_too_much(void *item, pyper_transfer *to) {
    (void)item;
    void *place_for_it = pyper_transfer_reserve(to, (size_t)1 << 46);
    CHECK(place_for_it == NULL);
    return PYPER_ENOMEM;
}

static int decode_never(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    (void)from, (void)data, (void)size, (void)ret_item;
    CHECK_FAIL("it cannot have come here");
    return PYPER_EINVAL;
}

static void count_freed(void *item) {
    (void)item;
    atomic_fetch_add(blobs_freed, 1);
}

static const pyper_item_type too_large = {.size = sizeof too_large,
                                          .destroy = count_freed,
                                          .encode = encode_too_much,
                                          .decode = decode_never};

static int make_too_large(pyper_worker *w, void *item, void *bind) {
    IN_TASK(w);
    atomic_fetch_add(blobs_made, 1);
    return pyper_emit(w, PTR(1));
}

TEST(an_item_is_larger_than_the_memory) {
    _Atomic long *counts =
        mmap(NULL, 2 * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(counts != MAP_FAILED);
    blobs_made = &counts[0];
    blobs_freed = &counts[1];
    elsewhere_begin(&place, 1, complete_unchanged);
    for (int in_process = 0; in_process < 2; in_process++) {
        pyper_pipeline *p =
            pyper_pipe(pyper_task(make_too_large, .name = "large", .type = &too_large,
                                  .multiprocess = in_process),
                       pyper_task(pass, .type = &pyper_type_int, .multiprocess = !in_process));
        pyper_run *r = pyper_start(p, PTR(0), .type = &pyper_type_int);
        ENDS_WITH(r, PYPER_ENOMEM);
        CHECK_HAS(pyper_error_message(r), "large");
        CHECK_HAS(pyper_error_message(r), "memory");
        close_both(r, p);
        CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
        CHECK_EQ(atomic_load(blobs_made), in_process + 1);
        CHECK_EQ(atomic_load(blobs_freed), in_process + 1);
        char message[600];
        CHECK_EQ(run("tpa", message), 0);
    }
    elsewhere_end(&place);
    munmap((void *)counts, 2 * sizeof *counts);
}

/* ------------------------------------------------------------------------------ address space */

static rlim_t address_space_in_use(void) {
    FILE *facts = fopen("/proc/self/statm", "r");
    unsigned long long pages;
    CHECK(facts != NULL);
    CHECK_EQ(fscanf(facts, "%llu", &pages), 1);
    fclose(facts);
    return (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
}

/* Memory and the stacks of threads both need it; so does what a process needs to begin. */
static bool no_space(int rc, const char *message) {
    return no_memory(rc, message) || no_thread(rc, message);
}

static void refuse_address_space(void) {
    /* Operations need memory of the test's own. */
    for (int k = 0; k < KINDS; k++)
        if (!strchr(kinds[k], 'a'))
            step_by_step(kinds[k], RLIMIT_AS, address_space_in_use() + (64 << 10), 1 << 20,
                         no_space);
}

/* (A sanitizer needs more of it than there is, and ends the program when it gets none.) */
TEST(no_address_space_is_left) {
    if (!SANITIZED) in_child(refuse_address_space);
}
