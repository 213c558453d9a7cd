/* process - workers that are processes: started through multiprocessing by pyper._processes, which
 * is imported when a plan with such a task is made, and not before.
 *
 * In a worker's process, attach() is all there is: a plan of the one task, a python_run with
 * `child` set, and the engine's pyper_attach().
 */
#include "pyper_python.h"

/* ------------------------------------------------------------------------ callbacks of the host */

static PyObject *start(python_run *python, const pyper_process *process) {
    step *step = process->bind;
    const int *fds = process->fds;
    interrupts held;
    if (interrupts_hold(step->state, python, &held) < 0) return NULL;
    PyObject *name = NULL, *started = NULL;
    if (!python_run_has_pending(python)) name = PyUnicode_FromFormat("%s", process->name);
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
    python->begun = true;
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
    module_state *state = python->plan->state;
    interrupts held; /* this may be the thread that has tried to start the run */
    if (interrupts_hold(state, python, &held) < 0) PyErr_Clear();
    PyObject *status = PyObject_CallOneArg(state->join_process, process);
    long number = status && status != Py_None ? PyLong_AsLong(status) : PYPER_STATUS_UNKNOWN;
    if (PyErr_Occurred()) {
        number = PYPER_STATUS_UNKNOWN;
        PyErr_WriteUnraisable(process);
    }
    *ret_status = (int)number;
    Py_XDECREF(status);
    Py_DECREF((PyObject *)process);
    interrupts_let(&held, python);
}

/* ------------------------------------------------------------------------ in a worker's process */

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
    if (rc != PYPER_EINVAL) {
        /* The run says what there was too little of, or that this process ended too soon. */
        PyObject *status = PyLong_FromLong(1);
        if (status) PyErr_SetObject(PyExc_SystemExit, status);
        Py_XDECREF(status);
        return NULL;
    }
    return PyErr_Format(PyExc_RuntimeError, "task '%U': a worker cannot begin: %s", step->name,
                        pyper_strerror(rc));
}
