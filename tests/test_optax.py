"""normball.optax: the laws in exact arithmetic, optax's own transformations beside ours, and real models."""

import contextlib
import copy
import doctest
import importlib
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pages
import pytest
from oracle import broken_laws, broken_total_laws, exact_norm, groups_of, same_bits

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
pytest.importorskip("ml_dtypes")

import jax.numpy as jnp  # noqa: E402

import normball.optax  # noqa: E402
from normball.optax import adaptive_grad_clip, apply_updates, clip_by_global_norm, clip_by_norm, max_norm  # noqa: E402

ROOT = Path(__file__).parents[1]
BAND = 4  # ulp just under the bound, as documented for JAX
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def without_64_bits():
    """As JAX starts, whatever others have set for the whole process, PyTensor say."""
    with jax.enable_x64(False):
        yield


@contextlib.contextmanager
def mode(x64):
    """64-bit mode on or off, for this thread and no longer."""
    if hasattr(jax, "enable_x64"):
        with jax.enable_x64(x64):
            yield
        return
    from jax.experimental import disable_x64, enable_x64

    with enable_x64() if x64 else disable_x64():
        yield


def updated(transform, updates, params=None):
    return transform.update(updates, transform.init(updates if params is None else params), params)[0]


def draw(seed, dtype, shape=(5, 8), spread=3):
    """Entries of columns of very different lengths."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * 10 ** rng.uniform(-spread, spread, shape[-1])).astype(jnp.dtype(dtype))


def over(x, axes, bound):
    """How many groups lie above a bound, exactly."""
    return sum(exact_norm(group) > Fraction(bound) for group in groups_of(np.asarray(x), axes))


# --- the laws


@pytest.mark.parametrize("x64", [False, True])
def test_laws_of_the_global_norm(x64):
    with mode(x64):
        clip = jax.jit(lambda updates, bound: updated(clip_by_global_norm(bound), updates))
        for seed in range(6):
            xs = [draw(seed, dtype, (3, 4), 1) for dtype in [*DTYPES, "float64"][: 3 + x64]]
            n = float(exact_norm([float(v) for x in xs for v in x.ravel()]))
            for bound in (n / 3, n * (1 - 1e-6), n, n * (1 + 1e-6), 2 * n):
                bound = float(np.asarray(bound, np.float64 if x64 else np.float32))
                ys = jax.tree.map(np.asarray, clip(xs, bound))
                assert broken_total_laws(xs, ys, bound, epsilon=0, band=BAND) == set()
                again = jax.tree.map(np.asarray, clip(ys, bound))
                assert all(map(same_bits, ys, again)), "not idempotent"
        assert clip._cache_size() == 1, "compiled anew for another bound"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [0, 1, (0, 1), (), "all"])
def test_laws_of_units(dtype, axes):
    of = {"all": (0, 1), 0: (0,), 1: (1,)}.get(axes, axes)
    x = draw(3, dtype)
    for bound in (0.0, 0.7, 3.0, math.inf):
        clipped = np.asarray(updated(clip_by_norm(bound, axes), {"w": x})["w"])
        assert broken_laws(x, clipped, bound, of, epsilon=0, band=BAND) == set()
        constrained = np.asarray(max_norm(bound, axes).apply({"w": x})["w"])
        assert same_bits(constrained, clipped)


def test_laws_in_float64():
    with mode(True):
        x, step = draw(3, "float64", spread=100), draw(4, "float64", spread=100)
        for bound in (0.7, 3.0):
            for transform in (clip_by_norm(bound, 0), adaptive_grad_clip(bound, 1.0, 0)):
                y = np.asarray(updated(transform, x, np.zeros_like(x)))
                assert broken_laws(x, y, bound, (0,), epsilon=0, band=BAND) == set()
            moved = np.asarray(optax.apply_updates(jnp.asarray(x), jnp.asarray(step)))
            y = np.asarray(apply_updates(x, step, max_norm(bound, 0)))
            assert broken_laws(moved, y, bound, (0,), epsilon=0, band=BAND) == set()
            chained = np.asarray(optax.apply_updates(jnp.asarray(x), updated(max_norm(bound, 0), jnp.asarray(step), x)))
            assert chained.dtype == np.float64
            assert over(chained, (0,), bound) == 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_laws_after_an_update(dtype, wide):
    params, updates = draw(1, dtype, spread=1), draw(2, "float32" if wide else dtype, spread=1)
    new = np.asarray(apply_updates({"kernel": params}, {"kernel": updates}, max_norm(1.5))["kernel"])
    moved = np.asarray(optax.apply_updates(jnp.asarray(params), jnp.asarray(updates)))
    assert moved.dtype == params.dtype
    assert broken_laws(moved, new, 1.5, (0,), epsilon=0, band=BAND) == set()
    assert same_bits(np.asarray(max_norm(1.5).apply({"kernel": new})["kernel"]), new)


def test_laws_of_complex_gradients():
    real = draw(0, "float32", (4, 5, 2), 1)
    x = real[..., 0] + 1j * real[..., 1]
    for y, axes in [
        (updated(clip_by_global_norm(1.0), {"w": x})["w"], (0, 1, 2)),
        (updated(clip_by_norm(1.0, 0), x), (0, 2)),
        (updated(adaptive_grad_clip(0.5, axes=0), x, jnp.full((4, 5), 1j)), (0, 2)),
    ]:
        pairs = np.stack([np.real(y), np.imag(y)], -1)
        assert broken_laws(real, pairs, 1.0, axes, epsilon=0, band=BAND) == set()
    zeros = updated(clip_by_global_norm(1.0, nonfinite="zero"), {"w": np.complex64([1, complex(0, math.inf)])})
    assert not zeros["w"].any()
    reason = "of dtype complex64: use normball.norm_constraint"
    assert max_norm(1.0).describe({"w": x, "kernel": real}).left_out == {reason: ["w"]}


def test_laws_of_adaptive_clipping():
    params, updates = draw(1, "float32", spread=2), draw(2, "float32", spread=2)
    params[:, 0] = 0
    clip = adaptive_grad_clip(0.25, eps=1e-3)
    new = np.asarray(updated(clip, {"kernel": updates}, {"kernel": params})["kernel"])
    norms = [exact_norm(group) for group in groups_of(params, (0,))]
    for update, result, norm in zip(groups_of(updates, (0,)), groups_of(new, (0,)), norms, strict=True):
        bound = Fraction(0.25) * max(norm, Fraction(1e-3))
        assert exact_norm(result) <= bound * (1 + Fraction(1, 2**22)), "the norm of params is rounded, at most"
        if exact_norm(update) <= bound * (1 - Fraction(1, 2**20)):
            assert update == result
        else:
            assert exact_norm(result) >= min(bound, exact_norm(update)) * (1 - Fraction(1, 2**20))


@pytest.mark.parametrize("widened", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_holds_the_bound_though_it_rounds_twice(dtype, widened):
    """Of a projection written as updates an eighth ends above the bound: why updates are rounded inwards."""
    chain = optax.chain(optax.identity(), max_norm(1.0, axes=0))

    def naive(params, updates):
        projected = max_norm(1.0, axes=0).apply(optax.apply_updates(params, updates))
        return optax.apply_updates(params, (projected - params).astype(updates.dtype))

    ours = jax.jit(lambda params, updates: optax.apply_updates(params, updated(chain, updates, params)))
    exact = jax.jit(lambda params, updates: apply_updates(params, updates, max_norm(1.0, axes=0)))
    theirs, differ = 0, 0
    for seed in range(8):
        params = draw(seed, dtype, (6, 20), 2)
        updates = draw(seed + 100, "float32" if widened else dtype, (6, 20), 2)
        new = np.asarray(ours(params, updates))
        assert new.dtype == params.dtype
        assert over(new, (0,), 1) == 0
        assert np.abs(new.astype(float)).max() <= 1
        theirs += over(jax.jit(naive)(params, updates), (0,), 1)
        differ += not same_bits(new, np.asarray(exact(params, updates)))
    if not widened:
        assert theirs > 0, "the naive way holds it, too: then this test shows nothing"
        assert differ > 0


def test_what_xla_keeps_in_more_bits():
    """Under jit a sum of bfloat16 may go on unrounded, and its norm lie on the other side of the bound."""
    rng = np.random.default_rng(0)
    params, updates = ((rng.normal(size=(6, 4000)) * size).astype(jnp.bfloat16) for size in (0.4, 0.1))

    @jax.jit
    def run(params, updates):
        chained = max_norm(1.0, 0).update(updates, optax.EmptyState(), params)[0]
        return {
            "apply": apply_updates(params, updates, max_norm(1.0, 0)),
            "chain": optax.apply_updates(params, chained),
            "clip": clip_by_norm(1.0, 0).update(params + updates, optax.EmptyState())[0],
            "naive": jnp.where(
                jnp.linalg.norm((params + updates).astype(np.float32), axis=0) <= 1, params + updates, 0
            ),
        }

    with mode(True):  # beside an array of float64
        total = lambda x: updated(clip_by_global_norm(1.0), [x, np.zeros(1)])[0]
        mixed = np.asarray(jax.jit(jax.vmap(lambda p, u: total(p + u), 1, 1))(params, updates))
    assert over(mixed, (0,), 1) == 0
    above = {name: over(array, (0,), 1) for name, array in run(params, updates).items()}
    assert above.pop("naive") > 0, "XLA rounds now: then this test shows nothing"
    assert set(above.values()) == {0}
    moved = groups_of(params + updates, (0,))
    chained = jax.jit(lambda u, p: max_norm(1.0, 0).update(u, optax.EmptyState(), p)[0])(updates, params)
    pairs = zip(moved, groups_of(np.asarray(chained), (0,)), groups_of(updates, (0,)), strict=True)
    assert all(given == handed_on for group, handed_on, given in pairs if exact_norm(group) < 0.98)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_rounds_inwards_only_where_it_has_to(dtype):
    params, updates = jnp.zeros((6, 20), dtype), draw(0, dtype, (6, 20), 2)
    new = optax.apply_updates(params, updated(max_norm(1.0, axes=0), updates, params))
    assert same_bits(np.asarray(new), np.asarray(max_norm(1.0, axes=0).apply(updates)))


def test_a_chain_hands_on_the_updates_of_compliant_units():
    params, updates = np.full((4, 2), [0.1, 3.0], np.float32), draw(0, "float32", (4, 2), 0) / 100
    new = np.asarray(updated(max_norm(1.0, axes=0), updates, params))
    assert same_bits(new[:, 0], updates[:, 0])
    assert not same_bits(new[:, 1], updates[:, 1])


# --- peers


def test_agrees_with_optax_where_it_is_right():
    updates = {"w": draw(0, "float32", (6, 5), 0), "b": draw(1, "float32", (5,), 0)}
    params = {"w": draw(2, "float32", (6, 5), 0), "b": draw(3, "float32", (5,), 0)}
    pairs = [
        (updated(clip_by_global_norm(1.0), updates), updated(optax.clip_by_global_norm(1.0), updates)),
        (updated(adaptive_grad_clip(0.1, axes=0), updates, params), updated(optax.adaptive_grad_clip(0.1), updates, params)),
    ]  # fmt: skip
    project = jax.vmap(optax.projections.projection_l2_ball, in_axes=(1, None), out_axes=1)
    pairs += [(max_norm(1.0).apply({"kernel": updates["w"]})["kernel"], project(updates["w"], 1.0))]
    for ours, theirs in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_right_where_optax_is_not():
    """Each line has the peer's answer first, so that a peer that is mended is noticed."""
    huge = {"w": jnp.array([3e25, -4e25], jnp.float32)}
    assert not updated(optax.clip_by_global_norm(1.0), huge)["w"].any(), "zeros"
    np.testing.assert_allclose(updated(clip_by_global_norm(1.0), huge)["w"], [0.6, -0.8], rtol=1e-6)

    project = jax.vmap(optax.projections.projection_l2_ball, in_axes=(1, None), out_axes=1)
    wide = jnp.array([[3e25], [-4e25]], jnp.float32)
    assert not np.allclose(project(wide, 1.0), [[0.6], [-0.8]])
    np.testing.assert_allclose(max_norm(1.0, axes=0).apply(wide), [[0.6], [-0.8]], rtol=1e-6)

    half = {"w": jnp.full((4096,), 5.0, jnp.float16)}  # of norm 320
    assert not updated(optax.clip_by_global_norm(32.0), half)["w"].any(), "zeros"
    np.testing.assert_allclose(updated(clip_by_global_norm(32.0), half)["w"], 0.5, rtol=4e-3)

    slope = lambda transform: jax.grad(lambda x: updated(transform, x, jnp.ones(2)).sum())(jnp.zeros(2))
    assert np.isnan(slope(optax.clip_by_global_norm(1.0))).all()
    assert np.isnan(slope(optax.adaptive_grad_clip(0.1))).all()
    assert (slope(clip_by_global_norm(1.0)) == 1).all()
    assert (slope(adaptive_grad_clip(0.1)) == 1).all()


