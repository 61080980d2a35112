"""Lightning's Trainer, really training: every unit inside its ball after every optimizer step."""

import doctest
import inspect
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning", reason="lightning is not installed")

import lightning.pytorch as lightning  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from trainers import Steps, run_guide, too_long, total_norm  # noqa: E402

import normball.lightning as ours  # noqa: E402
import normball.torch  # noqa: E402

pytestmark = [
    # What Lightning says of its own code, and advice on speed.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
AXES = {"net.0.weight": (1,), "net.2.weight": (1,)}
BOUND = 0.3
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On layers this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Model(lightning.LightningModule):
    """Judged where nothing can come between: as `optimizer_step` returns."""

    def __init__(self, rate=0.5, make=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        self.rate, self.make, self.steps = rate, make, Steps(AXES, BOUND)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=self.rate)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.steps.judge(self)

    def train_dataloader(self):
        torch.manual_seed(1)
        dtype = torch.float64 if self.trainer.precision == "64-true" else torch.float32
        return DataLoader(TensorDataset(torch.randn(32, 6, dtype=dtype), 5 * torch.randn(32, 2, dtype=dtype)), 4)


def fitted(model, callbacks=(), epochs=1, **settings):
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**QUIET, **settings})
    trainer.fit(model)
    return trainer


def scaled():
    """float16 with a GradScaler, which Lightning makes for GPUs alone, and a CPU has as well."""
    from lightning.pytorch.plugins import MixedPrecision

    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))}


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- max-norm


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("accumulate, steps", [(1, 8), (3, 3)])
def test_inside_after_every_step(make, accumulate, steps):
    model = Model(make=make)
    fitted(model, [ours.MaxNorm(BOUND)], accumulate_grad_batches=accumulate)
    assert (model.steps.count, model.steps.broken) == (steps, set())


def test_inside_after_every_step_can_fail():
    model = Model()
    fitted(model)
    assert (model.steps.count, model.steps.broken) == (8, set(AXES))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-true", None], ids=str)
def test_every_precision(precision):
    settings = {"precision": precision} if precision else scaled()
    maxnorm, model, free = ours.MaxNorm(BOUND), Model(), Model()
    maxnorm.apply_(model)  # a GradScaler skips its first steps, and the constraint with them
    fitted(model, [maxnorm], **settings)
    fitted(free, **settings)
    stored = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    assert model.net[0].weight.dtype == stored.get(precision, torch.float32)
    assert model.steps.count == 8
    assert model.steps.broken == set()
    assert free.steps.broken == set(AXES)


def test_the_same_bits_as_by_hand():
    model, plain = Model(), Model()
    fitted(model, [ours.MaxNorm({"net.0.*": 0.2, "*": BOUND})])
    optimizer = plain.configure_optimizers()
    normball.torch.MaxNorm({"net.0.*": 0.2, "*": BOUND}).attach(optimizer, plain)
    plain.trainer = type("Trainer", (), {"precision": "32-true"})()
    for batch in plain.train_dataloader():
        optimizer.zero_grad()
        plain.training_step(batch, 0).backward()
        optimizer.step()
    assert same(bits(model), bits(plain))


def test_what_complies_keeps_its_bits():
    model = Model(rate=0.0)
    before = bits(model)
    fitted(model, [ours.MaxNorm(100.0)])
    assert model.steps.count == 8
    assert same(before, bits(model))


def test_two_of_them():
    """Each with its own weights, as one would write it without a mapping."""
    model = Model()
    fitted(model, [ours.MaxNorm(0.1, match="net.0.*"), ours.MaxNorm(BOUND, match="net.2.*")])
    assert model.steps.broken == set()
    assert too_long(model, AXES, 0.1) == {"net.2.weight"}


