"""How each layer of `torch.nn` stores its weights, and the axes that one unit's incoming weights lie along.

The only list of layers. A weight of a layer that is not here has no incoming axes until somebody names them.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn


class Layout(NamedTuple):
    """What the axes of a stored weight are."""

    text: str  # for people
    axes: tuple[int, ...]  # over which one unit's incoming weights spread
    groups: int = 1  # of a grouped transposed convolution: axis 0 is to be seen as (groups, the rest)

    def view(self, weight: Any) -> Any:
        """The weight's memory, in the shape that the axes are about; splitting an axis never copies."""
        return weight if self.groups == 1 else weight.unflatten(0, (self.groups, -1))


def incoming(module: nn.Module, name: str) -> Layout | None:
    """The layout of the parameter called `name` in a module itself, None where it is not known."""
    for kind, pattern, layout in _LAYOUTS:
        if isinstance(module, kind) and fnmatchcase(name, pattern):
            return layout(module) if callable(layout) else layout
    classes = {(kind.__module__, kind.__qualname__, name) for kind in type(module).__mro__}
    return next((layout for place, layout in _ELSEWHERE.items() if place in classes), None)


def stored_ndim(module: nn.Module, layout: Layout) -> int:
    """The dimensions of a weight as its layer made it. FSDP1 and DeepSpeed put flat pieces into its place."""
    return (
        len(layout.text.split(","))
        - ("*kernel" in layout.text)
        + len(getattr(module, "kernel_size", ()))
        - (layout.groups > 1)
    )


def _convolution(module: Any) -> Layout:
    kernel = len(module.kernel_size)
    return Layout("(out, in, *kernel)", tuple(range(1, 2 + kernel)))


def _transposed(module: Any) -> Layout:
    """Stored input first. A unit of a grouped one sees the inputs of its own group alone."""
    kernel = len(module.kernel_size)
    if module.groups == 1:
        return Layout("(in, out, *kernel)", (0, *range(2, 2 + kernel)))
    return Layout("(groups, in, out, *kernel)", (1, *range(3, 3 + kernel)), module.groups)


_DENSE = Layout("(out, in)", (1,))
_GATES = Layout("(gates*hidden, in)", (1,))  # stacked along axis 0: one row per gate of each unit
_ROWS = Layout("(row, dim)", (1,))  # each embedded vector by itself, like Embedding's own max_norm
_BILINEAR = Layout("(out, in1, in2)", (1, 2))
_LAYOUTS: list[tuple[tuple[type, ...], str, Layout | Callable[[Any], Layout]]] = [
    ((nn.Linear,), "weight", _DENSE),
    ((nn.Bilinear,), "weight", _BILINEAR),
    ((nn.Embedding, nn.EmbeddingBag), "weight", _ROWS),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "weight", _convolution),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "weight", _transposed),
    ((nn.MultiheadAttention,), "in_proj_weight", Layout("(q+k+v, in)", (1,))),
    ((nn.MultiheadAttention,), "[qkv]_proj_weight", _DENSE),
    ((nn.RNN, nn.LSTM, nn.GRU), "weight_[ih]h_l*", _GATES),
    ((nn.LSTM,), "weight_hr_l*", _DENSE),  # the projection of a proj_size
    ((nn.RNNCell, nn.LSTMCell, nn.GRUCell), "weight_[ih]h", _GATES),
]
# Layers of other libraries, which must not be imported for this: where their class is, and what it calls its weight.
_ELSEWHERE = {("transformers.pytorch_utils", "Conv1D", "weight"): Layout("(in, out)", (0,))}  # a Linear, transposed