def test_adaptive_clipping_by_optax_takes_equinox_weights_for_flax_s():
    """Of (out, in) it clips an input's weights to all units; ours what one unit receives."""
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    layer = eqx.tree_at(lambda layer: layer.weight, layer, jnp.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    grads = eqx.tree_at(lambda layer: layer.weight, layer, jnp.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.001]]))
    params, grads = eqx.filter(layer, eqx.is_array), eqx.filter(grads, eqx.is_array)
    theirs = updated(optax.adaptive_grad_clip(0.1), grads, params).weight
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=0), 0.1, rtol=1e-6)
    ours = updated(adaptive_grad_clip(0.1), grads, params).weight
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), [0.1 * math.sqrt(3), 0.1 * 1e-3], rtol=1e-6)


def test_optax_ends_above_the_bound():
    """The twin of the laws: the same oracle, on peers, finds it broken."""
    x = draw(0, "float32", (7, 40), 1)
    project = jax.vmap(optax.projections.projection_l2_ball, in_axes=(1, None), out_axes=1)
    assert "bounded" in broken_laws(x, np.asarray(project(x, 0.5)), 0.5, (0,), epsilon=0, band=BAND)
    many = 3 * np.random.default_rng(0).standard_normal((100, 1000), dtype=np.float32)  # of the guide's figure
    assert over(jax.jit(project)(many, 3.0), (0,), 3) > 300
    assert over(max_norm(3.0, 0).apply(many), (0,), 3) == 0
    seeds = [draw(seed, "float32", (3, 4), 0) for seed in range(10)]
    clip = optax.clip_by_global_norm(0.5)
    found = [broken_total_laws([x], [np.asarray(updated(clip, x))], 0.5, epsilon=0, band=BAND) for x in seeds]
    assert {"bounded"} in found


