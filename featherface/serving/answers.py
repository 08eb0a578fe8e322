"""The JSON of the API: what is found, and what went wrong."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

Point = tuple[float, float]
Code = Literal[
    "bad_request",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "too_slow",
    "body_too_large",
    "too_many_files",
    "file_too_large",
    "too_many_pixels",
    "not_multipart",
    "not_a_picture",
    "mixed_content",
    "damaged_picture",
    "invalid_field",
    "busy",
    "internal",
]

FACE_EXAMPLE: JsonDict = {
    "box": [177.1, 48.0, 269.9, 184.1],
    "score": 0.96,
    "landmarks": [[199.3, 98.6], [242.3, 97.1], [222.7, 130.0], [202.8, 149.5], [241.8, 148.3]],
}
IMAGE_EXAMPLE: JsonDict = {
    "name": "astronaut.jpg",
    "width": 512,
    "height": 512,
    "milliseconds": 21.4,
    "faces": [FACE_EXAMPLE],
}
PROBLEM_EXAMPLE: JsonDict = {
    "code": "damaged_picture",
    "message": "torn.jpg: the JPEG file ends too early; fetch it again",
    "file": "torn.jpg",
}


class FaceAnswer(BaseModel):
    """One face, in pixels of the original, upright picture."""

    model_config = ConfigDict(json_schema_extra={"examples": [FACE_EXAMPLE]})

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2")
    score: float = Field(ge=0, le=1)
    landmarks: tuple[Point, Point, Point, Point, Point] = Field(
        description="x, y of the left eye, right eye, nose, left and right corner of the mouth, "
        "left and right as seen in the picture"
    )


class ImageAnswer(BaseModel):
    """A picture that was looked at; its faces, best first."""

    model_config = ConfigDict(json_schema_extra={"examples": [IMAGE_EXAMPLE]})

    name: str = Field(description="The file's name as it was sent")
    width: int = Field(description="Pixels, after EXIF rotation")
    height: int
    milliseconds: float = Field(description="Decoding and detecting; waiting does not count")
    faces: list[FaceAnswer]


class Problem(BaseModel):
    """What went wrong: ``code`` for programs, ``message`` for people."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROBLEM_EXAMPLE]})

    code: Code
    message: str
    file: str | None = Field(
        default=None, description="The picture it is about, if it is about one"
    )


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: Problem


class FailedImage(BaseModel):
    """A picture among several that could not be looked at."""

    name: str
    error: Problem


class DetectAnswer(BaseModel):
    """One entry for each picture, in the order they were sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"images": [IMAGE_EXAMPLE, {"name": "torn.jpg", "error": PROBLEM_EXAMPLE}]}
            ]
        }
    )

    images: list[Annotated[ImageAnswer | FailedImage, Field(union_mode="left_to_right")]]
