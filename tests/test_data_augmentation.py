"""Training crops: labels follow the pixels, and the same numbers give the same crop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from featherface.data.augmentation import TrainingCrop
from featherface.data.crop_geometry import Labels, Sample, confine, mirror, rotate
from featherface.data.crop_settings import CropSettings
from featherface.data.dataset import (
    CropDataset,
    ResumableSampler,
    collate,
    sample_weights,
    validation_photos,
)
from featherface.data.hidden_faces import hide_faces
from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pixel_changes import (
    change_pixels,
    coloured_light,
    dim_light,
    glaring_light,
    light_from_one_side,
    motion_kernel,
    write_letters,
)
from featherface.data.sheet import contact_sheet
from featherface.errors import ConfigError

PLAIN: dict[str, Any] = dict.fromkeys(
    ("colour", "grey", "blur", "coarsen", "noise", "jpeg", "rotate"), 0.0
)


class PaintedPhotos:
    """Grey photos, each with one saturated red face and landmarks on it."""

    def __init__(self, boxes: list[tuple[int, int, int, int]], size: tuple[int, int]) -> None:
        self.sources = np.array(["lfw" if n % 2 else "crowd" for n in range(len(boxes))])
        self.photos = []
        for number, (x1, y1, x2, y2) in enumerate(boxes):
            image = np.full((size[1], size[0], 3), 90, np.uint8)
            image[y1:y2, x1:x2] = 255, 0, 0
            box = np.array([[x1, y1, x2, y2]], np.float32)
            share = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0.7, 0.7]])
            points = box[:, None, :2] + share * (box[:, None, 2:] - box[:, None, :2])
            self.photos.append(
                LabelledPhoto(
                    str(number),
                    str(self.sources[number]),
                    image,
                    box,
                    np.ones(1, np.float32),
                    points.astype(np.float32),
                )
            )

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> LabelledPhoto:
        return self.photos[index]


PAINTED = PaintedPhotos(
    [(40, 30, 90, 95), (200, 100, 212, 116), (0, 0, 120, 150), (150, 60, 260, 180)], (300, 200)
)


def red(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(int) - image[..., 1]) > 110


def bounds(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 3), size=st.sampled_from([96, 160, 320]))
def test_box_bounds_its_colour(seed: int, index: int, size: int) -> None:
    crop = TrainingCrop(size, CropSettings(**PLAIN, mosaic=0))
    sample = crop(index, PAINTED, np.random.default_rng(seed))
    assert sample.image.shape == (size, size, 3)
    painted = red(sample.image)
    if painted.sum() > 30 and len(sample.boxes):
        np.testing.assert_allclose(sample.boxes[0], bounds(painted), atol=2.6)
    elif painted.sum() > 30:  # only of a face at the edge may so little be left that it is dropped
        x1, y1, x2, y2 = bounds(painted)
        assert min(x1, y1, size - x2, size - y2) == 0
    check_sample(sample, size)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 3), size=st.sampled_from([96, 320]))
def test_everything_switched_on(seed: int, index: int, size: int) -> None:
    more = (
        "turn",
        "stretch",
        "letters",
        "dim",
        "glare",
        "cast",
        "shade",
        "hide",
        "masks",
        "mix",
        "pad",
    )
    always = {name: 1.0 for name in (*PLAIN, *more) if name != "grey"}
    rng = np.random.default_rng(seed)
    partners = np.arange(len(PAINTED))
    sample = TrainingCrop(size, CropSettings(**always))(index, PAINTED, rng, partners)
    check_sample(sample, size)


def test_masks_are_drawn_on_sure_faces_alone() -> None:
    """PAINTED's faces are red all over, so what is not red within the box is the mask."""
    doubtful = PaintedPhotos([(40, 30, 160, 180)], (300, 200))
    doubtful.photos[0].scores[:] = 0.4
    sure = PaintedPhotos([(40, 30, 160, 180)], (300, 200))
    covered = {}
    for name, photos in (("sure", sure), ("doubtful", doubtful)):
        crop = TrainingCrop(320, CropSettings(**PLAIN, mosaic=0, flip=0, masks=1.0))
        sample = crop(0, photos, np.random.default_rng(7))
        x1, y1, x2, y2 = sample.boxes[0].round().astype(int)
        covered[name] = 1 - red(sample.image)[y1:y2, x1:x2].mean()
    assert covered["doubtful"] < 0.05
    assert 0.15 < covered["sure"] < 0.8


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 3))
def test_padding_blackens_less_than_a_stride_and_ends_the_boxes(seed: int, index: int) -> None:
    plain, padded = (
        TrainingCrop(160, CropSettings(**PLAIN, mosaic=0, pad=pad))(
            index, PAINTED, np.random.default_rng(seed)
        )
        for pad in (0, 1)
    )
    lit = padded.image.any(2)
    columns, rows = np.flatnonzero(lit.any(0)), np.flatnonzero(lit.any(1))
    if len(columns):  # else the photo was outside what is left
        width, height = columns[-1] + 1, rows[-1] + 1
        np.testing.assert_array_equal(padded.image[:height, :width], plain.image[:height, :width])
    if plain.image[-1].any():  # the photo reached the lower edge
        assert rows[-1] + 1 >= 160 - 31
        assert (padded.boxes[:, 3] <= rows[-1] + 1).all()
    check_sample(padded, 160)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_photo_that_shines_through_keeps_the_faces_and_has_none(seed: int) -> None:
    alone = {**PLAIN, "mosaic": 0.0, "flip": 0.0, "mix_shares": (0.3, 0.3)}
    plain, mixed = (
        TrainingCrop(160, CropSettings(**alone, mix=mix))(
            1, PAINTED, np.random.default_rng(seed), np.array([0, 3])
        )
        for mix in (0, 1)
    )
    check_sample(mixed, 160)
    count = len(plain.boxes)
    np.testing.assert_array_equal(mixed.boxes[:count], plain.boxes)
    np.testing.assert_array_equal(mixed.scores[:count], plain.scores)
    assert (mixed.scores[count:] <= 0.2).all()
    # Each pixel is 0.7 of the photo's and up to 0.3 of 255.
    rest = mixed.image - 0.7 * plain.image
    assert rest.min() >= -1
    assert rest.max() <= 0.3 * 255 + 1
    assert rest.max() > 0.3 * 90 - 1


