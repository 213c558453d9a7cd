/* random.h - numbers by a seed, for tests in C: the same everywhere. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

/* splitmix64, which is small. */
static inline uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0 to n - 1. */
static inline long random_below(uint64_t *state, long n) {
    return (long)(random_next(state) % (uint64_t)n);
}

#endif /* RANDOM_H */
