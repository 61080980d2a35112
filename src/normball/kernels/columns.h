/* Many groups side by side, entry by entry: pass one sums rows onto rows, pass two scales them. */
#ifndef NORMBALL_COLUMNS_H
#define NORMBALL_COLUMNS_H

#include "write.h"

typedef struct {
    double *high, *low;             /* the sums so far */
    double *run_high, *run_low;     /* of the current run */
    double *block_high, *block_low; /* of the current block of rows */
    double *factor;
    float *narrow; /* the factors, for floats */
    Buffer rows[STEP_ROWS];
} Chunk;

enum { CHUNK_ARRAYS = 8 };

static void chunk_place(Chunk *chunk, double *memory, int64_t capacity) {
    double **const arrays[] = {&chunk->high, &chunk->low, &chunk->run_high, &chunk->run_low,
                               &chunk->block_high, &chunk->block_low, &chunk->factor};
    for (int a = 0; a < CHUNK_ARRAYS - 1; a++) *arrays[a] = memory + a * capacity;
    chunk->narrow = (float *)(memory + (CHUNK_ARRAYS - 1) * capacity);
}

/* Rows of columns in memory. */
typedef struct {
    const char *x;
    int64_t row_step, rows, step, n;
} Rows;

/* A few rows, fetched ROW_BLOCK columns at a time where they do not lie as the sums need them. */
static void sum_rows(const Plan *plan, Chunk *chunk, Rows rows, double *high, double *low) {
    const Entries *entries = entries_of(plan->dtype);
    int64_t size = itemsize(plan->dtype);
    if (!low) {
        entries->columns_quickly(rows.x, rows.row_step, rows.rows, rows.n, high, plan->ord);
        return;
    }
    if (rows.step == size) {
        entries->columns(rows.x, rows.row_step, rows.rows, rows.n, high, low, plan->ord, plan->wide);
        return;
    }
    char *packed = (char *)chunk->rows;
    for (int64_t j = 0; j < rows.n; j += ROW_BLOCK) {
        int64_t n = rows.n - j < ROW_BLOCK ? rows.n - j : ROW_BLOCK;
        for (int64_t k = 0; k < rows.rows; k++)
            fetch(plan->dtype, rows.x + k * rows.row_step + j * rows.step, rows.step, n, packed + k * n * size);
        entries->columns(packed, n * size, rows.rows, n, high + j, low + j, plan->ord, plan->wide);
    }
}

/* Add rows to the sums; `low` NULL for quick ones. `fed` is as feed has it. */
static void add_rows(const Plan *plan, Chunk *chunk, Rows rows, const char *fed, double *high, double *low) {
    for (int64_t r = 0; r < rows.rows; r += STEP_ROWS) {
        Rows few = rows;
        few.x = rows.x + r * rows.row_step;
        few.rows = rows.rows - r < STEP_ROWS ? rows.rows - r : STEP_ROWS;
        if (rows.row_step == rows.n * itemsize(plan->dtype)) feed(plan, few.x, few.rows * rows.n, fed);
        else
            for (int64_t k = 0; k < few.rows; k++) feed(plan, few.x + k * rows.row_step, rows.n, fed);
        sum_rows(plan, chunk, few, high, low);
    }
}

static void clear(double *high, double *low, int64_t n) {
    memset(high, 0, (size_t)n * sizeof *high);
    memset(low, 0, (size_t)n * sizeof *low);
}

/* Merge sums into others, column by column. */
static void merge_columns(const Plan *plan, double *restrict high, double *restrict low, const double *more, const double *rest, int64_t n) {
    if (plan->ord == NORMBALL_ORD_INF) {
        for (int64_t j = 0; j < n; j++) high[j] = double_larger(high[j], more[j]);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        Wide sum = wide_add((Wide){high[j], low[j]}, more[j], rest[j]);
        high[j] = sum.high;
        low[j] = sum.low;
    }
}