def check_sample(sample: Sample, size: int) -> None:
    """What holds for every sample: dtypes, and boxes that have an area inside the crop."""
    count = len(sample.boxes)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.image.flags.c_contiguous
    assert sample.boxes.shape == (count, 4)
    assert sample.scores.shape == (count,)
    assert sample.landmarks.shape == (count, 5, 2)
    assert {sample.boxes.dtype, sample.scores.dtype, sample.landmarks.dtype} == {
        np.dtype(np.float32)
    }
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= size).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mosaic_boxes_bound_their_colour(seed: int) -> None:
    crop = TrainingCrop(320, CropSettings(**PLAIN, mosaic=1))
    sample = crop(1, PAINTED, np.random.default_rng(seed), np.arange(4))
    painted = red(sample.image)
    covered = np.zeros_like(painted)
    for x1, y1, x2, y2 in sample.boxes:
        covered[int(y1) : int(np.ceil(y2)) + 2, int(x1) : int(np.ceil(x2)) + 2] = True
        covered[max(0, int(y1) - 2) : int(y2), max(0, int(x1) - 2) : int(x2)] = True
        inner = painted[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
        assert inner.all()
    # A sliver of a face (under 5 %) may stay without a box.
    assert (painted & ~covered).sum() < 0.03 * painted.size


@settings(max_examples=60, deadline=None)
@given(degrees=st.floats(-30, 30))
def test_rotation_keeps_an_ellipse_in_its_box(degrees: float) -> None:
    import cv2

    image = np.zeros((200, 200, 3), np.uint8)
    cv2.ellipse(image, (120, 90), (20, 35), 0, 0, 360, (255, 0, 0), -1)
    box = np.array([[99.5, 54.5, 141.5, 126.5]], np.float32)
    points = np.tile(np.array([[120.5, 90.5]], np.float32), (1, 5, 1))
    turned, labels = rotate(image, Labels(box, np.ones(1, np.float32), points), degrees, 200, 200)
    found = bounds(red(turned))
    np.testing.assert_allclose(labels.boxes[0], found, atol=2.0)
    middle = (found[:2] + found[2:]) / 2
    np.testing.assert_allclose(labels.landmarks[0, 0], middle, atol=1.5)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_turned_faces(mosaic: float, seed: int) -> None:
    crop = TrainingCrop(
        320, CropSettings(**{**PLAIN, "rotate": 1.0}, degrees=40.0, mosaic=mosaic, least_cover=0.5)
    )
    sample = crop(1, PAINTED, np.random.default_rng(seed), np.arange(4))
    painted = red(sample.image)
    assert len(sample.boxes)
    for x1, y1, x2, y2 in sample.boxes[sample.scores >= 0.5]:
        # The middle half of a turned square is inside of it whatever the angle.
        dx, dy = (x2 - x1) / 4, (y2 - y1) / 4
        inner = painted[round(y1 + dy) : round(y2 - dy), round(x1 + dx) : round(x2 - dx)]
        assert inner.size == 0 or inner.mean() > 0.6


def test_a_turned_picture_may_be_any_rectangle() -> None:
    image = np.full((90, 160, 3), 200, np.uint8)
    labels = Labels(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2)))
    turned, _ = rotate(image, labels, 0.0, 100, 50)
    assert turned.shape == (50, 100, 3)
    assert (turned == 200).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), side=st.integers(9, 150))
