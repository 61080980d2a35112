/* The C ABI over the best kernels for this machine, and `normball.kernels._native`, its door from Python: the limited
 * API (one binary for every CPython since 3.11) and the buffer protocol, so it knows no framework either.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>

#include "normball.h"
#include "pool.h"

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

normball_limits normball_limits_now = {1 << 21, 1 << 17, 12 << 20, 1 << 17, 1 << 26};

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

#ifdef _MSC_VER
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

/* What the calling thread gives up for a kernel call. Per thread, for several may be in calls of their own. */
static THREAD_LOCAL PyThreadState *python;

/* `stop` of every call: has a signal handler raised, as Ctrl-C does? The handler may come back here with a call. */
static int interrupted(void) {
    PyEval_RestoreThread(python);
    int raised = PyErr_CheckSignals() < 0;
    python = PyEval_SaveThread();
    return raised;
}

/* What every call asks for: so many threads, or as the setting says for 0, and to be told of Ctrl-C. */
static normball_call call_of(int threads) { return (normball_call){threads, interrupted, NULL, NULL}; }

/* Runs a kernel without the GIL; where it was interrupted, an exception is set. */
#define WITHOUT_PYTHON(stopped, kernel_call) \
    do {                                     \
        python = PyEval_SaveThread();        \
        (stopped) = (kernel_call);           \
        PyEval_RestoreThread(python);        \
    } while (0)

/* An array and its bounds as they come from Python, and the memory behind its normball_array. */
typedef struct {
    Py_buffer buffers[4];
    int held; /* so many of the buffers */
    double max_norm, epsilon; /* where they came as floats */
    int64_t shape[NORMBALL_MAX_NDIM], x_strides[NORMBALL_MAX_NDIM], y_strides[NORMBALL_MAX_NDIM];
    int64_t max_norm_strides[NORMBALL_MAX_NDIM], epsilon_strides[NORMBALL_MAX_NDIM];
} Job;

static const struct {
    Py_ssize_t itemsize;
    size_t alignment;
} DTYPES[] = {{8, _Alignof(double)}, {4, _Alignof(float)}, {2, 2}, {2, 2}}; /* by code */

static int refuse(const char *message) {
    PyErr_SetString(PyExc_ValueError, message);
    return -1;
}

/* A code of normball.h between 0 and the largest; -1 and an exception where it is none. */
static int read_code(PyObject *number, int largest) {
    long code = PyLong_AsLong(number);
    if (code >= 0 && code <= largest) return (int)code;
    return PyErr_Occurred() ? -1 : refuse("dtype, ord, threads: unknown code");
}

/* The bits of a tuple of axes. */
static int read_axes(PyObject *axes, uint64_t *reduced) {
    Py_ssize_t count = PyTuple_Size(axes);
    *reduced = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        long axis = PyLong_AsLong(PyTuple_GetItem(axes, i));
        if (axis < 0 || axis >= NORMBALL_MAX_NDIM) return PyErr_Occurred() ? -1 : refuse("axes: out of range");
        *reduced |= (uint64_t)1 << axis;
    }
    return count < 0 ? -1 : 0;
}

/* The buffer of an array; NULL and an exception where it cannot hold the dtype, aligned. */
static const Py_buffer *job_hold(Job *job, PyObject *object, int dtype, int flags) {
    Py_buffer *buffer = job->buffers + job->held;
    if (PyObject_GetBuffer(object, buffer, PyBUF_STRIDES | flags) < 0) return NULL;
    job->held++;
    uintptr_t bits = (uintptr_t)buffer->buf;
    for (int d = 0; d < buffer->ndim; d++)
        if (buffer->shape[d] > 1) bits |= (uintptr_t)buffer->strides[d];
    if (buffer->ndim <= NORMBALL_MAX_NDIM && buffer->itemsize == DTYPES[dtype].itemsize &&
        bits % DTYPES[dtype].alignment == 0)
        return buffer;
    refuse("array: too many dimensions, not aligned, or not of the dtype it is said to have");
    return NULL;
}

/* x, all of it one group, and y of the same shape, or of that of the groups. */
static int job_open(Job *job, normball_array *array, PyObject *x, PyObject *y, int dtype, uint64_t reduced, int norms) {
    job->held = 0;
    const Py_buffer *from = job_hold(job, x, dtype, 0);
    const Py_buffer *to = from ? job_hold(job, y, norms ? NORMBALL_F64 : dtype, PyBUF_WRITABLE) : NULL;
    if (!to) return -1;
    int fits = from->ndim == to->ndim;
    for (int d = 0; fits && d < from->ndim; d++) {
        fits = to->shape[d] == (norms && (reduced >> d & 1) ? 1 : from->shape[d]);
        job->shape[d] = from->shape[d];
        job->x_strides[d] = from->strides[d];
        job->y_strides[d] = to->strides[d];
    }
    if (!fits) return refuse("x, out: the shapes do not fit");
    *array = (normball_array){
        dtype, from->ndim, reduced, job->shape, from->buf, job->x_strides, to->buf, job->y_strides, NULL, NULL, NULL, NULL};
    return 0;
}