# --- what is not finite


@pytest.mark.parametrize("traced", [False, True])
def test_policies_for_what_is_not_finite(traced):
    clip = lambda u, c, policy: updated(clip_by_global_norm(c, nonfinite=policy), u)
    run = jax.jit(clip, static_argnums=2) if traced else clip
    for bound in (1.0, math.inf):
        for bad in (math.nan, math.inf, -math.inf):
            updates = {"w": jnp.array([1.0, bad]), "b": jnp.ones(2, jnp.bfloat16)}
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(run(updates, bound, "zero")))
            if bound == 1.0:
                assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(run(updates, bound, "propagate")))
        fine = {"w": jnp.array([3e38, 3e38]), "b": jnp.ones(2, jnp.bfloat16)}
        for ours, zeroing in zip(*(jax.tree.leaves(run(fine, bound, p)) for p in ("propagate", "zero")), strict=True):
            assert same_bits(np.asarray(ours), np.asarray(zeroing))
            assert np.isfinite(np.asarray(ours, float)).all()


def test_a_bad_traced_bound_makes_nan():
    ones = {"kernel": jnp.ones((2, 2))}

    @jax.jit
    def every(c):
        return [
            updated(clip_by_global_norm(c, nonfinite="zero"), ones),
            updated(max_norm(c), ones, ones),
            *(max_norm(c, mode=kind).apply(ones) for kind in ("min", "equal")),
            max_norm((c, 9.0), mode="range").apply(ones),
        ]

    for bad in (-1.0, math.nan):
        assert all(jnp.isnan(tree["kernel"]).all() for tree in every(bad))


