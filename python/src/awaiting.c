/* awaiting - what our awaitable objects have in common: the protocol of coroutines.
 *
 * An awaitable of ours is one function, its step: it goes on until there is a value, an exception,
 * or something to wait for, which it yields: a future for asyncio's task to wait for, or None, to
 * give the loop a turn.
 */
#include "pyper_python.h"

/* Raise StopIteration(value).  Takes value. */
static void raise_value(PyObject *value) {
    if (value == Py_None) {
        PyErr_SetNone(PyExc_StopIteration);
    } else if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
        /* These would be taken for the arguments, or for the exception itself. */
        PyObject *exception = PyObject_CallOneArg(PyExc_StopIteration, value);
        if (exception) PyErr_SetObject(PyExc_StopIteration, exception);
        Py_XDECREF(exception);
    } else {
        PyErr_SetObject(PyExc_StopIteration, value);
    }
    Py_DECREF(value);
}

static PyObject *as_iterator_says(PySendResult result, PyObject *value) {
    if (result == PYGEN_RETURN) raise_value(value);
    return result == PYGEN_NEXT ? value : NULL;
}

PyObject *awaiting_next(PyObject *self, step_fn step) {
    PyObject *value = NULL;
    PySendResult result = step(self, NULL, &value);
    return as_iterator_says(result, value);
}

PyObject *awaiting_throw(PyObject *self, step_fn step, PyObject *const *args, Py_ssize_t count) {
    PyObject *exception = outputs_exception_of(args, count);
    if (!exception) return NULL;
    PyObject *value = NULL;
    PySendResult result = step(self, exception, &value);
    return as_iterator_says(result, value);
}

/* The iterator has raised: was it StopIteration(value)? */
static PySendResult after_exception(PyObject **ret_value) {
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return PYGEN_ERROR;
    PyObject *exception = PyErr_GetRaisedException();
    *ret_value = PyObject_GetAttrString(exception, "value");
    Py_DECREF(exception);
    return *ret_value ? PYGEN_RETURN : PYGEN_ERROR;
}

PySendResult awaiting_send(module_state *state, PyObject *iterator, PyObject *thrown,
                           PyObject **ret_value) {
    if (!thrown) return PyIter_Send(iterator, Py_None, ret_value);
    PyObject *throw = PyObject_GetAttr(iterator, state->name_throw);
    if (!throw) { /* an iterator that is no generator: the exception is raised where it stands */
        PyErr_Clear();
        PyErr_SetRaisedException(thrown);
        return PYGEN_ERROR;
    }
    PyObject *yielded = PyObject_CallOneArg(throw, thrown);
    Py_DECREF(throw);
    Py_DECREF(thrown);
    *ret_value = yielded;
    return yielded ? PYGEN_NEXT : after_exception(ret_value);
}

static PyCodeObject *generator_code(PyGenObject *generator) {
#if PY_VERSION_HEX >= 0x030C0000
    return PyGen_GetCode(generator);
#else
    return (PyCodeObject *)Py_NewRef((PyObject *)generator->gi_code);
#endif
}

bool awaiting_possible(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    if (type->tp_as_async && type->tp_as_async->am_await) return true;
    if (!PyGen_CheckExact(object)) return false;
    PyCodeObject *code = generator_code((PyGenObject *)object);
    bool is_coroutine = code->co_flags & CO_ITERABLE_COROUTINE;
    Py_DECREF(code);
    return is_coroutine;
}

PyObject *awaiting_iterator(PyObject *awaitable) {
    PyTypeObject *type = Py_TYPE(awaitable);
    if (PyCoro_CheckExact(awaitable)) return Py_NewRef(awaitable);
    if (type->tp_as_async && type->tp_as_async->am_await) {
        PyObject *iterator = type->tp_as_async->am_await(awaitable);
        if (!iterator || PyIter_Check(iterator)) return iterator;
        PyErr_Format(PyExc_TypeError, "__await__() of %s returned %s, which is no iterator",
                     type->tp_name, Py_TYPE(iterator)->tp_name);
        Py_DECREF(iterator);
        return NULL;
    }
    return Py_NewRef(awaitable); /* a generator-based coroutine: see awaiting_possible() */
}

PyObject *future_new(module_state *state, PyObject *loop) {
    PyObject *future = PyObject_CallMethodNoArgs(loop, state->name_create_future);
    if (future && PyObject_SetAttr(future, state->name_blocking, Py_True) < 0) Py_CLEAR(future);
    return future;
}

/* 1 or 0; -1: an exception. */
static int is_done(module_state *state, PyObject *future) {
    PyObject *answer = PyObject_CallMethodNoArgs(future, state->name_done);
    int done = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return done;
}

/* A future that is done already was cancelled, and so is its task. */
void future_wake(module_state *state, PyObject *future) {
    int done = is_done(state, future);
    if (done == 0) {
        PyObject *result = PyObject_CallMethodOneArg(future, state->name_set_result, Py_None);
        done = result ? 1 : -1;
        Py_XDECREF(result);
    }
    if (done < 0) PyErr_WriteUnraisable(future);
}

/* Forget the futures that are done: waits that were given up.  0, or -1 with an exception. */
static int drop_done(waiters *self, module_state *state) {
    PyObject *kept = PyList_New(0);
    for (Py_ssize_t i = 0; kept && i < PyList_GET_SIZE(self->futures); i++) {
        PyObject *future = PyList_GET_ITEM(self->futures, i);
        int done = is_done(state, future);
        if (done < 0 || (!done && PyList_Append(kept, future) < 0)) Py_CLEAR(kept);
    }
    if (!kept) return -1;
    self->enough = 2 * PyList_GET_SIZE(kept) + 16;
    Py_SETREF(self->futures, kept);
    return 0;
}

PyObject *waiters_add(waiters *self, module_state *state, PyObject *loop) {
    if (!self->futures) {
        self->futures = PyList_New(0);
        self->enough = 16;
    }
    if (!self->futures) return NULL;
    if (PyList_GET_SIZE(self->futures) >= self->enough && drop_done(self, state) < 0) return NULL;
    PyObject *future = future_new(state, loop);
    if (future && PyList_Append(self->futures, future) < 0) Py_CLEAR(future);
    return future;
}

void waiters_wake(waiters *self, module_state *state) {
    PyObject *futures = self->futures;
    if (!futures) return;
    self->futures = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(futures); i++)
        future_wake(state, PyList_GET_ITEM(futures, i));
    Py_DECREF(futures);
}

PyObject *asyncgen_hook(module_state *state) {
    PyObject *hooks = PyObject_CallNoArgs(state->get_asyncgen_hooks);
    PyObject *hook = hooks ? Py_NewRef(PyTuple_GET_ITEM(hooks, 0)) : NULL;
    Py_XDECREF(hooks);
    return hook;
}

int asyncgen_set_hook(module_state *state, PyObject *hook) {
    PyObject *result = PyObject_CallOneArg(state->set_asyncgen_hooks, hook);
    Py_XDECREF(result);
    return result ? 0 : -1;
}
