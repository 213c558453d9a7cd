/* outputs - the type Outputs: one execution of a plan, as a generator.
 *
 * A call of a pipeline makes one; the first output asked for starts the run.  Any number of threads
 * may ask for outputs, close it, or read its counters at once.
 *
 * Life (`phase`), which only goes forward:
 *   FRESH     nothing has been started; `arguments` and `context` are there
 *   STARTING  one thread is starting the run; the others wait for `starting`
 *   RUNNING   `run` and `python` are set and stay so until the object is freed
 *   OVER      next() answers StopIteration: the end was reached, an exception was raised, or
 *             somebody has closed it.  `run` is kept for the counters and for close(), which waits.
 *
 * Synchronization
 *   phase              atomic; its release store to RUNNING publishes run and python.
 *   starting           held while phase goes from FRESH to RUNNING or OVER; the only lock of the
 *                      extension that is held while Python code runs (Thread.start()).  `starter`
 *                      is the thread that holds it, so that a signal handler in it does not wait
 *                      for itself.  `process` tells whether that was in this process: set when the
 *                      object is made, written by its holder, and read after it was found taken.
 *   arguments, context written by the holder of `starting` only.
 *   cancel_requested   atomic, only false -> true; set before phase is read, and read after phase
 *                      is set, so that a cancel during the start is not lost.
 *   newer, older, generation   the list of live runs: guarded by module_state.live_lock.
 *
 * Garbage collection: a worker that is alive may call the plan's functions at any moment, so those
 * are visited only when no worker is left.  Outputs that are reachable from a function of their own
 * run are thus kept by the run until it ends.
 */
#include "pyper_python.h"

#include <signal.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

/* The main thread alone runs signal handlers, and a signal ends its sleep at once.  But not a sleep
 * that begins just after the signal has come, and nothing tells the main thread of a signal that
 * another thread takes.  So it looks again: after LOOK_FIRST_NS, then after twice as long each
 * time, up to LOOK_LAST_NS.
 *
 * That is often enough for Ctrl-C and whatever else is sent to the process, since Linux gives it to
 * the thread with which the process began, unless that one blocks it or has yet to run the handler
 * of another one (after which the first look is soon again).  Where signals may go to others, each
 * look is after LOOK_FIRST_NS.  What remains: a signal that comes in the few microseconds between a
 * later look and the sleep is seen at the next look, and so is one that is meant for another thread
 * (pthread_kill()) or is none (_thread.interrupt_main()).
 *
 * With a look each 50 ms a pipeline that waited for 10 s took 16 ms of processor time, with these
 * 4.4, of which 1.2 are its start and end. */
enum { LOOK_FIRST_NS = 50000000, LOOK_LAST_NS = 1000000000 };

/* -------------------------------------------------------------------------------- live runs */

static module_state *state_of(const outputs *self) {
    return self->plan->state;
}

/* Where signal handlers run? */
static bool in_main_thread(const outputs *self) {
    return PyThread_get_thread_ident() == state_of(self)->main_thread;
}

/* Returns false if the run must not begin any more. */
static bool live_add(outputs *self) {
    module_state *state = state_of(self);
    LOCK_TAKE(&state->live_lock);
    self->generation = state->generation;
    self->older = state->live;
    if (self->older) self->older->newer = self;
    state->live = self;
    bool ending = state->ending;
    LOCK_GIVE(&state->live_lock);
    return !ending || in_main_thread(self);
}

void outputs_no_longer_live(outputs *self) {
    module_state *state = state_of(self);
    LOCK_TAKE(&state->live_lock);
    if (self->generation == state->generation) {
        if (self->newer)
            self->newer->older = self->older;
        else
            state->live = self->older;
        if (self->older) self->older->newer = self->newer;
        self->newer = self->older = NULL;
        self->generation = 0;
    }
    LOCK_GIVE(&state->live_lock);
}

/* An Outputs leaves the list before it gives up its run, so what is in the list has one. */
void outputs_cancel_live(module_state *state) {
    for (;;) {
        pyper_run *runs[64];
        size_t count = 0;
        LOCK_TAKE(&state->live_lock);
        state->ending = true;
        while (state->live && count < sizeof runs / sizeof *runs) {
            outputs *self = state->live;
            runs[count++] = pyper_run_ref(self->run);
            state->live = self->older;
            if (self->older) self->older->newer = NULL;
            self->older = NULL;
            self->generation = 0;
        }
        LOCK_GIVE(&state->live_lock);
        if (count == 0) return;
        for (size_t i = 0; i < count; i++) {
            pyper_cancel(runs[i]);
            pyper_run_unref(runs[i]);
        }
    }
}