def test_one_spoilt_unit_spoils_no_other():
    updates = jnp.array([[math.nan, 3.0], [1.0, 4.0]])
    new = updated(clip_by_norm(1.0, axes=0), updates)
    assert np.isnan(new[:, 0]).all()
    np.testing.assert_allclose(new[:, 1], [0.6, 0.8], rtol=1e-6)


def test_skipping_is_a_matter_of_the_optimizer():
    """The remedy in the message of nonfinite='skip'."""
    tx = optax.apply_if_finite(optax.chain(clip_by_global_norm(1.0), optax.adam(0.1)), 5)
    state = tx.init(jnp.ones(2))
    updates, after = tx.update(jnp.array([1.0, math.nan]), state, jnp.ones(2))
    assert not updates.any()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state.inner_state, after.inner_state))


# --- trees, and what optax wraps around a transformation

PARAMS = {"Dense_0": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full(3, 5.0)}, "none": None}


def transforms():
    return [clip_by_global_norm(1.0), clip_by_norm(1.0), adaptive_grad_clip(0.1), max_norm(1.0)]


@pytest.mark.parametrize("index", range(4))
def test_none_and_masked_leaves(index):
    transform = transforms()[index]
    new = updated(transform, PARAMS, PARAMS)
    assert jax.tree.structure(new) == jax.tree.structure(PARAMS)
    kernels = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", PARAMS)
    masked = updated(optax.masked(transform, kernels), PARAMS, PARAMS)
    assert same_bits(np.asarray(masked["Dense_0"]["bias"]), np.full(3, 5.0, np.float32))
    assert not (masked["Dense_0"]["kernel"] == 2).any()
    split = optax.multi_transform({"k": transform, "b": optax.set_to_zero()}, {"Dense_0": {"kernel": "k", "bias": "b"}, "none": None})  # fmt: skip
    new = updated(split, PARAMS, PARAMS)
    assert not new["Dense_0"]["bias"].any()
    assert same_bits(np.asarray(new["Dense_0"]["kernel"]), np.asarray(masked["Dense_0"]["kernel"]))


@pytest.mark.parametrize("index", range(2, 4))
def test_missing_params_are_optax_s_error(index):
    with pytest.raises(ValueError) as theirs:
        optax.add_decayed_weights(0.1).update(PARAMS, optax.EmptyState(), None)
    with pytest.raises(ValueError) as ours:
        transforms()[index].update(PARAMS, optax.EmptyState())
    assert str(ours.value) == str(theirs.value)


def test_updates_that_are_none_leave_params_alone():
    params = {"kernel": jnp.full((2, 2), 3.0), "frozen": jnp.ones(2), "activation": jnp.tanh}
    updates = {"kernel": jnp.ones((2, 2)), "frozen": None, "activation": None}
    new = apply_updates(params, updates, max_norm(1.0))
    assert new["frozen"] is params["frozen"]
    assert new["activation"] is jnp.tanh
    assert over(new["kernel"], (0,), 1) == 0
    assert updated(max_norm(1.0), updates, params)["frozen"] is None


def test_schedules_compile_once():
    compiled, constraint = [], max_norm(1.0)
    bound = lambda count: 1.0 / (1 + count)
    tx = optax.chain(
        optax.inject_hyperparams(clip_by_global_norm)(max_norm=bound),
        optax.inject_hyperparams(adaptive_grad_clip)(clipping=bound),
        optax.sgd(0.5),
        optax.inject_hyperparams(max_norm, static_args=("axes",))(max_norm=bound, axes=0),
    )

    @jax.jit
    def step(params, state, count):
        compiled.append(1)
        updates, state = tx.update(params, state, params)
        exact = apply_updates(params, updates, max_norm(bound(count) / 2))
        return optax.apply_updates(params, updates), exact, state

    params, state = PARAMS, tx.init(PARAMS)
    for count in range(3):
        params, exact, state = step(params, state, count)
        for tree, c in ((params, bound(count)), (exact, bound(count) / 2)):
            assert over(tree["Dense_0"]["kernel"], (0,), float(np.float32(c))) == 0
            np.testing.assert_allclose(constraint.norms(tree)["Dense_0/kernel"], c, rtol=1e-6)
    assert len(compiled) <= 2, "compiled anew for another bound; once more is for weak types in the state of optax"


def test_hyperparameters_that_are_words():
    inject = optax.inject_hyperparams
    tx = inject(clip_by_global_norm)(max_norm=1.0, nonfinite="zero")
    assert not updated(tx, {"w": jnp.array([math.nan])})["w"].any()
    tx = inject(max_norm)(max_norm=lambda count: 1.0, mode="equal", axes="incoming")
    state = tx.init(PARAMS)
    assert state.hyperparams["max_norm"] == 1.0
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    new = optax.apply_updates(PARAMS, jax.jit(tx.update)(zero, state, PARAMS)[0])
    np.testing.assert_allclose(max_norm(1.0).norms(new)["Dense_0/kernel"], 1, rtol=1e-6)


def test_named_chains():
    named = optax.named_chain(("clip", clip_by_global_norm(1.0)), ("rate", optax.sgd(0.5)), ("ball", max_norm(1.0)))
    plain = optax.chain(clip_by_global_norm(1.0), optax.sgd(0.5), max_norm(1.0))
    state = named.init(PARAMS)
    assert list(state) == ["clip", "rate", "ball"]
    ours, theirs = named.update(PARAMS, state, PARAMS)[0], updated(plain, PARAMS, PARAMS)
    assert jax.tree.all(jax.tree.map(lambda a, b: same_bits(np.asarray(a), np.asarray(b)), ours, theirs))


def test_an_ensemble():
    models = jnp.stack([jnp.full((2, 2), value) for value in (0.1, 3.0)])
    new = jax.vmap(lambda kernel: max_norm(1.0).apply({"kernel": kernel})["kernel"])(models)
    assert same_bits(np.asarray(new[0]), np.asarray(models[0]))
    assert over(new[1], (0,), 1) == 0


