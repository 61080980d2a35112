"""NUMBA mode: what an element-wise operation makes is constrained as it is made, to the same bits as one by one."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

pytensor = pytest.importorskip("pytensor")

import pytensor.tensor as pt  # noqa: E402
from oracle import broken_laws, same_bits  # noqa: E402
from pytensor.compile.mode import Mode, get_mode  # noqa: E402

from normball import kernels, norm_constraint  # noqa: E402
from normball.backends.pytensor import NormConstraint  # noqa: E402
from normball.backends.pytensor_fusion import ProducedNormConstraint  # noqa: E402

pytestmark = pytest.mark.skipif(kernels.best is kernels.fallback, reason="the C kernels are not built")

FUSED = get_mode("NUMBA")
ONE_BY_ONE = FUSED.excluding("normball_fusion")
IN_PYTHON = Mode("py", "fast_run").including("normball_fusion")
X = np.random.default_rng(1).standard_normal((40, 50)) * 3
S = np.random.default_rng(2).standard_normal((40, 50))


def count(function, kind):
    return sum(isinstance(node.op, kind) for node in function.maker.fgraph.apply_nodes)


def compiled(inputs, outputs, mode, fused=1):
    """The function; `fused` of its norm constraints make their own input, and in ONE_BY_ONE none does."""
    function = pytensor.function(inputs, outputs, mode=mode)
    assert count(function, ProducedNormConstraint) == (0 if mode is ONE_BY_ONE else fused)
    return function


RULES = {
    "sum": lambda w, s, c: norm_constraint(w + s, c),
    "composite": lambda w, s, c: norm_constraint(pt.tanh(w) * c - s / 7 + pt.switch(s > 0, w, 1.0), c, 1),
    "target is not first": lambda w, s, c: norm_constraint(s - pt.sqr(w), c, (), ord=1),
    "single entry": lambda w, s, c: norm_constraint(w - c * s, 2.0, ord=np.inf),
    "one group": lambda w, s, c: norm_constraint(w * 1.5 + c + s, c * 9, (0, 1)),
    "a bound per group": lambda w, s, c: norm_constraint(w + s, pt.abs(s[0]) + c, epsilon=c),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_updates_have_the_bits_of_one_by_one(rule, dtype):
    """A shared update: the result goes to where w was."""
    results = []
    for mode in (FUSED, ONE_BY_ONE):
        w, s, c = (pytensor.shared(v.astype(dtype)) for v in (X, S, np.asarray(1.5)))
        update = pytensor.function([], [], updates=[(w, rule(w, s, c))], mode=mode)
        assert count(update, ProducedNormConstraint) == (mode is FUSED)
        assert count(update, NormConstraint) == (mode is not FUSED)
        address = w.get_value(borrow=True).ctypes.data
        update()
        assert w.get_value(borrow=True).ctypes.data == address
        update()
        results.append(w.get_value())
    assert same_bits(*results)
    assert not same_bits(results[0], X.astype(dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("axes, ord", [((0,), 2), ((1,), 1), ((0, 1), np.inf), ((), 2)])
def test_the_laws_hold_in_fresh_and_in_used_memory(axes, ord, dtype):
    x, s = (pt.matrix(dtype=dtype) for _ in range(2))
    fresh = compiled([x, s], norm_constraint(x + s, 2.0, axes, ord=ord), FUSED)
    w = pytensor.shared(X.astype(dtype))
    update = pytensor.function([s], [], updates=[(w, norm_constraint(w + s, 2.0, axes, ord=ord))], mode=FUSED)
    values = X.astype(dtype), S.astype(dtype)
    given, y = values[0] + values[1], fresh(*values)
    update(values[1])
    for found in (y, w.get_value()):
        assert not broken_laws(given, found, 2.0, axes, ord=ord)
        assert broken_laws(given, found, 0.5, axes, ord=ord)  # the judge can say no
    assert same_bits(values[0], X.astype(dtype))


def test_any_layout_and_any_length():
    """Memory that is not in order is read one by one: the graph cannot know."""
    x, s, c = pt.fmatrix(), pt.fmatrix(), pt.fscalar()
    y = norm_constraint(x * c + s, c)
    functions = [compiled([x, s, c], y, mode) for mode in (FUSED, ONE_BY_ONE, IN_PYTHON)]
    big, small = X.astype("float32"), S.astype("float32")
    wide = np.random.default_rng(3).standard_normal((2, 3000, 70), dtype="float32")
    pairs = [(big, small), (big.T, small.T), (big[::-1, ::2], small[:, :25]), (big[:, :25], small[:, ::2])]
    pairs += [(big[:0], small[:0]), (big[:, :0], small[:, :0]), (big[:1], small[:1]), (big[:, :1], small[:, :1])]
    pairs += [tuple(wide), (wide[0].T, wide[1].T), (np.asfortranarray(big), small), (wide[0, :, :1], wide[1, :, :1])]
    for values in pairs:
        results = [function(*values, np.float32(1.25)) for function in functions]
        assert results[0].shape == values[0].shape
        # Python's product and sum round twice where compiled code may round once.
        assert same_bits(*results[:2])
        np.testing.assert_allclose(results[2], results[0], rtol=1e-5, atol=1e-6)


def test_the_same_bits_in_python_where_operations_are_exact():
    x, s = pt.dmatrix(), pt.dmatrix()
    y = norm_constraint(x + s, 2.0)
    assert same_bits(compiled([x, s], y, FUSED)(X, S), compiled([x, s], y, IN_PYTHON)(X, S))


def test_other_dtypes_are_cast_on_the_way():
    x, i, b, h = pt.dmatrix(), pt.imatrix(), pt.bmatrix(), pt.matrix(dtype="bool")
    y = norm_constraint(pt.cast(x * i - b + h, "float32"), 2.0)
    values = [X, (S * 9).astype("int32"), S.astype("int8"), S > 0]
    assert same_bits(*(compiled([x, i, b, h], y, mode)(*values) for mode in (FUSED, ONE_BY_ONE)))
    h = pt.matrix(dtype="float16")  # not for numba
    with pytest.raises(NotImplementedError):
        pytensor.function([h], norm_constraint(pt.cast(h, "float32") * 2, 2.0), mode=FUSED)(X.astype("float16"))


def test_functions_of_the_same_code_are_told_apart():
    """In one graph: constants and operations differ, the loop around them does not."""
    inputs = [pt.dmatrix() for _ in range(5)]
    made = [rule(x) for rule, x in zip((lambda x: x * 2, lambda x: x * 3, pt.sqr, pt.exp, pt.neg), inputs, strict=True)]
    ys = [norm_constraint(z, 2.0) for z in made]
    results = [compiled(inputs, ys, mode, 5)(*[X + k for k in range(5)]) for mode in (FUSED, ONE_BY_ONE)]
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert same_bits(results[0][1], norm_constraint((X + 1) * 3, 2.0))


def momentum(w, v, a, g):
    step = v * 0.875 - g
    return {v: step, w: norm_constraint(w + step, 2.0)}


def adam(w, v, a, g):
    mean, square = v * 0.875 + g / 8, a * 0.5 + pt.sqr(g) / 2
    return {v: mean, a: square, w: norm_constraint(w - mean / (pt.sqrt(square) + 1), 2.0)}


def bound_by_another_result(w, v, a, g):
    step = v * 0.875 - g
    return {v: step, w: norm_constraint(w + step, pt.abs(step[:1]) + 1)}


@pytest.mark.parametrize("rule, fused", [(momentum, 1), (adam, 1), (bound_by_another_result, 0)])
def test_optimizers_with_a_state(rule, fused):
    """One loop makes all results, and all of them go where they were."""
    results = []
    for mode in (FUSED, ONE_BY_ONE):
        variables = [pytensor.shared(value) for value in (X.copy(), S.copy(), np.abs(S), X[::-1].copy())]
        update = pytensor.function([], [], updates=rule(*variables), mode=mode)
        assert count(update, ProducedNormConstraint) == (fused if mode is FUSED else 0)
        before = [v.get_value(borrow=True).ctypes.data for v in variables]
        update()
        update()
        if fused:
            assert [v.get_value(borrow=True).ctypes.data for v in variables] == before
        results.append([v.get_value() for v in variables])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_a_loop_over_more_arrays_than_llvm_would_vectorise_is_left_alone():
    xs = [pt.dmatrix() for _ in range(9)]
    for arrays, fused in ((xs, 0), (xs[:8], 1)):
        functions = [
            compiled(arrays, norm_constraint(pt.add(*arrays), 2.0), mode, fused) for mode in (FUSED, ONE_BY_ONE)
        ]
        assert same_bits(*(function(*[X] * len(arrays)) for function in functions))


def test_what_others_read_is_kept():
    x, s = pt.dmatrix(), pt.dmatrix()
    z = x + s
    for outputs in ([norm_constraint(z, 2.0), z], [norm_constraint(z, 2.0), norm_constraint(z, 1.0)]):
        results = [compiled([x, s], outputs, mode, 0)(X, S) for mode in (FUSED, ONE_BY_ONE)]
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert same_bits(
        compiled([x, s], norm_constraint(z, pt.abs(z[:1])), FUSED, 0)(X, S), norm_constraint(X + S, np.abs((X + S)[:1]))
    )


def test_a_bound_in_the_memory_that_is_overwritten():
    for bound in (lambda w: w[:1], lambda w: pt.sqr(w[:1])):
        w, s = pytensor.shared(X + 9), pytensor.shared(S)
        pytensor.function([], [], updates=[(w, norm_constraint(w + s, bound(w)))], mode=FUSED)()
        v, s = pytensor.shared(X + 9), pytensor.shared(S)
        pytensor.function([], [], updates=[(v, norm_constraint(v + s, bound(v)))], mode=ONE_BY_ONE)()
        assert same_bits(w.get_value(), v.get_value())


def test_an_input_that_overlaps_the_target():
    for other in (lambda w: w.T, lambda w: w[::-1], lambda w: w):
        results = []
        for mode in (FUSED, ONE_BY_ONE):
            w = pytensor.shared(X[:, :40].copy())
            pytensor.function([], [], updates=[(w, norm_constraint(w * 2 - other(w) / 3, 2.0))], mode=mode)()
            results.append(w.get_value())
        assert same_bits(*results)


def test_what_cannot_be_made_entry_by_entry_is_left_alone():
    x, row, integers = pt.dmatrix(), pt.dvector(), pt.imatrix()
    inputs, values = [x, row, integers], [X, X[0], S.astype("int32")]
    ys = [norm_constraint(x + row, 2.0), norm_constraint(x[1:], 2.0), norm_constraint(pt.erf(x), 2.0)]
    ys += [norm_constraint(pt.gammainc(pt.abs(x) + 1, pt.abs(x)), 2.0), norm_constraint(x, 2.0)]
    results = [pytensor.function(inputs, ys, mode=mode, on_unused_input="ignore") for mode in (FUSED, ONE_BY_ONE)]
    assert count(results[0], ProducedNormConstraint) == 0
    assert all(same_bits(a, b) for a, b in zip(*(function(*values) for function in results), strict=True))


def test_gradients_and_scans():
    x, s = pt.dmatrix(), pt.dmatrix()
    y = norm_constraint(x * 2 + s, 2.0)
    steps = pytensor.scan(
        lambda w, s: norm_constraint(w * 1.5 + s, 2.0),
        outputs_info=[x],
        non_sequences=[s],
        n_steps=3,
        return_updates=False,
    )
    outputs = [*pt.grad((y**2).sum(), [x, s]), steps[-1]]
    results = [pytensor.function([x, s], outputs, mode=mode)(X, S) for mode in (FUSED, ONE_BY_ONE)]
    for found, right in zip(*results, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-14)
    assert same_bits(results[0][-1], results[1][-1])


def test_what_does_not_fit_is_refused_before_anything_is_written():
    s, bound = pt.dmatrix(), pt.dvector()
    w = pytensor.shared(X.copy())
    update = pytensor.function([s, bound], [], updates=[(w, norm_constraint(w + s, bound))], mode=FUSED)
    assert count(update, ProducedNormConstraint) == 1
    with pytest.raises(ValueError, match=r"max_norm.* must broadcast against the norms"):
        update(S, np.ones(4))
    assert same_bits(w.get_value(), X)
    for bad in (S[:1], S[:, :1], S[:7]):
        with pytest.raises(ValueError, match="shape"):
            update(bad, np.ones(50))
    update(S, np.ones(50))
    assert same_bits(w.get_value(), norm_constraint(X + S, 1.0))


def test_threads_of_python_do_not_meet():
    x, s = pt.dmatrix(), pt.dmatrix()
    compute = compiled([x, s], norm_constraint(x * 2 + s, 2.0), FUSED)
    functions = [compute.copy() for _ in range(4)]
    values = [(np.tile(X + k, (20, 20)), np.tile(S - k, (20, 20))) for k in range(4)]
    wanted, wrong = [compute(*pair) for pair in values], []

    def work(k):
        for _ in range(20):
            if not same_bits(functions[k](*values[k]), wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_process_that_loads_the_compiled_code_computes_the_same(tmp_path):
    """Code and kernel lie elsewhere in it: an address in numba's cache would be another process's."""
    code = """
        import sys, numpy as np, pytensor, pytensor.tensor as pt
        from pathlib import Path
        from normball import norm_constraint
        from normball.kernels import _native
        X = np.random.default_rng(1).standard_normal((300, 70)) * 3
        w = pytensor.shared(X)
        f = pytensor.function([], [], updates=[(w, norm_constraint(w * 2 + 1, 2.0))], mode="NUMBA")
        f()
        print("ProducedNormConstraint" in str([type(n.op) for n in f.maker.fgraph.apply_nodes]))
        print(w.get_value().sum().hex())
        print(sum(1 for _ in Path(pytensor.config.base_compiledir).rglob("*.nbc")))
        print(_native.addresses["normball_constrain"])
    """
    environment = os.environ | {"PYTENSOR_FLAGS": f"base_compiledir={tmp_path}"}
    runs = []
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split())
    assert runs[0][:3] == runs[1][:3]
    assert runs[0][0] == "True"
    assert int(runs[0][2]) > 0  # it was cached, and the second process added nothing


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
def test_large_fresh_outputs_come_in_huge_pages():
    """As NumPy's own do, and as NumPy's setting says."""
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offered.exists() or "[never]" in offered.read_text():
        pytest.skip("this system has no huge pages to give")
    code = """
        import resource, numpy as np, pytensor, pytensor.tensor as pt
        from normball import norm_constraint
        x, X = pt.fmatrix(), np.ones((4096, 4096), "float32")
        for y in (norm_constraint(x, 3.0), norm_constraint(x * 2, 3.0)):
            f = pytensor.function([x], y, mode="NUMBA")
            f(X)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            f(X)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    faults = []
    for setting in ("1", "0"):
        environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": setting}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
        faults.append([int(line) for line in done.stdout.split()])
    assert all(huge < small / 2 for huge, small in zip(*faults, strict=True)), faults
