/* The kernels. Compiled once for each instruction set, with the same bits from each: README.md has the rules, the
 * error bounds and a map of these files.
 */
#include "normball.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__SSE2__) && !defined(_M_X64)
#include <fenv.h>
#endif

#include "arithmetic.h"
#include "pool.h"
#include "vectors.h"

#ifndef NORMBALL_ISA
#define NORMBALL_ISA baseline
#endif
#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define TEXT2(a) #a
#define TEXT(a) TEXT2(a)

enum {
    LANES = 16,          /* independent accumulators of a row: fixed, so that every instruction set adds alike */
    ROW_BLOCK = 1024,    /* entries of a row summed before the lanes are folded */
    COLUMN_BLOCK = 128,  /* rows of a column summed before they are folded */
    CHUNK = 1024,        /* columns at a time: their sums stay in cache, and a block has room for them */
    WIDE_CHUNK = 4096,   /* the same where they lie side by side: longer stretches of memory are 1.4 times faster */
    STEP_ROWS = 8,       /* rows at a time: their sums stay in registers */
    SHORT = 64,          /* groups of fewer entries are handled many at a time, as columns */
    NARROW = 16,         /* rows of so few columns are taken several at a time ... */
    FOLD_WIDTH = 32,     /* ... as one of about so many: then memory is read in its order, more or less */
    WIDE_ROW = 1024,     /* narrow rows without gaps are written as one of about so many columns */
    PROBE_ROWS = 16,     /* rows after which a quick sum is given up where it does not look good */
    BACK_ROWS = 16,      /* rows are written from the last to the first, so many at a time in memory's order */
    NEARBY = 16,         /* columns in place: gaps up to this long are rewritten with the bits they have */
    PROBE = 64,                 /* entries of a block from which its bias is guessed */
    AHEAD = 256,                /* bytes that sums look ahead */
    NARROW_AHEAD = 1024,        /* the same of 16-bit entries, which nothing else brings in */
    FAR_AHEAD = 4096,           /* the same of sums in two words, which take longer: a block of floats */
    NEXT_BYTES = 1 << 16,       /* groups up to this long are brought in while those before are written */
    LEAST_STREAM = 1 << 11,     /* of a shorter run, too few lines are whole ones */
    CACHED_BYTES = 1 << 20,     /* arrays up to this long are in cache already */
    TOGETHER_BYTES = 1 << 14,   /* rows up to this long in all are judged together ... */
    ROWS_TOGETHER = 32,         /* ... and so many at most */
};

/* Bounds on relative errors; the derivations are in README.md. */
#define UNIT 0x1p-53
#define PLAIN_DOUBT 0x1p-45   /* sums of at most 128 terms a lane in float64, then double-double: 2**-46 */
#define PLAIN_MARGIN 0x1p-46  /* half of that, as a norm, and the rounding of the factor and of the product */
#define WIDE_DOUBT 0x1p-70    /* sums in double-double throughout: 2**-71 */
#define WIDE_MARGIN (2.01 * UNIT)
#define FLOAT_MARGIN (2.01 * 0x1p-24)
#define QUICK_DOUBLE_DOUBT 0x1p-44 /* plain sums of doubles; a unit for each term comes on top */
#define QUICK_FLOAT_DOUBT 0x1p-17  /* quick sums of floats: 2**-18 */

/* Sums in this range, and bounds in the other, neither overflow nor lose bits in any step below. */
#define LEAST_SUM 0x1p-700
#define MOST_SUM 0x1p900
#define LEAST_BLOCK 0x1p-800  /* a block below this adds nothing that counts to a sum that is in range */
#define BIAS_HEADROOM 0x1p10  /* a block's sum may be so many times that of its first few entries */
#define SURELY_ABOVE 0x1p-340 /* a bound above every norm whose sum is below LEAST_SUM */
#define LEAST_BOUND 0x1p-400
#define LEAST_FACTOR 0x1p-900
#define LEAST_NARROW_BOUND 0x1p-40 /* 2**60 entries rounded up by 2**-150 each are less than 2**-30 of it */
#define LEAST_NARROW_FACTOR 0x1p-100
#define LEAST_QUICK 0x1p-100 /* what quick sums of floats may lose to underflow */