def test_a_hidden_face_keeps_a_part_and_its_surroundings_stay(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    box = np.array([[20, 30, 20 + side, 30 + side]], np.float32)
    labels = Labels(box, np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))
    hidden = hide_faces(image, labels, 1.0, rng)
    assert hidden.shape == image.shape
    assert hidden.dtype == np.uint8
    face = np.s_[30 : 30 + side, 20 : 20 + side]
    changed = (hidden != image).any(2)[face].mean()
    assert 0.1 < changed < 0.8
    np.testing.assert_array_equal(hide_faces(image, labels, 0.0, rng), image)


def test_faces_too_small_to_hide_stay_bare() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    box = np.array([[20, 30, 27, 37]], np.float32)
    labels = Labels(box, np.ones(1, np.float32), np.zeros((1, 5, 2), np.float32))
    np.testing.assert_array_equal(hide_faces(image, labels, 1.0, rng), image)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_dim_light_keeps_the_order_of_brightness(seed: int) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256)
    dimmed = np.asarray(dim_light(ramp, np.random.default_rng(seed)))[0].astype(int)
    assert (np.diff(dimmed) >= 0).all()
    assert 20 < np.ptp(dimmed) < 256
    assert dimmed.mean() < 127.5 or np.ptp(dimmed) < 160


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_glare_keeps_the_order_of_brightness_and_burns_something_out(seed: int) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256)
    glaring = np.asarray(glaring_light(ramp, np.random.default_rng(seed)))[0].astype(int)
    assert (np.diff(glaring) >= 0).all()
    assert glaring[-1] == 255
    assert np.ptp(glaring) > 150
    assert np.isin(glaring, [0, 255]).mean() > 0.1


def test_coloured_light_scales_each_channel_by_itself() -> None:
    grey = np.full((4, 5, 3), 200, np.uint8)
    lit = np.asarray(coloured_light(grey, np.random.default_rng(3)))
    assert (lit == lit[0, 0]).all()
    assert 59 <= lit.min() < lit.max() <= 240
    assert len(set(lit[0, 0].tolist())) == 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_light_from_one_side_darkens_and_never_brightens(seed: int) -> None:
    grey = np.full((40, 60, 3), 200, np.uint8)
    lit = np.asarray(light_from_one_side(grey, np.random.default_rng(seed)))
    assert lit.shape == grey.shape
    assert lit.dtype == np.uint8
    assert 19 <= lit.min() < lit.max() <= 200
    assert (lit[..., 0] == lit[..., 2]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.sampled_from([64, 160]))
def test_letters_go_on_a_copy(seed: int, height: int) -> None:
    image = np.full((height, 200, 3), 90, np.uint8)
    written = write_letters(image, np.random.default_rng(seed))
    assert written.shape == image.shape
    assert written.dtype == np.uint8
    assert (image == 90).all()


