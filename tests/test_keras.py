"""normball.keras on every backend of Keras: one process each, as KERAS_BACKEND holds for a process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import installed

for name in ("keras", "ml_dtypes"):
    if not installed(name):  # not by importing: Keras may be here, and its default backend not
        pytest.skip(f"{name} is not installed", allow_module_level=True)

HERE = Path(__file__).parent
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("torch", "jax", "tensorflow")
]


def run(backend, *arguments):
    """What Python prints in a process of its own, and its exit status."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment = {**os.environ, **quiet, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=HERE, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


def laws(backend, *chosen):
    """Whether the laws hold, and how many were tried."""
    plain = ("-m", "pytest", "keras_laws.py", "-q", "-x", "--noconftest", "-p", "no:cacheprovider", "--color=no")
    status, output = run(backend, *plain, *chosen)
    tried = re.search(r"(\d+) passed", output)
    return status == 0, int(tried.group(1)) if tried else 0, output


@pytest.mark.parametrize("backend", BACKENDS)
def test_laws(backend):
    held, tried, output = laws(backend)
    assert held, output
    assert tried > 80


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_laws_can_fail(backend, tmp_path):
    """With Keras' own constraint in the place of ours."""
    (tmp_path / "swapped.py").write_text(
        "import keras.constraints, normball.keras\nnormball.keras.MaxNorm = keras.constraints.MaxNorm\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import swapped, pytest; "
    code += (
        "sys.exit(pytest.main(['keras_laws.py', '-q', '--noconftest', '-p', 'no:cacheprovider', '-k', 'laws_of_max']))"
    )
    status, output = run(backend, "-c", code)
    assert status == 1, output
    assert "untouched" in output


def test_without_keras():
    """What to install, not what is missing."""
    code = "import sys; sys.modules['keras'] = None; import normball.keras"
    status, output = run("jax", "-c", code)
    assert status == 1
    assert "ImportError: normball.keras needs Keras 3, and PyTorch, JAX or TensorFlow" in output
    assert "pip install 'keras>=3'" in output
