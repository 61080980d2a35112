/* Walks over dimensions, and the plan of a call: which axes go together, and in which order memory is read. */
#ifndef NORMBALL_PLAN_H
#define NORMBALL_PLAN_H

#include "memory.h"
#include "normball.h"

enum { X, Y, BOUND, EPSILON, OPERANDS, NORMS = EPSILON /* where norms are handed out */ };

typedef struct {
    int64_t size;
    int64_t step[OPERANDS];
} Dim;

typedef struct {
    int count;
    Dim dim[NORMBALL_MAX_NDIM];
} Dims;

typedef struct {
    char *at[OPERANDS];
} Place;

/* Visits every index of all dims but the last, which is left to the caller as a run. */
typedef struct {
    const Dims *dims;
    Place place;
    int64_t length;           /* of the run */
    const int64_t *step;      /* along the run */
    int64_t index[NORMBALL_MAX_NDIM];
} Walk;

static void walk_start(Walk *walk, const Dims *dims, Place place) {
    static const int64_t still[OPERANDS] = {0};
    walk->dims = dims;
    walk->place = place;
    walk->length = dims->count ? dims->dim[dims->count - 1].size : 1;
    walk->step = dims->count ? dims->dim[dims->count - 1].step : still;
    for (int d = 0; d < dims->count; d++) walk->index[d] = 0;
}

static int walk_next(Walk *walk) {
    for (int d = walk->dims->count - 2; d >= 0; d--) {
        const Dim *dim = &walk->dims->dim[d];
        int wraps = ++walk->index[d] == dim->size;
        int64_t steps = wraps ? 1 - dim->size : 1;
        if (wraps) walk->index[d] = 0;
        for (int o = 0; o < OPERANDS; o++) walk->place.at[o] += steps * dim->step[o];
        if (!wraps) return 1;
    }
    return 0;
}

static Place moved(Place place, const int64_t *step, int64_t count) {
    for (int o = 0; o < OPERANDS; o++) place.at[o] += step[o] * count;
    return place;
}

/* Outermost first: descending |stride| of x, broadcast dims (stride 0) before all. */
static void insert_sorted(Dims *dims, Dim dim) {
    uint64_t key = (uint64_t)dim.step[X] - 1;
    int at = dims->count++;
    for (; at > 0 && (uint64_t)dims->dim[at - 1].step[X] - 1 < key; at--) dims->dim[at] = dims->dim[at - 1];
    dims->dim[at] = dim;
}

/* Merge neighbours that are one longer dim for the first `operands` of the operands. */
static void collapse(Dims *dims, int operands) {
    int kept = 0;
    for (int d = 0; d < dims->count; d++) {
        Dim *outer = &dims->dim[kept - (kept > 0)], inner = dims->dim[d];
        int joins = kept > 0;
        for (int o = 0; joins && o < operands; o++) joins = outer->step[o] == inner.step[o] * inner.size;
        if (joins) {
            inner.size *= outer->size;
            *outer = inner;
        } else {
            dims->dim[kept++] = inner;
        }
    }
    dims->count = kept;
}

/* The place of the index-th of all runs. */
static Place place_of_run(const Dims *dims, Place place, int64_t index) {
    for (int d = dims->count - 2; d >= 0; d--) {
        const Dim *dim = &dims->dim[d];
        place = moved(place, dim->step, index % dim->size);
        index /= dim->size;
    }
    return place;
}

/* How one call goes over its array. Sums follow x's layout alone, so that y's has no influence on the bits. */
typedef struct {
    int64_t dtype, ord;
    int wide;         /* sums in two words throughout: for float64, and for norms that are handed out */
    int columnar;     /* many groups side by side, entry by entry; else group by group */
    int packed;       /* columnar: short groups, one behind the other in x without a gap */
    int only_norms;   /* hand out the norms, and write nothing else */
    int empty;        /* no entries */
    int in_place;     /* y is x */
    int streaming;    /* write past the caches */
    int64_t length;   /* entries of a group */
    int64_t bytes;    /* of x */
    int64_t together; /* rows that are summed before they are written */
    int64_t residues; /* columnar: a column's sum is that of so many, each of every so manieth row; else 1 */
    Dims kept, reduced, written; /* the kept axes; the norm axes as x lies; the same as x and y lie */
    Place place;
    const char *start;         /* of x, for `produce` */
    const normball_call *call; /* may be NULL */
} Plan;

static const Dim *innermost(const Dims *dims) { return &dims->dim[dims->count - 1]; }

static int runs_along_kept(const Plan *plan) {
    const Dims *kept = &plan->kept, *reduced = &plan->reduced;
    if (kept->count == 0) return 0;
    if (reduced->count == 0 || plan->length < SHORT) return 1;
    return (uint64_t)innermost(kept)->step[X] - 1 < (uint64_t)innermost(reduced)->step[X] - 1;
}