def test_letters_show() -> None:
    image = np.full((160, 160, 3), 90, np.uint8)
    shares = [
        (write_letters(image, np.random.default_rng(seed)) != image).any(2).mean()
        for seed in range(20)
    ]
    assert 0.02 < np.median(shares) < 0.6


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), longest=st.sampled_from([3, 7, 8, 15]))
def test_motion_keeps_the_light_and_is_no_longer_than_asked(seed: int, longest: int) -> None:
    kernel = motion_kernel(np.random.default_rng(seed), longest)
    assert kernel.shape[0] == kernel.shape[1] <= longest
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert (kernel >= 0).all()
    assert (kernel > 0.01).sum() >= 2


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), index=st.integers(0, 3))
def test_box_bounds_its_colour_on_a_stretched_crop(seed: int, index: int) -> None:
    crop = TrainingCrop(160, CropSettings(**PLAIN, mosaic=0, flip=0, stretch=1))
    sample = crop(index, PAINTED, np.random.default_rng(seed))
    painted = red(sample.image)
    if painted.sum() > 30 and len(sample.boxes):
        np.testing.assert_allclose(sample.boxes[0], bounds(painted), atol=3.5)
    check_sample(sample, 160)


def test_stretching_changes_the_shape_of_faces() -> None:
    def shapes(stretch: float) -> list[float]:
        crop = TrainingCrop(320, CropSettings(**PLAIN, mosaic=0, random_window=0, stretch=stretch))
        sides = []
        for seed in range(40):
            sample = crop(1, PAINTED, np.random.default_rng(seed))
            width, height = sample.boxes[0, 2:] - sample.boxes[0, :2]
            if min(width, height) >= 16:
                sides.append(float(width / height))
        return sides

    plain, stretched = shapes(0), shapes(1)
    assert np.std(np.log(stretched)) > 2 * np.std(np.log(plain))
    assert 1 / 1.7 < min(stretched) / np.median(plain) < max(stretched) / np.median(plain) < 1.7


def test_far_turns_lay_faces_on_their_side() -> None:
    crop = TrainingCrop(160, CropSettings(**PLAIN, mosaic=0, random_window=0, flip=0, turn=1))
    tilts = []
    for seed in range(60):
        points = crop(0, PAINTED, np.random.default_rng(seed)).landmarks
        if len(points):
            across = points[0, 1] - points[0, 0]
            tilts.append(abs(float(np.degrees(np.arctan2(across[1], across[0])))))
    assert len(tilts) > 40
    assert max(tilts) < 101
    assert np.histogram(tilts, bins=[0, 30, 60, 101])[0].min() > 8


def test_coarsened_crops_lose_what_is_finer() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), 80)[None, :, None].repeat(160, 0).repeat(3, 2)
    plain = {**PLAIN, "coarsen": 1.0}
    coarse = change_pixels(
        stripes, CropSettings(**plain, coarsen_to=(0.25, 0.3)), np.random.default_rng(0)
    )
    assert coarse.shape == stripes.shape
    assert coarse.std() < 0.3 * stripes.std()


def test_flip_swaps_left_and_right() -> None:
    image = np.arange(4 * 10 * 3, dtype=np.uint8).reshape(4, 10, 3)
    points = np.array([[[2, 1], [5, 1], [3, 2], [2, 3], [4, 3]]], np.float32)
    labels = Labels(np.array([[1, 0, 6, 4]], np.float32), np.ones(1, np.float32), points)
    flipped, mirrored = mirror(image, labels)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(mirrored.boxes, [[4, 0, 9, 4]])
    np.testing.assert_array_equal(mirrored.landmarks, [[[5, 1], [8, 1], [7, 2], [6, 3], [8, 3]]])
    assert mirrored.landmarks[0, 0, 0] < mirrored.landmarks[0, 1, 0]
    again = mirror(flipped, mirrored)
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1].landmarks, points)


def test_confine_marks_what_is_no_good_face() -> None:
    boxes = np.array(
        [
            [10, 10, 30, 30],  # whole
            [-5, 10, 15, 30],  # centre inside, clipped
            [-16, 10, 4, 30],  # centre outside: ignored
            [-19.5, 10, 0.5, 30],  # a sliver: dropped
            [50, 50, 53, 53],  # too small: ignored
            [200, 200, 220, 220],  # outside: dropped
            [40, 40, 60, 60],  # doubtful from the start: untouched
        ],
        np.float32,
    )
    scores = np.array([1, 1, 0.9, 1, 1, 1, 0.4], np.float32)
    labels = confine(
        Labels(boxes, scores, np.full((7, 5, 2), np.nan, np.float32)), 100, 100, 0.3, 4
    )
    np.testing.assert_allclose(labels.scores, [1, 1, 0.2, 0.2, 0.4])
    np.testing.assert_allclose(labels.boxes[1:3], [[0, 10, 15, 30], [0, 10, 4, 30]])


