/* small - the small form of objects that cross between processes: for all that is quick to make and
 * quick to read, so that it need not wait for others to be worth a pickle.
 *
 * It knows None, bool, int, float, str, bytes, bytearray, tuple, list, dict, set and frozenset,
 * exactly these types; classes by their name; and of all other objects what pickle knows: the
 * answer of their __reduce_ex__(), as far as it says "call this with these, then set that".  An
 * object has no small form if it takes more than SMALL_MAX bytes, or if pickle would have to see to
 * it that something that is in it twice is in it twice at the other end: whatever can be changed,
 * or can contain what can be changed, must be referred to from one place only.  Cycles are refused
 * by that, too.  What has no small form is pickled; so nothing is called here that pickle must not
 * call once more, and what is reduced by code of the program's own has no small form (is_plain()).
 *
 * Each value begins with a byte that says what it is.
 *   'N' 'T' 'F'   None, True, False
 *   'i' 'f'       an int of 64 bits, a float
 *   's' 'b' 'a'   a length, and the bytes of a str (UTF-8), bytes, bytearray
 *   '(' '[' '{' '<' '>'   a length, and the values of a tuple, list, dict (key, value, key, ...),
 *                 set, frozenset
 *   'g'           a global: a length, and "module\0qualified.name"
 *   'o'           an object: its class ('g'), a tuple of further arguments to its __new__(), a
 *                 state
 *   'r'           an object: a callable ('g'), a tuple of its arguments, a state
 * Lengths are bytes if they are below 255, else 255 and four bytes.  No state is None.
 *
 * Names are looked up once for a run and kept in two small tables of it (struct names).
 */
#include "pyper_python.h"

#define DEPTH_MAX 16

/* ----------------------------------------------------------------------------------- names */

/* Direct-mapped, by the address of an object or a hash of its name: what comes later takes the
 * place.  Synchronization: lock. */
#define NAMES 64

struct name {
    PyObject *object; /* a reference */
    char *text;
    uint32_t size;
};

struct names {
    short_lock lock;
    struct name by_object[NAMES], by_text[NAMES];
};

static void name_clear(struct name *name) {
    Py_CLEAR(name->object);
    PyMem_RawFree(name->text);
    name->text = NULL;
}

struct names *names_new(void) {
    return PyMem_RawCalloc(1, sizeof(struct names));
}

void names_free(struct names *names) {
    if (!names) return;
    for (int i = 0; i < NAMES; i++) {
        name_clear(&names->by_object[i]);
        name_clear(&names->by_text[i]);
    }
    PyMem_RawFree(names);
}

static struct name *place_of_object(struct names *names, PyObject *object) {
    return &names->by_object[((uintptr_t)object >> 4) % NAMES];
}

static struct name *place_of_text(struct names *names, const char *text, size_t size) {
    uint32_t hash = (uint32_t)size;
    for (size_t i = 0; i < size; i++) hash = hash * 31 + (unsigned char)text[i];
    return &names->by_text[hash % NAMES];
}

/* Keep in this place what `object` is called; takes nothing.  That there is no memory for it does
 * not matter. */
static void name_keep(struct names *names, struct name *place, PyObject *object, const char *text,
                      size_t size) {
    char *copy = PyMem_RawMalloc(size ? size : 1);
    if (!copy) return;
    memcpy(copy, text, size);
    struct name old;
    LOCK_TAKE(&names->lock);
    old = *place;
    *place = (struct name){Py_NewRef(object), copy, (uint32_t)size};
    LOCK_GIVE(&names->lock);
    name_clear(&old);
}

