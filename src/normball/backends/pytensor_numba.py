"""The C kernel inside PyTensor's compiled NUMBA functions, called by its symbol: no way through Python objects."""

import hashlib
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from pytensor.link.numba.dispatch.basic import (
    numba_funcify_and_cache_key,
    numba_funcify_ensure_cache,
    numba_njit,
)

from normball.kernels import _native, native

SYMBOL = "normball_constrain"
# As NumPy does for its own arrays, and as its setting says.
HUGE_PAGES = sys.platform == "linux" and os.environ.get("NUMPY_MADVISE_HUGEPAGE") != "0"
# PyTensor's cache on disk knows a function by its Op, not by its code: other code, or another kernel behind the
# symbol, must have another key.
_CODE = b"".join(Path(file).read_bytes() for file in (__file__, _native.__file__)) + bytes([HUGE_PAGES])
SALT = int(hashlib.sha256(_CODE).hexdigest()[:8], 16)
WORD = ir.IntType(64)  # pointers as integers: the same registers, and no types to match

binding.add_symbol(SYMBOL, _native.addresses[SYMBOL])


def norm_constraint(op: Any, node: Any) -> Callable:
    """What `NormConstraint.perform` does, for the linker to compile."""
    x, max_norm, epsilon = node.inputs
    kernel = _kernel(x.dtype, op.axes, op.ord)
    wide_bound, wide_epsilon = _as_float64(max_norm), _as_float64(epsilon)
    check_bound, check_epsilon = _check(max_norm.ndim, op.axes), _check(epsilon.ndim, op.axes)
    place = numba_njit(lambda x: x) if op.inplace else _fresh(x.dtype)

    @numba_njit(fastmath=False)
    def constrain(x, max_norm, epsilon):  # type: ignore[no-untyped-def]
        bound, small = wide_bound(max_norm), wide_epsilon(epsilon)
        check_bound(bound, x)  # before anything is written
        check_epsilon(small, x)
        y = place(x)
        kernel((x,), (y,), bound, small)
        return y

    return constrain


def produced_norm_constraint(op: Any, node: Any, **kwargs: Any) -> tuple[Callable, str | None]:
    """What `ProducedNormConstraint.perform` does: the kernel asks for the entries as it comes to them."""
    *sources, max_norm, epsilon = node.inputs
    dtype, axes, ord = node.outputs[op.index].dtype, op.constraint.axes, op.constraint.ord
    elemwise, elemwise_key = numba_funcify_ensure_cache(op.elemwise, node=op.elemwise.make_node(*sources), **kwargs)
    scalar, scalar_key = numba_funcify_and_cache_key(op.elemwise.scalar_op, node=op.scalar_node(sources), **kwargs)
    whole = [source.type.broadcastable == node.outputs[0].type.broadcastable for source in sources]
    targets = dict(op.elemwise.inplace_pattern)
    model = whole.index(True)
    plain = _kernel(dtype, axes, ord)
    producing = _kernel(dtype, axes, ord, op.index, _block(scalar, sources, whole, targets, node.outputs))
    fits = _fits(whole, model)
    places = [
        f"sources[{targets[index]}]" if index in targets else f"fresh{index}(sources[{model}])"
        for index in range(len(node.outputs))
    ]
    wide_bound, wide_epsilon = _as_float64(max_norm), _as_float64(epsilon)
    check_bound, check_epsilon = _check(max_norm.ndim, axes), _check(epsilon.ndim, axes)
    # numba indexes tuples by literals only.
    first = numba_njit(_function(f"first(sources): return sources[{model}]"))
    mine = numba_njit(_function(f"mine(outputs): return outputs[{op.index}]"))
    as_tuple = numba_njit((lambda outputs: (outputs,)) if len(places) == 1 else (lambda outputs: outputs))
    as_result = numba_njit((lambda outputs: outputs[0]) if len(places) == 1 else (lambda outputs: outputs))
    fresh = {f"fresh{index}": _fresh(output.dtype) for index, output in enumerate(node.outputs)}
    place = numba_njit(_function(f"place(sources): return ({', '.join(places)},)", **fresh))

    @numba_njit(fastmath=False)
    def constrain(*inputs):  # type: ignore[no-untyped-def]
        sources = inputs[:-2]
        bound, small = wide_bound(inputs[-2]), wide_epsilon(inputs[-1])
        if fits(sources):
            check_bound(bound, first(sources))
            check_epsilon(small, first(sources))
            outputs = place(sources)
            producing(sources, outputs, bound, small)
            return as_result(outputs)
        outputs = as_tuple(elemwise(*sources))
        check_bound(bound, mine(outputs))
        check_epsilon(small, mine(outputs))
        plain((mine(outputs),), (mine(outputs),), bound, small)
        return as_result(outputs)

    if elemwise_key is None or scalar_key is None:
        return constrain, None
    layout = [source.type.broadcastable for source in sources]
    types_of = [output.dtype for output in node.outputs]
    parts = (type(op), op.constraint._props(), op.index, elemwise_key, scalar_key, layout, types_of, SALT)
    return constrain, hashlib.sha256(str(parts).encode()).hexdigest()


