"""Chin-ups, sit-ups and jumps of twenty men, by ADVI: one learning rate after the other, free and clipped.

A hierarchical Poisson regression on Linnerud's twenty men, by weight, waist and pulse. Its gradients at the start are
thousands of times those at the end, as rates are exponentials: what is too fast for the first is too slow for the last.
"""

import argparse
import contextlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
from sklearn.datasets import load_linnerud

from normball.pymc import constrained

RATES, SHOWN, ADAM_RATE, CLIP = (1e-5, 1e-4, 1e-3, 1e-2), 1e-3, 0.1, 10.0
FREE, CLIPPED, ADAM = "momentum, free", f"momentum, clipped to {CLIP:g}", "Adam, free"
COLOURS = {FREE: "#d55e00", CLIPPED: "#0072b2", ADAM: "#777777"}  # Okabe and Ito


def regression() -> pm.Model:
    data = load_linnerud()
    body = (data.target - data.target.mean(0)) / data.target.std(0)
    with pm.Model() as model:
        spread = pm.HalfNormal("spread", 1, shape=3)
        slopes = pm.Normal("slopes", 0, spread, shape=(3, 3))  # body by exercise
        man = pm.Normal("man", 0, 1, shape=(20, 1))
        pm.Poisson("count", pm.math.exp(pm.Normal("mean", 0, 5, shape=3) + body @ slopes + man), observed=data.data)
    return model


def losses(model: pm.Model, optimizer: object, seed: int, steps: int) -> np.ndarray:
    """The loss of each step, NaN from where it diverged."""
    inference = pm.ADVI(model=model, random_seed=seed)
    with contextlib.suppress(FloatingPointError):  # PyMC's word for a loss that is NaN
        inference.fit(steps, obj_optimizer=optimizer, progressbar=False)
    return np.pad(np.asarray(inference.hist, float), (0, steps - len(inference.hist)), constant_values=np.nan)


def end(run: np.ndarray) -> float:
    """The median loss of the last tenth of the steps: NaN where it diverged."""
    return float(np.median(run[-max(1, len(run) // 10) :]))


def draw(runs: dict, path: Path) -> None:
    """`runs`: by kind and learning rate, the losses of each seed. A cross is where a fit diverged."""
    figure, (through, after) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=[3, 2])
    for (kind, rate), seeds in runs.items():
        for run in seeds:
            colour, reached, shown = COLOURS[kind], int(np.isfinite(run).sum()), rate in (SHOWN, ADAM_RATE)
            if shown:
                through.plot(np.arange(1, 1 + len(run)), run, color=colour, lw=0.8, alpha=0.6)
            for axes, x in [(through, reached), (after, rate)] if reached < len(run) else ():
                if shown or axes is after:
                    axes.plot(x, 0.95, "x", color=colour, ms=9, mew=2, transform=axes.get_xaxis_transform())
            after.plot(rate, end(run), "o", color=colour, alpha=0.6)
    for kind, colour in COLOURS.items():
        through.plot([], [], color=colour, label=f"{kind}, rate {ADAM_RATE if kind == ADAM else SHOWN:g}")
    through.legend(frameon=False)
    through.set(xscale="log", yscale="log", xlabel="step", ylabel="loss (negative ELBO)", title="through the fit")
    after.set(xscale="log", yscale="log", xlabel="learning rate", title="loss at the end; cross: diverged")
    through.set_ylim(100, 1e6)  # what diverges leaves it
    after.set_ylim(100, 1e6)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=3, help="fits of each kind (3)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of each fit (3000)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (demo)")
    options, model, runs = parser.parse_args(), regression(), {}
    wanted = {(FREE, rate): pm.momentum(learning_rate=rate) for rate in RATES}
    wanted |= {(CLIPPED, rate): constrained(optimizer, total_norm=CLIP) for (_, rate), optimizer in wanted.items()}
    for (kind, rate), optimizer in [*wanted.items(), ((ADAM, ADAM_RATE), pm.adam(learning_rate=ADAM_RATE))]:
        runs[kind, rate] = [losses(model, optimizer, seed, options.steps) for seed in range(options.seeds)]
        print(f"{kind}, rate {rate:g}: loss", *(f"{end(run):.1f}" for run in runs[kind, rate]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(runs, options.out / "pymc_regression.png")


if __name__ == "__main__":
    main()
