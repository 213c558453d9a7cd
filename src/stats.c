/* stats - a run's counters, read while it goes on.
 *
 * Nothing is counted for statistics alone on the way of an item: the queues know how many items came
 * and went, and a worker's clock is read only when it starts, leaves, or waits. */
#include <string.h>

#include "worker.h"

/* How long the worker has waited for `what` so far, a wait under way included. */
static int64_t waited(pyper_worker *worker, int what, int64_t now) {
    pyper__seat *seat = &worker->seat;
    int64_t total = atomic_load_explicit(&seat->waited_ns[what], memory_order_relaxed);
    int64_t since = atomic_load_explicit(&seat->waiting_since_ns, memory_order_relaxed);
    if (since && atomic_load_explicit(&seat->waiting_for, memory_order_relaxed) == what &&
        since < now)
        total += now - since;
    return total;
}

static void add_worker(pyper_task_stats *stats, pyper_worker *worker, int64_t now) {
    int64_t started = atomic_load_explicit(&worker->started_ns, memory_order_relaxed);
    int64_t left = atomic_load_explicit(&worker->left_ns, memory_order_relaxed);
    if (!started) return;
    int64_t starved = waited(worker, PYPER__STARVED, now);
    int64_t blocked = waited(worker, PYPER__BLOCKED, now);
    int64_t busy = (left ? left : now) - started - starved - blocked;
    stats->starved_ns += starved;
    stats->blocked_ns += blocked;
    stats->busy_ns += busy > 0 ? busy : 0;
}

static pyper_task_stats read_stage(pyper__stage *stage) {
    int64_t now = pyper_now();
    /* Popped before pushed, so that `queued` is never negative. */
    int64_t started = pyper__queue_popped(stage->output);
    int64_t emitted = pyper__queue_pushed(stage->output);
    pyper_task_stats stats = {
        .name = stage->task->name,
        .workers = stage->task->workers,
        .alive = atomic_load_explicit(&stage->alive, memory_order_relaxed),
        .items_in = pyper__queue_popped(stage->input),
        .items_out = emitted,
        .queued = emitted > started ? emitted - started : 0,
    };
    for (int64_t k = 0; k < stage->task->workers; k++) add_worker(&stats, &stage->workers[k], now);
    return stats;
}

size_t pyper_stats_read(pyper_run *run, pyper_task_stats *ret_stats, size_t count,
                        size_t stats_size) {
    if (!run) return 0;
    size_t known = stats_size < sizeof *ret_stats ? stats_size : sizeof *ret_stats;
    for (size_t i = 0; i < run->count && i < count; i++) {
        pyper_task_stats stats = read_stage(&run->stages[i]);
        /* Records of an older or newer caller are shorter or longer than ours. */
        memcpy((char *)ret_stats + i * stats_size, &stats, known);
    }
    return run->count;
}
