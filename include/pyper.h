/* pyper.h - concurrent data pipelines.
 *
 * SPDX-License-Identifier: MIT
 *
 * INTRODUCTION
 *
 * A *task* is a function and how to run it.  A *pipeline* is a chain of tasks; it never changes
 * once it is made, and may be run any number of times, from any thread, several times at once.  A
 * *run* is one execution of a pipeline: its workers, the queues between them, and the stream of
 * outputs that pyper_next() hands to you.
 *
 *     static int numbers(pyper_worker *w, void *n, void *bind) {
 *         for (intptr_t i = 0; i < (intptr_t)n; i++)
 *             if (pyper_emit(w, (void *)i) < 0) return PYPER_ECANCELED;
 *         return 0;
 *     }
 *     static int twice(pyper_worker *w, void *x, void *bind) {
 *         return pyper_emit(w, (void *)(2 * (intptr_t)x));
 *     }
 *
 *     pyper_pipeline *p = pyper_pipe(pyper_task(numbers, .branch = true, .throttle = 1000),
 *                                    pyper_task(twice, .workers = 4, .ordered = true));
 *     pyper_run *run = pyper_start(p, (void *)1000);
 *     for (void *out; pyper_next(run, &out) > 0; ) printf("%ld\n", (long)(intptr_t)out);
 *     if (pyper_failed(run)) fprintf(stderr, "%s\n", pyper_error_message(run));
 *     pyper_close(run);
 *     pyper_unref(p);
 *
 * CAVEATS
 *
 *  - fork: a run belongs to the process that started it.  In a forked child every inherited run is
 *    dead: pyper_next() and pyper_wait_until() answer PYPER_EFORKED, closing it does nothing.
 *    One that a task's function has forked has no part in the run: pyper_emit(), pyper_pull() and
 *    the like answer PYPER_ECANCELED, and when the function returns no other call begins.
 *    Your own handlers of pthread_atfork() may use the library (to close runs before a fork, say,
 *    and start them again after it) if they are registered after it was loaded.
 *  - Process workers are forked by pyper_start(), before any thread of the run: what your own other
 *    threads hold at that moment (a lock, half a change) stays so in the child for ever.  See
 *    Processes.
 *  - Signal handlers: nothing here may be called from one.
 *  - Thread cancellation: no function here is a cancellation point.  A thread must not end, by
 *    pthread_cancel() or pthread_exit(), within a function of yours that the library has called.
 *  - From a task's function you may start, read and close other runs.  Of the function's own run
 *    you may call pyper_cancel() and pyper_stats(); pyper_next() and pyper_close() would wait for
 *    their own caller and answer PYPER_EDEADLK.  A worker's thread has ended when the destructors
 *    of its own data (pthread_key_create(), thread_local) have returned: if they call what waits
 *    for the run, it waits for ever; pyper_run_unref() does not wait.
 *  - From an item's destroy function: do not call anything that waits.
 *  - Nothing can end a function in a thread that neither emits, pulls nor returns: closing such a
 *    run waits until it does.
 *
 * WORDS FOR STOPPING
 *
 *   | call            | the run              | waits                  | my reference        |
 *   | pyper_cancel    | stops                | no                     | kept                |
 *   | pyper_wait_until| goes on              | until all workers left | kept                |
 *   | pyper_close     | stops                | until all workers left | given up            |
 *   | pyper_run_unref | stops if it was the  | no                     | given up            |
 *   |                 | last one             |                        |                     |
 *
 * OWNERSHIP, IN FOUR VERBS
 *
 *   borrows        uses it for the length of the call, or as long as the comment says
 *   takes          owns it from here on (whether also on failure stands in the comment)
 *   returns owned  yours now; the comment says how to give it back
 *   shares         adds a reference of its own
 *
 * Each item is delivered or destroyed exactly once.
 *
 * THREAD SAFETY, IN ONE WORD
 *
 *   shared     may be called on the same object from several threads at once
 *   worker     may be called only with the worker that a function was given, by the thread that
 *              runs this function (or by one thread at a time on its behalf)
 *   driver     called only by the thread that drives the run (see Asynchronous tasks)
 *
 * Sections: Version - Errors - Item types - Pipelines - Runs - Writing functions - Asynchronous
 * tasks - Statistics - Processes - Hosts.
 */
#ifndef PYPER_H
#define PYPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(PYPER_STATIC)
#define PYPER_API
#elif defined(__GNUC__)
#define PYPER_API __attribute__((visibility("default")))
#else
#define PYPER_API
#endif

#if defined(__GNUC__)
#define PYPER_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define PYPER_PRINTF(format_index, first)
#endif

/* ------------------------------------------------------------------------------- Version */

#define PYPER_VERSION_MAJOR 0
#define PYPER_VERSION_MINOR 1
#define PYPER_VERSION_PATCH 0
#define PYPER_VERSION_STRING "0.1.0"

/* The version of the library that is linked, as "major.minor.patch"; a constant string.
 * Thread safety: shared. */
PYPER_API const char *pyper_version(void);

/* -------------------------------------------------------------------------------- Errors */

/* Every error the library itself can report: name, number, text.  Functions return one of these
 * (always negative) or a number >= 0 on success. */
