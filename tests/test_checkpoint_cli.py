"""The command line: what it shows, to people and to programs, and how it ends."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from checkpoint_files import write_safetensors
from hypothesis import given
from hypothesis import strategies as st

from normball.checkpoint import cli, report
from normball.checkpoint.errors import CheckpointError
from normball.checkpoint.geometry import bars, scale_of
from normball.checkpoint.report import Report, Row, number, shorten
from normball.checkpoint.rules import Choice
from normball.checkpoint.statistics import Statistics
from normball.checkpoint.tensors import Tensor

HOSTILE = "a\u202eb\u200f.weight"  # text from right to left
ACTING = f"\x1b[31m\x07\n{HOSTILE}"  # colours, a bell, a line


@pytest.fixture
def model(tmp_path):
    """Norms that are known: 5, 10 and 0 in one tensor, 1 and 1 in another."""
    far = np.array([[3, 4], [6, 8], [0, 0]], np.float32)
    near = np.eye(2, dtype=np.float32).reshape(2, 1, 2)
    return write_safetensors(
        tmp_path / "model.safetensors",
        {
            "near.weight": ("F32", near, near.shape),
            "far.weight": ("F32", far, far.shape),
            "far.bias": ("F32", np.ones(3, np.float32), (3,)),
            "steps": ("I64", np.array(7), ()),
        },
    )


def run(capsys, *arguments):
    """Exit code, output and errors of a command line."""
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_as_it_reads(model, capsys):
    code, out, err = run(capsys, "check", model, "--max-norm", 3, "--layout", "torch")
    assert (code, err) == (0, "")
    assert out == (
        "name         dtype  shape  axes  why                       groups  min  median  p99  max  limit  over  zero  non-finite\n"
        "far.weight   F32    3x2    1     torch (out, in)           3       0    5       9.9  10   3      2     1     0\n"
        "near.weight  F32    2x1x2  1,2   torch (out, in, *kernel)  2       1    1       1    1    3      0     0     0\n"
        "2 tensors, 5 groups: 2 over their limit, in 1 of them; 1 zero, 0 non-finite\n"
        "left out, 1-D, as biases are (a rule with axes=0 takes them): far.bias\n"
        "left out, of dtype I64, which has no norm ball: steps\n"
    )


def test_what_was_assumed_is_said(model, capsys):
    line = "layout: torch's, (out, in, *kernel), assumed; --layout says otherwise\n"
    assert line in run(capsys, "check", model)[1]
    assert "layout:" not in run(capsys, "check", model, "--layout", "torch")[1]
    assert "layout:" not in run(capsys, "check", model, "--rule", "*.weight: axes=1")[1]
    assert "over" not in run(capsys, "check", model)[1]


def test_top_rows_are_the_worst(model, capsys):
    out = run(capsys, "check", model, "--top", 1)[1]
    assert "far.weight" in out
    assert "near.weight" not in out
    assert "... and 1 more tensors; --top 0 shows all\n" in out
    relative = run(capsys, "check", model, "--top", 1, "--max-norm", 100, "--rule", "near*: limit=0.5")[1]
    assert "near.weight" in relative


def test_json(model, capsys):
    code, out, _ = run(capsys, "check", model, "--json", "--rule", "far.weight: axes=0 limit=8")
    found = json.loads(out)
    assert code == 0
    assert found["totals"] == {
        "tensors": 2,
        "groups": 4,
        "over": 1,
        "tensors_over": 1,
        "zero": 0,
        "nonfinite": 0,
        "left_out": 2,
    }
    far = next(one for one in found["tensors"] if one["name"] == "far.weight")
    assert far == {
        "name": "far.weight",
        "dtype": "F32",
        "shape": [3, 2],
        "axes": [0],
        "why": "rule far.weight",
        "limit": 8.0,
        "groups": 2,
        "min": math.sqrt(45),
        "median": far["median"],
        "p99": far["p99"],
        "max": math.sqrt(80),
        "over": 1,
        "zero": 0,
        "nonfinite": 0,
        "note": None,
    }
    assert [one["name"] for one in found["left_out"]] == ["far.bias", "steps"]


def test_json_has_no_numbers_that_json_has_not(tmp_path, capsys):
    values = np.array([[np.nan, 1], [np.inf, 1], [-np.inf, np.nan]], np.float32)
    path = write_safetensors(tmp_path / "m.safetensors", {"a.weight": ("F32", values, values.shape)})
    out = run(capsys, "check", path, "--json", "--max-norm", "inf")[1]
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    [row] = found["tensors"]
    assert (row["nonfinite"], row["max"], row["limit"], row["over"]) == (3, None, None, 0)
    with pytest.raises(pytest.fail.Exception):
        json.loads("[NaN]", parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_csv(model, capsys):
    rows = list(csv.DictReader(io.StringIO(run(capsys, "check", model, "--csv", "--max-norm", 3)[1])))
    assert [(row["name"], row["axes"], row["max"], row["over"]) for row in rows] == [
        ("far.weight", "1", "10.0", "2"),
        ("near.weight", "1 2", "1.0", "0"),
        ("far.bias", "", "", ""),
        ("steps", "", "", ""),
    ]
    assert rows[0]["shape"] == "3 2"
    assert rows[2]["why"].startswith("left out, 1-D")


def test_exit_codes_of_a_gate(model, tmp_path, capsys):
    gate = ("check", model, "--fail-on-violation", "--max-norm")
    assert run(capsys, *gate, 3)[0] == 1
    assert run(capsys, *gate, 10)[0] == 0
    assert run(capsys, *gate[:2], "--max-norm", 3)[0] == 0
    values = np.array([[np.nan, 1]], np.float32)
    broken = write_safetensors(tmp_path / "m.safetensors", {"a.weight": ("F32", values, values.shape)})
    assert run(capsys, "check", broken, "--fail-on-violation", "--max-norm", 3)[0] == 1


ERRORS = {
    "nothing": ((), "the following arguments are required: check|constrain|diff; normball --help says more"),
    "no such command": (("chek",), "argument check|constrain|diff: invalid choice: 'chek' (choose from"),
    "no model": (("check",), "the following arguments are required: MODEL; normball check --help says more"),
    "an abbreviation": (("check", "M", "--max", "3"), "unrecognized arguments: --max 3"),
    "a hostile option": (("check", "M", "--\x1b[31m"), r"unrecognized arguments: --\x1b[31m"),
    "no number": (("check", "M", "--max-norm", "x"), "--max-norm=x: must be a number >= 0, as 2.5"),
    "NaN": (("check", "M", "--max-norm", "nan"), "--max-norm=nan: must be a number >= 0, as 2.5"),
    "a negative bound": (("check", "M", "--max-norm=-1",), "--max-norm=-1: must be a number >= 0, as 2.5"),
    "two forms": (("check", "M", "--json", "--csv"), "argument --csv: not allowed with argument --json"),
    "no such layout": (("check", "M", "--layout", "x"), "argument --layout: invalid choice: 'x' (choose from"),
    "no such ending": (("check", "M", "--plot", "x.pdf"), "--plot x.pdf: must end in .png or .html"),
    "no such folder": (("check", "M", "--plot", "no/x.png"), "--plot no/x.png: there is no folder no"),
    "negative rows": (("check", "M", "--top", "-1"), "argument --top: '-1': must be a whole number >= 0"),
    "a rule for nothing": (("check", "M", "--rule", "far.wait: skip"), "--rule 'far.wait: skip': matches no tensor; did you mean far.weight"),
    "a gate without a limit": (("check", "M", "--fail-on-violation"), "check: --fail-on-violation, but no tensor has axes and a limit; pass --max-norm"),
    "no file": (("check", "no.safetensors"), "no.safetensors"),
    "no place": (("constrain", "M", "--max-norm", "3"), "constrain: no -o OUT, where the result goes; or --dry-run"),
    "no layout": (("constrain", "M", "--max-norm", "3", "-o", "o"), "which axes of near.weight (and 1 more), of shape (2, 1, 2), are incoming is not known: pass --layout torch|"),
    "no limit": (("constrain", "M", "--layout", "torch", "-o", "o"), "constrain: nothing to do, no tensor has axes and a limit; pass --max-norm, or"),
    "onto itself": (("constrain", "M", "--layout", "torch", "--max-norm", "3", "-o", "M", "--force"), ""),
    "one model": (("diff", "M"), "the following arguments are required: B; normball diff --help says more"),
}  # fmt: skip


def error_line(code, out, err):
    """The one line that an error is."""
    assert (code, out) == (2, "")
    assert err.startswith("normball: ")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    return err.removeprefix("normball: ")


@pytest.mark.parametrize("arguments, message", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(model, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(model.parent)
    before = model.read_bytes()
    line = error_line(*run(capsys, *(model.name if word == "M" else word for word in arguments)))
    assert line.startswith(message) or message == "no.safetensors" in line
    assert model.read_bytes() == before
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name]


HOSTILE_ERRORS = [CheckpointError("a\nb\x1b"), OSError("a\nb\x1b"), OSError(5, "a\nb\x1b", "\x1b")]


@pytest.mark.parametrize("error", HOSTILE_ERRORS, ids=repr)
def test_errors_are_one_line_whatever_they_say(capsys, monkeypatch, error):
    def raising(options):
        raise error

    monkeypatch.setattr(cli, "_check", raising)
    assert "a\\nb\\x1b" in error_line(*run(capsys, "check", "M"))


@pytest.mark.parametrize(
    "wrong", [(1, "", "normball: x\n"), (2, "a", "normball: x\n"), (2, "", "Traceback\n"), (2, "", "normball: x\ny\n")]
)
def test_errors_are_one_line_can_fail(wrong):
    with pytest.raises(AssertionError):
        error_line(*wrong)


def test_constrain(model, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    command = ("constrain", model, "--layout", "torch", "--max-norm", 3, "-o", out)
    code, text, err = run(capsys, *command, "--dry-run")
    assert (code, err, out.exists()) == (0, "", False)
    assert text.endswith("\nnothing is written; would rescale 2 groups in 1 tensors\n")
    code, text, err = run(capsys, *command, "--verify")
    assert (code, err) == (0, "")
    assert text.endswith(f"\n{out}: rescaled 2 groups in 1 tensors; read back and verified\n")
    assert run(capsys, "check", out, "--max-norm", 3, "--fail-on-violation")[0] == 0
    assert error_line(*run(capsys, *command)).startswith(f"OUT '{out}': exists; --force replaces it")


@pytest.mark.parametrize("where", [["--dry-run"], ["-o", "OUT"]])
def test_constrain_lists_what_is_under_no_limit(model, tmp_path, capsys, where):
    where = [tmp_path / "out.safetensors" if word == "OUT" else word for word in where]
    out = run(capsys, "constrain", model, "--layout", "torch", "--rule", "near*: limit=3", *where)[1]
    assert "left out, under no limit (--max-norm sets one, or a rule): far.weight\n" in out
    assert out.count("far.weight") == 1


def test_diff(model, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    run(capsys, "constrain", model, "--layout", "torch", "--max-norm", 5, "-o", out)
    assert run(capsys, "diff", model, model) == (0, "0 tensors differ, 0 of their groups; 4 are the same\n", "")
    code, text, _ = run(capsys, "diff", model, out)
    assert code == 1
    assert text == (
        "name        shape  axes  why              groups changed  max before  max after  norm after / before\n"
        "far.weight  3x2    1     torch (out, in)  1 of 3          10          5          0.5 to 0.5\n"
        "layout: torch's, (out, in, *kernel), assumed; --layout says otherwise\n"
        "1 tensors differ, 1 of their groups; 3 are the same\n"
    )
    found = json.loads(run(capsys, "diff", model, out, "--json")[1])
    [change] = found["changes"]
    assert (change["groups"], change["changed"], change["max_before"]) == (3, 1, 10.0)
    assert 5 - 1e-5 < change["max_after"] <= 5
    assert change["smallest_ratio"] == change["largest_ratio"]
    assert 0.5 - 1e-6 < change["largest_ratio"] <= 0.5
    assert found["assumed"]
    assert "layout:" not in run(capsys, "diff", model, out, "--layout", "torch")[1]
    along = json.loads(run(capsys, "diff", model, out, "--json", "--rule", "far.weight: axes=0")[1])
    assert along["changes"][0]["changed"] == 2


def test_diff_of_two_npy_compares_their_arrays(tmp_path, capsys):
    for name, factor in (("a", 1), ("b", 2), ("c", 1)):
        np.save(tmp_path / f"{name}.npy", factor * np.eye(3, dtype=np.float32))
    code, out, _ = run(capsys, "diff", tmp_path / "a.npy", tmp_path / "b.npy")
    assert (code, "3 of 3" in out, "only in" in out) == (1, True, False)
    assert run(capsys, "diff", tmp_path / "a.npy", tmp_path / "c.npy")[0] == 0


@pytest.mark.filterwarnings("error")
def test_diff_of_what_is_no_number(tmp_path, capsys):
    for name, entries in (("a", [1, np.inf, 1e-320]), ("b", [np.nan, -np.inf, 1e300])):
        np.save(tmp_path / f"{name}.npy", np.array(entries)[:, None])
    _, out, err = run(capsys, "diff", tmp_path / "a.npy", tmp_path / "b.npy", "--json")
    (change,) = json.loads(out)["changes"]
    assert (change["changed"], change["max_before"], change["max_after"], err) == (3, None, None, "")
    np.save(tmp_path / "a.npy", np.ones((3, 1)))
    np.save(tmp_path / "b.npy", np.full((3, 1), np.nan))
    assert "1           -          -" in run(capsys, "diff", tmp_path / "a.npy", tmp_path / "b.npy")[1]


def test_diff_of_what_has_no_groups_in_common(model, tmp_path, capsys):
    other = write_safetensors(
        tmp_path / "other.safetensors",
        {
            "near.weight": ("F32", np.ones((2, 2), np.float32), (2, 2)),
            "far.bias": ("F32", np.zeros(3, np.float32), (3,)),
            "new.weight": ("F32", np.ones((2, 2), np.float32), (2, 2)),
            "steps": ("I64", np.array(7), ()),
        },
    )
    code, text, _ = run(capsys, "diff", model, other)
    assert code == 1
    assert text == (
        "differs, 1-D, as biases are (a rule with axes=0 takes them): far.bias\n"
        "of another form: near.weight: F32 2x1x2 -> F32 2x2\n"
        f"only in {model}: far.weight\n"
        f"only in {other}: new.weight\n"
        "1 tensors differ, 0 of their groups; 1 are the same\n"
    )


@pytest.mark.parametrize("beside", ["q.weight_scale", "q.scale_weight", None])
def test_fp8_is_reported_times_its_scale_and_refused_by_constrain(tmp_path, capsys, beside):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([[3, 4], [6, 8]], ml_dtypes.float8_e4m3fn)
    content = {"q.weight": ("F8_E4M3", values.tobytes(), (2, 2))}
    content |= {beside: ("F32", np.array([0.5], np.float32), (1,))} if beside else {}
    path = write_safetensors(tmp_path / "m.safetensors", content)
    [row] = json.loads(run(capsys, "check", path, "--json", "--max-norm", 4, "--layout", "torch")[1])["tensors"]
    assert (row["min"], row["max"], row["over"]) == ((2.5, 5, 1) if beside else (5, 10, 2))
    assert row["why"] == f"torch (out, in), {f'times {beside}' if beside else 'as stored, without a scale'}"
    command = ("constrain", path, "--layout", "torch", "--max-norm", 4, "-o", tmp_path / "o")
    assert error_line(*run(capsys, *command)).startswith("q.weight: is of F8_E4M3, ")


def shown(text):
    """Text as a terminal may get it: its lines hold nothing that acts."""
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))


def test_names_are_escaped_wherever_they_are_shown(tmp_path, capsys):
    ones = np.ones((2, 2), np.float32)
    content = {HOSTILE: ("F32", ones, (2, 2)), f"{HOSTILE}1": ("I64", b"", (0,))}
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    write_safetensors(first, content)
    write_safetensors(second, content | {HOSTILE: ("F32", 2 * ones, (2, 2))})
    page = tmp_path / "x.html"
    commands = [
        *(("check", first, "--max-norm", 1, *form) for form in ((), ("--json",), ("--csv",), ("--plot", page))),
        ("constrain", first, "--dry-run", "--max-norm", 1, "--layout", "torch"),
        ("constrain", first, "--dry-run", "--max-norm", 1),
        ("check", first, "--rule", "*a: skip"),
        ("check", first, "--rule", f"{HOSTILE}: axes=5"),
        *(("diff", first, second, *form) for form in ((), ("--json",))),
    ]
    for command in commands:
        _, out, err = run(capsys, *command)
        assert shown(out + err), command
        assert "weight" in out + err
    assert shown(page.read_text())


def test_names_that_act_are_escaped_too(monkeypatch):
    """Which no reader lets through."""
    from normball.checkpoint.plot_html import page

    made = Report()
    made.rows.append(a_row(ACTING, [1.0], dtype=ACTING, why=ACTING))
    made.left_out[ACTING] = [ACTING]
    plain = io.StringIO()
    report.show(made, plain, None)
    for text in (plain.getvalue(), report.to_json(made, None), report.to_csv(made, None), page(made, ACTING)):
        assert shown(text)
    assert len(plain.getvalue().splitlines()) == 4
    assert shown("\n".join(printed(200, monkeypatch, made)))


def test_names_are_escaped_can_fail():
    assert not shown(HOSTILE)
    assert not shown("\x1b[31m")
    assert shown("a\nb\t日本")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def a_row(name, norms, limit=3.0, dtype="F32", why="torch (out, in)"):
    """A row of a report, of these norms."""
    norms, statistics = np.asarray(norms, np.float64), Statistics()
    statistics.add(norms, limit)
    tensor = Tensor(name, dtype, (norms.size, 1536), None, 0, 0)
    return Row(tensor, Choice((1,), limit, why), statistics.finish())


def a_report(count=12):
    """Long names that differ in their middle alone, wide characters, extremes."""
    made = Report()
    for place in range(count):
        name = f"model.decoder.layers.{place}.self_attention.query_key_value.weight"
        made.rows.append(a_row(name, np.linspace(0.1, 2.9 + place / 8, 50)))
    made.rows.append(a_row("日本語の名前" * 12, [1e-30, 1e30]))
    made.rows.append(a_row("s", [np.nan, 1]))
    made.left_out["1-D"] = [f"a.very.long.prefix.{place}.bias" for place in range(30)]
    return made


def printed(width, monkeypatch, made, top=None):
    """What a terminal of this width shows, its lines without colours."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    report.show(made, out, top)
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()


