/* slot - the type AsyncWorker: the coroutine that carries one worker of an asynchronous task, as a
 * long-lived asyncio task; and AsyncInputStream, the inputs of a task with join.
 *
 * The worker's loop is one step (see awaiting.c), a machine whose states are the places where a
 * coroutine written in Python would stand:
 *
 *   NEXT      ask the engine for an input; wait if there is none
 *   AWAIT     go on with what the function returned, a coroutine, until it has a result
 *   ITERATE   take the next item of the (synchronous) iterable that it returned or resulted in
 *   ANEXT     begin to ask the asynchronous iterable for its next item
 *   AWAIT_ITEM   go on with that
 *   EMIT      hand an output to the engine; wait if there is no room
 *   CLOSE     the call is over before its iterator: end that as well, and then the worker
 *   AWAIT_CLOSE  go on with a generator's aclose()
 *   LEFT      the worker has left
 *
 * Fast items go round without the event loop; after 1 ms without a real wait it yields None, which
 * gives the loop a turn.
 *
 * How it stops.  A worker that waits for the engine is resumed, and then told that the run is over.
 * One whose function awaits something else gets its task cancelled; CancelledError is raised inside
 * the function, whose clean-up is awaited.  Somebody else who cancels the task cancels the run.
 *
 * That somebody is a loop that ends, as a rule: it cancels all tasks that it has, and waits for
 * them.  While functions clean up, the run may have begun new ones, which the loop then does not
 * know of.  So the task of a worker that was cancelled like this ends only when nothing of the run
 * is left.
 *
 * With join, tasks that the function has started may read its inputs, several at once, and also
 * while it emits.  But to the engine they are one worker, which waits for one thing, or for nothing
 * once anybody got what he asked for.  So while the worker waits for room, its readers do not ask;
 * and whenever the engine may know of no wait any more, all of them wake and ask again.
 */
#include "pyper_python.h"

enum { NEXT, AWAIT, ITERATE, ANEXT, AWAIT_ITEM, EMIT, CLOSE, AWAIT_CLOSE, LEFT };

typedef struct async_stream {
    PyObject_HEAD module_state *state;
    PyObject *name;
    slot *slot; /* a reference, cleared when the call has ended */
    bool exhausted, cancelled;
} async_stream;

static async_stream *stream_make(slot *slot);
static void stream_over(slot *slot);

/* --------------------------------------------------------------------------- beginning, leaving */

slot *slot_new(driver *driver, pyper_worker *worker) {
    PyTypeObject *type = driver->state->slot_type;
    slot *self = (slot *)make_object(type);
    if (!self) return NULL;
    self->step = pyper_worker_bind(worker);
    self->driver = (struct driver *)Py_NewRef((PyObject *)driver);
    self->worker = worker;
    self->state = NEXT;
    /* The driver's list has the reference that is returned. */
    self->older = driver->slots;
    if (self->older) self->older->newer = self;
    driver->slots = self;
    atomic_fetch_add(&driver->python->alive, 1);
    return self;
}

/* Out of the driver's list, and with it its reference. */
static void unlink_slot(slot *self) {
    driver *driver = self->driver;
    if (self->newer)
        self->newer->older = self->older;
    else
        driver->slots = self->older;
    if (self->older) self->older->newer = self->newer;
    self->newer = self->older = NULL;
    Py_DECREF((PyObject *)self);
}

/* The worker is done.  The caller holds a reference. */
static void leave(slot *self) {
    if (self->state == LEFT) return;
    pyper_worker *worker = self->worker;
    python_run *python = worker ? pyper_worker_host_data(worker) : NULL;
    stream_over(self);
    self->state = LEFT;
    self->worker = NULL;
    if (python) atomic_fetch_sub(&python->alive, 1);
    if (worker) {
        *pyper_worker_state(worker) = NULL;
        pyper_slot_left(worker);
    }
    Py_CLEAR(self->awaited);
    Py_CLEAR(self->iterator);
    Py_CLEAR(self->output);
    Py_CLEAR(self->waiter);
    Py_CLEAR(self->task);
    unlink_slot(self);
}

