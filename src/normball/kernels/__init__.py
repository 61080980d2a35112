"""Loops over memory: C where it is built, else NumPy. See README.md in this folder."""

import os
from types import ModuleType

from normball.kernels import fallback

best: ModuleType = fallback
if os.environ.get("NORMBALL_KERNEL") != "numpy":
    try:
        from normball.kernels import native as best
    except ImportError:  # installed without a compiler: the same promises, slower
        pass

constrain, constrain_total, norms = best.constrain, best.constrain_total, best.norms
