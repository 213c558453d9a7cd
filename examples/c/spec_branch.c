/* The specification's example of `branch` in C: the same three numbers as one output, which is an
 * array, and as three outputs. */
#include <pyper.h>

#include <stdio.h>
#include <stdlib.h>

struct data {
    intptr_t values[3];
};

static const pyper_item_type data_type = {.size = sizeof data_type, .destroy = free};

static int create_data(pyper_worker *w, void *item, void *bind) {
    intptr_t x = (intptr_t)item;
    struct data *data = malloc(sizeof *data);
    if (!data) return pyper_fail(w, PYPER_ENOMEM, "out of memory");
    *data = (struct data){{x + 1, x + 2, x + 3}};
    return pyper_emit(w, data);
}

static int create_each(pyper_worker *w, void *item, void *bind) {
    for (intptr_t i = 1; i <= 3; i++)
        if (pyper_emit(w, (void *)((intptr_t)item + i)) < 0) return PYPER_ECANCELED;
    return 0;
}

int main(void) {
    pyper_pipeline *pipeline1 = pyper_task(create_data, .type = &data_type);
    pyper_run *run = pyper_start(pipeline1, (void *)0);
    for (void *out; pyper_next(run, &out) > 0; free(out)) {
        const intptr_t *values = ((struct data *)out)->values;
        printf("[%ld, %ld, %ld]\n", (long)values[0], (long)values[1], (long)values[2]);
    }
    //> [1, 2, 3]
    pyper_close(run);
    pyper_unref(pipeline1);

    pyper_pipeline *pipeline2 = pyper_task(create_each, .branch = true);
    run = pyper_start(pipeline2, (void *)0);
    for (void *out; pyper_next(run, &out) > 0;) printf("%ld\n", (long)(intptr_t)out);
    //> 1
    //> 2
    //> 3
    pyper_close(run);
    pyper_unref(pipeline2);
    return 0;
}
