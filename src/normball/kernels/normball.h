/* The C ABI of the kernels: raw memory in, raw memory out. README.md in this folder has the rules and the bounds.
 *
 * Strides are in bytes, of any sign, and may be 0 on inputs. x and y are aligned, in this machine's byte order, and
 * either the same memory with the same strides (in place: only violating groups are written) or disjoint.
 * The functions are thread-safe, cannot fail and know no framework.
 */
#ifndef NORMBALL_H
#define NORMBALL_H

#include <stdint.h>

enum { NORMBALL_F64 = 0, NORMBALL_F32 = 1, NORMBALL_F16 = 2, NORMBALL_BF16 = 3 };
enum { NORMBALL_ORD_INF = 0, NORMBALL_ORD_1 = 1, NORMBALL_ORD_2 = 2 };
enum { NORMBALL_MAX_NDIM = 64 };

/* One array of a total norm: seven 8-byte words, so that a caller may lay it out as an int64 array. */
typedef struct {
    int64_t dtype, ndim;
    const int64_t *shape;
    const void *x;
    const int64_t *x_strides;
    void *y;
    const int64_t *y_strides;
} normball_array;

/* Every group of x inside its ball, into y. Bit d of `reduced` set: axis d is a norm axis. The strides of max_norm
 * and epsilon are given for all ndim axes (those of norm axes are not read); 0 broadcasts. */
typedef void normball_constrain_fn(
    int64_t dtype, int64_t ord, int64_t ndim, uint64_t reduced, const int64_t *shape,
    const void *x, const int64_t *x_strides, void *y, const int64_t *y_strides,
    const double *max_norm, const int64_t *max_norm_strides,
    const double *epsilon, const int64_t *epsilon_strides);

/* All arrays together as one group inside its ball; returns the norm before, as normball_norms with a bound does. */
typedef double normball_constrain_total_fn(
    int64_t count, const normball_array *arrays, int64_t ord, double max_norm, double epsilon);

/* The norm of every group: at most an ulp off, exact where a double holds it. The strides of `norms` are given for
 * all ndim axes, as max_norm's are. max_norm may be NULL; else each norm compares with it as the exact norm does. */
typedef void normball_norms_fn(
    int64_t dtype, int64_t ord, int64_t ndim, uint64_t reduced, const int64_t *shape,
    const void *x, const int64_t *x_strides, const double *max_norm, const int64_t *max_norm_strides,
    double *norms, const int64_t *norms_strides);

/* The kernels as compiled for one instruction set. */
typedef struct {
    const char *name;
    normball_constrain_fn *constrain;
    normball_constrain_total_fn *constrain_total;
    normball_norms_fn *norms;
} normball_kernels;

normball_constrain_fn normball_constrain;
normball_constrain_total_fn normball_constrain_total;
normball_norms_fn normball_norms;

#endif
