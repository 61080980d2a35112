"""The judge can condemn: for every law a result that breaks it, and it alone."""

import numpy as np
import pytest
from oracle import broken_laws, broken_total_laws, exact_norm, ulp

import normball

X = np.array([[3.0, 0.3, -0.0, 6.0], [4.0, 0.4, 1.0, 8.0]], np.float32)
AXES = (0,)


def good(max_norm=5.0):
    return normball.norm_constraint(X, max_norm, AXES)


def test_right_result_is_acquitted():
    assert broken_laws(X, good(), 5.0, AXES) == set()


def test_peers_formula_is_condemned():
    norms = np.sqrt((X**2).sum(0, keepdims=True))
    theirs = (X * (np.clip(norms, 0, 5.0) / (1e-7 + norms))).astype(np.float32)
    assert "untouched" in broken_laws(X, theirs, 5.0, AXES)


@pytest.mark.parametrize(
    "law, spoil",
    [
        ("same kind", lambda y: y.astype(np.float64)),
        ("same kind", lambda y: y[:, :3]),
        ("untouched", lambda y: np.where(X == 3.0, np.nextafter(y, np.float32(0)), y)),
        ("untouched", lambda y: y + np.float32(0)),  # turns -0.0 into 0.0
        ("bounded", lambda y: np.where(X == 8.0, np.float32(4.000001), y)),
        ("tight", lambda y: np.where(X >= 6.0, y * np.float32(1 - 1e-6), y)),
        ("signs", lambda y: np.where(X >= 6.0, -y, y)),
        ("finite", lambda y: np.where(X >= 6.0, np.float32(np.nan), y)),
    ],
)
def test_each_law_can_be_broken(law, spoil):
    spoilt = spoil(good())
    assert law in broken_laws(X, spoilt.astype(spoilt.dtype), 5.0, AXES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spoilt_groups_must_come_back_all_nan(value):
    x = X.copy()
    x[0, 3] = value
    y = normball.norm_constraint(x, 5.0, AXES)
    assert broken_laws(x, y, 5.0, AXES) == set()
    y[1, 3] = 0.0
    assert broken_laws(x, y, 5.0, AXES) == {"isolated"}


def test_total_laws_can_be_broken():
    ys = normball.total_norm_constraint([X, X[0].astype(np.float64)], 5.0)
    xs = [X, X[0].astype(np.float64)]
    assert broken_total_laws(xs, ys, 5.0) == set()
    assert broken_total_laws(xs, [ys[0], ys[1] * 1.001], 5.0) == {"bounded", "tight"}
    assert broken_total_laws(xs, [ys[0], ys[1].astype(np.float32)], 5.0) == {"same kind"}
    assert broken_total_laws(xs, [y * 0.5 for y in xs], 1e3) == {"untouched"}


def test_band_allows_rescaling_just_under_the_bound_only():
    x = np.array([[np.nextafter(np.float32(5), np.float32(0))], [0]], np.float32)
    y = x * np.float32(1 - 2e-7)
    assert broken_laws(x, y, 5.0, AXES, band=4) == set()
    assert broken_laws(x, y, 5.0, AXES) == {"untouched"}
    assert broken_laws(x, y, 5.1, AXES, band=4) == {"untouched"}


def test_arithmetic_of_the_judge():
    assert exact_norm([3.0, 4.0]) == 5
    assert exact_norm([3.0, -4.0], 1) == 7
    assert exact_norm([3.0, -4.0], np.inf) == 4
    assert ulp(exact_norm([1.0]), np.float32) == 2.0**-23
    assert ulp(exact_norm([np.nextafter(1.0, 0)]), np.float64) == 2.0**-53
    assert ulp(exact_norm([1e-45]), np.float32) == 2.0**-149
    assert ulp(exact_norm([0.0]), np.float16) == 2.0**-24
