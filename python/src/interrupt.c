/* interrupt - Ctrl-C waits while Python starts a thread or a process.
 *
 * A handler that raises between two steps of threading or multiprocessing would leave a thread that
 * threading lists for ever, or pipes open and a process that nobody knows.  So Ctrl-C waits
 * meanwhile: what arrives is kept in a dictionary, whose __setitem__ is the handler, and the user's
 * handler is called with it afterwards.  (Nobody sends the signal again: an event loop that listens
 * for it has been told already, and would hear it twice.)
 *
 * This is C since handlers run between bytecodes: none comes between the last step and the moment
 * at which the engine knows of the thread or process.  Handlers run in the main thread only, and
 * only that of the main interpreter may change them.
 */
#include <signal.h>

#include "pyper_python.h"

int interrupts_hold(module_state *state, python_run *python, interrupts *ret_held) {
    *ret_held = (interrupts){0};
    PyObject *pending = python_run_take_pending(python);
    if (pending) {
        PyErr_SetRaisedException(pending);
        return -1;
    }
    if (PyThread_get_thread_ident() != state->main_thread ||
        PyInterpreterState_Get() != PyInterpreterState_Main())
        return 0;
    PyObject *module = PyImport_ImportModule("_signal");
    PyObject *handler = module ? PyObject_CallMethod(module, "getsignal", "i", SIGINT) : NULL;
    PyObject *arrived = handler && PyCallable_Check(handler) ? PyDict_New() : NULL;
    PyObject *keep = arrived ? PyObject_GetAttrString(arrived, "__setitem__") : NULL;
    PyObject *before = NULL;
    if (keep) before = PyObject_CallMethod(module, "signal", "iO", SIGINT, keep);
    Py_XDECREF(keep);
    if (before) {
        Py_DECREF(before);
        *ret_held = (interrupts){module, handler, arrived};
        return 0;
    }
    Py_XDECREF(module);
    Py_XDECREF(handler);
    Py_XDECREF(arrived);
    return PyErr_Occurred() ? -1 : 0;
}

void interrupts_let(interrupts *self, python_run *python) {
    if (!self->module) return;
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *before = PyObject_CallMethod(self->module, "signal", "iO", SIGINT, self->handler);
    if (!before) PyErr_WriteUnraisable(self->handler);
    Py_XDECREF(before);
    Py_ssize_t at = 0;
    PyObject *number, *frame;
    if (PyDict_Next(self->arrived, &at, &number, &frame)) {
        PyObject *result = PyObject_CallFunctionObjArgs(self->handler, number, frame, NULL);
        if (!result) python_run_keep_pending(python, PyErr_GetRaisedException());
        Py_XDECREF(result);
    }
    Py_DECREF(self->module);
    Py_DECREF(self->handler);
    Py_DECREF(self->arrived);
    if (raised) PyErr_SetRaisedException(raised);
}
