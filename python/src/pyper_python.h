/* pyper_python - what the files of the extension `pyper._pyper` share.
 *
 * The extension is built on pyper.h alone: it hands Python callables to the engine as tasks, Python
 * objects as items, and threading.Thread as the host's threads.
 *
 *   module.c    the module: its state, its types, its three functions
 *   plan.c      Plan: the engine's pipeline and the callables in it, made once per pyper.Pipeline
 *   outputs.c   Outputs: one execution of a plan, as a generator
 *   stream.c    InputStream: the inputs of a call of a task with join
 *   function.c  the functions that the engine calls: one per kind of task
 *   host.c      the host: the GIL, threading.Thread, contextvars
 *   failure.c   exceptions that leave a task's function
 *   crossing.c  objects on their way between processes, as bytes
 *   small.c     the small form of such objects
 *   process.c   workers that are processes
 *   interrupt.c signal handlers wait while a thread or process is started
 *   awaiting.c  what our awaitable objects have in common
 *   async_outputs.c  AsyncOutputs: one execution of a plan with asynchronous tasks
 *   driver.c    Driver: between a run and its event loop; the host's slots
 *   slot.c      AsyncWorker: the coroutine that carries a worker; AsyncInputStream
 *
 * Ownership: an item is a strong reference to a Python object, owned by whoever owns the item.
 *
 * Locks: state that is shared between threads is either guarded by the GIL (builds that have one),
 * or atomic, or says what guards it.  No lock of ours is held while Python code runs, except
 * Outputs.starting, which says so.
 */
#ifndef PYPER_PYTHON_H
#define PYPER_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pythread.h>
#include <structmember.h>

#include <pyper.h>
#include <stdatomic.h>

/* ------------------------------------------------------------- differences of Python versions */

#if PY_VERSION_HEX < 0x030C0000
static inline PyObject *PyErr_GetRaisedException(void) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (!type) return NULL;
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) PyException_SetTraceback(value, traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return value;
}
static inline void PyErr_SetRaisedException(PyObject *exception) {
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(exception)), exception,
                  PyException_GetTraceback(exception));
}
#endif

/* Do threads other than this one run no more Python code, ever? */
static inline bool interpreter_is_ending(void) {
#if PY_VERSION_HEX < 0x030D0000
    return _Py_IsFinalizing();
#else
    return Py_IsFinalizing();
#endif
}

/* A short lock for the extension's own C data.  With a GIL the GIL is that lock, as long as nothing
 * between take and give can release it. */
#ifdef Py_GIL_DISABLED
typedef PyMutex short_lock;
#define LOCK_TAKE(lock) PyMutex_Lock(lock)
#define LOCK_GIVE(lock) PyMutex_Unlock(lock)
#else
typedef char short_lock;
#define LOCK_TAKE(lock) ((void)(lock))
#define LOCK_GIVE(lock) ((void)(lock))
#endif

/* Against other threads that change an object meanwhile, in builds without the GIL. */
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

/* ------------------------------------------------------------------------------- the module */

typedef struct outputs outputs;
typedef struct python_run python_run;

/* What the module keeps, as lists of X(field, ...).  Types of ours, their specification, and
 * whether they have a public name. */
#define MODULE_TYPES(X)                                                                            \
    X(plan_type, plan_spec, true)                                                                  \
    X(outputs_type, outputs_spec, true)                                                            \
    X(stream_type, stream_spec, true)                                                              \
    X(entry_type, entry_spec, false)                                                               \
    X(memory_type, memory_spec, false)                                                             \
    X(async_outputs_type, async_outputs_spec, true)                                                \
    X(async_stream_type, async_stream_spec, true)                                                  \
    X(awaitable_type, awaitable_spec, false)                                                       \
    X(driver_type, driver_spec, false)                                                             \
    X(slot_type, slot_spec, false)