def test_face_sizes_follow_the_settings() -> None:
    crop = TrainingCrop(320, CropSettings(**PLAIN, mosaic=0, random_window=0, least_cover=0.1))
    sides = []
    for number in range(300):
        sample = crop(0, PAINTED, np.random.default_rng(number))
        sides.append(float(np.sqrt(np.prod(sample.boxes[0, 2:] - sample.boxes[0, :2]))))
    assert 6 < min(sides) < 12
    assert max(sides) < 60 * 4.2
    assert np.percentile(sides, 95) < 60 * 2.3
    assert np.histogram(np.log(sides), bins=np.log([8, 16, 32, 64, 110]))[0].min() > 30


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 150, 251), (0.9, 400, 577)])
def test_the_largest_faces_grow_with_the_crop(share: float, low: float, high: float) -> None:
    settings = CropSettings(
        **PLAIN, mosaic=0, random_window=0, enlarge=20, enlarge_rarely=20, largest_share=share
    )
    crop = TrainingCrop(640, settings)
    sides = []
    for number in range(60):
        sample = crop(0, PAINTED, np.random.default_rng(number))
        sides.append(float(np.sqrt(np.prod(sample.boxes[0, 2:] - sample.boxes[0, :2]))))
    assert low < max(sides) < high


def make_dataset(seed: int = 0) -> CropDataset:
    return CropDataset(PAINTED, np.arange(4), TrainingCrop(96), seed)


def assert_same(first: Sample, second: Sample) -> None:
    for field in ("image", "boxes", "scores", "landmarks"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_sample_number_decides() -> None:
    first, second = make_dataset(), make_dataset()
    for number in (7, 3, 10**9, 7):
        assert_same(first[number], second[number])
    assert any(not np.array_equal(first[n].image, make_dataset(1)[n].image) for n in range(3))
    assert not np.array_equal(first[0].image, first[1].image)


def test_resumed_loader_goes_on() -> None:
    def batches(start: int, length: int, workers: int) -> list[Any]:
        loader = DataLoader(
            make_dataset(),
            batch_size=4,
            sampler=ResumableSampler(start, length),
            collate_fn=collate,
            num_workers=workers,
        )
        return list(loader)

    whole, resumed = batches(0, 16, 0), batches(8, 8, 1)
    assert len(whole) == 4
    for first, second in zip(whole[2:], resumed, strict=True):
        assert torch.equal(first.images, second.images)
        for one, other in zip(first.boxes, second.boxes, strict=True):
            assert torch.equal(one, other)
    assert whole[0].images.shape == (4, 3, 96, 96)
    assert whole[0].images.dtype == torch.uint8
    assert whole[0].landmarks.shape[1:] == (5, 2)


def test_ranks_share_the_numbers() -> None:
    shares = [list(ResumableSampler(10, 7, rank, 2)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(10, 17))
    assert len(ResumableSampler(10, 7, 1, 2)) == 3


def test_sources_are_drawn_by_weight() -> None:
    weights = sample_weights(PAINTED, np.arange(4), {"crowd": 3.0, "lfw": 1.0})
    np.testing.assert_allclose(weights, [0.375, 0.125, 0.375, 0.125])
    with pytest.raises(ConfigError, match="every source"):
        sample_weights(PAINTED, np.arange(4), {"crowd": 0.0, "lfw": 0.0})


def test_validation_photos_come_as_they_are() -> None:
    held_out = [photo.key for photo in validation_photos(PAINTED, np.array([2, 0]))]
    assert held_out == ["2", "0"]


def test_validation_photos_never_in_mosaics() -> None:
    dataset = CropDataset(PAINTED, np.array([0, 1]), TrainingCrop(96))
    assert list(dataset.partners) == [1]


def test_no_photo_is_refused() -> None:
    with pytest.raises(ValueError, match="no photo"):
        CropDataset(PAINTED, np.array([], np.int64), TrainingCrop(96))


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="mosiac"):
        CropSettings(mosiac=0.5)  # type: ignore[call-arg]


def test_contact_sheet_shows_faces() -> None:
    sheet = contact_sheet([make_dataset()[number] for number in range(5)])
    assert sheet.ndim == 3
    assert sheet.shape[1] >= 640
    assert (sheet == (60, 220, 60)).all(-1).any()
