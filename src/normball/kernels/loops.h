/* Plain inner loops, which compilers vectorise, over contiguous float or double; included once for each, with ENTRY and
 * NAME(function) defined. y is x itself or apart from it; EACH_ALONE tells the compiler, who would give up vectors
 * where they are the same.
 */

/* Each entry times one factor. */
static void NAME(scale)(ENTRY *y, const ENTRY *x, int64_t n, ENTRY factor) {
    EACH_ALONE
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor;
}

/* Each entry times its column's factor. */
static void NAME(scale_columns)(ENTRY *y, const ENTRY *x, int64_t n, const ENTRY *restrict factor) {
    EACH_ALONE
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor[i];
}

/* The largest |entry|, NaN where there is one. */
static double NAME(largest)(const ENTRY *x, int64_t n) {
    ENTRY lane[LANES] = {0}, result = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = NAME(larger_size)(lane[l], x[i + l]);
    for (int l = 0; i + l < n; l++) lane[l] = NAME(larger_size)(lane[l], x[i + l]);
    for (int l = 0; l < LANES; l++) result = NAME(larger_size)(result, lane[l]);
    return (double)result;
}

/* The same for every column of a few rows. */
static void NAME(largest_columns)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict largest) {
    for (int64_t r = 0; r < rows; r++) {
        const ENTRY *row = (const ENTRY *)(x + r * row_step);
        for (int64_t i = 0; i < n; i++) largest[i] = double_larger(largest[i], fabs((double)row[i]));
    }
}

/* The same for short groups, `length` entries each and side by side in memory. */
static void NAME(largest_short)(const ENTRY *x, int64_t length, int64_t n, double *restrict largest) {
    for (int64_t j = 0; j < n; j++, x += length) {
        double result = 0;
        for (int64_t i = 0; i < length; i++) result = double_larger(result, fabs((double)x[i]));
        largest[j] = result;
    }
}
