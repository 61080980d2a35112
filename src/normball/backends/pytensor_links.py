"""How the NUMBA, JAX and PYTORCH linkers run our PyTensor Ops.

PyTensor has no hook for Ops of other packages, and importing its dispatch modules loads the library behind them (and
sets JAX's x64 flag). So nothing is registered before PyTensor itself loads a dispatch module.
"""

import importlib.abc
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from normball import kernels


def register_when_loaded() -> None:
    """Register with the dispatch modules that are loaded, and with the others as soon as they are."""
    # The hook comes first: a module that another thread loads meanwhile is registered with twice, not never.
    sys.meta_path.insert(0, _AfterImport())
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register()


class _AfterImport(importlib.abc.MetaPathFinder):
    """Registers right after a dispatch module was imported by whoever needed it."""

    def __init__(self) -> None:
        self.searching = threading.local()  # other packages' hooks may ask all finders in turn, us among them

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in _REGISTER or getattr(self.searching, "now", False):
            return None
        self.searching.now = True
        try:
            finders = [finder for finder in sys.meta_path if finder is not self]
            spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        finally:
            self.searching.now = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_and_register(module: ModuleType) -> None:
            execute(module)
            _REGISTER[name]()

        spec.loader.exec_module = exec_and_register  # type: ignore[method-assign]
        return spec


def _register_numba() -> None:
    import numba
    from pytensor.link.numba.dispatch.basic import (
        get_numba_type,
        numba_funcify,
        numba_njit,
        register_funcify_and_cache_key,
        register_funcify_default_op_cache_key,
    )

    from normball.backends import pytensor as ours

    @numba_njit(fastmath=False)
    def quotient(x, y):  # type: ignore[no-untyped-def]
        return np.true_divide(x, y)  # where x / y would raise at zero

    @register_funcify_and_cache_key(ours._Quotient)
    def exact_quotient(op: Any, **kwargs: Any) -> tuple:
        return quotient, "normball quotient 2"  # a key of PyTensor's cache on disk: another number for other code

    @numba_funcify.register(ours.Norms)
    @numba_funcify.register(ours.NormConstraint)
    @numba_funcify.register(ours.TotalNormConstraint)
    def through_python(op: Any, node: Any, **kwargs: Any) -> Callable:
        """The Op's own `perform`: compiled element-wise code is fast-math, which the bound does not survive."""
        single = len(node.outputs) == 1
        types = [get_numba_type(output.type) for output in node.outputs]
        result = types[0] if single else numba.types.Tuple(types)

        def run(inputs: tuple) -> Any:
            storage: list[list] = [[None] for _ in node.outputs]
            op.perform(node, inputs, storage)
            return storage[0][0] if single else tuple(cell[0] for cell in storage)

        @numba_njit
        def perform(*inputs):  # type: ignore[no-untyped-def]
            with numba.objmode(outputs=result):
                outputs = run(inputs)
            return outputs  # noqa: RET504 - numba wants the name

        return perform

    if kernels.best is not kernels.fallback:
        from normball.backends import pytensor_fusion, pytensor_numba

        @register_funcify_and_cache_key(pytensor_fusion.ProducedNormConstraint)
        def produced(op: Any, node: Any, **kwargs: Any) -> tuple:
            return pytensor_numba.produced_norm_constraint(op, node, **kwargs)

        @register_funcify_default_op_cache_key(ours.NormConstraint)
        def through_c(op: Any, node: Any, **kwargs: Any) -> tuple:
            if node.inputs[0].dtype not in ("float32", "float64"):  # numba has no float16
                return through_python(op, node), pytensor_numba.SALT
            return pytensor_numba.norm_constraint(op, node), pytensor_numba.SALT


def _register_jax() -> None:
    from pytensor.link.jax.dispatch.basic import jax_funcify

    from normball.backends import jax as backend
    from normball.backends import pytensor as ours

    @jax_funcify.register(ours.Norms)
    def norms(op: Any, **kwargs: Any) -> Callable:
        return lambda x, *bound: backend.norm(backend.summarise(x, op.axes, op.ord), op.ord)

    @jax_funcify.register(ours.NormConstraint)
    def norm_constraint(op: Any, **kwargs: Any) -> Callable:
        return lambda x, max_norm, epsilon: backend.constrain(x, max_norm, op.axes, epsilon, op.ord, None)

    @jax_funcify.register(ours.TotalNormConstraint)
    def total_norm_constraint(op: Any, **kwargs: Any) -> Callable:
        def constrain_total(*inputs: Any) -> tuple:
            *xs, max_norm, epsilon = inputs
            constrained, total = backend.constrain_total(xs, max_norm, epsilon, op.ord)
            return (*constrained, total)

        return constrain_total


def _register_pytorch() -> None:
    import torch
    from pytensor.link.pytorch.dispatch.basic import pytorch_funcify

    from normball.backends import pytensor as ours

    @pytorch_funcify.register(ours.Norms)
    @pytorch_funcify.register(ours.NormConstraint)
    @pytorch_funcify.register(ours.TotalNormConstraint)
    def through_numpy(op: Any, node: Any, **kwargs: Any) -> Callable:
        """The Op's own `perform` on the tensors' memory, outside torch.compile's graph."""

        @torch.compiler.disable
        def perform(*inputs: Any) -> Any:
            arrays = [
                np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value) for value in inputs
            ]
            storage: list[list] = [[None] for _ in node.outputs]
            op.perform(node, arrays, storage)
            outputs = tuple(torch.from_numpy(np.asarray(cell[0], order="C")) for cell in storage)
            return outputs if len(outputs) > 1 else outputs[0]

        return perform


_REGISTER = {
    "pytensor.link.numba.dispatch": _register_numba,
    "pytensor.link.jax.dispatch": _register_jax,
    "pytensor.link.pytorch.dispatch": _register_pytorch,
}
