"""PyTensor: variables of the type that was given."""

from typing import Any, assert_type

import pytensor.tensor as pt
from pytensor.tensor.sharedvar import TensorSharedVariable
from pytensor.tensor.variable import TensorVariable

from normball import compute_norms, norm_constraint, total_norm_constraint

Variable = TensorVariable[Any, Any]


def check(variable: Variable, shared: TensorSharedVariable) -> None:
    assert_type(norm_constraint(variable, 3.0), Variable)
    assert_type(norm_constraint(variable, pt.scalar("c")), Variable)
    assert_type(norm_constraint([variable, variable], 3.0), list[Variable])
    assert_type(total_norm_constraint([variable], 3.0), list[Variable])
    assert_type(total_norm_constraint([variable], 3.0, return_norm=True), tuple[list[Variable], Variable])
    assert_type(norm_constraint(shared, 3.0), Any)
    assert_type(norm_constraint([shared, variable], 3.0), list[Variable])
    assert_type(total_norm_constraint([shared], 3.0), Any)
    assert_type(compute_norms(variable), Variable)
    norm_constraint(3.0, variable)  # error
