/* Four doubles and eight floats at a time, with the same bits on every instruction set: compilers do vectorise plain
 * loops, but gcc 12 leaves the compensated sums below scalar, and a sum must run as fast as memory gives.
 */
#ifndef NORMBALL_VECTORS_H
#define NORMBALL_VECTORS_H

#include <math.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

typedef __m128 Quad; /* four floats */
typedef __m256d Four;
typedef __m256 Eight;

static inline Quad quad_load(const float *x) { return _mm_loadu_ps(x); }

static inline Four four_all(double v) { return _mm256_set1_pd(v); }
static inline Four four_load(const double *x) { return _mm256_loadu_pd(x); }
static inline Four four_widen(Quad v) { return _mm256_cvtps_pd(v); }
static inline Four four_of(double a, double b, double c, double d) { return _mm256_setr_pd(a, b, c, d); }
static inline void four_store(double *y, Four v) { _mm256_storeu_pd(y, v); }
static inline Four four_add(Four a, Four b) { return _mm256_add_pd(a, b); }
static inline Four four_sub(Four a, Four b) { return _mm256_sub_pd(a, b); }
static inline Four four_mul(Four a, Four b) { return _mm256_mul_pd(a, b); }
/* sum + v * v, where the square is exact: then it is the same rounded once or twice. */
static inline Four four_add_square(Four sum, Four v) { return _mm256_fmadd_pd(v, v, sum); }
static inline Four four_size(Four v) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), v); }
/* v * v - near, rounded once; see square_minus. */
static inline Four four_square_minus(Four v, Four square, Four near) {
    (void)square;
    return _mm256_fmsub_pd(v, v, near);
}
/* The larger; b where one is NaN. */
static inline Four four_larger(Four a, Four b) { return _mm256_max_pd(a, b); }
/* Where a is above b; such answers collected; whether there is any. */
static inline Four four_above(Four a, Four b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
static inline Four four_either(Four a, Four b) { return _mm256_or_pd(a, b); }
static inline int four_any(Four a) { return _mm256_movemask_pd(a) != 0; }

/* Four entries of each of four groups, `length` entries apart, turned: entry k of all groups. */
static inline void double_turn(Four *entry, const double *x, int64_t length) {
    Four a = four_load(x), b = four_load(x + length), c = four_load(x + 2 * length), d = four_load(x + 3 * length);
    Four ab = _mm256_unpacklo_pd(a, b), cd = _mm256_unpacklo_pd(c, d);
    Four up = _mm256_unpackhi_pd(a, b), down = _mm256_unpackhi_pd(c, d);
    entry[0] = _mm256_permute2f128_pd(ab, cd, 0x20), entry[1] = _mm256_permute2f128_pd(up, down, 0x20);
    entry[2] = _mm256_permute2f128_pd(ab, cd, 0x31), entry[3] = _mm256_permute2f128_pd(up, down, 0x31);
}
static inline void quads_turn(Four *entry, Quad a, Quad b, Quad c, Quad d) {
    _MM_TRANSPOSE4_PS(a, b, c, d);
    entry[0] = _mm256_cvtps_pd(a), entry[1] = _mm256_cvtps_pd(b), entry[2] = _mm256_cvtps_pd(c), entry[3] = _mm256_cvtps_pd(d);
}

static inline Eight eight_all(float v) { return _mm256_set1_ps(v); }
static inline Eight eight_load(const float *x) { return _mm256_loadu_ps(x); }
static inline void eight_store(float *y, Eight v) { _mm256_storeu_ps(y, v); }
static inline Eight eight_add(Eight a, Eight b) { return _mm256_add_ps(a, b); }
static inline Eight eight_mul(Eight a, Eight b) { return _mm256_mul_ps(a, b); }
static inline Eight eight_size(Eight v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
static inline Four eight_first(Eight v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
static inline Four eight_last(Eight v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }

#else

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
typedef __m128d Pair;
static inline Pair pair_all(double v) { return _mm_set1_pd(v); }
static inline Pair pair_load(const double *x) { return _mm_loadu_pd(x); }
static inline void pair_store(double *y, Pair v) { _mm_storeu_pd(y, v); }
static inline Pair pair_add(Pair a, Pair b) { return _mm_add_pd(a, b); }
static inline Pair pair_sub(Pair a, Pair b) { return _mm_sub_pd(a, b); }
static inline Pair pair_mul(Pair a, Pair b) { return _mm_mul_pd(a, b); }
static inline Pair pair_size(Pair v) { return _mm_andnot_pd(_mm_set1_pd(-0.0), v); }
static inline Pair pair_larger(Pair a, Pair b) { return _mm_max_pd(a, b); }
static inline Pair pair_above(Pair a, Pair b) { return _mm_cmpgt_pd(a, b); }
static inline Pair pair_either(Pair a, Pair b) { return _mm_or_pd(a, b); }
static inline int pair_any(Pair a) { return _mm_movemask_pd(a) != 0; }
#else
typedef struct {
    double v[2];
} Pair;
static inline Pair pair_all(double v) { return (Pair){{v, v}}; }
static inline Pair pair_load(const double *x) { return (Pair){{x[0], x[1]}}; }
static inline void pair_store(double *y, Pair v) { memcpy(y, v.v, sizeof v.v); }
static inline Pair pair_add(Pair a, Pair b) { return (Pair){{a.v[0] + b.v[0], a.v[1] + b.v[1]}}; }
static inline Pair pair_sub(Pair a, Pair b) { return (Pair){{a.v[0] - b.v[0], a.v[1] - b.v[1]}}; }
static inline Pair pair_mul(Pair a, Pair b) { return (Pair){{a.v[0] * b.v[0], a.v[1] * b.v[1]}}; }
static inline Pair pair_size(Pair v) { return (Pair){{fabs(v.v[0]), fabs(v.v[1])}}; }
static inline Pair pair_larger(Pair a, Pair b) {
    return (Pair){{a.v[0] > b.v[0] ? a.v[0] : b.v[0], a.v[1] > b.v[1] ? a.v[1] : b.v[1]}};
}
static inline Pair pair_above(Pair a, Pair b) { return (Pair){{a.v[0] > b.v[0], a.v[1] > b.v[1]}}; }
static inline Pair pair_either(Pair a, Pair b) { return pair_add(a, b); }
static inline int pair_any(Pair a) { return a.v[0] != 0 || a.v[1] != 0; }
#endif

/* Dekker: the error of the square, exactly. */
static inline Pair pair_square_minus(Pair v, Pair square, Pair near) {
    Pair scaled = pair_mul(pair_all(134217729.0), v), high = pair_sub(scaled, pair_sub(scaled, v)), low = pair_sub(v, high);
    Pair cross = pair_mul(pair_mul(pair_all(2), high), low);
    Pair error = pair_add(pair_add(pair_sub(pair_mul(high, high), square), cross), pair_mul(low, low));
    return pair_add(pair_sub(square, near), error);
}

typedef struct {
    Pair a, b;
} Four;
typedef struct {
    float v[4];
} Quad;
typedef struct {
    float v[8];
} Eight;

static inline Quad quad_load(const float *x) {
    Quad v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline Four four_all(double v) { return (Four){pair_all(v), pair_all(v)}; }
static inline Four four_load(const double *x) { return (Four){pair_load(x), pair_load(x + 2)}; }
static inline Four four_of(double a, double b, double c, double d) {
    const double v[4] = {a, b, c, d};
    return four_load(v);
}
static inline Four four_widen(Quad v) { return four_of(v.v[0], v.v[1], v.v[2], v.v[3]); }
static inline void four_store(double *y, Four v) { pair_store(y, v.a), pair_store(y + 2, v.b); }
static inline void double_turn(Four *entry, const double *x, int64_t length) {
    for (int k = 0; k < 4; k++) entry[k] = four_of(x[k], x[length + k], x[2 * length + k], x[3 * length + k]);
}
static inline void quads_turn(Four *entry, Quad a, Quad b, Quad c, Quad d) {
    for (int k = 0; k < 4; k++) entry[k] = four_of(a.v[k], b.v[k], c.v[k], d.v[k]);
}
static inline Four four_add(Four x, Four y) { return (Four){pair_add(x.a, y.a), pair_add(x.b, y.b)}; }
static inline Four four_sub(Four x, Four y) { return (Four){pair_sub(x.a, y.a), pair_sub(x.b, y.b)}; }
static inline Four four_mul(Four x, Four y) { return (Four){pair_mul(x.a, y.a), pair_mul(x.b, y.b)}; }
static inline Four four_add_square(Four sum, Four v) { return four_add(sum, four_mul(v, v)); }
static inline Four four_size(Four x) { return (Four){pair_size(x.a), pair_size(x.b)}; }
static inline Four four_square_minus(Four v, Four square, Four near) {
    return (Four){pair_square_minus(v.a, square.a, near.a), pair_square_minus(v.b, square.b, near.b)};
}
static inline Four four_larger(Four x, Four y) { return (Four){pair_larger(x.a, y.a), pair_larger(x.b, y.b)}; }
static inline Four four_above(Four x, Four y) { return (Four){pair_above(x.a, y.a), pair_above(x.b, y.b)}; }
static inline Four four_either(Four x, Four y) { return (Four){pair_either(x.a, y.a), pair_either(x.b, y.b)}; }
static inline int four_any(Four x) { return pair_any(x.a) || pair_any(x.b); }

static inline Eight eight_all(float v) { return (Eight){{v, v, v, v, v, v, v, v}}; }
static inline Eight eight_load(const float *x) {
    Eight v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline Eight eight_of_quads(const Quad *x) {
    Eight v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void eight_store(float *y, Eight v) { memcpy(y, v.v, sizeof v.v); }
static inline Four eight_first(Eight v) { return four_widen(quad_load(v.v)); }
static inline Four eight_last(Eight v) { return four_widen(quad_load(v.v + 4)); }
static inline Eight eight_add(Eight a, Eight b) {
    for (int k = 0; k < 8; k++) a.v[k] += b.v[k];
    return a;
}
static inline Eight eight_mul(Eight a, Eight b) {
    for (int k = 0; k < 8; k++) a.v[k] *= b.v[k];
    return a;
}
static inline Eight eight_size(Eight a) {
    for (int k = 0; k < 8; k++) a.v[k] = fabsf(a.v[k]);
    return a;
}

#endif

static inline Eight eight_power(Eight v, int ord) { return ord == 2 ? eight_mul(v, v) : eight_size(v); }

/* Have memory some bytes ahead brought into the cache: sums keep too few reads under way by themselves. */
static inline void look_ahead(const void *x, int64_t bytes) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch((const char *)x + bytes);
#else
    (void)x, (void)bytes;
#endif
}

/* The error of sum = a + b (Knuth). */
static inline Four four_sum_error(Four a, Four b, Four sum) {
    Four part = four_sub(sum, a);
    return four_add(four_sub(a, four_sub(sum, part)), four_sub(b, part));
}

#endif
