"""The command line: its options, its commands, and every way to end as one line and an exit code."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from normball import __version__, get_num_threads
from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.layouts import NAMES

_VIOLATIONS = _DIFFER = 1
_TROUBLE = 2  # bad input or usage
_PIPE, _INTERRUPTED = 141, 130  # as a shell says it of a process that SIGPIPE or SIGINT ended
_TOP = 20  # rows of a table

_RULES = """rules, of which the first that fits a name counts:
  --rule 'GLOB: axes=in limit=2.5'   for the tensors whose names fit the glob
  --rule 'GLOB: skip'                these are left alone
    axes    in: over one unit's incoming weights, as the layout says; out: over its
            outgoing ones; all: the whole tensor is one group; or numbers, as 0,2
    limit   in place of --max-norm
    layout  in place of --layout
  --rules FILE.toml   tables [[rule]] with match = 'GLOB' and the same keys, after those of --rule

layouts:
  torch             (out, in, *kernel): Linear, Conv, attention, recurrent; Embedding (row, dim)
  torch-transposed  (in, out, *kernel): ConvTranspose, for a rule about these
  gpt2              (in, out): the Conv1D of GPT-2; its embeddings (row, dim)
  keras             (*kernel, in, out), by the names of Keras' weights
  jax               (*kernel, in, out), by the names of flax, haiku and equinox
  pytensor          (in, out) and (out, in, *kernel): norm_constraint's own, PyMC's, Lasagne's

exit codes:
  0  all is well
  1  check --fail-on-violation: a norm is over its limit, or not finite; diff: the models differ
  2  bad input or usage
"""


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise CheckpointError(f"{printable(message)}; {self.prog} --help says more")


class _Completion(argparse.Action):
    """Print what a shell needs to complete commands, options and files."""

    def __call__(self, parser: Any, *args: Any) -> None:
        try:
            import shtab
        except ImportError:
            raise CheckpointError("--print-completion: needs shtab; pip install 'normball[cli]'") from None
        for files in _FILES:
            files.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, args[1]))
        parser.exit()


_FILES: list[argparse.Action] = []  # arguments that are files


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line; whatever goes wrong is one line on stderr."""
    _open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may be in any script
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except CheckpointError as error:
        return _end(str(error), _TROUBLE)
    except BrokenPipeError:  # who read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE
    except KeyboardInterrupt:
        return _end("stopped", _INTERRUPTED)
    except OSError as error:
        name = f"{printable(str(error.filename))}: " if error.filename else ""
        return _end(f"{name}{error.strerror or error}", _TROUBLE)
    except MemoryError:
        return _end("there is not enough memory; -j 1 needs less", _TROUBLE)


