/* Items on the heap: an item type tells the library how to destroy what nobody takes any more.
 *
 * Each item is delivered or destroyed exactly once, also when the run is left in the middle: the
 * program counts its items to prove it. */
#include <pyper.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

struct point {
    double x, y;
};

static atomic_long alive; /* points made and not freed */

static struct point *point_new(double x, double y) {
    struct point *point = malloc(sizeof *point);
    if (point) {
        *point = (struct point){x, y};
        atomic_fetch_add(&alive, 1);
    }
    return point;
}

static void point_free(void *item) {
    free(item);
    atomic_fetch_sub(&alive, 1);
}

static const pyper_item_type point_type = {.size = sizeof point_type, .destroy = point_free};

static int points(pyper_worker *w, void *unused, void *bind) { /* endless */
    for (long i = 0;; i++) {
        struct point *point = point_new((double)i, 0.5);
        if (!point) return pyper_fail(w, PYPER_ENOMEM, "out of memory");
        if (pyper_emit(w, point) < 0) return PYPER_ECANCELED; /* the library has destroyed it */
    }
}

static int mirror(pyper_worker *w, void *item, void *bind) { /* passes its input on */
    struct point *point = item;
    point->y = -point->y;
    return pyper_emit(w, point);
}

static int shrink(pyper_worker *w, void *item, void *bind) { /* makes a new one, frees its input */
    struct point *point = item;
    struct point *half = point_new(point->x / 2, point->y / 2);
    point_free(point);
    return half ? pyper_emit(w, half) : pyper_fail(w, PYPER_ENOMEM, "out of memory");
}

int main(void) {
    pyper_pipeline *pipeline = pyper_pipe(
        pyper_task(points, .branch = true, .throttle = 100, .type = &point_type),
        pyper_task(mirror, .workers = 2, .ordered = true, .throttle = 100, .type = &point_type),
        pyper_task(shrink, .workers = 2, .ordered = true, .throttle = 100, .type = &point_type));
    pyper_run *run = pyper_start(pipeline);
    void *out;
    for (int i = 0; i < 3 && pyper_next(run, &out) > 0; i++) {
        struct point *point = out; /* mine now */
        printf("(%g, %g)\n", point->x, point->y);
        point_free(point);
    }
    //> (0, -0.25)
    //> (0.5, -0.25)
    //> (1, -0.25)

    pyper_close(run); /* destroys what waits in the queues */
    pyper_unref(pipeline);
    printf("points left: %ld\n", atomic_load(&alive));
    //> points left: 0
    return 0;
}
