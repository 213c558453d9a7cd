/* failure - an exception's way from a task's function to whoever takes the run's outputs.
 *
 * The first exception fails the run and travels as the failure's payload.  It is raised once, by
 * next() or close(); if nobody was left to raise it (the outputs were dropped), it goes to
 * sys.unraisablehook when the run is freed, or when the garbage collector is about to break it up.
 * Later ones become notes at the first.
 *
 * What a process has raised comes as bytes, and that one has died as a code: either becomes an
 * exception when somebody is told.  Until then the notes wait in the python_run.
 *
 * The exception may lead to the outputs, by its traceback say; so the collector must see that the
 * run holds it.  One object shows it: the driver, as long as that has the run, and else the
 * outputs.
 */
#include "pyper_python.h"

/* How many later failures are noted at the first. */
enum { NOTES_MAX = 8 };

/* The payload of a failed run. */
typedef struct failure {
    _Atomic(PyObject *) exception; /* NULL once taken, which is done under python_run.lock */
    PyObject *func;                /* for sys.unraisablehook */
} failure;

void failure_to_hook(PyObject *exception, PyObject *of) {
    if (!exception) return;
    PyObject *raised = PyErr_GetRaisedException();
    PyErr_SetRaisedException(exception);
    PyErr_WriteUnraisable(of);
    if (raised) PyErr_SetRaisedException(raised);
}

static void failure_destroy(void *payload) {
    failure *self = payload;
    failure_to_hook(atomic_exchange(&self->exception, NULL), self->func);
    Py_DECREF(self->func);
    PyMem_RawFree(self);
}

/* What another process has sent: the exception, or NULL with another one set (there always is
 * one). */
static PyObject *load(module_state *state, const void *bytes, size_t size) {
    if (processes_import(state) < 0) return NULL;
    PyObject *data = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size);
    PyObject *exception = data ? PyObject_CallOneArg(state->load_failure, data) : NULL;
    Py_XDECREF(data);
    return exception;
}

/* The exception for a process that died: a new one, or NULL with another one set. */
static PyObject *died(module_state *state, pyper_run *run) {
    if (!state->worker_died) return NULL;
    PyObject *message = PyUnicode_FromFormat("%s", pyper_error_message(run));
    if (!message) return NULL;
    return PyObject_CallFunction(state->worker_died, "NLi", message,
                                 (long long)pyper_error_task(run), pyper_error_code(run));
}

static PyObject *take(failure *self, python_run *python) {
    LOCK_TAKE(&python->lock);
    PyObject *exception = atomic_exchange(&self->exception, NULL);
    LOCK_GIVE(&python->lock);
    return exception;
}

/* Did the first failure happen in another process? */
static bool came_from_process(pyper_run *run) {
    size_t size;
    return pyper_error_bytes(run, &size) || pyper_failed(run) == PYPER_EDIED;
}

PyObject *failure_take(pyper_run *run, python_run *python) {
    failure *self = pyper_error_payload(run);
    if (self) return take(self, python);
    if (!came_from_process(run) || atomic_exchange(&python->told, true)) return NULL;
    module_state *state = python->plan->state;
    size_t size;
    const void *bytes = pyper_error_bytes(run, &size);
    PyObject *exception = bytes ? load(state, bytes, size) : died(state, run);
    if (!exception) exception = PyErr_GetRaisedException();
    PyObject *notes = atomic_load(&python->notes); /* nobody adds to them any more */
    for (Py_ssize_t i = 0; exception && notes && i < PyList_GET_SIZE(notes); i++)
        failure_add_note(state, exception, Py_NewRef(PyList_GET_ITEM(notes, i)));
    return exception;
}

void failure_untold(pyper_run *run, python_run *python) {
    module_state *state = python->plan->state;
    if (!state->load_failure) return; /* no processes, or the interpreter has ended */
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *exception = failure_take(run, python);
    if (exception) failure_to_hook(exception, python->plan->steps[pyper_error_task(run)]->func);
    if (raised) PyErr_SetRaisedException(raised);
}

int failure_traverse(pyper_run *run, visitproc visit, void *arg) {
    failure *self = pyper_error_payload(run);
    if (self) Py_VISIT(atomic_load(&self->exception));
    return 0;
}

