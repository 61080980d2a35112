"""`normball` and `python -m normball`: the command line of `checkpoint/cli.py`."""

import sys

from normball import __version__


def main() -> int:
    """Run the command line on the process's own arguments."""
    if sys.argv[1:] == ["--version"]:
        print(f"normball {__version__}")
        return 0
    from normball.checkpoint.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
