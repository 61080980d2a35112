"""Gradient clipping as PyTorch's users call it: the laws, exactly; a drop-in; policies, names, refusals; four ranks."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")

from oracle import broken_total_laws, exact_norm  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from normball.torch import ClipReport, clip_grad_norm_, clip_grads_with_norm_, get_total_norm  # noqa: E402

ORDERS = (1, 2, math.inf)
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


class Elsewhere(torch.Tensor):
    """Goes the way of tensors on other devices."""


KINDS = {"in memory": torch.Tensor, "elsewhere": Elsewhere}


def array(tensor):
    tensor = tensor.detach().as_subclass(torch.Tensor).contiguous()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == BF16 else tensor.numpy()


def arrays(parameters):
    return [array(p.grad).copy() for p in parameters]


def holding(*grads, kind=torch.Tensor):
    """Parameters with these gradients."""
    parameters = []
    for grad in grads:
        parameters.append(torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)))
        parameters[-1].grad = grad.clone().as_subclass(kind)
    return parameters


def randn(*shape, dtype=F32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, dtype=F64, generator=generator) * scale).to(dtype)


def norm_of(before, ord=2):
    return float(exact_norm([float(v) for x in before for v in x.reshape(-1)], ord))


LISTS = {
    "float32": [randn(7, 5), randn(9), randn(2, 3, 2)],
    "float64": [randn(7, 5, dtype=F64), randn(9, dtype=F64)],
    "bfloat16": [randn(40, 5, dtype=BF16), randn(9, dtype=BF16)],
    "float16": [randn(7, 5, dtype=F16), randn(9, dtype=F16, scale=1e-6), randn(3, dtype=F16, scale=2e4)],
    "mixed": [randn(7, 5, dtype=BF16), randn(9, dtype=F64), randn(4, 4), randn(3, dtype=F16)],
    "layouts": [randn(6, 4).t(), randn(8)[::2], torch.zeros(0, 3), torch.tensor(2.5), randn(2, 3, 2).transpose(0, 2)],
    "1e25": [randn(7, 5, scale=1e25), randn(9, scale=1e30)],
    "3e38": [torch.full((50,), 3e38), randn(9)],
    "8e307": [torch.full((2,), 8e307, dtype=F64), randn(9)],
    "tiny": [randn(7, 5, scale=1e-38), randn(9, scale=1e-44)],
    "tiny float64": [randn(7, 5, scale=1e-308, dtype=F64), randn(9, scale=1e-320, dtype=F64)],
}

BEYOND = [torch.full((50,), 1e308, dtype=F64), randn(9)]  # finite, with a norm beyond float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grads", LISTS.values(), ids=LISTS)
def test_laws(grads, kind):
    """Same bits where the norm is within the bound; else within the bound, in exact arithmetic, and tight."""
    before = arrays(holding(*grads))
    for ord in ORDERS:
        norm = norm_of(before, ord)
        for bound in (0.0, norm * 0.37, norm * 1.5, 1.0, math.inf):
            parameters = holding(*grads, kind=KINDS[kind])
            total = clip_grad_norm_(parameters, bound, ord)
            band = 0 if kind == "in memory" else 4
            assert broken_total_laws(before, arrays(parameters), bound, 0.0, ord, band) == set(), (ord, bound)
            assert total.ndim == 0
            assert total.item() >= norm * (1 - 2**-52)
            assert total.item() == pytest.approx(norm, rel=2e-7) or norm > 3.4e38


def test_laws_can_fail():
    """The same judge finds what PyTorch's own function makes of it."""
    grads = LISTS["bfloat16"]
    before, parameters = arrays(holding(*grads)), holding(*grads)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert broken_total_laws(before, arrays(parameters), 1.0, 0.0) != set()


