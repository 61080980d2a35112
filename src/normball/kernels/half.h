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

/* Eight at once, as floats. */
static inline Eight eight_of_halves(const uint16_t *x) {
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
#else
    float values[8];
    halves_to_floats(values, x, 8);
    return eight_load(values);
#endif
}

static inline Eight eight_of_bfloats(const uint16_t *x) {
#if defined(__AVX2__) && defined(__FMA__)
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
#else
    float values[8];
    bfloats_to_floats(values, x, 8);
    return eight_load(values);
#endif
}

static inline float bfloat_to_float(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

#endif
