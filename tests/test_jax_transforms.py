"""JAX's transformations: vmap over anything, scan, checkpoint, every derivative, one compilation, no configuration."""

import itertools
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax")
ml_dtypes = pytest.importorskip("ml_dtypes")

import jax.numpy as jnp  # noqa: E402
from closed_form import WIDE, closed_form, second_derivative, wide_enough, wrong_entries  # noqa: E402
from oracle import broken_laws  # noqa: E402

import normball  # noqa: E402
from normball.backends import jax_narrow  # noqa: E402

RNG = np.random.default_rng(0)
BATCH = 3


def bits(array):
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def taken(value, axis, index):
    """What vmap hands to the call of this index."""
    return value if axis is None else jnp.take(value, index, axis)


def in_axes_cases():
    every = itertools.product((None, 0, 1, 2), (None, 0, -1), (None, 0))
    return [axes for axes in every if axes != (None, None, None)]


def batched(shape, axis, low):
    full = list(shape)
    if axis is not None:
        full.insert(axis if axis >= 0 else len(full) + 1 + axis, BATCH)
    return jnp.asarray(RNG.uniform(low, 2, full), np.float32)


@pytest.mark.parametrize("in_axes", in_axes_cases())
def test_vmap_is_a_loop(in_axes):
    """Over the array, its bounds (one for each group) and epsilon, along any axis, and out along any."""
    x, bound, epsilon = (
        batched(shape, axis, low) for shape, axis, low in zip([(4, 5), (1, 5), ()], in_axes, (-2, 1, 0), strict=True)
    )
    out_axis = sum(0 if axis is None else axis for axis in in_axes) % 3

    def constrain(x, bound, epsilon):
        return normball.norm_constraint(x, bound, 0, epsilon)

    together = jax.vmap(constrain, in_axes, out_axis)(x, bound, epsilon)
    values = list(zip((x, bound, epsilon), in_axes, strict=True))
    each = [constrain(*(taken(value, axis, index) for value, axis in values)) for index in range(BATCH)]
    assert bits(together) == bits(jnp.stack(each, out_axis))
    assert any(bits(one) != bits(taken(x, in_axes[0], index)) for index, one in enumerate(each))  # it did something


@pytest.mark.parametrize("in_axes", [(0, None), (2, 0), (None, 0)])
def test_vmap_is_a_loop_in_float64(in_axes):
    with jax.enable_x64(True):
        x, bound = batched((4, 5), in_axes[0], -2).astype(float), batched((1, 5), in_axes[1], 1).astype(float)
        together = jax.vmap(normball.norm_constraint, in_axes)(x, bound)
        for index in range(BATCH):
            one = normball.norm_constraint(taken(x, in_axes[0], index), taken(bound, in_axes[1], index))
            assert bits(together[index]) == bits(one)


def test_scan_is_a_loop():
    """Weights that are pulled back after each step, with a bound that shrinks, inside of one compiled loop."""
    w, steps = jnp.asarray(RNG.normal(size=(4, 3)), np.float32), jnp.asarray(RNG.normal(size=(6, 4, 3)), np.float32)
    bounds = jnp.linspace(2.0, 0.5, 6)

    def update(w, step_and_bound):
        step, bound = step_and_bound
        return normball.norm_constraint(w + step, bound), None

    last, _ = jax.lax.scan(update, w, (steps, bounds))
    for step, bound in zip(steps, bounds, strict=True):
        w, _ = update(w, (step, bound))
    assert bits(last) == bits(w)


def loss(x, bound, epsilon):
    return jnp.sin(normball.norm_constraint(x, bound, 0, epsilon)).sum()


@pytest.mark.parametrize("x64", [False, True])
def test_checkpoint_changes_nothing(x64):
    with jax.enable_x64(x64):
        at = jnp.asarray(RNG.normal(size=(4, 3))), jnp.asarray(1.5), jnp.asarray(0.1)
        every = (0, 1, 2)
        plain, kept = jax.grad(loss, every)(*at), jax.grad(jax.checkpoint(loss), every)(*at)
        for a, b in zip(plain, kept, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12 if x64 else 1e-6)


