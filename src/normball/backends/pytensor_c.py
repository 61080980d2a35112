"""The C kernels inside PyTensor's C linkers (CVM, PyTensor 2's default): no way through Python."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytensor.graph.basic import Apply
from pytensor.link.c.op import COp

from normball import kernels


class KernelOp(COp):
    """An Op whose C code is a call of one of the functions in pytensor_c.c.

    Subclasses write it: `_c_status(inputs, outputs)` are statements that define an int `status`.
    """

    _f16_ok = True  # the kernels know float16; unasked, PyTensor warns and takes `perform`

    def c_code(self, node: Apply, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: dict[str, str]) -> str:
        if kernels.best is kernels.fallback:
            raise NotImplementedError("no C kernels: PyTensor goes on with `perform`")
        return f"{{ {self._c_status(inputs, outputs)} if (status < 0) {{ {sub['fail']} }} }}"

    def _c_status(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        raise NotImplementedError

    def c_support_code(self, **kwargs: Any) -> str:
        return _support_code()

    def c_init_code(self, **kwargs: Any) -> list[str]:
        return ["if (normball_load() < 0) return NULL;"]

    def c_code_cache_version(self) -> tuple:
        return (_version(), kernels.best.__name__)  # a module found in the cache never asks `c_code`


def axes_code(axes: tuple[int, ...]) -> str:
    """The norm axes as normball.h has them."""
    return f"UINT64_C({sum(1 << axis for axis in axes)})"


def ord_code(ord: float) -> str:
    """The order as normball.h has it."""
    return f"NORMBALL_ORD_{ord:g}".upper()


@functools.cache
def _support_code() -> str:
    here = Path(__file__)
    files = (here.parents[1] / "kernels" / "normball.h", here.with_suffix(".c"))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@functools.cache
def _version() -> str:
    """PyTensor's cache on disk knows a module by its Ops and this, not by its support code."""
    return hashlib.sha256(_support_code().encode()).hexdigest()
