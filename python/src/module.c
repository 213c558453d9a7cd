/* module - the module object of pyper._pyper: state, types, and the functions for the end of the
 * interpreter and for forked children.  See pyper_python.h for the other files. */
#include "pyper_python.h"

static PyObject *cancel_live(PyObject *module, PyObject *unused) {
    (void)unused;
    outputs_cancel_live(PyModule_GetState(module));
    Py_RETURN_NONE;
}

static PyObject *may_begin(PyObject *module, PyObject *unused) {
    (void)unused;
    outputs_may_begin(PyModule_GetState(module));
    Py_RETURN_NONE;
}

static PyObject *forget_live(PyObject *module, PyObject *unused) {
    (void)unused;
    outputs_forget_live(PyModule_GetState(module));
    interrupts_forget(PyModule_GetState(module));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attach_doc,
             "attach($module, plan, place, count, branch, join, task, worker, fds, /)\n--\n\n"
             "Be a worker of another process's run: returns when it is done.");
PyDoc_STRVAR(cancel_live_doc,
             "cancel_live($module, /)\n--\n\n"
             "Cancel every run that goes on, without waiting, and those that are started later.\n\n"
             "For the end of the interpreter.  The main thread may still run pipelines.");
PyDoc_STRVAR(may_begin_doc,
             "may_begin($module, /)\n--\n\n"
             "Undo of cancel_live() that runs which are started later are cancelled.");
PyDoc_STRVAR(forget_live_doc,
             "forget_live($module, /)\n--\n\n"
             "Forget the runs of the parent process, in a forked child, and give it back the\n"
             "signal handlers that were put aside there.");

static PyMethodDef functions[] = {
    {"attach", processes_attach, METH_VARARGS, attach_doc},
    {"cancel_live", cancel_live, METH_NOARGS, cancel_live_doc},
    {"may_begin", may_begin, METH_NOARGS, may_begin_doc},
    {"forget_live", forget_live, METH_NOARGS, forget_live_doc},
    {NULL, NULL, 0, NULL},
};

PyObject *make_object(PyTypeObject *type) {
    if (type) return type->tp_alloc(type, 0);
    PyErr_SetString(PyExc_RuntimeError, "the interpreter ends: pyper cannot be used any more");
    return NULL;
}

/* The attribute `name` of the module called `module_name`: a new reference, or NULL. */
static PyObject *import_from(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (!module) return NULL;
    PyObject *value = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return value;
}

/* Make a type and, if it has a public name, add it to the module. */
static PyTypeObject *make_type(PyObject *module, PyType_Spec *spec, bool add) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && add && PyModule_AddType(module, type) < 0) Py_CLEAR(type);
    return type;
}

/* A field of the state, and what it is called in the module that it is imported from. */
typedef struct late {
    size_t offset;
    const char *name;
} late;

enum { LATE_MAX = 9 };

static PyObject **field_of(module_state *state, const late *what) {
    return (PyObject **)((char *)state + what->offset);
}

/* Import what is not there yet, all or nothing: 0, or -1 with an exception.  Several threads may be
 * at it; the first one to come back with everything publishes it. */
static int import_late(module_state *state, const char *module_name, const late *what,
                       size_t count) {
    LOCK_TAKE(&state->live_lock);
    bool there = *field_of(state, what) != NULL;
    LOCK_GIVE(&state->live_lock);
    if (there) return 0;
    PyObject *got[LATE_MAX] = {NULL};
    size_t have = 0;
    while (have < count && (got[have] = import_from(module_name, what[have].name))) have++;
    LOCK_TAKE(&state->live_lock);
    for (size_t i = 0; have == count && i < count; i++) {
        PyObject **field = field_of(state, &what[i]);
        if (*field) continue;
        *field = got[i];
        got[i] = NULL;
    }
    LOCK_GIVE(&state->live_lock);
    for (size_t i = 0; i < have; i++) Py_XDECREF(got[i]);
    return have == count ? 0 : -1;
}

