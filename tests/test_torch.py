"""What PyTorch's users can ask of `norm_constraint` beyond the laws: derivatives, transforms, compilation, in place."""

import math
import os
import shutil
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from closed_form import SCALES, SUBNORMAL, WIDE, closed_form, columns, second_derivative, wide_enough, wrong_entries  # noqa: E402
from oracle import broken_laws, exact_norm  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from normball import compute_norms, kernels, norm_constraint, total_norm_constraint  # noqa: E402
from normball.torch import norm_constraint_  # noqa: E402

ORDERS = (1, 2, math.inf)


class Elsewhere(torch.Tensor):
    """Goes the way of tensors on other devices."""


def bits(tensor):
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.detach().contiguous().view(kind)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def randn(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


# ---- derivatives


@wide_enough
@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
@pytest.mark.parametrize("ord", ORDERS)
def test_gradients_are_the_closed_form_at_every_scale(ord, kind):
    for dtype in ("float64", "float32"):
        values, cotangents = columns(dtype, SCALES[dtype] + SUBNORMAL[dtype])
        for c in (3.0, 0.0, 1e20, 1e-40, 1e250):
            for e in (0.0, 1e-7, 1e10):
                x = torch.tensor(values).as_subclass(kind).requires_grad_()
                bound, epsilon = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (c, e))
                y = norm_constraint(x, bound, 0, epsilon, ord=ord)
                y.backward(torch.tensor(cotangents))
                to_x, to_bound, to_epsilon = closed_form(values, cotangents, c, e, ord)
                assert wrong_entries(x.grad.numpy(), to_x, np.abs(cotangents).sum(0), dtype) == 0, (dtype, c, e)
                if c >= 3:  # so that subnormal norms, which have too few digits to sum up, comply
                    size = WIDE(np.abs(cotangents).sum())
                    assert wrong_entries(bound.grad, to_bound, size, "float64") == 0, (dtype, c, e)
                    assert wrong_entries(epsilon.grad, to_epsilon, size, "float64") == 0, (dtype, c, e)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_is_the_identity_wherever_the_group_complies(dtype):
    """Bit for bit, at ties and zero vectors too; one step above the bound it is not."""
    x = torch.tensor([[3, 0, 3, 0], [4, 0, 0.5, -0.0]], dtype=dtype, requires_grad=True)
    g = torch.tensor([[1.7, -0.0, 3e30, -3], [-0.1, 2e-30, 1 / 3, 5]], dtype=dtype)
    for y in (norm_constraint(x, 5.0), total_norm_constraint([x], 8.0)[0]):
        [gradient] = torch.autograd.grad(y, x, g)
        assert same(gradient, g)
    above = torch.tensor([[3], [4 + 2**-5 if dtype == torch.bfloat16 else 4 + 2**-20]], dtype=dtype, requires_grad=True)
    assert not same(torch.autograd.grad(norm_constraint(above, 5.0), above, g[:, :1])[0], g[:, :1])


def by_column(x, bound, epsilon, ord):
    return norm_constraint(x, bound, 0, epsilon, ord=ord)


def by_total(x, bound, epsilon, ord):
    parts, norm = total_norm_constraint([x[:2], x[2:]], bound.sum() / 2, epsilon, return_norm=True, ord=ord)
    return (*parts, norm)


def norms(x, bound, epsilon, ord):
    return compute_norms(x * bound, 0, ord=ord) + epsilon


@pytest.mark.parametrize("ord", ORDERS)
@pytest.mark.parametrize("function", [by_column, by_total, norms])
def test_derivatives_agree_with_finite_differences(function, ord):
    """First and second order, forward and backward, batched, in all inputs; away from ties."""
    x = (randn(5, 4, dtype=torch.float64, seed=3) * torch.tensor([0.1, 3, 5, 7])).requires_grad_()
    bound = torch.tensor([[2.0, 1.5, 1.0, 2.5]], dtype=torch.float64, requires_grad=True)
    epsilon = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)

    def run(x, bound, epsilon):
        return function(x, bound, epsilon, ord)

    every = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(run, (x, bound, epsilon), **every)
    assert gradgradcheck(run, (x, bound, epsilon))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):  # and it can say no
        gradcheck(lambda x: norm_constraint(x, 1.0) + x.detach(), (x,))


