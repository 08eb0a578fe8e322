"""Run the notebooks top to bottom and keep their outputs.

python -m notebooks.execute --data FOLDER         the real data, see the notebooks' first cells
python -m notebooks.execute --quick --out runs    drawn photos; the committed copies stay
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import time
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
SECONDS_A_CELL = 3600


def execute(
    notebook: Path, out: Path, environment: dict[str, str], timeout: int = SECONDS_A_CELL
) -> None:
    """Run ``notebook`` in the folder above it and write it with its outputs to ``out``."""
    content = nbformat.read(notebook, as_version=4)
    with patch.dict(os.environ, environment):
        resources = {"metadata": {"path": str(FOLDER.parent)}}
        NotebookClient(content, timeout=timeout, resources=resources).execute()
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # times of day; they would change with every run
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = slim(data["image/png"])
    content.metadata.get("language_info", {}).pop("version", None)
    part = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, part)
    part.replace(out)


def slim(png: str) -> str:
    """A PNG (base64) in 256 colours, which photos and plots bear; whichever is smaller."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode("ascii")
    return smaller if len(smaller) < len(png) else png


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")
    parser.add_argument("--data", type=Path, help="folder of data/ and weights/")
    parser.add_argument("--quick", action="store_true", help="drawn photos, little training")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the results")
    options = parser.parse_args()
    environment = {"QUICK": "1" if options.quick else "0"}
    if options.data:
        environment["FEATHERFACE_DATA"] = str(options.data.resolve())
    for notebook in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        execute(notebook, options.out / notebook.name, environment)
        print(f"{options.out / notebook.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
