/* What loops.h has, over contiguous float16 or bfloat16: read, multiplied as floats, truncated and written in one go.
 * Included once for each, with NAME(function), ONE(x) and TRUNCATED(v) defined, and SIXTEEN(y, x, a, b), which does
 * sixteen entries times the factors a and b at once, where there are instructions for it (SIXTEENS); elsewhere compilers
 * vectorise the plain loop.
 */

/* Each entry times one factor. */
static void NAME(scale)(uint16_t *y, const uint16_t *x, int64_t n, float factor) {
    int64_t i = 0;
#if defined(SIXTEENS)
    const Eight all = eight_all(factor);
    for (; i + 16 <= n; i += 16) SIXTEEN(y + i, x + i, all, all);
#endif
    EACH_ALONE
    for (; i < n; i++) y[i] = TRUNCATED(ONE(x + i) * factor);
}

/* Each entry times its column's factor. */
static void NAME(scale_columns)(uint16_t *y, const uint16_t *x, int64_t n, const float *restrict factor) {
    int64_t i = 0;
#if defined(SIXTEENS)
    for (; i + 16 <= n; i += 16) SIXTEEN(y + i, x + i, eight_load(factor + i), eight_load(factor + i + 8));
#endif
    EACH_ALONE
    for (; i < n; i++) y[i] = TRUNCATED(ONE(x + i) * factor[i]);
}

/* The largest |entry|, NaN where there is one: without the sign, bits compare as sizes do, and NaN is above inf. */
static double NAME(largest)(const uint16_t *x, int64_t n) {
    uint16_t most = 0;
    for (int64_t i = 0; i < n; i++) most = (x[i] & 0x7fff) > most ? x[i] & 0x7fff : most;
    return (double)ONE(&most);
}

/* The same for every column of a few rows. */
static void NAME(largest_columns)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict largest) {
    uint16_t most[ROW_BLOCK];
    for (int64_t j = 0; j < n; j += ROW_BLOCK) {
        int64_t part = n - j < ROW_BLOCK ? n - j : ROW_BLOCK;
        memset(most, 0, sizeof most);
        for (int64_t r = 0; r < rows; r++) {
            const uint16_t *row = (const uint16_t *)(x + r * row_step) + j;
            for (int64_t i = 0; i < part; i++) most[i] = (row[i] & 0x7fff) > most[i] ? row[i] & 0x7fff : most[i];
        }
        for (int64_t i = 0; i < part; i++) largest[j + i] = double_larger(largest[j + i], (double)ONE(most + i));
    }
}

/* The same for short groups, `length` entries each and side by side in memory. */
static void NAME(largest_short)(const uint16_t *x, int64_t length, int64_t n, double *restrict largest) {
    for (int64_t j = 0; j < n; j++, x += length) largest[j] = NAME(largest)(x, length);
}