/* What "module" and "qualified.name" name: a new reference, or NULL with an exception. */
static PyObject *resolve(PyObject *module_name, PyObject *qualified) {
    PyObject *object = PyImport_Import(module_name);
    PyObject *dot = object ? PyUnicode_FromString(".") : NULL;
    PyObject *parts = dot ? PyUnicode_Split(qualified, dot, -1) : NULL;
    Py_XDECREF(dot);
    if (!parts) {
        Py_XDECREF(object);
        return NULL;
    }
    for (Py_ssize_t i = 0; object && i < PyList_GET_SIZE(parts); i++)
        Py_SETREF(object, PyObject_GetAttr(object, PyList_GET_ITEM(parts, i)));
    Py_DECREF(parts);
    return object;
}

/* Pickle will say it better.  What is no Exception (KeyboardInterrupt, say) stays set. */
static void forget_error(void) {
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception)) PyErr_Clear();
}

/* A str that is the attribute `name` of `object`, or NULL. */
static PyObject *text_attribute(PyObject *object, const char *name) {
    PyObject *text = PyObject_GetAttrString(object, name);
    if (!text) forget_error();
    if (text && !PyUnicode_CheckExact(text)) Py_CLEAR(text);
    return text;
}

/* The name under which another process finds `object`: 0, or -1: there is none. */
static int find_name(struct names *names, PyObject *object, char *room, size_t space,
                     size_t *ret_size) {
    PyObject *module_name = text_attribute(object, "__module__");
    PyObject *qualified = module_name ? text_attribute(object, "__qualname__") : NULL;
    PyObject *found = qualified ? resolve(module_name, qualified) : NULL;
    if (!found) forget_error();
    int rc = -1;
    if (found == object) {
        Py_ssize_t first, second;
        const char *module_text = PyUnicode_AsUTF8AndSize(module_name, &first);
        const char *text = PyUnicode_AsUTF8AndSize(qualified, &second);
        if (module_text && text && (size_t)(first + 1 + second) <= space) {
            memcpy(room, module_text, (size_t)first + 1);
            memcpy(room + first + 1, text, (size_t)second);
            *ret_size = (size_t)(first + 1 + second);
            name_keep(names, place_of_object(names, object), object, room, *ret_size);
            rc = 0;
        }
        forget_error();
    }
    Py_XDECREF(found);
    Py_XDECREF(module_name);
    Py_XDECREF(qualified);
    return rc;
}

/* --------------------------------------------------------------------------------- writing */

typedef struct writer {
    module_state *state;
    struct names *names;
    unsigned char *at, *end;
    int depth;
} writer;

/* These all return true; or false: there is no small form, or an exception is set.  `references` is
 * how many references to the value are known here; ANY: it does not matter who else refers to
 * it. */
#define ANY PY_SSIZE_T_MAX
static bool write_value(writer *w, PyObject *value, Py_ssize_t references);

static inline bool write_head(writer *w, char kind, size_t size) {
    bool is_long = size >= 255;
    if (w->end - w->at < (is_long ? 6 : 2)) return false;
    *w->at++ = (unsigned char)kind;
    *w->at++ = is_long ? 255 : (unsigned char)size;
    if (is_long) {
        uint32_t all = (uint32_t)size;
        memcpy(w->at, &all, sizeof all);
        w->at += sizeof all;
    }
    return true;
}

static inline bool write_bytes(writer *w, char kind, const void *bytes, size_t size) {
    if (size > (size_t)(w->end - w->at) || !write_head(w, kind, size)) return false;
    if (size > (size_t)(w->end - w->at)) return false;
    memcpy(w->at, bytes, size);
    w->at += size;
    return true;
}

static inline bool write_number(writer *w, char kind, const void *number) {
    if (w->end - w->at < 9) return false;
    *w->at++ = (unsigned char)kind;
    memcpy(w->at, number, 8);
    w->at += 8;
    return true;
}

static inline bool write_mark(writer *w, char kind) {
    if (w->at == w->end) return false;
    *w->at++ = (unsigned char)kind;
    return true;
}

