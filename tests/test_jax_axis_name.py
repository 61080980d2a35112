"""`normball.jax`: groups that go on over a named axis. One device is enough for that: vmap has names, too."""

import doctest
import functools
import inspect
import math

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("ml_dtypes")

import jax.numpy as jnp  # noqa: E402
from conftest import FLOATS  # noqa: E402
from oracle import broken_laws, broken_total_laws, exact_norm, same_bits  # noqa: E402

import normball  # noqa: E402
import normball.jax  # noqa: E402

PARTS = 5  # no power of two: summaries that are merged by halves leave one over
LAWS = [(dtype, 2) for dtype in FLOATS] + [("float32", 1), ("float64", 1), ("float32", math.inf), ("float64", math.inf)]


def over_parts(function, **options):
    return jax.jit(jax.vmap(function, axis_name="parts", **options))


def groups(dtype, seed=0):
    """Columns from all over the range of float16, so of each dtype, in parts along axis 0."""
    x = np.random.default_rng(seed).standard_normal((PARTS, 2, 4)) * np.array([1.0, 100.0, 2.0**-20, 0.125])
    x = x.astype(FLOATS[dtype])
    x[0, 0, 1], x[1:, :, 3] = 30000, 0
    return x


@pytest.mark.parametrize(("dtype", "ord"), LAWS)
def test_laws_hold_for_groups_in_parts(dtype, ord):
    with jax.enable_x64(dtype == "float64"):
        x = groups(dtype)
        whole = x.reshape(-1, 4)
        compute = over_parts(
            lambda x, c: normball.jax.norm_constraint(x, c, 0, 2**-10, ord=ord, axis_name="parts"), in_axes=(0, None)
        )
        for bound in (0.5, 1000.0, 2.0**-22, 0.0, np.inf):
            bound = np.asarray(bound, jnp.result_type(float))
            y = np.asarray(compute(x, bound))
            assert broken_laws(whole, y.reshape(-1, 4), bound, (0,), 2**-10, ord, band=4) == set()
            assert same_bits(np.asarray(compute(y, bound)), y)
        alone = np.asarray(jax.vmap(lambda x: normball.jax.norm_constraint(x, 2.0, 0, ord=ord))(x))
        if ord != math.inf:  # the judge sees parts that were groups
            assert broken_laws(whole, alone.reshape(-1, 4), 2.0, (0,), 1e-7, ord, band=4) != set()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_groups_in_parts(dtype):
    """The largest numbers of one part beside the smallest of another; NaN and inf stay in their groups."""
    info = np.finfo(dtype)
    x = np.zeros((PARTS, 1, 4), dtype)
    x[0, 0], x[3, 0] = (info.max, info.smallest_subnormal, 1, 3), (info.max, -info.smallest_subnormal, np.nan, 4)
    with jax.enable_x64(True):
        compute = over_parts(
            lambda x, c: normball.jax.norm_constraint(x, c, 0, 0, axis_name="parts"), in_axes=(0, None)
        )
        for bound in (1.0, float(info.max), float(info.smallest_subnormal), 0.0, np.inf):
            y = np.asarray(compute(x, np.float64(bound))).reshape(PARTS, 4)
            assert broken_laws(x.reshape(PARTS, 4), y, bound, (0,), 0, band=4) == set()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_total_of_split_and_of_whole_arrays(ord):
    with jax.enable_x64(True):
        split, same = groups("float32")[..., :2], groups("float64")[0]

        def clip(split, same):
            return normball.jax.total_norm_constraint([split, same], 3.0, 0.5, True, ord=ord, axis_name=["parts", None])

        (parts, wholes), norms = over_parts(clip, in_axes=(0, None))(split, same)
        found = [np.asarray(parts), np.asarray(wholes)[0]]
        assert broken_total_laws([split, same], found, 3.0, 0.5, ord, band=4) == set()
        wanted = float(exact_norm([float(v) for x in (split, same) for v in x.ravel()], ord))
        np.testing.assert_allclose(norms, [wanted] * PARTS, rtol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "ord"), [("float32", 1), ("float32", 2), ("float32", math.inf), ("float64", 2), ("float64", math.inf)]
)
def test_derivatives_are_those_of_the_whole(dtype, ord):
    """Forward and reverse mode, also in the bound; ties of order inf on two devices share."""
    with jax.enable_x64(True):
        x = np.random.default_rng(1).standard_normal((PARTS, 2, 3)).astype(dtype)
        x[0, 0, 0] = x[4, 1, 0] = 5

        def loss(x, c, parts):
            function = functools.partial(normball.jax.norm_constraint, norm_axes=0, epsilon=0.1, ord=ord)
            if parts:
                one = functools.partial(function, axis_name="parts")
                return jnp.sin(jax.vmap(one, (0, None), axis_name="parts")(x, c)).sum()
            return jnp.sin(function(x.reshape(-1, 3), c)).sum()

        for derivative in (jax.grad, jax.jacfwd):
            compute = jax.jit(derivative(loss, (0, 1)), static_argnums=2)
            for a, b in zip(compute(x, 1.5, True), compute(x, 1.5, False), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-7)


