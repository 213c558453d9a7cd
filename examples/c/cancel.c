/* Leaving a run early: the producer never ends by itself, the program takes what it needs. */
#include <pyper.h>

#include <stdio.h>

static int count(pyper_worker *w, void *start, void *bind) {
    for (intptr_t i = (intptr_t)start;; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED; /* this is how it ends */
}

static int primes(pyper_worker *w, void *item, void *bind) { /* a branch may also emit nothing */
    intptr_t n = (intptr_t)item;
    for (intptr_t d = 2; d * d <= n; d++)
        if (n % d == 0) return 0;
    return pyper_emit(w, (void *)n);
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(
        pyper_task(count, .branch = true, .throttle = 100),
        pyper_task(primes, .branch = true, .workers = 4, .ordered = true, .throttle = 100));
    pyper_run *run = pyper_start(pipeline, (void *)1000000);
    void *prime;
    for (int i = 0; i < 5 && pyper_next(run, &prime) > 0; i++)
        printf("%ld\n", (long)(intptr_t)prime);
    //> 1000003
    //> 1000033
    //> 1000037
    //> 1000039
    //> 1000081

    pyper_cancel(run); /* returns at once; a next() would now say so */
    printf("%s\n", pyper_strerror(pyper_next(run, &prime)));
    //> the run is cancelled
    int failed = pyper_failed(run); /* to be cancelled is not to have failed */
    printf("failed: %d\n", failed);
    //> failed: 0
    pyper_close(run); /* waits until every worker has left */
    pyper_unref(pipeline);
    return failed ? 1 : 0;
}