def test_derivatives_of_complex_tensors():
    z = randn(4, 3, dtype=torch.complex128).requires_grad_()
    assert gradcheck(lambda z: norm_constraint(z, 1.5), (z,), check_forward_ad=True)
    assert gradgradcheck(lambda z: norm_constraint(z, 1.5), (z,))


@wide_enough
def test_second_derivatives_at_extreme_norms():
    generator = np.random.default_rng(5)
    for scale, bound, epsilon in (
        (10, 3.0, 1e-7),
        (10, 3.0, 1.0),
        (1e120, 3.0, 1e-7),
        (1e160, 1e159, 0),
        (1e-200, 1e-201, 0),
    ):
        values = generator.uniform(1, 2, (4, 1)) * scale
        weights, direction = generator.standard_normal((2, 4, 1))
        wanted = second_derivative(values, weights, direction, bound, epsilon)
        x = torch.tensor(values, requires_grad=True)
        for y in (norm_constraint(x, bound, 0, epsilon), total_norm_constraint([x], bound, epsilon)[0]):
            [gradient] = torch.autograd.grad(y, x, torch.tensor(weights), create_graph=True)
            [found] = torch.autograd.grad(gradient, x, torch.tensor(direction))
            assert wrong_entries(found.numpy(), wanted, np.abs(wanted).max(), "float64") == 0, (scale, bound, epsilon)


@pytest.mark.parametrize("ord", [1, 2])
def test_derivatives_of_groups_whose_norm_is_beyond_float64(ord):
    """Those of the same groups, 2**20 times smaller; which was zero everywhere, as a quotient by inf."""
    c, v = 2.0**1023, torch.tensor([1.75, -1.5, 0.25], dtype=torch.float64) * 2.0**1023
    cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for constrain in (
        lambda x, bound: norm_constraint(x, bound, 0, 0.0, ord=ord),
        lambda x, bound: torch.cat(total_norm_constraint([x[:1], x[1:]], bound, 0.0, ord=ord)),
    ):
        found = []
        for share in (1.0, 2.0**-20):
            x, bound = (v * share).requires_grad_(), torch.tensor(c * share, dtype=torch.float64, requires_grad=True)
            found.append(torch.autograd.grad(constrain(x, bound), (x, bound), cotangent))
            steps = torch.func.jvp(constrain, (x.detach(), bound.detach()), (cotangent, torch.tensor(1.0).double()))
            found[-1] += (steps[1],)
        assert all(map(same, *found))
        assert found[0][0].abs().min() > 0


def test_nothing_is_nan_at_zero():
    zero = torch.zeros(3, 2, dtype=torch.float64)
    for bound in (0.0, 1.0):
        hessian = torch.func.hessian(lambda x, bound=bound: norm_constraint(x, bound).sum())(zero)
        assert (hessian == 0).all()
    assert (torch.func.grad(lambda x: compute_norms(x).sum())(zero) == 0).all()
    assert (torch.func.grad(lambda x: total_norm_constraint([x], 1.0, return_norm=True)[1])(zero) == 0).all()


# ---- torch.func


def test_derivatives_decide_as_exactly_as_the_constraint():
    """A norm above its bound by less than float64 can say: what points outwards is not let through."""
    x = randn(5, 40, dtype=torch.float64).requires_grad_()
    bounds = compute_norms(x.detach())
    norms = [exact_norm(column) for column in x.detach().T.tolist()]
    above = torch.tensor([norm > Fraction(bound) for norm, bound in zip(norms, bounds.tolist(), strict=True)])
    assert 0 < above.sum() < 40
    norm_constraint(x, bounds, 0, 0.0).backward(x.detach())
    assert x.grad[:, above].abs().max() < 1e-12
    assert x.grad[:, ~above].equal(x.detach()[:, ~above])