def _kernel(dtype: str, axes: tuple[int, ...], ord: float, index: int = 0, block: Callable | None = None) -> Callable:
    """The call of the C kernel: from one source to one output, or from all that `block` reads to all it makes."""
    codes = native.DTYPES[dtype], sum(1 << axis for axis in axes), native.ORDERS[ord]

    @intrinsic
    def kernel(typing_context, sources, outputs, bound, small):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            def opened(kind, value):  # type: ignore[no-untyped-def]
                return context.make_array(kind)(context, builder, value)

            def all_opened(kind, value):  # type: ignore[no-untyped-def]
                return [opened(*pair) for pair in zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)]

            xs, ys = all_opened(sources, values[0]), all_opened(outputs, values[1])
            bounds = [opened(bound, values[2]), opened(small, values[3])]
            x = ys[index] if block else xs[0]
            call = _Stack(builder)
            how = call.word(0)
            if block:
                memory = call.stored([call.address(each.data) for each in (*ys, *xs)])
                how = call.stored([call.word(0), call.word(0), _c_function(context, builder, block), memory])
            call.kernel(codes, outputs.types[index].ndim, x, ys[index], bounds, how)
            return context.get_dummy_value()

        return types.none(sources, outputs, bound, small), codegen

    return kernel


class _Stack:
    """Code of one call of the C kernel, its structs on the stack; the caller's names hold the arrays meanwhile."""

    def __init__(self, builder: Any):
        self.builder = builder

    def word(self, value: int) -> Any:
        return ir.Constant(WORD, value)

    def address(self, pointer: Any) -> Any:
        return self.builder.ptrtoint(pointer, WORD)

    def stored(self, words: list) -> Any:
        """The address of these words; there may be none."""
        pack = cgutils.pack_array(self.builder, [*words, self.word(0)])
        return self.address(cgutils.alloca_once_value(self.builder, pack))

    def words_of(self, pack: Any) -> list:
        return cgutils.unpack_tuple(self.builder, pack)

    def broadcast_strides(self, bound: Any, ndim: int) -> list:
        """Strides of a bound as the kernel reads them, zero where it is broadcast."""
        strides = []
        for length, stride in zip(self.words_of(bound.shape), self.words_of(bound.strides), strict=True):
            one = self.builder.icmp_signed("==", length, self.word(1))
            strides.append(self.builder.select(one, self.word(0), stride))
        return strides or [self.word(0)] * ndim

    def kernel(self, codes: tuple[int, int, int], ndim: int, x: Any, y: Any, bounds: list, how: Any) -> None:
        dtype, reduced, ord = codes
        array = [self.word(dtype), self.word(ndim), self.word(reduced), self.stored(self.words_of(x.shape))]
        for each in (x, y):
            array += [self.address(each.data), self.stored(self.words_of(each.strides))]
        for each in bounds:
            array += [self.address(each.data), self.stored(self.broadcast_strides(each, ndim))]
        kind = ir.FunctionType(ir.IntType(32), [WORD] * 4)
        function = cgutils.get_or_insert_function(self.builder.module, kind, SYMBOL)
        self.builder.call(function, [self.word(1), self.stored(array), self.word(ord), how])


def _c_function(context: Any, builder: Any, block: Callable) -> Any:
    """The address of a C function that runs `block`.

    It lies in the module that uses its address, so the linker fills that in, in whichever process loads the module
    from numba's cache. It needs no GIL, and may run in any thread.
    """
    signature = types.none(types.int64, types.int64, types.int64)
    # Not cached: the key would be the code, and functions of the same code have other globals here.
    compiled = context.compile_subroutine(builder, block, signature, caching=False)
    name = builder.module.get_unique_name("normball_produce")
    function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [WORD] * 3), name)
    function.linkage = "internal"
    body = ir.IRBuilder(function.append_basic_block("entry"))
    context.call_internal_no_propagate(body, compiled.fndesc, signature, function.args)  # it raises nothing
    body.ret_void()
    return builder.ptrtoint(function, WORD)


@intrinsic
def _pointer(typing_context, address):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