def wide(lines, width):
    return [line for line in lines if report._width(line) > width]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_terminals_table_fits_and_its_names_differ(monkeypatch, width):
    made = a_report()
    lines = printed(width, monkeypatch, made)
    assert wide(lines, width) == []
    rows = lines[2 : 2 + len(made.rows)]
    names = [row.split("  ")[0] for row in rows]
    assert len(set(names)) == len(rows)
    assert all(title in lines[0] for title in ("name", "max", "over"))
    assert all(title in lines[0] for title in ("axes", "limit", "non-finite")) == (width > 60)
    assert all(title in lines[0] for title in ("why", "p99", "dtype", "shape")) == (width == 200)


def test_a_terminals_table_fits_can_fail():
    assert wide(["日本", "abcde"], 4) == ["abcde"]
    assert wide(["日本"], 3) == ["日本"]


def test_what_a_narrow_table_has_no_room_for_is_below(monkeypatch):
    assert "axes 1 by torch (out, in): 14 tensors" in printed(80, monkeypatch, a_report())
    assert not any(line.startswith("axes 1 by") for line in printed(200, monkeypatch, a_report()))


def test_without_rich_the_table_is_plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    out = Terminal()
    report.show(a_report(), out, 3)
    assert out.getvalue().startswith("name ")


