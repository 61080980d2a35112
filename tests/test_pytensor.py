"""PyTensor beyond the laws: types, bounds, updates in place, and the graph manipulations that users rely on."""

import math
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

pytensor = pytest.importorskip("pytensor")

import pytensor.tensor as pt  # noqa: E402
from conftest import installed  # noqa: E402
from oracle import broken_laws, same_bits  # noqa: E402
from pytensor.compile.mode import Mode  # noqa: E402
from pytensor.graph.replace import clone_replace, vectorize_graph  # noqa: E402

from normball import compute_norms, kernels, norm_constraint, total_norm_constraint  # noqa: E402
from normball.backends.pytensor import NormConstraint, Norms, TotalNormConstraint  # noqa: E402

PYTHON = Mode("py", "fast_run")  # every rewrite, in-place ones too, and no compiler
MODES = ["FAST_COMPILE", "CVM", "NUMBA"]
MODES += ["JAX"] if installed("jax") else []
MODES += ["PYTORCH"] if installed("torch") else []
EXACT = [mode for mode in MODES if mode != "JAX"]

X = np.random.default_rng(1).standard_normal((4, 5)) * 3
TWICE = norm_constraint(X * 2, 2.0)


def ops(function, kind=object):
    """Our own, those that NUMBA mode makes included."""
    nodes = function.maker.fgraph.toposort()
    return [node.op for node in nodes if type(node.op).__module__.startswith("normball.") and isinstance(node.op, kind)]


def run(outputs, inputs=(), values=(), mode=PYTHON, **options):
    return pytensor.function(list(inputs), outputs, mode=mode, **options)(*values)


# Types


@pytest.mark.parametrize("floatx", ["float64", "float32", "float16"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_output_is_of_the_inputs_type(dtype, floatx):
    with pytensor.config.change_flags(floatX=floatx):
        x = pt.tensor(dtype=dtype, shape=(4, None))
        schedule = pt.scalar()
        for y in (norm_constraint(x, 3.0), norm_constraint(x, schedule), *total_norm_constraint([x], schedule)):
            assert y.type == x.type
            assert pt.grad(y.sum(), x).type.dtype == dtype
        w = pytensor.shared(X.astype(dtype))
        step = pytensor.function([], [], updates=[(w, norm_constraint(w * np.asarray(2, dtype), 2.0))], mode=PYTHON)
        step()
        assert same_bits(w.get_value(), norm_constraint(X.astype(dtype) * np.asarray(2, dtype), 2.0))


def test_mixed_dtypes_keep_theirs():
    x, y, w = pt.dmatrix(), pt.vector(dtype="float16"), pytensor.shared(np.ones(3, "float32"))
    plain = np.ones(2, "float32")
    constrained, norm = total_norm_constraint((v for v in (x, y, w, plain)), 1.0, return_norm=True)
    assert [v.type.dtype for v in (*constrained, norm)] == ["float64", "float16", "float32", "float32", "float64"]
    values = [X, np.ones(3, "float16")]
    wanted, wanted_norm = total_norm_constraint([*values, w.get_value(), plain], 1.0, return_norm=True)
    *found, found_norm = run([*constrained, norm], [x, y], values)
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))
    assert found_norm == wanted_norm
    assert total_norm_constraint([], pt.dscalar()) == []
    assert total_norm_constraint(iter([]), 1.0, return_norm=True) == ([], 0.0)


def test_compute_norms_of_every_kind_of_variable():
    x = pt.dmatrix()
    of_variable = run(compute_norms(x), [x], [X])
    for other in (pytensor.shared(X), pt.constant(X)):
        assert same_bits(run(compute_norms(other)), of_variable)
    assert same_bits(of_variable, compute_norms(X))
    v = pt.dvector()
    assert same_bits(run(compute_norms(v), [v], [X[0]]), np.abs(X[0]))


