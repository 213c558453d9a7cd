/* What an item costs through a process task, and in and out of it: small blobs per item, large ones
 * per byte, the wake-up of an idle worker, and the start.
 *
 *     processes SIZE COUNT [THROTTLE [WORKERS]]     items of SIZE bytes through a process that passes
 *                                                   them on; nanoseconds an item, gigabytes a second
 *     processes ping COUNT                          one item at a time: nanoseconds a round
 *     processes start COUNT                         milliseconds from the start to the first output
 *     processes end                                 and to the last, with two workers
 *
 * The source gives away the same blob again and again, and destroys none: what is measured is the
 * crossing, not malloc(). */
#include <pyper.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pyper_blob *blob;
static unsigned long long seen;

static int encode(void *item, pyper_transfer *to) {
    void *place = pyper_transfer_reserve(to, blob->size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, blob->data, blob->size);
    return 0;
}

static int decode(pyper_transfer *from, const void *data, size_t size, void **ret_item) {
    if (size != blob->size) return PYPER_EINVAL;
    memcpy(blob->data, data, size);
    *ret_item = blob;
    return 0;
}

static const pyper_item_type type = {.size = sizeof type, .encode = encode, .decode = decode};

static int source(pyper_worker *w, void *count, void *bind) {
    /* A blob of its own: it is a thread beside the caller. */
    for (intptr_t i = 0; i < (intptr_t)count; i++)
        if (pyper_emit(w, blob) < 0) return PYPER_ECANCELED;
    return 0;
}

static int pass(pyper_worker *w, void *item, void *bind) {
    return pyper_emit(w, item);
}

static double through(intptr_t count, int64_t throttle, int64_t workers) {
    pyper_pipeline *p =
        pyper_pipe(pyper_task(source, .branch = true, .type = &type, .throttle = throttle),
                   pyper_task(pass, .type = &type, .throttle = throttle, .workers = workers,
                              .multiprocess = true));
    pyper_run *run = pyper_start(p, (void *)count);
    void *out;
    /* The first one is there when everything is. */
    if (pyper_next(run, &out) <= 0) exit(1);
    int64_t start = pyper_now();
    while (pyper_next(run, &out) > 0) seen++;
    double ns = (double)(pyper_now() - start) / (double)count;
    if (pyper_failed(run)) {
        fprintf(stderr, "%s\n", pyper_error_message(run));
        exit(1);
    }
    pyper_close(run);
    pyper_unref(p);
    return ns;
}

static void start(long count) {
    for (long i = 0; i < count; i++) {
        int64_t before = pyper_now();
        pyper_pipeline *p =
            pyper_pipe(pyper_task(source, .branch = true, .type = &type),
                       pyper_task(pass, .type = &type, .workers = 2, .multiprocess = true));
        pyper_run *run = pyper_start(p, (void *)100);
        void *out;
        if (pyper_next(run, &out) <= 0) exit(1);
        int64_t first = pyper_now();
        while (pyper_next(run, &out) > 0) seen++;
        int64_t last = pyper_now();
        pyper_close(run);
        pyper_unref(p);
        printf("first output after %.2f ms, end after %.2f ms\n", (double)(first - before) / 1e6,
               (double)(last - before) / 1e6);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "64";
    long count = argc > 2 ? atol(argv[2]) : 1000000;
    int64_t throttle = argc > 3 ? atol(argv[3]) : 1000, workers = argc > 4 ? atol(argv[4]) : 1;
    long size = atol(what) > 0 ? atol(what) : 8;
    blob = calloc(1, sizeof *blob + (size_t)size);
    if (!blob) return 1;
    blob->size = (size_t)size;
    if (strcmp(what, "start") == 0) {
        start(count);
        return 0;
    }
    bool ping = strcmp(what, "ping") == 0;
    for (int i = 0; i < 3; i++) {
        double ns = through(count, ping ? 1 : throttle, workers);
        printf("%ld bytes: %.1f ns an item, %.2f GB/s each way\n", size, ns, (double)size / ns);
    }
    return 0;
}
