"""PyTensor variables: three Ops, their derivatives as graphs, and an in-place rewrite.

The Ops compute through `perform` in the VM and Python linkers. Beside this file, `pytensor_c` is their code in the C
linkers, and `pytensor_links` teaches them to the NUMBA, JAX and PYTORCH linkers. The bounds are inputs of the Ops, not
parts of an expression: PyTensor rewrites x * (c / n) with a constant c to (c * x) / n, which overflows, and compiles
element-wise code with fast-math.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile import optdb
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.destroyhandler import DestroyHandler
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.replace import _vectorize_node
from pytensor.graph.rewriting.basic import GraphRewriter, copy_stack_trace
from pytensor.graph.utils import InconsistencyError
from pytensor.scalar.basic import BinaryScalarOp, upcast_out
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import DenseTensorType

from normball import arguments, kernels
from normball.backends import pytensor_links
from normball.backends.pytensor_c import KernelOp, axes_code, ord_code

_EVERY_MODE = frozenset(["float64", "float32", "bounded", "tight", "per-group bounds", "symbolic bounds", "gradient"])
_EXACT = _EVERY_MODE | {"exact decision", "subnormals"}
SUPPORTS = {
    "PyTensor NUMBA": _EXACT | {"in place"},  # PyTensor's numba backend has no float16
    "PyTensor C, Python": _EXACT | {"in place", "float16"},
    "PyTensor JAX": _EVERY_MODE | {"float16", "subnormals"},
    "PyTensor PYTORCH": _EXACT | {"float16"},
}


def summarise(x: Any, axes: tuple[int, ...], ord: float) -> Variable:
    """Each group's norm as float64, the reduced axes kept as 1."""
    return Norms(axes, ord)(_tensor(x))


def merge(summaries: Sequence[Variable], ord: float) -> Variable:
    """The norms of groups from those of their parts: the norm of the norms."""
    return Norms((0,), ord)(pt.stack(list(summaries)))[0]


def norm(summary: Variable, ord: float) -> Variable:
    """The norms: at most one ulp off, exact where a float64 holds the norm."""
    return summary


def constrain(x: Any, max_norm: Any, axes: tuple[int, ...], epsilon: Any, ord: float, out: Any) -> Variable:
    """Every group inside its ball, as a variable of x's dtype and static shape."""
    if out is not None:
        message = "out: a PyTensor variable is never written to; leave it out, compiled functions work in place anyway"
        raise TypeError(message)
    _check_constants(max_norm, epsilon)
    return NormConstraint(axes, ord)(x, max_norm, epsilon)


def constrain_each(
    xs: Sequence[Any], max_norms: Sequence[Any], axes: Sequence[tuple], epsilon: Any, ord: float, outs: Sequence[Any]
) -> list[Variable]:
    """Every variable as `constrain` would."""
    variables = [_tensor(x, index) for index, x in enumerate(xs)]
    jobs = zip(variables, max_norms, axes, outs, strict=True)
    return [constrain(x, max_norm, own_axes, epsilon, ord, out) for x, max_norm, own_axes, out in jobs]


def constrain_total(xs: Sequence[Any], max_norm: Any, epsilon: Any, ord: float) -> tuple[list[Variable], Variable]:
    """All variables as one group inside its ball, and its norm before."""
    _check_constants(max_norm, epsilon)
    *constrained, total = TotalNormConstraint(ord)(*xs, max_norm, epsilon)
    return constrained, total