void failure_finalize(pyper_run *run, python_run *python) {
    failure *self = pyper_error_payload(run);
    if (self) failure_to_hook(take(self, python), self->func);
}

bool failure_was_taken(pyper_run *run, python_run *python) {
    return pyper_error_payload(run) || atomic_load(&python->told);
}

PyObject *failure_dump(module_state *state, PyObject *exception) {
    PyObject *bytes = NULL;
    if (processes_import(state) == 0) bytes = PyObject_CallOneArg(state->dump_failure, exception);
    if (bytes && !PyBytes_Check(bytes)) Py_CLEAR(bytes);
    if (PyErr_Occurred()) PyErr_WriteUnraisable(exception);
    return bytes;
}

PyObject *failure_text(const char *prefix, PyObject *exception) {
    const char *type = Py_TYPE(exception)->tp_name;
    PyObject *text = PyObject_Str(exception);
    if (!text) { /* its __str__ raises: then its type must do */
        PyErr_Clear();
        return PyUnicode_FromFormat("%s: %s", prefix, type);
    }
    PyObject *result = PyUnicode_GET_LENGTH(text) > 0
                           ? PyUnicode_FromFormat("%s: %s: %U", prefix, type, text)
                           : PyUnicode_FromFormat("%s: %s", prefix, type);
    Py_DECREF(text);
    return result;
}

void failure_add_note(module_state *state, PyObject *exception, PyObject *note) {
    PyObject *result = note && state->name_add_note
                           ? PyObject_CallMethodOneArg(exception, state->name_add_note, note)
                           : NULL;
    if (!result && PyErr_Occurred()) PyErr_WriteUnraisable(exception);
    Py_XDECREF(result);
    Py_XDECREF(note);
}

/* "in task 'parse' (2 of 3)", a new string or NULL. */
static PyObject *place_of(const step *step) {
    return PyUnicode_FromFormat("in task '%U' (%zd of %zd)", step->name, step->place, step->count);
}

/* What would end the caller's loop quietly (StopIteration and its like) becomes a RuntimeError with
 * the original as its cause.  Takes and returns a reference. */
static PyObject *made_loud(const step *step, PyObject *exception) {
    if (!PyErr_GivenExceptionMatches(exception, PyExc_StopIteration) &&
        !PyErr_GivenExceptionMatches(exception, PyExc_StopAsyncIteration) &&
        !PyErr_GivenExceptionMatches(exception, PyExc_GeneratorExit))
        return exception;
    PyErr_Format(PyExc_RuntimeError, "task '%U' raised %s", step->name,
                 Py_TYPE(exception)->tp_name);
    PyObject *loud = PyErr_GetRaisedException();
    PyException_SetContext(loud, Py_NewRef(exception));
    PyException_SetCause(loud, exception);
    return loud;
}

/* "also raised in task 'parse' (2 of 3): ValueError: no", a new string or NULL. */
static PyObject *note_of(const step *step, PyObject *exception) {
    PyObject *prefix = PyUnicode_FromFormat("also raised in task '%U' (%zd of %zd)", step->name,
                                            step->place, step->count);
    const char *text = prefix ? PyUnicode_AsUTF8(prefix) : NULL;
    PyObject *note = text ? failure_text(text, exception) : NULL;
    Py_XDECREF(prefix);
    return note;
}

/* Keep a note, which is taken, for the exception that the first failure will become: 0 or -1. */
static int keep_note(python_run *python, PyObject *note) {
    PyObject *notes = atomic_load(&python->notes);
    if (note && !notes) {
        PyObject *made = PyList_New(0);
        if (made && atomic_compare_exchange_strong(&python->notes, &notes, made))
            notes = made;
        else
            Py_XDECREF(made);
    }
    int rc = note && notes ? PyList_Append(notes, note) : -1;
    Py_XDECREF(note);
    return rc;
}

/* A failure of a run that has failed before: a note at the first one.  All workers must have left
 * before anybody is told of that, so it is still there, unless the run failed of itself or its
 * outputs were garbage. */
