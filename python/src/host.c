/* host - Python as the engine's host: the GIL is its token, threading.Thread its threads.
 *
 * A worker thread is a pyper._threads.WorkerThread.  Its run() calls a WorkerEntry, which enters a
 * copy of the caller's contextvars and then the engine.
 *
 * Exceptions inside callbacks: the engine cannot carry them.  What Thread.start() raises when no
 * thread can be had waits in python_run.start_error for whoever learns that the run could not be
 * started.  What a signal handler raises in Thread.start() or Thread.join() waits in
 * python_run.pending for the thread it came up in, which finds it as soon as the engine returns to
 * outputs.c.
 */
#include "pyper_python.h"

/* ------------------------------------------------------------------------------ python_run */

python_run *python_run_new(plan *plan, PyObject *context) {
    python_run *self = PyMem_RawCalloc(1, sizeof *self);
    if (!self) return NULL;
    atomic_init(&self->references, 1);
    self->plan = (struct plan *)Py_NewRef((PyObject *)plan);
    self->context = Py_NewRef(context);
    return self;
}

void python_run_ref(python_run *self) {
    atomic_fetch_add(&self->references, 1);
}

void python_run_unref(python_run *self) {
    if (atomic_fetch_sub(&self->references, 1) > 1) return;
    failure_to_hook(atomic_load(&self->pending), NULL); /* it was for whoever comes next */
    Py_XDECREF(atomic_load(&self->start_error));
    Py_XDECREF(atomic_load(&self->notes));
    names_free(atomic_load(&self->names));
    Py_DECREF(self->context);
    Py_DECREF((PyObject *)self->plan);
    PyMem_RawFree(self);
}

/* Is this exception, or one that it was raised in the handling of, no Exception (a
 * KeyboardInterrupt, say)?  Returns that one, borrowed, or NULL.  The locks of threading do not
 * expect a signal handler to raise between two of their steps, and may then raise something of
 * their own. */
static PyObject *interrupt_behind(PyObject *exception) {
    PyObject *found = exception;
    while (found && PyErr_GivenExceptionMatches(found, PyExc_Exception)) {
        PyObject *context = PyException_GetContext(found);
        Py_XDECREF(context); /* `found` keeps it */
        found = context;
    }
    return found;
}

void python_run_keep_pending(python_run *self, PyObject *exception) {
    PyObject *interrupt = Py_XNewRef(interrupt_behind(exception));
    if (interrupt) Py_SETREF(exception, interrupt);
    LOCK_TAKE(&self->lock);
    bool free = !atomic_load(&self->pending);
    if (free) {
        self->pending_thread = PyThread_get_thread_ident();
        atomic_store(&self->pending, exception);
    }
    LOCK_GIVE(&self->lock);
    if (free) return;
    failure_to_hook(exception, NULL);
}

void python_run_keep_raised(python_run *self, bool started) {
    PyObject *raised = PyErr_GetRaisedException();
    if (raised && (started || interrupt_behind(raised)))
        python_run_keep_pending(self, raised);
    else if (raised)
        Py_XDECREF(atomic_exchange(&self->start_error, raised));
}

bool python_run_has_pending(python_run *self) {
    /* What was kept by this thread this thread sees; anything else does not concern it. */
    if (!atomic_load_explicit(&self->pending, memory_order_relaxed)) return false;
    LOCK_TAKE(&self->lock);
    bool mine = atomic_load(&self->pending) && self->pending_thread == PyThread_get_thread_ident();
    LOCK_GIVE(&self->lock);
    return mine;
}

int python_run_raise_pending(python_run *self) {
    if (!python_run_has_pending(self)) return 0;
    /* Nobody but this thread takes what is there for it. */
    PyErr_SetRaisedException(atomic_exchange(&self->pending, NULL));
    return -1;
}

/* -------------------------------------------------------------------------------- nested runs */

void nested_enter(nested *self, pyper_worker *worker, PyObject *outputs) {
    python_run *python = pyper_worker_host_data(worker);
    self->outputs = outputs;
    LOCK_TAKE(&python->lock);
    self->next = python->nested;
    self->link = &python->nested;
    if (self->next) self->next->link = &self->next;
    python->nested = self;
    LOCK_GIVE(&python->lock);
    /* Whoever stops the run does so before it looks at the list: one of us two sees the other. */
    if (pyper_cancelled(worker)) outputs_cancel(outputs);
}

