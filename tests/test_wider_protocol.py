"""The WIDER FACE protocol: the official reference, the plain loop, the corners, the bad inputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.wider_protocol import read_predictions_npz
from benchmarks.wider_reference_loop import plain_wider_ap
from featherface.errors import ConfigError, DataError
from featherface.evaluation.cached_predictions import detect_wider, predictions_key
from featherface.evaluation.views import FoundFaces, Views, detect_in_views
from featherface.evaluation.wider_face import evaluate_wider_subset, score_predictions
from featherface.evaluation.wider_ground_truth import (
    DIFFICULTIES,
    WiderPhoto,
    read_official_ground_truth,
    read_subset_ground_truth,
)
from featherface.evaluation.wider_predictions import (
    read_prediction_file,
    read_predictions,
    write_predictions,
)

SHARED = Path(
    os.environ.get("FEATHERFACE_SHARED", Path(__file__).resolve().parents[1].parent / "shared")
)
needs_reference = pytest.mark.skipif(
    not (SHARED / "reference" / "wider_predictions.npz").is_file(),
    reason="the official ground truth and reference predictions are not here",
)

FACES = np.array([[10, 10, 49, 49], [100, 100, 139, 139]], np.float64)


def make_photo(name="a", boxes=FACES, counted=None, event="0--Parade"):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    mask = np.ones(len(boxes), bool) if counted is None else np.asarray(counted, bool)
    return WiderPhoto(event, name, boxes, dict.fromkeys(DIFFICULTIES, mask))


def rows(boxes, scores):
    return np.concatenate([np.reshape(boxes, (-1, 4)), np.reshape(scores, (-1, 1))], axis=1)


def score(faces, photo):
    return score_predictions({photo.key: np.asarray(faces)}, [photo]).easy


@needs_reference
def test_reference_is_reproduced(tmp_path):
    photos = read_official_ground_truth(SHARED / "widerface")
    predictions = read_predictions_npz(SHARED / "reference" / "wider_predictions.npz")
    expected = json.loads((SHARED / "reference" / "wider_expected_ap.json").read_text())
    write_predictions(tmp_path, predictions, photos)
    for result in (
        score_predictions(predictions, photos),
        score_predictions(read_predictions(tmp_path, photos), photos),
    ):
        for difficulty, average in result.as_dict().items():
            assert average == pytest.approx(expected[difficulty], abs=1e-9)


@st.composite
def small_sets(draw):
    """Up to four photos on a small canvas, so that boxes overlap and scores tie often."""
    coordinate = st.integers(0, 24)

    def box():
        left, top = draw(coordinate), draw(coordinate)
        return [left, top, left + draw(st.integers(0, 12)), top + draw(st.integers(0, 12))]

    photos, predictions = [], {}
    for number in range(draw(st.integers(1, 4))):
        boxes = np.array([box() for _ in range(draw(st.integers(0, 6)))], np.float64)
        flags = st.lists(st.booleans(), min_size=len(boxes), max_size=len(boxes))
        counted = {d: np.array(draw(flags), bool) for d in DIFFICULTIES}
        photo = WiderPhoto("event", f"photo{number}", boxes.reshape(-1, 4), counted)
        near = [
            [*(np.array(boxes[draw(st.integers(0, len(boxes) - 1))]) + draw(st.integers(-2, 2)))]
            for _ in range(draw(st.integers(0, 5)) if len(boxes) else 0)
        ]
        found = near + [box() for _ in range(draw(st.integers(0, 4)))]
        scores = [draw(st.integers(0, 8)) / 8 for _ in found]
        photos.append(photo)
        predictions[photo.key] = rows(found, scores) if found else np.empty((0, 5))
    return predictions, photos


@settings(max_examples=40, deadline=None)
@given(small_sets())
def test_agrees_with_the_plain_loop(case):
    predictions, photos = case
    fast, plain = score_predictions(predictions, photos).as_dict(), plain_wider_ap(*case)
    assert fast == pytest.approx(plain, abs=1e-12)
    assert all(0 <= average <= 1 + 1e-12 for average in fast.values())


@settings(max_examples=40, deadline=None)
@given(small_sets(), st.floats(0.01, 100), st.floats(-5, 5))
def test_only_the_order_of_a_linear_score_scale_counts(case, factor, shift):
    predictions, photos = case
    # Powers of two keep the normalised scores exact, whatever the thresholds are near.
    factor = 2.0 ** round(np.log2(factor))
    moved = {
        k: v * [1, 1, 1, 1, factor] + [0, 0, 0, 0, round(shift)] for k, v in predictions.items()
    }
    before, after = (score_predictions(p, photos).as_dict() for p in (predictions, moved))
    assert before == pytest.approx(after, abs=1e-12)


def test_perfect_detections_score_one():
    assert score(rows(FACES, [0.9, 0.8]), make_photo()) == pytest.approx(1)


def test_no_predictions_score_zero():
    assert score(np.empty((0, 5)), make_photo()) == 0


def test_photos_without_faces_do_not_count_their_detections():
    crowd, empty = make_photo("a"), make_photo("b", [])
    alarms = rows([[0, 0, 9, 9], [20, 20, 29, 29]], [1.0, 0.95])
    both = {crowd.key: rows(FACES, [0.9, 0.8]), empty.key: alarms}
    assert score_predictions(both, [crowd, empty]).hard == pytest.approx(1)


def test_a_set_without_any_face_scores_zero():
    assert score(rows(FACES, [0.9, 0.8]), make_photo(boxes=[])) == 0


def test_ignored_faces_swallow_their_detections():
    all_ignored = make_photo(counted=[False, False])
    assert score(rows(FACES, [0.9, 0.8]), all_ignored) == 0
    one_ignored = make_photo(counted=[False, True])
    # The best detection lies on the ignored face: not a false alarm.
    assert score(rows(FACES, [0.9, 0.8]), one_ignored) == pytest.approx(1)


def test_equal_scores_enter_together():
    found = rows([FACES[0], [200, 200, 239, 239]], [0.7, 0.7])
    curve = score_predictions({"0--Parade/a": found}, [make_photo()]).curves["easy"]
    assert np.all(curve.precision == 0.5)
    assert np.all(curve.recall == 0.5)
    assert score(found, make_photo()) == pytest.approx(0.25)


def test_a_face_is_found_once():
    twice = rows([FACES[0], FACES[0], FACES[1]], [0.9, 0.8, 0.7])
    curve = score_predictions({"0--Parade/a": twice}, [make_photo()]).curves["easy"]
    assert curve.recall[-1] == 1
    assert curve.precision[-1] == pytest.approx(2 / 3)


def test_one_detection_on_two_faces_finds_the_one_it_overlaps_most():
    faces = [[0, 0, 19, 19], [2, 0, 21, 19]]
    curve = score_predictions(
        {"0--Parade/a": rows([[0, 0, 19, 19]], [0.9])}, [make_photo(boxes=faces)]
    ).curves["easy"]
    assert curve.recall[-1] == 0.5
    assert curve.precision[-1] == 1
    # A second detection that prefers the same face is false, though another face is near.
    again = rows([[0, 0, 19, 19], [0, 0, 19, 18]], [0.9, 0.8])
    assert score(again, make_photo(boxes=faces)) == pytest.approx(0.5)


def test_iou_counts_pixels_inclusively():
    face, half = [[0, 0, 9, 9]], [[0, 0, 9, 4]]  # 50 of 100 pixels: 0.5 with +1, 0.44 without
    assert score(rows(half, [0.9]), make_photo(boxes=face)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "No predictions for 0--Parade/a"),
        ({"0--Parade/a": np.empty((0, 5)), "0--Parade/b": np.empty((0, 5))}, "Unknown image"),
        ({"0--Parade/a": np.zeros((2, 4))}, r"shape \[2, 4\]"),
        ({"0--Parade/a": [[0, 0, np.nan, 9, 0.5]]}, "not finite"),
        ({"0--Parade/a": [[0, 0, 9, 9, np.inf]]}, "not finite"),
    ],
)
def test_bad_predictions_are_refused(predictions, message):
    with pytest.raises(DataError, match=message):
        score_predictions(predictions, [make_photo()])


def test_submission_folder_keeps_every_digit_that_counts(tmp_path):
    photos = [make_photo("a"), make_photo("b", [], event="1--Handshaking")]
    predictions = {photos[0].key: rows(FACES + 0.25, [0.3, 0.912345678])}
    write_predictions(tmp_path, predictions, photos)
    lines = (tmp_path / "0--Parade" / "a.txt").read_text().splitlines()
    assert lines[:2] == ["a", "2"]
    assert [float(value) for value in lines[2].split()] == [100.25, 100.25, 39, 39, 0.912345678]
    read = read_predictions(tmp_path, photos)
    assert read[photos[0].key] == pytest.approx(predictions[photos[0].key][::-1])
    assert read[photos[1].key].shape == (0, 5)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.txt:1: expected the photo's name"),
        ("a\n", r"a\.txt:2: expected the photo's name"),
        ("a\nmany\n", r"a\.txt:2: expected the number of faces"),
        ("a\n1\n1 2 3 4\n", r"a\.txt:3: expected 'x y width height score'"),
        ("a\n2\n1 2 3 4 0.5\n1 2 x 4 0.5\n", r"a\.txt:4: expected"),
        ("a\n1\n1 2 3 4 0.5 6\n", r"a\.txt:3: expected"),
        ("a\n1\n1 2 nan 4 0.5\n", r"a\.txt:3: a value is not finite"),
        ("a\n3\n1 2 3 4 0.5\n", r"a\.txt:2: announces 3 faces, but 1 lines follow"),
    ],
)
def test_malformed_files_name_file_and_line(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_prediction_file(path)


def test_incomplete_folders_are_named(tmp_path):
    photos = [make_photo("a"), make_photo("b", event="1--Handshaking")]
    with pytest.raises(DataError, match="is not a folder"):
        read_predictions(tmp_path / "none", photos)
    write_predictions(tmp_path, {}, photos[:1])
    with pytest.raises(DataError, match="1--Handshaking is missing"):
        read_predictions(tmp_path, photos)
    write_predictions(tmp_path, {}, photos)
    stray = tmp_path / "0--Parade" / "z.txt"
    stray.write_text("z\n0\n")
    with pytest.raises(DataError, match=r"z\.txt: unknown image"):
        read_predictions(tmp_path, photos)
    stray.unlink()
    (tmp_path / "0--Parade" / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a\.txt is missing"):
        read_predictions(tmp_path, photos)
    with pytest.raises(DataError, match="no event of the ground truth"):
        read_predictions(tmp_path, photos[:1])


def write_mat_files(folder, names=("a", "b"), keep=((1, 2), ()), easy_photos=2):
    scipy_io = pytest.importorskip("scipy.io")

    def cells(values):
        array = np.empty((len(values), 1), object)
        for row, value in enumerate(values):
            array[row, 0] = value
        return array

    boxes = [np.array([[10, 10, 39, 39], [100, 100, 39, 39]]), np.zeros((0, 4))]
    scipy_io.savemat(
        folder / "wider_face_val.mat",
        {
            "event_list": cells(["0--Parade"]),
            "file_list": cells([cells(list(names))]),
            "face_bbx_list": cells([cells(boxes[: len(names)])]),
        },
    )
    for difficulty in DIFFICULTIES:
        entries = [np.array(entry).reshape(-1, 1) for entry in keep]
        if difficulty == "easy":
            entries = entries[:easy_photos]
        gt_list = {"gt_list": cells([cells(entries)])}
        scipy_io.savemat(folder / f"wider_{difficulty}_val.mat", gt_list)


def test_official_files_are_read(tmp_path):
    write_mat_files(tmp_path)
    photos = read_official_ground_truth(tmp_path)
    assert [photo.key for photo in photos] == ["0--Parade/a", "0--Parade/b"]
    assert photos[0].boxes == pytest.approx(FACES)
    assert photos[0].counted["hard"].tolist() == [True, True]
    assert photos[1].boxes.shape == (0, 4)


def test_official_files_must_belong_together(tmp_path):
    write_mat_files(tmp_path, easy_photos=1)
    with pytest.raises(DataError, match="0--Parade has 2 photos but 1 entries"):
        read_official_ground_truth(tmp_path)
    write_mat_files(tmp_path, keep=((1, 7), ()))
    with pytest.raises(DataError, match="names a face that is not among the 2 boxes"):
        read_official_ground_truth(tmp_path)
    (tmp_path / "wider_hard_val.mat").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"wider_hard_val\.mat cannot be read"):
        read_official_ground_truth(tmp_path)
    (tmp_path / "wider_hard_val.mat").unlink()
    with pytest.raises(DataError, match=r"wider_hard_val\.mat is missing"):
        read_official_ground_truth(tmp_path)


SUBSET_ENTRY = {
    "event": "0--Parade", "width": 200, "height": 160, "boxes": FACES.tolist(),
    "easy": [0, 1], "medium": [0], "hard": [],
}  # fmt: skip


def write_subset(folder, **changes):
    entry = {key: value for key, value in {**SUBSET_ENTRY, **changes}.items() if value is not None}
    (folder / "images").mkdir(exist_ok=True)
    (folder / "ground_truth.json").write_text(json.dumps({"a": entry}))
    cv2.imwrite(str(folder / "images" / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
    return folder


class Always:
    """A detector that reports the same boxes, and remembers the shapes it saw."""

    def __init__(self, boxes=FACES, scores=(0.9, 0.8)):
        self.faces = FoundFaces(np.array(boxes, float), np.array(scores), None)
        self.shapes = []

    def __call__(self, image):
        assert image.dtype == np.uint8
        self.shapes.append(image.shape)
        return self.faces


def test_subset_is_shown_at_its_original_size(tmp_path):
    detect = Always()
    result = evaluate_wider_subset(detect, write_subset(tmp_path))
    assert detect.shapes == [(160, 200, 3)]
    assert (result.easy, result.medium, result.hard) == (pytest.approx(1), pytest.approx(1), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"easy": None}, "photo a needs event"),
        ({"boxes": [[1, 2, 3]]}, "photo a needs event"),
        ({"boxes": [[1, 2, float("nan"), 4]]}, "not finite"),
        ({"hard": [2]}, "not among the 2 boxes"),
        ({"width": 0}, "impossible size 0x160"),
    ],
)
def test_bad_subsets_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_subset_ground_truth(write_subset(tmp_path, **changes))


def test_missing_subset_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"ground_truth\.json is missing"):
        read_subset_ground_truth(tmp_path)
    write_subset(tmp_path)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg is missing"):
        evaluate_wider_subset(Always(), tmp_path)


def test_predictions_are_kept_and_read_again(tmp_path):
    write_subset(tmp_path)
    photos, cache = read_subset_ground_truth(tmp_path), tmp_path / "cache"
    detect = Always()
    runs = [detect_wider(detect, tmp_path / "images", photos, cache=cache) for _ in range(2)]
    assert len(detect.shapes) == 1
    assert np.array_equal(runs[0]["0--Parade/a"], runs[1]["0--Parade/a"])
    detect_wider(detect, tmp_path / "images", photos, cache=cache, fresh=True)
    assert len(detect.shapes) == 2


def test_kept_predictions_belong_to_weights_and_views(tmp_path):
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    keys = {
        predictions_key(weights, views, {"score_threshold": threshold})
        for weights in (first, second, None)
        for views in (Views(), Views((640,)), Views(flip=True))
        for threshold in (0.02, 0.5)
    }
    assert len(keys) == 18


def test_views_return_to_the_pixels_of_the_photo():
    def find_bright(image):
        ys, xs = np.nonzero(image[:, :, 0] > 127)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        points = np.array([[box[0], box[1]], [box[2], box[1]], box[:2], box[:2], box[2:]], float)
        return FoundFaces(np.array([box], float), np.array([0.9]), points[None])

    image = np.zeros((100, 200, 3), np.uint8)
    image[20:60, 30:70] = 255
    for views in (Views((400,)), Views((100,)), Views(flip=True), Views((None, 400), flip=True)):
        found = detect_in_views(find_bright, image, views)
        assert found.boxes == pytest.approx(np.array([[30, 20, 70, 60]]), abs=1.01)
        assert found.scores.tolist() == [0.9]
        assert found.landmarks[0, :2] == pytest.approx(np.array([[30, 20], [70, 20]]), abs=1.01)
    assert Views((None, 640), flip=True).describe() == "long side original, 640; flip"


def test_impossible_views_and_outputs_are_refused():
    with pytest.raises(ConfigError, match="Long side 8"):
        Views((8,))
    with pytest.raises(DataError, match="not finite"):
        detect_in_views(Always([[0, 0, np.nan, 1]], [0.5]), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="1 boxes for 2 scores"):
        detect_in_views(Always([[0, 0, 1, 1]], [0.5, 0.4]), np.zeros((9, 9, 3), np.uint8))