/* What compilers are told of loops: that their turns touch different memory; that unrolling costs more registers than
 * there are. */
#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#define AS_IT_STANDS _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define EACH_ALONE _Pragma("GCC ivdep")
#define AS_IT_STANDS _Pragma("GCC unroll 1")
#else
#define EACH_ALONE
#define AS_IT_STANDS
#endif

/* In this order: each rests on those before it. */
#include "dtypes.h"
#include "memory.h"
#include "plan.h"
#include "groups.h"
#include "judge.h"
#include "write.h"
#include "columns.h"

/* ---- the floating-point mode --------------------------------------------------------------------------------------- */

/* Rounding to nearest with subnormals, whatever the host program (torch.set_flush_denormal) has set; and its
 * floating-point flags left as they were. */
#if defined(__SSE2__) || defined(_M_X64)
typedef unsigned int Mode;
static Mode mode_enter(void) {
    Mode mode = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return mode;
}
static void mode_leave(Mode mode) { _mm_setcsr(mode); }
#else
typedef fenv_t Mode;
static Mode mode_enter(void) {
    Mode mode;
    fegetenv(&mode);
    fesetenv(FE_DFL_ENV);
    return mode;
}
static void mode_leave(Mode mode) { fesetenv(&mode); }
#endif

/* ---- work, shared out --------------------------------------------------------------------------------------------- */

/* A stretch of indices cut into tasks; `work` does begin to end of it, on any thread. */
typedef struct {
    void (*work)(void *context, int64_t begin, int64_t end);
    void *context;
    int64_t count, task;
} Share;

static void share_task(void *context, int64_t index) {
    const Share *share = context;
    int64_t begin = index * share->task, end = begin + share->task;
    Mode mode = mode_enter();
    share->work(share->context, begin, end < share->count ? end : share->count);
    stream_end();
    mode_leave(mode);
}

/* What the parts of a call share. */
typedef struct {
    int64_t threads;
    int (*stop)(void);
    int64_t bytes_since_stop;
} Course;

static Course course_of(const normball_call *call) {
    return (Course){call && call->threads > 0 ? call->threads : 0, call ? call->stop : NULL, 0};
}

static int64_t threads_for(const Course *course, int64_t bytes) {
    if (bytes < normball_limits_now.parallel) return 1;
    return course->threads ? course->threads : pool_threads();
}

/* Run work over count indices of so many bytes each. 1 where `stop` ended it. */
static int share_out(
    const Course *course, int may_stop, int64_t count, int64_t bytes_each, void (*work)(void *, int64_t, int64_t), void *context) {
    int64_t task = normball_limits_now.task / (bytes_each ? bytes_each : 1);
    Share share = {work, context, count, task < 1 ? 1 : task};
    int64_t tasks = (count + share.task - 1) / share.task;
    return pool_run(tasks, threads_for(course, count * bytes_each), share_task, &share, may_stop ? course->stop : NULL);
}

/* Ask `stop` itself, after much work in pieces too small to be asked about. */
static int stopped(Course *course, int64_t bytes) {
    course->bytes_since_stop += bytes;
    if (!course->stop || course->bytes_since_stop < normball_limits_now.stop) return 0;
    course->bytes_since_stop = 0;
    return course->stop();
}

/* ---- groups, one by one --------------------------------------------------------------------------------------------- */

static void norm_of_row(const Plan *plan, Place place, Wide sum) {
    Group group = group_at(plan, place);
    *(double *)place.at[NORMS] = norm_beside(&group, sum, (double *)place.at[BOUND]);
}

