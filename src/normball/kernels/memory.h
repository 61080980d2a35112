/* From any memory to contiguous entries, and back. Entries are fetched and delivered at most ROW_BLOCK at a time, so that
 * what lies between stays in cache; contiguous ones are worked on where they are.
 */
#ifndef NORMBALL_MEMORY_H
#define NORMBALL_MEMORY_H

#include "dtypes.h"

/* Room for ROW_BLOCK entries of any dtype. */
typedef struct {
    double room[ROW_BLOCK];
} Buffer;

static inline int64_t itemsize(int64_t dtype) { return dtype == NORMBALL_F64 ? 8 : dtype == NORMBALL_F32 ? 4 : 2; }

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

/* At most ROW_BLOCK entries side by side: x itself where they are, else in `buffer`. */
static const void *fetch(int64_t dtype, const char *x, int64_t step, int64_t n, void *buffer) {
    int64_t size = itemsize(dtype);
    if (step == size) return x;
    copy_strided(buffer, size, x, step, n, size);
    return buffer;
}

/* Where the result may be written at once: y itself where entries lie side by side, else `buffer`. */
static inline void *target_for(int64_t dtype, char *y, int64_t step, void *buffer, int streaming) {
    return step == itemsize(dtype) && !streaming ? (void *)y : buffer;
}

/* The other way round: at most ROW_BLOCK entries side by side from `source` to their place. Nothing to do where
 * `target_for` was y. */
static void deliver(int64_t dtype, char *y, int64_t step, int64_t n, const void *source, int streaming) {
    if (source != y) copy_run(dtype, source, itemsize(dtype), y, step, n, streaming);
}

/* At most ROW_BLOCK entries as doubles. */
static const double *fetch_doubles(int64_t dtype, const char *x, int64_t step, int64_t n, double *buffer) {
    Buffer narrow;
    if (dtype == NORMBALL_F64) return fetch(dtype, x, step, n, buffer);
    entries_of(dtype)->to_doubles(buffer, fetch(dtype, x, step, n, &narrow), n);
    return buffer;
}

#endif