static bool write_global(writer *w, PyObject *object) {
    struct names *names = w->names;
    size_t size = 0;
    bool known = false;
    LOCK_TAKE(&names->lock);
    const struct name *place = place_of_object(names, object);
    if (place->object == object) known = write_bytes(w, 'g', place->text, place->size);
    LOCK_GIVE(&names->lock);
    if (known) return true;
    char room[SMALL_MAX];
    return find_name(names, object, room, sizeof room, &size) == 0 &&
           write_bytes(w, 'g', room, size);
}

static bool is_atom(PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    return value == Py_None || type == &PyBool_Type || type == &PyLong_Type ||
           type == &PyFloat_Type || type == &PyUnicode_Type || type == &PyBytes_Type;
}

static bool has_only_atoms(PyObject *tuple) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++)
        if (!is_atom(PyTuple_GET_ITEM(tuple, i))) return false;
    return true;
}

/* The elements of a tuple from `first` on. */
static bool write_elements(writer *w, PyObject *tuple, Py_ssize_t first) {
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    if (!write_head(w, '(', (size_t)(count - first))) return false;
    for (Py_ssize_t i = first; i < count; i++)
        if (!write_value(w, PyTuple_GET_ITEM(tuple, i), 1)) return false;
    return true;
}

/* Writing a value may run Python code, which may change what it lies in: that is noticed by its
 * size, and the value is kept meanwhile. */
static bool write_list(writer *w, PyObject *list) {
    Py_ssize_t count = PyList_GET_SIZE(list);
    bool written = write_head(w, '[', (size_t)count);
    for (Py_ssize_t i = 0; written && i < count && PyList_GET_SIZE(list) == count; i++) {
        PyObject *value = Py_NewRef(PyList_GET_ITEM(list, i));
        written = write_value(w, value, 2);
        Py_DECREF(value);
    }
    return written && PyList_GET_SIZE(list) == count;
}

static bool write_dict(writer *w, PyObject *dict) {
    Py_ssize_t count = PyDict_GET_SIZE(dict), at = 0;
    PyObject *key, *value;
    bool written = write_head(w, '{', (size_t)count);
    for (Py_ssize_t i = 0; written && i < count && PyDict_GET_SIZE(dict) == count; i++) {
        if (!PyDict_Next(dict, &at, &key, &value)) return false;
        Py_INCREF(key);
        Py_INCREF(value);
        written = write_value(w, key, 2) && write_value(w, value, 2);
        Py_DECREF(key);
        Py_DECREF(value);
    }
    return written && PyDict_GET_SIZE(dict) == count;
}

static bool write_set(writer *w, char kind, PyObject *set) {
    Py_ssize_t count = PySet_GET_SIZE(set);
    PyObject *value, *iterator = PyObject_GetIter(set);
    bool written = iterator && write_head(w, kind, (size_t)count);
    while (written && (value = PyIter_Next(iterator)) != NULL) {
        written = write_value(w, value, 2);
        Py_DECREF(value);
    }
    Py_XDECREF(iterator);
    forget_error();
    return written && PySet_GET_SIZE(set) == count && !PyErr_Occurred();
}

/* The methods (and the one attribute) by which an object says what is to be pickled of it. */
enum { REDUCE_EX, REDUCE, GETNEWARGS_EX, GETNEWARGS, GETSTATE, DICT, HOOKS };

static PyObject *hook_name(const module_state *state, int which) {
    PyObject *const names[HOOKS] = {state->name_reduce_ex,     state->name_reduce,
                                    state->name_getnewargs_ex, state->name_getnewargs,
                                    state->name_getstate,      state->name_dict};
    return names[which];
}

/* What a type has by this name: a new reference, or NULL (no exception). */
static PyObject *look_up(PyTypeObject *type, PyObject *name) {
#if PY_VERSION_HEX >= 0x030D0000
    return _PyType_LookupRef(type, name);
#else
    return Py_XNewRef(_PyType_Lookup(type, name));
#endif
}