@wide_enough
@pytest.mark.parametrize(("x64", "ord"), [(False, 1), (False, 2), (False, np.inf), (True, 2)])
def test_forward_and_reverse_mode_are_the_closed_form(x64, ord):
    """Where a column complies, too; jvp, vjp, jacfwd and jacrev, in the array, its bound and epsilon."""
    rng, dtype = np.random.default_rng(1), np.float64 if x64 else np.float32
    x, g, t = rng.standard_normal((3, 4, 3)).astype(dtype)
    x[:, 0] *= 0.1
    c, e = dtype(1.25), dtype(0.125)
    with jax.enable_x64(x64):

        def constrain(x, c, e):
            return normball.norm_constraint(x, c, 0, e, ord=ord)

        to_x, to_c, to_e = closed_form(x, g, c, e, ord)
        _, pull = jax.vjp(constrain, x, c, e)
        for found, wanted in zip(pull(jnp.asarray(g)), (to_x, to_c, to_e), strict=True):
            assert wrong_entries(found, wanted, np.abs(g).sum(0).max(), dtype) == 0
        _, step = jax.jvp(constrain, (x, c, e), (t, dtype(0.5), dtype(-2)))
        along = (to_x * t).sum() + to_c / 2 - 2 * to_e
        assert wrong_entries((WIDE(1) * g * np.asarray(step)).sum(), along, WIDE(np.abs(g).sum() * 4), dtype) == 0
        forward = jax.jacfwd(constrain, (0, 1, 2))(x, c, e)
        backward = jax.jacrev(constrain, (0, 1, 2))(x, c, e)
        for a, b in zip(forward, backward, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13 if x64 else 2e-6, atol=1e-15 if x64 else 1e-7)
        assert bits(forward[0][:, 0, :, 0]) == bits(np.eye(4, dtype=dtype))  # the column that complies


def test_the_closed_form_can_fail():
    x, g = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    to_x, _, _ = closed_form(x, g, 1.25, 0.125, 2)
    plain = jax.grad(lambda x: (x * (1.25 / (jnp.sqrt((x * x).sum(0)) + 0.125) * 0.9999) * g).sum())(x)
    assert wrong_entries(plain, to_x, np.abs(g).sum(0), np.float32) > 6


@wide_enough
@pytest.mark.parametrize("x64", [False, True])
def test_hessian_is_the_closed_form(x64):
    """Away from ties; in float64 also where squares leave its range; zero where the group complies."""
    rng, dtype = np.random.default_rng(2), np.float64 if x64 else np.float32
    with jax.enable_x64(x64):
        hessian = jax.jit(
            jax.hessian(lambda x, g, c, e: (normball.norm_constraint(x, c, 0, e) * g).sum()), static_argnums=()
        )
        scales = [(10, 3.0, 1.0), (1e10, 1e9, 0.0)]
        for scale, c, e in scales + ([(1e120, 1e119, 0.0), (1e-120, 1e-121, 0.0)] if x64 else []):
            x = (rng.uniform(1, 2, (4, 1)) * scale).astype(dtype)
            g, v = rng.standard_normal((2, 4, 1)).astype(dtype)
            found = np.asarray(hessian(x, g, dtype(c), dtype(e)), WIDE)[:, 0, :, 0] @ v
            wanted = second_derivative(x, g, v, dtype(c), dtype(e))
            assert wrong_entries(found, wanted, np.abs(wanted).max(), dtype) == 0, scale
        assert not np.asarray(hessian(x, g, dtype(np.inf), dtype(0))).any()


@pytest.mark.parametrize(("dtype", "x64"), [("complex64", False), ("complex64", True), ("complex128", True)])
def test_complex_numbers_are_real_pairs(dtype, x64):
    rng = np.random.default_rng(3)
    pairs = rng.standard_normal((4, 3, 2)).astype("float32" if dtype == "complex64" else "float64")
    z = pairs.view(dtype)[..., 0]
    with jax.enable_x64(x64):
        y = np.asarray(normball.norm_constraint(jnp.asarray(z), 1.5, 0, 0.1))
        parts = np.ascontiguousarray(y).view(pairs.dtype).reshape(pairs.shape)
        assert broken_laws(pairs, parts, 1.5, (0, 2), 0.1, band=4) == set()
        assert bits(y) != bits(z)
        assert bits(parts) == bits(normball.norm_constraint(jnp.asarray(pairs), 1.5, (0, 2), 0.1))
        per_unit = np.array([[0.5, np.inf, 2.0]], pairs.dtype)
        y = np.asarray(normball.norm_constraint(jnp.asarray(z), per_unit, 0, 0.1))
        assert broken_laws(pairs, y[..., None].view(pairs.dtype), per_unit[..., None], (0, 2), 0.1, band=4) == set()
        (total,), norm = normball.total_norm_constraint([jnp.asarray(z)], 1.5, 0.1, return_norm=True)
        (real,), same = normball.total_norm_constraint([jnp.asarray(pairs)], 1.5, 0.1, return_norm=True)
        assert bits(np.asarray(total)[..., None].view(pairs.dtype)) == bits(real)
        assert bits(norm) == bits(same)
        # JAX's gradient of a real function is that of its parts, conjugated.
        gradient = jax.grad(lambda z: jnp.sin(normball.norm_constraint(z, 1.5, 0).real).sum())(jnp.asarray(z))
        real = jax.grad(lambda x: jnp.sin(normball.norm_constraint(x, 1.5, (0, 2))[..., 0]).sum())(jnp.asarray(pairs))
        np.testing.assert_allclose(gradient, real[..., 0] - 1j * real[..., 1], rtol=1e-5, atol=1e-7)