/* Names, interned. */
#define MODULE_NAMES(X)                                                                            \
    X(name_start, "start")                                                                         \
    X(name_end, "end")                                                                             \
    X(name_will_begin, "will_begin")                                                               \
    X(name_bootstrap, "_bootstrap")                                                                \
    X(name_close, "close")                                                                         \
    X(name_add_note, "add_note")                                                                   \
    X(name_throw, "throw")                                                                         \
    X(name_aclose, "aclose")                                                                       \
    X(name_create_future, "create_future")                                                         \
    X(name_create_task, "create_task")                                                             \
    X(name_set_result, "set_result")                                                               \
    X(name_done, "done")                                                                           \
    X(name_cancel, "cancel")                                                                       \
    X(name_cancelling, "cancelling")                                                               \
    X(name_get_coro, "get_coro")                                                                   \
    X(name_add_reader, "add_reader")                                                               \
    X(name_remove_reader, "remove_reader")                                                         \
    X(name_is_closed, "is_closed")                                                                 \
    X(name_blocking, "_asyncio_future_blocking")                                                   \
    X(name_log_destroy_pending, "_log_destroy_pending")                                            \
    X(name_name, "name")                                                                           \
    X(name_context, "context")                                                                     \
    X(name_append, "append")                                                                       \
    X(name_reduce_ex, "__reduce_ex__")                                                             \
    X(name_reduce, "__reduce__")                                                                   \
    X(name_getnewargs_ex, "__getnewargs_ex__")                                                     \
    X(name_getnewargs, "__getnewargs__")                                                           \
    X(name_getstate, "__getstate__")                                                               \
    X(name_dict, "__dict__")                                                                       \
    X(name_setstate, "__setstate__")

/* What other modules have: the module and the name there. */
#define MODULE_IMPORTS(X)                                                                          \
    X(get_asyncgen_hooks, "sys", "get_asyncgen_hooks")                                             \
    X(set_asyncgen_hooks, "sys", "set_asyncgen_hooks")                                             \
    X(get_handler, "_signal", "getsignal")                                                         \
    X(set_handler, "_signal", "signal")                                                            \
    X(worker_thread, "pyper._threads", "WorkerThread")                                             \
    X(breathe, "pyper._threads", "breathe")                                                        \
    X(task_stats, "pyper._types", "TaskStats")                                                     \
    X(cancelled, "pyper._types", "Cancelled")                                                      \
    X(worker_died, "pyper._types", "WorkerDied")                                                   \
    X(generator, "collections.abc", "Generator")                                                   \
    X(async_generator, "collections.abc", "AsyncGenerator")

/* What is imported when the first plan needs it, see import_late(): of asyncio, and of
 * pyper._processes. */
#define MODULE_ASYNCIO(X)                                                                          \
    X(async_cancelled, "CancelledError")                                                           \
    X(get_running_loop, "get_running_loop")                                                        \
    X(current_task, "current_task")
#define MODULE_PROCESSES(X)                                                                        \
    X(start_process, "start")                                                                      \
    X(join_process, "join")                                                                        \
    X(dump_failure, "dump_failure")                                                                \
    X(load_failure, "load_failure")                                                                \
    X(dumps, "dumps")                                                                              \
    X(loads, "loads")                                                                              \
    X(dispatch_table, "dispatch_table")                                                            \
    X(newobj, "newobj")                                                                            \
    X(harmless, "harmless")

/* Everything in it is NULL once the module has been cleared, at the end of the interpreter. */
typedef struct module_state {
#define FIELD(field, ...) PyTypeObject *field;
    MODULE_TYPES(FIELD)
#undef FIELD
#define FIELD(field, ...) PyObject *field;
    MODULE_NAMES(FIELD)
    MODULE_IMPORTS(FIELD)
    MODULE_ASYNCIO(FIELD)
    MODULE_PROCESSES(FIELD)
#undef FIELD
    PyObject *names_of_task;             /* ("name", "context"), for vectorcall */
    PyObject *dumps_names, *loads_names; /* as those: of the options of dumps and loads */
    PyObject *pickle_protocol;           /* 5, as an int */

    /* The started runs that an Outputs still holds.  Guarded by live_lock, as are the links in each
     * Outputs.  A forked child begins a new `generation` with an empty list.  `ending`: the
     * interpreter waits for threads to end, so none but the main one may begin a run. */
    short_lock live_lock;
    outputs *live;
    uint64_t generation;
    bool ending;

    unsigned long main_thread; /* where signal handlers run; changed in a forked child only */
    struct interrupts *held;   /* by the main thread, which alone may touch it; NULL: nothing is */
} module_state;

