/* Our Ops in PyTensor's C linkers: what their `perform` does, on the same kernels, without a way through Python.
 * pytensor_c.py puts this text, after normball.h, into every module that PyTensor compiles with one of our Ops in it:
 * as C++, with NumPy's C API imported. Functions return 0, or -1 with an exception set.
 */

static normball_constrain_fn *normball_constrain_here;
static normball_constrain_total_fn *normball_constrain_total_here;
static normball_norms_fn *normball_norms_here;

/* The kernels lie elsewhere in every process, and this module is loaded from PyTensor's cache: ask each time. */
static int normball_load(void) {
    PyObject *native = PyImport_ImportModule("normball.kernels._native");
    PyObject *addresses = native ? PyObject_GetAttrString(native, "addresses") : NULL;
    const char *const names[] = {"normball_constrain", "normball_constrain_total", "normball_norms"};
    void *found[] = {NULL, NULL, NULL};
    for (int i = 0; addresses && i < 3; i++) {
        PyObject *address = PyMapping_GetItemString(addresses, names[i]);
        found[i] = address ? PyLong_AsVoidPtr(address) : NULL;
        Py_XDECREF(address);
    }
    Py_XDECREF(addresses);
    Py_XDECREF(native);
    normball_constrain_here = (normball_constrain_fn *)found[0];
    normball_constrain_total_here = (normball_constrain_total_fn *)found[1];
    normball_norms_here = (normball_norms_fn *)found[2];
    return PyErr_Occurred() ? -1 : 0;
}

/* The shape and strides of an array as the ABI wants them. */
typedef struct {
    int64_t shape[NORMBALL_MAX_NDIM], strides[NORMBALL_MAX_NDIM];
} NormballLayout;

static void normball_lay_out(PyArrayObject *a, NormballLayout *layout) {
    for (int d = 0; d < PyArray_NDIM(a); d++) {
        layout->shape[d] = PyArray_DIM(a, d);
        layout->strides[d] = PyArray_STRIDE(a, d);
    }
}

static int64_t normball_dtype(PyArrayObject *x) {
    return PyArray_TYPE(x) == NPY_DOUBLE ? NORMBALL_F64 : PyArray_TYPE(x) == NPY_FLOAT ? NORMBALL_F32 : NORMBALL_F16;
}

/* ---- bounds ------------------------------------------------------------------------------------------------------- */

/* A bound in float64: a new reference, to the array itself where it is float64 already. */
static PyArrayObject *normball_wide(PyArrayObject *bound) {
    return (PyArrayObject *)PyArray_FROM_OTF((PyObject *)bound, NPY_DOUBLE, NPY_ARRAY_ALIGNED | NPY_ARRAY_NOTSWAPPED);
}

/* The shape as a tuple, the axes in `reduced` as 1. */
static PyObject *normball_shape(PyArrayObject *a, uint64_t reduced) {
    PyObject *shape = PyTuple_New(PyArray_NDIM(a));
    for (int d = 0; shape && d < PyArray_NDIM(a); d++) {
        PyObject *length = PyLong_FromSsize_t(reduced >> d & 1 ? 1 : PyArray_DIM(a, d));
        if (!length) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, d, length);
    }
    return shape;
}

/* The strides that broadcast a bound against the groups of x: it has no dimensions, or as many as x. */
static int normball_fit(const char *name, PyArrayObject *bound, PyArrayObject *x, uint64_t reduced, int64_t *strides) {
    int fits = 1;
    for (int d = 0; d < PyArray_NDIM(x); d++) {
        strides[d] = 0;
        if (PyArray_NDIM(bound) == 0 || PyArray_DIM(bound, d) == 1) continue;
        fits = fits && !(reduced >> d & 1) && PyArray_DIM(bound, d) == PyArray_DIM(x, d);
        strides[d] = PyArray_STRIDE(bound, d);
    }
    if (fits) return 0;
    PyObject *arguments = PyImport_ImportModule("normball.arguments");
    PyObject *error = arguments ? PyObject_CallMethod(arguments, "wrong_bound_shape", "sNN", name,
                                                      normball_shape(bound, 0), normball_shape(x, reduced)) : NULL;
    if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    Py_XDECREF(arguments);
    return -1;
}

/* ---- outputs ------------------------------------------------------------------------------------------------------ */

