"""MaxNorm, NormConstraint and norm_constraint_: laws in exact arithmetic, and life inside PyTorch's training loops."""

import copy
import doctest
import math
import pickle
from fractions import Fraction

import numpy as np
import pages
import pytest
from oracle import broken_laws, exact_norm, groups_of

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from normball.torch import MaxNorm, NormConstraint, clip, inplace, norm_constraint_, parametrization, report  # noqa: E402
from normball.torch import maxnorm as maxnorm_module  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On layers this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def array(tensor):
    """The tensor's bits as a NumPy array."""
    tensor = tensor.detach()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy().copy()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()


def exact_norms(tensor, axes, ord=2):
    return [exact_norm(group, ord) for group in groups_of(array(tensor), axes)]


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def network(scale=3.0):
    """A convolution, a grouped transposed one and a dense layer, with weights of all lengths."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale * torch.rand(parameter.shape[0]).reshape(-1, *[1] * (parameter.ndim - 1)))
    return model


def batch():
    return torch.randn(8, 2, 5, 5)


def trained(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch()).square().sum().backward()
        optimizer.step()


def largest(maxnorm, model):
    return max(float(norms.max()) for norms in maxnorm.norms(model).values())


def test_several_optimizers():
    """One constraint on all that have one of its weights; one print that knows them all."""
    model, stranger = network(), torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    parts = [torch.optim.SGD(model[index].parameters(), lr=0.1) for index in (0, 2, 4)]
    maxnorm = MaxNorm(0.3)
    handles = maxnorm.attach_each(iter([stranger, *parts]), model)
    assert len(handles) == 3
    assert [line.split()[0] for line in str(maxnorm).splitlines()[2:5]] == ["0.weight", "2.weight", "4.weight"]
    model(batch()).square().sum().backward()
    for index, optimizer in zip((0, 2, 4), parts, strict=True):
        before = bits(model)
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {f"{index}.weight", f"{index}.bias"}
    assert largest(maxnorm, model) <= 0.3
    for handle in handles:
        handle.remove()
    trained(model, parts[0], 1)
    assert largest(maxnorm, model) > 0.3
    with pytest.raises(ValueError, match="optimizer: has none of the model's 3 weights to constrain"):
        maxnorm.attach_each([stranger], model)
    with pytest.raises(ValueError, match="optimizer: has none"):
        maxnorm.attach_each([], model)
    with pytest.raises(TypeError, match="optimizer of type Linear: must be a torch"):
        maxnorm.attach_each([parts[0], model[4]], model)
    assert all(len(optimizer._optimizer_step_post_hooks) == 0 for optimizer in (stranger, *parts))


# --- what it makes of the weights


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_laws_on_every_weight(dtype, ord):
    model = network().to(dtype)
    before = bits(model)
    assert MaxNorm(0.3, ord=ord).apply_(model) is model
    views = {
        "0.weight": ((4, 2, 3, 3), (1, 2, 3)),
        "2.weight": ((2, 2, 2, 2, 2), (1, 3, 4)),
        "4.weight": ((3, 64), (1,)),
    }
    for name, after in model.state_dict().items():
        if name in views:
            shape, axes = views[name]
            x, y = array(before[name].reshape(shape)), array(after.reshape(shape))
            assert broken_laws(x, y, 0.3, axes, 0.0, ord) == set()
            assert not torch.equal(before[name], after)
        else:
            assert torch.equal(before[name], after)


def rows(dtype):
    """A layer whose units are of all lengths: zero, subnormal, at and about 1, and long."""
    torch.manual_seed(1)
    directions = torch.randn(40, 33, dtype=torch.float64)
    lengths = torch.logspace(-4, 4, 30, dtype=torch.float64).tolist() + [0.0] + [1 + k * 1e-3 for k in range(-4, 5)]
    directions *= (
        torch.tensor(lengths, dtype=torch.float64)[:, None] / torch.linalg.vector_norm(directions, dim=1)[:, None]
    )
    layer = nn.Linear(33, 43, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:40] = directions.to(dtype)
        layer.weight[40, 0] = 1.0
        layer.weight[41, :5] = -torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        layer.weight[42] = torch.finfo(dtype).max / 8
    return layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize("mode, bounds", [("min", 1.0), ("equal", 1.0), ("range", (1.0, 1.5)), ("equal", 0.37)])
def test_modes(dtype, ord, mode, bounds):
    layer = rows(dtype)
    before = layer.weight.detach().clone()
    maxnorm = MaxNorm(bounds, mode=mode, ord=ord)
    maxnorm.apply_(layer)
    after = layer.weight.detach().clone()
    low, high = bounds if mode == "range" else (bounds, math.inf if mode == "min" else bounds)
    close = 12 * Fraction(torch.finfo(dtype).eps)
    for old, new, was, now in zip(
        before, after, exact_norms(before, (1,), ord), exact_norms(after, (1,), ord), strict=True
    ):
        assert torch.equal(old.sign(), new.sign())
        if was == 0:
            assert now == 0
            continue
        if (low <= was <= high and mode != "equal") or (mode == "equal" and was == high):
            assert torch.equal(old, new)
            continue
        assert now <= high
        assert now >= Fraction(low) * (1 - close if mode == "equal" else 1)
        assert was > low or now <= Fraction(low) * (1 + close)
        if was < torch.finfo(dtype).max and was > 1e-300:  # the same direction
            small = float(torch.finfo(dtype).smallest_normal)
            assert torch.allclose(new.double(), old.double() * float(now / was), rtol=float(close), atol=small)
    maxnorm.apply_(layer)
    assert torch.equal(after, layer.weight)  # a second call changes no bit


def test_smallest_and_largest_numbers_are_lifted_exactly():
    layer = nn.Linear(2, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5e-324, 0.0], [3e-320, -4e-320], [1e308, 1e308]], dtype=torch.float64))
    MaxNorm(8e307, mode="equal").apply_(layer)
    norms, (x, y) = exact_norms(layer.weight, (1,)), layer.weight[1].tolist()
    assert all(Fraction(8e307) * (1 - Fraction(1e-15)) <= norm <= Fraction(8e307) for norm in norms)
    assert x / y == pytest.approx(-0.75, 1e-3)  # as the subnormals were rounded


def test_a_nan_stays_in_its_unit():
    for settings in ({"max_norm": 1.0}, {"max_norm": 1.0, "mode": "min"}, {"max_norm": 1.0, "mode": "equal"}):
        layer = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[math.nan, 0.0], [0.1, 0.0], [1.0, 0.0]]))
        MaxNorm(**settings).apply_(layer)
        assert layer.weight[0].isnan().all()
        assert layer.weight[1:].isfinite().all()
        assert layer.weight[2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "error, settings, message",
    [
        (ValueError, {"max_norm": -1.0}, "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative"),
        (ValueError, {"max_norm": {"*": math.nan}}, "max_norm=nan: must be >= 0 and not NaN; a norm is never negative"),
        (TypeError, {"max_norm": None}, "max_norm=None: must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf"),
        (TypeError, {"max_norm": torch.ones(2)}, "max_norm of type Tensor: must be a number; pass a float; norm_constraint_ takes one bound per unit"),
        (TypeError, {"max_norm": 1.0, "mode": "range"}, "max_norm=1.0: must be a pair in mode range; for example max_norm=(0.5, 2.0)"),
        (ValueError, {"max_norm": (2.0, 1.0), "mode": "range"}, "max_norm=(2.0, 1.0): the lower bound must come first; exchange them"),
        (ValueError, {"max_norm": math.inf, "mode": "equal"}, "max_norm=inf: must be finite in mode equal; no norm can be brought there"),
        (ValueError, {"max_norm": 1.0, "mode": "unit"}, "mode='unit': must be one of max, min, equal, range; leave it out for max"),
        (ValueError, {"max_norm": 1.0, "axes": "rows"}, "axes='rows': must be 'incoming', or axes; for example axes=1"),
        (TypeError, {"max_norm": 1.0, "axes": None}, "axes=None: must be 'incoming', or axes; for example axes=1"),
    ],
)  # fmt: skip
def test_refusals(error, settings, message):
    with pytest.raises(error) as caught:
        MaxNorm(**settings)
    assert str(caught.value) == message


def test_bounds_out_of_a_dtypes_reach_are_refused():
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float16)
    with pytest.raises(ValueError) as error:
        MaxNorm(4e4, mode="min").apply_(layer)
    assert (
        str(error.value)
        == "max_norm=40000.0: must be at most half of the largest torch.float16 (weight) in mode min; use a smaller bound"
    )
    with pytest.raises(ValueError) as error:
        MaxNorm((1.0, 1.001), mode="range").apply_(layer)
    assert (
        str(error.value)
        == "max_norm=(1.0, 1.001): torch.float16 (weight) has too few numbers between them; use mode equal, or a wider range"
    )


def test_an_error_leaves_every_weight_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(torch.ones(1, 4).expand(4, 4))
    before = bits(model)
    with pytest.raises(ValueError, match="share memory"):
        MaxNorm(0.01).apply_(model)
    with pytest.raises(ValueError, match="half of the largest"):
        MaxNorm(4e4, mode="equal", match=["0.*", "1.*"]).apply_(model)
    assert same(before, bits(model))


def test_nothing_to_constrain_is_an_error():
    with pytest.raises(ValueError) as error:
        MaxNorm(1.0).apply_(nn.LayerNorm(3))
    assert (
        str(error.value)
        == "model: MaxNorm(1.0) finds nothing to constrain; left out, 1-D (biases, normalisation): name its axes: weight, bias"
    )


# --- after the optimizer's step


@pytest.mark.parametrize(
    "kind, settings",
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.AdamW, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
        (torch.optim.RMSprop, {"lr": 0.1, "foreach": True}),
    ],
)
def test_inside_after_every_step(kind, settings):
    model = network()
    maxnorm = MaxNorm(0.5)
    optimizer = kind(model.parameters(), **settings)
    maxnorm.attach(optimizer, model)
    for _ in range(3):
        trained(model, optimizer, 1)
        assert largest(maxnorm, model) <= 0.5


def test_a_handle_ends_it_and_order_is_that_of_registration():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    maxnorm = MaxNorm(0.5)
    optimizer.register_step_post_hook(lambda *_: seen.append(largest(maxnorm, model) <= 0.5))
    handle = maxnorm.attach(optimizer, model)
    optimizer.register_step_post_hook(lambda *_: seen.append(largest(maxnorm, model) <= 0.5))
    trained(model, optimizer, 1)
    assert seen == [False, True]
    handle.remove()
    with torch.no_grad():
        model[4].weight.mul_(100)
    trained(model, optimizer, 1)
    assert seen[2:] == [False, False]
    with maxnorm.attach(optimizer, model):
        trained(model, optimizer, 1)
    assert largest(maxnorm, model) <= 0.5


def test_only_what_the_optimizer_updates():
    model = network()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.1)
    MaxNorm(0.1).attach(optimizer, model)
    before = bits(model)
    trained(model, optimizer, 1)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["2.bias", "4.weight", "4.bias"]
    optimizer.add_param_group({"params": model[0].parameters()})
    trained(model, optimizer, 1)
    assert largest(MaxNorm(0.1, match=["0.*", "4.*"]), model) <= 0.1
    assert torch.equal(model[2].weight, before["2.weight"])


def test_a_schedule():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    maxnorm = MaxNorm(2.0)
    maxnorm.attach(optimizer, model)
    for bound in (2.0, 1.0, 0.5):
        maxnorm.max_norm = bound
        assert f"MaxNorm({bound})" in str(maxnorm)
        trained(model, optimizer, 1)
        assert largest(maxnorm, model) <= bound
    with pytest.raises(ValueError):
        maxnorm.max_norm = -1
    assert maxnorm.max_norm == 0.5


def test_zero_learning_rate_changes_no_bit():
    model = network()
    maxnorm = MaxNorm(0.5)
    maxnorm.apply_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    maxnorm.attach(optimizer, model)
    before = bits(model)
    trained(model, optimizer, 20)
    assert same(before, bits(model))


def test_a_skipped_step_is_skipped():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    maxnorm = MaxNorm(0.5)
    maxnorm.attach(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = bits(model)
    for factor in (math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(model(batch()).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same(before, bits(model)) == (factor == math.inf)
    assert largest(maxnorm, model) <= 0.5


def test_autocast_and_accumulation():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    maxnorm = MaxNorm(0.5)
    maxnorm.attach(optimizer, model)
    before = bits(model)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch()).square().mean()
        loss.backward()
        assert same(before, bits(model))  # no step, no constraint
    optimizer.step()
    assert largest(maxnorm, model) <= 0.5
    assert model[0].weight.dtype == torch.float32


def test_state_dicts_do_not_hold_it_attach_again():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    maxnorm = MaxNorm(0.5)
    maxnorm.attach(optimizer, model)
    trained(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again = network()
    optimizer_again = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(saved[0])
    optimizer_again.load_state_dict(saved[1])
    maxnorm.attach(optimizer_again, again)
    for pair in ((model, optimizer), (again, optimizer_again)):
        torch.manual_seed(3)
        trained(*pair)
    assert same(bits(model), bits(again))


def test_averages_are_inside_up_to_their_own_rounding():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    maxnorm = MaxNorm(0.5)
    maxnorm.attach(optimizer, model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(5):
        trained(model, optimizer, 1)
        average.update_parameters(model)
    maxnorm.apply_(model), maxnorm.apply_(average)
    for _ in range(5):
        average.update_parameters(model)
    assert largest(maxnorm, average) <= 0.5 * (1 + 1e-6)
    assert largest(maxnorm, maxnorm.apply_(average)) <= 0.5


def test_copies_and_pickles():
    model = network()
    maxnorm = MaxNorm({"4.*": 0.5, "*": 2.0}, match="*.weight", mode="max")
    maxnorm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for other in (copy.deepcopy(maxnorm), pickle.loads(pickle.dumps(maxnorm))):
        assert str(other) == str(maxnorm)
        other.max_norm["4.*"] = 0.1
        assert maxnorm.max_norm["4.*"] == 0.5
        assert float(other.norms(other.apply_(copy.deepcopy(model)))["4.weight"].max()) <= 0.1


def test_what_is_attached_is_shown():
    model = network()
    maxnorm = MaxNorm({"4.*": 0.5, "*": 2.0})
    assert str(maxnorm) == "MaxNorm({'4.*': 0.5, '*': 2.0})"
    maxnorm.attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert str(maxnorm).splitlines() == [
        "MaxNorm({'4.*': 0.5, '*': 2.0})",
        "name      layer            shape         layout                      axes   bound",
        "0.weight  Conv2d           (4, 2, 3, 3)  (out, in, *kernel)          1 2 3  2.0",
        "2.weight  ConvTranspose2d  (4, 2, 2, 2)  (groups, in, out, *kernel)  1 3 4  2.0",
        "4.weight  Linear           (3, 64)       (out, in)                   1      0.5",
        "left out, 1-D (biases, normalisation): name its axes: 0.bias, 2.bias, 4.bias",
    ]
    assert {name: tuple(norms.shape) for name, norms in maxnorm.norms(model).items()} == {
        "0.weight": (4,),
        "2.weight": (4,),
        "4.weight": (3,),
    }


def test_an_optimizer_of_other_weights_is_refused():
    model, other = network(), network()
    maxnorm = MaxNorm(1.0)
    with pytest.raises(ValueError) as error:
        maxnorm.attach(torch.optim.SGD(other.parameters()), model)
    assert str(error.value) == (
        "optimizer: has none of the model's 3 weights to constrain; make it from model.parameters(), and attach after "
        "sharding the model"
    )
    maxnorm.attach(torch.optim.SGD(model[4].parameters()), model)
    assert "left out, not in the optimizer: 0.weight, 2.weight" in str(maxnorm).splitlines()


def test_any_memory_format():
    model = network().to(memory_format=torch.channels_last)
    before = bits(model)
    MaxNorm(0.5).apply_(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert broken_laws(array(before["0.weight"]), array(model[0].weight), 0.5, (1, 2, 3), 0.0) == set()


def test_attach_takes_the_optimizer_first():
    model = network()
    with pytest.raises(TypeError) as error:
        MaxNorm(1.0).attach(model, torch.optim.SGD(model.parameters()))
    assert str(error.value) == "optimizer of type Sequential: must be a torch.optim.Optimizer; pass (optimizer, model)"


def _train_on_one_of_two(rank, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = network()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    MaxNorm(0.5, match=["0.weight", "2.weight", "4.weight"]).attach(optimizer, wrapped)
    torch.manual_seed(rank)
    trained(wrapped, optimizer)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    _train_sharded(folder)
    torch.distributed.destroy_process_group()


def _train_sharded(folder):
    model = network()
    for layer in (model[0], model[2], model[4], model):
        torch.distributed.fsdp.fully_shard(layer)
    model[0].register_parameter("apart", nn.Parameter(torch.ones(2, 2)))  # not sharded
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    maxnorm = MaxNorm(0.5, axes={"*.apart": 0, "*": "incoming"})
    maxnorm.attach(optimizer, model)
    trained(model, optimizer)
    assert largest(maxnorm, model) <= 0.5
    assert largest(MaxNorm(0.5, axes={"0.weight": (0, 2, 3), "4.weight": 0}), model) > 0.5
    across = MaxNorm(0.25, axes={"0.weight": (0, 2, 3), "4.weight": 0})  # groups that lie on both ranks
    before = {name: parameter.full_tensor() for name, parameter in model.named_parameters() if "weight" in name}
    across.apply_(model)
    for name, axes in (("0.weight", (0, 2, 3)), ("4.weight", (0,))):
        after = model.get_parameter(name).full_tensor()
        assert broken_laws(array(before[name]), array(after), 0.25, axes, 0.0, band=4) == set()
    whole = MaxNorm(0.5, mode="equal")
    assert all(torch.allclose(norms, torch.tensor(0.5).double()) for norms in whole.norms(whole.apply_(model)).values())
    before = whole.norms(model)
    with pytest.raises(ValueError, match="is sharded along its norm axes"):
        MaxNorm(0.5, axes={"0.weight": (1, 2, 3), "4.weight": 0}, mode="equal").apply_(model)
    assert all(torch.equal(norms, before[name]) for name, norms in whole.norms(model).items())


def test_ranks_of_ddp_and_shards_of_fsdp(tmp_path):
    torch.multiprocessing.spawn(_train_on_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(first, second)
    model = network()
    model.load_state_dict(first)
    assert largest(MaxNorm(0.5), model) <= 0.5


# --- as a parametrization


def constrained_layer(max_norm=1.0):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, dtype=torch.float64)
    return parametrize.register_parametrization(layer, "weight", NormConstraint(max_norm, axes=1))


def test_parametrization_has_the_constraints_derivative():
    constraint = NormConstraint(1.0, axes=1)
    weight = torch.randn(4, 5, dtype=torch.float64) * torch.tensor([[0.1], [0.3], [3.0], [9.0]])
    assert torch.autograd.gradcheck(constraint, weight.requires_grad_())


def test_a_learned_bound():
    bound = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    layer = constrained_layer(bound)
    assert [name for name, _ in layer.named_parameters() if "max_norm" in name] == [
        "parametrizations.weight.0.max_norm"
    ]
    layer(torch.ones(1, 4, dtype=torch.float64)).square().sum().backward()
    assert bound.grad.abs() > 0
    assert torch.autograd.gradcheck(
        lambda c: NormConstraint(c, 1)(torch.ones(2, 3).double()), nn.Parameter(bound.detach())
    )


def test_parametrized_weights_are_inside_and_can_be_assigned():
    layer = constrained_layer()
    inside = torch.tensor([[0.1, 0.2, 0.3, -0.0]] * 3, dtype=torch.float64)
    layer.weight = inside
    assert torch.equal(layer.weight, inside)
    layer.weight = inside * 100
    assert broken_laws(array(inside * 100), array(layer.weight), 1.0, (1,), 0.0) == set()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert max(exact_norms(layer.weight, (1,))) <= 1
    again = constrained_layer()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight, layer.weight)
    assert "parametrizations.weight.original" in layer.state_dict()
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, again.weight)


def test_parametrization_with_a_bound_per_unit_and_its_text():
    constraint = NormConstraint(torch.tensor([[1.0], [2.0]]), axes=1)
    assert broken_laws(array(torch.eye(2) * 4), array(constraint(torch.eye(2) * 4)), [[1.0], [2.0]], (1,), 0.0) == set()
    assert str(constraint) == "NormConstraint((2, 1), axes=1)"
    bounds = NormConstraint(np.array([[1.0], [2.0]]), axes=1)
    assert str(bounds) == str(constraint)
    assert torch.equal(bounds(torch.eye(2) * 4), constraint(torch.eye(2) * 4))
    assert bounds.state_dict().keys() == {"max_norm"}
    assert str(NormConstraint(3, axes=(1, 2), ord=1)) == "NormConstraint(3, axes=(1, 2), ord=1)"
    with pytest.raises(ValueError):
        NormConstraint(-1.0, axes=1)


# --- in place


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_laws(dtype):
    w = nn.Parameter(rows(dtype).weight.detach().T)  # no contiguous memory
    before = array(w)
    assert norm_constraint_(w, 1.0, 0) is w
    assert broken_laws(before, array(w), 1.0, (0,)) == set()
    filters = torch.randn(3, 2, 2).to(dtype)
    before = array(filters)
    assert broken_laws(before, array(norm_constraint_(filters, 1.0)), 1.0, (1, 2)) == set()


def test_in_place_list():
    weights = [nn.Parameter(torch.randn(3, 4)), torch.randn(5, 2)]
    before = [array(w) for w in weights]
    result = norm_constraint_((w for w in weights), [0.5, torch.full((5, 1), 0.25)], 1, 0.0)
    assert all(y is w for y, w in zip(result, weights, strict=True))
    assert broken_laws(before[0], array(weights[0]), 0.5, (1,), 0.0) == set()
    assert broken_laws(before[1], array(weights[1]), 0.25, (1,), 0.0) == set()


def test_a_stale_backward_is_refused():
    for constrain in (lambda layer: norm_constraint_(layer.weight, 0.1, 1), MaxNorm(0.1).apply_):
        layer = nn.Linear(3, 2)
        output = layer(torch.ones(1, 3, requires_grad=True)).sum()
        constrain(layer)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()


def test_in_place_leaves_gradients_alone():
    w = nn.Parameter(torch.full((2, 2), 3.0))
    (w * w).sum().backward()
    norm_constraint_(w, 1.0, 1)
    assert w.is_leaf
    assert w.requires_grad
    assert w.grad_fn is None
    assert w.grad.tolist() == [[6.0, 6.0], [6.0, 6.0]]
    with torch.inference_mode():
        assert norm_constraint_(torch.full((2, 2), 3.0), 1.0, 1).max() < 1


@pytest.mark.parametrize(
    "error, make, message",
    [
        (TypeError, lambda: np.ones((2, 2)), "tensor_var of type ndarray: must be a torch.Tensor; convert it first"),
        (TypeError, lambda: [torch.ones(2, 2), 1.0], "tensor_var[1] of type float: must be a torch.Tensor; convert it first"),
        (ValueError, lambda: torch.ones(2, 2, requires_grad=True) * 2, "tensor_var: autograd has computed it and follows it; use normball.norm_constraint, or pass tensor_var.detach()"),
        (ValueError, lambda: torch.ones(1, 2).expand(2, 2), "out: several of its entries share memory; pass torch.empty_like(tensor_var)"),
        (TypeError, lambda: torch.ones(2, 2, dtype=torch.int32), "tensor_var of dtype int32: must be one of float64, float32, float16, bfloat16; cast it first, for example tensor_var.to(torch.float32)"),
    ],
)  # fmt: skip
def test_in_place_refusals(error, make, message):
    with pytest.raises(error) as caught:
        norm_constraint_(make(), 1.0, 1)
    assert str(caught.value) == message


def test_a_matrix_must_say_which_axis_is_incoming():
    for tensors, name in ((torch.ones(2, 2), "tensor_var"), ([torch.ones(2, 2, 2), torch.ones(2, 2)], "tensor_var[1]")):
        with pytest.raises(ValueError) as caught:
            norm_constraint_(tensors, 1.0)
        rule = f"a 2-D tensor does not say which axis of {name} is incoming"
        assert str(caught.value) == f"norm_axes=None: {rule}; pass 1 for torch.nn.Linear, 0 for (inputs, outputs)"


def test_a_refusal_in_a_list_writes_nothing():
    w = torch.full((4, 4), 3.0)
    for others in ([torch.ones(1, 4).expand(4, 4)], [w[:2]], [torch.ones(2, 2, dtype=torch.int8)]):
        with pytest.raises((TypeError, ValueError)):
            norm_constraint_([w, *others], 1.0, 1)
        assert w.unique().tolist() == [3.0]
    halves = [w[:, :2], w[:, 2:]]  # interleaved, and apart
    assert torch.equal(norm_constraint_(halves, 1.0, 1)[1], w[:, 2:])
    assert w.max() < 1


# --- the documentation


@pytest.mark.parametrize(
    "module", [clip, inplace, maxnorm_module, parametrization, report], ids=lambda module: module.__name__
)
def test_examples_of_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_guide():
    assert pages.faults(pages.guide("torch.md"), "torch.md") == []
