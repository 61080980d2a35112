"""Which parameters of a model are constrained, along which axes, and why the others are not."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from normball import arguments
from normball.torch.layers import Layout, incoming, stored_ndim
from normball.torch.parametrization import NormConstraint

# Wrappers put these into names; a glob may leave them out.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "parametrizations", "original"}
_FLAT = "1-D (biases, normalisation): name its axes"


class Weight(NamedTuple):
    """A parameter, where it belongs, and what is to be done with it."""

    name: str  # as in model.named_parameters()
    layer: str
    parameter: Any
    layout: Layout | None  # None: it is left alone
    reason: str = ""  # why it is left alone; empty where it just does not match
    others: tuple[str, ...] = ()  # more names of a tied parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return tuple(self.parameter.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """All that a glob may call it."""
        own = (self.name, *self.others)
        return tuple(dict.fromkeys((*own, *map(_unwrapped, own))))


def choose(model: nn.Module, match: Any, axes: Any) -> list[Weight]:
    """Every parameter of the model once, each with its layout or the reason why it has none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model of type {type(model).__name__}: must be a torch.nn.Module; pass (optimizer, model)")
    uses: dict[int, list[Weight]] = {}
    for use, module, own_name in _stored(model):
        uses.setdefault(id(use.parameter), []).append(_resolved(use, module, own_name, match, axes))
    chosen = [_merged(same) for same in uses.values()]
    _check_globs(chosen, match, axes)
    return chosen


def fits(glob: str, names: Iterable[str]) -> bool:
    """Whether a glob is about a parameter of these names."""
    return any(fnmatchcase(name, glob) for name in names)


def lookup(settings: Any, weight: Weight) -> Any:
    """A setting that is one for all, or a mapping from globs, of which the first that fits counts; None if none."""
    if not isinstance(settings, Mapping):
        return settings
    return next((value for glob, value in settings.items() if fits(glob, weight.names)), None)


def globs_of(match: Any) -> list[str]:
    """The globs in a `match` or a mapping of settings."""
    if isinstance(match, str):
        return [match]
    return list(match) if isinstance(match, Iterable) else []


def _unwrapped(name: str) -> str:
    """The name without what DistributedDataParallel, torch.compile and parametrizations add."""
    parts = [part for part in name.removeprefix("module.").split(".") if part not in _WRAPPERS]
    return ".".join(parts)


def _stored(model: nn.Module) -> Iterator[tuple[Weight, nn.Module, str]]:
    """Every use of every parameter, the module whose weight it is, and what it is called there."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        if type(module).__name__ == "FullyShardedDataParallel":
            remedy = "use FSDP2 (fully_shard), or apply_ inside summon_full_params"
            raise ValueError(f"model: FSDP1 keeps flat pieces of its parameters, which have no axes; {remedy}")
        owner, own_path = module, path.split(".")
        if isinstance(module, parametrize.ParametrizationList):  # layer.parametrizations.weight holds .original
            owner = modules[".".join(own_path[:-2])]
        for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            own_name = name.rpartition(".")[2] if owner is module else own_path[-1]
            yield Weight(name, _class_of(owner).__name__, parameter, None), owner, own_name


def _class_of(module: nn.Module) -> type:
    """A module's class, as it was before it was parametrized."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _resolved(use: Weight, owner: nn.Module, own_name: str, match: Any, axes: Any) -> Weight:
    """One use of a parameter with its layout, or the reason why it has none."""
    if not _matches(match, use):
        return use
    ndim = use.parameter.ndim
    if torch.nn.parameter.is_lazy(use.parameter):
        raise ValueError(
            f"{use.name}: its {use.layer} has not seen an input yet; run one batch through the model first"
        )
    if str(use.parameter.dtype).removeprefix("torch.") not in arguments.REAL_FLOATS:
        return use._replace(reason=f"of dtype {use.parameter.dtype}, which has no norm ball")
    own = axes(use.name, use.parameter) if callable(axes) else lookup(axes, use)
    if own is None:
        return use._replace(reason="axes has none for it")
    known = incoming(owner, own_name)
    if isinstance(own, str):
        return _incoming(use, owner, own_name, known)
    if ndim < 2 and match is None and own is axes:  # axes for all are hardly meant for biases
        return use._replace(reason=_FLAT)
    try:
        read = arguments.read_axes(ndim, own)
    except (TypeError, ValueError) as error:
        raise type(error)(f"axes of {use.name}: {error}") from None
    return use._replace(layout=Layout(known.text if known and known.groups == 1 else "", read))