/* The sums of a run of rows, block by block, into sums that are empty. */
static void sum_run(const Plan *plan, Chunk *chunk, Rows rows, const char *fed, double *high, double *low) {
    Rows block = rows;
    for (int64_t begin = 0; begin < rows.rows; begin += COLUMN_BLOCK) {
        block.x = rows.x + begin * rows.row_step;
        block.rows = rows.rows - begin < COLUMN_BLOCK ? rows.rows - begin : COLUMN_BLOCK;
        clear(chunk->block_high, chunk->block_low, rows.n);
        add_rows(plan, chunk, block, fed, chunk->block_high, chunk->block_low);
        merge_columns(plan, high, low, chunk->block_high, chunk->block_low, rows.n);
    }
}

/* Whether neighbouring rows can be taken as one wide row here: the residues then lie side by side. */
static int folds(const Plan *plan, Rows rows) {
    return plan->residues > 1 && rows.row_step == rows.n * itemsize(plan->dtype) && rows.step == itemsize(plan->dtype);
}

static Rows folded(const Plan *plan, Rows rows) {
    return (Rows){rows.x, rows.row_step * plan->residues, rows.rows / plan->residues, rows.step, rows.n * plan->residues};
}

/* What is left of them. */
static Rows unfolded(const Plan *plan, Rows rows) {
    int64_t done = rows.rows / plan->residues * plan->residues;
    return (Rows){rows.x + done * rows.row_step, rows.row_step, rows.rows - done, rows.step, rows.n};
}

/* From the sums of folded rows, those of the columns; and of the rows that were left over. */
static void merge_residues(const Plan *plan, Chunk *chunk, Rows rows, const char *fed) {
    for (int64_t m = 1; m < plan->residues; m++)
        merge_columns(plan, chunk->high, chunk->low, chunk->high + m * rows.n, chunk->low + m * rows.n, rows.n);
    Rows left = unfolded(plan, rows);
    if (!left.rows) return;
    clear(chunk->run_high, chunk->run_low, rows.n);
    sum_run(plan, chunk, left, fed, chunk->run_high, chunk->run_low);
    merge_columns(plan, chunk->high, chunk->low, chunk->run_high, chunk->run_low, rows.n);
}

/* A sum with residues: of every so manieth row first, then of all these, then of the rows that are left. */
static void sum_residues(const Plan *plan, Chunk *chunk, Rows rows, const char *fed) {
    if (folds(plan, rows)) {
        Rows wide = folded(plan, rows);
        clear(chunk->high, chunk->low, wide.n);
        sum_run(plan, chunk, wide, fed, chunk->high, chunk->low);
        merge_residues(plan, chunk, rows, fed);
        return;
    }
    Rows every = {rows.x, rows.row_step * plan->residues, rows.rows / plan->residues, rows.step, rows.n};
    Rows left = unfolded(plan, rows);
    for (int64_t m = 0; m <= plan->residues; m++, every.x += rows.row_step) {
        if (m == plan->residues && !left.rows) break;
        clear(chunk->run_high, chunk->run_low, rows.n);
        sum_run(plan, chunk, m < plan->residues ? every : left, fed, chunk->run_high, chunk->run_low);
        merge_columns(plan, chunk->high, chunk->low, chunk->run_high, chunk->run_low, rows.n);
    }
}

/* The same as merging with nothing. */
static void normalise(const Plan *plan, double *restrict high, double *restrict low, int64_t n) {
    for (int64_t j = 0; plan->wide && j < n; j++) {
        double sum = high[j] + low[j];
        low[j] -= sum - high[j];
        high[j] = sum;
    }
}

