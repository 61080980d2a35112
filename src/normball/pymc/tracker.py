"""A callback that records norms while an approximation is fitted."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pymc.variational.callbacks import Callback

import normball
from normball import arguments
from normball.pymc.blocks import blocks


class NormTracker(Callback):
    """Records the norms of parameters during ``pm.fit``, for a plot.

    Parameters
    ----------
    norm_axes : int, sequence of int or mapping, optional
        The axes to take the norm over, for every parameter of the approximation; by default those of
        `normball.norm_constraint`, and a parameter of one dimension is one group. Or a mapping of the model's
        variables, or of parameters, by name, to their axes: these are recorded, and no others.
    every : int, optional
        How many steps lie between two records.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Attributes
    ----------
    steps : list of int
        The steps at which norms were recorded.

    Raises
    ------
    TypeError, ValueError
        For axes as in `normball.compute_norms`, and names that are unknown, when the fit begins; for an `every` that
        is no int >= 1.

    Notes
    -----
    ``tracker["w"]`` is an array of records, float64, one for each step in ``steps``: of one norm, or of one for each
    group. A model's variable is recorded as its mean, for SVGD in every particle.

    References
    ----------
    In the manner of `pymc.callbacks.Tracker`.

    Examples
    --------
    >>> import pymc as pm
    >>> from normball.pymc import NormTracker
    >>> with pm.Model():
    ...     weights = pm.Normal("weights", shape=(3, 2))
    ...     tracker = NormTracker({"weights": 0}, every=10)
    ...     _ = pm.fit(30, callbacks=[tracker], progressbar=False, random_seed=0)
    >>> tracker.steps, tracker["weights"].shape
    ([10, 20, 30], (3, 2))
    """

    def __init__(self, norm_axes: Any = None, every: int = 1, *, ord: float = 2) -> None:
        self._axes, self._every, self._ord = norm_axes, arguments.read_threads("every", every), arguments.read_ord(ord)
        self.clear()

    def __call__(self, approx: Any, losses: Any, step: int) -> None:
        """Record the norms, if it is time."""
        if step % self._every:
            return
        self.steps.append(step)
        for name, values, axes in self._chosen(approx):
            norms = normball.compute_norms(values, axes, ord=self._ord)
            self._records[name].append(norms)

    def __getitem__(self, name: str) -> np.ndarray:
        """The records of a parameter or variable."""
        return np.stack(self._records[name])

    def clear(self) -> None:
        """Forget all records."""
        self.steps: list[int] = []
        self._records: dict[str, list[np.ndarray]] = defaultdict(list)

    def _chosen(self, approx: Any) -> Iterator[tuple[str, np.ndarray, Any]]:
        """Name, value and norm axes of what is recorded."""
        params = {parameter.name: parameter for parameter in approx.params}
        if not isinstance(self._axes, Mapping):
            for name, parameter in params.items():
                axes = 0 if self._axes is None and parameter.ndim == 1 else self._axes
                yield name, parameter.get_value(), axes
            return
        known = blocks(approx)
        for name, axes in self._axes.items():
            if name in known:
                block = known[name]
                own = arguments.read_axes(len(block.shape), axes)
                yield name, block.of(block.parameter.get_value()), block.axes(own)
            elif name in params:
                yield name, params[name].get_value(), axes
            else:
                there = ", ".join([*known, *params])
                raise ValueError(f"norm_axes[{name!r}]: no variable or parameter of this name; there are {there}")