def test_the_comparison_is_exact_in_memory():
    """Of norms that no float64 tells apart: 5, and 5 and a little."""
    at, above = [3.0, 4.0, 0.0], [3.0, 4.0, 1e-12]
    for values, changes in ((at, False), (above, True)):
        [p] = holding(torch.tensor(values))
        clip_grad_norm_(p, 5.0)
        assert (p.grad.tolist() != torch.tensor(values).tolist()) == changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_changes_nothing(kind):
    for grads in LISTS.values():
        parameters = holding(*grads, kind=KINDS[kind])
        clip_grad_norm_(parameters, 0.7)
        once = arrays(parameters)
        clip_grad_norm_(parameters, 0.7)
        assert [x.tobytes() for x in once] == [x.tobytes() for x in arrays(parameters)]


# ---- a drop-in


@pytest.mark.parametrize("ord", [*ORDERS, "inf", 2.0])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_drop_in(ord, share):
    """PyTorch's results, up to the 1e-6 of its formula; arguments by position, too."""
    grads = [randn(30, 5), randn(9), randn(4, 3, 2)]
    ours, theirs = holding(*grads), holding(*grads)
    bound = share * float(torch.nn.utils.get_total_norm(grads, ord))
    for clip, parameters in ((clip_grad_norm_, ours), (torch.nn.utils.clip_grad_norm_, theirs)):
        total = clip((p for p in parameters), bound, ord, False, True)
        assert (total.dtype, total.shape, total.device) == (F32, (), torch.device("cpu"))
        assert total.item() == pytest.approx(bound / share, rel=1e-6)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=3e-6, atol=0)


def test_what_may_be_passed():
    [p, q] = holding(torch.tensor([3.0]), torch.tensor([4.0]))
    without = torch.nn.Parameter(torch.zeros(2))
    assert clip_grad_norm_(p, 10.0).item() == 3
    assert clip_grad_norm_([without, p, q, p], 10.0).item() == 5
    assert clip_grad_norm_({"p": p, "q": q}.values(), 10.0).item() == 5
    assert clip_grad_norm_(None, torch.tensor(10.0), named={"p": p, "q": q}).item() == 5
    assert clip_grad_norm_(None, np.float32(10), named=iter([("p", p)])).item() == 3
    q.grad = p.grad  # one memory, written once
    assert clip_grad_norm_([p, q], 1.5).item() == 3
    assert p.grad.item() == pytest.approx(1.5)
    for nothing in ([], [without], iter([without])):
        total = clip_grad_norm_(nothing, 1.0)
        assert (total.item(), total.dtype) == (0.0, F32)
    message = "parameters is an empty generator, so nothing is clipped; was it read before? Pass a list"
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        assert clip_grad_norm_((p for p in ()), 1.0).item() == 0
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    "dtypes, result",
    [([BF16], F32), ([F16, BF16], F32), ([F32, F64], F64), ([torch.complex64], F32), ([torch.complex128, F32], F64)],
)
def test_dtype_of_the_total(dtypes, result):
    grads = [torch.ones(2, dtype=dtype) for dtype in dtypes]
    assert clip_grad_norm_(holding(*grads), 1.0).dtype == get_total_norm(grads).dtype == result


def test_the_total_is_rounded_up():
    """So that gradients which comply with it comply."""
    for seed in range(20):
        grads = [randn(50, seed=seed)]
        assert get_total_norm(grads).item() >= norm_of([array(g) for g in grads])


def test_complex():
    values = torch.tensor([3 + 4j, 0j, 1e25j])
    [p], [q] = holding(values), holding(values.conj())
    for parameter in (p, q):
        assert clip_grad_norm_(parameter, 5.0).item() == pytest.approx(1e25)
        assert abs(parameter.grad[2].item()) <= 5
    torch.testing.assert_close(p.grad, q.grad.conj().resolve_conj())


def sparse(kind=None):
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.sparse_coo_tensor([[0, 0, 2]], [[1.0, 2.0], [2.0, -2.0], [0.0, 4.0]], (5, 2))


