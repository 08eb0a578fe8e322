"""Changes of the pixels that leave every face where it is: light, colour, blur, grain, writing."""

from __future__ import annotations

import string

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.data.crop_settings import CropSettings

LETTERS = string.ascii_letters + string.digits
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def change_pixels(
    image: NDArray[np.uint8], settings: CropSettings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Colour, light, blur, lost resolution, noise, JPEG, each by its chance; uint8 in and out."""
    result: cv2.typing.MatLike = image
    colour, grey, blur, coarsen, noise, jpeg = rng.random(6)
    if colour < settings.colour or grey < settings.grey:
        result = cv2.transform(result, colour_matrix(rng, grey < settings.grey))
        if rng.random() < 0.3:
            levels = np.linspace(0, 1, 256) ** rng.uniform(0.7, 1.4)
            result = cv2.LUT(result, np.rint(levels * 255).astype(np.uint8))
    for chance, change_light in (
        (settings.dim, dim_light),
        (settings.glare, glaring_light),
        (settings.cast, coloured_light),
        (settings.shade, light_from_one_side),
    ):
        if chance and rng.random() < chance:
            result = change_light(result, rng)
    if blur < settings.blur:
        sigma = rng.uniform(0.4, 1.6)
        if rng.random() < 0.5:
            result = cv2.GaussianBlur(result, (0, 0), sigma)
        else:
            result = cv2.filter2D(result, -1, motion_kernel(rng, settings.longest_motion))
    if coarsen < settings.coarsen:
        height, width = image.shape[:2]
        least, most = settings.coarsen_to
        shares = rng.uniform(least, most) * rng.uniform(0.8, 1.25, 2)
        across, down = np.clip(shares, 0.875 * least, 1)
        small = (max(1, int(width * across)), max(1, int(height * down)))
        result = cv2.resize(result, small, interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:  # thumbnails are stored before they are enlarged
            result = store_jpeg(result, int(rng.integers(60, 96)))
        result = cv2.resize(result, (width, height), interpolation=cv2.INTER_LINEAR)
    if noise < settings.noise:
        cv2.setRNGSeed(int(rng.integers(2**31)))
        grain = np.empty(image.shape, np.int16)
        cv2.randn(grain, np.zeros(3), np.full(3, rng.uniform(*settings.grain)))
        result = cv2.add(result, grain, dtype=cv2.CV_8U)
    if jpeg < settings.jpeg:
        result = store_jpeg(result, int(rng.integers(30, 91)))
    return np.asarray(result, np.uint8)


def dim_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """Night (gamma and gain) or haze (contrast down to a fifth about a grey), uint8."""
    levels = np.arange(256) / 255.0
    if rng.random() < 0.6:
        levels = 255 * rng.uniform(0.3, 1.0) * levels ** rng.uniform(1.2, 2.8)
    else:
        levels = rng.uniform(60, 190) + 255 * rng.uniform(0.2, 0.6) * (levels - 0.5)
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def glaring_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """Too long exposed, or of up to three times the contrast, uint8."""
    levels = np.arange(256) / 255.0
    if rng.random() < 0.5:
        levels = rng.uniform(1.2, 2.4) * levels ** rng.uniform(0.6, 1.0)
    else:
        middle = rng.uniform(0.3, 0.7)
        levels = 0.5 + rng.uniform(1.5, 3.0) * (levels - middle)
    return cv2.LUT(image, np.clip(np.rint(255 * levels), 0, 255).astype(np.uint8))


def coloured_light(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """A lamp of a colour: each channel by 0.3 to 1.2, uint8 [H, W, 3]."""
    gains = rng.uniform(0.3, 1.2, 3)
    return cv2.transform(image, np.diag(gains).astype(np.float32))


def light_from_one_side(image: cv2.typing.MatLike, rng: np.random.Generator) -> cv2.typing.MatLike:
    """A shadow of a soft or hard edge across the picture, uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(np.cos(angle))
    down = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(np.sin(angle))
    edge = (down[:, None] + across + rng.uniform(-0.6, 0.6)) / rng.uniform(0.05, 1.0)
    darkest = rng.uniform(0.1, 0.6)
    light = (darkest + (1 - darkest) * np.clip(edge + 0.5, 0, 1)).astype(np.float32)
    return cv2.multiply(image, cv2.merge([light] * 3), dtype=cv2.CV_8U)


def colour_matrix(rng: np.random.Generator, grey: bool) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and a little hue in one affine map, float32 [3, 4]."""
    contrast = rng.uniform(0.6, 1.4)
    brightness = rng.uniform(-40, 40)
    saturation = 0.0 if grey else rng.uniform(0.5, 1.5)
    hue = rng.uniform(-0.15, 0.15)
    weights = np.array([0.299, 0.587, 0.114])
    luma = np.tile(weights, (3, 1))
    # Hue turns the colour about the grey axis (Rodrigues' formula).
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * axis + (1 - np.cos(hue)) / 3
    colours = contrast * (luma + saturation * (turn - luma @ turn))
    offset = brightness + 127.5 * (1 - contrast)
    return np.concatenate([colours, np.full((3, 1), offset)], 1).astype(np.float32)


def motion_kernel(rng: np.random.Generator, longest: int) -> NDArray[np.float32]:
    """A blurring line of 3 to ``longest`` pixels in any direction, float32 [K, K], sum 1."""
    length = 3 + 2 * int(rng.integers((longest - 1) // 2))
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    middle = (length - 1) / 2
    turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 180), 1.0)
    kernel = np.asarray(cv2.warpAffine(line, turn, (length, length)), np.float32)
    return kernel / kernel.sum()


def store_jpeg(image: cv2.typing.MatLike, quality: int) -> cv2.typing.MatLike:
    """``image``, uint8 [H, W, 3], as it comes back from a JPEG of ``quality`` (1 to 100)."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    return image if decoded is None else decoded


def write_letters(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One to four words of chance letters, of any size, colour and place; uint8 in and out.

    Signs, subtitles and shirts: the loops and dots of letters look like small faces.
    """
    height, width = image.shape[:2]
    written = image.copy()
    for _ in range(int(rng.integers(1, 5))):
        word = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 11))))
        scale = float(np.exp(rng.uniform(np.log(0.4), np.log(5.0)))) * height / 320
        cv2.putText(
            written,
            word,
            (int(rng.integers(-width // 4, width)), int(rng.integers(height // 10, height))),
            int(rng.choice(FONTS)),
            scale,
            rng.integers(0, 256, 3).tolist(),
            max(1, round(scale * rng.uniform(1, 6))),
            cv2.LINE_AA,
        )
    return written
