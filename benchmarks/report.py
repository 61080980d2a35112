"""The figures of README.md and docs/performance.md, and the picture, from results/*.json: `benchmarks/report.py`.

--check fails where the tables are not those of the results. The first file (in the order of names) has our times and
the floors; PyMC's and the graphs' come from each, as there is a PyMC for each PyTensor.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "performance.md"
PICTURE = HERE.parent / "docs" / "performance.png"
BEGIN, END = "<!-- figures: make bench -->\n", "<!-- end of figures -->\n"
# The rows that the README shows.
SUMMARY = [
    *("dense 784 x 800, axis 0", "dense 4096 x 4096, axis 0", "dense 4096 x 4096, axis 1"),
    "GPT-2, 148 tensors, total norm",
]
# What people see of each peer. Where PyTorch has two ways, the quicker one counts.
PEERS = {
    "NumPy formula": "NumPy",
    "PyTorch formula": "PyTorch",
    "torch.renorm_": "PyTorch",
    "clip_grad_norm_": "PyTorch",
    "Keras MaxNorm": "Keras (PyTorch)",
    "jax.jit formula": "JAX (jit)",
}
# Okabe and Ito's colours, which colour-blind people tell apart; shapes differ, too.
MARKS = {
    "normball": ("#0072B2", "o"),
    "NumPy": ("#666666", "s"),
    "PyTorch": ("#CC79A7", "D"),
    "Keras (PyTorch)": ("#009E73", "P"),
    "JAX (jit)": ("#56B4E9", "X"),
}
PYMC_MARKS = (("#D55E00", "v"), ("#E69F00", "^"))
IN_PLACE, OUT = "in place", "out="

Run = dict[str, Any]


def runs() -> list[Run]:
    """What was measured, in each world."""
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    if not found:
        sys.exit("benchmarks/results has no figures; run make bench")
    return found


def pymc(run: Run) -> str:
    return "PyMC " + ".".join(run["versions"]["pymc"].split(".")[:2])


def select(run: Run, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in run["cells"] if all(row[name] == value for name, value in wanted.items())]


def peers_of(worlds: list[Run], row: dict[str, Any], figure: str) -> dict[str, float]:
    """`ratio` (times faster) or `floors` (times the floor) of each peer in a cell, the quickest way of each."""
    found: dict[str, float] = {}
    key = {name: row[name] for name in ("case", "dtype", "violating", "threads", "how")}
    for number, run in enumerate(worlds):
        for same in select(run, **key):
            for name, peer in same["peers"].items():
                if name == "PyMC update":
                    found[pymc(run)] = peer[figure]
                elif number == 0:
                    shown = PEERS[name]
                    found[shown] = min(peer[figure], found.get(shown, peer[figure]))
    return found


def columns(worlds: list[Run]) -> list[str]:
    return [*(pymc(run) for run in worlds if "pymc" in run["versions"]), *dict.fromkeys(PEERS.values())]


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], words: int) -> Iterator[str]:
    """Lines of Markdown; after the first columns come figures."""
    head = list(head)
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * words + "--:|" * (len(head) - words)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def figures(worlds: list[Run]) -> str:
    """All that stands between the marks of the page."""
    lines = [
        *about(worlds),
        *floors_table(worlds[0], 1),
        *faster_table(worlds, IN_PLACE),
        *faster_table(worlds, OUT),
        *threads_table(worlds[0]),
        *graph_tables(worlds),
        *latency_table(worlds[0]),
    ]
    return "\n".join(lines)


def about(worlds: list[Run]) -> Iterator[str]:
    machine = worlds[0]["machine"]
    yield "- Machine: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    for run in worlds:
        if not run["whole"]:
            yield "- **Provisional**: a few cells, timed shortly; `make bench` times all."
        yield "- Versions: " + ", ".join(f"{name} {value}" for name, value in run["versions"].items()) + "."
        for name, why in run["left out"].items():
            yield f"- Left out with {pymc(run) if 'pymc' in run['versions'] else 'these'}: {name} ({why})."
        for label in run["failed"]:
            yield f"- **Failed** with {pymc(run) if 'pymc' in run['versions'] else 'these'}: {label}."
    yield ""


def by_case(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[tuple[str, str], dict[str, Any]]]]:
    """One row of the case for its labels, and all of its rows by how and state."""
    cases = dict.fromkeys((row["case"], row["dtype"]) for row in rows)
    for case, dtype in cases:
        same = [row for row in rows if row["case"] == case and row["dtype"] == dtype]
        yield same[0], {(row["how"], row["violating"]): row for row in same}


def labels(row: dict[str, Any]) -> list[str]:
    return [row["case"], row["dtype"]]


def floors_table(run: Run, threads: int) -> Iterator[str]:
    yield "### Times the floor"
    yield ""
    yield "One thread. In brackets the floor in ms: reading, scaling in place, copying (a total: reading first)."
    yield ""
    states = [(how, state) for how in (IN_PLACE, OUT) for state in ("none", "half", "all")]

    def rows() -> Iterator[list[str]]:
        for first, cells in by_case(select(run, threads=threads)):
            figures = []
            for key in states:
                row = cells.get(key)
                shown = key in ((IN_PLACE, "none"), (IN_PLACE, "all"), (OUT, "all"))
                floor = f" ({milliseconds(row['floor']['seconds'])})" if row and shown else ""
                figures.append(number(row["floor"]["ratio"] if row else None) + floor)
            yield [*labels(first), f"{first['bytes'] / 2**20:.3g}", *figures]

    yield from table(["arrays", "dtype", "MiB", *(f"{how}, {state}" for how, state in states)], rows(), 2)


def faster_table(worlds: list[Run], how: str) -> Iterator[str]:
    """Peers' times over ours, where nothing violates and where all do."""
    yield "### Times faster, in place" if how == IN_PLACE else "### Times faster, into other memory (`out=`)"
    yield ""
    yield "A peer's time over ours: none / all violating. One thread."
    yield ""
    names = columns(worlds)

    def rows() -> Iterator[list[str]]:
        for first, cells in by_case(select(worlds[0], threads=1, how=how)):
            states = [
                peers_of(worlds, cells[how, state], "ratio") if (how, state) in cells else {}
                for state in ("none", "all")
            ]
            if any(states):
                yield [*labels(first), *(" / ".join(number(state.get(name)) for state in states) for name in names)]

    yield from table(["arrays", "dtype", *names], (tidy(row) for row in rows()), 2)


