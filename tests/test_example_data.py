"""The drawn photos: labels where the faces are, folders that every reader takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("webdataset")

from featherface.data.data_folders import find_data_folders
from featherface.data.example_data import draw_photo, make_example_data, read_patch
from featherface.data.shards import read_shards
from featherface.errors import DataError
from featherface.evaluation.label_formats import read_labelled_folder
from featherface.evaluation.wider_ground_truth import read_subset_ground_truth


def test_labels_lie_within_the_photo_and_landmarks_in_their_boxes() -> None:
    patch = read_patch()
    photos = [draw_photo(patch, n, np.random.default_rng(n)) for n in range(16)]
    assert any(len(photo.boxes) > 10 for photo in photos)
    assert any(len(photo.boxes) == 0 for photo in photos)
    for photo in photos:
        assert (photo.boxes >= 0).all() and (photo.boxes <= 256).all()  # noqa: PT018
        for box, points in zip(photo.boxes, photo.landmarks, strict=True):
            assert (points > box[:2]).all()
            assert (points < box[2:]).all()
            assert points[0, 0] < points[1, 0]  # left eye left of the right one, mirrored or not


def test_folders_are_read_by_their_readers(tmp_path: Path) -> None:
    folder = make_example_data(tmp_path / "example", photos=8, measured=3)
    assert len(list(read_shards(folder / "train"))) == 8
    assert len(read_labelled_folder(folder / "labelled")) == 3
    photos = read_subset_ground_truth(folder / "wider_mini")
    for photo in photos:
        assert (photo.counted["easy"] <= photo.counted["hard"]).all()
    again = make_example_data(folder, photos=99)  # what is there stays
    assert len(list(read_shards(again / "train"))) == 8


def test_real_data_is_found_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "real" / "data" / "train").mkdir(parents=True)
    environment = {"FEATHERFACE_DATA": str(tmp_path / "real")}
    folders = find_data_folders(tmp_path, environment=environment)
    assert folders.real
    assert folders.train == tmp_path / "real" / "data" / "train"
    assert folders.v1 is None
    quick = find_data_folders(tmp_path, quick=True, environment=environment)
    assert not quick.real


def test_a_variable_that_names_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data/train in it"):
        find_data_folders(tmp_path, environment={"FEATHERFACE_SHARED": str(tmp_path)})