class _NormOp(KernelOp):
    """What the Ops share: `infer_shape`, and derivatives under the names that both PyTensor 2 and 3 look for.

    Subclasses define `_pullback` and `_pushforward`, with None for what is disconnected.
    """

    def __str__(self) -> str:
        props = {"ord": 2, "inplace": ()}  # not worth a word in a printed graph
        told = [f"{name}={value}" for name, value in self._props_dict().items() if props.get(name) != value]
        return type(self).__name__ + (f"{{{', '.join(told)}}}" if told else "")

    def infer_shape(self, *args: Any) -> list:  # (fgraph, node, shapes) before PyTensor 3.1, (node, shapes) since
        return self._output_shapes(args[-1])

    if hasattr(Op, "pullback"):

        def pullback(self, inputs: Sequence, outputs: Sequence, cotangents: Sequence) -> list:
            return [_or_disconnected(v) for v in self._pullback(inputs, outputs, _or_none(cotangents))]

        def pushforward(self, inputs: Sequence, outputs: Sequence, tangents: Sequence) -> list:
            return [_or_disconnected(v) for v in self._pushforward(inputs, outputs, _or_none(tangents))]

    else:

        def L_op(self, inputs: Sequence, outputs: Sequence, output_grads: Sequence) -> list:
            return [_or_disconnected(v) for v in self._pullback(inputs, outputs, _or_none(output_grads))]

        def R_op(self, inputs: Sequence, eval_points: Sequence) -> list:
            outputs = self(*inputs, return_list=True)
            return self._pushforward(inputs, outputs, _or_none(eval_points))


class Norms(_NormOp):
    """Each group's norm as float64, the reduced axes kept as 1.

    With a second input, a bound, the norms compare with that bound as the exact norms do.
    """

    __props__ = ("axes", "ord")
    __str__ = _NormOp.__str__  # PyTensor writes one for every class with __props__

    def __init__(self, axes: tuple[int, ...], ord: float):
        self.axes = axes
        self.ord = ord

    def make_node(self, x: Variable, *max_norm: Variable) -> Apply:
        shape = _kept_shape(x.type.shape, self.axes)
        return Apply(self, [x, *max_norm], [pt.tensor(dtype="float64", shape=shape)])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: Sequence[list]) -> None:
        x, *bound = inputs
        settle = _bound_value("max_norm", bound[0], x, self.axes) if bound else None
        output_storage[0][0] = np.asarray(kernels.norms(x, self.axes, self.ord, settle))

    def _c_status(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        x, bound = (*inputs, "NULL")[:2]
        codes = f"{axes_code(self.axes)}, {ord_code(self.ord)}"
        return f"int status = normball_op_norms({x}, {bound}, &{outputs[0]}, {codes});"

    def _output_shapes(self, shapes: Sequence) -> list:
        return [_kept_shape(shapes[0], self.axes)]

    def _pullback(self, inputs: Sequence, outputs: Sequence, cotangents: Sequence) -> list:
        x, *bound = inputs
        [slope] = _slopes([_wide(x)], outputs[0], self.axes, self.ord)
        return [pt.cast(cotangents[0] * slope, x.dtype), *(None for _ in bound)]

    def _pushforward(self, inputs: Sequence, outputs: Sequence, tangents: Sequence) -> list:
        x = inputs[0]
        if tangents[0] is None:
            return [None]
        slopes = _slopes([_wide(x)], outputs[0], self.axes, self.ord)
        return [_dot(slopes, [_wide(tangents[0])], self.axes)]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[index == 0] for index in range(len(node.inputs))]  # the bound only settles rounding