def test_what_is_no_dense_float_tensor_is_refused():
    import pytensor.sparse
    from pytensor.tensor.type_other import NoneConst

    sparse = pytensor.sparse.csr_matrix(dtype="float64")
    others = [pt.imatrix(), pt.bmatrix(), pt.zmatrix(), pt.matrix(dtype="bool")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # xtensor is experimental, and says so
        from pytensor.xtensor import xtensor
    for bad in (sparse, xtensor(dtype="float64", dims=("a", "b")), NoneConst, *others):
        for refused in (norm_constraint, lambda v, c: total_norm_constraint([v], c)):
            with pytest.raises(TypeError, match=r"tensor_var of (dtype|type)"):
                refused(bad, 1.0)
    with pytest.raises(TypeError, match="never written to"):
        norm_constraint(pt.dmatrix(), 1.0, out=np.empty((2, 2)))


# Bounds


def test_bounds_of_every_kind():
    x, bound, each = pt.dmatrix(), pt.dscalar(), pt.fvector()
    numbers = [2, 2.0, np.float32(2), np.array(2), np.full(5, 2), np.full((1, 5), 2.0), [2.0] * 5, [bound, 2, 2, 2, 2]]
    symbols = [pt.constant(2), bound, bound * each / 2, bound * np.ones(5)]
    epsilons = [2.0**-20, np.full((1, 5), 2.0**-20), np.float32(2.0**-20), pytensor.shared(np.float32(2.0**-20))]
    wanted = [norm_constraint(X, 2.0, epsilon=0)] * len([*numbers, *symbols])
    wanted += [norm_constraint(X, 2.0, epsilon=2.0**-20)] * len(epsilons)
    outputs = [norm_constraint(x, c, epsilon=0) for c in (*numbers, *symbols)]
    outputs += [norm_constraint(x, 2, epsilon=e) for e in epsilons]
    found = run(outputs, [x, bound, each], [X, 2.0, np.full(5, 2, "float32")])
    assert all(same_bits(a, b) for a, b in zip(found, wanted, strict=True))
    assert not same_bits(wanted[0], wanted[-1])


@pytest.mark.parametrize("mode", MODES)
def test_a_schedule_moves_without_compiling_again(mode):
    x, whole, row = pt.dmatrix(), pt.iscalar(), pt.tensor(dtype="float64", shape=(1, None))
    scalar, vector = pytensor.shared(2.0), pytensor.shared(np.full(5, 2.0, "float32"))
    outputs = [norm_constraint(x, c, epsilon=0) for c in (whole, row, scalar, vector)]
    compute = pytensor.function([x, whole, row], outputs, mode=mode)
    band = 4 if mode == "JAX" else 0
    for limits in (np.full(5, 2.0), np.full(5, 1.0)):
        scalar.set_value(limits[0])
        vector.set_value(limits.astype("float32"))
        for y in compute(X, int(limits[0]), limits[None]):
            assert not broken_laws(X, np.asarray(y), limits, (0,), 0, band=band)
            assert broken_laws(X, np.asarray(y), limits / 2, (0,), 0, band=band)  # the judge can say no


def test_wrong_shapes_are_refused_as_early_as_they_are_known():
    x = pt.tensor(dtype="float64", shape=(4, 5))
    symbol = pt.tensor(dtype="float64", shape=(3,))
    for bad in (np.ones(4), np.ones((4, 5)), np.ones((4, 1)), np.ones((1, 1, 5)), np.ones(0), symbol):
        with pytest.raises(ValueError, match="max_norm of shape"):
            norm_constraint(x, bad)
        with pytest.raises(ValueError, match="epsilon of shape"):
            norm_constraint(x, 1.0, epsilon=bad)
    with pytest.raises(ValueError, match="max_norm of shape"):
        total_norm_constraint([x], np.ones(5))
    x, bound = pt.dmatrix(), pt.dvector()
    for mode in ("FAST_COMPILE", "NUMBA"):
        compute = pytensor.function([x, bound], norm_constraint(x, bound), mode=mode)
        assert compute(X, np.ones(5)).shape == X.shape
        for length in (4, 0):
            with pytest.raises(ValueError, match=r"max_norm.* must broadcast against the norms"):
                compute(X, np.ones(length))


def test_concrete_bounds_that_are_no_bounds_are_refused():
    x = pt.dmatrix()
    negatives = (-1, -1e-300, math.nan, np.array(np.nan), [1.0, -1, 1, 1, 1], pt.constant(-1.0), np.float32(-1))
    for bad in negatives:
        for call in (lambda c: norm_constraint(x, c), lambda c: norm_constraint(x, 1.0, epsilon=c)):
            with pytest.raises(ValueError, match="must be >= 0 and not NaN"):
                call(bad)
    for bad in (None, "3", True, 1j, pt.zscalar(), pt.scalar(dtype="bool")):
        with pytest.raises(TypeError, match=r"max_norm.* must"):
            norm_constraint(x, bad)


@pytest.mark.parametrize("mode", MODES)
def test_symbolic_bounds_that_turn_out_wrong_make_nan(mode):
    """In the result, in the total's, and in every derivative: never an unconstrained result."""
    x, c, e = pt.dmatrix(), pt.dscalar(), pt.dscalar()
    y = norm_constraint(x, c, epsilon=e)
    (total,) = total_norm_constraint([x], c, e)
    outputs = [y, total, *pt.grad(y.sum(), [x, c, e]), pt.grad(total.sum(), x)]
    compute = pytensor.function([x, c, e], outputs, mode=mode)
    for bound, epsilon in (
        (-1.0, 0.0),
        (math.nan, 0),
        (1, -1.0),
        (1e9, math.nan),
        (-math.inf, 0),
        (math.nan, math.nan),
    ):
        for found in compute(X, bound, epsilon):
            assert np.isnan(found).all()
    for found in compute(X, 1.0, 0.0):
        assert np.isfinite(found).all()


# In place


def test_updates_work_in_place():
    """`w + step` goes into w's memory, and so does its constraint: the buffer stays where it was."""
    step = pt.dmatrix()
    for mode in (PYTHON, "NUMBA"):
        w = pytensor.shared(X.copy())
        update = pytensor.function([step], [], updates=[(w, norm_constraint(w + step, 2.0))], mode=mode)
        (op,) = ops(update)
        assert op.destroy_map == {0: [0]}
        address = w.get_value(borrow=True).ctypes.data
        update(X)
        assert w.get_value(borrow=True).ctypes.data == address
        assert same_bits(w.get_value(), TWICE)
    v, w = pytensor.shared(X[:2].copy()), pytensor.shared(X.copy())
    clipped = total_norm_constraint([v * 2, w * 2], 2.0)
    update = pytensor.function([], [], updates=list(zip((v, w), clipped, strict=True)), mode=PYTHON)
    (op,) = ops(update)
    assert op.destroy_map == {0: [0], 1: [1]}
    update()
    wanted = total_norm_constraint([X[:2] * 2, X * 2], 2.0)
    assert all(same_bits(a.get_value(), b) for a, b in zip((v, w), wanted, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.skipif(kernels.best is kernels.fallback, reason="NumPy's loops have temporaries of their own")
def test_an_update_in_place_allocates_nothing():
    """The peak of a 64 MB parameter's update is that of `w + step` alone; keeping the sum costs another 64 MB."""
    measured = """
        import numpy as np, pytensor, pytensor.tensor as pt
        from pytensor.compile.mode import Mode
        from normball import norm_constraint, total_norm_constraint

        def peak(update, mode, outputs=lambda v: []):
            w, s = pytensor.shared(np.ones((4096, 2048))), pt.scalar(dtype="float64")
            f = pytensor.function([s], outputs(w + s), updates=[(w, update(w + s))], mode=mode)
            f(1.0)
            open("/proc/self/clear_refs", "w").write("5")
            status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
            before = status("VmRSS")
            f(0.0)
            return (status("VmHWM") - before) // 1024

        python = Mode("py", "fast_run")
        print(peak(lambda v: norm_constraint(v, 3.0), "NUMBA") - peak(lambda v: v, "NUMBA"),
              peak(lambda v: total_norm_constraint([v], 3.0)[0], python) - peak(lambda v: v, python),
              peak(lambda v: norm_constraint(v, 3.0), "NUMBA", lambda v: [v]) - peak(lambda v: v, "NUMBA"))
    """
    one, total, kept = map(int, in_a_new_process(measured).split())
    assert one < 32
    assert total < 32
    assert kept > 32  # the measurement can tell


def test_what_is_still_needed_is_never_overwritten():
    x = pt.dmatrix()
    before = X.copy()
    z = x * 2
    y, untouched = run([norm_constraint(z, 2.0), z], [x], [X])
    assert same_bits(y, TWICE)
    assert same_bits(untouched, X * 2)
    one, other = run([norm_constraint(z, 2.0), norm_constraint(z, 1.0)], [x], [X])
    assert same_bits(one, TWICE)
    assert same_bits(other, norm_constraint(X * 2, 1.0))
    twice = total_norm_constraint([z, z, z + 1], 1.0)
    for found, wanted in zip(run(twice, [x], [X]), total_norm_constraint([X * 2, X * 2, X * 2 + 1], 1.0), strict=True):
        assert same_bits(found, wanted)
    bound = pt.abs(x) + 1  # the same memory as x and as bound
    assert same_bits(run(norm_constraint(bound, bound, ()), [x], [X]), np.abs(X) + 1)
    row = (x + 1) ** 2
    assert same_bits(run(norm_constraint(row, row[:1]), [x], [X]), norm_constraint((X + 1) ** 2, (X[:1] + 1) ** 2))
    w, v = pytensor.shared(X.copy(), borrow=True), pytensor.shared(X * 2)
    for y in (norm_constraint(x, 1.0), *total_norm_constraint([x, w], 1.0), norm_constraint(w, 1.0)):
        run(y, [x], [X], on_unused_input="ignore")
        assert same_bits(X, before)
        assert same_bits(w.get_value(), before)
    constant = pytensor.function([], norm_constraint(pt.constant(X) * pt.ones_like(x), 1.0), givens={x: X}, mode=PYTHON)
    assert same_bits(constant(), constant())
    pytensor.function([], [], updates=[(w, norm_constraint(v, 2.0)), (v, norm_constraint(w, 1.0))], mode=PYTHON)()
    assert same_bits(w.get_value(), TWICE)
    assert same_bits(v.get_value(), norm_constraint(before, 1.0))


@pytest.mark.parametrize("mode", [PYTHON, "NUMBA"], ids=["Python", "NUMBA"])
def test_views_and_broadcasts_are_no_memory_to_work_in(mode):
    x, v = pt.dmatrix(), pt.dvector()
    z, doubled = x + 1, v * 2
    wide = pt.broadcast_to(doubled, (3, doubled.shape[0]))
    graphs = [norm_constraint(z[::-1, ::2].T, 1.0, 0), norm_constraint(z[:2], 1.0), z[1:], norm_constraint(wide, 1.0)]
    Z, W = X + 1, np.ascontiguousarray(np.broadcast_to(X[0] * 2, (3, 5)))
    wanted = [norm_constraint(Z[::-1, ::2].T, 1.0, 0), norm_constraint(Z[:2], 1.0), Z[1:], norm_constraint(W, 1.0)]
    for found, right in zip(run(graphs, [x, v], [X, X[0]], mode), wanted, strict=True):
        assert same_bits(found, right)


def test_debug_mode_finds_nothing():
    """It runs every Op with and without each rewrite, and checks views, destroyed inputs and repeated calls."""
    x, c = pt.dmatrix(), pt.dscalar()
    y = norm_constraint(x * 2, c)
    (one, other), norm = total_norm_constraint([x * 2, x + 1], c, return_norm=True)
    outputs = [y, one, other, norm, *pt.grad((y**2).sum(), [x, c])]
    mode = type(pytensor.compile.mode.get_mode("DEBUG_MODE"))(check_c_code=False, check_isfinite=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        found, *_ = run(outputs, [x, c], [X, 2.0], mode)
    assert same_bits(found, TWICE)


# Graph manipulations


@pytest.mark.parametrize("mode", [PYTHON, "NUMBA"], ids=["Python", "NUMBA"])
def test_vectorize_over_any_of_the_inputs(mode):
    """One node over the whole batch, and each of its slices is what the single call gives, gradients too."""
    rng = np.random.default_rng(2)
    x, c, e = pt.dmatrix(), pt.dscalar(), pt.dscalar()
    y = norm_constraint(x, c, epsilon=e)
    graphs = [y, *pt.grad((y**2).sum(), [x, c]), compute_norms(x)]
    single = pytensor.function([x, c, e], graphs, mode=PYTHON)
    shapes = [((4, 5), (3,)), ((3, 4, 5), ()), ((3, 4, 5), (3,)), ((1, 4, 5), (3,)), ((2, 3, 4, 5), (3,))]
    shapes += [((3, 4, 5), (2, 3)), ((2, 1, 4, 5), (3,)), ((4, 5), (0,))]
    for of_x, of_c in shapes if mode is PYTHON else shapes[:1]:
        xs = pt.tensor(dtype="float64", shape=[1 if length == 1 else None for length in of_x])
        cs = pt.tensor(dtype="float64", shape=(None,) * len(of_c))
        values, bounds = rng.standard_normal(of_x) * 3, rng.uniform(0.5, 9, of_c)
        batched = pytensor.function([xs, cs, e], vectorize_graph(graphs, {x: xs, c: cs}), mode=mode)
        assert not any("Blockwise" in str(node.op) for node in batched.maker.fgraph.apply_nodes)
        assert len(ops(batched, NormConstraint)) == 1
        found = batched(values, bounds, 1e-7)[:3]
        batch = np.broadcast_shapes(of_x[:-2], of_c)
        values, bounds = np.broadcast_to(values, (*batch, 4, 5)), np.broadcast_to(bounds, batch)
        assert found[0].shape == values.shape
        for index in np.ndindex(*batch):
            wanted = single(values[index].copy(), bounds[index], 1e-7)
            assert same_bits(found[0][index], wanted[0])
            for gradient, right in zip(found[1:], wanted[1:3], strict=True):
                np.testing.assert_allclose(gradient[index], right, rtol=1e-9, atol=1e-12)


def test_vectorize_by_signature_and_of_the_total():
    rows, bounds = pt.dmatrix(), pt.dvector()
    by_row = pt.vectorize(lambda v, c: norm_constraint(v, c, 0), signature="(n),()->(n)")
    limits = np.arange(1.0, 5)
    found = run(by_row(rows, bounds), [rows, bounds], [X, limits])
    assert same_bits(found, norm_constraint(X, limits[:, None], 1))
    v, w, c = pt.dvector(), pt.dvector(), pt.dscalar()
    (one, other), norm = total_norm_constraint([v, w], c, return_norm=True)
    graphs = [one, other, norm, pt.grad((one**2).sum() + norm, v)]
    batched = vectorize_graph(graphs, {v: rows, c: bounds})
    found = run(batched, [rows, w, bounds], [X, X[0], limits])
    single = pytensor.function([v, w, c], graphs, mode=PYTHON)
    for k in range(4):
        for result, right in zip(found, single(X[k], X[0], limits[k]), strict=True):
            np.testing.assert_array_equal(result[k], right)


def test_scan_and_the_gradient_through_it():
    x, c = pt.dmatrix(), pt.dscalar()
    states = pytensor.scan(
        lambda w, c: norm_constraint(w * 1.1 + 0.1, c),
        outputs_info=[x],
        non_sequences=[c],
        n_steps=3,
        return_updates=False,
    )
    unrolled = x
    for _ in range(3):
        unrolled = norm_constraint(unrolled * 1.1 + 0.1, c)
    graphs = [out for y in (states[-1], unrolled) for out in (y, *pt.grad((y**3).sum(), [x, c]))]
    found = run(graphs, [x, c], [X, 2.0])
    for looped, straight in zip(found[:3], found[3:], strict=True):
        np.testing.assert_allclose(looped, straight, rtol=1e-9)
    assert same_bits(run(states[-1], [x, c], [X, 2.0], "NUMBA"), found[0])


def test_inside_other_ops_and_graphs():
    try:
        from pytensor.conditional.op import ifelse  # PyTensor 3
    except ImportError:
        from pytensor.ifelse import ifelse
    from pytensor.compile.builders import OpFromGraph

    x, c, flag = pt.dmatrix(), pt.dscalar(), pt.bscalar()
    y = norm_constraint(x, c)
    for inline in (False, True):
        wrapped = OpFromGraph([x, c], [y], inline=inline)(x * 2, c)
        plain = norm_constraint(x * 2, c)
        graphs = [out for z in (wrapped, plain) for out in (z, *pt.grad((z**3).sum(), [x, c]))]
        found = run(graphs, [x, c], [X, 2.0])
        assert same_bits(found[0], TWICE)
        for inside, outside in zip(found[:3], found[3:], strict=True):
            np.testing.assert_allclose(inside, outside, rtol=1e-9)
    chosen = pytensor.function([x, flag], ifelse(flag, norm_constraint(x * 2, 2.0), x * 3), mode=PYTHON)
    assert same_bits(chosen(X, 1), TWICE)
    assert same_bits(chosen(X, 0), X * 3)
    fixed = pt.tensor(dtype="float64", shape=(4, 5))
    assert clone_replace(y, {x: fixed}, rebuild_strict=False).type.shape == (4, 5)
    assert norm_constraint(pt.specify_shape(x, (4, None)), c).type.shape == (4, None)
    shared = pytensor.shared(X * 2)
    assert same_bits(run(y, givens={x: shared, c: pt.constant(2.0, dtype="float64")}), TWICE)
    draws = pt.random.normal(size=(4, 5), rng=pytensor.shared(np.random.default_rng(3)), **rng_option())
    draws = draws[-1] if isinstance(draws, (list, tuple)) else draws
    assert (compute_norms(run(norm_constraint(draws, 1.0))) <= 1).all()


def rng_option():
    return {"return_next_rng": True} if int(pytensor.__version__.split(".")[0]) >= 3 else {}


def test_functions_are_copied_and_pickled():
    w, other, c = pytensor.shared(X.copy()), pytensor.shared(X * 3), pytensor.shared(2.0)
    update = pytensor.function([], norm_constraint(w, 1.0), updates=[(w, norm_constraint(w * 2, c))], mode=PYTHON)
    swapped, same = update.copy(swap={w: other}), update.copy(share_memory=True)
    restored = pickle.loads(pickle.dumps(update))
    swapped()
    assert same_bits(other.get_value(), norm_constraint(X * 6, 2.0))
    assert same_bits(w.get_value(), X)
    assert same_bits(restored(), norm_constraint(X, 1.0))
    same()
    assert same_bits(w.get_value(), TWICE)
    for op in (NormConstraint((0,), 2, (0,)), TotalNormConstraint(1, (1,)), Norms((1,), math.inf)):
        again = pickle.loads(pickle.dumps(op))
        assert again == op
        assert hash(again) == hash(op)
        assert getattr(again, "destroy_map", None) == getattr(op, "destroy_map", None)


def test_rewrites_see_through_the_ops():
    x = pt.dmatrix()
    merged = pytensor.function([x], norm_constraint(x, 1.0) + norm_constraint(x, 1.0), mode=PYTHON)
    assert len(ops(merged)) == 1
    assert len(ops(pytensor.function([x], norm_constraint(x, 1.0) + norm_constraint(x, 2.0), mode=PYTHON))) == 2
    (total,), norm = total_norm_constraint([x], 1.0, return_norm=True)
    shapes = [norm_constraint(x, 1.0).shape, total.shape, norm.shape, compute_norms(x).shape]
    of_shapes = pytensor.function([x], shapes, mode=PYTHON)
    assert ops(of_shapes) == []
    assert [tuple(shape) for shape in of_shapes(X)] == [(4, 5), (4, 5), (), (5,)]
    folded = pytensor.function([], norm_constraint(pt.constant(X * 2), 2.0), mode=PYTHON)
    assert ops(folded) == []
    assert same_bits(folded(), TWICE)


def test_printed_graphs_read_well():
    x = pt.dmatrix("x")
    graphs = [norm_constraint(x, 1.0), *total_norm_constraint([x], 1.0), compute_norms(x, ord=1)]
    printed = pytensor.dprint(graphs, file="str")
    assert "NormConstraint{axes=(0,)} [id" in printed
    assert "TotalNormConstraint.0 [id" in printed
    assert "Norms{axes=(0,), ord=1} [id" in printed
    assert str(NormConstraint((1, 2), math.inf, (0,))) == "NormConstraint{axes=(1, 2), ord=inf, inplace=(0,)}"


@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_empty_arrays_and_single_numbers(ord):
    x, s, v = pt.dmatrix(), pt.dscalar(), pt.dvector()
    y, z = norm_constraint(x, 1.0, ord=ord), norm_constraint(s, 1.0, (), 0, ord=ord)
    total = total_norm_constraint([x, s], 1.0, ord=ord)
    graphs = [y, pt.grad(y.sum(), x), total[0], pt.grad(total[0].sum() + total[1], x), z, pt.grad(z, s)]
    entries = norm_constraint(v, 1.0, (), 0, ord=ord)
    compute = pytensor.function([x, s, v], [*graphs, entries, pt.grad(entries.sum(), v)], mode=PYTHON)
    for shape in ((0, 3), (3, 0), (0, 0)):
        *arrays, number, slope, entries, slopes = compute(np.zeros(shape), -3.0, np.array([0.5, -2, 0]))
        assert [a.shape for a in arrays] == [shape] * 4
        assert same_bits(number, norm_constraint(np.array(-3.0), 1.0, (), 0))
        assert same_bits(entries, norm_constraint(np.array([0.5, -2, 0]), 1.0, (), 0))
        assert (float(slope), slopes.tolist()) == (0, [1, 0, 1])


def test_axes_of_length_one():
    row, column, c = pt.row(dtype="float64"), pt.col(dtype="float64"), pt.dvector()
    for x, bound, axes, value in ((row, c, 0, X[:1]), (column, c[:, None], 1, X[:, :1])):
        y = norm_constraint(x, bound, axes, 0)
        limits = np.full(value.size, 0.5)
        found, to_x, to_c = run([y, *pt.grad(y.sum(), [x, c])], [x, c], [value, limits])
        assert same_bits(found, norm_constraint(value, 0.5, axes, 0))
        assert (to_x.shape, to_c.shape) == (value.shape, limits.shape)


# Imports and registration


def in_a_new_process(code, *arguments):
    command = [sys.executable, "-W", "error", "-W", "ignore:PyTensor could not link to a BLAS", "-c"]
    done = subprocess.run([*command, textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_building_a_graph_loads_no_other_library():
    """Neither jax nor torch nor numba beyond what PyTensor itself loads, and no dispatch module."""
    code = """
        import sys
        import pytensor.tensor as pt
        pt.grad((pt.matrix() ** 2).sum(), pt.matrix(), disconnected_inputs="ignore")
        before = set(sys.modules)
        import normball
        x = pt.dmatrix()
        y = normball.norm_constraint(x, 3.0)
        total, norm = normball.total_norm_constraint([x, y], 1.0, return_norm=True)
        pt.grad(total[0].sum() + norm, x)
        if "import" in sys.argv:
            import pytensor.link.numba.dispatch
        new = set(sys.modules) - before
        heavy = ("jax", "jaxlib", "torch", "numba", "mlx", "scipy", "pymc")
        print(sorted(m for m in new if m.split(".")[0] in heavy or ".dispatch" in m and not m.startswith("normball")))
    """
    assert in_a_new_process(code).strip() == "[]"
    assert "pytensor.link.numba.dispatch" in in_a_new_process(code, "import")  # the look can see one


@pytest.mark.skipif(not installed("jax"), reason="jax is not installed")
def test_jax_keeps_its_precision_until_a_graph_is_compiled_for_it():
    code = """
        import jax, normball
        import pytensor.tensor as pt
        normball.norm_constraint(pt.dmatrix(), 3.0)
        print(jax.config.jax_enable_x64)
    """
    assert in_a_new_process(code).strip() == "False"


def test_registration_before_after_and_beside_other_hooks():
    """The dispatch module loaded first, last, by somebody's own hook, asked for and not loaded, or loaded again."""
    code = """
        import importlib.abc, importlib.util, sys, threading

        class Other(importlib.abc.MetaPathFinder):
            busy = False
            def find_spec(self, name, path, target=None):
                if name != "pytensor.link.numba.dispatch" or self.busy:
                    return None
                self.busy = True
                try:
                    return importlib.util.find_spec(name)  # asks every finder, ours too
                finally:
                    self.busy = False

        order = sys.argv[1]
        if order == "first":
            import pytensor.link.numba.dispatch
        if order == "behind":
            sys.meta_path.insert(0, Other())
        import normball.backends.pytensor as ours
        if order == "before":
            sys.meta_path.insert(0, Other())
        if order == "asked":
            assert importlib.util.find_spec("pytensor.link.numba.dispatch") is not None
        if order == "reloaded":
            importlib.reload(ours.pytensor_links)
            ours.pytensor_links.register_when_loaded()
        if order == "threads":
            load = lambda: importlib.import_module("pytensor.link.numba.dispatch")
            threads = [threading.Thread(target=load) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        from pytensor.link.numba.dispatch.basic import numba_funcify
        default = numba_funcify.dispatch(object)
        kinds = (ours.Norms, ours.NormConstraint, ours.TotalNormConstraint)
        print(all(numba_funcify.dispatch(kind) is not numba_funcify.dispatch(ours.Op) for kind in kinds))
        print(numba_funcify.dispatch(type("Unknown", (ours.Op,), {})) is numba_funcify.dispatch(ours.Op))
    """
    for order in ("first", "last", "before", "behind", "asked", "reloaded", "threads"):
        assert in_a_new_process(code, order).split() == ["True", "True"], order


def test_float16_is_not_for_numba():
    """PyTensor's own limit, said by PyTensor; every other mode takes it."""
    x = pt.matrix(dtype="float16")
    with pytest.raises(NotImplementedError):
        pytensor.function([x], norm_constraint(x, 1.0), mode="NUMBA")(np.ones((2, 2), "float16"))
    assert run(norm_constraint(x, 1.0), [x], [np.ones((2, 2), "float16")], "FAST_COMPILE").dtype == "float16"