#define PYPER_ERRORS(X)                                                                            \
    X(ENOMEM, -1, "out of memory")                                                                 \
    X(EINVAL, -2, "invalid argument")                                                              \
    X(ECANCELED, -3, "the run is cancelled")                                                       \
    X(EFAILED, -4, "a task's function failed")                                                     \
    X(ETIMEDOUT, -5, "the deadline has passed")                                                    \
    X(EINTR, -6, "the wait was interrupted")                                                       \
    X(ETHREAD, -7, "a thread could not be started")                                                \
    X(EDEADLK, -8, "the call would wait for its own caller")                                       \
    X(EFORKED, -9, "the run belongs to the parent of this forked process")                         \
    X(EDIED, -11, "a worker's process died")                                                       \
    X(EPROCESS, -12, "a process could not be started")                                             \
    X(ENOTSUP, -13, "the system does not support this")                                            \
    X(EAGAIN, -14, "not now: it will be told when to try again")                                   \
    X(EMFILE, -15, "no file descriptors are left")

enum {
#define PYPER_ERROR_ENUM(name, number, text) PYPER_##name = number,
    PYPER_ERRORS(PYPER_ERROR_ENUM)
#undef PYPER_ERROR_ENUM
};

/* The text of a PYPER_E... code, a constant string; "unknown error" for any other number.
 * Thread safety: shared. */
PYPER_API const char *pyper_strerror(int code);

/* The name of a PYPER_E... code ("PYPER_ENOMEM"), a constant string; "PYPER_E?" for any other.
 * Thread safety: shared. */
PYPER_API const char *pyper_err_name(int code);

/* A deadline is a point on the monotonic clock of pyper_now(), in nanoseconds. */
#define PYPER_FOREVER INT64_MAX
#define PYPER_NOWAIT ((int64_t)0)

/* The monotonic clock, in nanoseconds.  Thread safety: shared. */
PYPER_API int64_t pyper_now(void);

/* ---------------------------------------------------------------------------- Item types */

/* What the library must know about items that it may have to get rid of.  Zero-initialise, set
 * `size` to sizeof(pyper_item_type), keep it alive as long as any pipeline or run that uses it.
 *
 * destroy  called exactly once for every item that is not delivered: after a cancel or a failure,
 *          or when pyper_emit() refuses it.  Called on a worker's thread or on the thread that
 *          closes the run, holding no lock of the library, with the host's token (see Hosts).
 *          NULL: items need no destroying (integers, borrowed pointers).
 * encode   writes the item as bytes: asks pyper_transfer_reserve() once for as many as it takes,
 *          and fills them.  Returns 0 or a negative code, which fails the run.  Borrows the item:
 *          the library destroys it when it has gone.  Called by the sender, with the host's token.
 * decode   makes the item again from these bytes: sets *ret_item and returns 0, or a negative code,
 *          which fails the run.  Borrows `data` (aligned to 8 bytes) for the call.  Called by the
 *          receiver, with the host's token.
 *          NULL: items do not cross between processes (see Processes). */
typedef struct pyper_transfer pyper_transfer; /* an item on its way between two processes */
typedef struct pyper_item_type {
    size_t size;
    void (*destroy)(void *item);
    int (*encode)(void *item, pyper_transfer *to);
    int (*decode)(pyper_transfer *from, const void *data, size_t size, void **ret_item);
} pyper_item_type;

/* Integers (or anything else without a meaning of its own) in the pointer itself. */
PYPER_API extern const pyper_item_type pyper_type_int;

/* Flat blobs of bytes, allocated with malloc(). */
#if defined(__GNUC__)
__extension__ /* C++ has no flexible array members, but its compilers do */
#endif
    typedef struct pyper_blob {
    size_t size; /* of data */
    unsigned char data[];
} pyper_blob;
PYPER_API extern const pyper_item_type pyper_type_blob;

/* ----------------------------------------------------------------------------- Pipelines */

typedef struct pyper_pipeline pyper_pipeline; /* immutable, counted */
typedef struct pyper_run pyper_run;           /* one execution, counted */
typedef struct pyper_worker pyper_worker;     /* the seat of a function that is being called */

/* A task's function.
 *
 * It owns `item` (emits it or destroys it).  For a task with `join` item is NULL and the function
 * pulls its inputs itself; for the first task it is the argument of pyper_start().  `bind` is the
 * option of that name.
 *
 * Returns 0 (or any number > 0) when this call is done.  Any other code fails the run, except
 * PYPER_ECANCELED once the function has been told that the run is over.  Without `branch` a
 * call that returns 0 must have emitted exactly once.
 *
 * Called on a worker's own thread (in an asynchronous task: by the driver, see there), holding no
 * lock of the library, with the host's token; by at most `workers` threads at once. */
typedef int (*pyper_fn)(pyper_worker *worker, void *item, void *bind);

#define PYPER_WORKERS_MAX 1000000

/* How to run a function.  Use the pyper_task() macro, which fills in `size`; a field left out is
 * zero, which is its default. */
typedef struct pyper_task_options {
    size_t size;      /* sizeof(pyper_task_options), set by the macro */
    pyper_fn fn;      /* the function, the macro's first argument */
    bool branch;      /* a call may emit any number of outputs, not exactly one */
    bool join;        /* the function is called once per worker and pulls its inputs */
    bool ordered;     /* outputs leave in the order of the inputs, whatever the workers' order */
    int64_t workers;  /* how many workers run the function at once, 1 to PYPER_WORKERS_MAX; 0: 1 */
    int64_t throttle; /* at most this many items wait in the task's output queue; 0: no bound */
    const void *bind; /* handed to each call; borrowed until the pipeline's last pyper_unref() */
    void (*release)(void *bind); /* called once, by that last pyper_unref(); NULL: nothing to do */
    const pyper_item_type *type; /* of the task's *outputs*; borrowed; NULL: nothing to destroy */
    const char *name;            /* for messages, threads and statistics; copied; NULL: "task" */
    bool multiprocess;           /* workers are processes (see Processes) */
    bool async;                  /* fn starts an operation (see Asynchronous tasks) */
    pyper_fn resume; /* async: an operation that had to stop may go on; NULL: with join fn itself */
    void (*cancel)(pyper_worker *worker, void *bind); /* async: give this operation up; or NULL */
} pyper_task_options;