@pytest.mark.parametrize("ord", ORDERS)
def test_second_derivatives_at_zero(ord):
    x, bound = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    for y in (norm_constraint(x, bound, 1, 0.0, ord=ord), compute_norms(x, 1, ord=ord)):
        first = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
        assert first.isfinite().all()
        if first.requires_grad:
            assert all(
                g.isfinite().all()
                for g in torch.autograd.grad(first.sum(), (x, bound), allow_unused=True)
                if g is not None
            )


def test_vmap_of_bounds_with_fewer_axes():
    x, bounds = randn(2, 4, 4) * 3, torch.tensor([[0.5, 1.0, 1.5, 2.0], [2.0, 1.5, 1.0, 0.5]])
    found = torch.func.vmap(lambda x, bound: norm_constraint(x, bound))(x, bounds)
    assert same(found, torch.stack([norm_constraint(*pair) for pair in zip(x, bounds, strict=True)]))


def test_vmap_gives_what_a_loop_gives():
    xs, bounds = randn(3, 5, 4), torch.tensor([0.5, 1.0, 9.0])
    looped = torch.stack([norm_constraint(x, float(bound)) for x, bound in zip(xs, bounds, strict=True)])
    assert same(torch.func.vmap(norm_constraint)(xs, bounds), looped)
    assert same(torch.func.vmap(norm_constraint, in_dims=(2, 0))(xs.permute(1, 2, 0), bounds), looped)
    per_unit = torch.tensor([[[0.5, 1, 2, 3]], [[1, 1, 1, 1]], [[0, 0.1, 9, 9]]])
    looped = torch.stack([norm_constraint(x, bound) for x, bound in zip(xs, per_unit, strict=True)])
    assert same(torch.func.vmap(norm_constraint)(xs, per_unit), looped)
    assert same(
        torch.func.vmap(lambda bound: norm_constraint(xs[0], bound))(bounds[1:]),
        torch.stack([norm_constraint(xs[0], float(bound)) for bound in bounds[1:]]),
    )
    looped = torch.stack([compute_norms(x) for x in xs])
    assert same(torch.func.vmap(compute_norms)(xs), looped)
    totals = torch.func.vmap(lambda x, y: tuple(total_norm_constraint([x, y], 1.0)))(xs, xs[:, 0])
    for k, x in enumerate(xs):
        assert all(same(t[k], one) for t, one in zip(totals, total_norm_constraint([x, x[0]], 1.0), strict=True))


def test_jacobians_agree_however_they_are_computed():
    x = randn(3, 2, dtype=torch.float64)
    backward = torch.func.jacrev(norm_constraint)(x, 1.0)
    forward = torch.func.jacfwd(norm_constraint)(x, 1.0)
    torch.testing.assert_close(backward, forward, rtol=1e-14, atol=1e-15)
    step = randn(3, 2, dtype=torch.float64, seed=1)
    value, moved = torch.func.jvp(lambda x: norm_constraint(x, 1.0), (x,), (step,))
    assert same(value, norm_constraint(x, 1.0))
    torch.testing.assert_close(moved, torch.einsum("ijkl,kl->ij", forward, step), rtol=1e-14, atol=1e-15)
    assert torch.func.hessian(lambda x: norm_constraint(x, 1.0).pow(3).sum())(x).isfinite().all()


# ---- torch.compile, fake and meta tensors


COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here, which inductor calls")


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=COMPILER)])
def test_compiled_without_a_graph_break(backend):
    def loss(x, bound):
        parts, norm = total_norm_constraint([x, x * 2], bound, return_norm=True)
        return (norm_constraint(x * 3, bound) ** 3).sum() + parts[1].sum() + norm + compute_norms(x).sum()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    gradients = []
    for function in (loss, compiled):
        x, bound = randn(4, 3).requires_grad_(), torch.tensor(1.5, requires_grad=True)
        value = function(x, bound)
        value.backward()
        gradients.append((value.detach(), x.grad, bound.grad))
    rounding = 1e-6 if backend == "inductor" else 0  # which adds up in an order of its own
    for plain, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(traced, plain, rtol=rounding, atol=0)
    with torch.no_grad():
        value = compiled(randn(4, 3), torch.tensor(1.5))
        torch.testing.assert_close(value, gradients[0][0], rtol=rounding, atol=0)


def test_compiled_as_the_first_thing_a_process_does():
    """The backend is then imported while torch.compile traces."""
    code = """if True:
        import torch, normball
        step = torch.compile(lambda x: normball.norm_constraint(x, 1.0), fullgraph=True, backend="eager")
        assert normball.compute_norms(step(torch.ones(3, 3))).max() <= 1
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiled_bound_that_turns_out_negative_gives_nan():
    compiled = torch.compile(norm_constraint, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2, 2), torch.tensor(-1.0)).isnan().all()
    assert same(compiled(torch.ones(2, 2), torch.tensor(2.0)), torch.ones(2, 2))


def test_operators_pass_torchs_own_check():
    bound, epsilon = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    ops = torch.ops.normball
    for x in (randn(4, 3), randn(3, 4).t(), randn(4, 3, dtype=torch.bfloat16)):
        torch.library.opcheck(ops.constrain.default, (x, bound, epsilon, [0], 2.0))
        torch.library.opcheck(ops.norms.default, (x, [0], 2.0, None))
        torch.library.opcheck(ops.constrain_total.default, ([x, x[0]], bound, epsilon, 2.0))
        torch.library.opcheck(ops.constrain_total_.default, ([x.clone(), x[0].clone()], bound, epsilon, 2.0))


@pytest.mark.parametrize("call", [lambda x: norm_constraint(x, 1.0), lambda x: norm_constraint_(x.clone(), 1.0, 0)])
def test_recorded_by_torchs_other_tracers(call):
    """They see PyTorch's operators alone; what the kernels wrote beside them was missing from the graph."""
    x, other = randn(4, 3), 5 * randn(4, 3, seed=1)
    for record in (lambda f: make_fx(f)(x), lambda f: torch.jit.trace(f, (x,))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out, and warns of every check of shapes
            assert same(record(call)(other), call(other))


def test_shapes_without_values():
    x = torch.empty(4, 3, device="meta", dtype=torch.float16)
    y = norm_constraint(x, 1.0)
    assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())
    assert compute_norms(x).shape == (3,)
    with torch._subclasses.FakeTensorMode():
        y = norm_constraint(torch.empty(3, 4).t(), 1.0)
        assert (y.shape, y.stride()) == ((4, 3), (1, 4))
        assert total_norm_constraint([torch.empty(3), y], 1.0)[1].shape == (4, 3)


