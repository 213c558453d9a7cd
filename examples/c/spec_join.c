/* The specification's example of `join` in C: a running total over the outputs of the task
 * before. */
#include <pyper.h>

#include <stdio.h>

static int create_data(pyper_worker *w, void *item, void *bind) {
    for (intptr_t i = 1; i <= 3; i++)
        if (pyper_emit(w, (void *)((intptr_t)item + i)) < 0) return PYPER_ECANCELED;
    return 0;
}

static int running_total(pyper_worker *w, void *unused, void *bind) {
    intptr_t total = 0;
    int rc;
    for (void *item; (rc = pyper_pull(w, &item)) > 0;) {
        total += (intptr_t)item;
        if (pyper_emit(w, (void *)total) < 0) return PYPER_ECANCELED;
    }
    return rc; /* negative: the run is over, and this is no total */
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(pyper_task(create_data, .branch = true),
                                          pyper_task(running_total, .branch = true, .join = true));
    pyper_run *run = pyper_start(pipeline, (void *)0);
    for (void *out; pyper_next(run, &out) > 0;) printf("%ld\n", (long)(intptr_t)out);
    //> 1
    //> 3
    //> 6
    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
