/* plan - the type Plan: the engine's form of a pyper.Pipeline, made at its first call and kept.
 *
 * A plan owns an engine pipeline, and the engine pipeline owns the steps: one small struct per task
 * with the callable.  A plan never changes, so any number of threads may run it.
 */
#include "pyper_python.h"

static void step_release(void *bind) {
    step *step = bind;
    Py_XDECREF(step->func);
    Py_XDECREF(step->task);
    Py_XDECREF(step->name);
    PyMem_RawFree(step);
}

/* Make the engine's one-task pipeline of `spec`, a tuple (func, name, branch, join, ordered,
 * workers, throttle, is_async, multiprocess, task).  Returns 0, or -1 with an exception. */
static int make_task(plan *self, PyObject *spec, Py_ssize_t index, pyper_pipeline **ret_task) {
    PyObject *func, *name, *task = Py_None;
    int branch, join, ordered, is_async = 0, multiprocess = 0;
    long long workers, throttle;
    if (!PyTuple_Check(spec)) {
        PyErr_SetString(PyExc_TypeError, "a step must be a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(spec, "OUpppLL|ppO", &func, &name, &branch, &join, &ordered, &workers,
                          &throttle, &is_async, &multiprocess, &task))
        return -1;
    if (multiprocess && processes_import(self->state) < 0) return -1;
    const char *text = PyUnicode_AsUTF8(name);
    if (!text) return -1;
    step *step = PyMem_RawCalloc(1, sizeof *step);
    if (!step) {
        PyErr_NoMemory();
        return -1;
    }
    step->func = Py_NewRef(func);
    step->task = Py_NewRef(task);
    step->name = Py_NewRef(name);
    step->state = self->state;
    step->place = index + 1;
    step->count = self->count;
    step->workers = workers;
    step->branch = branch;
    step->join = join;
    if (is_async) self->is_async = true;
    if (multiprocess) self->processes = true;
    self->steps[index] = step;
    *ret_task = pyper_task_from(&(const pyper_task_options){
        .size = sizeof(pyper_task_options),
        .fn = function_for(index == 0, branch, join),
        .branch = branch,
        .join = join,
        .ordered = ordered,
        .workers = workers,
        .throttle = throttle,
        .bind = step,
        .release = step_release,
        .type = &object_items,
        .name = text,
        .multiprocess = multiprocess,
        .async = is_async,
    });
    if (pyper_pipeline_error(*ret_task) < 0) self->steps[index] = NULL; /* released already */
    return 0;
}

/* Make self->pipeline of the steps.  Returns 0, or -1 with an exception; self->steps must then not
 * be used any more (they are freed before the exception is made: making it may collect garbage). */
static int make_pipeline(plan *self, PyObject *specs) {
    Py_ssize_t made = 0;
    pyper_pipeline **parts = PyMem_Calloc((size_t)self->count + 1, sizeof *parts);
    if (!parts) {
        PyErr_NoMemory();
        return -1;
    }
    while (made < self->count &&
           make_task(self, PyTuple_GET_ITEM(specs, made), made, &parts[made]) == 0)
        made++;
    if (made < self->count) {
        self->count = 0;
        while (made-- > 0) pyper_unref(parts[made]);
        PyMem_Free(parts);
        return -1;
    }
    self->pipeline = pyper_pipe_from(parts, (size_t)made);
    PyMem_Free(parts);
    int error = pyper_pipeline_error(self->pipeline);
    if (error == 0) return 0;
    self->count = 0;
    if (error == PYPER_ENOMEM)
        PyErr_NoMemory();
    else
        PyErr_Format(PyExc_ValueError, "%s", pyper_pipeline_message(self->pipeline));
    return -1;
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *const keywords[] = {"", NULL};
    PyObject *specs;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:Plan", (char **)keywords, &PyTuple_Type,
                                     &specs))
        return NULL;
    plan *self = (plan *)make_object(type);
    if (!self) return NULL;
    self->module = Py_NewRef(PyType_GetModule(type));
    self->state = PyModule_GetState(self->module);
    Py_ssize_t count = PyTuple_GET_SIZE(specs);
    self->steps = PyMem_Calloc((size_t)count + 1, sizeof *self->steps);
    if (!self->steps) {
        PyErr_NoMemory();
    } else {
        self->count = count;
        if (make_pipeline(self, specs) == 0 &&
            (!self->is_async || asyncio_import(self->state) == 0))
            return (PyObject *)self;
    }
    Py_DECREF(self);
    return NULL;
}

/* A step belongs to the engine's pipeline, which our runs share.  It is right to visit it as if it
 * were ours: a run that goes on holds a reference to this plan that the collector does not see. */
static int plan_traverse(PyObject *op, visitproc visit, void *arg) {
    plan *self = (plan *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->module);
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->steps[i]) {
            Py_VISIT(self->steps[i]->func);
            Py_VISIT(self->steps[i]->task);
        }
    return 0;
}

static int plan_clear(PyObject *op) {
    plan *self = (plan *)op;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->steps[i]) {
            Py_CLEAR(self->steps[i]->func);
            Py_CLEAR(self->steps[i]->task);
        }
    return 0;
}

static void plan_dealloc(PyObject *op) {
    plan *self = (plan *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    pyper_unref(self->pipeline);
    PyMem_Free(self->steps);
    Py_XDECREF(self->module);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyObject *plan_run(PyObject *op, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !PyTuple_CheckExact(args[0]) || !PyDict_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "run() takes a tuple and a dict");
        return NULL;
    }
    return outputs_new((plan *)op, args[0], args[1]);
}

PyDoc_STRVAR(plan_doc, "Plan(steps, /)\n--\n\n"
                       "The engine's form of a pipeline: (func, name, branch, join, ordered, "
                       "workers, throttle, is_async, multiprocess, task) for each task.");
PyDoc_STRVAR(plan_run_doc, "run($self, args, kwargs, /)\n--\n\n"
                           "The outputs of func(*args, **kwargs) of the first task, sent through "
                           "the others.");

static PyMethodDef plan_methods[] = {
    {"run", (PyCFunction)(void (*)(void))plan_run, METH_FASTCALL, plan_run_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, (void *)plan_doc},
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_clear, plan_clear},
    {Py_tp_methods, plan_methods},
    {0, NULL},
};

PyType_Spec plan_spec = {
    .name = "pyper._pyper.Plan",
    .basicsize = sizeof(plan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};