# ---- kinds of tensors


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_any_layout(kind):
    base = randn(6, 8)
    wanted = norm_constraint(base, 1.5)
    for x in (base.t().contiguous().t(), base.repeat_interleave(2, 1)[:, ::2], base.flip(0).flip(0), base[None][0]):
        y = norm_constraint(x.as_subclass(kind), 1.5).as_subclass(torch.Tensor)
        assert broken_laws(x.numpy(), y.numpy(), 1.5, (0,), band=4) == set()
        assert kind is Elsewhere or same(y, wanted)
    assert norm_constraint(base.t().as_subclass(kind), 1.5).stride() == base.t().stride()
    wide = torch.ones(1, 4).expand(3, 4)
    assert broken_laws(wide.numpy(), norm_constraint(wide, 1.0).numpy(), 1.0, (0,)) == set()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_groups_have_the_norm_of_their_moduli(dtype):
    z = randn(5, 4, dtype=dtype) * torch.tensor([0.1, 1, 2, 3])
    for x in (z, z.conj(), z.t().contiguous().t()):
        y = norm_constraint(x, 1.5)
        assert y.dtype == dtype
        parts, results = torch.view_as_real(x.resolve_conj()), torch.view_as_real(y.resolve_conj())
        assert broken_laws(parts.numpy(), results.numpy(), 1.5, (0, 2)) == set()
    assert same(torch.view_as_real(norm_constraint(z, torch.full((1, 4), 9.0))), torch.view_as_real(z))
    (first, _), norm = total_norm_constraint([z, z.real.contiguous()], 1.0, return_norm=True)
    assert first.dtype == dtype
    assert norm == compute_norms(torch.cat([torch.view_as_real(z).reshape(-1), z.real.reshape(-1)]), 0)


def test_leaves_that_require_gradients_are_left_alone():
    w = torch.nn.Parameter(randn(4, 3))
    before = w.detach().clone()
    y = norm_constraint(w, 0.5)
    assert y.requires_grad
    assert same(w, before)
    assert w._version == 0
    assert w.grad is None
    with torch.no_grad():
        assert not norm_constraint(w, 0.5).requires_grad


def test_bounds_from_everywhere():
    x = randn(3, 4)
    wanted = norm_constraint(x, np.array([[0.5, 1, 2, 3]], np.float32))
    for bound in ([[0.5, 1, 2, 3]],):
        assert same(norm_constraint(x, torch.tensor(bound)), wanted)
        assert same(norm_constraint(x, torch.tensor(bound, dtype=torch.bfloat16)), wanted)
    assert same(norm_constraint(x, torch.tensor(2)), norm_constraint(x, 2))
    negated = torch.full((4,), -1j, dtype=torch.complex128).conj().imag  # a view, of ones: in memory are others
    assert negated.is_neg()
    for bound in (negated, negated[0]):
        assert same(norm_constraint(x, bound), norm_constraint(x, 1.0))
        assert same(total_norm_constraint([x], negated[0])[0], total_norm_constraint([x], 1.0)[0])
        with pytest.raises(ValueError, match="must be >= 0"):
            norm_constraint(x, -bound)


@pytest.mark.parametrize("bound", [torch.empty((), device="meta"), torch.empty(4, device="meta")])
def test_a_bound_on_another_device_is_not_read_as_memory(bound):
    """It is fetched, from which a device without values keeps us."""
    for x in (randn(3, 4), randn(3, 4).requires_grad_()):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            norm_constraint(x, bound)


def test_tensors_stay_where_they_are_whatever_the_default_device():
    plain, leaf = randn(3, 4), randn(3, 4).requires_grad_()
    wanted = [norm_constraint(plain, 1.0), *total_norm_constraint([plain, plain], 1.0)]
    with torch.device("meta"):
        for x in (plain, leaf):
            found = [norm_constraint(x, 1.0), *total_norm_constraint([x, x], 1.0)]
            assert all(map(same, found, wanted))
            assert compute_norms(x).device.type == "cpu"
        found[0].backward(torch.ones_like(plain, device="cpu"))
    assert leaf.grad.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_elsewhere_bounds_hold_to_the_last_bit(dtype):
    """Where rounding to the nearest would end above: groups of one, norms just above, results that are subnormal."""
    for c in (1.0, math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0), 0.7):
        x = (1.001 + randn(1, 4000, seed=1).abs()).to(dtype)
        y = norm_constraint(x.as_subclass(Elsewhere), c, 0, 0.0).as_subclass(torch.Tensor)
        assert bool((y.double() <= c).all())
    x = randn(300, 40, seed=2).to(dtype)
    below = torch.nextafter(compute_norms(x, 0), torch.zeros(40, dtype=torch.float64))
    y = norm_constraint(x.as_subclass(Elsewhere), below, 0, 0.0).as_subclass(torch.Tensor)
    assert broken_laws(x.numpy(), y.numpy(), below.numpy(), (0,), 0.0) == set()
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.ones(4, 1, dtype=dtype)
    y = norm_constraint(x.as_subclass(Elsewhere), 3 * tiny, 0, 0.0, ord=1).as_subclass(torch.Tensor)
    assert broken_laws(x.numpy(), y.numpy(), 3 * tiny, (0,), 0.0, 1) == set()


