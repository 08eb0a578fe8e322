"""Labels by vote on enlarged photos: new faces for the chosen sources, all else as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.relabel import main
from featherface.data import pseudo_labels
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.data.pseudo_labels import View, look, vote
from featherface.data.shards import find_shards, raw_samples
from featherface.detector import PACKAGED_WEIGHTS
from featherface.errors import ConfigError
from featherface.evaluation.views import FoundFaces
from featherface.images import read_image, resize_image

ASTRONAUT = Path(__file__).parents[1] / "featherface" / "examples" / "astronaut.jpg"
WRONG = np.array([[3, 4, 30, 40]], np.float32)


def labelled(key: str, source: str) -> LabelledPhoto:
    image = resize_image(read_image(ASTRONAUT), 160, 160)
    nowhere = np.full((1, 5, 2), np.nan, np.float32)
    return LabelledPhoto(key, source, image, WRONG, np.ones(1, np.float32), nowhere)


def test_chosen_photos_get_voted_faces(tmp_path: Path) -> None:
    pack([labelled("a", "crowd"), labelled("b", "lfw")], tmp_path / "old")
    main([PACKAGED_WEIGHTS], tmp_path / "old", tmp_path / "new", ["crowd"], processes=1)
    old, new = (
        {x["__key__"]: x for x in raw_samples(find_shards(tmp_path / name))}
        for name in ("old", "new")
    )
    assert list(old) == list(new)
    changed = [key for key in old if old[key]["json"] != new[key]["json"]]
    assert all(old[key]["webp"] == new[key]["webp"] for key in old)
    assert [json.loads(old[key]["json"])["source"] for key in changed] == ["crowd"]
    labels = json.loads(new[changed[0]]["json"])
    assert (labels["width"], labels["height"]) == (160, 160)
    (face,) = [one for one in labels["faces"] if one["score"] > 0.5]
    x1, y1, x2, y2 = face["box"]
    assert 55 < x1 < 75 < x2 < 95  # the head of the astronaut
    assert 10 < y1 < 35 < y2 < 70
    assert len(face["landmarks"]) == 10


def test_shards_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another"):
        main([PACKAGED_WEIGHTS], tmp_path, tmp_path, ["crowd"])


def test_a_detector_without_landmarks_votes_on_boxes() -> None:
    box = np.array([[10, 20, 30, 44]])

    def boxes_alone(_: object) -> FoundFaces:
        return FoundFaces(2.0 * box, np.ones(1), None)

    def landmarks_too(_: object) -> FoundFaces:
        return FoundFaces(2.0 * box, np.ones(1), np.full((1, 5, 2), 50.0))

    image = np.zeros((100, 100, 3), np.uint8)
    alone = list(look(boxes_alone, image, [200], mirror=False))
    (face,) = vote(alone, 0.1).landmarks
    assert np.isnan(face).all()
    both = vote([*alone, *look(landmarks_too, image, [200], mirror=False)], 0.1)
    np.testing.assert_allclose(both.boxes, box)
    np.testing.assert_allclose(both.landmarks, np.full((1, 5, 2), 25.0))


def test_votes_do_not_depend_on_how_many_are_compared_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(3)
    corners = random.uniform(0, 200, (300, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 30], axis=1)
    points = np.full((300, 5, 2), np.nan, np.float32)
    views = [
        View(boxes + random.normal(0, 3, boxes.shape).astype(np.float32), scores, points)
        for scores in random.uniform(0.2, 1, (3, 300)).astype(np.float32)
    ]
    whole = vote(views, 0.1)
    monkeypatch.setattr(pseudo_labels, "PAIRS", 2000)
    parts = vote(views, 0.1)
    assert len(whole.scores) > 20
    np.testing.assert_array_equal(whole.boxes, parts.boxes)
    np.testing.assert_array_equal(whole.scores, parts.scores)
