/* pipeline - what to run: tasks in a chain.  Made once, never changed, counted, shared by runs. */
#ifndef PYPER_PIPELINE_H
#define PYPER_PIPELINE_H

#include <string.h>

#include "os.h"

/* Copy a public struct that begins with its size from a caller who may be older or newer than this
 * library: as much as both know.  What he does not know stays as it is; `size` is ours. */
static inline void pyper__copy_known(void *ret_struct, size_t size, const void *given) {
    size_t known;
    memcpy(&known, given, sizeof known);
    memcpy(ret_struct, given, known < size ? known : size);
}

/* One task, shared by all the pipelines that it was piped into.
 * Synchronization: refs atomic; everything else is set before anybody else sees the task. */
typedef struct pyper__task {
    _Atomic int64_t refs;
    pyper_fn fn;
    bool branch, join, ordered;
    int64_t workers;  /* >= 1 */
    int64_t throttle; /* 0: no bound */
    void *bind;
    void (*release)(void *bind);
    const pyper_item_type *type;
    bool async;
    pyper_fn resume;
    void (*cancel)(pyper_worker *worker, void *bind);
    bool multiprocess;
    char name[];
} pyper__task;

/* Do several threads or processes carry the task's workers?  (All slots of a loop live on one.) */
static inline bool pyper__task_is_crowded(const pyper__task *task) {
    return task && task->workers > 1 && !task->async;
}

/* Synchronization: refs atomic; everything else is set before anybody else sees the pipeline. */
struct pyper_pipeline {
    _Atomic int64_t refs;
    int error;         /* 0, or why it has failed */
    char message[384]; /* room for the longest, with two names */
    size_t count;
    pyper__task *tasks[];
};

/* May items of this type cross between processes? */
static inline bool pyper__type_crosses(const pyper_item_type *type) {
    return type && type->size >= offsetof(pyper_item_type, decode) + sizeof type->decode &&
           type->encode && type->decode;
}

#endif
