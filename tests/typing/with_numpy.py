"""NumPy: arrays of the same dtype and shape; norms are float64."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from normball import compute_norms, norm_constraint, total_norm_constraint

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Arrays = list[NDArray[Any]]


def check(single: Array32, double: Array64, whichever: bool, unknown: Any) -> None:
    assert_type(norm_constraint(single, 3.0), Array32)
    assert_type(norm_constraint(double, double, norm_axes=(0, -1), epsilon=0, ord=1, out=double), Array64)
    assert_type(norm_constraint([single, double], [1.0, 2.0]), Arrays)
    assert_type(norm_constraint((array for array in (single, single)), 1.0), Arrays)
    assert_type(total_norm_constraint([single, double], 1.0), Arrays)
    assert_type(total_norm_constraint({"w": single}.values(), 1.0, return_norm=True), tuple[Arrays, Array64])
    assert_type(total_norm_constraint((single, double), 1.0, 0, True), tuple[Arrays, Array64])
    assert_type(total_norm_constraint([single], 1.0, 0, whichever), Any)
    assert_type(compute_norms(single), Array64)
    assert_type(norm_constraint(unknown, 3.0), Any)
    norm_constraint("weights", 3.0)  # error
    norm_constraint([[1.0, 2.0]], 3.0)  # error
    norm_constraint(single, 3.0, norm_axes="0")  # error
    total_norm_constraint(single.tolist, 3.0)  # error
    compute_norms(1.0)  # error
