/* crossing - Python objects on their way between processes: how they are encoded as bytes.
 *
 * The first byte says how.  Small exact types have an encoding of their own, which costs less than
 * a pickle; everything else is pickled with protocol 5, and its out-of-band buffers (those of NumPy
 * arrays, say) are laid beside the pickle, not into it: one copy in, one copy out.
 *
 *   'N' 'T' 'F'   None, True, False
 *   'i'           an int that fits into 64 bits
 *   'f'           a float
 *   's'           a str, as UTF-8
 *   'b' 'a'       bytes, bytearray
 *   'c'           a small form (small.c)
 *   'p'           a pickle
 *   'P'           a pickle with buffers: their number and sizes, the size of the pickle, the
 *                 pickle, the buffers, each aligned to 64 bytes
 *
 * What cannot be encoded or decoded fails the run with an exception that names the task and the
 * type.
 */
#include "pyper_python.h"

#define ALIGNMENT ((size_t)64)
#define HEADER ((size_t)8) /* the first byte, and up to where the rest is aligned */

/* Longer ones do not come often enough to be worth it: a pickle does as well. */
#define STR_MAX ((Py_ssize_t)1 << 20)

static size_t aligned(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* ------------------------------------------------------------------------------- failures */

/* Does the current exception come from a signal handler (Ctrl-C's, say)?  Those run in the caller's
 * main thread only, and what they raise as an Exception looks like the item's. */
static bool is_interrupt(const python_run *python) {
    return !python->child && PyThread_get_thread_ident() == python->plan->state->main_thread &&
           !PyErr_ExceptionMatches(PyExc_Exception);
}

/* The current exception is why `item` cannot cross: tell the run.  Want of memory is no fault of
 * the item's, and leaves none to say much.  Neither is an interrupt: it waits for the next() of
 * this thread. */
static int refuse(pyper_transfer *transfer, const char *format, const char *type_name) {
    if (PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        return PYPER_ENOMEM;
    }
    python_run *python = pyper_transfer_host_data(transfer);
    if (is_interrupt(python)) {
        python_run_keep_pending(python, PyErr_GetRaisedException());
        return pyper_transfer_fail(transfer, PYPER_EINTR, "interrupted while an item crossed", NULL,
                                   0);
    }
    PyObject *cause = PyErr_GetRaisedException();
    PyErr_Format(PyExc_RuntimeError, format, pyper_transfer_name(transfer), type_name);
    PyObject *exception = PyErr_GetRaisedException();
    if (cause) {
        PyObject *text = failure_text("because of", cause);
        if (text) failure_add_note(python->plan->state, exception, text);
        PyException_SetContext(exception, Py_NewRef(cause));
        PyException_SetCause(exception, cause);
    }
    PyObject *bytes = failure_dump(python->plan->state, exception);
    int rc = pyper_transfer_fail(transfer, PYPER_EFAILED, "RuntimeError",
                                 bytes ? PyBytes_AS_STRING(bytes) : NULL,
                                 bytes ? (size_t)PyBytes_GET_SIZE(bytes) : 0);
    Py_XDECREF(bytes);
    Py_DECREF(exception);
    return rc;
}

/* The types of the arguments of a call, which are (args, kwargs): a new string, or NULL. */
static PyObject *types_of_arguments(PyObject *args, PyObject *kwargs) {
    PyObject *all = PySequence_List(args), *value, *key, *types = PyUnicode_FromString("");
    Py_ssize_t at = 0;
    while (all && PyDict_Next(kwargs, &at, &key, &value))
        if (PyList_Append(all, value) < 0) Py_CLEAR(all);
    for (Py_ssize_t i = 0; all && types && i < PyList_GET_SIZE(all); i++)
        Py_SETREF(types, PyUnicode_FromFormat("%U%s%s", types, i > 0 ? ", " : "",
                                              Py_TYPE(PyList_GET_ITEM(all, i))->tp_name));
    Py_XDECREF(all);
    return types;
}

/* As refuse(), of the argument of a run: what the caller knows of it is what he has called with. */
static int refuse_arguments(pyper_transfer *transfer, PyObject *item) {
    PyObject *raised = PyErr_GetRaisedException();
    PyObject *types = types_of_arguments(PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
    const char *text = types ? PyUnicode_AsUTF8(types) : NULL;
    PyErr_Clear();
    PyErr_SetRaisedException(raised);
    int rc = refuse(transfer,
                    "task '%s': the arguments of the call (%s) cannot be pickled, so they cannot "
                    "go to a task with multiprocess=True",
                    text ? text : "");
    Py_XDECREF(types);
    return rc;
}

/* -------------------------------------------------------------------------------- encoding */

/* Room for an item encoded as `kind` and `size` further bytes. */
static inline char *begin(pyper_transfer *to, char kind, size_t size) {
    char *place = pyper_transfer_reserve(to, HEADER + size);
    if (place) place[0] = kind;
    return place ? place + HEADER : NULL;
}

static inline int put(pyper_transfer *to, char kind, const void *data, size_t size) {
    char *place = begin(to, kind, size);
    if (!place) return PYPER_ENOMEM;
    memcpy(place, data, size);
    return 0;
}

/* The PickleBuffers of one item: their memory while it is copied. */
typedef struct buffers {
    Py_ssize_t count;
    Py_buffer *views;
} buffers;

static void buffers_release(buffers *self) {
    while (self->count > 0) PyBuffer_Release(&self->views[--self->count]);
    PyMem_Free(self->views);
}

/* Get hold of the memory of `list`, a list of PickleBuffers: 0, or -1 with an exception. */
static int buffers_get(buffers *self, PyObject *list) {
    Py_ssize_t count = PyList_GET_SIZE(list);
    self->count = 0;
    self->views = PyMem_Calloc((size_t)count + 1, sizeof *self->views);
    if (!self->views) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        /* PickleBuffer.raw() is contiguous bytes, or raises. */
        PyObject *raw = PyObject_CallMethod(PyList_GET_ITEM(list, i), "raw", NULL);
        int rc = raw ? PyObject_GetBuffer(raw, &self->views[i], PyBUF_SIMPLE) : -1;
        Py_XDECREF(raw);
        if (rc < 0) return -1;
        self->count++;
    }
    return 0;
}

/* Lay a pickle and its buffers out. */
static int put_with_buffers(pyper_transfer *to, PyObject *pickled, const buffers *buffers) {
    size_t count = (size_t)buffers->count;
    size_t pickle_size = (size_t)PyBytes_GET_SIZE(pickled);
    size_t size = (2 + 2 * count) * sizeof(uint64_t);
    size_t pickle_at = size;
    size = aligned(HEADER + size + pickle_size) - HEADER;
    for (size_t i = 0; i < count; i++) size += aligned((size_t)buffers->views[i].len);
    char *place = begin(to, 'P', size);
    if (!place) return PYPER_ENOMEM;
    uint64_t *table = (uint64_t *)(void *)place;
    table[0] = count;
    table[1] = pickle_size;
    memcpy(place + pickle_at, PyBytes_AS_STRING(pickled), pickle_size);
    size_t at = aligned(HEADER + pickle_at + pickle_size) - HEADER;
    for (size_t i = 0; i < count; i++) {
        const Py_buffer *view = &buffers->views[i];
        table[2 + 2 * i] = (uint64_t)view->len;
        table[3 + 2 * i] = view->readonly ? 1 : 0;
        memcpy(place + at, view->buf, (size_t)view->len);
        at += aligned((size_t)view->len);
    }
    return 0;
}

/* Anything: 0, a code, or -1 with an exception (PYPER_ENOMEM is -1 too, without one). */
static int encode_pickled(module_state *state, PyObject *item, pyper_transfer *to) {
    PyObject *list = PyList_New(0);
    PyObject *append = list ? PyObject_GetAttr(list, state->name_append) : NULL;
    PyObject *pickled = NULL;
    if (append) {
        /* dumps(item, protocol=5, buffer_callback=append) */
        PyObject *const args[] = {item, state->pickle_protocol, append};
        pickled = PyObject_Vectorcall(state->dumps, args, 1, state->dumps_names);
    }
    Py_XDECREF(append);
    int rc = -1;
    if (pickled && PyList_GET_SIZE(list) == 0) {
        rc = put(to, 'p', PyBytes_AS_STRING(pickled), (size_t)PyBytes_GET_SIZE(pickled));
    } else if (pickled) {
        buffers buffers;
        rc = buffers_get(&buffers, list);
        if (rc == 0) rc = put_with_buffers(to, pickled, &buffers);
        buffers_release(&buffers);
    }
    Py_XDECREF(pickled);
    Py_XDECREF(list);
    return rc;
}

/* The names of a run, made when they are needed first; NULL: there is no memory. */
static struct names *names_of(python_run *python) {
    struct names *names = atomic_load(&python->names), *none = NULL;
    if (names || !(names = names_new())) return names;
    if (atomic_compare_exchange_strong(&python->names, &none, names)) return names;
    names_free(names);
    return none;
}

/* So many items of a type are pickled without further ado after one that had no small form. */
#define LARGE_TYPE_ITEMS 1000

/* 1: it has been encoded in its small form; 0: it has none; a code; or -1 with an exception. */
static int encode_small(python_run *python, PyObject *item, pyper_transfer *to) {
    PyTypeObject *type = Py_TYPE(item);
    if (atomic_load_explicit(&python->large_type, memory_order_relaxed) == type) {
        int left = atomic_load_explicit(&python->large_left, memory_order_relaxed);
        atomic_store_explicit(&python->large_left, left - 1, memory_order_relaxed);
        if (left > 0) return 0;
    }
    struct names *names = names_of(python);
    if (!names) return PYPER_ENOMEM;
    char room[SMALL_MAX];
    Py_ssize_t size = small_write(python->plan->state, names, item, room);
    if (size < 0) return -1;
    if (size == 0) {
        atomic_store_explicit(&python->large_left, LARGE_TYPE_ITEMS, memory_order_relaxed);
        atomic_store_explicit(&python->large_type, type, memory_order_relaxed);
        return 0;
    }
    int rc = put(to, 'c', room, (size_t)size);
    return rc < 0 ? rc : 1;
}

/* Nobody makes it longer or shorter meanwhile. */
static int put_bytearray(pyper_transfer *to, PyObject *item) {
    int rc;
    Py_BEGIN_CRITICAL_SECTION(item);
    rc = put(to, 'a', PyByteArray_AS_STRING(item), (size_t)PyByteArray_GET_SIZE(item));
    Py_END_CRITICAL_SECTION();
    return rc;
}

static int encode(void *memory, pyper_transfer *to) {
    PyObject *item = memory;
    if (item == Py_None) return put(to, 'N', NULL, 0);
    PyTypeObject *type = Py_TYPE(item);
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
        if (!overflow) return put(to, 'i', &number, sizeof number);
    } else if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(item);
        return put(to, 'f', &number, sizeof number);
    } else if (type == &PyBytes_Type) {
        return put(to, 'b', PyBytes_AS_STRING(item), (size_t)PyBytes_GET_SIZE(item));
    } else if (type == &PyUnicode_Type && PyUnicode_GET_LENGTH(item) <= STR_MAX) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(item, &size);
        if (text) return put(to, 's', text, (size_t)size);
        PyErr_Clear(); /* lone surrogates: pickle knows what to do */
    } else if (item == Py_True || item == Py_False) {
        return put(to, item == Py_True ? 'T' : 'F', NULL, 0);
    } else if (type == &PyByteArray_Type) {
        return put_bytearray(to, item);
    }
    python_run *python = pyper_transfer_host_data(to);
    int rc = encode_small(python, item, to);
    if (rc > 0) return 0;
    if (rc == 0) rc = encode_pickled(python->plan->state, item, to);
    if (rc >= 0 || !PyErr_Occurred()) return rc;
    if (!python->child && !python->begun) return refuse_arguments(to, item);
    return refuse(to,
                  "task '%s': an item of type %s cannot be pickled, so it cannot go to "
                  "or come from a task with multiprocess=True",
                  type->tp_name);
}

