"""Rules and layouts: what is done with each tensor, never by a silent guess."""

import importlib.util
import math
import re
from pathlib import Path

import pytest

import normball
from normball.checkpoint.errors import CheckpointError
from normball.checkpoint.layouts import ASSUMED, LAYOUTS, NAMES, stored
from normball.checkpoint.rules import FLAT, Rule, choose, limited, read_rules
from normball.checkpoint.tensors import Tensor

PACKAGE = Path(normball.__file__).parent
HOW = "write 'GLOB: axes=in limit=2.5' or 'GLOB: skip'"


def tensor(name, shape, dtype="F32"):
    return Tensor(name, dtype, shape, None, 0, 0)


LINEAR, CONV, BIAS = tensor("lin.weight", (4, 3)), tensor("conv.weight", (8, 4, 3, 3)), tensor("lin.bias", (4,))
MODEL = [LINEAR, CONV, BIAS]


def settings(rule):
    return rule.glob, rule.axes, rule.limit, rule.layout, rule.skip


@pytest.mark.parametrize(
    "text, expected",
    [
        ("*.weight: axes=in limit=2.5", ("*.weight", "in", 2.5, None, False)),
        ("a: axes=0,2", ("a", (0, 2), None, None, False)),
        ("a: axes=-1", ("a", (-1,), None, None, False)),
        ("a:axes=all", ("a", "all", None, None, False)),
        ("dense/kernel:0: limit=1e-3", ("dense/kernel:0", None, 1e-3, None, False)),
        ("up.*: layout=torch-transposed axes=out", ("up.*", "out", None, "torch-transposed", False)),
        ("a b: skip", ("a b", None, None, None, True)),
        ("a: limit=inf", ("a", None, math.inf, None, False)),
    ],
)
def test_what_a_rule_says(text, expected):
    [rule] = read_rules([text])
    assert settings(rule) == expected


@pytest.mark.parametrize(
    "text, error",
    [
        ("a", f"no setting after a colon; {HOW}"),
        ("a:", f"no setting after a colon; {HOW}"),
        (": skip", f"no setting after a colon; {HOW}"),
        ("a: axis=0", f"'axis' is not a setting; {HOW}"),
        ("a: axes=0 axes=1", "axes is given twice; once is enough"),
        ("a: axes", f"axes has no value; {HOW}"),
        ("a: axes=0,", "axes=0,: must be in, out, all or numbers, as 0,2"),
        ("a: axes=inn", "axes=inn: must be in, out, all or numbers, as 0,2"),
        ("a: axes=1.0", "axes=1.0: must be in, out, all or numbers, as 0,2"),
        ("a: limit=-1", "limit=-1: must be a number >= 0, as 2.5"),
        ("a: limit=nan", "limit=nan: must be a number >= 0, as 2.5"),
        ("a: limit", f"limit has no value; {HOW}"),
        ("a: skip limit=1", f"skip takes no limit; {HOW}"),
        ("a: skip=1", f"skip is a word of its own; {HOW}"),
        ("a: layout=torsh", f"layout=torsh: must be one of {', '.join(NAMES)}"),
        ("a: layout=torch axes=0", "axes by number and a layout say it twice; leave one out"),
    ],
)
def test_what_is_no_rule(text, error):
    with pytest.raises(CheckpointError) as raised:
        read_rules([text])
    assert str(raised.value) == f"--rule '{text}': {error}"


def test_rules_of_a_file_come_after_those_of_the_command_line(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rule]]\nmatch = "a"\naxes = [0, -1]\nlimit = 2\n'
        '[[rule]]\nmatch = "b"\naxes = 1\n[[rule]]\nmatch = "c"\naxes = "in"\nlayout = "keras"\n'
        '[[rule]]\nmatch = "d"\nskip = true\n'
    )
    assert [settings(rule) for rule in read_rules(["z: skip"], path)] == [
        ("z", None, None, None, True),
        ("a", (0, -1), 2.0, None, False),
        ("b", (1,), None, None, False),
        ("c", "in", None, "keras", False),
        ("d", None, None, None, True),
    ]


