"""Max-norm after every optimizer step, for all layers of a model that have incoming weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from normball import arguments
from normball.backends import torch_mesh
from normball.dispatch import backend_for
from normball.torch.modes import group_norms, lift, limits, read_bounds, read_mode
from normball.torch.table import Table, table
from normball.torch.weights import Weight, choose, lookup


class _Job(NamedTuple):
    """One weight's part of a call of the kernel."""

    source: Any
    bound: Any
    axes: tuple[int, ...]
    target: Any


class MaxNorm:
    """Max-norm constraint on a model's weights: after every optimizer step each unit's incoming weights are in a ball.

    With v one unit's incoming weights, n their p-norm in exact arithmetic and c the `max_norm`, in place:

        v              where n <= c  (the same bits)
        v * c / n      where n >  c

    Parameters
    ----------
    max_norm : float, or mapping from glob to float
        The largest norm allowed; a pair (low, high) in mode range. In a mapping the first glob that fits a parameter's
        name counts, and a parameter that none fits is left out. Assign to ``.max_norm`` for a schedule: the next step
        takes it.
    axes : "incoming", int, sequence of int, mapping or callable, optional
        The axes to take the norm over. ``"incoming"`` knows how each layer of `torch.nn` stores its weights, so that
        one group is what one unit receives. Axes given for all are about the stored shape. A mapping is from globs, the
        first that fits counts, a callable takes (name, parameter); their values are one of these, or None to leave
        a parameter out.
    match : str, list of str or callable, optional
        Which parameters: globs over the names of ``model.named_parameters()`` (with or without what wrappers like
        DistributedDataParallel and parametrizations add to them), or ``(name, parameter) -> bool``. By default every
        parameter that has incoming axes, whatever its name: ``weight``, ``in_proj_weight``, ``weight_ih_l0``. With
        axes given, every parameter of 2 or more dimensions.
    mode : {"max", "min", "equal", "range"}, optional
        What is asked of the norms: at most `max_norm`, at least, exactly, or between the two of a pair.
    ord : 1, 2 or inf, optional
        The order p of the norm.

    Raises
    ------
    TypeError
        For a bound that is no number; a model or optimizer that is none.
    ValueError
        For a negative or NaN bound; a glob that matches nothing, or nothing that has axes; a tied parameter whose
        layers disagree on its axes; lazy layers that have seen no input yet; flat parameters (FSDP1); if nothing is
        left to constrain. Nothing is written then.

    Notes
    -----
    The guarantees of `normball.norm_constraint` hold, with epsilon 0, in every dtype: norms at most c in exact
    arithmetic, compliant units keep their bits, a second call changes nothing.

    Shorter units are lifted by a power of two, which rounds nothing, and then constrained. With mode equal they end at
    most c, with entries within 4 ulp, as in mode max; a unit that is that close already keeps its bits, so a second
    call changes nothing. With min and range, they end a few ulp above the lower bound. A unit is compliant if
    its norm, rounded to float64, is not below the lower bound. A unit of zeros has no direction and stays zero.

    Biases and parameters of normalisation layers have no incoming weights and are left out, unless `match` or
    a mapping names them and gives their axes. So are parameters of layers that are not in `torch.nn`. ``describe`` and,
    after ``attach``, ``print`` say what was chosen, what was not, and why.

    A parametrized weight (`torch.nn.utils.parametrize`) is the stored ``original`` if it is parametrized by `Identity`
    or `NormConstraint` alone. Otherwise what is stored is not the weight, and it is left out: register a
    `NormConstraint` as its last parametrization instead.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014),
    section 5.1.

    Examples
    --------
    >>> import torch
    >>> from normball.torch import MaxNorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 10))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> maxnorm = MaxNorm(1.0)
    >>> handle = maxnorm.attach(optimizer, model)
    >>> print(maxnorm)
    MaxNorm(1.0)
    name      layer   shape         layout              axes   bound
    0.weight  Conv2d  (8, 1, 3, 3)  (out, in, *kernel)  1 2 3  1.0
    2.weight  Linear  (10, 8)       (out, in)           1      1.0
    left out, 1-D (biases, normalisation): name its axes: 0.bias, 2.bias
    >>> model(torch.ones(4, 1, 3, 3)).square().sum().backward()
    >>> optimizer.step()
    >>> max(float(norms.max()) for norms in maxnorm.norms(model).values()) <= 1.0
    True
    >>> handle.remove()
    """

    def __init__(
        self, max_norm: Any, axes: Any = "incoming", match: Any = None, *, mode: str = "max", ord: float = 2
    ) -> None:
        self._mode, self._ord = read_mode(mode), arguments.read_ord(ord)
        self.max_norm = max_norm
        words = axes.values() if isinstance(axes, Mapping) else [axes]
        for word in words:
            if isinstance(word, str) and word != "incoming":
                raise ValueError(f"axes={word!r}: must be 'incoming', or axes; for example axes=1")
        if axes is None:
            raise TypeError("axes=None: must be 'incoming', or axes; for example axes=1")
        self._axes = tuple(axes) if isinstance(axes, Iterator) else axes
        self._match = list(match) if isinstance(match, Iterable) and not isinstance(match, str) else match
        self._attached: list[Weight] = []  # without their memory, for print

    @property
    def max_norm(self) -> Any:
        """The bound, or the bounds by glob."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value: Any) -> None:
        for bound in value.values() if isinstance(value, Mapping) else [value]:
            read_bounds(bound, self._mode)
        self._max_norm = dict(value) if isinstance(value, Mapping) else value

    def attach(self, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Any:
        """Constrain after every step of an optimizer, by its `register_step_post_hook`.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Of the model's parameters it constrains those that it updates: the ones in its parameter groups (groups
            added later, too) that require a gradient.
        model : torch.nn.Module
            Its parameters are looked up now. The first step brings them inside; `apply_` does so at once.

        Returns
        -------
        torch.utils.hooks.RemovableHandle
            Its ``remove()`` ends it; also a context manager.

        Raises
        ------
        TypeError, ValueError
            As for the class; also if the optimizer has none of the weights, now or at a step.

        Notes
        -----
        A step that `torch.amp.GradScaler` skips skips this, too. Neither the model's nor the optimizer's state_dict
        holds it: attach again after loading into new objects. With several micro-batches per step it runs once.
        """
        [handle] = self.attach_each([optimizer], model)
        return handle

    def attach_each(self, optimizers: Iterable[torch.optim.Optimizer], model: torch.nn.Module) -> list[Any]:
        """`attach` to those of several optimizers, a GAN's say, that update a weight to constrain.

        Parameters
        ----------
        optimizers : iterable of torch.optim.Optimizer
            Those that have none of the weights are left alone.
        model : torch.nn.Module
            As for `attach`, with the parameters of all of them.

        Returns
        -------
        list of torch.utils.hooks.RemovableHandle
            One for each optimizer that is attached to; ``remove()`` every one to end it.

        Raises
        ------
        TypeError, ValueError
            As for `attach`; if no optimizer has one of the weights.
        """
        listed = list(optimizers)
        for optimizer in listed:
            if not isinstance(optimizer, torch.optim.Optimizer):
                kind = type(optimizer).__name__
                raise TypeError(f"optimizer of type {kind}: must be a torch.optim.Optimizer; pass (optimizer, model)")
        weights = self._choose(model)
        having = [optimizer for optimizer in listed if _those_of(optimizer, weights)]
        if not having:
            raise _has_none(weights)
        updated = {id(weight.parameter) for optimizer in having for weight in _those_of(optimizer, weights)}
        every = choose(model, self._match, self._axes)
        self._attached = [_for_print(weight, id(weight.parameter) in updated) for weight in every]

        def after_step(stepped: Any, args: Any, kwargs: Any) -> None:
            self._constrain_([weight for weight in _updated(stepped, weights) if weight.parameter.requires_grad])

        return [optimizer.register_step_post_hook(after_step) for optimizer in having]

    def apply_(self, model: torch.nn.Module) -> torch.nn.Module:
        """Constrain a model's weights in place, once: frozen ones, too.

        Parameters
        ----------
        model : torch.nn.Module
            The model, or an average of it (`torch.optim.swa_utils.AveragedModel`).

        Returns
        -------
        torch.nn.Module
            The model itself.

        Raises
        ------
        TypeError, ValueError
            As for the class.
        """
        self._constrain_(self._choose(model))
        return model

    @torch.no_grad()
    def norms(self, model: torch.nn.Module) -> dict[str, Any]:
        """The norms that are constrained, for a log or a plot.

        Parameters
        ----------
        model : torch.nn.Module
            Any model that this could constrain.

        Returns
        -------
        dict of str to Tensor
            By parameter name, one float64 norm per unit, at most one ulp off. Of sharded weights the norms of all
            units, so all ranks must call it.
        """
        result = {}
        for weight in self._choose(model):
            view, axes = _view(weight)
            norms = group_norms(view, axes, self._ord)
            norms = (norms.full_tensor() if torch_mesh.is_dtensor(norms) else norms).squeeze(axes)
            result[weight.name] = norms.flatten(0, 1) if view.ndim > weight.parameter.ndim else norms
        return result

    def describe(self, model: torch.nn.Module) -> Table:
        """What would be constrained in a model, along which axes, and what not, and why: a table to print.

        Parameters
        ----------
        model : torch.nn.Module
            Any model; nothing is written.

        Returns
        -------
        Table
            ``.rows`` has a row for each weight, ``.left_out`` maps a reason to names.
        """
        return table(choose(model, self._match, self._axes), self._max_norm)

    def __repr__(self) -> str:
        settings = [repr(self._max_norm)]
        settings += [f"axes={self._axes!r}"] if self._axes != "incoming" else []
        settings += [f"match={self._match!r}"] if self._match is not None else []
        settings += [f"mode={self._mode!r}"] if self._mode != "max" else []
        settings += [f"ord={self._ord!r}"] if self._ord != 2 else []
        return f"{type(self).__name__}({', '.join(settings)})"

    def __str__(self) -> str:
        return f"{self!r}\n{table(self._attached, self._max_norm)}" if self._attached else repr(self)

    def _choose(self, model: torch.nn.Module) -> list[Weight]:
        """The weights to constrain; refuses to do nothing."""
        every = choose(model, self._match, self._axes)
        weights = [weight for weight in every if weight.layout and lookup(self._max_norm, weight) is not None]
        if not weights:
            raise ValueError(f"model: {self!r} finds nothing to constrain; {table(every, self._max_norm)}")
        return weights

    @torch.no_grad()
    def _constrain_(self, weights: list[Weight]) -> None:
        """All weights in one go, after every check: an error leaves all of them as they were."""
        jobs = [self._job(weight) for weight in weights]
        split = [job for job in jobs if torch_mesh.is_dtensor(job.target)]
        here = [job for job in jobs if not torch_mesh.is_dtensor(job.target)]
        for some in filter(None, (split, here)):
            sources, bounds, axes, targets = zip(*some, strict=True)
            backend = backend_for(*set(map(type, targets)))
            backend.constrain_each(sources, bounds, axes, 0.0, self._ord, targets)
        # Of a sharded one the part was written, whose wrapper autograd watches.
        sharded = [weight.parameter for weight in weights if torch_mesh.is_dtensor(weight.parameter)]
        torch.autograd.graph.increment_version(sharded)

    def _job(self, weight: Weight) -> _Job:
        """What is to be written where for a weight; refuses what cannot be."""
        torch_mesh.refuse_unsharded_placeholders(weight.parameter, weight.name)
        view, axes = _view(weight)
        count = math.prod(view.shape[axis] for axis in axes)
        asked = limits(lookup(self._max_norm, weight), self._mode, view.dtype, count, self._ord, weight.name)
        if not torch_mesh.mesh_dims(view, axes, weight.name):  # this rank has whole groups
            target = torch_mesh.local(view)
            return _Job(*lift(target, axes, self._ord, asked), axes, target)
        if asked.floor > 0:
            rule = f"{weight.name} is sharded along its norm axes {axes}, which only mode max knows"
            raise ValueError(f"mode={self._mode!r}: {rule}; shard it along another axis")
        return _Job(view, asked.ceiling, axes, view)


def _view(weight: Weight) -> tuple[Any, tuple[int, ...]]:
    """The memory of a weight in the shape that its axes are about, and these."""
    assert weight.layout
    stored = weight.parameter.detach()
    view = weight.layout.view(stored)
    # A view of a sharded tensor may be a copy.
    if view is not stored and torch_mesh.local(view).data_ptr() != torch_mesh.local(stored).data_ptr():
        remedy = "shard it along another axis, or leave it out by match"
        raise ValueError(f"{weight.name}: a group of its channels lies on several ranks; {remedy}")
    return view, weight.layout.axes


def _updated(optimizer: torch.optim.Optimizer, weights: list[Weight]) -> list[Weight]:
    """Those that an optimizer has; that it has none is a mistake."""
    updated = _those_of(optimizer, weights)
    if not updated:
        raise _has_none(weights)
    return updated


def _those_of(optimizer: torch.optim.Optimizer, weights: list[Weight]) -> list[Weight]:
    """The weights in an optimizer's parameter groups."""
    its = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [weight for weight in weights if id(weight.parameter) in its]


def _has_none(weights: list[Weight]) -> ValueError:
    rule = f"has none of the model's {len(weights)} weights to constrain"
    return ValueError(f"optimizer: {rule}; make it from model.parameters(), and attach after sharding the model")


def _for_print(weight: Weight, updated: bool) -> Weight:
    """A weight without its memory, left out if the optimizer does not update it."""
    shown = weight._replace(parameter=torch.empty(weight.shape, device="meta"))
    return shown if updated or not weight.layout else shown._replace(layout=None, reason="not in the optimizer")
