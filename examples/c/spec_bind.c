/* The specification's example of `bind` in C: each call gets the bound value besides its item. */
#include <pyper.h>

#include <stdio.h>

struct bounds {
    intptr_t start, stop;
};

static int range(pyper_worker *w, void *argument, void *bind) {
    const struct bounds *bounds = argument;
    for (intptr_t i = bounds->start; i < bounds->stop; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int apply_multiplier(pyper_worker *w, void *data, void *multiplier) {
    return pyper_emit(w, (void *)((intptr_t)data * *(const intptr_t *)multiplier));
}

int main(void) {
    static const intptr_t multiplier = 10;
    struct bounds bounds = {1, 4};
    pyper_pipeline *pipeline = pyper_pipe(pyper_task(range, .branch = true),
                                          pyper_task(apply_multiplier, .bind = &multiplier));
    pyper_run *run = pyper_start(pipeline, &bounds);
    for (void *out; pyper_next(run, &out) > 0;) printf("%ld\n", (long)(intptr_t)out);
    //> 10
    //> 20
    //> 30
    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
