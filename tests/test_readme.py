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
    assert len(code_blocks(README)) == 1
    [block] = code_blocks("text\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(compile(block, "README.md", "exec"), {})


def rows(text):
    """The rows of a page's tables by their first cell."""
    return {
        line.split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line.startswith("| `")
    }


def strange_rows(text):
    """Rows of the comparison that are not those of docs/migrating.md, without its columns "ours" and "difference"."""
    measured = rows((ROOT / "docs" / "migrating.md").read_text())
    return {call for call, cells in rows(text).items() if cells != measured.get(call, [])[2:]}


def test_comparison_is_what_was_measured():
    assert len(rows(README)) == 5
    assert strange_rows(README) == set()
    assert strange_rows(README.replace("43 %", "42 %")) == {
        "| `pm.norm_constraint(w, 3.0)`",
        "| `torch.renorm(w, 2, 0, 3.0)`",
    }


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
