"""The table of docs/migrating.md, measured again for every library that is installed; and that ours are right there."""

import sys
from pathlib import Path

import numpy as np
import pytest
from oracle import broken_laws

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))
import migrating  # noqa: E402

sys.path.remove(str(DOCS))
TEXT = migrating.PAGE.read_text()
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered"),  # in their sums of squares, which is what is asked
]


@pytest.fixture(params=migrating.CALLS, ids=lambda call: call.theirs.partition("(")[0])
def call(request):
    if not migrating.installed(request.param):
        pytest.skip(f"{request.param.library} is not installed")
    return request.param


def test_their_call_does_what_the_page_says(call):
    assert migrating.disagreement(migrating.rows(TEXT)[call.theirs], migrating.measured(call)) == ""


def test_our_call_keeps_the_laws(call):
    _, ours, _ = call.make()
    x = migrating.columns()
    # Under jit and on many devices a band of 4 ulp under the bound may be rescaled.
    broken = broken_laws(x, np.ascontiguousarray(ours(x)), migrating.BOUND, (0,), 0.0, band=4)
    assert broken <= ({"tight"} if call.library == "pymc" else set())  # epsilon is at its default there
    huge = np.full((migrating.LENGTH, 1), 1e20, np.float32)
    assert broken_laws(huge, np.ascontiguousarray(ours(huge)), migrating.BOUND, (0,), 0.0) <= broken
    assert not ours(0 * huge).any()


def test_every_call_is_on_the_page():
    assert list(migrating.rows(TEXT)) == [call.theirs for call in migrating.CALLS]


def test_the_page_can_be_wrong():
    lasagne = next(call for call in migrating.CALLS if "lasagne" in call.theirs)
    row = migrating.rows(TEXT)[lasagne.theirs]
    found = migrating.measured(lasagne)
    assert migrating.disagreement(row, found) == ""
    for old, new in ((" 0 |", " NaN |"), ("normball.norm", "normball.other"), ("9e-02", "9e-03"), ("50 %", "34 %")):
        assert old in row
        assert migrating.disagreement(row.replace(old, new, 1), found) != ""
    assert migrating.shares("no", "2 %, by up to 1e-08")
    assert not migrating.shares("no", "3 %, by up to 1e-08")
    assert not migrating.shares("50 %, by up to 9e-02", "no")


@pytest.mark.parametrize(
    "constrain, row",
    [
        (lambda x: x, "| 3e+01 | 100 %, by up to 1e+02 | no | 0 | not clipped |"),
        (lambda x: np.minimum(x, 0) * 0, "| 1e+00 | no | 100 %, by up to 1e+00 | 0 | 0 |"),
        (lambda x: x * np.nan, "| nan | no | no | NaN | NaN |"),
    ],
)
def test_a_measurement_can_come_out_otherwise(constrain, row):
    """Nothing done, everything zero, and NaN."""
    made = migrating.Call("numpy", "theirs", "ours", lambda: (constrain, migrating.our_columns, None))
    found = migrating.measured(made).removeprefix("| `theirs` | `ours` ").strip()
    assert found.split(" | ")[2:] == row.split(" | ")[2:]
    assert found.startswith("| nan") == row.startswith("| nan")
