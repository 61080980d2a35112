"""NUMBA mode: element-wise operations run inside the norm constraint that reads them, block by block, in cache.

    w = norm_constraint(w + step, c)

is compiled as one loop over memory less. PyTensor's own fusion stops at an Op like ours.
"""

import contextlib
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

# LLVM vectorises a loop if it takes no more comparisons than this to see that its arrays lie apart.
LLVM_CHECKS = 8


class ProducedNormConstraint(Op):
    """An Elemwise whose output number `index` is constrained as it is made: inputs its own, max_norm, epsilon.

    `elemwise` says by its inplace_pattern which inputs the outputs overwrite.
    """

    __props__ = ("elemwise", "constraint", "index")

    def __init__(self, elemwise: Elemwise, constraint: NormConstraint, index: int):
        self.elemwise = elemwise
        self.constraint = constraint
        self.index = index
        if elemwise.inplace_pattern:
            self.destroy_map = {output: [source] for output, source in elemwise.inplace_pattern.items()}

    def __str__(self) -> str:
        return f"{self.constraint} of {self.elemwise}"

    def make_node(self, *inputs: Variable) -> Apply:
        outputs = self.elemwise.make_node(*inputs[:-2]).outputs
        return Apply(self, [*inputs], [output.type() for output in outputs])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: Sequence[list]) -> None:
        *sources, max_norm, epsilon = inputs
        elemwise = self.elemwise.make_node(*node.inputs[:-2])
        self.elemwise.prepare_node(elemwise, None, None, "py")
        for cell in output_storage:
            cell[0] = None
        self.elemwise.perform(elemwise, sources, output_storage)
        mine = output_storage[self.index]
        constraint = Apply(self.constraint, [elemwise.outputs[self.index], *node.inputs[-2:]], [])
        self.constraint.perform(constraint, [mine[0], max_norm, epsilon], [mine])

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
            if type(node.op) is NormConstraint:
                x, *bounds = node.inputs
                if x.owner and len(fgraph.clients[x]) == 1 and _can_be_produced(x) and not _made_from(bounds, x.owner):
                    self._replace(fgraph, node, x.owner, x.owner.outputs.index(x))

    @staticmethod
    def _replace(fgraph: FunctionGraph, node: Apply, producer: Apply, index: int) -> None:
        op = ProducedNormConstraint(producer.op, NormConstraint(node.op.axes, node.op.ord, (0,)), index)
        outputs = op(*producer.inputs, *node.inputs[1:], return_list=True)
        before = [*producer.outputs]
        before[index] = node.outputs[0]
        copy_stack_trace(before, outputs)
        used = [pair for pair in zip(before, outputs, strict=True) if pair[0] in fgraph.clients]
        # Inconsistent: a bound is read from memory that would be overwritten too soon.
        with contextlib.suppress(InconsistencyError):
            fgraph.replace_all_validate(used, reason="normball_fusion")


def _can_be_produced(x: Variable) -> bool:
    """Whether entries i to j of x need entries i to j of some variables, one entry of each other, and no GIL."""
    node = x.owner
    if type(node.op) is not Elemwise or x.dtype not in ("float32", "float64") or not _is_native(node.op.scalar_op):
        return False
    whole = [source.type.broadcastable == x.type.broadcastable for source in node.inputs]
    single = [all(source.type.broadcastable) for source in node.inputs]
    variables = (*node.inputs, *node.outputs)
    plain = [np.dtype(v.dtype).kind in "fiub" and v.dtype != "float16" for v in variables]  # numba has no float16
    read, written = sum(whole) - len(node.op.inplace_pattern), len(node.outputs)
    overlaps = written * read + written * (written - 1) // 2
    return any(whole) and all(plain) and all(map(max, whole, single)) and overlaps <= LLVM_CHECKS


def _made_from(variables: Sequence[Variable], node: Apply) -> bool:
    """Whether one of the variables depends on the node."""
    seen, waiting = set(), [v.owner for v in variables]
    while waiting:
        owner = waiting.pop()
        if owner is node:
            return True
        if owner is not None and owner not in seen:
            seen.add(owner)
            waiting += [v.owner for v in owner.inputs]
    return False


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