void outputs_may_begin(module_state *state) {
    LOCK_TAKE(&state->live_lock);
    state->ending = false;
    LOCK_GIVE(&state->live_lock);
}

bool outputs_are_ending(module_state *state) {
    LOCK_TAKE(&state->live_lock);
    bool ending = state->ending;
    LOCK_GIVE(&state->live_lock);
    return ending;
}

/* Another thread may have been in the middle of a change when the process was forked. */
void outputs_forget_live(module_state *state) {
    memset(&state->live_lock, 0, sizeof state->live_lock);
    state->live = NULL;
    state->generation++;
    state->main_thread = PyThread_get_thread_ident();
}

/* ------------------------------------------------------------------------------- beginning */

PyObject *outputs_new(plan *plan, PyObject *args, PyObject *kwargs) {
    PyTypeObject *type =
        plan->is_async ? plan->state->async_outputs_type : plan->state->outputs_type;
    outputs *self = (outputs *)make_object(type);
    if (!self) return NULL;
    self->plan = (struct plan *)Py_NewRef((PyObject *)plan);
    atomic_init(&self->phase, FRESH);
    atomic_init(&self->process, plan->state->generation);
    self->starting = PyThread_allocate_lock();
    if (!self->starting) PyErr_NoMemory();
    if (self->starting) self->context = PyContext_CopyCurrent();
    if (self->context) self->arguments = PyTuple_Pack(2, args, kwargs);
    if (self->arguments) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

/* Does only one thread at a time run Python code? */
static int gil_enabled(void) {
#ifdef Py_GIL_DISABLED
    PyObject *sys = PyImport_ImportModule("sys");
    PyObject *answer = sys ? PyObject_CallMethod(sys, "_is_gil_enabled", NULL) : NULL;
    int enabled = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    Py_XDECREF(sys);
    return enabled;
#else
    return 1;
#endif
}

int outputs_start_run(outputs *self) {
    atomic_store(&self->process, state_of(self)->generation);
    /* Threads that are cancelled at once are threads to wait for all the same: whoever asks for
     * runs again and again, whatever he gets, would keep the interpreter for ever. */
    if (outputs_are_ending(state_of(self)) && !in_main_thread(self)) {
        outputs_raise_cancelled(self, "the interpreter ends: the run was not started");
        return -1;
    }
    int exclusive = gil_enabled();
    if (exclusive < 0) return -1;
    self->python = python_run_new(self->plan, self->context);
    if (!self->python) {
        PyErr_NoMemory();
        return -1;
    }
    python_run_ref(self->python); /* for the run */
    PyObject *arguments = self->arguments;
    self->arguments = NULL;
    Py_CLEAR(self->context);
    interrupts held = {0}; /* once for all threads, see interrupt.c */
    if (!self->plan->processes && interrupts_hold(state_of(self), self->python, &held) < 0)
        PyErr_Clear(); /* each will try it again */
    self->run = pyper_start_from(&(const pyper_start_options){
        .size = sizeof(pyper_start_options),
        .pipeline = self->plan->pipeline,
        .argument = arguments,
        .type = &object_items,
        .host = exclusive ? &host_exclusive : &host_shared,
        .host_data = self->python,
        .loop = self->plan->is_async,
    });
    interrupts_let(&held, self->python);
    if (!live_add(self)) atomic_store(&self->cancel_requested, true);
    return 0;
}

/* Does the run belong to the parent of this forked process? */
static bool inherited(const outputs *self) {
    return atomic_load(&self->process) != state_of(self)->generation;
}

/* Wait for `starting`.  Returns false where it will never be had: in a signal handler of the thread
 * that holds it, and in a forked child if another thread of the parent held it. */
static bool take_starting(outputs *self) {
    if (!PyThread_acquire_lock(self->starting, NOWAIT_LOCK)) {
        if (inherited(self) || atomic_load(&self->starter) == PyThread_get_thread_ident())
            return false;
        Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(self->starting, WAIT_LOCK);
        Py_END_ALLOW_THREADS
    }
    atomic_store(&self->process, state_of(self)->generation);
    return true;
}

PyObject *outputs_raise_cancelled(outputs *self, const char *why) {
    PyObject *class = state_of(self)->cancelled;
    PyErr_SetString(class ? class : PyExc_RuntimeError, why);
    return NULL;
}

static PyObject *raise_inherited(void) {
    PyErr_SetString(PyExc_RuntimeError,
                    "these outputs belong to the parent of this forked process; "
                    "call the pipeline again in this one");
    return NULL;
}

void outputs_stop(outputs *self) {
    if (inherited(self)) return;
    pyper_cancel(self->run);
    nested_cancel(self->python);
}

void outputs_cancel(PyObject *op) {
    outputs *self = (outputs *)op;
    atomic_store(&self->cancel_requested, true);
    if (atomic_load(&self->phase) >= RUNNING && self->run) outputs_stop(self);
}

/* The first output is asked for.  Returns the phase after that, or -1 with an exception. */
static int start(outputs *self) {
    if (!take_starting(self)) {
        if (inherited(self))
            raise_inherited();
        else
            PyErr_SetString(PyExc_RuntimeError,
                            "these outputs are being started by this very thread: a signal handler "
                            "or trace function cannot ask for one meanwhile");
        return -1;
    }
    int rc = 0;
    if (atomic_load(&self->phase) == FRESH) {
        atomic_store(&self->starter, PyThread_get_thread_ident());
        atomic_store(&self->phase, STARTING);
        rc = outputs_start_run(self);
        atomic_store(&self->phase, rc < 0 ? OVER : RUNNING);
        atomic_store(&self->starter, 0);
        if (rc == 0 && atomic_load(&self->cancel_requested)) outputs_stop(self);
    }
    PyThread_release_lock(self->starting);
    return rc < 0 ? -1 : atomic_load(&self->phase);
}

/* ------------------------------------------------------------------------------ next */

/* An exception that is ours alone (a signal handler's) ends this: cancel, and do not wait. */
static PyObject *interrupted(outputs *self) {
    PyObject *exception = PyErr_GetRaisedException();
    atomic_store(&self->phase, OVER);
    outputs_stop(self);
    PyErr_SetRaisedException(exception);
    return NULL;
}

/* Has a signal handler raised, in this call or in a callback of the engine?  -1 with the exception,
 * or 0. */
static int check_signals(outputs *self) {
    return python_run_raise_pending(self->python) < 0 ? -1 : PyErr_CheckSignals();
}

/* The run could not be started, or failed without an exception: say why, with what Thread.start()
 * raised as the cause.  Its words are said as well: not everybody shows causes. */
static PyObject *raise_plainly(outputs *self, int error) {
    PyObject *cause = atomic_exchange(&self->python->start_error, NULL);
    const char *message = pyper_error_message(self->run);
    if (!*message) message = pyper_strerror(error);
    bool of_memory = error == PYPER_ENOMEM || pyper_error_code(self->run) == PYPER_ENOMEM;
    PyObject *text = cause ? failure_text(message, cause) : PyUnicode_FromString(message);
    if (text) PyErr_SetObject(of_memory ? PyExc_MemoryError : PyExc_RuntimeError, text);
    Py_XDECREF(text);
    if (!cause) return NULL;
    PyObject *exception = PyErr_GetRaisedException();
    PyException_SetContext(exception, Py_NewRef(cause));
    PyException_SetCause(exception, cause);
    PyErr_SetRaisedException(exception);
    return NULL;
}

static PyObject *raise_deadlock(const char *what) {
    PyErr_Format(PyExc_RuntimeError,
                 "a function of the pipeline %s of its own run: it would wait for itself", what);
    return NULL;
}

/* There is nothing more to come, and the run need not be cancelled at the interpreter's end. */
static void over(outputs *self) {
    atomic_store(&self->phase, OVER);
    outputs_no_longer_live(self);
}

PyObject *outputs_none(outputs *self, int rc) {
    PyObject *exception;
    switch (rc) {
    case 0:
        over(self);
        return NULL;
    case PYPER_EFAILED:
    case PYPER_EDIED:
        exception = failure_take(self->run, self->python);
        if (!exception && failure_was_taken(self->run, self->python))
            return outputs_raise_cancelled(self, "the run has failed; another thread was told why");
        over(self);
        if (!exception) return raise_plainly(self, rc);
        PyErr_SetRaisedException(exception);
        return NULL;
    case PYPER_ECANCELED:
        return outputs_raise_cancelled(self, "the run was cancelled: these are not all outputs");
    case PYPER_EDEADLK:
        return raise_deadlock("asks for an output");
    case PYPER_EFORKED:
        return raise_inherited();
    default:
        over(self);
        return raise_plainly(self, rc);
    }
}

/* Does this thread take the signals that are sent to the process? */
static bool takes_signals(void) {
#ifdef __linux__
    sigset_t blocked;
    return syscall(SYS_gettid) == getpid() && pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0 &&
           sigisemptyset(&blocked);
#else
    return false;
#endif
}

/* When this thread is to look for signals again.  *slept is for how long it was to sleep the last
 * time; 0 if this wait has just begun, or was interrupted. */
static int64_t next_look(const outputs *self, int64_t *slept) {
    if (!in_main_thread(self)) return PYPER_FOREVER;
    int64_t longer = 2 * *slept < LOOK_LAST_NS ? 2 * *slept : LOOK_LAST_NS;
    *slept = *slept > 0 && takes_signals() ? longer : LOOK_FIRST_NS;
    return pyper_now() + *slept;
}

/* pyper_next(), until the next look if this thread has signals to look after. */
static int next_item(outputs *self, void **ret_item, int64_t *slept) {
    if (!in_main_thread(self)) return pyper_next(self->run, ret_item);
    int rc = pyper_next_until(self->run, ret_item, PYPER_NOWAIT);
    if (rc != PYPER_ETIMEDOUT) return rc;
    return pyper_next_until(self->run, ret_item, next_look(self, slept));
}

static PyObject *outputs_next(PyObject *op) {
    outputs *self = (outputs *)op;
    int phase = atomic_load_explicit(&self->phase, memory_order_acquire);
    if (phase != RUNNING) {
        if (phase != OVER) phase = start(self);
        if (phase != RUNNING) return NULL;
    }
    for (int64_t slept = 0;;) {
        /* Also before the first wait: list(outputs) runs no bytecode that would check. */
        if (check_signals(self) < 0 || !breathe(state_of(self))) return interrupted(self);
        void *item;
        int rc = next_item(self, &item, &slept);
        if (rc > 0) return item;
        if (rc == PYPER_EINTR)
            slept = 0;
        else if (rc != PYPER_ETIMEDOUT)
            return outputs_none(self, rc);
    }
}

static PyObject *outputs_send(PyObject *op, PyObject *ignored) {
    (void)ignored;
    PyObject *item = outputs_next(op);
    if (!item && !PyErr_Occurred()) PyErr_SetNone(PyExc_StopIteration);
    return item;
}

/* ------------------------------------------------------------------------------- leaving */

/* Cancel the run and wait until nothing of it is left.  Returns 0 and sets *ret_failure to the
 * exception the run has failed with, if nobody was told (or to NULL); -1 with an exception. */
static int finish(outputs *self, PyObject **ret_failure) {
    *ret_failure = NULL;
    if (atomic_load(&self->phase) <= STARTING) {
        atomic_store(&self->cancel_requested, true);
        if (!take_starting(self)) return 0; /* cancelled as soon as it has started */
        PyObject *arguments = NULL, *context = NULL;
        if (atomic_load(&self->phase) == FRESH) {
            atomic_store(&self->phase, OVER);
            arguments = self->arguments;
            context = self->context;
            self->arguments = self->context = NULL;
        }
        PyThread_release_lock(self->starting);
        Py_XDECREF(arguments);
        Py_XDECREF(context);
    }
    atomic_store(&self->phase, OVER);
    if (!self->run) return 0;
    outputs_stop(self);
    if (interpreter_is_ending()) return 0; /* what has not left by now never will */
    int rc;
    int64_t slept = 0;
    do {
        if (check_signals(self) < 0) return -1;
        rc = pyper_wait_until(self->run, next_look(self, &slept));
        if (rc == PYPER_EINTR) slept = 0;
    } while (rc == PYPER_EINTR || rc == PYPER_ETIMEDOUT);
    if (rc == PYPER_EFORKED) return 0;
    if (rc == PYPER_EDEADLK) {
        raise_deadlock("closes the outputs");
        return -1;
    }
    outputs_no_longer_live(self);
    *ret_failure = failure_take(self->run, self->python);
    return 0;
}

static PyObject *outputs_close(PyObject *op, PyObject *unused) {
    (void)unused;
    PyObject *failure;
    if (finish((outputs *)op, &failure) < 0) return NULL;
    if (failure) {
        PyErr_SetRaisedException(failure);
        return NULL;
    }
    Py_RETURN_NONE;
}

void outputs_note_failure(outputs *self, PyObject *exception, PyObject *failure) {
    if (!exception || !failure || failure == exception) return;
    failure_add_note(state_of(self), exception,
                     failure_text("while the outputs were closed, the run failed with", failure));
}

/* Finish, while `exception` is under way: what else has failed becomes a note at it. */
static int finish_for(outputs *self, PyObject *exception) {
    PyObject *failure;
    if (finish(self, &failure) < 0) return -1;
    outputs_note_failure(self, exception, failure);
    Py_XDECREF(failure);
    return 0;
}

static PyObject *exception_of(PyObject *type, PyObject *value, PyObject *traceback) {
    if (traceback == Py_None) traceback = NULL;
    if (traceback && !PyTraceBack_Check(traceback)) {
        PyErr_SetString(PyExc_TypeError, "throw() third argument must be a traceback object");
        return NULL;
    }
    if (PyExceptionClass_Check(type)) {
        PyErr_SetObject(type, value);
        PyObject *exception = PyErr_GetRaisedException();
        if (exception && traceback) PyException_SetTraceback(exception, traceback);
        return exception;
    }
    if (!PyExceptionInstance_Check(type)) {
        PyErr_Format(PyExc_TypeError, "exceptions must derive from BaseException, not %s",
                     Py_TYPE(type)->tp_name);
        return NULL;
    }
    if (value && value != Py_None) {
        PyErr_SetString(PyExc_TypeError, "instance exception may not have a separate value");
        return NULL;
    }
    if (traceback) PyException_SetTraceback(type, traceback);
    return Py_NewRef(type);
}

PyObject *outputs_exception_of(PyObject *const *args, Py_ssize_t count) {
    if (count < 1 || count > 3) {
        PyErr_Format(PyExc_TypeError, "throw() takes 1 to 3 arguments, not %zd", count);
        return NULL;
    }
    return exception_of(args[0], count > 1 ? args[1] : NULL, count > 2 ? args[2] : NULL);
}

static PyObject *outputs_throw(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    PyObject *exception = outputs_exception_of(args, count);
    if (!exception) return NULL;
    if (finish_for((outputs *)op, exception) < 0) {
        Py_DECREF(exception);
        return NULL;
    }
    PyErr_SetRaisedException(exception);
    return NULL;
}

static PyObject *outputs_enter(PyObject *op, PyObject *unused) {
    (void)unused;
    return Py_NewRef(op);
}

static PyObject *outputs_exit(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "__exit__() takes 3 arguments, not %zd", count);
        return NULL;
    }
    if (!PyExceptionInstance_Check(args[1])) {
        PyObject *result = outputs_close(op, NULL);
        if (!result) return NULL;
        Py_DECREF(result);
    } else if (finish_for((outputs *)op, args[1]) < 0) {
        return NULL;
    }
    Py_RETURN_FALSE;
}

