"""Shards: reading, the decoded cache, and what happens to damaged ones."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featherface.data import shards as shards_module
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.data.shards import PhotoStore, read_shards
from featherface.errors import DataError


def make_photo(number: int, faces: int = 1, source: str = "lfw") -> LabelledPhoto:
    """A smooth picture that survives WebP, with faces in a row."""
    height, width = 60 + number, 80 + 2 * number
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 2, columns, (rows + columns) // 2 + number], -1).astype(np.uint8)
    begins = 5.0 + 12.0 * np.arange(faces)
    boxes = np.stack([begins, begins, begins + 10, begins + 12], 1).astype(np.float32)
    landmarks = (boxes[:, None, :2] + np.arange(1, 6)[:, None]).astype(np.float32)
    landmarks[1::2] = np.nan
    scores = np.linspace(1, 0.3, faces).astype(np.float32)
    return LabelledPhoto(f"photo-{number}", source, image, boxes, scores, landmarks)


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def encoded(image: np.ndarray) -> bytes:
    return cv2.imencode(".webp", image)[1].tobytes()


LABELS: dict[str, Any] = {"source": "lfw", "width": 8, "height": 8, "faces": []}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pack([make_photo(n, n % 3, "crowd" if n > 6 else "lfw") for n in range(9)], tmp_path / "train")
    return tmp_path / "train"


def test_reads_what_was_packed(folder: Path) -> None:
    photos = list(read_shards(folder))
    assert len(photos) == 9
    for number, photo in enumerate(photos):
        expected = make_photo(number, number % 3)
        assert photo.key == f"{number:06d}-photo-{number}"
        assert photo.image.shape == expected.image.shape
        assert np.abs(photo.image.astype(int) - expected.image).mean() < 3
        np.testing.assert_allclose(photo.boxes, expected.boxes, atol=0.06)
        np.testing.assert_allclose(photo.scores, expected.scores, atol=1e-3)
        np.testing.assert_allclose(photo.landmarks, expected.landmarks, atol=0.06)


def test_store_equals_reader(folder: Path, tmp_path: Path) -> None:
    store = PhotoStore(folder, tmp_path / "cache", progress=False)
    again = PhotoStore(folder, tmp_path / "cache", progress=False)
    sent = pickle.loads(pickle.dumps(again))
    assert len(pickle.dumps(again)) < store._pixels_path.stat().st_size
    for index, photo in enumerate(read_shards(folder)):
        for opened in (store, again, sent):
            stored = opened[index]
            assert (stored.key, stored.source) == (photo.key, photo.source)
            for field in ("image", "boxes", "scores", "landmarks"):
                np.testing.assert_array_equal(getattr(stored, field), getattr(photo, field))
    assert list(store.sources) == ["lfw"] * 7 + ["crowd"] * 2
    assert not store[0].image.flags.writeable
    assert store[-1].key == store[8].key
    with pytest.raises(IndexError):
        store[9]


def test_second_start_only_maps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PhotoStore(folder, tmp_path / "cache", progress=False)
    monkeypatch.setattr(shards_module, "build_cache", lambda *_: pytest.fail("built again"))
    assert len(PhotoStore(folder, tmp_path / "cache", progress=False)) == 9


def test_shards_of_the_same_size_are_told_apart(tmp_path: Path) -> None:
    image, nothing = np.full((40, 40, 3), 90, np.uint8), np.zeros((0, 4), np.float32)
    none = np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
    keys = []
    for key in ("one", "two"):
        photo = LabelledPhoto(key, "made", image, nothing, *none)
        (shard,) = pack([photo], tmp_path / key)
        keys.append(PhotoStore(shard, tmp_path / "cache", progress=False).keys[0])
    sizes = {path.stat().st_size for path in tmp_path.glob("*/*.tar")}
    assert len(sizes) == 1
    assert keys == ["000000-one", "000000-two"]


def test_other_shards_other_cache(folder: Path, tmp_path: Path) -> None:
    PhotoStore(folder, tmp_path / "cache", progress=False)
    pack([make_photo(20)], folder, prefix="more")
    assert len(PhotoStore(folder, tmp_path / "cache", progress=False)) == 10


def test_interrupted_build_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, seen = shards_module.parse_sample, []

    def interrupted(sample: Any) -> LabelledPhoto:
        seen.append(sample)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return parse(sample)

    monkeypatch.setattr(shards_module, "parse_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PhotoStore(folder, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(PhotoStore(folder, tmp_path / "cache", progress=False)) == 9


def test_pixels_without_index_are_built_anew(folder: Path, tmp_path: Path) -> None:
    store = PhotoStore(folder, tmp_path / "cache", progress=False)
    store._pixels_path.with_suffix(".npz").unlink()
    assert len(PhotoStore(folder, tmp_path / "cache", progress=False)) == 9


def test_cut_cache_is_named(folder: Path, tmp_path: Path) -> None:
    store = PhotoStore(folder, tmp_path / "cache", progress=False)
    path = store._pixels_path
    del store
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="cut short"):
        PhotoStore(folder, tmp_path / "cache", progress=False)


def test_bad_photos_are_skipped_and_reported(tmp_path: Path) -> None:
    good = encoded(np.zeros((8, 8, 3), np.uint8))
    labels = json.dumps(LABELS).encode()
    broken_face = json.dumps({**LABELS, "faces": [{"box": [1, 2, 3], "score": 1}]}).encode()
    flat_face = json.dumps({**LABELS, "faces": [{"box": [4, 4, 4, 6], "score": 1}]}).encode()
    write_shard(
        tmp_path / "a.tar",
        {
            "good.webp": good,
            "good.json": labels,
            "cut.webp": good[:20],
            "cut.json": labels,
            "empty.webp": b"",
            "empty.json": labels,
            "nojson.webp": good,
            "nopicture.json": labels,
            "badjson.webp": good,
            "badjson.json": b"{",
            "badface.webp": good,
            "badface.json": broken_face,
            "flat.webp": good,
            "flat.json": flat_face,
        },
    )
    store = PhotoStore(tmp_path, tmp_path / "cache", progress=False)
    assert list(store.keys) == ["good", "flat"]
    assert len(store[1].boxes) == 0
    bad = ["cut", "empty", "nojson", "nopicture", "badjson", "badface"]
    assert [line.split(":")[0] for line in store.skipped] == bad
    assert [photo.key for photo in read_shards(tmp_path)] == ["good", "flat"]


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        PhotoStore(tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match=r"no \*\.tar"):
        PhotoStore(tmp_path, tmp_path)
    (tmp_path / "text.tar").write_text("no tar at all")
    with pytest.raises(DataError, match=r"text\.tar: not a readable shard"):
        PhotoStore(tmp_path, tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "text.tar").unlink()
    write_shard(tmp_path / "hollow.tar", {"a.webp": b"x", "a.json": b"{}"})
    with pytest.raises(DataError, match="no readable photo"):
        PhotoStore(tmp_path, tmp_path / "cache", progress=False)


def test_truncated_shard_is_named(folder: Path, tmp_path: Path) -> None:
    shard = next(folder.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(DataError, match="not a readable shard"):
        PhotoStore(folder, tmp_path / "cache", progress=False)


def test_split_is_stable_and_disjoint() -> None:
    keys = np.array([f"photo-{number}" for number in range(2000)])
    train, held_out = shards_module.split_by_key(keys, 0.1, seed=0)
    assert sorted([*train, *held_out]) == list(range(2000))
    assert 150 < len(held_out) < 250
    fewer, fewer_held_out = shards_module.split_by_key(keys[::2], 0.1, seed=0)
    assert set(keys[::2][fewer_held_out]) <= set(keys[held_out])
    assert len(fewer) + len(fewer_held_out) == 1000
    assert list(shards_module.split_by_key(keys, 0.1, seed=1)[1]) != list(held_out)


def test_pack_splits_and_refuses_to_mix(tmp_path: Path) -> None:
    shards = pack((make_photo(n) for n in range(6)), tmp_path, shard_megabytes=0.004)
    assert len(shards) > 1
    assert len(list(read_shards(tmp_path))) == 6
    with pytest.raises(DataError, match="already"):
        pack([make_photo(0)], tmp_path)
    with pytest.raises(DataError, match="no photo to pack"):
        pack([], tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []
