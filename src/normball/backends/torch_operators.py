"""The operators `torch.ops.normball`: one step each for torch.compile and FakeTensor, without derivatives.

On CPUs the kernels work on the tensors' own memory; elsewhere `torch_portable` does. Bounds are float64 tensors that
broadcast against the norms; negative or NaN ones make NaN.
"""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from normball import kernels
from normball.backends import torch_portable as portable

try:
    from ml_dtypes import bfloat16

    _BFLOAT16: np.dtype | None = np.dtype(bfloat16)
except ImportError:  # NumPy has no bfloat16 of its own
    _BFLOAT16 = None


def in_memory(x: Tensor) -> bool:
    """Whether the kernels can read this tensor where it is."""
    if type(x) is not Tensor and type(x) is not Parameter:  # FakeTensor, and classes of users' own
        return False
    whole = x.is_cpu and not x.is_neg() and not x.is_conj()
    return whole and (x.dtype != torch.bfloat16 or _BFLOAT16 is not None)


_ORDER = "<" if sys.byteorder == "little" else ">"


class _Memory:
    """A tensor to NumPy. `Tensor.numpy()` would bar the tensor's storage from ever being resized, as FSDP1 does."""

    def __init__(self, x: Tensor) -> None:
        size = x.element_size()
        self.tensor = x  # which the array keeps alive
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(x.shape),
            "typestr": f"{_ORDER}V2" if x.dtype == torch.bfloat16 else f"{_ORDER}f{size}",
            "data": (x.data_ptr(), False),
            "strides": tuple([step * size for step in x.stride()]),
        }


def memory(x: Tensor) -> np.ndarray:
    """A tensor's own memory as an array."""
    array = np.asarray(_Memory(x))
    return array.view(_BFLOAT16) if x.dtype == torch.bfloat16 else array  # type: ignore[arg-type]


