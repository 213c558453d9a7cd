/* Errors: a task fails the run with a code and a message; the program learns which task it was. */
#include <pyper.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const lines[] = {"12", "7", "eleven", "30", NULL};

static int each_line(pyper_worker *w, void *unused, void *bind) {
    for (const char *const *line = lines; *line; line++)
        if (pyper_emit(w, (void *)*line) < 0) return PYPER_ECANCELED;
    return 0;
}

static int parse(pyper_worker *w, void *item, void *bind) {
    const char *line = item;
    char *end;
    errno = 0;
    long number = strtol(line, &end, 10);
    if (end == line || *end || errno) return pyper_fail(w, 400, "\"%s\" is no number", line);
    return pyper_emit(w, (void *)(intptr_t)number);
}

/* The same, for those who would rather go on: a branch that emits nothing for a bad line, and
 * counts it.  One worker, so the counter needs no lock. */
static int parse_or_skip(pyper_worker *w, void *item, void *bind) {
    char *end;
    long number = strtol(item, &end, 10);
    if (end != (char *)item && !*end) return pyper_emit(w, (void *)(intptr_t)number);
    ++*(int *)bind;
    return 0;
}

static void print_all(pyper_pipeline *pipeline) {
    pyper_run *run = pyper_start(pipeline);
    void *out;
    int rc;
    while ((rc = pyper_next(run, &out)) > 0) printf("%ld\n", (long)(intptr_t)out);
    if (rc == PYPER_EFAILED) printf("code %d: ", pyper_error_code(run));
    if (rc < 0) printf("%s\n", pyper_error_message(run));
    pyper_close(run);
    pyper_unref(pipeline);
}

int main(void) {
    int skipped = 0;
    print_all(pyper_pipe(pyper_task(each_line, .branch = true),
                         pyper_task(parse_or_skip, .branch = true, .bind = &skipped)));
    printf("skipped: %d\n", skipped);
    //> 12
    //> 7
    //> 30
    //> skipped: 1

    print_all(
        pyper_pipe(pyper_task(each_line, .branch = true), pyper_task(parse, .name = "parse")));
    //> 12
    //> 7
    //> code 400: task 'parse' (2 of 2): "eleven" is no number

    /* A pipeline that makes no sense says so by the first next(). */
    print_all(pyper_pipe(pyper_task(each_line, .branch = true),
                         pyper_task(parse, .name = "parse", .workers = -1)));
    //> task 'parse': workers is -1; use 1 to 1000000
    return 0;
}