/* The sums of n columns, the first at `place`, `step` apart, `fed` as far as feed has it. */
static void sum_columns(const Plan *plan, Chunk *chunk, Place place, int64_t step, int64_t n, const char *fed) {
    clear(chunk->high, chunk->low, n);
    if (plan->packed) { /* short groups one behind the other: each is summed as if it were a column */
        feed(plan, place.at[X], n * plan->length, fed);
        entries_of(plan->dtype)->short_groups(place.at[X], plan->length, n, chunk->high, chunk->low, plan->ord, plan->wide);
        normalise(plan, chunk->high, chunk->low, n);
        return;
    }
    Walk walk;
    walk_start(&walk, &plan->reduced, place);
    if (plan->length <= COLUMN_BLOCK && plan->reduced.count <= 1) { /* one block */
        add_rows(plan, chunk, (Rows){place.at[X], walk.step[X], walk.length, step, n}, fed, chunk->high, chunk->low);
        normalise(plan, chunk->high, chunk->low, n);
        return;
    }
    do {
        Rows rows = {walk.place.at[X], walk.step[X], walk.length, step, n};
        if (plan->residues > 1) sum_residues(plan, chunk, rows, fed);
        else sum_run(plan, chunk, rows, fed, chunk->high, chunk->low);
    } while (walk_next(&walk));
}

/* ---- judging ---------------------------------------------------------------------------------------------------- */

enum { ALL_COMPLY = 0, SOME_VIOLATE = 1, SOME_UNCLEAR = 2 };

/* The factor of each column, where it is clear at a glance and no entry needs care; 0, which is none, elsewhere.
 * Without a branch and with a step of 0 or 1, so that compilers do it some columns at a time. */
static inline int glance(
    const Plan *plan, Chunk *chunk, int64_t n, int ord, int wide, const double *bounds, const double *epsilons, int step) {
    double *restrict factor = chunk->factor;
    const double *restrict high = chunk->high, *restrict low = chunk->low;
    double doubt = wide ? WIDE_DOUBT : PLAIN_DOUBT, least = plan->dtype != NORMBALL_F64 ? LEAST_NARROW_FACTOR : LEAST_FACTOR;
    const double first_bound = *bounds, first_epsilon = *epsilons;
    const Wide only = limit_of(ord, first_bound);
    for (int64_t j = 0; j < n; j++) {
        double bound = step ? bounds[j] : first_bound, epsilon = step ? epsilons[j] : first_epsilon, sum = high[j];
        Wide limit = step ? limit_of(ord, bound) : only;
        double excess = (sum - limit.high) + (low[j] - limit.low);
        double code = excess > 0 ? -1.0 : 1.0;
        if (ord != NORMBALL_ORD_INF) code = fabs(excess) > doubt * sum ? code : 0.0;
        code = sum >= LEAST_SUM ? code : 0.0;
        code = sum <= MOST_SUM ? code : 0.0;
        code = bound >= LEAST_NARROW_BOUND ? code : 0.0;
        code = epsilon >= 0 ? code : 0.0;
        factor[j] = epsilon < INFINITY ? code : 0.0;
    }
    int64_t compliant = 0, unclear = 0;
    for (int64_t j = 0; j < n; j++) compliant += factor[j] == 1;
    if (compliant == n) return ALL_COMPLY;
    for (int64_t j = 0; j < n; j++) {
        double bound = step ? bounds[j] : first_bound, epsilon = step ? epsilons[j] : first_epsilon;
        double own = factor_of((Wide){high[j], low[j]}, ord, wide, bound, epsilon);
        own = own >= least ? own : 0.0;
        factor[j] = factor[j] < 0 ? own : factor[j];
    }
    for (int64_t j = 0; j < n; j++) unclear += factor[j] == 0;
    return SOME_VIOLATE | (unclear ? SOME_UNCLEAR : 0);
}

static int glance_at(const Plan *plan, Chunk *chunk, int64_t n, Place place, const int64_t *step) {
    const double *bounds = (const double *)place.at[BOUND], *epsilons = (const double *)place.at[EPSILON];
    int narrow_squares = plan->ord == 2 && !plan->wide, own = (step[BOUND] | step[EPSILON]) != 0;
    if (own) { /* what a block was summed in is free by now */
        for (int64_t j = 0; j < n; j++) {
            chunk->block_high[j] = bounds[j * (step[BOUND] / 8)];
            chunk->block_low[j] = epsilons[j * (step[EPSILON] / 8)];
        }
        bounds = chunk->block_high, epsilons = chunk->block_low;
    }
    if (narrow_squares && own) return glance(plan, chunk, n, 2, 0, bounds, epsilons, 1);
    if (narrow_squares) return glance(plan, chunk, n, 2, 0, bounds, epsilons, 0);
    if (plan->ord == 2 && own) return glance(plan, chunk, n, 2, 1, bounds, epsilons, 1);
    if (plan->ord == 2) return glance(plan, chunk, n, 2, 1, bounds, epsilons, 0);
    return glance(plan, chunk, n, (int)plan->ord, plan->wide, bounds, epsilons, own);
}

