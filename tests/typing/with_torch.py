"""PyTorch: tensors, of parameters too."""

from collections.abc import Iterator
from typing import assert_type

import torch
from torch import Tensor

from normball import compute_norms, norm_constraint, total_norm_constraint


def check(tensor: Tensor, parameter: torch.nn.Parameter, parameters: Iterator[torch.nn.Parameter]) -> None:
    assert_type(norm_constraint(tensor, 3.0, 1), Tensor)
    assert_type(norm_constraint(parameter, tensor, out=parameter), Tensor)
    assert_type(norm_constraint([tensor, parameter], 3.0), list[Tensor])
    assert_type(norm_constraint(parameters, 3.0, norm_axes=1), list[Tensor])
    assert_type(total_norm_constraint(parameters, 3.0), list[Tensor])
    assert_type(total_norm_constraint([tensor], 3.0, return_norm=True), tuple[list[Tensor], Tensor])
    assert_type(compute_norms(parameter, 1), Tensor)
    norm_constraint(tensor, 3.0).no_such_method()  # error