def _open_closed() -> None:
    """Streams that the caller has closed, as `>&-` does and as daemons are born: what goes there is lost."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _run(arguments: Sequence[str]) -> int:
    from normball.checkpoint.signals import Stopped, stoppable

    options = parser().parse_args(arguments)
    try:
        with stoppable():
            _load()
            return options.command(options)
    except Stopped as stopped:
        return _end(str(stopped), 128 + stopped.number)


def _load() -> None:
    """The kernels, which every command needs, and which read NORMBALL_NUM_THREADS."""
    try:
        import normball.kernels  # noqa: F401
    except (TypeError, ValueError) as error:
        raise CheckpointError(str(error)) from None


def _end(message: str, code: int) -> int:
    print("normball:", printable(message), file=sys.stderr)  # as the names in it are already; so it is one line
    return code


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = _Parser(
        "normball",
        description="Norms of the weights in a model's files, and the weights inside their balls.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"normball {__version__}")
    shells = ("bash", "zsh", "tcsh")
    top.add_argument("--print-completion", action=_Completion, choices=shells, help="print a shell's completion")
    commands = top.add_subparsers(title="commands", required=True, metavar="check|constrain|diff", parser_class=_Parser)
    folder = "or a folder with model.safetensors.index.json"
    model = f"a .safetensors, .npy or .npz file, several, {folder}"

    check = _command(commands, "check", _check, "report every tensor's norms, and which are over their limits")
    _file(check, "model", metavar="MODEL", nargs="+", help=model)
    _choosing(check)
    _showing(check)
    form = check.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object, with every tensor")
    form.add_argument("--csv", action="store_true", help="a line a tensor")
    _file(check, "--plot", metavar="OUT", help="draw the norms' distributions, as .png or .html")
    check.add_argument("--fail-on-violation", action="store_true", help="exit 1 where a norm is over or not finite")

    constrain = _command(commands, "constrain", _constrain, "write the model anew, its norms within their limits")
    _file(constrain, "model", metavar="MODEL", nargs="+", help=model)
    _file(constrain, "-o", "--out", metavar="OUT", help="where to: a file, or a folder where MODEL is one or several")
    _choosing(constrain)
    _showing(constrain)
    constrain.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    constrain.add_argument("--force", action="store_true", help="replace OUT, at once, when the result is complete")
    constrain.add_argument("--no-resume", dest="resume", action="store_false", help="begin anew, not where a run ended")
    constrain.add_argument("--verify", action="store_true", help="read the result back, judge it in exact arithmetic")

    diff = _command(commands, "diff", _diff, "compare two models, group by group; exit 1 where they differ")
    for name in ("first", "second"):
        _file(diff, name, metavar="AB"[name == "second"], help=f"a .safetensors, .npy or .npz file, {folder}")
    _choosing(diff, limits=False)
    _showing(diff)
    diff.add_argument("--json", action="store_true", help="one JSON object")
    return top


def _command(commands: Any, name: str, function: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    made = commands.add_parser(
        name, help=text, description=text, epilog=_RULES, formatter_class=style, allow_abbrev=False
    )
    made.set_defaults(command=function)
    return made


def _file(command: argparse.ArgumentParser, *names: str, **settings: Any) -> None:
    _FILES.append(command.add_argument(*names, **settings))


def _choosing(command: argparse.ArgumentParser, limits: bool = True) -> None:
    """Options on which axes of which tensors, under which limits."""
    if limits:
        command.add_argument("--max-norm", metavar="C", help="the limit of every norm")
    command.add_argument("--rule", action="append", default=[], metavar="RULE", help="for some tensors, see below")
    _file(command, "--rules", metavar="FILE", help="a TOML file of rules")
    command.add_argument("--layout", choices=NAMES, help="how the model stores its weights, see below")


def _showing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--top", type=_natural, metavar="N", help=f"rows of the table, the worst first ({_TOP}; 0: all)"
    )
    command.add_argument("-j", "--jobs", type=_natural, default=0, metavar="N", help="threads (as many as processors)")


def _natural(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number >= 0")


def _check(options: argparse.Namespace) -> int:
    from normball.checkpoint import plot, report
    from normball.checkpoint.check import check, chosen, nbytes
    from normball.checkpoint.model import open_model
    from normball.checkpoint.progress import progress
    from normball.checkpoint.rules import limited
    from normball.checkpoint.workers import Workers

    picture = None if options.plot is None else plot.read_path(options.plot)
    rules, limit = _read_choosing(options)
    with open_model(options.model) as model:
        choices, assumed = chosen(model, rules, options.layout, limit)
        if options.fail_on_violation and not limited(choices):
            raise CheckpointError("check: --fail-on-violation, but no tensor has axes and a limit; pass --max-norm")
        with progress(nbytes(model, choices), "checking") as advance, Workers(_jobs(options), advance) as workers:
            found = check(model, choices, assumed, workers)
    if picture is not None:
        plot.draw(found, picture, " ".join(options.model))
    if options.json:
        print(report.to_json(found, options.top))
    elif options.csv:
        print(report.to_csv(found, options.top), end="")
    else:
        report.show(found, sys.stdout, _TOP if options.top is None else options.top)
    return _VIOLATIONS if options.fail_on_violation and found.violations else 0


def _constrain(options: argparse.Namespace) -> int:
    from normball.checkpoint import constrain, report
    from normball.checkpoint.model import open_model
    from normball.checkpoint.progress import progress
    from normball.checkpoint.rules import choose, limited, under_limits
    from normball.checkpoint.workers import Workers

    if options.out is None and not options.dry_run:
        raise CheckpointError("constrain: no -o OUT, where the result goes; or --dry-run")
    rules, limit = _read_choosing(options)
    with open_model(options.model) as model:
        choices = under_limits(choose(model.tensors, rules, options.layout, limit))
        if not limited(choices):
            remedy = "pass --max-norm, or give a rule a limit; normball check shows which tensors are taken"
            raise CheckpointError(f"constrain: nothing to do, no tensor has axes and a limit; {remedy}")
        found = report.Report()
        resumed = 0

        def told(outcome: constrain.Outcome) -> None:
            nonlocal resumed
            resumed += outcome.resumed
            found.add(outcome.tensor, outcome.choice, outcome.statistics)

        total = sum(tensor.nbytes for tensor in model.tensors)
        with progress(total, "constraining") as advance, Workers(_jobs(options), advance) as workers:
            constrain.run(
                model,
                choices,
                None if options.out is None else Path(options.out),
                force=options.force,
                resume=options.resume,
                dry_run=options.dry_run,
                verify=options.verify,
                workers=workers,
                report=told,
            )
    report.show(found, sys.stdout, _TOP if options.top is None else options.top)
    if resumed:
        print(f"{resumed:,} tensors were finished by an earlier run")
    sums = report.totals(found)
    would = "nothing is written; would rescale" if options.dry_run else f"{printable(options.out)}: rescaled"
    verified = "; read back and verified" if options.verify and not options.dry_run else ""
    print(f"{would} {sums['over']:,} groups in {sums['tensors_over']:,} tensors{verified}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    from normball.checkpoint import diff
    from normball.checkpoint.check import chosen
    from normball.checkpoint.model import open_model
    from normball.checkpoint.progress import progress
    from normball.checkpoint.workers import Workers

    rules, names = _read_choosing(options)[0], (options.first, options.second)
    with open_model(names[:1]) as first, open_model(names[1:]) as second:
        choices, assumed = chosen(first, rules, options.layout, None)
        total = sum(tensor.nbytes for tensor in first.tensors)
        with progress(total, "comparing") as advance, Workers(_jobs(options)) as workers:
            found = diff.diff(first, second, names, choices, workers, advance)
    found.assumed = assumed
    if options.json:
        print(diff.to_json(found))
    else:
        diff.show(found, _TOP if options.top is None else options.top, sys.stdout)
    return _DIFFER if found else 0


def _read_choosing(options: argparse.Namespace) -> tuple[list, float | None]:
    from normball.checkpoint.rules import read_limit, read_rules

    limit = getattr(options, "max_norm", None)
    return read_rules(options.rule, options.rules), None if limit is None else read_limit(limit, "--max-norm")


def _jobs(options: argparse.Namespace) -> int:
    return options.jobs or get_num_threads()