def test_copies_and_arguments_of_functions():
    """A named tuple would be taken apart as a tree, and put together without its bounds."""
    for constraint in (copy.copy(max_norm(1.0)), copy.deepcopy(max_norm(1.0)), jax.tree.map(jnp.sin, max_norm(1.0))):
        assert over(constraint.apply(PARAMS)["Dense_0"]["kernel"], (0,), 1) == 0
        assert "Dense_0/kernel" in str(constraint.describe(PARAMS))
    project = jax.jit(lambda constraint, params: constraint.apply(params))
    assert over(project(max_norm(1.0), PARAMS)["Dense_0"]["kernel"], (0,), 1) == 0
    clip = jax.tree.map(jnp.sin, clip_by_norm(1.0))
    assert over(updated(clip, PARAMS)["Dense_0"]["kernel"], (0,), 1) == 0


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs)])
            self.dropout, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    model, constraint = Network(nnx.Rngs(0)), max_norm(0.1)
    table = constraint.describe(nnx.state(model))
    assert [(row.name, row.layout.axes) for row in table.rows] == [("layers/0/kernel", (0,))]
    assert "of dtype uint32, which has no norm ball" in table.left_out, "the seeds"
    optimizer = nnx.Optimizer(model, constraint, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert over(model.layers[0].kernel[...], (0,), 0.1) == 0
    params = nnx.state(model, nnx.Param)
    new = apply_updates(params, params, constraint)
    assert type(new) is type(params)
    nnx.update(model, new)
    assert over(model.layers[0].kernel[...], (0,), 0.1) == 0
    kept = nnx.state(model)
    nnx.update(model, constraint.apply(kept))  # all of the state, seeds and statistics too
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(kept)


def test_boxes_and_frozen_dicts_of_flax():
    linen, core = pytest.importorskip("flax.linen"), pytest.importorskip("flax.core")
    box = linen.with_partitioning(lambda: jnp.full((2, 2), 3.0), ("in", "out"))
    params = core.freeze({"params": {"Dense_0": {"kernel": box()}}})
    [row] = max_norm(1.0).describe(params).rows
    assert row.name == "params/Dense_0/kernel"
    new = max_norm(1.0).apply(params)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert over(new["params"]["Dense_0"]["kernel"].value, (0,), 1) == 0


def test_equinox_models_as_they_are():
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        convolution: eqx.nn.Conv2d
        layers: list
        norm: eqx.nn.LayerNorm
        width: int = eqx.field(static=True)

    key = jax.random.key(0)
    model = Network(
        eqx.nn.Conv2d(1, 2, 3, key=key), [eqx.nn.Linear(2, 3, key=key), jnp.tanh], eqx.nn.LayerNorm((2, 4)), 3
    )
    assert [row.name for row in max_norm(1.0).describe(model).rows] == ["convolution/weight", "layers/0/weight"]
    groups = {row.name: (row.layout.text, row.layout.axes) for row in clip_by_norm(1.0).describe(model).rows}
    assert groups == {
        "convolution/weight": ("(out, in, *kernel)", (1, 2, 3)),
        "convolution/bias": ("one group", (0, 1, 2)),  # of shape (2, 1, 1)
        "layers/0/weight": ("(out, in)", (1,)),
        "layers/0/bias": ("one group", (0,)),
        "norm/weight": ("one group", (0, 1)),
        "norm/bias": ("one group", (0, 1)),
    }
    updates = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    new = eqx.filter_jit(apply_updates)(model, updates, max_norm(0.1))
    assert jax.tree.structure(new) == jax.tree.structure(model)
    assert new.layers[1] is jnp.tanh
    assert over(new.convolution.weight, (1, 2, 3), 0.1) == over(new.layers[0].weight, (1,), 0.1) == 0
    assert (new.norm.bias == 1).all()


def test_several_micro_batches():
    tx = optax.MultiSteps(optax.chain(optax.sgd(1.0), max_norm(1.0)), every_k_schedule=2)
    params = {"kernel": jnp.full((2, 2), 0.5)}
    state = tx.init(params)
    for micro in range(4):
        updates, state = tx.update({"kernel": jnp.full((2, 2), -3.0)}, state, params)
        assert micro % 2 == 1 or not updates["kernel"].any()
        params = apply_updates(params, updates, max_norm(1.0))
        assert over(params["kernel"], (0,), 1) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, bound", [("min", 1.5), ("equal", 2.0), ("range", (0.7, 2.0)), ("equal", 0.1)])
def test_modes(dtype, kind, bound):
    x = draw(5, dtype, (5, 40))
    x[:, 3] = 0
    constraint = max_norm(bound, axes=0, mode=kind)
    y = np.asarray(jax.jit(constraint.apply)(x))
    low, high = bound if kind == "range" else (bound, math.inf if kind == "min" else bound)
    slack = 8 * float(jnp.finfo(dtype).eps) if kind == "equal" else 2 * float(jnp.finfo("float32").eps)
    for before, after in zip(groups_of(x, (0,)), groups_of(y, (0,)), strict=True):
        if any(before):
            n = exact_norm(after)
            assert n <= high
            assert n >= Fraction(low) * (1 - Fraction(slack))
            if low <= exact_norm(before) <= high and kind != "equal":
                assert before == after
        else:
            assert before == after
    assert same_bits(np.asarray(constraint.apply(y)), y)


def test_units_that_are_too_short_to_lift_stay():
    """Below 1e-31, as documented: entries among them that XLA reads as zeros would be missed in the norm."""
    x = np.float32([[1e-30, 1e-33, 1e-40, 0], [1e-44, 1e-40, 1e-44, 0]])
    y = np.asarray(max_norm(1.0, axes=0, mode="min").apply(x))
    assert same_bits(y[:, 1:], x[:, 1:])
    assert exact_norm(y[:, 0].tolist()) >= 1


# --- which axes


def influence(apply, weight, unit):
    """Where the weights lie that one output unit depends on."""
    return np.asarray(jax.grad(lambda w: (apply(w)[unit] ** 2).sum())(weight)) != 0


def assert_incoming(tree, name, apply, weight, units):
    """A unit's group, by the axes that were chosen, is all that its output depends on."""
    [row] = [row for row in max_norm(1.0).describe(tree).rows if row.name == name]
    others = [axis for axis in range(weight.ndim) if axis not in row.layout.axes]
    assert len(units) == math.prod(weight.shape[axis] for axis in others)
    for place, unit in zip(np.ndindex(*(weight.shape[axis] for axis in others)), units, strict=True):
        group = np.zeros(weight.shape, bool)
        group[tuple(place[others.index(axis)] if axis in others else slice(None) for axis in range(weight.ndim))] = True
        assert (influence(apply, weight, unit) == group).all()


@pytest.mark.parametrize("layer", ["Dense", "Conv", "ConvTranspose", "DenseGeneral"])
def test_incoming_of_flax(layer):
    nn = pytest.importorskip("flax.linen")
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 3))
    if layer == "DenseGeneral":  # as it stands in attention
        module, units = nn.DenseGeneral((2, 3), name="query"), [(..., *place) for place in np.ndindex(2, 3)]
    else:
        made = {"Dense": lambda: nn.Dense(4), "Conv": lambda: nn.Conv(4, (2, 2)), "ConvTranspose": lambda: nn.ConvTranspose(4, (2, 2))}  # fmt: skip
        module, units = made[layer](), [(..., unit) for unit in range(4)]
    params = module.init(jax.random.key(0), x)["params"]
    apply = lambda kernel: module.apply({"params": {**params, "kernel": kernel}}, x)
    assert_incoming(
        {"query" if layer == "DenseGeneral" else layer: params},
        f"{'query' if layer == 'DenseGeneral' else layer}/kernel",
        apply,
        params["kernel"],
        units,
    )


