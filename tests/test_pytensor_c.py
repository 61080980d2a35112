"""Our Ops in PyTensor's C linkers: the code is C's, and does to the letter what `perform` does."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytensor = pytest.importorskip("pytensor")

import pytensor.tensor as pt  # noqa: E402
from oracle import same_bits  # noqa: E402
from pytensor.compile.mode import Mode, get_mode  # noqa: E402
from pytensor.link.vm import VMLinker  # noqa: E402

from normball import compute_norms, kernels, norm_constraint, total_norm_constraint  # noqa: E402
from normball.backends.pytensor import NormConstraint, Norms, TotalNormConstraint  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not pytensor.config.cxx, reason="PyTensor has no C++ compiler here"),
    pytest.mark.skipif(kernels.best is kernels.fallback, reason="the C kernels are not built"),
]

WHOLE_GRAPH = Mode("c", "fast_run")  # as one C module
X = np.random.default_rng(1).standard_normal((4, 5)) * 3


@pytest.fixture
def no_python(monkeypatch):
    """Every `perform` of ours raises."""

    def perform(self, *args):
        raise AssertionError("perform was called")

    for op in (NormConstraint, TotalNormConstraint, Norms):
        monkeypatch.setattr(op, "perform", perform)


def test_python_can_be_noticed(no_python):
    x = pt.dmatrix()
    for y in (norm_constraint(x, 2.0), *total_norm_constraint([x], 2.0), compute_norms(x)):
        with pytest.raises(AssertionError, match="perform was called"):
            pytensor.function([x], y, mode="FAST_COMPILE")(X)


@pytest.mark.parametrize(
    "dtype, ord, mode",
    [("float64", 1, "CVM"), ("float32", 2, "CVM"), ("float16", np.inf, "CVM"), ("float16", 2, WHOLE_GRAPH)],
    ids=str,
)
def test_the_same_bits_without_python(dtype, ord, mode, no_python):
    x, y = pt.tensor(dtype=dtype, shape=(None, None, None)), pt.matrix(dtype="float32")
    each, one, small = pt.tensor(dtype="float32", shape=(None, 1, None)), pt.scalar(dtype=dtype), pt.scalar(dtype=dtype)
    total, norm = total_norm_constraint([x, y], one, small, return_norm=True, ord=ord)
    outputs = [norm_constraint(x, each, 1, small, ord=ord), norm_constraint(x, one, (0, 2), each[:1, :, :1], ord=ord)]
    outputs += [*total, norm, compute_norms(x, 1, ord=ord), Norms((1,), ord)(x, each)]
    compute = pytensor.function([x, y, each, one, small], outputs, mode=mode)
    cube = np.random.default_rng(2).standard_normal((3, 4, 5)) * 3
    for whole in (cube, cube[::-1, :, ::2], np.asfortranarray(cube), cube.transpose(2, 0, 1), cube[:0], cube[:, :0]):
        value, other, c = whole.astype(dtype, order="K"), X.astype("float32")[:, ::-1], np.asarray(2.5, dtype)
        e = np.asarray(0.25, dtype)
        limits = np.linspace(0.5, 6, whole.shape[0] * whole.shape[2], dtype="float32")
        limits = limits.reshape(whole.shape[0], 1, whole.shape[2])
        if not whole.size:
            limits = limits[:1, :, :1] if limits.size else np.ones((1, 1, 1), "float32")
        totals, all_norm = total_norm_constraint([value, other], c, e, return_norm=True, ord=ord)
        wanted = [norm_constraint(value, limits, 1, e, ord=ord)]
        wanted += [norm_constraint(value, c, (0, 2), limits[:1, :, :1], ord=ord), *totals, np.asarray(all_norm)]
        wanted += [compute_norms(value, 1, ord=ord)]
        *found, settled = compute(value, other, limits, c, e)
        for result, right in zip(found, wanted, strict=True):
            assert result.dtype == right.dtype
            assert same_bits(result, right)
        np.testing.assert_array_equal(settled <= limits, compute_norms(value, 1, ord=ord)[:, None] <= limits)


def test_a_bound_that_does_not_fit_is_the_same_error(no_python):
    x, bound = pt.dmatrix(), pt.dvector()
    graphs = [norm_constraint(x, bound), norm_constraint(x, 1.0, epsilon=bound), Norms((0,), 2)(x, bound[None])]
    for y, name in zip(graphs, ("max_norm", "epsilon", "max_norm"), strict=True):
        compute = pytensor.function([x, bound], y, mode="CVM")
        assert compute(X, np.ones(5)).shape[1] == 5
        for length in (4, 0):
            message = rf"^{name} of shape \(1, {length}\): must broadcast against the norms, of shape \(1, 5\)"
            with pytest.raises(ValueError, match=message):
                compute(X, np.ones(length))
        assert compute(X, np.ones(5)).shape[1] == 5


def test_updates_are_in_place(no_python):
    step = pt.dmatrix()
    v, w = pytensor.shared(X[:2].copy()), pytensor.shared(X.copy())
    one = norm_constraint(w + step, 2.0)
    pair = total_norm_constraint([v * 2, w * 2], 2.0)
    for updates in ([(w, one)], list(zip((v, w), pair, strict=True))):
        for variable, value in ((v, X[:2]), (w, X)):
            variable.set_value(value)
        update = pytensor.function([step], [], updates=updates, mode="CVM", on_unused_input="ignore")
        (op,) = [
            n.op for n in update.maker.fgraph.apply_nodes if isinstance(n.op, (NormConstraint, TotalNormConstraint))
        ]
        assert op.destroy_map == {index: [index] for index in range(len(updates))}
        before = [variable.get_value(borrow=True).ctypes.data for variable, _ in updates]
        update(X)
        assert [variable.get_value(borrow=True).ctypes.data for variable, _ in updates] == before
        right = [norm_constraint(X * 2, 2.0)] if len(updates) == 1 else total_norm_constraint([X[:2] * 2, X * 2], 2.0)
        assert all(same_bits(variable.get_value(), y) for (variable, _), y in zip(updates, right, strict=True))


@pytest.mark.parametrize("in_c", [True, False], ids=["C", "Python"])
def test_outputs_are_reused_where_they_fit_and_nobody_reads_them(in_c):
    """Borrowed outputs may come back as any input; then they are neither written nor read too late."""
    x, y, c = pt.dmatrix(), pt.dmatrix(), pt.drow()
    kept = [pytensor.Out(v, borrow=True) for v in (norm_constraint(x, c), *total_norm_constraint([x, y], 2.0))]
    linker = VMLinker(allow_gc=False, use_cloop=in_c, c_thunks=in_c)  # else every output is let go after the call
    compute = pytensor.function([x, y, c], kept, mode=Mode(linker, "fast_run"))
    limits = np.full((1, 5), 2.0)
    addresses = {tuple(out.ctypes.data for out in compute(X, X * 2, limits)) for _ in range(3)}
    assert len(addresses) == 1
    one, two, three = compute(X, X * 2, limits)
    assert compute(X[:2], X[:3], limits)[0].shape == (2, 5)
    for values in ((one, two, limits), (two, three, limits), (three, two, limits), (two, two, limits)):
        before = [value.copy() for value in values]
        found = [out.copy() for out in compute(*values)]
        right = [norm_constraint(before[0], before[2]), *total_norm_constraint(before[:2], 2.0)]
        assert all(same_bits(a, b) for a, b in zip(values, before, strict=True))
        assert all(same_bits(a, b) for a, b in zip(found, right, strict=True))
        one, two, three = compute(X, X * 2, limits)
    row = compute(np.abs(X[:1]), X, limits)[0]  # a bound
    before = row.copy()
    assert same_bits(compute(X[:1] * 2, X, row)[0], norm_constraint(X[:1] * 2, before))


def test_debug_mode_finds_nothing_in_the_c_code():
    """It compares C with Python, and hands C outputs of every layout to reuse."""
    x, c = pt.dmatrix(), pt.dscalar()
    (total,), norm = total_norm_constraint([x * 3], c, return_norm=True)
    mode = type(get_mode("DEBUG_MODE"))(check_isfinite=False, check_preallocated_output="ALL")
    outputs = [norm_constraint(x * 2, c), norm_constraint(x, c), total, norm, compute_norms(x)]
    found = pytensor.function([x, c], outputs, mode=mode)(X, 2.0)
    assert same_bits(found[0], norm_constraint(X * 2, 2.0))


def test_without_the_c_kernels_it_is_python():
    code = """if True:
        import numpy as np, pytensor, pytensor.tensor as pt, normball
        from normball.backends.pytensor import NormConstraint
        x, calls, perform = pt.dmatrix(), [], NormConstraint.perform
        NormConstraint.perform = lambda self, *args: (calls.append(0), perform(self, *args))[1]
        compute = pytensor.function([x], normball.norm_constraint(x, 2.0), mode="CVM")
        assert (compute([[3.0], [4.0]]) <= 2).all()
        print(len(calls))
    """
    for environment, calls in (({"NORMBALL_KERNEL": "numpy"}, "1"), ({}, "0")):
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, env=os.environ | environment)
        assert done.stdout.strip() == calls, done.stderr
