/* async_outputs - the type AsyncOutputs: one execution of a plan with asynchronous tasks, as an
 * asynchronous generator; and the awaitables that it and AsyncInputStream hand out.
 *
 * The object is an `outputs` (outputs.c) whose run is driven by an event loop: the one that runs
 * when the first output is asked for.  It belongs to that loop's thread, but it may be dropped
 * anywhere.
 *
 * An output that is there is had without the loop: its awaitable completes at once.
 */
#include "pyper_python.h"

enum kind { READ, NEXT, ENTER, CLOSE, THROW, EXIT };
enum { NEW, BEGUN, DONE };

typedef struct awaitable {
    PyObject_HEAD PyObject *of; /* the AsyncOutputs; for READ the AsyncInputStream */
    PyObject *exception;        /* of THROW, and of EXIT (NULL: there is none) */
    enum kind kind;
    int state;
} awaitable;

static PyObject *awaitable_new(module_state *state, enum kind kind, PyObject *of,
                               PyObject *exception) {
    PyTypeObject *type = state->awaitable_type;
    awaitable *self = (awaitable *)make_object(type);
    if (!self) return NULL;
    self->kind = kind;
    self->of = Py_NewRef(of);
    self->exception = Py_XNewRef(exception);
    return (PyObject *)self;
}

PyObject *awaitable_of_stream(module_state *state, PyObject *stream) {
    return awaitable_new(state, READ, stream, NULL);
}

/* ------------------------------------------------------------------------------------ the loop */

/* Is the loop that runs the one of these outputs?  0, or -1 with a RuntimeError.  Those that have
 * not begun belong to it from now on, if `claim`. */
static int check_loop(outputs *self, bool claim) {
    PyObject *loop = PyObject_CallNoArgs(self->plan->state->get_running_loop);
    if (!loop) return -1;
    int rc = 0;
    int phase = atomic_load(&self->phase);
    if (claim && phase == FRESH && atomic_compare_exchange_strong(&self->phase, &phase, STARTING)) {
        Py_XSETREF(self->loop, Py_NewRef(loop));
    } else if (phase >= RUNNING ? self->loop && self->loop != loop : phase == STARTING) {
        PyErr_SetString(PyExc_RuntimeError,
                        "these outputs belong to the event loop that asked for the first of them; "
                        "call the pipeline again in this one");
        rc = -1;
    }
    Py_DECREF(loop);
    return rc;
}

/* Tell the loop, as Python's own asynchronous generators do when they begin: a loop that ends
 * closes those that have begun in it (shutdown_asyncgens()).  0, or -1 with an exception. */
