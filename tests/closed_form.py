"""Law 8 in wider arithmetic than float64's: what derivatives should be, and how many entries of some are not."""

import math

import numpy as np
import pytest

# Wider than float64 in digits and in range, so that the closed form neither rounds nor overflows where it matters.
WIDE = np.longdouble
wide_enough = pytest.mark.skipif(np.finfo(WIDE).maxexp <= 1024, reason="longdouble is no wider than float64 here")

SCALES = {
    "float64": [1.0, 0.0, 10.0, 1e200, 1e300, 1e307, 1e-200, 1e-300],
    "float32": [1.0, 0.0, 10.0, 1e20, 1e30, 1e38, 1e-30, 1e-37],
}
SUBNORMAL = {"float64": [5e-324, 1e-310], "float32": [1e-45, 1e-40]}


def closed_form(x, cotangent, max_norm, epsilon, ord):
    """Law 8 for the columns of x: the gradients of <cotangent, y> in x, max_norm and epsilon."""
    x, g, c, e = (np.asarray(value, WIDE) for value in (x, cotangent, max_norm, epsilon))
    size = np.abs(x)
    norm = {1: size.sum(0), 2: np.sqrt((x * x).sum(0)), math.inf: size.max(0)}[ord]
    slope = np.sign(x)
    if ord == 2:
        slope = x / np.where(norm > 0, norm, 1)
    if ord == math.inf:
        slope = slope * (size == norm)
        slope /= np.maximum(np.abs(slope).sum(0), 1)
    violates = norm > c
    denominator = np.where(violates, norm + e, 1)
    scale, along = c / denominator, (x / denominator * g).sum(0)
    to_x = np.where(violates, scale * (g - along * slope), g)
    return to_x, np.where(violates, along, 0).sum(), np.where(violates, -scale * along, 0).sum()


def wrong_entries(found, wanted, size, dtype):
    """How many entries are further from the closed form than rounding takes them, `size` being what was summed up."""
    info = np.finfo(dtype)
    allowed = 64 * WIDE(info.eps) * size + 16 * WIDE(info.smallest_subnormal)
    return int((~(np.abs(np.asarray(found, WIDE) - wanted) <= allowed)).sum())


def columns(dtype, scales, seed=0):
    """One column for each scale; entries that overflow become the largest float."""
    rng = np.random.default_rng(seed)
    largest = np.finfo(dtype).max
    x = rng.standard_normal((4, len(scales))) * np.array(scales)
    return np.clip(x, -largest, largest).astype(dtype), rng.standard_normal((4, len(scales))).astype(dtype)


def second_derivative(x, g, v, c, e):
    """The Hessian of <g, y> times v, for one violating column and ord 2."""
    x, g, v, c, e = (np.asarray(value, WIDE) for value in (x, g, v, c, e))
    n = np.sqrt((x * x).sum())
    m = n + e
    a, b = (g * x).sum(), (x * v).sum()
    return (
        -c * g * (b / n) / m**2
        - c * ((g * v).sum() * x + a * v) / (n * m**2)
        + c * a * x * b * (1 / (n**3 * m**2) + 2 / (n**2 * m**3))
    )
