"""PyTorch tensors: on CPUs by the kernels, on other devices by `torch_portable`, everywhere with derivatives.

`torch_checks` reads what came in. Where nothing will be differentiated and the tensor lies in memory, the kernels do
the rest. Everything else goes through `torch_operators`, of which torch.compile sees each as one step, and
`torch_gradients`, which stands around them with the derivatives of the definition.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normball import arguments, kernels
from normball.backends import torch_checks as checks
from normball.backends import torch_gradients as gradients
from normball.backends import torch_mesh
from normball.backends.torch_operators import count_write, memory, threads
from normball.kernels.overlap import check_apart

_CLAIMS = frozenset(
    ["float64", "float32", "float16", "bfloat16", "bounded", "tight", "subnormals", "per-group bounds"]
) | {"symbolic bounds", "gradient", "in place"}
SUPPORTS = {
    "PyTorch CPU": _CLAIMS | {"exact decision"},
    "PyTorch GPU": _CLAIMS,
}


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> Tensor:
    """Each group's norm as float64, the reduced axes kept as 1."""
    if torch_mesh.is_dtensor(x):
        from normball.backends import torch_sharded  # loads torch.distributed

        return torch_sharded.norms_of(x, axes, ord)
    checks.check(x, ord)
    tensor, own_axes = checks.as_real(x, axes)
    norms = gradients.norms(tensor, own_axes, ord)
    return norms if tensor.ndim == x.ndim else norms.squeeze(-1)


def merge(summaries: Sequence[Tensor], ord: float) -> Tensor:
    """The norms of groups from those of their parts: the norm of the norms."""
    return summarise(torch.stack(torch.broadcast_tensors(*summaries)), (0,), ord)[0]


def norm(summary: Tensor, ord: float) -> Tensor:
    """The norms: on CPUs at most one ulp off, exact where a float64 holds the norm."""
    return summary


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> Tensor:
    """Every group inside its ball; into `out`, or a new tensor with its derivative."""
    return constrain_each([x], [max_norm], [axes], epsilon, ord, [out])[0]


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list[Tensor]:
    """Every tensor as `constrain` would; in one call of the kernel, where no derivatives are wanted."""
    if any(map(torch_mesh.is_dtensor, xs)):
        from normball.backends import torch_sharded  # loads torch.distributed

        return torch_sharded.constrain_each(xs, max_norms, axes, epsilon, ord, outs)
    results, jobs = [], []
    for index, (x, max_norm, own_axes, out) in enumerate(zip(xs, max_norms, axes, outs, strict=True)):
        place = index if len(xs) > 1 else None
        checks.check(x, ord, place)
        bound, small = checks.bounds(x, max_norm, epsilon, checks.groups(x, own_axes))
        if out is not None:
            checks.check_out(out, x, place)
        elif checks.derived(x, bound, small) or not checks.concrete(x):
            results.append(_derived(x, bound, small, own_axes, ord))
            continue
        results.append(torch.empty_like(x) if out is None else out)
        jobs.append((x, bound, own_axes, small, results[-1]))
    _write(jobs, ord)
    return results


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[Tensor], Tensor]:
    """All tensors as one group inside its ball, and its norm before."""
    for index, x in enumerate(xs):
        if torch_mesh.is_dtensor(x):
            what = arguments.entry("tensor_vars", index)
            raise TypeError(f"{what} is a DTensor: use normball.torch.clip_grad_norm_, which writes over gradients")
        checks.check(x, ord, index)
    bound, small = checks.bounds(xs[0], max_norm, epsilon, ())
    *constrained, total = gradients.constrain_total(bound, small, ord, *(checks.as_real(x)[0] for x in xs))
    return [checks.like(y, x) for y, x in zip(constrained, xs, strict=True)], total


def _derived(x: Tensor, bound: Any, small: Any, axes: tuple[int, ...], ord: float) -> Tensor:
    real, real_axes = checks.as_real(x, axes)
    return checks.like(gradients.constrain(real, bound, small, real_axes, ord), x)


def _write(jobs: Sequence[tuple], ord: float) -> None:
    """Every tensor of (x, max_norm, axes, epsilon, out), constrained, into its out."""
    xs, outs, axes, max_norms, epsilons = [], [], [], [], []
    for x, max_norm, own_axes, epsilon, out in jobs:
        if not checks.concrete(x) or (out is not x and not checks.concrete(out)):
            continue
        real, real_axes = checks.as_real(x, own_axes)
        xs.append(memory(real))
        outs.append(xs[-1] if out is x else memory(checks.as_real(out)[0]))
        axes.append(real_axes)
        max_norms.append(max_norm if type(max_norm) is float else memory(max_norm))
        epsilons.append(epsilon if type(epsilon) is float else memory(epsilon))
    if xs:
        if len(xs) > 1:
            check_apart(xs, outs)
        kernels.constrain_each(xs, outs, axes, max_norms, epsilons, ord, threads())
        count_write([job[-1] for job in jobs])
    if len(xs) < len(jobs):
        with torch.no_grad():
            for x, max_norm, own_axes, epsilon, out in jobs:
                if not checks.concrete(x) or not checks.concrete(out):
                    out.copy_(_derived(x, max_norm, epsilon, own_axes, ord))
