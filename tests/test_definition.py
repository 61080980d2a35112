"""The definition itself, against arithmetic done by other means."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normball import definition

numbers = st.lists(st.fractions(-100, 100), max_size=6)
orders = st.sampled_from([1, 2, math.inf])


@pytest.mark.parametrize(
    "values, ord, norm",
    [([3, -4], 2, 5), ([3, -4], 1, 7), ([3, -4], math.inf, 4), ([], 2, 0), ([], 1, 0), ([], math.inf, 0)],
)
def test_known_norms(values, ord, norm):
    assert definition.norm(definition.summarise(values, ord), ord) == norm


@given(numbers)
def test_root_is_rounded_up_and_by_less_than_the_grid(values):
    square = sum(v * v for v in values)
    root = definition.norm(definition.summarise(values))
    assert root**2 >= square
    assert root == 0 or (root - Fraction(1, 2**definition.GRID)) ** 2 < square


@given(st.floats(0, allow_infinity=False), st.floats(0, allow_infinity=False))
def test_comparison_with_any_float_is_exact(value, bound):
    """sqrt(2) v <= c is 2 v**2 <= c**2, also where v and c are subnormal."""
    root = definition.norm(definition.summarise([value, value]))
    assert (root <= Fraction(bound)) == (2 * Fraction(value) ** 2 <= Fraction(bound) ** 2)


@given(numbers, numbers, orders)
def test_summaries_merge(a, b, ord):
    parts = [definition.summarise(a, ord), definition.summarise(b, ord)]
    assert definition.merge(parts, ord) == definition.summarise(a + b, ord)


@given(numbers, st.floats(0, 100), orders)
def test_constrain(values, bound, ord):
    result = definition.constrain(values, bound, 0.0, ord)
    norm = definition.norm(definition.summarise(values, ord), ord)
    if norm <= Fraction(bound):
        assert result == values
    else:
        assert definition.norm(definition.summarise(result, ord), ord) <= Fraction(bound) + Fraction(
            1, 2**definition.GRID
        )
        assert result == [v * Fraction(bound) / norm for v in values]


def test_epsilon_acts_on_violators_alone():
    assert definition.constrain([1], 1.0, 0.5) == [1]
    assert definition.constrain([3], 1.0, 1.0) == [Fraction(3, 4)]
    assert definition.constrain([3], 1.0, math.inf) == [0]
    assert definition.constrain([3], math.inf) == [3]


@given(numbers, numbers, st.floats(0, 100), orders)
def test_total_is_the_joined_list(a, b, bound, ord):
    (first, second), norm = definition.constrain_total([a, b], bound, 1e-7, ord)
    assert first + second == definition.constrain(a + b, bound, 1e-7, ord)
    assert norm == definition.norm(definition.summarise(a + b, ord), ord)
