"""Videos and cameras as upright RGB frames with their times (PyAV, and OpenCV for cameras)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import MissingExtraError, VideoError
from featherface.images import MAX_PIXELS

try:
    import av
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "Reading and writing videos needs PyAV: pip install 'featherface[video]'"
    ) from error

ByteImage = NDArray[np.uint8]

VIDEO_SUFFIXES: tuple[str, ...] = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
MICROSECOND = Fraction(1, 1_000_000)
SLACK_SECONDS = 0.5  # by which a whole file may end before the length it claims


@dataclass(frozen=True, eq=False)
class Frame:
    """``image`` uint8 RGB ``[H, W, 3]``, upright; ``number`` from 0; ``time`` in seconds.

    ``ticks`` is the time in units of the source's ``tick`` and grows from frame to frame.
    """

    image: ByteImage
    number: int
    ticks: int
    tick: Fraction

    @property
    def time(self) -> float:
        return float(self.ticks * self.tick)


class VideoFile:
    """A video file or stream address to read once, frame by frame.

    >>> with VideoFile("party.mp4") as video:
    ...     for frame in video.frames():
    ...         print(frame.time, frame.image.shape)

    Attributes:
        rate: frames a second, on average.
        frame_count: as the file claims, or None.
        problem: after the last frame, None or one line on what was wrong with the file.
        audio: PyAV's stream of the first sound track, or None.
        metadata: the container's tags.
        colours: PyAV's numbers for colour space, primaries and transfer of the frames.

    Raises ``VideoError`` if the file is missing, not a video, or of more than ``max_pixels``.
    """

    def __init__(self, path: Path | str, max_pixels: int = MAX_PIXELS) -> None:
        self.name = str(path)
        self.problem: str | None = None
        self._max_pixels = max_pixels
        options = {}
        if "://" not in self.name:
            _check_file(Path(path))
            options = {"protocol_whitelist": "file"}  # a playlist must not fetch from elsewhere
        try:
            self._container: Any = av.open(
                self.name, options=options, metadata_errors="replace", timeout=(20, 20)
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{self.name}: not a video that can be read ({_reason(error)}); "
                "if it should be one, it was cut short: fetch it again"
            ) from error
        try:
            self._choose_streams()
        except BaseException:
            self._container.close()
            raise

    def _choose_streams(self) -> None:
        kind = self._container.format.name
        if kind.endswith("_pipe") or kind == "image2":
            raise VideoError(f"{self.name}: a picture, not a video; use featherface detect")
        covers = av.stream.Disposition.attached_pic
        videos = [one for one in self._container.streams.video if not one.disposition & covers]
        if not videos:
            raise VideoError(f"{self.name}: holds no video; or it was cut short: fetch it again")
        self._stream = videos[0]
        context = self._stream.codec_context
        if context is None:
            raise VideoError(f"{self.name}: its codec is unknown; convert it to H.264 first")
        self._check_size(context.width, context.height)
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.rate = Fraction(rate) if 0 < rate <= 1000 else Fraction(25)
        self.tick = Fraction(self._stream.time_base or MICROSECOND)
        self.frame_count: int | None = self._stream.frames or None
        seconds = self._seconds()
        if self.frame_count is None and seconds is not None:
            self.frame_count = round(seconds * self.rate) or None
        self.audio = next(iter(self._container.streams.audio), None)
        self.metadata: dict[str, str] = dict(self._container.metadata)
        self.colours = tuple(
            int(getattr(context, name)) for name in ("colorspace", "color_primaries", "color_trc")
        )

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def frames(self, on_audio: Callable[[Any], None] | None = None) -> Iterator[Frame]:
        """The frames in order; packets of the sound go to ``on_audio`` as they come.

        A file that breaks off or has damaged parts gives what can be read; ``problem`` then says
        what was wrong.
        """
        streams = [self._stream]
        if on_audio is not None and self.audio is not None:
            streams.append(self.audio)
        number, last_ticks, damaged = 0, -1, 0
        frame = None
        try:
            for packet in self._container.demux(streams):
                if packet.stream is not self._stream:
                    if on_audio is not None and packet.dts is not None:
                        on_audio(packet)
                    continue
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    damaged += 1
                    continue
                for frame in decoded:
                    self._check_size(frame.width, frame.height)
                    ticks = frame.pts
                    if ticks is None:
                        ticks = round(number / self.rate / self.tick)
                    ticks = max(ticks, last_ticks + 1)
                    yield Frame(_upright(frame), number, ticks, self.tick)
                    number, last_ticks = number + 1, ticks
        except av.FFmpegError as error:
            self.problem = f"{self.name}: cannot be read further than {_at(last_ticks, self.tick)}"
            self.problem += f" ({_reason(error)})"
        else:
            self.problem = self._end_problem(number, last_ticks, damaged)

    def _end_problem(self, number: int, last_ticks: int, damaged: int) -> str | None:
        if number == 0:
            return f"{self.name}: no frame can be decoded; fetch it again"
        first = self._stream.start_time or 0
        seen = float((last_ticks - first) * self.tick + 1 / self.rate)
        claimed = self._seconds()
        if claimed is not None and seen < claimed - max(SLACK_SECONDS, 2 / float(self.rate)):
            return (
                f"{self.name}: cut short: it ends at {seen:.1f} of {claimed:.1f} seconds, "
                f"after {number} frames"
            )
        if damaged:
            return f"{self.name}: {damaged} damaged parts were left out"
        return None

    def _seconds(self) -> float | None:
        """The length that the video stream claims, or None."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self.tick)
        tag = self._stream.metadata.get("DURATION", "")  # Matroska: 00:01:02.500000000
        try:
            hours, minutes, seconds = (float(part) for part in tag.split(":"))
        except ValueError:
            return None
        return 3600 * hours + 60 * minutes + seconds

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise VideoError(
                f"{self.name}: frames of {width}x{height} pixels, more than the limit of "
                f"{self._max_pixels / 1e6:,.0f} megapixels; shrink the video first"
            )


class Camera:
    """A camera by number, 0 being the first; like ``VideoFile``, without sound and end.

    Raises ``VideoError`` if there is no such camera.
    """

    audio = None
    frame_count: int | None = None
    tick = MICROSECOND
    colours: tuple[int, ...] = (2, 2, 2)

    def __init__(self, number: int) -> None:
        self.name = f"camera {number}"
        self.problem: str | None = None
        self.metadata: dict[str, str] = {}
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise VideoError(f"{self.name}: cannot be opened; is it connected, and free?")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(round(rate)) if 1 <= rate <= 240 else Fraction(30)

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._capture.release()

    def frames(self, on_audio: Callable[[Any], None] | None = None) -> Iterator[Frame]:
        """The frames as they come; frames that come while nobody asks are lost."""
        start = time.monotonic()
        number, last_ticks = 0, -1
        while True:
            read, image = self._capture.read()
            if not read:
                self.problem = f"{self.name}: gives no more frames"
                return
            ticks = max(round((time.monotonic() - start) / float(self.tick)), last_ticks + 1)
            rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
            yield Frame(rgb, number, ticks, self.tick)
            number, last_ticks = number + 1, ticks


VideoSource = VideoFile | Camera


def open_source(source: str) -> VideoSource:
    """A camera for a number, else a video file or a stream address."""
    if source.isdecimal() and not Path(source).exists():
        return Camera(int(source))
    return VideoFile(source)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise VideoError(f"{path}: a folder, not a video")
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")


def _upright(frame: Any) -> ByteImage:
    image: ByteImage = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _at(ticks: int, tick: Fraction) -> str:
    return f"{max(0.0, float(ticks * tick)):.1f} seconds"
