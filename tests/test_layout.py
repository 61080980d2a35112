"""The house rules of CONTRIBUTING.md. Each checker is tried on a house that breaks its rule."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import normball
from normball import kernels

PACKAGE = Path(normball.__file__).parent
CONTRACT = {
    "summarise": ["x", "axes", "ord"],
    "merge": ["summaries", "ord"],
    "norm": ["summary", "ord"],
    "constrain": ["x", "max_norm", "axes", "epsilon", "ord", "out"],
    "constrain_each": ["xs", "max_norms", "axes", "epsilon", "ord", "outs"],
    "constrain_total": ["xs", "max_norm", "epsilon", "ord"],
}
# A backend's other files have its name and an underscore before their own.
BACKENDS = sorted(p for p in (PACKAGE / "backends").glob("*.py") if "_" not in p.stem.replace("array_api", "standard"))
TORCH = ("", "_checks", "_gradients", "_groups", "_mesh", "_operators", "_portable", "_sharded")
OPTAX = ("clip", "leaves", "maxnorm", "modes", "units")  # which work on trees of JAX arrays
# Every file that may name a library, besides NumPy, the one dependency.
KNOWS = {
    "pytensor": {f"backends/pytensor{part}.py" for part in ("", "_c", "_fusion", "_links", "_numba")}
    | {"pytensor_ml.py"},
    "jax": {
        "backends/pytensor_links.py",
        *(f"backends/jax{part}.py" for part in ("", "_exact", "_narrow", "_rows")),
        *(f"optax/{part}.py" for part in OPTAX),
    },
    "optax": set(),
    "flax": set(),
    "equinox": set(),
    "torch": {"skorch.py", "backends/pytensor_links.py", *(f"backends/torch{part}.py" for part in TORCH)},
    "dask": {"backends/array_api.py", "backends/array_api_dask.py"},
    "pymc": set(),
    "array_api_compat": {"backends/array_api_portable.py"},
    "xarray": set(),
    "keras": set(),
    "tensorflow": {"backends/array_api_tensorflow.py"},
    "lightning": set(),
    "pytorch_lightning": {"lightning.py"},  # an older name of the same
    "transformers": set(),
    "accelerate": set(),
    "skorch": set(),
    "pytensor_ml": set(),
    "rich": {f"checkpoint/{part}.py" for part in ("progress", "report")},
    "matplotlib": {f"checkpoint/{part}.py" for part in ("plot", "plot_png")},
    "shtab": {"checkpoint/cli.py"},
    "numba": {"backends/pytensor_links.py", "backends/pytensor_numba.py"},
}
HEAVY = {"pytensor", "pymc", "jax", "optax", "torch", "numba", "ml_dtypes", "scipy", "keras"} | {
    "tensorflow",
    "lightning",
    "transformers",
    "skorch",
    "array_api_compat",
    "dask",
    "xarray",
}
# What a file may import of ours: a level may reach down, never up, and the last three stand alone.
LEVELS = [
    "__main__",
    "lightning",
    "transformers",
    "skorch",
    "keras",
    "pymc",
    "pytensor",
    "pytensor_ml",
    "torch",
    "optax",
    "jax",
    "xarray",
    "checkpoint",
    "api",
    "dispatch",
    "backends",
    "kernels",
    "table",
    "arguments",
    "definition",
]


def public_functions(source):
    """Names and arguments of the public module-level functions, in order."""
    tree = ast.parse(source)
    return {
        node.name: [argument.arg for argument in node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def imported(source):
    """Every module a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def strangers(source, file):
    """Libraries the file imports but is not the one to know: normball.torch is all about torch."""
    roots = {name.partition(".")[0] for name in imported(source)}
    return {
        library for library in roots if library in KNOWS and file not in KNOWS[library] and library != level_of(file)
    }


def level_of(file):
    return file.partition("/")[0].removesuffix(".py")


def upward_imports(source, file):
    """Levels of ours above the file's own that it imports."""
    own = LEVELS.index(level_of(file))
    reached = {name.split(".")[1] for name in imported(source) if name.startswith("normball.")}
    lower = set(LEVELS[own:]) if level_of(file) not in ("table", "arguments", "definition") else set()
    return {level for level in reached if level in LEVELS and level not in lower}


def loaded_by(code):
    """Which libraries running the code loads, in a fresh interpreter."""
    probe = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(run.stdout.split()) & HEAVY


