/* Sums of |v| or v**2 without any rounding: a number wide enough for every float64, kept as 32-bit digits in 64-bit
 * words (Kulisch). Used for the rare group whose norm cannot be told from its bound otherwise, so it may be slow.
 */
#ifndef NORMBALL_EXACT_H
#define NORMBALL_EXACT_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    EXACT_LOWEST = -2148, /* the square of the smallest subnormal is 2**-2148 */
    EXACT_DIGITS = 140,   /* up to 2**(32 * 140 - 2148): the largest square, 2**2048, 2**64 times over, and more */
    EXACT_NORMALISE = 1 << 28, /* a term adds less than 2**34 to a digit: carry before 2**30 of them */
};

typedef struct {
    uint64_t digit[EXACT_DIGITS];
    int64_t terms;
} Exact;

static void exact_clear(Exact *sum) { memset(sum, 0, sizeof *sum); }

/* Leave 32 bits in every digit. */
static void exact_normalise(Exact *sum) {
    uint64_t carry = 0;
    for (int i = 0; i < EXACT_DIGITS; i++) {
        carry += sum->digit[i];
        sum->digit[i] = carry & 0xffffffffu;
        carry >>= 32;
    }
    sum->terms = 0;
}

/* Add part * 2**(EXACT_LOWEST + position), part below 2**55. */
static void exact_add_part(Exact *sum, uint64_t part, int position) {
    uint64_t *digit = sum->digit + position / 32;
    int shift = position % 32;
    uint64_t low = part << shift;
    digit[0] += low & 0xffffffffu;
    digit[1] += low >> 32;
    digit[2] += shift ? part >> (64 - shift) : 0;
}

/* Add |v| (ord 1) or v * v (ord 2), v finite. */
static void exact_add(Exact *sum, double v, int ord) {
    uint64_t bits, mantissa;
    memcpy(&bits, &v, sizeof bits);
    int exponent = (int)(bits >> 52 & 0x7ff);
    mantissa = bits & 0xfffffffffffffu;
    if (exponent) mantissa |= (uint64_t)1 << 52;
    else exponent = 1;
    if (!mantissa) return;
    exponent -= 1075; /* |v| = mantissa * 2**exponent */
    if (ord == 1) {
        exact_add_part(sum, mantissa, exponent - EXACT_LOWEST);
    } else { /* (a * 2**27 + b)**2, its parts below 2**54 */
        uint64_t a = mantissa >> 27, b = mantissa & 0x7ffffffu;
        int position = 2 * exponent - EXACT_LOWEST;
        exact_add_part(sum, b * b, position);
        exact_add_part(sum, 2 * a * b, position + 27);
        exact_add_part(sum, a * a, position + 54);
    }
    if (++sum->terms == EXACT_NORMALISE) exact_normalise(sum);
}

/* Whether a > b; normalises both. */
static int exact_greater(Exact *a, Exact *b) {
    exact_normalise(a);
    exact_normalise(b);
    for (int i = EXACT_DIGITS - 1; i >= 0; i--)
        if (a->digit[i] != b->digit[i]) return a->digit[i] > b->digit[i];
    return 0;
}

#endif
