/* The specification's example of multiprocess: 20 worker processes for a slow function. */
#include <inttypes.h>
#include <pyper.h>
#include <stdio.h>

static int range(pyper_worker *w, void *n, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)n; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int slow_func(pyper_worker *w, void *data, void *bind) {
    volatile uint64_t product = 1;
    for (uint64_t i = 1; i < 1000000; i++) product *= i;
    (void)product; /* what counts is the time it took */
    return pyper_emit(w, data);
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(
        pyper_task(range, .branch = true, .type = &pyper_type_int),
        pyper_task(slow_func, .workers = 20, .multiprocess = true, .type = &pyper_type_int));

    /* Which process is done first is not known: what is known is that all of them get there. */
    pyper_run *run = pyper_start(pipeline, (void *)20);
    intptr_t count = 0, sum = 0;
    for (void *output; pyper_next(run, &output) > 0; count++) sum += (intptr_t)output;
    if (pyper_failed(run)) fprintf(stderr, "%s\n", pyper_error_message(run));
    printf("%" PRIdPTR " outputs, their sum is %" PRIdPTR "\n", count, sum);
    //> 20 outputs, their sum is 190

    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
