"""Loops over memory: C where it is built, else NumPy. See README.md in this folder."""

import contextlib
import os
from importlib import import_module
from types import ModuleType

from normball import arguments


def _best() -> ModuleType:
    if os.environ.get("NORMBALL_KERNEL") != "numpy":
        with contextlib.suppress(ImportError):  # installed without a compiler: the same promises, slower
            return import_module("normball.kernels.native")
    return import_module("normball.kernels.fallback")


def __getattr__(name: str) -> ModuleType:
    """`fallback`, which a first call would wait for, with all that it imports: loaded where somebody asks for it."""
    if name == "fallback":
        return import_module("normball.kernels.fallback")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


best = _best()
constrain, constrain_each = best.constrain, best.constrain_each
constrain_total, norms = best.constrain_total, best.norms
get_num_threads, set_num_threads = best.get_num_threads, best.set_num_threads

_threads = os.environ.get("NORMBALL_NUM_THREADS")
if _threads:
    set_num_threads(arguments.read_threads("NORMBALL_NUM_THREADS", int(_threads) if _threads.isdecimal() else _threads))