def summary(worlds: list[Run]) -> Iterator[str]:
    """Some of the rows of times in place, for the README."""
    for line in faster_table(worlds, IN_PLACE):
        cells = [cell.strip() for cell in line.split("|")[1:3]]
        if cells in (["arrays", "dtype"], ["---", "---"], *([case, "float32"] for case in SUMMARY)):
            yield line


def tidy(row: list[str]) -> list[str]:
    return ["–" if cell == "– / –" else cell for cell in row]


def threads_table(run: Run) -> Iterator[str]:
    """Two threads: our share of the floor's own gain."""
    rows = []
    for first, cells in by_case(select(run, threads=2)):
        alone = {
            (r["how"], r["violating"]): r for r in select(run, threads=1, case=first["case"], dtype=first["dtype"])
        }
        for how, state in ((IN_PLACE, "none"), (IN_PLACE, "all"), (OUT, "all")):
            two, one = cells.get((how, state)), alone.get((how, state))
            if two and one:
                gain = one["seconds"] / two["seconds"]
                floor = one["floor"]["seconds"] / two["floor"]["seconds"]
                rows.append(
                    [*labels(first), f"{how}, {state}", number(two["floor"]["ratio"]), number(gain), number(floor)]
                )
    if rows:
        yield "### Two threads"
        yield ""
        yield "Wall clock, against the floor on two threads; and what the second thread gains us, and the floor."
        yield ""
        yield from table(["arrays", "dtype", "state", "times the floor", "our gain", "the floor's gain"], rows, 3)


def graph_tables(worlds: list[Run]) -> Iterator[str]:
    yield "### In a PyTensor graph"
    yield ""
    yield "PyMC's function against ours in the same graph: times faster, none / half / all violating."
    yield ""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for run in worlds for row in run["graphs"]))

    def rows() -> Iterator[list[str]]:
        for run in worlds:
            for mode, kind, dtype in dict.fromkeys((r["mode"], r["kind"], r["dtype"]) for r in run["graphs"]):
                cells = {
                    (tuple(r["shape"]), r["violating"]): r["ratio"]
                    for r in run["graphs"]
                    if (r["mode"], r["kind"], r["dtype"]) == (mode, kind, dtype)
                }
                states = ("none", "half", "all")
                ratios = [" / ".join(number(cells.get((shape, state))) for state in states) for shape in shapes]
                yield [pymc(run), mode, f"`{kind}`", dtype, *ratios]

    yield from table(["", "mode", "graph", "dtype", *(f"{n} x {m}" for n, m in shapes)], (tidy(r) for r in rows()), 4)


