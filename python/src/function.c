/* function - what the engine calls: one function per kind of task.
 *
 * Each is called with the GIL (in builds that have one) by a thread of threading.Thread, or in a
 * worker's process by the thread that has called attach().  It owns its item (a strong reference)
 * and returns with no exception set: an exception is handed to the run by failure_report().
 *
 *   kind            the item is                 the output is
 *   first           the tuple (args, kwargs)    what func(*args, **kwargs) returns
 *   plain           an input                    what func(item) returns
 *   join            NULL                        what func(stream) returns
 *   ... with branch                             each item of what func returns
 */
#include "pyper_python.h"

/* --------------------------------------------------------------------------- outputs */

/* What `func` returned is the output.  Takes `result`; NULL: an exception is set. */
static inline int emit_one(step *step, pyper_worker *worker, PyObject *result) {
    if (!result) return failure_report(step, worker);
    return pyper_emit(worker, result);
}

/* An iterator over what `func` returned: a new reference, or NULL with an exception. */
static PyObject *iterator_of(step *step, PyObject *result) {
    PyTypeObject *type = Py_TYPE(result);
    if (type->tp_iter || PySequence_Check(result)) return PyObject_GetIter(result);
    bool async = type->tp_as_async && (type->tp_as_async->am_aiter || type->tp_as_async->am_await);
    PyErr_Format(
        PyExc_TypeError,
        "task '%U' has branch=True, so it must return an iterable, not %s%s; return a list "
        "or yield the outputs, or leave branch=True out",
        step->name, type->tp_name,
        async ? " (what is asynchronous has to come from an async function)" : "");
    return NULL;
}

/* A generator's finally blocks run now, in this thread, and not whenever its last reference goes.
 * Any other iterator is merely let go: its close() may be somebody else's business (a file's,
 * say). */
int iterator_close(module_state *state, PyObject *iterator) {
    int is = PyGen_CheckExact(iterator) || Py_IS_TYPE(iterator, state->outputs_type);
    if (!is && state->generator) is = PyObject_IsInstance(iterator, state->generator);
    if (is <= 0) return is;
    PyObject *result = PyObject_CallMethodNoArgs(iterator, state->name_close);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Emit what `iterator` gives, to its end.  Returns what the engine is told. */
static int emit_all(step *step, pyper_worker *worker, PyObject *iterator) {
    iternextfunc next = Py_TYPE(iterator)->tp_iternext;
    for (PyObject *item; (item = next(iterator)) != NULL;) {
        int rc = pyper_emit(worker, item);
        if (rc < 0)
            return iterator_close(step->state, iterator) < 0 ? failure_report(step, worker) : rc;
        if (!breathe(step->state)) return failure_report(step, worker);
    }
    if (!PyErr_Occurred()) return 0;
    if (PyErr_ExceptionMatches(PyExc_StopIteration)) { /* an iterator's way to say: the end */
        PyErr_Clear();
        return 0;
    }
    return failure_report(step, worker);
}

/* Each item of what `func` returned is an output.  Takes `result`; NULL: an exception is set. */
static int emit_each(step *step, pyper_worker *worker, PyObject *result) {
    PyObject *iterator = result ? iterator_of(step, result) : NULL;
    Py_XDECREF(result);
    if (!iterator) return failure_report(step, worker);
    int rc;
    if (Py_IS_TYPE(iterator, step->state->outputs_type)) {
        nested inner;
        nested_enter(&inner, worker, iterator);
        rc = emit_all(step, worker, iterator);
        nested_leave(&inner, worker);
        if (rc < 0 && iterator_close(step->state, iterator) < 0) rc = failure_report(step, worker);
    } else {
        rc = emit_all(step, worker, iterator);
    }
    Py_DECREF(iterator);
    return rc;
}

/* ------------------------------------------------------------------------------ calls */

/* func(*args, **kwargs) for the item (args, kwargs), which is taken. */
static PyObject *call_first(step *step, PyObject *item) {
    PyObject *result =
        PyObject_Call(step->func, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
    Py_DECREF(item);
    return result;
}

/* func(item), which is taken. */
static inline PyObject *call_with(step *step, PyObject *item) {
    PyObject *result = breathe(step->state) ? PyObject_CallOneArg(step->func, item) : NULL;
    Py_DECREF(item);
    return result;
}

static int first_plain(pyper_worker *worker, void *item, void *bind) {
    return emit_one(bind, worker, call_first(bind, item));
}

static int first_branch(pyper_worker *worker, void *item, void *bind) {
    return emit_each(bind, worker, call_first(bind, item));
}

static int plain(pyper_worker *worker, void *item, void *bind) {
    return emit_one(bind, worker, call_with(bind, item));
}

static int branch(pyper_worker *worker, void *item, void *bind) {
    return emit_each(bind, worker, call_with(bind, item));
}

/* The call of a task with join: it lasts until the outputs are emitted, and so does its stream. */
static int call_joined(pyper_worker *worker, step *step,
                       int (*emit)(struct step *step, pyper_worker *worker, PyObject *result)) {
    PyObject *stream = stream_new(step, worker);
    if (!stream) return failure_report(step, worker);
    int rc = emit(step, worker, PyObject_CallOneArg(step->func, stream));
    stream_end(stream);
    Py_DECREF(stream);
    return rc;
}

static int join_plain(pyper_worker *worker, void *item, void *bind) {
    (void)item;
    return call_joined(worker, bind, emit_one);
}

static int join_branch(pyper_worker *worker, void *item, void *bind) {
    (void)item;
    return call_joined(worker, bind, emit_each);
}

pyper_fn function_for(bool is_first, bool has_branch, bool has_join) {
    if (has_join) return has_branch ? join_branch : join_plain;
    if (is_first) return has_branch ? first_branch : first_plain;
    return has_branch ? branch : plain;
}
