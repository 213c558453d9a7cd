/* The specification's first example in C: a pipeline of one task is made from a function. */
#include <pyper.h>

#include <stdio.h>

static int add_one(pyper_worker *w, void *x, void *bind) {
    return pyper_emit(w, (void *)((intptr_t)x + 1));
}

int main(void) {
    pyper_pipeline *pipeline = pyper_task(add_one);
    pyper_run *run = pyper_start(pipeline, (void *)1);
    for (void *out; pyper_next(run, &out) > 0;) printf("%ld\n", (long)(intptr_t)out);
    //> 2
    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
