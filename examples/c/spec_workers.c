/* The specification's example of `workers` in C: 20 calls of 2 seconds each, all at once, so that
 * the program takes about 2 seconds.  The order is that in which the workers happen to finish; the
 * program marks what has come and prints it sorted. */
#define _POSIX_C_SOURCE 200809L

#include <pyper.h>

#include <stdio.h>
#include <time.h>

#define COUNT 20

static int range(pyper_worker *w, void *n, void *bind) {
    for (intptr_t i = 0; i < (intptr_t)n; i++)
        if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
    return 0;
}

static int slow_func(pyper_worker *w, void *data, void *bind) {
    struct timespec left = {.tv_sec = 2};
    while (nanosleep(&left, &left) != 0) continue; /* a signal came: sleep the rest */
    return pyper_emit(w, data);
}

int main(void) {
    pyper_pipeline *pipeline =
        pyper_pipe(pyper_task(range, .branch = true), pyper_task(slow_func, .workers = 20));
    pyper_run *run = pyper_start(pipeline, (void *)COUNT);
    int seen[COUNT] = {0};
    for (void *out; pyper_next(run, &out) > 0;) seen[(intptr_t)out]++;
    for (int i = 0; i < COUNT; i++) printf("%d%s", i, seen[i] == 1 ? " " : " (wrong) ");
    printf("\n");
    //> 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19
    pyper_close(run);
    pyper_unref(pipeline);
    return 0;
}
