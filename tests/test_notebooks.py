"""The notebooks run top to bottom on the drawn photos, and the committed copies hold outputs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("torch")

from notebooks.execute import execute  # noqa: E402

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_quick_mode(path: Path, tmp_path: Path) -> None:
    execute(path, tmp_path / path.name, {"QUICK": "1", "OMP_NUM_THREADS": "1"}, timeout=600)
    cells = nbformat.read(tmp_path / path.name, as_version=4).cells
    pictures = [
        output
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 10
    errors = [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert not errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_twelve_sections_and_defines_nothing(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    headings = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert [heading.split(".")[0] for heading in headings] == [f"## {n}" for n in range(1, 13)]
    for cell in cells:
        if cell.cell_type != "code":
            continue
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, defined), f"{path.name} defines {node.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_copy_holds_real_outputs(path: Path) -> None:
    """From the real data, and nothing in them says where they were made."""
    content = nbformat.read(path, as_version=4)
    for cell in content.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # its base64 may spell any path
    text = nbformat.writes(content)
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    assert "real photos" in text
    assert str(FOLDER.parent.parent) not in text.replace(str(Path(sys.prefix)), "")
