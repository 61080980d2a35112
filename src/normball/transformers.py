"""Hugging Face's transformers: max-norm and gradient clipping as callbacks of its Trainer."""

from typing import Any

try:
    from transformers import TrainerCallback

    from normball import torch
except ModuleNotFoundError as error:
    message = "normball.transformers needs PyTorch and transformers: pip install 'normball[transformers]'"
    raise ImportError(message) from error

__all__ = ["ClipGradNormCallback", "MaxNormCallback"]


class MaxNormCallback(TrainerCallback, torch.MaxNorm):
    """`normball.torch.MaxNorm` as a callback: after every optimizer step each unit's incoming weights are in a ball.

    Parameters
    ----------
    max_norm, axes, match, mode, ord : optional
        As for `normball.torch.MaxNorm`. ``"incoming"`` knows transformers' `Conv1D` as well, the layer of GPT-2, which
        stores (in, out).

    Raises
    ------
    TypeError, ValueError
        As for `normball.torch.MaxNorm`: settings at once, what is about the model when training starts.

    Notes
    -----
    When training starts it attaches to the Trainer's optimizer, when training ends it detaches. So what follows
    an optimizer's step, ``on_optimizer_step`` of other callbacks, logs, evaluation and checkpoints, sees constrained
    weights. With gradient accumulation that is once for each step, not for each micro-batch.

    Nothing is saved: the settings are in your program. Give the callback to the Trainer that resumes, too.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from normball.transformers import MaxNormCallback
    >>> config = GPT2Config(vocab_size=16, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    >>> MaxNormCallback(3.0, match="*.mlp.*.weight").describe(GPT2LMHeadModel(config)).rows[0][1:]
    ('Conv1D', (4, 16), '(in, out)', (0,), 3.0)

    In a program: ``Trainer(model, args, train_dataset=data, callbacks=[MaxNormCallback(3.0)]).train()``.
    """

    _handles: Any = ()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)  # of a run that broke off
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper takes no hooks
        self._handles = self.attach_each([optimizer], kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()


class ClipGradNormCallback(TrainerCallback):
    """`normball.torch.clip_grad_norm_` before every optimizer step, in place of the Trainer's `max_grad_norm`.

    Parameters
    ----------
    max_norm, norm_type, nonfinite, report : optional
        As for `normball.torch.clip_grad_norm_`. Assign to ``.max_norm`` for a schedule.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As from `normball.torch.clip_grad_norm_`; for ``TrainingArguments(max_grad_norm=...)`` other than 0, when
        training starts, as the Trainer would clip first.

    Notes
    -----
    Gradients of several micro-batches are clipped as one, after accumulation, and after they were unscaled. The
    "grad_norm" in the Trainer's log is the one from before.

    References
    ----------
    ``TrainingArguments(max_grad_norm=1.0)``, transformers' own, is `torch.nn.utils.clip_grad_norm_`.

    Examples
    --------
    >>> from normball.transformers import ClipGradNormCallback
    >>> callbacks = [ClipGradNormCallback(1.0, nonfinite="skip")]

    In a program: ``Trainer(model, TrainingArguments(max_grad_norm=0, ...), callbacks=callbacks, ...)``.
    """

    def __init__(self, max_norm: Any, norm_type: float = 2.0, *, nonfinite: str = "propagate", report: Any = None):
        torch.clip_grad_norm_([], max_norm, norm_type, nonfinite=nonfinite)  # refuses what it would refuse later
        self.max_norm, self.norm_type, self.nonfinite, self.report = max_norm, norm_type, nonfinite, report

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.max_grad_norm:
            rule = "the Trainer would clip by it first; pass TrainingArguments(max_grad_norm=0)"
            raise ValueError(f"max_grad_norm={args.max_grad_norm!r}: must be 0 with a ClipGradNormCallback: {rule}")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        settings = {"nonfinite": self.nonfinite, "named": named, "report": self.report}
        torch.clip_grad_norm_(None, self.max_norm, self.norm_type, **settings)