/* Is a hook that was found in `type` written in C, and meant for this very type or for all?  One
 * for subclasses, too, may call what they have of their own. */
static bool is_plain_hook(const module_state *state, PyTypeObject *type, int which,
                          PyObject *hook) {
    if (which == DICT) return Py_IS_TYPE(hook, &PyGetSetDescr_Type);
    if (PyFunction_Check(hook)) {
        PyObject *code = PyFunction_GET_CODE(hook);
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(state->harmless); i++)
            if (PyTuple_GET_ITEM(state->harmless, i) == code) return true;
    }
    if (!Py_IS_TYPE(hook, &PyMethodDescr_Type)) return false;
    return which > REDUCE || PyDescr_TYPE(hook) == type || PyDescr_TYPE(hook) == &PyBaseObject_Type;
}

/* The __dict__ of `value`, or NULL: it has none, or that has a hook in it.  *ret_plain is set to
 * whether it has not. */
static PyObject *plain_dict(const module_state *state, PyObject *value, bool *ret_plain) {
    *ret_plain = true;
    if (Py_TYPE(value)->tp_dictoffset == 0) return NULL;
    PyObject *dict = PyObject_GenericGetDict(value, NULL);
    *ret_plain = dict && PyDict_CheckExact(dict);
    for (int i = 0; *ret_plain && i < DICT; i++)
        *ret_plain = PyDict_Contains(dict, hook_name(state, i)) == 0;
    if (!*ret_plain) Py_CLEAR(dict);
    return dict;
}

/* Does no code of the program's run when `value` is taken to pieces?  If there is no small form
 * after all, pickle does that again, and what changes something would have changed it twice. */
static bool is_plain(const module_state *state, PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    if (type->tp_getattro != PyObject_GenericGetAttr) return false;
    if (PyList_Check(value) || PyDict_Check(value)) return false; /* they are iterated as well */
    for (int i = 0; i < HOOKS; i++) {
        PyObject *hook = look_up(type, hook_name(state, i));
        bool plain = !hook || is_plain_hook(state, type, i, hook);
        Py_XDECREF(hook);
        if (!plain) return false;
    }
    return true;
}

/* What __reduce_ex__() has answered, if it is simple.  `dict` is the object's own, or NULL. */
static bool write_answer(writer *w, PyTypeObject *type, PyObject *dict, PyObject *answer) {
    Py_ssize_t count = PyTuple_CheckExact(answer) ? PyTuple_GET_SIZE(answer) : 0;
    if (count < 2 || count > 5) return false;
    for (Py_ssize_t i = 3; i < count; i++)
        if (PyTuple_GET_ITEM(answer, i) != Py_None) return false;
    PyObject *func = PyTuple_GET_ITEM(answer, 0), *args = PyTuple_GET_ITEM(answer, 1);
    if (!PyTuple_CheckExact(args)) return false;
    if (Py_REFCNT(args) > 1 && !has_only_atoms(args)) return false;
    bool is_new = func == w->state->newobj;
    if (is_new) {
        if (PyTuple_GET_SIZE(args) == 0 || PyTuple_GET_ITEM(args, 0) != (PyObject *)type)
            return false;
        func = (PyObject *)type;
    }
    if (!write_mark(w, is_new ? 'o' : 'r') || !write_global(w, func) ||
        !write_elements(w, args, is_new))
        return false;
    if (count == 2) return write_mark(w, 'N');
    /* Who may refer to the state: the answer; and if it is the object's own, that and we. */
    PyObject *state = PyTuple_GET_ITEM(answer, 2);
    return write_value(w, state, state == dict ? 3 : 1);
}

