"""JAX: its arrays."""

from typing import assert_type

from jax import Array

from normball import compute_norms, norm_constraint, total_norm_constraint


def check(array: Array) -> None:
    assert_type(norm_constraint(array, 3.0), Array)
    assert_type(norm_constraint(array, array, 0), Array)
    assert_type(norm_constraint([array, array], 3.0), list[Array])
    assert_type(total_norm_constraint([array], 3.0), list[Array])
    assert_type(total_norm_constraint([array], 3.0, return_norm=True), tuple[list[Array], Array])
    assert_type(compute_norms(array), Array)
    norm_constraint(array, 3.0).no_such_method()  # error