def recorded() -> bool:
    """Whether PyTorch's operators are recorded, by make_fx or torch.jit.trace say, which would not see the kernels."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def readable(x: Tensor) -> bool:
    """Whether a decision may be taken by looking at it: in memory, and now, not when a graph of this is run."""
    return not torch.compiler.is_compiling() and not recorded() and in_memory(x)


def constrain_total_in_memory_(xs: Sequence[Tensor], max_norm: Tensor, ord: float) -> Tensor:
    """What the operator of this name does for tensors in memory, without its dispatch: small ones feel it."""
    if torch.compiler.is_compiling() or recorded():
        return torch.ops.normball.constrain_total_(xs, max_norm, torch.zeros_like(max_norm), ord)
    arrays = _arrays(xs)
    norm = kernels.constrain_total(arrays, arrays, memory(max_norm.cpu()), 0.0, ord, threads())
    count_write(xs)
    return torch.from_numpy(norm)


def norms_in_memory(xs: Sequence[Tensor], ord: float) -> Tensor:
    """The norm of each tensor, as one vector."""
    if recorded():
        each = [torch.ops.normball.norms(x, tuple(range(x.ndim)), ord, None).reshape(()) for x in xs]
        return torch.stack(each)
    most = threads()
    norms = [kernels.norms(array, tuple(range(array.ndim)), ord, None, most).item() for array in _arrays(xs)]
    return torch.tensor(norms, dtype=torch.float64, device="cpu")


def threads() -> int:
    """How many threads a call may use: what PyTorch is allowed, and we are."""
    return min(torch.get_num_threads(), kernels.get_num_threads())


def _arrays(xs: Sequence[Tensor]) -> list[np.ndarray]:
    """The memory of gradients: nobody resizes it, so `Tensor.numpy()` will do, in 1 us where `memory` takes 6."""
    return [memory(x) if x.dtype == torch.bfloat16 or x.requires_grad else x.numpy() for x in xs]


def count_write(xs: Sequence[Tensor]) -> None:
    """Tell autograd that tensors were written to, so that it refuses a backward pass that would read what was there."""
    torch.autograd.graph.increment_version([x for x in xs if not x.is_inference()])


def _constrain(x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: Sequence[int], ord: float) -> Tensor:
    if not in_memory(x):
        return _constrain_anywhere(x, max_norm, epsilon, axes, ord)
    y = torch.empty_like(x)
    kernels.constrain(memory(x), memory(y), tuple(axes), memory(max_norm), memory(epsilon), ord, threads())
    return y


def _constrain_anywhere(x: Tensor, max_norm: Tensor, epsilon: Tensor, axes: Sequence[int], ord: float) -> Tensor:
    y = portable.rescaled(x, portable.norms(x, axes, ord), max_norm, epsilon)
    return torch.empty_like(x).copy_(y)  # with x's strides, as everywhere


def _norms(x: Tensor, axes: Sequence[int], ord: float, max_norm: Tensor | None) -> Tensor:
    if not in_memory(x):
        return _norms_anywhere(x, axes, ord, max_norm)
    bound = None if max_norm is None else memory(max_norm)
    return torch.from_numpy(kernels.norms(memory(x), tuple(axes), ord, bound, threads()))


def _norms_anywhere(x: Tensor, axes: Sequence[int], ord: float, max_norm: Tensor | None) -> Tensor:
    return portable.norms(x, axes, ord).value()


def _constrain_total(
    xs: Sequence[Tensor], max_norm: Tensor, epsilon: Tensor, ord: float
) -> tuple[list[Tensor], Tensor]:
    if not all(map(in_memory, xs)):
        return _constrain_total_anywhere(xs, max_norm, epsilon, ord)
    ys = [torch.empty_like(x) for x in xs]
    return ys, _total_in_memory(xs, ys, max_norm, epsilon, ord)


def _constrain_total_anywhere(
    xs: Sequence[Tensor], max_norm: Tensor, epsilon: Tensor, ord: float
) -> tuple[list[Tensor], Tensor]:
    total = _total(xs, ord)
    ys = _rescaled(xs, total, max_norm, epsilon)
    return [torch.empty_like(x).copy_(y) for x, y in zip(xs, ys, strict=True)], total.value()


def _constrain_total_(xs: Sequence[Tensor], max_norm: Tensor, epsilon: Tensor, ord: float) -> Tensor:
    if all(map(in_memory, xs)):
        total = _total_in_memory(xs, xs, max_norm, epsilon, ord)
        count_write(xs)
        return total
    return _constrain_total_anywhere_(xs, max_norm, epsilon, ord)


def _constrain_total_anywhere_(xs: Sequence[Tensor], max_norm: Tensor, epsilon: Tensor, ord: float) -> Tensor:
    total = _total(xs, ord)
    for x, y in zip(xs, _rescaled(xs, total, max_norm, epsilon), strict=True):
        x.copy_(y)
    return total.value()


def _total_in_memory(
    xs: Sequence[Tensor], ys: Sequence[Tensor], max_norm: Tensor, epsilon: Tensor, ord: float
) -> Tensor:
    arrays = [memory(x) for x in xs]
    targets = arrays if ys is xs else [memory(y) for y in ys]
    bound, small = memory(max_norm.cpu()), memory(epsilon.cpu())
    return torch.from_numpy(kernels.constrain_total(arrays, targets, bound, small, ord, threads()))


def _total(xs: Sequence[Tensor], ord: float) -> portable.Norms:
    parts = [portable.norms(x, tuple(range(x.ndim)), ord) for x in xs]
    return portable.merged([portable.Norms(*(word.reshape(()) for word in part)) for part in parts], ord)


def _rescaled(xs: Sequence[Tensor], total: portable.Norms, max_norm: Tensor, epsilon: Tensor) -> list[Tensor]:
    moved = {device: portable.Norms(*(word.to(device) for word in total)) for device in {x.device for x in xs}}
    return [portable.rescaled(x, moved[x.device], max_norm.to(x.device), epsilon.to(x.device)) for x in xs]


def _fake_norms(x: Tensor, axes: Sequence[int], ord: float, max_norm: Tensor | None) -> Tensor:
    return x.new_empty([1 if axis in axes else n for axis, n in enumerate(x.shape)], dtype=torch.float64)


_LIBRARY = torch.library.Library("normball", "DEF")


def _define(schema: str, on_cpu: Callable, anywhere: Callable, fake: Callable) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
    torch.library.register_fake(f"normball::{name}", fake, lib=_LIBRARY)


_BOUNDS = "Tensor max_norm, Tensor epsilon"
_define(
    f"constrain(Tensor x, {_BOUNDS}, int[] axes, float ord) -> Tensor",
    _constrain,
    _constrain_anywhere,
    lambda x, *rest: torch.empty_like(x),
)
_define("norms(Tensor x, int[] axes, float ord, Tensor? max_norm) -> Tensor", _norms, _norms_anywhere, _fake_norms)
_define(
    f"constrain_total(Tensor[] xs, {_BOUNDS}, float ord) -> (Tensor[], Tensor)",
    _constrain_total,
    _constrain_total_anywhere,
    lambda xs, *rest: ([torch.empty_like(x) for x in xs], xs[0].new_empty((), dtype=torch.float64)),
)
_define(
    f"constrain_total_(Tensor(a!)[] xs, {_BOUNDS}, float ord) -> Tensor",
    _constrain_total_,
    _constrain_total_anywhere_,
    lambda xs, *rest: xs[0].new_empty((), dtype=torch.float64),
)
