/* The kernels. Compiled once for each instruction set, with the same bits from each: README.md has the rules, the
 * error bounds and a map of this file.
 */
#include "normball.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#else
#include <fenv.h>
#endif

#include "exact.h"

#ifndef NORMBALL_ISA
#define NORMBALL_ISA baseline
#endif
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)

enum {
    LANES = 16,          /* independent accumulators of a row: fixed, so that every instruction set adds alike */
    ROW_BLOCK = 1024,    /* entries of a row summed before the lanes are folded */
    COLUMN_BLOCK = 128,  /* rows of a column summed before they are folded */
    CHUNK = 1024,        /* columns at a time: their sums stay in cache, and a block has room for them */
    WIDE_CHUNK = 4096,   /* the same where x and y need no block: longer stretches of memory are 1.4 times faster */
    STEP_ROWS = 4,       /* rows at a time: their sums stay in registers */
    SHORT = 32,          /* groups of fewer entries are handled many at a time, as columns */
    NEARBY = 16,         /* columns in place: gaps up to this long are rewritten with the bits they have */
};

/* Bounds on relative errors; the derivations are in README.md. */
#define UNIT 0x1p-53
#define PLAIN_DOUBT 0x1p-45   /* sums of at most 128 terms a lane in float64, then double-double: 2**-46 */
#define PLAIN_MARGIN 0x1p-46  /* half of that, as a norm, and the rounding of the factor and of the product */
#define WIDE_DOUBT 0x1p-70    /* sums in double-double throughout: 2**-71 */
#define WIDE_MARGIN (2.01 * UNIT)
#define FLOAT_MARGIN (2.01 * 0x1p-24)

/* Sums in this range, and bounds in the other, neither overflow nor lose bits in any step below. */
#define LEAST_SUM 0x1p-700
#define MOST_SUM 0x1p900
#define SURELY_ABOVE 0x1p-340 /* a bound above every norm whose sum is below LEAST_SUM */
#define LEAST_BOUND 0x1p-400
#define LEAST_FACTOR 0x1p-900
#define LEAST_NARROW_BOUND 0x1p-40 /* 2**60 entries rounded up by 2**-150 each are less than 2**-30 of it */
#define LEAST_NARROW_FACTOR 0x1p-100

#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define EACH_ALONE _Pragma("GCC ivdep")
#else
#define EACH_ALONE
#endif

/* ---- arithmetic without error ------------------------------------------------------------------------------ */

/* high + low, low at most an ulp of high */
typedef struct {
    double high, low;
} Wide;

static inline Wide two_sum(double a, double b) {
    double sum = a + b, part = sum - a;
    return (Wide){sum, (a - (sum - part)) + (b - part)};
}

/* v * v - near, rounded once, where square is v * v rounded and square - near is exact: the same bits with a fused
 * multiply-add and without. */
static inline double square_minus(double v, double square, double near) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(FP_FAST_FMA)
    (void)square;
    return fma(v, v, -near);
#else /* Dekker: the error of the square, exactly */
    double scaled = 134217729.0 * v, high = scaled - (scaled - v), low = v - high;
    return (square - near) + (((high * high - square) + 2 * high * low) + low * low);
#endif
}

static inline Wide wide_add(Wide sum, double high, double low) {
    Wide s = two_sum(sum.high, high);
    double rest = s.low + (sum.low + low), total = s.high + rest;
    return (Wide){total, rest - (total - s.high)};
}

static inline double double_larger(double largest, double size) { /* NaN stays */
    return (size > largest) | (size != size) ? size : largest;
}

/* ---- the inner loops, over contiguous float or double --------------------------------------------------------- */

/* A factor as the float by which floats are multiplied: lowered and rounded once, as WIDE_MARGIN does it for doubles. */
static inline float float_factor(double factor) { return factor == 1 ? 1 : (float)(factor * (1 - FLOAT_MARGIN)); }

/* Towards zero. */
static inline float float_truncated(double exact) {
    float rounded = (float)exact;
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bits -= fabs((double)rounded) > fabs(exact);
    memcpy(&rounded, &bits, sizeof bits);
    return rounded;
}

static inline double double_larger_size(double largest, double v) { return double_larger(largest, fabs(v)); }

static inline float float_larger_size(float largest, float v) {
    float size = fabsf(v);
    return (size > largest) | (size != size) ? size : largest;
}

#define REAL double
#define NAME(function) double_##function
#include "loops.h"
#undef REAL
#undef NAME
#define REAL float
#define NAME(function) float_##function
#include "loops.h"
#undef REAL
#undef NAME

/* Sums of |v| or v * v. `ord` is a constant wherever these are called, so each call compiles to one plain loop. */

static inline double plain_power(float v, int ord) { /* exact */
    double wide = v;
    return ord == 2 ? wide * wide : fabs(wide);
}

/* Add |v| or v * v to a sum in two words; `low` takes the error of the addition (and that of the square), rounded.
 * In Knuth's two_sum, term - part is exact, as square_minus wants it. */
static inline void wide_accumulate(double *high, double *low, double v, int ord) {
    double term = ord == 2 ? v * v : fabs(v), sum = *high + term, part = sum - *high;
    double rest = ord == 2 ? square_minus(v, term, part) : term - part;
    *low += (*high - (sum - part)) + rest;
    *high = sum;
}

static inline Wide plain_row(const float *x, int64_t n, int ord) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += plain_power(x[i + l], ord);
    for (int l = 0; i + l < n; l++) lane[l] += plain_power(x[i + l], ord);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return (Wide){lane[0], 0};
}

static inline Wide wide_row(const double *x, int64_t n, int ord) {
    double high[LANES] = {0}, low[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) wide_accumulate(&high[l], &low[l], x[i + l], ord);
    for (int l = 0; i + l < n; l++) wide_accumulate(&high[l], &low[l], x[i + l], ord);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) {
            Wide sum = two_sum(high[l], high[l + half]);
            high[l] = sum.high;
            low[l] += sum.low + low[l + half];
        }
    return (Wide){high[0], low[0]};
}

