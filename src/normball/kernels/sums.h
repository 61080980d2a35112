/* Sums of |v| (ord 1) or v * v (ord 2) over contiguous entries; included once for each dtype, with ENTRY,
 * NAME(function), ONE(x), which loads an entry, FOUR(x), which loads four as doubles, TWO_FOURS(entry, x), which loads
 * eight, and TURN(entry, x, length), which loads four of each of four groups and turns them, defined. `ord` is a constant
 * wherever these are called, so each call compiles to one plain loop. The order of every sum is part of its result: 16
 * lanes of a row, folded in halves; a column entry by entry.
 */

static inline Four NAME(power)(Four v, int ord) { return ord == 2 ? four_mul(v, v) : four_size(v); }

/* sum + power; narrow squares are exact. */
static inline Four NAME(add_power)(Four sum, Four v, int ord) {
    return ord == 2 && sizeof(ENTRY) < 8 ? four_add_square(sum, v) : four_add(sum, NAME(power)(v, ord));
}

static inline double NAME(power_of_one)(double v, int ord) { return ord == 2 ? v * v : fabs(v); }

/* The last n < LANES entries of a row, with zeros behind them, which change no sum. */
static inline const ENTRY *NAME(padded)(const ENTRY *x, int64_t n, ENTRY *tail) {
    for (int l = 0; l < LANES; l++) tail[l] = l < n ? x[l] : 0;
    return tail;
}

/* In float64, as it comes. */
static inline double NAME(plain_row)(const ENTRY *x, int64_t n, int ord) {
    Four a = four_all(0), b = a, c = a, d = a;
    ENTRY tail[LANES];
    for (int64_t left = n; left > 0; left -= LANES, x += LANES) {
        if (left < LANES) x = NAME(padded)(x, left, tail);
        look_ahead(x, sizeof(ENTRY) == 2 ? NARROW_AHEAD : AHEAD);
        if (sizeof(ENTRY) == 8) look_ahead(x, AHEAD + 64);
        Four entry[4];
        TWO_FOURS(entry, x);
        TWO_FOURS(entry + 2, x + 8);
        a = NAME(add_power)(a, entry[0], ord);
        b = NAME(add_power)(b, entry[1], ord);
        c = NAME(add_power)(c, entry[2], ord);
        d = NAME(add_power)(d, entry[3], ord);
    }
    double lane[4];
    four_store(lane, four_add(four_add(a, c), four_add(b, d)));
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

/* Add the powers to a sum that is no smaller than any of them: then this is its error, and `low` takes it. */
static inline void NAME(accumulate_onto)(Four *high, Four *low, Four v, int ord) {
    Four term = NAME(power)(v, ord), sum = four_add(*high, term), added = four_sub(sum, *high);
    *low = four_add(*low, ord == 2 ? four_square_minus(v, term, added) : four_sub(term, added));
    *high = sum;
}

/* In two words, at the price of four additions an entry: every lane starts at `bias`, a power of two at least as large
 * as half of every term, so that Dekker's short form of the error of an addition holds. */
static inline Wide NAME(biased_row)(const ENTRY *x, int64_t n, int ord, double bias) {
    Four start = four_all(bias), zero = four_all(0);
    Four high[4] = {start, start, start, start}, low[4] = {zero, zero, zero, zero};
    ENTRY tail[LANES];
    for (int64_t left = n; left > 0; left -= LANES, x += LANES) {
        if (left < LANES) x = NAME(padded)(x, left, tail);
        look_ahead(x, FAR_AHEAD);
        if (sizeof(ENTRY) == 8) look_ahead(x, FAR_AHEAD + 64);
        for (int k = 0; k < 4; k++) NAME(accumulate_onto)(&high[k], &low[k], FOUR(x + 4 * k), ord);
    }
    for (int k = 0; k < 4; k++) high[k] = four_sub(high[k], start); /* exact: bias is a multiple of every ulp in there */
    for (int half = 2; half; half /= 2)
        for (int k = 0; k < half; k++) {
            Four sum = four_add(high[k], high[k + half]);
            low[k] = four_add(low[k], four_add(four_sum_error(high[k], high[k + half], sum), low[k + half]));
            high[k] = sum;
        }
    double lane[4], rest[4];
    four_store(lane, high[0]);
    four_store(rest, low[0]);
    for (int half = 2; half; half /= 2)
        for (int l = 0; l < half; l++) {
            Wide sum = two_sum(lane[l], lane[l + half]);
            lane[l] = sum.high;
            rest[l] += sum.low + rest[l + half];
        }
    return (Wide){lane[0], rest[0]};
}

/* In two words, at most ROW_BLOCK entries. Memory is read once where a bias guessed from the first few turns out to be
 * above the whole sum, and so above every term; else twice. */
static inline Wide NAME(two_words_row)(const ENTRY *x, int64_t n, int ord) {
    double some = n > PROBE ? NAME(plain_row)(x, PROBE, ord) : 0;
    if (some >= LEAST_BLOCK && some <= MOST_SUM) {
        double bias = BIAS_HEADROOM * bias_of(some);
        Wide sum = NAME(biased_row)(x, n, ord, bias);
        if (sum.high <= bias) return sum;
    }
    double sum = NAME(plain_row)(x, n, ord);
    if (!(sum >= LEAST_BLOCK && sum <= MOST_SUM)) return (Wide){sum, 0};
    return NAME(biased_row)(x, n, ord, bias_of(sum));
}

/* Add a few rows of n columns, the next at row_step bytes, to the columns' sums. */
static inline void NAME(plain_columns)(const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict sum, int ord) {
    for (; rows >= STEP_ROWS; rows -= STEP_ROWS, x += STEP_ROWS * row_step) {
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            Four total = four_load(sum + i);
            look_ahead(x, STEP_ROWS * (row_step + i * (int64_t)sizeof(ENTRY)));
            if (sizeof(ENTRY) * STEP_ROWS > 16) look_ahead(x, STEP_ROWS * (row_step + i * (int64_t)sizeof(ENTRY)) + 64);
            for (int k = 0; k < STEP_ROWS; k++)
                total = NAME(add_power)(total, FOUR((const ENTRY *)(x + k * row_step) + i), ord);
            four_store(sum + i, total);
        }
        for (; i < n; i++)
            for (int k = 0; k < STEP_ROWS; k++) sum[i] += NAME(power_of_one)(ONE((const ENTRY *)(x + k * row_step) + i), ord);
    }
    for (; rows > 0; rows--, x += row_step) {
        const ENTRY *row = (const ENTRY *)x;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) four_store(sum + i, NAME(add_power)(four_load(sum + i), FOUR(row + i), ord));
        for (; i < n; i++) sum[i] += NAME(power_of_one)(ONE(row + i), ord);
    }
}

