/* module - the module object of pyper._pyper: state, types, and the functions for the end of the
 * interpreter and for forked children.  See pyper_python.h for the other files. */
#include "pyper_python.h"

static PyObject *cancel_live(PyObject *module, PyObject *unused) {
    (void)unused;
    outputs_cancel_live(PyModule_GetState(module));
    Py_RETURN_NONE;
}

static PyObject *forget_live(PyObject *module, PyObject *unused) {
    (void)unused;
    outputs_forget_live(PyModule_GetState(module));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(attach_doc,
             "attach($module, plan, place, count, branch, join, task, worker, fds, /)\n--\n\n"
             "Be a worker of another process's run: returns when it is done.");
PyDoc_STRVAR(cancel_live_doc,
             "cancel_live($module, /)\n--\n\n"
             "Cancel every run that goes on, without waiting, and those that are started later.\n\n"
             "For the end of the interpreter.  The main thread may still run pipelines.");
PyDoc_STRVAR(forget_live_doc, "forget_live($module, /)\n--\n\n"
                              "Forget the runs of the parent process, in a forked child.");

static PyMethodDef functions[] = {
    {"attach", processes_attach, METH_VARARGS, attach_doc},
    {"cancel_live", cancel_live, METH_NOARGS, cancel_live_doc},
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
    if (!(state->name_start = PyUnicode_InternFromString("start"))) return -1;
    if (!(state->name_end = PyUnicode_InternFromString("end"))) return -1;
    if (!(state->name_will_begin = PyUnicode_InternFromString("will_begin"))) return -1;
    if (!(state->name_bootstrap = PyUnicode_InternFromString("_bootstrap"))) return -1;
    if (!(state->name_close = PyUnicode_InternFromString("close"))) return -1;
    if (!(state->name_add_note = PyUnicode_InternFromString("add_note"))) return -1;
    if (!(state->name_send = PyUnicode_InternFromString("send"))) return -1;
    if (!(state->name_throw = PyUnicode_InternFromString("throw"))) return -1;
    if (!(state->name_aclose = PyUnicode_InternFromString("aclose"))) return -1;
    if (!(state->name_create_future = PyUnicode_InternFromString("create_future"))) return -1;
    if (!(state->name_create_task = PyUnicode_InternFromString("create_task"))) return -1;
    if (!(state->name_set_result = PyUnicode_InternFromString("set_result"))) return -1;
    if (!(state->name_done = PyUnicode_InternFromString("done"))) return -1;
    if (!(state->name_cancel = PyUnicode_InternFromString("cancel"))) return -1;
    if (!(state->name_add_reader = PyUnicode_InternFromString("add_reader"))) return -1;
    if (!(state->name_remove_reader = PyUnicode_InternFromString("remove_reader"))) return -1;
    if (!(state->name_is_closed = PyUnicode_InternFromString("is_closed"))) return -1;
    if (!(state->name_blocking = PyUnicode_InternFromString("_asyncio_future_blocking"))) return -1;
    if (!(state->name_log_destroy_pending = PyUnicode_InternFromString("_log_destroy_pending")))
        return -1;
    if (!(state->name_name = PyUnicode_InternFromString("name"))) return -1;
    if (!(state->name_context = PyUnicode_InternFromString("context"))) return -1;
    if (!(state->get_asyncgen_hooks = import_from("sys", "get_asyncgen_hooks"))) return -1;
    if (!(state->set_asyncgen_hooks = import_from("sys", "set_asyncgen_hooks"))) return -1;
    if (!(state->names_of_task = PyTuple_Pack(2, state->name_name, state->name_context))) return -1;

    if (!(state->plan_type = make_type(module, &plan_spec, true))) return -1;
    if (!(state->outputs_type = make_type(module, &outputs_spec, true))) return -1;
    if (!(state->stream_type = make_type(module, &stream_spec, true))) return -1;
    if (!(state->entry_type = make_type(module, &entry_spec, false))) return -1;
    if (!(state->memory_type = make_type(module, &memory_spec, false))) return -1;
    if (!(state->async_outputs_type = make_type(module, &async_outputs_spec, true))) return -1;
    if (!(state->async_stream_type = make_type(module, &async_stream_spec, true))) return -1;
    if (!(state->awaitable_type = make_type(module, &awaitable_spec, false))) return -1;
    if (!(state->driver_type = make_type(module, &driver_spec, false))) return -1;
    if (!(state->slot_type = make_type(module, &slot_spec, false))) return -1;

    if (!(state->worker_thread = import_from("pyper._threads", "WorkerThread"))) return -1;
    if (!(state->task_stats = import_from("pyper._types", "TaskStats"))) return -1;
    if (!(state->cancelled = import_from("pyper._types", "Cancelled"))) return -1;
    if (!(state->worker_died = import_from("pyper._types", "WorkerDied"))) return -1;
    if (!(state->generator = import_from("collections.abc", "Generator"))) return -1;
    if (!(state->async_generator = import_from("collections.abc", "AsyncGenerator"))) return -1;
    if (register_as(state->generator, state->outputs_type) < 0) return -1;
    if (register_as(state->async_generator, state->async_outputs_type) < 0) return -1;
    if (find_main_thread(state) < 0) return -1;
    return PyModule_AddStringConstant(module, "__version__", pyper_version());
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->plan_type);
    Py_VISIT(state->outputs_type);
    Py_VISIT(state->stream_type);
    Py_VISIT(state->entry_type);
    Py_VISIT(state->memory_type);
    Py_VISIT(state->worker_thread);
    Py_VISIT(state->task_stats);
    Py_VISIT(state->cancelled);
    Py_VISIT(state->worker_died);
    Py_VISIT(state->start_process);
    Py_VISIT(state->join_process);
    Py_VISIT(state->dump_failure);
    Py_VISIT(state->load_failure);
    Py_VISIT(state->dumps);
    Py_VISIT(state->loads);
    Py_VISIT(state->generator);
    Py_VISIT(state->async_outputs_type);
    Py_VISIT(state->async_stream_type);
    Py_VISIT(state->awaitable_type);
    Py_VISIT(state->driver_type);
    Py_VISIT(state->slot_type);
    Py_VISIT(state->async_generator);
    Py_VISIT(state->async_cancelled);
    Py_VISIT(state->get_running_loop);
    Py_VISIT(state->get_asyncgen_hooks);
    Py_VISIT(state->set_asyncgen_hooks);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->plan_type);
    Py_CLEAR(state->outputs_type);
    Py_CLEAR(state->stream_type);
    Py_CLEAR(state->entry_type);
    Py_CLEAR(state->memory_type);
    Py_CLEAR(state->worker_thread);
    Py_CLEAR(state->task_stats);
    Py_CLEAR(state->cancelled);
    Py_CLEAR(state->worker_died);
    Py_CLEAR(state->start_process);
    Py_CLEAR(state->join_process);
    Py_CLEAR(state->dump_failure);
    Py_CLEAR(state->load_failure);
    Py_CLEAR(state->dumps);
    Py_CLEAR(state->loads);
    Py_CLEAR(state->name_append);
    Py_CLEAR(state->dispatch_table);
    Py_CLEAR(state->newobj);
    Py_CLEAR(state->name_reduce_ex);
    Py_CLEAR(state->name_setstate);
    Py_CLEAR(state->five);
    Py_CLEAR(state->dumps_names);
    Py_CLEAR(state->loads_names);
    Py_CLEAR(state->generator);
    Py_CLEAR(state->async_outputs_type);
    Py_CLEAR(state->async_stream_type);
    Py_CLEAR(state->awaitable_type);
    Py_CLEAR(state->driver_type);
    Py_CLEAR(state->slot_type);
    Py_CLEAR(state->async_generator);
    Py_CLEAR(state->async_cancelled);
    Py_CLEAR(state->get_running_loop);
    Py_CLEAR(state->get_asyncgen_hooks);
    Py_CLEAR(state->set_asyncgen_hooks);
    Py_CLEAR(state->name_start);
    Py_CLEAR(state->name_end);
    Py_CLEAR(state->name_will_begin);
    Py_CLEAR(state->name_bootstrap);
    Py_CLEAR(state->name_close);
    Py_CLEAR(state->name_add_note);
    Py_CLEAR(state->name_send);
    Py_CLEAR(state->name_throw);
    Py_CLEAR(state->name_aclose);
    Py_CLEAR(state->name_create_future);
    Py_CLEAR(state->name_create_task);
    Py_CLEAR(state->name_set_result);
    Py_CLEAR(state->name_done);
    Py_CLEAR(state->name_cancel);
    Py_CLEAR(state->name_add_reader);
    Py_CLEAR(state->name_remove_reader);
    Py_CLEAR(state->name_is_closed);
    Py_CLEAR(state->name_blocking);
    Py_CLEAR(state->name_log_destroy_pending);
    Py_CLEAR(state->name_name);
    Py_CLEAR(state->name_context);
    Py_CLEAR(state->names_of_task);
    return 0;
}

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