/* Make a pipeline of one task.
 *
 * Never returns NULL: with a bad option or without memory it returns a failed pipeline, which
 * pyper_pipeline_error() explains and which can be piped and started like any other; the run's
 * first pyper_next() then answers with the same code.
 *
 * Ownership: returns owned (pyper_unref()).  `bind` is released also when the pipeline failed.
 * Thread safety: shared.
 *
 *     pyper_task(parse, .workers = 8, .throttle = 100)       in C++: pyper_task(parse, options)
 */
PYPER_API pyper_pipeline *pyper_task_from(const pyper_task_options *options);

/* Join `count` pipelines into one, in this order.
 *
 * Never returns NULL.  The result has failed if a part has failed, is NULL, or if `parts` is NULL
 * or count 0.  A pipeline may stand in the same pipe more than once (a reference for each).
 *
 * Ownership: takes one reference of each part (also on failure); returns owned (pyper_unref()).
 * Thread safety: shared.
 *
 *     pyper_pipe(first, second, third)
 */
PYPER_API pyper_pipeline *pyper_pipe_from(pyper_pipeline *const *parts, size_t count);

#ifdef __cplusplus
extern "C++" { /* the inline forms, also for who includes this inside of extern "C" */
inline pyper_pipeline *pyper_task(pyper_fn fn, pyper_task_options options = pyper_task_options()) {
    options.size = sizeof options;
    options.fn = fn;
    return pyper_task_from(&options);
}
template <class... Parts> inline pyper_pipeline *pyper_pipe(Parts... parts) {
    pyper_pipeline *const array[] = {parts...};
    return pyper_pipe_from(array, sizeof...(parts));
}
} /* extern "C++" */
#else
/* pyper_task(fn, .option = value, ...) and pyper_pipe(part, ...) */
#define pyper_task(...)                                                                            \
    pyper_task_from(                                                                               \
        &(const pyper_task_options){.size = sizeof(pyper_task_options), .fn = __VA_ARGS__})
#define pyper_pipe(...)                                                                            \
    pyper_pipe_from((pyper_pipeline *const[]){__VA_ARGS__},                                        \
                    sizeof((pyper_pipeline *const[]){__VA_ARGS__}) / sizeof(pyper_pipeline *))
#endif

/* Add a reference and return the pipeline; NULL is accepted.  Thread safety: shared. */
PYPER_API pyper_pipeline *pyper_ref(pyper_pipeline *pipeline);

/* Give up a reference; the last one frees the pipeline.  NULL is accepted.  Runs share their
 * pipeline, so this may be called while one goes on.  Thread safety: shared. */
PYPER_API void pyper_unref(pyper_pipeline *pipeline);

/* 0, or the PYPER_E... code of a failed pipeline (PYPER_EINVAL for NULL). Thread safety: shared. */
PYPER_API int pyper_pipeline_error(const pyper_pipeline *pipeline);

/* What is wrong with a failed pipeline, naming the task and the mend; "" for a sound one.  Valid as
 * long as the pipeline.  Thread safety: shared. */
PYPER_API const char *pyper_pipeline_message(const pyper_pipeline *pipeline);

/* How many tasks the pipeline has (0 for NULL or a failed one).  Thread safety: shared. */
PYPER_API size_t pyper_task_count(const pyper_pipeline *pipeline);

/* ---------------------------------------------------------------------------------- Runs */

typedef struct pyper_host pyper_host; /* see Hosts */

/* What to run.  Use the pyper_start() macro. */
typedef struct pyper_start_options {
    size_t size;                 /* sizeof(pyper_start_options), set by the macro */
    pyper_pipeline *pipeline;    /* shared: the run adds a reference */
    void *argument;              /* handed to the first task's function */
    const pyper_item_type *type; /* of `argument`; NULL: nothing to destroy */
    const pyper_host *host;      /* NULL: plain threads; copied */
    void *host_data;             /* handed to each callback of the host */
    bool loop; /* an event loop of yours drives the run: pyper_fd(), pyper_drive() */
} pyper_start_options;

/* Start a run: create its workers and let them go.
 *
 * Never returns NULL: if the pipeline has failed, its first task has `join` or several workers, or
 * if memory or threads ran out, the run has failed, and its first pyper_next() says why.
 *
 * Ownership: shares the pipeline; takes `argument` (also on failure); returns owned
 * (pyper_close() or pyper_run_unref()).  Blocks: no.  Thread safety: shared.
 *
 *     pyper_start(pipeline, argument, .type = &my_type)
 */
PYPER_API pyper_run *pyper_start_from(const pyper_start_options *options);

#ifdef __cplusplus
extern "C++" {
inline pyper_run *pyper_start(pyper_pipeline *pipeline, void *argument = nullptr,
                              pyper_start_options options = pyper_start_options()) {
    options.size = sizeof options;
    options.pipeline = pipeline;
    options.argument = argument;
    return pyper_start_from(&options);
}
} /* extern "C++" */
#else
#define pyper_start(...)                                                                           \
    pyper_start_from(&(const pyper_start_options){.size = sizeof(pyper_start_options),             \
                                                  .pipeline = __VA_ARGS__})