/* The same in two words, with the error of each addition (Knuth), and of the square, in `low`. */
static inline void NAME(accumulate)(Four *high, Four *low, Four v, int ord) {
    Four term = NAME(power)(v, ord), sum = four_add(*high, term), part = four_sub(sum, *high);
    Four rest = ord == 2 ? four_square_minus(v, term, part) : four_sub(term, part);
    *low = four_add(*low, four_add(four_sub(*high, four_sub(sum, part)), rest));
    *high = sum;
}

static inline void NAME(accumulate_one)(double *high, double *low, double v, int ord) {
    double term = NAME(power_of_one)(v, ord), sum = *high + term, part = sum - *high;
    double rest = ord == 2 ? square_minus(v, term, part) : term - part;
    *low += (*high - (sum - part)) + rest;
    *high = sum;
}

/* Eight rows of `fours` times four columns: by the short form, which gives the same bits where no term is above the sum
 * before it, so for few columns not; else by the long one. As each addition waits for the one before, two fours take
 * turns. */
static inline void NAME(accumulate_rows)(double *high, double *low, const char *x, int64_t row_step, int ord, int fours) {
    Four sum[2], rest[2], most[2], above = four_all(0);
    for (int f = 0; f < fours; f++) sum[f] = four_load(high + 4 * f), rest[f] = four_load(low + 4 * f), most[f] = above;
    AS_IT_STANDS
    for (int k = 0; k < STEP_ROWS; k++)
        for (int f = 0; f < fours; f++) {
            Four v = FOUR((const ENTRY *)(x + k * row_step) + 4 * f);
            most[f] = four_larger(NAME(power)(v, ord), most[f]);
            NAME(accumulate_onto)(&sum[f], &rest[f], v, ord);
        }
    for (int f = 0; f < fours; f++) above = four_either(above, four_above(most[f], four_load(high + 4 * f)));
    if (four_any(above))
        for (int f = 0; f < fours; f++) {
            sum[f] = four_load(high + 4 * f), rest[f] = four_load(low + 4 * f);
            for (int k = 0; k < STEP_ROWS; k++)
                NAME(accumulate)(&sum[f], &rest[f], FOUR((const ENTRY *)(x + k * row_step) + 4 * f), ord);
        }
    for (int f = 0; f < fours; f++) four_store(high + 4 * f, sum[f]), four_store(low + 4 * f, rest[f]);
}