def traces(function, calls):
    """How often jit traces the function over all of these calls."""
    count = [0]

    def counted(*args):
        count[0] += 1
        return function(*args)

    compiled = jax.jit(counted)
    for args in calls:
        compiled(*args)
    return count[0]


def test_bounds_of_a_schedule_compile_once():
    x, per_unit = np.ones((4, 3), np.float32), np.ones((1, 3), np.float32)
    numbers = [(x, np.float32(c), np.float32(e)) for c, e in [(1.0, 0.1), (1e-40, 0.0), (np.inf, 1.0), (-1.0, 0.0)]]
    assert traces(lambda x, c, e: normball.norm_constraint(x, c, 0, e), numbers) == 1
    assert traces(lambda x, c, e: normball.total_norm_constraint([x, x], c, e, True), numbers) == 1
    assert traces(lambda x, c: normball.norm_constraint(x, c), [(x, per_unit * c) for c in (1, 2, 1e-40)]) == 1
    assert traces(jax.grad(loss), numbers) == 1


def test_the_counter_of_traces_can_fail():
    function = jax.jit(lambda x, c: normball.norm_constraint(x, c, 0), static_argnums=1)
    assert traces(lambda x: function(x, float(x.shape[0])), [(np.ones((k, 3), np.float32),) for k in (2, 3)]) == 2


def configuration():
    """All that is set for this process and thread, and what a program would see of it."""
    return dict(jax.config.values), jnp.asarray(np.float64(1)).dtype.name


def seen_by_another_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(configuration()))
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.parametrize("x64", [False, True])
def test_configuration_is_left_alone_in_every_thread(x64, monkeypatch):
    """Also while sums are traced in 64-bit mode: by this thread alone."""
    inside = []

    def watched(*args, total=jax_narrow._total):
        inside.append((jnp.asarray(np.float64(1)).dtype.name, seen_by_another_thread()))
        return total(*args)

    monkeypatch.setattr(jax_narrow, "_total", watched)
    elsewhere = seen_by_another_thread()
    with jax.enable_x64(x64):
        before = configuration()
        x = jnp.asarray(RNG.normal(size=(2, 7 + x64)), np.float32)  # of a shape not traced before
        jax.grad(lambda x: normball.norm_constraint(x, 1.0, 0).sum())(x)
        assert configuration() == before
    assert inside
    assert all(own == "float64" and other == elsewhere for own, other in inside)


def test_the_watch_on_the_configuration_can_fail():
    before, x64 = (configuration(), seen_by_another_thread()), jax.config.jax_enable_x64  # PyTensor turns it on
    jax.config.update("jax_enable_x64", not x64)
    try:
        assert configuration() != before[0]
        assert seen_by_another_thread() != before[1]
    finally:
        jax.config.update("jax_enable_x64", x64)
    assert (configuration(), seen_by_another_thread()) == before


def test_lists_of_mixed_dtypes_have_the_bits_of_one_at_a_time():
    with jax.enable_x64(True):
        kinds = ["float16", jnp.bfloat16, "float32", "float64", "complex64", "complex128"]
        xs = [jnp.asarray(RNG.normal(size=(4, 3))).astype(kind) for kind in kinds]
        bounds = [0.5, 0.5, np.array([[0.5, 0.25, np.inf]]), 0.5, 0.5, 0.25]
        together = normball.norm_constraint(xs, bounds)
        jitted = jax.jit(lambda xs: normball.norm_constraint(xs, bounds))(xs)
        for x, bound, y, z in zip(xs, bounds, together, jitted, strict=True):
            assert bits(y) == bits(z) == bits(normball.norm_constraint(x, bound))
            assert bits(y) != bits(x)


@pytest.mark.parametrize("dtype", ["float32", jnp.bfloat16])
def test_what_xla_flushes(dtype):
    """Nothing of a result; of derivatives, tangents that are subnormal: as docs/numerics.md says."""
    smallest = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    x = jnp.asarray(np.array([[8], [-6]]) * smallest, dtype)
    step = jnp.full_like(x, 4) * np.asarray(smallest, dtype)
    for bound in (np.float32(100 * smallest), np.float32(5 * smallest)):
        y, moved = jax.jvp(lambda x, c=bound: normball.norm_constraint(x, c, 0, 0), (x,), (step,))
        assert np.asarray(y, float).all()
        assert broken_laws(np.asarray(x), np.asarray(y), bound, (0,), 0, band=4) == set()
        assert not np.asarray(moved, float).any()
    _, moved = jax.jvp(lambda x: normball.norm_constraint(x, 1.0, 0, 0), (x,), (jnp.ones_like(x),))
    assert bits(moved) == bits(jnp.ones_like(x))