/* -------------------------------------------------------------------------------- decoding */

/* Memory that an item has brought along and that nobody else writes to: what the buffers of its
 * arrays refer to.  It goes when the last of them goes. */
typedef struct memory {
    PyObject_HEAD pyper_kept *kept;
    char *data;
    size_t size;
} memory;

static int memory_getbuffer(PyObject *op, Py_buffer *view, int flags) {
    memory *self = (memory *)op;
    return PyBuffer_FillInfo(view, op, self->data, (Py_ssize_t)self->size, 0, flags);
}

static void memory_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    pyper_kept_release(((memory *)op)->kept);
    type->tp_free(op);
    Py_DECREF(type);
}

PyDoc_STRVAR(memory_doc, "Memory that came from another process, private to this one.");

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, (void *)memory_doc},
    {Py_tp_dealloc, memory_dealloc},
    {Py_bf_getbuffer, memory_getbuffer},
    {0, NULL},
};

PyType_Spec memory_spec = {
    .name = "pyper._pyper.Memory",
    .basicsize = sizeof(memory),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = memory_slots,
};

/* The buffers behind a pickle as parts of `kept`, which is taken: a new list, or NULL. */
static PyObject *keep_buffers(module_state *state, pyper_kept *kept, char *data, size_t size,
                              const uint64_t *table, size_t at) {
    memory *whole = (memory *)state->memory_type->tp_alloc(state->memory_type, 0);
    if (!whole) {
        pyper_kept_release(kept);
        return NULL;
    }
    whole->kept = kept;
    whole->data = data;
    whole->size = size;
    PyObject *view = PyMemoryView_FromObject((PyObject *)whole);
    PyObject *list = view ? PyList_New((Py_ssize_t)table[0]) : NULL;
    for (size_t i = 0; list && i < table[0]; i++) {
        PyObject *part =
            PySequence_GetSlice(view, (Py_ssize_t)at, (Py_ssize_t)(at + table[2 + 2 * i]));
        if (part && table[3 + 2 * i]) { /* it was read-only, and is to be again */
            PyObject *readonly = PyObject_CallMethod(part, "toreadonly", NULL);
            Py_SETREF(part, readonly);
        }
        if (!part)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, part);
        at += aligned(table[2 + 2 * i]);
    }
    Py_XDECREF(view);
    Py_DECREF((PyObject *)whole);
    return list;
}