static void normball_extent(PyArrayObject *a, char **low, char **high) {
    *low = *high = PyArray_BYTES(a);
    if (PyArray_SIZE(a) == 0) return;
    for (int d = 0; d < PyArray_NDIM(a); d++) {
        npy_intp reach = (PyArray_DIM(a, d) - 1) * PyArray_STRIDE(a, d);
        *(reach < 0 ? low : high) += reach;
    }
    *high += PyArray_ITEMSIZE(a);
}

static int normball_apart(PyArrayObject *a, PyArrayObject *b) {
    char *a_low, *a_high, *b_low, *b_high;
    normball_extent(a, &a_low, &a_high);
    normball_extent(b, &b_low, &b_high);
    return a_high <= b_low || b_high <= a_low;
}

/* Whether the last call's output can be this one's: of that shape and type, and apart from what is read. */
static int normball_fits(
    PyArrayObject *held, int ndim, const npy_intp *shape, int type, int64_t count, PyArrayObject *const *read) {
    int fits = held && PyArray_NDIM(held) == ndim && PyArray_TYPE(held) == type && PyArray_ISBEHAVED(held) &&
               PyArray_CompareLists(PyArray_DIMS(held), shape, ndim);
    for (int64_t i = 0; fits && i < count; i++) fits = normball_apart(held, read[i]);
    return fits;
}

static int normball_replace(PyArrayObject **y, PyObject *fresh) {
    if (!fresh) return -1;
    Py_XDECREF(*y);
    *y = (PyArrayObject *)fresh;
    return 0;
}

/* Where x's result goes: x itself, the last call's output, or a fresh array. */
static int normball_output(
    PyArrayObject **y, PyArrayObject *x, int inplace, int64_t count, PyArrayObject *const *read) {
    if (inplace) {
        Py_INCREF(x);
        return normball_replace(y, (PyObject *)x);
    }
    if (normball_fits(*y, PyArray_NDIM(x), PyArray_DIMS(x), PyArray_TYPE(x), count, read)) return 0;
    return normball_replace(y, PyArray_NewLikeArray(x, NPY_KEEPORDER, NULL, 0));
}

/* ---- NormConstraint ----------------------------------------------------------------------------------------------- */

static int normball_constrain_wide(
    PyArrayObject *x, PyArrayObject *max_norm, PyArrayObject *epsilon, PyArrayObject **y, int inplace,
    uint64_t reduced, int64_t ord) {
    NormballLayout of_x, of_y;
    int64_t max_norm_strides[NORMBALL_MAX_NDIM], epsilon_strides[NORMBALL_MAX_NDIM];
    PyArrayObject *const read[] = {x, max_norm, epsilon};
    /* Checked before anything is written. */
    if (normball_fit("max_norm", max_norm, x, reduced, max_norm_strides) < 0) return -1;
    if (normball_fit("epsilon", epsilon, x, reduced, epsilon_strides) < 0) return -1;
    if (normball_output(y, x, inplace, 3, read) < 0) return -1;
    normball_lay_out(x, &of_x);
    normball_lay_out(*y, &of_y);
    const normball_array array = {
        normball_dtype(x), PyArray_NDIM(x), reduced, of_x.shape, PyArray_DATA(x), of_x.strides, PyArray_DATA(*y),
        of_y.strides, (const double *)PyArray_DATA(max_norm), max_norm_strides,
        (const double *)PyArray_DATA(epsilon), epsilon_strides};
    NPY_BEGIN_THREADS_DEF
    NPY_BEGIN_THREADS_THRESHOLDED(PyArray_SIZE(x));
    normball_constrain_here(1, &array, ord, NULL);
    NPY_END_THREADS
    return 0;
}

static int normball_op_constrain(
    PyArrayObject *x, PyArrayObject *max_norm, PyArrayObject *epsilon, PyArrayObject **y, int inplace,
    uint64_t reduced, int64_t ord) {
    PyArrayObject *bound = normball_wide(max_norm), *small = normball_wide(epsilon);
    int status = bound && small ? normball_constrain_wide(x, bound, small, y, inplace, reduced, ord) : -1;
    Py_XDECREF(small);
    Py_XDECREF(bound);
    return status;
}

/* ---- TotalNormConstraint ------------------------------------------------------------------------------------------ */

