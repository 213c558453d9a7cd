/* no_memory - a module for tests: lets chosen allocations of Python fail, in the thread that asks.
 *
 * between(first, end) counts the allocations from now on, and lets those numbered first to end - 1
 * fail; stop() ends that, and returns how many there were.  is_readable(fd) is what select says,
 * but makes no list: free-threaded Python 3.13 does not survive that there is no memory for one. */
#include <Python.h>
#include <poll.h>
#include <pthread.h>

enum { DOMAINS = 3 };
static PyMemAllocatorEx python[DOMAINS]; /* what is there without us */
static pthread_t thread;                 /* whose allocations count */
static Py_ssize_t first, end, count;
static int installed;

static int fails(void) {
    if (!pthread_equal(pthread_self(), thread)) return 0;
    Py_ssize_t number = count++;
    return number >= first && number < end;
}

static void *allocate(void *domain, size_t size) {
    PyMemAllocatorEx *real = domain;
    return fails() ? NULL : real->malloc(real->ctx, size);
}

static void *allocate_zeroed(void *domain, size_t elements, size_t size) {
    PyMemAllocatorEx *real = domain;
    return fails() ? NULL : real->calloc(real->ctx, elements, size);
}

static void *reallocate(void *domain, void *memory, size_t size) {
    PyMemAllocatorEx *real = domain;
    return fails() ? NULL : real->realloc(real->ctx, memory, size);
}

static void release(void *domain, void *memory) {
    PyMemAllocatorEx *real = domain;
    real->free(real->ctx, memory);
}

static PyObject *between(PyObject *module, PyObject *args) {
    if (!PyArg_ParseTuple(args, "nn:between", &first, &end)) return NULL;
    thread = pthread_self();
    count = 0;
    for (int i = 0; i < DOMAINS && !installed; i++) {
        PyMem_GetAllocator((PyMemAllocatorDomain)i, &python[i]);
        PyMemAllocatorEx ours = {&python[i], allocate, allocate_zeroed, reallocate, release};
        PyMem_SetAllocator((PyMemAllocatorDomain)i, &ours);
    }
    installed = 1;
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *module, PyObject *unused) {
    for (int i = 0; i < DOMAINS && installed; i++)
        PyMem_SetAllocator((PyMemAllocatorDomain)i, &python[i]);
    installed = 0;
    return PyLong_FromSsize_t(count);
}

static PyObject *is_readable(PyObject *module, PyObject *fd) {
    struct pollfd asked = {.fd = (int)PyLong_AsLong(fd), .events = POLLIN};
    return PyErr_Occurred() ? NULL : PyBool_FromLong(poll(&asked, 1, 0) == 1);
}

static PyMethodDef functions[] = {
    {"between", between, METH_VARARGS, NULL},
    {"stop", stop, METH_NOARGS, NULL},
    {"is_readable", is_readable, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "no_memory",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_no_memory(void);
PyMODINIT_FUNC PyInit_no_memory(void) {
    return PyModuleDef_Init(&definition);
}
