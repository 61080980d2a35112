"""The C kernel inside PyTensor's compiled NUMBA functions, called by its symbol: no way through Python objects."""

import hashlib
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
# PyTensor's cache on disk knows a function by its Op, not by its code: other code, or another kernel behind the
# symbol, must have another key.
_CODE = b"".join(Path(file).read_bytes() for file in (__file__, _native.__file__))
SALT = int(hashlib.sha256(_CODE).hexdigest()[:8], 16)
WORD = ir.IntType(64)  # pointers as integers: the same registers, and no types to match

binding.add_symbol(SYMBOL, _native.addresses[SYMBOL])


def norm_constraint(op: Any, node: Any) -> Callable:
    """What `NormConstraint.perform` does, for the linker to compile."""
    x, max_norm, epsilon = node.inputs
    inplace = bool(op.inplace)
    kernel = _kernel(x.dtype, op.axes, op.ord)
    wide_bound, wide_epsilon = _as_float64(max_norm), _as_float64(epsilon)
    check_bound, check_epsilon = _check(max_norm.ndim, op.axes), _check(epsilon.ndim, op.axes)

    @numba_njit(fastmath=False)
    def constrain(x, max_norm, epsilon):  # type: ignore[no-untyped-def]
        bound, small = wide_bound(max_norm), wide_epsilon(epsilon)
        check_bound(bound, x)  # before anything is written
        check_epsilon(small, x)
        y = x if inplace else np.empty(x.shape, x.dtype)
        kernel((x,), y, bound, small)
        return y

    return constrain


def produced_norm_constraint(op: Any, node: Any, **kwargs: Any) -> tuple[Callable, str | None]:
    """What `ProducedNormConstraint.perform` does: the kernel asks for the entries as it comes to them."""
    *sources, max_norm, epsilon = node.inputs
    [output] = node.outputs
    elemwise, elemwise_key = numba_funcify_ensure_cache(op.elemwise, node=op.elemwise.make_node(*sources), **kwargs)
    scalar, scalar_key = numba_funcify_and_cache_key(op.elemwise.scalar_op, node=op.scalar_node(sources), **kwargs)
    whole = [source.type.broadcastable == output.type.broadcastable for source in sources]
    [model, *_] = [index for index, same in enumerate(whole) if same]
    target = op.elemwise.inplace_pattern.get(0)
    dtype = np.dtype(output.dtype)
    plain = _kernel(output.dtype, op.constraint.axes, op.constraint.ord)
    producing = _kernel(
        output.dtype, op.constraint.axes, op.constraint.ord, _block(scalar, sources, whole, target, output)
    )
    fits = _fits(whole, model)
    wide_bound, wide_epsilon = _as_float64(max_norm), _as_float64(epsilon)
    check_bound, check_epsilon = (_check(bound.ndim, op.constraint.axes) for bound in (max_norm, epsilon))
    first = numba_njit(_function(f"first(sources): return sources[{model}]"))  # numba indexes tuples by literals only
    place = f"sources[{target}]" if target is not None else f"empty(sources[{model}].shape, dtype)"
    place = numba_njit(_function(f"place(sources): return {place}", empty=np.empty, dtype=dtype))

    @numba_njit(fastmath=False)
    def constrain(*inputs):  # type: ignore[no-untyped-def]
        sources = inputs[:-2]
        bound, small = wide_bound(inputs[-2]), wide_epsilon(inputs[-1])
        if fits(sources):
            check_bound(bound, first(sources))
            check_epsilon(small, first(sources))
            y = place(sources)
            producing(sources, y, bound, small)
            return y
        x = elemwise(*sources)
        check_bound(bound, x)
        check_epsilon(small, x)
        plain((x,), x, bound, small)
        return x

    if elemwise_key is None or scalar_key is None:
        return constrain, None
    layout = [source.type.broadcastable for source in sources]
    parts = (type(op), op.constraint._props(), elemwise_key, scalar_key, layout, str(dtype), SALT)
    return constrain, hashlib.sha256(str(parts).encode()).hexdigest()