extern PyType_Spec plan_spec, outputs_spec, stream_spec, entry_spec, memory_spec;
extern PyType_Spec async_outputs_spec, awaitable_spec, driver_spec, slot_spec, async_stream_spec;

/* An object of a type of this module: a new reference, or NULL with an exception. */
PyObject *make_object(PyTypeObject *type);

/* Import what asynchronous tasks, or workers in processes, need: 0, or -1 with an exception. */
int asyncio_import(module_state *state);
int processes_import(module_state *state);

/* ----------------------------------------------------------------------------------- plan.c */

/* One task: what the engine hands to the functions of function.c as `bind`.  Owned by the engine's
 * pipeline, freed by its `release`.  Unchanging, except where it says otherwise. */
typedef struct step {
    PyObject *func; /* with bind folded in; cleared by the garbage collector only */
    PyObject *task; /* the pyper.Task; cleared likewise */
    PyObject *name;
    module_state *state;
    Py_ssize_t place; /* 1 for the first task */
    Py_ssize_t count; /* of the tasks of the pipeline */
    int64_t workers;
    bool branch, join;
} step;

/* An engine pipeline and its steps.  Every run of it holds a reference (python_run.plan), so it
 * never goes away below a worker. */
typedef struct plan {
    PyObject ob_base;
    PyObject *module; /* keeps `state` until the last plan is freed */
    module_state *state;
    pyper_pipeline *pipeline;
    step **steps; /* borrowed from `pipeline` */
    Py_ssize_t count;
    bool is_async;  /* at least one task is; then asyncio has been imported */
    bool processes; /* at least one task has such workers; then pyper._processes has been */
} plan;

/* ------------------------------------------------------------------------- without the GIL */

/* Without the GIL a thread is stopped (so that another one can collect garbage, say) when it waits
 * somewhere, or between two steps of Python code.  A worker that finds inputs and room, and whose
 * function or iterator is written in C, does neither, nor does list(outputs) where there are some:
 * so now and then they call a Python function.  False: it has raised. */
static inline bool breathe(module_state *state) {
#ifdef Py_GIL_DISABLED
    enum { EVERY = 256 }; /* then it costs next to nothing; the exact number does not matter */
    static _Thread_local unsigned count;
    if (++count % EVERY != 0 || !state->breathe) return true;
    PyObject *result = PyObject_CallNoArgs(state->breathe);
    Py_XDECREF(result);
    return result != NULL;
#else
    (void)state;
    return true;
#endif
}

/* -------------------------------------------------------------------------------- outputs.c */

/* When a chain of things that are ready at once should let the event loop have a turn.  Belongs to
 * the thread of the loop. */
struct turn {
    int64_t since_ns;   /* the last turn, as far as known; 0: a moment ago */
    int64_t checked_ns; /* when the clock was last read */
    int left, granted;  /* how many items until it is read again */
};

enum { FRESH, STARTING, RUNNING, OVER };

struct outputs {
    PyObject_HEAD PyObject *weak_references;
    plan *plan;
    PyObject *arguments; /* (args, kwargs), until the run takes them */
    PyObject *context;
    pyper_run *run;
    python_run *python; /* a reference: there may be no run to hold one */
    PyThread_type_lock starting;
    atomic_ulong starter;
    _Atomic uint64_t process; /* module_state.generation of whoever took `starting` last */
    atomic_int phase;
    atomic_bool cancel_requested;
    outputs *newer, *older;
    uint64_t generation; /* of the list it is in; 0: in none */

    /* Of AsyncOutputs; they belong to the thread of the loop. */
    struct driver *driver; /* set with `run`; NULL: it could not be started */
    PyObject *loop;        /* of the first __anext__() */
    struct turn turn;
};

/* Start the run, for the thread that has brought the phase to STARTING: 0, or -1 with an
 * exception. */