/* Any other object: as pickle would. */
static bool write_object(writer *w, PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    if (PyType_Check(value)) return false; /* a class is no instance, whatever its metaclass says */
    /* Memory of its own crosses out of band, see crossing.c. */
    if (type->tp_as_buffer && type->tp_as_buffer->bf_getbuffer) return false;
    module_state *state = w->state;
    if (PyDict_Contains(state->dispatch_table, (PyObject *)type) != 0) return false;
    if (!is_plain(state, value)) return false;
    bool plain;
    PyObject *dict = plain_dict(state, value, &plain);
    PyObject *answer =
        plain ? PyObject_CallMethodOneArg(value, state->name_reduce_ex, state->pickle_protocol)
              : NULL;
    bool written = answer && write_answer(w, type, dict, answer);
    Py_XDECREF(answer);
    Py_XDECREF(dict);
    forget_error();
    return written && !PyErr_Occurred();
}

/* What can be changed; nobody does while the caller's lock is held, which waiting gives up. */
static bool write_changeable(writer *w, PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyList_Type) return write_list(w, value);
    if (type == &PyDict_Type) return write_dict(w, value);
    if (type == &PySet_Type) return write_set(w, '<', value);
    if (type == &PyFrozenSet_Type) return write_set(w, '>', value);
    if (type == &PyByteArray_Type)
        return write_bytes(w, 'a', PyByteArray_AS_STRING(value),
                           (size_t)PyByteArray_GET_SIZE(value));
    return write_object(w, value);
}

static bool write_compound(writer *w, PyObject *value, Py_ssize_t references) {
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyType_Type || type == &PyFunction_Type) return write_global(w, value);
    bool shared = references != ANY && Py_REFCNT(value) > references;
    if (shared && !(type == &PyTuple_Type && has_only_atoms(value))) return false;
    if (type == &PyTuple_Type) return write_elements(w, value, 0);
    bool written;
    Py_BEGIN_CRITICAL_SECTION(value);
    written = write_changeable(w, value);
    Py_END_CRITICAL_SECTION();
    return written;
}

static bool write_value(writer *w, PyObject *value, Py_ssize_t references) {
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow && write_number(w, 'i', &number);
    }
    if (type == &PyUnicode_Type) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(value, &size);
        if (!text) forget_error(); /* lone surrogates */
        return text && write_bytes(w, 's', text, (size_t)size);
    }
    if (type == &PyFloat_Type) {
        double number = PyFloat_AS_DOUBLE(value);
        return write_number(w, 'f', &number);
    }
    if (value == Py_None) return write_mark(w, 'N');
    if (type == &PyBool_Type) return write_mark(w, value == Py_True ? 'T' : 'F');
    if (type == &PyBytes_Type)
        return write_bytes(w, 'b', PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
    if (w->depth == DEPTH_MAX) return false;
    w->depth++;
    bool written = write_compound(w, value, references);
    w->depth--;
    return written;
}

Py_ssize_t small_write(module_state *state, struct names *names, PyObject *value, char *room) {
    unsigned char *begin = (unsigned char *)room;
    writer w = {.state = state, .names = names, .at = begin, .end = begin + SMALL_MAX};
    Py_ssize_t size = 0;
    bool written = write_value(&w, value, ANY);
    if (written) size = w.at - begin;
    return written ? size : PyErr_Occurred() ? -1 : 0;
}

/* --------------------------------------------------------------------------------- reading */

typedef struct reader {
    module_state *state;
    struct names *names;
    const unsigned char *at, *end;
    int depth;
} reader;

/* These all return a new reference, or NULL with an exception. */
static PyObject *read_value(reader *r);

static PyObject *malformed(void) {
    PyErr_SetString(PyExc_ValueError, "malformed data");
    return NULL;
}

/* A length of things that take `least` bytes each, or more; -1 with an exception. */
static inline Py_ssize_t read_length(reader *r, size_t least) {
    size_t length = 0, left = (size_t)(r->end - r->at);
    if (left == 0) return malformed(), -1;
    length = *r->at++;
    left--;
    if (length == 255) {
        uint32_t all;
        if (left < sizeof all) return malformed(), -1;
        memcpy(&all, r->at, sizeof all);
        r->at += sizeof all;
        left -= sizeof all;
        length = all;
    }
    if (length > left / least) return malformed(), -1;
    return (Py_ssize_t)length;
}

