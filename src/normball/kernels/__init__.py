"""Loops over memory: C where it is built, else NumPy. See README.md in this folder."""

import contextlib
import os
from types import ModuleType

from normball.kernels import fallback

best: ModuleType = fallback
if os.environ.get("NORMBALL_KERNEL") != "numpy":
    with contextlib.suppress(ImportError):  # installed without a compiler: the same promises, slower
        from normball.kernels import native as best

constrain, constrain_each = best.constrain, best.constrain_each
constrain_total, norms = best.constrain_total, best.norms
