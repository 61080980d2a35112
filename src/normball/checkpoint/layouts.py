"""How families of models store their weights in files, and the axes that one unit's incoming weights lie along.

A file knows no layers: a tensor's name and the number of its dimensions have to do. What the axes are is the user's
word, `--layout`; a name that its family does not use has no incoming axes until a rule names them.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

ASSUMED = "torch, assumed"  # of `check` without --layout: PyTorch's, whatever the names
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")  # of GPT-2, in transformers
_TRANSPOSED = re.compile(r"transpos|deconv|upconv|convt")
_BY_NAME = ", by its name"


class Stored(NamedTuple):
    """What the axes of a stored weight are."""

    text: str  # for people
    units: tuple[int, ...]  # that tell the units apart: "in" is along all others
    inputs: tuple[int, ...]  # that tell their inputs apart: "out" is along all others
    doubt: str = ""  # what its name may mean instead


Named = Callable[[Sequence[str], int, bool], Stored | None]


def stored(layout: str, name: str, ndim: int, certain: bool) -> Stored | None:
    """How a tensor of at least two dimensions lies; None for names that the layout has none for, unless `certain`."""
    return LAYOUTS[layout](re.split(r"[./]", name.removesuffix(":0")), ndim, certain)


def _torch(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    if not certain and "weight" not in path[-1]:
        return None
    parent, owners = path[-2] if len(path) > 1 else "", ".".join(path[:-1]).lower()
    if ndim == 2 and ("embed" in owners or parent in ("wte", "wpe")):
        return _rows(_BY_NAME)
    doubt = ""
    if ndim == 2 and parent in _CONV1D:
        doubt = "named as GPT-2's Conv1D, which stores (in, out): if they are, --layout gpt2"
    if ndim > 2 and _TRANSPOSED.search(owners):
        doubt = (
            "named as a ConvTranspose, which stores (in, out, *kernel): if they are, 'GLOB: layout=torch-transposed'"
        )
    return Stored("(out, in)" if ndim == 2 else "(out, in, *kernel)", (0,), (1,), doubt)


def _torch_transposed(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    """Of convolutions in one group; a grouped one has no axes that are its units' alone."""
    return Stored("(in, out)" if ndim == 2 else "(in, out, *kernel)", (1,), (0,))


def _gpt2(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    parent = path[-2] if len(path) > 1 else ""
    if ndim == 2 and path[-1] == "weight":
        if parent in ("wte", "wpe"):
            return _rows()
        if parent in ("lm_head", "score", "classifier"):  # the Linear layers of its heads
            return Stored("(out, in)", (0,), (1,))
    known = ndim == 2 and path[-1] == "weight" and parent in _CONV1D
    return Stored("(in, out)", (1,), (0,)) if known or (certain and ndim == 2) else None


def _keras(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    own, parent = path[-1], path[-2] if len(path) > 1 else ""
    if own == "embeddings" and ndim == 2:
        return _rows()
    if own == "depthwise_kernel" or (own == "kernel" and "depthwise" in parent):
        note = "" if own == "depthwise_kernel" else _BY_NAME
        return Stored(f"(*kernel, in, multiplier){note}", (ndim - 2, ndim - 1), (ndim - 2,))
    if own == "kernel" and "transpose" in parent and ndim > 2:
        return Stored(f"(*kernel, out, in){_BY_NAME}", (ndim - 2,), (ndim - 1,))
    if own == "kernel" and parent in ("query", "key", "value") and ndim == 3:
        return Stored(f"(in, heads, dim){_BY_NAME}", (1, 2), (0,))
    if own == "kernel" and parent == "attention_output" and ndim == 3:
        return Stored(f"(heads, dim, out){_BY_NAME}", (2,), (0, 1))
    known = own in ("kernel", "recurrent_kernel", "pointwise_kernel")
    return _kernel(ndim) if known or certain else None


def _jax(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    """The names of flax, haiku and equinox."""
    own, parent = path[-1], path[-2] if len(path) > 1 else ""
    if own in ("embedding", "embeddings") and ndim == 2:
        return _rows()
    if own in ("weight", "weight_ih", "weight_hh") and "norm" not in parent.lower():
        return Stored("(out, in)" if ndim == 2 else "(out, in, *kernel)", (0,), (1,))
    if own == "kernel" and parent in ("query", "key", "value") and ndim == 3:
        return Stored("(in, heads, dim)", (1, 2), (0,))
    if own == "kernel" and parent == "out" and ndim == 3:
        return Stored("(heads, dim, out)", (2,), (0, 1))
    if own == "w" and "transpose" in parent and ndim > 2:
        return Stored("(*kernel, out, in)", (ndim - 2,), (ndim - 1,))
    return _kernel(ndim) if own in ("kernel", "w") or certain else None


def _pytensor(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    """What `norm_constraint` takes without `norm_axes`, as PyMC's and Lasagne's do."""
    if ndim == 2:
        return Stored("(in, out)", (1,), (0,))
    return Stored("(out, in, *kernel)", (0,), (1,)) if ndim <= 5 or certain else None


def _assumed(path: Sequence[str], ndim: int, certain: bool) -> Stored | None:
    return _torch(path, ndim, True)


def _rows(note: str = "") -> Stored:
    """Each embedded vector by itself."""
    return Stored(f"(row, dim){note}", (0,), (1,))


def _kernel(ndim: int) -> Stored:
    return Stored("(in, out)" if ndim == 2 else "(*kernel, in, out)", (ndim - 1,), (ndim - 2,))


LAYOUTS: dict[str, Named] = {
    "torch": _torch,
    "torch-transposed": _torch_transposed,
    "gpt2": _gpt2,
    "keras": _keras,
    "jax": _jax,
    "pytensor": _pytensor,
    ASSUMED: _assumed,
}
NAMES = [name for name in LAYOUTS if name != ASSUMED]
