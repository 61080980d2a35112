"""What the checks of `make dist` find, and what is written twice. `make dist` itself builds and installs."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import normball

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import dist  # noqa: E402

WHEEL = {"normball/__init__.py", "normball/__init__.pyi", "normball/kernels/_native.abi3.so", *dist.DATA}


def test_strangers_in_a_wheel():
    assert dist.strangers_in_wheel(WHEEL | {"normball-0.1.0.dist-info/METADATA"}) == set()
    for stranger in ("tests/test_laws.py", "normball/kernels/core.c", "normball/kernels/core.h", "setup.py"):
        assert dist.strangers_in_wheel(WHEEL | {stranger}) == {stranger}


def test_missing_files():
    files = {f"normball/{path.relative_to(ROOT / 'src/normball').as_posix()}" for path in (ROOT / "src").rglob("*.py*")}
    assert dist.missing_from_wheel(files | dist.DATA) == set()
    for missing in ("normball/py.typed", "normball/__init__.pyi", "normball/torch/clip.py"):
        assert dist.missing_from_wheel((files | dist.DATA) - {missing}) == {missing}
    folders = [
        ROOT.glob("*"),
        *((ROOT / name).rglob("*") for name in ("src", "tests", "docs", "benchmarks", "examples")),
    ]
    every = {f"normball-0.1.0/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in folder}
    assert dist.missing_from_sdist(every) == set()
    for missing in ("LICENSE", "tests/conftest.py", "tests/typing/mypy.ini", "tests/public_api.txt", "tests/dist.py"):
        assert dist.missing_from_sdist(every - {f"normball-0.1.0/{missing}"}) == {missing}


def test_every_extra_is_tried_or_for_developers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert dist.untried(extras) == set()
    assert dist.untried([*extras, "mindspore"]) == {"mindspore"}


@pytest.mark.parametrize("file, pattern", [("CITATION.cff", r"^version: (.*)$")])
def test_one_version(file, pattern):
    assert re.findall(pattern, (ROOT / file).read_text(), re.M) == [normball.__version__]