def test_sparse_gradients_are_summed_first():
    """Of an embedding's rows looked up twice; the norm of the rows as they come would be 5.4."""
    p = torch.nn.Parameter(torch.zeros(5, 2))
    for coalesced in (False, True):
        p.grad = sparse().coalesce() if coalesced else sparse()
        [q] = holding(torch.tensor(0.0))
        assert clip_grad_norm_([p, q], 1.0).item() == 5
        assert p.grad.is_sparse
        assert p.grad.is_coalesced()
        torch.testing.assert_close(p.grad.to_dense()[[0, 2]], torch.tensor([[0.6, 0], [0, 0.8]]))
    assert get_total_norm(sparse()).item() == 5
    layer = torch.nn.Embedding(9, 3, sparse=True)
    layer(torch.tensor([1, 1, 7])).sum().backward()
    optimizer = torch.optim.SparseAdam(layer.parameters())
    assert clip_grad_norm_(layer.parameters(), 1e-3).item() == pytest.approx(math.sqrt(15))
    optimizer.step()


def test_with_a_gradient_scaler():
    """unscale_, then clip: the bound is in the units of the true gradients, and a step with an inf is left out."""
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for inputs, moves in ((torch.full((1, 4), 50.0), True), (torch.full((1, 4), math.inf), False)):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(model(inputs).sum()).backward()
        scaler.unscale_(optimizer)
        total = clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        step = torch.linalg.vector_norm(model.weight.detach() - before).item()
        assert step == pytest.approx(float(moves), abs=1e-6)
        assert total.isfinite() == moves
    assert scaler.get_scale() == 2.0**9


def test_autograd_is_told_and_not_asked():
    """A gradient that is part of a graph is written, and the graph knows; create_graph=True makes such ones."""
    x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    [x.grad] = torch.autograd.grad(x.square().sum(), x, create_graph=True)
    version = x.grad._version
    assert not clip_grad_norm_(x, 1.0).requires_grad
    assert x.grad._version == version + 1


def test_tensors_stay_where_they_are_whatever_the_default_device():
    for name in ("float32", "mixed"):
        found = []
        for device in ("cpu", "meta"):
            parameters = holding(*LISTS[name])
            report = ClipReport()
            with torch.device(device):
                before = clip_grad_norm_(parameters, 0.5)
                clip_grad_norm_(parameters, 0.4, report=report)
                after = get_total_norm([p.grad for p in parameters])
                clip_grads_with_norm_(parameters, 0.1, after)
            found.append([before, after, *(p.grad for p in parameters), torch.tensor(list(report.norms.values()))])
        assert all(map(torch.equal, *found))


def test_bounds_that_are_not_in_memory_as_they_look():
    [p], [q] = parameters, others = holding(randn(5)), holding(randn(5))
    clip_grad_norm_(parameters, torch.tensor(-1j, dtype=torch.complex128).conj().imag)
    clip_grad_norm_(others, 1.0)
    assert torch.equal(p.grad, q.grad)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # it was read as this memory
        clip_grad_norm_(parameters, torch.empty((), device="meta"))


def test_compiled_without_a_graph_break():
    def clip(parameters, bound):
        return clip_grad_norm_(parameters, bound)

    compiled = torch.compile(clip, backend="aot_eager", fullgraph=True)
    for bound in (0.5, torch.tensor(0.25)):
        plain, traced = (holding(*LISTS["float32"], *LISTS["layouts"]) for _ in range(2))
        assert torch.equal(clip(plain, bound), compiled(traced, bound))
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain, traced, strict=True))


def test_recorded_by_make_fx():
    """It sees PyTorch's operators alone; what the kernels wrote beside them was missing from the graph."""

    def clipped(grad):
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = grad.clone()
        return clip_grad_norm_(p, 1.0), p.grad

    grad = randn(3, scale=5)
    assert all(map(torch.equal, make_fx(clipped)(torch.ones(3))(grad), clipped(grad)))


def test_bounds_and_factors_that_are_subnormal():
    """Rounded to the nearest four quarters of 3 are 4; and a factor of few digits is as far off."""
    parameters = holding(torch.ones(4), kind=Elsewhere)
    bound = 3 * 2.0**-149
    clip_grad_norm_(parameters, bound, 1)
    assert broken_total_laws([array(torch.ones(4))], arrays(parameters), bound, 0.0, ord=1) == set()
    parameters = holding(randn(4, scale=1e30))
    before = arrays(parameters)
    norm = norm_of(before)
    clip_grads_with_norm_(parameters, 1e-10, norm)
    assert broken_total_laws(before, arrays(parameters), 1e-10, 0.0) == set()


