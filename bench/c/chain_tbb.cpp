/* chain_tbb - the chain of chain.c in oneTBB's parallel_pipeline, and what else is compared.
 *
 *     chain_tbb chain TASKS WORKERS BOUND [LOOPS]   items on stdin -> seconds an item
 *     chain_tbb start            runs -> seconds a run of one item through 3 filters
 *     chain_tbb latency PERCENT  items, one a millisecond -> seconds from the first filter to the
 *                                last, that percentile
 *     chain_tbb memory | kept    items -> bytes an item that waits in a concurrent_queue, or that
 *                                stay after it is drained
 *
 * The tasks in between are serial_in_order for one worker and parallel for several (oneTBB then
 * uses all processors); BOUND is the number of items in flight, and of 0 (none) 1024. */
#include <oneapi/tbb.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "bench.h"

namespace {

struct shape {
    int tasks, workers, bound;
    long loops;
    double percent;
};

double chain_round(long items, void *arg) {
    const shape &shape = *static_cast<struct shape *>(arg);
    std::intptr_t next = 0, sum = 0;
    auto serial = tbb::filter_mode::serial_in_order;
    auto middle = shape.workers > 1 ? tbb::filter_mode::parallel : serial;
    long loops = shape.loops;

    tbb::filter<void, std::intptr_t> chain =
        tbb::make_filter<void, std::intptr_t>(serial, [&](tbb::flow_control &control) {
            if (next < items) return next++;
            control.stop();
            return std::intptr_t(0);
        });
    for (int i = 0; i < shape.tasks - 2; i++)
        chain = chain &
                tbb::make_filter<std::intptr_t, std::intptr_t>(middle, [loops](std::intptr_t x) {
                    bench_burn(loops);
                    return x + 1;
                });
    auto all =
        chain & tbb::make_filter<std::intptr_t, void>(serial, [&](std::intptr_t x) { sum += x; });

    double started = bench_now();
    tbb::parallel_pipeline(static_cast<std::size_t>(shape.bound ? shape.bound : 1024), all);
    double seconds = bench_now() - started;
    std::intptr_t expected =
        static_cast<std::intptr_t>(items) * (items - 1) / 2 + items * (shape.tasks - 2);
    if (sum != expected) bench_fail("the sum is wrong");
    return seconds / static_cast<double>(items);
}

double start_round(long runs, void *) {
    struct shape shape = {4, 1, 1024, 0, 0};
    double started = bench_now();
    for (long i = 0; i < runs; i++) chain_round(1, &shape);
    return (bench_now() - started) / static_cast<double>(runs);
}

double latency_round(long items, void *arg) {
    double percent = static_cast<shape *>(arg)->percent;
    std::vector<double> latencies;
    long next = 0;
    auto serial = tbb::filter_mode::serial_in_order;
    auto all = tbb::make_filter<void, double>(serial,
                                              [&](tbb::flow_control &control) {
                                                  if (next++ == items) {
                                                      control.stop();
                                                      return 0.0;
                                                  }
                                                  timespec pause = {0, 1000000};
                                                  nanosleep(&pause, nullptr);
                                                  return bench_now();
                                              }) &
               tbb::make_filter<double, double>(serial, [](double sent) { return sent; }) &
               tbb::make_filter<double, void>(
                   serial, [&](double sent) { latencies.push_back(bench_now() - sent); });
    tbb::parallel_pipeline(1024, all);
    return bench_percentile(latencies.data(), static_cast<long>(latencies.size()), percent);
}

double memory_round(long items, void *arg) {
    bool kept = *static_cast<bool *>(arg);
    double before = bench_resident();
    tbb::concurrent_queue<void *> queue;
    for (long i = 0; i < items; i++) queue.push(reinterpret_cast<void *>(i));
    double full = bench_resident();
    for (void *item; queue.try_pop(item);) {
    }
    return ((kept ? bench_resident() : full) - before) / static_cast<double>(items);
}

} // namespace

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (std::strcmp(what, "chain") == 0 && argc >= 5) {
        struct shape shape = {std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]),
                              argc > 5 ? std::atol(argv[5]) : 0, 0};
        return bench_rounds(chain_round, &shape);
    }
    if (std::strcmp(what, "start") == 0) return bench_rounds(start_round, nullptr);
    if (std::strcmp(what, "latency") == 0 && argc == 3) {
        struct shape shape = {3, 1, 1024, 0, std::atof(argv[2])};
        return bench_rounds(latency_round, &shape);
    }
    bool kept = std::strcmp(what, "kept") == 0;
    if (kept || std::strcmp(what, "memory") == 0) return bench_rounds(memory_round, &kept);
    bench_fail("usage: chain_tbb chain|start|latency|memory|kept ...");
}
