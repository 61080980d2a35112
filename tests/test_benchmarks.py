"""The benchmarks refuse wrong answers and wrong labels, and the page shows the figures that were measured."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import normball

ROOT = Path(__file__).parent.parent
MODULES = ("timing", "check", "cells", "ours", "report")


@pytest.fixture
def suite(monkeypatch):
    """The modules of benchmarks/, which import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_check_can_fail(suite):
    suite["check"].prove_the_check_can_fail()
    assert not suite["check"].refuses(lambda: None)


@pytest.mark.parametrize("violating", ["none", "half", "all"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_labels_are_true_of_every_call(suite, dtype, violating):
    cell = cell_of(suite, dtype, violating)
    data = suite["cells"].arrays(cell)
    in_place, out = suite["ours"].rivals(cell, data)
    for rival in (out, in_place):
        rival.reset()
        rival.run(3)
    suite["ours"].expect_state(cell, data)
    for wrong in {"none", "half", "all"} - {violating}:
        with pytest.raises(AssertionError, match="groups violate"):
            suite["ours"].expect_violating(cell_of(suite, dtype, wrong), data, suite["cells"].MAX_NORM)


def test_a_wrong_answer_is_not_timed(suite, monkeypatch):
    cell = cell_of(suite, "float32", "all")

    def wrong(x, max_norm, norm_axes, *, out):
        np.copyto(out, x)
        return out

    monkeypatch.setattr(normball, "norm_constraint", wrong)
    with pytest.raises(AssertionError, match="above its bound"):
        suite["ours"].rivals(cell, suite["cells"].arrays(cell))


def cell_of(suite, dtype, violating):
    case = suite["cells"].Case("small", ((20, 12),), (0,))
    return suite["cells"].Cell(case, dtype, violating, threads=1, peers=False)


def test_lists_have_the_tensors_of_the_models(suite):
    lists = suite["cells"].LISTS
    assert {name: len(shapes) for name, shapes in lists.items()} == {
        "ResNet-50, 161 tensors": 161,
        "GPT-2, 148 tensors": 148,
    }
    assert [sum(int(np.prod(shape)) for shape in shapes) for shapes in lists.values()] == [25_557_032, 124_439_808]


def test_the_pages_have_the_figures(suite):
    report = suite["report"]
    pages = report.pages(report.runs())
    assert pages.keys() == {report.PAGE, report.README}
    for path, figures in pages.items():
        text = path.read_text()
        assert report.with_figures(text, figures) == text
        wrong = text.replace("float32", "float99")
        assert report.with_figures(wrong, figures) != wrong


def test_figures_do_not_say_whose_machine_it_was():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert not re.search(r"(?<![\w+])/\w+/|host", path.read_text())
