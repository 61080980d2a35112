"""The judge of the trainers' tests: which weights hold a unit beyond its bound, in exact arithmetic.

Knows no table of layers: each test says along which axes the incoming weights of its own model lie.
"""

import re
from fractions import Fraction
from pathlib import Path

from oracle import exact_norm, groups_of


def too_long(model, axes, bound):
    """Names of the parameters of which some unit's norm is beyond the bound; `axes` by name."""
    stored = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    return {
        name for name, own in axes.items() if any(exact_norm(g) > Fraction(bound) for g in groups_of(stored[name], own))
    }


def total_norm(gradients):
    """The exact norm of all entries of all tensors together."""
    return exact_norm([value for gradient in gradients for value in gradient.detach().double().flatten().tolist()])


class Steps:
    """What was too long after each step."""

    def __init__(self, axes, bound):
        self.axes, self.bound, self.found = axes, bound, []

    def judge(self, model):
        self.found.append(too_long(model, self.axes, self.bound))

    @property
    def count(self):
        return len(self.found)

    @property
    def broken(self):
        return set().union(*self.found)


def run_guide(section):
    """Run the program in a section of docs/trainers.md; its names."""
    guide = (Path(__file__).parent.parent / "docs" / "trainers.md").read_text()
    [program] = re.findall(rf"^## {section}\n\n```python\n(.*?)```", guide, re.M | re.S)
    names = {}
    exec(compile(program, f"docs/trainers.md, {section}", "exec"), names)
    return names
