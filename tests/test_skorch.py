"""skorch on scikit-learn's digits: every unit inside its ball after every step, and settings that can be searched."""

import copy
import doctest
import inspect
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skorch", reason="skorch is not installed")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from skorch import NeuralNet, NeuralNetClassifier  # noqa: E402
from skorch.callbacks import Callback, GradientNormClipping  # noqa: E402
from skorch.hf import AccelerateMixin  # noqa: E402
from torch import nn  # noqa: E402
from trainers import Steps, run_guide, too_long, total_norm  # noqa: E402

import normball.skorch as ours  # noqa: E402
import normball.torch  # noqa: E402

BOUND = 0.5
AXES = {"0.weight": (1,), "2.weight": (1,)}
DIGITS = load_digits()
X, Y = (DIGITS.data[:300] / 16).astype(np.float32), DIGITS.target[:300].astype(np.int64)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On layers this small, threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Judge(Callback):
    """Stands before ours in the list: sees gradients before the step, and weights as the step leaves them."""

    def __init__(self, axes=AXES, bound=BOUND):
        self.axes, self.bound = axes, bound

    def initialize(self):
        self.steps_, self.gradients_ = Steps(self.axes, self.bound), []
        return self

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.gradients_.append([p.grad.clone() for _, p in named_parameters])

    def on_batch_end(self, net, batch=None, training=None, **kwargs):
        if training:
            self.steps_.judge(net.module_)


def network():
    return nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def classifier(callbacks, **settings):
    torch.manual_seed(0)
    defaults = {"max_epochs": 2, "lr": 0.5, "batch_size": 60, "train_split": None, "verbose": 0}
    return NeuralNetClassifier(network, criterion=nn.CrossEntropyLoss, callbacks=callbacks, **{**defaults, **settings})


