/* check.h - the runner of the C tests.
 *
 * A test file includes this header, writes TEST(name) { ... } as often as it likes and nothing
 * else: the header brings main().  Each test runs in a process of its own, forked from a parent
 * that never starts a thread, so that a crash, a hang or a leak belongs to one test and so that
 * ThreadSanitizer is content.  A test that is not done after CHECK_SECONDS (times
 * PYPER_TEST_TIMEOUT_SCALE, or a scale of its own under a sanitizer) is killed by SIGALRM.
 *
 * After the test the process must have as many threads and open descriptors as before (where /proc
 * tells), and whatever a kit has registered with check_hooks must be content as well.
 *
 *     ./test_x                    runs all; the last line is "N passed, N failed"
 *     ./test_x word ...           only the tests whose name contains one of the words
 *     ./test_x --no-fork word     in this process, for a debugger; a failed check aborts
 *     ./test_x --list
 *
 * The checks are no assert(): a release build keeps them.  They may be used from any thread; the
 * first one that fails ends the test.
 */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#define CHECK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CHECK_TSAN 1
#endif
#endif
#ifndef CHECK_TSAN
#define CHECK_TSAN 0
#endif

#if defined(__SANITIZE_ADDRESS__)
#define CHECK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CHECK_ASAN 1
#endif
#endif
#ifndef CHECK_ASAN
#define CHECK_ASAN 0
#endif

#define CHECK_SECONDS 30
#define CHECK_UNUSED __attribute__((unused))

/* A test, and which of several surroundings (see kit.h) it is to run in; 0 is the plain one. */
typedef struct check_test {
    const char *name;
    int variant;
    void (*run)(void);
    struct check_test *next;
} check_test;

/* What a kit wants to have done around each test; each may be NULL. */
static struct check_hooks {
    const char *(*variant_name)(int variant);
    void (*before)(int variant);
    void (*after)(void);   /* still in the surroundings of the test */
    void (*settled)(void); /* when the threads have gone */
} check_hooks;

static check_test *check_first, **check_last = &check_first;
static bool check_forks = true;

static void check_register(check_test *test) {
    *check_last = test;
    check_last = &test->next;
}

#define CHECK_REGISTER(test, number)                                                               \
    __attribute__((constructor)) static void check_register_##test##_##number(void) {              \
        static check_test entry = {#test, number, test_##test, NULL};                              \
        check_register(&entry);                                                                    \
    }

#define TEST(test)                                                                                 \
    static void test_##test(void);                                                                 \
    CHECK_REGISTER(test, 0)                                                                        \
    static void test_##test(void)

/* End the test (from any thread) after a failed check has been printed. */
static _Noreturn void check_die(void) {
    fflush(NULL);
    if (!check_forks) abort();
    _exit(1);
}

#define CHECK_FAIL(...)                                                                            \
    do {                                                                                           \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                            \
        fprintf(stderr, __VA_ARGS__);                                                              \
        fputc('\n', stderr);                                                                       \
        check_die();                                                                               \
    } while (0)

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) CHECK_FAIL("not true: %s", #condition);                                  \
    } while (0)

#define CHECK_COMPARE(a, operator, b, text)                                                        \
    do {                                                                                           \
        long long check_a = (long long)(a), check_b = (long long)(b);                              \
        if (!(check_a operator check_b))                                                           \
            CHECK_FAIL("not true: %s (%lld and %lld)", text, check_a, check_b);                    \
    } while (0)

#define CHECK_EQ(a, b) CHECK_COMPARE(a, ==, b, #a " == " #b)
#define CHECK_LE(a, b) CHECK_COMPARE(a, <=, b, #a " <= " #b)
#define CHECK_GE(a, b) CHECK_COMPARE(a, >=, b, #a " >= " #b)

#define CHECK_STR(a, b)                                                                            \
    do {                                                                                           \
        const char *check_a = (a), *check_b = (b);                                                 \
        if (!check_a || !check_b || strcmp(check_a, check_b) != 0)                                 \
            CHECK_FAIL("not equal: %s and %s (\"%s\" and \"%s\")", #a, #b,                         \
                       check_a ? check_a : "NULL", check_b ? check_b : "NULL");                    \
    } while (0)

#define CHECK_HAS(text, word)                                                                      \
    do {                                                                                           \
        const char *check_a = (text), *check_b = (word);                                           \
        if (!check_a || !strstr(check_a, check_b))                                                 \
            CHECK_FAIL("%s does not contain \"%s\": \"%s\"", #text, check_b,                       \
                       check_a ? check_a : "NULL");                                                \
    } while (0)

