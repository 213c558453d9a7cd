/* os_model - the room `os` (src/os.h) as the explorer's threads see it. */
#include <string.h>

#include "explorer.h"
#include "os.h"

void *pyper__alloc_unset(size_t size) {
    return model_alloc(size);
}

void *pyper__alloc(size_t size) {
    void *memory = model_alloc(size);
    if (memory) memset(memory, 0, size);
    return memory;
}

void pyper__free(void *memory) {
    model_free(memory);
}

/* Nobody is cancelled here. */
int pyper__hold_cancel(void) {
    return 0;
}

void pyper__let_cancel(int held) {
    (void)held;
}

int pyper__fd_keep(int fd) {
    return fd;
}

void pyper__fd_close(int *fd) {
    (void)fd;
    model_fail(__FILE__, __LINE__, "nothing here has a descriptor to close");
}

int pyper__why_refused(const char *call) {
    (void)call;
    return PYPER_ENOMEM;
}

const char *pyper__refused_call(void) {
    return NULL;
}

void *pyper__map(size_t size) {
    return pyper__alloc(size);
}

void pyper__unmap(void *memory, size_t size) {
    (void)size;
    model_free(memory);
}

/* Time stands still; a deadline passes whenever the explorer says so. */
int64_t pyper_now(void) {
    return 1;
}

int64_t pyper__thread_busy_ns(void) {
    return 1;
}

int64_t pyper__process_busy_ns(void) {
    return 1;
}

void pyper__yield(void) {
    model_yield();
}

int pyper__futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns, bool shared) {
    (void)shared;
    return model_sleep(word, expected, deadline_ns != PYPER_FOREVER);
}

void pyper__futex_wake(_Atomic uint32_t *word, int count, bool shared) {
    (void)shared;
    model_wake(word, count);
}

bool pyper__fence_others(void) {
    model_drain_everywhere();
    return true;
}

bool pyper__can_fence_others(void) {
    return true;
}

_Thread_local uint64_t pyper__thread_number;

uint64_t pyper__number_thread(void) {
    return pyper__thread_number;
}

void model_switch(int number) {
    pyper__thread_number = (uint64_t)(PYPER__THREAD_NUMBER_FIRST + 1 + number);
}

int pyper__thread_start(const char *name, void (*entry)(void *arg), void *arg, void **ret_thread) {
    *ret_thread = (void *)(intptr_t)model_thread(name, entry, arg, 0);
    return 0;
}

void pyper__thread_join(void *thread) {
    model_await_end_of((int)(intptr_t)thread);
}

void pyper__thread_drop(void *thread) {
    (void)thread;
}

/* A bell is a word to sleep on; its number is its place here. */
enum { BELLS = 16 };
static _Atomic uint32_t bells[BELLS];
static bool bell_taken[BELLS];

int pyper__bell_open(int ret_bell[2]) {
    for (int i = 0; i < BELLS; i++) {
        if (bell_taken[i]) continue;
        bell_taken[i] = true;
        bells[i] = 0;
        ret_bell[0] = ret_bell[1] = i;
        return 0;
    }
    return PYPER_ENOMEM;
}

void pyper__bell_close(const int bell[2]) {
    bell_taken[bell[0]] = false;
}

void pyper__bell_ring(const int bell[2]) {
    model_yield();
    bells[bell[1]] = 1;
    model_wake(&bells[bell[1]], 1000);
}

void pyper__bell_silence(const int bell[2]) {
    model_yield();
    bells[bell[0]] = 0;
}

int pyper__bell_await(const int bell[2], int64_t deadline_ns) {
    int rc = 0;
    while (rc == 0 && !bells[bell[0]])
        rc = model_sleep(&bells[bell[0]], 0, deadline_ns != PYPER_FOREVER);
    return rc;
}

int pyper__poll(struct pollfd *watched, size_t count, int timeout_ms) {
    (void)watched, (void)count, (void)timeout_ms;
    model_fail(__FILE__, __LINE__, "nothing here has a descriptor to wait for");
}

_Atomic uint32_t pyper__forks;

void pyper__watch_forks(void) {}
