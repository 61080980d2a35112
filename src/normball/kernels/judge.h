/* What becomes of a group, by its sum, its bound and epsilon; and its norm as a number. */
#ifndef NORMBALL_JUDGE_H
#define NORMBALL_JUDGE_H

#include "groups.h"

/* An entry v becomes v * factor; or, where `careful`, ldexp(v, lift) * factor * 2**shift, truncated, or with both 0 the
 * same as ever but for subnormals of narrow dtypes, which are truncated. Factor 1 keeps the group as it is (a
 * violator's factor is below 1), NaN spoils it. */
typedef struct {
    double factor;
    int careful, lift, shift;
} Answer;

static Answer plainly(double factor) { return (Answer){factor, 0, 0, 0}; }

/* A violator's factor that is not too small to multiply by. */
static Answer scaled(const Group *group, double factor, double bound) {
    return (Answer){factor, group->narrow && bound < LEAST_NARROW_BOUND, 0, 0};
}

/* The norm of a sum within [LEAST_SUM, MOST_SUM]. */
static inline Wide norm_of(Wide sum, int64_t ord) {
    if (ord != 2) return sum;
    double root = sqrt(sum.high), square = root * root;
    double rest = (((sum.high - square) - fma(root, root, -square)) + sum.low) / (2 * root);
    return (Wide){root, rest};
}

/* bound / (norm + epsilon) * (1 - margin), rounded once. */
static inline double quotient(double bound, Wide norm, double epsilon, double margin) {
    Wide divisor = two_sum(norm.high, epsilon);
    double low = divisor.low + norm.low, first = bound / divisor.high;
    double rest = (fma(-first, divisor.high, bound) - first * low) / divisor.high;
    return first + (rest - margin * first);
}

/* What sums of powers are compared with: the bound, or its square, in two words. Outside the range of the clamp the
 * answer is clear, and so it is at the end of the range. */
static inline Wide limit_of(int64_t ord, double bound) {
    if (ord != 2) return (Wide){bound, 0};
    double b = bound < 0x1p-360 ? 0x1p-360 : bound > 0x1p460 ? 0x1p460 : bound, square = b * b;
    return (Wide){square, fma(b, b, -square)};
}

/* 1 where the norm is above the bound, -1 where it is not, 0 where the sum is not good enough to tell. */
static inline int compare(Wide sum, int64_t ord, Wide limit, double doubt) {
    double excess = (sum.high - limit.high) + (sum.low - limit.low);
    if (ord == NORMBALL_ORD_INF || fabs(excess) > doubt * sum.high) return excess > 0 ? 1 : -1;
    return 0;
}

/* The largest quick sum (see quick.h; of doubles, a plain one) that is clearly within the bound; -1 where none is. */
static inline double quick_limit(const Plan *plan, double bound, double epsilon) {
    if (!(bound >= SURELY_ABOVE && epsilon >= 0)) return -1;
    double limit = limit_of(plan->ord, bound).high;
    if (limit > MOST_SUM) limit = MOST_SUM; /* no inf is within it */
    if (plan->dtype == NORMBALL_F64) return limit * (1 - QUICK_DOUBLE_DOUBT - (double)plan->length * UNIT);
    return limit * (1 - QUICK_FLOAT_DOUBT) - LEAST_QUICK;
}

/* Whether the norm is above the bound. The sum may be scaled; `scaled_bound` is the bound at the same scale. */
static int exceeds(const Group *group, Wide sum, double scaled_bound, double bound, double doubt) {
    int answer = compare(sum, group->ord, limit_of(group->ord, scaled_bound), doubt);
    return answer ? answer > 0 : exceeds_exactly(group, bound);
}