/* Rows from `place` on, as far as they clearly comply by a quick sum. Returns how many. */
static int64_t keep_rows(const Plan *plan, Place place, const int64_t *step, int64_t n) {
    double limit = quick_limit(plan, *(double *)place.at[BOUND], *(double *)place.at[EPSILON]);
    for (int64_t j = 0; j < n; j++, place = moved(place, step, 1)) {
        if (j && (step[BOUND] | step[EPSILON])) limit = quick_limit(plan, *(double *)place.at[BOUND], *(double *)place.at[EPSILON]);
        if (!(quick_row_sum(plan, place) <= limit)) return j;
        if (!plan->in_place) write_group(&(Part){plan, place}, plainly(1));
    }
    return n;
}

/* A few rows: summed, judged together, and written while they are in cache; the first is `fed` as feed has it. 1 where
 * all of them comply. */
static int settle_rows(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, const char *fed) {
    for (int64_t j = 0; j < n; j++) {
        Wide sum = row_sum(plan, moved(place, step, j), j ? NOTHING : fed);
        chunk->high[j] = sum.high;
        chunk->low[j] = sum.low;
    }
    int seen = glance_at(plan, chunk, n, place, step), comply = seen == ALL_COMPLY;
    for (int64_t j = 0; j < n && !(comply && plan->in_place); j++) {
        Group group = group_at(plan, moved(place, step, j));
        Answer answer = plainly(chunk->factor[j]);
        if (answer.factor == 0) answer = judge_own(&group, (Wide){chunk->high[j], chunk->low[j]});
        write_group(&group.only, answer);
    }
    return comply;
}

/* Rows: passed over as long as they clearly comply; then more and more of them together as long as some do not. */
static void each_row(const Plan *plan, Place place, const int64_t *step, int64_t n) {
    int quick = plan->ord != NORMBALL_ORD_INF && plan->length * itemsize(plan->dtype) <= normball_limits_now.quick;
    int64_t most = plan->together, count = 1;
    int hopeful = quick;
    double memory[CHUNK_ARRAYS * ROWS_TOGETHER];
    Chunk chunk;
    if (plan->only_norms) {
        for (int64_t j = 0; j < n; j++) norm_of_row(plan, moved(place, step, j), row_sum(plan, moved(place, step, j), EVERYTHING));
        return;
    }
    chunk_place(&chunk, memory, ROWS_TOGETHER);
    for (int64_t j = 0; j < n;) {
        const char *fed = NOTHING;
        if (hopeful) {
            j += keep_rows(plan, moved(place, step, j), step, n - j);
            if (j == n) return;
            fed = EVERYTHING;
        }
        int64_t now = count < n - j ? count : n - j;
        int comply = settle_rows(plan, &chunk, moved(place, step, j), step, now, fed);
        j += now;
        hopeful = quick && comply;
        count = comply ? 1 : 2 * count < most ? 2 * count : most;
    }
}

/* ---- one long group: its blocks are shared out --------------------------------------------------------------------- */

typedef struct {
    const Plan *plan;
    Place place;
    Wide *block;
    Answer answer;
} LongRow;

static void sum_blocks(void *context, int64_t begin, int64_t end) {
    const LongRow *row = context;
    const Plan *plan = row->plan;
    int64_t step = plan->reduced.dim[0].step[X], length = plan->reduced.dim[0].size;
    for (int64_t b = begin; b < end; b++) {
        int64_t i = b * ROW_BLOCK, n = length - i < ROW_BLOCK ? length - i : ROW_BLOCK;
        const char *x = row->place.at[X] + i * step;
        feed(plan, x, n, NOTHING);
        row->block[b] = row_block(plan, x, step, n);
    }
}

static void write_blocks(void *context, int64_t begin, int64_t end) {
    const LongRow *row = context;
    const Dim *dim = &row->plan->written.dim[0];
    int64_t i = begin * ROW_BLOCK, stop = end * ROW_BLOCK < dim->size ? end * ROW_BLOCK : dim->size;
    const char *x = row->place.at[X] + i * dim->step[X];
    write_run(row->plan, x, dim->step[X], row->place.at[Y] + i * dim->step[Y], dim->step[Y], stop - i, row->answer);
}