@pytest.mark.parametrize("layer", ["Linear", "Conv2d", "ConvTranspose2d", "GRUCell"])
def test_incoming_of_equinox(layer):
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(0)
    if layer == "GRUCell":
        module, x = eqx.nn.GRUCell(3, 2, key=key), jax.random.normal(key, (3,))
        row = max_norm(1.0).describe(module).rows
        assert [(r.name, r.shape, r.layout.axes) for r in row] == [
            ("weight_ih", (6, 3), (1,)),
            ("weight_hh", (6, 2), (1,)),
        ]
        return
    x = jax.random.normal(key, (3,) if layer == "Linear" else (3, 5, 5))
    module = getattr(eqx.nn, layer)(3, 4, *([] if layer == "Linear" else [2]), key=key)
    apply = lambda weight: eqx.tree_at(lambda m: m.weight, module, weight)(x)
    assert_incoming(module, "weight", apply, module.weight, [(unit,) for unit in range(4)])


def test_incoming_of_other_names():
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    tree = {
        "net/~/linear": {"w": shaped(3, 4), "b": shaped(4)},
        "net/~/conv2_d": {"w": shaped(3, 3, 2, 4)},
        "net/~/conv2_d_transpose": {"w": shaped(3, 3, 4, 2)},
        "transposed/~/conv2_d": {"w": shaped(3, 3, 2, 4)},
        "net/~/embed": {"embeddings": shaped(9, 4)},
        "net/~/layer_norm": {"scale": shaped(4), "offset": shaped(4)},
        "attention": {"query": {"kernel": shaped(8, 2, 4), "bias": shaped(2, 4)}, "out": {"kernel": shaped(2, 4, 8)}},
        "norm": {"weight": shaped(2, 4)},
        "lora": {"lora_a": shaped(4, 2)},
        "Embed_0": {"embedding": shaped(9, 4)},
        "steps": jax.ShapeDtypeStruct((), np.int32),
    }
    table = max_norm(1.0).describe(tree)
    assert [(row.name, row.layout.text, row.layout.axes) for row in table.rows] == [
        ("Embed_0/embedding", "(row, dim)", (1,)),
        ("attention/out/kernel", "(heads, dim, out)", (0, 1)),
        ("attention/query/kernel", "(in, heads, dim)", (0,)),
        ("net/~/conv2_d/w", "(*kernel, in, out)", (0, 1, 2)),
        ("net/~/conv2_d_transpose/w", "(*kernel, out, in)", (0, 1, 3)),
        ("net/~/embed/embeddings", "(row, dim)", (1,)),
        ("net/~/linear/w", "(in, out)", (0,)),
        ("transposed/~/conv2_d/w", "(*kernel, in, out)", (0, 1, 2)),
    ]
    assert table.left_out == {
        "a bias or scale": [
            "attention/query/bias",
            "net/~/layer_norm/offset",
            "net/~/layer_norm/scale",
            "net/~/linear/b",
        ],
        "a name that is not known here: name its axes": ["lora/lora_a"],
        "of a normalisation layer, by its name": ["norm/weight"],
        "of dtype int32, which has no norm ball": ["steps"],
    }
    table = clip_by_norm(1.0).describe(tree)
    clipped = {row.name: row.layout.axes for row in table.rows}
    assert clipped["net/~/linear/b"] == (0,), "a bias is one vector"
    assert clipped["attention/query/bias"] == (0, 1)
    assert table.left_out["a name that is not known here: name its axes"] == ["lora/lora_a"]


def test_axes_by_a_function():
    stacked = {"layers": {"kernel": jnp.full((2, 4, 3), 2.0), "bias": jnp.full((2, 3), 2.0)}, "head": {"kernel": jnp.full((3, 1), 2.0)}}  # fmt: skip
    seen = []

    def axes(path, leaf):
        seen.append((path, leaf.shape))
        return (1 if "kernel" in path else None) if path.startswith("layers") else "incoming"

    constraint = max_norm(1.0, axes)
    assert str(constraint.describe(stacked)) == (
        "name           shape      layout     axes\n"
        "head/kernel    (3, 1)     (in, out)  0\n"
        "layers/kernel  (2, 4, 3)  as given   1\n"
        "left out, axes has none for it: layers/bias"
    )
    assert ("layers/kernel", (2, 4, 3)) in seen
    new = constraint.apply(stacked)
    assert over(new["layers"]["kernel"], (1,), 1) == 0
    assert (new["layers"]["bias"] == 2).all()


@pytest.mark.parametrize("axes", [0, -2, (0,), iter((0,))], ids=range(4))
def test_axes_for_all_are_not_meant_for_biases(axes):
    constraint = max_norm(1.0, axes)
    for _ in range(2):  # an iterator, too, is read once
        table = constraint.describe(PARAMS)
        assert [(row.name, row.layout.axes) for row in table.rows] == [("Dense_0/kernel", (0,))]
        assert table.left_out == {"less than 2-D (biases, scales): name its axes by a function": ["Dense_0/bias"]}
    assert [row.name for row in clip_by_norm(1.0, 0).describe(PARAMS).rows] == ["Dense_0/bias", "Dense_0/kernel"]
    assert [row.layout.axes for row in max_norm(1.0, "all").describe(PARAMS).rows] == [(0,), (0, 1)]