@pytest.mark.parametrize(
    "content, error",
    [
        (b"[[rule", ": is not TOML, "),
        (b"\xff", ": is not TOML, "),
        (b"a = " + b"[" * 5000, ": is not TOML, "),
        (b"a = " + b"1" * 5000, ": is not TOML, Exceeds the limit (4300 digits)"),
        (b"", ": write a table for each rule, [[rule]] with match = 'GLOB'"),
        (b"rule = 1", ": write a table for each rule, [[rule]] with match = 'GLOB'"),
        (b"limit = 3\n[[rule]]\nmatch='a'", ": 'limit' is not known here; write a table for each rule, "),
        (b"[[rule]]\naxes = 0", ", rule 1: has no match = 'GLOB'"),
        (b"[[rule]]\nmatch = 1", ", rule 1: has no match = 'GLOB'"),
        (b"[[rule]]\nmatch = 'a'", f", rule 1 (a): sets nothing; {HOW}"),
        (b"[[rule]]\nmatch = 'a'\naxes = []", ", rule 1 (a): axes=[]: must be in, out, all or numbers, as 0,2"),
        (b"[[rule]]\nmatch = 'a'\naxes = [true]", ", rule 1 (a): axes=[True]: must be in, out, all or numbers, as 0,2"),
        (b"[[rule]]\nmatch = 'a'\naxes = 1.5", ", rule 1 (a): axes=1.5: must be in, out, all or numbers, as 0,2"),
        (b"[[rule]]\nmatch = 'a'\nlimit = [1]", ", rule 1 (a): limit=[1]: must be a number >= 0, as 2.5"),
        (b"[[rule]]\nmatch = 'a'\nlimit = true", ", rule 1 (a): limit=True: must be a number >= 0, as 2.5"),
        (b"[[rule]]\nmatch = 'a'\nskip = 1", f", rule 1 (a): skip is a word of its own; {HOW}"),
    ],
)
def test_what_is_no_file_of_rules(tmp_path, content, error):
    path = tmp_path / "rules.toml"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read_rules([], path)
    assert str(raised.value).startswith(f"{path}{error}")
    assert "\n" not in str(raised.value)


def test_a_file_of_rules_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"rules.toml: No such file"):
        read_rules([], tmp_path / "rules.toml")


def chosen(tensors, *rules, layout="torch", max_norm=3.0):
    choices = choose(tensors, read_rules(rules), layout, max_norm)
    assert list(choices) == [tensor.name for tensor in tensors]
    return {name: (choice.axes, choice.limit) for name, choice in choices.items()}


def test_the_layout_chooses_and_leaves_alone():
    assert chosen(MODEL) == {"lin.weight": ((1,), 3.0), "conv.weight": ((1, 2, 3), 3.0), "lin.bias": (None, None)}
    assert choose(MODEL, [], "torch", 3.0)["lin.bias"].why == FLAT


def test_the_first_rule_that_fits_counts():
    assert chosen(MODEL, "lin.*: axes=0", "*.weight: limit=1", "conv*: skip")["lin.weight"] == ((0,), 3.0)
    assert chosen(MODEL, "lin.*: axes=0", "*.weight: limit=1", "conv*: skip")["conv.weight"] == ((1, 2, 3), 1.0)
    assert chosen(MODEL, "conv*: skip", "*.weight: limit=1")["conv.weight"] == (None, None)


def test_a_name_with_brackets_fits_itself():
    tensors = [tensor("layers[0].weight", (4, 3)), tensor("layers0.weight", (4, 3))]
    assert chosen(tensors, "layers[0].weight: skip") == {
        "layers[0].weight": (None, None),
        "layers0.weight": (None, None),
    }
    assert chosen(tensors[:1], "layers[0].weight: limit=2") == {"layers[0].weight": ((1,), 2.0)}


def test_words_for_axes():
    assert chosen([CONV], "conv*: axes=in")["conv.weight"] == ((1, 2, 3), 3.0)
    assert chosen([CONV], "conv*: axes=out")["conv.weight"] == ((0, 2, 3), 3.0)
    assert chosen([CONV], "conv*: axes=all")["conv.weight"] == ((0, 1, 2, 3), 3.0)
    assert chosen([CONV], "conv*: axes=-1,0")["conv.weight"] == ((0, 3), 3.0)
    assert chosen([CONV], "conv*: axes=out", layout="keras")["conv.weight"] == ((0, 1, 3), 3.0)


def test_biases_are_taken_by_a_rule_that_means_them():
    assert chosen(MODEL, "*: axes=0")["lin.bias"] == (None, None)
    assert chosen(MODEL, "*: axes=1")["lin.bias"] == (None, None)
    assert chosen(MODEL, "*.bias: axes=0")["lin.bias"] == ((0,), 3.0)
    assert chosen(MODEL, "*.bias: axes=all")["lin.bias"] == ((0,), 3.0)


@pytest.mark.parametrize(
    "dtype, shape, why",
    [
        ("I64", (2, 2), "of dtype I64, which has no norm ball"),
        ("BOOL", (2, 2), "of dtype BOOL, which has no norm ball"),
        ("U8", (2, 2), "of dtype U8, which has no norm ball"),
        ("F4", (2, 2), "of dtype F4, which has no norm ball"),
        ("C64", (2, 2), "of dtype C64, which has no norm ball"),
        ("F8_E8M0", (2, 2), "of dtype F8_E8M0, which has no norm ball"),
        ("longdouble", (2, 2), "of dtype longdouble, which has no norm ball"),
        ("F32", (), "0-d"),
        ("F32", (2,), FLAT),
    ],
)
def test_what_is_left_alone_whatever_a_rule_for_all_says(dtype, shape, why):
    tensors = [tensor("it", shape, dtype), LINEAR]
    for rules in ((), ("*: axes=0",), ("*: axes=in",)):
        choice = choose(tensors, read_rules(rules), "torch", 3.0)["it"]
        assert (choice.axes, choice.why) == (None, why)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_dtypes_that_are_taken(dtype):
    assert chosen([tensor("a.weight", (2, 3), dtype)]) == {"a.weight": ((1,), 3.0)}


