/* The C ABI over the best kernels for this machine, and `normball.kernels._native`, its door from Python: the limited
 * API (one binary for every CPython since 3.11) and the buffer protocol, so it knows no framework either.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "normball.h"

/* ---- which instruction set -------------------------------------------------------------------------------------- */

extern const normball_kernels normball_kernels_baseline;
#ifdef NORMBALL_HAVE_V3
extern const normball_kernels normball_kernels_v3;
#endif

/* Best first; setup.py defines NORMBALL_HAVE_… for what it compiled. */
static const normball_kernels *const compiled[] = {
#ifdef NORMBALL_HAVE_V3
    &normball_kernels_v3,
#endif
    &normball_kernels_baseline,
};
enum { LEVELS = sizeof compiled / sizeof *compiled };

static const normball_kernels *selected = &normball_kernels_baseline;

static int runs_here(const normball_kernels *kernels) {
#ifdef NORMBALL_HAVE_V3
    if (kernels == &normball_kernels_v3) { /* gcc 11 knows "x86-64-v3" as a name, older compilers only its parts */
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
               __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    }
#endif
    return kernels == &normball_kernels_baseline;
}

int normball_constrain(int64_t count, const normball_array *arrays, int64_t ord, const normball_call *call) {
    return selected->constrain(count, arrays, ord, call);
}

int normball_constrain_total(
    int64_t count, const normball_array *arrays, int64_t ord, double max_norm, double epsilon, double *norm,
    const normball_call *call) {
    return selected->constrain_total(count, arrays, ord, max_norm, epsilon, norm, call);
}

int normball_norms(const normball_array *array, int64_t ord, const normball_call *call) {
    return selected->norms(array, ord, call);
}

/* ---- the door from Python ------------------------------------------------------------------------------------------ */

/* An array handed over from Python, its shape and strides as the ABI wants them. */
typedef struct {
    Py_buffer buffer;
    int64_t shape[NORMBALL_MAX_NDIM], strides[NORMBALL_MAX_NDIM];
} Memory;

static const Py_ssize_t ITEMSIZE[] = {8, 4, 2, 2}; /* by dtype code */

static int memory_open(Memory *memory, PyObject *object, Py_ssize_t itemsize, int writable) {
    if (PyObject_GetBuffer(object, &memory->buffer, PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0)) < 0) return -1;
    const Py_buffer *buffer = &memory->buffer;
    if (buffer->ndim > NORMBALL_MAX_NDIM || buffer->itemsize != itemsize) {
        PyErr_SetString(PyExc_ValueError, "array: too many dimensions, or not of the dtype it is said to have");
        PyBuffer_Release(&memory->buffer);
        return -1;
    }
    for (int d = 0; d < buffer->ndim; d++) {
        memory->shape[d] = buffer->shape[d];
        memory->strides[d] = buffer->strides[d];
    }
    return 0;
}

static void memory_close(Memory *memory) { PyBuffer_Release(&memory->buffer); }

static int same_shape(const Memory *a, const Memory *b) {
    int same = a->buffer.ndim == b->buffer.ndim;
    for (int d = 0; same && d < a->buffer.ndim; d++) same = a->shape[d] == b->shape[d];
    return same;
}

/* The strides that broadcast a bound against the groups of x, right-aligned as in NumPy. Returns 0 where it does not. */
static int broadcast_strides(const Memory *bound, const Memory *x, uint64_t reduced, int64_t *strides) {
    int missing = x->buffer.ndim - bound->buffer.ndim;
    if (missing < 0) return 0;
    for (int d = 0; d < x->buffer.ndim; d++) {
        strides[d] = 0;
        if (d < missing || bound->shape[d - missing] == 1) continue;
        if ((reduced >> d & 1) || bound->shape[d - missing] != x->shape[d]) return 0;
        strides[d] = bound->strides[d - missing];
    }
    return 1;
}

static int known_codes(int dtype, int ord) {
    if (dtype >= NORMBALL_F64 && dtype <= NORMBALL_BF16 && ord >= NORMBALL_ORD_INF && ord <= NORMBALL_ORD_2) return 1;
    PyErr_SetString(PyExc_ValueError, "dtype, ord: unknown code");
    return 0;
}

