"""The programs in the pages: `python docs/pages.py [--write] [PAGE ...]` runs them and compares what they print.

All ```python blocks of a page are one program, run from top to bottom. A ```text block is all that the block before it
prints, and may come after some words. --write puts into the page what was printed, and makes the notebooks again, which
are pages in another form. Without a page: every page, each in a process of its own; pages that need what is not
installed are named and left out.
"""

import ast
import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent
NOTEBOOKS = ("start.md",)  # the pages that exist as a notebook, too
FENCE = re.compile(r"^```(?P<kind>python|text)\n(?P<inside>.*?)^```\n", re.M | re.S)


class Block(NamedTuple):
    """A block of a page's program."""

    code: str
    shown: str | None  # what the page says that it prints, in the text block before the next program's
    line: int  # of the page, counted from 0, where the code begins
    span: tuple[int, int]  # of characters of the page, with its fences
    prints: tuple[int, int]  # the inside of the text block
    end: tuple[int, int]  # that block with its fences


def blocks(text: str) -> list[Block]:
    """The program of a page."""
    found = list(FENCE.finditer(text))
    program = []
    for it, after in zip_longest(found, found[1:]):
        if it["kind"] == "python":
            line, nothing = text.count("\n", 0, it.start("inside")), (it.end(), it.end())
            if after is not None and after["kind"] == "text":
                block = Block(it["inside"], after["inside"], line, it.span(), after.span("inside"), after.span())
            else:
                block = Block(it["inside"], None, line, it.span(), nothing, nothing)
            program.append(block)
    return program


def needs(text: str) -> list[str]:
    """The packages that a page's program imports."""
    names: set[str] = set()
    for block in blocks(text):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    # normball.torch needs torch, and so on.
    names |= {name.removeprefix("normball.") for name in names if name.startswith("normball.")}
    return sorted({name.partition(".")[0] for name in names})


def missing(text: str) -> list[str]:
    """Those of them that are not installed."""
    return [name for name in needs(text) if importlib.util.find_spec(name) is None]


def run(program: list[Block], name: str) -> tuple[list[str], dict[str, Any]]:
    """What each block prints, and the names that are left at the end. Tracebacks show the page."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = []
    for block in program:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("\n" * block.line + block.code, name, "exec"), names)
        printed.append(tidy(out.getvalue()))
    return printed, names


def tidy(text: str) -> str:
    """Without blanks at the ends of lines, which editors take away."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def differences(program: list[Block], printed: list[str], name: str) -> Iterator[str]:
    """Where a page shows something else than what is printed."""
    for block, out in zip(program, printed, strict=True):
        if block.shown is not None and tidy(block.shown) != out:
            yield f"{name}:{block.line}: shows\n{block.shown}but prints\n{out}"


def with_outputs(text: str, printed: list[str]) -> str:
    """A page with what was printed in its text blocks."""
    for block, out in reversed(list(zip(blocks(text), printed, strict=True))):
        if block.shown is not None:
            text = text[: block.prints[0]] + out + text[block.prints[1] :]
    return text


def notebook(text: str) -> str:
    """A page as a Jupyter notebook: prose and programs in cells, with the outputs that the page shows."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, source: str, **more: Any) -> None:
        if source.strip():
            lines = source.strip("\n").splitlines(keepends=True)
            cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": lines, **more})

    end = 0
    for block in blocks(text):
        add("markdown", text[end : block.span[0]])
        stream = {"name": "stdout", "output_type": "stream", "text": (block.shown or "").splitlines(keepends=True)}
        add("code", block.code, execution_count=None, outputs=[stream] if block.shown else [])
        add("markdown", text[block.span[1] : block.end[0]])
        end = block.end[1]
    add("markdown", text[end:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def cells(text: str) -> list[Block]:
    """The program of a notebook."""
    program = []
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            shown = "".join(line for output in cell["outputs"] for line in output["text"]) if cell["outputs"] else None
            program.append(Block("".join(cell["source"]) + "\n", shown, 0, (0, 0), (0, 0), (0, 0)))
    return program


def guide(name: str) -> str:
    """The text of a page."""
    return (DOCS / name).read_text()


def faults(text: str, name: str) -> list[str]:
    """Run a page's text here: what it shows that is not so."""
    program = blocks(text)
    printed, _ = run(program, str(DOCS / name))
    return list(differences(program, printed, name))


def check(path: Path, write: bool = False) -> list[str]:
    """Run a page or a notebook here: what it shows that is not so."""
    text = path.read_text()
    program = cells(text) if path.suffix == ".ipynb" else blocks(text)
    printed, _ = run(program, str(path))
    if write and path.suffix == ".md":
        path.write_text(with_outputs(text, printed))
        if path.name in NOTEBOOKS:
            path.with_suffix(".ipynb").write_text(notebook(path.read_text()))
        return []
    return list(differences(program, printed, path.name))


def main() -> None:
    """Run one page here, or several in processes of their own."""
    write = "--write" in sys.argv
    paths = [Path(name) for name in sys.argv[1:] if name != "--write"]
    if len(paths) == 1:
        found = check(paths[0], write)
        sys.exit("\n".join(found) if found else 0)
    failed = []
    for path in paths or sorted(DOCS.rglob("*.md")):
        text = path.read_text()
        if missing(text):
            print(f"left out: {path.name}, as {', '.join(missing(text))} is not installed")
        elif blocks(text) and subprocess.run([sys.executable, __file__, *["--write"][:write], str(path)]).returncode:
            failed.append(path.name)
    sys.exit(f"not as the page says: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