#endif

/* Take the run's next output.
 *
 * Waits for an output, the end, a failure or `deadline_ns` (absolute; PYPER_NOWAIT = do not wait,
 * PYPER_FOREVER = no limit).  The end and a failure are reported only when every worker has left:
 * after a return of 0 or PYPER_EFAILED nothing of the run is left but its memory.  Outputs that
 * were in the queue before a failure come first.
 *
 * Returns 1 and sets *ret_item; 0 at the end of the stream (again and again);
 *         PYPER_EFAILED: a task's function failed, or an item could not be encoded or decoded (see
 *         pyper_error_message());
 *         PYPER_ECANCELED: somebody cancelled the run;
 *         PYPER_ETIMEDOUT; PYPER_EINTR: the host's wait was interrupted, the run goes on;
 *         PYPER_EDEADLK: called by one of the run's own functions, or by another thread of a
 *         worker's process; PYPER_EFORKED; PYPER_EINVAL, PYPER_ENOMEM, PYPER_ETHREAD,
 *         PYPER_EPROCESS, PYPER_EMFILE, PYPER_ENOTSUP: the run could not be started, or ran out of
 *         memory underway;
 *         PYPER_EDIED: a process worker died (see pyper_error_message()); or what a host's
 *         start_slot has returned.
 * Ownership: *ret_item is returned owned; it is untouched unless 1 is returned.
 * Blocks: yes.  Thread safety: shared (each output goes to one caller). */
PYPER_API int pyper_next_until(pyper_run *run, void **ret_item, int64_t deadline_ns);

/* pyper_next_until() without a limit.  Blocks: yes.  Thread safety: shared. */
PYPER_API int pyper_next(pyper_run *run, void **ret_item);

/* Stop the run: no new call starts, everybody who waits in it wakes, outputs not yet taken are
 * destroyed.  Returns at once; calls in progress go on until they return or emit.  NULL is
 * accepted.  Thread safety: shared; may be called from the run's own functions. */
PYPER_API void pyper_cancel(pyper_run *run);

/* Wait until every worker of the run has left and its threads have ended.  Does not stop it: a run
 * whose outputs nobody takes may never end by itself.
 *
 * Returns 0; PYPER_ETIMEDOUT; PYPER_EINTR; PYPER_EDEADLK (as pyper_next()); PYPER_EFORKED;
 * PYPER_EINVAL for NULL.  Blocks: yes.  Thread safety: shared. */
PYPER_API int pyper_wait_until(pyper_run *run, int64_t deadline_ns);

/* Cancel the run, wait until nothing of it is left, and give up my reference.
 *
 * Returns 0; PYPER_EDEADLK (as pyper_next()), PYPER_EFORKED in a forked child: in both the
 * reference is given up (it must not be the one that somebody is just using, in pyper_next() or
 * pyper_drive()) and nothing is waited for;
 * PYPER_EINTR: the host's wait was interrupted: the run is cancelled, my reference is kept, call
 * again or call pyper_run_unref().
 * NULL is accepted.  Blocks: yes, until the calls in progress return; and of a run with `loop`, on
 * another thread than its driver, until that has driven its operations to their end.
 * Thread safety: shared. */
PYPER_API int pyper_close(pyper_run *run);

/* Add a reference and return the run; NULL is accepted.  Thread safety: shared. */
PYPER_API pyper_run *pyper_run_ref(pyper_run *run);

/* Give up a reference without waiting.  The last one cancels the run; its last worker then frees
 * it.  NULL is accepted.  Thread safety: shared. */
PYPER_API void pyper_run_unref(pyper_run *run);

/* Why the run ended badly.
 *
 * pyper_failed         0, or the code that pyper_next() reports: PYPER_EFAILED if a function
 *                      failed.  To cancel a run is no failure; but a function that fails then is
 *                      recorded, although pyper_next() goes on saying PYPER_ECANCELED.
 * pyper_error_code     the code given to pyper_fail(), or the one the function returned; if a
 *                      process died, its exit code, or minus the signal that killed it, or
 *                      PYPER_STATUS_UNKNOWN
 * pyper_error_message  a text that names the task and its place; "" if nothing failed.  Of a longer
 *                      one of your own some 400 bytes are kept
 * pyper_error_task     the index of the task (0 is the first), or -1
 * pyper_error_payload  what was given to pyper_fail_with(), borrowed; or NULL
 * pyper_error_bytes    what was given to pyper_fail_bytes() and *ret_size of them, borrowed; or
 *                      NULL
 *
 * The first failure counts, and does not change any more: what is returned stays valid as long as
 * my reference.  Thread safety: shared. */
PYPER_API int pyper_failed(pyper_run *run);
PYPER_API int pyper_error_code(pyper_run *run);
PYPER_API const char *pyper_error_message(pyper_run *run);
PYPER_API int64_t pyper_error_task(pyper_run *run);
PYPER_API void *pyper_error_payload(pyper_run *run);
PYPER_API const void *pyper_error_bytes(pyper_run *run, size_t *ret_size);

/* --------------------------------------------------------------------- Writing functions */

/* Hand an output to the next task, or to the caller.  Waits while `throttle` items wait there.
 *
 * Returns 0;
 *         PYPER_KEPT: in an asynchronous task (see there);
 *         PYPER_ECANCELED: the run, or this part of it, is over: return PYPER_ECANCELED;
 *         PYPER_EINVAL: a second output of a call without `branch` (this fails the run);
 *         PYPER_EFAILED: it could not be encoded for another process (this fails the run);
 *         PYPER_ENOMEM (this fails the run).
 * Ownership: always takes `item`.  When the answer is negative it has been destroyed; with
 * PYPER_ECANCELED it may also be among those that the end of the run leaves in the queue, to be
 * delivered or destroyed like them.
 * Blocks: yes.  Thread safety: worker. */
