/* pipeline - see pipeline.h, and pyper.h for what the public functions promise. */
#include "pipeline.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "text.h"

/* What there is to return when there is no memory for anything.  Never freed, never counted. */
static pyper_pipeline out_of_memory = {.error = PYPER_ENOMEM,
                                       .message = "out of memory while making a pipeline"};

/* ------------------------------------------------------------------------------------ tasks */

static void task_unref(pyper__task *task) {
    if (!task || atomic_fetch_sub_explicit(&task->refs, 1, memory_order_acq_rel) != 1) return;
    if (task->release) task->release(task->bind);
    pyper__free(task);
}

static pyper__task *task_create(const pyper_task_options *options, const char *name) {
    size_t length = strlen(name);
    pyper__task *task = pyper__alloc(sizeof *task + length + 1);
    if (!task) return NULL;
    atomic_init(&task->refs, 1);
    task->fn = options->fn;
    task->branch = options->branch;
    task->join = options->join;
    task->workers = options->workers ? options->workers : 1;
    task->ordered = options->ordered && task->workers > 1;
    task->throttle = options->throttle;
    task->bind = (void *)(uintptr_t)options->bind;
    task->release = options->release;
    task->type = options->type;
    task->async = options->async;
    task->resume = options->resume;
    task->cancel = options->cancel;
    task->multiprocess = options->multiprocess;
    memcpy(task->name, name, length + 1);
    return task;
}

/* -------------------------------------------------------------------------------- pipelines */

static pyper_pipeline *create(size_t count) {
    if (count > SIZE_MAX / (2 * sizeof(pyper__task *))) return NULL;
    pyper_pipeline *pipeline = pyper__alloc(sizeof *pipeline + count * sizeof(pyper__task *));
    if (pipeline) atomic_init(&pipeline->refs, 1);
    return pipeline;
}

static PYPER_PRINTF(2, 3) pyper_pipeline *failed(int error, const char *format, ...) {
    pyper_pipeline *pipeline = create(0);
    if (!pipeline) return &out_of_memory;
    pipeline->error = error;
    va_list args;
    va_start(args, format);
    vsnprintf(pipeline->message, sizeof pipeline->message, format, args);
    va_end(args);
    pyper__text_end(pipeline->message);
    return pipeline;
}

/* What is wrong with the options: a failed pipeline that says so; NULL if nothing is. */
static pyper_pipeline *refuse(const pyper_task_options *options, const char *name) {
    if (!options->fn)
        return failed(PYPER_EINVAL, "task '%.*s': fn is NULL; give it a function",
                      PYPER__SHOWN(name));
    if (options->workers < 0 || options->workers > PYPER_WORKERS_MAX)
        return failed(PYPER_EINVAL, "task '%.*s': workers is %" PRId64 "; use 1 to %d",
                      PYPER__SHOWN(name), options->workers, PYPER_WORKERS_MAX);
    if (options->throttle < 0)
        return failed(PYPER_EINVAL,
                      "task '%.*s': throttle is %" PRId64 "; use 1 or more, or 0 for no bound",
                      PYPER__SHOWN(name), options->throttle);
    if (options->ordered && options->join && options->workers > 1)
        return failed(PYPER_EINVAL,
                      "task '%.*s': ordered has no order to keep with join and several workers; "
                      "use one worker, or leave ordered out",
                      PYPER__SHOWN(name));
    if (options->multiprocess && options->async)
        return failed(PYPER_EINVAL,
                      "task '%.*s': an asynchronous task has no process of its own; leave async "
                      "or multiprocess out",
                      PYPER__SHOWN(name));
    if (options->multiprocess && !PYPER__PROCESSES)
        return failed(PYPER_ENOTSUP, "task '%.*s': multiprocess needs Linux; use threads",
                      PYPER__SHOWN(name));
    if (options->multiprocess && !pyper__type_crosses(options->type))
        return failed(PYPER_EINVAL,
                      "task '%.*s': its workers are processes, and the type of its outputs has no "
                      "encode and decode, or no size; give it a .type that has all three "
                      "(pyper_type_int, pyper_type_blob or your own)",
                      PYPER__SHOWN(name));
    return NULL;
}