/* A bound of the groups: a float, or an array of doubles that broadcasts against them, right-aligned as in NumPy. */
static const double *job_bound(Job *job, const normball_array *array, PyObject *object, double *number, int64_t *strides) {
    int missing = (int)array->ndim;
    const Py_buffer *buffer = NULL;
    if (PyFloat_Check(object)) {
        *number = PyFloat_AsDouble(object);
    } else {
        if (!(buffer = job_hold(job, object, NORMBALL_F64, 0))) return NULL;
        missing -= buffer->ndim;
    }
    int fits = missing >= 0;
    for (int d = 0; fits && d < array->ndim; d++) {
        strides[d] = 0;
        if (d < missing || buffer->shape[d - missing] == 1) continue;
        strides[d] = buffer->strides[d - missing];
        fits = !(array->reduced >> d & 1) && buffer->shape[d - missing] == array->shape[d];
    }
    if (fits) return buffer ? buffer->buf : number;
    refuse("max_norm, epsilon: do not broadcast against the groups");
    return NULL;
}

static int job_max_norm(Job *job, normball_array *array, PyObject *object) {
    array->max_norm_strides = job->max_norm_strides;
    array->max_norm = job_bound(job, array, object, &job->max_norm, job->max_norm_strides);
    return array->max_norm ? 0 : -1;
}

static int job_epsilon(Job *job, normball_array *array, PyObject *object) {
    array->epsilon_strides = job->epsilon_strides;
    array->epsilon = job_bound(job, array, object, &job->epsilon, job->epsilon_strides);
    return array->epsilon ? 0 : -1;
}

static void job_close(Job *job) {
    while (job->held) PyBuffer_Release(&job->buffers[--job->held]);
}

/* The jobs of a call. One array, the most frequent, needs no heap. */
typedef struct {
    Py_ssize_t count;
    Job *jobs, one_job;
    normball_array *arrays, one_array;
} Jobs;

static int jobs_open(Jobs *jobs, Py_ssize_t count) {
    jobs->count = count;
    jobs->jobs = count <= 1 ? &jobs->one_job : PyMem_Malloc((size_t)count * sizeof(Job));
    jobs->arrays = count <= 1 ? &jobs->one_array : PyMem_Malloc((size_t)count * sizeof(normball_array));
    int failed = !jobs->jobs || !jobs->arrays;
    if (failed) {
        PyErr_NoMemory();
        jobs->count = 0;
    }
    for (Py_ssize_t i = 0; i < jobs->count; i++) jobs->jobs[i].held = 0;
    return failed ? -1 : 0;
}

static void jobs_close(Jobs *jobs) {
    for (Py_ssize_t i = 0; i < jobs->count; i++) job_close(jobs->jobs + i);
    if (jobs->jobs != &jobs->one_job) PyMem_Free(jobs->jobs);
    if (jobs->arrays != &jobs->one_array) PyMem_Free(jobs->arrays);
}

/* Whether there are as many arguments as `head` and a whole number of arrays of `each`. */
static int count_fits(Py_ssize_t count, Py_ssize_t head, Py_ssize_t each) {
    if (count >= head && (count - head) % each == 0) return 1;
    PyErr_SetString(PyExc_TypeError, "_native: not so many arguments; see _native.pyi");
    return 0;
}

static int constrain_open(Job *job, normball_array *array, PyObject *const *args) {
    uint64_t reduced;
    int dtype = read_code(args[2], NORMBALL_BF16);
    if (dtype < 0 || read_axes(args[3], &reduced) < 0) return -1;
    if (job_open(job, array, args[0], args[1], dtype, reduced, 0) < 0) return -1;
    return job_max_norm(job, array, args[4]) < 0 || job_epsilon(job, array, args[5]) < 0 ? -1 : 0;
}

static PyObject *python_constrain(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    enum { HEAD = 2, EACH = 6 };
    (void)module;
    if (!count_fits(nargs, HEAD, EACH)) return NULL;
    Jobs jobs;
    int ord = read_code(args[0], NORMBALL_ORD_2), threads = read_code(args[1], INT_MAX), stopped = 0;
    if (ord < 0 || threads < 0) return NULL;
    const normball_call call = call_of(threads);
    int failed = jobs_open(&jobs, (nargs - HEAD) / EACH);
    for (Py_ssize_t i = 0; !failed && i < jobs.count; i++)
        failed = constrain_open(jobs.jobs + i, jobs.arrays + i, args + HEAD + EACH * i);
    if (!failed) WITHOUT_PYTHON(stopped, normball_constrain(jobs.count, jobs.arrays, ord, &call));
    jobs_close(&jobs);
    return failed || stopped ? NULL : Py_NewRef(Py_None);
}

