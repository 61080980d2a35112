"""examples/pymc_regression.py, short: what it says happens."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pymc", reason="PyMC is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = "import pymc_regression as example; example.RATES = (example.SHOWN,); example.main()"


def test_free_it_diverges_and_clipped_it_does_not(tmp_path):
    """At the rate that the picture follows; the losses of clipped steps fall from thousands.

    In a process of its own: NumPy's warnings of the fit that diverges, as errors, crash PyTensor 2.38.
    """
    command = [sys.executable, "-c", SHORT, "--seeds", "1", "--steps", "200", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES)
    assert run.returncode == 0, run.stderr
    shown = re.findall(r"^(.*), rate .*: loss (.*)$", run.stdout, re.MULTILINE)
    loss = {kind: float(end) for kind, end in shown}
    free, clipped, adam = loss.values()
    assert list(loss) == ["momentum, free", "momentum, clipped to 10", "Adam, free"]
    assert math.isnan(free)
    assert 300 < clipped < 10_000
    assert 300 < adam < 10_000
    assert (tmp_path / "pymc_regression.png").read_bytes().startswith(b"\x89PNG")