class NormConstraint(_NormOp):
    """Every group of x along `axes` inside its ball: inputs x, max_norm, epsilon; output of x's type."""

    __props__ = ("axes", "ord", "inplace")
    __str__ = _NormOp.__str__

    def __init__(self, axes: tuple[int, ...], ord: float, inplace: tuple[int, ...] = ()):
        self.axes = axes
        self.ord = ord
        self.inplace = inplace
        if inplace:
            self.destroy_map = {0: [0]}

    def make_node(self, x: Any, max_norm: Any, epsilon: Any) -> Apply:
        x = _tensor(x)
        groups = _kept_shape(x.type.shape, self.axes)
        bound, small = _bound_input("max_norm", max_norm, groups), _bound_input("epsilon", epsilon, groups)
        return Apply(self, [x, bound, small], [x.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: Sequence[list]) -> None:
        x, max_norm, epsilon = inputs
        bound, small = _bound_value("max_norm", max_norm, x, self.axes), _bound_value("epsilon", epsilon, x, self.axes)
        out = x if self.inplace else _reused(output_storage[0][0], x, (x, bound, small))
        kernels.constrain(x, out, self.axes, bound, small, self.ord)
        output_storage[0][0] = out

    def _c_status(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        codes = f"{len(self.inplace)}, {axes_code(self.axes)}, {ord_code(self.ord)}"
        return f"int status = normball_op_constrain({', '.join(inputs)}, &{outputs[0]}, {codes});"

    def _output_shapes(self, shapes: Sequence) -> list:
        return [shapes[0]]

    def _pullback(self, inputs: Sequence, outputs: Sequence, cotangents: Sequence) -> list:
        return self._ball(inputs).pullback(cotangents, None)

    def _pushforward(self, inputs: Sequence, outputs: Sequence, tangents: Sequence) -> list:
        return self._ball(inputs).pushforward(tangents)[:-1]

    def _ball(self, inputs: Sequence) -> "_Ball":
        norms = Norms(self.axes, self.ord)(inputs[0], inputs[1])
        return _Ball(inputs, norms, self.axes, self.ord)


class TotalNormConstraint(_NormOp):
    """All tensors as one group inside its ball: inputs xs, max_norm, epsilon; outputs as the xs, and the norm."""

    __props__ = ("ord", "inplace")
    __str__ = _NormOp.__str__

    def __init__(self, ord: float, inplace: tuple[int, ...] = ()):
        self.ord = ord
        self.inplace = inplace
        if inplace:
            self.destroy_map = {index: [index] for index in inplace}

    def make_node(self, *inputs: Any) -> Apply:
        *xs, max_norm, epsilon = inputs
        xs = [_tensor(x) for x in xs]
        bound, small = _bound_input("max_norm", max_norm, ()), _bound_input("epsilon", epsilon, ())
        return Apply(self, [*xs, bound, small], [*(x.type() for x in xs), pt.scalar(dtype="float64")])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: Sequence[list]) -> None:
        *xs, max_norm, epsilon = inputs
        bound, small = np.asarray(max_norm, np.float64), np.asarray(epsilon, np.float64)
        cells = enumerate(output_storage[:-1])
        outs = [xs[index] if index in self.inplace else _reused(cell[0], xs[index], xs) for index, cell in cells]
        total = kernels.constrain_total(xs, outs, bound, small, self.ord)
        for cell, value in zip(output_storage, [*outs, np.asarray(total)], strict=True):
            cell[0] = value

    def _c_status(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        *xs, max_norm, epsilon = inputs
        *ys, norm = outputs
        inplace = ", ".join(str(int(index in self.inplace)) for index in range(len(xs)))
        return f"""
            PyArrayObject *const xs[] = {{{", ".join(xs)}}}, **const ys[] = {{{", ".join(f"&{y}" for y in ys)}}};
            const char inplace[] = {{{inplace}}};
            int status = normball_op_total(
                {len(xs)}, xs, {max_norm}, {epsilon}, ys, &{norm}, inplace, {ord_code(self.ord)});
        """

    def _output_shapes(self, shapes: Sequence) -> list:
        return [*shapes[:-2], ()]

    def _pullback(self, inputs: Sequence, outputs: Sequence, cotangents: Sequence) -> list:
        return _Ball(inputs, outputs[-1], None, self.ord).pullback(cotangents[:-1], cotangents[-1])

    def _pushforward(self, inputs: Sequence, outputs: Sequence, tangents: Sequence) -> list:
        return _Ball(inputs, outputs[-1], None, self.ord).pushforward(tangents)


class _Quotient(BinaryScalarOp):
    """x / y as written, whatever the graph around it.

    PyTensor's own division may become part of a longer product, be pulled through one, or turn into a product with
    1 / y, by rewrites as by fast-math, and its derivative squares y. Each of these overflows for norms beyond 1e154.
    """

    nfunc_spec = ("true_divide", 2, 1)

    def impl(self, x: Any, y: Any) -> Any:
        return np.true_divide(x, y)

    def c_code(self, node: Apply, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: Any) -> str:
        return f"{outputs[0]} = {inputs[0]} / {inputs[1]};"

    def pullback(self, inputs: Sequence, outputs: Sequence, cotangents: Sequence) -> list:
        x, y = inputs
        own = self(cotangents[0], y)
        return [own, -own * self(x, y)]

    if not hasattr(Op, "pullback"):
        L_op = pullback


_quotient = Elemwise(_Quotient(upcast_out, name="quotient"))


class _Ball:
    """The derivatives of y = c q, q = v / (n + epsilon), where n > c; of y = v elsewhere, ties included.

    With the norm's gradient w (v / n for order 2, zero at zero) and s = c / (n + epsilon):

        pushforward   dy = s dv - s q (<w, dv> + d epsilon) + q dc          dn = <w, dv>
        pullback      gv = s g - s <q, g> w  (+ g_n w)       gc = <q, g>      g epsilon = -s <q, g>

    All in float64, where no norm of a narrower dtype overflows; every denominator is 1 where it is not used, so that
    second derivatives are finite too. A norm or a bound that is NaN makes NaN. `axes` None: all xs are one group.
    """

    def __init__(self, inputs: Sequence[Variable], norms: Variable, axes: tuple[int, ...] | None, ord: float):
        *self.xs, self.max_norm, self.epsilon = inputs
        self.axes = axes
        spoilt = pt.switch(pt.ge(self.max_norm, 0), pt.switch(pt.ge(self.epsilon, 0), 0.0, np.nan), np.nan)
        bound, small = _wide(self.max_norm) + spoilt, _wide(self.epsilon) + spoilt
        self.complies = norms <= bound
        denominator = pt.switch(self.complies, 1.0, norms + small)
        self.scale = pt.switch(self.complies, 1.0, _quotient(bound, denominator))
        wide = [_wide(x) for x in self.xs]
        self.directions = [_quotient(x, denominator) for x in wide]
        self.slopes = _slopes(wide, norms, axes, ord)

    def pullback(self, cotangents: Sequence, norm_cotangent: Any) -> list:
        wide = [None if g is None else _wide(g) for g in cotangents]
        along = _dot(self.directions, wide, self.axes)
        gradients = []
        for x, g, slope in zip(self.xs, wide, self.slopes, strict=True):
            own = pt.zeros_like(slope) if g is None else g
            gradient = pt.switch(self.complies, own, self.scale * (own - along * slope))
            if norm_cotangent is not None:
                gradient = gradient + norm_cotangent * slope
            gradients.append(pt.cast(gradient, x.dtype))
        to_bound = pt.switch(self.complies, 0.0, along)
        to_epsilon = pt.switch(self.complies, 0.0, -self.scale * along)
        return [*gradients, _summed_like(to_bound, self.max_norm), _summed_like(to_epsilon, self.epsilon)]

    def pushforward(self, tangents: Sequence) -> list:
        *steps, bound_step, epsilon_step = [None if t is None else _wide(t) for t in tangents]
        along = _dot(self.slopes, steps, self.axes)
        inward = self.scale * (along if epsilon_step is None else along + epsilon_step)
        radial = -inward if bound_step is None else bound_step - inward
        moved = []
        for x, step, direction in zip(self.xs, steps, self.directions, strict=True):
            own = pt.zeros_like(direction) if step is None else step
            moved.append(pt.cast(pt.switch(self.complies, own, self.scale * own + direction * radial), x.dtype))
        return [*moved, along]


class _WorkInPlace(GraphRewriter):
    """Let our Ops overwrite inputs that nobody needs afterwards, one input at a time, as far as the graph allows."""

    def add_requirements(self, fgraph: FunctionGraph) -> None:
        fgraph.attach_feature(DestroyHandler())

    def apply(self, fgraph: FunctionGraph) -> None:
        for node in fgraph.toposort():
            if not isinstance(node.op, (NormConstraint, TotalNormConstraint)):
                continue
            for index in range(len(node.inputs) - 2):  # the last two are the bounds
                if not isinstance(node.inputs[index], Constant):
                    node = self._destroying(fgraph, node, index)

    @staticmethod
    def _destroying(fgraph: FunctionGraph, node: Apply, index: int) -> Apply:
        props = node.op._props_dict() | {"inplace": (*node.op.inplace, index)}
        outputs = type(node.op)(**props)(*node.inputs, return_list=True)
        copy_stack_trace(node.outputs, outputs)
        try:
            fgraph.replace_all_validate(list(zip(node.outputs, outputs, strict=True)), reason="normball_inplace")
        except InconsistencyError:  # somebody needs that input: it stays
            return node
        return outputs[0].owner


# After the other in-place rewrites have had their choice (50.5), before the last merge (100).
optdb.register("normball_inplace", _WorkInPlace(), "fast_run", "inplace", position=50.6)


@_vectorize_node.register(Norms)
@_vectorize_node.register(NormConstraint)
def _vectorize(op: Norms | NormConstraint, node: Apply, *batched: Variable) -> Apply:
    """One node over the whole batch: the batch axes come first and are kept."""
    depth = max(new.ndim - old.ndim for new, old in zip(batched, node.inputs, strict=True))
    core = node.inputs[0].ndim
    x, *bounds = (_lifted(new, old.ndim, depth, core) for new, old in zip(batched, node.inputs, strict=True))
    batches = [bound for bound in bounds if bound.ndim]
    stretched = [axis for axis in range(depth) if x.type.broadcastable[axis]]
    if any(not bound.type.broadcastable[axis] for bound in batches for axis in stretched):
        ones = [variable.type.broadcastable for variable in (x, *batches)]
        shapes = [
            tuple(1 if one[axis] else variable.shape[axis] for axis in range(depth))
            for variable, one in zip((x, *batches), ones, strict=True)
        ]
        x = pt.alloc(x, *pt.broadcast_shape(*shapes, arrays_are_shapes=True), *x.shape[depth:])
    props = op._props_dict() | {"axes": tuple(axis + depth for axis in op.axes)}
    return type(op)(**props).make_node(x, *bounds)


def _lifted(x: Variable, core: int, depth: int, full: int) -> Variable:
    """X, of `core` dimensions behind its own batch axes, with `depth` batch axes and `full` dimensions behind them."""
    if x.ndim == 0:
        return x
    own = x.ndim - core
    missing, padding = ["x"] * (depth - own), ["x"] * (full - core)
    return x.dimshuffle(*missing, *range(own), *padding, *range(own, x.ndim))


def _tensor(x: Any, index: int | None = None) -> Variable:
    """X as a dense variable of a dtype that has a norm ball here."""
    what = arguments.entry("tensor_var", index)
    if isinstance(x, Variable) and not isinstance(x.type, DenseTensorType):
        message = f"{what} of type {x.type}: must be a dense tensor; pass x.values, or x.toarray() for a sparse one"
        raise TypeError(message)
    variable = pt.as_tensor_variable(x)
    if variable.dtype not in arguments.REAL_FLOATS:
        raise arguments.wrong_dtype(variable.dtype, what)
    return variable


def _check_constants(max_norm: Any, epsilon: Any) -> None:
    """Refuse concrete bounds that are negative or NaN; symbolic ones make NaN when they turn out so."""
    for name, value in (("max_norm", max_norm), ("epsilon", epsilon)):
        concrete = value.data if isinstance(value, Constant) else value
        if not isinstance(concrete, Variable):
            entries = np.asarray(concrete)
            if entries.dtype.kind in "fiu" and not (entries >= 0).all():
                raise arguments.negative_bound(name, entries[~(entries >= 0)].flat[0])


def _bound_input(name: str, value: Any, groups: tuple) -> Variable:
    """A bound as an input of an Op: no dimensions, or as many as the groups have."""
    if isinstance(value, float):
        return pt.constant(value, dtype="float64")
    bound = pt.as_tensor_variable(value)
    if np.dtype(bound.dtype).kind not in "fiu":
        raise arguments.wrong_bound_dtype(name, bound.dtype)
    if np.dtype(bound.dtype).kind != "f":
        bound = pt.cast(bound, "float64")  # so that a derivative exists
    lengths = zip(reversed(bound.type.shape), reversed(groups), strict=False)
    misfits = [length for length, group in lengths if group is not None and length not in (1, group, None)]
    if bound.ndim > len(groups) or misfits:
        raise arguments.wrong_bound_shape(name, bound.type.shape, groups)
    return pt.shape_padleft(bound, len(groups) - bound.ndim) if bound.ndim else bound


def _bound_value(name: str, value: np.ndarray, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """A bound at run time, as float64; its sign is the kernel's to judge."""
    bound = np.asarray(value, dtype=np.float64)
    if bound.ndim:
        groups = _kept_shape(x.shape, axes)
        if any(length not in (1, group) for length, group in zip(bound.shape, groups, strict=True)):
            raise arguments.wrong_bound_shape(name, bound.shape, groups)
    return bound


def _kept_shape(shape: Sequence, axes: tuple[int, ...]) -> tuple:
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))


def _reused(buffer: Any, x: np.ndarray, read: Sequence[np.ndarray]) -> np.ndarray:
    """The last call's output where it fits: a fresh one costs more in page faults than the arithmetic does.

    A caller who borrows outputs may hand them back as any of the inputs.
    """
    fits = isinstance(buffer, np.ndarray) and buffer.shape == x.shape and buffer.dtype == x.dtype
    apart = fits and buffer.flags.writeable and not any(np.may_share_memory(buffer, other) for other in read)
    return buffer if apart else np.empty_like(x)


def _wide(x: Variable) -> Variable:
    return pt.cast(x, "float64")


def _slopes(xs: Sequence[Variable], norms: Variable, axes: tuple[int, ...] | None, ord: float) -> list[Variable]:
    """The derivative of the norm in each x: v / n, signs, or the largest entries' signs; zero at zero."""
    if ord == 2:
        denominator = pt.switch(norms <= 0, 1.0, norms)
        return [_quotient(x, denominator) for x in xs]
    if ord == 1:
        return [pt.sign(x) for x in xs]
    # Not pt.eq: PYTORCH mode takes it for torch.equal, one answer for the whole array.
    largest = [pt.sign(x) * (pt.abs(x) >= norms) for x in xs]
    ties = _dot(largest, largest, axes)
    return [x / pt.switch(ties > 0, ties, 1.0) for x in largest]


def _dot(us: Sequence, vs: Sequence, axes: tuple[int, ...] | None) -> Variable:
    """<u, v> of each group, over one array's axes or over all arrays; None stands for zero."""
    products = [u * v for u, v in zip(us, vs, strict=True) if v is not None]
    if not products:
        return pt.constant(0.0, dtype="float64")
    if axes is None:
        return pt.add(*(product.sum() for product in products)) if len(products) > 1 else products[0].sum()
    return products[0].sum(axes, keepdims=True)


def _summed_like(gradient: Variable, bound: Variable) -> Variable:
    """The gradient of a bound that was broadcast over the groups."""
    if bound.ndim == 0:
        return pt.cast(gradient.sum(), bound.dtype)
    stretched = [
        axis for axis in range(bound.ndim) if bound.type.broadcastable[axis] and not gradient.type.broadcastable[axis]
    ]
    return pt.cast(gradient.sum(stretched, keepdims=True) if stretched else gradient, bound.dtype)


def _or_none(variables: Sequence) -> list:
    """Disconnected variables as None, as PyTensor 2's R_op has them."""
    return [None if v is None or isinstance(v.type, DisconnectedType) else v for v in variables]


def _or_disconnected(variable: Any) -> Variable:
    return DisconnectedType()() if variable is None else variable


pytensor_links.register_when_loaded()
importlib.import_module("normball.backends.pytensor_fusion")  # it registers its rewrite, and is about the Ops above
