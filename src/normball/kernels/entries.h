/* The loops over contiguous entries of a dtype, as others call them: included once for each dtype, after its loops, with
 * ENTRY, NAME(function), QUICK(function), ONE(x), TRUNCATED(v) and FACTOR(factor, narrow), which chooses the dtype's kind
 * of factor, defined. Each call with a constant `ord` compiles to a loop of its own.
 */

static double NAME(row)(const void *x, int64_t n, int64_t ord) {
    if (ord == NORMBALL_ORD_INF) return NAME(largest)(x, n);
    return ord == 2 ? NAME(plain_row)(x, n, 2) : NAME(plain_row)(x, n, 1);
}

static double NAME(quickly)(const void *x, int64_t n, int64_t ord) {
    return ord == 2 ? QUICK(row)(x, n, 2) : QUICK(row)(x, n, 1);
}

static Wide NAME(wide_row)(const void *x, int64_t n, int64_t ord) {
    return ord == 2 ? NAME(two_words_row)(x, n, 2) : NAME(two_words_row)(x, n, 1);
}

static void NAME(columns)(
    const char *x, int64_t row_step, int64_t rows, int64_t n, double *high, double *low, int64_t ord, int wide) {
    if (ord == NORMBALL_ORD_INF) NAME(largest_columns)(x, row_step, rows, n, high);
    else if (wide && ord == 2) NAME(wide_columns)(x, row_step, rows, n, high, low, 2);
    else if (wide) NAME(wide_columns)(x, row_step, rows, n, high, low, 1);
    else if (ord == 2) NAME(plain_columns)(x, row_step, rows, n, high, 2);
    else NAME(plain_columns)(x, row_step, rows, n, high, 1);
}

static void NAME(columns_quickly)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *sum, int64_t ord) {
    if (ord == 2) QUICK(columns)(x, row_step, rows, n, sum, 2);
    else QUICK(columns)(x, row_step, rows, n, sum, 1);
}

static void NAME(short_groups)(const void *x, int64_t length, int64_t n, double *high, double *low, int64_t ord, int wide) {
    if (ord == NORMBALL_ORD_INF) NAME(largest_short)(x, length, n, high);
    else if (wide && ord == 2) NAME(wide_short)(x, length, n, high, low, 2);
    else if (wide) NAME(wide_short)(x, length, n, high, low, 1);
    else if (ord == 2) NAME(plain_short)(x, length, n, high, 2);
    else NAME(plain_short)(x, length, n, high, 1);
}

static void NAME(scale_row)(void *y, const void *x, int64_t n, double factor) {
    NAME(scale)(y, x, n, FACTOR(factor, float_factor(factor)));
}

static void NAME(scale_each)(void *y, const void *x, int64_t n, const double *factor, const float *narrow) {
    (void)factor, (void)narrow;
    NAME(scale_columns)(y, x, n, FACTOR(factor, narrow));
}

static void NAME(to_doubles)(double *y, const void *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = ONE((const ENTRY *)x + i);
}

/* Of values that a float holds, for the narrow ones; truncated. */
static void NAME(from_doubles)(void *y, const double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) ((ENTRY *)y)[i] = TRUNCATED(x[i]);
}

static const Entries NAME(entries) = {
    NAME(row), NAME(quickly), NAME(wide_row), NAME(columns), NAME(columns_quickly), NAME(short_groups),
    NAME(scale_row), NAME(scale_each), NAME(to_doubles), NAME(from_doubles)};