/* ------------------------------------------------------------------------------ counters */

/* One TaskStats record: a new reference, or NULL. */
static PyObject *stats_record(const outputs *self, Py_ssize_t index,
                              const pyper_task_stats *stats) {
    const step *step = self->plan->steps[index];
    return PyObject_CallFunction(state_of(self)->task_stats, "OLLLLLddd", step->name,
                                 (long long)step->workers, (long long)stats->alive,
                                 (long long)stats->items_in, (long long)stats->items_out,
                                 (long long)stats->queued, (double)stats->busy_ns / 1e9,
                                 (double)stats->starved_ns / 1e9, (double)stats->blocked_ns / 1e9);
}

PyObject *outputs_stats(PyObject *op, PyObject *unused) {
    (void)unused;
    outputs *self = (outputs *)op;
    Py_ssize_t count = self->plan->count;
    pyper_task_stats *stats = PyMem_Calloc((size_t)count + 1, sizeof *stats);
    if (!stats) return PyErr_NoMemory();
    if (atomic_load(&self->phase) >= RUNNING && self->run)
        pyper_stats(self->run, stats, (size_t)count);
    PyObject *result = PyTuple_New(count);
    for (Py_ssize_t i = 0; result && i < count; i++) {
        PyObject *record = stats_record(self, i, &stats[i]);
        if (record)
            PyTuple_SET_ITEM(result, i, record);
        else
            Py_CLEAR(result);
    }
    PyMem_Free(stats);
    return result;
}