/* Whether a group is one run of many blocks, to read and to write. */
static int is_long(const Plan *plan) {
    return plan->reduced.count == 1 && plan->written.count == 1 && plan->length * itemsize(plan->dtype) >= normball_limits_now.parallel;
}

static int64_t blocks_of(const Plan *plan) { return (plan->length + ROW_BLOCK - 1) / ROW_BLOCK; }

static int64_t block_bytes(const Plan *plan) { return ROW_BLOCK * itemsize(plan->dtype); }

/* The same sum as row_sum's. 1 where it was stopped, -1 where there is no memory for it. */
static int long_sum(const Course *course, LongRow *row, Wide *sum) {
    int64_t blocks = blocks_of(row->plan);
    row->block = malloc((size_t)blocks * sizeof *row->block);
    if (!row->block) return -1;
    int ended = share_out(course, 1, blocks, block_bytes(row->plan), sum_blocks, row);
    *sum = (Wide){0, 0};
    Mode mode = mode_enter();
    for (int64_t b = 0; b < blocks && !ended; b++) *sum = merge_sums(*sum, row->block[b], row->plan->ord);
    mode_leave(mode);
    free(row->block);
    return ended;
}

static int long_write(const Course *course, LongRow *row, int may_stop) {
    if (keeps(row->answer) && row->plan->in_place) return 0;
    return share_out(course, may_stop, blocks_of(row->plan), block_bytes(row->plan), write_blocks, row);
}

/* One such group; -1 where there is no memory for it. */
static int each_long_row(const Course *course, const Plan *plan, Place place) {
    LongRow row = {plan, place, NULL, plainly(1)};
    Group group = group_at(plan, place);
    Wide sum;
    int ended = long_sum(course, &row, &sum);
    if (ended) return ended;
    Mode mode = mode_enter();
    if (plan->only_norms) norm_of_row(plan, place, sum);
    else row.answer = judge_own(&group, sum);
    mode_leave(mode);
    return plan->only_norms ? 0 : long_write(course, &row, 0);
}

/* ---- columns --------------------------------------------------------------------------------------------------------- */

/* Room for as many columns as go side by side. */
typedef struct {
    Chunk chunk;
    double few[CHUNK_ARRAYS * CHUNK], *many;
} Room;

static void room_make(Room *room, int64_t capacity) {
    room->many = capacity > CHUNK ? malloc(sizeof(double) * CHUNK_ARRAYS * (size_t)capacity) : NULL;
    chunk_place(&room->chunk, room->many ? room->many : room->few, room->many ? capacity : CHUNK);
}

static void room_free(Room *room) { free(room->many); }

/* How many columns go side by side. */
static int64_t capacity_of(const Plan *plan) {
    if (!plan->columnar) return 1;
    const Dim *dim = innermost(&plan->kept);
    int64_t size = itemsize(plan->dtype);
    int gapless = dim->step[X] == size && (plan->only_norms || dim->step[Y] == size);
    return gapless && dim->size > CHUNK ? WIDE_CHUNK : CHUNK;
}

static void norms_of_columns(const Plan *plan, const Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    for (int64_t j = 0; j < n; j++) norm_of_row(plan, moved(place, step, j), (Wide){chunk->high[j], chunk->low[j]});
}

static void write_some_rows(void *context, int64_t begin, int64_t end) { write_rows(context, begin, end); }

