"""The picture of `digits.py`: incoming norms and test accuracy through training, free beside constrained."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FREE, BOUNDED = "#d55e00", "#0072b2"  # told apart whatever colours the reader sees (Okabe and Ito)


def draw(path: Path, layers: list[str], norms: tuple, accuracy: tuple, max_norm: float, rate: float) -> None:
    """`norms`: (seeds, epochs, layers), `accuracy`: (seeds, epochs); of the free runs, then of the constrained ones."""
    figure = Figure(figsize=(16, 6), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(layers) + 1, width_ratios=[1] * len(layers) + [1.6])
    ceiling = 1.1 * max(max_norm, np.nanmax(norms[0], initial=0, where=np.isfinite(norms[0])))
    for layer, panel in enumerate(axes[:-1]):
        curves(panel, *(values[:, :, layer] for values in norms))
        panel.axhline(max_norm, color="black", linestyle="--", linewidth=1.2)
        end_label(panel, f"bound {max_norm:g}", max_norm, "bottom", "black", norms[0].shape[1])
        panel.set_ylim(0, ceiling)
        panel.set_title(f"{layers[layer]} layer", fontsize=14)
    axes[0].set_ylabel("largest norm of any unit's incoming weights", fontsize=13)
    curves(axes[-1], *accuracy)
    axes[-1].set_ylim(max(0, 10 * np.floor(min(values.mean(axis=0).min() for values in accuracy) / 10)), 100)
    axes[-1].set_title("test accuracy in %", fontsize=14)
    figure.suptitle(f"With max-norm no unit's incoming norm passes {max_norm:g}; left free, norms grow", fontsize=18)
    figure.supxlabel(
        f"epoch (learning rate {rate:g}, decaying to 0; line: mean of {len(accuracy[0])} seeds, "
        "shade: from the lowest to the highest)",
        fontsize=13,
    )
    figure.savefig(path)


def curves(panel: Axes, free: np.ndarray, bounded: np.ndarray) -> None:
    """Mean and range over the seeds, the name at the line's end: the upper one's above it, the lower one's below."""
    epochs = np.arange(1, free.shape[1] + 1)
    free_is_upper = free[:, -1].mean() > bounded[:, -1].mean()
    for values, name, colour, upper in (
        (free, "free", FREE, free_is_upper),
        (bounded, "max-norm", BOUNDED, not free_is_upper),
    ):
        mean = values.mean(axis=0)
        panel.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        panel.plot(epochs, mean, color=colour, linewidth=2.5)
        end_label(panel, f"{name}\n{mean[-1]:.1f}", mean[-1], "bottom" if upper else "top", colour, len(epochs))
    panel.set_xlim(0, 1.35 * len(epochs))  # room for the names
    panel.set_xticks([tick for tick in panel.get_xticks() if tick <= len(epochs)])
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=12)


def end_label(panel: Axes, text: str, height: float, align: str, colour: str, epochs: int) -> None:
    if np.isfinite(height):
        panel.text(1.03 * epochs, height, text, color=colour, va=align, fontsize=13, linespacing=1.1)
