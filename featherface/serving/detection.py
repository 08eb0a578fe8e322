"""Uploads to answers: decoding and detecting in threads, so many at a time and no more."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread
from fastapi import UploadFile

from featherface.detector import FaceDetector
from featherface.errors import ImageError
from featherface.images import fitted_size
from featherface.serving.answers import FaceAnswer, FailedImage, ImageAnswer
from featherface.serving.metrics import Metrics
from featherface.serving.problems import ApiError
from featherface.serving.settings import ServeSettings
from featherface.serving.upload import check_length, display_name, read_upload

MAX_FACES = 2000  # of one picture, the best; more is noise at a low threshold


@dataclass(frozen=True)
class Wishes:
    """How a request wants its pictures looked at; see ``FaceDetector``."""

    score_threshold: float
    nms_iou: float
    input_size: int | None


class Detection:
    """One detector for all requests; at most ``settings.workers`` pictures are open at a time."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.detector = FaceDetector(
            settings.weights,
            settings.input_size,
            settings.score_threshold,
            settings.nms_iou,
            threads=settings.threads,
        )
        self._limiter: CapacityLimiter | None = None

    async def look_at(self, upload: UploadFile, wishes: Wishes) -> ImageAnswer:
        """The faces of one upload; raises ``ApiError`` naming the file."""
        if self._limiter is None:  # belongs to the running event loop
            self._limiter = CapacityLimiter(self.settings.workers)
        name = display_name(upload.filename)
        try:
            if upload.size is not None:
                check_length(upload.size, name, self.settings)
            answer = await to_thread.run_sync(
                self._detect, upload, name, wishes, limiter=self._limiter
            )
        except ApiError as error:
            self.metrics.images.labels(error.problem.code).inc()
            raise
        self.metrics.images.labels("detected").inc()
        self.metrics.faces.inc(len(answer.faces))
        return answer

    async def look_at_all(
        self, uploads: list[UploadFile], wishes: Wishes
    ) -> list[ImageAnswer | FailedImage]:
        """An entry for each of several uploads; one that fails has its error in its place."""
        answers: list[ImageAnswer | FailedImage] = []
        for upload in uploads:
            try:
                answers.append(await self.look_at(upload, wishes))
            except ApiError as error:
                name = display_name(upload.filename)
                answers.append(FailedImage(name=name, error=error.problem))
        return answers

    def _detect(self, upload: UploadFile, name: str, wishes: Wishes) -> ImageAnswer:
        start = time.perf_counter()
        image = read_upload(upload.file.read(), name, self.settings)
        height, width = image.shape[:2]
        longest = max(fitted_size(width, height, wishes.input_size))
        if longest > self.settings.max_side:
            raise ApiError(
                422,
                "invalid_field",
                f"{name}: {width}x{height} pixels are too many to look at unshrunk; give an "
                f"input_size of at most {self.settings.max_side}",
                file=name,
            )
        detector = copy.copy(self.detector)  # shares the network, which holds no state
        detector.input_size = wishes.input_size
        detector.score_threshold = wishes.score_threshold
        detector.nms_iou = wishes.nms_iou
        try:
            faces = detector(image)
        except ImageError as error:
            raise ApiError(422, "damaged_picture", f"{name}: {error}", file=name) from error
        seconds = time.perf_counter() - start
        self.metrics.seconds.observe(seconds)
        return ImageAnswer(
            name=name,
            width=width,
            height=height,
            milliseconds=round(1000 * seconds, 2),
            faces=[FaceAnswer(**face.to_dict()) for face in faces[:MAX_FACES]],
        )