@given(st.lists(st.text(st.characters(categories=["L", "N", "P"]), max_size=60), max_size=6), st.integers(8, 40))
def test_shortened_names_fit_and_are_ends_of_names(names, width):
    short = shorten(names, width)
    assert len(short) == len(names)
    for name, one in zip(names, short, strict=True):
        assert report._width(one) <= width
        if one != name:
            head, _, tail = one.partition("…")
            assert name.startswith(head)
            assert name.endswith(tail)
            assert len(head) + len(tail) < len(name)


def test_names_that_no_cut_tells_apart_take_no_time(monkeypatch):
    names = [f"model.layers.{layer}.experts.{expert}.weight" for layer in range(100) for expert in range(100)]
    cuts, cut = [], report._cut
    monkeypatch.setattr(report, "_cut", lambda *given: cuts.append(1) or cut(*given))
    assert max(map(len, shorten(names, 24))) == 24
    assert len(cuts) == len(names)


@given(st.floats(0, 1e300), st.integers(1, 4))
def test_a_norm_over_its_limit_looks_so(limit, steps):
    above = limit
    for _ in range(steps):
        above = math.nextafter(above, math.inf)
    assert float(number(above, limit)) > limit
    assert number(3.0000002) == "3"
    assert number(3.0000002, 3.0) == "3.0000002"


