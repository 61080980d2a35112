"""What goes wrong with files, in one line each; and names from files, safe to show."""


class CheckpointError(Exception):
    """What is wrong with a file, a rule or a place to write to: one line, with the remedy."""


def printable(text: str) -> str:
    """Text from a file as a terminal may show it: control, bidirectional and unpaired characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
