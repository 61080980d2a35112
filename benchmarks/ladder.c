/* How the kernels became fast, a step at a time: teaching code, each function whole and plain. ladder.py compiles this
 * file for the baseline of the architecture and for the machine at hand, checks the answers and times the steps.
 *
 * All have one job: y = x with the rows (or columns) above `bound` brought onto it; y may be x, and then only what
 * changes is written. The library's own kernels add what is left out here: every dtype and layout, overflow, NaN,
 * exact decisions where a norm is within a rounding error of its bound.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define EPSILON 1e-7
enum { LANES = 16 };

/* What a group is multiplied by. The last factor keeps the norm within its bound however the products round. */
static double factor(double sum, double bound) {
    return sum <= bound * bound ? 1 : bound / (sqrt(sum) + EPSILON) * (1 - 2.01 * 0x1p-24);
}

/* The same for double, worked out with more digits, so that only its last rounding counts. */
static double factor_of_doubles(long double sum, long double bound) {
    return sum <= bound * bound ? 1 : (double)(bound / (sqrtl(sum) + EPSILON) * (1 - 2.01L * 0x1p-53L));
}

static void scale(float *y, const float *x, int64_t n, float by) {
    if (by == 1 && y == x) return;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * by;
}

/* ---- rows of float32 ------------------------------------------------------------------------------------------ */

/* As one would write it down: a sum for each row, then all the products. */
void rows_naive(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    float *sum = calloc((size_t)rows, sizeof *sum);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) sum[r] += x[r * columns + i] * x[r * columns + i];
    for (int64_t r = 0; r < rows; r++) scale(y + r * columns, x + r * columns, columns, (float)factor(sum[r], bound));
    free(sum);
}

/* Sums in double: nothing overflows, and rounding errors are 2**29 times smaller. */
void rows_double(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    double *sum = calloc((size_t)rows, sizeof *sum);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) sum[r] += (double)x[r * columns + i] * x[r * columns + i];
    for (int64_t r = 0; r < rows; r++) scale(y + r * columns, x + r * columns, columns, (float)factor(sum[r], bound));
    free(sum);
}

/* An addition waits for the one before it. In 16 lanes that do not wait for each other, and that the compiler puts into
 * vectors, many are under way at once. */
static double sum_in_lanes(const float *x, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * x[i + l];
    for (; i < n; i++) sum += (double)x[i] * x[i];
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

void rows_lanes(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    double *sum = calloc((size_t)rows, sizeof *sum);
    for (int64_t r = 0; r < rows; r++) sum[r] = sum_in_lanes(x + r * columns, columns);
    for (int64_t r = 0; r < rows; r++) scale(y + r * columns, x + r * columns, columns, (float)factor(sum[r], bound));
    free(sum);
}

/* A row is still in the cache when its sum is known: memory is read once, not twice. */
void rows_one_pass(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns)
        scale(y, x, columns, (float)factor(sum_in_lanes(x, columns), bound));
}

/* A store to memory that is not in the cache reads the line first, to change a part of it. These do not: for what is
 * too large to stay in the cache anyway. */
static void scale_past_cache(float *y, const float *x, int64_t n, float by) {
    int64_t i = 0;
#ifdef __AVX__
    for (; i < n && (uintptr_t)(y + i) % 32; i++) y[i] = x[i] * by;
    for (; i + 8 <= n; i += 8) _mm256_stream_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(by)));
#endif
    for (; i < n; i++) y[i] = x[i] * by;
}

static void finish_stores(void) {
#ifdef __AVX__
    _mm_sfence();
#endif
}

void rows_past_cache(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns)
        scale_past_cache(y, x, columns, (float)factor(sum_in_lanes(x, columns), bound));
    finish_stores();
}

/* ---- columns of float32 --------------------------------------------------------------------------------------- */

/* Column by column: of each cache line that is fetched, one number is used. */
void columns_naive(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t i = 0; i < columns; i++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++) sum += (double)x[r * columns + i] * x[r * columns + i];
        float by = (float)factor(sum, bound);
        if (by != 1 || y != x)
            for (int64_t r = 0; r < rows; r++) y[r * columns + i] = x[r * columns + i] * by;
    }
}

/* From sums to factors; whether any is not 1. */
static int factors(float *by, const double *sum, int64_t columns, double bound) {
    int any = 0;
    for (int64_t i = 0; i < columns; i++) {
        by[i] = (float)factor(sum[i], bound);
        any |= by[i] != 1;
    }
    return any;
}

static void scale_columns(float *y, const float *x, int64_t n, const float *restrict by) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * by[i];
}

/* All columns side by side, row after row, as they lie in memory. */
static void sum_rows(double *restrict sum, const float *x, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) sum[i] += (double)x[r * columns + i] * x[r * columns + i];
}

void columns_streaming(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    double *sum = calloc((size_t)columns, sizeof *sum);
    float *by = calloc((size_t)columns, sizeof *by);
    sum_rows(sum, x, rows, columns);
    if (factors(by, sum, columns, bound) || y != x)
        for (int64_t r = 0; r < rows; r++) scale_columns(y + r * columns, x + r * columns, columns, by);
    free(sum);
    free(by);
}

/* A sum is loaded and stored once for eight rows instead of once for each. */
static void sum_eight_rows(double *restrict sum, const float *x, int64_t rows, int64_t columns) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8, x += 8 * columns) {
        const float *a = x, *b = a + columns, *c = b + columns, *d = c + columns;
        const float *e = d + columns, *f = e + columns, *g = f + columns, *h = g + columns;
        for (int64_t i = 0; i < columns; i++)
            sum[i] += (((double)a[i] * a[i] + (double)b[i] * b[i]) + ((double)c[i] * c[i] + (double)d[i] * d[i])) +
                      (((double)e[i] * e[i] + (double)f[i] * f[i]) + ((double)g[i] * g[i] + (double)h[i] * h[i]));
    }
    sum_rows(sum, x, rows - r, columns);
}

void columns_eight_rows(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    double *sum = calloc((size_t)columns, sizeof *sum);
    float *by = calloc((size_t)columns, sizeof *by);
    sum_eight_rows(sum, x, rows, columns);
    if (factors(by, sum, columns, bound) || y != x)
        for (int64_t r = 0; r < rows; r++) scale_columns(y + r * columns, x + r * columns, columns, by);
    free(sum);
    free(by);
}

static void scale_columns_past_cache(float *y, const float *x, int64_t n, const float *by) {
    int64_t i = 0;
#ifdef __AVX__
    for (; i < n && (uintptr_t)(y + i) % 32; i++) y[i] = x[i] * by[i];
    for (; i + 8 <= n; i += 8) _mm256_stream_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(by + i)));
#endif
    for (; i < n; i++) y[i] = x[i] * by[i];
}

/* The second pass, too, need not read what it writes. */
void columns_past_cache(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    double *sum = calloc((size_t)columns, sizeof *sum);
    float *by = calloc((size_t)columns, sizeof *by);
    sum_eight_rows(sum, x, rows, columns);
    factors(by, sum, columns, bound);
    for (int64_t r = 0; r < rows; r++) scale_columns_past_cache(y + r * columns, x + r * columns, columns, by);
    finish_stores();
    free(sum);
    free(by);
}

/* In the cache, turning floats into doubles takes longer than reading them. Sums of eight squares in float are off by
 * less than 2**-20 of themselves: enough to see that a column is far within its bound, as most are. Else, and if
 * anything is odd, look properly. */
void columns_float_first(float *y, const float *x, int64_t rows, int64_t columns, double bound) {
    const double doubt = 0x1p-20;
    double *sum = calloc((size_t)columns, sizeof *sum);
    const float *row = x;
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8, row += 8 * columns) {
        const float *a = row, *b = a + columns, *c = b + columns, *d = c + columns;
        const float *e = d + columns, *f = e + columns, *g = f + columns, *h = g + columns;
        for (int64_t i = 0; i < columns; i++)
            sum[i] += (double)(((a[i] * a[i] + b[i] * b[i]) + (c[i] * c[i] + d[i] * d[i])) +
                               ((e[i] * e[i] + f[i] * f[i]) + (g[i] * g[i] + h[i] * h[i])));
    }
    sum_rows(sum, row, rows - r, columns);
    int clear = bound > 0x1p-50; /* squares that vanish in float are far below its square */
    for (int64_t i = 0; i < columns; i++) clear &= sum[i] * (1 + doubt) <= bound * bound; /* not where it is NaN or inf */
    if (!clear) columns_eight_rows(y, x, rows, columns, bound);
    else if (y != x) memcpy(y, x, (size_t)(rows * columns) * sizeof *x);
    free(sum);
}

/* ---- rows of float64 ------------------------------------------------------------------------------------------ */

static void scale_doubles(double *y, const double *x, int64_t n, double by) {
    if (by == 1 && y == x) return;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * by;
}

/* As one would write it down. The squares and the sum are rounded, so a norm close to its bound may be judged wrongly
 * and the result may end above it. */
void doubles_naive(double *y, const double *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        double sum = 0;
        for (int64_t i = 0; i < columns; i++) sum += x[i] * x[i];
        scale_doubles(y, x, columns, sum <= bound * bound ? 1 : bound / (sqrt(sum) + EPSILON));
    }
}

static double sum_doubles_in_lanes(const double *x, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += x[i + l] * x[i + l];
    for (; i < n; i++) sum += x[i] * x[i];
    for (int l = 0; l < LANES; l++) sum += lane[l];
    return sum;
}

void doubles_lanes(double *y, const double *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        double sum = sum_doubles_in_lanes(x, columns);
        scale_doubles(y, x, columns, sum <= bound * bound ? 1 : bound / (sqrt(sum) + EPSILON));
    }
}

/* Add v * v to high + low. The error of the addition, and that of the square with it, is one fused multiply-add away
 * (Knuth's TwoSum), and is kept in `low`: the sum is as good as in twice the precision. */
static inline void add_square(double *high, double *low, double v) {
    double square = v * v, sum = *high + square, part = sum - *high;
    *low += (*high - (sum - part)) + fma(v, v, -part);
    *high = sum;
}

static long double sum_with_errors(const double *x, int64_t n) {
    double high[LANES] = {0}, low[LANES] = {0}, errors = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) add_square(&high[l], &low[l], x[i + l]);
    for (int l = 0; i + l < n; l++) add_square(&high[l], &low[l], x[i + l]);
    for (int l = 1; l < LANES; l++) {
        double sum = high[0] + high[l], part = sum - high[0];
        errors += (high[0] - (sum - part)) + (high[l] - part);
        high[0] = sum;
    }
    for (int l = 0; l < LANES; l++) errors += low[l];
    return (long double)high[0] + errors;
}

void doubles_with_errors(double *y, const double *x, int64_t rows, int64_t columns, double bound) {
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns)
        scale_doubles(y, x, columns, factor_of_doubles(sum_with_errors(x, columns), bound));
}

/* The plain sum is off by less than `columns` roundings: where that cannot matter, it decides. */
void doubles_plain_first(double *y, const double *x, int64_t rows, int64_t columns, double bound) {
    double doubt = (double)(columns + 2) * 0x1p-53;
    for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
        double sum = sum_doubles_in_lanes(x, columns), by = 1;
        if (!(sum * (1 + doubt) <= bound * bound)) by = factor_of_doubles(sum_with_errors(x, columns), bound);
        scale_doubles(y, x, columns, by);
    }
}