/* The buffers behind a pickle, as objects of their own: a new list, or NULL. */
static PyObject *take_buffers(const char *data, const uint64_t *table, size_t at) {
    PyObject *list = PyList_New((Py_ssize_t)table[0]);
    for (size_t i = 0; list && i < table[0]; i++) {
        Py_ssize_t size = (Py_ssize_t)table[2 + 2 * i];
        PyObject *buffer = table[3 + 2 * i] ? PyBytes_FromStringAndSize(data + at, size)
                                            : PyByteArray_FromStringAndSize(data + at, size);
        if (!buffer)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, buffer);
        at += aligned((size_t)size);
    }
    return list;
}

static PyObject *load(module_state *state, const char *data, size_t size, PyObject *buffers) {
    PyObject *view = PyMemoryView_FromMemory((char *)data, (Py_ssize_t)size, PyBUF_READ);
    if (!view) return NULL;
    PyObject *const args[] = {view, buffers};
    PyObject *item =
        PyObject_Vectorcall(state->loads, args, 1, buffers ? state->loads_names : NULL);
    Py_DECREF(view);
    return item;
}

static PyObject *malformed(void) {
    PyErr_SetString(PyExc_ValueError, "malformed data");
    return NULL;
}

/* Do `count` buffers of these sizes lie between `at` and `size`?  (Offsets are behind the
 * header.) */
