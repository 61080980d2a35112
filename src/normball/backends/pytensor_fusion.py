"""NUMBA mode: element-wise operations run inside the norm constraint that reads them, block by block, in cache.

    w = norm_constraint(w + step, c)

is compiled as one loop over memory less. PyTensor's own fusion stops at an Op like ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.compile import optdb
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import GraphRewriter, copy_stack_trace
from pytensor.graph.utils import InconsistencyError
from pytensor.scalar import basic as scalar
from pytensor.tensor.elemwise import Elemwise

from normball import kernels
from normball.backends.pytensor import NormConstraint


class ProducedNormConstraint(Op):
    """A NormConstraint of what an Elemwise makes of its inputs: inputs those, max_norm, epsilon.

    `elemwise` says by its own inplace_pattern which input the result overwrites.
    """

    __props__ = ("elemwise", "constraint")

    def __init__(self, elemwise: Elemwise, constraint: NormConstraint):
        self.elemwise = elemwise
        self.constraint = constraint
        if elemwise.inplace_pattern:
            self.destroy_map = {0: [elemwise.inplace_pattern[0]]}

    def __str__(self) -> str:
        return f"{self.constraint} of {self.elemwise}"

    def make_node(self, *inputs: Variable) -> Apply:
        x = self.elemwise.make_node(*inputs[:-2]).outputs[0]
        return Apply(self, [*inputs], [x.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: Sequence[list]) -> None:
        *sources, max_norm, epsilon = inputs
        elemwise = self.elemwise.make_node(*node.inputs[:-2])
        self.elemwise.prepare_node(elemwise, None, None, "py")
        x: list = [None]
        self.elemwise.perform(elemwise, sources, [x])
        bounds = node.inputs[-2:]
        self.constraint.perform(
            Apply(self.constraint, [*elemwise.outputs, *bounds], []), [x[0], max_norm, epsilon], [x]
        )
        output_storage[0][0] = x[0]

    def infer_shape(self, *args: Any) -> list:  # (fgraph, node, shapes) before PyTensor 3.1, (node, shapes) since
        *first, node, shapes = args
        return self.elemwise.infer_shape(*first, self.elemwise.make_node(*node.inputs[:-2]), shapes[:-2])

    def scalar_node(self, sources: Sequence[Variable]) -> Apply:
        """The scalar operation on single entries of the sources."""
        return self.elemwise.scalar_op.make_node(*(scalar.get_scalar_type(x.dtype)() for x in sources))


class _Fuse(GraphRewriter):
    """Let each NormConstraint make its own input, where nobody else reads that."""

    def add_requirements(self, fgraph: FunctionGraph) -> None:
        fgraph.attach_feature(DestroyHandler())

    def apply(self, fgraph: FunctionGraph) -> None:
        for node in fgraph.toposort():
            producer = node.inputs[0].owner if type(node.op) is NormConstraint else None
            if producer is None or len(fgraph.clients[node.inputs[0]]) != 1 or not _can_be_produced(producer):
                continue
            fused = ProducedNormConstraint(producer.op, NormConstraint(node.op.axes, node.op.ord, (0,)))
            [output] = fused(*producer.inputs, *node.inputs[1:], return_list=True)
            copy_stack_trace(node.outputs, output)
            try:
                fgraph.replace_all_validate([(node.outputs[0], output)], reason="normball_fusion")
            except InconsistencyError:  # a bound is read from memory that would be overwritten too soon
                continue


def _can_be_produced(node: Apply) -> bool:
    """Whether entries i to j of its one output need entries i to j of some inputs, one of each other, and no GIL."""
    if type(node.op) is not Elemwise or len(node.outputs) != 1 or not _is_native(node.op.scalar_op):
        return False
    [output] = node.outputs
    if output.dtype not in ("float32", "float64"):
        return False
    whole = [x.type.broadcastable == output.type.broadcastable for x in node.inputs]
    single = [all(x.type.broadcastable) for x in node.inputs]
    plain = [np.dtype(x.dtype).kind in "fiub" and x.dtype != "float16" for x in node.inputs]  # numba has no float16
    return any(whole) and all(plain) and all(map(max, whole, single))


def _is_native(op: Any) -> bool:
    """Whether numba compiles a scalar Op to plain arithmetic.

    Others are called through Python or look up a function there first: not in a thread without the GIL.
    """
    if isinstance(op, scalar.Composite):
        return all(_is_native(node.op) for node in op.fgraph.apply_nodes)
    function, *_ = getattr(op, "nfunc_spec", None) or ("scipy.special.…",)
    in_numpy = "." not in function
    simple = (scalar.Cast, scalar.Clip, scalar.Identity, scalar.Second)
    return type(op).__module__ == scalar.__name__ and (in_numpy or isinstance(op, simple))


# After all fusion of PyTensor's own (100): what that takes, it takes further.
if kernels.best is not kernels.fallback:
    optdb.register("normball_fusion", _Fuse(), "numba", position=101)
