"""What gradient clipping did, without waiting for a device before somebody asks."""

import math

import torch
from torch import Tensor

from normball.torch.gradients import Name

_SHOWN = 5  # gradients in print(report)


class ClipReport:
    """What `clip_grad_norm_` did: norms before and after, those of all gradients, and which are not finite.

    Pass one as ``report=`` to every call. It keeps tensors; reading an attribute is what waits for a GPU, so a call
    that nobody asks about waits for nothing.

    Attributes
    ----------
    calls : int
        How many calls it was passed to.
    max_norm : float
        The bound of the last call; as all below.
    norm_before : float
        The total norm before. A finite one beyond the range of float64 counts as the largest number.
    norm_after : float
        What the total norm after is at most: `norm_before` where nothing was clipped, else `max_norm`. 0 where
        gradients that are not finite were zeroed or skipped, NaN where they were not.
    clipped : bool
        Whether the gradients were changed.
    clip_fraction : float
        The fraction of all calls in which they were.
    norms : dict
        The norm before of each gradient, by name or index, in the order of the parameters; of a sharded gradient,
        that of all its shards.
    nonfinite : list of str or int
        The gradients that hold an inf or NaN. Empty if they all lie on other ranks of ``groups``, whose gradients a
        report does not have.

    Notes
    -----
    The norms of the gradients cost a second read of them, and on sharded gradients a longer collective, not one more.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import ClipReport, clip_grad_norm_
    >>> model = torch.nn.Linear(2, 1)
    >>> model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    >>> report = ClipReport()
    >>> _ = clip_grad_norm_(None, 1.0, named=model.named_parameters(), report=report)
    >>> print(report)
    total norm 5, clipped to 1; clipped in 1 of 1 calls
      4  bias
      3  weight
    """

    def __init__(self) -> None:
        self.calls = 0
        self._before: Tensor | None = None
        self._max_norm: Tensor | float = math.inf
        self._changed: Tensor | None = None
        self._changes: Tensor | int = 0
        self._names: list[Name] = []
        self._order: list[Name] = []
        self._each: Tensor | None = None
        self._removes = False

    def record(
        self, before: Tensor, max_norm: Tensor, order: list[Name], names: list[Name], each: Tensor | None, removes: bool
    ) -> None:
        """Keep what a call has measured; `clip_grad_norm_` does."""
        self.calls += 1
        self._before, self._max_norm, self._removes = before.detach(), max_norm, removes
        self._order, self._names, self._each = order, names, each
        self._changed = ~(self._before <= max_norm)
        self._changes = self._changed.to(torch.int64) + self._changes

    @property
    def max_norm(self) -> float:
        return float(self._max_norm)

    @property
    def norm_before(self) -> float:
        return self._read(self._before)

    @property
    def norm_after(self) -> float:
        before = self.norm_before
        if before <= self.max_norm:
            return before
        if math.isfinite(before):
            return self.max_norm
        return 0.0 if self._removes else math.nan

    @property
    def clipped(self) -> bool:
        return bool(self._read(self._changed))

    @property
    def clip_fraction(self) -> float:
        return int(self._changes) / self.calls if self.calls else 0.0

    @property
    def norms(self) -> dict[Name, float]:
        self._read(self._before)
        values = [] if self._each is None else self._each.tolist()
        found = dict(zip(self._names, values, strict=True))
        return {name: found[name] for name in self._order}

    @property
    def nonfinite(self) -> list[Name]:
        return [name for name, norm in self.norms.items() if not math.isfinite(norm)]

    def __str__(self) -> str:
        if not self.calls:
            return "no call yet"
        norms = self.norms
        done = f"within {self.max_norm:.4g}"
        if self.clipped:
            spoilt_now = {True: "made NaN", False: "taken out"}
            done = (
                f"clipped to {self.norm_after:.4g}"
                if math.isfinite(self.norm_before)
                else spoilt_now[not self._removes]
            )
        lines = [f"total norm {self.norm_before:.4g}, {done}; clipped in {int(self._changes)} of {self.calls} calls"]
        spoilt = self.nonfinite
        lines += [f"  not finite: {', '.join(map(str, spoilt))}"] if spoilt else []
        largest = sorted((name for name in norms if name not in spoilt), key=norms.__getitem__, reverse=True)
        lines += [f"  {norms[name]:.4g}  {name}" for name in largest[:_SHOWN]]
        lines += [f"  and {len(largest) - _SHOWN} smaller"] if len(largest) > _SHOWN else []
        return "\n".join(lines)

    @staticmethod
    def _read(value: Tensor | None) -> float:
        if value is None:
            raise ValueError("report: no call yet; pass it as report= to normball.torch.clip_grad_norm_ first")
        return value.item()
