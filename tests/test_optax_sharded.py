"""A train step of optax on 8 devices, batches on one mesh axis and weights on another.

Run by pytest, this file runs itself in a process of its own: devices are counted when JAX starts.
"""

import os
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from oracle import exact_norm, groups_of  # noqa: E402

from normball.optax import apply_updates, clip_by_global_norm, max_norm  # noqa: E402

BOUND = 1.0
# Column parallel, then row parallel: the norms of the first are each device's own, those of the second are split.
SPECS = {"up": {"kernel": P(None, "model"), "bias": P("model")}, "down": {"kernel": P("model", None), "bias": P()}}
SHAPES = {"up": {"kernel": (24, 64), "bias": (64,)}, "down": {"kernel": (64, 16), "bias": (16,)}}
ADDED = [("all-reduce", 3), ("all-reduce", 16)]
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def test_results_shardings_and_collectives():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("all is well\n")


def train(clip, apply, explicit=False):
    """A train step with a clip in front of the optimizer and a way to add its updates."""
    placed = {"out_sharding": P("data", None)} if explicit else {}
    optimizer = optax.chain(clip, optax.sgd(0.5, momentum=0.9))

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
        made = jnp.matmul(hidden, params["down"]["kernel"], **placed) + params["down"]["bias"]
        return ((made - y) ** 2).mean()

    @jax.jit
    def step(params, state, x, y):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return apply(params, updates), state

    return optimizer.init, step


def collectives(step, *args):
    """Kind and elements of each collective of the compiled step."""
    text = step.lower(*args).compile().as_text()
    calls = re.findall(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    counts = [(kind, sum(map(elements, re.findall(r"\w+\[([\d,]*)\]", types)))) for types, kind in calls]
    return sorted(counts)


def elements(shape):
    return int(np.prod([int(length) for length in shape.split(",") if length], dtype=int))


def start(mesh):
    """Parameters and a batch, on one device and spread."""
    rng = np.random.default_rng(0)
    normal = lambda shape: rng.standard_normal(shape, dtype=np.float32)
    one = (
        jax.tree.map(normal, SHAPES, is_leaf=lambda value: isinstance(value, tuple)),
        normal((32, 24)),
        normal((32, 16)),
    )
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (SPECS, P("data", None), P("data", None)))
    return one, jax.device_put(one, placed), placed[0]


def check(mesh, explicit):
    """Five steps with ours inside."""
    constraint = max_norm(BOUND)
    parts = clip_by_global_norm(0.1), lambda params, updates: apply_updates(params, updates, constraint)
    (params, *batch), (spread, *spread_batch), shardings = start(mesh)
    init, step = train(*parts)
    _, spread_step = train(*parts, explicit)
    here, there = (params, init(params)), (spread, init(spread))
    for _ in range(5):
        here, there = step(*here, *batch), spread_step(*there, *spread_batch)
        for one, many, sharding in zip(*map(jax.tree.leaves, (here[0], there[0], shardings)), strict=True):
            assert many.sharding.is_equivalent_to(sharding, many.ndim), (many.sharding, sharding)
            np.testing.assert_allclose(many, one, rtol=2e-5, atol=1e-6)
        for layer in there[0].values():
            norms = [exact_norm(group) for group in groups_of(np.asarray(layer["kernel"]), (0,))]
            assert Fraction(BOUND) * Fraction(999, 1000) < max(norms) <= Fraction(BOUND)
    added = collectives(spread_step, *there, *spread_batch)
    for known in collectives(train(optax.identity(), optax.apply_updates, explicit)[1], *there, *spread_batch):
        added.remove(known)  # what the step sends without ours
    # Partial sums of the total norm, and the norms of the 16 units whose weights are split. No weight.
    assert added == ADDED, added


def check_counter(mesh):
    """The counter sees what it is there to see: a clip that gathers."""
    gather = optax.stateless(
        lambda updates, params: jax.lax.with_sharding_constraint(updates, NamedSharding(mesh, P()))
    )
    _, (spread, *batch), _ = start(mesh)
    init, step = train(gather, optax.apply_updates)
    assert ("all-gather", 24 * 64) in collectives(step, spread, init(spread), *batch)


def main():
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            check(mesh, kind == AxisType.Explicit)
            if kind == AxisType.Auto:
                check_counter(mesh)
    print("all is well")


if __name__ == "__main__":
    main()