static bool buffers_fit(const uint64_t *table, size_t count, size_t at, size_t size) {
    for (size_t i = 0; i < count; i++) {
        uint64_t length = table[2 + 2 * i];
        if (at > size || length > size - at) return false;
        at += aligned((size_t)length);
    }
    return true;
}

static PyObject *load_with_buffers(module_state *state, pyper_transfer *from, const char *data,
                                   size_t size) {
    const uint64_t *table = (const uint64_t *)(const void *)data;
    size_t words = size / sizeof *table;
    if (words < 2 || table[0] > (words - 2) / 2) return malformed();
    size_t pickle_at = (2 + 2 * table[0]) * sizeof *table;
    if (table[1] > size - pickle_at) return malformed();
    size_t buffers_at = aligned(HEADER + pickle_at + table[1]) - HEADER;
    if (!buffers_fit(table, table[0], buffers_at, size)) return malformed();
    void *mine;
    pyper_kept *kept = pyper_transfer_keep(from, &mine);
    PyObject *buffers =
        kept ? keep_buffers(state, kept, (char *)mine + HEADER, size, table, buffers_at)
             : take_buffers(data, table, buffers_at);
    if (!buffers) return NULL;
    PyObject *item = load(state, data + pickle_at, table[1], buffers);
    Py_DECREF(buffers);
    return item;
}

