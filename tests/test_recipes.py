"""The committed recipes, run through the command line on small trees of the real layouts."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from featherface.cli import app
from featherface.training.config import read_config

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FEATHERFACE_SHARED", ROOT.parent / "shared"))
V1_WEIGHTS = SHARED / "weights" / "featherface_v1_wider.safetensors"
SMALL = ["images=4", "batch=2", "data.workers=0", "data.sizes=[[64,1.0]]", "precision=32-true"]


@pytest.fixture
def wider_tree(tmp_path: Path) -> Path:
    lines = []
    for number in range(4):
        name = f"{number}--Event/{number}_Event_{number}.jpg"
        path = tmp_path / "WIDER_train" / "images" / name
        path.parent.mkdir(parents=True)
        image = np.full((120, 160, 3), 90, np.uint8)
        cv2.circle(image, (60, 60), 20, (150, 180, 220), -1)
        cv2.imwrite(str(path), image)
        points = "52 52 0 68 52 0 60 60 0 53 70 0 67 70 0"
        lines += [f"# {name}", f"40 40 40 40 {points} 0.9"]
    (tmp_path / "WIDER_train" / "label.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "WIDER_train"


@pytest.mark.parametrize(
    "name", sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))
)
def test_every_recipe_is_valid(name: str) -> None:
    config = read_config(ROOT / "configs" / name)
    start = config.start
    rewritten = config.model.interpolative and start.weights
    assert config.images > 0 or start.fits_factors or start.council or rewritten


def run_recipe(command: str, recipe: str, settings: list[str]) -> str:
    arguments = [command, "--config", str(ROOT / "configs" / recipe), "--accelerator", "cpu"]
    arguments.append("--no-record")
    for setting in settings:
        arguments += ["--set", setting]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_wider_face_recipe_trains(wider_tree: Path, tmp_path: Path) -> None:
    places = [f"data.shards={wider_tree}", f"output={tmp_path / 'runs'}"]
    run_recipe("train", "v2_wider.yaml", [*SMALL, *places, "start.v1=null"])
    run = tmp_path / "runs" / "v2_wider"
    assert (run / "model.onnx").stat().st_size > 900_000
    assert (run / "model.safetensors").exists()


@pytest.mark.skipif(not V1_WEIGHTS.exists(), reason="V1's weights are not here")
def test_wider_face_recipe_distils(wider_tree: Path, tmp_path: Path) -> None:
    places = [f"data.shards={wider_tree}", f"output={tmp_path / 'runs'}"]
    teacher = [f"start.v1={V1_WEIGHTS}", f"distillation.teacher={V1_WEIGHTS}"]
    small = [*SMALL, "start.context_crops=16"]
    run_recipe("distill", "v2_wider.yaml", [*small, *places, *teacher])
    header = (tmp_path / "runs" / "v2_wider" / "log.csv").read_text().splitlines()[0]
    assert "teacher_logits" in header


@pytest.mark.skipif(not V1_WEIGHTS.exists(), reason="V1's weights are not here")
def test_a_context_begins_on_v1s_maps(wider_tree: Path, tmp_path: Path) -> None:
    places = [f"data.shards={wider_tree}", "data.layout=wider", f"output={tmp_path / 'runs'}"]
    teacher = [f"start.v1={V1_WEIGHTS}", f"distillation.teacher={V1_WEIGHTS}"]
    small = [*SMALL, "start.context_crops=16", "data.validation_fraction=0", "data.crop.mosaic=0"]
    output = run_recipe("distill", "v2_light.yaml", [*small, *places, *teacher])
    assert "from V1's after" in output
    assert (tmp_path / "runs" / "v2_light" / "model.onnx").stat().st_size > 900_000