static int total_open(Job *job, normball_array *array, PyObject *const *args) {
    int dtype = read_code(args[2], NORMBALL_BF16);
    return dtype < 0 ? -1 : job_open(job, array, args[0], args[1], dtype, ~(uint64_t)0, 0);
}

static PyObject *python_constrain_total(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    enum { HEAD = 4, EACH = 3 };
    (void)module;
    if (!count_fits(nargs, HEAD, EACH)) return NULL;
    Jobs jobs;
    int ord = read_code(args[0], NORMBALL_ORD_2), threads = read_code(args[1], INT_MAX), stopped = 0;
    if (ord < 0 || threads < 0) return NULL;
    const normball_call call = call_of(threads);
    double max_norm = PyFloat_AsDouble(args[2]), epsilon = PyFloat_AsDouble(args[3]), norm = 0;
    if (PyErr_Occurred()) return NULL;
    int failed = jobs_open(&jobs, (nargs - HEAD) / EACH);
    for (Py_ssize_t i = 0; !failed && i < jobs.count; i++)
        failed = total_open(jobs.jobs + i, jobs.arrays + i, args + HEAD + EACH * i);
    if (!failed)
        WITHOUT_PYTHON(
            stopped, normball_constrain_total(jobs.count, jobs.arrays, ord, max_norm, epsilon, &norm, &call));
    jobs_close(&jobs);
    return failed || stopped ? NULL : PyFloat_FromDouble(norm);
}

static PyObject *python_norms(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    enum { HEAD = 7 };
    (void)module;
    if (!count_fits(nargs, HEAD, HEAD)) return NULL;
    Job job;
    normball_array array;
    uint64_t reduced;
    int ord = read_code(args[0], NORMBALL_ORD_2), threads = read_code(args[1], INT_MAX), stopped = 0;
    int dtype = read_code(args[4], NORMBALL_BF16);
    if (ord < 0 || threads < 0 || dtype < 0 || read_axes(args[5], &reduced) < 0) return NULL;
    const normball_call call = call_of(threads);
    int failed = job_open(&job, &array, args[2], args[3], dtype, reduced, 1);
    if (!failed && args[6] != Py_None) failed = job_max_norm(&job, &array, args[6]);
    if (!failed) WITHOUT_PYTHON(stopped, normball_norms(&array, ord, &call));
    job_close(&job);
    return failed || stopped ? NULL : Py_NewRef(Py_None);
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

/* Set the limits (for tests, as above); returns those before. */
static PyObject *python_set_limits(PyObject *module, PyObject *args) {
    (void)module;
    normball_limits *now = &normball_limits_now, before = *now;
    long long parallel, task, stream, quick, stop;
    if (!PyArg_ParseTuple(args, "LLLLL", &parallel, &task, &stream, &quick, &stop)) return NULL;
    *now = (normball_limits){parallel, task, stream, quick, stop};
    return Py_BuildValue(
        "(LLLLL)", (long long)before.parallel, (long long)before.task, (long long)before.stream, (long long)before.quick,
        (long long)before.stop);
}

static PyObject *python_threads(PyObject *module, PyObject *args) {
    (void)module;
    (void)args;
    return PyLong_FromLongLong(pool_threads());
}

static PyObject *python_set_threads(PyObject *module, PyObject *number) {
    (void)module;
    long long threads = PyLong_AsLongLong(number);
    if (threads < 1) {
        if (!PyErr_Occurred()) refuse("set_threads: at least 1");
        return NULL;
    }
    pool_set_threads(threads);
    return Py_NewRef(Py_None);
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

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL

static PyMethodDef METHODS[] = {
    {"constrain", FAST(python_constrain), "constrain(ord, threads, *(x, out, dtype, axes, max_norm, epsilon) of each array)"},
    {"constrain_total", FAST(python_constrain_total), "constrain_total(ord, threads, max_norm, epsilon, *(x, out, dtype) of each)"},
    {"norms", FAST(python_norms), "norms(ord, threads, x, norms, dtype, axes, max_norm or None)"},
    {"levels", python_levels, METH_NOARGS, "The instruction sets that run here, best first."},
    {"select", python_select, METH_O, "Use this instruction set; returns the one before."},
    {"set_limits", python_set_limits, METH_VARARGS, "set_limits(parallel, task, stream, quick, stop) -> those before"},
    {"threads", python_threads, METH_NOARGS, "How many threads a call may use."},
    {"set_threads", python_set_threads, METH_O, "Let calls use so many threads from now on."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "The C kernels; `addresses` has the functions of normball.h.", 0, METHODS, SLOTS,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }
