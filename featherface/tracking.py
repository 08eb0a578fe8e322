"""Faces followed through a video: the same number as long as it is the same face (ByteTrack)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherface.errors import MissingExtraError
from featherface.faces import Faces

FAINT_SCORE = 0.2  # a face that is being followed is believed from this score on


@dataclass(frozen=True, eq=False)
class TrackedFaces:
    """``faces`` of a frame and ``tracks`` int64 ``[N]``: from 1, or 0 for a face not followed."""

    faces: Faces
    tracks: NDArray[np.int64]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One ``Face.to_dict`` a face with ``track`` in front, None where it is not followed."""
        return [
            {"track": int(track) or None, **face.to_dict()}
            for face, track in zip(self.faces, self.tracks, strict=True)
        ]


class FaceTracker:
    """Follows faces by their boxes alone; it recognises nobody.

    ByteTrack (Zhang et al., ECCV 2022), by supervision. Give it the faces from ``FAINT_SCORE`` on:
    the sure ones, from ``threshold`` on, begin and continue tracks; the faint ones only continue
    them. ``patience``: seconds for which a face may be out of sight and keep its number.
    """

    def __init__(
        self, rate: Fraction | float, threshold: float = 0.5, patience: float = 1.0
    ) -> None:
        try:
            import supervision

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # see the pin in pyproject.toml
                self._tracker: Any = supervision.ByteTrack(
                    # ByteTrack begins a track 0.1 above the score that it calls sure.
                    track_activation_threshold=max(threshold - 0.1, 0.1),
                    lost_track_buffer=max(1, round(30 * patience)),
                    frame_rate=float(rate),
                )
        except (ImportError, AttributeError) as error:
            raise MissingExtraError(
                "Tracking needs supervision 0.30 with its ByteTrack: "
                "pip install 'featherface[video]'"
            ) from error
        self._threshold = threshold

    def __call__(self, faces: Faces) -> TrackedFaces:
        """The faces of the next frame that are sure or followed, best first, with their tracks."""
        detections = faces.to_supervision()
        detections.data = {"row": np.arange(len(faces))}
        followed = self._tracker.update_with_detections(detections)
        tracks = np.zeros(len(faces), np.int64)
        if len(followed):
            tracks[followed.data["row"]] = followed.tracker_id
        kept = np.flatnonzero((faces.scores >= self._threshold) | (tracks > 0))
        return TrackedFaces(faces[kept], tracks[kept])