static void note_another(const step *step, pyper_worker *worker, PyObject *exception) {
    python_run *python = pyper_worker_host_data(worker);
    pyper_run *run = pyper_worker_run(worker);
    failure *first = pyper_error_payload(run);
    LOCK_TAKE(&python->lock);
    PyObject *target = first ? Py_XNewRef(atomic_load(&first->exception)) : NULL;
    LOCK_GIVE(&python->lock);
    if (!target && !came_from_process(run)) {
        failure_to_hook(Py_NewRef(exception), step->func);
    } else if (target != exception && atomic_fetch_add(&python->noted, 1) < NOTES_MAX) {
        PyObject *note = note_of(step, exception);
        if (target)
            failure_add_note(step->state, target, note);
        else if (keep_note(python, note) < 0)
            PyErr_WriteUnraisable(exception);
    }
    Py_XDECREF(target);
}

/* From a worker's process an exception goes as bytes.  Takes it. */
static int report_from_child(step *step, pyper_worker *worker, PyObject *exception) {
    failure_add_note(step->state, exception, place_of(step));
    PyObject *bytes = failure_dump(step->state, exception);
    int rc = pyper_fail_bytes(worker, PYPER_EFAILED, Py_TYPE(exception)->tp_name,
                              bytes ? PyBytes_AS_STRING(bytes) : NULL,
                              bytes ? (size_t)PyBytes_GET_SIZE(bytes) : 0);
    Py_XDECREF(bytes);
    Py_DECREF(exception);
    nested_cancel(pyper_worker_host_data(worker));
    return rc;
}

/* Has the function forked, and this is the child?  A slot of a loop must not ask: it would
 * drive. */
static bool is_in_fork(pyper_worker *worker) {
    return !pyper_worker_state(worker) &&
           pyper_wait_until(pyper_worker_run(worker), PYPER_NOWAIT) == PYPER_EFORKED;
}

/* The run is the parent's, and has not failed.  SystemExit is how a child ends; anything else
 * somebody should see.  Takes it. */
static int report_in_fork(const step *step, PyObject *exception) {
    bool ends =
        PyErr_GivenExceptionMatches(exception, PyExc_SystemExit) ||
        (step->state->cancelled && PyErr_GivenExceptionMatches(exception, step->state->cancelled));
    if (ends)
        Py_DECREF(exception);
    else
        failure_to_hook(exception, step->func);
    return PYPER_ECANCELED;
}

/* Is it only that the run was cancelled?  When the interpreter ends a run that a function has
 * started may be cancelled, or may not begin any more, before the function's own run has been
 * told. */
static bool is_cancelled(const step *step, pyper_worker *worker, PyObject *exception) {
    if (!step->state->cancelled || !PyErr_GivenExceptionMatches(exception, step->state->cancelled))
        return false;
    if (outputs_are_ending(step->state)) pyper_cancel(pyper_worker_run(worker));
    return pyper_cancelled(worker);
}

int failure_report(step *step, pyper_worker *worker) {
    PyObject *exception = PyErr_GetRaisedException();
    if (is_in_fork(worker)) return report_in_fork(step, exception);
    if (is_cancelled(step, worker, exception)) {
        Py_DECREF(exception);
        return PYPER_ECANCELED;
    }
    exception = made_loud(step, exception);
    if (((python_run *)pyper_worker_host_data(worker))->child)
        return report_from_child(step, worker, exception);
    failure *payload = PyMem_RawMalloc(sizeof *payload);
    if (!payload) { /* no memory even for this: say at least which exception it was */
        int rc = pyper_fail(worker, PYPER_ENOMEM, "raised %s, and there was no memory to keep it",
                            Py_TYPE(exception)->tp_name);
        failure_to_hook(exception, step->func);
        return rc;
    }
    failure_add_note(step->state, exception, place_of(step));
    atomic_init(&payload->exception, exception);
    payload->func = Py_NewRef(step->func);
    int rc = pyper_fail_with(worker, PYPER_EFAILED, Py_TYPE(exception)->tp_name, payload,
                             failure_destroy);
    if (rc != PYPER_EFAILED) {
        note_another(step, worker, exception);
        Py_DECREF(exception);
        Py_DECREF(payload->func);
        PyMem_RawFree(payload);
    }
    nested_cancel(pyper_worker_host_data(worker));
    return rc;
}