int outputs_start_run(outputs *self);

/* There is no further output, for the reason `rc`: NULL, with an exception unless it is the end. */
PyObject *outputs_none(outputs *self, int rc);

/* Forget it as a live run; nobody wants its outputs any more; raise pyper.Cancelled (NULL). */
void outputs_no_longer_live(outputs *self);
void outputs_stop(outputs *self);
PyObject *outputs_raise_cancelled(outputs *self, const char *why);

/* The run has failed with `failure` while its outputs were closed for the sake of `exception`: note
 * it there, unless it is the same.  Either may be NULL. */
void outputs_note_failure(outputs *self, PyObject *exception, PyObject *failure);

/* The exception that throw(type[, value[, traceback]]) means: a new reference, or NULL. */
PyObject *outputs_exception_of(PyObject *const *args, Py_ssize_t count);

PyObject *outputs_stats(PyObject *outputs, PyObject *unused);
int outputs_traverse(PyObject *op, visitproc visit, void *arg);
int outputs_clear(PyObject *op);
void outputs_finalize(PyObject *op);
void outputs_dealloc(PyObject *op);

/* Outputs of a call: not started yet.  Takes nothing, shares its arguments. */
PyObject *outputs_new(plan *plan, PyObject *args, PyObject *kwargs);

/* Cancel the run of an Outputs, started or not, without waiting; and those nested in it. */
void outputs_cancel(PyObject *outputs);

/* The interpreter ends: cancel every live run, and those that other threads than the main one still
 * begin. */
void outputs_cancel_live(module_state *state);

/* Threads may begin runs again: the interpreter waits for threads no more. */
void outputs_may_begin(module_state *state);

/* Does the interpreter wait for threads?  By now or soon all runs are cancelled. */
bool outputs_are_ending(module_state *state);

/* This is a forked child: its parent's runs are not its business. */
void outputs_forget_live(module_state *state);

/* --------------------------------------------------------------------------------- stream.c */

/* The inputs of the call that `worker` is making.  stream_end() must be called before the call
 * returns to the engine; it waits for another thread that is reading. */
PyObject *stream_new(step *step, pyper_worker *worker);
void stream_end(PyObject *stream);

/* ------------------------------------------------------------------------------- function.c */

/* The function for a task of this kind. */
pyper_fn function_for(bool first, bool branch, bool join);

/* The run is over before the iterator of a branch: close that, if it is a generator of any kind.
 * Returns 0, or -1 with an exception. */
int iterator_close(module_state *state, PyObject *iterator);

/* ----------------------------------------------------------------------------------- host.c */

/* What a run has to do with Python: the engine's host_data.  Counted: the run holds one reference,
 * each of its worker threads another. */
struct python_run {
    atomic_size_t references;
    plan *plan;
    PyObject *context;   /* the contextvars of the call; each worker enters a copy of its own */
    atomic_size_t alive; /* workers, on threads and on the loop, that may still call a function */
    atomic_int noted;    /* further failures that were noted at the first */
    bool child;          /* this is a worker's process; never changes */
    bool begun;          /* a process is being started: only then the call's arguments have gone */
    atomic_bool told;    /* a failure in another process has been raised */

    /* What else was raised, as a list of notes, until a failure in another process has become an
     * exception; NULL: nothing.  Set once; workers append to it. */
    _Atomic(PyObject *) notes;

    /* Why a thread could not be started: the cause of what next() raises. */
    _Atomic(PyObject *) start_error;

    /* What a signal handler raised inside a callback of the host, for the thread that called the
     * engine.  Both are written under `lock`. */
    short_lock lock;
    _Atomic(PyObject *) pending;
    unsigned long pending_thread;

    /* The Outputs that workers of this run are branching out right now: cancelled with this run, so
     * that no worker waits for the next output of a run that nobody wants any more.  Guarded by
     * `lock`. */
    struct nested *nested;

    struct driver *driver; /* of a run with asynchronous tasks, borrowed; NULL: it is gone */

