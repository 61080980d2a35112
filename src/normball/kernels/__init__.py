"""Loops over memory: C where it is built, else NumPy. See README.md in this folder."""

import contextlib
import os
from types import ModuleType

from normball import arguments
from normball.kernels import fallback

best: ModuleType = fallback
if os.environ.get("NORMBALL_KERNEL") != "numpy":
    with contextlib.suppress(ImportError):  # installed without a compiler: the same promises, slower
        from normball.kernels import native as best

constrain, constrain_each = best.constrain, best.constrain_each
constrain_total, norms = best.constrain_total, best.norms
get_num_threads, set_num_threads = best.get_num_threads, best.set_num_threads

_threads = os.environ.get("NORMBALL_NUM_THREADS")
if _threads:
    set_num_threads(arguments.read_threads("NORMBALL_NUM_THREADS", int(_threads) if _threads.isdecimal() else _threads))
