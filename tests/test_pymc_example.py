"""examples/pymc_regression.py, short: what it says happens."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("pymc", reason="PyMC is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

SCRIPT = Path(__file__).parents[1] / "examples" / "pymc_regression.py"


# What NumPy says where the free fit diverges, in PyTensor's Python ops; as errors inside them they crash PyTensor 2.38.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
def test_free_it_diverges_and_clipped_it_does_not(tmp_path, monkeypatch, capsys):
    """At the rate that the picture follows; the losses of clipped steps fall from thousands."""
    spec = importlib.util.spec_from_file_location("pymc_regression", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "RATES", (example.SHOWN,))
    monkeypatch.setattr(sys, "argv", ["pymc_regression.py", "--seeds", "1", "--steps", "200", "--out", str(tmp_path)])
    example.main()
    shown = re.findall(r"^(.*), rate (.*): loss (.*)$", capsys.readouterr().out, re.MULTILINE)
    loss = {kind: float(end) for kind, _, end in shown}
    assert list(loss) == [example.FREE, example.CLIPPED, example.ADAM]
    assert loss[example.FREE] != loss[example.FREE], "NaN"
    assert 300 < loss[example.CLIPPED] < 10_000
    assert 300 < loss[example.ADAM] < 10_000
    assert (tmp_path / "pymc_regression.png").read_bytes().startswith(b"\x89PNG")
