"""The README's support table, from the backends' SUPPORTS: `python docs/support.py [--check]`."""

import sys
from pathlib import Path

from normball.backends import CLAIMS
from normball.dispatch import BACKENDS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- support table: make check -->\n", "<!-- end of support table -->\n"


def table() -> str:
    """A row for each claim, a column for each way to run a backend."""
    supports = {name: claims for backend in BACKENDS.values() for name, claims in backend().SUPPORTS.items()}
    unknown = {claim for claims in supports.values() for claim in claims} - set(CLAIMS)
    if unknown:
        raise ValueError(f"SUPPORTS claims {unknown}: not among CLAIMS; add it there, with its meaning")
    lines = ["| | " + " | ".join(supports) + " |", "|---|" + ":-:|" * len(supports)]
    for claim, meaning in CLAIMS.items():
        lines.append(f"| {meaning} | " + " | ".join("✓" if claim in has else "–" for has in supports.values()) + " |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """The README with the table of the day between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> None:
    """Write the table, or with --check fail where it is out of date."""
    text = README.read_text()
    if "--check" not in sys.argv:
        README.write_text(with_table(text))
    elif text != with_table(text):
        sys.exit("README.md: the support table is out of date; run python docs/support.py")


if __name__ == "__main__":
    main()