def _kernel(dtype: str, axes: tuple[int, ...], ord: float, block: Callable | None = None) -> Callable:
    """The call of the C kernel, from sources to y: the source is x, or what `block` makes y of, block by block."""
    codes = native.DTYPES[dtype], sum(1 << axis for axis in axes), native.ORDERS[ord]

    @intrinsic
    def kernel(typing_context, sources, y, bound, small):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, values):  # type: ignore[no-untyped-def]
            kinds = signature.args
            arrays = [_opened(context, builder, *pair) for pair in zip(kinds[1:], values[1:], strict=True)]
            parts = cgutils.unpack_tuple(builder, values[0], len(kinds[0].types))
            inputs = [_opened(context, builder, *pair) for pair in zip(kinds[0].types, parts, strict=True)]
            _call_kernel(context, builder, codes, kinds[1].ndim, inputs, arrays, block)
            return context.get_dummy_value()

        return types.none(sources, y, bound, small), codegen

    return kernel


def _opened(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value)


def _call_kernel(
    context: Any, builder: Any, codes: tuple[int, int, int], ndim: int, inputs: list, arrays: list, block: Any
) -> None:
    """One call of `normball_constrain`, its structs on the stack; the caller's variables keep the arrays alive."""

    def number(value: int) -> Any:
        return ir.Constant(WORD, value)

    def address(pointer: Any) -> Any:
        return builder.ptrtoint(pointer, WORD)

    def stored(words: list) -> Any:
        return address(cgutils.alloca_once_value(builder, cgutils.pack_array(builder, [*words, number(0)])))

    def words_of(pack: Any) -> list:
        return cgutils.unpack_tuple(builder, pack)

    def broadcast_strides(bound: Any) -> Any:
        lengths, strides = words_of(bound.shape), words_of(bound.strides)
        ones = [builder.icmp_signed("==", length, number(1)) for length in lengths]
        return stored(
            [builder.select(one, number(0), stride) for one, stride in zip(ones, strides, strict=True)]
            or [number(0)] * ndim
        )

    dtype, reduced, ord = codes
    y, bound, small = arrays
    x = y if block else inputs[0]
    array = [number(dtype), number(ndim), number(reduced), stored(words_of(x.shape)), address(x.data)]
    array += [stored(words_of(x.strides)), address(y.data), stored(words_of(y.strides))]
    for each in (bound, small):
        array += [address(each.data), broadcast_strides(each)]
    call = number(0)
    if block:
        memory = stored([address(each.data) for each in (y, *inputs)])
        call = stored([number(0), number(0), _c_function(context, builder, block), memory])
    kernel = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), [WORD] * 4), SYMBOL)
    builder.call(kernel, [number(1), stored(array), number(ord), call])


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


def _block(scalar: Callable, sources: list, whole: list[bool], target: int | None, output: Any) -> Callable:
    """Python code of produce(context, begin, end): the entries begin to end of y from those of the sources.

    Memory that is overwritten is read under y's name alone: under two, LLVM would not vectorise.
    """
    lines = [f"words = carray(pointer(context), ({len(sources) + 1},), int64)"]
    entries, names = [], {"carray": numba.carray, "pointer": _pointer, "int64": np.int64, "scalar": scalar}

    def open_at(name: str, word: int, dtype: str) -> str:
        names[f"{name}_type"] = np.dtype(dtype)
        start = f"words[{word}] + begin * {np.dtype(dtype).itemsize}"
        return f"{name} = carray(pointer({start}), (end - begin,), {name}_type)"

    lines.append(open_at("y", 0, output.dtype))
    for index, source in enumerate(sources):
        name = f"x{index}"
        if index == target:
            entries.append("y[i]")
        elif whole[index]:
            lines.append(open_at(name, index + 1, source.dtype))
            entries.append(f"{name}[i]")
        else:
            names[f"{name}_type"] = np.dtype(source.dtype)
            lines.append(f"{name} = carray(pointer(words[{index + 1}]), (1,), {name}_type)[0]")
            entries.append(name)
    lines += ["for i in range(end - begin):", f"    y[i] = scalar({', '.join(entries)})"]
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
