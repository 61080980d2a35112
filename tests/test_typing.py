"""What a type checker says of the programs in tests/typing: an error in each line that asks for one, and no other."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TYPING = Path(__file__).parent / "typing"
FILES = sorted(TYPING.glob("with_*.py"))


def library(path):
    return path.stem.removeprefix("with_")


def complaints(*paths):
    """The lines mypy finds an error in, by file name."""
    pytest.importorskip("mypy")
    options = [
        "--config-file",
        str(TYPING / "mypy.ini"),
        "--cache-dir",
        str(TYPING.parent.parent / ".mypy_cache/typing"),
    ]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": ""},
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = {path.name: {} for path in paths}
    for name, line, text in re.findall(r"^(?:.*[/\\])?(\w+\.py):(\d+): error: (.*)", run.stdout, re.M):
        found[name][int(line)] = text
    return found


def asked_for(path):
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# error")}


def test_users_get_the_right_types():
    installed = [path for path in FILES if find_spec(library(path))]
    for name, found in complaints(*installed).items():
        assert set(found) == asked_for(TYPING / name), (name, found)
    if len(installed) < len(FILES):
        pytest.skip(f"not installed: {', '.join(library(path) for path in FILES if path not in installed)}")


def test_users_get_the_right_types_can_fail(tmp_path):
    wrong = tmp_path / "wrong.py"
    text = (TYPING / "with_numpy.py").read_text()
    wrong.write_text(text.replace("norm_constraint(single, 3.0), Array32", "norm_constraint(single, 3.0), Array64"))
    [line] = set(complaints(wrong)["wrong.py"]) - asked_for(wrong)
    assert "norm_constraint(single, 3.0), Array64" in wrong.read_text().splitlines()[line - 1]
