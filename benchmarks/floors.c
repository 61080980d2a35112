/* The least that any implementation must do with memory: read it once, write it in place, copy it. floors.py compiles
 * this for the machine it runs on. A list of arrays is one job; each thread takes its part of every array, and repeats
 * the job without waiting for the others, so that nothing here costs more than the memory does.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

enum { READ, SCALE, COPY, COPY_PAST_CACHE }; /* floors.py has the same */
enum { MOST_THREADS = 64, LINE = 64 };

typedef uint64_t Word __attribute__((vector_size(32), aligned(8), may_alias)); /* 256 bits, from any address */

typedef struct {
    int64_t what, width, arrays;
    char **x, **y;
    const int64_t *bytes;
    int64_t repeats, part, parts;
    uint64_t result;
} Job;

static volatile float one = 1; /* the compiler must not know it */

static uint64_t read_all(const char *x, int64_t bytes) {
    Word a = {0}, b = {0}, c = {0}, d = {0};
    int64_t i = 0;
    for (; i + 128 <= bytes; i += 128) {
        a ^= *(const Word *)(x + i);
        b ^= *(const Word *)(x + i + 32);
        c ^= *(const Word *)(x + i + 64);
        d ^= *(const Word *)(x + i + 96);
    }
    a ^= b ^ c ^ d;
    uint64_t rest = a[0] ^ a[1] ^ a[2] ^ a[3];
    for (; i < bytes; i++) rest ^= (uint64_t)(uint8_t)x[i];
    return rest;
}

static void scale_all(char *x, int64_t bytes, int64_t width) {
    if (width == 8) {
        double *v = (double *)x, factor = one;
        for (int64_t i = 0; i < bytes / 8; i++) v[i] *= factor;
    } else if (width == 4) {
        float *v = (float *)x, factor = one;
        for (int64_t i = 0; i < bytes / 4; i++) v[i] *= factor;
    } else { /* 16-bit floats, for which plain C has no product: any write in place */
        uint16_t *v = (uint16_t *)x, mask = (uint16_t)(one - 1);
        for (int64_t i = 0; i < bytes / 2; i++) v[i] ^= mask;
    }
}

static void copy_all(char *y, const char *x, int64_t bytes) {
    int64_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        Word a = *(const Word *)(x + i), b = *(const Word *)(x + i + 32);
        *(Word *)(y + i) = a;
        *(Word *)(y + i + 32) = b;
    }
    memcpy(y + i, x + i, (size_t)(bytes - i));
}

/* Stores that do not read y's old lines first, for what is larger than the cache. y is aligned to a line. */
static void copy_past_cache(char *y, const char *x, int64_t bytes) {
#ifdef __AVX__
    int64_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(x + i)), b = _mm256_loadu_si256((const __m256i *)(x + i + 32));
        _mm256_stream_si256((__m256i *)(y + i), a);
        _mm256_stream_si256((__m256i *)(y + i + 32), b);
    }
    memcpy(y + i, x + i, (size_t)(bytes - i));
    _mm_sfence();
#else
    copy_all(y, x, bytes);
#endif
}

static void *work(void *given) {
    Job *job = given;
    for (int64_t r = 0; r < job->repeats; r++) {
        for (int64_t k = 0; k < job->arrays; k++) {
            int64_t lines = job->bytes[k] / LINE;
            int64_t begin = lines * job->part / job->parts * LINE;
            int64_t end = job->part + 1 == job->parts ? job->bytes[k] : lines * (job->part + 1) / job->parts * LINE;
            char *x = job->x[k] + begin, *y = job->y[k] + begin;
            if (job->what == READ) job->result += read_all(x, end - begin);
            else if (job->what == SCALE) scale_all(x, end - begin, job->width);
            else if (job->what == COPY) copy_all(y, x, end - begin);
            else copy_past_cache(y, x, end - begin);
        }
        __asm__ volatile("" ::: "memory"); /* each repeat is done in full */
    }
    return 0;
}

/* Do `what` with all arrays, `repeats` times, on `threads` threads; entries have `width` bytes. */
uint64_t floor_run(int64_t what, int64_t width, int64_t arrays, char **x, char **y, const int64_t *bytes,
                   int64_t repeats, int64_t threads) {
    Job job[MOST_THREADS];
    pthread_t helper[MOST_THREADS];
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (int64_t t = 0; t < threads; t++) job[t] = (Job){what, width, arrays, x, y, bytes, repeats, t, threads, 0};
    for (int64_t t = 1; t < threads; t++)
        if (pthread_create(&helper[t], 0, work, &job[t])) abort(); /* a floor of fewer threads would be a lie */
    work(&job[0]);
    for (int64_t t = 1; t < threads; t++) pthread_join(helper[t], 0);
    return job[0].result;
}
