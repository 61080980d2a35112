"""What the memory alone costs: the loops of floors.c, compiled for this machine when they are first needed."""

import ctypes
import functools
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timing import Rival

HERE = Path(__file__).parent
KINDS = {"read": 0, "scale": 1, "copy": 2, "copy past cache": 3}  # the numbers are those of floors.c


def compiled(name: str, native: bool = True) -> ctypes.CDLL:
    """A C file of this folder as a library, for this CPU or for the baseline of its architecture.

    It is compiled into a folder that is gone once it is loaded.
    """
    compiler = shutil.which("cc") or (sysconfig.get_config_var("CC") or "cc").split()[0]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        flags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
        flags += ["-pthread", *(["-march=native"] if native else [])]
        subprocess.run([compiler, *flags, str(HERE / name), "-o", str(library), "-lm"], check=True)
        return ctypes.CDLL(str(library))


@functools.cache
def floors() -> ctypes.CDLL:
    return compiled("floors.c")


def rivals(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], threads: int) -> list[Rival]:
    """Every floor over the same memory that the kernels get."""
    count, width = len(xs), xs[0].itemsize
    x = (ctypes.c_void_p * count)(*(a.ctypes.data for a in xs))
    y = (ctypes.c_void_p * count)(*(a.ctypes.data for a in ys))
    size = (ctypes.c_int64 * count)(*(a.nbytes for a in xs))
    run = floors().floor_run

    def repeat(kind: int, times: int) -> None:
        run(*map(ctypes.c_int64, (kind, width, count)), x, y, size, *map(ctypes.c_int64, (times, threads)))

    return [Rival(name, functools.partial(repeat, kind)) for name, kind in KINDS.items()]


def best_copy(times: dict[str, np.ndarray]) -> np.ndarray:
    """The quicker way to copy, over the whole run."""
    return min((times[name] for name in ("copy", "copy past cache")), key=np.nanmedian)