@pytest.mark.parametrize(
    "rule, error",
    [
        ("lin.wieght: axes=0", "matches no tensor; did you mean lin.weight, conv.weight?"),
        ("xxxxx: skip", "matches no tensor; the model has lin.weight, conv.weight, lin.bias"),
        ("lin.bias: limit=2", f"does nothing, lin.bias is left alone: {FLAT}"),
        (
            "lin.weight: axes=2",
            "axes=2 does not fit lin.weight of shape (4, 3): each from -2 to 1 and once; a rule before this one may take that tensor",
        ),
        (
            "lin.weight: axes=0,-2",
            "axes=0,-2 does not fit lin.weight of shape (4, 3): each from -2 to 1 and once; a rule before this one may take that tensor",
        ),
    ],
)
def test_a_rule_that_does_nothing_is_refused(rule, error):
    with pytest.raises(CheckpointError) as raised:
        choose(MODEL, read_rules([rule]), "torch", 3.0)
    assert str(raised.value) == f"--rule '{rule}': {error}"


def test_a_rule_behind_another_is_no_error():
    assert chosen(MODEL, "*.weight: limit=1", "lin.weight: limit=2")["lin.weight"] == ((1,), 1.0)


def test_without_a_layout_each_needs_axes():
    with pytest.raises(CheckpointError) as raised:
        choose(MODEL, read_rules(["lin*: limit=2"]), None, 3.0)
    remedy = f"pass --layout {'|'.join(NAMES)}, or a rule, as --rule 'lin.weight: axes=0'"
    message = f"which axes of lin.weight (and 1 more), of shape (4, 3), are incoming is not known: {remedy}"
    assert str(raised.value) == message
    assert chosen(MODEL, "lin.*t: axes=1", "conv*: layout=torch", layout=None) == chosen(MODEL)
    assert chosen(MODEL, "lin.*t: axes=1", "conv*: skip", layout=None)["conv.weight"] == (None, None)


def test_limits_are_those_of_rules_or_the_one_for_all():
    assert limited(choose(MODEL, [], "torch", 3.0))
    assert not limited(choose(MODEL, [], "torch", None))
    assert limited(choose(MODEL, [Rule("lin.*", limit=0.0)], "torch", None))
    assert not limited(choose([BIAS], [], "torch", 3.0))


def test_names_that_a_layout_does_not_use_need_a_rule():
    unknown = tensor("pos_embed", (5, 4, 3))
    for layout in ("torch", "gpt2", "keras", "jax"):
        choice = choose([unknown], [], layout, 3.0)["pos_embed"]
        assert choice.axes is None
        assert choice.why.startswith(f"not a name of {layout} weights (")
    assert chosen([unknown], "pos*: axes=in") == {"pos_embed": ((1, 2), 3.0)}
    assert chosen([unknown], "pos*: axes=in", layout="keras") == {"pos_embed": ((0, 1), 3.0)}
    assert choose([unknown], [], ASSUMED, 3.0)["pos_embed"].axes == (1, 2)


@pytest.mark.parametrize(
    "name, shape, doubt",
    [
        ("h.0.attn.c_attn.weight", (4, 12), "named as GPT-2's Conv1D, "),
        ("dec.up_transpose.weight", (4, 2, 3, 3), "named as a ConvTranspose, "),
        ("deconv1.weight", (4, 2, 3), "named as a ConvTranspose, "),
        ("h.0.attn.out.weight", (4, 4), ""),
        ("conv1.weight", (4, 2, 3), ""),
    ],
)
def test_a_name_that_may_mean_another_layout_is_said_not_guessed(name, shape, doubt):
    for layout in ("torch", ASSUMED):
        choice = choose([tensor(name, shape)], [], layout, 3.0)[name]
        assert choice.axes == tuple(range(1, len(shape)))
        assert bool(choice.doubt) == bool(doubt)
        assert choice.doubt.startswith(doubt)


def test_every_layout_has_axes_for_a_name_that_is_certain_and_says_which_are_which():
    for layout in LAYOUTS:
        known = stored(layout, "anything", 2, True)
        assert sorted((*known.units, *known.inputs)) == [0, 1]
        assert known.text


