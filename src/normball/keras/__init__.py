"""Keras 3, on PyTorch, JAX and TensorFlow: max-norm constraints of layers that know their axes, and gradient clipping.

To import it teaches Keras one thing: see `normball.keras.incoming`.
"""

try:
    from keras import ops as _keras_3  # noqa: F401
except ImportError as error:
    message = "normball.keras needs Keras 3, and PyTorch, JAX or TensorFlow, whichever KERAS_BACKEND names"
    raise ImportError(f"{message}: pip install 'keras>=3'") from error

from normball.keras import incoming as _incoming  # noqa: F401  tells constraints about their layers
from normball.keras import optimizers
from normball.keras.clip import clip_by_global_norm
from normball.keras.constraints import MaxNorm, MinMaxNorm, UnitNorm
from normball.keras.table import describe

__all__ = ["MaxNorm", "MinMaxNorm", "UnitNorm", "clip_by_global_norm", "describe", "optimizers"]
