"""Handwritten digits in PyTorch, free and under a max-norm constraint: one seed, the runs differ in the bound alone."""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from normball.torch import MaxNorm, clip_grad_norm_

EPOCHS, BATCH, RATE, BOUND = 20, 64, 0.3, 3.0
torch.set_num_threads(1)  # on layers this small, threads only wait for each other


def train(max_norm: float, images: torch.Tensor, digits: torch.Tensor) -> tuple[MaxNorm, list, float]:
    """One training: the constraint, the largest norm of each layer after each epoch, and the test accuracy."""
    torch.manual_seed(0)
    half = len(images) // 2  # the halves are written by different people
    model = nn.Sequential(nn.Conv2d(1, 32, 4, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
    model.extend([nn.Linear(32 * 9, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.95)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS)
    maxnorm, history = MaxNorm(max_norm), []
    maxnorm.attach(optimizer, model)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(half).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), digits[chosen]).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # and then, each unit's incoming weights inside the ball
        schedule.step()
        history.append({name: float(norms.max()) for name, norms in maxnorm.norms(model).items()})
    right = model.eval()(images[half:]).argmax(1) == digits[half:]
    return maxnorm, history, 100 * float(right.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the picture (demo)")
    out = parser.parse_args().out
    images, digits = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for bound, style in ((math.inf, ":"), (BOUND, "-")):
        maxnorm, history, accuracy = train(bound, images, digits)
        print(f"{maxnorm}\naccuracy {accuracy:.1f} %; largest norms {history[-1]}\n")
        kind, epochs = "free" if bound == math.inf else f"at most {bound:g}", range(1, EPOCHS + 1)
        for i, name in enumerate(history[-1]):
            axes.plot(epochs, [norms[name] for norms in history], style, color=f"C{i}", label=f"{name}, {kind}")
    axes.set(xticks=range(1, EPOCHS + 1), xlabel="epoch", ylabel="largest norm of one unit's incoming weights", ylim=0)
    axes.legend()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "torch_norms.png", dpi=150)


if __name__ == "__main__":
    main()