/* close() of what is held, where that can still be done without waiting. */
static void close_now(slot *self, PyObject *object) {
    if (!object) return;
    PyObject *method = PyObject_GetAttr(object, self->step->state->name_close);
    if (!method) {
        PyErr_Clear();
        return;
    }
    PyObject *result = PyObject_CallNoArgs(method);
    if (!result) PyErr_WriteUnraisable(object);
    Py_XDECREF(result);
    Py_DECREF(method);
}

void slot_abandon(slot *self) {
    if (self->state == LEFT) return;
    Py_INCREF((PyObject *)self);
    PyObject *awaited = self->awaited;
    self->awaited = NULL;
    close_now(self, awaited);
    Py_XDECREF(awaited);
    Py_CLEAR(self->readers.futures); /* they belong to the loop */
    leave(self);
    Py_DECREF((PyObject *)self);
}

void slot_tell(slot *self) {
    if (!self->task || self->told) return;
    self->told = self->cancelled = true;
    PyObject *result = PyObject_CallMethodNoArgs(self->task, self->step->state->name_cancel);
    if (!result) PyErr_WriteUnraisable(self->task);
    Py_XDECREF(result);
}

/* A task with join waits for the engine because something reads its inputs, or has read them: but
 * its function may await something else.  If so, tell it that the run is over. */
static void tell_function(slot *self) {
    bool awaits = self->state == AWAIT || self->state == AWAIT_ITEM;
    if (awaits && pyper_cancelled(self->worker)) slot_tell(self);
}

void slot_wake(slot *self) {
    tell_function(self);
    if (self->waiter) future_wake(self->step->state, self->waiter);
    waiters_wake(&self->readers, self->step->state);
}

/* A future with which the slot waits for the engine: a new reference, or NULL. */
static PyObject *wait_for_engine(slot *self) {
    PyObject *future = future_new(self->step->state, self->driver->loop);
    Py_XSETREF(self->waiter, Py_XNewRef(future));
    turn_restart(&self->turn);
    return future;
}

/* It waits for the engine no longer: its readers may ask again. */
static void waits_no_longer(slot *self) {
    Py_CLEAR(self->waiter);
    waiters_wake(&self->readers, self->step->state);
}

/* ------------------------------------------------------------------------------- the machine */

/* How often the task was cancelled.  Who absorbs that, as asyncio.timeout() and TaskGroup do, takes
 * it back with Task.uncancel().  -1: this kind of task does not count. */
static long cancellations(slot *self) {
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *name = self->step->state->name_cancelling;
    PyObject *count = self->task ? PyObject_CallMethodNoArgs(self->task, name) : NULL;
    long result = count ? PyLong_AsLong(count) : -1;
    Py_XDECREF(count);
    PyErr_Clear();
    if (raised) PyErr_SetRaisedException(raised);
    return result;
}

/* Has somebody else cancelled the task, and the function has not absorbed that? */
static bool cancelled_outside(slot *self) {
    if (!self->thrown_into) return false;
    long count = cancellations(self);
    return count < 0 || count > self->absorbed + self->cancelled;
}

/* The current exception ends the worker: report it, unless it is only how the worker is stopped. */
static void fail(slot *self) {
    module_state *state = self->step->state;
    Py_CLEAR(self->awaited);
    self->state = CLOSE;
    if (PyErr_ExceptionMatches(state->async_cancelled)) {
        if (pyper_cancelled(self->worker)) {
            PyErr_Clear();
            return;
        }
        if (cancelled_outside(self)) {
            PyErr_Clear();
            pyper_cancel(pyper_worker_run(self->worker));
            return;
        }
    }
    failure_report(self->step, self->worker);
}

/* The first anext() of an asynchronous generator, without the loop's being told that it has begun:
 * this worker closes it, and a loop that ends must not do so as well, while it runs.  NULL: an
 * exception. */
