// header - the public header in C++: its inline forms take and give what the macros do in C.
// Compiled in every C++ standard that pyper.h promises; also built and run against the library.
#include <pyper.h>
#include <pyper.h>

#include <cstdio>

static int numbers(pyper_worker *worker, void *count, void *) {
    for (intptr_t i = 0; i < reinterpret_cast<intptr_t>(count); i++) {
        int rc = pyper_emit(worker, reinterpret_cast<void *>(i));
        if (rc < 0) return rc;
    }
    return 0;
}

static int twice(pyper_worker *worker, void *item, void *) {
    return pyper_emit(worker, reinterpret_cast<void *>(2 * reinterpret_cast<intptr_t>(item)));
}

// Be a worker, without descriptors of a run to attach to.
static int attach() {
    pyper_attach_options options = {};
    for (int &fd : options.fds) fd = -1;
    options.fn = twice;
    options.input_type = options.output_type = &pyper_type_int;
    return pyper_attach(options);
}

int main() {
    pyper_task_options branching = {};
    branching.branch = true;
    pyper_task_options many = {};
    many.workers = 3;
    many.ordered = true;
    pyper_pipeline *pipeline =
        pyper_pipe(pyper_task(numbers, branching), pyper_task(twice, many), pyper_task(twice));
    pyper_run *run = pyper_start(pipeline, reinterpret_cast<void *>(intptr_t(100)));
    intptr_t next = 0;
    bool right = true;
    for (void *out; pyper_next(run, &out) > 0; next++)
        right = right && reinterpret_cast<intptr_t>(out) == 4 * next;
    right = right && next == 100 && pyper_failed(run) == 0;
    pyper_close(run);
    pyper_unref(pipeline);
    int refused = attach();
    right = right && (refused == PYPER_EINVAL || refused == PYPER_ENOTSUP);
    std::puts(right ? "1 passed, 0 failed" : "0 passed, 1 failed");
    return right ? 0 : 1;
}