class Adversaries(Model):
    """A GAN: two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(2, 3)
        self.order = []

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=self.rate) for part in (self.net, self.critic)]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(5 * self.critic(self.net(batch[0])).square().mean().sqrt())
            optimizer.step()
            self.order.append(too_long(self, {**AXES, "critic.weight": (1,)}, BOUND))

    def optimizer_step(self, *args, **kwargs):
        lightning.LightningModule.optimizer_step(self, *args, **kwargs)


def test_several_optimizers():
    model = Adversaries()
    maxnorm = ours.MaxNorm(BOUND)
    fitted(model, [maxnorm])
    assert model.order[0] == {"critic.weight"}  # whose own optimizer has not stepped yet
    assert set().union(*model.order[1:]) == set()
    assert len(model.order) == 16
    assert [line.split()[0] for line in str(maxnorm).splitlines()[2:5]] == [*AXES, "critic.weight"]


def test_one_of_several_optimizers():
    model = Adversaries()
    fitted(model, [ours.MaxNorm(BOUND, match="critic.*")])
    assert set(AXES) <= model.order[-1]
    assert "critic.weight" not in model.order[-1]


def test_a_schedule():
    class Tighten(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            maxnorm.max_norm = BOUND / (1 + trainer.current_epoch)

    maxnorm, model = ours.MaxNorm(BOUND), Model()
    fitted(model, [Tighten(), maxnorm], epochs=3)
    assert model.steps.broken == set()
    assert too_long(model, AXES, BOUND / 3) == set()
    assert too_long(model, AXES, BOUND / 3.1) != set()


def test_saved_and_resumed(tmp_path):
    """A checkpoint has constrained weights and no settings: the bits are those of one run, if the callback is there."""
    whole, first = Model(make=torch.optim.AdamW), Model(make=torch.optim.AdamW)
    fitted(whole, [ours.MaxNorm(BOUND)], epochs=2)
    trainer = fitted(first, [ours.MaxNorm(BOUND)])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert checkpoint["callbacks"] == {}
    assert same(checkpoint["state_dict"], bits(first))
    outcomes = []
    for callbacks in ([ours.MaxNorm(BOUND)], []):
        resumed = Model(make=torch.optim.AdamW)
        trainer = lightning.Trainer(max_epochs=2, callbacks=callbacks, **QUIET)
        trainer.fit(resumed, ckpt_path=tmp_path / "half.ckpt")
        outcomes.append((resumed.steps.count, same(bits(whole), bits(resumed)), resumed.steps.broken))
    assert outcomes == [(8, True, set()), (8, False, set(AXES))]


def test_a_second_fit_has_the_second_bound_alone():
    """Of a run that breaks off nothing is left, even where it is the same optimizer."""
    model, maxnorm = Model(), ours.MaxNorm(0.01)
    optimizer = model.configure_optimizers()
    model.configure_optimizers = lambda: optimizer

    class Stop(lightning.Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fitted(model, [maxnorm, Stop()])
    assert len(optimizer._optimizer_step_post_hooks) == 1
    maxnorm.max_norm = BOUND
    fitted(model, [maxnorm])
    assert too_long(model, AXES, 0.01) == set(AXES)
    assert len(optimizer._optimizer_step_post_hooks) == 0


TWO_PROCESSES = """
import warnings
warnings.simplefilter("ignore")
import test_lightning as test
test.torch.set_num_threads(1)

class Model(test.Model):
    def on_train_end(self):
        weights = [parameter.double().sum().item() for parameter in self.parameters()]
        print(f"\\nresult {self.steps.count} {sorted(self.steps.broken)} {weights}", flush=True)

