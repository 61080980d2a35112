"""Builds the C kernels, once for each instruction set; pyproject.toml has the rest.

Where there is no compiler the install goes on without them: `normball.kernels` then runs on NumPy.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = "src/normball/kernels"
# Nothing here changes a result: contraction to fused multiply-add is off, and there is no fast-math. The two
# -fno flags give up errno and floating-point traps, which nobody reads, and let the compiler vectorise.
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
MSVC_FLAGS = ["/std:c11", "/O2", "/fp:precise"]
THREADS = [] if sys.platform == "win32" else ["-pthread"]
LEVELS = {"v3": ["-march=x86-64-v3"]} if platform.machine() in ("x86_64", "AMD64") else {}


class BuildKernels(build_ext):
    """Compiles core.c for the baseline and for each level that this compiler knows."""

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        flags = MSVC_FLAGS if msvc else FLAGS + THREADS
        ext.extra_compile_args = flags
        for level, extra in {} if msvc else LEVELS.items():
            try:
                ext.extra_objects += self._compile_core(level, flags + extra)
                ext.define_macros.append((f"NORMBALL_HAVE_{level.upper()}", "1"))
            except Exception as error:  # each compiler has its own error for a flag it does not know
                print(f"normball: no {level} kernels ({error}); the baseline is slower, with the same results")
        try:
            super().build_extension(ext)
        except Exception:
            print("normball: the C kernels were not built; installing without them (NumPy is used, slower)")
            raise  # setuptools goes on: the extension is optional

    def _compile_core(self, level: str, flags: list[str]) -> list[str]:
        return self.compiler.compile(
            [f"{KERNELS}/core.c"],
            output_dir=os.path.join(self.build_temp, level),
            macros=[("NORMBALL_ISA", level)],
            extra_postargs=flags,
        )


setup(
    ext_modules=[
        Extension(
            "normball.kernels._native",
            [f"{KERNELS}/{name}.c" for name in ("module", "pool", "core")],
            depends=[str(path) for path in Path(KERNELS).glob("*.[ch]")],
            libraries=[] if sys.platform == "win32" else ["m"],
            extra_link_args=THREADS,
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