static Answer judge_own(const Group *group, Wide sum) {
    const Place *place = &group->only.place;
    double bound = *(double *)place->at[BOUND], epsilon = *(double *)place->at[EPSILON];
    return judge(group, sum, group->only.plan->wide, bound, epsilon);
}

static Answer judge_column(const Plan *plan, const Chunk *chunk, Place place, const int64_t *step, int64_t j, Group *group) {
    *group = group_at(plan, moved(place, step, j));
    return judge_own(group, (Wide){chunk->high[j], chunk->low[j]});
}

/* The factors of all columns; 1 for those that need care, of which there are some where this returns 1. */
static int judge_columns(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, int *violate) {
    int seen = glance_at(plan, chunk, n, place, step), careful = 0;
    Group group;
    *violate = seen != ALL_COMPLY;
    for (int64_t j = 0; seen & SOME_UNCLEAR && j < n; j++) {
        if (chunk->factor[j] != 0) continue;
        Answer answer = judge_column(plan, chunk, place, step, j, &group);
        careful |= answer.careful;
        chunk->factor[j] = answer.careful ? 1 : answer.factor;
    }
    if (seen != ALL_COMPLY)
        for (int64_t j = 0; j < n; j++) chunk->narrow[j] = float_factor(chunk->factor[j]);
    return careful;
}

/* ---- quickly ------------------------------------------------------------------------------------------------------ */

/* How many columns do not clearly comply, by quick sums times a scale; those that do get the factor 1, the others 0. */
static int64_t compare_quickly(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, double scale) {
    const double *bound = (const double *)place.at[BOUND], *epsilon = (const double *)place.at[EPSILON];
    double *restrict factor = chunk->factor;
    const double *restrict sum = chunk->block_high, first = quick_limit(plan, *bound, *epsilon);
    int64_t comply = 0;
    if (step[BOUND] | step[EPSILON])
        for (int64_t j = 0; j < n; j++)
            factor[j] = sum[j] * scale <= quick_limit(plan, bound[j * (step[BOUND] / 8)], epsilon[j * (step[EPSILON] / 8)]);
    else
        for (int64_t j = 0; j < n; j++) factor[j] = sum[j] * scale <= first ? 1.0 : 0.0;
    for (int64_t j = 0; j < n; j++) comply += factor[j] == 1;
    return n - comply;
}

/* The same by the sums of the first rows only. *fed is as feed has it afterwards. */
static int64_t probe(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, const char **fed) {
    Rows rows = {place.at[X], innermost(&plan->reduced)->step[X], PROBE_ROWS, step[X], n};
    memset(chunk->block_high, 0, (size_t)n * sizeof *chunk->block_high);
    add_rows(plan, chunk, rows, NOTHING, chunk->block_high, NULL);
    *fed = rows.x + PROBE_ROWS * rows.row_step;
    return compare_quickly(plan, chunk, place, step, n, (double)plan->length / PROBE_ROWS);
}

static Rows rest_after_probe(Rows rows) {
    rows.x += PROBE_ROWS * rows.row_step;
    rows.rows -= PROBE_ROWS;
    return rows;
}

/* Sum quickly, and say how many columns do not clearly comply; n, after a few rows, where these make it likely that
 * there are many. */
static int64_t glance_quickly(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, const char **fed) {
    const Dim *dim = innermost(&plan->reduced);
    if (probe(plan, chunk, place, step, n, fed) * 8 > n) return n;
    Rows rows = rest_after_probe((Rows){place.at[X], dim->step[X], dim->size, step[X], n});
    add_rows(plan, chunk, rows, NOTHING, chunk->block_high, NULL);
    *fed = EVERYTHING;
    return compare_quickly(plan, chunk, place, step, n, 1);
}

