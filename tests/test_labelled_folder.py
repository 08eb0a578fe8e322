"""Evaluation on labelled folders: four label formats, the figures, the report, the commands."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from featherface.cli import evaluate as evaluate_commands
from featherface.errors import DataError, ImageError
from featherface.evaluation.average_precision import envelope_average_precision, match_voc
from featherface.evaluation.label_formats import find_format, read_labelled_folder
from featherface.evaluation.labelled_folder import evaluate_folder, evaluate_voc
from featherface.evaluation.report import worst_false_alarms, worst_misses, write_report
from featherface.evaluation.views import FoundFaces, Views
from featherface.evaluation.wider_predictions import write_prediction_file

WIDTH, HEIGHT = 160, 120
BOXES = np.array([[10, 20, 50, 70], [100, 30, 112, 42]], np.float64)
LANDMARKS = np.array([[20, 40], [40, 40], [30, 50], [24, 60], [36, 60]], np.float64)
VOC_OBJECT = (
    "<object><name>face</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def write_json(folder, **changes):
    write_picture(folder / "images" / "a.jpg")
    entry = {
        "width": WIDTH, "height": HEIGHT, "boxes": BOXES.tolist(),
        "landmarks": [LANDMARKS.tolist(), None],
    }  # fmt: skip
    (folder / "ground_truth.json").write_text(json.dumps({"a": {**entry, **changes}}))


def write_coco(folder):
    write_picture(folder / "images" / "a.jpg")
    points = np.concatenate([LANDMARKS, np.full((5, 1), 2)], axis=1).reshape(-1).tolist()
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 40, 50], "keypoints": points},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [100, 30, 12, 12]},
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "face"}],
        "annotations": annotations,
    }
    (folder / "annotations").mkdir()
    (folder / "annotations" / "faces.json").write_text(json.dumps(content))


def write_yolo(folder, extra=""):
    write_picture(folder / "images" / "train" / "a.jpg")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    points = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in LANDMARKS)
    (labels / "a.txt").write_text(
        f"0 {30 / WIDTH} {45 / HEIGHT} {40 / WIDTH} {50 / HEIGHT} {points}\n"
        f"0 {106 / WIDTH} {36 / HEIGHT} {12 / WIDTH} {12 / HEIGHT}\n{extra}"
    )


def write_voc(folder, difficult=0):
    write_picture(folder / "JPEGImages" / "a.jpg")
    (folder / "Annotations").mkdir()
    objects = [VOC_OBJECT.format(0, *BOXES[0]), VOC_OBJECT.format(difficult, *BOXES[1])]
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.jpg</filename><size><width>{WIDTH}</width>"
        f"<height>{HEIGHT}</height></size>{''.join(objects)}</annotation>"
    )


WRITERS = {"json": write_json, "coco": write_coco, "yolo": write_yolo, "voc": write_voc}


def detector(boxes=BOXES, scores=(0.9, 0.8), landmarks=None):
    """Reports boxes given in label pixels, whatever size it is shown."""

    def detect(image):
        factor = image.shape[1] / WIDTH
        points = None if landmarks is None else np.array(landmarks, float) * factor
        return FoundFaces(np.array(boxes, float).reshape(-1, 4) * factor, np.array(scores), points)

    return detect


@pytest.mark.parametrize("label_format", WRITERS)
def test_every_format_says_the_same(tmp_path, label_format):
    WRITERS[label_format](tmp_path)
    assert find_format(tmp_path) == label_format
    (photo,) = read_labelled_folder(tmp_path)
    assert photo.size == (WIDTH, HEIGHT)
    assert photo.boxes == pytest.approx(BOXES)
    assert not photo.ignored.any()
    if label_format == "voc":
        assert np.isnan(photo.landmarks).all()
    else:
        assert photo.landmarks[0] == pytest.approx(LANDMARKS)
        assert np.isnan(photo.landmarks[1]).all()
    assert evaluate_voc(detector(), tmp_path) == pytest.approx(1)


def test_bad_folders_and_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="no labels that are known"):
        find_format(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_labelled_folder(tmp_path / "none")
    with pytest.raises(DataError, match="Unknown label format 'csv'"):
        read_labelled_folder(tmp_path, "csv")
    write_yolo(tmp_path, extra="0 0.5 0.5 0.1\n")
    with pytest.raises(DataError, match=r"a\.txt:3: expected 'class x y width height'"):
        read_labelled_folder(tmp_path)
    write_json(tmp_path, boxes=[[5, 5, 1, 9]], landmarks=None)
    with pytest.raises(DataError, match="right or bottom lies before"):
        read_labelled_folder(tmp_path)
    write_json(tmp_path, boxes=[[5, 5, float("nan"), 9]], landmarks=None)
    with pytest.raises(DataError, match="not finite"):
        read_labelled_folder(tmp_path)
    write_json(tmp_path, boxes=[[1, 2, 3]])
    with pytest.raises(DataError, match="malformed boxes"):
        read_labelled_folder(tmp_path)
    (tmp_path / "ground_truth.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_labelled_folder(tmp_path)


def test_missing_and_broken_photos_are_named(tmp_path):
    write_json(tmp_path)
    (tmp_path / "images" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.jpg is no picture"):
        evaluate_voc(detector(), tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match="lacks the labelled photo a"):
        evaluate_voc(detector(), tmp_path)


def test_photo_and_label_of_other_shapes_are_refused(tmp_path):
    write_json(tmp_path, width=120, height=160)
    with pytest.raises(DataError, match="do not belong together"):
        evaluate_voc(detector(), tmp_path)


def test_malformed_voc_and_coco_files_are_named(tmp_path):
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    with pytest.raises(DataError, match=r"a\.xml is no Pascal VOC annotation: size/width"):
        read_labelled_folder(tmp_path / "voc")
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "faces.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 8
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="annotation 1 is for image 8"):
        read_labelled_folder(tmp_path / "coco")


def test_difficult_faces_neither_count_nor_harm(tmp_path):
    write_voc(tmp_path, difficult=1)
    result = evaluate_folder(detector(scores=(0.8, 0.9)), tmp_path)
    assert result.matches.faces == 1
    assert result.voc_ap50 == pytest.approx(1)
    assert result.coco.ap50 == pytest.approx(1)
    assert result.false_positives_per_photo == 0


def test_figures_of_a_small_case(tmp_path):
    write_json(tmp_path)
    boxes = [BOXES[0], [60, 80, 90, 110], BOXES[1]]
    points = np.stack([LANDMARKS + np.array([3, 4]), LANDMARKS, LANDMARKS])
    result = evaluate_folder(detector(boxes, (0.9, 0.7, 0.3), points), tmp_path, Views())
    assert result.voc_ap50 == pytest.approx(0.5 + 0.5 * 2 / 3)
    # COCO samples 101 recalls: 51 of them at precision 1.
    assert result.coco.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.precision == 0.5
    assert result.recall == 0.5
    assert result.false_positives_per_photo == 1
    assert result.nme == pytest.approx(5 / np.sqrt(40 * 50))
    assert result.nme_faces == 1
    sizes = {part.name: part for part in result.recall_by_size}
    assert (sizes["8-16"].recall, sizes["8-16"].recall_any_score) == (0, 1)
    assert (sizes["32-64"].recall, sizes["32-64"].faces) == (1, 1)
    assert np.isnan(sizes["256+"].recall)
    (miss,) = worst_misses(result, 9)
    assert miss.box == pytest.approx(BOXES[1])
    (alarm,) = worst_false_alarms(result, 9)
    assert alarm.caption == "a.jpg: score 0.70"


def test_nothing_found_and_nothing_labelled(tmp_path):
    write_json(tmp_path)
    nothing = evaluate_folder(detector(np.empty((0, 4)), ()), tmp_path)
    assert (nothing.voc_ap50, nothing.coco.ap50, nothing.recall) == (0, 0, 0)
    assert np.isnan(nothing.precision)
    write_json(tmp_path, boxes=[], landmarks=None)
    unlabelled = evaluate_folder(detector(), tmp_path)
    assert unlabelled.false_positives_per_photo == 2
    assert np.isnan(unlabelled.coco.ap50)
    write_report(unlabelled, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["ap50_coco"] is None


def test_report_is_complete(tmp_path):
    write_json(tmp_path)
    result = evaluate_folder(detector([BOXES[0], [60, 80, 90, 110]]), tmp_path)
    out = tmp_path / "out"
    write_report(result, out, "A <title>")
    assert sorted(path.name for path in out.iterdir()) == [
        "precision_recall.png", "recall_by_size.png", "report.html", "result.json", "result.md",
    ]  # fmt: skip
    page = (out / "report.html").read_text()
    assert "A &lt;title&gt;" in page
    assert page.count("data:image/jpeg") == 2
    assert page.count("data:image/png") == 2
    assert json.loads((out / "result.json").read_text())["views"] == "long side 640"
    assert "| AP50, PASCAL VOC | 50.0 % |" in (out / "result.md").read_text()
    assert cv2.imread(str(out / "precision_recall.png")) is not None


def plain_voc(predictions, faces):
    """PASCAL VOC's rules one detection at a time."""
    ranked = sorted(
        ((row[4], photo, row[:4]) for photo, found in enumerate(predictions) for row in found),
        key=lambda entry: -entry[0],
    )
    taken, hits = set(), []
    for _, photo, box in ranked:
        overlaps = []
        for face in faces[photo]:
            width = min(box[2], face[2]) - max(box[0], face[0]) + 1
            height = min(box[3], face[3]) - max(box[1], face[1]) + 1
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, face)]
            overlaps.append(shared / (sum(areas) - shared))
        best = int(np.argmax(overlaps)) if overlaps else -1
        hit = best >= 0 and overlaps[best] >= 0.5 and (photo, best) not in taken
        if hit:
            taken.add((photo, best))
        hits.append(hit)
    total = sum(len(boxes) for boxes in faces)
    recall = np.cumsum(hits) / max(total, 1)
    return envelope_average_precision(recall, np.cumsum(hits) / np.arange(1, len(hits) + 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_voc_agrees_with_one_detection_at_a_time(seed):
    random = np.random.default_rng(seed)

    def boxes(count):
        corners = random.integers(0, 20, (count, 2))
        return np.concatenate([corners, corners + random.integers(0, 15, (count, 2))], axis=1)

    faces = [boxes(random.integers(0, 5)).astype(float) for _ in range(3)]
    predictions = [
        np.column_stack([boxes(count), random.integers(0, 5, count) / 4]).astype(float)
        for count in random.integers(0, 8, 3)
    ]
    ours = match_voc(predictions, faces).average_precision
    assert ours == pytest.approx(plain_voc(predictions, faces), abs=1e-12)


@pytest.fixture
def command(monkeypatch):
    app = typer.Typer()
    app.callback()(lambda: None)
    evaluate_commands.register(app)
    monkeypatch.setattr(evaluate_commands, "_detector", lambda *_: detector())
    return lambda *arguments: CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_folder_command_writes_its_results(tmp_path, command):
    write_yolo(tmp_path)
    outcome = command("folder", tmp_path, "--out", tmp_path / "out", "--long-side", 320)
    assert outcome.exit_code == 0, outcome.output
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert figures["ap50_voc"] == pytest.approx(1)
    assert figures["views"] == "long side 320"


def test_wider_command_on_a_subset(tmp_path, command):
    write_json(tmp_path, event="0--Parade", easy=[0], medium=[0, 1], hard=[0, 1])
    outcome = command(
        "wider", "--subset", tmp_path, "--json", tmp_path / "ap.json", "--flip",
        "--submission", tmp_path / "predictions",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    figures = json.loads((tmp_path / "ap.json").read_text())
    assert figures["views"] == "original size; flip"
    assert (tmp_path / "predictions" / "0--Parade" / "a.txt").is_file()


def test_wider_command_on_predictions(tmp_path, command):
    from tests.test_wider_protocol import FACES, write_mat_files

    write_mat_files(tmp_path)
    found = np.column_stack([FACES, [0.9, 0.8]])
    write_prediction_file(tmp_path / "found" / "0--Parade" / "a.txt", "a", found)
    write_prediction_file(tmp_path / "found" / "0--Parade" / "b.txt", "b", found[:0])
    outcome = command(
        "wider", "--predictions", tmp_path / "found", "--ground-truth", tmp_path,
        "--json", tmp_path / "ap.json",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((tmp_path / "ap.json").read_text()) == pytest.approx(
        {"easy": 1, "medium": 1, "hard": 1}
    )


def test_wider_command_needs_one_source(tmp_path, command):
    assert command("wider").exit_code == 2
    assert command("wider", "--subset", tmp_path, "--ground-truth", tmp_path).exit_code == 2
    assert command("wider", "--predictions", tmp_path).exit_code == 2