@pytest.mark.parametrize("count", [1, 5, 200])
def test_bars_are_where_the_norms_are(count):
    rng = np.random.default_rng(count)
    rows = [a_row(str(place), np.exp(rng.normal(0, 1, count)), limit=2.1) for place in range(5)]
    rows.append(a_row("one of many", np.append(np.linspace(1, 1.2, 9999), 9), limit=1.13))
    scale = scale_of(rows)
    for row in rows:
        drawn = bars(row, scale)
        assert any(bar.over for bar in drawn) == (row.statistics.over > 0)
        assert (drawn[0].low, drawn[-1].high) == (row.statistics.minimum, row.statistics.maximum)
        places = [scale(norm) for bar in drawn for norm in (bar.low, bar.high)]
        assert places == sorted(places)
        assert all(0 <= place <= 1 for place in places)
        assert all(0.2 <= bar.height <= 1 for bar in drawn)
        assert not any(bar.low < row.choice.limit < bar.high for bar in drawn)
    assert 2 <= len([tick for tick in scale.ticks() if 0 <= scale(tick) <= 1]) <= 8


@pytest.mark.parametrize("norms", [[0.0], [0.0, 0.0, 5e-324], [1e308, 1.0], [1.75e308], [np.nan], []])
@pytest.mark.parametrize("limit", [None, 0.0, 3.0, math.inf])
def test_bars_of_extremes(norms, limit):
    rows = [a_row("a", norms, limit)]
    scale = scale_of(rows)
    places = [scale(norm) for bar in bars(rows[0], scale) for norm in (bar.low, bar.high)]
    assert all(0 <= place <= 1 for place in places)
    assert all(0 <= scale(tick) <= 1 for tick in scale.ticks())