PYPER_API int pyper_emit(pyper_worker *worker, void *item);

/* Take the next input of a task with `join`.
 *
 * Returns 1 and sets *ret_item; 0 when the inputs are complete;
 *         PYPER_ECANCELED: the run is over, what was pulled so far is not everything;
 *         PYPER_EFAILED: one from another process could not be decoded (this fails the run);
 *         PYPER_ETIMEDOUT; PYPER_EINVAL: the task has no `join`.
 * Ownership: *ret_item is returned owned.  Blocks: yes.  Thread safety: worker. */
PYPER_API int pyper_pull_until(pyper_worker *worker, void **ret_item, int64_t deadline_ns);

/* pyper_pull_until() without a limit.  Blocks: yes.  Thread safety: worker. */
PYPER_API int pyper_pull(pyper_worker *worker, void **ret_item);

/* Fail the run with a code of your own and a message (as printf()).  Returns PYPER_EFAILED, so that
 * a function can end with `return pyper_fail(w, 404, "no such page: %s", url);`.
 * Thread safety: worker. */
PYPER_API int pyper_fail(pyper_worker *worker, int code, const char *format, ...)
    PYPER_PRINTF(3, 4);

/* Fail the run and hand a value of your own (an exception, say) to whoever asks for it with
 * pyper_error_payload().  `destroy` is called once when the run is freed, on the thread that frees
 * it, with the host's token; NULL: nothing to do.
 *
 * In a process worker the payload stays in its process; see pyper_fail_bytes().
 *
 * Returns PYPER_EFAILED, or PYPER_ECANCELED if the run had failed before: then `payload` is not
 * taken.  Ownership: takes `payload` when it returns PYPER_EFAILED.  Thread safety: worker. */
PYPER_API int pyper_fail_with(pyper_worker *worker, int code, const char *message, void *payload,
                              void (*destroy)(void *payload));

/* Fail the run and hand `size` bytes (a pickled exception, say) to whoever asks for them with
 * pyper_error_bytes(), in whatever process the function runs.  The bytes are copied; without the
 * memory for it the run fails without them.  Returns as pyper_fail_with().  Thread safety:
 * worker. */
PYPER_API int pyper_fail_bytes(pyper_worker *worker, int code, const char *message,
                               const void *data, size_t size);

/* Has the run (or this part of it) been told to stop?  A long call that asks now and then, and
 * returns PYPER_ECANCELED, makes a quick end.  Once it is true, no thread of this process begins
 * another call of the task (an asynchronous one's loop may).  Cheap.  Thread safety: shared. */
PYPER_API bool pyper_cancelled(const pyper_worker *worker);

/* Which run, which task of it (0 is the first), which of its workers (0 to workers - 1), and the
 * name of the task.  The run is borrowed; the name is valid as long as the run, in a process worker
 * as long as the worker, where it is cut to 63 bytes, between characters.  Thread safety:
 * shared. */
PYPER_API pyper_run *pyper_worker_run(const pyper_worker *worker);
PYPER_API size_t pyper_worker_task(const pyper_worker *worker);
PYPER_API int64_t pyper_worker_index(const pyper_worker *worker);
PYPER_API const char *pyper_worker_name(const pyper_worker *worker);

/* The option `bind` of the worker's task.  Thread safety: shared. */
PYPER_API void *pyper_worker_bind(const pyper_worker *worker);

/* What pyper_start() was given as host_data.  Thread safety: shared. */
PYPER_API void *pyper_worker_host_data(const pyper_worker *worker);

/* --------------------------------------------------------------------- Asynchronous tasks */

/* The function of a task with `async` starts an operation (a request, a timer) and returns
 * PYPER_PENDING; its outputs and its end come later, from any thread:
 *
 *     static int fetch(pyper_worker *w, void *url, void *client) {
 *         return client_get(client, url, on_reply, w) < 0 ? pyper_fail(w, 1, "no connection")
 *                                                         : PYPER_PENDING;
 *     }
 *     static void on_reply(void *w, reply *r) {
 *         if (r->ok) pyper_emit(w, r);
 *         pyper_done(w, r->ok ? 0 : pyper_fail(w, r->status, "no reply"));
 *     }
 *
 * or it emits and returns 0, if there is nothing to wait for.  At most `workers` operations are
 * under way; each belongs to a worker, which names it in all calls.  Every other option means what
 * it means elsewhere; other tasks of the same pipeline run in threads and processes as ever.
 *
 * Who calls.  fn, resume and cancel are called on one thread at a time, the *driver*: inside
 * pyper_next(), pyper_wait_until() or pyper_close() of a caller who waits there; or, with the start
 * option `loop`, inside pyper_drive(), called by an event loop of yours.  They should return soon.
 *
 * Next to processes.  What the next task's processes are to get is encoded by the driver, when
 * there is room for it, and what comes from processes is decoded by it.
 *
 * Outputs never wait.  What finds no room (`throttle`, or out of turn with `ordered`) stays in the
 * operation's hand, and its worker takes no other input until it has gone: so for a task without
 * `branch` the bound is exact.  An operation's outputs leave in the order of the calls that emit
 * them, from whatever threads.  pyper_emit() says PYPER_KEPT when it has kept the item; with
 * `branch` or `join` an operation that then emits no more until `resume` is called keeps the bound,
 * too: at every moment generated <= started + throttle + workers.
 *
 * Going on.  `resume` is called when all that was kept has left, also after the last output.  To an
 * operation that emits on another thread it may come before that pyper_emit() has returned; what is
 * said of `cancel` and pyper_done() below goes for `resume` as well.
 *
 * Joining.  The fn of a task with `join` and `async` is called with item NULL; it pulls with
 * pyper_try_pull() until that says PYPER_EAGAIN, returns PYPER_PENDING, and is called again (or
 * `resume` is, if there is one) when it may go on; after the end of its inputs it emits and returns
 * 0.
 *
 * Stopping.  When the run (or this part of it) is over, operations that wait for the library are
 * resumed and get PYPER_ECANCELED from whatever they call; for those that wait for something else,
 * then or when they have been resumed, `cancel` is called once.  Either way each operation ends as
 * ever, with pyper_done() or by a return; the run ends when all have.
 *
 * `cancel` is not called any more when pyper_done() has returned.  But a pyper_done() on another
 * thread may begin and return while `cancel` runs, and `cancel` may begin while that call is under
 * way.  So if another thread frees the operation after pyper_done(), let it take the operation out
 * of pyper_worker_state() before that (set it to NULL), under a lock of yours that outlives the
 * operation; and let `cancel` look there, and use what it finds, under the same lock. */