def _block(scalar: Callable, sources: list, whole: list[bool], targets: dict[int, int], outputs: list) -> Callable:
    """Python code of produce(context, begin, end): the entries begin to end of the outputs from those of the sources.

    Memory that is overwritten is read under the output's name alone: under two, LLVM would not vectorise.
    """
    names: dict[str, Any] = {"carray": numba.carray, "pointer": _pointer, "int64": np.int64, "scalar": scalar}
    lines = [f"words = carray(pointer(context), ({len(outputs) + len(sources)},), int64)"]

    def open_from(name: str, word: int, dtype: str, begin: str, length: str) -> str:
        names[f"{name}_type"] = np.dtype(dtype)
        address = f"words[{word}] + {begin} * {np.dtype(dtype).itemsize}"
        return f"{name} = carray(pointer({address}), ({length},), {name}_type)"

    for index, output in enumerate(outputs):
        lines.append(open_from(f"y{index}", index, output.dtype, "begin", "end - begin"))
    entries = {overwritten: f"y{index}[i]" for index, overwritten in targets.items()}
    for index, source in enumerate(sources):
        if index not in entries:
            span = ("begin", "end - begin") if whole[index] else ("0", "1")
            lines.append(open_from(f"x{index}", len(outputs) + index, source.dtype, *span))
            entries[index] = f"x{index}[{'i' if whole[index] else 0}]"
    results = ", ".join(f"y{index}[i]" for index in range(len(outputs)))
    call = f"scalar({', '.join(entries[index] for index in range(len(sources)))})"
    lines += ["for i in range(end - begin):", f"    {results} = {call}"]
    return _function("\n    ".join(["produce(context, begin, end):", *lines]), **names)


def _fits(whole: list[bool], model: int) -> Callable:
    """Whether the sources are what `_block` reads: of one shape and C-contiguous, or single entries."""
    rules = []
    for index, same in enumerate(whole):
        rules += (
            [f"sources[{index}].flags.c_contiguous", f"sources[{index}].shape == sources[{model}].shape"]
            if same
            else [f"sources[{index}].size == 1"]
        )
    return numba_njit(_function(f"fits(sources): return {' and '.join(rules)}"))


def _function(code: str, **names: Any) -> Callable:
    """The function of this code, behind `def`, with these globals."""
    exec(f"def {code}", names)
    return names[code.partition("(")[0]]


def _fresh(dtype: str) -> Callable:
    """Fresh memory for a result: in huge pages where it is large.

    It is written whole at once, and 16384 page faults for 64 MB take longer than the arithmetic.
    """
    kind = np.dtype(dtype)
    if not HUGE_PAGES:
        return numba_njit(lambda x: np.empty(x.shape, kind))

    @numba_njit
    def fresh(x):  # type: ignore[no-untyped-def]
        y = np.empty(x.shape, kind)
        if y.nbytes >= 1 << 22:  # NumPy's limit
            _advise_huge_pages(y)
        return y

    return fresh


@intrinsic
def _advise_huge_pages(typing_context, array):  # type: ignore[no-untyped-def]
    def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
        y = context.make_array(array)(context, builder, values[0])
        start, size = builder.ptrtoint(y.data, WORD), builder.mul(y.nitems, y.itemsize)
        skipped = builder.and_(builder.neg(start), ir.Constant(WORD, mmap.PAGESIZE - 1))  # to a whole page
        advice = ir.Constant(ir.IntType(32), mmap.MADV_HUGEPAGE)
        kind = ir.FunctionType(ir.IntType(32), [WORD, WORD, ir.IntType(32)])
        madvise = cgutils.get_or_insert_function(builder.module, kind, "madvise")
        builder.call(madvise, [builder.add(start, skipped), builder.sub(size, skipped), advice])
        return context.get_dummy_value()

    return types.none(array), codegen


def _as_float64(variable: Any) -> Callable:
    if variable.dtype == "float64":
        return numba_njit(lambda value: value)
    return numba_njit(lambda value: value.astype(np.float64))


def _check(ndim: int, axes: tuple[int, ...]) -> Callable:
    """Refuses a bound that does not broadcast against the groups of x."""
    if ndim == 0:
        return numba_njit(lambda bound, x: None)
    kept = np.array([axis not in axes for axis in range(ndim)])

    @numba_njit
    def check(bound, x):  # type: ignore[no-untyped-def]
        for axis in range(ndim):
            length = bound.shape[axis]
            if length != 1 and not (kept[axis] and length == x.shape[axis]):
                raise ValueError("max_norm or epsilon: must broadcast against the norms, the reduced axes kept as 1")

    return check
