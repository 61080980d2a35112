/* Writing a group, or rows of many. */
#ifndef NORMBALL_WRITE_H
#define NORMBALL_WRITE_H

#include "judge.h"

static void write_carefully(int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, Answer answer) {
    double buffer[ROW_BLOCK], value[ROW_BLOCK];
    Buffer result;
    const double *source = fetch_doubles(dtype, x, x_step, n, buffer);
    int wide = dtype == NORMBALL_F64;
    if (answer.shift == 0) {
        double narrow = float_factor(answer.factor); /* times a float: exact in double */
        for (int64_t i = 0; i < n; i++) {
            double exact = source[i] * narrow;
            if (wide) value[i] = source[i] * answer.factor;
            else value[i] = fabs(exact) < FLT_MIN ? float_truncated(exact) : (float)exact;
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            double exact = shifted_down(ldexp(source[i], answer.lift) * answer.factor, answer.shift);
            value[i] = wide ? exact : float_truncated(exact);
        }
    }
    entries_of(dtype)->from_doubles(&result, value, n);
    deliver(dtype, y, y_step, n, &result, 0);
}

/* At most ROW_BLOCK entries of one group. */
static void write_block(
    int64_t dtype, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, Answer answer, int streaming) {
    if (answer.careful) {
        write_carefully(dtype, x, x_step, y, y_step, n, answer);
        return;
    }
    Buffer in, out;
    const void *source = fetch(dtype, x, x_step, n, &in);
    void *target = target_for(dtype, y, y_step, &out, streaming);
    entries_of(dtype)->scale_row(target, source, n, answer.factor);
    deliver(dtype, y, y_step, n, target, streaming);
}

static int keeps(Answer answer) { return answer.factor == 1 && !answer.careful; }

/* A run of one group's entries. While they are written, which takes memory some time, a later group is brought in;
 * 16-bit entries take their sums longer, which bring in their own. */
static void write_run(const Plan *plan, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t length, Answer answer) {
    int64_t size = itemsize(plan->dtype), ahead = 0;
    int whole_lines = (((uintptr_t)y | (uintptr_t)(length * size)) & 63) == 0,
        streaming = plan->streaming && (whole_lines || length * size >= LEAST_STREAM);
    if (plan->bytes > CACHED_BYTES && size > 2 && x_step == size && length * size <= NEXT_BYTES) ahead = plan->together * length * size;
    for (int64_t i = 0; i < length; i += ROW_BLOCK) {
        int64_t n = length - i < ROW_BLOCK ? length - i : ROW_BLOCK;
        for (int64_t at = 0; ahead && at < n * size; at += 64) look_ahead(x + i * size, ahead + at);
        if (keeps(answer)) {
            copy_run(plan->dtype, x + i * x_step, x_step, y + i * y_step, y_step, n, streaming);
            continue;
        }
        write_block(plan->dtype, x + i * x_step, x_step, y + i * y_step, y_step, n, answer, streaming);
    }
}

static void write_group(const Part *part, Answer answer) {
    const Plan *plan = part->plan;
    if (keeps(answer) && plan->in_place) return;
    Walk walk;
    walk_start(&walk, &plan->written, part->place);
    do {
        write_run(plan, walk.place.at[X], walk.step[X], walk.place.at[Y], walk.step[Y], walk.length, answer);
    } while (walk_next(&walk));
}

/* n neighbouring columns of a row, each times its factor, which is given as the dtype works. */
static void write_columns_of_row(
    const Plan *plan, const char *x, int64_t x_step, char *y, int64_t y_step, int64_t n, const double *factor, const float *narrow) {
    const Entries *entries = entries_of(plan->dtype);
    int64_t size = itemsize(plan->dtype);
    Buffer in, out;
    if (x_step == size && y_step == size && !plan->streaming) {
        entries->scale_each(y, x, n, factor, narrow);
        return;
    }
    for (int64_t i = 0; i < n; i += ROW_BLOCK, x += ROW_BLOCK * x_step, y += ROW_BLOCK * y_step) {
        int64_t part = n - i < ROW_BLOCK ? n - i : ROW_BLOCK;
        const void *source = fetch(plan->dtype, x, x_step, part, &in);
        void *target = target_for(plan->dtype, y, y_step, &out, plan->streaming);
        entries->scale_each(target, source, part, factor + i, narrow + i);
        deliver(plan->dtype, y, y_step, part, target, plan->streaming);
    }
}

#endif
