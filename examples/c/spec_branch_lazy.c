/* The specification's example of a lazy branch in C: each output leaves when it is emitted. */
#include <pyper.h>

#include <stdio.h>

static int create_data(pyper_worker *w, void *x, void *bind) {
    int rc = pyper_emit(w, (void *)1);
    if (rc == 0) rc = pyper_emit(w, (void *)2);
    if (rc == 0) rc = pyper_emit(w, (void *)3);
    return rc;
}

int main(void) {
    pyper_pipeline *pipeline = pyper_task(create_data, .branch = true);
    pyper_run *run = pyper_start(pipeline, (void *)0);
    for (void *out; pyper_next(run, &out) > 0;) printf("%ld\n", (long)(intptr_t)out);
    //> 1
    //> 2
    //> 3
    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
