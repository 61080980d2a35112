/* float16 and bfloat16, as their bits, from and to float. */
#ifndef NORMBALL_HALF_H
#define NORMBALL_HALF_H

#include <stdint.h>
#include <string.h>

#include "vectors.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

static inline float bfloat_to_float(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

/* Truncated. */
static inline uint16_t float_to_bfloat(float value) { return (uint16_t)(bits_of_float(value) >> 16); }

/* Four and eight at once, as floats; and sixteen, times a and b, truncated: 16-byte stores are slower. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SIXTEENS

static inline Quad quad_of_halves(const uint16_t *x) { return _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)x)); }
static inline Eight eight_of_halves(const uint16_t *x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }

static inline void scale_sixteen_halves(uint16_t *y, const uint16_t *x, Eight a, Eight b) {
    __m128i low = _mm256_cvtps_ph(eight_mul(eight_of_halves(x), a), _MM_FROUND_TO_ZERO);
    __m128i high = _mm256_cvtps_ph(eight_mul(eight_of_halves(x + 8), b), _MM_FROUND_TO_ZERO);
    _mm256_storeu_si256((__m256i *)y, _mm256_set_m128i(high, low));
}

static inline Quad quad_of_bfloats(const uint16_t *x) {
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)x)));
}
static inline void two_fours_of_bfloats(Four *entry, const uint16_t *x) { /* one load instead of two */
    __m128i zero = _mm_setzero_si128(), bits = _mm_loadu_si128((const __m128i *)x);
    entry[0] = four_widen(_mm_castsi128_ps(_mm_unpacklo_epi16(zero, bits)));
    entry[1] = four_widen(_mm_castsi128_ps(_mm_unpackhi_epi16(zero, bits)));
}
static inline Eight eight_of_bfloats(const uint16_t *x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x)), 16));
}

/* Zeros put below the entries leave entries 0-3 and 8-11 together, and packing puts them back: half the instructions of
 * the straight way. */
static inline void scale_sixteen_bfloats(uint16_t *y, const uint16_t *x, Eight a, Eight b) {
    __m256i zero = _mm256_setzero_si256(), bits = _mm256_loadu_si256((const __m256i *)x);
    Eight low = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, bits)), high = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, bits));
    __m256i first = _mm256_castps_si256(eight_mul(low, _mm256_permute2f128_ps(a, b, 0x20)));
    __m256i second = _mm256_castps_si256(eight_mul(high, _mm256_permute2f128_ps(a, b, 0x31)));
    _mm256_storeu_si256((__m256i *)y, _mm256_packus_epi32(_mm256_srli_epi32(first, 16), _mm256_srli_epi32(second, 16)));
}
#else
#if defined(__SSE2__) || defined(_M_X64) /* gcc leaves so short a loop scalar */
static inline Quad quad_of_halves(const uint16_t *x) { /* as half_to_float has it */
    __m128i bits = _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)x), _mm_setzero_si128());
    __m128i size = _mm_slli_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x7fff)), 13);
    __m128i sign = _mm_slli_epi32(_mm_and_si128(bits, _mm_set1_epi32(0x8000)), 16);
    __m128i finite = _mm_castps_si128(_mm_mul_ps(_mm_castsi128_ps(size), _mm_set1_ps(0x1p112f)));
    __m128i special = _mm_and_si128(_mm_cmpgt_epi32(size, _mm_set1_epi32(0x0f7fffff)), _mm_set1_epi32(0x7f800000));
    Quad v;
    _mm_storeu_ps(v.v, _mm_castsi128_ps(_mm_or_si128(_mm_or_si128(finite, special), sign)));
    return v;
}
static inline Quad quad_of_bfloats(const uint16_t *x) {
    Quad v;
    __m128i bits = _mm_loadl_epi64((const __m128i *)x);
    _mm_storeu_ps(v.v, _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), bits)));
    return v;
}
#else
static inline Quad quad_of_halves(const uint16_t *x) {
    Quad v;
    for (int k = 0; k < 4; k++) v.v[k] = half_to_float(x[k]);
    return v;
}
static inline Quad quad_of_bfloats(const uint16_t *x) {
    Quad v;
    for (int k = 0; k < 4; k++) v.v[k] = bfloat_to_float(x[k]);
    return v;
}
#endif
static inline Eight eight_of_halves(const uint16_t *x) {
    Quad v[2] = {quad_of_halves(x), quad_of_halves(x + 4)};
    return eight_of_quads(v);
}
static inline Eight eight_of_bfloats(const uint16_t *x) {
    Quad v[2] = {quad_of_bfloats(x), quad_of_bfloats(x + 4)};
    return eight_of_quads(v);
}
static inline void two_fours_of_bfloats(Four *entry, const uint16_t *x) {
    entry[0] = four_widen(quad_of_bfloats(x)), entry[1] = four_widen(quad_of_bfloats(x + 4));
}
#endif

#endif
