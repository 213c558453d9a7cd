/* processes - what an item costs on its way through a process task, in and out of it.
 *
 *     processes SIZE PLACES        rounds of items of SIZE bytes; at most PLACES wait at each end
 *     processes start              a count of runs: seconds from the start to the first output
 *
 * The source gives away the same blob again and again, and destroys none: what is measured is the
 * crossing, not malloc().  Who receives large items keeps their memory; of small ones he has a
 * copy, in memory that the source does not read: or its processor and the caller's would pass one
 * cache line to and fro with each item. */
#include <pyper.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

typedef struct block {
    size_t size;
    void *data;
    pyper_kept *kept; /* its memory, if it has crossed and is large */
} block;

static _Alignas(64) block given; /* by the source; nobody writes it */
static _Alignas(64) block taken; /* by a worker, or by the caller */

static int encode(void *item, pyper_transfer *to) {
    const block *sent = item;
    void *place = pyper_transfer_reserve(to, sent->size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, sent->data, sent->size);
    return 0;
}

static int decode(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    if (size != taken.size) return PYPER_EINVAL;
    void *mine;
    pyper_kept *kept = pyper_transfer_keep(from, &mine);
    if (!kept) {
        memcpy(taken.data, data, size);
        *ret_item = &taken;
        return 0;
    }
    block *received = malloc(sizeof *received);
    if (!received) bench_fail("no memory");
    *received = (block){size, mine, kept};
    *ret_item = received;
    return 0;
}

static void destroy(void *item) {
    block *gone = item;
    if (!gone->kept) return;
    pyper_kept_release(gone->kept);
    free(gone);
}

static const pyper_item_type type = {
    .size = sizeof type, .destroy = destroy, .encode = encode, .decode = decode};

static int source(pyper_worker *w, void *count, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)count; i++)
        if (pyper_emit(w, &given) < 0) return PYPER_ECANCELED;
    return 0;
}

static int pass(pyper_worker *w, void *item, void *bind) {
    return pyper_emit(w, item);
}

static pyper_run *begin(pyper_pipeline *pipeline, intptr_t count) {
    pyper_run *run = pyper_start(pipeline, (void *)count);
    void *out;
    /* The first one is there when everything is. */
    if (pyper_next(run, &out) <= 0) bench_fail(pyper_error_message(run));
    destroy(out);
    return run;
}

static void take_the_others(pyper_run *run, pyper_pipeline *pipeline) {
    for (void *out; pyper_next(run, &out) > 0;) destroy(out);
    if (pyper_failed(run)) bench_fail(pyper_error_message(run));
    pyper_close(run);
    pyper_unref(pipeline);
}

static double through(long count, void *places) {
    int64_t throttle = *(int64_t *)places;
    pyper_pipeline *p =
        pyper_pipe(pyper_task(source, .branch = true, .type = &type, .throttle = throttle),
                   pyper_task(pass, .type = &type, .throttle = throttle, .multiprocess = true));
    pyper_run *run = begin(p, count);
    double started = bench_now();
    take_the_others(run, p);
    return (bench_now() - started) / (double)count;
}

static double start(long count, void *arg) {
    (void)arg;
    double sum = 0;
    for (long i = 0; i < count; i++) {
        double started = bench_now();
        pyper_pipeline *p =
            pyper_pipe(pyper_task(source, .branch = true, .type = &type),
                       pyper_task(pass, .type = &type, .workers = 2, .multiprocess = true));
        pyper_run *run = begin(p, 100);
        sum += bench_now() - started;
        take_the_others(run, p);
    }
    return sum / (double)count;
}

/* Memory in cache lines of its own. */
static void *zeros(size_t size) {
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!memory) bench_fail("no memory");
    return memset(memory, 0, size);
}

int main(int argc, char **argv) {
    bool starts = argc == 2 && strcmp(argv[1], "start") == 0;
    if (argc != 3 && !starts) bench_fail("usage: processes SIZE PLACES | processes start");
    size_t size = starts ? 8 : (size_t)atol(argv[1]);
    int64_t places = starts ? 0 : atol(argv[2]);
    given = (block){.size = size, .data = zeros(size)};
    taken = (block){.size = size, .data = zeros(size)};
    return bench_rounds(starts ? start : through, &places);
}
