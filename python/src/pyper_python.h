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

/* ------------------------------------------------------------------------------- the module */

typedef struct outputs outputs;
typedef struct python_run python_run;

/* Everything in it is NULL once the module has been cleared, at the end of the interpreter. */
typedef struct module_state {
    PyTypeObject *plan_type;
    PyTypeObject *outputs_type;
    PyTypeObject *stream_type;
    PyTypeObject *entry_type;
    PyObject *worker_thread;                                       /* pyper._threads.WorkerThread */
    PyObject *task_stats;                                          /* pyper._types.TaskStats */
    PyObject *cancelled;                                           /* pyper._types.Cancelled */
    PyObject *generator;                                           /* collections.abc.Generator */
    PyObject *name_start, *name_join, *name_close, *name_add_note; /* interned */

    /* The started runs that an Outputs still holds.  Guarded by live_lock, as are the links in each
     * Outputs.  A forked child begins a new `generation` with an empty list.  `ending`: the
     * interpreter ends, so no thread but the main one may begin a run any more. */
    short_lock live_lock;
    outputs *live;
    uint64_t generation;
    bool ending;

    unsigned long main_thread; /* where signal handlers run; changed in a forked child only */
} module_state;

extern PyType_Spec plan_spec, outputs_spec, stream_spec, entry_spec;

/* An object of a type of this module: a new reference, or NULL with an exception. */
PyObject *make_object(PyTypeObject *type);

/* ----------------------------------------------------------------------------------- plan.c */

/* One task: what the engine hands to the functions of function.c as `bind`.  Owned by the engine's
 * pipeline, freed by its `release`.  Unchanging, except where it says otherwise. */
typedef struct step {
    PyObject *func; /* with bind folded in; cleared by the garbage collector only */
    PyObject *name;
    module_state *state;
    Py_ssize_t place; /* 1 for the first task */
    Py_ssize_t count; /* of the tasks of the pipeline */
    int64_t workers;
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
} plan;

/* The item type of Python objects. */
extern const pyper_item_type object_items;

/* -------------------------------------------------------------------------------- outputs.c */

/* Outputs of a call: not started yet.  Takes nothing, shares its arguments. */
PyObject *outputs_new(plan *plan, PyObject *args, PyObject *kwargs);

/* Cancel the run of an Outputs, started or not, without waiting; and those nested in it. */
void outputs_cancel(PyObject *outputs);

/* The interpreter ends: cancel every live run, and those that other threads than the main one still
 * begin. */
void outputs_cancel_live(module_state *state);

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

/* ----------------------------------------------------------------------------------- host.c */

/* What a run has to do with Python: the engine's host_data.  Counted: the run holds one reference,
 * each of its worker threads another. */
struct python_run {
    atomic_size_t references;
    plan *plan;
    PyObject *context;   /* the contextvars of the call; each worker enters a copy of its own */
    atomic_size_t alive; /* worker threads that may still call a function */
    atomic_int notes;    /* further failures that were noted at the first */

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
};

/* An Outputs inside a branching call; lives on the stack of that call, which holds a reference. */
typedef struct nested {
    PyObject *outputs;
    struct nested *next;
    struct nested **link; /* what points here; NULL once taken out */
} nested;

extern const pyper_host host_shared;    /* for a build without the GIL */
extern const pyper_host host_exclusive; /* for a build with it */

python_run *python_run_new(plan *plan, PyObject *context);
void python_run_ref(python_run *python);
void python_run_unref(python_run *python);

/* Take the exception that a callback left for this thread: a new reference, or NULL. */
PyObject *python_run_take_pending(python_run *python);

/* Put what a branching call iterates in, and out again.  Cancels it if the run is over already. */
void nested_enter(nested *self, pyper_worker *worker, PyObject *outputs);
void nested_leave(nested *self, pyper_worker *worker);

/* The run has been told to stop: tell those nested in it. */
void nested_cancel(python_run *python);

/* ------------------------------------------------------------------------------- failure.c */

/* An exception has left the step's function: hand it to the run.  Returns what the function must
 * return to the engine.  Takes the current exception. */
int failure_report(step *step, pyper_worker *worker);

/* The exception the run failed with, once: a new reference, or NULL if there is none (any more). */
PyObject *failure_take(pyper_run *run);

/* exception.add_note(note).  Takes `note` (NULL: an exception is set); what goes wrong here is
 * written to sys.unraisablehook: it must not hide the exception itself. */
void failure_add_note(module_state *state, PyObject *exception, PyObject *note);

/* "prefix: ValueError: bad", a new string or NULL. */
PyObject *failure_text(const char *prefix, PyObject *exception);

#endif /* PYPER_PYTHON_H */
