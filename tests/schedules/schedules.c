/* schedules - see schedules.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void schedule_point(void);

/* One access in so many lets others run, and one in so many of these does so for a while, on the
 * average; each thread has a pace of its own between a fourth and four times of it.  Nobody sleeps
 * meanwhile: a test that waits until all threads sleep waits until the engine lets them. */
#define YIELD_ONE_IN 64
#define LINGER_ONE_IN 16
#define LINGER_NS 100000

static uint64_t seed;
static uint64_t threads; /* atomic: how many have come here */
static _Thread_local uint64_t state, pace;

__attribute__((constructor)) static void choose_seed(void) {
    const char *given = getenv("PYPER_SCHEDULES");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    seed = given ? strtoull(given, NULL, 0) : (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec;
    if (!given)
        fprintf(stderr, "repeat these schedules with PYPER_SCHEDULES=%llu\n",
                (unsigned long long)seed);
}

static uint64_t next(void) {
    uint64_t x = (state += UINT64_C(0x9e3779b97f4a7c15));
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* errno is the caller's: nothing here changes it for him to see. */
void schedule_point(void) {
    if (!pace) {
        uint64_t number = __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED);
        state = seed ^ number * UINT64_C(0xd6e8feb86659fd93);
        pace = (uint64_t)YIELD_ONE_IN / 4 << next() % 5;
    }
    uint64_t chance = next();
    if (chance % pace != 0) return;
    sched_yield();
    if (chance >> 32 & (LINGER_ONE_IN - 1)) return;
    int64_t until = now_ns() + (int64_t)((chance >> 40) % LINGER_NS);
    while (now_ns() < until) sched_yield();
}