    _Atomic(struct names *) names; /* of a run with processes, once needed; see small.c */
    /* Items of this type turn out to have no small form: so many more are pickled at once.  A
     * hint. */
    _Atomic(PyTypeObject *) large_type;
    atomic_int large_left;
};

/* An Outputs inside a branching call; lives on the stack of that call, which holds a reference. */
typedef struct nested {
    PyObject *outputs;
    struct nested *next;
    struct nested **link; /* what points here; NULL once taken out */
} nested;

extern const pyper_host host_shared;    /* for a build without the GIL */
extern const pyper_host host_exclusive; /* for a build with it */
extern const pyper_host host_child;     /* in a worker's process */

python_run *python_run_new(plan *plan, PyObject *context);
void python_run_ref(python_run *python);
void python_run_unref(python_run *python);

/* Keep what the starting of a worker has raised, if anything: it may have been started all the
 * same. */
void python_run_keep_raised(python_run *python, bool started);

/* Keep an exception, which is taken, for this thread; a second one goes to sys.unraisablehook. */
void python_run_keep_pending(python_run *python, PyObject *exception);

/* Has a callback left an exception for this thread?  And: raise it; -1 with that, or 0. */
bool python_run_has_pending(python_run *python);
int python_run_raise_pending(python_run *python);

/* Put what a branching call iterates in, and out again.  Cancels it if the run is over already. */
void nested_enter(nested *self, pyper_worker *worker, PyObject *outputs);
void nested_leave(nested *self, pyper_worker *worker);

/* The run has been told to stop: tell those nested in it. */
void nested_cancel(python_run *python);

/* ----------------------------------------------------------------------------- interrupt.c */

/* What has been put aside while signal handlers wait; on the stack of whoever starts something. */
typedef struct interrupts {
    module_state *state;
    PyObject *handlers;       /* (the user's, struct sigaction or None) by the number; NULL: none */
    PyObject *arrived;        /* the frame in which a signal has come, by its number */
    PyObject *keep;           /* arrived.__setitem__, the handler meanwhile */
    bool all;                 /* every handler is put aside, and none is on its way back */
    struct interrupts *outer; /* in the putting aside, or back, of which a handler has come here */
} interrupts;

/* Have signal handlers wait until interrupts_let(): 0, or -1 with an exception (there is no
 * memory), and then interrupts_let() has nothing to do; nor has it where they wait already.  What
 * handlers raise in here and in interrupts_let() waits in the python_run: look whether it has
 * something before you start anything.  interrupts_let() keeps the current exception. */
int interrupts_hold(module_state *state, python_run *python, interrupts *ret_held);
void interrupts_let(interrupts *self, python_run *python);

/* In a forked child: it has its handlers back, and what has come before is the parent's. */
void interrupts_forget(module_state *state);

/* ------------------------------------------------------------------------------ awaiting.c */

/* Is it the loop's turn?  Asked once for each item that was ready at once. */
static inline bool turn_is_over_slow(struct turn *self) {
    int64_t now = pyper_now();
    bool often = self->checked_ns && now - self->checked_ns < 50000;
    self->granted = often ? (self->granted < 32 ? self->granted * 2 : 32)
                          : (self->granted > 4 ? self->granted / 4 : 1);
    if (self->granted < 1) self->granted = 1;
    self->left = self->granted;
    self->checked_ns = now;
    if (self->since_ns == 0) self->since_ns = now;
    if (now - self->since_ns < 1000000) return false;
    self->since_ns = 0;
    return true;
}
static inline bool turn_is_over(struct turn *self) {
    return --self->left <= 0 && turn_is_over_slow(self);
}
/* The loop has just had a turn. */
static inline void turn_restart(struct turn *self) {
    self->since_ns = 0;
    self->left = 0;
}

/* What our awaitables are made of: one step, as PyIter_Send(); `thrown` (NULL: none) is taken. */
typedef PySendResult (*step_fn)(PyObject *self, PyObject *thrown, PyObject **ret_value);

/* The methods of an iterator, in terms of one step. */
PyObject *awaiting_next(PyObject *self, step_fn step);
PyObject *awaiting_throw(PyObject *self, step_fn step, PyObject *const *args, Py_ssize_t count);

