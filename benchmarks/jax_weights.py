"""Time the constraint on JAX arrays, under jit, beside what JAX's users do today:

    python benchmarks/jax_weights.py [SECONDS]

A matrix of 4096 x 4096 in float32, along each axis, forward and with its gradient, beside the formula of PyMC and of
Keras and `optax.projections.projection_l2_ball` under vmap; then clipping of a list of gradients, beside optax's. One
thread. Every answer is checked first, then all are timed one right after the other in rounds. Printed are medians over
rounds: of times, and of a peer's time over ours (above 1: ours is faster); times to compile; and the memory that the
compiled program takes besides its arguments and results.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from timing import Rival, again, interleave, median, pin, ratio, readable

pin(1)  # before XLA counts the CPUs

import cells
import jax
import jax.numpy as jnp
import numpy as np
import optax

import normball
import normball.optax

N, BOUND, EPSILON = 4096, 32.0, 1e-7  # half of the norms below exceed it


class Program(NamedTuple):
    """A compiled function with its arguments."""

    name: str
    call: Callable
    seconds: float  # to compile
    memory: int


def compiled(name: str, function: Callable, *args: Any) -> Program:
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds, memory = time.perf_counter() - start, program.memory_analysis().temp_size_in_bytes
    return Program(name, lambda: jax.block_until_ready(program(*args)), seconds, memory)


def formula(x: jax.Array, bound: Any, axis: int) -> jax.Array:
    norms = jnp.sqrt((x * x).sum(axis, keepdims=True))
    return x * (jnp.clip(norms, 0, bound) / (norms + EPSILON))


def projection(x: jax.Array, bound: Any, axis: int) -> jax.Array:
    return jax.vmap(optax.projections.projection_l2_ball, (1 - axis, None), 1 - axis)(x, bound)


def ours(x: jax.Array, bound: Any, axis: int) -> jax.Array:
    return normball.norm_constraint(x, bound, axis, EPSILON)


def along(way: Callable, axis: int) -> Callable:
    return lambda x, bound=BOUND: way(x, bound, axis)


def with_gradient(way: Callable) -> Callable:
    return lambda x, g: jax.grad(lambda x: (way(x) * g).sum())(x)


def compare(title: str, programs: Sequence[Program], budget: float) -> None:
    """Check all against the first, time, print."""
    answers = [jax.tree.leaves(program.call()) for program in programs]
    for answer, program in zip(answers, programs, strict=True):
        for a, b in zip(answer, answers[0], strict=True):
            if not np.allclose(a, b, rtol=1e-3, atol=1e-5):  # peers add up in float32
                raise AssertionError(f"{program.name} is far from ours")
    own = programs[0]
    times = interleave([Rival(p.name, again(p.call), guest=p is not own) for p in programs], budget)
    for program in programs:
        share = "" if program is own else f"{ratio(times[program.name], times[own.name])['ratio']:8.2f} x"
        print(
            f"{title:40}{program.name:28}{readable(median(times[program.name])):>9}{share:>10}"
            f"{program.seconds:8.2f} s{program.memory / 2**20:9.1f} MiB",
            flush=True,
        )


def matrix(budget: float) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((N, N), np.float32) * rng.uniform(0, 1, N).astype(np.float32))
    g = jnp.asarray(rng.standard_normal((N, N), np.float32))
    ways = {"normball": ours, "formula": formula, "optax projection, vmap": projection}
    for axis in (0, 1):
        values = x if axis == 0 else x.T.copy()
        programs = [compiled(name, along(way, axis), values) for name, way in ways.items()]
        programs.append(compiled("normball, bound traced", along(ours, axis), values, jnp.float32(BOUND)))
        compare(f"{N} x {N}, axis {axis}, forward", programs, budget)
        programs = [compiled(name, with_gradient(along(way, axis)), values, g) for name, way in ways.items()]
        compare(f"{N} x {N}, axis {axis}, gradient", programs, budget)


def lists(budget: float) -> None:
    shapes = cells.LISTS["ResNet-50, 161 tensors"]
    rng = np.random.default_rng(0)
    updates, params = ([jnp.asarray(rng.standard_normal(s, np.float32)) for s in shapes] for _ in range(2))
    norm = float(normball.total_norm_constraint(updates, np.inf, return_norm=True)[1])
    libraries = {"normball.optax": normball.optax, "optax": optax}
    for state, share in (("clips", 0.5), ("nothing clips", 2.0)):

        def clip(library: Any, bound: float = norm * share) -> Callable:
            rule = library.clip_by_global_norm(bound)
            return lambda updates: rule.update(updates, rule.init(updates))[0]

        programs = [compiled(name, clip(library), updates) for name, library in libraries.items()]
        compare(f"ResNet-50 by total norm, {state}", programs, budget)

    def adaptive(rule: Any) -> Callable:
        return lambda updates, params: rule.update(updates, rule.init(params), params)[0]

    def axes(name: str, leaf: Any) -> Any:
        """Optax's own."""
        return {2: 0, 4: (0, 1, 2)}[leaf.ndim] if sum(length > 1 for length in leaf.shape) > 1 else "all"

    rules = {
        "normball.optax": normball.optax.adaptive_grad_clip(0.01, axes=axes),
        "optax": optax.adaptive_grad_clip(0.01),
    }
    programs = [compiled(name, adaptive(rule), updates, params) for name, rule in rules.items()]
    compare("ResNet-50, adaptive", programs, budget)


def main() -> None:
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    print(f"jax {jax.__version__}, optax {optax.__version__}: time, peer / ours, time to compile, extra memory")
    matrix(budget)
    lists(budget)


if __name__ == "__main__":
    main()
