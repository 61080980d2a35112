"""Lightning: max-norm after every optimizer step, as a callback, and the Trainer's gradient clipping, exact."""

from typing import Any

try:
    from normball import torch

    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:  # the same classes under their older name, which is a package of its own
        from pytorch_lightning import Callback
except ModuleNotFoundError as error:
    raise ImportError("normball.lightning needs PyTorch and Lightning: pip install 'normball[lightning]'") from error

__all__ = ["ClipGradNorm", "MaxNorm"]


class MaxNorm(Callback, torch.MaxNorm):
    """`normball.torch.MaxNorm` as a callback: after every optimizer step each unit's incoming weights are in a ball.

    Parameters
    ----------
    max_norm, axes, match, mode, ord : optional
        As for `normball.torch.MaxNorm`. Names are those of the LightningModule's parameters.

    Raises
    ------
    TypeError, ValueError
        As for `normball.torch.MaxNorm`: settings at once, what is about the model when training starts.

    Notes
    -----
    When training starts it attaches to the Trainer's optimizers, those that update a weight it constrains, with
    automatic and manual optimization alike; when training ends it detaches. So whatever Lightning does after an
    optimizer's step, other callbacks, logging, validation and checkpoints included, sees constrained weights.

    Nothing is saved: the settings are in your program. Give the callback to the Trainer that resumes, too.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> import torch
    >>> from lightning.pytorch import Trainer
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> from normball.lightning import MaxNorm
    >>> maxnorm, model = MaxNorm(0.25), BoringModel()
    >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    >>> Trainer(max_steps=3, accelerator="cpu", callbacks=[maxnorm], enable_model_summary=False, **quiet).fit(model)
    >>> print(maxnorm)
    MaxNorm(0.25)
    name          layer   shape    layout     axes  bound
    layer.weight  Linear  (2, 32)  (out, in)  1     0.25
    left out, 1-D (biases, normalisation): name its axes: layer.bias
    >>> bool((maxnorm.norms(model)["layer.weight"] <= 0.25).all())
    True
    """

    _handles: Any = ()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_end(trainer, pl_module)  # a run that broke off, or one inside another, may have left some
        self._handles = self.attach_each(trainer.optimizers, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()


class ClipGradNorm:
    """`normball.torch.clip_grad_norm_` for ``Trainer(gradient_clip_val=...)``, by a class to inherit from.

    What the Trainer's `gradient_clip_val` says is done by `normball.torch.clip_grad_norm_`, and the total norm from
    before is logged as "grad_norm".

    Raises
    ------
    TypeError, ValueError
        As from `normball.torch.clip_grad_norm_`; those of Lightning, for settings it refuses.

    Notes
    -----
    With ``gradient_clip_algorithm="value"``, and where `gradient_clip_val` is None or 0, which is "no clipping" in
    Lightning, Lightning does what it always does. It calls this with automatic optimization alone; with manual
    optimization call `normball.torch.clip_grad_norm_` before ``optimizer.step()``.

    References
    ----------
    ``LightningModule.configure_gradient_clipping``, which this overrides.

    Examples
    --------
    >>> from lightning.pytorch import Trainer
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> from normball.lightning import ClipGradNorm
    >>> class Model(ClipGradNorm, BoringModel):  # before the LightningModule
    ...     pass
    >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    >>> trainer = Trainer(max_steps=1, accelerator="cpu", gradient_clip_val=0.01, enable_model_summary=False, **quiet)
    >>> trainer.fit(Model())
    >>> bool(trainer.callback_metrics["grad_norm"] > 0.01)
    True
    """

    def configure_gradient_clipping(
        self: Any, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        precision = self.trainer.precision_plugin
        # A fused optimizer unscales in its step, after clipping; Lightning refuses that.
        scaled = getattr(precision, "scaler", None) and getattr(optimizer, "_step_supports_amp_scaling", False)
        if not gradient_clip_val or gradient_clip_algorithm not in (None, "norm") or scaled:
            theirs = super().configure_gradient_clipping  # type: ignore[misc]
            theirs(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.log("grad_norm", torch.clip_grad_norm_(precision.main_params(optimizer), gradient_clip_val))
