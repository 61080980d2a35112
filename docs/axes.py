"""The table of docs/axes.md, from the layers themselves: `python docs/axes.py [--check]`, and its little drawings.

A cell holds what the code says of a layer: how its weight is stored, and which axes the norm goes over. Libraries that
are not installed keep their column as it is.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent / "axes.md"
BEGIN, END = "<!-- written by docs/axes.py -->\n", "<!-- end of written table -->\n"
KINDS = (
    "dense",
    "dense, several axes",
    "convolution",
    "transposed convolution",
    "the same, grouped",
    "depthwise convolution",
    "embedding",
    "recurrent",
    "attention",
    "two inputs",
)
Cells = dict[str, list[tuple[str, str, tuple[int, ...]]]]  # kind -> (layer, stored as, axes)


def torch() -> Cells:
    from torch import nn

    from normball.torch.layers import incoming

    def cell(layer: str, module: nn.Module, weight: str = "weight") -> tuple[str, str, tuple[int, ...]]:
        found = incoming(module, weight)
        assert found is not None
        return layer if weight == "weight" else f"{layer} `{weight}`", found.text, found.axes

    return {
        "dense": [cell("`Linear`", nn.Linear(2, 3))],
        "convolution": [cell("`Conv1d`, `2d`, `3d`, also grouped", nn.Conv2d(2, 3, 2))],
        "transposed convolution": [cell("`ConvTranspose1d`, `2d`, `3d`", nn.ConvTranspose2d(2, 3, 2))],
        "the same, grouped": [cell("seen as", nn.ConvTranspose2d(2, 4, 2, groups=2))],
        "embedding": [cell("`Embedding`, `EmbeddingBag`", nn.Embedding(4, 2))],
        "recurrent": [
            cell("`RNN`, `LSTM`, `GRU`", nn.LSTM(2, 3), "weight_ih_l0"),
            cell("the same", nn.LSTM(2, 3), "weight_hh_l0"),
            cell("`LSTM`", nn.LSTM(2, 3, proj_size=1), "weight_hr_l0"),
        ],
        "attention": [
            cell("`MultiheadAttention`", nn.MultiheadAttention(4, 2), "in_proj_weight"),
            cell("the same", nn.MultiheadAttention(4, 2, kdim=3), "q_proj_weight"),
        ],
        "two inputs": [cell("`Bilinear`", nn.Bilinear(2, 3, 4))],
    }


def keras() -> Cells:
    os.environ.setdefault("KERAS_BACKEND", next(name for name in ("jax", "torch", "tensorflow") if installed(name)))
    from keras import layers

    from normball.keras.layouts import layout_of

    def cell(layer: str, made: Any, weight: str, ndim: int) -> tuple[str, str, tuple[int, ...]]:
        found = layout_of(made, weight, ndim)
        assert found is not None
        return f"{layer} `{weight}`", found.text, found.axes

    einsum = layers.EinsumDense("abc,cde->abde", (None, 2, 3))
    separable = layers.SeparableConv2D(3, 2)
    return {
        "dense": [cell("`Dense`", layers.Dense(3), "kernel", 2)],
        "dense, several axes": [cell("`EinsumDense` of `abc,cde->abde`", einsum, "kernel", 3)],
        "convolution": [
            cell("`Conv1D`, `2D`, `3D`, also grouped,", layers.Conv2D(3, 2), "kernel", 4),
            cell("`SeparableConv1D`, `2D`", separable, "pointwise_kernel", 4),
        ],
        "transposed convolution": [cell("`Conv1DTranspose`, `2D`, `3D`", layers.Conv2DTranspose(3, 2), "kernel", 4)],
        "depthwise convolution": [
            cell("`DepthwiseConv1D`, `2D`", layers.DepthwiseConv2D(2), "kernel", 4),
            cell("`SeparableConv1D`, `2D`", separable, "depthwise_kernel", 4),
        ],
        "embedding": [cell("`Embedding`", layers.Embedding(4, 2), "embeddings", 2)],
        "recurrent": [
            cell("`LSTM`, `GRU`", layers.LSTMCell(3), "kernel", 2),
            cell("the same,", layers.LSTMCell(3), "recurrent_kernel", 2),
            cell("`SimpleRNN`", layers.SimpleRNNCell(3), "kernel", 2),
            cell("`ConvLSTM1D`, `2D`, `3D`", layers.ConvLSTM2D(3, 2).cell, "kernel", 4),
        ],
    }


def trees() -> Callable[[str, str, int], tuple[str, str, tuple[int, ...]]]:
    from normball.optax.layouts import Layout, incoming

    def cell(layer: str, path: str, ndim: int) -> tuple[str, str, tuple[int, ...]]:
        found = incoming(path.split("/"), ndim)
        assert isinstance(found, Layout)
        return f"{layer} `{path.rpartition('/')[2]}`", found.text, found.axes

    return cell


def flax() -> Cells:
    cell = trees()
    return {
        "dense": [cell("flax `Dense`, `Linear`", "dense/kernel", 2), cell("haiku `Linear`", "linear/w", 2)],
        "convolution": [cell("flax `Conv`", "conv/kernel", 4), cell("haiku `Conv1D`, `2D`, `3D`", "conv2_d/w", 4)],
        "transposed convolution": [
            cell("flax `ConvTranspose`", "conv/kernel", 4),
            cell("haiku `Conv2DTranspose`", "conv2_d_transpose/w", 4),
        ],
        "embedding": [cell("flax `Embed`", "embed/embedding", 2), cell("haiku `Embed`", "embed/embeddings", 2)],
        "attention": [
            cell("flax `query`, `key`, `value`", "attention/query/kernel", 3),
            cell("flax `out`", "attention/out/kernel", 3),
        ],
    }


def equinox() -> Cells:
    cell = trees()
    return {
        "dense": [cell("`Linear`", "linear/weight", 2)],
        "convolution": [cell("`Conv1d`, `2d`, `3d`", "conv/weight", 4)],
        "transposed convolution": [cell("`ConvTranspose1d`, `2d`, `3d`", "conv/weight", 4)],
        "embedding": [cell("`Embedding`", "embedding/weight", 2)],
        "recurrent": [
            cell("`LSTMCell`, `GRUCell`", "cell/weight_ih", 2),
            cell("the same,", "cell/weight_hh", 2),
        ],
    }


def default() -> Cells:
    """What the public functions take without `norm_axes`, and so PyMC's and Lasagne's layout."""
    from normball.arguments import read_axes

    return {
        "dense": [("2 dimensions", "(in, out)", read_axes(2, None))],
        "convolution": [("3 to 5 dimensions", "(out, in, *kernel)", read_axes(4, None))],
    }


# Column -> the packages that it takes, and its cells.
COLUMNS: dict[str, tuple[tuple[str, ...], Callable[[], Cells]]] = {
    "no `norm_axes`: NumPy, PyMC, Lasagne": ((), default),
    "PyTorch": (("torch",), torch),
    "Keras": (("keras",), keras),
    "flax, haiku": (("jax", "optax"), flax),
    "equinox": (("jax", "optax"), equinox),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# How each stored shape is drawn: a grid of its first axes that are no kernel, with small squares for kernels.
DRAWN = {
    "(in, out)": "column",
    "(in, gates*units)": "column",
    "(in, heads, dim)": "column",
    "(out, in)": "row",
    "(gates*hidden, in)": "row",
    "(q+k+v, in)": "row",
    "(row, dim)": "row",
    "(out, in1, in2)": "rows-kernels",
    "(out, in, *kernel)": "row-kernels",
    "(in, out, *kernel)": "column-kernels",
    "(groups, in, out, *kernel)": "groups-kernels",
    "(*kernel, in, out)": "column-kernels",
    "(*kernel, out, in)": "row-kernels",
    "(*kernel, in, multiplier)": "one-kernel",
    "(heads, dim, out)": "column",
    "(c, d, e)": "column",
}


def written(cell: tuple[str, str, tuple[int, ...]]) -> str:
    layer, text, axes = cell
    shown = text.replace("*", "\\*")
    picture = DRAWN[text].replace("rows-", "row-")
    over = f"axis {axes[0]}" if len(axes) == 1 else "axes " + ", ".join(map(str, axes))
    return f"![](pictures/{picture}.svg){{.layout}} {layer}<br>{shown}<br>**{over}**"


def column(cells: Cells) -> dict[str, str]:
    return {kind: "<br>".join(map(written, cells.get(kind, ()))) for kind in KINDS}


def table(text: str) -> str:
    """A row for each kind of layer, a column for each library; where one is not installed, as `text` has it."""
    before = {line.split(" | ")[0].removeprefix("| "): line[2:-2].split(" | ") for line in text.splitlines()[2:]}
    columns = []
    for place, (packages, cells) in enumerate(COLUMNS.values(), 1):
        here = all(map(installed, packages))
        columns.append(column(cells()) if here else {kind: before[f"**{kind}**"][place].strip() for kind in KINDS})
    lines = ["| layer | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| **{kind}** | " + " | ".join(cells[kind] or "–" for cells in columns) + " |" for kind in KINDS]
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The page with the table of the day."""
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(old.strip())}\n{END}{after}"


