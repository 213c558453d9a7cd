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
 * at which the engine knows of the thread or process.  Handlers run in the main thread only, and
 * only that of the main interpreter may change them.  To change one lets those run that are still,
 * or again, the user's: they may raise while others are being put aside or back.
 */
#include "pyper_python.h"

/* After Python.h, which asks for sigaction(). */
#include <signal.h>

enum { LAST_SIGNAL = NSIG - 1 < 64 ? NSIG - 1 : 64 }; /* of those that Python may know */

static bool set_handler(module_state *state, PyObject *number, PyObject *handler) {
    PyObject *args[] = {number, handler};
    PyObject *before = PyObject_Vectorcall(state->set_handler, args, 2, NULL);
    Py_XDECREF(before);
    return before != NULL;
}

/* Python has the system calls that a signal interrupts fail, unless signal.siginterrupt() says
 * otherwise; whoever sets a handler has undone that. */
static bool restarts_calls(int number) {
    struct sigaction action;
    return sigaction(number, NULL, &action) == 0 && action.sa_flags & SA_RESTART;
}

static void have_calls_restarted(int number) {
    struct sigaction action;
    if (sigaction(number, NULL, &action) < 0) return;
    action.sa_flags |= SA_RESTART;
    sigaction(number, &action, NULL);
}

/* Put one handler aside, if there is one: 0, or -1 with an exception. */
static int put_aside(interrupts *self, int number, PyObject *keep) {
    PyObject *object = PyLong_FromLong(number);
    PyObject *handler = object ? PyObject_CallOneArg(self->state->get_handler, object) : NULL;
    int rc = handler ? 0 : -1;
    if (handler && PyCallable_Check(handler)) {
        if (restarts_calls(number)) self->restarting |= UINT64_C(1) << (number - 1);
        rc = PyDict_SetItem(self->handlers, object, handler);
        if (rc == 0 && !set_handler(self->state, object, keep)) rc = -1;
    }
    Py_XDECREF(handler);
    Py_XDECREF(object);
    return rc;
}

/* Put all back.  A handler that raises meanwhile has its exception kept, or printed without
 * `python`, and what it came up in is done again. */
static void put_back(interrupts *self, python_run *python) {
    Py_ssize_t at = 0;
    PyObject *number, *handler;
    while (PyDict_Next(self->handlers, &at, &number, &handler)) {
        while (!set_handler(self->state, number, handler)) {
            if (python)
                python_run_keep_pending(python, PyErr_GetRaisedException());
            else
                PyErr_WriteUnraisable(handler);
        }
        int bit = (int)PyLong_AsLong(number) - 1;
        if (self->restarting >> bit & 1) have_calls_restarted(bit + 1);
    }
}

/* Call the user's handlers for what has arrived. */
static void pass_on(interrupts *self, python_run *python) {
    Py_ssize_t at = 0;
    PyObject *number, *frame;
    while (PyDict_Next(self->arrived, &at, &number, &frame)) {
        PyObject *handler = PyDict_GetItemWithError(self->handlers, number); /* borrowed */
        PyObject *result = PyObject_CallFunctionObjArgs(handler, number, frame, NULL);
        if (!result) python_run_keep_pending(python, PyErr_GetRaisedException());
        Py_XDECREF(result);
    }
}

int interrupts_hold(module_state *state, python_run *python, interrupts *ret_held) {
    interrupts *self = ret_held;
    *self = (interrupts){.state = state};
    if (python_run_has_pending(python)) return -1;
    if (PyThread_get_thread_ident() != state->main_thread ||
        PyInterpreterState_Get() != PyInterpreterState_Main())
        return 0;
    self->handlers = PyDict_New();
    self->arrived = self->handlers ? PyDict_New() : NULL;
    PyObject *keep = self->arrived ? PyObject_GetAttrString(self->arrived, "__setitem__") : NULL;
    if (!keep) {
        Py_CLEAR(self->handlers);
        Py_CLEAR(self->arrived);
        return -1;
    }
    self->outer = state->held;
    state->held = self;
    int rc = 0;
    for (int number = 1; rc == 0 && number <= LAST_SIGNAL; number++)
        rc = put_aside(self, number, keep);
    Py_DECREF(keep);
    if (rc == 0) return 0;
    python_run_keep_pending(python, PyErr_GetRaisedException());
    interrupts_let(self, python);
    return -1;
}

void interrupts_let(interrupts *self, python_run *python) {
    if (!self->handlers) return;
    PyObject *raised = PyErr_GetRaisedException();
    put_back(self, python);
    self->state->held = self->outer;
    pass_on(self, python);
    Py_CLEAR(self->handlers);
    Py_CLEAR(self->arrived);
    if (raised) PyErr_SetRaisedException(raised);
}

void interrupts_forget(module_state *state) {
    for (interrupts *self = state->held; self; self = self->outer) {
        put_back(self, NULL);
        PyDict_Clear(self->arrived); /* that is the parent's */
    }
    state->held = NULL;
}