def test_norms_in_parts():
    x = groups("float32")
    found = over_parts(lambda x: normball.jax.compute_norms(x, axis_name="parts"))(x)
    assert found.shape == (PARTS, 4)
    np.testing.assert_allclose(found, [normball.compute_norms(x.reshape(-1, 4))] * PARTS, rtol=1e-6)


def test_without_a_name_they_are_the_public_functions():
    x, y = (jnp.asarray(part) for part in groups("float32")[:2])
    pairs = [
        (normball.jax.norm_constraint(x, 2.0), normball.norm_constraint(x, 2.0)),
        (normball.jax.norm_constraint([x, y], [2.0, 0.1], iter([0])), normball.norm_constraint([x, y], [2.0, 0.1], 0)),
        (
            normball.jax.total_norm_constraint([x, y], 2.0, 0, True),
            normball.total_norm_constraint([x, y], 2.0, 0, True),
        ),
        (normball.jax.compute_norms(x), normball.compute_norms(x)),
        (normball.jax.compute_norms(x[0], axis_name=()), normball.compute_norms(x[0])),
        (normball.jax.total_norm_constraint([], 1.0, return_norm=True), ([], 0.0)),
    ]
    for ours, theirs in pairs:
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert same_bits(np.asarray(a), np.asarray(b))
    assert type(normball.jax.norm_constraint([x], 2.0)) is list


@pytest.mark.parametrize("name", ["norm_constraint", "total_norm_constraint", "compute_norms"])
def test_signatures_are_those_of_the_public_functions(name):
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (normball.jax, normball))
    assert [p.default for p in ours.values()][:-1] == [p.default for n, p in theirs.items() if n != "out"]
    assert list(ours)[1:-1] == [n for n in theirs if n != "out"][1:]
    assert list(ours)[-1] == "axis_name"


X = np.ones((2, 3), np.float32)
SCOPE = "no axis of this name here; call it inside jax.shard_map or jax.pmap, or leave it out"


@pytest.mark.parametrize(
    ("axis_name", "error", "message"),
    [
        ("model", ValueError, f"axis_name='model': {SCOPE}"),
        (("parts", "data"), ValueError, f"axis_name=('parts', 'data'): {SCOPE}"),
        (["parts", "data"], ValueError, f"axis_name[1]='data': {SCOPE}"),
        (["parts"], ValueError, "axis_name: 1 names for 2 arrays; pass one for all, or a list of as many"),
        (("parts", "parts"), ValueError, "axis_name=('parts', 'parts'): names an axis twice; name each once"),
        (
            0,
            TypeError,
            "axis_name=0: must be the name of a mesh axis, or a tuple of names; for none leave it out",
        ),
    ],
)
def test_refused_names(axis_name, error, message):
    for function in (normball.jax.norm_constraint, normball.jax.total_norm_constraint):
        with pytest.raises(error) as caught:
            jax.vmap(lambda x, f=function: f([x, x], 1.0, axis_name=axis_name), axis_name="parts")(X[None])
        assert str(caught.value) == message


def test_refused_arrays():
    with pytest.raises(TypeError, match=r"^tensor_var\[1\] of type float: must be an array of numbers"):
        normball.jax.norm_constraint([X, 1.0], 1.0)
    with pytest.raises(TypeError, match=r"^tensor_var\[1\] of dtype int32: must be one of"):
        normball.jax.total_norm_constraint([X, X.astype(np.int32)], 1.0)
    with pytest.raises(TypeError, match=r"^tensor_vars of type ndarray: must be a list"):
        normball.jax.total_norm_constraint(X, 1.0)
    with pytest.raises(ValueError, match=r"^max_norm=-1.0: must be >= 0"):
        normball.jax.norm_constraint(X, -1.0)


@pytest.mark.parametrize("name", ["norm_constraint", "total_norm_constraint", "compute_norms"])
def test_docstrings_are_whole_and_their_examples_run(name):
    function = getattr(normball.jax, name)
    for section in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples"):
        assert f"{section}\n" in function.__doc__
    [example] = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    runner = doctest.DocTestRunner()
    assert runner.run(example, out=lambda text: None) == (0, len(example.examples))
    example.examples[-1].want = "another\n"
    assert runner.run(example, out=lambda text: None)[0] == 1  # and it can fail
