"""What `digits.py` shows of its runs: a progress bar, two tables and a picture, free beside constrained throughout."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box, progress
from rich.console import Console
from rich.table import Table

from normball import definition

FREE, BOUNDED = "#d55e00", "#0072b2"  # told apart whatever colours the reader sees (Okabe and Ito)


@contextmanager
def reporting(console: Console, total: int) -> Iterator:
    """A progress bar in a terminal; elsewhere a line every few seconds."""
    columns = ("{task.description}", progress.BarColumn(None), progress.TimeRemainingColumn(elapsed_when_finished=True))
    with progress.Progress(*columns, console=console, disable=not console.is_terminal, expand=True) as bar:
        task, started, printed, done = bar.add_task("", total=total), time.monotonic(), time.monotonic(), 0

        def report(text: str) -> None:
            nonlocal printed, done
            done, now = done + 1, time.monotonic()
            bar.update(task, advance=1, description=text)
            if not console.is_terminal and now - printed > 8:
                printed = now
                print(f"  {text}; about {(now - started) / done * (total - done):.0f} s left", flush=True)

        yield report


def accuracy_table(finals: dict, max_norm: float) -> Table:
    """`finals`: learning rate -> final accuracies of the free runs and of the constrained ones, in percent, by seed."""
    seeds = len(next(iter(finals.values()))[0])
    title = f"Test accuracy in %: mean ± standard deviation over {seeds} seeds"
    table = new_table(title, "learning rate", "free", f"max-norm {max_norm:g}", "difference, seed by seed")
    for rate, (free, bounded) in finals.items():
        table.add_row(f"{rate:g}", spread(free), spread(bounded), spread(bounded - free, "+"))
    return table


def norm_table(layers: list[str], parameters: tuple, max_norm: float, rate: float) -> Table:
    """`parameters`: one dict per seed, of the free runs and of the constrained ones."""
    title = f"Largest incoming norm of any unit, any seed, at learning rate {rate:g}"
    table = new_table(title, "layer", "free", f"max-norm {max_norm:g}", f"norm <= {max_norm:g} in exact arithmetic")
    for layer in layers:
        free, bounded = (max(largest_norm(values[f"{layer}.weight"]) for values in kind) for kind in parameters)
        verdict = "holds exactly" if bounded <= Fraction(max_norm) else "VIOLATED"
        table.add_row(layer, f"{float(free):.3f}", f"{float(bounded):.9f}", verdict)
    return table


def new_table(title: str, *headings: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def spread(values: np.ndarray, sign: str = "") -> str:
    deviation = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.1f}{deviation}"


def largest_norm(weight: np.ndarray) -> Fraction | float:
    """The largest incoming norm in exact arithmetic, infinite where training diverged."""
    incoming = weight.T if weight.ndim == 2 else weight.reshape(len(weight), -1)
    if not np.isfinite(incoming).all():
        return math.inf
    return definition.norm(max(definition.summarise(unit, 2) for unit in incoming.tolist()), 2)


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
    panel.set_xlim(0, 1.45 * len(epochs))  # room for the names
    panel.set_xticks([tick for tick in panel.get_xticks() if tick <= len(epochs)])
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=12)


def end_label(panel: Axes, text: str, height: float, align: str, colour: str, epochs: int) -> None:
    if np.isfinite(height):
        panel.text(1.03 * epochs, height, text, color=colour, va=align, fontsize=13, linespacing=1.1)