static int announce(outputs *self) {
    PyObject *hook = asyncgen_hook(self->plan->state);
    if (!hook) return -1;
    PyObject *result =
        hook == Py_None ? Py_NewRef(Py_None) : PyObject_CallOneArg(hook, (PyObject *)self);
    Py_DECREF(hook);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Start the run, in phase STARTING: 0, or -1 with an exception. */
static int start(outputs *self) {
    atomic_store(&self->process, self->plan->state->generation);
    if (announce(self) < 0 || outputs_start_run(self) < 0) {
        atomic_store(&self->phase, OVER);
        return -1;
    }
    if (pyper_fd(self->run) >= 0 && !(self->driver = driver_new(self))) {
        PyObject *exception = PyErr_GetRaisedException();
        outputs_stop(self);
        atomic_store(&self->phase, OVER);
        PyErr_SetRaisedException(exception);
        return -1;
    }
    atomic_store(&self->phase, RUNNING);
    if (atomic_load(&self->cancel_requested)) outputs_stop(self);
    if (self->driver) driver_look(self->driver);
    return 0;
}

/* Nobody will ask for outputs any more: the driver goes when everybody has left. */
static void let_driver_go(outputs *self) {
    if (!self->driver) return;
    driver_unwanted(self->driver);
    driver_look(self->driver);
}

/* ----------------------------------------------------------------------------------- __anext__ */

static PySendResult no_output(outputs *self, int rc) {
    outputs_none(self, rc);
    if (!PyErr_Occurred()) PyErr_SetNone(PyExc_StopAsyncIteration);
    if (atomic_load(&self->phase) == OVER) {
        PyObject *exception = PyErr_GetRaisedException();
        let_driver_go(self);
        PyErr_SetRaisedException(exception);
    }
    return PYGEN_ERROR;
}

/* It is over.  For who asks only now that is the end; but who has waited may have been promised
 * more: he is told that the run was cancelled or has failed, as in a thread. */
static PySendResult nothing_more(outputs *self, bool has_waited) {
    void *item;
    int rc = has_waited && self->run ? pyper_try_next(self->run, &item) : 0;
    if (rc == 1) Py_DECREF((PyObject *)item); /* of a run that somebody has just closed */
    return no_output(self, rc == 1 || rc == PYPER_EAGAIN ? PYPER_ECANCELED : rc);
}

static PySendResult next_step(outputs *self, bool has_waited, PyObject **ret_value) {
    if (check_loop(self, true) < 0) return PYGEN_ERROR;
    int phase = atomic_load_explicit(&self->phase, memory_order_acquire);
    if (phase == OVER) return nothing_more(self, has_waited);
    if (phase == STARTING && start(self) < 0) return PYGEN_ERROR;
    if (python_run_raise_pending(self->python) < 0) { /* of Thread.start(), say */
        outputs_stop(self);
        return PYGEN_ERROR;
    }
    slot *running = self->driver ? self->driver->running : NULL;
    if (running && slot_calls_us(running)) return no_output(self, PYPER_EDEADLK);
    if (turn_is_over(&self->turn)) {
        *ret_value = Py_NewRef(Py_None);
        return PYGEN_NEXT;
    }
    void *item;
    int rc = pyper_try_next(self->run, &item);
    if (rc == 1) {
        *ret_value = item;
        return PYGEN_RETURN;
    }
    if (python_run_raise_pending(self->python) < 0) { /* while that was decoded, say */
        outputs_stop(self);
        return PYGEN_ERROR;
    }
    if (rc != PYPER_EAGAIN) return no_output(self, rc);
    *ret_value = driver_wait(self->driver);
    turn_restart(&self->turn);
    return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
}

/* ------------------------------------------------------------------------------------- leaving */

/* The run is over, and nothing of it is left.  What it has failed with, if nobody was told: a new
 * reference, or NULL. */
static PyObject *finished(outputs *self) {
    outputs_no_longer_live(self);
    let_driver_go(self);
    return failure_take(self->run, self->python);
}

/* Cancel the run and wait until nothing of it is left: PYGEN_NEXT, PYGEN_ERROR, or PYGEN_RETURN and
 * *ret_failure. */
static PySendResult leave_step(awaitable *awaitable, PyObject **ret_value, PyObject **ret_failure) {
    outputs *self = (outputs *)awaitable->of;
    *ret_failure = NULL;
    int phase = FRESH;
    if (atomic_compare_exchange_strong(&self->phase, &phase, OVER)) {
        Py_CLEAR(self->arguments);
        Py_CLEAR(self->context);
    } else if (phase == STARTING) { /* in another thread's loop */
        atomic_store(&self->cancel_requested, true);
        if (atomic_load(&self->phase) == STARTING && check_loop(self, false) < 0)
            return PYGEN_ERROR;
    }
    if (!self->run) return PYGEN_RETURN;
    atomic_store(&self->phase, OVER);
    outputs_stop(self);
    if (self->driver && !self->driver->run) { /* it is over: somebody else has found that first */
        *ret_failure = finished(self);
        return PYGEN_RETURN;
    }
    if (self->driver && driver_is_orphaned(self->driver)) {
        /* The loop was closed: let this one wait for what is left. */
        PyObject *loop = PyObject_CallNoArgs(self->plan->state->get_running_loop);
        int rc = loop ? driver_move(self->driver, loop) : -1;
        if (rc == 0) Py_XSETREF(self->loop, Py_NewRef(loop));
        Py_XDECREF(loop);
        if (rc < 0) return PYGEN_ERROR;
    }
    if (check_loop(self, false) < 0) return PYGEN_ERROR;
    if (!self->driver || driver_all_left(self->driver)) {
        *ret_failure = finished(self);
        return PYGEN_RETURN;
    }
    *ret_value = driver_wait_for_end(self->driver);
    return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
}

static PySendResult leave(awaitable *awaitable, PyObject **ret_value) {
    outputs *self = (outputs *)awaitable->of;
    PyObject *failure;
    PySendResult rc = leave_step(awaitable, ret_value, &failure);
    if (rc != PYGEN_RETURN) return rc;
    PyObject *exception = awaitable->exception;
    outputs_note_failure(self, exception, failure);
    if (!exception && failure) {
        PyErr_SetRaisedException(failure);
        return PYGEN_ERROR;
    }
    Py_XDECREF(failure);
    if (awaitable->kind == THROW) {
        PyErr_SetRaisedException(Py_NewRef(exception));
        return PYGEN_ERROR;
    }
    *ret_value = Py_NewRef(awaitable->kind == EXIT ? Py_False : Py_None);
    return PYGEN_RETURN;
}

/* -------------------------------------------------------------------------------- the awaitable */

static PySendResult awaitable_step(PyObject *op, PyObject *thrown, PyObject **ret_value) {
    awaitable *self = (awaitable *)op;
    *ret_value = NULL;
    if (self->state == DONE) {
        Py_XDECREF(thrown);
        PyErr_SetString(PyExc_RuntimeError, "this has been awaited already");
        return PYGEN_ERROR;
    }
    if (thrown) { /* while it waited: nothing has been taken that could be lost */
        self->state = DONE;
        if (self->kind > ENTER && ((outputs *)self->of)->driver)
            driver_unwanted(((outputs *)self->of)->driver);
        PyErr_SetRaisedException(thrown);
        return PYGEN_ERROR;
    }
    bool has_waited = self->state == BEGUN;
    self->state = BEGUN;
    PySendResult rc;
    switch (self->kind) {
    case READ:
        rc = async_stream_step(self->of, ret_value);
        break;
    case NEXT:
        rc = next_step((outputs *)self->of, has_waited, ret_value);
        break;
    case ENTER:
        *ret_value = Py_NewRef(self->of);
        rc = PYGEN_RETURN;
        break;
    default:
        rc = leave(self, ret_value);
    }
    if (rc != PYGEN_NEXT) self->state = DONE;
    return rc;
}

static PySendResult awaitable_am_send(PyObject *op, PyObject *ignored, PyObject **ret_value) {
    (void)ignored;
    return awaitable_step(op, NULL, ret_value);
}

static PyObject *awaitable_next(PyObject *op) {
    return awaiting_next(op, awaitable_step);
}

static PyObject *awaitable_send(PyObject *op, PyObject *ignored) {
    (void)ignored;
    return awaiting_next(op, awaitable_step);
}

static PyObject *awaitable_throw(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    return awaiting_throw(op, awaitable_step, args, count);
}

static PyObject *awaitable_close(PyObject *op, PyObject *unused) {
    (void)unused;
    ((awaitable *)op)->state = DONE;
    Py_RETURN_NONE;
}

static int awaitable_traverse(PyObject *op, visitproc visit, void *arg) {
    awaitable *self = (awaitable *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->of);
    Py_VISIT(self->exception);
    return 0;
}

static int awaitable_clear(PyObject *op) {
    awaitable *self = (awaitable *)op;
    self->state = DONE;
    Py_CLEAR(self->of);
    Py_CLEAR(self->exception);
    return 0;
}

static void awaitable_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    awaitable_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef awaitable_methods[] = {
    {"send", awaitable_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))awaitable_throw, METH_FASTCALL, NULL},
    {"close", awaitable_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(awaitable_doc, "What asynchronous outputs and inputs hand out to be awaited.");

static PyType_Slot awaitable_slots[] = {
    {Py_tp_doc, (void *)awaitable_doc},   {Py_tp_dealloc, awaitable_dealloc},
    {Py_tp_traverse, awaitable_traverse}, {Py_tp_clear, awaitable_clear},
    {Py_tp_iter, PyObject_SelfIter},      {Py_tp_iternext, awaitable_next},
    {Py_am_await, PyObject_SelfIter},     {Py_am_send, awaitable_am_send},
    {Py_tp_methods, awaitable_methods},   {0, NULL},
};

PyType_Spec awaitable_spec = {
    .name = "pyper._pyper.Awaitable",
    .basicsize = sizeof(awaitable),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = awaitable_slots,
};

/* --------------------------------------------------------------------------------- the outputs */

static PyObject *hand_out(PyObject *op, enum kind kind, PyObject *exception) {
    return awaitable_new(((outputs *)op)->plan->state, kind, op, exception);
}

static PyObject *async_outputs_anext(PyObject *op) {
    return hand_out(op, NEXT, NULL);
}

static PyObject *async_outputs_asend(PyObject *op, PyObject *ignored) {
    (void)ignored;
    return hand_out(op, NEXT, NULL);
}

static PyObject *async_outputs_athrow(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    PyObject *exception = outputs_exception_of(args, count);
    if (!exception) return NULL;
    PyObject *result = hand_out(op, THROW, exception);
    Py_DECREF(exception);
    return result;
}

static PyObject *async_outputs_aclose(PyObject *op, PyObject *unused) {
    (void)unused;
    return hand_out(op, CLOSE, NULL);
}

static PyObject *async_outputs_aenter(PyObject *op, PyObject *unused) {
    (void)unused;
    return hand_out(op, ENTER, NULL);
}

static PyObject *async_outputs_aexit(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_Format(PyExc_TypeError, "__aexit__() takes 3 arguments, not %zd", count);
        return NULL;
    }
    return hand_out(op, EXIT, PyExceptionInstance_Check(args[1]) ? args[1] : NULL);
}