static inline void plain_columns(const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict sum, int ord) {
    int64_t r = 0;
    for (; r + STEP_ROWS <= rows; r += STEP_ROWS, x += STEP_ROWS * row_step) {
        const float *a = (const float *)x, *b = (const float *)(x + row_step);
        const float *c = (const float *)(x + 2 * row_step), *d = (const float *)(x + 3 * row_step);
        for (int64_t i = 0; i < n; i++)
            sum[i] = sum[i] + plain_power(a[i], ord) + plain_power(b[i], ord) + plain_power(c[i], ord) + plain_power(d[i], ord);
    }
    for (; r < rows; r++, x += row_step)
        for (int64_t i = 0; i < n; i++) sum[i] += plain_power(((const float *)x)[i], ord);
}

static inline void wide_columns(
    const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict high, double *restrict low, int ord) {
    for (int64_t r = 0; r < rows; r++, x += row_step) {
        const double *row = (const double *)x;
        for (int64_t i = 0; i < n; i++) wide_accumulate(&high[i], &low[i], row[i], ord);
    }
}

/* ---- float16 and bfloat16, as their bits ------------------------------------------------------------------------- */

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float half_to_float(uint16_t half) {
    uint32_t size = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t finite = bits_of_float(float_of_bits(size) * 0x1p112f); /* exact: moves the exponent's bias */
    return float_of_bits((size >= 0x0f800000u ? size | 0x7f800000u : finite) | sign);
}

/* Truncated; the value is at most 65504, inf or NaN. */
static inline uint16_t float_to_half(float value) {
    uint32_t bits = bits_of_float(value), size = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000;
    uint32_t normal = (size >> 13) - (112u << 10);
    uint32_t subnormal = (uint32_t)(float_of_bits(size < 0x38800000u ? size : 0) * 0x1p24f);
    uint32_t special = 0x7c00 | (size > 0x7f800000u ? 0x200 | (size >> 13 & 0x3ff) : 0);
    return (uint16_t)(sign | (size < 0x38800000u ? subnormal : size < 0x47800000u ? normal : special));
}

static void halves_to_floats(float *out, const uint16_t *x, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    for (; i < n; i++) out[i] = half_to_float(x[i]);
}

static void floats_to_halves(uint16_t *out, const float *x, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_ZERO));
#endif
    for (; i < n; i++) out[i] = float_to_half(x[i]);
}

static void bfloats_to_floats(float *out, const uint16_t *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = float_of_bits((uint32_t)x[i] << 16);
}

static void floats_to_bfloats(uint16_t *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = (uint16_t)(bits_of_float(x[i]) >> 16);
}

/* ---- from any memory to contiguous float or double, and back ----------------------------------------------------- */

typedef union {
    double d[ROW_BLOCK];
    float f[ROW_BLOCK];
} Buffer;

static inline int64_t itemsize(int64_t dtype) { return dtype == NORMBALL_F64 ? 8 : dtype == NORMBALL_F32 ? 4 : 2; }

/* Kernels work in float64 for float64, and in float32 for the rest. */
static inline int64_t worksize(int64_t dtype) { return dtype == NORMBALL_F64 ? 8 : 4; }

static inline int works_in_place(int64_t dtype, int64_t step) { return step == itemsize(dtype) && step == worksize(dtype); }

static inline void copy_strided(char *y, int64_t y_step, const char *x, int64_t x_step, int64_t n, int64_t size) {
    if (size == 8)
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 8);
    else if (size == 4)
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 4);
    else
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 2);
}

/* At most ROW_BLOCK entries as contiguous float or double: x itself where it is that already, else in `buffer`. */
static const void *fetch(int64_t dtype, const char *x, int64_t step, int64_t n, void *buffer) {
    if (works_in_place(dtype, step)) return x;
    uint16_t packed[ROW_BLOCK];
    int64_t size = itemsize(dtype);
    if (size > 2) {
        copy_strided(buffer, size, x, step, n, size);
        return buffer;
    }
    const uint16_t *halves = (const uint16_t *)x;
    if (step != 2) {
        copy_strided((char *)packed, 2, x, step, n, 2);
        halves = packed;
    }
    if (dtype == NORMBALL_F16) halves_to_floats(buffer, halves, n);
    else bfloats_to_floats(buffer, halves, n);
    return buffer;
}

/* The other way round: at most ROW_BLOCK contiguous floats or doubles to their place, truncated to the dtype. */
static void deliver(int64_t dtype, char *y, int64_t step, int64_t n, const void *source) {
    uint16_t packed[ROW_BLOCK];
    int64_t size = itemsize(dtype);
    if (size > 2) {
        copy_strided(y, step, source, size, n, size);
        return;
    }
    uint16_t *halves = step == 2 ? (uint16_t *)y : packed;
    if (dtype == NORMBALL_F16) floats_to_halves(halves, source, n);
    else floats_to_bfloats(halves, source, n);
    if (step != 2) copy_strided(y, step, (char *)packed, 2, n, 2);
}

/* At most ROW_BLOCK entries as doubles. */
static const double *fetch_doubles(int64_t dtype, const char *x, int64_t step, int64_t n, double *buffer) {
    Buffer narrow;
    if (dtype == NORMBALL_F64) return fetch(dtype, x, step, n, buffer);
    const float *values = fetch(dtype, x, step, n, &narrow);
    for (int64_t i = 0; i < n; i++) buffer[i] = values[i];
    return buffer;
}

/* ---- walks over dimensions ------------------------------------------------------------------------------------------ */

enum { X, Y, BOUND, EPSILON, OPERANDS, NORMS = EPSILON /* where norms are handed out */ };

