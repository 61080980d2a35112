"""What a call costs when there is next to nothing to do, and what the first one costs."""

import functools
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
from cells import MAX_NORM
from check import EPSILON, check_array
from timing import Rival, again, interleave, median, ratio, significant

import normball

SHAPES = ((10, 10), (100, 200))
IMPORTS = 9
FIRST_CALL = """
import time
import numpy
x = numpy.ones((10, 10), "float32")
begin = time.perf_counter()
import normball
normball.norm_constraint(x, 3.0)
print(time.perf_counter() - begin)
"""


def formula(x: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.sum(np.square(x), axis=0, keepdims=True))
    return x * (np.clip(norms, 0, MAX_NORM) / (norms + np.float32(EPSILON)))


def calls(shape: tuple[int, int], budget: float) -> list[dict[str, Any]]:
    """The public call, with `out` and without, against NumPy's formula; every column violates."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) + 4
    out = np.empty_like(x)
    ours = {
        "fresh": functools.partial(normball.norm_constraint, x, MAX_NORM),
        "out=": functools.partial(normball.norm_constraint, x, MAX_NORM, out=out),
    }
    for call in ours.values():
        check_array(x, call(), (0,), MAX_NORM)
    rivals = [Rival(name, again(call)) for name, call in ours.items()]
    times = interleave([*rivals, Rival("NumPy", again(lambda: formula(x)))], budget)
    return [
        {
            "shape": shape,
            "result": name,
            "ours_seconds": median(times[name]),
            "numpy_seconds": median(times["NumPy"]),
            **ratio(times["NumPy"], times[name]),
        }
        for name in ours
    ]


def first_call() -> dict[str, Any]:
    """Seconds for `import normball` and a call, in new processes that have imported NumPy."""
    times = []
    for _ in range(IMPORTS + 1):
        done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return {"seconds": significant(statistics.median(times[1:])), "processes": IMPORTS}  # the first fills file caches