PyDoc_STRVAR(async_outputs_doc,
             "The outputs of one call of a pipeline with asynchronous tasks: an asynchronous "
             "generator and\ncontext manager.\n\n"
             "The run starts when the first output is asked for, and belongs to the event loop "
             "that runs then.");
PyDoc_STRVAR(asend_doc, "asend($self, value, /)\n--\n\nThe next output; the value is ignored.");
PyDoc_STRVAR(athrow_doc,
             "athrow($self, kind, value=None, traceback=None, /)\n--\n\n"
             "Cancel the run, wait until nothing of it is left, and raise the exception.");
PyDoc_STRVAR(aclose_doc, "aclose($self, /)\n--\n\n"
                         "Cancel the run and wait until nothing of it is left.\n\n"
                         "Raises what the run has failed with, if nobody was told yet.");
PyDoc_STRVAR(async_stats_doc,
             "stats($self, /)\n--\n\n"
             "The counters of every task at this moment, as a tuple of pyper.TaskStats.");

static PyMethodDef async_outputs_methods[] = {
    {"asend", async_outputs_asend, METH_O, asend_doc},
    {"athrow", (PyCFunction)(void (*)(void))async_outputs_athrow, METH_FASTCALL, athrow_doc},
    {"aclose", async_outputs_aclose, METH_NOARGS, aclose_doc},
    {"stats", outputs_stats, METH_NOARGS, async_stats_doc},
    {"__aenter__", async_outputs_aenter, METH_NOARGS, NULL},
    {"__aexit__", (PyCFunction)(void (*)(void))async_outputs_aexit, METH_FASTCALL, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef async_outputs_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(outputs, weak_references), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot async_outputs_slots[] = {
    {Py_tp_doc, (void *)async_outputs_doc}, {Py_tp_dealloc, outputs_dealloc},
    {Py_tp_traverse, outputs_traverse},     {Py_tp_finalize, outputs_finalize},
    {Py_tp_clear, outputs_clear},           {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, async_outputs_anext},     {Py_tp_methods, async_outputs_methods},
    {Py_tp_members, async_outputs_members}, {0, NULL},
};

PyType_Spec async_outputs_spec = {
    .name = "pyper._pyper.AsyncOutputs",
    .basicsize = sizeof(outputs),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = async_outputs_slots,
};
