"""What was built, looked at and tried: `python tests/dist.py dist [extra...]`, or `--all`; by default light extras.

Looks into the sdist and the wheel, then installs the wheel without extras, then with each extra alone, and uses it.
`--all` fetches gigabytes, of CUDA above all; `PIP_CONSTRAINT`, pip's own, may name a file with `torch==2.13.0`.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The wheel's files that are no Python: types for checkers, and the C that PyTensor compiles on the spot.
DATA = {"normball/py.typed", "normball/kernels/normball.h", "normball/backends/pytensor_c.c"}
SUFFIXES = (".py", ".pyi", ".so", ".pyd")
SDIST = {
    *("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "Makefile", "pyproject.toml", "setup.py"),
    *("src/normball/kernels/core.c", "src/normball/kernels/normball.h", "src/normball/backends/pytensor_c.c"),
    *("tests/conftest.py", "tests/test_laws.py", "docs/index.md", "benchmarks/run.py", "examples/digits.py"),
}
# Each extra that users install, and what it is for, tried in a few words. "" is an install without any.
START = "import normball, numpy as np; w = np.array([[3.0, 0.3], [4.0, 0.4]]); one = normball.norm_constraint\n"
USES = {
    "": "assert normball.compute_norms(one(w, 1.0)).max() <= 1",
    "bfloat16": "import ml_dtypes; assert one(w.astype(ml_dtypes.bfloat16), 1.0).dtype == ml_dtypes.bfloat16",
    "array-api": "from normball.backends import array_api_portable",
    "cli": "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('normball', run_name='__main__')",
    "dask": "import dask.array; x = dask.array.from_array(w, 1); assert type(one(x, 1.0)) is type(x)",
    "xarray": "import normball.xarray as nx, xarray; assert nx.compute_norms(xarray.DataArray(w), 'dim_0').max() <= 5",
    "pytensor": "import pytensor.tensor as pt; assert one(pt.as_tensor(w), 1.0).eval().max() <= 1; import normball.pytensor",
    "pymc": "import normball.pymc",
    "pytensor-ml": "import normball.pytensor_ml",
    "jax": "import jax.numpy as jnp; assert one(jnp.asarray(w), 1.0).max() <= 1; import normball.jax",
    "optax": "import normball.optax",
    "torch": "import torch; assert one(torch.tensor(w), 1.0, 0).max() <= 1; import normball.torch",
    "lightning": "import normball.lightning",
    "transformers": "import normball.transformers",
    "skorch": "import normball.skorch",
    # Computes with PyTorch, JAX or TensorFlow, which the extra leaves to its user; it cannot be imported without.
    "keras": "import importlib.util; assert importlib.util.find_spec('keras')",
}
LIGHT = ["bfloat16", "array-api", "cli", "dask", "xarray"]
DEVELOPERS = {"demo", "test", "bench", "check", "docs"}


def strangers_in_wheel(names):
    """Files that a wheel must not hold: tests, and sources that nobody reads there."""
    ours = [name for name in names if ".dist-info/" not in name]
    return {name for name in ours if not name.startswith("normball/")} | {
        name for name in ours if not name.endswith(SUFFIXES) and name not in DATA
    }


def missing_from_wheel(names):
    """Files of the package that did not come along."""
    package = ROOT / "src"
    files = {path.relative_to(package).as_posix() for end in ("py", "pyi") for path in package.rglob(f"*.{end}")}
    return (files | DATA) - set(names)


def missing_from_sdist(names):
    """Files that `make test` and a build need; all of the tests among them."""
    files = (path for path in (ROOT / "tests").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    tests = {path.relative_to(ROOT).as_posix() for path in files}
    return (SDIST | tests) - {name.partition("/")[2] for name in names}


def untried(extras):
    """Extras that nothing above says the use of."""
    return set(extras) - USES.keys() - DEVELOPERS


def look(folder):
    """The wheel and its extras, once it and the sdist hold what they should."""
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        names = archive.namelist()
        for found in (strangers_in_wheel(names), missing_from_wheel(names), missing_from_sdist(source.getnames())):
            if found:
                sys.exit(f"{wheel.name}, {sdist.name}: should not be there, or is missing: {sorted(found)}")
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        extras = Parser().parsestr(archive.read(metadata).decode()).get_all("Provides-Extra")
    if untried(extras):
        sys.exit(f"extras that tests/dist.py does not know: {sorted(untried(extras))}; say in USES what they are for")
    return wheel, extras


def environment(folder, wheel, extras, base=None):
    """A new environment with the wheel and extras, and each put to its use. What `base` has is not installed again."""
    venv.create(folder)
    windows = sys.platform == "win32"
    python = folder / ("Scripts/python.exe" if windows else "bin/python")
    [packages] = [folder / "Lib/site-packages"] if windows else folder.glob("lib/*/site-packages")
    if base:
        (packages / "base.pth").write_text(str(base))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    chosen = ",".join(extra for extra in extras if extra)
    subprocess.run([*pip, "install", "--no-compile", f"{wheel}[{chosen}]" if chosen else str(wheel)], check=True)
    for extra in extras:
        subprocess.run([str(python), "-I", "-c", START + USES[extra]], check=True, cwd=folder)
        print(f"installed{' and used' if USES[extra] else ''}: {extra or 'no extra'}", flush=True)
    return packages


def main():
    """Look at what is in the folder, install it, and try each extra alone; or several, with a comma between."""
    wheel, extras = look(Path(sys.argv[1]))
    chosen = sys.argv[2:] or [extra for extra in LIGHT if extra in extras]
    if chosen == ["--all"]:
        chosen = [extra for extra in extras if extra in USES]
    with tempfile.TemporaryDirectory() as folder:
        base = environment(Path(folder) / "base", wheel, [""])
        for extra in chosen:
            environment(Path(folder) / extra, wheel, extra.split(","), base)
            shutil.rmtree(Path(folder) / extra)


if __name__ == "__main__":
    main()
