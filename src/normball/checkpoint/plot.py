"""`--plot`: the distributions of a model's norms as a picture, a row for each tensor in the model's order."""

from pathlib import Path

from normball.checkpoint.errors import CheckpointError, printable
from normball.checkpoint.report import Report


def draw(report: Report, path: Path, title: str) -> None:
    """Write the picture; the ending says which kind."""
    if path.suffix == ".html":
        from normball.checkpoint.plot_html import page

        content = page(report, title).encode()
    else:
        from normball.checkpoint.plot_png import picture

        content = picture(report, title)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{printable(str(path))}: can't be written, {error.strerror}") from None


def read_path(text: str) -> Path:
    """Where to draw, refused before anything is read."""
    path = Path(text)
    if path.suffix not in (".png", ".html"):
        raise CheckpointError(f"--plot {printable(text)}: must end in .png or .html")
    if not path.parent.is_dir():
        raise CheckpointError(f"--plot {printable(text)}: there is no folder {printable(str(path.parent))}")
    if path.suffix == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            remedy = "pip install 'normball[cli]', or draw a .html"
            raise CheckpointError(f"--plot {printable(text)}: needs matplotlib; {remedy}") from None
    return path
