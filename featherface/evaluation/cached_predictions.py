"""Detect the photos of WIDER FACE once, and keep what was found in the submission format.

A run that was cut off goes on where it stopped; a second run reads the files. The cache folder is
named after everything that the predictions depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featherface.errors import DataError
from featherface.evaluation.views import Views, detect_in_views
from featherface.evaluation.wider_face import Progress, read_wider_photo
from featherface.evaluation.wider_ground_truth import WiderPhoto
from featherface.evaluation.wider_predictions import read_prediction_file, write_prediction_file
from featherface.faces import Detect


def predictions_key(
    weights: str | Path | None, views: Views, settings: Mapping[str, float | int | str]
) -> str:
    """Name of the cache for ``weights`` (None: the package's own) shown ``views``.

    ``settings`` are the detector's others, such as the score threshold. 16 hexadecimal digits.
    """
    digest = ""
    if weights is not None:
        try:
            digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{weights} cannot be read: {error.strerror or error}") from error
    parts = {
        "package": _package_version(),
        "weights": digest,
        "views": views.describe(),
        **settings,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _package_version() -> str:
    try:
        return metadata.version("featherface")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"


def detect_wider(
    detect: Detect,
    images: str | Path,
    photos: Sequence[WiderPhoto],
    views: Views | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Detect ``photos`` in ``images/EVENT/NAME.jpg``: ``event/name`` to ``[N, 5]``.

    Columns are x1, y1, x2, y2, score in original pixels. With ``cache``, photos that have a file
    there are read instead of detected (unless ``fresh``), and the others leave one.
    """
    if not Path(images).is_dir():
        raise DataError(f"{images} is not a folder: give the folder of EVENT/PHOTO.jpg photos")
    predictions = {}
    for photo in progress(photos) if progress else photos:
        path = None if cache is None else Path(cache) / photo.event / f"{photo.name}.txt"
        if path is None or fresh or not path.is_file():
            rows = detect_in_views(detect, read_wider_photo(images, photo), views).rows()
            if path is not None:
                write_prediction_file(path, photo.name, rows)
        # Read back even what was just found: a cached run gives the same digits as a fresh one.
        predictions[photo.key] = rows if path is None else read_prediction_file(path)
    return predictions