typedef struct {
    int64_t size;
    int64_t step[OPERANDS];
} Dim;

typedef struct {
    int count;
    Dim dim[NORMBALL_MAX_NDIM];
} Dims;

typedef struct {
    char *at[OPERANDS];
} Place;

/* Visits every index of all dims but the last, which is left to the caller as a run. */
typedef struct {
    const Dims *dims;
    Place place;
    int64_t length;           /* of the run */
    const int64_t *step;      /* along the run */
    int64_t index[NORMBALL_MAX_NDIM];
} Walk;

static void walk_start(Walk *walk, const Dims *dims, Place place) {
    static const int64_t still[OPERANDS] = {0};
    walk->dims = dims;
    walk->place = place;
    walk->length = dims->count ? dims->dim[dims->count - 1].size : 1;
    walk->step = dims->count ? dims->dim[dims->count - 1].step : still;
    for (int d = 0; d < dims->count; d++) walk->index[d] = 0;
}

static int walk_next(Walk *walk) {
    for (int d = walk->dims->count - 2; d >= 0; d--) {
        const Dim *dim = &walk->dims->dim[d];
        int wraps = ++walk->index[d] == dim->size;
        int64_t steps = wraps ? 1 - dim->size : 1;
        if (wraps) walk->index[d] = 0;
        for (int o = 0; o < OPERANDS; o++) walk->place.at[o] += steps * dim->step[o];
        if (!wraps) return 1;
    }
    return 0;
}

static Place moved(Place place, const int64_t *step, int64_t count) {
    for (int o = 0; o < OPERANDS; o++) place.at[o] += step[o] * count;
    return place;
}

/* Outermost first: descending |stride| of x, broadcast dims (stride 0) before all. */
static void insert_sorted(Dims *dims, Dim dim) {
    uint64_t key = (uint64_t)dim.step[X] - 1;
    int at = dims->count++;
    for (; at > 0 && (uint64_t)dims->dim[at - 1].step[X] - 1 < key; at--) dims->dim[at] = dims->dim[at - 1];
    dims->dim[at] = dim;
}

/* Merge neighbours that are one longer dim for the first `operands` of the operands. */
static void collapse(Dims *dims, int operands) {
    int kept = 0;
    for (int d = 0; d < dims->count; d++) {
        Dim *outer = &dims->dim[kept - (kept > 0)], inner = dims->dim[d];
        int joins = kept > 0;
        for (int o = 0; joins && o < operands; o++) joins = outer->step[o] == inner.step[o] * inner.size;
        if (joins) {
            inner.size *= outer->size;
            *outer = inner;
        } else {
            dims->dim[kept++] = inner;
        }
    }
    dims->count = kept;
}

/* How one call goes over its array. Sums follow x's layout alone, so that y's has no influence on the bits. */
typedef struct {
    int64_t dtype, ord;
    int wide;      /* sums in double-double throughout: for float64, and for norms that are handed out */
    int columnar;  /* many groups side by side, entry by entry; else group by group */
    int only_norms; /* hand out the norms, and write nothing else */
    int empty;     /* no entries */
    Dims kept, reduced, written; /* the kept axes; the norm axes as x lies; the same as x and y lie */
    Place place;
} Plan;

static int64_t entries(const Dims *dims) {
    int64_t product = 1;
    for (int d = 0; d < dims->count; d++) product *= dims->dim[d].size;
    return product;
}

static int runs_along_kept(const Plan *plan) {
    const Dims *kept = &plan->kept, *reduced = &plan->reduced;
    if (kept->count == 0) return 0;
    if (reduced->count == 0 || entries(reduced) < SHORT) return 1;
    return (uint64_t)kept->dim[kept->count - 1].step[X] - 1 < (uint64_t)reduced->dim[reduced->count - 1].step[X] - 1;
}

static void plan_make(
    Plan *plan, int64_t dtype, int64_t ord, int64_t ndim, uint64_t reduced, const int64_t *shape, Place place,
    const int64_t *const strides[OPERANDS]) {
    plan->dtype = dtype;
    plan->ord = ord;
    plan->wide = dtype == NORMBALL_F64;
    plan->only_norms = plan->empty = 0;
    plan->kept.count = plan->reduced.count = 0;
    for (int64_t d = 0; d < ndim; d++) {
        int is_reduced = (int)(reduced >> d & 1);
        Dim dim = {shape[d], {0}};
        if (dim.size == 0) plan->empty = 1;
        if (dim.size <= 1) continue;
        for (int o = 0; o < OPERANDS; o++)
            if (strides[o] && !(is_reduced && o >= BOUND)) dim.step[o] = strides[o][d];
        if (dim.step[X] < 0) { /* walk memory upwards */
            place = moved(place, dim.step, dim.size - 1);
            for (int o = 0; o < OPERANDS; o++) dim.step[o] = -dim.step[o];
        }
        insert_sorted(is_reduced ? &plan->reduced : &plan->kept, dim);
    }
    plan->place = place;
    plan->written = plan->reduced;
    collapse(&plan->kept, OPERANDS);
    collapse(&plan->reduced, Y);
    collapse(&plan->written, BOUND);
    plan->columnar = runs_along_kept(plan);
}

/* ---- groups, one by one ------------------------------------------------------------------------------------------------ */

/* One array's share of a group. */
typedef struct {
    const Plan *plan;
    Place place;
} Part;

/* A group: one part, or for a total norm the whole of several arrays. */
typedef struct {
    int64_t ord, count;
    int narrow;                   /* some part is not float64 */
    Part only;                    /* where arrays is NULL */
    const normball_array *arrays; /* else */
} Group;

static Group group_at(const Plan *plan, Place place) { return (Group){plan->ord, 1, plan->dtype != NORMBALL_F64, {plan, place}, NULL}; }

