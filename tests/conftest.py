"""The fixtures that run every law on every backend, and a plain line at the end on what could not run here."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import normball

settings.register_profile("normball", deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
settings.load_profile("normball")


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


FLOATS = {name: np.dtype(name) for name in ("float64", "float32", "float16")}
if installed("ml_dtypes"):
    import ml_dtypes

    FLOATS["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


# Scripts, run on several devices or by several processes, which the search for doctests must not import.
collect_ignore_glob = ["jax_*.py", "keras_*.py", "typing/*.py"] + ([] if installed("torch") else ["torch_*ranks.py"])
DOCUMENTED_BAND = 4  # ulp just under the bound in which a compliant group may be rescaled, where that is documented


@dataclass(frozen=True)
class Runner:
    """One way to run the public functions on NumPy arrays: a backend, in one of its modes."""

    name: str
    dtypes: tuple[str, ...]
    constrain: Callable  # (x, max_norm, axes, epsilon, ord) -> array
    total: Callable  # (xs, max_norm, epsilon, ord) -> (arrays, norm)
    norms: Callable  # (x, axes, ord) -> array, reduced axes dropped
    band: int = 0
    norm_dtype: str = "float64"
    subnormals: bool = True  # False where the compiler flushes them to zero

    def __repr__(self) -> str:
        return self.name


def _claiming(name: str, claims: frozenset, *functions: Callable) -> Runner:
    """A runner held to what its backend claims in SUPPORTS, no less."""
    band = 0 if "exact decision" in claims else DOCUMENTED_BAND
    dtypes = tuple(dtype for dtype in FLOATS if dtype in claims)
    return Runner(name, dtypes, *functions, band=band, subnormals="subnormals" in claims)


def _numpy_runner() -> Runner:
    from normball.backends.numpy import SUPPORTS

    def total(xs, max_norm, epsilon, ord):
        return normball.total_norm_constraint(xs, max_norm, epsilon, return_norm=True, ord=ord)

    return _claiming(
        "numpy",
        SUPPORTS["NumPy"],
        lambda x, max_norm, axes, epsilon, ord: normball.norm_constraint(x, max_norm, axes, epsilon, ord=ord),
        total,
        lambda x, axes, ord: normball.compute_norms(x, axes, ord=ord),
    )


def _pytensor_runner(mode: str) -> Runner:
    @functools.cache
    def compiled_constraint(dtype, ndim, bound_ndim, axes, ord):
        import pytensor
        import pytensor.tensor as pt

        x = pt.tensor(dtype=dtype, shape=(None,) * ndim)
        bound, epsilon = pt.tensor(dtype="float64", shape=(None,) * bound_ndim), pt.scalar(dtype="float64")
        y = normball.norm_constraint(x, bound, axes, epsilon, ord=ord)
        return pytensor.function([x, bound, epsilon], y, mode=mode)

    @functools.cache
    def compiled_total(kinds, ord):
        import pytensor
        import pytensor.tensor as pt

        xs = [pt.tensor(dtype=dtype, shape=(None,) * ndim) for dtype, ndim in kinds]
        bound, epsilon = pt.scalar(dtype="float64"), pt.scalar(dtype="float64")
        ys, norm = normball.total_norm_constraint(xs, bound, epsilon, return_norm=True, ord=ord)
        return pytensor.function([*xs, bound, epsilon], [*ys, norm], mode=mode)

    @functools.cache
    def compiled_norms(dtype, ndim, axes, ord):
        import pytensor
        import pytensor.tensor as pt

        x = pt.tensor(dtype=dtype, shape=(None,) * ndim)
        return pytensor.function([x], normball.compute_norms(x, axes, ord=ord), mode=mode)

    def constrain(x, max_norm, axes, epsilon, ord):
        bound = np.asarray(max_norm, np.float64)
        return np.asarray(compiled_constraint(x.dtype.name, x.ndim, bound.ndim, axes, ord)(x, bound, epsilon))

    def total(xs, max_norm, epsilon, ord):
        kinds = tuple((x.dtype.name, x.ndim) for x in xs)
        *ys, norm = compiled_total(kinds, ord)(*xs, max_norm, epsilon)
        return [np.asarray(y) for y in ys], np.asarray(norm)

    def norms(x, axes, ord):
        return np.asarray(compiled_norms(x.dtype.name, x.ndim, axes, ord)(x))

    from normball.backends.pytensor import SUPPORTS

    column = {"FAST_COMPILE": "PyTensor C, Python", "CVM": "PyTensor C, Python"}.get(mode, f"PyTensor {mode}")
    return _claiming(f"pytensor-{mode}", SUPPORTS[column], constrain, total, norms)


def _jax_runner(x64: bool) -> Runner:
    """JAX arrays: with 64-bit mode eagerly, bounds concrete; without it under jit, bounds traced."""
    import jax

    from normball.backends.jax import SUPPORTS

    def mode(function):
        def run(*args):
            with jax.enable_x64(x64):
                return jax.tree.map(np.asarray, function(*args))

        return run

    def compiled(*static):
        return functools.partial(jax.jit, static_argnums=static) if not x64 else lambda function: function

    @compiled(2, 4)
    def constrained(x, max_norm, axes, epsilon, ord):
        return normball.norm_constraint(x, max_norm, axes, epsilon, ord=ord)

    @compiled(3)
    def total(xs, max_norm, epsilon, ord):
        return normball.total_norm_constraint(xs, max_norm, epsilon, True, ord=ord)

    @mode
    def norms(x, axes, ord):
        return normball.compute_norms(jax.numpy.asarray(x), axes, ord=ord)

    wide = np.float64 if x64 else np.float32

    def below(bound):
        """The bound, rounded down where it is cast."""
        bound = np.asarray(bound, np.float64)
        with np.errstate(over="ignore"):
            near = bound.astype(wide)
        return np.where(near > bound, np.nextafter(near, wide(0)), near)

    @mode
    def constrain(x, max_norm, axes, epsilon, ord):
        return constrained(jax.numpy.asarray(x), below(max_norm), axes, below(epsilon), ord)

    @mode
    def run_total(xs, max_norm, epsilon, ord):
        return total(list(map(jax.numpy.asarray, xs)), below(max_norm), below(epsilon), ord)

    claims = SUPPORTS["JAX"] if x64 else SUPPORTS["JAX"] - {"float64"}
    runner = _claiming(f"jax-{64 if x64 else 32}", claims, constrain, run_total, norms)
    return runner if x64 else replace(runner, norm_dtype="float32")


def _torch_runner(name: str, elsewhere: bool) -> Runner:
    """Torch tensors on the CPU; `elsewhere` as a class of its own, which goes the way of other devices' tensors."""
    import torch

    from normball.backends.torch import SUPPORTS

    class Elsewhere(torch.Tensor):
        pass

    def tensor(x):
        memory = x.view(np.int16) if x.dtype.name == "bfloat16" else x
        made = torch.from_numpy(np.array(memory, order="K"))  # a copy that can be written to
        made = made.view(torch.bfloat16) if x.dtype.name == "bfloat16" else made
        return made.as_subclass(Elsewhere) if elsewhere else made

    def array(y):
        y = y.as_subclass(torch.Tensor)
        return y.view(torch.int16).numpy().view(FLOATS["bfloat16"]) if y.dtype == torch.bfloat16 else y.numpy()

    def constrain(x, max_norm, axes, epsilon, ord):
        bound = max_norm if isinstance(max_norm, float) else torch.tensor(max_norm, dtype=torch.float64)
        given = tensor(x)
        y = normball.norm_constraint(given, bound, axes, epsilon, ord=ord)
        assert array(given).tobytes() == x.tobytes(), "the input was written to"
        return array(y)

    def total(xs, max_norm, epsilon, ord):
        ys, norm = normball.total_norm_constraint(list(map(tensor, xs)), max_norm, epsilon, True, ord=ord)
        return list(map(array, ys)), array(norm)

    def norms(x, axes, ord):
        return array(normball.compute_norms(tensor(x), axes, ord=ord))

    return _claiming(f"torch{'-elsewhere' if elsewhere else ''}", SUPPORTS[name], constrain, total, norms)


