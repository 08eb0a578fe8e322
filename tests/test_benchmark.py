"""The benchmark on a small measuring set with detectors whose answers are known."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PaintRed
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from featherface.analysis import benchmark as benchmark_module
from featherface.analysis.benchmark import Plan, fill, read_record, run_benchmark, write_record
from featherface.analysis.benchmark_report import write_report
from featherface.analysis.contenders import Entry, load_peers, peer_entries
from featherface.analysis.measured_accuracy import measure_accuracy
from featherface.analysis.onnx_cost import count_macs, onnx_cost
from featherface.analysis.peak_memory import measure_peak_memory
from featherface.cli import app
from featherface.errors import ConfigError, DataError, WeightsError

SHARED = Path(os.environ.get("FEATHERFACE_SHARED", Path(__file__).parents[1].parent / "shared"))
SQUARES = [(32, 32, 8), (96, 40, 8)]
BOXES = [[28, 28, 44, 44], [92, 36, 108, 52]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, paint_red: PaintRed) -> Path:
    """Both measuring sets, two photos each: one with two red faces, one with none."""
    root = tmp_path_factory.mktemp("data")
    wider, masks = {}, {}
    for name, squares, boxes in (("some", SQUARES, BOXES), ("none", [], [])):
        photo = cv2.cvtColor(paint_red(640, 96, *squares), cv2.COLOR_RGB2BGR)
        for folder in ("wider_mini", "masks"):
            (root / folder / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(root / folder / "images" / f"{name}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 99]
            )
        size = {"width": 640, "height": 96, "boxes": boxes}
        indices = list(range(len(boxes)))
        levels = {"easy": indices[:1], "medium": indices, "hard": indices}
        wider[name] = {"event": "0--Test", **size, **levels}
        masks[name] = size
    (root / "wider_mini" / "ground_truth.json").write_text(json.dumps(wider))
    (root / "masks" / "ground_truth.json").write_text(json.dumps(masks))
    return root


@pytest.fixture
def plan(data: Path, tmp_path: Path) -> Plan:
    return Plan(data, tmp_path / "cache", rounds=2, sizes=((64, 64), (96, 64)), threads=(1,))


def test_measures_everything_and_renews_part_by_part(
    red_weights: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        benchmark_module,
        "measure_peak_memory",
        lambda *_: {"total_mib": 2, "above_libraries_mib": 1},
    )
    ours, other = Entry("ours", red_weights), Entry("other", red_weights)
    record = run_benchmark([ours, other], plan, {})
    model = record["models"]["ours"]
    assert model["accuracy"]["wider_hard"] == pytest.approx(1)
    assert model["accuracy"]["masks"] == pytest.approx(1)
    speed = model["speed"]["latency"]
    assert set(speed) == {"64x64, 1 thread", "96x64, 1 thread"}
    assert speed["64x64, 1 thread"]["whole_ratio"] == 1
    assert speed["64x64, 1 thread"]["network_ms"] > 0
    assert record["speed"]["reference"] == "ours"
    assert record["speed"]["machine"]["libraries"]["numpy"] == np.__version__
    write_record(tmp_path / "benchmark.json", record)

    again = run_benchmark(
        [ours], replace(plan, accuracy=False), read_record(tmp_path / "benchmark.json")
    )
    assert "speed" not in again["models"]["other"]  # times of two runs do not compare
    assert again["models"]["other"]["accuracy"] == record["models"]["other"]["accuracy"]
    renewed = run_benchmark([ours], replace(plan, speed=False), record)
    assert renewed["models"]["ours"]["speed"] == record["models"]["ours"]["speed"]

    text = write_report(record, tmp_path)
    assert "SCRFD-2.5G" in text
    assert "| other |" in text
    assert not list(tmp_path.glob("*latency.png"))  # nothing was measured at 640x480
    picture = cv2.imread(str(tmp_path / "ap_vs_parameters.png"))
    assert picture is not None
    assert picture.shape[1] > 1000
    record["models"]["ours"]["sha256"] = "changed"
    assert "earlier file" in write_report(record, tmp_path)


def test_photos_are_seen_once(red_weights: Path, plan: Plan, data: Path) -> None:
    seen: list[str] = []

    def progress(photos: object, title: str) -> object:
        seen.append(title)
        return photos

    entry = Entry("red", red_weights)
    first = measure_accuracy(entry, data, plan.cache, 1, progress)  # type: ignore[arg-type]
    assert seen == ["red on wider_mini", "red on masks"]
    assert measure_accuracy(entry, data, plan.cache, 1, progress) == first  # type: ignore[arg-type]
    assert len(seen) == 2


def test_same_names_and_missing_data(red_weights: Path, plan: Plan, tmp_path: Path) -> None:
    entry = Entry("red", red_weights)
    with pytest.raises(ConfigError, match="one name"):
        run_benchmark([entry, entry], plan, {})
    with pytest.raises(DataError, match="neither"):
        run_benchmark([entry], replace(plan, data=tmp_path), {})
    with pytest.raises(DataError, match="--data"):
        run_benchmark([entry], replace(plan, data=None), {})
    with pytest.raises(ConfigError, match="none of the peers"):
        peer_entries(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(WeightsError, match="broken"):
        onnx_cost(tmp_path / "broken.onnx", 64, 64)


def test_macs_by_hand() -> None:
    weight = numpy_helper.from_array(np.zeros((8, 1, 3, 3), np.float32), "w")
    point = numpy_helper.from_array(np.zeros((4, 8, 1, 1), np.float32), "p")
    up = numpy_helper.from_array(np.zeros((4, 2, 2, 2), np.float32), "u")
    first = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "f")
    nodes = [
        helper.make_node("Conv", ["image", "f"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["b"], group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "p"], ["c"]),
        helper.make_node("ConvTranspose", ["c", "u"], ["d"], strides=[2, 2]),
    ]
    shape = ["batch", 3, "height", "width"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
            [first, weight, point, up],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    cells = 16 * 16
    expected = cells * (8 * 27 + 8 * 9 + 4 * 8 + 4 * 2 * 4)
    assert count_macs(model, 32, 32) == expected


def test_peak_memory_of_a_process_of_its_own(red_weights: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("the kernel tells peak memory under /proc")
    figures = measure_peak_memory(Entry("red", red_weights), 64, 64)
    assert figures is not None
    assert 0 < figures["above_libraries_mib"] < figures["total_mib"]


def test_fill_keeps_the_middle() -> None:
    image = np.zeros((100, 400, 3), np.uint8)
    image[:, 200:] = 255
    filled = fill(image, (100, 100))
    assert filled.shape == (100, 100, 3)
    assert filled[:, :49].max() == 0
    assert filled[:, 51:].min() == 255


def test_command(red_weights: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["benchmark", "--data", str(data), "--weights", str(red_weights), "--out"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path), "--only-accuracy"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert record["models"]["red"]["accuracy"]["wider_easy"] == pytest.approx(1)
    assert record["models"]["red"]["parameters"] > 0
    assert (tmp_path / "benchmark.md").is_file()
    both = CliRunner().invoke(app, ["benchmark", "--only-accuracy", "--only-latency"])
    assert both.exit_code == 2


@pytest.mark.skipif(not (SHARED / "peers").is_dir(), reason="the peers' files are not here")
def test_peers_find_the_example_face() -> None:
    photo = cv2.imread(str(benchmark_module.PACKAGE / "examples" / "astronaut.jpg"))
    image = np.ascontiguousarray(photo[:, :, ::-1])
    entries = peer_entries(SHARED / "peers")
    assert {entry.name for entry in entries} == set(load_peers())
    for entry in entries:
        faces = entry.open(1, 0.6)(image)
        assert len(faces.scores) == 1, entry.name
        x1, y1, x2, y2 = faces.boxes[0]
        assert 155 < x1 < 200, entry.name
        assert 30 < y1 < 95, entry.name
        assert 250 < x2 < 295, entry.name
        assert 160 < y2 < 215, entry.name
        if faces.landmarks is not None:
            left_eye, right_eye, nose, *mouth = faces.landmarks[0]
            assert left_eye[0] < nose[0] < right_eye[0], entry.name
            assert max(left_eye[1], right_eye[1]) < nose[1] < min(p[1] for p in mouth), entry.name


def test_cache_is_not_tracked() -> None:
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "results/benchmark/cache/x.npz"], cwd=root, check=False
    )
    assert ignored.returncode == 0
