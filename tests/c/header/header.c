/* header - the public header by itself: it needs no other header before it, may be included twice,
 * and its macros are expressions.  Compiled in every C standard that pyper.h promises, not run. */
#include <pyper.h>
#include <pyper.h>

int header_function(pyper_worker *worker, void *item, void *bind);
pyper_run *header_run(void *argument, const pyper_item_type *type);

int header_function(pyper_worker *worker, void *item, void *bind) {
    (void)bind;
    return pyper_emit(worker, item);
}

pyper_run *header_run(void *argument, const pyper_item_type *type) {
    static const int bound = 1;
    pyper_pipeline *one = pyper_pipe(pyper_task(header_function));
    pyper_pipeline *all =
        pyper_pipe(one, pyper_task(header_function, .workers = 2, .throttle = 10, .ordered = true),
                   pyper_task(header_function, .join = true, .branch = true, .bind = &bound));
    pyper_run *run = pyper_start(all, argument, .type = type);
    pyper_unref(all);
    return run;
}
