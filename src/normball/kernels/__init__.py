"""Loops over memory: C where it is built, else NumPy. See README.md in this folder."""

import os

from normball.kernels import fallback

if os.environ.get("NORMBALL_KERNEL") == "numpy":
    best = fallback
else:
    try:
        from normball.kernels import native as best
    except ImportError:  # installed without a compiler: same results, slower
        best = fallback

constrain, constrain_total, norms = fallback.constrain, fallback.constrain_total, fallback.norms
