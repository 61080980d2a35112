"""Which gradients a call is about: reads parameters and their names, and refuses what cannot be clipped.

All of it before anything is written, so that no list is ever left half-scaled.
"""

import math
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normball import arguments
from normball.backends import torch_mesh
from normball.backends.torch_checks import entries_overlap

Name = str | int  # an index where no name was given
_DENSE = torch.strided
_FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class Gradient(NamedTuple):
    """A gradient, and where its numbers lie."""

    name: Name
    parameter: Tensor | None  # None where only the gradient was passed
    stored: Tensor  # what .grad is to hold: itself, or a sparse one with its duplicates summed
    values: Tensor  # its numbers on this rank, real and dense, in the same memory
    mesh: Any = None  # a DTensor's
    dims: tuple[int, ...] = ()  # the mesh dimensions that a sum over the gradient must cross


def read_parameters(parameters: Any, named: Any) -> tuple[list[Name], list[Tensor]]:
    """Names and parameters, from what the caller passed as either or both."""
    pairs = _pairs(named) if named is not None else []
    if parameters is None:
        if named is None:
            raise TypeError(
                "parameters=None: must be tensors; pass model.parameters(), or named=model.named_parameters()"
            )
        return [name for name, _ in pairs], [parameter for _, parameter in pairs]
    listed = read_tensors("parameters", parameters)
    if not listed and isinstance(parameters, types.GeneratorType):
        message = "parameters is an empty generator, so nothing is clipped; was it read before? Pass a list"
        warnings.warn(message, stacklevel=4)  # to the line that called clip_grad_norm_, through torch.no_grad
    if not pairs:
        return list(range(len(listed))), listed
    names = {id(parameter): name for name, parameter in pairs}
    return [names.get(id(parameter), index) for index, parameter in enumerate(listed)], listed


def read_tensors(argument: str, tensors: Any) -> list[Tensor]:
    """A list of tensors, from one or any iterable of them."""
    if isinstance(tensors, Tensor):
        return [tensors]
    if isinstance(tensors, (str, bytes, Mapping)) or not isinstance(tensors, Iterable):
        remedy = f"list({argument}.values())" if isinstance(tensors, Mapping) else "model.parameters()"
        message = f"{argument} of type {type(tensors).__name__}: must be a tensor or an iterable of them; pass {remedy}"
        raise TypeError(message)
    listed = list(tensors)
    for index, tensor in enumerate(listed):
        if not isinstance(tensor, Tensor):
            what = f"{arguments.entry(argument, index)} of type {type(tensor).__name__}"
            hint = "; pass pairs as named=" if isinstance(tensor, tuple) else ""
            raise TypeError(f"{what}: must be a tensor{hint}")
    return listed


def read_gradients(names: Sequence[Name], parameters: Sequence[Tensor], ord: float) -> list[Gradient]:
    """The gradients of those parameters that have one; each once, also where two parameters hold it."""
    found = []
    seen: set[Any] = set()
    tracing = torch.compiler.is_compiling()
    for name, parameter in zip(names, parameters, strict=True):
        if tracing or parameter.__dict__:  # where trainers leave their marks
            _refuse_pieces(name, parameter)
        grad = parameter.grad
        if grad is None:
            if not parameter.requires_grad and type(parameter) is Tensor:
                raise _raw(name)
            continue
        usual = type(grad) is Tensor and grad.layout is _DENSE and grad.dtype in _FLOATS
        place: Any = usual and grad.data_ptr()  # 0 where there is no memory
        place = (place, grad.numel()) if place else id(grad)
        if place in seen:  # as for weights that are tied by hand: what is written twice would be scaled twice
            continue
        seen.add(place)
        found.append(
            Gradient(name, parameter, grad, grad) if usual else read_gradient(name, parameter, grad, ord, of_parameter)
        )
    return found