# ---- in place and lists


def test_out_is_written_and_counted():
    """autograd keeps count of writes, to refuse a backward pass that would use what is no longer there."""
    x = randn(4, 3)
    out = torch.empty_like(x)
    assert norm_constraint(x, 1.0, out=out) is out
    assert same(out, norm_constraint(x, 1.0))
    w = torch.nn.Parameter(x.clone())
    loss = (w * w).sum()
    with torch.no_grad():
        assert norm_constraint(w, 1.0, out=w) is w
    assert same(w, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_lists_give_the_bits_of_one_at_a_time(kind):
    xs = [randn(4, 3), randn(2, 3, 3, seed=1), randn(5, 2, dtype=torch.bfloat16), randn(3, 3, dtype=torch.complex64)]
    xs = [x if x.is_complex() else x.as_subclass(kind) for x in xs]
    wanted = [norm_constraint(x, 1.0) for x in xs]
    for found in (norm_constraint(xs, 1.0), norm_constraint(xs, [1.0] * 4, out=[x.clone() for x in xs])):
        for y, one in zip(found, wanted, strict=True):
            parts = [torch.view_as_real(t) if t.is_complex() else t for t in (y, one)]
            assert same(*(part.as_subclass(torch.Tensor) for part in parts))
    weights = [torch.nn.Parameter(x.clone()) for x in xs[:2]]
    norm_constraint(weights, 1.0)[0].sum().backward()
    assert weights[0].grad is not None


@pytest.mark.parametrize("kind", [torch.Tensor, Elsewhere])
def test_total_in_place(kind):
    xs = [randn(4, 3), randn(5, dtype=torch.float16), randn(2, 2, dtype=torch.complex64)]
    xs = [x if x.is_complex() else x.as_subclass(kind) for x in xs]
    constrained, norm = total_norm_constraint(xs, 1.0, return_norm=True)
    copies = [x.clone() for x in xs]
    bounds = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 1e-7))
    reals = [torch.view_as_real(x) if x.is_complex() else x for x in copies]
    assert torch.ops.normball.constrain_total_(reals, *bounds, 2.0) == norm
    assert all(torch.equal(a, b) for a, b in zip(copies, constrained, strict=True))
    assert all(copy._version for copy in copies)


def test_other_ways_of_torch_agree_with_renorm():
    """torch's own published samples of renorm, which keeps one axis and knows any order; ours has 1, 2 and inf."""
    from torch.testing._internal.common_methods_invocations import op_db

    [renorm] = [op for op in op_db if op.name == "renorm"]
    tried = 0
    for sample in renorm.sample_inputs("cpu", torch.float64):
        order, dim, bound = (*sample.args, *sample.kwargs.values())
        if order not in ORDERS or sample.input.ndim < 2:
            continue
        axes = [axis for axis in range(sample.input.ndim) if axis != dim % sample.input.ndim]
        ours = norm_constraint(sample.input.detach(), float(bound), axes, ord=order)
        theirs = torch.renorm(sample.input.detach(), order, dim, bound)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        tried += 1
    assert tried >= 2
    for wrong in renorm.error_inputs("cpu"):
        sample = wrong.sample_input
        with pytest.raises(ValueError, match=r"must be 1, 2 or inf|no default axes"):
            norm_constraint(sample.input, sample.args[2], ord=sample.args[0])


