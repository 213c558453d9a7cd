/* bench.h - what the programs of the C benchmark share: the clock, the work of an item, the rounds.
 *
 * Each program measures one system in one scenario, both named by its arguments, and does a round
 * for each line of its standard input.  A line holds a count (of items, most often); the answer is
 * one line with two numbers: the figure of the round (seconds for one item, unless the program says
 * otherwise) and the processor seconds that the whole round took.  By hand:
 *
 *     yes 1000000 | head -5 | build/bench/chain pyper 3 1 1024 */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

static inline double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline double bench_cpu_of(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* Processor seconds of this process and of the children that it has waited for. */
static inline double bench_cpu(void) {
    return bench_cpu_of(RUSAGE_SELF) + bench_cpu_of(RUSAGE_CHILDREN);
}

/* The work of an item: `loops` multiplications, each waiting for the one before. */
static __attribute__((noinline, unused)) void bench_burn(long loops) {
    uint64_t x = 1;
    for (long i = 0; i < loops; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        __asm__ volatile("" : "+r"(x)); /* not to be left out, nor done at once */
    }
}

static inline void bench_fail(const char *why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
}

/* Resident memory of this process, in bytes. */
static inline double bench_resident(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    long pages = 0;
    if (!file || fscanf(file, "%*d %ld", &pages) != 1) bench_fail("cannot read /proc/self/statm");
    fclose(file);
    return (double)pages * 4096;
}

static inline int bench_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which `percent` of the values are; sorts them. */
static inline double bench_percentile(double *values, long count, double percent) {
    qsort(values, (size_t)count, sizeof *values, bench_compare);
    long index = (long)((double)count * percent / 100);
    return values[index < count ? index : count - 1];
}

/* Do the rounds: `round` does one with `count` and returns its figure. */
static inline int bench_rounds(double (*round)(long count, void *arg), void *arg) {
    for (long count; scanf("%ld", &count) == 1;) {
        double cpu = bench_cpu(), figure = round(count, arg);
        printf("%.9g %.9g\n", figure, bench_cpu() - cpu);
        fflush(stdout);
    }
    return 0;
}

#endif
