"""Which axes a layer's incoming weights lie along: a golden table, judged by what the layers themselves compute."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize  # noqa: E402

from normball.torch import MaxNorm, NormConstraint  # noqa: E402
from normball.torch.layers import incoming  # noqa: E402

LINEAR = [  # layer, input shape, shape in which its weight is seen, axes
    (lambda: nn.Linear(3, 5), (3,), (5, 3), (1,)),
    (lambda: nn.Conv1d(4, 6, 3), (4, 5), (6, 4, 3), (1, 2)),
    (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5), (6, 4, 3, 3), (1, 2, 3)),
    (lambda: nn.Conv2d(4, 6, (3, 2), groups=2), (4, 5, 5), (6, 2, 3, 2), (1, 2, 3)),
    (lambda: nn.Conv2d(4, 8, 2, groups=4), (4, 5, 5), (8, 1, 2, 2), (1, 2, 3)),  # depthwise
    (lambda: nn.Conv3d(2, 3, 2), (2, 3, 3, 3), (3, 2, 2, 2, 2), (1, 2, 3, 4)),
    (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 5), (4, 6, 3), (0, 2)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 5), (2, 2, 3, 3), (1, 3)),
    (lambda: nn.ConvTranspose2d(4, 6, 3), (4, 5, 5), (4, 6, 3, 3), (0, 2, 3)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), (2, 2, 3, 3, 3), (1, 3, 4)),
    (lambda: nn.ConvTranspose2d(4, 4, 2, groups=4), (4, 5, 5), (4, 1, 1, 2, 2), (1, 3, 4)),  # depthwise
    (lambda: nn.ConvTranspose3d(2, 4, 2, groups=2), (2, 3, 3, 3), (2, 1, 2, 2, 2, 2), (1, 3, 4, 5)),
]
STACKED = [  # layer, the names of its weights; each row is about one gate or head component of one unit
    (lambda: nn.LSTM(3, 3), ["weight_ih_l0", "weight_hh_l0"]),
    (lambda: nn.LSTM(3, 3, proj_size=2), ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]),
    (lambda: nn.GRU(3, 3), ["weight_ih_l0", "weight_hh_l0"]),
    (lambda: nn.RNN(3, 3), ["weight_ih_l0", "weight_hh_l0"]),
    (lambda: nn.LSTMCell(3, 3), ["weight_ih", "weight_hh"]),
    (lambda: nn.GRUCell(3, 3), ["weight_ih", "weight_hh"]),
    (lambda: nn.RNNCell(3, 3), ["weight_ih", "weight_hh"]),
]


def name_of(value):
    return str(value()).partition(",")[0] if callable(value) else None


def groups(layout, weight):
    """For each entry of the weight, which group it is in."""
    view = layout.view(weight.detach())
    kept = [1 if axis in layout.axes else n for axis, n in enumerate(view.shape)]
    numbers = torch.arange(torch.Size(kept).numel()).reshape(kept).expand(view.shape)
    return numbers.reshape(weight.shape)


def units(layer, weight, inputs):
    """For each entry of the weight, the one output channel that it reaches: by derivatives, channel by channel."""
    reached = torch.full(weight.shape, -1)
    output = layer(inputs)
    for unit in range(output.shape[0]):
        (gradient,) = torch.autograd.grad(output[unit].sum(), weight, retain_graph=True)
        assert (reached[gradient != 0] == -1).all()
        reached[gradient != 0] = unit
    assert (reached >= 0).all()
    return reached


def same_parts(a, b):
    """Whether two numberings of the same entries make the same groups of them."""
    pairs = set(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


@pytest.mark.parametrize("make, shape, view, axes", LINEAR, ids=name_of)
def test_a_group_is_what_one_output_channel_receives(make, shape, view, axes):
    layer = make()
    layout = incoming(layer, "weight")
    assert (tuple(layout.view(layer.weight).shape), layout.axes) == (view, axes)
    reached = units(layer, layer.weight, torch.rand(shape) + 0.5)
    assert same_parts(groups(layout, layer.weight), reached)
    assert not same_parts(groups(layout._replace(axes=(0,), groups=1), layer.weight), reached)  # the judge can say no


def test_bilinear():
    layer = nn.Bilinear(3, 4, 5)
    layout = incoming(layer, "weight")
    first, second = torch.rand(3) + 0.5, torch.rand(4) + 0.5
    assert layout.axes == (1, 2)
    assert same_parts(groups(layout, layer.weight), units(lambda x: layer(x, second), layer.weight, first))


@pytest.mark.parametrize("make", [lambda: nn.Embedding(5, 3), lambda: nn.EmbeddingBag(5, 3)], ids=name_of)
def test_an_embedded_vector_is_a_group(make):
    layer = make()
    layout = incoming(layer, "weight")
    looked_up = lambda _: torch.stack([layer(torch.tensor([[row]])).flatten() for row in range(5)])
    assert layout.axes == (1,)
    assert same_parts(groups(layout, layer.weight), units(looked_up, layer.weight, None))


def within_span(rows, inputs):
    """Whether the rows combine the inputs: the gradient of a unit's incoming weights is a multiple of its inputs."""
    rank = torch.linalg.matrix_rank
    return bool(rank(torch.cat([rows, inputs]), rtol=1e-9) == rank(inputs, rtol=1e-9))


