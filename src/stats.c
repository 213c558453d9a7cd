/* stats - a run's counters, read while it goes on.
 *
 * Nothing is counted for statistics alone on the way of an item: the queues know how many items
 * came and went, and a worker's clock is read only when it starts, leaves, or waits. */
#include <string.h>

#include "edge.h"
#include "process.h"
#include "worker.h"

static int64_t clock_of(pyper_worker *worker, int what) {
    return atomic_load_explicit(&worker->seat.clock->waited_ns[what], memory_order_relaxed);
}

/* Add the worker's times as they are at one moment, so that none is counted twice or left out: its
 * clocks are read again until none has changed while the time was read. */
static void add_worker(pyper_task_stats *stats, pyper_worker *worker) {
    int64_t starved, blocked, left, now;
    int64_t started = atomic_load_explicit(&worker->seat.clock->started_ns, memory_order_relaxed);
    if (!started) return;
    do {
        starved = clock_of(worker, PYPER__STARVED);
        blocked = clock_of(worker, PYPER__BLOCKED);
        left = atomic_load_explicit(&worker->seat.clock->left_ns, memory_order_relaxed);
        now = pyper_now();
    } while (starved != clock_of(worker, PYPER__STARVED) ||
             blocked != clock_of(worker, PYPER__BLOCKED) ||
             left != atomic_load_explicit(&worker->seat.clock->left_ns, memory_order_relaxed));
    if (left) now = left;
    if (starved < 0) starved += now;
    if (blocked < 0) blocked += now;
    int64_t busy = now - started - starved - blocked;
    stats->starved_ns += starved;
    stats->blocked_ns += blocked;
    stats->busy_ns += busy > 0 ? busy : 0;
}

static int64_t alive(const pyper_run *run, const pyper__stage *stage) {
#if PYPER__PROCESSES
    if (stage->task->multiprocess) return pyper__processes_alive(run, stage);
#endif
    return atomic_load_explicit(&stage->alive, memory_order_relaxed);
}

static pyper_task_stats read_stage(const pyper_run *run, pyper__stage *stage) {
    /* Popped before pushed, so that `queued` is never negative. */
    int64_t popped = pyper__edge_popped(stage->output);
    int64_t emitted = pyper__edge_pushed(stage->output);
    pyper_task_stats stats = {
        .name = stage->task->name,
        .workers = stage->task->workers,
        .alive = alive(run, stage),
        .items_in = pyper__edge_started(stage->input),
        .items_out = emitted,
        .queued = emitted > popped ? emitted - popped : 0,
    };
    for (int64_t k = 0; k < stage->task->workers; k++) add_worker(&stats, &stage->workers[k]);
    return stats;
}

size_t pyper_stats_read(pyper_run *run, pyper_task_stats *ret_stats, size_t count,
                        size_t stats_size) {
    if (!run) return 0;
    size_t known = stats_size < sizeof *ret_stats ? stats_size : sizeof *ret_stats;
    for (size_t i = 0; i < run->count && i < count; i++) {
        pyper_task_stats stats = read_stage(run, &run->stages[i]);
        /* Records of an older or newer caller are shorter or longer than ours. */
        memcpy((char *)ret_stats + i * stats_size, &stats, known);
    }
    return run->count;
}
