/* The specification's example of `throttle` in C: the producer is paused once 5000 numbers wait for
 * the slow consumer.
 *
 * As in the specification the pipeline is only made: to run it to its end would take months.  What
 * is run is the producer alone, until its first number has come. */
#define _POSIX_C_SOURCE 200809L

#include <pyper.h>

#include <stdio.h>
#include <time.h>

static int fast_producer(pyper_worker *w, void *unused, void *bind) {
    for (intptr_t i = 0; i < 1000000; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int slow_consumer(pyper_worker *w, void *data, void *bind) {
    struct timespec left = {.tv_sec = 10};
    while (nanosleep(&left, &left) != 0) continue;
    return pyper_emit(w, data);
}

int main(void) {
    pyper_pipeline *producer = pyper_task(fast_producer, .branch = true, .throttle = 5000);
    pyper_pipeline *pipeline = pyper_pipe(pyper_ref(producer), pyper_task(slow_consumer));
    printf("tasks: %zu\n", pyper_task_count(pipeline));
    //> tasks: 2

    pyper_run *run = pyper_start(producer);
    void *first;
    if (pyper_next(run, &first) > 0) printf("%ld\n", (long)(intptr_t)first);
    //> 0
    pyper_close(run);
    pyper_unref(pipeline);
    pyper_unref(producer);
    return 0;
}