for callbacks in ([test.ours.MaxNorm(test.BOUND)], []):
    test.fitted(Model(), callbacks, strategy="ddp_fork", devices=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks two processes, as Linux can")
def test_two_processes_take_the_same_steps():
    """DistributedDataParallel: each rank constrains by itself, all end with the same weights; free, none does."""
    run = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    results = [line for line in run.stdout.splitlines() if line.startswith("result")]
    assert len(results) == 4, run.stderr
    constrained, free = set(results[:2]), set(results[2:])  # those of two ranks are equal
    assert [line[:12] for line in constrained] == ["result 4 [] "]
    assert [line.startswith(f"result 4 {sorted(AXES)}") for line in free] == [True]


def test_learning_rate_finder_trains_inside_training(tmp_path, monkeypatch):
    """It sets all other callbacks aside, finds, and puts weights and callbacks back."""
    monkeypatch.chdir(tmp_path)
    model = Model()
    model.learning_rate = 0.1
    finder = lightning.callbacks.LearningRateFinder(num_training_steps=5, update_attr=False)
    fitted(model, [finder, ours.MaxNorm(BOUND)])
    assert model.steps.count > 8
    assert set().union(*model.steps.found[-8:]) == set()


def test_older_name_of_the_same_package():
    older = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")

    body = {
        name: value
        for name, value in vars(Model).items()
        if name in ("training_step", "configure_optimizers", "train_dataloader")
    }

    def start(self):
        older.LightningModule.__init__(self)
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        self.rate, self.make, self.steps = 0.5, torch.optim.SGD, Steps(AXES, BOUND)

    def optimizer_step(self, *args, **kwargs):
        older.LightningModule.optimizer_step(self, *args, **kwargs)
        self.steps.judge(self)

    kind = type(
        "Older",
        (ours.ClipGradNorm, older.LightningModule),
        {**body, "__init__": start, "optimizer_step": optimizer_step},
    )
    model = kind()
    trainer = older.Trainer(max_epochs=1, callbacks=[ours.MaxNorm(BOUND)], gradient_clip_val=0.1, **QUIET)
    trainer.fit(model)
    assert (model.steps.count, model.steps.broken) == (8, set())
    assert trainer.callback_metrics["grad_norm"] > 0.1


@pytest.mark.parametrize(
    "maxnorm, message",
    [
        (lambda: ours.MaxNorm(-1.0), "max_norm=-1.0: must be"),
        (lambda: ours.MaxNorm(1.0, match="nothing.*"), "match='nothing.*': matches no parameter; the model has net.0"),
        (lambda: ours.MaxNorm({"*.bias": 1.0}), "finds nothing to constrain"),
    ],
)
def test_refusals(maxnorm, message):
    with pytest.raises(ValueError) as raised:
        fitted(Model(), [maxnorm()])
    assert message in str(raised.value)


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_no_optimizer_is_refused():
    model = Model()
    model.configure_optimizers = lambda: None
    with pytest.raises(ValueError, match="optimizer: has none of the model's 2 weights to constrain"):
        fitted(model, [ours.MaxNorm(BOUND)])


def test_settings_are_those_of_torch():
    assert inspect.signature(ours.MaxNorm) == inspect.signature(normball.torch.MaxNorm)
    assert repr(ours.MaxNorm(1.0, 0, mode="equal")) == "MaxNorm(1.0, axes=0, mode='equal')"


# --- gradient clipping


class Judged:
    """Notes the gradients as the optimizer will see them, and as they came."""

    def on_before_optimizer_step(self, optimizer):
        self.came = [p.grad.clone() for p in self.parameters()]

    def configure_gradient_clipping(self, *args, **kwargs):
        super().configure_gradient_clipping(*args, **kwargs)
        seen = [p.grad.clone() for p in self.parameters()]
        self.__dict__.setdefault("seen", []).append((self.came, seen))


class Clipped(Judged, ours.ClipGradNorm, Model):
    pass


class Theirs(Judged, Model):
    pass


@pytest.mark.parametrize("algorithm", [None, "norm"])
def test_gradients_are_inside_before_every_step(algorithm):
    bound, model = 0.7, Clipped()
    trainer = fitted(model, gradient_clip_val=bound, gradient_clip_algorithm=algorithm)
    assert len(model.seen) == 8
    clipped = [total_norm(came) > Fraction(bound) for came, _ in model.seen]
    assert sum(clipped) > 0
    for came, seen in model.seen:
        assert total_norm(seen) <= Fraction(bound)
        if total_norm(came) <= Fraction(bound):
            assert all(map(torch.equal, came, seen))
    last = float(total_norm(model.seen[-1][0]))
    assert abs(float(trainer.callback_metrics["grad_norm"]) - last) <= 1e-6 * last


@pytest.mark.parametrize("kind, kept", [(Clipped, True), (Theirs, False)], ids=["ours", "theirs"])
def test_gradients_within_the_bound_keep_their_bits(kind, kept):
    """Lightning's own takes 1e-6 off what is at its bound; so the test can fail."""
    free = Theirs(rate=0.0)
    fitted(free)
    longest = max(float(total_norm(came)) for came, _ in free.seen)
    model = kind(rate=0.0)
    fitted(model, gradient_clip_val=math.nextafter(longest, math.inf))
    assert all(torch.equal(a, b) for came, seen in model.seen for a, b in zip(came, seen, strict=True)) == kept


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_clip_val": 0}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}]
)
def test_the_rest_is_lightnings_own(settings):
    model, theirs = Clipped(), Theirs()
    trainer = fitted(model, **settings)
    fitted(theirs, **settings)
    assert same(bits(model), bits(theirs))
    assert "grad_norm" not in trainer.callback_metrics


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", None], ids=str)
def test_clipping_in_every_precision(precision):
    model = Clipped()
    fitted(model, gradient_clip_val=0.01, **({"precision": precision} if precision else scaled()))
    assert len(model.seen) == 8
    finite = [seen for _, seen in model.seen if all(bool(g.isfinite().all()) for g in seen)]
    assert len(finite) >= 5  # a GradScaler starts too high, and skips those steps
    assert all(total_norm(seen) <= Fraction(0.01) for seen in finite)


def test_scaled_gradients_are_not_clipped():
    """A fused optimizer unscales inside its step: Lightning refuses to clip before, and so do we."""

    def fused(parameters, lr):
        return torch.optim.SGD(parameters, lr, fused=True)

    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fitted(Clipped(make=fused), gradient_clip_val=0.01, **scaled())
    model = Clipped(make=fused)
    fitted(model, gradient_clip_val=0.01)
    assert all(total_norm(seen) <= Fraction(0.01) for _, seen in model.seen)


# --- the module itself


def test_examples():
    result = doctest.testmod(ours)
    assert (result.failed, result.attempted > 10) == (0, True)


def test_guide(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = run_guide("Lightning")["trainer"]
    axes = {"net.0.weight": (1,), "net.2.weight": (1,)}
    assert too_long(trainer.lightning_module, axes, 1.0) == set()
    assert trainer.global_step == 8
    assert "net.2.weight  Linear  (2, 16)  (out, in)  1     1.0" in capsys.readouterr().out


def test_missing_package_says_what_to_install():
    hide = "import sys; sys.modules.update({'lightning.pytorch': None, 'pytorch_lightning': None})"
    run = subprocess.run([sys.executable, "-c", f"{hide}; import normball.lightning"], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == (
        "ImportError: normball.lightning needs PyTorch and Lightning: pip install 'normball[lightning]'"
    )