/* Part i of the group. Plans of a total norm are made anew for every pass, into `scratch`: no memory to allocate. */
static Part part_of(const Group *group, int64_t i, Plan *scratch) {
    if (!group->arrays) return group->only;
    const normball_array *array = &group->arrays[i];
    const int64_t *const strides[OPERANDS] = {array->x_strides, array->y_strides};
    Place place = {{(char *)array->x, array->y}};
    plan_make(scratch, array->dtype, group->ord, array->ndim, ~(uint64_t)0, array->shape, place, strides);
    scratch->wide = 1;
    return (Part){scratch, scratch->place};
}

static inline Wide merge_sums(Wide a, Wide b, int64_t ord) {
    if (ord == NORMBALL_ORD_INF) return (Wide){double_larger(a.high, b.high), 0};
    return wide_add(a, b.high, b.low);
}

/* Sum (or the largest) of at most ROW_BLOCK contiguous doubles. */
static Wide wide_block(const double *x, int64_t n, int64_t ord) {
    if (ord == NORMBALL_ORD_INF) return (Wide){double_largest(x, n), 0};
    return ord == 2 ? wide_row(x, n, 2) : wide_row(x, n, 1);
}

static Wide plain_block(const float *x, int64_t n, int64_t ord) {
    if (ord == NORMBALL_ORD_INF) return (Wide){float_largest(x, n), 0};
    return ord == 2 ? plain_row(x, n, 2) : plain_row(x, n, 1);
}

static Wide row_sum(const Plan *plan, Place place) {
    Wide sum = {0, 0};
    Buffer buffer;
    Walk walk;
    walk_start(&walk, &plan->reduced, place);
    do {
        for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
            int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
            const char *x = walk.place.at[X] + i * step;
            Wide block = plan->wide ? wide_block(fetch_doubles(plan->dtype, x, step, n, buffer.d), n, plan->ord)
                                    : plain_block(fetch(plan->dtype, x, step, n, &buffer), n, plan->ord);
            sum = merge_sums(sum, block, plan->ord);
        }
    } while (walk_next(&walk));
    return sum;
}

/* The group's largest |entry|, NaN where there is one. */
static double largest_entry(const Group *group) {
    double result = 0, buffer[ROW_BLOCK];
    Plan scratch;
    Walk walk;
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        if (part.plan->empty) continue;
        walk_start(&walk, &part.plan->reduced, part.place);
        do {
            for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
                int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
                const double *x = fetch_doubles(part.plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
                result = double_larger(result, double_largest(x, n));
            }
        } while (walk_next(&walk));
    }
    return result;
}

/* Sum of a block of one column, in the order in which many columns are summed. */
static Wide column_block(const double *x, int64_t n, int64_t ord) {
    Wide sum = {0, 0};
    if (ord == NORMBALL_ORD_INF) return (Wide){double_largest(x, n), 0};
    if (ord == 2) wide_columns((const char *)x, 8, n, 1, &sum.high, &sum.low, 2);
    else wide_columns((const char *)x, 8, n, 1, &sum.high, &sum.low, 1);
    return sum;
}

/* The wide sum of the entries times 2**-exponent, with the same operations in the same order as without the scale:
 * so scaling x scales the result, bit for bit. */
static Wide scaled_sum(const Group *group, int exponent) {
    Wide sum = {0, 0};
    double buffer[ROW_BLOCK], scaled[ROW_BLOCK];
    Plan scratch;
    Walk walk;
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        const Plan *plan = part.plan;
        if (plan->empty) continue;
        int64_t block = plan->columnar ? COLUMN_BLOCK : ROW_BLOCK, ord = group->ord;
        Wide part_sum = {0, 0};
        walk_start(&walk, &plan->reduced, part.place);
        do {
            for (int64_t i = 0; i < walk.length; i += block) {
                int64_t n = walk.length - i < block ? walk.length - i : block, step = walk.step[X];
                const double *x = fetch_doubles(plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
                for (int64_t k = 0; k < n; k++) scaled[k] = ldexp(x[k], -exponent);
                Wide piece = plan->columnar ? column_block(scaled, n, ord) : wide_block(scaled, n, ord);
                part_sum = merge_sums(part_sum, piece, ord);
            }
        } while (walk_next(&walk));
        sum = merge_sums(sum, part_sum, group->ord);
    }
    return sum;
}

/* Whether the norm is above the bound (finite, as are the entries), without any rounding. */
static int exceeds_exactly(const Group *group, double bound) {
    Exact sum, limit;
    double buffer[ROW_BLOCK];
    int ord = (int)group->ord;
    Plan scratch;
    Walk walk;
    exact_clear(&sum);
    exact_clear(&limit);
    exact_add(&limit, bound, ord);
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        if (part.plan->empty) continue;
        walk_start(&walk, &part.plan->reduced, part.place);
        do {
            for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
                int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
                const double *x = fetch_doubles(part.plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
                for (int64_t k = 0; k < n; k++) exact_add(&sum, x[k], ord);
            }
        } while (walk_next(&walk));
    }
    return exact_greater(&sum, &limit);
}

/* ---- what becomes of a group -------------------------------------------------------------------------------------------- */

/* An entry v becomes v * factor; or, where `careful`, ldexp(v, lift) * factor * 2**shift, truncated, or with both 0 the
 * same as ever but for subnormals of narrow dtypes, which are truncated. Factor 1 keeps the group as it is (a
 * violator's factor is below 1), NaN spoils it. */
typedef struct {
    double factor;
    int careful, lift, shift;
} Answer;

static Answer plainly(double factor) { return (Answer){factor, 0, 0, 0}; }

/* A violator's factor that is not too small to multiply by. */
static Answer scaled(const Group *group, double factor, double bound) {
    return (Answer){factor, group->narrow && bound < LEAST_NARROW_BOUND, 0, 0};
}

