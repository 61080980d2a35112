/* The inner loops of every dtype, and a table of them for each, so that what follows need not know dtypes. */
#ifndef NORMBALL_DTYPES_H
#define NORMBALL_DTYPES_H

#include "arithmetic.h"
#include "half.h"
#include "normball.h"
#include "vectors.h"

/* Of contiguous entries; ord as normball.h has it, columns' rows at row_step bytes. Sums and scaling are at most of
 * ROW_BLOCK entries of a row, or COLUMN_BLOCK of a column. */
typedef struct {
    double (*row)(const void *x, int64_t n, int64_t ord); /* the sum, or the largest */
    double (*quickly)(const void *x, int64_t n, int64_t ord);
    Wide (*wide_row)(const void *x, int64_t n, int64_t ord);
    void (*columns)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *high, double *low, int64_t ord, int wide);
    void (*columns_quickly)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *sum, int64_t ord);
    void (*short_groups)(const void *x, int64_t length, int64_t n, double *high, double *low, int64_t ord, int wide);
    void (*scale_row)(void *y, const void *x, int64_t n, double factor);
    void (*scale_each)(void *y, const void *x, int64_t n, const double *factor, const float *narrow);
    void (*to_doubles)(double *y, const void *x, int64_t n);
    void (*from_doubles)(void *y, const double *x, int64_t n);
} Entries;

/* A factor as the float by which floats are multiplied: lowered and rounded once, as WIDE_MARGIN does it for doubles. */
static inline float float_factor(double factor) { return factor == 1 ? 1 : (float)(factor * (1 - FLOAT_MARGIN)); }

#define TWO_FOURS(entry, x) ((entry)[0] = FOUR(x), (entry)[1] = FOUR((x) + 4))
#define ENTRY double
#define NAME(function) double_##function
#define QUICK(function) double_plain_##function
#define ONE(x) (*(x))
#define FOUR(x) four_load(x)
#define TURN(entry, x, length) double_turn(entry, x, length)
#define TRUNCATED(v) (v)
#define FACTOR(factor, narrow) (factor)
#include "loops.h"
#include "sums.h"
#include "entries.h"
#undef ENTRY
#undef NAME
#undef QUICK
#undef FOUR
#undef TURN
#undef TRUNCATED
#undef FACTOR

#define TURN(entry, x, length) \
    quads_turn(entry, QUAD(x), QUAD((x) + (length)), QUAD((x) + 2 * (length)), QUAD((x) + 3 * (length)))
#define FOUR(x) four_widen(QUAD(x))
#define FACTOR(factor, narrow) (narrow)

#define ENTRY float
#define NAME(function) float_##function
#define QUICK(function) float_quick_##function
#define QUAD(x) quad_load(x)
#define EIGHT(x) eight_load(x)
#define TRUNCATED(v) ((float)(v))
#include "loops.h"
#include "sums.h"
#include "quick.h"
#include "entries.h"
#undef ENTRY
#undef NAME
#undef QUICK
#undef ONE
#undef QUAD
#undef EIGHT
#undef TRUNCATED

#define ENTRY uint16_t
#define NAME(function) half_##function
#define QUICK(function) half_quick_##function
#define ONE(x) half_to_float(*(x))
#define QUAD(x) quad_of_halves(x)
#define EIGHT(x) eight_of_halves(x)
#define SIXTEEN(y, x, a, b) scale_sixteen_halves(y, x, a, b)
#define TRUNCATED(v) float_to_half((float)(v))
#include "loops16.h"
#include "sums.h"
#include "quick.h"
#include "entries.h"
#undef NAME
#undef QUICK
#undef ONE
#undef QUAD
#undef EIGHT
#undef SIXTEEN
#undef TRUNCATED

#define NAME(function) bfloat_##function
#define QUICK(function) bfloat_quick_##function
#define ONE(x) bfloat_to_float(*(x))
#define QUAD(x) quad_of_bfloats(x)
#define EIGHT(x) eight_of_bfloats(x)
#undef TWO_FOURS
#define TWO_FOURS(entry, x) two_fours_of_bfloats(entry, x)
#define SIXTEEN(y, x, a, b) scale_sixteen_bfloats(y, x, a, b)
#define TRUNCATED(v) float_to_bfloat((float)(v))
#include "loops16.h"
#include "sums.h"
#include "quick.h"
#include "entries.h"
#undef ENTRY
#undef NAME
#undef QUICK
#undef ONE
#undef QUAD
#undef EIGHT
#undef SIXTEEN
#undef TRUNCATED
#undef FOUR
#undef TWO_FOURS
#undef TURN
#undef FACTOR

static inline const Entries *entries_of(int64_t dtype) {
    return dtype == NORMBALL_F64 ? &double_entries : dtype == NORMBALL_F32 ? &float_entries : dtype == NORMBALL_F16 ? &half_entries : &bfloat_entries;
}

#endif
