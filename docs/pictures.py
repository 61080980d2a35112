"""The pictures of the pages, from the pages' own programs: `python docs/pictures.py`, or `make pictures`.

Each is drawn twice, for light and dark pages, on nothing: `NAME-light.svg` and `NAME-dark.svg` in docs/pictures.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import pages

HERE = Path(__file__).resolve().parent
# Okabe and Ito's colours, which colour-blind people tell apart: ours, theirs, a third.
LIGHT = {"ink": "#333333", "ours": "#0072B2", "theirs": "#D55E00", "third": "#009E73", "ball": "#0072B21A"}
DARK = {"ink": "#d5d7e2", "ours": "#56B4E9", "theirs": "#E69F00", "third": "#2bc499", "ball": "#56B4E926"}
Ink = dict[str, str]


def style(ink: Ink) -> dict[str, Any]:
    lines = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), ink["ink"])
    return {
        **lines,
        "font.size": 11,
        "svg.hashsalt": "normball",  # the same file each time
        "savefig.transparent": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


# --- docs/definition.md


def plane(axes: Any, title: str) -> None:
    axes.set(aspect="equal", xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), title=title)
    axes.axis("off")


def arrow(axes: Any, vector: Any, color: str) -> None:
    look = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", vector, (0, 0), arrowprops=look)


def ball(names: dict[str, Any], ink: Ink) -> Any:
    figure, (before, after) = plt.subplots(1, 2, figsize=(6.4, 3.6))
    for axes, title, vectors in ((before, "before", names["vectors"]), (after, "after", names["after"])):
        plane(axes, title)
        axes.add_patch(plt.Circle((0, 0), 1, facecolor=ink["ball"], edgecolor=ink["ours"], lw=1.5))
        for old, new in zip(names["vectors"], vectors, strict=True):
            color = ink["ours"] if np.hypot(*old) <= 1 else ink["theirs"]
            if (old != new).any():
                axes.plot(*zip(new, old, strict=True), ":", color=color, lw=1.5)
            arrow(axes, new, color)
    before.annotate("radius c", (-0.7071, -0.7071), (-1.75, -1.45), arrowprops={"arrowstyle": "-", "color": ink["ink"]})
    before.text(1.68, 1.3, "n > c", ha="center", color=ink["theirs"])
    before.text(-0.42, -0.5, "n ≤ c", ha="center", color=ink["ours"])
    after.text(1.08, 0.2, "on the ball", color=ink["theirs"])
    after.text(-0.42, -0.5, "same bits", ha="center", color=ink["ours"])
    return figure


def orders(names: dict[str, Any], ink: Ink) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(6.4, 2.7))
    vector = names["vector"][0]
    shapes = {1: [(1, 0), (0, 1), (-1, 0), (0, -1)], np.inf: [(1, 1), (-1, 1), (-1, -1), (1, -1)]}
    nearest = {1: vector - (vector.sum() - 1) / 2, 2: vector / np.hypot(*vector), np.inf: np.clip(vector, -1, 1)}
    for axes, (order, point) in zip(panels, nearest.items(), strict=True):
        plane(axes, f"ord={order}")
        axes.set(xlim=(-1.3, 1.8), ylim=(-1.3, 1.5))
        look = {"facecolor": ink["ball"], "edgecolor": ink["ours"], "lw": 1.5}
        axes.add_patch(plt.Circle((0, 0), 1, **look) if order == 2 else plt.Polygon(shapes[order], **look))
        result = names["norm_constraint"](vector[None], 1.0, 1, 0, ord=order)[0]
        axes.plot([0, vector[0]], [0, vector[1]], ":", color=ink["ink"], lw=1.2)
        axes.plot(*vector, "o", color=ink["ink"])
        if order != 2:
            axes.plot([point[0], vector[0]], [point[1], vector[1]], ":", color=ink["theirs"], lw=1.2)
            axes.plot(*point, "s", color=ink["theirs"], ms=7, label="nearest point")
        axes.plot(*result, "o", color=ink["ours"], ms=7, label="norm_constraint")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


# --- docs/exactness.md


def decay(names: dict[str, Any], ink: Ink) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    for name, color in (("PyMC", ink["theirs"]), ("normball", ink["ours"])):
        shares = names["decay"][name] / names["decay"][name][0]
        calls = np.linspace(0, 2000, len(shares))
        for column, start in enumerate(names["starts"]):
            axes.plot(calls, 100 * shares[:, column], color=color, ls="-" if name == "PyMC" else "--")
            if name == "PyMC" and start < 0.1:
                at = int(np.searchsorted(calls, 1500 if shares[-1, column] > 0.5 else 400))
                offset = (0, -15) if shares[-1, column] > 0.5 else (8, 4)
                spot = (calls[at], 100 * shares[at, column])
                axes.annotate(f"norm {start:g}", spot, offset, textcoords="offset points", color=color)
        axes.plot([], [], color=color, ls="-" if name == "PyMC" else "--", label=name)
    axes.set(
        xlabel="calls that change nothing else", ylabel="% of the norm that is left", ylim=(-3, 108), xlim=(0, 2000)
    )
    axes.legend(loc="lower right")
    return figure


def excess(names: dict[str, Any], ink: Ink) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    unit = 2.0**-23  # of float32, relative to 1
    bins = np.arange(-2.5, 2.01, 0.05)
    for (name, values), color in zip(names["excess"].items(), (ink["theirs"], ink["ours"]), strict=True):
        axes.hist(values / unit, bins, color=color, alpha=0.75, label=name)
    axes.axvline(0, color=ink["ink"], lw=1.5)
    axes.annotate("the bound", (0, 1), (5, -12), xycoords=("data", "axes fraction"), textcoords="offset points")
    axes.set(xlabel="norm of the result, relative to the bound, in units of 2⁻²³", ylabel="vectors")
    axes.legend(loc="upper left")
    return figure


def zero(names: dict[str, Any], ink: Ink) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    ours, theirs = names["training"]["normball"], names["training"]["PyMC"]
    axes.plot(np.arange(1, len(ours) + 1), ours, "o-", color=ink["ours"], ms=4, label="normball")
    axes.plot([1], theirs[:1], "X", color=ink["theirs"], ms=12, label="PyMC: NaN from the second step on")
    assert np.isnan(theirs[1:]).all()
    axes.set(xlabel="step", ylabel="loss", ylim=(-0.05, None))
    axes.legend()
    return figure


def range_(names: dict[str, Any], ink: Ink) -> Any:
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    axes.plot(names["sizes"], names["lengths"]["normball"], "o-", color=ink["ours"], ms=8, label="normball")
    axes.plot(
        names["sizes"],
        names["lengths"]["torch"],
        "X--",
        color=ink["theirs"],
        ms=7,
        label="torch.nn.utils.clip_grad_norm_",
    )
    axes.set(xscale="log", xlabel="norm of the gradient", ylabel="norm after clipping to 1")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    return figure


# --- docs/recipes


def dropout(names: dict[str, Any], ink: Ink) -> Any:
    figure, panels = plt.subplots(1, 3, figsize=(6.4, 2.6), sharey=True)
    bound = min(names["runs"])
    for place, (axes, layer) in enumerate(zip(panels, ("first layer", "second layer", "output"), strict=True)):
        for max_norm, (largest, _) in names["runs"].items():
            label, color = (f"at most {bound:g}", ink["ours"]) if max_norm == bound else ("free", ink["theirs"])
            axes.plot(np.arange(1, len(largest) + 1), [norms[place] for norms in largest], color=color, label=label)
        axes.axhline(bound, color=ink["ink"], lw=0.8, ls=":")
        axes.set(title=layer, xlabel="epoch", ylim=(0, None))
    panels[0].set_ylabel("largest norm")
    panels[0].legend()
    return figure


def recurrent(names: dict[str, Any], ink: Ink) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.8))
    for max_norm, (losses, norms, _) in names["runs"].items():
        label, color = (
            ("free", ink["theirs"]) if np.isinf(max_norm) else (f"total norm at most {max_norm:g}", ink["ours"])
        )
        look = {"color": color, "label": label, "lw": 1.2, **({"marker": "X", "ms": 9} if np.isinf(max_norm) else {})}
        left.plot(np.arange(1, len(losses) + 1), losses, **look)
        right.plot(np.arange(1, len(norms) + 1), norms, **look)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="loss")
    right.set(xlabel="step", yscale="log", title="total norm before clipping")
    left.legend()
    return figure


def dictionary(names: dict[str, Any], ink: Ink) -> Any:
    figure, panels = plt.subplots(4, 8, figsize=(6.4, 3.7))
    for axes, atom in zip(panels.flat, names["atoms"], strict=True):
        axes.imshow(atom.reshape(8, 8), cmap="gray", vmin=-np.abs(atom).max(), vmax=np.abs(atom).max())
        axes.axis("off")
    return figure


def attack(names: dict[str, Any], ink: Ink) -> Any:
    figure = plt.figure(figsize=(6.4, 3.0))
    grid = figure.add_gridspec(2, 6)
    images, eps = np.asarray(names["clean"]), list(names["right"])
    delta = np.asarray(names["attack"](names["clean"], names["targets"], 1.0))
    for place in range(3):
        for row, pixels in enumerate((images[place], images[place] + delta[place])):
            axes = figure.add_subplot(grid[row, place])
            axes.imshow(pixels.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.axis("off")
            params = names["params"]
            read = int(names["logits"](params, pixels[None]).argmax())
            axes.set_title(f"read as {read}", fontsize=10, color=ink["ours"] if row == 0 else ink["theirs"])
    axes = figure.add_subplot(grid[:, 3:])
    axes.plot(eps, [100 * names["right"][radius] for radius in eps], "o-", color=ink["ours"])
    axes.set(xlabel="radius of the ball, eps", ylabel="% of test digits that are right", ylim=(0, 103))
    return figure


Drawing = Callable[[dict[str, Any], Ink], Any]
PICTURES: dict[str, dict[str, Drawing]] = {
    "definition.md": {"ball": ball, "orders": orders},
    "exactness.md": {"decay": decay, "excess": excess, "zero": zero, "range": range_},
    "recipes/dropout.md": {"dropout": dropout},
    "recipes/recurrent.md": {"recurrent": recurrent},
    "recipes/dictionary.md": {"dictionary": dictionary},
    "recipes/attack.md": {"attack": attack},
}


def main() -> None:
    """Draw the pictures of all pages, or of those that are named."""
    for page in sys.argv[1:] or PICTURES:
        _, names = pages.run(pages.blocks((HERE / page).read_text()), page)
        for picture, draw in PICTURES[page].items():
            for tone, ink in (("light", LIGHT), ("dark", DARK)):
                with plt.rc_context(style(ink)):
                    figure = draw(names, ink)
                    figure.savefig(HERE / "pictures" / f"{picture}-{tone}.svg", metadata={"Date": None})
                    plt.close(figure)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