def bits(net):
    return {name: value.clone() for name, value in net.module_.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- max-norm


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_inside_after_every_step(optimizer):
    judge = Judge()
    classifier([judge, ours.MaxNorm(BOUND)], optimizer=optimizer).fit(X, Y)
    assert (judge.steps_.count, judge.steps_.broken) == (10, set())


def test_inside_after_every_step_can_fail():
    judge = Judge()
    classifier([judge]).fit(X, Y)
    assert (judge.steps_.count, judge.steps_.broken) == (10, set(AXES))


def test_steps_that_look_more_than_once():
    """LBFGS evaluates gradients several times a step."""
    judge = Judge()
    classifier([judge, ours.MaxNorm(BOUND)], optimizer=torch.optim.LBFGS, lr=1.0, max_epochs=1).fit(X, Y)
    assert len(judge.gradients_) > judge.steps_.count == 5
    assert judge.steps_.broken == set()


def test_the_same_bits_as_by_hand():
    net, hand = classifier([ours.MaxNorm(BOUND)]).fit(X, Y), classifier([]).initialize()
    with normball.torch.MaxNorm(BOUND).attach(hand.optimizer_, hand.module_):
        hand.partial_fit(X, Y)
    assert same(bits(net), bits(hand))


def test_it_learns():
    """Within its balls the network still tells digits apart."""
    assert classifier([ours.MaxNorm(3.0)], max_epochs=10).fit(X, Y).score(X, Y) > 0.9


def test_what_complies_keeps_its_bits():
    net = classifier([ours.MaxNorm(100.0)], lr=0.0).initialize()
    before = bits(net)
    assert same(before, bits(net.partial_fit(X, Y)))


def test_a_schedule_and_partial_fit():
    maxnorm, judge = ours.MaxNorm(BOUND), Judge(bound=0.1)

    class Tighten(Callback):
        def on_epoch_begin(self, net, **kwargs):
            maxnorm.max_norm = (BOUND, 0.1)[len(net.history) - 1]

    net = classifier([judge, Tighten(), maxnorm]).fit(X, Y)
    assert set().union(*judge.steps_.found[:5]) == set(AXES)
    assert set().union(*judge.steps_.found[5:]) == set()
    assert len(net.optimizer_._optimizer_step_post_hooks) == 0


def test_a_second_run_has_the_second_bound_alone():
    class Stop(Callback):
        def on_batch_end(self, net, **kwargs):
            raise RuntimeError("stop")

    net = classifier([("stop", Stop()), ("maxnorm", ours.MaxNorm(0.01))]).initialize()
    with pytest.raises(RuntimeError, match="stop"):
        net.partial_fit(X, Y)
    assert len(net.optimizer_._optimizer_step_post_hooks) == 1
    net.callbacks_ = [pair for pair in net.callbacks_ if pair[0] != "stop"]
    dict(net.callbacks_)["maxnorm"].max_norm = BOUND
    net.partial_fit(X, Y)
    assert (too_long(net.module_, AXES, BOUND), too_long(net.module_, AXES, 0.01)) == (set(), set(AXES))
    assert len(net.optimizer_._optimizer_step_post_hooks) == 0


class Pair(NeuralNet):
    """Two modules with an optimizer each, as skorch's documentation makes a GAN."""

    def initialize_module(self):
        super().initialize_module()
        torch.manual_seed(0)
        self.critic_ = nn.Linear(10, 3)
        return self

    def initialize_optimizer(self):
        self.optimizer_ = torch.optim.SGD(self.module_.parameters(), lr=0.5)
        self.critic_optimizer_ = torch.optim.SGD(self.critic_.parameters(), lr=0.5)
        return self

    def infer(self, x, **kwargs):
        return self.critic_(self.module_(x))

    def train_step(self, batch, **kwargs):
        step = super().train_step(batch, **kwargs)
        self.critic_optimizer_.step()
        self.critic_optimizer_.zero_grad()
        return step


@pytest.mark.parametrize("match, free", [(None, set()), ("critic.*", {"module.0.weight", "module.2.weight"})])
def test_several_modules_and_optimizers(match, free):
    class Judge(Callback):
        found = ()

        def on_batch_end(self, net, training=None, **kwargs):
            parts = nn.ModuleDict({"module": net.module_, "critic": net.critic_})
            axes = {"module.0.weight": (1,), "module.2.weight": (1,), "critic.weight": (1,)}
            Judge.found = [*Judge.found, too_long(parts, axes, 0.2)]

    settings = {"criterion": nn.MSELoss, "train_split": None, "verbose": 0, "batch_size": 60, "max_epochs": 1}
    Pair(network, callbacks=[Judge, ours.MaxNorm(0.2, match=match)], **settings).fit(X, np.zeros((300, 3), np.float32))
    assert Judge.found == [free] * 5


def test_accelerates_optimizers():
    """A wrapper without hooks, around one that has them."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Accelerated(AccelerateMixin, NeuralNetClassifier):
        pass

    judge, state = Judge(), accelerate.state
    settings = {"max_epochs": 1, "lr": 0.5, "batch_size": 60, "train_split": None, "verbose": 0}
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        settings |= {"criterion": nn.CrossEntropyLoss, "accelerator": accelerator}
        net = Accelerated(network, callbacks=[judge, ours.MaxNorm(BOUND)], **settings).fit(X, Y)
    finally:
        for shared in (state.AcceleratorState, state.GradientState):  # which outlive an Accelerator
            shared._reset_state()
    assert not hasattr(net.optimizer_, "_optimizer_step_post_hooks")
    assert (judge.steps_.count, judge.steps_.broken) == (5, set())


# --- scikit-learn's manners


def test_clone_and_set_params():
    maxnorm = ours.MaxNorm({"0.*": 1.0, "*": 2.0}, axes={"*": 1}, match=["*.weight"], mode="max", ord=1)
    copied = clone(maxnorm)
    assert copied is not maxnorm
    assert copied.get_params() == maxnorm.get_params()
    assert set(copied.get_params()) == set(inspect.signature(ours.MaxNorm).parameters)
    net = classifier([ours.MaxNorm(BOUND)])
    assert clone(net).callbacks[0].max_norm == BOUND
    net.set_params(callbacks__MaxNorm__max_norm=0.1)
    net.fit(X, Y)
    assert too_long(net.module_, AXES, 0.1) == set()
    assert clone(net).fit(X, Y).score(X, Y) >= 0  # after fit, too


def test_every_setting_arrives():
    maxnorm = ours.MaxNorm(0.5, axes={"*": 1}, match=["*.weight"], mode="equal", ord=1)
    net = classifier([maxnorm], max_epochs=1).fit(X, Y)
    assert repr(maxnorm.constraint_) == "MaxNorm(0.5, axes={'*': 1}, match=['*.weight'], mode='equal', ord=1)"
    sums = torch.cat([net.module_[index].weight.abs().double().sum(1) for index in (0, 2)])
    assert bool(((sums <= 0.5 * (1 + 1e-7)) & (sums > 0.4999)).all())


def test_grid_search():
    net = classifier([ours.MaxNorm(BOUND)], max_epochs=5)
    search = GridSearchCV(net, {"callbacks__MaxNorm__max_norm": [0.0, 0.01, 2.0]}, cv=2, scoring="accuracy")
    search.fit(X, Y)
    assert search.best_params_ == {"callbacks__MaxNorm__max_norm": 2.0}
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] < 0.2 < scores[2]  # with weights of zero there is nothing to tell digits by
    assert too_long(search.best_estimator_.module_, AXES, 2.0) == set()


SAVED = []


class Save(Callback):
    def on_batch_end(self, net, **kwargs):
        SAVED[:] = [pickle.dumps(net), copy.deepcopy(net)]


def test_pickled_and_copied_in_the_middle():
    maxnorm = ours.MaxNorm(BOUND)
    net = classifier([maxnorm]).initialize()
    net.callbacks_.append(("save", Save()))
    net.partial_fit(X, Y)
    assert too_long(net.module_, AXES, BOUND) == set()
    for other in (pickle.loads(SAVED[0]), SAVED[1]):
        loaded = dict(other.callbacks_)["MaxNorm"]
        assert (loaded.get_params(), loaded.handles_) == (maxnorm.get_params(), ())
        other.callbacks_ = [pair for pair in other.callbacks_ if pair[0] != "save"]
        other.partial_fit(X, Y)
        assert too_long(other.module_, AXES, BOUND) == set()


def test_saved_parameters_and_none_of_the_settings(tmp_path):
    net = classifier([ours.MaxNorm(BOUND)], optimizer=torch.optim.Adam, lr=0.05).fit(X, Y)
    net.save_params(f_params=tmp_path / "module.pt", f_optimizer=tmp_path / "optimizer.pt")
    net.partial_fit(X, Y)
    for callbacks, inside in (([ours.MaxNorm(BOUND)], True), ([], False)):
        again = classifier(callbacks, optimizer=torch.optim.Adam, lr=0.05).initialize()
        again.load_params(f_params=tmp_path / "module.pt", f_optimizer=tmp_path / "optimizer.pt")
        again.partial_fit(X, Y)
        assert (too_long(again.module_, AXES, BOUND) == set()) == inside
        assert same(bits(net), bits(again)) == inside


@pytest.mark.parametrize(
    "callback, message",
    [
        (ours.MaxNorm(-1.0), "max_norm=-1.0: must be"),
        (ours.MaxNorm(1.0, match="nothing.*"), "match='nothing.*': matches no parameter; the model has 0.weight"),
        (ours.MaxNorm({"*.bias": 1.0}), "finds nothing to constrain"),
        (ours.ClipGradNorm(-1.0), "max_norm=-1.0: must be"),
        (ours.ClipGradNorm(1.0, 3), "norm_type=3: must be"),
    ],
)
def test_refusals(callback, message):
    with pytest.raises(ValueError) as raised:
        classifier([callback]).fit(X, Y)
    assert message in str(raised.value)


def test_settings_are_those_of_torch():
    assert inspect.signature(ours.MaxNorm) == inspect.signature(normball.torch.MaxNorm)


# --- gradient clipping


def test_gradients_are_inside_before_every_step():
    free = Judge()
    classifier([free], lr=0.0).fit(X, Y)
    bound = sorted(float(total_norm(came)) for came in free.gradients_)[5]
    before, after, report = Judge(), Judge(), normball.torch.ClipReport()
    callbacks = [("before", before), ("clip", ours.ClipGradNorm(bound, report=report)), ("after", after)]
    classifier(callbacks, lr=0.0).fit(X, Y)
    norms = [total_norm(came) for came in before.gradients_]
    assert report.calls == len(norms) == 10
    assert 4 <= sum(norm > Fraction(bound) for norm in norms) <= 6
    for norm, came, seen in zip(norms, before.gradients_, after.gradients_, strict=True):
        assert total_norm(seen) <= Fraction(bound)
        assert all(map(torch.equal, came, seen)) == (norm <= Fraction(bound))
    assert set(report.norms) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("kind, changes", [(ours.ClipGradNorm, 0), (GradientNormClipping, 1)])
def test_gradients_within_the_bound_keep_their_bits(kind, changes):
    """skorch's own takes 1e-6 off what is just inside; so the test can fail."""
    free = Judge()
    classifier([free], lr=0.0).fit(X, Y)
    longest = max(float(total_norm(came)) for came in free.gradients_[:5]) * (1 + 1e-9)
    seen = Judge()
    classifier([kind(longest), seen], lr=0.0, max_epochs=1).fit(X, Y)
    kept = [all(map(torch.equal, a, b)) for a, b in zip(free.gradients_[:5], seen.gradients_, strict=True)]
    assert kept.count(False) == changes


def test_every_setting_of_clipping_arrives():
    class Spoil(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            next(p for _, p in named_parameters).grad[0, 0] = torch.nan

    seen = Judge()
    classifier([ours.ClipGradNorm(0.25, 1), seen], max_epochs=1).fit(X, Y)
    for gradients in seen.gradients_:
        total = sum(Fraction(v) for g in gradients for v in g.double().abs().flatten().tolist())
        assert Fraction(0.24) < total <= Fraction(0.25)
    seen = Judge()
    classifier([Spoil(), ours.ClipGradNorm(0.25, nonfinite="zero"), seen], max_epochs=1).fit(X, Y)
    assert not any(g.any() for gradients in seen.gradients_ for g in gradients)


def test_clipping_clones():
    assert clone(ours.ClipGradNorm(1.0, 1, nonfinite="zero")).get_params() == {
        "max_norm": 1.0,
        "norm_type": 1,
        "nonfinite": "zero",
        "report": None,
    }


# --- the module itself


def test_examples():
    result = doctest.testmod(ours)
    assert (result.failed, result.attempted > 5) == (0, True)


def test_guide():
    search = run_guide("skorch")["search"]
    best = search.best_params_["callbacks__MaxNorm__max_norm"]
    assert best in (0.5, 3.0)
    assert too_long(search.best_estimator_.module_, AXES, best) == set()
    assert search.best_score_ > 0.3  # of ten digits


def test_missing_package_says_what_to_install():
    hide = "import sys; sys.modules['skorch'] = None"
    run = subprocess.run([sys.executable, "-c", f"{hide}; import normball.skorch"], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1] == (
        "ImportError: normball.skorch needs PyTorch and skorch: pip install 'normball[skorch]'"
    )
