"""Run by test_jax_sharded.py as one of several processes, whose devices share groups."""

import sys

import jax

port, count, rank = map(int, sys.argv[1:4])
alone = "--alone" in sys.argv  # parts that know nothing of each other, which must be found out
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", count, rank, initialization_timeout=120)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from oracle import broken_laws, broken_total_laws, exact_norm  # noqa: E402

import normball.jax  # noqa: E402

assert jax.device_count() == 2 * count
assert jax.process_count() == count
MESH = jax.make_mesh((jax.device_count(),), ("parts",), axis_types=(AxisType.Auto,))
SPLIT = NamedSharding(MESH, P("parts", None))


def spread(w):
    return jax.make_array_from_callback(w.shape, SPLIT, lambda index: w[index])


@jax.jit
def collected(x):
    return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, P()))


def whole(x):
    """All of an array, in every process: this is the test's all-gather, not ours."""
    return np.asarray(collected(x).addressable_data(0))


def check(dtype):
    w = np.random.default_rng(0).standard_normal((4 * jax.device_count(), 5)).astype(dtype) * np.array(2, dtype)
    x, name = spread(w), None if alone else "parts"

    def mapped(function, out_specs):
        return jax.jit(jax.shard_map(function, mesh=MESH, in_specs=P("parts", None), out_specs=out_specs))

    results = [mapped(lambda x: normball.jax.norm_constraint(x, 3.0, 0, 0, axis_name=name), P("parts", None))(x)]
    if not alone:
        results.append(jax.jit(lambda x: normball.norm_constraint(x, 3.0, 0, 0))(x))  # without a name: XLA knows
    for y in results:
        assert y.sharding.is_equivalent_to(SPLIT, 2)
        broken = broken_laws(w, whole(y), 3.0, (0,), 0, band=4)
        assert broken == set(), broken

    def clip(x):
        return normball.jax.total_norm_constraint([x], 3.0, 0, True, axis_name=name)

    (y,), norm = mapped(clip, ([P("parts", None)], P()))(x)
    assert broken_total_laws([w], [whole(y)], 3.0, 0, band=4) == set()
    np.testing.assert_allclose(norm.addressable_data(0), float(exact_norm([float(v) for v in w.ravel()])), rtol=1e-6)

    def gradient(x):
        return jax.grad(lambda x: jnp.sin(normball.jax.norm_constraint(x, 3.0, 0, axis_name=name)).sum())(x)

    expected = jax.grad(lambda x: jnp.sin(normball.norm_constraint(x, 3.0, 0)).sum())(jnp.asarray(w))
    np.testing.assert_allclose(whole(mapped(gradient, P("parts", None))(x)), expected, rtol=1e-5, atol=1e-6)


check("float32")
with jax.enable_x64(True):
    check("float64")
print("all is well", flush=True)
jax.distributed.shutdown()