/* The answer for any group and any bound, from entries scaled by a power of two to at most 1. */
static Answer judge_carefully(const Group *group, double bound, double epsilon) {
    double largest = largest_entry(group);
    int exponent, bound_exponent, epsilon_exponent;
    if (largest != largest) return plainly(NAN);
    if (largest == INFINITY) return plainly(bound == INFINITY ? 1 : NAN);
    if (largest == 0) return plainly(1);
    frexp(largest, &exponent);
    Wide sum = scaled_sum(group, exponent);
    if (!exceeds(group, sum, ldexp(bound, -exponent), bound, WIDE_DOUBT)) return plainly(1);
    if (bound == 0 || epsilon == INFINITY) return plainly(0);
    /* The divisor at a scale where it is neither tiny nor huge, whichever of its terms is the larger. */
    Wide norm = norm_of(sum, group->ord);
    frexp(epsilon, &epsilon_exponent);
    int scale = epsilon > 0 && epsilon_exponent > exponent ? epsilon_exponent : exponent;
    norm = (Wide){ldexp(norm.high, exponent - scale), ldexp(norm.low, exponent - scale)};
    double mantissa = frexp(bound, &bound_exponent);
    double factor = quotient(mantissa, norm, ldexp(epsilon, -scale), WIDE_MARGIN);
    int shift = bound_exponent - scale;
    double whole = ldexp(factor, shift);
    double least = group->narrow ? LEAST_NARROW_FACTOR : LEAST_FACTOR;
    if (bound >= LEAST_FACTOR && whole >= least) return scaled(group, whole, bound);
    int lift = exponent < 0 ? -exponent : 0;
    return (Answer){factor, 1, lift, shift - lift};
}

/* The factor of a violator with ordinary numbers. */
static inline double factor_of(Wide sum, int64_t ord, int wide, double bound, double epsilon) {
    if (wide) return quotient(bound, norm_of(sum, ord), epsilon, WIDE_MARGIN);
    double size = sum.high + sum.low;
    return bound / ((ord == 2 ? sqrt(size) : size) + epsilon) * (1 - PLAIN_MARGIN);
}

/* The same; 0 where they are not ordinary. */
static inline double plain_factor(Wide sum, int64_t ord, int wide, int narrow, double bound, double epsilon) {
    double factor = factor_of(sum, ord, wide, bound, epsilon);
    return bound >= LEAST_BOUND && factor >= (narrow ? LEAST_NARROW_FACTOR : LEAST_FACTOR) ? factor : 0;
}

static Answer judge(const Group *group, Wide sum, int wide, double bound, double epsilon) {
    if (!(bound >= 0) || !(epsilon >= 0)) return plainly(NAN);
    if (sum.high >= LEAST_SUM && sum.high <= MOST_SUM) {
        if (!exceeds(group, sum, bound, bound, wide ? WIDE_DOUBT : PLAIN_DOUBT)) return plainly(1);
        if (bound == 0 || epsilon == INFINITY) return plainly(0);
        double factor = plain_factor(sum, group->ord, wide, group->narrow, bound, epsilon);
        if (factor > 0) return scaled(group, factor, bound);
    } else if (sum.high < LEAST_SUM && bound >= SURELY_ABOVE) {
        return plainly(1);
    }
    return judge_carefully(group, bound, epsilon);
}

/* The norm as float64. */
static double norm_value(const Group *group, Wide sum) {
    int exponent = 0;
    if (!(sum.high >= LEAST_SUM && sum.high <= MOST_SUM)) {
        double largest = largest_entry(group);
        if (!(largest > 0 && largest < INFINITY)) return largest;
        frexp(largest, &exponent);
        sum = scaled_sum(group, exponent);
    }
    Wide norm = norm_of(sum, group->ord);
    return ldexp(norm.high + norm.low, exponent);
}

/* The norm as float64; where a bound is given, it compares with that as the exact norm does. */
static double norm_beside(const Group *group, Wide sum, const double *max_norm) {
    double norm = norm_value(group, sum);
    if (!max_norm || group->ord == NORMBALL_ORD_INF) return norm; /* ord inf: exact as it is */
    if (!(norm < INFINITY) || !(*max_norm < INFINITY)) return norm;
    double bound = *max_norm;
    if (norm < nextafter(bound, 0) || norm > nextafter(bound, INFINITY)) return norm; /* it is good to an ulp */
    int in_range = sum.high >= LEAST_SUM && sum.high <= MOST_SUM;
    int above = in_range ? exceeds(group, sum, bound, bound, WIDE_DOUBT) : exceeds_exactly(group, bound);
    if (above && norm <= bound) return nextafter(bound, INFINITY);
    return !above && norm > bound ? bound : norm;
}

#endif
