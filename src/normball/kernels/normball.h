/* The C ABI of the kernels: raw memory in, raw memory out. README.md in this folder has the rules and the bounds.
 *
 * Strides are in bytes, of any sign, and may be 0 on inputs. x and y are aligned, in this machine's byte order, and
 * either the same memory with the same strides (in place: only violating groups are written) or disjoint.
 * The functions are thread-safe, cannot fail and know no framework. They return 0, or 1 where `stop` ended the call
 * early: then each group in y is wholly done or untouched.
 */
#ifndef NORMBALL_H
#define NORMBALL_H

#include <stdint.h>

enum { NORMBALL_F64 = 0, NORMBALL_F32 = 1, NORMBALL_F16 = 2, NORMBALL_BF16 = 3 };
enum { NORMBALL_ORD_INF = 0, NORMBALL_ORD_1 = 1, NORMBALL_ORD_2 = 2 };
enum { NORMBALL_MAX_NDIM = 64 };

/* One array and its bounds: twelve 8-byte words, so that a caller may lay it out as an int64 array.
 * Bit d of `reduced` set: axis d is a norm axis. The strides of the bounds are given for all ndim axes (those of norm
 * axes are not read); 0 broadcasts. */
typedef struct {
    int64_t dtype, ndim;
    uint64_t reduced;
    const int64_t *shape;
    const void *x;
    const int64_t *x_strides;
    void *y;
    const int64_t *y_strides;
    const double *max_norm;
    const int64_t *max_norm_strides;
    const double *epsilon;
    const int64_t *epsilon_strides;
} normball_array;

/* How to go about a call: four 8-byte words, each of which may be 0; so may the pointer to them. */
typedef struct {
    int64_t threads;                                             /* how many may work; 0: as the setting says */
    int (*stop)(void);                                           /* asked now and then by the calling thread: 1 ends the call */
    void (*produce)(void *context, int64_t begin, int64_t end);  /* fills the entries begin to end of x, which is C-contiguous,
                                                                    y too; each once, before it is read, from any thread */
    void *context;
} normball_call;

/* Every group of every x inside its ball, into y. */
typedef int normball_constrain_fn(int64_t count, const normball_array *arrays, int64_t ord, const normball_call *call);

/* All arrays together as one group inside its ball; *norm is the norm before, as normball_norms with a bound has it.
 * The arrays' own bounds are not read. */
typedef int normball_constrain_total_fn(
    int64_t count, const normball_array *arrays, int64_t ord, double max_norm, double epsilon, double *norm,
    const normball_call *call);

/* The norm of every group, into y, float64 with strides given for all ndim axes as max_norm's are: at most an ulp off,
 * exact where a double holds it. max_norm may be NULL; else each norm compares with it as the exact norm does. */
typedef int normball_norms_fn(const normball_array *array, int64_t ord, const normball_call *call);

/* Where a call goes about its work another way, with the same bits; in bytes. Tests set them, to go every way with small
 * arrays. */
typedef struct {
    int64_t parallel; /* where there is less than this, waking a thread takes longer than the work */
    int64_t task;     /* work is handed out in about so much at a time */
    int64_t stream;   /* results longer than this are written past the caches */
    int64_t quick;    /* groups up to this long are still in cache when a quick sum turns out not to do */
    int64_t stop;     /* `stop` is asked after so much at the latest */
} normball_limits;

extern normball_limits normball_limits_now;

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