/* Write a chunk whose factors are known: over threads where there is a course. */
static void write_columns(const Course *course, const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, int keep) {
    Writing job; /* not initialised as a whole: its edges are many */
    if (keep && plan->in_place) return;
    job.plan = plan;
    job.chunk = chunk;
    job.step = step;
    job.keep = keep;
    int64_t size = itemsize(plan->dtype);
    if (plan->packed && plan->written.count == 1 && plan->written.dim[0].step[Y] == size && step[Y] == plan->length * size && !keep) {
        write_packed(plan, chunk, place, n);
        return;
    }
    Walk walk;
    walk_start(&walk, &plan->written, place);
    int64_t wide_step[OPERANDS], k = WIDE_ROW / n < walk.length ? WIDE_ROW / n : walk.length;
    int gapless = k > 1 && n <= WIDE_ROW / 16 && walk.step[X] == n * size && walk.step[Y] == n * size && step[X] == size && step[Y] == size;
    if (!gapless) k = 1;
    for (int64_t j = n; j < k * n && !keep; j++) { /* narrow rows without gaps: several are one wide row */
        chunk->factor[j] = chunk->factor[j - n];
        chunk->narrow[j] = chunk->narrow[j - n];
    }
    do {
        int64_t rows = walk.length / k;
        for (int o = 0; o < OPERANDS; o++) wide_step[o] = walk.step[o] * k;
        job.place = walk.place;
        job.row_step = wide_step;
        job.n = k * n;
        job.count = keep ? 0 : stretches(chunk->factor, job.n, plan->in_place, job.edge);
        if (course) share_out(course, 0, rows, job.n * size, write_some_rows, &job);
        else write_rows(&job, 0, rows);
        if (rows * k == walk.length) continue;
        job.place = moved(walk.place, walk.step, rows * k);
        job.row_step = walk.step;
        job.n = n;
        job.count = keep ? 0 : stretches(chunk->factor, n, plan->in_place, job.edge);
        write_rows(&job, 0, walk.length - rows * k);
    } while (walk_next(&walk));
}

/* Columns whose sums are known: judged and written. */
static void settle_columns(const Course *course, const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    int violate, careful = judge_columns(plan, chunk, place, step, n, &violate);
    write_columns(course, plan, chunk, place, step, n, !violate);
    for (int64_t j = 0; careful && j < n; j++) { /* x has its bits still where the factor was 1 */
        if (chunk->factor[j] != 1) continue;
        Group group;
        Answer answer = judge_column(plan, chunk, place, step, j, &group);
        if (answer.careful) write_group(&group.only, answer);
    }
}

/* Columns of x, `fed` as far as feed has it. */
static void constrain_columns(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n, const char *fed) {
    sum_columns(plan, chunk, place, step[X], n, fed);
    settle_columns(NULL, plan, chunk, place, step, n);
}

/* The same, with a quick look first. */
static void each_chunk(const Plan *plan, Chunk *chunk, Place place, const int64_t *step, int64_t n) {
    if (plan->only_norms) {
        sum_columns(plan, chunk, place, step[X], n, EVERYTHING);
        norms_of_columns(plan, chunk, place, step, n);
        return;
    }
    const char *fed = NOTHING;
    int64_t others = n;
    if (quick_pays(plan)) others = glance_quickly(plan, chunk, place, step, n, &fed);
    if (others == 0) {
        write_columns(NULL, plan, chunk, place, step, n, 1);
    } else if (others < n && plan->in_place) {
        int64_t edge[MOST_EDGES];
        int count = stretches(chunk->factor, n, 1, edge);
        for (int k = 0; k < count; k++)
            constrain_columns(plan, chunk, moved(place, step, edge[2 * k]), step, edge[2 * k + 1] - edge[2 * k], fed);
    } else {
        constrain_columns(plan, chunk, place, step, n, fed);
    }
}

/* ---- few long columns: blocks of their rows are shared out ---------------------------------------------------------- */

typedef struct {
    const Plan *plan;
    Rows rows;
    double *sums; /* of each block: `rows.n` high words, then as many low ones; quick sums have only the former */
    int quick;
    const char *fed;
} LongColumns;

static int64_t row_blocks(const LongColumns *job) { return (job->rows.rows + COLUMN_BLOCK - 1) / COLUMN_BLOCK; }

static double *block_sums(const LongColumns *job, int64_t block) { return job->sums + 2 * block * job->rows.n; }

