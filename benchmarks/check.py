"""Is the answer right? Exactly, on some groups, and close to a peer's; nothing is timed before it is."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

import normball
from normball import definition

EPSILON = 1e-7
GROUPS_CHECKED = 3
ENTRIES_CHECKED = 300  # of each group; its norm is that of all entries
# Relative. Peers differ by epsilon; in float32 by more: PyTorch adds up in it, and is 9e-4 off for a GPT-2.
LOOSELY = {"float64": 1e-6, "float32": 2e-3, "float16": 4e-3, "bfloat16": 3e-2}
MANTISSA = {"float64": (52, -1022), "float32": (23, -126), "float16": (10, -14), "bfloat16": (7, -126)}
LOW_HALF = (1 << 27) - 1


def exact_sum_of_squares(x: np.ndarray) -> Fraction:
    """`definition.summarise(x)` in milliseconds for a million entries: integer pieces of the squares, by exponent.

    An entry is (a 2**27 + b) 2**e, so its square has three products below 2**54; cut into halves below 2**27, 2**20
    of them add up to integers that float64 holds, which is what `bincount` adds in.
    """
    total = Fraction(0)
    flat = x.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        mantissa, exponent = np.frexp(flat[start : start + (1 << 20)].astype(np.float64))
        digits = np.abs(mantissa * 2.0**53).astype(np.int64)
        lowest = int(exponent.min())
        a, b = digits >> 27, digits & LOW_HALF
        for product, place in ((a * a, 54), (2 * a * b, 27), (b * b, 0)):
            for piece, more in ((product >> 27, 27), (product & LOW_HALF, 0)):
                counts = np.bincount(exponent - lowest, weights=piece)
                part = sum(int(count) << 2 * i for i, count in enumerate(counts))
                total += part * Fraction(2) ** (2 * (lowest - 53) + place + more)
    return total


def exact_norm(*arrays: np.ndarray) -> Fraction:
    return definition.norm(definition.merge([exact_sum_of_squares(x) for x in arrays]))


def check_group(
    before: list[np.ndarray], after: list[np.ndarray], max_norm: float, norm: Fraction | None = None
) -> None:
    """Raise unless one group, of one array or of several, is what the definition says.

    Compliant: the same bits. A violator: an exact norm of at most `max_norm`, and entries within 4 ulp. `norm` is the
    exact norm before, where it is known: for a hundred million entries it takes seconds.
    """
    norm = exact_norm(*before) if norm is None else norm
    if norm <= Fraction(max_norm):
        for x, y in zip(before, after, strict=True):
            if x.tobytes() != y.tobytes():
                raise AssertionError("a compliant group has other bits than before")
        return
    if exact_norm(*after) > Fraction(max_norm):
        raise AssertionError("a norm is above its bound")
    factor = Fraction(max_norm) / (norm + Fraction(EPSILON))
    for x, y in zip(before, after, strict=True):
        some = np.random.default_rng(1).integers(x.size, size=min(x.size, ENTRIES_CHECKED))
        bits, lowest = MANTISSA[y.dtype.name]
        for old, new in zip(numbers(x, some), numbers(y, some), strict=True):
            ulp = Fraction(2) ** (max(int(np.frexp(new)[1]) - 1, lowest) - bits)
            if abs(Fraction(new) - Fraction(old) * factor) > 4 * ulp:
                raise AssertionError(f"{new} is more than 4 ulp from {float(Fraction(old) * factor)}")


def numbers(x: np.ndarray, some: np.ndarray) -> list[float]:
    return x.flat[some].astype(np.float64).tolist()


def groups(x: np.ndarray, axes: tuple[int, ...], some: int = GROUPS_CHECKED) -> Iterator[tuple]:
    """Indices of some groups of an array: the first, the last, and others."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    count = int(np.prod([x.shape[axis] for axis in kept]))
    chosen = {0, count - 1, *np.random.default_rng(2).integers(count, size=some - 2).tolist()}
    for number in sorted(chosen):
        index: list = [slice(None)] * x.ndim
        for axis, place in zip(kept, np.unravel_index(number, [x.shape[axis] for axis in kept]), strict=True):
            index[axis] = int(place)
        yield tuple(index)


def check_array(
    before: np.ndarray, after: np.ndarray, axes: tuple[int, ...], max_norm: float, some: int = GROUPS_CHECKED
) -> None:
    """`check_group` on some groups of an array."""
    if after.dtype != before.dtype or after.shape != before.shape:
        raise AssertionError(f"{after.dtype} {after.shape} for {before.dtype} {before.shape}")
    for index in groups(before, axes, some):
        check_group([before[index]], [after[index]], max_norm)


def check_close(ours: np.ndarray, theirs: np.ndarray, axes: tuple[int, ...], name: str) -> None:
    """Raise unless a peer computes about the same: then both are timed at the same work."""
    if theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        raise AssertionError(f"{name}: {theirs.dtype} {theirs.shape} for {ours.dtype} {ours.shape}")
    for index in groups(ours, axes):
        a, b = ours[index].astype(np.float64), theirs[index].astype(np.float64)
        np.testing.assert_allclose(
            b, a, rtol=LOOSELY[ours.dtype.name], atol=1e-6, err_msg=name
        )  # atol: of subnormal float16


def prove_the_check_can_fail() -> None:
    """Raise unless `check_group` takes right groups and refuses wrong ones: else no time means anything."""
    for dtype in ("float64", "float32", "float16"):
        values = np.random.default_rng(3).standard_normal(1000).astype(dtype) * np.logspace(-4, 0, 1000).astype(dtype)
        if exact_sum_of_squares(values) != definition.summarise(values.tolist()):
            raise RuntimeError(f"the exact sum of squares is wrong in {dtype}")
    inside, outside = np.array([0.3, 0.4]), np.array([3.0, 4.0])
    onto = normball.norm_constraint(outside[:, None], 3.0)[:, 0]
    check_group([inside], [inside], 3.0)
    check_group([outside], [onto], 3.0)
    wrong = [
        (inside, np.nextafter(inside, 1)),
        (outside, outside),
        (outside, onto * (1 - 2e-15)),
        (outside, onto / 0.9999),
    ]
    for before, after in wrong:
        if not refuses(lambda before=before, after=after: check_group([before], [after], 3.0)):
            raise RuntimeError(f"the check took {after} for the answer to {before}")


def refuses(call: Callable[[], None]) -> bool:
    try:
        call()
    except AssertionError:
        return True
    return False
