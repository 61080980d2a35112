"""How a constraint comes to know the layer it is for.

Keras calls a constraint with a variable, which knows no layer. The one place that sees layer, variable and constraint
together is `keras.Layer.add_weight`. So importing this wraps it: constraints of ours with ``axis="incoming"`` are told
there which axes those are, when the layer is built, loaded from a file too. It does nothing to anything else.
"""

import functools
from typing import Any

import keras

from normball.keras.constraints import Constraint
from normball.keras.layouts import layout_of


def _telling(add_weight: Any) -> Any:
    @functools.wraps(add_weight)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        variable = add_weight(self, *args, **kwargs)
        if isinstance(variable.constraint, Constraint):
            # A new object: one constraint may be for several layers.
            layout = layout_of(self, variable.name, len(variable.shape))
            variable.constraint = variable.constraint.at(self, variable, layout)
        return variable

    told.normball = True  # type: ignore[attr-defined]
    return told


if not hasattr(keras.Layer.add_weight, "normball"):
    keras.Layer.add_weight = _telling(keras.Layer.add_weight)