/* The norm of a sum within [LEAST_SUM, MOST_SUM]. */
static inline Wide norm_of(Wide sum, int64_t ord) {
    if (ord != 2) return sum;
    double root = sqrt(sum.high), square = root * root;
    double rest = (((sum.high - square) - fma(root, root, -square)) + sum.low) / (2 * root);
    return (Wide){root, rest};
}

/* bound / (norm + epsilon) * (1 - margin), rounded once. */
static inline double quotient(double bound, Wide norm, double epsilon, double margin) {
    Wide divisor = two_sum(norm.high, epsilon);
    double low = divisor.low + norm.low, first = bound / divisor.high;
    double rest = (fma(-first, divisor.high, bound) - first * low) / divisor.high;
    return first + (rest - margin * first);
}

/* 1 where the norm is above the bound, -1 where it is not, 0 where the sum is not good enough to tell. */
static inline int compare(Wide sum, int64_t ord, double bound, double doubt) {
    double excess;
    if (ord == 2) { /* outside this range the answer is clear, and so it is at the end of the range */
        double b = bound < 0x1p-360 ? 0x1p-360 : bound > 0x1p460 ? 0x1p460 : bound, square = b * b;
        excess = (sum.high - square) + (sum.low - fma(b, b, -square));
    } else {
        excess = (sum.high - bound) + sum.low;
    }
    if (ord == NORMBALL_ORD_INF || fabs(excess) > doubt * sum.high) return excess > 0 ? 1 : -1;
    return 0;
}

/* Whether the norm is above the bound. The sum may be scaled; `scaled_bound` is the bound at the same scale. */
static int exceeds(const Group *group, Wide sum, double scaled_bound, double bound, double doubt) {
    int answer = compare(sum, group->ord, scaled_bound, doubt);
    return answer ? answer > 0 : exceeds_exactly(group, bound);
}

/* The answer for any group and any bound, from entries scaled by a power of two to at most 1. */
static Answer judge_carefully(const Group *group, double bound, double epsilon) {
    double largest = largest_entry(group);
    int exponent, bound_exponent, epsilon_exponent;
    if (largest != largest) return plainly(NAN);
    if (largest == INFINITY) return plainly(bound == INFINITY ? 1 : NAN);
    if (largest == 0) return plainly(1);
    frexp(largest, &exponent);
    Wide sum = scaled_sum(group, exponent);
    if (!exceeds(group, sum, ldexp(bound, -exponent), bound, WIDE_DOUBT)) return plainly(1);
    if (bound == 0 || epsilon == INFINITY) return plainly(0);
    /* The divisor at a scale where it is neither tiny nor huge, whichever of its terms is the larger. */
    Wide norm = norm_of(sum, group->ord);
    frexp(epsilon, &epsilon_exponent);
    int scale = epsilon > 0 && epsilon_exponent > exponent ? epsilon_exponent : exponent;
    norm = (Wide){ldexp(norm.high, exponent - scale), ldexp(norm.low, exponent - scale)};
    double mantissa = frexp(bound, &bound_exponent);
    double factor = quotient(mantissa, norm, ldexp(epsilon, -scale), WIDE_MARGIN);
    int shift = bound_exponent - scale;
    double whole = ldexp(factor, shift);
    double least = group->narrow ? LEAST_NARROW_FACTOR : LEAST_FACTOR;
    if (bound >= LEAST_FACTOR && whole >= least) return scaled(group, whole, bound);
    int lift = exponent < 0 ? -exponent : 0;
    return (Answer){factor, 1, lift, shift - lift};
}

/* The factor of a violator with ordinary numbers; 0 where they are not ordinary. */
static inline double plain_factor(Wide sum, int64_t ord, int wide, int narrow, double bound, double epsilon) {
    if (!(bound >= LEAST_BOUND)) return 0;
    double factor = quotient(bound, norm_of(sum, ord), epsilon, wide ? WIDE_MARGIN : PLAIN_MARGIN);
    return factor >= (narrow ? LEAST_NARROW_FACTOR : LEAST_FACTOR) ? factor : 0;
}

static Answer judge(const Group *group, Wide sum, int wide, double bound, double epsilon) {
    if (!(bound >= 0) || !(epsilon >= 0)) return plainly(NAN);
    if (sum.high >= LEAST_SUM && sum.high <= MOST_SUM) {
        if (!exceeds(group, sum, bound, bound, wide ? WIDE_DOUBT : PLAIN_DOUBT)) return plainly(1);
        if (bound == 0 || epsilon == INFINITY) return plainly(0);
        double factor = plain_factor(sum, group->ord, wide, group->narrow, bound, epsilon);
        if (factor > 0) return scaled(group, factor, bound);
    } else if (sum.high < LEAST_SUM && bound >= SURELY_ABOVE) {
        return plainly(1);
    }
    return judge_carefully(group, bound, epsilon);
}

/* What `judge` says, where it is clear at a glance and no entry needs care; else 0, which it never says then. */
static inline double glance(const Plan *plan, Wide sum, double bound, double epsilon) {
    int narrow = plan->dtype != NORMBALL_F64;
    if (!(sum.high >= LEAST_SUM && sum.high <= MOST_SUM && bound >= LEAST_NARROW_BOUND && epsilon >= 0)) return 0;
    int above = compare(sum, plan->ord, bound, plan->wide ? WIDE_DOUBT : PLAIN_DOUBT);
    if (above < 0) return 1;
    return above && epsilon < INFINITY ? plain_factor(sum, plan->ord, plan->wide, narrow, bound, epsilon) : 0;
}

/* The norm as float64. */
static double norm_value(const Group *group, Wide sum) {
    int exponent = 0;
    if (!(sum.high >= LEAST_SUM && sum.high <= MOST_SUM)) {
        double largest = largest_entry(group);
        if (!(largest > 0 && largest < INFINITY)) return largest;
        frexp(largest, &exponent);
        sum = scaled_sum(group, exponent);
    }
    Wide norm = norm_of(sum, group->ord);
    return ldexp(norm.high + norm.low, exponent);
}

