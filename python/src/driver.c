/* driver - the type Driver: between a run with asynchronous tasks and its event loop.
 *
 * The loop watches the run's descriptor and calls the driver when it is readable; the driver lets
 * the engine do what there is to do, and the engine calls the host's callbacks below: start, resume
 * or cancel a slot.  A slot is an AsyncWorker (slot.c), carried by an asyncio task.
 *
 * Life.  The loop holds the driver, as long as the descriptor is watched; the driver holds the
 * slots and a handle of the run.  It ends when nobody wants outputs any more and all workers have
 * left.  If the loop is closed or dropped before, it forgets the driver: then the run is cancelled,
 * and the slots are ended without the loop.
 *
 * Synchronization: everything belongs to the thread of the loop; `unwanted` is atomic, since
 * outputs may be dropped on any thread, which then cancels the run and thereby wakes the loop.
 */
#include "pyper_python.h"

static bool is_closed(driver *self) {
    PyObject *answer = PyObject_CallMethodNoArgs(self->loop, self->state->name_is_closed);
    int closed = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (closed < 0) PyErr_WriteUnraisable(self->loop);
    return closed != 0;
}

/* Have the loop watch the run's descriptor: 0, or -1 with an exception. */
static int add_reader(driver *self) {
    PyObject *fd = PyLong_FromLong(self->fd), *result = NULL;
    if (fd)
        result =
            PyObject_CallMethodObjArgs(self->loop, self->state->name_add_reader, fd, self, NULL);
    Py_XDECREF(fd);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

driver *driver_new(outputs *outputs) {
    module_state *state = outputs->plan->state;
    driver *self = (driver *)make_object(state->driver_type);
    if (!self) return NULL;
    self->state = state;
    self->plan = (plan *)Py_NewRef((PyObject *)outputs->plan);
    self->loop = Py_NewRef(outputs->loop);
    self->run = pyper_run_ref(outputs->run);
    self->python = outputs->python;
    self->fd = pyper_fd(outputs->run);
    if (add_reader(self) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->python->driver = self;
    return self;
}

/* Stop watching the descriptor, before it is closed. */
static void remove_reader(driver *self) {
    if (is_closed(self)) return;
    PyObject *fd = PyLong_FromLong(self->fd), *result = NULL;
    if (fd) result = PyObject_CallMethodOneArg(self->loop, self->state->name_remove_reader, fd);
    if (!result) PyErr_WriteUnraisable(self->loop);
    Py_XDECREF(result);
    Py_XDECREF(fd);
}

bool driver_is_orphaned(driver *self) {
    return is_closed(self);
}

int driver_move(driver *self, PyObject *loop) {
    while (self->slots) slot_abandon(self->slots);
    Py_CLEAR(self->waiting.futures);
    Py_SETREF(self->loop, Py_NewRef(loop));
    return add_reader(self);
}

bool driver_all_left(driver *self) {
    if (!self->run) return true;
    int rc;
    do {
        rc = pyper_wait_until(self->run, PYPER_NOWAIT);
    } while (rc == PYPER_EINTR);
    return rc != PYPER_ETIMEDOUT;
}

static void end(driver *self) {
    pyper_run *run = self->run;
    if (!run) return;
    self->run = NULL;
    self->python->driver = NULL;
    remove_reader(self);
    pyper_run_unref(run);
}

void driver_look(driver *self) {
    if (!self->run) return;
    Py_INCREF(self);
    pyper_drive(self->run);
    if (self->run && (self->closing || atomic_load(&self->unwanted)) && driver_all_left(self)) {
        self->closing = false;
        waiters_wake(&self->waiting, self->state);
        if (atomic_load(&self->unwanted)) end(self);
    }
    Py_DECREF(self);
}

PyObject *driver_wait(driver *self) {
    return waiters_add(&self->waiting, self->state, self->loop);
}

PyObject *driver_wait_for_end(driver *self) {
    self->closing = true;
    return driver_wait(self);
}

void driver_unwanted(driver *self) {
    atomic_store(&self->unwanted, true);
}

/* ------------------------------------------------------------------ the host's callbacks */

/* asyncio's task for the slot: 0, or -1 with an exception. */
static int create_task(driver *self, slot *slot) {
    module_state *state = self->state;
    PyObject *context = PyContext_Copy(self->python->context), *name = NULL;
    if (context && slot->step->workers == 1)
        name = Py_NewRef(slot->step->name);
    else if (context)
        name = PyUnicode_FromFormat("%U-%lld", slot->step->name,
                                    (long long)pyper_worker_index(slot->worker));
    PyObject *task = NULL;
    if (name) {
        PyObject *args[] = {self->loop, (PyObject *)slot, name, context};
        task = PyObject_VectorcallMethod(state->name_create_task, args, 2, state->names_of_task);
    }
    Py_XDECREF(name);
    Py_XDECREF(context);
    if (!task) return -1;
    /* If the loop is dropped with this task waiting, that is no mistake of the user's. */
    if (PyObject_SetAttr(task, state->name_log_destroy_pending, Py_False) < 0) PyErr_Clear();
    if (!slot->worker) { /* an eager task may have ended already */
        Py_DECREF(task);
        return 0;
    }
    slot->task = task;
    /* It may also have ended the run, when it could not be cancelled yet. */
    if (pyper_cancelled(slot->worker)) slot_tell(slot);
    return 0;
}

/* The current exception is why a worker could not be started: what the engine is told of it.  It
 * need not be for lack of memory: a task factory of the program's may refuse what it is asked. */
static int keep_start_error(python_run *python) {
    PyObject *raised = PyErr_GetRaisedException();
    if (!raised) return PYPER_ENOMEM;
    int rc = PyErr_GivenExceptionMatches(raised, PyExc_MemoryError) ? PYPER_ENOMEM : PYPER_ETHREAD;
    Py_XDECREF(atomic_exchange(&python->start_error, raised));
    return rc;
}

int host_start_slot(void *host_data, pyper_worker *worker) {
    python_run *python = host_data;
    driver *self = python->driver;
    slot *slot = self ? slot_new(self, worker) : NULL;
    if (!slot) return keep_start_error(python);
    int rc = 0;
    Py_INCREF(slot);
    *pyper_worker_state(worker) = slot;
    if (create_task(self, slot) < 0) {
        int error = keep_start_error(python);
        if (slot->worker) {
            slot->worker = NULL; /* it is the engine's again */
            atomic_fetch_sub(&python->alive, 1);
            slot_abandon(slot);
            rc = error;
        }
    }
    Py_DECREF(slot);
    return rc;
}

void host_resume_slot(void *host_data, pyper_worker *worker) {
    python_run *python = host_data;
    driver *self = python->driver;
    slot *slot = *pyper_worker_state(worker);
    if (self && slot && !is_closed(self)) slot_wake(slot);
}

void host_cancel_slot(void *host_data, pyper_worker *worker) {
    python_run *python = host_data;
    driver *self = python->driver;
    slot *slot = *pyper_worker_state(worker);
    if (self && slot && !is_closed(self)) slot_tell(slot);
}

void host_resume_caller(void *host_data) {
    python_run *python = host_data;
    driver *self = python->driver;
    if (self) waiters_wake(&self->waiting, self->state);
}

/* ----------------------------------------------------------------------------- the object */

static PyObject *driver_call(PyObject *op, PyObject *args, PyObject *kwargs) {
    (void)args, (void)kwargs;
    driver_look((driver *)op);
    Py_RETURN_NONE;
}

static int driver_traverse(PyObject *op, visitproc visit, void *arg) {
    driver *self = (driver *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT((PyObject *)self->plan);
    Py_VISIT(self->loop);
    Py_VISIT(self->waiting.futures);
    for (slot *slot = self->slots; slot; slot = slot->older) Py_VISIT((PyObject *)slot);
    return self->run ? failure_traverse(self->run, visit, arg) : 0;
}

/* We are garbage, and about to be taken apart. */
static void driver_finalize(PyObject *op) {
    driver *self = (driver *)op;
    if (self->run) failure_finalize(self->run, self->python);
}

/* We are garbage, so the loop has forgotten us: end the slots without it. */
static int driver_clear(PyObject *op) {
    driver *self = (driver *)op;
    Py_INCREF(op);
    if (self->run) pyper_cancel(self->run);
    while (self->slots) slot_abandon(self->slots);
    if (self->run) {
        pyper_run *run = self->run;
        self->run = NULL;
        self->python->driver = NULL;
        pyper_run_unref(run);
    }
    Py_CLEAR(self->waiting.futures);
    Py_DECREF(op);
    return 0;
}

static void driver_dealloc(PyObject *op) {
    driver *self = (driver *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    Py_XDECREF(self->waiting.futures);
    if (self->run) { /* no slot is left: each holds a reference */
        pyper_cancel(self->run);
        self->python->driver = NULL;
        pyper_run_unref(self->run);
    }
    Py_XDECREF(self->loop);
    Py_XDECREF((PyObject *)self->plan);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(driver_doc, "What an event loop calls when a run has something to do.");

static PyType_Slot driver_slots[] = {
    {Py_tp_doc, (void *)driver_doc},
    {Py_tp_dealloc, driver_dealloc},
    {Py_tp_traverse, driver_traverse},
    {Py_tp_clear, driver_clear},
    {Py_tp_finalize, driver_finalize},
    {Py_tp_call, driver_call},
    {0, NULL},
};

PyType_Spec driver_spec = {
    .name = "pyper._pyper.Driver",
    .basicsize = sizeof(driver),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = driver_slots,
};
