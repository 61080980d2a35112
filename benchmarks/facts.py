"""What a reader must know of the machine and the versions; nothing that says whose machine it is."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from timing import ALL_CPUS

from normball import __version__, kernels

CPU = Path("/sys/devices/system/cpu/cpu0")
PACKAGES = ("numpy", "pytensor", "pymc", "torch", "keras", "jax", "numba")


def machine() -> dict[str, str | int]:
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cpus": len(ALL_CPUS) or os.cpu_count() or 1,
        **caches(),
        **memory(),
        "system": platform.system(),
        "compiler": compiler(),
    }


def versions() -> dict[str, str]:
    found = {"normball": __version__, "kernel": kernel(), "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def kernel() -> str:
    """C with the instruction set that is in use, or NumPy."""
    name = kernels.constrain.__module__.rpartition(".")[-1]
    native = sys.modules.get("normball.kernels._native")
    return f"C, {native.levels()[0]}" if name == "native" and native else "NumPy"


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", text.split("\n\n")[0], re.M))
        if name := fields.get("model name"):
            family = f", family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else ""
            return name + family
    return platform.processor() or "unknown"


def caches() -> dict[str, str]:
    """As Linux tells them; a virtual machine may be told more than it gets."""
    found = {}
    for index in sorted((CPU / "cache").glob("index*")):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction":
            found[f"L{(index / 'level').read_text().strip()} cache"] = (index / "size").read_text().strip()
    return found


def memory() -> dict[str, str]:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"memory": f"{size / 2**30:.0f} GiB"}
    return {}


def compiler() -> str:
    """The one that the floors are compiled with."""
    text = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout
    return text.splitlines()[0]