/* The norm as float64; where a bound is given, it compares with that as the exact norm does. */
static double norm_beside(const Group *group, Wide sum, const double *max_norm) {
    double norm = norm_value(group, sum);
    if (!max_norm || group->ord == NORMBALL_ORD_INF) return norm; /* ord inf: exact as it is */
    if (!(norm < INFINITY) || !(*max_norm < INFINITY)) return norm;
    double bound = *max_norm;
    if (norm < nextafter(bound, 0) || norm > nextafter(bound, INFINITY)) return norm; /* it is good to an ulp */
    int in_range = sum.high >= LEAST_SUM && sum.high <= MOST_SUM;
    int above = in_range ? exceeds(group, sum, bound, bound, WIDE_DOUBT) : exceeds_exactly(group, bound);
    if (above && norm <= bound) return nextafter(bound, INFINITY);
    return !above && norm > bound ? bound : norm;
}

/* ---- writing ----------------------------------------------------------------------------------------------------------------- */

/* value * 2**shift, truncated; shift at most 0. */
static double shifted_down(double value, int shift) {
    double rounded = ldexp(value, shift);
    uint64_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bits -= fabs(ldexp(rounded, -shift)) > fabs(value);
    memcpy(&rounded, &bits, sizeof bits);
    return rounded;
}

static void write_carefully(int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, Answer answer) {
    double buffer[ROW_BLOCK];
    Buffer result;
    const double *source = fetch_doubles(dtype, x, x_step, n, buffer);
    if (answer.shift == 0) {
        double narrow = float_factor(answer.factor); /* times a float: exact in double */
        for (int64_t i = 0; i < n; i++) {
            double exact = source[i] * narrow;
            if (dtype == NORMBALL_F64) result.d[i] = source[i] * answer.factor;
            else result.f[i] = fabs(exact) < FLT_MIN ? float_truncated(exact) : (float)exact;
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            double value = shifted_down(ldexp(source[i], answer.lift) * answer.factor, answer.shift);
            if (dtype == NORMBALL_F64) result.d[i] = value;
            else result.f[i] = float_truncated(value);
        }
    }
    deliver(dtype, y, y_step, n, &result);
}

/* At most ROW_BLOCK entries of one group. */
static void write_block(int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, Answer answer) {
    if (answer.careful) {
        write_carefully(dtype, x, x_step, y, y_step, n, answer);
        return;
    }
    Buffer in, out;
    int direct = works_in_place(dtype, y_step);
    const void *source = fetch(dtype, x, x_step, n, &in);
    void *target = direct ? (void *)y : &out;
    if (dtype == NORMBALL_F64) double_scale(target, source, n, answer.factor);
    else float_scale(target, source, n, float_factor(answer.factor));
    if (!direct) deliver(dtype, y, y_step, n, target);
}

static void copy_run(int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n) {
    int64_t size = itemsize(dtype);
    if (x_step == size && y_step == size) memcpy(y, x, (size_t)(n * size));
    else copy_strided(y, y_step, x, x_step, n, size);
}

static void write_group(const Part *part, Answer answer) {
    const Plan *plan = part->plan;
    if (answer.factor == 1 && !answer.careful && part->place.at[X] == part->place.at[Y]) return;
    Walk walk;
    walk_start(&walk, &plan->written, part->place);
    do {
        int64_t x_step = walk.step[X], y_step = walk.step[Y];
        const char *x = walk.place.at[X];
        char *y = walk.place.at[Y];
        if (answer.factor == 1 && !answer.careful) {
            copy_run(plan->dtype, x, x_step, y, y_step, walk.length);
            continue;
        }
        for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
            int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK;
            write_block(plan->dtype, x + i * x_step, x_step, y + i * y_step, y_step, n, answer);
        }
    } while (walk_next(&walk));
}

/* ---- groups, many side by side ------------------------------------------------------------------------------------------------- */

typedef struct {
    double *high, *low;             /* the sums so far */
    double *block_high, *block_low; /* of the current block of rows */
    double *factor;
    float *narrow; /* the factors, for floats */
    Buffer rows[STEP_ROWS];
} Chunk;

enum { CHUNK_ARRAYS = 6 };

static void chunk_place(Chunk *chunk, double *memory, int64_t capacity) {
    chunk->high = memory;
    chunk->low = memory + capacity;
    chunk->block_high = memory + 2 * capacity;
    chunk->block_low = memory + 3 * capacity;
    chunk->factor = memory + 4 * capacity;
    chunk->narrow = (float *)(memory + 5 * capacity);
}

/* Add a few rows, at x and every `row_step` on, of n columns each to the block's sums. */
static void add_rows(const Plan *plan, Chunk *chunk, const char *x, int64_t row_step, int64_t rows, int64_t step, int64_t n) {
    int64_t work = plan->wide ? 8 : 4;
    double *high = chunk->block_high, *low = chunk->block_low;
    if (!(works_in_place(plan->dtype, step) && work == itemsize(plan->dtype))) {
        char *packed = (char *)chunk->rows;
        for (int64_t r = 0; r < rows; r++) {
            char *to = packed + r * n * work;
            const void *from = plan->wide ? (const void *)fetch_doubles(plan->dtype, x + r * row_step, step, n, (double *)to)
                                          : fetch(plan->dtype, x + r * row_step, step, n, to);
            if (from != to) memcpy(to, from, (size_t)(n * work));
        }
        x = packed;
        row_step = n * work;
    }
    if (plan->ord == NORMBALL_ORD_INF) {
        if (plan->wide) double_largest_columns(x, row_step, rows, n, high);
        else float_largest_columns(x, row_step, rows, n, high);
    } else if (plan->wide) {
        if (plan->ord == 2) wide_columns(x, row_step, rows, n, high, low, 2);
        else wide_columns(x, row_step, rows, n, high, low, 1);
    } else {
        if (plan->ord == 2) plain_columns(x, row_step, rows, n, high, 2);
        else plain_columns(x, row_step, rows, n, high, 1);
    }
}