/* Take it out of the list, if it is in.  With python->lock. */
static void unlink_locked(nested *self) {
    if (!self->link) return;
    *self->link = self->next;
    if (self->next) self->next->link = self->link;
    self->link = NULL;
}

void nested_leave(nested *self, pyper_worker *worker) {
    python_run *python = pyper_worker_host_data(worker);
    LOCK_TAKE(&python->lock);
    unlink_locked(self);
    LOCK_GIVE(&python->lock);
}

void nested_cancel(python_run *python) {
    for (;;) {
        PyObject *outputs = NULL;
        LOCK_TAKE(&python->lock);
        if (python->nested) {
            outputs = Py_NewRef(python->nested->outputs);
            unlink_locked(python->nested);
        }
        LOCK_GIVE(&python->lock);
        if (!outputs) return;
        outputs_cancel(outputs);
        Py_DECREF(outputs);
    }
}

/* ------------------------------------------------------------------------------- WorkerEntry */

enum { WAITING, ENTERED, REVOKED };

/* What a worker thread calls: begin() in place of Thread._bootstrap(), and from in there, in
 * Thread.run(), the entry itself.  `state` goes from WAITING to ENTERED (by the thread) or to
 * REVOKED (by its starter, if Thread.start() has raised): exactly one of the two happens. */
typedef struct entry {
    PyObject ob_base;
    python_run *python; /* a reference; NULL before it is complete */
    PyObject *context;
    PyObject *thread; /* the WorkerThread, until it begins */
    void (*enter)(void *arg);
    void *arg;
    atomic_int state;
} entry;

static bool turn(entry *self, int to) {
    int from = WAITING;
    return atomic_compare_exchange_strong(&self->state, &from, to);
}

static PyObject *entry_new(python_run *python, void (*enter)(void *arg), void *arg) {
    entry *self = (entry *)make_object(python->plan->state->entry_type);
    if (!self) return NULL;
    self->enter = enter;
    self->arg = arg;
    atomic_init(&self->state, WAITING);
    self->context = PyContext_Copy(python->context);
    if (!self->context) {
        Py_DECREF(self);
        return NULL;
    }
    self->python = python;
    python_run_ref(python);
    atomic_fetch_add(&python->alive, 1);
    return (PyObject *)self;
}

/* No function will be called by this worker any more. */
static void entry_over(entry *self) {
    atomic_fetch_sub(&self->python->alive, 1);
}

/* The engine must be entered in any case: it counts on every worker that was started. */
static void enter(entry *self) {
    PyObject *op = (PyObject *)self;
    bool entered = PyContext_Enter(self->context) == 0;
    if (!entered) PyErr_WriteUnraisable(op);
    self->enter(self->arg);
    if (entered && PyContext_Exit(self->context) < 0) PyErr_WriteUnraisable(op);
    entry_over(self);
}

static PyObject *entry_call(PyObject *op, PyObject *args, PyObject *kwargs) {
    entry *self = (entry *)op;
    (void)args, (void)kwargs;
    if (turn(self, ENTERED)) enter(self);
    Py_RETURN_NONE;
}

/* Thread._bootstrap(thread).  It may not get as far as run(), when there is no memory for that:
 * then the worker is one of which threading does not know (see WorkerThread.end()). */
static PyObject *entry_begin(PyObject *op, PyObject *unused) {
    entry *self = (entry *)op;
    (void)unused;
    module_state *state = self->python->plan->state;
    PyObject *thread = self->thread;
    self->thread = NULL;
    if (!thread) Py_RETURN_NONE; /* who calls it has got hold of a thread that has begun */
    PyObject *bootstrap = PyObject_GetAttr(state->worker_thread, state->name_bootstrap);
    PyObject *result = bootstrap ? PyObject_CallOneArg(bootstrap, thread) : NULL;
    if (turn(self, ENTERED)) {
        PyObject *raised = PyErr_GetRaisedException();
        enter(self);
        if (raised) PyErr_SetRaisedException(raised);
    }
    Py_XDECREF(bootstrap);
    Py_DECREF(thread);
    return result;
}

static int entry_traverse(PyObject *op, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((entry *)op)->context);
    Py_VISIT(((entry *)op)->thread);
    return 0;
}