static void sum_row_blocks(void *context, int64_t begin, int64_t end) {
    const LongColumns *job = context;
    Room room;
    room_make(&room, CHUNK);
    for (int64_t b = begin; b < end; b++) {
        Rows block = job->rows;
        double *high = block_sums(job, b), *low = job->quick ? NULL : high + block.n;
        block.x += b * COLUMN_BLOCK * block.row_step;
        block.rows = block.rows - b * COLUMN_BLOCK < COLUMN_BLOCK ? block.rows - b * COLUMN_BLOCK : COLUMN_BLOCK;
        memset(high, 0, (size_t)(job->quick ? 1 : 2) * (size_t)block.n * sizeof *high);
        add_rows(job->plan, &room.chunk, block, job->fed, high, low);
    }
    room_free(&room);
}

static int share_out_row_blocks(const Course *course, LongColumns *job) {
    int64_t bytes = COLUMN_BLOCK * job->rows.n * itemsize(job->plan->dtype);
    return share_out(course, 1, row_blocks(job), bytes, sum_row_blocks, job);
}

static int columns_are_long(const Plan *plan, int64_t n) {
    return plan->reduced.count == 1 && !plan->packed && plan->length > COLUMN_BLOCK &&
           plan->length * n * itemsize(plan->dtype) >= normball_limits_now.parallel;
}

/* What glance_quickly does. */
static int64_t glance_together(
    const Course *course, LongColumns *job, Chunk *chunk, Place place, const int64_t *step, int *ended) {
    const Plan *plan = job->plan;
    int64_t n = job->rows.n;
    Rows all = job->rows;
    if (probe(plan, chunk, place, step, n, &job->fed) * 8 > n) return n;
    job->quick = 1;
    job->rows = rest_after_probe(job->rows);
    *ended = share_out_row_blocks(course, job);
    for (int64_t b = 0; b < row_blocks(job); b++)
        for (int64_t j = 0; j < n; j++) chunk->block_high[j] += block_sums(job, b)[j];
    job->rows = all;
    job->quick = 0;
    job->fed = EVERYTHING;
    return compare_quickly(plan, chunk, place, step, n, 1);
}

/* The same as each_chunk's result. 1 where it was stopped, -1 where there is no memory for it. */
static int each_long_chunk(const Course *course, const Plan *plan, Place place, const int64_t *step, int64_t n) {
    Room room;
    room_make(&room, capacity_of(plan));
    Chunk *chunk = &room.chunk;
    const Dim *dim = &plan->reduced.dim[0];
    Rows rows = {place.at[X], dim->step[X], dim->size, step[X], n};
    int fold = folds(plan, rows), ended = 0;
    LongColumns job = {plan, fold ? folded(plan, rows) : rows, NULL, 0, NOTHING};
    if (plan->residues == 1 || fold) job.sums = malloc((size_t)(2 * row_blocks(&job) * job.rows.n) * sizeof *job.sums);
    if (!job.sums || (capacity_of(plan) > CHUNK && !room.many)) {
        ended = -1;
        goto done;
    }
    Mode mode = mode_enter();
    int keep = !plan->only_norms && quick_pays(plan) && glance_together(course, &job, chunk, place, step, &ended) == 0;
    if (!keep && !ended) ended = share_out_row_blocks(course, &job);
    if (keep && !ended) write_columns(course, plan, chunk, place, step, n, 1);
    else if (!ended) {
        clear(chunk->high, chunk->low, job.rows.n);
        for (int64_t b = 0; b < row_blocks(&job); b++)
            merge_columns(plan, chunk->high, chunk->low, block_sums(&job, b), block_sums(&job, b) + job.rows.n, job.rows.n);
        if (fold) merge_residues(plan, chunk, rows, job.fed);
        if (plan->only_norms) norms_of_columns(plan, chunk, place, step, n);
        else settle_columns(course, plan, chunk, place, step, n);
    }
    mode_leave(mode);
done:
    free(job.sums);
    room_free(&room);
    return ended;
}