def _incoming(use: Weight, owner: nn.Module, own_name: str, known: Layout | None) -> Weight:
    """A use with the layout of its layer."""
    if known is None:
        article = "an" if use.layer[0] in "AEIOU" else "a"
        unknown = f"{article} {use.layer} is not known here: name its axes"
        return use._replace(reason=_FLAT if use.parameter.ndim < 2 else unknown)
    transforms = list(owner.parametrizations[own_name]) if parametrize.is_parametrized(owner, own_name) else []
    strange = [transform for transform in transforms if not isinstance(transform, (nn.Identity, NormConstraint))]
    if strange:  # what is stored is not the weight
        last = isinstance(transforms[-1], NormConstraint)
        remedy = "constrained by its NormConstraint" if last else "constrain it by a NormConstraint after that"
        return use._replace(reason=f"parametrized by {type(strange[0]).__name__.strip('_')}: {remedy}")
    if use.parameter.ndim != stored_ndim(owner, known):
        shape = f"of shape {tuple(use.parameter.shape)}, where a {use.layer} has {known.text}"
        raise ValueError(f"{use.name}: {shape}; a flat piece has no axes: gather it first, or use FSDP2")
    return use._replace(layout=known)


def _merged(uses: list[Weight]) -> Weight:
    """All uses of one parameter as one; they must agree on its axes."""
    known = [use for use in uses if use.layout]
    first = known[0] if known else next((use for use in uses if use.reason), uses[0])
    for use in known[1:]:
        if use.layout[1:] != first.layout[1:]:  # type: ignore[index]
            rule = f"are one parameter, but incoming weights lie along axes {_place(first)} and along {_place(use)}"
            raise ValueError(f"{first.name} and {use.name} {rule}; match one of them, or name the axes")
    return first._replace(others=tuple(use.name for use in uses if use is not first))


def _place(use: Weight) -> str:
    assert use.layout
    return f"{' '.join(map(str, use.layout.axes))} of {use.layout.text} in {use.layer}"


def _matches(match: Any, use: Weight) -> bool:
    """Whether the caller wants this parameter."""
    if match is None:
        return True
    if callable(match):
        return bool(match(use.name, use.parameter))
    return any(fits(glob, use.names) for glob in globs_of(match))


def _check_globs(weights: list[Weight], match: Any, axes: Any) -> None:
    """Refuse a glob that does nothing: a misspelled name would be a weight without a bound."""
    for glob in globs_of(axes) if isinstance(axes, Mapping) else ():
        if not any(fits(glob, weight.names) for weight in weights):
            raise _no_match("axes", glob, weights)
    for glob in globs_of(match):
        about = [weight for weight in weights if fits(glob, weight.names)]
        if not about:
            raise _no_match("match", glob, weights)
        if not any(weight.layout for weight in about):
            why = f"{about[0].name} is left out, {about[0].reason}"
            raise ValueError(f"match={glob!r}: {why}; name its axes, for example axes={{{about[0].name!r}: 0}}")


def _no_match(argument: str, glob: str, weights: list[Weight]) -> ValueError:
    names = ", ".join(weight.name for weight in weights[:3]) + (", ..." if len(weights) > 3 else "")
    return ValueError(f"{argument}={glob!r}: matches no parameter; the model has {names}")