def _standard_runner(name: str, column: str, made: Callable, context: Callable) -> Runner:
    """Arrays of another library, by `made` from NumPy's, under its settings."""
    from normball.backends.array_api import SUPPORTS

    def constrain(x, max_norm, axes, epsilon, ord):
        with context():
            bound = max_norm if isinstance(max_norm, float) else made(np.asarray(max_norm))
            given = made(x)
            y = np.asarray(normball.norm_constraint(given, bound, axes, epsilon, ord=ord))
            assert np.asarray(given).tobytes() == x.tobytes(), "the input was written to"
            return y

    def total(xs, max_norm, epsilon, ord):
        with context():
            ys, norm = normball.total_norm_constraint(list(map(made, xs)), max_norm, epsilon, True, ord=ord)
            return list(map(np.asarray, ys)), np.asarray(norm)

    def norms(x, axes, ord):
        with context():
            return np.asarray(normball.compute_norms(made(x), axes, ord=ord))

    return _claiming(name, SUPPORTS[column], constrain, total, norms)


def _strict_runner(version: str) -> Runner:
    import array_api_strict

    context = functools.partial(array_api_strict.ArrayAPIStrictFlags, api_version=version)
    return _standard_runner(f"array-api-{version}", "Array API", lambda x: array_api_strict.asarray(x.copy()), context)