def many(count):
    made = Report()
    for place in range(count):
        made.rows.append(a_row(f"layers.{place}.$x$.weight", np.linspace(0.5, 2.5 + place % 7 / 6, 40)))
    return made


@pytest.mark.parametrize("count", [0, 61])
def test_a_png_has_a_row_for_each(count):
    pytest.importorskip("matplotlib")
    from normball.checkpoint.plot_png import picture

    content = picture(many(count), "a $ title")
    width, height = np.frombuffer(content[16:24], ">u4")
    assert content.startswith(b"\x89PNG")
    assert width == 1400
    assert height > 17 * count


class Page(HTMLParser):
    """What a page has: its elements, and where it would fetch from."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched = {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.fetched += [value for name, value in attributes if name in ("src", "href", "data", "action", "xlink:href")]


@pytest.mark.parametrize("count", [0, 5, 200])
def test_an_html_page_has_a_row_for_each_and_fetches_nothing(count):
    from normball.checkpoint.plot_html import page

    made = many(count)
    made.rows.append(a_row("<script src='http://x'></script>", [1.0]))
    text = page(made, "<title>")
    found = Page(text)
    assert found.tags["tr"] == count + 2
    assert found.tags["script"] == 1
    assert found.fetched == []
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_an_html_page_fetches_nothing_can_fail():
    assert Page("<script src='http://x'></script>").fetched == ["http://x"]


def test_the_picture_is_written_beside_the_table(model, tmp_path, capsys):
    path = tmp_path / "x.html"
    code, out, _ = run(capsys, "check", model, "--plot", path, "--max-norm", 3)
    assert code == 0
    assert out.startswith("name")
    assert "far.weight" in path.read_text()


def python(*arguments, **settings):
    environment = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, **settings)


def loaded_by(*arguments):
    """Which of the libraries that make a start slow, or that an install may lack, a command loads."""
    code = f"""