@pytest.mark.parametrize("make, names", STACKED, ids=name_of)
def test_gates_are_rows(make, names):
    layer = make().double()
    assert names == [name for name, parameter in layer.named_parameters() if parameter.ndim > 1]
    x = torch.rand(1, 3).double()
    sizes = [layer.proj_size or 3, 3] if getattr(layer, "proj_size", 0) else [3, 3]
    state = [torch.rand(1, size).double() for size in sizes]
    output = layer(x, tuple(state) if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else state[0])
    loss = (output[0].flatten() * torch.rand(output[0].numel())).sum() if isinstance(output, tuple) else output.sum()
    loss.backward()
    for name in names:
        layout, gradient = incoming(layer, name), getattr(layer, name).grad
        assert (layout.axes, layout.groups) == ((1,), 1)
        if "hr" in name:  # its input is the hidden state within: one multiple of it for each row
            assert torch.linalg.matrix_rank(gradient, rtol=1e-9) == 1
        else:
            inputs = x if "ih" in name else state[0]
            assert within_span(gradient, inputs)
            assert not within_span(gradient[: gradient.shape[1]].T.contiguous(), inputs)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}])
def test_attention_projects_by_rows(sizes):
    layer = nn.MultiheadAttention(4, 2, **sizes).double()
    inputs = [torch.rand(2, size).double() for size in (4, sizes.get("kdim", 4), sizes.get("vdim", 4))]
    output, _ = layer(*inputs)
    (output * torch.rand(output.shape)).sum().backward()
    if sizes:
        names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        gradients = [getattr(layer, name).grad for name in names]
    else:
        names = ["in_proj_weight"]
        gradients = layer.in_proj_weight.grad.chunk(3)
    for gradient, x in zip(gradients, inputs, strict=True):
        assert within_span(gradient, x)
        assert x.shape[1] != 4 or not within_span(gradient.T.contiguous(), x)
    assert {incoming(layer, name) and incoming(layer, name).axes for name in names} == {(1,)}
    assert incoming(layer.out_proj, "weight").axes == (1,)


def test_many_layers_and_directions():
    rows = MaxNorm(1.0).describe(nn.LSTM(4, 3, num_layers=2, bidirectional=True)).rows
    assert len(rows) == 8
    assert {row.axes for row in rows} == {(1,)}


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 3))
        self.head = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)


def shown(model, *args, **kwargs):
    table = MaxNorm(*args, **kwargs).describe(model)
    return [(row.name, row.axes, row.bound) for row in table.rows], table.left_out


def test_what_has_no_incoming_axes_is_shown_as_left_out():
    assert shown(Own(), 1.0) == (
        [("head.weight", (1,), 1.0)],
        {
            "an Own is not known here: name its axes": ["kernel"],
            "1-D (biases, normalisation): name its axes": ["head.bias", "norm.weight", "norm.bias"],
        },
    )


def test_axes_for_all_leave_out_biases_only():
    rows, left_out = shown(Own(), 1.0, axes=0)
    assert [name for name, *_ in rows] == ["kernel", "head.weight"]
    assert list(left_out) == ["1-D (biases, normalisation): name its axes"]


def test_named_axes_and_bounds():
    axes = {"kernel": (0, -1), "norm.weight": 0, "head.*": "incoming"}
    rows, left_out = shown(Own(), {"norm.*": 2.0, "*": 1}, axes=axes)
    assert rows == [("kernel", (0, 1), 1), ("head.weight", (1,), 1), ("norm.weight", (0,), 2.0)]
    assert left_out["axes has none for it"] == ["norm.bias"]
    assert shown(Own(), {"head.*": 2.0})[0] == [("head.weight", (1,), 2.0)]
    callable_axes = lambda name, parameter: 1 if parameter.shape == (2, 3) and name == "kernel" else None
    assert shown(Own(), 1.0, axes=callable_axes)[0] == [("kernel", (1,), 1.0)]


def test_match():
    assert [name for name, *_ in shown(Own(), 1.0, 1, match="k*")[0]] == ["kernel"]
    assert shown(Own(), 1.0, 0, match=["norm.weight", "kernel"])[0] == [
        ("kernel", (0,), 1.0),
        ("norm.weight", (0,), 1.0),
    ]
    assert shown(Own(), 1.0, match=lambda name, parameter: parameter.shape == (2, 3)) == (
        [("head.weight", (1,), 1.0)],
        {"an Own is not known here: name its axes": ["kernel"], "no match": ["head.bias", "norm.weight", "norm.bias"]},
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"match": "*.wieght"}, "match='*.wieght': matches no parameter; the model has kernel, head.weight, head.bias, ..."),
        ({"match": ["head.*", "norm.weight"]}, "match='norm.weight': norm.weight is left out, 1-D (biases, normalisation): name its axes; name its axes, for example axes={'norm.weight': 0}"),
        ({"axes": {"had.*": 1, "*": 0}}, "axes='had.*': matches no parameter; the model has kernel, head.weight, head.bias, ..."),
        ({"axes": 1, "match": "norm.*"}, "axes of norm.weight: norm_axes=1: axis 1 is out of range for an array of 1 dimension; use -1 to 0"),
        ({"axes": {"*": 1.5}}, "axes of kernel: norm_axes=1.5: must be None, an int or a sequence of ints; for example norm_axes=(0, 2)"),
    ],
)  # fmt: skip
def test_globs_and_axes_that_do_nothing_are_refused(settings, message):
    with pytest.raises((TypeError, ValueError)) as error:
        MaxNorm(1.0, **settings).describe(Own())
    assert str(error.value) == message