/* Without tp_clear: a context is cleared by its own. */
static void entry_dealloc(PyObject *op) {
    entry *self = (entry *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    Py_XDECREF(self->context);
    Py_XDECREF(self->thread);
    if (self->python) python_run_unref(self->python);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(entry_doc, "What a worker thread calls.");

PyDoc_STRVAR(begin_doc, "begin($self, /)\n--\n\nWhat the thread begins with.");

static PyMethodDef entry_methods[] = {
    {"begin", entry_begin, METH_NOARGS, begin_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot entry_slots[] = {
    {Py_tp_doc, (void *)entry_doc}, {Py_tp_methods, entry_methods},
    {Py_tp_dealloc, entry_dealloc}, {Py_tp_traverse, entry_traverse},
    {Py_tp_call, entry_call},       {0, NULL},
};

PyType_Spec entry_spec = {
    .name = "pyper._pyper.WorkerEntry",
    .basicsize = sizeof(entry),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = entry_slots,
};

/* -------------------------------------------------------------------------------- callbacks */

static int detached(void *host_data, int (*call)(void *arg), void *arg) {
    (void)host_data;
    PyThreadState *thread = PyEval_SaveThread();
    int rc = call(arg);
    PyEval_RestoreThread(thread);
    return rc;
}

/* WorkerThread(name, entry), not started yet: a new reference, or NULL. */
static PyObject *make_thread(module_state *state, const char *name, PyObject *entry) {
    PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");
    if (!text) return NULL;
    PyObject *thread = PyObject_CallFunctionObjArgs(state->worker_thread, text, entry, NULL);
    Py_DECREF(text);
    return thread;
}

/* Thread.start() has raised; the exception stays.  Will the thread begin all the same? */
static bool will_begin(module_state *state, PyObject *thread) {
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *answer = PyObject_GetAttr(thread, state->name_will_begin);
    bool will = answer == Py_True;
    Py_XDECREF(answer);
    PyErr_SetRaisedException(raised);
    return will;
}

/* Thread.start() may raise although the thread will begin (a signal handler raises in its last
 * steps): then the thread counts as started, and the exception waits. */
static int start_thread(void *host_data, const char *name, void (*enter)(void *arg), void *arg,
                        void **ret_thread) {
    python_run *python = host_data;
    module_state *state = python->plan->state;
    PyObject *thread = NULL;
    int rc = PYPER_ETHREAD;
    interrupts held;
    PyObject *worker = NULL;
    if (interrupts_hold(state, python, &held) == 0 && !python_run_has_pending(python))
        worker = entry_new(python, enter, arg);
    if (worker && (thread = make_thread(state, name, worker)) != NULL) {
        ((entry *)worker)->thread = Py_NewRef(thread);
        PyObject *result = PyObject_CallMethodNoArgs(thread, state->name_start);
        Py_XDECREF(result);
        if (result || will_begin(state, thread) || !turn((entry *)worker, REVOKED)) rc = 0;
    }
    interrupts_let(&held, python);
    python_run_keep_raised(python, rc == 0);
    if (rc == 0) {
        *ret_thread = thread;
    } else {
        if (worker) entry_over((entry *)worker);
        Py_XDECREF(thread);
    }
    Py_XDECREF(worker);
    return rc;
}

static int join_thread(void *host_data, void *thread) {
    python_run *python = host_data;
    PyObject *name = python->plan->state->name_end;
    if (name && !interpreter_is_ending()) { /* at its end all threads have been joined */
        PyObject *result = PyObject_CallMethodNoArgs(thread, name);
        if (!result) {
            python_run_keep_pending(python, PyErr_GetRaisedException());
            return PYPER_EINTR;
        }
        Py_DECREF(result);
    }
    Py_DECREF((PyObject *)thread);
    return 0;
}

static void drop_thread(void *host_data, void *thread) {
    (void)host_data;
    Py_DECREF((PyObject *)thread);
}

static void release(void *host_data, pyper_run *run) {
    failure_untold(run, host_data);
    python_run_unref(host_data);
}

#define HOST(is_exclusive)                                                                         \
    {                                                                                              \
        .size = sizeof(pyper_host), .exclusive = is_exclusive, .detached = detached,               \
        .interruptible = true, .start_thread = start_thread, .join_thread = join_thread,           \
        .drop_thread = drop_thread, .release = release, .start_process = process_start,            \
        .join_process = process_join, .start_slot = host_start_slot,                               \
        .resume_slot = host_resume_slot, .cancel_slot = host_cancel_slot,                          \
        .resume_caller = host_resume_caller,                                                       \
    }
const pyper_host host_shared = HOST(false);
const pyper_host host_exclusive = HOST(true);
const pyper_host host_child = {.size = sizeof(pyper_host), .detached = detached};
