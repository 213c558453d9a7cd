/* interrupt - signal handlers wait while Python starts a thread or a process.
 *
 * A handler that raises between two steps of threading or multiprocessing would leave a thread that
 * threading lists for ever, a worker without a thread, or pipes open and a process that nobody
 * knows.  So the handlers of all signals are put aside meanwhile.  What arrives is kept in a
 * dictionary, whose __setitem__ is the handler, and the user's handlers are called with it
 * afterwards.  (Nobody sends the signals again: an event loop that listens for them has been told
 * already, and would hear them twice.)
 *
 * This is C since handlers run between bytecodes: none comes between the last step and the moment
 * at which the engine knows of the thread or process.  To put them aside takes as long as a part of
 * the start of a thread, so for a run of threads it is done once for all of them; processes take
 * longer to start than anybody should wait who has pressed Ctrl-C.
 *
 * Handlers run in the main thread only, and only that of the main interpreter may change them.  To
 * change one lets those run that are still, or again, the user's: they may raise while others are
 * being put aside or back.
 */
#include "pyper_python.h"

/* After Python.h, which asks for sigaction(). */
#include <signal.h>
#include <string.h>

enum { LAST_SIGNAL = NSIG - 1 < 64 ? NSIG - 1 : 64 }; /* of those that Python may know */

/* Have `handler` called for this signal: the one before, a new reference; NULL with an exception,
 * which may be that of any handler. */
static PyObject *set_handler(module_state *state, PyObject *number, PyObject *handler) {
    PyObject *args[] = {number, handler};
    return PyObject_Vectorcall(state->set_handler, args, 2, NULL);
}

/* The same, and what handlers raise meanwhile is kept, or printed without `python`.  NULL: this is
 * not the thread that may do it.  (That is no handler's exception: it comes from no Python
 * code.) */
static PyObject *set_handler_now(module_state *state, PyObject *number, PyObject *handler,
                                 python_run *python) {
    PyObject *before;
    while (!(before = set_handler(state, number, handler))) {
        PyObject *raised = PyErr_GetRaisedException();
        PyObject *traceback = PyException_GetTraceback(raised);
        Py_XDECREF(traceback);
        if (!traceback && PyErr_GivenExceptionMatches(raised, PyExc_ValueError)) {
            Py_DECREF(raised);
            break;
        }
        if (python) {
            python_run_keep_pending(python, raised);
        } else {
            PyErr_SetRaisedException(raised);
            PyErr_WriteUnraisable(handler);
        }
    }
    return before;
}

/* Put one handler aside, if there is one: 0, or -1 with an exception.  What is put aside is also
 * what the system does: somebody may have asked it to restart calls, or to call a function of his
 * in C before Python's. */
static int put_aside(interrupts *self, int number, python_run *python) {
    PyObject *object = PyLong_FromLong(number), *before = NULL, *pair = NULL;
    PyObject *handler = object ? PyObject_CallOneArg(self->state->get_handler, object) : NULL;
    int rc = handler ? 0 : -1;
    struct sigaction action;
    if (handler && PyCallable_Check(handler) && sigaction(number, NULL, &action) == 0)
        before = set_handler_now(self->state, object, self->keep, python);
    if (before) {
        /* It may have set another one in its last call, just now. */
        const char *bytes = before == handler ? (const char *)&action : NULL;
        pair = Py_BuildValue("(Oy#)", before, bytes, (Py_ssize_t)sizeof action);
        rc = pair ? PyDict_SetItem(self->handlers, object, pair) : -1;
        if (rc < 0) {
            PyObject *raised = PyErr_GetRaisedException();
            Py_XDECREF(set_handler_now(self->state, object, before, python));
            PyErr_SetRaisedException(raised);
        }
    }
    Py_XDECREF(pair);
    Py_XDECREF(before);
    Py_XDECREF(handler);
    Py_XDECREF(object);
    return rc;
}

/* Put one back, unless a handler has set another one meanwhile. */
static void put_back_one(interrupts *self, PyObject *number, PyObject *pair, python_run *python) {
    PyObject *handler = PyTuple_GET_ITEM(pair, 0), *bytes = PyTuple_GET_ITEM(pair, 1);
    PyObject *replaced = set_handler_now(self->state, number, handler, python);
    if (replaced && replaced != self->keep) {
        Py_XDECREF(set_handler_now(self->state, number, replaced, python));
    } else if (replaced && bytes != Py_None) {
        struct sigaction action;
        memcpy(&action, PyBytes_AS_STRING(bytes), sizeof action);
        sigaction((int)PyLong_AsLong(number), &action, NULL);
    }
    Py_XDECREF(replaced);
}

static void put_back(interrupts *self, python_run *python) {
    Py_ssize_t at = 0;
    PyObject *number, *pair;
    while (PyDict_Next(self->handlers, &at, &number, &pair))
        put_back_one(self, number, pair, python);
}

/* Call the user's handlers for what has arrived. */
static void pass_on(interrupts *self, python_run *python) {
    Py_ssize_t at = 0;
    PyObject *number, *frame;
    while (PyDict_Next(self->arrived, &at, &number, &frame)) {
        PyObject *pair = PyDict_GetItemWithError(self->handlers, number); /* borrowed */
        PyObject *handler = pair ? PyTuple_GET_ITEM(pair, 0) : NULL;
        if (!handler || !PyCallable_Check(handler)) continue;
        PyObject *result = PyObject_CallFunctionObjArgs(handler, number, frame, NULL);
        if (!result) python_run_keep_pending(python, PyErr_GetRaisedException());
        Py_XDECREF(result);
    }
}

static void forget(interrupts *self) {
    Py_CLEAR(self->handlers);
    Py_CLEAR(self->arrived);
    Py_CLEAR(self->keep);
}

int interrupts_hold(module_state *state, python_run *python, interrupts *ret_held) {
    interrupts *self = ret_held;
    *self = (interrupts){.state = state};
    if (PyThread_get_thread_ident() != state->main_thread ||
        PyInterpreterState_Get() != PyInterpreterState_Main())
        return 0;
    if (state->held && state->held->all) return 0;
    self->handlers = PyDict_New();
    self->arrived = self->handlers ? PyDict_New() : NULL;
    self->keep = self->arrived ? PyObject_GetAttrString(self->arrived, "__setitem__") : NULL;
    if (!self->keep) {
        forget(self);
        return -1;
    }
    self->outer = state->held;
    state->held = self;
    int rc = 0;
    for (int number = 1; rc == 0 && number <= LAST_SIGNAL; number++)
        rc = put_aside(self, number, python);
    self->all = true;
    if (rc < 0) interrupts_let(self, python);
    return rc;
}

void interrupts_let(interrupts *self, python_run *python) {
    if (!self->handlers) return;
    PyObject *raised = PyErr_GetRaisedException();
    self->all = false;
    put_back(self, python);
    self->state->held = self->outer;
    pass_on(self, python);
    forget(self);
    if (raised) PyErr_SetRaisedException(raised);
}

void interrupts_forget(module_state *state) {
    for (interrupts *self = state->held; self; self = self->outer) {
        put_back(self, NULL);
        PyDict_Clear(self->arrived); /* that is the parent's */
    }
    state->held = NULL;
}
