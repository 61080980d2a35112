/* A group's sum, block by block; and for the rare one, its largest entry, its sum at another scale, its exact sum. */
#ifndef NORMBALL_GROUPS_H
#define NORMBALL_GROUPS_H

#include "exact.h"
#include "plan.h"

/* One array's share of a group. */
typedef struct {
    const Plan *plan;
    Place place;
} Part;

/* A group: one part, or for a total norm the whole of several arrays. */
typedef struct {
    int64_t ord, count;
    int narrow;                   /* some part is not float64 */
    Part only;                    /* where arrays is NULL */
    const normball_array *arrays; /* else */
} Group;

static inline Group group_at(const Plan *plan, Place place) {
    return (Group){plan->ord, 1, plan->dtype != NORMBALL_F64, {plan, place}, NULL};
}

/* Part i of the group. Plans of a total norm are made anew for every pass, into `scratch`: no memory to allocate. */
static Part part_of(const Group *group, int64_t i, Plan *scratch) {
    if (!group->arrays) return group->only;
    normball_array array = group->arrays[i];
    array.reduced = ~(uint64_t)0;
    array.max_norm_strides = array.epsilon_strides = NULL;
    plan_make(scratch, &array, group->ord, 0, NULL);
    scratch->wide = 1;
    return (Part){scratch, scratch->place};
}

static inline Wide merge_sums(Wide a, Wide b, int64_t ord) {
    if (ord == NORMBALL_ORD_INF) return (Wide){double_larger(a.high, b.high), 0};
    return wide_add(a, b.high, b.low);
}

/* The sum (or the largest) of at most ROW_BLOCK entries at x. */
static Wide row_block(const Plan *plan, const char *x, int64_t step, int64_t n) {
    Buffer buffer;
    const Entries *entries = entries_of(plan->dtype);
    const void *values = fetch(plan->dtype, x, step, n, &buffer);
    if (plan->wide && plan->ord != NORMBALL_ORD_INF) return entries->wide_row(values, n, plan->ord);
    return (Wide){entries->row(values, n, plan->ord), 0};
}

/* A sum of the same that is only good enough to see that a norm is clearly within its bound. */
static double quick_block(const Plan *plan, const char *x, int64_t step, int64_t n) {
    Buffer buffer;
    return entries_of(plan->dtype)->quickly(fetch(plan->dtype, x, step, n, &buffer), n, plan->ord);
}

/* The sum of a whole group, `fed` as far as feed has it. */
static Wide row_sum(const Plan *plan, Place place, const char *fed) {
    Wide sum = {0, 0};
    Walk walk;
    walk_start(&walk, &plan->reduced, place);
    do {
        for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
            int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
            const char *x = walk.place.at[X] + i * step;
            feed(plan, x, n, fed);
            sum = merge_sums(sum, row_block(plan, x, step, n), plan->ord);
        }
    } while (walk_next(&walk));
    return sum;
}

static double quick_row_sum(const Plan *plan, Place place) {
    double sum = 0;
    Walk walk;
    walk_start(&walk, &plan->reduced, place);
    do {
        for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
            int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
            const char *x = walk.place.at[X] + i * step;
            feed(plan, x, n, NOTHING);
            sum += quick_block(plan, x, step, n);
        }
    } while (walk_next(&walk));
    return sum;
}

/* The group's largest |entry|, NaN where there is one. */
static double largest_entry(const Group *group) {
    double result = 0, buffer[ROW_BLOCK];
    Plan scratch;
    Walk walk;
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        if (part.plan->empty) continue;
        walk_start(&walk, &part.plan->reduced, part.place);
        do {
            for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
                int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
                const double *x = fetch_doubles(part.plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
                result = double_larger(result, double_largest(x, n));
            }
        } while (walk_next(&walk));
    }
    return result;
}

/* The sum of the entries times 2**-exponent, with the same operations in the same order as without the scale: so scaling
 * x scales the result, bit for bit. First of a row... */
static Wide scaled_row(const Part *part, int exponent) {
    const Plan *plan = part->plan;
    Wide sum = {0, 0};
    double buffer[ROW_BLOCK], scaled[ROW_BLOCK];
    Walk walk;
    walk_start(&walk, &plan->reduced, part->place);
    do {
        for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
            int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
            const double *x = fetch_doubles(plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
            for (int64_t k = 0; k < n; k++) scaled[k] = ldexp(x[k], -exponent);
            Wide block = plan->ord == NORMBALL_ORD_INF ? (Wide){double_largest(scaled, n), 0} : double_wide_row(scaled, n, plan->ord);
            sum = merge_sums(sum, block, plan->ord);
        }
    } while (walk_next(&walk));
    return sum;
}

/* ... of a run of one column's entries, as `sum_run` has it ... */
static Wide scaled_run(const Plan *plan, const char *x, int64_t step, int64_t rows, int exponent, Wide sum) {
    double buffer[COLUMN_BLOCK], scaled[COLUMN_BLOCK];
    for (int64_t i = 0; i < rows; i += COLUMN_BLOCK) {
        int64_t n = rows - i < COLUMN_BLOCK ? rows - i : COLUMN_BLOCK;
        const double *values = fetch_doubles(plan->dtype, x + i * step, step, n, buffer);
        for (int64_t k = 0; k < n; k++) scaled[k] = ldexp(values[k], -exponent);
        Wide block = {0, 0};
        double_columns((const char *)scaled, 8, n, 1, &block.high, &block.low, plan->ord, 1);
        sum = merge_sums(sum, block, plan->ord);
    }
    return sum;
}

/* ... and of a column, as `sum_columns` has it. */
static Wide scaled_column(const Part *part, int exponent) {
    const Plan *plan = part->plan;
    Wide sum = {0, 0};
    Walk walk;
    walk_start(&walk, &plan->reduced, part->place);
    do {
        int64_t rows = walk.length / plan->residues, step = walk.step[X];
        for (int64_t m = 0; m < plan->residues; m++) {
            const char *x = walk.place.at[X] + m * step;
            Wide run = scaled_run(plan, x, step * plan->residues, rows, exponent, plan->residues > 1 ? (Wide){0, 0} : sum);
            sum = plan->residues > 1 ? merge_sums(sum, run, plan->ord) : run;
        }
        int64_t done = rows * plan->residues;
        if (done < walk.length)
            sum = merge_sums(sum, scaled_run(plan, walk.place.at[X] + done * step, step, walk.length - done, exponent, (Wide){0, 0}), plan->ord);
    } while (walk_next(&walk));
    return sum;
}

static Wide scaled_sum(const Group *group, int exponent) {
    Wide sum = {0, 0};
    Plan scratch;
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        if (part.plan->empty) continue;
        Wide own = part.plan->columnar ? scaled_column(&part, exponent) : scaled_row(&part, exponent);
        sum = merge_sums(sum, own, group->ord);
    }
    return sum;
}

/* Whether the norm is above the bound (finite, as are the entries), without any rounding. */
static int exceeds_exactly(const Group *group, double bound) {
    Exact sum, limit;
    double buffer[ROW_BLOCK];
    int ord = (int)group->ord;
    Plan scratch;
    Walk walk;
    exact_clear(&sum);
    exact_clear(&limit);
    exact_add(&limit, bound, ord);
    for (int64_t p = 0; p < group->count; p++) {
        Part part = part_of(group, p, &scratch);
        if (part.plan->empty) continue;
        walk_start(&walk, &part.plan->reduced, part.place);
        do {
            for (int64_t i = 0; i < walk.length; i += ROW_BLOCK) {
                int64_t n = walk.length - i < ROW_BLOCK ? walk.length - i : ROW_BLOCK, step = walk.step[X];
                const double *x = fetch_doubles(part.plan->dtype, walk.place.at[X] + i * step, step, n, buffer);
                for (int64_t k = 0; k < n; k++) exact_add(&sum, x[k], ord);
            }
        } while (walk_next(&walk));
    }
    return exact_greater(&sum, &limit);
}

#endif
