/* Checksums of the blocks of a text, computed by four workers, in the order of the blocks.
 *
 * Without .ordered the lines would come in the order in which the workers finish. */
#define _POSIX_C_SOURCE 200809L

#include <pyper.h>

#include <stdio.h>
#include <string.h>

#define BLOCK 16

static const char text[] =
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife.";

/* An item is a pointer into the text; nobody owns it, so it needs no item type. */
static int blocks(pyper_worker *w, void *start, void *bind) {
    for (const char *at = start; *at; at += strnlen(at, BLOCK))
        if (pyper_emit(w, (void *)at) < 0) return PYPER_ECANCELED;
    return 0;
}

static int checksum(pyper_worker *w, void *block, void *bind) { /* Adler-32 */
    uint32_t a = 1, b = 0;
    size_t length = strnlen(block, BLOCK);
    for (size_t i = 0; i < length; i++) {
        a = (a + ((unsigned char *)block)[i]) % 65521;
        b = (b + a) % 65521;
    }
    return pyper_emit(w, (void *)(uintptr_t)(b << 16 | a));
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(pyper_task(blocks, .branch = true),
                                          pyper_task(checksum, .workers = 4, .ordered = true));
    pyper_run *run = pyper_start(pipeline, (void *)text);
    int number = 0;
    for (void *sum; pyper_next(run, &sum) > 0; number++)
        printf("block %d: %08lx\n", number, (unsigned long)(uintptr_t)sum);
    //> block 0: 2d470595
    //> block 1: 3795067f
    //> block 2: 30a60577
    //> block 3: 320405d5
    //> block 4: 345205e0
    //> block 5: 319d05bd
    //> block 6: 2e28052f
    //> block 7: 062601da
    int failed = pyper_failed(run);
    if (failed) fprintf(stderr, "%s\n", pyper_error_message(run));
    pyper_close(run);
    pyper_unref(pipeline);
    return failed ? 1 : 0;
}
