"""What a training crop may look like."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CropSettings(BaseModel):
    """What a training crop may look like: chances from 0 to 1, sizes in pixels of the crop.

    A face's size is the square root of its box's area.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    face_sizes: tuple[float, float] = Field(default=(8.0, 250.0), description="log-uniform range")
    largest_share: float = Field(
        default=0.0, ge=0, le=1, description="largest face, of the crop's side, if that is more"
    )
    random_window: float = Field(
        default=0.1, ge=0, le=1, description="crops laid without a target face"
    )
    enlarge: float = Field(default=2.0, gt=0, description="most that a photo is enlarged")
    enlarge_rarely: float = Field(default=4.0, gt=0, description="the same in 1 of 20 crops")
    free_scales: tuple[float, float] = Field(
        default=(0.3, 1.5), description="without a target face"
    )
    least_cover: float = Field(default=0.75, gt=0, description="least long side, of the crop's")
    mosaic: float = Field(default=0.5, ge=0, le=1)
    mosaic_sources: tuple[str, ...] = ("lfw", "sports", "flickr", "portraits")
    mosaic_grids: tuple[float, ...] = Field(
        default=(0.6, 0.3, 0.1), description="shares of 2x2, 3x3, and so on"
    )
    mosaic_face_sizes: tuple[float, float] = (10.0, 80.0)
    mix: float = Field(default=0.0, ge=0, le=1, description="another photo shines through")
    mix_shares: tuple[float, float] = Field(default=(0.1, 0.4), description="of that photo")
    least_face: float = Field(default=4.0, ge=0, description="smaller faces are ignored")
    least_visible: float = Field(default=0.3, ge=0, le=1, description="faces seen less are ignored")
    flip: float = Field(default=0.5, ge=0, le=1)
    rotate: float = Field(default=0.2, ge=0, le=1)
    degrees: float = Field(default=10.0, ge=0, le=45)
    turn: float = Field(default=0.0, ge=0, le=1, description="turned by up to 100 degrees")
    stretch: float = Field(
        default=0.0, ge=0, le=1, description="up to 1.6 times as wide or as high as it was"
    )
    colour: float = Field(default=0.8, ge=0, le=1)
    grey: float = Field(default=0.05, ge=0, le=1)
    hide: float = Field(default=0.0, ge=0, le=1, description="faces partly covered by a patch")
    masks: float = Field(default=0.0, ge=0, le=1, description="faces with a mask drawn on them")
    letters: float = Field(default=0.0, ge=0, le=1, description="writing over the picture")
    dim: float = Field(default=0.0, ge=0, le=1, description="night, haze, little contrast")
    glare: float = Field(default=0.0, ge=0, le=1, description="over-exposed or of hard contrast")
    cast: float = Field(default=0.0, ge=0, le=1, description="coloured light")
    shade: float = Field(default=0.0, ge=0, le=1, description="light from one side")
    blur: float = Field(default=0.1, ge=0, le=1)
    longest_motion: int = Field(default=7, ge=3, description="of blur by movement, pixels")
    coarsen: float = Field(default=0.1, ge=0, le=1, description="shrunk and enlarged again")
    coarsen_to: tuple[float, float] = Field(default=(0.4, 0.8), description="of the crop's side")
    noise: float = Field(default=0.1, ge=0, le=1)
    grain: tuple[float, float] = Field(
        default=(2.0, 12.0), description="standard deviation of the noise, of 255"
    )
    jpeg: float = Field(default=0.15, ge=0, le=1)
    pad: float = Field(
        default=0.0, ge=0, le=1, description="black at the right and below, as a detector fills up"
    )