/* How many neighbouring rows of x, without gaps between them, are one wide row of columns: narrow ones only. */
static int64_t residues_of(const Plan *plan, int64_t row_length) {
    const Dims *reduced = &plan->reduced;
    int64_t size = itemsize(plan->dtype);
    if (!plan->columnar || reduced->count != 1 || row_length > NARROW || plan->length < 4 * FOLD_WIDTH / row_length) return 1;
    return reduced->dim[0].step[X] == row_length * size ? FOLD_WIDTH / row_length : 1;
}

/* The length of x's rows of kept entries where these lie side by side; else, a length that is too large to matter. */
static int64_t row_length_of(const Dims *kept, int64_t size) {
    int64_t length = 1;
    for (int d = kept->count - 1; d >= 0; d--) {
        if (kept->dim[d].step[X] != length * size) return INT64_MAX / 16;
        length *= kept->dim[d].size;
    }
    return length;
}

/* How many rows are summed before they are judged together and written. Memory likes reads and writes mixed; less so
 * where entries are so short that arithmetic takes as long. */
static int64_t rows_together(const Plan *plan) {
    int64_t size = itemsize(plan->dtype), some = TOGETHER_BYTES;
    if (plan->bytes > CACHED_BYTES) some /= size == 2 ? 2 : 8;
    int64_t rows = plan->empty ? 1 : some / (plan->length * size);
    return rows < 1 ? 1 : rows > ROWS_TOGETHER ? ROWS_TOGETHER : rows;
}

static void plan_make(Plan *plan, const normball_array *array, int64_t ord, int only_norms, const normball_call *call) {
    const int64_t *const strides[OPERANDS] = {
        array->x_strides, only_norms ? NULL : array->y_strides, array->max_norm_strides,
        only_norms ? array->y_strides : array->epsilon_strides};
    Place place = {{(char *)array->x, only_norms ? NULL : array->y, (char *)array->max_norm,
                    only_norms ? array->y : (char *)array->epsilon}};
    int64_t size = itemsize(array->dtype), total = 1;
    plan->dtype = array->dtype;
    plan->ord = ord;
    plan->wide = only_norms || array->dtype == NORMBALL_F64;
    plan->only_norms = only_norms;
    plan->in_place = array->x == array->y;
    plan->start = array->x;
    plan->call = call && call->produce ? call : NULL;
    plan->kept.count = plan->reduced.count = 0;
    plan->length = 1;
    for (int64_t d = 0; d < array->ndim; d++) {
        int is_reduced = (int)(array->reduced >> d & 1);
        Dim dim = {array->shape[d], {0}};
        total *= dim.size;
        if (is_reduced) plan->length *= dim.size;
        if (dim.size <= 1) continue;
        for (int o = 0; o < OPERANDS; o++)
            if (strides[o] && !(is_reduced && o >= BOUND)) dim.step[o] = strides[o][d];
        if (dim.step[X] < 0) { /* walk memory upwards */
            place = moved(place, dim.step, dim.size - 1);
            for (int o = 0; o < OPERANDS; o++) dim.step[o] = -dim.step[o];
        }
        insert_sorted(is_reduced ? &plan->reduced : &plan->kept, dim);
    }
    plan->empty = total == 0;
    plan->bytes = total * size;
    plan->streaming = !only_norms && !plan->in_place && plan->bytes > normball_limits_now.stream;
    plan->together = rows_together(plan);
    plan->place = place;
    plan->written = plan->reduced;
    int64_t row_length = row_length_of(&plan->kept, size);
    collapse(&plan->kept, OPERANDS);
    collapse(&plan->reduced, Y);
    collapse(&plan->written, BOUND);
    plan->columnar = runs_along_kept(plan);
    plan->residues = residues_of(plan, row_length);
    plan->packed = plan->columnar && plan->length < SHORT && plan->length > 1 && plan->reduced.count == 1 &&
                   plan->reduced.dim[0].step[X] == size && innermost(&plan->kept)->step[X] == plan->length * size;
}

/* Whether `produce` can be asked for what is read next, and no more; else it is asked for everything at first. */
static int feeds_as_it_goes(const Plan *plan) {
    int64_t size = itemsize(plan->dtype);
    return plan->packed || innermost(plan->columnar ? &plan->kept : &plan->reduced)->step[X] == size;
}

/* Have n entries of x, from this one on, filled, unless they lie before `fed`: then they have been. */
static inline void feed(const Plan *plan, const char *x, int64_t n, const char *fed) {
    if (!plan->call || x < fed) return;
    int64_t begin = (x - plan->start) / itemsize(plan->dtype);
    plan->call->produce(plan->call->context, begin, begin + n);
}

static const char *const NOTHING = NULL, *const EVERYTHING = (const char *)UINTPTR_MAX; /* for `fed` */

#endif
