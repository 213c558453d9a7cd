/* chain_tbb - the chain of chain.c in oneTBB's parallel_pipeline.
 *
 *     chain_tbb TASKS WORKERS ITEMS BOUND    ->  nanoseconds an item, processor seconds an item
 *
 * The tasks in between are serial_in_order for one worker and parallel for several (oneTBB then uses
 * all processors); BOUND is the number of items in flight. */
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <oneapi/tbb.h>

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: chain_tbb TASKS WORKERS ITEMS BOUND\n");
        return 2;
    }
    int tasks = std::atoi(argv[1]), workers = std::atoi(argv[2]), bound = std::atoi(argv[4]);
    std::intptr_t items = std::atol(argv[3]), next = 0, sum = 0;
    auto serial = tbb::filter_mode::serial_in_order;
    auto middle = workers > 1 ? tbb::filter_mode::parallel : serial;

    tbb::filter<void, std::intptr_t> chain =
        tbb::make_filter<void, std::intptr_t>(serial, [&](tbb::flow_control &control) {
            if (next < items) return next++;
            control.stop();
            return std::intptr_t(0);
        });
    for (int i = 0; i < tasks - 2; i++)
        chain = chain & tbb::make_filter<std::intptr_t, std::intptr_t>(
                            middle, [](std::intptr_t x) { return x + 1; });
    auto all =
        chain & tbb::make_filter<std::intptr_t, void>(serial, [&](std::intptr_t x) { sum += x; });

    auto started = std::chrono::steady_clock::now();
    std::clock_t cpu = std::clock();
    tbb::parallel_pipeline(static_cast<std::size_t>(bound ? bound : 1024), all);
    std::chrono::duration<double, std::nano> wall = std::chrono::steady_clock::now() - started;
    double cpu_ns = static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC * 1e9;
    if (sum != items * (items - 1) / 2 + items * (tasks - 2)) return 1;
    std::printf("%.3f %.3f\n", wall.count() / static_cast<double>(items),
                cpu_ns / static_cast<double>(items));
    return 0;
}
