/* A first pipeline: one task makes numbers, four workers square them, the program adds them up. */
#include <pyper.h>

#include <stdio.h>

static int numbers(pyper_worker *w, void *n, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)n; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED; /* the run is over: just leave */
    return 0;
}

static int square(pyper_worker *w, void *item, void *bind) {
    intptr_t x = (intptr_t)item;
    return pyper_emit(w, (void *)(x * x));
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(pyper_task(numbers, .branch = true, .throttle = 1000),
                                          pyper_task(square, .workers = 4));
    pyper_run *run = pyper_start(pipeline, (void *)101);
    intptr_t sum = 0;
    for (void *out; pyper_next(run, &out) > 0;) sum += (intptr_t)out;

    int failed = pyper_failed(run);
    if (failed)
        fprintf(stderr, "%s\n", pyper_error_message(run));
    else
        printf("%ld\n", (long)sum);
    //> 338350
    pyper_close(run);
    pyper_unref(pipeline);
    return failed ? 1 : 0;
}
