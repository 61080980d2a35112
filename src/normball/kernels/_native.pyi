"""What module.c offers; dtype and ord are the codes of normball.h, reduced a bit mask of the norm axes."""

from collections.abc import Sequence

import numpy as np

addresses: dict[str, int]

def constrain(
    x: np.ndarray, out: np.ndarray, dtype: int, ord: int, reduced: int, max_norm: np.ndarray, epsilon: np.ndarray, /
) -> None: ...
def constrain_total(
    triples: tuple[tuple[np.ndarray, np.ndarray, int], ...], ord: int, max_norm: float, epsilon: float, /
) -> float: ...
def norms(
    x: np.ndarray, norms: np.ndarray, dtype: int, ord: int, reduced: int, max_norm: np.ndarray | None, /
) -> None: ...
def levels() -> Sequence[str]: ...
def select(name: str, /) -> str: ...
