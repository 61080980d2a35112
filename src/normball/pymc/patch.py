"""Our functions in the place of PyMC's, for code that calls those: an opt-in, never taken at import."""

import contextlib
from collections.abc import Callable, Iterator

import pymc
import pymc.variational
from pymc.variational import updates

import normball

_NAMES = ("norm_constraint", "total_norm_constraint")


def patch() -> Callable[[], None]:
    """Put `normball.norm_constraint` and `normball.total_norm_constraint` in the place of PyMC's.

    Returns
    -------
    callable
        Puts back what was there before.

    Notes
    -----
    ``pm.fit(total_grad_norm_constraint=c)`` then clips by ours: finite at zero gradients, safe from overflow, exact,
    and c may be a shared variable. So do ``pm.norm_constraint`` and ``pm.total_norm_constraint`` wherever they are
    looked up in `pymc` or its modules; names that other modules imported before keep PyMC's functions.

    What differs for code that calls them: norms within the bound are untouched, results keep their dtype, NumPy arrays
    give NumPy arrays, and a negative or NaN bound is an error.

    Examples
    --------
    >>> import normball.pymc
    >>> import pymc as pm
    >>> unpatch = normball.pymc.patch()
    >>> pm.norm_constraint is normball.norm_constraint
    True
    >>> unpatch()
    >>> pm.norm_constraint is normball.norm_constraint
    False
    """
    before = [(module, name, getattr(module, name)) for module in (pymc, pymc.variational, updates) for name in _NAMES]
    for module, name, _ in before:
        setattr(module, name, getattr(normball, name))

    def unpatch() -> None:
        for module, name, function in before:
            setattr(module, name, function)

    return unpatch


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """`patch`, for as long as a with statement lasts.

    Examples
    --------
    >>> import normball.pymc
    >>> import pymc as pm
    >>> with normball.pymc.patched():
    ...     print(pm.total_norm_constraint is normball.total_norm_constraint)
    True
    """
    unpatch = patch()
    try:
        yield
    finally:
        unpatch()
