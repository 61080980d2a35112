"""Every public name and its arguments, as in tests/public_api.txt: what a release must not change unawares.

`python tests/test_public_api.py` writes the file. Read from the sources, so that no framework need be installed;
annotations, and what classes have from bases that are not ours, do not count.
"""

import ast
import difflib
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("public_api.txt")
SOURCES = Path(__file__).parent.parent / "src"
# What users import; the rest of the package is ours.
MODULES = [
    *(
        "normball",
        "normball.jax",
        "normball.keras",
        "normball.keras.optimizers",
        "normball.lightning",
        "normball.optax",
    ),
    *("normball.pymc", "normball.pytensor", "normball.pytensor_ml", "normball.skorch", "normball.torch"),
    *("normball.transformers", "normball.xarray"),
]


class Module:
    """A module's source: where each of its names is defined."""

    def __init__(self, name):
        path = SOURCES / name.replace(".", "/")
        self.name = name
        self.body = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()).body
        self.definitions, self.imports, self.values = {}, {}, {}
        for node in self.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value

    def names(self):
        if "__all__" in self.values:
            return sorted(name.value for name in self.values["__all__"].elts)
        made = ast.walk(self.values["_NAMES"]) if "_NAMES" in self.values else ()  # Keras' optimizers, in a loop
        names = [*self.definitions, *(node.value for node in made if isinstance(node, ast.Constant))]
        return sorted(name for name in names if not name.startswith("_"))

    def find(self, name):
        """The module that defines a name, and its definition; neither where it is not ours."""
        if name in self.definitions:
            return self, self.definitions[name]
        origin, original = self.imports.get(name, ("", ""))
        if not origin.startswith("normball") or not defines(origin) or defines(f"{origin}.{original}"):
            return None, None  # not ours, or a module
        return Module(origin).find(original)


def defines(name):
    path = SOURCES / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def arguments(node, skip=0):
    """What goes between the parentheses, without annotations, and without `self`."""
    given = node.args
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if argument is not None:
            argument.annotation = None
    text = ast.unparse(given)
    return text.partition(", ")[2] if skip and ", " in text else "" if skip else text


def members(module, node):
    """The public members of a class: its fields, methods and properties, those of bases of ours too."""
    found = {}
    for base in node.bases:
        owner, definition = module.find(ast.unparse(base))
        if isinstance(definition, ast.ClassDef):
            found |= members(owner, definition)
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            name, text = child.target.id, "" if child.value is None else f" = {ast.unparse(child.value)}"
        elif isinstance(child, ast.FunctionDef):
            name = child.name
            kinds = [ast.unparse(decorator) for decorator in child.decorator_list]
            if any(kind.endswith(".setter") for kind in kinds):
                continue
            is_method = "staticmethod" not in kinds
            text = "" if any("property" in kind for kind in kinds) else f"({arguments(child, is_method)})"
        else:
            continue
        if not name.startswith("_") or name in ("__init__", "__call__"):
            found[name] = f"{name}{text}"
    return found


def described(name):
    """The lines about a module."""
    module = Module(name)
    lines = [name]
    for public in module.names():
        owner, node = module.find(public)
        if isinstance(node, ast.FunctionDef):
            lines.append(f"    {public}({arguments(node)})")
        elif isinstance(node, ast.ClassDef):
            lines.append(f"    {public}")
            lines += [f"        {text}" for _, text in sorted(members(owner, node).items())]
        else:
            lines.append(f"    {public}")
    return lines


def snapshot():
    return "\n".join(line for name in sorted(MODULES) for line in described(name)) + "\n"


def difference(now, then):
    return "".join(difflib.unified_diff(then.splitlines(True), now.splitlines(True), "public_api.txt", "the sources"))


def test_public_names_and_arguments():
    changed = difference(snapshot(), SNAPSHOT.read_text())
    assert not changed, (
        f"{changed}\nIf this is meant: docs/versions.md says what it asks for; then write the file anew."
    )


def test_every_public_module_is_listed():
    """Modules and packages beside api.py that are not among the insides."""
    insides = {"api", "arguments", "backends", "checkpoint", "definition", "dispatch", "kernels", "table"}
    folder = SOURCES / "normball"
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    public = {f"normball.{name}" for name in names - insides if not name.startswith("_")}
    assert public <= set(MODULES)


@pytest.mark.parametrize(
    "change", [("epsilon=1e-07", "epsilon=1e-06"), ("norm_axes=None", "axes=None"), ("    set_num_threads(n)\n", "")]
)
def test_public_names_can_fail(change):
    now = snapshot()
    assert change[0] in now
    assert difference(now.replace(*change), SNAPSHOT.read_text())


def test_members_are_found(tmp_path, monkeypatch):
    package = tmp_path / "normball"
    package.mkdir()
    (package / "base.py").write_text(
        "class _Base:\n    def __call__(self, w: int) -> int: ...\n    def _inner(self): ...\n"
    )
    (package / "thing.py").write_text(
        "from normball.base import _Base\nimport torch\n__all__ = ['A', 'f', 'LIMIT']\nLIMIT = 3\n"
        "class A(_Base, torch.nn.Module):\n    size: int = 2\n    def __init__(self, size: int = 1): ...\n"
        "    @property\n    def norm(self) -> float: ...\n    @staticmethod\n    def make(x, *, y): ...\n"
        "def f(a: int, *rest: int, b=(1, 2), **more) -> None: ...\ndef g(): ...\n"
    )
    monkeypatch.setattr(f"{__name__}.SOURCES", tmp_path)
    assert described("normball.thing") == [
        "normball.thing",
        "    A",
        "        __call__(w)",
        "        __init__(size=1)",
        "        make(x, *, y)",
        "        norm",
        "        size = 2",
        "    LIMIT",
        "    f(a, *rest, b=(1, 2), **more)",
    ]


def test_checkers_see_the_same_arguments():
    """Each overload of __init__.pyi has the arguments of its function, in their order."""
    stub = ast.parse((SOURCES / "normball/__init__.pyi").read_text()).body
    overloads = [node for node in stub if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in overloads} == set(Module("normball").names()) - {"__version__"}
    for node in overloads:
        _, function = Module("normball").find(node.name)
        assert arguments(node).replace("return_norm=...", "return_norm=False") == arguments(function), node.name


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot())
