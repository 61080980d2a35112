"""The pages: their programs print what they show, notebook and tables are those of the day, no public name is missing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import hooks
import pages
import pytest

ROOT = Path(__file__).parent.parent
ALL = sorted(path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md"))
# Run by tests that say more of them; in worlds, backends and processes of their own.
ELSEWHERE = {
    "jax.md": "test_optax.py",
    "keras.md": "keras_laws.py",
    "pymc.md": "test_pymc.py",
    "torch.md": "test_torch_maxnorm.py",
    "trainers.md": "trainers.py",
}
HERE = [name for name in ALL if name not in ELSEWHERE and pages.blocks((pages.DOCS / name).read_text())]


def script(name, *arguments):
    """A script of docs/, in a process of its own: pages set up libraries as their readers do."""
    command = [sys.executable, "-W", "ignore", str(pages.DOCS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", HERE)
def test_page(name):
    path = pages.DOCS / name
    absent = pages.missing(path.read_text())
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed")
    run = script("pages.py", str(path))
    assert run.returncode == 0, run.stderr


def test_every_page_is_run():
    assert {"start.md", "definition.md", "exactness.md", "axes.md", "numpy.md", "recipes/attack.md"} <= set(HERE)
    for name, test in ELSEWHERE.items():
        assert f'"{name}"' in (ROOT / "tests" / test).read_text()


def test_notebook():
    """It is the page, so the page's run is the notebook's; and it runs by itself."""
    [name] = pages.NOTEBOOKS
    path = pages.DOCS / name
    notebook = path.with_suffix(".ipynb")
    assert notebook.read_text() == pages.notebook(path.read_text())
    assert [(cell.code, cell.shown) for cell in pages.cells(notebook.read_text())] == [
        (block.code, block.shown) for block in pages.blocks(path.read_text())
    ]
    run = script("pages.py", str(notebook))
    assert run.returncode == 0, run.stderr
    for cell in json.loads(notebook.read_text())["cells"]:  # what the format asks
        assert {"cell_type", "id", "metadata", "source"} <= set(cell)
        assert ("outputs" in cell) == ("execution_count" in cell) == (cell["cell_type"] == "code")


PAGE = "Text.\n\n```python\nprint(1)\nprint(2)\n```\n\n```text\n{}```\n\nMore.\n\n```python\nx = 1 / {}\n```\n"


@pytest.mark.parametrize(
    "text, fault",
    [
        (PAGE.format("1\n2\n", 1), ""),
        (PAGE.format("1\n3\n", 1), "page.md:3: shows\n1\n3\nbut prints\n1\n2\n"),
        (PAGE.format("1\n", 1), "but prints\n1\n2\n"),
        (PAGE.format("1\n2\n", 0), "ZeroDivisionError"),
    ],
)
def test_a_page_can_be_wrong(text, fault, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    run = script("pages.py", str(path))
    assert (run.returncode == 0) == (fault == "")
    assert fault in run.stderr
    if fault == "ZeroDivisionError":
        assert 'page.md", line 16' in run.stderr
    elif fault:
        script("pages.py", "--write", str(path))
        assert path.read_text() == PAGE.format("1\n2\n", 1)


def test_what_a_page_needs():
    text = "```python\nimport no_such_thing.of_ours\nfrom normball.torch import MaxNorm\n```\n"
    assert pages.needs(text) == ["no_such_thing", "normball", "torch"]
    assert "no_such_thing" in pages.missing(text)


def test_table_of_layers():
    run = script("axes.py", "--check")
    assert run.returncode == 0, run.stderr


def test_table_of_layers_can_be_wrong(monkeypatch):
    """Where a column's library is not installed the page's own cells stay; where it is, they are asked for."""
    import axes

    text = axes.PAGE.read_text()
    kept = dict.fromkeys(axes.COLUMNS, (("no_such_thing",), dict))
    monkeypatch.setattr(axes, "COLUMNS", kept)
    assert axes.with_table(text) == text
    [first, *_] = kept
    kept[first] = ((), axes.default)
    assert axes.with_table(text) == text
    kept[first] = ((), lambda: {"dense": [("2 dimensions", "(in, out)", (1,))]})
    assert "(in, out)<br>**axis 1**" in axes.with_table(text)
    assert "(in, out)<br>**axis 1**" not in text


def test_every_public_name_is_documented():
    text = "\n".join((pages.DOCS / name).read_text() for name in ALL)
    names = hooks.public_names()
    assert {"normball.norm_constraint", "normball.torch.MaxNorm", "normball.jax.norm_constraint"} <= set(names)
    assert hooks.undocumented(text) == []
    assert hooks.undocumented(text.replace("::: normball.torch.MaxNorm\n", "")) == ["normball.torch.MaxNorm"]


def test_exported():
    assert hooks.exported("__all__ = ['a', '__version__']\ndef b(): ...") == ["a"]
    assert hooks.exported("def b(): ...\nclass _C: ...\nx = 1") == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://elsewhere/x.js"></script>',
        "<img alt='' src=//elsewhere/x.png>",
        '<link rel="stylesheet" href="https://elsewhere/x.css">',
        '<link href="http://elsewhere/x.css" rel=preload>',
        "@font-face { src: url('https://elsewhere/x.woff2') }",
        '@import "https://elsewhere/x.css";',
    ],
)
def test_what_would_be_fetched(text, tmp_path):
    (tmp_path / "page.html").write_text(text)
    assert len(list(hooks.fetched(tmp_path))) == 1


def test_what_is_no_fetching(tmp_path):
    text = '<a href="https://elsewhere">x</a><img src="x.png"><link rel="canonical" href="https://elsewhere"><script src="x.js">'
    (tmp_path / "page.html").write_text(text)
    assert list(hooks.fetched(tmp_path)) == []


def test_sections_of_the_readme():
    shown = re.findall(r"^<!-- README: (.*) -->$", (pages.DOCS / "index.md").read_text(), re.M)
    assert shown
    for heading in shown:
        assert hooks.section((ROOT / "README.md").read_text(), heading)
    with pytest.raises(SystemExit, match="no such heading"):
        hooks.section("## Another\n", "no such heading")


def test_pictures_of_the_pages_exist():
    for name in ALL:
        path = pages.DOCS / name
        for link in re.findall(r"!\[[^]]*\]\(([^)#]+)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{name}: {link}"


def test_pages_are_in_the_navigation():
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [name for name in ALL if f": {name}\n" not in menu] == []