enum {
    PYPER_KEPT = 1,   /* pyper_emit(): the item will leave when there is room */
    PYPER_PENDING = 2 /* fn and resume: the operation goes on, pyper_done() will be called */
};

/* The operation of this worker is done; rc < 0 means what it means for a function that returns it.
 * The last call for this operation: the worker goes on to its next input.  Exactly once after
 * PYPER_PENDING was returned (or is about to be).  The run may be over and closed before this
 * returns; its memory and its descriptor go when it has.
 * Blocks: no.  Thread safety: worker; from any thread. */
PYPER_API void pyper_done(pyper_worker *worker, int rc);

/* A place for a pointer of the operation's own; NULL when the operation begins.
 * Thread safety: worker. */
PYPER_API void **pyper_worker_state(pyper_worker *worker);

/* pyper_pull() without waiting, for tasks with `join` and `async`.
 *
 * (An operation waits for one thing: for an input or for room, whichever it has asked for last.)
 * Returns 1 and sets *ret_item; 0 when the inputs are complete; PYPER_EAGAIN: nothing is there, you
 * will be resumed; PYPER_ECANCELED and PYPER_EFAILED as there; PYPER_EINVAL: the task is not
 * asynchronous, or has no `join`.
 * For a host's slot also without `join`: it is the way to the next input, and ends the call before.
 * Ownership: *ret_item is returned owned.  Blocks: no.  Thread safety: driver. */
PYPER_API int pyper_try_pull(pyper_worker *worker, void **ret_item);

/* pyper_emit() for asynchronous tasks that would rather keep an item themselves.
 *
 * What the operation has kept leaves first.
 * Returns 0; PYPER_EAGAIN: no room, you will be resumed; PYPER_EINVAL: the task is not asynchronous
 * (this does not fail the run); else as pyper_emit(), but never PYPER_KEPT.
 * Ownership: takes `item`, unless it returns PYPER_EAGAIN.  Blocks: no.  Thread safety: driver. */
PYPER_API int pyper_try_emit(pyper_worker *worker, void *item);

/* The descriptor of a run that was started with `loop`: readable when pyper_drive() has something
 * to do.  Watch it, never read it; it is closed when the run is freed.
 *
 * Returns the descriptor, or PYPER_EINVAL.  Thread safety: shared. */
PYPER_API int pyper_fd(pyper_run *run);

/* Do what there is to do, in a bounded slice: start and resume operations, take what other threads
 * have left.  Call it when pyper_fd() is readable, then pyper_try_next() until that has nothing.
 *
 * The thread that calls it is the driver from now on.  The driver changes only while no thread
 * calls anything for this run as its driver.
 * Returns 0; PYPER_EINVAL: NULL, or a run that was not started with `loop`; PYPER_EFORKED;
 * PYPER_EDEADLK (called by one of the run's own functions).
 * Blocks: no.  Thread safety: driver. */
PYPER_API int pyper_drive(pyper_run *run);

/* pyper_next() without waiting: PYPER_EAGAIN if there is nothing yet; then pyper_fd() becomes
 * readable when it is worth asking again.  That a run was cancelled is reported as its end is, when
 * every worker has left: so whoever drives until something else than PYPER_EAGAIN and 1 comes has
 * left nothing undone.
 *
 * Returns PYPER_EAGAIN; PYPER_EINVAL: NULL, or a run that was not started with `loop`; else as
 * pyper_next_until().
 * Ownership: *ret_item is returned owned; it is untouched unless 1 is returned.
 * Blocks: no.  Thread safety: driver. */
PYPER_API int pyper_try_next(pyper_run *run, void **ret_item);

/* ---------------------------------------------------------------------------- Statistics */

/* The counters of one task.  Items counted are those of this moment; the numbers of one snapshot
 * are read one after the other, so they may differ by what happened in between. */
typedef struct pyper_task_stats {
    const char *name;   /* valid as long as the run */
    int64_t workers;    /* how many the task has */
    int64_t alive;      /* how many of them have been started and have not left yet */
    int64_t items_in;   /* inputs handed to a call, or to a reader that pulls */
    int64_t items_out;  /* outputs emitted */
    int64_t queued;     /* outputs emitted that nobody has started on */
    int64_t busy_ns;    /* time the workers were not waiting in the library, summed over them */
    int64_t starved_ns; /* time they waited for an input */
    int64_t blocked_ns; /* time they waited for room in the output queue */
} pyper_task_stats;