def loaded(path):
    """A file of another part, without the library that its package is about."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def incoming(layout, name, ndim):
    known = stored(layout, name, ndim, False)
    return (
        None
        if known is None
        else (known.text.partition(", by")[0], tuple(a for a in range(ndim) if a not in known.units))
    )


JAX = [
    *(("Dense_0/kernel", ndim) for ndim in (2, 3, 4)),
    *(f"attention/{part}/kernel" for part in ("query", "key", "value", "out")),
    *(("linear/~/w", 2), ("conv2_d_transpose/w", 4), ("a/conv2_d/w", 4), ("Embed_0/embedding", 2)),
    *(("layers/0/weight", 2), ("conv/weight", 4), ("cell/weight_hh", 2), ("layer_norm/weight", 2), ("a/unknown", 2)),
    *(("norm/scale", 2), ("a/bias", 2), ("embed/embeddings", 2)),
]


@pytest.mark.parametrize("name, ndim", [(case, 3) if isinstance(case, str) else case for case in JAX])
def test_jax_names_mean_what_they_mean_to_our_optax_transformations(name, ndim):
    layouts = loaded(PACKAGE / "optax" / "layouts.py")
    known = layouts.incoming(name.split("/"), ndim)
    assert incoming("jax", name, ndim) == (None if isinstance(known, str) else tuple(known))


KERAS = {  # a layer's class -> what Keras calls such a layer, and dimensions of its weights
    "Dense": ("dense", (2,)),
    "Embedding": ("embedding", (2,)),
    "BaseConv": ("conv2d", (3, 4, 5)),
    "BaseConvTranspose": ("conv2d_transpose_3", (3, 4, 5)),
    "BaseDepthwiseConv": ("depthwise_conv2d", (3, 4)),
    "BaseSeparableConv": ("separable_conv2d_1", (3, 4)),
    "LSTMCell": ("lstm_cell", (2,)),
    "GRUCell": ("gru_cell", (2,)),
    "SimpleRNNCell": ("simple_rnn_cell", (2,)),
    "ConvLSTMCell": ("conv_lstm_cell", (3, 4)),
}


def test_keras_names_mean_what_they_mean_to_our_constraints():
    layouts = loaded(PACKAGE / "keras" / "layouts.py")
    compared = 0
    for (kind, own), layout_of in layouts._LAYOUTS.items():
        if kind == "EinsumDense":  # as its equation says
            continue
        name, dimensions = KERAS[kind]
        for ndim in dimensions:
            text, axes = layout_of(None, ndim)
            found = incoming("keras", f"model/{name}/{own}", ndim)
            assert found[1] == axes, (kind, own)
            assert found[0] == text.replace("gates*units", "out")
            compared += 1
    assert compared > 20


def test_torch_names_mean_what_they_mean_to_our_torch_constraints():
    torch = pytest.importorskip("torch")
    from normball.torch.layers import incoming as of_layer

    nn, compared = torch.nn, 0
    layers = [
        *(nn.Linear(3, 4), nn.Bilinear(2, 3, 4), nn.Embedding(5, 3), nn.EmbeddingBag(5, 3)),
        *(nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(4, 6, 3)),
        *(nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, kdim=3, vdim=3)),
        *(nn.LSTM(3, 4, 2, proj_size=2), nn.GRU(3, 4), nn.RNNCell(3, 4), nn.LSTMCell(3, 4)),
    ]
    transposed = [nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose3d(4, 6, 3)]
    for layer in layers + transposed:
        for name, parameter in layer.named_parameters(recurse=False):
            known = of_layer(layer, name)
            if known is None:
                assert incoming("torch", f"model.{name}", parameter.ndim) is None or parameter.ndim < 2
                continue
            layout = "torch-transposed" if layer in transposed else "torch"
            assert incoming(layout, f"model.{name}", parameter.ndim)[1] == known.axes
            compared += 1
    assert compared > 20


def test_gpt2_names():
    assert incoming("gpt2", "transformer.h.0.attn.c_attn.weight", 2) == ("(in, out)", (0,))
    assert incoming("gpt2", "transformer.h.0.mlp.c_proj.weight", 2) == ("(in, out)", (0,))
    assert incoming("gpt2", "transformer.wte.weight", 2) == ("(row, dim)", (1,))
    assert incoming("gpt2", "lm_head.weight", 2) == ("(out, in)", (1,))
    assert incoming("gpt2", "transformer.h.0.attn.bias", 4) is None


@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_pytensor_is_norm_constraints_own_default(ndim):
    from normball import arguments

    assert incoming("pytensor", "w", ndim)[1] == arguments.default_axes(ndim)
    assert incoming("pytensor", "w", 6) is None


def test_the_guide_names_every_layout():
    page = (Path(__file__).parent.parent / "docs" / "checkpoint.md").read_text()
    table = page.partition("| layout |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == NAMES
