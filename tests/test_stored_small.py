"""Photos that were stored small: boxes stay where their faces are."""

from __future__ import annotations

import numpy as np
import pytest

from featherface.data.enlarged import LONG_SIDE, STORED, stored_small
from featherface.data.labelled_photo import LabelledPhoto


@pytest.mark.parametrize(("width", "height"), [(832, 500), (224, 224), (180, 300)])
def test_boxes_follow_the_photo(width: int, height: int) -> None:
    photo = np.zeros((height, width, 3), np.uint8)
    photo[40:80, 100:150] = 255
    boxes = np.array([[100, 40, 150, 80]], np.float32)
    landmarks = np.full((1, 5, 2), np.nan, np.float32)
    shown = stored_small(
        LabelledPhoto("made", "made", photo, boxes, np.ones(1, np.float32), landmarks)
    )
    assert max(shown.image.shape[:2]) == LONG_SIDE
    rows, columns = np.nonzero(shown.image[..., 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(shown.boxes[0], found, atol=LONG_SIDE / STORED + 1)