def read_gradient(
    name: Name, parameter: Tensor | None, grad: Tensor, ord: float, title: Callable[[Name], str]
) -> Gradient:
    """One gradient, checked; `title` says what an error is to call it."""
    stored = values = grad
    if grad.layout == torch.sparse_coo:
        stored = grad.coalesce()  # summed duplicates: what an optimizer would see
        values = stored._values()
    elif grad.layout != _DENSE or grad.is_nested:
        message = (
            f"{title(name)} of layout {str(grad.layout).removeprefix('torch.')}: must be dense, or sparse in "
            "coordinates; turn it into one with .to_dense() or .to_sparse_coo()"
        )
        raise TypeError(message)
    mesh: Any = None
    dims: tuple[int, ...] = ()
    if type(grad) is not Tensor and torch_mesh.is_dtensor(grad):
        mesh, dims = grad.device_mesh, torch_mesh.mesh_dims(grad, name=title(name))
        values = torch_mesh.local(grad)
    if values.dtype not in _FLOATS:
        values = _real(values, ord, title(name))
    return Gradient(name, parameter, stored, values, mesh, dims)


def check_writable(gradients: Sequence[Gradient]) -> None:
    """Refuse gradients whose entries share memory: scaling them in place would scale twice."""
    for name, _, _, values, *_ in gradients:
        if not torch.compiler.is_compiling() and not values.is_contiguous() and entries_overlap(values):
            message = (
                f"{of_parameter(name)}: several of its entries share memory, so it cannot be written; replace it by "
                "its .clone()"
            )
            raise ValueError(message)


def result_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype of a total norm: what the tensors' promote to, and never narrower than float32."""
    result = torch.float32
    for dtype in {tensor.dtype for tensor in tensors}:
        result = torch.promote_types(result, _COMPLEX.get(dtype, dtype))
    return result


def read_norm_type(norm_type: Any) -> float:
    """The order of the norm; text as `float` reads it, for torch.nn.utils takes 'inf'."""
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        order = math.nan
    if order not in arguments.ORDERS:
        message = f"norm_type={norm_type!r}: must be 1, 2 or inf; torch.nn.utils.clip_grad_norm_ has others"
        raise ValueError(message)
    return arguments.ORDERS[order]  # type: ignore[index]


def of_parameter(name: Name) -> str:
    """What an error calls a gradient."""
    return f"the gradient of {_title(name)}"


def of_tensor(name: Name) -> str:
    """What an error calls an entry of get_total_norm's list."""
    return f"tensors[{name}]"


def _pairs(named: Any) -> list[tuple[Name, Tensor]]:
    pairs = list(named.items() if isinstance(named, Mapping) else named)
    for index, pair in enumerate(pairs):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            what = arguments.entry("named", index)
            message = (
                f"{what} of type {type(pair).__name__}: must be a pair (name, parameter); pass model.named_parameters()"
            )
            raise TypeError(message)
    return pairs


def _refuse_pieces(name: Name, parameter: Tensor) -> None:
    """Refuse parameters of which other ranks hold the rest, and only their trainer knows which."""
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        whose, remedy = "FullyShardedDataParallel", "call its own model.clip_grad_norm_, or use fully_shard (FSDP2)"
    elif getattr(parameter, "ds_id", None) is not None:
        whose, remedy = "DeepSpeed ZeRO-3", "set gradient_clipping in its configuration"
    else:
        return
    raise TypeError(
        f"{_title(name)} is a piece that {whose} made; the norm of its gradient is not known here: {remedy}"
    )


def _real(values: Tensor, ord: float, what: str) -> Tensor:
    """Complex numbers as pairs of their parts, of which the Euclidean norm is the same."""
    if values.dtype not in _COMPLEX:
        dtype = str(values.dtype).removeprefix("torch.")
        raise TypeError(
            f"{what} of dtype {dtype}: must be one of {', '.join(arguments.REAL_FLOATS)}, or complex; cast it"
        )
    if ord != 2:
        raise ValueError(f"norm_type={ord}: {what} is complex, which has the norm of order 2 only; pass norm_type=2")
    return torch.view_as_real(values.conj() if values.is_conj() else values)


def _title(name: Name) -> str:
    return repr(name) if isinstance(name, str) else f"parameters[{name}]"


def _raw(name: Name) -> TypeError:
    return TypeError(
        f"{_title(name)} is a plain tensor without a gradient, so nothing would be clipped; pass the parameters, not "
        "their gradients, or clip a list of tensors with normball.total_norm_constraint"
    )
