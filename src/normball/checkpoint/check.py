"""`normball check`: the norms of a model's tensors, and which are over their limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from normball.checkpoint import stream
from normball.checkpoint.layouts import ASSUMED
from normball.checkpoint.report import Report
from normball.checkpoint.rules import Choice, Rule, choose
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.tensors import FLOATS, FP8, Model, Tensor
from normball.checkpoint.workers import Workers

_ASSUMED = "torch's, (out, in, *kernel), assumed; --layout says otherwise"


def chosen(
    model: Model, rules: Sequence[Rule], layout: str | None, max_norm: float | None
) -> tuple[dict[str, Choice], str]:
    """What to do with each tensor, and what was assumed for it. To read norms an assumption will do."""
    choices = choose(model.tensors, rules, layout or ASSUMED, max_norm)
    return choices, _ASSUMED if any(choice.assumed for choice in choices.values()) else ""


def check(model: Model, choices: Mapping[str, Choice], assumed: str, workers: Workers) -> Report:
    """Measure what was chosen."""
    report, tensors = Report(assumed=assumed), {tensor.name: tensor for tensor in model.tensors}
    for tensor in model.tensors:
        choice = choices[tensor.name]
        if choice.axes is None:
            report.add(tensor, choice, None)
            continue
        statistics, scale, note = Statistics(), 1.0, ""
        if tensor.dtype in FP8:
            scale, note = _scale(tensor, tensors, workers)
        stream.measure(tensor, choice.axes, choice.limit, statistics, workers, scale)
        choice = replace(choice, why=choice.why + note)
        report.add(tensor, choice, statistics.finish())
    return report


def nbytes(model: Model, choices: Mapping[str, Choice]) -> int:
    """How much a check reads."""
    return sum(tensor.nbytes for tensor in model.tensors if choices[tensor.name].axes is not None)


def _scale(tensor: Tensor, tensors: Mapping[str, Tensor], workers: Workers) -> tuple[float, str]:
    """What the stored numbers of a quantised tensor are to be multiplied by, where one number says it."""
    names = [f"{tensor.name}_scale", f"{tensor.name.removesuffix('weight')}scale_weight"]
    for beside in (tensors[name] for name in names if name in tensors):
        if beside.size == 1 and beside.dtype in FLOATS:
            entry = Statistics()  # whose norm is its absolute value
            stream.measure(beside, tuple(range(len(beside.shape))), None, entry, workers)
            if math.isfinite(entry.finish().maximum):
                return entry.maximum, f", times {beside.name}"
    return 1.0, ", as stored, without a scale"
