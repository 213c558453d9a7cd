/* The room `os`: memory, the clock, sleeping on a word, threads, forks. */
#include "../kit.h"

#include "os.h"

TEST(memory_is_zeroed_and_aligned) {
    static const size_t sizes[] = {1, 8, 63, 64, 65, 1000, 4096, 1 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *memory[3];
        for (int k = 0; k < 3; k++) {
            memory[k] = pyper__alloc(sizes[i]);
            CHECK(memory[k] != NULL);
            for (size_t b = 0; b < sizes[i]; b++) CHECK_EQ(memory[k][b], 0);
            memset(memory[k], 0xee, sizes[i]); /* so that the next one is not zero by chance */
            if (sizes[i] >= PYPER__CACHE_LINE)
                CHECK_EQ((uintptr_t)memory[k] % PYPER__CACHE_LINE, 0);
            if (k == 1) pyper__free(memory[0]);
        }
        pyper__free(memory[1]);
        pyper__free(memory[2]);
    }
    pyper__free(NULL);
}

TEST(what_cannot_be_had_is_null) {
    /* Too large for any machine, and so large that rounding up would overflow. */
    volatile size_t absurd[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 63, (size_t)PTRDIFF_MAX};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++)
        if (!CHECK_ASAN && !CHECK_TSAN) CHECK(pyper__alloc(absurd[i]) == NULL);
}

TEST(allocations_fail_when_told) {
    for (int stays = 0; stays < 2; stays++) {
        atomic_store(&pyper__fail_alloc_stays, stays);
        atomic_store(&pyper__fail_alloc_at, 3);
        void *memory[5];
        for (int i = 0; i < 5; i++) memory[i] = pyper__alloc(100);
        CHECK(memory[0] && memory[1] && !memory[2]);
        CHECK_EQ(memory[3] == NULL, stays);
        CHECK_EQ(memory[4] == NULL, stays);
        atomic_store(&pyper__fail_alloc_at, -1);
        for (int i = 0; i < 5; i++) pyper__free(memory[i]);
        memory[0] = pyper__alloc(100);
        CHECK(memory[0] != NULL);
        pyper__free(memory[0]);
    }
}

TEST(a_changed_word_is_not_slept_on) {
    _Atomic uint32_t word = 5;
    CHECK_EQ(pyper__futex_wait(&word, 4, PYPER_FOREVER, false), 0);
}

TEST(a_sleep_ends_at_its_deadline) {
    _Atomic uint32_t word = 5;
    int64_t deadline = pyper_now() + 2000000;
    int rc;
    while ((rc = pyper__futex_wait(&word, 5, deadline, false)) == 0) continue;
    CHECK_EQ(rc, PYPER_ETIMEDOUT);
    CHECK_GE(pyper_now(), deadline);
    CHECK_EQ(pyper__futex_wait(&word, 5, pyper_now() - 1, false), PYPER_ETIMEDOUT);
}

static _Atomic uint32_t sleeping_word;
static tally woken = TALLY;

static void sleep_on_word(void *arg) {
    (void)arg;
    while (atomic_load(&sleeping_word) == 0)
        pyper__futex_wait(&sleeping_word, 0, PYPER_FOREVER, false);
    tally_add(&woken, 1);
}

TEST(sleepers_are_woken) {
    for (int i = 0; i < 20; i++) {
        atomic_store(&sleeping_word, 0);
        thread sleepers[3];
        for (int k = 0; k < 3; k++) thread_start(&sleepers[k], sleep_on_word, NULL);
        for (int k = 0; k < i % 4; k++) others();
        atomic_store(&sleeping_word, 1);
        pyper__futex_wake(&sleeping_word, 3, false);
        for (int k = 0; k < 3; k++) thread_join(&sleepers[k]);
    }
    CHECK_EQ(tally_count(&woken), 60);
}

static void note_name(void *arg) {
    CHECK_EQ(pthread_getname_np(pthread_self(), arg, 32), 0);
}

TEST(threads_run_and_can_be_joined_or_dropped) {
    char name[32];
    void *handle;
    CHECK_EQ(pyper__thread_start("a name that is much longer", note_name, name, &handle), 0);
    pyper__thread_join(handle);
    CHECK_STR(name, "a name that is ");
    CHECK_EQ(pyper__thread_start("", note_name, name, &handle), 0);
    pyper__thread_join(handle);
    atomic_store(&sleeping_word, 1);
    CHECK_EQ(pyper__thread_start("dropped", sleep_on_word, NULL, &handle), 0);
    pyper__thread_drop(handle);
    tally_wait(&woken, 1);
}

TEST(threads_fail_when_told) {
    void *handle = &handle;
    atomic_store(&sleeping_word, 1);
    atomic_store(&pyper__fail_thread_at, 2);
    CHECK_EQ(pyper__thread_start("one", sleep_on_word, NULL, &handle), 0);
    pyper__thread_join(handle);
    CHECK_EQ(pyper__thread_start("two", sleep_on_word, NULL, &handle), PYPER_ETHREAD);
    CHECK_EQ(pyper__thread_start("three", sleep_on_word, NULL, &handle), 0);
    pyper__thread_join(handle);
    CHECK_EQ(tally_count(&woken), 2);
}

TEST(a_fork_is_noticed_in_the_child) {
    pyper__watch_forks();
    pyper__watch_forks();
    uint32_t before = atomic_load(&pyper__forks);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(atomic_load(&pyper__forks) == before + 1 ? 0 : 1);
    child_ends_well(child);
    CHECK_EQ(atomic_load(&pyper__forks), before);
}