/* ---------------------------------------------------------------------------- the object */

/* See failure.c. */
static bool shows_failure(const outputs *self) {
    return self->run && !(self->driver && self->driver->run);
}

int outputs_traverse(PyObject *op, visitproc visit, void *arg) {
    outputs *self = (outputs *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->plan);
    Py_VISIT(self->arguments);
    Py_VISIT(self->context);
    Py_VISIT(self->loop);
    Py_VISIT((PyObject *)self->driver);
    if (self->python && atomic_load(&self->python->alive) == 0) {
        Py_VISIT(self->python->plan);
        Py_VISIT(self->python->context);
    }
    return shows_failure(self) ? failure_traverse(self->run, visit, arg) : 0;
}

/* We are garbage, and about to be taken apart. */
void outputs_finalize(PyObject *op) {
    outputs *self = (outputs *)op;
    if (shows_failure(self)) failure_finalize(self->run, self->python);
}

/* The plan stays: everything here relies on it.  A plan is cleared by its own. */
int outputs_clear(PyObject *op) {
    outputs *self = (outputs *)op;
    Py_CLEAR(self->arguments);
    Py_CLEAR(self->context);
    Py_CLEAR(self->loop);
    return 0;
}

/* The last reference is gone: cancel, and do not wait, for this may happen under anybody's lock. */
void outputs_dealloc(PyObject *op) {
    outputs *self = (outputs *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    if (self->weak_references) PyObject_ClearWeakRefs(op);
    PyObject *raised = PyErr_GetRaisedException();
    if (self->run) {
        if (self->driver) driver_unwanted(self->driver);
        outputs_no_longer_live(self);
        outputs_stop(self);
        pyper_run_unref(self->run);
        Py_XDECREF((PyObject *)self->driver);
    }
    if (self->python) python_run_unref(self->python);
    outputs_clear(op);
    Py_DECREF((PyObject *)self->plan);
    if (self->starting) PyThread_free_lock(self->starting);
    if (raised) PyErr_SetRaisedException(raised);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    outputs_doc,
    "The outputs of one call of a pipeline: a generator and a context manager.\n\n"
    "The run starts when the first output is asked for.  Several threads may ask: each output "
    "goes\nto one of them.");
PyDoc_STRVAR(send_doc, "send($self, value, /)\n--\n\nThe next output; the value is ignored.");
PyDoc_STRVAR(throw_doc,
             "throw($self, kind, value=None, traceback=None, /)\n--\n\n"
             "Cancel the run, wait until nothing of it is left, and raise the exception.");
PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Cancel the run and wait until nothing of it is left.\n\n"
             "Calls in progress are waited for.  Raises what the run has failed with, if "
             "nobody was told\nyet; RuntimeError in a function of the run itself.");
PyDoc_STRVAR(stats_doc,
             "stats($self, /)\n--\n\n"
             "The counters of every task at this moment, as a tuple of pyper.TaskStats.");

static PyMethodDef outputs_methods[] = {
    {"send", outputs_send, METH_O, send_doc},
    {"throw", (PyCFunction)(void (*)(void))outputs_throw, METH_FASTCALL, throw_doc},
    {"close", outputs_close, METH_NOARGS, close_doc},
    {"stats", outputs_stats, METH_NOARGS, stats_doc},
    {"__enter__", outputs_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))outputs_exit, METH_FASTCALL, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef outputs_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(outputs, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot outputs_slots[] = {
    {Py_tp_doc, (void *)outputs_doc},   {Py_tp_dealloc, outputs_dealloc},
    {Py_tp_traverse, outputs_traverse}, {Py_tp_finalize, outputs_finalize},
    {Py_tp_clear, outputs_clear},       {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, outputs_next},     {Py_tp_methods, outputs_methods},
    {Py_tp_members, outputs_members},   {0, NULL},
};

PyType_Spec outputs_spec = {
    .name = "pyper._pyper.Outputs",
    .basicsize = sizeof(outputs),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = outputs_slots,
};