static inline PyObject *read_sequence(reader *r, bool list) {
    Py_ssize_t count = read_length(r, 1);
    PyObject *sequence = count < 0 ? NULL : list ? PyList_New(count) : PyTuple_New(count);
    for (Py_ssize_t i = 0; sequence && i < count; i++) {
        PyObject *value = read_value(r);
        if (!value)
            Py_CLEAR(sequence);
        else if (list)
            PyList_SET_ITEM(sequence, i, value);
        else
            PyTuple_SET_ITEM(sequence, i, value);
    }
    return sequence;
}

static PyObject *read_dict(reader *r) {
    Py_ssize_t count = read_length(r, 2);
    PyObject *dict = count < 0 ? NULL : PyDict_New();
    for (Py_ssize_t i = 0; dict && i < count; i++) {
        PyObject *key = read_value(r);
        PyObject *value = key ? read_value(r) : NULL;
        if (!value || PyDict_SetItem(dict, key, value) < 0) Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *read_set(reader *r, bool frozen) {
    Py_ssize_t count = read_length(r, 1);
    PyObject *set = count < 0 ? NULL : frozen ? PyFrozenSet_New(NULL) : PySet_New(NULL);
    for (Py_ssize_t i = 0; set && i < count; i++) {
        PyObject *value = read_value(r);
        if (!value || PySet_Add(set, value) < 0) Py_CLEAR(set);
        Py_XDECREF(value);
    }
    return set;
}

static PyObject *find_global(reader *r, struct name *place, const char *text, size_t size) {
    const char *end = memchr(text, 0, size);
    if (!end) return malformed();
    PyObject *module_name = PyUnicode_FromStringAndSize(text, end - text);
    PyObject *qualified = PyUnicode_FromStringAndSize(end + 1, (Py_ssize_t)size - (end + 1 - text));
    PyObject *object = module_name && qualified ? resolve(module_name, qualified) : NULL;
    if (object) name_keep(r->names, place, object, text, size);
    Py_XDECREF(module_name);
    Py_XDECREF(qualified);
    return object;
}

/* What follows its 'g'. */
static PyObject *read_name(reader *r) {
    Py_ssize_t size = read_length(r, 1);
    if (size < 0) return NULL;
    const char *text = (const char *)r->at;
    r->at += size;
    struct name *place = place_of_text(r->names, text, (size_t)size);
    PyObject *object = NULL;
    LOCK_TAKE(&r->names->lock);
    if (place->text && place->size == (size_t)size && memcmp(place->text, text, place->size) == 0)
        object = Py_NewRef(place->object);
    LOCK_GIVE(&r->names->lock);
    return object ? object : find_global(r, place, text, (size_t)size);
}

/* object.__dict__.update(state), with interned names, as pickle does. */
static int set_attributes(PyObject *object, PyObject *state) {
    PyObject *key, *value, *dict = PyObject_GetAttrString(object, "__dict__");
    Py_ssize_t at = 0;
    int rc = dict ? 0 : -1;
    while (rc == 0 && PyDict_Next(state, &at, &key, &value)) {
        Py_INCREF(key);
        if (PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
        rc = PyObject_SetItem(dict, key, value);
        Py_DECREF(key);
    }
    Py_XDECREF(dict);
    return rc;
}

static int set_slots(PyObject *object, PyObject *slots) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(slots, &at, &key, &value))
        if (PyObject_SetAttr(object, key, value) < 0) return -1;
    return 0;
}

static int set_state(module_state *module, PyObject *object, PyObject *state) {
    PyObject *setter = PyObject_GetAttr(object, module->name_setstate);
    if (setter) {
        PyObject *result = PyObject_CallOneArg(setter, state);
        Py_DECREF(setter);
        Py_XDECREF(result);
        return result ? 0 : -1;
    }
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
    PyErr_Clear();
    PyObject *slots = NULL;
    if (PyTuple_CheckExact(state) && PyTuple_GET_SIZE(state) == 2) {
        slots = PyTuple_GET_ITEM(state, 1);
        state = PyTuple_GET_ITEM(state, 0);
    }
    if ((state != Py_None && !PyDict_Check(state)) ||
        (slots && slots != Py_None && !PyDict_Check(slots))) {
        PyErr_SetString(PyExc_TypeError, "state is not a dictionary");
        return -1;
    }
    if (state != Py_None && set_attributes(object, state) < 0) return -1;
    return slots && slots != Py_None ? set_slots(object, slots) : 0;
}

static PyObject *read_object(reader *r, bool is_new) {
    if (r->at == r->end || *r->at++ != 'g') return malformed();
    PyObject *func = read_name(r);
    if (!func) return NULL;
    PyObject *args = read_value(r), *object = NULL;
    if (args && !PyTuple_CheckExact(args))
        malformed();
    else if (args && !is_new)
        object = PyObject_CallObject(func, args);
    else if (args && PyType_Check(func) && ((PyTypeObject *)func)->tp_new)
        object = ((PyTypeObject *)func)->tp_new((PyTypeObject *)func, args, NULL);
    else if (args)
        PyErr_Format(PyExc_TypeError, "%R cannot be made", func);
    Py_XDECREF(args);
    Py_DECREF(func);
    PyObject *state = object ? read_value(r) : NULL;
    if (!state || (state != Py_None && set_state(r->state, object, state) < 0)) Py_CLEAR(object);
    Py_XDECREF(state);
    return object;
}

static PyObject *read_compound(reader *r, char kind) {
    switch (kind) {
    case '(':
        return read_sequence(r, false);
    case '[':
        return read_sequence(r, true);
    case '{':
        return read_dict(r);
    case '<':
    case '>':
        return read_set(r, kind == '>');
    case 'g':
        return read_name(r);
    case 'o':
    case 'r':
        return read_object(r, kind == 'o');
    default:
        return malformed();
    }
}

static PyObject *read_value(reader *r) {
    if (r->at == r->end) return malformed();
    char kind = (char)*r->at++;
    if (kind == 'i' || kind == 'f') {
        long long integer;
        double number;
        if (r->end - r->at < 8) return malformed();
        memcpy(&integer, r->at, 8);
        memcpy(&number, r->at, 8);
        r->at += 8;
        return kind == 'i' ? PyLong_FromLongLong(integer) : PyFloat_FromDouble(number);
    }
    if (kind == 'N') return Py_NewRef(Py_None);
    if (kind == 'T' || kind == 'F') return Py_NewRef(kind == 'T' ? Py_True : Py_False);
    if (kind == 's' || kind == 'b' || kind == 'a') {
        Py_ssize_t size = read_length(r, 1);
        if (size < 0) return NULL;
        const char *bytes = (const char *)r->at;
        r->at += size;
        return kind == 's'   ? PyUnicode_DecodeUTF8(bytes, size, NULL)
               : kind == 'b' ? PyBytes_FromStringAndSize(bytes, size)
                             : PyByteArray_FromStringAndSize(bytes, size);
    }
    if (r->depth > 2 * DEPTH_MAX) return malformed();
    r->depth++;
    PyObject *value = read_compound(r, kind);
    r->depth--;
    return value;
}

PyObject *small_read(module_state *state, struct names *names, const char *data, size_t size) {
    const unsigned char *begin = (const unsigned char *)data;
    reader r = {.state = state, .names = names, .at = begin, .end = begin + size};
    PyObject *value = read_value(&r);
    if (value && r.at != r.end) {
        Py_DECREF(value);
        return malformed();
    }
    return value;
}
