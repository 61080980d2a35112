"""The README's code runs and its table is what the backends claim."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("block", code_blocks(README))
def test_code_runs(block):
    for library in re.findall(r"^import (\w+)", block, re.M):
        pytest.importorskip(library)
    exec(compile(block, "README.md", "exec"), {})


def test_code_is_found_and_can_fail():
    assert len(code_blocks(README)) == 5
    [block] = code_blocks("text\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(compile(block, "README.md", "exec"), {})


def test_support_table(monkeypatch):
    for name in ("pytensor", "torch"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "support", raising=False)
    import support

    assert support.with_table(README) == README
    assert support.with_table(README.replace("✓", "–", 1)) == README


def test_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"^    make ([a-z]+)", (ROOT / name).read_text(), re.M)) <= targets
