/* stream - the type InputStream: the inputs of one call of a task with join, as an iterator.
 *
 * Reading waits without the GIL.  The stream belongs to its call: once this has returned, reading
 * raises RuntimeError (Cancelled if the run was cancelled; StopIteration if the inputs had come to
 * their end), whoever still holds the stream.
 *
 * Synchronization
 *   state   IDLE -> BUSY by a reader, and back.  At the end of the call the worker turns IDLE into
 *           ENDED; if another thread is reading it turns BUSY into ENDING and waits for that
 *           thread, which makes it ENDED and releases `left`.
 *   worker  used by the reader that made the stream BUSY only: the worker cannot leave meanwhile.
 *   exhausted, cancelled  written before a release store of `state`, read after an acquire load.
 */
#include "pyper_python.h"

enum { IDLE, BUSY, ENDING, ENDED };

typedef struct stream {
    PyObject ob_base;
    module_state *module;
    PyObject *name; /* of the task */
    pyper_worker *worker;
    PyObject *cancelled_class;
    atomic_int state;
    bool exhausted;
    bool cancelled;
    PyThread_type_lock left; /* taken by stream_new(); released by the reader that leaves last */
} stream;

static bool turn(stream *self, int from, int to) {
    return atomic_compare_exchange_strong(&self->state, &from, to);
}

PyObject *stream_new(step *step, pyper_worker *worker) {
    PyThread_type_lock left = PyThread_allocate_lock();
    if (!left) return PyErr_NoMemory();
    stream *self = (stream *)make_object(step->state->stream_type);
    if (!self) {
        PyThread_free_lock(left);
        return NULL;
    }
    PyThread_acquire_lock(left, WAIT_LOCK);
    self->left = left;
    self->module = step->state;
    self->name = Py_NewRef(step->name);
    self->worker = worker;
    self->cancelled_class = Py_XNewRef(step->state->cancelled);
    atomic_init(&self->state, IDLE);
    return (PyObject *)self;
}

void stream_end(PyObject *op) {
    stream *self = (stream *)op;
    for (;;) {
        if (turn(self, IDLE, BUSY)) {
            self->cancelled = pyper_cancelled(self->worker);
            self->worker = NULL;
            atomic_store(&self->state, ENDED);
            return;
        }
        if (turn(self, BUSY, ENDING)) break;
    }
    Py_BEGIN_ALLOW_THREADS PyThread_acquire_lock(self->left, WAIT_LOCK);
    Py_END_ALLOW_THREADS
}

/* The reader leaves. */
static void leave(stream *self) {
    if (turn(self, BUSY, IDLE)) return;
    self->cancelled = pyper_cancelled(self->worker);
    self->worker = NULL;
    atomic_store(&self->state, ENDED);
    PyThread_release_lock(self->left);
}

static PyObject *raise_cancelled(stream *self) {
    if (self->cancelled_class)
        PyErr_Format(self->cancelled_class,
                     "the run was cancelled: task '%U' has not got all its inputs", self->name);
    return NULL;
}

/* The stream cannot be read now, or not any more. */
static PyObject *refuse(stream *self) {
    if (atomic_load(&self->state) != ENDED) {
        PyErr_Format(PyExc_ValueError,
                     "another thread is reading the inputs of this call of task "
                     "'%U'; let one thread read",
                     self->name);
        return NULL;
    }
    if (self->exhausted) return NULL;
    if (self->cancelled) return raise_cancelled(self);
    PyErr_Format(PyExc_RuntimeError,
                 "these inputs belong to a call of task '%U' that has ended; read them before the "
                 "function returns (a generator function needs branch=True)",
                 self->name);
    return NULL;
}

static PyObject *stream_next(PyObject *op) {
    stream *self = (stream *)op;
    if (!breathe(self->module)) return NULL;
    if (!turn(self, IDLE, BUSY)) return refuse(self);
    void *item = NULL;
    int rc = pyper_pull(self->worker, &item);
    if (rc == 0) self->exhausted = true;
    leave(self);
    if (rc > 0) return item;
    /* What could not be decoded has failed the run; who takes its outputs is told why. */
    if (rc == PYPER_ECANCELED || rc == PYPER_EFAILED) return raise_cancelled(self);
    if (rc == PYPER_ENOMEM) return PyErr_NoMemory();
    if (rc < 0) PyErr_Format(PyExc_RuntimeError, "task '%U': %s", self->name, pyper_strerror(rc));
    return NULL;
}

static int stream_traverse(PyObject *op, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((stream *)op)->cancelled_class);
    return 0;
}

/* Without tp_clear: a stream refers to nothing that could refer to it but its type. */
static void stream_dealloc(PyObject *op) {
    stream *self = (stream *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    PyThread_release_lock(self->left); /* the call has ended, and left it taken */
    PyThread_free_lock(self->left);
    Py_XDECREF(self->name);
    Py_XDECREF(self->cancelled_class);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(stream_doc,
             "The inputs of one call of a task with join=True, as an iterator.\n\n"
             "It ends when the inputs are complete, and raises pyper.Cancelled when the "
             "run was cancelled\nor has failed, so that part of the inputs never looks "
             "like all of them.  One thread at a\ntime may read; the others get a "
             "ValueError.");

static PyMethodDef stream_methods[] = {
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, stream_next},
    {Py_tp_methods, stream_methods},
    {0, NULL},
};

PyType_Spec stream_spec = {
    .name = "pyper._pyper.InputStream",
    .basicsize = sizeof(stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = stream_slots,
};