def test_norms_just_above_the_bound():
    """By less than float64 can say, and by an ulp, whichever way they go."""
    for seed in range(40):
        grads = [randn(6, dtype=F64, seed=seed)]
        norm = get_total_norm(grads).item()
        for bound in (norm, math.nextafter(norm, 0.0)):
            parameters, measured = holding(*grads), holding(*grads)
            clip_grads_with_norm_(parameters, math.nextafter(bound, 0.0), bound)
            if exact_norm(grads[0].tolist()) <= norm == bound:
                assert exact_norm(array(parameters[0].grad).tolist()) <= math.nextafter(bound, 0.0)
            clip_grad_norm_(measured, bound, nonfinite="zero")
            assert broken_total_laws([array(g) for g in grads], arrays(measured), bound, 0.0) == set()


# ---- gradients that are not finite


def spoilt(kind=torch.Tensor):
    return {
        "fine": holding(torch.tensor([1.0, 2.0]), kind=kind)[0],
        "bad": holding(torch.tensor([[1.0, math.inf]]), kind=kind)[0],
        "worse": holding(torch.tensor(math.nan, dtype=BF16), kind=kind)[0],
    }


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("policy, left", [("propagate", math.nan), ("zero", 0.0), ("skip", None)])
def test_policies(policy, left, kind):
    named = spoilt(kind)
    named["tied"] = torch.nn.Parameter(torch.zeros(2))
    named["tied"].grad = named["fine"].grad
    total = clip_grad_norm_(named.values(), 1.0, nonfinite=policy)
    assert math.isnan(total)
    for p in named.values():
        assert p.grad is None if left is None else np.array_equal(array(p.grad), np.full(p.shape, left), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_raise_names_the_first(kind):
    named = spoilt(kind)
    before = arrays(named.values())
    text = (
        "the total norm of order 2 is nan: the gradient of {} is the first with an entry that is not finite; nothing was "
        "written. To leave out such steps pass nonfinite='skip'"
    )
    calls = [
        ("'bad'", lambda: clip_grad_norm_(None, 1.0, nonfinite="raise", named=named)),
        ("'bad'", lambda: clip_grad_norm_(named.values(), 1.0, error_if_nonfinite=True, named=named.items())),
        ("parameters[1]", lambda: clip_grad_norm_(named.values(), 1.0, error_if_nonfinite=True)),
    ]
    for first, call in calls:
        with pytest.raises(RuntimeError, match=f"^{re.escape(text.format(first))}$"):
            call()
    assert [x.tobytes() for x in before] == [x.tobytes() for x in arrays(named.values())]
    with pytest.raises(RuntimeError, match=re.escape("tensors[1] is the first")):
        get_total_norm([p.grad for p in named.values()], error_if_nonfinite=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("policy", ["raise", "zero", "skip"])
def test_finite_gradients_are_finite_however_large_their_norm(policy, kind):
    for grads in (BEYOND, LISTS["3e38"], LISTS["float16"]):
        before, parameters = arrays(holding(*grads)), holding(*grads, kind=kind)
        report = ClipReport()
        clip_grad_norm_(parameters, 1.0, nonfinite=policy, report=report)
        assert broken_total_laws(before, arrays(parameters), 1.0, 0.0, 2, band=4) == set()
        assert report.nonfinite == []
        assert math.isfinite(report.norm_before)


class Waits(TorchDispatchMode):
    """Counts how often a value that is elsewhere is read."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], Elsewhere)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("policy, waits", [("propagate", 0), ("zero", 0), ("raise", 1), ("skip", 1)])
def test_waits_for_no_device_unless_it_must(policy, waits):
    parameters = holding(*LISTS["float32"], *LISTS["bfloat16"], kind=Elsewhere)
    report = ClipReport()
    with Waits() as counted:
        clip_grad_norm_(parameters, 1.0, nonfinite=policy)
        total = get_total_norm([p.grad for p in parameters])
        clip_grads_with_norm_(parameters, 0.5, total)
        assert counted.count == waits
        clip_grad_norm_(parameters, 0.1, nonfinite=policy, report=report)
        assert counted.count == 2 * waits
        assert report.clipped
        assert counted.count > 2 * waits


@pytest.mark.parametrize("bound", [1.0, torch.empty((), device="meta")], ids=["float", "tensor"])
@pytest.mark.parametrize("policy", ["propagate", "zero", "raise", "skip"])
def test_works_where_nothing_can_be_read(policy, bound):
    """On the device "meta", which has no values, so that whatever wanted one would fail; as "raise" and "skip" do."""
    grads = [grad.to("meta") for name in ("float32", "mixed", "layouts") for grad in LISTS[name]]

    def call():
        parameters = holding(*grads)
        total = clip_grad_norm_(parameters, bound, nonfinite=policy, report=ClipReport())
        clip_grad_norm_(parameters, bound, nonfinite=policy)
        clip_grads_with_norm_(parameters, bound, get_total_norm(grads))
        assert (total.device.type, total.dtype) == ("meta", F64)

    if policy in ("propagate", "zero"):
        call()
    else:
        with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
            call()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_norm_beyond_float64_is_no_error(kind):
    assert get_total_norm([torch.full((4,), 1e308, dtype=F64).as_subclass(kind)], error_if_nonfinite=True) == math.inf


@pytest.mark.parametrize("policy, after", [("propagate", math.nan), ("zero", 0.0), ("skip", 0.0)])
def test_report_of_what_became_of_them(policy, after):
    report = ClipReport()
    clip_grad_norm_(None, 1.0, named=spoilt(), nonfinite=policy, report=report)
    assert report.norm_after == pytest.approx(after, nan_ok=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_squares_beyond_float64(scale, kind):
    """They were inf, so that finite gradients were zeroed, or 0, so that none was clipped."""
    for policy in ("zero", "skip", "raise"):
        parameters, report = holding(randn(3, dtype=F64), randn(2, dtype=F64), kind=kind), ClipReport()
        for p in parameters:
            p.grad.mul_(scale)
        before = arrays(parameters)
        bound = norm_of(before) / 3
        clip_grad_norm_(parameters, bound, nonfinite=policy, report=report)
        assert broken_total_laws(before, arrays(parameters), bound, 0.0, band=4) == set()
        assert report.clipped
        assert report.norm_before == pytest.approx(3 * bound)


# ---- the report


def test_report():
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1))
    grads = {"0.weight": [[3.0, 0.0]], "0.bias": [4.0], "1.weight": [[0.0]]}
    for name, values in grads.items():
        model.get_parameter(name).grad = torch.tensor(values)
    report = ClipReport()
    assert str(report) == "no call yet"
    with pytest.raises(
        ValueError, match=r"^report: no call yet; pass it as report= to normball\.torch\.clip_grad_norm_"
    ):
        report.norm_before  # noqa: B018
    clip_grad_norm_(model.parameters(), 6.0, named=model.named_parameters(), report=report)
    assert str(report) == "total norm 5, within 6; clipped in 0 of 1 calls\n  4  0.bias\n  3  0.weight\n  0  1.weight"
    assert (report.norm_before, report.norm_after, report.clipped, report.clip_fraction) == (5, 5, False, 0)
    clip_grad_norm_(None, 1.0, named=model.named_parameters(), report=report)
    assert (report.norm_before, report.norm_after, report.max_norm, report.clipped) == (5, 1, 1, True)
    assert (report.calls, report.clip_fraction) == (2, 0.5)
    assert report.norms == {"0.weight": 3, "0.bias": 4, "1.weight": 0}
    model[0].bias.grad = torch.tensor([math.nan])
    clip_grad_norm_(model.parameters(), 1.0, report=report)
    assert report.nonfinite == [1]
    assert math.isnan(report.norm_after)
    assert str(report).startswith("total norm nan, made NaN; clipped in 2 of 3 calls\n  not finite: 1\n  0.6  0\n")
    clip_grad_norm_([], 1.0, report=report)
    assert (report.norms, report.norm_before) == ({}, 0)


def test_report_shows_the_largest():
    report = ClipReport()
    clip_grad_norm_(holding(*(torch.tensor(float(n)) for n in range(8))), 1.0, report=report)
    assert str(report).splitlines()[1:] == ["  7  7", "  6  6", "  5  5", "  4  4", "  3  3", "  and 3 smaller"]


# ---- in two steps


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("grads", LISTS.values(), ids=LISTS)
def test_in_two_steps(grads, kind):
    before, parameters = arrays(holding(*grads)), holding(*grads, kind=kind)
    total = get_total_norm([p.grad for p in parameters])
    clip_grads_with_norm_(parameters, 1.0, total)
    if total.isinf():  # beyond the range of its dtype, and a norm that is not known is no bound
        assert all(np.isnan(x).all() for x in arrays(parameters))
        return
    assert "bounded" not in broken_total_laws(before, arrays(parameters), 1.0, 0.0, 2, band=4)
    once = arrays(parameters)
    clip_grads_with_norm_(parameters, 10.0, 1.0)
    assert [x.tobytes() for x in once] == [x.tobytes() for x in arrays(parameters)]


def test_gradients_for_parameters_are_refused():
    """What torch.nn.utils takes without a word, and does nothing."""
    grads = [torch.ones(3), torch.ones(2)]
    message = (
        "parameters[0] is a plain tensor without a gradient, so nothing would be clipped; pass the parameters, not their "
        "gradients, or clip a list of tensors with normball.total_norm_constraint"
    )
    for call in (lambda: clip_grads_with_norm_(grads, 1.0, 2.0), lambda: clip_grad_norm_(grads, 1.0)):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()
    torch.nn.utils.clip_grads_with_norm_(grads, 0.1, torch.tensor(2.0))
    assert grads[0].tolist() == [1, 1, 1]


# ---- refusals: to the letter, and nothing is written

BOUND = "must be a number, an array or a symbolic value >= 0; for no constraint pass max_norm=math.inf"
WRONG = [
    ((None,), {}, TypeError, f"max_norm=None: {BOUND}"),
    ((True,), {}, TypeError, f"max_norm=True: {BOUND}"),
    (("1",), {}, TypeError, f"max_norm='1': {BOUND}"),
    ((-1.0,), {}, ValueError, "max_norm=-1.0: must be >= 0 and not NaN; a norm is never negative"),
    ((torch.tensor(math.nan),), {}, ValueError, "max_norm=nan: must be >= 0 and not NaN; a norm is never negative"),
    ((torch.ones(2),), {}, ValueError, "max_norm of shape (2,): must be a single number; pass max_norm.squeeze()"),
    (
        (1j * torch.ones(()),),
        {},
        TypeError,
        "max_norm of dtype complex64: must hold real numbers; convert it to float64 first",
    ),
    ((1.0, 3), {}, ValueError, "norm_type=3: must be 1, 2 or inf; torch.nn.utils.clip_grad_norm_ has others"),
    ((1.0, "two"), {}, ValueError, "norm_type='two': must be 1, 2 or inf; torch.nn.utils.clip_grad_norm_ has others"),
    ((1.0,), {"nonfinite": "no"}, ValueError, "nonfinite='no': must be one of 'propagate', 'raise', 'skip', 'zero'"),
    (
        (1.0,),
        {"nonfinite": "zero", "error_if_nonfinite": True},
        ValueError,
        "nonfinite='zero': error_if_nonfinite=True asks for 'raise'; pass one of the two",
    ),
    (
        (1.0,),
        {"groups": "world"},
        TypeError,
        "groups[0] of type str: must be a ProcessGroup that this rank is in; of a mesh pass mesh.get_group()",
    ),
    (
        (1.0,),
        {"named": [torch.ones(1)]},
        TypeError,
        "named[0] of type Tensor: must be a pair (name, parameter); pass model.named_parameters()",
    ),
]


@pytest.mark.parametrize("args, options, error, message", WRONG, ids=[message[:30] for *_, message in WRONG])
def test_refused_arguments(args, options, error, message):
    parameters = holding(torch.tensor([3.0, 4.0]))
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        clip_grad_norm_(parameters, *args, **options)
    assert parameters[0].grad.tolist() == [3, 4]


def marked(name, value):
    [p] = holding(torch.ones(2))
    p.grad = None if name == "ds_id" else p.grad
    setattr(p, name, value)
    return p


def with_grad(grad, dtype=F32):
    p = torch.nn.Parameter(torch.zeros(grad.shape, dtype=dtype))
    p.grad = grad
    return p


WHAT = "the gradient of parameters[1]"
UNFIT = {
    "expanded": (
        lambda: with_grad(torch.ones(1).expand(3)),
        ValueError,
        f"{WHAT}: several of its entries share memory, so it cannot be written; replace it by its .clone()",
    ),
    "overlapping": (
        lambda: with_grad(torch.ones(5).as_strided((3, 3), (1, 1))),
        ValueError,
        f"{WHAT}: several of its entries share memory, so it cannot be written; replace it by its .clone()",
    ),
    "float8": (
        lambda: with_grad(torch.ones(2).to(torch.float8_e5m2), torch.float8_e5m2),
        TypeError,
        f"{WHAT} of dtype float8_e5m2: must be one of float64, float32, float16, bfloat16, or complex; cast it",
    ),
    "FSDP1": (
        lambda: marked("_is_flat_param", True),
        TypeError,
        "parameters[1] is a piece that FullyShardedDataParallel made; the norm of its gradient is not known here: call its",
    ),
    "ZeRO-3": (
        lambda: marked("ds_id", 3),
        TypeError,
        "parameters[1] is a piece that DeepSpeed ZeRO-3 made; the norm of its gradient is not known here: set gradient_",
    ),
    "text": (lambda: "w", TypeError, "parameters[1] of type str: must be a tensor"),
    "pair": (
        lambda: ("w", torch.ones(1)),
        TypeError,
        "parameters[1] of type tuple: must be a tensor; pass pairs as named=",
    ),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("unfit", UNFIT)
def test_refused_gradients_leave_none_half_scaled(unfit, kind):
    make, error, message = UNFIT[unfit]
    first, last = holding(torch.tensor([3.0]), torch.tensor([4.0]), kind=kind)
    for policy in ("propagate", "zero"):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            clip_grad_norm_([first, make(), last], 1.0, nonfinite=policy)
        assert (first.grad.item(), last.grad.item()) == (3, 4)


def test_refused_lists():
    with pytest.raises(TypeError, match=r"^parameters=None: must be tensors; pass model\.parameters\(\), or named="):
        clip_grad_norm_(None, 1.0)
    with pytest.raises(
        TypeError, match=r"^parameters of type dict: must be a tensor or an iterable of them; pass list\("
    ):
        clip_grad_norm_({"w": torch.ones(1)}, 1.0)
    with pytest.raises(
        TypeError, match=r"^parameters of type Linear: must be a tensor or an iterable of them; pass model\."
    ):
        clip_grad_norm_(torch.nn.Linear(1, 1), 1.0)
    [p] = holding(torch.tensor([1j]))
    with pytest.raises(
        ValueError, match=r"^norm_type=1: the gradient of parameters\[0\] is complex, which has the norm of"
    ):
        clip_grad_norm_(p, 1.0, 1)
    with pytest.raises(
        TypeError, match=r"^total_norm=None: must be a number or a tensor of one; get_total_norm gives it"
    ):
        clip_grads_with_norm_(p, 1.0, None)
    with pytest.raises(ValueError, match=r"^total_norm=-2\.0: must be >= 0"):
        clip_grads_with_norm_(p, 1.0, -2.0)


# ---- four ranks


@pytest.fixture(scope="module")
def findings():
    script = Path(__file__).with_name("torch_clip_ranks.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo and fork")
def test_on_four_ranks(findings):
    """Tensor parallelism, FSDP2, both, several meshes, pipelines: as on one process, all ranks alike, few collectives."""
    assert {(rank, name): found for rank, name, found in findings if found} == {}
    by_rank = [sorted(name for rank, name, _ in findings if rank == r) for r in range(4)]
    assert by_rank[0] == by_rank[1] == by_rank[2] == by_rank[3]
    assert len(by_rank[0]) > 45