#define LATE(field, name) {offsetof(module_state, field), name},
int asyncio_import(module_state *state) {
    static const late what[] = {MODULE_ASYNCIO(LATE)};
    return import_late(state, "asyncio", what, sizeof what / sizeof *what);
}

int processes_import(module_state *state) {
    static const late what[] = {MODULE_PROCESSES(LATE)};
    _Static_assert(sizeof what / sizeof *what <= LATE_MAX, "import_late() has room for them");
    return import_late(state, "pyper._processes", what, sizeof what / sizeof *what);
}
#undef LATE

/* Have the abstract class count the type as its own. */
static int register_as(PyObject *abstract, PyTypeObject *type) {
    PyObject *result = PyObject_CallMethod(abstract, "register", "O", type);
    if (!result) return -1;
    Py_DECREF(result);
    return 0;
}

static int find_main_thread(module_state *state) {
    PyObject *ask = import_from("threading", "main_thread");
    PyObject *thread = ask ? PyObject_CallNoArgs(ask) : NULL;
    PyObject *ident = thread ? PyObject_GetAttrString(thread, "ident") : NULL;
    if (ident && ident != Py_None) state->main_thread = PyLong_AsUnsignedLong(ident);
    Py_XDECREF(ask);
    Py_XDECREF(thread);
    Py_XDECREF(ident);
    return PyErr_Occurred() ? -1 : 0;
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    state->generation = 1;
#define INTERN(field, text)                                                                        \
    if (!(state->field = PyUnicode_InternFromString(text))) return -1;
    MODULE_NAMES(INTERN)
#undef INTERN
#define MAKE(field, spec, add)                                                                     \
    if (!(state->field = make_type(module, &spec, add))) return -1;
    MODULE_TYPES(MAKE)
#undef MAKE
#define IMPORT(field, module_name, name)                                                           \
    if (!(state->field = import_from(module_name, name))) return -1;
    MODULE_IMPORTS(IMPORT)
#undef IMPORT
    if (!(state->names_of_task = PyTuple_Pack(2, state->name_name, state->name_context))) return -1;
    if (!(state->dumps_names = Py_BuildValue("(ss)", "protocol", "buffer_callback"))) return -1;
    if (!(state->loads_names = Py_BuildValue("(s)", "buffers"))) return -1;
    if (!(state->pickle_protocol = PyLong_FromLong(5))) return -1;
    if (register_as(state->generator, state->outputs_type) < 0) return -1;
    if (register_as(state->async_generator, state->async_outputs_type) < 0) return -1;
    if (find_main_thread(state) < 0) return -1;
    return PyModule_AddStringConstant(module, "__version__", pyper_version());
}

#define VISIT(field, ...) Py_VISIT(state->field);
static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    MODULE_TYPES(VISIT)
    MODULE_IMPORTS(VISIT)
    MODULE_ASYNCIO(VISIT)
    MODULE_PROCESSES(VISIT)
    return 0;
}
#undef VISIT

#define CLEAR(field, ...) Py_CLEAR(state->field);
static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    MODULE_TYPES(CLEAR)
    MODULE_NAMES(CLEAR)
    MODULE_IMPORTS(CLEAR)
    MODULE_ASYNCIO(CLEAR)
    MODULE_PROCESSES(CLEAR)
    Py_CLEAR(state->names_of_task);
    Py_CLEAR(state->dumps_names);
    Py_CLEAR(state->loads_names);
    Py_CLEAR(state->pickle_protocol);
    return 0;
}
#undef CLEAR

static void module_free(void *module) {
    (void)module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(module_doc, "The engine of pyper, for the package pyper; not to be used directly.");

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,          .m_name = "_pyper",      .m_doc = module_doc,
    .m_size = sizeof(module_state), .m_methods = functions,  .m_slots = module_slots,
    .m_traverse = module_traverse,  .m_clear = module_clear, .m_free = module_free,
};

PyMODINIT_FUNC PyInit__pyper(void);
PyMODINIT_FUNC PyInit__pyper(void) {
    return PyModuleDef_Init(&module_def);
}