/* ---- all groups of an array ------------------------------------------------------------------------------------------ */

/* Groups in runs along the innermost kept axis, and the runs in pieces. */
typedef struct {
    const Plan *plan;
    int64_t run, piece, per_run; /* groups of a run, groups of a piece, pieces of a run */
    const int64_t *step;
} Pieces;

static Pieces pieces_of(const Plan *plan) {
    static const int64_t still[OPERANDS] = {0};
    int64_t run = plan->kept.count ? innermost(&plan->kept)->size : 1, piece = capacity_of(plan);
    if (!plan->columnar) {
        piece = normball_limits_now.task / (plan->length * itemsize(plan->dtype) + 1) + 1;
        if (piece > run) piece = run;
    }
    return (Pieces){plan, run, piece, (run + piece - 1) / piece, plan->kept.count ? innermost(&plan->kept)->step : still};
}

static Place place_of_piece(const Pieces *pieces, int64_t index, int64_t *n) {
    int64_t begin = index % pieces->per_run * pieces->piece;
    *n = pieces->run - begin < pieces->piece ? pieces->run - begin : pieces->piece;
    return moved(place_of_run(&pieces->plan->kept, pieces->plan->place, index / pieces->per_run), pieces->step, begin);
}

static void each_piece(void *context, int64_t begin, int64_t end) {
    const Pieces *pieces = context;
    const Plan *plan = pieces->plan;
    int64_t n;
    if (!plan->columnar) {
        for (int64_t i = begin; i < end; i++) {
            Place place = place_of_piece(pieces, i, &n);
            each_row(plan, place, pieces->step, n);
        }
        return;
    }
    Room room;
    room_make(&room, pieces->piece);
    for (int64_t i = begin; i < end; i++) {
        Place place = place_of_piece(pieces, i, &n);
        if (room.many || pieces->piece <= CHUNK) each_chunk(plan, &room.chunk, place, pieces->step, n);
        else
            for (int64_t j = 0; j < n; j += CHUNK)
                each_chunk(plan, &room.chunk, moved(place, pieces->step, j), pieces->step, n - j < CHUNK ? n - j : CHUNK);
    }
    room_free(&room);
}

/* 1 where `stop` ended it. */
static int each_group(const Course *course, const Plan *plan) {
    Pieces pieces = pieces_of(plan);
    int64_t runs = 1;
    for (int d = 0; d + 1 < plan->kept.count; d++) runs *= plan->kept.dim[d].size;
    int64_t count = runs * pieces.per_run, piece_bytes = pieces.piece * plan->length * itemsize(plan->dtype), n;
    if (count >= 2 * threads_for(course, plan->bytes)) return share_out(course, 1, count, piece_bytes, each_piece, &pieces);
    /* Few pieces: the work within each is shared out, where there is with whom, or where it may be stopped meanwhile. */
    int share = threads_for(course, plan->bytes) > 1 || (course->stop && plan->bytes >= normball_limits_now.stop);
    for (int64_t i = 0; i < count; i++) {
        Place place = place_of_piece(&pieces, i, &n);
        int ended = -1;
        if (!share) ended = -1;
        else if (!plan->columnar && n == 1 && is_long(plan)) ended = each_long_row(course, plan, place);
        else if (plan->columnar && columns_are_long(plan, n)) ended = each_long_chunk(course, plan, place, pieces.step, n);
        if (ended < 0) {
            Mode mode = mode_enter();
            each_piece(&pieces, i, i + 1);
            stream_end();
            mode_leave(mode);
            ended = course->stop && plan->bytes >= normball_limits_now.stop && i + 1 < count ? course->stop() : 0;
        }
        if (ended) return 1;
    }
    return 0;
}

/* ---- the calls ------------------------------------------------------------------------------------------------------- */