import sys
sys.argv = {["normball", *map(str, arguments)]!r}
from normball.__main__ import main
code = main()
print(*sorted({{"rich", "matplotlib", "shtab", "ml_dtypes", "argparse"}} & set(sys.modules)), code, file=sys.stderr)
"""
    return python("-c", code).stderr.split()


def test_the_library_loads_nothing_of_the_command_line():
    found = python("-c", "import sys, normball; print(*(name for name in sys.modules if 'checkpoint' in name))")
    assert (found.stdout, found.stderr) == ("\n", "")


def test_commands_load_what_they_need(model):
    assert loaded_by("--version") == ["0"]
    assert loaded_by("check", model, "--json") == ["argparse", "0"]
    assert loaded_by("diff", model, model) == ["argparse", "0"]


def test_commands_load_what_they_need_can_fail(model, tmp_path):
    pytest.importorskip("matplotlib")
    assert "matplotlib" in loaded_by("check", model, "--json", "--plot", tmp_path / "x.png")


def test_the_version():
    import normball

    run = python("-m", "normball", "--version")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"normball {normball.__version__}\n", "")


def test_a_reader_that_goes_is_no_error(model):
    command = [sys.executable, "-m", "normball", "check", str(model), "--csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_is_no_error(model, closed):
    code = f"import os, sys; os.close({closed}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    assert python("-c", code, "-m", "normball", "check", str(model)).returncode == 0


def test_a_wrong_number_of_threads_is_one_line(model, monkeypatch):
    monkeypatch.setenv("NORMBALL_NUM_THREADS", "many")
    done = python("-m", "normball", "check", str(model))
    line = error_line(done.returncode, done.stdout, done.stderr)
    assert line.startswith("NORMBALL_NUM_THREADS='many': must be an int >= 1")


def test_progress_is_for_a_terminal_alone(model, monkeypatch, capsys):
    pytest.importorskip("rich")
    assert run(capsys, "check", model)[2] == ""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.run(["check", str(model)]) == 0
    assert "checking" in stderr.getvalue()


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        cli.run(["--print-completion", shell])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "constrain" in out
    assert "dry-run" in out


@pytest.mark.parametrize("command", ["check", "constrain", "diff"])
def test_help_explains_rules_and_layouts(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--rule 'GLOB: axes=in limit=2.5'" in out
    assert "torch-transposed" in out
    assert wide(out.splitlines(), 100) == []
