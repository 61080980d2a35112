"""Hugging Face's Trainer, really training a GPT-2 of a few weights: every unit in its ball after every step."""

import doctest
import inspect
import json
import subprocess
import sys
from fractions import Fraction

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which transformers' Trainer needs, is not installed")

import transformers  # noqa: E402
from trainers import Steps, run_guide, too_long, total_norm  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

import normball.torch  # noqa: E402
import normball.transformers as ours  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found"),
]
BOUND = 0.4
AXES = {
    "transformer.wte.weight": (1,),  # one parameter with lm_head.weight, a Linear
    "transformer.wpe.weight": (1,),
    "transformer.h.0.attn.c_attn.weight": (0,),  # Conv1D stores (in, out)
    "transformer.h.0.attn.c_proj.weight": (0,),
    "transformer.h.0.mlp.c_fc.weight": (0,),
    "transformer.h.0.mlp.c_proj.weight": (0,),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On layers this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2():
    torch.manual_seed(0)
    size = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**size, **no_dropout, initializer_range=0.4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def data():
    tokens = torch.randint(0, 16, (24, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


class Judge(TrainerCallback):
    """Stands before ours in the list: sees the weights as the optimizer's step leaves them."""

    def __init__(self, bound=BOUND):
        self.steps, self.gradients = Steps(AXES, bound), []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.gradients.append([p.grad.clone() for p in kwargs["model"].parameters()])

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps.judge(kwargs["model"])


def trained(folder, callbacks, model=None, resume=None, **settings):
    defaults = {"learning_rate": 0.05, "per_device_train_batch_size": 4, "num_train_epochs": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "steps", "logging_steps": 1}
    arguments = TrainingArguments(str(folder), **{**defaults, **quiet, **settings})
    trainer = Trainer(model or gpt2(), arguments, train_dataset=data(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- max-norm


@pytest.mark.parametrize("accumulate, steps", [(1, 6), (4, 2)])
@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_inside_after_every_step(tmp_path, accumulate, steps, precision):
    judge = Judge()
    callbacks = [judge, ours.MaxNormCallback(BOUND)]
    trained(tmp_path, callbacks, gradient_accumulation_steps=accumulate, **precision)
    assert (judge.steps.count, judge.steps.broken) == (steps, set())


def test_inside_after_every_step_can_fail(tmp_path):
    judge = Judge()
    trained(tmp_path, [judge])
    assert (judge.steps.count, judge.steps.broken) == (6, set(AXES))


def test_the_same_bits_as_by_hand(tmp_path):
    """An optimizer that is the caller's own, with the hook on it."""
    outcomes = []
    for by_hand in (False, True):
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        if by_hand:
            normball.torch.MaxNorm(BOUND).attach(optimizer, model)
        arguments = TrainingArguments(str(tmp_path), num_train_epochs=1, use_cpu=True, report_to=[], disable_tqdm=True)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        callbacks = [] if by_hand else [ours.MaxNormCallback(BOUND)]
        Trainer(model, arguments, train_dataset=data(), optimizers=(optimizer, scheduler), callbacks=callbacks).train()
        outcomes.append(bits(model))
        assert len(optimizer._optimizer_step_post_hooks) == by_hand  # ours has gone
    assert same(*outcomes)


def test_what_complies_keeps_its_bits(tmp_path):
    judge, model = Judge(), gpt2()
    before = bits(model)
    trained(tmp_path, [judge, ours.MaxNormCallback(100.0)], model, learning_rate=0.0)
    assert judge.steps.count == 6
    assert same(before, bits(model))


def test_which_axes_and_which_weights(tmp_path):
    callback = ours.MaxNormCallback({"*.mlp.*": 0.2, "*.attn.*": BOUND})
    model = trained(tmp_path, [callback]).model
    mlp = {name: axes for name, axes in AXES.items() if ".mlp." in name}
    attention = {name: axes for name, axes in AXES.items() if ".attn." in name}
    assert too_long(model, mlp, 0.2) | too_long(model, attention, BOUND) == set()
    assert too_long(model, mlp, 0.19) == set(mlp)
    assert too_long(model, AXES, BOUND) == {"transformer.wte.weight", "transformer.wpe.weight"}
    shown = {row.name: row.axes for row in ours.MaxNormCallback(1.0).describe(model).rows}
    assert {name.partition(" = ")[0]: axes for name, axes in shown.items()} == AXES
    assert "transformer.wte.weight = lm_head.weight" in shown


def test_another_librarys_conv1d_is_none_of_ours():
    class Conv1D(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 3))

    assert ours.MaxNormCallback(1.0, match="0.weight").describe(torch.nn.Sequential(torch.nn.Linear(1, 1))).rows
    left_out = ours.MaxNormCallback(1.0).describe(torch.nn.Sequential(Conv1D())).left_out
    assert left_out == {"a Conv1D is not known here: name its axes": ["0.weight"]}


def test_saved_and_resumed(tmp_path):
    """A checkpoint has constrained weights and no settings: the bits are those of one run, if the callback is there."""
    settings = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = trained(tmp_path, [ours.MaxNormCallback(BOUND)], **settings).model
    half = tmp_path / "checkpoint-3"
    assert set(json.loads((half / "trainer_state.json").read_text())["stateful_callbacks"]) == {"TrainerControl"}
    assert too_long(GPT2LMHeadModel.from_pretrained(half), AXES, BOUND) == set()
    outcomes = []
    for callbacks in ([ours.MaxNormCallback(BOUND)], []):
        judge = Judge()
        resumed = trained(tmp_path, [judge, *callbacks], resume=str(half), **settings).model
        outcomes.append((judge.steps.count, same(bits(whole), bits(resumed)), judge.steps.broken))
    assert outcomes == [(3, True, set()), (3, False, set(AXES))]


def test_a_second_run_has_the_second_bound_alone(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("stop")

    model, callback = gpt2(), ours.MaxNormCallback(0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True)

    def trainer(*callbacks):
        made = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))
        return Trainer(model, arguments, train_dataset=data(), optimizers=made, callbacks=list(callbacks))

    with pytest.raises(RuntimeError, match="stop"):
        trainer(callback, Stop()).train()
    assert len(optimizer._optimizer_step_post_hooks) == 1
    callback.max_norm = BOUND
    trainer(callback).train()
    assert len(optimizer._optimizer_step_post_hooks) == 0
    assert too_long(model, AXES, BOUND) == set()
    assert too_long(model, AXES, 0.01) == set(AXES)


@pytest.mark.parametrize(
    "callback, message",
    [
        (lambda: ours.MaxNormCallback(-1.0), "max_norm=-1.0: must be"),
        (
            lambda: ours.MaxNormCallback(1.0, match="nothing.*"),
            "match='nothing.*': matches no parameter; the model has",
        ),
        (lambda: ours.MaxNormCallback({"*.bias": 1.0}), "model: MaxNormCallback({'*.bias': 1.0}) finds nothing"),
        (lambda: ours.ClipGradNormCallback(-1.0), "max_norm=-1.0: must be"),
        (lambda: ours.ClipGradNormCallback(1.0, 3), "norm_type=3: must be"),
        (lambda: ours.ClipGradNormCallback(1.0, nonfinite="stop"), "nonfinite='stop': must be one of"),
        (
            lambda: ours.ClipGradNormCallback(1.0),
            "max_grad_norm=1.0: must be 0 with a ClipGradNormCallback: the Trainer would clip by it first; "
            "pass TrainingArguments(max_grad_norm=0)",
        ),
    ],
)
def test_refusals(tmp_path, callback, message):
    with pytest.raises(ValueError) as raised:
        trained(tmp_path, [callback()])
    assert message in str(raised.value)


def test_settings_are_those_of_torch():
    assert inspect.signature(ours.MaxNormCallback) == inspect.signature(normball.torch.MaxNorm)


# --- gradient clipping


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_inside_before_every_step(tmp_path, accumulate):
    before, after, report = Judge(), Judge(), normball.torch.ClipReport()
    clip = ours.ClipGradNormCallback(1.5, report=report)
    trainer = trained(tmp_path, [before, clip, after], max_grad_norm=0, gradient_accumulation_steps=accumulate)
    assert len(after.gradients) == report.calls == 6 // accumulate
    norms = [total_norm(came) for came in before.gradients]
    assert any(norm > Fraction(1.5) for norm in norms)
    for norm, came, seen in zip(norms, before.gradients, after.gradients, strict=True):
        assert total_norm(seen) <= Fraction(1.5)
        assert all(map(torch.equal, came, seen)) == (norm <= Fraction(1.5))
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert all(abs(a - float(b)) <= 1e-5 * b for a, b in zip(logged, norms, strict=True))
    assert next(iter(report.norms)) == "transformer.wte.weight"


def test_gradients_are_inside_can_fail(tmp_path):
    """The Trainer's own takes 1e-6 off gradients that are just inside its bound."""
    free, longest = Judge(), None
    trained(tmp_path, [free], max_grad_norm=0, learning_rate=0.0)
    longest = max(float(total_norm(came)) for came in free.gradients) * (1 + 1e-9)
    theirs, came, seen = Judge(), Judge(), Judge()
    trained(tmp_path, [theirs], max_grad_norm=longest, learning_rate=0.0)
    callbacks = [came, ours.ClipGradNormCallback(longest), seen]
    trained(tmp_path, callbacks, max_grad_norm=0, learning_rate=0.0)

    def changed(gradients):
        return sum(not all(map(torch.equal, a, b)) for a, b in zip(free.gradients, gradients, strict=True))

    assert (changed(theirs.gradients), changed(came.gradients), changed(seen.gradients)) == (1, 0, 0)


def test_other_norms_and_a_schedule(tmp_path):
    class Tighten(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            clip.max_norm = 1.0 / (1 + state.global_step)

    clip, after = ours.ClipGradNormCallback(1.0, 1), Judge()
    trained(tmp_path, [Tighten(), clip, after], max_grad_norm=0)
    sums = [sum(Fraction(v) for g in seen for v in g.double().abs().flatten().tolist()) for seen in after.gradients]
    assert all(Fraction(0.9) / (1 + step) < total <= Fraction(1.0 / (1 + step)) for step, total in enumerate(sums))


def test_gradients_that_are_not_finite_are_skipped(tmp_path):
    class Spoil(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 1:
                next(kwargs["model"].parameters()).grad[0, 0] = torch.nan

    model = trained(tmp_path, [Spoil(), ours.ClipGradNormCallback(1.0, nonfinite="skip")], max_grad_norm=0).model
    spoilt = trained(tmp_path, [Spoil()], max_grad_norm=0).model
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert not all(bool(p.isfinite().all()) for p in spoilt.parameters())


# --- the module itself


def test_examples():
    transformers.utils.logging.set_verbosity_error()  # on token ids that this model does not have
    result = doctest.testmod(ours)
    assert (result.failed, result.attempted > 5) == (0, True)


def test_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = run_guide("transformers")["model"]
    assert too_long(model, {name: axes for name, axes in AXES.items() if ".h.0." in name}, 0.5) == set()
    shown = " ".join(capsys.readouterr().out.split())
    assert "transformer.h.0.mlp.c_fc.weight Conv1D (16, 64) (in, out) 0 0.5" in shown


def test_missing_package_says_what_to_install():
    hide = "import sys; sys.modules['transformers'] = None"
    run = subprocess.run(
        [sys.executable, "-c", f"{hide}; import normball.transformers"], capture_output=True, text=True
    )
    assert run.stderr.splitlines()[-1] == (
        "ImportError: normball.transformers needs PyTorch and transformers: pip install 'normball[transformers]'"
    )
