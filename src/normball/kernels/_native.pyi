"""What module.c offers; ord and dtype are the codes of normball.h, bounds floats or arrays of float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

addresses: dict[str, int]

# threads: 0 for as many as the setting says; jobs: x, out, dtype, axes, max_norm, epsilon of each array, one after the
# other
def constrain(ord: int, threads: int, /, *jobs: Any) -> None: ...

# jobs: x, out, dtype of each array
def constrain_total(ord: int, threads: int, max_norm: float, epsilon: float, /, *jobs: Any) -> float: ...
def norms(
    ord: int,
    threads: int,
    x: np.ndarray,
    norms: np.ndarray,
    dtype: int,
    axes: tuple[int, ...],
    max_norm: float | np.ndarray | None,
    /,
) -> None: ...
def levels() -> Sequence[str]: ...
def select(name: str, /) -> str: ...
def set_limits(parallel: int, task: int, stream: int, quick: int, stop: int, /) -> tuple[int, ...]: ...
def threads() -> int: ...
def set_threads(threads: int, /) -> None: ...
