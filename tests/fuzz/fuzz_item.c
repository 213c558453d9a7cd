/* Whatever bytes another process sends as an item, decoding them gives an object or an exception.
 *
 * This is crossing.c and small.c in an interpreter, with a transfer made of nothing but the bytes.
 * The small form of an object may call what it names: that is what it is for, and here it is shown
 * one module only, `m`, which has nothing in it that could do harm.  A pickle is not unpickled:
 * what Python's own module does with it (it may call anything, and ask for any amount of memory) is
 * not what is asked here, but that it and its buffers lie within the item.
 *
 * The first byte of an input says whether the item can be kept (a mapping of its own, see
 * pyper_transfer_keep()); the item follows. */
#include <Python.h>

static PyObject *import_harmless(PyObject *name);
#define PyImport_Import import_harmless
#include "crossing.c"
#define malformed malformed_small
#include "small.c"

#include <stdlib.h>

static PyObject *harmless;
static module_state state;
static plan a_plan;
static python_run a_run;

static PyObject *import_harmless(PyObject *name) {
    if (PyUnicode_CompareWithASCIIString(name, "m") == 0) return Py_NewRef(harmless);
    PyErr_Format(PyExc_ModuleNotFoundError, "%U", name);
    return NULL;
}

/* --------------------------------------------------------------- what crossing.c is linked with */

struct pyper_transfer {
    const void *data;
    size_t size;
    bool can_be_kept;
};
struct pyper_kept {
    void *copy;
};

void *pyper_transfer_reserve(pyper_transfer *to, size_t size) {
    (void)to, (void)size;
    return NULL;
}
int pyper_transfer_fail(pyper_transfer *transfer, int code, const char *message, const void *data,
                        size_t size) {
    (void)transfer, (void)code, (void)message, (void)data, (void)size;
    return PYPER_EFAILED;
}
void *pyper_transfer_host_data(const pyper_transfer *transfer) {
    (void)transfer;
    return &a_run;
}
const char *pyper_transfer_name(const pyper_transfer *transfer) {
    (void)transfer;
    return "task";
}
pyper_kept *pyper_transfer_keep(pyper_transfer *from, void **ret_data) {
    if (!from->can_be_kept) return NULL;
    pyper_kept *kept = malloc(sizeof *kept);
    if (kept && (kept->copy = malloc(from->size))) {
        memcpy(kept->copy, from->data, from->size);
        *ret_data = kept->copy;
        return kept;
    }
    abort();
}
void python_run_keep_pending(python_run *unused, PyObject *exception) {
    (void)unused;
    Py_DECREF(exception);
}
void pyper_kept_release(pyper_kept *kept) {
    if (kept) free(kept->copy);
    free(kept);
}
PyObject *failure_text(const char *prefix, PyObject *exception) {
    return PyUnicode_FromFormat("%s %R", prefix, exception);
}
void failure_add_note(module_state *unused, PyObject *exception, PyObject *note) {
    (void)unused, (void)exception;
    Py_XDECREF(note);
}
PyObject *failure_dump(module_state *unused, PyObject *exception) {
    (void)unused, (void)exception;
    return NULL;
}

/* ----------------------------------------------------------------------------------- the target */

static const char setup[] =
    "import types\n"
    "m = types.ModuleType('m')\n"
    "class Point:\n"
    "    def __init__(self, x=0, y=0): self.x, self.y = x, y\n"
    "class Slotted:\n"
    "    __slots__ = ('x', 'y')\n"
    "class Stateful:\n"
    "    def __setstate__(self, state): self.state = state\n"
    "class Error(Exception): pass\n"
    "for c in (Point, Slotted, Stateful, Error): setattr(m, c.__name__, c)\n"
    "m.pair = lambda *args: args\n"
    "def loads(data, buffers=None):\n"
    "    return bytes(data), [bytes(buffer) for buffer in buffers or ()]\n";

static PyObject *global(PyObject *names, const char *name) {
    PyObject *object = PyDict_GetItemString(names, name);
    if (!object) abort();
    return Py_NewRef(object);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    Py_InitializeEx(0);
    PyObject *names = PyModule_GetDict(PyImport_AddModule("__main__"));
    PyObject *done = PyRun_String(setup, Py_file_input, names, names);
    if (!done) PyErr_Print(), abort();
    Py_DECREF(done);
    harmless = global(names, "m");
    state.loads = global(names, "loads");
    state.loads_names = Py_BuildValue("(s)", "buffers");
    state.name_setstate = PyUnicode_InternFromString("__setstate__");
    state.memory_type = (PyTypeObject *)PyType_FromSpec(&memory_spec);
    if (!state.memory_type) PyErr_Print(), abort();
    a_plan.state = &state;
    a_run.plan = &a_plan;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    /* Memory of its own, so that a byte too far is noticed. */
    char *bytes = malloc(size > 1 ? size - 1 : 1);
    if (!bytes) abort();
    memcpy(bytes, data + 1, size - 1);
    pyper_transfer from = {bytes, size - 1, data[0] & 1};
    void *item = NULL;
    int rc = object_items.decode(&from, bytes, size - 1, &item);
    if (PyErr_Occurred()) abort();
    if (rc == 0) {
        PyObject *text = PyObject_Repr(item); /* looks at all of it */
        Py_XDECREF(text);
        PyErr_Clear();
        object_items.destroy(item);
    } else if (rc != PYPER_EFAILED && rc != PYPER_ENOMEM) {
        abort();
    }
    free(bytes);
    return 0;
}