static PyObject *begin_generator(module_state *state, PyObject *generator) {
    PyObject *hook = asyncgen_hook(state);
    if (!hook || asyncgen_set_hook(state, Py_None) < 0) {
        Py_XDECREF(hook);
        return NULL;
    }
    PyObject *awaitable = Py_TYPE(generator)->tp_as_async->am_anext(generator);
    PyObject *raised = PyErr_GetRaisedException();
    if (asyncgen_set_hook(state, hook) < 0) PyErr_WriteUnraisable(generator);
    Py_DECREF(hook);
    if (raised) PyErr_SetRaisedException(raised);
    return awaitable;
}

static bool is_async_iterator(PyObject *object) {
    const PyAsyncMethods *methods = Py_TYPE(object)->tp_as_async;
    return methods && methods->am_anext;
}

/* What the function returned was an iterable for a branch: ANEXT or ITERATE; else fail(). */
static void begin_iterating(slot *self, PyObject *iterable) {
    self->iterating = false;
    PyTypeObject *type = Py_TYPE(iterable);
    if (type->tp_as_async && type->tp_as_async->am_aiter) {
        self->iterator = type->tp_as_async->am_aiter(iterable);
        self->state = ANEXT;
        if (self->iterator && !is_async_iterator(self->iterator)) {
            PyErr_Format(PyExc_TypeError, "task '%U': __aiter__() of %s returned no iterator",
                         self->step->name, type->tp_name);
            Py_CLEAR(self->iterator);
        }
    } else if (type->tp_iter || PySequence_Check(iterable)) {
        self->iterator = PyObject_GetIter(iterable);
        self->state = ITERATE;
    } else {
        PyErr_Format(PyExc_TypeError,
                     "task '%U' has branch=True, so it must return an iterable or be an "
                     "asynchronous generator, not return %s; leave branch=True out, or return a "
                     "list or yield the outputs",
                     self->step->name, type->tp_name);
    }
    if (!self->iterator) fail(self);
}

/* The function has its result.  Takes it. */
static void have_result(slot *self, PyObject *result) {
    if (self->step->branch) {
        begin_iterating(self, result);
        Py_DECREF(result);
    } else {
        self->output = result;
        self->state = EMIT;
    }
}

/* The function has returned `result`: a coroutine, most likely.  Takes it; NULL: an exception. */
static void have_returned(slot *self, PyObject *result) {
    if (!result) {
        fail(self);
    } else if (awaiting_possible(result)) {
        self->awaited = awaiting_iterator(result);
        Py_DECREF(result);
        self->state = AWAIT;
        if (!self->awaited) fail(self);
    } else {
        have_result(self, result);
    }
}

/* The call is over: the next one; but a task with join is called once. */
static void call_over(slot *self) {
    Py_CLEAR(self->iterator);
    if (self->thrown_into) self->absorbed = cancellations(self);
    self->thrown_into = false;
    self->state = self->step->join ? CLOSE : NEXT;
}

/* NEXT: begin the next call.  PYGEN_NEXT: there is nothing yet, wait. */
static int next_input(slot *self, PyObject **ret_value) {
    step *step = self->step;
    if (step->join) {
        if (pyper_cancelled(self->worker)) {
            self->state = CLOSE;
            return PYGEN_RETURN;
        }
        self->stream = stream_make(self);
        have_returned(self, self->stream ? PyObject_CallOneArg(step->func, (PyObject *)self->stream)
                                         : NULL);
        return PYGEN_RETURN;
    }
    void *item;
    int rc = pyper_try_pull(self->worker, &item);
    if (rc == PYPER_EAGAIN) {
        *ret_value = wait_for_engine(self);
        return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
    }
    if (rc <= 0) {
        self->state = CLOSE;
        return PYGEN_RETURN;
    }
    PyObject *input = item, *result;
    if (step->place == 1)
        result = PyObject_Call(step->func, PyTuple_GET_ITEM(input, 0), PyTuple_GET_ITEM(input, 1));
    else
        result = PyObject_CallOneArg(step->func, input);
    Py_DECREF(input);
    have_returned(self, result);
    return PYGEN_RETURN;
}