/* Wait for a child, which must end with exit status 0. */
static inline void child_ends_well(pid_t child) {
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

/* What to print if the test fails, even if it hangs: a seed, say.  Shared with the parent. */
enum { CHECK_NOTE_SIZE = 200 };
static char *check_note;
#define CHECK_NOTE(...) ((void)snprintf(check_note, CHECK_NOTE_SIZE, __VA_ARGS__))

/* A whole number from the environment. */
CHECK_UNUSED static long check_environment(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 0) : otherwise;
}

/* How often to repeat something that ThreadSanitizer makes slow. */
CHECK_UNUSED static long check_times(long n) {
    return CHECK_TSAN ? (n + 9) / 10 : n;
}

static unsigned check_seconds(void) {
    long scale = check_environment("PYPER_TEST_TIMEOUT_SCALE", CHECK_TSAN || CHECK_ASAN ? 4 : 1);
    return (unsigned)(CHECK_SECONDS * (scale < 1 ? 1 : scale));
}

/* How many entries a directory has, or -1.  A list of threads ends early when the one that it has
 * come to ends meanwhile, so these are asked for by their number: the directory has a link for
 * each. */
static long check_entries(const char *path) {
    struct stat facts;
    if (strcmp(path, "/proc/self/task") == 0)
        return stat(path, &facts) == 0 ? (long)facts.st_nlink : -1;
    DIR *directory = opendir(path);
    if (!directory) return -1;
    long count = 0;
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

/* What check_entries() says of the threads when the test's own are not there. */
static long check_alone;

/* Says by which name /proc knows the thread. */
static void *check_own_task(void *ret_path) {
#if defined(__linux__)
    snprintf(ret_path, 64, "/proc/self/task/%ld", (long)gettid());
#else
    snprintf(ret_path, 64, "/none");
#endif
    return NULL;
}

/* Run a test in this process and check what it leaves behind. */
static void check_perform(const check_test *test) {
    /* A first thread, so that what libc and the sanitizers start with it is there before we count.
     * Its entry in /proc may outlive the join. */
    char task[64];
    pthread_t thread;
    if (pthread_create(&thread, NULL, check_own_task, task) != 0) CHECK_FAIL("no threads here");
    pthread_join(thread, NULL);
    while (access(task, F_OK) == 0) sched_yield();
    check_alone = check_entries("/proc/self/task");
    long descriptors = check_entries("/proc/self/fd");

    if (check_hooks.before) check_hooks.before(test->variant);
    test->run();
    if (check_hooks.after) check_hooks.after();

    /* The kernel takes its time with threads that have ended; a thread that never ends is ended,
     * and this test with it, by the alarm. */
    while (check_entries("/proc/self/task") > check_alone) sched_yield();
    CHECK_EQ(check_entries("/proc/self/fd"), descriptors);
    if (check_hooks.settled) check_hooks.settled();
}

/* Run a test in a child; says whether it passed. */
static bool check_fork(const check_test *test, const char *name) {
    fflush(NULL);
    check_note[0] = 0;
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return false;
    }
    if (child == 0) {
        alarm(check_seconds());
        check_perform(test);
        exit(0);
    }
    int status;
    while (waitpid(child, &status, 0) < 0) continue;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        printf("ok      %s\n", name);
        return true;
    }
    if (WIFEXITED(status))
        printf("FAILED  %s (exit status %d)\n", name, WEXITSTATUS(status));
    else if (WTERMSIG(status) == SIGALRM)
        printf("FAILED  %s (timed out after %u s)\n", name, check_seconds());
    else
        printf("FAILED  %s (%s)\n", name, strsignal(WTERMSIG(status)));
    if (check_note[0]) printf("        %s\n", check_note);
    return false;
}

int main(int argc, char **argv) {
    check_note =
        mmap(NULL, CHECK_NOTE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (check_note == MAP_FAILED) return perror("mmap"), 1;
    bool list = false, filtered = false;
    long passed = 0, failed = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-fork") == 0)
            check_forks = false;
        else if (strcmp(argv[i], "--list") == 0)
            list = true;
        else
            filtered = true;
    }
    for (check_test *test = check_first; test; test = test->next) {
        char name[200];
        snprintf(name, sizeof name, "%s%s%s", test->name, test->variant ? "/" : "",
                 test->variant ? check_hooks.variant_name(test->variant) : "");
        bool wanted = !filtered;
        for (int i = 1; i < argc && !wanted; i++)
            wanted = argv[i][0] != '-' && strstr(name, argv[i]) != NULL;
        if (!wanted) continue;
        if (list) {
            puts(name);
            continue;
        }
        if (!check_forks) {
            check_perform(test);
            printf("ok      %s\n", name);
            passed++;
        } else if (check_fork(test, name))
            passed++;
        else
            failed++;
    }
    if (!list) printf("%ld passed, %ld failed\n", passed, failed);
    return failed != 0 || (!list && passed == 0);
}

#endif /* CHECK_H */
