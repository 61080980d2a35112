"""The setting of how many threads a call may use."""

import os
import subprocess
import sys

import numpy as np
import pytest

import normball
from normball import kernels


@pytest.fixture(autouse=True)
def same_setting_afterwards():
    before = normball.get_num_threads()
    yield
    normball.set_num_threads(before)


def set_by(environment):
    """What a fresh process says of its setting, or its error's last line."""
    code = "import normball; print(normball.get_num_threads())"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return (run.stdout or run.stderr).strip().splitlines()[-1]


@pytest.mark.parametrize("n", [1, 2, np.int64(3)])
def test_what_was_set_is_told(n):
    normball.set_num_threads(n)
    assert normball.get_num_threads() == (n if kernels.best is not kernels.fallback else 1)


def test_huge_numbers_are_no_error():
    normball.set_num_threads(10**30)
    assert normball.get_num_threads() >= 1


@pytest.mark.parametrize(
    "n, error, message",
    [
        (0, ValueError, "n=0: must be an int >= 1; 1 for the calling thread alone"),
        (-2, ValueError, "n=-2: must be an int >= 1; 1 for the calling thread alone"),
        (2.0, TypeError, "n=2.0: must be an int >= 1; 1 for the calling thread alone"),
        ("2", TypeError, "n='2': must be an int >= 1; 1 for the calling thread alone"),
        (None, TypeError, "n=None: must be an int >= 1; 1 for the calling thread alone"),
        (True, TypeError, "n=True: must be an int >= 1; 1 for the calling thread alone"),
    ],
)
def test_refusals(n, error, message):
    normball.set_num_threads(2)
    before = normball.get_num_threads()
    with pytest.raises(error) as caught:
        normball.set_num_threads(n)
    assert str(caught.value) == message
    assert normball.get_num_threads() == before


@pytest.mark.skipif(kernels.best is kernels.fallback, reason="the C kernels are not built: there is nothing to set")
def test_environment_sets_it_from_the_start():
    assert set_by({"NORMBALL_NUM_THREADS": "3"}) == "3"
    assert set_by({"NORMBALL_NUM_THREADS": "", "NORMBALL_KERNEL": ""}) == set_by({"NORMBALL_KERNEL": ""})


def test_environment_that_is_no_number_is_refused():
    rule = "must be an int >= 1; 1 for the calling thread alone"
    assert set_by({"NORMBALL_NUM_THREADS": "0"}) == f"ValueError: NORMBALL_NUM_THREADS=0: {rule}"
    for text in ("many", "1.5", "-1"):
        assert set_by({"NORMBALL_NUM_THREADS": text}) == f"TypeError: NORMBALL_NUM_THREADS={text!r}: {rule}"


def test_fallback_has_one_thread():
    assert set_by({"NORMBALL_KERNEL": "numpy", "NORMBALL_NUM_THREADS": "3"}) == "1"