/* Go on with an awaited iterator; `thrown` (NULL: none) is taken and raised inside of it. */
PySendResult awaiting_send(module_state *state, PyObject *iterator, PyObject *thrown,
                           PyObject **ret_value);

/* The iterator of an awaitable: a new reference, or NULL with a TypeError; takes nothing. */
PyObject *awaiting_iterator(PyObject *awaitable);
bool awaiting_possible(PyObject *object);

/* An awaitable for the next input of an AsyncInputStream, and its step. */
PyObject *awaitable_of_stream(module_state *state, PyObject *stream);
PySendResult async_stream_step(PyObject *stream, PyObject **ret_value);

/* A new future of the loop, ready to be yielded to its task; NULL with an exception.
 * future_wake() ends its waiting, unless that has ended. */
PyObject *future_new(module_state *state, PyObject *loop);
void future_wake(module_state *state, PyObject *future);

/* Any number of those that wait for the same.  Who gives up waiting leaves his future behind, done:
 * such are dropped now and then, so that there are never more than about twice as many futures as
 * ever waited at once. */
typedef struct waiters {
    PyObject *futures; /* a list; NULL: nobody waits */
    Py_ssize_t enough; /* futures; from there on it is worth looking for some that are done */
} waiters;

/* One more: his future, as future_new().  And: wake all. */
PyObject *waiters_add(waiters *self, module_state *state, PyObject *loop);
void waiters_wake(waiters *self, module_state *state);

/* Whom Python tells in this thread that an asynchronous generator begins, the running loop as a
 * rule (see sys.set_asyncgen_hooks(): firstiter): a new reference, None for nobody, or NULL.  And:
 * set it; 0, or -1 with an exception. */
PyObject *asyncgen_hook(module_state *state);
int asyncgen_set_hook(module_state *state, PyObject *hook);

/* ------------------------------------------------------------------------------- driver.c */

/* Between a run and its event loop: what the loop calls when the run's descriptor is readable.  All
 * of it belongs to the thread of the loop, but for what driver.c says. */
typedef struct driver {
    PyObject_HEAD module_state *state;
    plan *plan; /* keeps the module's state alive */
    PyObject *loop;
    pyper_run *run;       /* a handle of its own; NULL: it has done its work */
    python_run *python;   /* borrowed from run */
    int fd;               /* of the run */
    struct slot *slots;   /* all that have not left; strong references */
    struct slot *running; /* the one whose step goes on; NULL: none */
    waiters waiting;      /* who waits for an output, or for the end */
    bool closing;         /* somebody waits for the end */
    atomic_bool unwanted;
} driver;

/* A driver for a run that has been started: a new reference, or NULL. */
driver *driver_new(outputs *outputs);

/* Has its loop been closed under it?  And: end the slots, which that loop has carried, and have
 * another loop drive from now on; 0, or -1 with an exception. */
bool driver_is_orphaned(driver *self);
int driver_move(driver *self, PyObject *loop);

/* Drive, wake who waits, and end the driver when nothing is left to do. */
void driver_look(driver *self);

/* A future that is woken when it is worth looking again: a new reference, or NULL. */
PyObject *driver_wait(driver *self);

/* The same, when nothing of the run is left.  And: is nothing left of it? */
PyObject *driver_wait_for_end(driver *self);
bool driver_all_left(driver *self);

/* Nobody will ask the run for anything any more. */
void driver_unwanted(driver *self);

/* The host's callbacks for slots. */
int host_start_slot(void *host_data, pyper_worker *worker);
void host_resume_slot(void *host_data, pyper_worker *worker);
void host_cancel_slot(void *host_data, pyper_worker *worker);
void host_resume_caller(void *host_data);

/* --------------------------------------------------------------------------------- slot.c */