static int quick_pays(const Plan *plan) {
    return plan->ord != NORMBALL_ORD_INF && plan->reduced.count == 1 && plan->length >= 4 * PROBE_ROWS && plan->residues == 1 &&
           innermost(&plan->kept)->step[X] == itemsize(plan->dtype) && normball_limits_now.quick > 0;
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

/* Stretches of columns to be written, as begin and end alternating: all; in place only violators, and columns
 * between near ones, which a factor of 1 leaves as they are. Returns how many. */
static int stretches(const double *factor, int64_t n, int in_place, int64_t *edge) {
    int64_t kept = 0;
    for (int64_t j = 0; j < n; j++) kept += factor[j] == 1;
    if (!in_place || !kept) {
        edge[0] = 0;
        edge[1] = n;
        return 1;
    }
    int count = 0;
    for (int64_t j = 0; j < n; j++) {
        if (factor[j] == 1) continue;
        if (count && j - edge[2 * count - 1] < NEARBY) edge[2 * count - 1] = j + 1;
        else {
            edge[2 * count] = j;
            edge[2 * count + 1] = j + 1;
            count++;
        }
    }
    return count;
}

enum { MOST_EDGES = 2 * (WIDE_CHUNK / NEARBY + 1) };

/* Rows begin to end of a run of `rows`: x's entries times their columns' factors, or as they are where `keep`. */
typedef struct {
    const Plan *plan;
    const Chunk *chunk;
    Place place;
    const int64_t *row_step, *step;
    int64_t n;
    int count, keep;
    int64_t edge[MOST_EDGES];
} Writing;

static void write_row(const Writing *job, int64_t r) {
    const Plan *plan = job->plan;
    const char *x = job->place.at[X] + r * job->row_step[X];
    char *y = job->place.at[Y] + r * job->row_step[Y];
    if (job->keep) {
        copy_run(plan->dtype, x, job->step[X], y, job->step[Y], job->n, plan->streaming);
        return;
    }
    for (int k = 0; k < job->count; k++) {
        int64_t at = job->edge[2 * k], width = job->edge[2 * k + 1] - at;
        write_columns_of_row(
            plan, x + at * job->step[X], job->step[X], y + at * job->step[Y], job->step[Y], width,
            job->chunk->factor + at, job->chunk->narrow + at);
    }
}

/* The last rows first, some at a time: they were read last, so they are the ones still in cache. */
static void write_rows(const Writing *job, int64_t begin, int64_t end) {
    for (int64_t stop = end; stop > begin; stop -= BACK_ROWS) {
        int64_t start = stop - begin > BACK_ROWS ? stop - BACK_ROWS : begin;
        for (int64_t r = start; r < stop; r++) write_row(job, r);
    }
}

/* Short groups one behind the other, in y too: a factor for each entry, and then as one long row. */
static void write_packed(const Plan *plan, const Chunk *chunk, Place place, int64_t n) {
    int64_t most = ROW_BLOCK / plan->length, size = itemsize(plan->dtype), length = plan->length;
    double factor[ROW_BLOCK + 8];
    float narrow[ROW_BLOCK + 8];
    for (int64_t j = 0; j < n; j += most) {
        int64_t part = n - j < most ? n - j : most;
        for (int64_t g = 0; g < part; g++) /* vectors may reach into the next group, which then writes over it */
            for (int64_t i = 0; i < length; i += 8) {
                if (plan->dtype != NORMBALL_F64) eight_store(narrow + g * length + i, eight_all(chunk->narrow[j + g]));
                else {
                    four_store(factor + g * length + i, four_all(chunk->factor[j + g]));
                    four_store(factor + g * length + i + 4, four_all(chunk->factor[j + g]));
                }
            }
        const char *x = place.at[X] + j * length * size;
        write_columns_of_row(plan, x, size, place.at[Y] + j * length * size, size, part * length, factor, narrow);
    }
}

#endif
