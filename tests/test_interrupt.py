"""Ctrl-C during a call of the C kernels: a KeyboardInterrupt soon, groups wholly done or untouched, other threads left alone.

In processes of their own, for an interrupt that came late would end the tests.
"""

import subprocess
import sys

import pytest

from normball import kernels

pytestmark = pytest.mark.skipif(
    kernels.best is kernels.fallback,
    reason="the C kernels are not built; between NumPy's calls Python itself sees Ctrl-C",
)

BEGIN = """
import signal, threading, time
import numpy as np
import normball

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has put the tests in the background

def interrupted(call, after=0.05):
    'Seconds from Ctrl-C to its KeyboardInterrupt, in the midst of the call.'
    sent = []
    def send():
        sent.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)
    threading.Timer(after, send).start()
    try:
        call()
        while True:  # too late: the call was over
            time.sleep(0.01)
    except KeyboardInterrupt:
        return time.perf_counter() - sent[0]

def amid(xs, call):
    'Interrupt a call that writes over xs, again where the interrupt came too late; which of their rows are untouched.'
    before = [x.copy() for x in xs]
    for _ in range(20):
        interrupted(call)
        untouched = [(x == b).all(axis=1) for x, b in zip(xs, before)]
        if any(rows.any() for rows in untouched):
            return untouched
        for x, b in zip(xs, before):
            x[...] = b
    raise AssertionError("interrupts are answered after the work, not during it")

# Rows that are above their bound by less than a sum can tell: decided in exact integers, which takes some time.
x = np.full((4000, 4000), 1e-30, np.float32)
x[:, 0] = 1
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_groups_are_wholly_done_or_untouched(threads):
    run(f"""
normball.set_num_threads({threads})
wanted = normball.norm_constraint(x, 1.0, 1)
[untouched] = amid([x], lambda: normball.norm_constraint(x, 1.0, 1, out=x))
assert (untouched | (x == wanted).all(axis=1)).all()
assert (normball.norm_constraint(x, 1.0, 1, out=x) == wanted).all(), "not usable afterwards"
""")


def test_arrays_of_a_list_are_wholly_done_or_untouched_group_by_group():
    run("""
xs = [x, x[:100].copy(), x[:3000].copy()]
wanted = normball.norm_constraint(xs, 1.0, 1)
untouched = amid(xs, lambda: normball.norm_constraint(xs, 1.0, 1, out=xs))
assert all((u | (a == w).all(axis=1)).all() for u, a, w in zip(untouched, xs, wanted))
""")


def test_norms_and_totals_end_too():
    run("""
endless = np.broadcast_to(np.float32(1), (2**20, 2**14))  # 64 GiB, all of it one number
assert interrupted(lambda: normball.compute_norms(endless)) < 1
from normball import kernels
small = [np.broadcast_to(np.float32(1), (2**27,))]
outs = [np.empty(2**27, np.float32)]  # memory that is touched only if the interrupt comes late
assert interrupted(lambda: kernels.constrain_total(small * 64, outs * 64, 1.0, 0.0, 2)) < 1
""")


def test_handler_that_does_not_raise_changes_nothing():
    """The handler runs during the call, here with a call of its own."""
    run("""
wanted, seen = normball.norm_constraint(x, 1.0, 1), []
signal.signal(signal.SIGINT, lambda *_: seen.append(normball.norm_constraint(x[:10], 1.0, 1)))
timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
timer.start()
assert (normball.norm_constraint(x, 1.0, 1) == wanted).all()
timer.join()
assert len(seen) == 1 and (seen[0] == wanted[:10]).all()
""")


def test_calls_in_other_threads_go_on():
    run("""
small, results, stop = x[:50].copy(), [], threading.Event()
wanted = normball.norm_constraint(small, 1.0, 1)
def work():
    while not stop.is_set():
        results.append((normball.norm_constraint(small, 1.0, 1) == wanted).all())
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
interrupted(lambda: normball.norm_constraint(x, 1.0, 1))
stop.set()
for thread in threads:
    thread.join()
assert len(results) > 3 and all(results)
""")