static PyObject *python_constrain(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *x_object, *out_object, *max_norm_object, *epsilon_object, *result = NULL;
    int dtype, ord;
    unsigned long long reduced;
    Memory x, out, max_norm, epsilon;
    int64_t max_norm_strides[NORMBALL_MAX_NDIM], epsilon_strides[NORMBALL_MAX_NDIM];
    if (!PyArg_ParseTuple(
            args, "OOiiKOO", &x_object, &out_object, &dtype, &ord, &reduced, &max_norm_object, &epsilon_object))
        return NULL;
    if (!known_codes(dtype, ord)) return NULL;
    if (memory_open(&x, x_object, ITEMSIZE[dtype], 0) < 0) return NULL;
    if (memory_open(&out, out_object, ITEMSIZE[dtype], 1) < 0) goto close_x;
    if (memory_open(&max_norm, max_norm_object, 8, 0) < 0) goto close_out;
    if (memory_open(&epsilon, epsilon_object, 8, 0) < 0) goto close_max_norm;
    if (!same_shape(&x, &out) || !broadcast_strides(&max_norm, &x, reduced, max_norm_strides) ||
        !broadcast_strides(&epsilon, &x, reduced, epsilon_strides)) {
        PyErr_SetString(PyExc_ValueError, "constrain: the shapes of x, out, max_norm and epsilon do not fit");
        goto close_epsilon;
    }
    const normball_array array = {
        dtype, x.buffer.ndim, reduced, x.shape, x.buffer.buf, x.strides, out.buffer.buf, out.strides,
        max_norm.buffer.buf, max_norm_strides, epsilon.buffer.buf, epsilon_strides};
    Py_BEGIN_ALLOW_THREADS
    normball_constrain(1, &array, ord, NULL);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
close_epsilon:
    memory_close(&epsilon);
close_max_norm:
    memory_close(&max_norm);
close_out:
    memory_close(&out);
close_x:
    memory_close(&x);
    return result;
}

/* Fills one entry of a total norm's list; both memories are open where it returns 0. */
static int open_pair(normball_array *array, Memory *x, Memory *out, PyObject *triple) {
    PyObject *x_object, *out_object;
    int dtype;
    if (!PyArg_ParseTuple(triple, "OOi", &x_object, &out_object, &dtype)) return -1;
    if (!known_codes(dtype, NORMBALL_ORD_2)) return -1;
    if (memory_open(x, x_object, ITEMSIZE[dtype], 0) < 0) return -1;
    if (memory_open(out, out_object, ITEMSIZE[dtype], 1) < 0) {
        memory_close(x);
        return -1;
    }
    if (!same_shape(x, out)) {
        PyErr_SetString(PyExc_ValueError, "constrain_total: x and out differ in shape");
        memory_close(x);
        memory_close(out);
        return -1;
    }
    *array = (normball_array){
        dtype, x->buffer.ndim, ~(uint64_t)0, x->shape, x->buffer.buf, x->strides, out->buffer.buf, out->strides,
        NULL, NULL, NULL, NULL};
    return 0;
}

static PyObject *python_constrain_total(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *triples, *result = NULL;
    int ord;
    double max_norm, epsilon, norm;
    if (!PyArg_ParseTuple(args, "O!idd", &PyTuple_Type, &triples, &ord, &max_norm, &epsilon)) return NULL;
    if (!known_codes(NORMBALL_F64, ord)) return NULL;
    Py_ssize_t count = PyTuple_Size(triples), opened = 0;
    normball_array *arrays = PyMem_Calloc((size_t)count + 1, sizeof *arrays);
    Memory *memories = PyMem_Calloc((size_t)count + 1, 2 * sizeof *memories);
    if (!arrays || !memories) {
        PyErr_NoMemory();
        goto close;
    }
    for (; opened < count; opened++) {
        Memory *x = memories + 2 * opened;
        if (open_pair(arrays + opened, x, x + 1, PyTuple_GetItem(triples, opened)) < 0) goto close;
    }
    Py_BEGIN_ALLOW_THREADS
    normball_constrain_total(count, arrays, ord, max_norm, epsilon, &norm, NULL);
    Py_END_ALLOW_THREADS
    result = PyFloat_FromDouble(norm);
close:
    for (Py_ssize_t i = 0; i < 2 * opened; i++) memory_close(memories + i);
    PyMem_Free(memories);
    PyMem_Free(arrays);
    return result;
}