def latency_table(run: Run) -> Iterator[str]:
    yield "### Small calls"
    yield ""
    rows = [
        [
            " x ".join(map(str, row["shape"])),
            row["result"],
            f"{row['ours_seconds'] * 1e6:.1f}",
            f"{row['numpy_seconds'] * 1e6:.1f}",
            number(row["ratio"]),
        ]
        for row in run["latency"]
    ]
    yield from table(["float32", "result", "ours, µs", "NumPy's formula, µs", "times faster"], rows, 2)
    for row in run["first call"]:
        yield f"`import normball` and a first call take {row['seconds'] * 1e3:.0f} ms over NumPy's own import."
        yield ""


def draw(worlds: list[Run]) -> None:
    """One row per case, one mark per library, on a scale that begins with the floor: float32, one thread, in place."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "none": "Every norm within its bound\n(the floor: reading the arrays once)",
        "all": "Every norm above its bound\n(the floor: scaling the arrays in place)",
    }
    cases = list(dict.fromkeys(row["case"] for row in select(worlds[0], dtype="float32", threads=1, how=IN_PLACE)))
    marks = MARKS | dict(zip((pymc(run) for run in worlds if "pymc" in run["versions"]), PYMC_MARKS, strict=False))
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    figure, axes = plt.subplots(1, 2, sharey=True, figsize=(12, 1.6 + 0.36 * len(cases)), layout="constrained")
    for panel, (state, title) in zip(axes, panels.items(), strict=True):
        for place, case in enumerate(cases):
            for row in select(worlds[0], case=case, dtype="float32", threads=1, how=IN_PLACE, violating=state):
                ours = row["floor"]["ratio"]
                others = peers_of(worlds, row, "floors")
                panel.plot([1, max([ours, *others.values()])], [place] * 2, color="#dddddd", linewidth=1, zorder=1)
                for name, value in others.items():
                    colour, shape = marks[name]
                    panel.scatter(value, place, 38, colour, marker=shape, alpha=0.9, linewidths=0, zorder=2)
                colour, shape = MARKS["normball"]
                panel.scatter(ours, place, 95, colour, marker=shape, edgecolors="white", linewidths=0.8, zorder=3)
        panel.axvline(1, color="black", linewidth=1.5)
        panel.set(xscale="log", xlabel="time, in multiples of the floor: further left is faster", title=title)
        ticks = [1, 2, 5, 10, 20, 50, 100, 200]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(axis="x", color="#eeeeee", zorder=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(cases)), [case.replace(" x ", " × ") for case in cases])
    axes[0].invert_yaxis()
    used = [name for name in marks if name == "normball" or name in columns(worlds)]
    handles = [
        plt.Line2D(
            [],
            [],
            linestyle="",
            color=marks[name][0],
            marker=marks[name][1],
            label=name,
            markersize=9 if name == "normball" else 7,
        )
        for name in used
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(used), frameon=False)
    figure.savefig(PICTURE, dpi=110)


def pages(worlds: list[Run]) -> dict[Path, str]:
    """Each page that has figures, and what stands between its marks."""
    return {PAGE: figures(worlds), README: "\n".join(summary(worlds))}


def with_figures(text: str, figures: str) -> str:
    """A page with the figures of the day between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{figures.rstrip()}\n\n{END}{after}"


def write() -> None:
    """Tables and picture anew."""
    worlds = runs()
    for path, figures in pages(worlds).items():
        path.write_text(with_figures(path.read_text(), figures))
    draw(worlds)


def main() -> None:
    if "--check" not in sys.argv:
        write()
        return
    for path, figures in pages(runs()).items():
        if path.read_text() != with_figures(path.read_text(), figures):
            sys.exit(f"{path.name}: its figures are not those of benchmarks/results; run benchmarks/report.py")


if __name__ == "__main__":
    main()
