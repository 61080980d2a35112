"""What else people use for this, each as its own documentation has it, on the memory of the same cell.

A peer that is not installed is named as left out, never silently missing.
"""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from cells import MAX_NORM, Arrays, Cell
from check import EPSILON
from timing import Rival, again

os.environ["KERAS_BACKEND"] = "torch"
LIBRARIES = {"pymc": "PyMC", "torch": "PyTorch", "keras": "Keras", "jax": "JAX"}
left_out: dict[str, str] = {}


def library(name: str) -> Any:
    """The module, or None and a word on why; imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # Keras without its backend raises what it likes
        left_out[LIBRARIES[name]] = f"{type(error).__name__}: {error}".splitlines()[0]
        return None


class Peer(NamedTuple):
    """A rival whose answer is looked at first."""

    rival: Rival
    result: Callable[[], Sequence[np.ndarray]]


def guest(name: str, call: Callable[[], object]) -> Rival:
    return Rival(name, again(call), guest=True)


def peers(cell: Cell, data: Arrays) -> Iterator[Peer]:
    """All that can do this cell's work."""
    narrow = cell.dtype in ("float16", "bfloat16")
    if not narrow:  # NumPy sums float16 in float16, and PyMC refuses it
        yield numpy_formula(cell, data)
        if library("pymc") and can_compile(cell):
            from pymc_update import update_of

            call, result = update_of(cell, data)
            yield Peer(guest("PyMC update", call), result)
    if torch := library("torch"):
        torch.set_num_threads(cell.threads)
        yield from (torch_total(torch, cell, data),) if cell.case.total else torch_each(torch, cell, data)
    if cell.dtype == "float32" and cell.threads == 1 and len(data.xs) == 1:  # Keras constrains one weight at a time
        if keras := library("keras"):
            yield keras_constraint(keras, library("torch"), data)
        if jax := library("jax"):
            yield jax_formula(jax, data)


def can_compile(cell: Cell) -> bool:
    """Whether PyMC's function of all arrays is compiled in bearable time; what is not is named as left out.

    For 161 arrays PyTensor needs ten seconds or more in C, and minutes in Numba.
    """
    if len(cell.case.shapes) == 1:
        return True
    from pymc_update import default_mode

    if cell.quick:
        left_out["PyMC for lists"] = "its functions of lists take too long to compile for --quick"
    elif cell.case.total and default_mode() == "NUMBA":
        left_out["PyMC for total norms"] = "its function of a list takes minutes to compile in PyTensor's NUMBA mode"
    else:
        return cell.dtype == "float32"
    return False


def numpy_formula(cell: Cell, data: Arrays) -> Peer:
    """min(n, c) / (n + epsilon), as it is written down everywhere."""

    def each() -> list[np.ndarray]:
        results = []
        for x, axes in zip(data.before, data.axes, strict=True):
            norms = np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))
            results.append(x * (np.clip(norms, 0, MAX_NORM) / (norms + x.dtype.type(EPSILON))))
        return results

    def total() -> list[np.ndarray]:
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in data.before))
        scale = min(norm, MAX_NORM) / (norm + EPSILON)
        return [x * x.dtype.type(scale) for x in data.before]

    call = total if cell.case.total else each
    return Peer(guest("NumPy formula", call), call)


def tensor(torch: Any, x: np.ndarray) -> Any:
    """A tensor over the same memory."""
    return torch.from_numpy(x) if x.dtype.kind == "f" else torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)


def array(torch: Any, x: Any, like: np.ndarray) -> np.ndarray:
    """The way back."""
    return x.numpy() if like.dtype.kind == "f" else x.view(torch.int16).numpy().view(like.dtype)


def torch_each(torch: Any, cell: Cell, data: Arrays) -> Iterator[Peer]:
    """The formula as people write it, and `renorm_`, which works in place."""
    xs = [tensor(torch, x) for x in data.before]

    def formula() -> list:
        results = []
        for x, axes in zip(xs, data.axes, strict=True):
            norms = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
            results.append(x * (norms.clamp(max=MAX_NORM) / (norms + EPSILON)))
        return results

    def arrays(results: list) -> list[np.ndarray]:
        return [array(torch, y, like) for y, like in zip(results, data.before, strict=True)]

    yield Peer(guest("PyTorch formula", formula), lambda: arrays(formula()))
    own = [x.clone() for x in xs]
    # renorm_ wants the one axis that tells the groups apart.
    pairs = [(x, next(i for i in range(x.ndim) if i not in axes)) for x, axes in zip(own, data.axes, strict=True)]

    def renorm() -> None:
        for x, axis in pairs:
            x.renorm_(2, axis, MAX_NORM)

    yield Peer(guest("torch.renorm_", renorm), lambda: (renorm(), arrays(own))[1])


def torch_total(torch: Any, cell: Cell, data: Arrays) -> Peer:
    """`clip_grad_norm_`, on gradients of its own."""
    parameters = []
    for x in data.before:
        parameter = torch.nn.Parameter(torch.empty(0, dtype=tensor(torch, x).dtype))
        parameter.data = tensor(torch, x)
        parameter.grad = tensor(torch, x).clone()
        parameters.append(parameter)

    def call() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)

    def result() -> list[np.ndarray]:
        call()
        return [array(torch, p.grad, like) for p, like in zip(parameters, data.before, strict=True)]

    return Peer(guest("clip_grad_norm_", call), result)


def keras_constraint(keras: Any, torch: Any, data: Arrays) -> Peer:
    """`MaxNorm`, on the torch backend."""
    [x], [axes] = [tensor(torch, x) for x in data.before], data.axes
    constraint = keras.constraints.MaxNorm(MAX_NORM, axis=list(axes))

    def call() -> Any:
        return constraint(x)

    return Peer(guest("Keras MaxNorm", call), lambda: [call().numpy()])


def jax_formula(jax: Any, data: Arrays) -> Peer:
    """The formula, compiled once, its input kept."""
    [x], [axes] = [jax.numpy.asarray(x) for x in data.before], data.axes

    @jax.jit
    def formula(x: Any) -> Any:
        norms = jax.numpy.sqrt(jax.numpy.sum(x * x, axis=axes, keepdims=True))
        return x * (jax.numpy.minimum(norms, MAX_NORM) / (norms + EPSILON))

    def call() -> Any:
        return formula(x).block_until_ready()

    return Peer(guest("jax.jit formula", call), lambda: [np.asarray(call())])
