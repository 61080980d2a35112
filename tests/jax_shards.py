"""Run by test_jax_sharded.py on 8 devices: results, shardings, and the collectives of the compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_collectives import collectives, compiled_collectives, largest_sent
from oracle import broken_laws

import normball

# Sharding of a matrix with norms over axis 0 -> all-reduces of a call.
SPECS = {P("a", None): 1, P(None, "b"): 0, P("a", "b"): 1, P(("a", "b"), None): 1, P(): 0}


def only_reduces(count):
    return {"all-reduce": count} if count else {}


def constrain(x):
    return normball.norm_constraint(x, 5.0, 0)


def loss(x):
    return jnp.sin(constrain(x)).sum()


def check(mesh):
    w = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    expected = np.asarray(jax.grad(loss)(jnp.asarray(w)))
    for spec, reduces in SPECS.items():
        sharding = NamedSharding(mesh, spec)
        x = jax.device_put(w, sharding)
        # Each program is compiled once, run, and read: compiling takes the time.
        compiled = jax.jit(constrain).lower(x).compile()
        traced_bound = jax.jit(normball.norm_constraint).lower(x, 5.0).compile()
        for result in (constrain(x), compiled(x), traced_bound(x, 5.0)):
            assert broken_laws(w, np.asarray(result), 5.0, (0,), band=4) == set()
            assert result.sharding.is_equivalent_to(sharding, 2), (spec, result.sharding)
        compiled_gradient = jax.jit(jax.grad(loss)).lower(x).compile()
        derivative = compiled_gradient(x)
        np.testing.assert_allclose(derivative, expected, rtol=1e-5, atol=1e-6)
        assert derivative.sharding.is_equivalent_to(sharding, 2)
        assert compiled_collectives(compiled) == only_reduces(reduces), spec
        assert compiled_collectives(compiled_gradient) == only_reduces(2 * reduces), spec
        assert compiled_collectives(traced_bound) == only_reduces(reduces), spec


def check_large(mesh):
    """Arrays that one device would take block by block, which here would gather them; a tiny bound has sums of its own."""
    for spec, reduces in {P("a", None): (1, 0), P(None, "b"): (0, 1), P("a", "b"): (1, 1)}.items():
        x = jax.ShapeDtypeStruct((1024, 256), np.float32, sharding=NamedSharding(mesh, spec))
        for axis, bound in ((0, 5.0), (1, 5.0), (1, 1e-38)):
            alone = collectives(lambda x, axis=axis, bound=bound: normball.norm_constraint(x, bound, axis), x)
            assert alone == only_reduces(reduces[axis]), (spec, axis, bound)
        assert collectives(jax.grad(loss), x) == only_reduces(2 * reduces[0]), spec


def check_float64(mesh):
    """Exact sums: more collectives, which docs/numerics.md counts, and of what is known of each group alone."""
    w = np.random.default_rng(0).standard_normal((64, 32))
    for spec, reduces in SPECS.items():
        x = jax.device_put(w, NamedSharding(mesh, spec))
        compiled = jax.jit(constrain).lower(x).compile()
        y = compiled(x)
        assert broken_laws(w, np.asarray(y), 5.0, (0,), band=4) == set()
        assert y.sharding.is_equivalent_to(x.sharding, 2)
        assert compiled_collectives(compiled) == ({"all-reduce": 1, "all-gather": 4} if reduces else {}), spec
        assert largest_sent(compiled) <= mesh.size * 32 < w.size // 4, spec


def check_counter(mesh):
    """The counter sees what it is there to see."""
    x = jax.device_put(np.ones((8, 8), np.float32), NamedSharding(mesh, P("a", None)))
    everywhere = NamedSharding(mesh, P())
    compiled = jax.jit(lambda x: jax.lax.with_sharding_constraint(x, everywhere)).lower(x).compile()
    assert compiled_collectives(compiled) == {"all-gather": 1}
    assert largest_sent(compiled) == x.size


def check_tree(mesh):
    """XLA merges the collectives of many arrays: one for each set of devices that share a norm."""
    specs = [P("a", None), P(None, "b"), P("a", "b"), P(("a", "b"), None)]
    shapes = [(64, 32 + 8 * index) for index in range(3)]
    arrays = [
        jax.device_put(np.full(shape, 3.0, np.float32), NamedSharding(mesh, s)) for s in specs for shape in shapes
    ]
    together = collectives(lambda xs: normball.norm_constraint(xs, 1.0, 0), arrays)
    assert together == only_reduces(2), together
    together = collectives(lambda xs, bound: normball.norm_constraint(xs, bound, 0), arrays, 1.0)
    assert together == only_reduces(2), together
    total = collectives(lambda xs: normball.total_norm_constraint(xs, 1.0), arrays)
    assert total == only_reduces(3), total  # over a, over b, over both


for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        check(mesh)
        if kind == AxisType.Auto:
            check_counter(mesh)
            check_large(mesh)
            check_tree(mesh)
            with jax.enable_x64(True):
                check_float64(mesh)
print("all is well")