/* Read the counters of the first `count` tasks into `ret_stats`, records of `stats_size` bytes
 * each.  That is the caller's sizeof(pyper_task_stats), filled in by the macro: if the library is
 * older or newer than the caller's header, as much is written as both know.
 *
 * Returns how many tasks the run has (0 for NULL, if the run failed before its first worker was to
 * be started, and in a process worker).  May be called at any moment of the run and after it, also
 * by the run's own functions.  Thread safety: shared. */
PYPER_API size_t pyper_stats_read(pyper_run *run, pyper_task_stats *ret_stats, size_t count,
                                  size_t stats_size);
#define pyper_stats(run, ret_stats, count)                                                         \
    pyper_stats_read((run), (ret_stats), (count), sizeof(pyper_task_stats))

/* ----------------------------------------------------------------------------- Processes */

/* With the option `multiprocess` a task's workers are processes.  All other options mean what they
 * mean for threads.  Linux only: elsewhere such a task is refused (PYPER_ENOTSUP).
 *
 *  - Items cross through shared memory that has no name, by `encode` and `decode` of their type.
 *    So the outputs of a task with `multiprocess`, and those of the task before it (for the first
 *    task: the argument of the run), must have a type with both; pyper_task() and pyper_pipe()
 *    refuse others.  Two tasks with `multiprocess` in a row exchange their items directly.
 *  - Workers are forked by pyper_start(), before any thread of the run.  A worker has a copy of
 *    everything as it was then, `bind` included; what it changes is seen by nobody else.
 *  - In a worker's process your other threads do not exist, and the locks they held are held for
 *    ever: do not call into what they may have been using.  malloc() and stdio are safe.
 *  - A worker starts with empty buffers of stdout and stderr and flushes both when it leaves; it
 *    leaves with _exit(): what you have registered with atexit() is not run.
 *  - Ctrl-C in a terminal reaches the caller's process only: workers have a handler for SIGINT that
 *    does nothing.  When the caller's process dies, however it dies, its workers follow.  To exec()
 *    is not to die: close the run before, or they stay as long as the new program.
 *  - A worker that dies (a signal, exit(), out of memory) fails the run with PYPER_EDIED.
 *  - When a run is stopped (by cancel, close or a failure; or the part of it before a joined task
 *    that has had enough), calls in progress in its processes have PYPER_GRACE_MS to return; then
 *    the process is killed. */
#define PYPER_GRACE_MS 200

/* How a process has ended is not known: SIGCHLD is ignored, or somebody else has waited for it.
 * Neither troubles a run; only the message about a death says less. */
#define PYPER_STATUS_UNKNOWN INT32_MIN

/* For `encode`: ask for `size` bytes to write the item to, aligned to 8 bytes; once an item.
 * Returns NULL if there is no memory: then return PYPER_ENOMEM.  Thread safety: only within the
 * call of `encode`, by its thread; so for all of pyper_transfer_*(). */
PYPER_API void *pyper_transfer_reserve(pyper_transfer *to, size_t size);

/* For `decode`: keep the memory of an item.  What `data` points to (and now *ret_data) is yours,
 * without a copy: writable, seen by no other process, a forked child has its own.  It stays until
 * pyper_kept_release(), which may be called by any thread, also after the end of the run, and
 * accepts NULL.  What is kept when the run has ended is copied where it lies, up to 16 MiB; as long
 * as it is more, the run's memory keeps its descriptor.  Returns NULL if that cannot be had or is
 * not worth it (items below 64 KiB): then copy.  Ownership: returns owned. */
typedef struct pyper_kept pyper_kept;
PYPER_API pyper_kept *pyper_transfer_keep(pyper_transfer *from, void **ret_data);
PYPER_API void pyper_kept_release(pyper_kept *kept);

/* For `encode` and `decode`: fail the run with a code, a message and bytes (or NULL) of your own,
 * as pyper_fail_bytes().  Returns PYPER_EFAILED: return that. */
PYPER_API int pyper_transfer_fail(pyper_transfer *transfer, int code, const char *message,
                                  const void *data, size_t size);

/* What pyper_start() (or pyper_attach()) was given as host_data; the name of the task that a
 * failure would name: the sender's for `encode`, the receiver's for `decode` (for the caller, the
 * last). */
PYPER_API void *pyper_transfer_host_data(const pyper_transfer *transfer);
PYPER_API const char *pyper_transfer_name(const pyper_transfer *transfer);

/* For hosts: a process to start.  The new process must call pyper_attach() with descriptors that
 * are duplicates of these, and the same numbers. */
#define PYPER_PROCESS_FDS 4
typedef struct pyper_process {
    size_t size;
    const char *name;           /* of the task, and the worker if there are several; copy it */
    int fds[PYPER_PROCESS_FDS]; /* borrowed for the call; all different */
    int64_t task;               /* the index of the task */
    int64_t worker;             /* the index of the worker */
    void *bind;                 /* of the task */
} pyper_process;