pyper_pipeline *pyper_task_from(const pyper_task_options *given) {
    pyper_task_options options = {.size = sizeof options};
    if (given) pyper__copy_known(&options, sizeof options, given);
    const char *name = options.name ? options.name : "task";
    pyper_pipeline *bad = given ? refuse(&options, name)
                                : failed(PYPER_EINVAL, "pyper_task_from() was given no options");
    pyper__task *task = bad ? NULL : task_create(&options, name);
    pyper_pipeline *pipeline = task ? create(1) : NULL;
    if (!pipeline) {
        if (task)
            task_unref(task);
        else if (options.release)
            options.release((void *)(uintptr_t)options.bind);
        return bad ? bad : &out_of_memory;
    }
    pipeline->count = 1;
    pipeline->tasks[0] = task;
    return pipeline;
}

/* The inputs of a task with process workers cross too. */
static pyper_pipeline *refuse_neighbours(const pyper_pipeline *pipeline) {
    for (size_t i = 1; i < pipeline->count; i++)
        if (pipeline->tasks[i]->multiprocess && !pyper__type_crosses(pipeline->tasks[i - 1]->type))
            return failed(PYPER_EINVAL,
                          "task '%.*s': the workers of the next task, '%.*s', are processes, and "
                          "the type of its outputs has no encode and decode, or no size; give it a "
                          ".type that has all three (pyper_type_int, pyper_type_blob or your own)",
                          PYPER__SHOWN(pipeline->tasks[i - 1]->name),
                          PYPER__SHOWN(pipeline->tasks[i]->name));
    return NULL;
}

static pyper_pipeline *join_parts(pyper_pipeline *const *parts, size_t count) {
    if (count == 0) return failed(PYPER_EINVAL, "pyper_pipe() needs at least one pipeline");
    if (!parts) return failed(PYPER_EINVAL, "pyper_pipe_from() was given no pipelines");
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++) {
        if (!parts[i])
            return failed(PYPER_EINVAL, "part %zu of %zu given to pyper_pipe() is NULL", i + 1,
                          count);
        if (parts[i]->error) return pyper_ref(parts[i]);
        tasks += parts[i]->count;
    }
    pyper_pipeline *pipeline = create(tasks);
    if (!pipeline) return &out_of_memory;
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < parts[i]->count; k++) {
            pyper__task *task = parts[i]->tasks[k];
            atomic_fetch_add_explicit(&task->refs, 1, memory_order_relaxed);
            pipeline->tasks[pipeline->count++] = task;
        }
    }
    pyper_pipeline *bad = refuse_neighbours(pipeline);
    if (!bad) return pipeline;
    pyper_unref(pipeline);
    return bad;
}

pyper_pipeline *pyper_pipe_from(pyper_pipeline *const *parts, size_t count) {
    pyper_pipeline *pipeline = join_parts(parts, count);
    for (size_t i = 0; parts && i < count; i++) pyper_unref(parts[i]);
    return pipeline;
}

pyper_pipeline *pyper_ref(pyper_pipeline *pipeline) {
    if (pipeline && pipeline != &out_of_memory)
        atomic_fetch_add_explicit(&pipeline->refs, 1, memory_order_relaxed);
    return pipeline;
}

void pyper_unref(pyper_pipeline *pipeline) {
    if (!pipeline || pipeline == &out_of_memory) return;
    if (atomic_fetch_sub_explicit(&pipeline->refs, 1, memory_order_acq_rel) != 1) return;
    for (size_t i = 0; i < pipeline->count; i++) task_unref(pipeline->tasks[i]);
    pyper__free(pipeline);
}

int pyper_pipeline_error(const pyper_pipeline *pipeline) {
    return pipeline ? pipeline->error : PYPER_EINVAL;
}

const char *pyper_pipeline_message(const pyper_pipeline *pipeline) {
    return pipeline ? pipeline->message : "the pipeline is NULL";
}

size_t pyper_task_count(const pyper_pipeline *pipeline) {
    return pipeline ? pipeline->count : 0;
}