def _dask_runner() -> Runner:
    """Every axis in three chunks or so."""
    import dask
    import dask.array

    def made(x):
        return dask.array.from_array(x, chunks=tuple(-(-length // 3) for length in x.shape))

    return _standard_runner("dask", "dask", made, functools.partial(dask.config.set, scheduler="synchronous"))


RUNNERS = [_numpy_runner()]
LEFT_OUT = []
if installed("array_api_strict"):
    import array_api_strict

    RUNNERS += [_strict_runner(version) for version in ("2022.12", array_api_strict.__array_api_version__)]
if installed("dask"):
    RUNNERS += [_dask_runner()]
if installed("jax"):
    RUNNERS += [_jax_runner(True), _jax_runner(False)]
if installed("torch"):
    RUNNERS += [_torch_runner("PyTorch CPU", False), _torch_runner("PyTorch GPU", True)]
if installed("pytensor"):
    RUNNERS += [_pytensor_runner(mode) for mode in ("FAST_COMPILE", "CVM", "NUMBA")]
    RUNNERS += [_pytensor_runner("JAX")] if installed("jax") else []
    RUNNERS += [_pytensor_runner("PYTORCH")] if installed("torch") else []
LEFT_OUT += [
    f"{name} is not installed"
    for name in (
        *("pytensor", "pymc", "jax", "optax", "flax", "equinox", "torch", "ml_dtypes"),
        *("array_api_strict", "dask", "xarray", "mlx", "pytensor_ml"),
        *("keras", "tensorflow", "lightning", "transformers", "accelerate", "skorch"),
    )
    if not installed(name)
]


@pytest.fixture(params=RUNNERS, ids=repr)
def runner(request) -> Runner:
    return request.param


TYPED = [(runner, dtype) for runner in RUNNERS for dtype in runner.dtypes]


@pytest.fixture(params=TYPED, ids=lambda pair: "-".join(map(str, pair)))
def typed(request) -> tuple[Runner, str]:
    """Each backend with each dtype that it claims."""
    return request.param


def pytest_terminal_summary(terminalreporter):
    if LEFT_OUT:
        terminalreporter.write_line("left out: " + "; ".join(LEFT_OUT))