static int decode(pyper_transfer *from, const void *memory, size_t all, void **ret_item) {
    const char *data = (const char *)memory + HEADER;
    Py_ssize_t size = all < HEADER ? -1 : (Py_ssize_t)(all - HEADER);
    python_run *python = pyper_transfer_host_data(from);
    PyObject *item = NULL;
    long long integer;
    double number;
    switch (size < 0 ? 0 : *(const char *)memory) {
    case 'N':
        item = Py_NewRef(Py_None);
        break;
    case 'T':
        item = Py_NewRef(Py_True);
        break;
    case 'F':
        item = Py_NewRef(Py_False);
        break;
    case 'i':
        if (size != sizeof integer) break;
        memcpy(&integer, data, sizeof integer);
        item = PyLong_FromLongLong(integer);
        break;
    case 'f':
        if (size != sizeof number) break;
        memcpy(&number, data, sizeof number);
        item = PyFloat_FromDouble(number);
        break;
    case 's':
        item = PyUnicode_DecodeUTF8(data, size, NULL);
        break;
    case 'b':
        item = PyBytes_FromStringAndSize(data, size);
        break;
    case 'a':
        item = PyByteArray_FromStringAndSize(data, size);
        break;
    case 'c': {
        struct names *names = names_of(python);
        if (!names) return PYPER_ENOMEM;
        item = small_read(python->plan->state, names, data, (size_t)size);
        break;
    }
    case 'p':
        item = load(python->plan->state, data, (size_t)size, NULL);
        break;
    case 'P':
        item = load_with_buffers(python->plan->state, from, data, (size_t)size);
        break;
    default:
        break;
    }
    if (item) {
        *ret_item = item;
        return 0;
    }
    if (!PyErr_Occurred()) malformed();
    return refuse(from, "task '%s': an item that came from another process cannot be unpickled%s",
                  "");
}

static void destroy(void *item) {
    Py_DECREF((PyObject *)item);
}

const pyper_item_type object_items = {
    .size = sizeof(pyper_item_type), .destroy = destroy, .encode = encode, .decode = decode};
