/* process - workers that are processes: started through multiprocessing by pyper._processes, which
 * is imported when a plan with such a task is made, and not before.
 *
 * In a worker's process, attach() is all there is: a plan of the one task, a python_run with
 * `child` set, and the engine's pyper_attach().
 */
#include "pyper_python.h"

/* The attribute `name` of `module`: 0, or -1 with an exception. */
static int take(PyObject *module, const char *name, PyObject **ret_value) {
    *ret_value = PyObject_GetAttrString(module, name);
    return *ret_value ? 0 : -1;
}

int processes_import(module_state *state) {
    if (state->loads) return 0;
    PyObject *module = PyImport_ImportModule("pyper._processes");
    if (!module) return -1;
    PyObject *dumps = NULL, *loads = NULL;
    int rc = take(module, "dumps", &dumps);
    if (rc == 0) rc = take(module, "loads", &loads);
    if (rc == 0 && !state->start_process) rc = take(module, "start", &state->start_process);
    if (rc == 0 && !state->join_process) rc = take(module, "join", &state->join_process);
    if (rc == 0 && !state->dump_failure) rc = take(module, "dump_failure", &state->dump_failure);
    if (rc == 0 && !state->load_failure) rc = take(module, "load_failure", &state->load_failure);
    if (rc == 0 && !state->name_append)
        rc = (state->name_append = PyUnicode_InternFromString("append")) ? 0 : -1;
    if (rc == 0 && !state->five) rc = (state->five = PyLong_FromLong(5)) ? 0 : -1;
    if (rc == 0 && !state->dumps_names)
        rc = (state->dumps_names = Py_BuildValue("(ss)", "protocol", "buffer_callback")) ? 0 : -1;
    if (rc == 0 && !state->loads_names)
        rc = (state->loads_names = Py_BuildValue("(s)", "buffers")) ? 0 : -1;
    if (rc == 0 && !state->dispatch_table)
        rc = take(module, "dispatch_table", &state->dispatch_table);
    if (rc == 0 && !state->newobj) rc = take(module, "newobj", &state->newobj);
    if (rc == 0 && !state->name_reduce_ex)
        rc = (state->name_reduce_ex = PyUnicode_InternFromString("__reduce_ex__")) ? 0 : -1;
    if (rc == 0 && !state->name_setstate)
        rc = (state->name_setstate = PyUnicode_InternFromString("__setstate__")) ? 0 : -1;
    if (rc == 0 && !state->loads) {
        state->dumps = dumps;
        state->loads = loads; /* the last one: it says that all are there */
        dumps = loads = NULL;
    }
    Py_XDECREF(dumps);
    Py_XDECREF(loads);
    Py_DECREF(module);
    return rc;
}

/* ------------------------------------------------------------------------- callbacks of the host */

static PyObject *start(python_run *python, const pyper_process *process) {
    step *step = process->bind;
    const int *fds = process->fds;
    interrupts held;
    if (interrupts_hold(step->state, &held) < 0) return NULL;
    PyObject *name = PyUnicode_FromFormat("%s", process->name), *started = NULL;
    if (name)
        started = PyObject_CallFunction(step->state->start_process, "ONnnLL(iiii)", step->task,
                                        name, step->place, step->count, (long long)process->task,
                                        (long long)process->worker, fds[0], fds[1], fds[2], fds[3]);
    interrupts_let(&held, python);
    return started;
}

int process_start(void *host_data, const pyper_process *process, void **ret_process,
                  int64_t *ret_pid) {
    python_run *python = host_data;
    PyObject *started = start(python, process);
    PyObject *object;
    long long pid;
    if (!started || !PyArg_ParseTuple(started, "OL", &object, &pid)) {
        Py_XDECREF(started);
        python_run_keep_raised(python, false);
        return PYPER_EPROCESS;
    }
    *ret_process = Py_NewRef(object);
    *ret_pid = pid;
    Py_DECREF(started);
    return 0;
}

void process_join(void *host_data, void *process, int *ret_status) {
    python_run *python = host_data;
    PyObject *status = PyObject_CallOneArg(python->plan->state->join_process, process);
    long number = status && status != Py_None ? PyLong_AsLong(status) : PYPER_STATUS_UNKNOWN;
    if (PyErr_Occurred()) {
        number = PYPER_STATUS_UNKNOWN;
        PyErr_WriteUnraisable(process);
    }
    *ret_status = (int)number;
    Py_XDECREF(status);
    Py_DECREF((PyObject *)process);
}

/* ------------------------------------------------------------------------- in a worker's process */

PyObject *processes_attach(PyObject *module, PyObject *args) {
    module_state *state = PyModule_GetState(module);
    PyObject *op, *context;
    Py_ssize_t place, count;
    int branch, join, fds[PYPER_PROCESS_FDS];
    long long task, worker;
    if (!PyArg_ParseTuple(args, "O!nnppLL(iiii):attach", state->plan_type, &op, &place, &count,
                          &branch, &join, &task, &worker, &fds[0], &fds[1], &fds[2], &fds[3]))
        return NULL;
    plan *plan = (struct plan *)op;
    if (plan->count != 1) {
        PyErr_SetString(PyExc_ValueError, "a worker's plan has one step");
        return NULL;
    }
    if (processes_import(state) < 0 || !(context = PyContext_CopyCurrent())) return NULL;
    step *step = plan->steps[0];
    step->place = place;
    step->count = count;
    python_run *python = python_run_new(plan, context);
    Py_DECREF(context);
    if (!python) return PyErr_NoMemory();
    python->child = true;
    int rc = pyper_attach(.fds = {fds[0], fds[1], fds[2], fds[3]}, .task = task, .worker = worker,
                          .fn = function_for(place == 1, branch, join), .bind = step,
                          .input_type = &object_items, .output_type = &object_items,
                          .host = &host_child, .host_data = python);
    python_run_unref(python);
    if (rc == 0) Py_RETURN_NONE;
    return PyErr_Format(PyExc_RuntimeError, "task '%U': a worker cannot begin: %s", step->name,
                        pyper_strerror(rc));
}
