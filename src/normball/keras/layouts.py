"""How each layer of Keras stores its weights, and the axes that one unit's incoming weights lie along.

The only list of layers. A weight of a layer that is not here has no incoming axes until somebody names them. Kernels
are stored alike whatever a layer's ``data_format`` is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """What the axes of a stored weight are."""

    text: str  # for people
    axes: tuple[int, ...]  # over which one unit's incoming weights spread


def layout_of(layer: Any, name: str, ndim: int) -> Layout | None:
    """The layout of the weight called `name` that a layer itself makes; None where it is not known."""
    for kind in type(layer).__mro__:
        if kind.__module__.partition(".")[0] == "keras" and (kind.__name__, name) in _LAYOUTS:
            return _LAYOUTS[kind.__name__, name](layer, ndim)
    return None


def _dense(layer: Any, ndim: int) -> Layout:
    return Layout("(in, out)", (0,))


def _gates(layer: Any, ndim: int) -> Layout:
    """One column for each gate of each unit."""
    return Layout("(in, gates*units)", (0,))


def _convolution(layer: Any, ndim: int) -> Layout:
    """Of a grouped one, a filter's own inputs."""
    return Layout("(*kernel, in, out)", tuple(range(ndim - 1)))


def _transposed(layer: Any, ndim: int) -> Layout:
    return Layout("(*kernel, out, in)", (*range(ndim - 2), ndim - 1))


def _depthwise(layer: Any, ndim: int) -> Layout:
    """An output sees a single channel."""
    return Layout("(*kernel, in, multiplier)", tuple(range(ndim - 2)))


def _rows(layer: Any, ndim: int) -> Layout:
    """Each embedded vector by itself."""
    return Layout("(row, dim)", (1,))


def _einsum(layer: Any, ndim: int) -> Layout:
    """What the equation sums over; letters of the output tell units apart."""
    terms, _, output = layer.equation.replace(" ", "").partition("->")
    kernel = terms.partition(",")[2]
    return Layout(f"({', '.join(kernel)})", tuple(axis for axis, letter in enumerate(kernel) if letter not in output))


_LAYOUTS: dict[tuple[str, str], Callable[[Any, int], Layout]] = {
    ("Dense", "kernel"): _dense,
    ("EinsumDense", "kernel"): _einsum,  # also the projections of the attention layers
    ("Embedding", "embeddings"): _rows,
    ("BaseConv", "kernel"): _convolution,
    ("BaseConvTranspose", "kernel"): _transposed,
    ("BaseDepthwiseConv", "kernel"): _depthwise,
    ("BaseSeparableConv", "depthwise_kernel"): _depthwise,
    ("BaseSeparableConv", "pointwise_kernel"): _convolution,
    **{(cell, name): _gates for cell in ("LSTMCell", "GRUCell") for name in ("kernel", "recurrent_kernel")},
    ("SimpleRNNCell", "kernel"): _dense,
    ("SimpleRNNCell", "recurrent_kernel"): _dense,
    ("ConvLSTMCell", "kernel"): _convolution,
    ("ConvLSTMCell", "recurrent_kernel"): _convolution,
}