static inline void NAME(wide_columns)(
    const char *x, int64_t row_step, int64_t rows, int64_t n, double *restrict high, double *restrict low, int ord) {
    for (; rows >= STEP_ROWS; rows -= STEP_ROWS, x += STEP_ROWS * row_step) {
        int64_t i = 0, size = sizeof(ENTRY);
        for (; i + 8 <= n; i += 8) {
            for (int64_t at = 0; at < 8 * STEP_ROWS * size; at += 64) look_ahead(x, STEP_ROWS * (row_step + i * size) + at);
            NAME(accumulate_rows)(high + i, low + i, x + i * size, row_step, ord, 2);
        }
        for (; i + 4 <= n; i += 4) NAME(accumulate_rows)(high + i, low + i, x + i * size, row_step, ord, 1);
        for (; i < n; i++)
            for (int k = 0; k < STEP_ROWS; k++)
                NAME(accumulate_one)(&high[i], &low[i], ONE((const ENTRY *)(x + k * row_step) + i), ord);
    }
    for (; rows > 0; rows--, x += row_step) {
        const ENTRY *row = (const ENTRY *)x;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            Four sum = four_load(high + i), rest = four_load(low + i);
            NAME(accumulate)(&sum, &rest, FOUR(row + i), ord);
            four_store(high + i, sum);
            four_store(low + i, rest);
        }
        for (; i < n; i++) NAME(accumulate_one)(&high[i], &low[i], ONE(row + i), ord);
    }
}

/* Short groups, `length` entries each and side by side in memory: four at a time, each entry by entry. */
static inline Four NAME(entry_of_four)(const ENTRY *x, int64_t length) {
    return four_of(ONE(x), ONE(x + length), ONE(x + 2 * length), ONE(x + 3 * length));
}

static inline void NAME(plain_short)(const ENTRY *x, int64_t length, int64_t n, double *restrict sum, int ord) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4, x += 4 * length) {
        for (int64_t at = 0; at < 4 * length; at += 64 / (int64_t)sizeof *x) look_ahead(x + at, 2 * AHEAD);
        Four total = four_all(0), entry[4];
        int64_t i = 0;
        for (; i + 4 <= length; i += 4) {
            TURN(entry, x + i, length);
            for (int k = 0; k < 4; k++) total = NAME(add_power)(total, entry[k], ord);
        }
        for (; i < length; i++) total = NAME(add_power)(total, NAME(entry_of_four)(x + i, length), ord);
        four_store(sum + j, total);
    }
    for (; j < n; j++, x += length) {
        double total = 0;
        for (int64_t i = 0; i < length; i++) total += NAME(power_of_one)(ONE(x + i), ord);
        sum[j] = total;
    }
}

static inline void NAME(wide_short)(
    const ENTRY *x, int64_t length, int64_t n, double *restrict high, double *restrict low, int ord) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4, x += 4 * length) {
        for (int64_t at = 0; at < 4 * length; at += 64 / (int64_t)sizeof *x) look_ahead(x + at, 2 * AHEAD);
        Four sum = four_all(0), rest = sum, entry[4];
        int64_t i = 0;
        for (; i + 4 <= length; i += 4) {
            TURN(entry, x + i, length);
            for (int k = 0; k < 4; k++) NAME(accumulate)(&sum, &rest, entry[k], ord);
        }
        for (; i < length; i++) NAME(accumulate)(&sum, &rest, NAME(entry_of_four)(x + i, length), ord);
        four_store(high + j, sum);
        four_store(low + j, rest);
    }
    for (; j < n; j++, x += length) {
        double sum = 0, rest = 0;
        for (int64_t i = 0; i < length; i++) NAME(accumulate_one)(&sum, &rest, ONE(x + i), ord);
        high[j] = sum;
        low[j] = rest;
    }
}
