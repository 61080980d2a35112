/* Sums of narrow entries in float: not good enough to rescale by, but to see, at twice the speed of the others, that a
 * norm is clearly within its bound. Relative error below 2**-18, and n * 2**-149 where squares are subnormal. Included
 * once for each dtype, with ENTRY, NAME(function), EIGHT(x), which loads eight as float, and ONE(x) defined.
 */

/* At most ROW_BLOCK entries: 32 terms a lane. */
static inline double NAME(quick_row)(const ENTRY *x, int64_t n, int ord) {
    Eight a = eight_all(0), b = a, c = a, d = a;
    ENTRY tail[32];
    for (int64_t left = n; left > 0; left -= 32, x += 32) {
        if (left < 32) {
            for (int l = 0; l < 32; l++) tail[l] = l < left ? x[l] : 0;
            x = tail;
        }
        look_ahead(x, AHEAD);
        if (sizeof(ENTRY) == 4) look_ahead(x, AHEAD + 64);
        a = eight_add(a, eight_power(EIGHT(x), ord));
        b = eight_add(b, eight_power(EIGHT(x + 8), ord));
        c = eight_add(c, eight_power(EIGHT(x + 16), ord));
        d = eight_add(d, eight_power(EIGHT(x + 24), ord));
    }
    Eight all = eight_add(eight_add(a, c), eight_add(b, d));
    double sum[4];
    four_store(sum, four_add(eight_first(all), eight_last(all)));
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Add a few rows of n columns to the columns' sums: eight terms in float, the rest in double. */
static inline void NAME(quick_columns)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict sum, int ord) {
    for (int64_t step = STEP_ROWS; rows > 0; rows -= step, x += step * row_step) {
        if (rows < STEP_ROWS) step = 1;
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
            Eight part = eight_power(EIGHT((const ENTRY *)x + i), ord);
            if (step == STEP_ROWS)
                for (int k = 1; k < STEP_ROWS; k++)
                    part = eight_add(part, eight_power(EIGHT((const ENTRY *)(x + k * row_step) + i), ord));
            four_store(sum + i, four_add(four_load(sum + i), eight_first(part)));
            four_store(sum + i + 4, four_add(four_load(sum + i + 4), eight_last(part)));
        }
        for (; i < n; i++)
            for (int64_t k = 0; k < step; k++) {
                double v = ONE((const ENTRY *)(x + k * row_step) + i);
                sum[i] += ord == 2 ? v * v : fabs(v);
            }
    }
}