COUNTING = """
import sys, torch, normball
from normball.kernels import _native
threads = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("Threads:")).split()[1])
normball.set_num_threads(int(sys.argv[1]))
_native.set_limits(0, 1, 2**62, 2**17, 2**62)
torch.set_num_threads(int(sys.argv[2]))
x, before = torch.ones(2000, 100), threads()
with torch.no_grad():
    normball.norm_constraint(x, 1.0, out=x)
print(threads() - before)
"""


@pytest.mark.skipif(
    kernels.best is kernels.fallback or not os.path.exists("/proc/self/status"), reason="no C kernels, or no /proc"
)
@pytest.mark.parametrize("ours, theirs, helpers", [(3, 4, "2"), (4, 3, "2"), (4, 1, "0"), (1, 4, "0")])
def test_no_more_threads_than_pytorch_may_use(ours, theirs, helpers):
    command = [sys.executable, "-c", COUNTING, str(ours), str(theirs)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip() == helpers


# ---- refusals


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: norm_constraint(torch.ones(2, 2, dtype=torch.int64), 1.0),
            TypeError,
            "tensor_var of dtype int64: must be one of float64, float32, float16, bfloat16; cast it first, for example tensor_var.to(torch.float32)",
        ),
        (
            lambda: norm_constraint([torch.ones(2, 2), torch.ones(2, 2).to_sparse()], 1.0),
            TypeError,
            "tensor_var[1] of layout sparse_coo: must be dense; pass the values that it stores, or tensor_var[1].to_dense()",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2, dtype=torch.complex64), 1.0, ord=1),
            ValueError,
            "ord=1: a complex tensor has order 2 only; for tensor_var pass its modulus, or ord=2",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), torch.tensor([[1.0, math.nan]])),
            ValueError,
            "max_norm=nan: must be >= 0 and not NaN; a norm is never negative",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), torch.tensor(True)),
            TypeError,
            "max_norm of dtype bool: must hold real numbers; convert it to float64 first",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), torch.ones(2, 1)),
            ValueError,
            "max_norm of shape (2, 1): must broadcast against the norms, of shape (1, 2) (the reduced axes kept as 1); add axes of length 1 where the norm is taken",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), 1.0, out=torch.ones(2)),
            ValueError,
            "out: its shape (2,) is not tensor_var's (2, 2); pass torch.empty_like(tensor_var)",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), 1.0, out=torch.ones(2, 2).double()),
            ValueError,
            "out: its dtype torch.float64 is not tensor_var's torch.float32; pass torch.empty_like(tensor_var)",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), 1.0, out=[[1.0]]),
            TypeError,
            "out of type list: must be a tensor like tensor_var; leave it out for a new one",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), 1.0, out=torch.ones(1, 2).expand(2, 2)),
            ValueError,
            "out: several of its entries share memory; pass torch.empty_like(tensor_var)",
        ),
        (
            lambda: norm_constraint(torch.ones(2, 2), 1.0, out=torch.ones(9).as_strided((2, 2), (4, 4))),
            ValueError,
            "out: several of its entries share memory; pass torch.empty_like(tensor_var)",
        ),
        (
            lambda: norm_constraint(
                *(lambda x: (x[:2], 1.0, 0, 1e-7))(torch.ones(3)), out=torch.ones(2, requires_grad=True)
            ),
            ValueError,
            "out: no gradient passes through it; call this under torch.no_grad(), or leave it out",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_overlapping_out_is_refused_before_anything_is_written():
    memory = randn(10)
    before = memory.clone()
    with pytest.raises(ValueError, match="overlaps tensor_var without being it"):
        norm_constraint(memory[:9], 1.0, 0, out=memory[1:])
    with pytest.raises(ValueError, match=r"out\[1\]: it overlaps"):
        norm_constraint([memory[:4], memory[5:9]], 1.0, 0, out=[memory[:4], memory[2:6]])
    assert same(memory, before)