/* The coroutine that carries a worker; see slot.c.  All of it belongs to the thread of the loop. */
typedef struct slot {
    PyObject_HEAD step *step;
    driver *driver;       /* a reference */
    pyper_worker *worker; /* NULL: it has left */
    struct slot *newer, *older;
    PyObject *task;     /* of the loop */
    PyObject *awaited;  /* the iterator of what the function awaits */
    PyObject *iterator; /* of a branch, synchronous or not */
    PyObject *output;   /* that finds no room */
    PyObject *waiter;   /* the future with which it waits for the engine */
    waiters readers;    /* of its stream, who wait for inputs */
    struct async_stream *stream;
    struct turn turn;
    int state;
    long absorbed;    /* cancellations of the task, by calls that went on without a word */
    bool iterating;   /* the iterator was asked for an item */
    bool thrown_into; /* the call: a CancelledError, while the run went on */
    bool told;        /* that the run is over, by a CancelledError */
    bool cancelled;   /* the task, by slot_tell() */
    bool lingers;     /* it has left, and its task waits until all others have */
} slot;

slot *slot_new(driver *driver, pyper_worker *worker);
void slot_wake(slot *self);
/* Does the function of this slot, whose step goes on, call us?  A task that begins at once, inside
 * of it, is not the function. */
bool slot_calls_us(slot *self);
/* The run is over: cancel the task, unless its function has been told already. */
void slot_tell(slot *self);
/* Let go of everything without the loop: the loop is gone. */
void slot_abandon(slot *self);

/* ------------------------------------------------------------------------------- failure.c */

/* An exception has left the step's function: hand it to the run.  Returns what the function must
 * return to the engine.  Takes the current exception. */
int failure_report(step *step, pyper_worker *worker);

/* What nobody can be told goes to sys.unraisablehook, as raised in `of` (or NULL).  Takes the
 * exception, if it is one; keeps the current one. */
void failure_to_hook(PyObject *exception, PyObject *of);

/* The exception the run failed with, once: a new reference, or NULL if there is none (any more). */
PyObject *failure_take(pyper_run *run, python_run *python);

/* For the collector: visit that exception; and give it to sys.unraisablehook, for what could raise
 * it is garbage.  See failure.c for who calls these. */
int failure_traverse(pyper_run *run, visitproc visit, void *arg);
void failure_finalize(pyper_run *run, python_run *python);

/* The run is freed: if it has failed in another process, and nobody was told, give that to
 * sys.unraisablehook. */
void failure_untold(pyper_run *run, python_run *python);

/* Has the run failed with an exception that was taken before? */
bool failure_was_taken(pyper_run *run, python_run *python);

/* An exception as bytes, for another process: a new reference, or NULL (what went wrong is written
 * to sys.unraisablehook). */
PyObject *failure_dump(module_state *state, PyObject *exception);

/* exception.add_note(note).  Takes `note` (NULL: an exception is set); what goes wrong here is
 * written to sys.unraisablehook: it must not hide the exception itself. */
void failure_add_note(module_state *state, PyObject *exception, PyObject *note);

/* "prefix: ValueError: bad", a new string or NULL. */
PyObject *failure_text(const char *prefix, PyObject *exception);

/* ------------------------------------------------------------------------------ crossing.c */

/* The item type of Python objects. */
extern const pyper_item_type object_items;

/* --------------------------------------------------------------------------------- small.c */

/* What a small form takes at most. */
#define SMALL_MAX 448

/* The names that a run has looked up; each call may use and change it. */
struct names;
struct names *names_new(void); /* NULL: there is no memory; no exception */
void names_free(struct names *names);

/* Write a value's small form to SMALL_MAX bytes of room: its size; 0: it has none; -1 with an
 * exception. */
Py_ssize_t small_write(module_state *state, struct names *names, PyObject *value, char *room);

/* The value of a small form: a new reference, or NULL with an exception. */
PyObject *small_read(module_state *state, struct names *names, const char *data, size_t size);

/* ------------------------------------------------------------------------------- process.c */

/* Callbacks of the host. */
int process_start(void *host_data, const pyper_process *process, void **ret_process,
                  int64_t *ret_pid);
void process_join(void *host_data, void *process, int *ret_status);

/* The module's function attach(): be a worker. */
PyObject *processes_attach(PyObject *module, PyObject *args);

#endif /* PYPER_PYTHON_H */