/* EMIT. */
static int emit(slot *self, PyObject **ret_value) {
    int rc = pyper_try_emit(self->worker, self->output);
    if (rc == PYPER_EAGAIN) {
        *ret_value = wait_for_engine(self);
        return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
    }
    self->output = NULL;
    waits_no_longer(self);
    if (rc < 0)
        self->state = CLOSE;
    else if (!self->iterator)
        call_over(self);
    else
        self->state = is_async_iterator(self->iterator) ? ANEXT : ITERATE;
    return PYGEN_RETURN;
}

/* ITERATE. */
static void iterate(slot *self) {
    PyObject *item = Py_TYPE(self->iterator)->tp_iternext(self->iterator);
    if (item) {
        self->output = item;
        self->state = EMIT;
        return;
    }
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_StopIteration)) {
            Py_CLEAR(self->iterator);
            fail(self);
            return;
        }
        PyErr_Clear();
    }
    call_over(self);
}

/* ANEXT. */
static void begin_anext(slot *self) {
    bool begins = !self->iterating && PyAsyncGen_CheckExact(self->iterator);
    self->iterating = true;
    PyObject *awaitable = begins ? begin_generator(self->step->state, self->iterator)
                                 : Py_TYPE(self->iterator)->tp_as_async->am_anext(self->iterator);
    if (awaitable && !awaiting_possible(awaitable)) {
        PyErr_Format(PyExc_TypeError, "task '%U': __anext__() returned %s, which cannot be awaited",
                     self->step->name, Py_TYPE(awaitable)->tp_name);
        Py_CLEAR(awaitable);
    }
    self->awaited = awaitable ? awaiting_iterator(awaitable) : NULL;
    Py_XDECREF(awaitable);
    self->state = AWAIT_ITEM;
    if (!self->awaited) fail(self);
}

/* What is awaited has come to its end. */
static void awaited_result(slot *self, PyObject *value) {
    Py_CLEAR(self->awaited);
    if (self->state == AWAIT) {
        have_result(self, value);
    } else if (self->state == AWAIT_ITEM) {
        self->output = value;
        self->state = EMIT;
    } else {
        Py_DECREF(value);
        self->state = CLOSE;
    }
}

/* AWAIT, AWAIT_ITEM, AWAIT_CLOSE. */
static int await(slot *self, PyObject *thrown, PyObject **ret_value) {
    PyObject *value = NULL;
    switch (awaiting_send(self->step->state, self->awaited, thrown, &value)) {
    case PYGEN_NEXT:
        turn_restart(&self->turn);
        *ret_value = value;
        return PYGEN_NEXT;
    case PYGEN_RETURN:
        awaited_result(self, value);
        return PYGEN_RETURN;
    default:
        if (self->state == AWAIT_ITEM && PyErr_ExceptionMatches(PyExc_StopAsyncIteration)) {
            PyErr_Clear();
            Py_CLEAR(self->awaited);
            call_over(self);
            return PYGEN_RETURN;
        }
        /* A generator has ended with this.  But the outputs of another run, say, have not: what was
         * cancelled is only the wait for one of them, and the run is closed, and waited for. */
        if (self->state == AWAIT_ITEM && PyAsyncGen_CheckExact(self->iterator))
            Py_CLEAR(self->iterator);
        fail(self);
        return PYGEN_RETURN;
    }
}

/* CLOSE: end an iterator that was not read to its end; then leave. */
static void begin_close(slot *self) {
    PyObject *iterator = self->iterator;
    self->iterator = NULL;
    Py_CLEAR(self->output);
    if (!iterator) {
        self->lingers = pyper_cancelled(self->worker) && cancelled_outside(self);
        leave(self);
        return;
    }
    if (is_async_iterator(iterator)) {
        PyObject *method = PyObject_GetAttr(iterator, self->step->state->name_aclose);
        if (!method) {
            PyErr_Clear(); /* an iterator that is no generator has nothing to end */
        } else {
            PyObject *awaitable = PyObject_CallNoArgs(method);
            Py_DECREF(method);
            if (awaitable && awaiting_possible(awaitable))
                self->awaited = awaiting_iterator(awaitable);
            Py_XDECREF(awaitable);
            if (self->awaited) self->state = AWAIT_CLOSE;
            if (PyErr_Occurred()) fail(self);
        }
    } else if (iterator_close(self->step->state, iterator) < 0) {
        fail(self);
    }
    Py_DECREF(iterator);
}