static PyObject *python_norms(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *x_object, *norms_object, *max_norm_object, *result = NULL;
    int dtype, ord;
    unsigned long long reduced;
    Memory x, norms, max_norm;
    int64_t strides[NORMBALL_MAX_NDIM], max_norm_strides[NORMBALL_MAX_NDIM];
    if (!PyArg_ParseTuple(args, "OOiiKO", &x_object, &norms_object, &dtype, &ord, &reduced, &max_norm_object)) return NULL;
    if (!known_codes(dtype, ord)) return NULL;
    int bounded = max_norm_object != Py_None;
    if (memory_open(&x, x_object, ITEMSIZE[dtype], 0) < 0) return NULL;
    if (memory_open(&norms, norms_object, 8, 1) < 0) goto close_x;
    if (bounded && memory_open(&max_norm, max_norm_object, 8, 0) < 0) goto close_norms;
    int fits = x.buffer.ndim == norms.buffer.ndim;
    for (int d = 0; fits && d < x.buffer.ndim; d++) {
        fits = norms.shape[d] == (reduced >> d & 1 ? 1 : x.shape[d]);
        strides[d] = norms.strides[d];
    }
    if (!fits || (bounded && !broadcast_strides(&max_norm, &x, reduced, max_norm_strides))) {
        PyErr_SetString(PyExc_ValueError, "norms: the shapes of x, norms and max_norm do not fit");
        goto close_max_norm;
    }
    const normball_array array = {
        dtype, x.buffer.ndim, reduced, x.shape, x.buffer.buf, x.strides, norms.buffer.buf, strides,
        bounded ? max_norm.buffer.buf : NULL, bounded ? max_norm_strides : NULL, NULL, NULL};
    Py_BEGIN_ALLOW_THREADS
    normball_norms(&array, ord, NULL);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
close_max_norm:
    if (bounded) memory_close(&max_norm);
close_norms:
    memory_close(&norms);
close_x:
    memory_close(&x);
    return result;
}

/* The instruction sets that run here, best first. */
static PyObject *python_levels(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < LEVELS; i++) {
        if (!runs_here(compiled[i])) continue;
        PyObject *name = PyUnicode_FromString(compiled[i]->name);
        if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

/* Use this instruction set from now on (for tests: not while another thread is in a kernel); returns the one before. */
static PyObject *python_select(PyObject *module, PyObject *name) {
    (void)module;
    for (int i = 0; i < LEVELS; i++) {
        if (PyUnicode_CompareWithASCIIString(name, compiled[i]->name) != 0 || !runs_here(compiled[i])) continue;
        const char *before = selected->name;
        selected = compiled[i];
        return PyUnicode_FromString(before);
    }
    PyErr_SetString(PyExc_ValueError, "select: no such instruction set here; see levels()");
    return NULL;
}

static int add_address(PyObject *addresses, const char *name, uintptr_t address) {
    PyObject *number = PyLong_FromUnsignedLongLong(address);
    int failed = !number || PyDict_SetItemString(addresses, name, number) < 0;
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

static int module_exec(PyObject *module) {
    for (int i = LEVELS - 1; i >= 0; i--)
        if (runs_here(compiled[i])) selected = compiled[i];
    PyObject *addresses = PyDict_New();
    if (!addresses || add_address(addresses, "normball_constrain", (uintptr_t)normball_constrain) < 0 ||
        add_address(addresses, "normball_constrain_total", (uintptr_t)normball_constrain_total) < 0 ||
        add_address(addresses, "normball_norms", (uintptr_t)normball_norms) < 0 ||
        PyModule_AddObjectRef(module, "addresses", addresses) < 0) {
        Py_XDECREF(addresses);
        return -1;
    }
    Py_DECREF(addresses);
    return 0;
}

static PyMethodDef METHODS[] = {
    {"constrain", python_constrain, METH_VARARGS, "constrain(x, out, dtype, ord, reduced, max_norm, epsilon)"},
    {"constrain_total", python_constrain_total, METH_VARARGS, "constrain_total(((x, out, dtype), ...), ord, max_norm, epsilon) -> norm"},
    {"norms", python_norms, METH_VARARGS, "norms(x, norms, dtype, ord, reduced, max_norm or None)"},
    {"levels", python_levels, METH_NOARGS, "The instruction sets that run here, best first."},
    {"select", python_select, METH_O, "Use this instruction set; returns the one before."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "The C kernels; `addresses` has the functions of normball.h.", 0, METHODS, SLOTS,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }
