/* Arithmetic without error, or with one rounding. */
#ifndef NORMBALL_ARITHMETIC_H
#define NORMBALL_ARITHMETIC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* The power of two above a sum: no term of the sum is much above it. */
static inline double bias_of(double sum) {
    int exponent;
    frexp(sum, &exponent);
    return ldexp(1, exponent);
}

static inline double double_larger(double largest, double size) { /* NaN stays */
    return (size > largest) | (size != size) ? size : largest;
}

static inline double double_larger_size(double largest, double v) { return double_larger(largest, fabs(v)); }

static inline float float_larger_size(float largest, float v) {
    float size = fabsf(v);
    return (size > largest) | (size != size) ? size : largest;
}

/* Towards zero. */
static inline float float_truncated(double exact) {
    float rounded = (float)exact;
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bits -= fabs((double)rounded) > fabs(exact);
    memcpy(&rounded, &bits, sizeof bits);
    return rounded;
}

/* value * 2**shift, truncated; shift at most 0. */
static double shifted_down(double value, int shift) {
    double rounded = ldexp(value, shift);
    uint64_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    bits -= fabs(ldexp(rounded, -shift)) > fabs(value);
    memcpy(&rounded, &bits, sizeof bits);
    return rounded;
}

#endif