/* An exception is raised where the worker stands, which is not in the user's code.  Takes it. */
static void interrupt(slot *self, PyObject *thrown) {
    waits_no_longer(self);
    PyErr_SetRaisedException(thrown);
    fail(self);
}

/* LEFT: the task ends, or waits for the others first. */
static PySendResult after_leaving(slot *self, PyObject *thrown, PyObject **ret_value) {
    if (thrown) {
        self->lingers = false;
        PyErr_SetRaisedException(thrown);
        return PYGEN_ERROR;
    }
    if (self->lingers && !driver_all_left(self->driver)) {
        *ret_value = driver_wait_for_end(self->driver);
        return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
    }
    self->lingers = false;
    *ret_value = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

bool slot_calls_us(slot *self) {
    module_state *state = self->step->state;
    PyObject *caller = PyObject_CallNoArgs(state->current_task);
    /* A task factory may have put a coroutine of its own around this one: then only the task says
     * whose it is.  But a task that runs at once may not be known here yet. */
    bool ours = caller && caller == self->task;
    PyObject *coroutine = NULL;
    if (caller && !ours) coroutine = PyObject_CallMethodNoArgs(caller, state->name_get_coro);
    PyErr_Clear();
    ours = ours || coroutine == (PyObject *)self;
    Py_XDECREF(coroutine);
    Py_XDECREF(caller);
    return ours;
}

static PySendResult slot_step(PyObject *op, PyObject *thrown, PyObject **ret_value) {
    slot *self = (slot *)op;
    *ret_value = NULL;
    if (self->state == LEFT) {
        if (thrown || self->lingers) return after_leaving(self, thrown, ret_value);
        PyErr_SetString(PyExc_RuntimeError, "this worker has left");
        return PYGEN_ERROR;
    }
    Py_INCREF(op);
    if (thrown && PyErr_GivenExceptionMatches(thrown, self->step->state->async_cancelled)) {
        /* Who cancels the task while the run goes on wants the run to end. */
        if (pyper_cancelled(self->worker))
            self->told = true;
        else
            self->thrown_into = true;
    }
    if (thrown && !self->awaited) {
        interrupt(self, thrown);
        thrown = NULL;
    }
    slot *interrupted = self->driver->running; /* whose function begins a task that runs at once */
    self->driver->running = self;
    int rc = PYGEN_RETURN;
    while (self->state != LEFT && rc == PYGEN_RETURN) {
        switch (self->state) {
        case NEXT:
        case ITERATE:
        case ANEXT:
            if (turn_is_over(&self->turn)) {
                *ret_value = Py_NewRef(Py_None);
                rc = PYGEN_NEXT;
            } else if (self->state == NEXT) {
                rc = next_input(self, ret_value);
            } else if (self->state == ITERATE) {
                iterate(self);
            } else {
                begin_anext(self);
            }
            break;
        case EMIT:
            rc = emit(self, ret_value);
            break;
        case CLOSE:
            begin_close(self);
            break;
        default:
            rc = await(self, thrown, ret_value);
            thrown = NULL;
        }
        if (rc == PYGEN_ERROR) { /* no future to wait with: out of memory, or the loop is closed */
            fail(self);
            rc = PYGEN_RETURN;
        }
    }
    self->driver->running = interrupted;
    if (rc == PYGEN_RETURN) rc = after_leaving(self, NULL, ret_value);
    Py_DECREF(op);
    return rc;
}

/* ------------------------------------------------------------------- the object: a coroutine */

static PySendResult slot_am_send(PyObject *op, PyObject *ignored, PyObject **ret_value) {
    (void)ignored;
    return slot_step(op, NULL, ret_value);
}

static PyObject *slot_next(PyObject *op) {
    return awaiting_next(op, slot_step);
}

static PyObject *slot_send(PyObject *op, PyObject *ignored) {
    (void)ignored;
    return awaiting_next(op, slot_step);
}

static PyObject *slot_throw(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    return awaiting_throw(op, slot_step, args, count);
}

static PyObject *slot_close(PyObject *op, PyObject *unused) {
    (void)unused;
    slot *self = (slot *)op;
    if (self->worker && !pyper_cancelled(self->worker))
        pyper_cancel(pyper_worker_run(self->worker));
    slot_abandon(self);
    Py_RETURN_NONE;
}

static PyObject *slot_name(PyObject *op, void *unused) {
    (void)unused;
    return Py_NewRef(((slot *)op)->driver ? ((slot *)op)->step->name : Py_None);
}

/* Without the GIL only the loop's own thread may ask where a worker stands. */
static bool may_ask(slot *self) {
#ifdef Py_GIL_DISABLED
    PyObject *loop = PyObject_CallNoArgs(self->step->state->get_running_loop);
    if (!loop) PyErr_Clear();
    Py_XDECREF(loop);
    return loop && loop == self->driver->loop;
#else
    (void)self;
    return true;
#endif
}

/* Where the worker stands, for who shows that (asyncio's Task.get_stack(), print_call_graph()): the
 * frame of its function, and what that awaits.  `names` of the attribute: of a coroutine, and of an
 * asynchronous generator.  No such attribute: no function of the program's is under way. */
static PyObject *slot_where(PyObject *op, void *names) {
    slot *self = (slot *)op;
    const char *const *name = names;
    PyObject *function = NULL;
    bool generates = false;
    if (may_ask(self) && self->awaited) {
        generates = self->iterator && PyAsyncGen_CheckExact(self->iterator);
        function = generates ? self->iterator : self->awaited;
    }
    if (!function) {
        PyErr_SetString(PyExc_AttributeError, name[0]);
        return NULL;
    }
    Py_INCREF(function);
    PyObject *value = PyObject_GetAttrString(function, name[generates]);
    Py_DECREF(function);
    return value;
}

static int slot_traverse(PyObject *op, visitproc visit, void *arg) {
    slot *self = (slot *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT((PyObject *)self->driver);
    Py_VISIT(self->task);
    Py_VISIT(self->awaited);
    Py_VISIT(self->iterator);
    Py_VISIT(self->output);
    Py_VISIT(self->waiter);
    Py_VISIT(self->readers.futures);
    Py_VISIT((PyObject *)self->stream);
    return 0;
}

static int slot_clear(PyObject *op) {
    slot *self = (slot *)op;
    slot_abandon(self);
    return 0;
}

static void slot_dealloc(PyObject *op) {
    slot *self = (slot *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    /* The driver's list holds all that have not left. */
    Py_XDECREF((PyObject *)self->driver);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(slot_doc, "The coroutine of one worker of an asynchronous task.");

static PyMethodDef slot_methods[] = {
    {"send", slot_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))slot_throw, METH_FASTCALL, NULL},
    {"close", slot_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const char *const frame_names[] = {"cr_frame", "ag_frame"};
static const char *const await_names[] = {"cr_await", "ag_await"};

static PyGetSetDef slot_getset[] = {
    {"cr_frame", slot_where, NULL, NULL, (void *)frame_names},
    {"cr_await", slot_where, NULL, NULL, (void *)await_names},
    {"__name__", slot_name, NULL, NULL, NULL},
    {"__qualname__", slot_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slot_slots[] = {
    {Py_tp_doc, (void *)slot_doc},
    {Py_tp_dealloc, slot_dealloc},
    {Py_tp_traverse, slot_traverse},
    {Py_tp_clear, slot_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, slot_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, slot_am_send},
    {Py_tp_methods, slot_methods},
    {Py_tp_getset, slot_getset},
    {0, NULL},
};

PyType_Spec slot_spec = {
    .name = "pyper._pyper.AsyncWorker",
    .basicsize = sizeof(slot),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slot_slots,
};

/* ------------------------------------------------------------------------- AsyncInputStream */

static async_stream *stream_make(slot *slot) {
    PyTypeObject *type = slot->step->state->async_stream_type;
    async_stream *self = (async_stream *)make_object(type);
    if (!self) return NULL;
    self->state = slot->step->state;
    self->name = Py_NewRef(slot->step->name);
    self->slot = (struct slot *)Py_NewRef((PyObject *)slot);
    return self;
}

/* The call has ended: its inputs are not to be had any more, and who waits for one is told so. */
static void stream_over(slot *slot) {
    async_stream *self = slot->stream;
    if (!self) return;
    slot->stream = NULL;
    self->slot = NULL;
    self->cancelled = slot->worker && pyper_cancelled(slot->worker);
    waiters_wake(&slot->readers, self->state);
    Py_DECREF((PyObject *)self);
    Py_DECREF((PyObject *)slot);
}

/* A reader is about to be told that the run is over.  If that is the function itself, it must not
 * be told again while it cleans up; otherwise it may never learn of it. */
static void tell_reader(slot *slot) {
    PyObject *reader = PyObject_CallNoArgs(slot->step->state->current_task);
    if (!reader) PyErr_Clear();
    if (reader && reader == slot->task)
        slot->told = true;
    else
        tell_function(slot);
    Py_XDECREF(reader);
}

/* There is nothing to be had, and will not be. */
static PySendResult no_input(async_stream *self) {
    if (self->exhausted)
        PyErr_SetNone(PyExc_StopAsyncIteration);
    else if (self->slot || self->cancelled)
        PyErr_Format(self->state->async_cancelled,
                     "the run was cancelled: task '%U' has not got all its inputs", self->name);
    else
        PyErr_Format(PyExc_RuntimeError,
                     "these inputs belong to a call of task '%U' that has ended; read them before "
                     "the function returns",
                     self->name);
    return PYGEN_ERROR;
}

/* A reader waits, until the slot has come to what it waits for. */
static PySendResult wait_to_read(slot *slot, PyObject **ret_value) {
    turn_restart(&slot->turn);
    *ret_value = waiters_add(&slot->readers, slot->step->state, slot->driver->loop);
    return *ret_value ? PYGEN_NEXT : PYGEN_ERROR;
}

/* The next input, as an awaitable's step: PYGEN_NEXT and a future, or None, to wait for. */
static PySendResult stream_step(async_stream *self, PyObject **ret_value) {
    slot *slot = self->slot;
    if (self->exhausted || !slot) return no_input(self);
    if (slot->waiter) return wait_to_read(slot, ret_value);
    if (turn_is_over(&slot->turn)) {
        *ret_value = Py_NewRef(Py_None);
        return PYGEN_NEXT;
    }
    void *item;
    int rc = pyper_try_pull(slot->worker, &item);
    if (rc == PYPER_EAGAIN) return wait_to_read(slot, ret_value);
    waits_no_longer(slot);
    if (rc > 0) {
        *ret_value = item;
        return PYGEN_RETURN;
    }
    self->exhausted = rc == 0;
    if (rc < 0 && pyper_cancelled(slot->worker)) tell_reader(slot);
    return no_input(self);
}

PySendResult async_stream_step(PyObject *op, PyObject **ret_value) {
    return stream_step((async_stream *)op, ret_value);
}

static PyObject *stream_anext(PyObject *op) {
    async_stream *self = (async_stream *)op;
    return awaitable_of_stream(self->state, op);
}

static int stream_traverse(PyObject *op, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(op));
    Py_VISIT((PyObject *)((async_stream *)op)->slot);
    return 0;
}

/* Without tp_clear: the slot's clears it. */
static void stream_dealloc(PyObject *op) {
    async_stream *self = (async_stream *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    Py_XDECREF((PyObject *)self->slot);
    Py_XDECREF(self->name);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(stream_doc,
             "The inputs of one call of an asynchronous task with join=True, as an asynchronous "
             "iterator.\n\nIt ends when the inputs are complete, and raises "
             "asyncio.CancelledError when the run was\ncancelled or has failed, so that part of "
             "the inputs never looks like all of them.  Several\ntasks of the event loop may read: "
             "each input goes to one of them.");

static PyMethodDef stream_methods[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_traverse, stream_traverse},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, stream_anext},
    {Py_tp_methods, stream_methods},
    {0, NULL},
};

PyType_Spec async_stream_spec = {
    .name = "pyper._pyper.AsyncInputStream",
    .basicsize = sizeof(async_stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};
