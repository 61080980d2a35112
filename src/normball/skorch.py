"""skorch: max-norm and gradient clipping as callbacks, whose settings scikit-learn can clone and search."""

from typing import Any

try:
    from skorch.callbacks import Callback

    from normball import torch
except ModuleNotFoundError as error:
    raise ImportError("normball.skorch needs PyTorch and skorch: pip install 'normball[skorch]'") from error

__all__ = ["ClipGradNorm", "MaxNorm"]


class MaxNorm(Callback):
    """`normball.torch.MaxNorm` as a callback: after every optimizer step each unit's incoming weights are in a ball.

    Parameters
    ----------
    max_norm, axes, match, mode, ord : optional
        As for `normball.torch.MaxNorm`, and attributes of the same names, which ``set_params`` and a grid search set:
        ``callbacks__MaxNorm__max_norm``. Names are those of the net's module; where it has several, theirs come after
        the module's own: ``generator.0.weight``.

    Attributes
    ----------
    constraint_ : normball.torch.MaxNorm
        What was made of the settings when training started: ``print(constraint_)``, ``constraint_.norms(module)``.

    Raises
    ------
    TypeError, ValueError
        As for `normball.torch.MaxNorm`, when training starts.

    Notes
    -----
    When training starts it attaches to the net's optimizers, those that update a weight it constrains; when training
    ends it detaches. So what follows an optimizer's step, other callbacks, validation and checkpoints included, sees
    constrained weights. ``max_norm`` is read at every step.

    The settings are saved with a pickled net, and not with its parameters (``save_params``, ``Checkpoint``).

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skorch import NeuralNetRegressor
    >>> from normball.skorch import MaxNorm
    >>> net = NeuralNetRegressor(
    ...     torch.nn.Linear, module__in_features=3, module__out_features=1, callbacks=[MaxNorm(0.25)], verbose=0
    ... )
    >>> net = net.fit(np.ones((20, 3), np.float32), np.ones((20, 1), np.float32))
    >>> bool((dict(net.callbacks_)["MaxNorm"].constraint_.norms(net.module_)["weight"] <= 0.25).all())
    True
    """

    handles_: Any = ()

    def __init__(
        self, max_norm: Any, axes: Any = "incoming", match: Any = None, *, mode: str = "max", ord: float = 2
    ) -> None:
        self.max_norm, self.axes, self.match, self.mode, self.ord = max_norm, axes, match, mode, ord

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        self.on_train_end(net)  # of a run that broke off
        self.constraint_ = torch.MaxNorm(self.max_norm, self.axes, self.match, mode=self.mode, ord=self.ord)
        optimizers = [getattr(net, f"{name}_") for name in net._optimizers]
        # accelerate's wrapper takes no hooks
        optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        self.handles_ = self.constraint_.attach_each(optimizers, _model(net))

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        self.constraint_.max_norm = self.max_norm

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        for handle in self.handles_:
            handle.remove()
        self.handles_ = ()

    def __getstate__(self) -> dict[str, Any]:
        return self.get_params(deep=False)  # hooks belong to an optimizer of this process


class ClipGradNorm(Callback):
    """`normball.torch.clip_grad_norm_` before every optimizer step.

    Parameters
    ----------
    max_norm, norm_type, nonfinite, report : optional
        As for `normball.torch.clip_grad_norm_`, and attributes of the same names.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As from `normball.torch.clip_grad_norm_`.

    References
    ----------
    ``skorch.callbacks.GradientNormClipping`` is `torch.nn.utils.clip_grad_norm_`.

    Examples
    --------
    >>> from normball.skorch import ClipGradNorm
    >>> callbacks = [ClipGradNorm(1.0, nonfinite="skip")]
    """

    def __init__(
        self, max_norm: Any, norm_type: float = 2.0, *, nonfinite: str = "propagate", report: Any = None
    ) -> None:
        self.max_norm, self.norm_type, self.nonfinite, self.report = max_norm, norm_type, nonfinite, report

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        settings = {"nonfinite": self.nonfinite, "named": list(named_parameters), "report": self.report}
        torch.clip_grad_norm_(None, self.max_norm, self.norm_type, **settings)


def _model(net: Any) -> Any:
    """The net's module, or all of its modules in one."""
    modules = {name: getattr(net, f"{name}_") for name in net._modules}
    if len(modules) == 1:
        return next(iter(modules.values()))
    from torch.nn import ModuleDict

    return ModuleDict(modules)