def test_tied_weights_are_one():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    assert shown(model, 1.0) == ([("embed.weight = head.weight", (1,), 1.0)], {})
    assert shown(model, {"head.*": 2.0})[0] == [("embed.weight = head.weight", (1,), 2.0)]


def test_tied_weights_that_disagree():
    model = nn.ModuleDict({"up": nn.ConvTranspose1d(4, 4, 3), "down": nn.Conv1d(4, 4, 3)})
    model["up"].weight = model["down"].weight
    with pytest.raises(ValueError) as error:
        MaxNorm(1.0).describe(model)
    assert str(error.value) == (
        "up.weight and down.weight are one parameter, but incoming weights lie along axes 0 2 of (in, out, *kernel) in "
        "ConvTranspose1d and along 1 2 of (out, in, *kernel) in Conv1d; match one of them, or name the axes"
    )
    assert shown(model, 1.0, match="down.*")[0] == [("down.weight = up.weight", (1, 2), 1.0)]
    assert shown(model, 1.0, axes=0)[0] == [("up.weight = down.weight", (0,), 1.0)]


def test_a_layer_used_twice_is_one():
    layer = nn.Linear(2, 2, bias=False)
    assert shown(nn.Sequential(layer, layer), 1.0)[0] == [("0.weight = 1.weight", (1,), 1.0)]
    assert shown(nn.Sequential(layer, layer), 1.0, match="1.*")[0] == [("1.weight = 0.weight", (1,), 1.0)]


def test_lazy_layers_are_refused_until_they_know_their_shape():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError) as error:
        MaxNorm(1.0).describe(model)
    assert (
        str(error.value) == "0.weight: its LazyLinear has not seen an input yet; run one batch through the model first"
    )
    model(torch.ones(1, 2))
    assert shown(model, 1.0)[0] == [("0.weight", (1,), 1.0)]


def test_flat_pieces_are_refused():
    layer = nn.Linear(3, 5)
    layer.weight = nn.Parameter(torch.ones(7))  # as FSDP1 with use_orig_params does
    with pytest.raises(ValueError) as error:
        MaxNorm(1.0).describe(layer)
    assert str(error.value) == (
        "weight: of shape (7,), where a Linear has (out, in); a flat piece has no axes: gather it first, or use FSDP2"
    )


@pytest.mark.parametrize("kind", [nn.Identity, lambda: NormConstraint(9.0, axes=1)])
def test_a_parametrized_weight_is_its_original(kind):
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    parametrize.register_parametrization(model[0], "weight", kind())
    assert shown(model, 1.0)[0] == [("0.parametrizations.weight.original", (1,), 1.0)]
    assert shown(model, 1.0, match="0.weight")[0] == [("0.parametrizations.weight.original", (1,), 1.0)]
    MaxNorm(0.1).apply_(model)
    assert (torch.linalg.vector_norm(model[0].weight.double(), dim=1) <= 0.1).all()


def test_a_computed_weight_is_left_out():
    layer = parametrizations.weight_norm(nn.Linear(2, 3, bias=False))
    names = ["parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert shown(layer, 1.0) == ([], {"parametrized by WeightNorm: constrain it by a NormConstraint after that": names})
    parametrize.register_parametrization(layer, "weight", NormConstraint(0.1, axes=1))
    assert shown(layer, 1.0) == ([], {"parametrized by WeightNorm: constrained by its NormConstraint": names})
    assert (torch.linalg.vector_norm(layer.weight.double(), dim=1) <= 0.1).all()
    assert shown(layer, 1.0, axes={"*original1": 1})[0] == [(names[1], (1,), 1.0)]


def test_wrappers_names_may_be_left_out_of_globs():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = Wrapper(nn.Sequential(nn.Linear(2, 2)))
    for glob in ("0.weight", "module.0.weight"):
        assert shown(model, 1.0, match=glob)[0] == [("module.0.weight", (1,), 1.0)]


def test_norms_of_a_grouped_transposed_convolution_are_one_per_channel():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2)
    [norms] = MaxNorm(1.0).norms(nn.Sequential(layer)).values()
    weight = layer.weight.detach().double()
    wanted = [weight[2 * (out // 3) : 2 * (out // 3) + 2, out % 3].norm() for out in range(6)]
    torch.testing.assert_close(norms, torch.stack(wanted))
