"""Counts the collectives of compiled JAX programs, for the scripts that run on several devices."""

import math
import re

import jax

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def compiled_collectives(compiled):
    """How many collectives of each kind a compiled program holds, but for kinds of which there are none."""
    found = {kind: len(re.findall(rf" {kind}(?:-start)?\(", compiled.as_text())) for kind in KINDS}
    return {kind: count for kind, count in found.items() if count}


def largest_sent(compiled):
    """The most entries that any array has which a collective makes."""
    pattern = rf"= (.*?) (?:{'|'.join(KINDS)})(?:-start)?\("
    shapes = [shape for made in re.findall(pattern, compiled.as_text()) for shape in re.findall(r"\[([\d,]*)\]", made)]
    return max([math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes], default=0)


def collectives(function, *args):
    """The same of a function, once compiled."""
    return compiled_collectives(jax.jit(function).lower(*args).compile())