/* For hosts: what a started process attaches with.  Use the pyper_attach() macro. */
typedef struct pyper_attach_options {
    size_t size;                /* sizeof(pyper_attach_options) */
    int fds[PYPER_PROCESS_FDS]; /* taken, also on failure; closed on exec from here on */
    int64_t task, worker;       /* as in pyper_process */
    pyper_fn fn;
    void *bind;                         /* borrowed for the call */
    const pyper_item_type *input_type;  /* of the inputs */
    const pyper_item_type *output_type; /* of the outputs */
    const pyper_host *host;             /* of this process, copied; its callbacks for threads
                                         * and processes, and `release`, are not called */
    void *host_data;
} pyper_attach_options;

/* Be a worker: returns when it is done, 0 or a PYPER_E... code if it could not begin (PYPER_EINVAL
 * also for NULL).  Then the run has been told why, unless the memory that the processes share could
 * not be had: let the process end, and the run says that it ended before it could begin.  When the
 * process that started the run dies, this one ends at once, by _exit().
 * Ownership: takes the descriptors, also on failure; of everything else see the options.
 * Blocks: yes.  Thread safety: shared. */
PYPER_API int pyper_attach_from(const pyper_attach_options *options);

#ifdef __cplusplus
extern "C++" {
inline int pyper_attach(pyper_attach_options options) {
    options.size = sizeof options;
    return pyper_attach_from(&options);
}
} /* extern "C++" */
#else
#define pyper_attach(...)                                                                          \
    pyper_attach_from(                                                                             \
        &(const pyper_attach_options){.size = sizeof(pyper_attach_options), __VA_ARGS__})
#endif

/* --------------------------------------------------------------------------------- Hosts */

/* A host is a language with a lock of its own (an interpreter lock, say) and threads of its own.
 * The lock is called the *token*.  The rules:
 *
 *  - Every function of this header is called with the token held, by threads that the host knows.
 *  - A task's function, an item's destroy, a payload's destroy and `release` are called with it.
 *  - The library keeps the token from one wait to the next, across items.  It gives it up by
 *    calling `detached` whenever it is about to wait, and (if `exclusive`) now and then when other
 *    threads of the library want it.  It never waits for the token with a lock of its own held.
 *
 * No callback is ever called with a lock of the library held.  Zero-initialise, set `size`: what
 * a shorter table of an older host does not have is NULL. */
struct pyper_host {
    size_t size; /* sizeof(pyper_host) */

    /* Does only one thread at a time hold the token?  Then it is handed over every 500 us or so
     * while other threads of the library want it, unless functions give it up themselves. */
    bool exclusive;

    /* Give the token up, call `call(arg)` once, take the token back; return what `call` returned.
     * Any thread that holds the token. NULL: there is no token. */
    int (*detached)(void *host_data, int (*call)(void *arg), void *arg);

    /* Does a signal end a wait of pyper_next(), pyper_wait_until() and pyper_close()?  Then they
     * return PYPER_EINTR, so that the host can run its handlers.  Otherwise they go on waiting. */
    bool interruptible;

    /* Start a thread called `name` (copy it) that holds the token, calls entry(arg) once, and ends.
     * Returns 0 and sets *ret_thread, or a negative code (`entry` is then never called).  Called
     * with the token by the thread that starts the run.  NULL: plain threads. */
    int (*start_thread)(void *host_data, const char *name, void (*entry)(void *arg), void *arg,
                        void **ret_thread);

    /* Wait until the thread has ended and forget it: 0; or PYPER_EINTR: not yet, will be called
     * again.  With the token; may give it up meanwhile. */
    int (*join_thread)(void *host_data, void *thread);

    /* Forget the thread without waiting.  With the token; possibly on that very thread. */
    void (*drop_thread)(void *host_data, void *thread);

    /* The run is freed: give up host_data.  `run` is borrowed, and can be asked what it has failed
     * with and nothing else; its payload has been destroyed.  With the token; the last callback of
     * all.  May be NULL. */
    void (*release)(void *host_data, pyper_run *run);

    /* Start a process that calls pyper_attach() with what `process` says.
     * Returns 0 and sets *ret_process and its id *ret_pid, or a negative code.  Called with the
     * token by the thread that starts the run, before any thread of the run.  NULL: workers are
     * forked. */
    int (*start_process)(void *host_data, const pyper_process *process, void **ret_process,
                         int64_t *ret_pid);

    /* The process has ended: forget it, and set *ret_status to its exit code, to minus the signal
     * that ended it, or to PYPER_STATUS_UNKNOWN.  With the token. */
    void (*join_process)(void *host_data, void *process, int *ret_status);

    /* Slots: the host's own way to carry the workers of asynchronous tasks (its coroutines).  NULL:
     * they are run as C functions.  All four are called by the driver, with the token.
     *
     * start_slot     a worker has something to do for the first time: create what carries it.  That
     *                then calls pyper_try_pull() and pyper_try_emit() as it likes, as the driver,
     *                and at the very end pyper_slot_left(), once.  0, or a negative code: the run
     *                fails, and nothing more is called for this worker.
     * resume_slot    the slot had got PYPER_EAGAIN, and may try again.
     * cancel_slot    the slot has been told to stop while it was not waiting for the library.
     * resume_caller  pyper_try_next() had said PYPER_EAGAIN, and may be asked again. */
    int (*start_slot)(void *host_data, pyper_worker *worker);
    void (*resume_slot)(void *host_data, pyper_worker *worker);
    void (*cancel_slot)(void *host_data, pyper_worker *worker);
    void (*resume_caller)(void *host_data);
};

/* A slot has ended: the counterpart of a thread's function that returns.  Nothing may be called
 * with this worker any more.  Thread safety: driver (it makes its caller the driver, as
 * pyper_drive()). */
PYPER_API void pyper_slot_left(pyper_worker *worker);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* PYPER_H */