static int normball_op_total(
    int64_t count, PyArrayObject *const *xs, PyArrayObject *max_norm, PyArrayObject *epsilon,
    PyArrayObject **const *ys, PyArrayObject **norm, const char *inplace, int64_t ord) {
    PyArrayObject *bound = normball_wide(max_norm), *small = normball_wide(epsilon);
    normball_array *arrays = (normball_array *)PyMem_Calloc(count, sizeof *arrays);
    NormballLayout *layouts = (NormballLayout *)PyMem_Calloc(count, 2 * sizeof *layouts);
    int64_t size = 0;
    int status = bound && small && arrays && layouts ? 0 : -1;
    if (status < 0 && !PyErr_Occurred()) PyErr_NoMemory();
    if (status == 0 && !normball_fits(*norm, 0, NULL, NPY_DOUBLE, 0, NULL))
        status = normball_replace(norm, PyArray_SimpleNew(0, NULL, NPY_DOUBLE));
    for (int64_t i = 0; status == 0 && i < count; i++) {
        NormballLayout *of_x = layouts + 2 * i, *of_y = of_x + 1;
        /* All xs are read before the first y is written, but for the second time after it. */
        status = normball_output(ys[i], xs[i], inplace[i], count, xs);
        if (status < 0) break;
        normball_lay_out(xs[i], of_x);
        normball_lay_out(*ys[i], of_y);
        normball_array array = {
            normball_dtype(xs[i]), PyArray_NDIM(xs[i]), ~(uint64_t)0, of_x->shape, PyArray_DATA(xs[i]), of_x->strides,
            PyArray_DATA(*ys[i]), of_y->strides, NULL, NULL, NULL, NULL};
        arrays[i] = array;
        size += PyArray_SIZE(xs[i]);
    }
    if (status == 0) {
        double c = *(double *)PyArray_DATA(bound), e = *(double *)PyArray_DATA(small);
        NPY_BEGIN_THREADS_DEF
        NPY_BEGIN_THREADS_THRESHOLDED(size);
        normball_constrain_total_here(count, arrays, ord, c, e, (double *)PyArray_DATA(*norm), NULL);
        NPY_END_THREADS
    }
    PyMem_Free(layouts);
    PyMem_Free(arrays);
    Py_XDECREF(small);
    Py_XDECREF(bound);
    return status;
}

/* ---- Norms -------------------------------------------------------------------------------------------------------- */

static int normball_norms_wide(
    PyArrayObject *x, PyArrayObject *max_norm, PyArrayObject **y, uint64_t reduced, int64_t ord) {
    NormballLayout of_x, of_y;
    int64_t max_norm_strides[NORMBALL_MAX_NDIM] = {0}; /* advance a NULL nowhere */
    npy_intp shape[NORMBALL_MAX_NDIM];
    PyArrayObject *const read[] = {x, max_norm};
    for (int d = 0; d < PyArray_NDIM(x); d++) shape[d] = reduced >> d & 1 ? 1 : PyArray_DIM(x, d);
    if (max_norm && normball_fit("max_norm", max_norm, x, reduced, max_norm_strides) < 0) return -1;
    if (!normball_fits(*y, PyArray_NDIM(x), shape, NPY_DOUBLE, max_norm ? 2 : 1, read) &&
        normball_replace(y, PyArray_SimpleNew(PyArray_NDIM(x), shape, NPY_DOUBLE)) < 0)
        return -1;
    normball_lay_out(x, &of_x);
    normball_lay_out(*y, &of_y);
    const normball_array array = {
        normball_dtype(x), PyArray_NDIM(x), reduced, of_x.shape, PyArray_DATA(x), of_x.strides, PyArray_DATA(*y),
        of_y.strides, max_norm ? (const double *)PyArray_DATA(max_norm) : NULL, max_norm_strides, NULL, NULL};
    NPY_BEGIN_THREADS_DEF
    NPY_BEGIN_THREADS_THRESHOLDED(PyArray_SIZE(x));
    normball_norms_here(&array, ord, NULL);
    NPY_END_THREADS
    return 0;
}

static int normball_op_norms(
    PyArrayObject *x, PyArrayObject *max_norm, PyArrayObject **y, uint64_t reduced, int64_t ord) {
    PyArrayObject *bound = max_norm ? normball_wide(max_norm) : NULL;
    int status = max_norm && !bound ? -1 : normball_norms_wide(x, bound, y, reduced, ord);
    Py_XDECREF(bound);
    return status;
}
