"""The table of docs/migrating.md: other libraries' calls and ours, both run on the same numbers.

`python docs/migrating.py` measures again the rows whose library is installed here; with --check it fails where the page
says something else. Words must be the same; figures, which depend on a machine's order of summation, within a factor.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import normball
from normball import definition

PAGE = Path(__file__).parent / "migrating.md"
BEGIN, END = "<!-- measured by docs/migrating.py -->\n", "<!-- end of measured table -->\n"
HEADER = (
    "| their call | ours | difference | ends above the bound | moves what complies | at zero | at 1e20 |\n"
    "|---|---|---|---|---|---|---|\n"
)
BOUND = 3.0
LENGTH, COUNT = 64, 400  # entries of a group, groups
NEAR = 100  # groups on either side within 1e-6 of the bound

Constraint = Callable[[np.ndarray], np.ndarray]  # of each column of a float32 matrix


class Call(NamedTuple):
    """A row: what is written in a program, and both as functions of a matrix."""

    library: str
    theirs: str
    ours: str
    make: Callable[[], tuple[Constraint, Constraint, Callable[[], float] | None]]  # the last: a derivative at zero


def columns() -> np.ndarray:
    """Groups of all lengths, half of them beyond the bound: from 1e-6 to a hundred times it, and many just about it."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((LENGTH, COUNT))
    directions /= np.linalg.norm(directions, axis=0)
    within = np.geomspace(1e-6, 0.99 * BOUND, COUNT // 2 - NEAR)
    near = np.geomspace(5e-8, 1e-6, NEAR)
    beyond = BOUND * np.geomspace(1.0001, 100, COUNT // 2 - NEAR)
    return (directions * np.concatenate([within, BOUND * (1 - near), BOUND * (1 + near), beyond])).astype(np.float32)


def measured(call: Call) -> str:
    """The row of a call."""
    theirs, ours, derivative = call.make()
    x = columns()
    y, z = theirs(x), ours(x)
    norms, results = exact_norms(x), exact_norms(y)
    complies = np.array([norm <= Fraction(BOUND) for norm in norms])
    difference = np.linalg.norm(y.astype(float) - z, axis=0).max() / BOUND
    excess = [float(result / Fraction(BOUND) - 1) for result in results]
    above = [value for value, fine in zip(excess, complies, strict=True) if value > 0 and not fine]
    change = np.linalg.norm(y.astype(float) - x, axis=0) / np.linalg.norm(x.astype(float), axis=0)
    moved = change[complies][change[complies] > 0]
    cells = (
        f"`{call.theirs}`",
        f"`{call.ours}`",
        f"{difference:.0e}",
        f"{share(len(above), sum(~complies))}, by up to {max(above):.0e}" if above else "no",
        f"{share(len(moved), sum(complies))}, by up to {moved.max():.0e}" if len(moved) else "no",
        at_zero(theirs, derivative),
        at_overflow(theirs),
    )
    return "| " + " | ".join(cells) + " |\n"


def share(count: int, of: int) -> str:
    return f"{100 * count / of:.0f} %"


def exact_norms(x: np.ndarray) -> list[Any]:
    """Of each group, in exact arithmetic; NaN where it has none."""
    whole = [definition.norm(definition.summarise(group.tolist(), 2), 2) for group in np.nan_to_num(x.T)]
    return [norm if np.isfinite(group).all() else np.nan for norm, group in zip(whole, x.T, strict=True)]


def at_zero(theirs: Constraint, derivative: Callable[[], float] | None) -> str:
    """What becomes of a group of zeros, and the derivative there if it has one."""
    value = theirs(np.zeros((LENGTH, 1), np.float32))
    words = "0" if (value == 0).all() else "NaN" if np.isnan(value).all() else "other"
    if derivative is None:
        return words
    slope = derivative()
    return f"{words}; derivative {'NaN' if np.isnan(slope) else f'{slope:.0f}'}"


def at_overflow(theirs: Constraint) -> str:
    """What becomes of a group whose norm fits float32, and whose sum of squares does not."""
    value = theirs(np.full((LENGTH, 1), 1e20, np.float32))
    if np.isnan(value).all():
        return "NaN"
    if (value == 0).all():
        return "0"
    return "right" if np.allclose(value, BOUND / LENGTH**0.5, rtol=1e-5) else "not clipped" if value[0] > 1 else "other"


# --- the calls


def parts(column: np.ndarray) -> list[np.ndarray]:
    """A column as the gradients of two parameters."""
    return [column[:40].copy(), column[40:].reshape(4, 6).copy()]


def each(total: Callable[[list[np.ndarray]], list[Any]]) -> Constraint:
    """A constraint on the total norm, for each column by itself."""

    def constrain(x: np.ndarray) -> np.ndarray:
        results = [np.concatenate([np.ravel(part) for part in total(parts(column))]) for column in x.T]
        return np.stack(results, axis=1)

    return constrain


def our_total(xs: list[np.ndarray]) -> list[np.ndarray]:
    return normball.total_norm_constraint(xs, BOUND, 0)


def our_columns(x: np.ndarray) -> np.ndarray:
    return normball.norm_constraint(x, BOUND, epsilon=0)


def pymc() -> Any:
    import pymc
    import pytensor
    import pytensor.tensor as pt

    with pytensor.config.change_flags(floatX="float32"):
        w = pt.fmatrix()
        theirs = pytensor.function([w], pymc.norm_constraint(w, BOUND))
        ours = pytensor.function([w], normball.norm_constraint(w, BOUND))
        slope = pytensor.function([w], pt.grad(pymc.norm_constraint(w, BOUND).sum(), w))
    return theirs, ours, lambda: float(slope(np.zeros((LENGTH, 1), np.float32))[0, 0])


def pymc_total() -> Any:
    import pymc
    import pytensor
    import pytensor.tensor as pt

    with pytensor.config.change_flags(floatX="float32"):
        grads = [pt.fvector(), pt.fmatrix()]
        theirs = pytensor.function(grads, pymc.total_norm_constraint(grads, BOUND))
        ours = pytensor.function(grads, normball.total_norm_constraint(grads, BOUND))
    return each(lambda xs: theirs(*xs)), each(lambda xs: ours(*xs)), None


def lasagne() -> Any:
    """Its published formula, in NumPy."""

    def theirs(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            norms = np.sqrt(np.square(x).sum(0, keepdims=True))
        return x * (np.clip(norms, 0, np.float32(BOUND)) / (np.float32(1e-7) + norms))

    return theirs, our_columns, None


def on_a_backend() -> Any:
    """Keras, on a library that is here, unless it was chosen before."""
    here = [name for name in ("jax", "torch", "tensorflow") if importlib.util.find_spec(name)]
    os.environ.setdefault("KERAS_BACKEND", here[0])
    import keras

    return keras


def keras_weights() -> Any:
    keras = on_a_backend()

    import normball.keras

    def of_tensors(constraint: Callable[[Any], Any]) -> Constraint:
        return lambda x: keras.ops.convert_to_numpy(constraint(keras.ops.convert_to_tensor(x)))

    return of_tensors(keras.constraints.MaxNorm(BOUND)), of_tensors(normball.keras.MaxNorm(BOUND, axis=0)), None


def keras_gradients() -> Any:
    keras = on_a_backend()

    import normball.keras

    variables = [keras.Variable(np.zeros(part.shape, np.float32)) for part in parts(np.zeros(LENGTH))]

    def clipped(library: Any) -> Constraint:
        def total(xs: list[np.ndarray]) -> list[np.ndarray]:
            for variable in variables:
                variable.assign(np.zeros(variable.shape, np.float32))
            optimizer = library.SGD(1.0, global_clipnorm=BOUND)
            optimizer.apply([keras.ops.convert_to_tensor(x) for x in xs], variables)
            return [-keras.ops.convert_to_numpy(variable.value) for variable in variables]

        return each(total)

    return clipped(keras.optimizers), clipped(normball.keras.optimizers), None


def torch_gradients() -> Any:
    import torch

    import normball.torch

    def clipped(clip: Callable[..., Any]) -> Constraint:
        def total(xs: list[np.ndarray]) -> list[np.ndarray]:
            parameters = [torch.nn.Parameter(torch.zeros(x.shape)) for x in xs]
            for parameter, x in zip(parameters, xs, strict=True):
                parameter.grad = torch.from_numpy(x)
            clip(parameters, BOUND)
            return [parameter.grad.numpy() for parameter in parameters]

        return each(total)

    return clipped(torch.nn.utils.clip_grad_norm_), clipped(normball.torch.clip_grad_norm_), None


def torch_renorm() -> Any:
    import torch

    def slope() -> float:
        w = torch.zeros(1, LENGTH, requires_grad=True)
        torch.renorm(w, 2, 0, BOUND).sum().backward()
        return float(w.grad[0, 0])

    def of_rows(constrain: Callable[[Any], Any]) -> Constraint:
        return lambda x: constrain(torch.from_numpy(x.T.copy())).numpy().T

    theirs = of_rows(lambda w: torch.renorm(w, 2, 0, BOUND))
    return theirs, of_rows(lambda w: normball.norm_constraint(w, BOUND, 1, 0)), slope


def torch_embedding() -> Any:
    import torch

    from normball.torch import MaxNorm

    def looked_up(x: np.ndarray, constrain: Callable[[Any], Any], **setting: float) -> np.ndarray:
        layer = torch.nn.Embedding(x.shape[1], LENGTH, _weight=torch.from_numpy(x.T.copy()), **setting)
        constrain(layer)
        return layer.weight.detach().numpy().T

    def theirs(x: np.ndarray) -> np.ndarray:
        return looked_up(x, lambda layer: layer(torch.arange(x.shape[1])), max_norm=BOUND)

    return theirs, lambda x: looked_up(x, MaxNorm(BOUND).apply_), None


def of_jax(constrain: Callable[[Any], Any]) -> tuple[Constraint, Callable[[], float]]:
    """A function of a list of JAX arrays, and its derivative at zero."""
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(constrain)
    zeros = [jnp.zeros(part.shape, jnp.float32) for part in parts(np.zeros(LENGTH))]
    slope = jax.grad(lambda xs: sum(jnp.sum(x) for x in constrain(xs)))
    return each(lambda xs: compiled(list(map(jnp.asarray, xs)))), lambda: float(slope(zeros)[0][0])


def optax_gradients() -> Any:
    import optax

    import normball.optax

    def clipped(transformation: Any) -> Callable[[Any], Any]:
        return lambda xs: transformation.update(xs, transformation.init(xs))[0]

    theirs, slope = of_jax(clipped(optax.clip_by_global_norm(BOUND)))
    return theirs, of_jax(clipped(normball.optax.clip_by_global_norm(BOUND)))[0], slope


def optax_projection() -> Any:
    import optax

    theirs, slope = of_jax(lambda xs: optax.projections.projection_l2_ball(xs, BOUND))
    return theirs, of_jax(lambda xs: normball.total_norm_constraint(xs, BOUND, 0))[0], slope


def tensorflow() -> Any:
    import tensorflow

    def slope() -> float:
        w = tensorflow.Variable(np.zeros((LENGTH, 1), np.float32))
        with tensorflow.GradientTape() as tape:
            total = tensorflow.reduce_sum(tensorflow.clip_by_norm(w, BOUND, axes=[0]))
        return float(tape.gradient(total, w)[0, 0])

    return lambda x: tensorflow.clip_by_norm(x, BOUND, axes=[0]).numpy(), our_columns, slope


def tensorflow_total() -> Any:
    import tensorflow

    def theirs(xs: list[np.ndarray]) -> list[np.ndarray]:
        return [part.numpy() for part in tensorflow.clip_by_global_norm(xs, BOUND)[0]]

    return each(theirs), each(our_total), None


CALLS = [
    Call("pymc", "pm.norm_constraint(w, 3.0)", "normball.norm_constraint(w, 3.0)", pymc),
    Call("pymc", "pm.total_norm_constraint(grads, 3.0)", "normball.total_norm_constraint(grads, 3.0)", pymc_total),
    Call("numpy", "lasagne.updates.norm_constraint(w, 3.0)", "normball.norm_constraint(w, 3.0)", lasagne),
    Call("keras", "keras.constraints.MaxNorm(3.0)(w)", "normball.keras.MaxNorm(3.0, axis=0)(w)", keras_weights),
    Call(
        "keras",
        "keras.optimizers.SGD(0.1, global_clipnorm=3.0)",
        "normball.keras.optimizers.SGD(0.1, global_clipnorm=3.0)",
        keras_gradients,
    ),
    Call(
        "torch",
        "torch.nn.utils.clip_grad_norm_(parameters, 3.0)",
        "normball.torch.clip_grad_norm_(parameters, 3.0)",
        torch_gradients,
    ),
    Call("torch", "torch.renorm(w, 2, 0, 3.0)", "normball.norm_constraint(w, 3.0, 1)", torch_renorm),
    Call("torch", "torch.nn.Embedding(n, d, max_norm=3.0)", "normball.torch.MaxNorm(3.0)", torch_embedding),
    Call("optax", "optax.clip_by_global_norm(3.0)", "normball.optax.clip_by_global_norm(3.0)", optax_gradients),
    Call(
        "optax",
        "optax.projections.projection_l2_ball(tree, 3.0)",
        "normball.total_norm_constraint(leaves, 3.0)",
        optax_projection,
    ),
    Call("tensorflow", "tf.clip_by_norm(w, 3.0, axes=[0])", "normball.norm_constraint(w, 3.0)", tensorflow),
    Call(
        "tensorflow",
        "tf.clip_by_global_norm(grads, 3.0)",
        "normball.total_norm_constraint(grads, 3.0)",
        tensorflow_total,
    ),
]


# --- the page


def installed(call: Call) -> bool:
    return importlib.util.find_spec(call.library) is not None


def rows(text: str) -> dict[str, str]:
    """The page's rows, by their calls."""
    table = text.split(BEGIN)[1].split(END)[0].removeprefix(HEADER)
    return {line.split("`")[1]: line for line in table.splitlines(keepends=True)}


def disagreement(said: str, found: str) -> str:
    """What a row says and what was found, where they differ; empty where they agree."""
    same = [words, words, close, shares, shares, words, words]
    pairs = zip(said.strip("| \n").split(" | "), found.strip("| \n").split(" | "), strict=True)
    agrees = all(compare(a, b) for compare, (a, b) in zip(same, pairs, strict=True))
    return "" if agrees else f"says  {said}found {found}"


def words(said: str, found: str) -> bool:
    return said == found


def close(said: str, found: str) -> bool:
    """Differences of one digit: sums in another order move them, by less than a factor of 3."""
    return float(found) <= 3 * float(said) and float(said) <= 3 * float(found)


def shares(said: str, found: str) -> bool:
    """Within 15 points, or 2 of "no"; with differences, where both have them.

    Another machine's order of summation rounds another half of 200 groups up: a share of them has a standard deviation
    of 3.5 points, the difference of two such shares one of 5.
    """
    (a, *sizes), (b, *others) = (re.findall(r"\d+e[-+]\d+|\d+(?= %)", cell) or ["0"] for cell in (said, found))
    return abs(int(a) - int(b)) <= (15 if sizes and others else 2) and all(map(close, sizes, others))


def disagreements(text: str) -> Iterator[str]:
    """Of all rows that can be measured here."""
    page = rows(text)
    yield from filter(None, (disagreement(page[call.theirs], measured(call)) for call in CALLS if installed(call)))


def main() -> None:
    """Write the rows that can be measured here, or with --check compare them."""
    text = PAGE.read_text()
    for call in CALLS:
        if not installed(call):
            print(f"left out: {call.library} is not installed: {call.theirs}")
    if "--check" in sys.argv:
        wrong = list(disagreements(text))
        sys.exit("docs/migrating.md is out of date; run python docs/migrating.py\n" + "".join(wrong) if wrong else 0)
    page = rows(text)
    before, rest = text.split(BEGIN)
    lines = [measured(call) if installed(call) else page.get(call.theirs, "") for call in CALLS]
    PAGE.write_text(before + BEGIN + HEADER + "".join(lines) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