/* Have all of x filled, where it is not asked for as it is read. */
static void feed_all(Plan *plan) {
    if (!plan->call || plan->empty || feeds_as_it_goes(plan)) return;
    plan->call->produce(plan->call->context, 0, plan->bytes / itemsize(plan->dtype));
    plan->call = NULL;
}

static int constrain(int64_t count, const normball_array *arrays, int64_t ord, const normball_call *call) {
    Course course = course_of(call);
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t own = itemsize(arrays[i].dtype);
        for (int64_t d = 0; d < arrays[i].ndim; d++) own *= arrays[i].shape[d];
        bytes += own;
    }
    for (int64_t i = 0; i < count; i++) {
        Plan plan;
        plan_make(&plan, &arrays[i], ord, 0, call);
        if (plan.empty) continue;
        plan.streaming = !plan.in_place && bytes > normball_limits_now.stream;
        feed_all(&plan);
        if (each_group(&course, &plan)) return 1;
        if (i + 1 < count && stopped(&course, plan.bytes)) return 1;
    }
    return 0;
}

static int constrain_total(
    int64_t count, const normball_array *arrays, int64_t ord, double max_norm, double epsilon, double *norm,
    const normball_call *call) {
    Course course = course_of(call);
    Group group = {ord, count, 0, {NULL, {{NULL}}}, arrays};
    Wide sum = {0, 0};
    Plan scratch;
    int in_place = 0;
    int64_t bytes = 0;
    for (int64_t p = 0; p < count; p++) {
        Part part = part_of(&group, p, &scratch);
        group.narrow |= part.plan->dtype != NORMBALL_F64;
        in_place |= part.plan->in_place;
        bytes += part.plan->bytes;
        if (part.plan->empty) continue;
        LongRow row = {part.plan, part.place, NULL, plainly(1)};
        Wide own;
        int ended = is_long(part.plan) ? long_sum(&course, &row, &own) : -1;
        Mode mode = mode_enter();
        if (ended < 0) own = row_sum(part.plan, part.place, EVERYTHING);
        if (ended <= 0) sum = merge_sums(sum, own, ord);
        mode_leave(mode);
        if (ended > 0 || stopped(&course, part.plan->bytes)) return 1;
    }
    Mode mode = mode_enter();
    *norm = norm_beside(&group, sum, &max_norm);
    Answer answer = judge(&group, sum, 1, max_norm, epsilon);
    mode_leave(mode);
    /* The last arrays first, for they are in cache still. In place, what has begun is finished: the list is one group. */
    for (int64_t p = count; p-- > 0;) {
        Part part = part_of(&group, p, &scratch);
        if (part.plan->empty) continue;
        scratch.streaming = !part.plan->in_place && bytes > normball_limits_now.stream;
        LongRow row = {part.plan, part.place, NULL, answer};
        if (is_long(part.plan)) {
            if (long_write(&course, &row, !in_place)) return 1;
        } else {
            Mode here = mode_enter();
            write_group(&part, answer);
            stream_end();
            mode_leave(here);
        }
        if (!in_place && stopped(&course, part.plan->bytes)) return 1;
    }
    return 0;
}

/* Groups without entries. */
static void norms_of_nothing(const Plan *plan) {
    Walk walk;
    walk_start(&walk, &plan->kept, plan->place);
    do {
        for (int64_t j = 0; j < walk.length; j++) *(double *)moved(walk.place, walk.step, j).at[NORMS] = 0;
    } while (walk_next(&walk));
}

static int norms(const normball_array *array, int64_t ord, const normball_call *call) {
    Course course = course_of(call);
    Plan plan;
    plan_make(&plan, array, ord, 1, NULL);
    for (int64_t d = 0; d < array->ndim; d++)
        if (array->shape[d] == 0 && !(array->reduced >> d & 1)) return 0;
    if (!plan.empty) return each_group(&course, &plan);
    norms_of_nothing(&plan);
    return 0;
}

const normball_kernels JOIN(normball_kernels_, NORMBALL_ISA) = {TEXT(NORMBALL_ISA), constrain, constrain_total, norms};
