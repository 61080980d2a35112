/* From any memory to contiguous float or double, and back. Entries are fetched and delivered at most ROW_BLOCK at a
 * time, so that what lies between stays in cache; contiguous floats and doubles are worked on where they are.
 */
#ifndef NORMBALL_MEMORY_H
#define NORMBALL_MEMORY_H

#include "half.h"
#include "normball.h"

typedef union {
    double d[ROW_BLOCK];
    float f[ROW_BLOCK];
    uint16_t h[ROW_BLOCK];
} Buffer;

static inline int64_t itemsize(int64_t dtype) { return dtype == NORMBALL_F64 ? 8 : dtype == NORMBALL_F32 ? 4 : 2; }

/* Kernels work in float64 for float64, and in float32 for the rest. */
static inline int64_t worksize(int64_t dtype) { return dtype == NORMBALL_F64 ? 8 : 4; }

static inline int works_in_place(int64_t dtype, int64_t step) { return step == itemsize(dtype) && step == worksize(dtype); }

/* Write past the caches, whole lines of them only: a line that is written both ways costs eight times as much. What does
 * not fit into the caches is so written in one stream instead of being read first. */
static void stream(void *to, const void *from, int64_t bytes) {
    enum { LINE = 64 };
    char *y = to;
    const char *x = from;
    int64_t head = (int64_t)(-(uintptr_t)y % LINE);
    if (head > bytes) head = bytes;
    memcpy(y, x, (size_t)head);
    y += head, x += head, bytes -= head;
#if defined(__AVX2__)
    for (; bytes >= LINE; y += LINE, x += LINE, bytes -= LINE)
        for (int at = 0; at < LINE; at += 32)
            _mm256_stream_si256((__m256i *)(y + at), _mm256_loadu_si256((const __m256i *)(x + at)));
#elif defined(__SSE2__) || defined(_M_X64)
    for (; bytes >= LINE; y += LINE, x += LINE, bytes -= LINE)
        for (int at = 0; at < LINE; at += 16)
            _mm_stream_si128((__m128i *)(y + at), _mm_loadu_si128((const __m128i *)(x + at)));
#endif
    memcpy(y, x, (size_t)bytes);
}

/* Before what was streamed is read by others. */
static inline void stream_end(void) {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_sfence();
#endif
}

static inline void copy_strided(char *y, int64_t y_step, const char *x, int64_t x_step, int64_t n, int64_t size) {
    if (size == 8)
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 8);
    else if (size == 4)
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 4);
    else
        for (int64_t i = 0; i < n; i++) memcpy(y + i * y_step, x + i * x_step, 2);
}

/* n entries as they are. */
static void copy_run(int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, int streaming) {
    int64_t size = itemsize(dtype);
    if (x_step != size || y_step != size) copy_strided(y, y_step, x, x_step, n, size);
    else if (streaming) stream(y, x, n * size);
    else memcpy(y, x, (size_t)(n * size));
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

/* Where the result may be written at once: y itself where that is contiguous float or double, else `buffer`. */
static inline void *target_for(int64_t dtype, char *y, int64_t step, void *buffer, int streaming) {
    return works_in_place(dtype, step) && !streaming ? (void *)y : buffer;
}

/* The other way round: at most ROW_BLOCK contiguous floats or doubles from `source` to their place, truncated to the
 * dtype. Nothing to do where `target_for` was y. */
static void deliver(int64_t dtype, char *y, int64_t step, int64_t n, const void *source, int streaming) {
    uint16_t packed[ROW_BLOCK];
    int64_t size = itemsize(dtype);
    if (source == y) return;
    if (size == 2) {
        uint16_t *halves = step == 2 && !streaming ? (uint16_t *)y : packed;
        if (dtype == NORMBALL_F16) floats_to_halves(halves, source, n);
        else floats_to_bfloats(halves, source, n);
        if ((char *)halves == y) return;
        source = packed;
    }
    copy_run(dtype, source, size, y, step, n, streaming);
}

/* At most ROW_BLOCK entries as doubles. */
static const double *fetch_doubles(int64_t dtype, const char *x, int64_t step, int64_t n, double *buffer) {
    Buffer narrow;
    if (dtype == NORMBALL_F64) return fetch(dtype, x, step, n, buffer);
    const float *values = fetch(dtype, x, step, n, &narrow);
    for (int64_t i = 0; i < n; i++) buffer[i] = values[i];
    return buffer;
}

#endif