static void fold_block(const Plan *plan, Chunk *chunk, int64_t n) {
    double *restrict high = chunk->high, *restrict low = chunk->low;
    const double *restrict block_high = chunk->block_high, *restrict block_low = chunk->block_low;
    if (plan->ord == NORMBALL_ORD_INF) {
        for (int64_t j = 0; j < n; j++) high[j] = double_larger(high[j], block_high[j]);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        Wide sum = wide_add((Wide){high[j], low[j]}, block_high[j], block_low[j]);
        high[j] = sum.high;
        low[j] = sum.low;
    }
}

/* The sums of n columns, the first at `place`, `step` apart. */
static void sum_columns(const Plan *plan, Chunk *chunk, Place place, int64_t step, int64_t n) {
    size_t bytes = (size_t)n * sizeof(double);
    memset(chunk->high, 0, bytes);
    memset(chunk->low, 0, bytes);
    Walk walk;
    walk_start(&walk, &plan->reduced, place);
    do {
        int64_t row_step = walk.step[X];
        for (int64_t begin = 0; begin < walk.length; begin += COLUMN_BLOCK) {
            int64_t end = walk.length - begin < COLUMN_BLOCK ? walk.length : begin + COLUMN_BLOCK;
            memset(chunk->block_high, 0, bytes);
            memset(chunk->block_low, 0, bytes);
            for (int64_t r = begin; r < end; r += STEP_ROWS) {
                int64_t rows = end - r < STEP_ROWS ? end - r : STEP_ROWS;
                add_rows(plan, chunk, walk.place.at[X] + r * row_step, row_step, rows, step, n);
            }
            fold_block(plan, chunk, n);
        }
    } while (walk_next(&walk));
}

static void scale_columns(const Plan *plan, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, const Chunk *chunk, int64_t begin) {
    Buffer in, out;
    int direct = works_in_place(plan->dtype, y_step);
    const void *source = fetch(plan->dtype, x, x_step, n, &in);
    void *target = direct ? (void *)y : &out;
    if (plan->dtype == NORMBALL_F64) double_scale_columns(target, source, n, chunk->factor + begin);
    else float_scale_columns(target, source, n, chunk->narrow + begin);
    if (!direct) deliver(plan->dtype, y, y_step, n, target);
}

/* Stretches of columns to be written, as begin and end alternating: all; in place only violators, and columns
 * between near ones, which a factor of 1 leaves as they are. Returns how many. */
static int stretches(const double *factor, int64_t n, int in_place, int64_t *edge) {
    if (!in_place) {
        edge[0] = 0;
        edge[1] = n;
        return 1;
    }
    int count = 0;
    for (int64_t j = 0; j < n; j++) {
        if (factor[j] == 1) continue;
        if (count && j - edge[2 * count - 1] < NEARBY) edge[2 * count - 1] = j + 1;
        else {
            edge[2 * count] = j;
            edge[2 * count + 1] = j + 1;
            count++;
        }
    }
    return count;
}

static void write_columns(const Plan *plan, const Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    int64_t edge[2 * (WIDE_CHUNK / NEARBY + 1)];
    int count = stretches(chunk->factor, n, place.at[X] == place.at[Y], edge);
    if (!count) return;
    Walk walk;
    walk_start(&walk, &plan->written, place);
    do {
        for (int64_t r = 0; r < walk.length; r++) {
            const char *x = walk.place.at[X] + r * walk.step[X];
            char *y = walk.place.at[Y] + r * walk.step[Y];
            for (int k = 0; k < count; k++) {
                int64_t begin = edge[2 * k], width = edge[2 * k + 1] - begin;
                scale_columns(
                    plan, x + begin * step[X], step[X], y + begin * step[Y], step[Y], width, chunk, begin);
            }
        }
    } while (walk_next(&walk));
}

static Answer judge_own(const Group *group, Wide sum) {
    const Place *place = &group->only.place;
    double bound = *(double *)place->at[BOUND], epsilon = *(double *)place->at[EPSILON];
    return judge(group, sum, group->only.plan->wide, bound, epsilon);
}

static void constrain_columns(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    int careful = 0;
    for (int64_t j = 0; j < n; j++) {
        Wide sum = {chunk->high[j], chunk->low[j]};
        double bound = *(double *)(place.at[BOUND] + j * step[BOUND]);
        double epsilon = *(double *)(place.at[EPSILON] + j * step[EPSILON]);
        double factor = glance(plan, sum, bound, epsilon);
        if (factor == 0) {
            Group group = group_at(plan, moved(place, step, j));
            Answer answer = judge_own(&group, sum);
            careful |= answer.careful;
            factor = answer.careful ? 1 : answer.factor;
        }
        chunk->factor[j] = factor;
        chunk->narrow[j] = float_factor(factor);
    }
    write_columns(plan, chunk, place, step, n);
    for (int64_t j = 0; careful && j < n; j++) { /* x has its bits still where the factor was 1 */
        if (chunk->factor[j] != 1) continue;
        Group group = group_at(plan, moved(place, step, j));
        Answer answer = judge_own(&group, (Wide){chunk->high[j], chunk->low[j]});
        if (answer.careful) write_group(&group.only, answer);
    }
}

static void norms_of_columns(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        Group group = group_at(plan, moved(place, step, j));
        Wide sum = {chunk->high[j], chunk->low[j]};
        *(double *)group.only.place.at[NORMS] = norm_beside(&group, sum, (double *)group.only.place.at[BOUND]);
    }
}