def first_use(code="normball.norm_constraint(numpy.ones((2, 2)), 1.0)"):
    """What a first call adds to NumPy's import, in a fresh interpreter: modules loaded, and files written or made."""
    probe = f"""
import os, sys
import numpy
before, written = set(sys.modules), []
def watch(event, args):
    if event == "open" and args[2] is not None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written.append(str(args[0]))
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate"):
        written.append(str(args[0]))
sys.addaudithook(watch)
import normball
{code}
print(*sorted(set(sys.modules) - before))
print(*written)
"""
    run = subprocess.run([sys.executable, "-B", "-c", probe], capture_output=True, text=True, check=True)
    loaded, written = run.stdout.splitlines()
    return set(loaded.split()), written


def sources():
    return {str(p.relative_to(PACKAGE)).replace("\\", "/"): p.read_text() for p in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize("path", BACKENDS, ids=lambda p: p.stem)
def test_every_backend_has_the_same_functions_in_the_same_order(path):
    functions = public_functions(path.read_text())
    assert list(functions.items()) == list(CONTRACT.items())
    assert "\nSUPPORTS = " in path.read_text()


def test_the_definition_has_the_same_functions_about_one_group():
    functions = public_functions((PACKAGE / "definition.py").read_text())
    assert list(functions) == [name for name in CONTRACT if name != "constrain_each"]
    for name, arguments in functions.items():
        assert arguments == [a for a in CONTRACT[name] if a not in ("axes", "out")] or set(arguments) <= set(
            CONTRACT[name]
        )


@pytest.mark.parametrize("swap", [("def merge", "def join"), ("(x, axes, ord)", "(x, axis, ord)")])
def test_same_functions_can_fail(swap):
    source = "def summarise(x, axes, ord): ...\ndef merge(summaries, ord): ...\n"
    assert list(public_functions(source).items()) == list(CONTRACT.items())[:2]
    assert list(public_functions(source.replace(*swap)).items()) != list(CONTRACT.items())[:2]


def test_one_file_knows_each_library():
    assert {file: strangers(source, file) for file, source in sources().items() if strangers(source, file)} == {}


def test_one_file_knows_each_library_can_fail():
    assert strangers("def f():\n    import torch.nn\n", "api.py") == {"torch"}
    assert strangers("from jax import numpy", "kernels/fallback.py") == {"jax"}


def test_imports_point_one_way():
    ours = {file: source for file, source in sources().items() if level_of(file) in LEVELS}
    assert {file: upward_imports(source, file) for file, source in ours.items() if upward_imports(source, file)} == {}


def test_imports_point_one_way_can_fail():
    assert upward_imports("from normball.api import norm_constraint", "kernels/fallback.py") == {"api"}
    assert upward_imports("from normball import dispatch", "backends/numpy.py") == {"dispatch"}
    assert upward_imports("from normball import arguments", "definition.py") == {"arguments"}
    assert upward_imports("from normball import arguments, kernels", "backends/numpy.py") == set()


def test_import_is_light():
    assert loaded_by("import normball") == set()
    assert loaded_by("import numpy, normball; normball.norm_constraint(numpy.ones((2, 2)), 1.0)") == set()


def test_import_is_light_can_fail():
    pytest.importorskip("pytensor")
    assert "pytensor" in loaded_by("import normball.backends.pytensor")


def test_first_call_loads_little_and_writes_nothing():
    """Not a matter of time, which machines differ in, but of what takes it. Read-only homes and packages will do."""
    loaded, written = first_use()
    assert {name for name in loaded if not name.startswith("normball")} <= {
        "fractions",
        "decimal",
        "_decimal",
        "numbers",
    }
    if kernels.best.__name__ == "normball.kernels.native":
        assert not loaded & {"fractions", "normball.definition", "normball.kernels.fallback"}
    assert written == ""


def test_first_call_can_fail():
    loaded, written = first_use("import fractions, xml.sax; open(os.devnull, 'w').close()")
    assert {"fractions", "xml.sax"} <= loaded
    assert written == os.devnull


def test_public_names():
    assert sorted(normball.__all__) == [
        "__version__",
        "compute_norms",
        "get_num_threads",
        "norm_constraint",
        "set_num_threads",
        "total_norm_constraint",
    ]
    assert all(hasattr(normball, name) for name in normball.__all__)
    for name in ("compute_norms", "norm_constraint", "total_norm_constraint"):
        doc = getattr(normball, name).__doc__
        assert all(
            f"{section}\n" in doc for section in ("Parameters", "Returns", "Raises", "Notes", "References", "Examples")
        )