# --- drawings, in colours that are seen on light and on dark pages

INK, FILL = "#8a8f98", "#2f86d6"


def drawing(name: str) -> str:
    """A weight of a layer as a grid, with what belongs to one unit filled."""
    kernels = name.endswith(("kernels", "kernel"))
    rows, columns, cell = (3, 4, 22) if kernels else (4, 6, 14)
    if name.startswith(("column", "groups")) and kernels:
        rows, columns = 3, 4
    parts = []
    for row in range(rows):
        for place in range(columns):
            gap = 6 if name.startswith("groups") and place >= columns // 2 else 0
            filled = {
                "column": place == 1,
                "row": row == 1,
                "one": (row, place) == (1, 1),
                "groups": place == 1,
            }[name.partition("-")[0]]
            x, y = 2 + place * cell + gap, 2 + row * cell
            if kernels:
                third = (cell - 4) / 3
                parts += [square(x + i * third, y + j * third, third, filled) for i in range(3) for j in range(3)]
            else:
                parts.append(square(x, y, cell, filled))
    width, height = columns * cell + 4 + (6 if name.startswith("groups") else 0), rows * cell + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        + "".join(parts)
        + "</svg>\n"
    )


def square(x: float, y: float, size: float, filled: bool) -> str:
    fill = FILL if filled else "none"
    return f'<rect x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" fill="{fill}" stroke="{INK}"/>'


def main() -> None:
    """Write the table and the drawings, or with --check fail where they are out of date."""
    text = PAGE.read_text()
    files = {PAGE: with_table(text)}
    for name in {shape.replace("rows-", "row-") for shape in DRAWN.values()}:
        files[PAGE.parent / "pictures" / f"{name}.svg"] = drawing(name)
    if "--check" not in sys.argv:
        for path, content in files.items():
            path.write_text(content)
        return
    old = [path.name for path, content in files.items() if not path.exists() or path.read_text() != content]
    if old:
        sys.exit(f"out of date: {', '.join(sorted(old))}; run python docs/axes.py")


if __name__ == "__main__":
    main()
