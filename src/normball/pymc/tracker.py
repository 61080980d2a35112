"""A callback that records norms while an approximation is fitted."""

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pymc.variational.callbacks import Callback

import normball
from normball import arguments
from normball.pymc.blocks import Block, Whole, blocks


class NormTracker(Callback):
    """Records the norms of parameters during ``pm.fit``, for a plot.

    Parameters
    ----------
    norm_axes : int, sequence of int or mapping, optional
        The axes to take the norm over, for every parameter of the approximation; by default those of
        `normball.norm_constraint`, and a parameter of one dimension is one group. Or a mapping of the model's
        variables, or of parameters, by name, to their axes: these are recorded, and no others. A name that both have
        is the variable's.
    every : int, optional
        How many steps lie between two records.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Attributes
    ----------
    steps : list of int
        The steps at which norms were recorded.
    hist : dict of str to list of numpy.ndarray
        The records, one for each step, by name.

    Raises
    ------
    TypeError, ValueError
        For an `every` that is no int >= 1; when the fit begins, for axes as in `normball.compute_norms`, and names that
        are unknown.
    KeyError
        For ``tracker[name]`` of what was not recorded.

    Notes
    -----
    ``tracker["w"]`` is one array of all records, of float64, the steps along its first axis: norms are one number, or
    one for each group. A model's variable is recorded as its mean, for SVGD in every particle.

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
        self._axes, self._every, self._ord = norm_axes, _read_every(every), arguments.read_ord(ord)
        self.clear()

    def __call__(self, approx: Any, losses: Any, step: int) -> None:
        """Record the norms, if it is time."""
        if step % self._every:
            return
        self.steps.append(step)
        for name, place, axes in self._chosen(approx):
            part = place.of(place.parameter.get_value(borrow=True))
            self.hist[name].append(normball.compute_norms(part, place.axes(axes), ord=self._ord))

    def __getitem__(self, name: str) -> np.ndarray:
        """The records of a parameter or variable."""
        if name not in self.hist:
            raise KeyError(f"{name!r} was not recorded; there are {', '.join(self.hist) or 'no records'}")
        return np.stack(self.hist[name])

    def clear(self) -> None:
        """Forget all records."""
        self.steps: list[int] = []
        self.hist: dict[str, list[np.ndarray]] = defaultdict(list)

    def _chosen(self, approx: Any) -> Iterator[tuple[str, Whole | Block, Any]]:
        """Name, place and norm axes of what is recorded."""
        parameters = {parameter.name: Whole(parameter) for parameter in approx.params}
        if not isinstance(self._axes, Mapping):
            for name, place in parameters.items():
                yield name, place, 0 if self._axes is None and place.parameter.ndim == 1 else self._axes
            return
        known = parameters | blocks(approx)
        for name, axes in self._axes.items():
            if name not in known:
                there = ", ".join(known)
                raise ValueError(f"norm_axes[{name!r}]: no variable or parameter of this name; there are {there}")
            yield name, known[name], axes


def _read_every(every: Any) -> int:
    message = f"every={every!r}: must be an int >= 1; 1 records every step"
    if isinstance(every, bool) or not hasattr(every, "__index__"):
        raise TypeError(message)
    if operator.index(every) < 1:
        raise ValueError(message)
    return operator.index(every)