/* Whether the loops work on x and y where they are. */
static int needs_no_block(const Plan *plan, const int64_t *step) {
    if (!works_in_place(plan->dtype, step[X])) return 0;
    return plan->only_norms ? plan->dtype == NORMBALL_F64 : works_in_place(plan->dtype, step[Y]);
}

static void each_chunk(const Plan *plan, const Walk *walk) {
    Chunk chunk;
    double few[CHUNK_ARRAYS * CHUNK], *many = NULL;
    int64_t capacity = CHUNK;
    if (walk->length > CHUNK && needs_no_block(plan, walk->step)) many = malloc(sizeof(double) * CHUNK_ARRAYS * WIDE_CHUNK);
    if (many) capacity = WIDE_CHUNK;
    chunk_place(&chunk, many ? many : few, capacity);
    for (int64_t j = 0; j < walk->length; j += capacity) {
        int64_t n = walk->length - j < capacity ? walk->length - j : capacity;
        Place place = moved(walk->place, walk->step, j);
        sum_columns(plan, &chunk, place, walk->step[X], n);
        if (plan->only_norms) norms_of_columns(plan, &chunk, place, walk->step, n);
        else constrain_columns(plan, &chunk, place, walk->step, n);
    }
    free(many);
}

static void each_row(const Plan *plan, const Walk *walk) {
    for (int64_t j = 0; j < walk->length; j++) {
        Group group = group_at(plan, moved(walk->place, walk->step, j));
        Wide sum = row_sum(plan, group.only.place);
        if (plan->only_norms)
            *(double *)group.only.place.at[NORMS] = norm_beside(&group, sum, (double *)group.only.place.at[BOUND]);
        else write_group(&group.only, judge_own(&group, sum));
    }
}

/* Groups without entries. */
static void norms_of_nothing(const Plan *plan) {
    Walk walk;
    walk_start(&walk, &plan->kept, plan->place);
    do {
        for (int64_t j = 0; j < walk.length; j++) *(double *)moved(walk.place, walk.step, j).at[NORMS] = 0;
    } while (walk_next(&walk));
}

static void each_group(const Plan *plan) {
    Walk walk;
    walk_start(&walk, &plan->kept, plan->place);
    do {
        if (plan->columnar) each_chunk(plan, &walk);
        else each_row(plan, &walk);
    } while (walk_next(&walk));
}

/* ---- the calls ------------------------------------------------------------------------------------------------------------------- */

/* Rounding to nearest with subnormals, whatever the host program (torch.set_flush_denormal) has set; and its
 * floating-point flags left as they were. */
#if defined(__SSE2__) || defined(_M_X64)
typedef unsigned int Mode;
static Mode mode_enter(void) {
    Mode mode = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return mode;
}
static void mode_leave(Mode mode) { _mm_setcsr(mode); }
#else
typedef fenv_t Mode;
static Mode mode_enter(void) {
    Mode mode;
    fegetenv(&mode);
    fesetenv(FE_DFL_ENV);
    return mode;
}
static void mode_leave(Mode mode) { fesetenv(&mode); }
#endif

static void produce(const normball_array *array, const normball_call *call) {
    int64_t size = 1;
    for (int64_t d = 0; d < array->ndim; d++) size *= array->shape[d];
    if (call && call->produce) call->produce(call->context, 0, size);
}

static int constrain(int64_t count, const normball_array *arrays, int64_t ord, const normball_call *call) {
    Mode mode = mode_enter();
    for (int64_t i = 0; i < count; i++) {
        const normball_array *array = &arrays[i];
        const int64_t *const strides[OPERANDS] = {
            array->x_strides, array->y_strides, array->max_norm_strides, array->epsilon_strides};
        Place place = {{(char *)array->x, array->y, (char *)array->max_norm, (char *)array->epsilon}};
        Plan plan;
        plan_make(&plan, array->dtype, ord, array->ndim, array->reduced, array->shape, place, strides);
        produce(array, call);
        if (!plan.empty) each_group(&plan);
    }
    mode_leave(mode);
    return 0;
}

static int constrain_total(
    int64_t count, const normball_array *arrays, int64_t ord, double max_norm, double epsilon, double *norm,
    const normball_call *call) {
    (void)call;
    Group group = {ord, count, 0, {NULL, {{NULL}}}, arrays};
    Wide sum = {0, 0};
    Plan scratch;
    Mode mode = mode_enter();
    for (int64_t p = 0; p < count; p++) {
        Part part = part_of(&group, p, &scratch);
        if (!part.plan->empty) sum = merge_sums(sum, row_sum(part.plan, part.place), ord);
        group.narrow |= part.plan->dtype != NORMBALL_F64;
    }
    *norm = norm_beside(&group, sum, &max_norm);
    Answer answer = judge(&group, sum, 1, max_norm, epsilon);
    for (int64_t p = 0; p < count; p++) {
        Part part = part_of(&group, p, &scratch);
        if (!part.plan->empty) write_group(&part, answer);
    }
    mode_leave(mode);
    return 0;
}

static int norms(const normball_array *array, int64_t ord, const normball_call *call) {
    const int64_t *const strides[OPERANDS] = {array->x_strides, NULL, array->max_norm_strides, array->y_strides};
    Place place = {{(char *)array->x, NULL, (char *)array->max_norm, array->y}};
    Plan plan;
    (void)call;
    plan_make(&plan, array->dtype, ord, array->ndim, array->reduced, array->shape, place, strides);
    plan.wide = plan.only_norms = 1;
    for (int64_t d = 0; d < array->ndim; d++)
        if (array->shape[d] == 0 && !(array->reduced >> d & 1)) return 0;
    Mode mode = mode_enter();
    if (plan.empty) norms_of_nothing(&plan);
    else each_group(&plan);
    mode_leave(mode);
    return 0;
}

const normball_kernels JOIN(normball_kernels_, NORMBALL_ISA) = {TEXT(NORMBALL_ISA), constrain, constrain_total, norms};
