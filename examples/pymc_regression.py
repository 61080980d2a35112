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

RATES, SHOWN, CLIP = (1e-5, 1e-4, 1e-3, 1e-2), 1e-3, 10.0
COLOURS = {"free": "#d55e00", f"total norm at most {CLIP:g}": "#0072b2", "Adam, rate 0.1": "#777777"}  # Okabe and Ito


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=3, help="fits of each kind (3)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of each fit (3000)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (demo)")
    options, model = parser.parse_args(), regression()
    free, clipped, adam = COLOURS
    wanted = {(free, rate): pm.momentum(learning_rate=rate) for rate in RATES}
    wanted |= {(clipped, rate): constrained(optimizer, total_norm=CLIP) for (_, rate), optimizer in wanted.items()}
    wanted[adam, 0.1] = pm.adam(learning_rate=0.1)
    figure, (through, after) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for (kind, rate), optimizer in wanted.items():
        runs = [losses(model, optimizer, seed, options.steps) for seed in range(options.seeds)]
        ends = [np.median(run[-max(1, options.steps // 10) :]) for run in runs]  # NaN if any is
        print(f"{kind}, rate {rate:g}: loss {', '.join(f'{end:.1f}' for end in ends)}", flush=True)
        if rate == SHOWN or kind == adam:
            for run in runs:
                through.plot(run, color=COLOURS[kind], alpha=0.7, linewidth=0.8)
        if kind != adam:
            after.plot([rate] * len(ends), ends, "o", color=COLOURS[kind], label=kind)
    figure.savefig(options.out / "pymc_regression.png", dpi=150)


if __name__ == "__main__":
    main()