REFUSALS = [
    (lambda: max_norm(-1.0), ValueError, "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative"),
    (lambda: max_norm(None), TypeError, "max_norm=None: must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf"),
    (lambda: clip_by_norm(math.nan), ValueError, "max_norm=nan: must be >= 0 and not NaN; a norm is never negative"),
    (lambda: adaptive_grad_clip(True), TypeError, "clipping=True: must be a number, an array or a symbolic value >= 0; for no constraint pass clipping=math.inf"),
    (lambda: clip_by_global_norm(lambda count: 1.0), TypeError, "max_norm of type function: must be a number; a schedule goes in by optax.inject_hyperparams(...)(max_norm=schedule)"),
    (lambda: max_norm(1.0, axes=None), TypeError, "axes=None: must be 'incoming', 'all', axes or a function; for example axes=0"),
    (lambda: max_norm(1.0, axes="outgoing"), ValueError, "axes='outgoing': must be 'incoming', 'all', axes or a function; for example axes=0"),
    (lambda: optax.inject_hyperparams(max_norm)(1.0, axes=0).init(PARAMS), TypeError, "axes of type ArrayImpl: must be known before tracing; with optax.inject_hyperparams pass static_args=('axes',)"),
    (lambda: max_norm(1.0, axes=2).init(PARAMS), ValueError, "axes of Dense_0/kernel: norm_axes=2: axis 2 is out of range for an array of 2 dimensions; use -2 to 1"),
    (lambda: max_norm(1.0, mode="most"), ValueError, "mode='most': must be one of max, min, equal, range; leave it out for max"),
    (lambda: max_norm(1.0, mode="range"), TypeError, "max_norm=1.0: must be a pair in mode range; for example max_norm=(0.5, 2.0)"),
    (lambda: max_norm((2.0, 1.0), mode="range"), ValueError, "max_norm=(2.0, 1.0): the lower bound must come first; exchange them"),
    (lambda: max_norm(math.inf, mode="equal"), ValueError, "max_norm=inf: must be finite in mode equal; no norm can be brought there"),
    (lambda: max_norm(6e4, mode="min").apply({"kernel": jnp.ones((1, 2), jnp.float16)}), ValueError, "max_norm=60000.0: must be at most half of the largest float16 in mode min; use a smaller bound"),
    (lambda: clip_by_global_norm(1.0, nonfinite="raise"), ValueError, "nonfinite='raise': a compiled step cannot raise: use 'zero', or look for NaN outside of it"),
    (lambda: clip_by_global_norm(1.0, nonfinite="skip"), ValueError, "nonfinite='skip': a clip cannot skip the optimizer behind it: wrap that, optax.apply_if_finite(optimizer, 5)"),
    (lambda: clip_by_global_norm(1.0, nonfinite="no"), ValueError, "nonfinite='no': must be one of 'propagate', 'zero'"),
    (lambda: updated(clip_by_global_norm(1.0), {"a": {"n": jnp.ones(2, int)}}), TypeError, "updates: a/n of dtype int32 has no norm ball; cast it, or leave it out by optax.masked"),
    (lambda: max_norm(1.0).apply({"odd": jnp.ones((2, 2))}), ValueError, "axes='incoming': nothing to constrain; left out, a name that is not known here: name its axes: odd"),
    (lambda: max_norm(1.0).init({"bias": jnp.ones(2)}), ValueError, "axes='incoming': nothing to constrain; left out, a bias or scale: bias"),
    (lambda: apply_updates(PARAMS, PARAMS, optax.identity()), TypeError, f"constraint of type {type(optax.identity()).__name__}: must be what max_norm returns; make it in the step, where a schedule has its bound"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert str(raised.value) == message


def test_empty_trees_are_no_mistake():
    for transform in transforms():
        assert updated(transform, {}, {}) == {}
    assert max_norm(1.0).apply({"a": None}) == {"a": None}


# --- the documentation


@pytest.mark.parametrize("name", ["clip", "maxnorm"])
def test_examples_of_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"normball.optax.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_name_is_documented():
    for name in normball.optax.__all__:
        doc = getattr(normball.optax, name).__doc__
        if name != "MaxNorm":
            assert all(
                f"{part}\n" in doc for part in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples")
            )


def test_guide():
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    assert pages.faults(pages.guide("jax.md"), "jax.md") == []


def test_example():
    pytest.importorskip("flax")
    script = ROOT / "examples" / "jax_digits.py"
    assert len(script.read_text().splitlines()) <= 60
    run = subprocess.run([sys.executable, str(script), "--epochs", "2"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    largest = [float(number) for number in re.findall(r"at most 3.*?norms (.*)", run.stdout)[0].split()]
    assert max(largest) <= 3
