"""What fails the build of the site: something that a browser would fetch from elsewhere, or an undocumented name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "normball"
# Not for users; their names may change. What is public says so in __all__.
INTERNAL = {"api", "arguments", "backends", "definition", "dispatch", "kernels", "table", "__main__"}
# Scripts, styles, fonts, pictures and frames; not links, which a reader follows or does not.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc\s*=\s*["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel\s*=\s*["']?(?:stylesheet|preload|preconnect|icon|prefetch|modulepreload))"""
    r"""[^>]*?\bhref\s*=\s*["']?(?:https?:)?//[^>]*>"""
    r"""|url\(\s*["']?(?:https?:)?//[^)]*\)|@import\s+["'](?:https?:)?//[^;]*""",
    re.I,
)


def fetched(site: Path) -> Iterator[str]:
    """What pages and styles of a built site would fetch from elsewhere."""
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            for found in FETCHED.findall(path.read_text()):
                yield f"{path.relative_to(site)}: {found}"


def public_names() -> list[str]:
    """Every name that is public, as one imports it: what a module has in __all__, or without one does not hide."""
    names = []
    for path in [PACKAGE, *sorted(PACKAGE.iterdir())]:
        source = path / "__init__.py" if path.is_dir() else path
        if path.stem in INTERNAL or path.stem.startswith("_") or source.suffix != ".py" or not source.exists():
            continue
        module = "normball" if path == PACKAGE else f"normball.{path.stem}"
        names += [f"{module}.{name}" for name in exported(source.read_text())]
    return names


def exported(source: str) -> list[str]:
    """What a module's text says is public."""
    body = ast.parse(source).body
    for node in body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            return [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    made = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return [name for name in made if not name.startswith("_")]


def undocumented(pages: str) -> list[str]:
    """The public names that no page has the docstring of; of a module one of its own names will do."""
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.M))
    return [name for name in public_names() if not any(f"{entry}.".startswith(f"{name}.") for entry in shown)]


def section(readme: str, heading: str) -> str:
    """What stands under a heading of the README, with its links as pages have them."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
    if not found:
        raise SystemExit(f"docs/index.md shows the section {heading!r} of README.md, which has none of that name")
    return found[1].strip().replace("](docs/", "](").replace("[docs/", "[")


def index() -> str:
    """Every public name, a line for each module, with a link to its docstring, without which the build fails."""
    modules: dict[str, list[str]] = {}
    for name in public_names():
        module, _, own = name.rpartition(".")
        # A module, of whose names that one is written by us.
        target = f"{name}.clipping" if name == "normball.keras.optimizers" else name
        modules.setdefault(module, []).append(f"[`{own}`][{target}]")
    return "\n".join(f"- `{module}`: {' · '.join(links)}" for module, links in modules.items())


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page may say `<!-- README: HEADING -->` to have that section, and `<!-- every public name -->`."""
    readme = (DOCS.parent / "README.md").read_text()
    markdown = markdown.replace("<!-- every public name -->", index())
    return re.sub(r"^<!-- README: (.*) -->$", lambda found: section(readme, found[1]), markdown, flags=re.M)


def on_config(config: Any) -> None:
    """Before anything is built, as this is quick."""
    names = undocumented("\n".join(path.read_text() for path in DOCS.rglob("*.md")))
    if names:
        raise SystemExit(f"public, and in no page of docs/ (write `::: NAME`): {', '.join(names)}")


def on_post_build(config: Any) -> None:
    """Of the site as it was built."""
    found = list(fetched(Path(config["site_dir"])))
    if found:
        raise SystemExit("the site would fetch from elsewhere:\n" + "\n".join(found))
