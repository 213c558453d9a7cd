/* chain_fastflow - the chain of chain.c in FastFlow, in its blocking mode.
 *
 *     chain_fastflow TASKS WORKERS BOUND ORDERED [LOOPS]     items on stdin -> seconds an item
 *
 * Each task is a node with a thread of its own; the tasks in between are a farm if they have
 * several workers.  BOUND is the capacity of every queue, and 0 is FastFlow's default: no bound. */
#include <ff/ff.hpp>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bench.h"

namespace {

struct shape {
    int tasks, workers, bound;
    bool ordered;
    long loops;
};

/* Items travel as pointers, and 0 and the highest ones have a meaning of their own. */
void *to_pointer(std::intptr_t x) {
    return reinterpret_cast<void *>(x + 1);
}
std::intptr_t from_pointer(void *p) {
    return reinterpret_cast<std::intptr_t>(p) - 1;
}

struct source : ff::ff_node {
    explicit source(long items) : items(items) {}
    void *svc(void *) override {
        for (long i = 0; i < items; i++) ff_send_out(to_pointer(i));
        return EOS;
    }
    long items;
};

struct add_one : ff::ff_node {
    explicit add_one(long loops) : loops(loops) {}
    void *svc(void *x) override {
        bench_burn(loops);
        return to_pointer(from_pointer(x) + 1);
    }
    long loops;
};

struct sink : ff::ff_node {
    void *svc(void *x) override {
        sum += from_pointer(x);
        return GO_ON;
    }
    std::intptr_t sum = 0;
};

double round_of(long items, void *arg) {
    const shape &shape = *static_cast<struct shape *>(arg);
    int entries = shape.bound ? shape.bound : 2048;
    bool fixed = shape.bound != 0;
    source first(items);
    sink last;
    std::vector<std::unique_ptr<ff::ff_node>> owned;
    ff::ff_pipeline pipeline(false, entries, entries, fixed);
    pipeline.add_stage(&first);
    for (int i = 0; i < shape.tasks - 2; i++) {
        if (shape.workers == 1) {
            owned.push_back(std::make_unique<add_one>(shape.loops));
            pipeline.add_stage(owned.back().get());
            continue;
        }
        std::vector<ff::ff_node *> workers;
        for (int k = 0; k < shape.workers; k++) {
            owned.push_back(std::make_unique<add_one>(shape.loops));
            workers.push_back(owned.back().get());
        }
        auto farm = std::make_unique<ff::ff_farm>();
        farm->setInputQueueLength(entries, fixed);
        farm->setOutputQueueLength(entries, fixed);
        farm->add_workers(workers);
        farm->add_collector(nullptr);
        if (shape.ordered) farm->set_ordered();
        pipeline.add_stage(farm.get());
        owned.push_back(std::move(farm));
    }
    pipeline.add_stage(&last);
    pipeline.blocking_mode(true);
    double started = bench_now();
    if (pipeline.run_and_wait_end() < 0) bench_fail("FastFlow could not run the pipeline");
    double seconds = bench_now() - started;
    std::intptr_t expected =
        static_cast<std::intptr_t>(items) * (items - 1) / 2 + items * (shape.tasks - 2);
    if (last.sum != expected) bench_fail("the sum is wrong");
    return seconds / static_cast<double>(items);
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 5) bench_fail("usage: chain_fastflow TASKS WORKERS BOUND ORDERED [LOOPS]");
    struct shape shape = {std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]),
                          std::atoi(argv[4]) != 0, argc > 5 ? std::atol(argv[5]) : 0};
    return bench_rounds(round_of, &shape);
}
