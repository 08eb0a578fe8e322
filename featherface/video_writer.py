"""Frames to a video file, with the sound of the video they come from (PyAV)."""

from __future__ import annotations

import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from featherface.errors import VideoError
from featherface.video_source import Frame, VideoSource

ByteImage = NDArray[np.uint8]

CONTAINERS: dict[str, str] = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi",
}  # fmt: skip
H264_OPTIONS = {"crf": "20", "preset": "veryfast"}
VP9_OPTIONS = {"crf": "30", "b:v": "0", "deadline": "realtime", "cpu-used": "6"}
OPUS_RATE = 48_000  # Opus knows few rates; this is its own
UNSPECIFIED = 2  # FFmpeg's number for a colour property that nobody stated


class VideoWriter:
    """Writes H.264 (VP9 for .webm), keeps the source's times, copies its sound.

    The file appears under its name when the ``with`` block ends, also by an interruption, as long
    as one frame was written; any other error removes it. Sound that the container cannot hold is
    encoded anew. Tags are kept only with ``keep_metadata``. A width or height that is odd grows by
    one pixel, which repeats its neighbour.

    Raises ``VideoError`` for a suffix that is not of a video.
    """

    def __init__(
        self, path: Path, source: VideoSource, *, sound: bool = True, keep_metadata: bool = False
    ) -> None:
        container = check_suffix(path)
        self.frames = 0
        self._path = path
        self._unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._source = source
        self._size: tuple[int, int] | None = None
        self._last_ticks = -1
        self._waiting: list[Any] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
        self._output: Any = av.open(
            str(self._unfinished), "w", format=container, container_options=options
        )
        if keep_metadata:
            self._output.metadata.update(source.metadata)
        self._sound: Any = None
        self._copies_sound = False
        if sound and source.audio is not None:
            self._add_sound(source.audio)

    def _add_sound(self, audio: Any) -> None:
        self._copies_sound = audio.codec_context.name in self._output.supported_codecs
        if self._copies_sound:
            self._sound = self._output.add_stream_from_template(audio)
        else:
            codec = self._output.default_audio_codec
            rate = OPUS_RATE if "opus" in codec else audio.codec_context.sample_rate
            self._sound = self._output.add_stream(codec, rate=rate)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.frames:
                self._finish()
        finally:
            self._output.close()
            if self.frames and (kind is None or not issubclass(kind, Exception)):
                os.replace(self._unfinished, self._path)
            else:
                self._unfinished.unlink(missing_ok=True)

    def write(self, frame: Frame, image: ByteImage) -> None:
        """Append ``image`` (uint8 RGB ``[H, W, 3]``) at the time of ``frame``."""
        height, width = image.shape[:2]
        if self._size is None:
            self._start(width, height, frame.tick)
        elif (width, height) != self._size:
            resized = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
            image = np.asarray(resized, np.uint8)
        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        space = self._source.colours[0]
        picture = picture.reformat(
            format="yuv420p",
            dst_colorspace=None if space == UNSPECIFIED else space,
            dst_color_range="MPEG",
        )
        picture.pts, picture.time_base = self._time_of(frame), self._tick
        try:
            self._output.mux(self._video.encode(picture))
        except av.FFmpegError as error:
            raise VideoError(f"{self._path}: cannot be written: {error.strerror}") from error
        self.frames += 1

    def write_sound(self, packet: Any) -> None:
        """Append a packet of the source's sound."""
        if self._sound is None:
            return
        if self._size is None:
            self._waiting.append(packet)  # the file can begin when the size of a frame is known
        else:
            with suppress(av.FFmpegError):  # a damaged packet is a gap in the sound, no more
                self._pass_on(packet)

    def _pass_on(self, packet: Any) -> None:
        if self._copies_sound:
            packet.stream = self._sound
            self._output.mux(packet)
        else:
            for samples in packet.decode():
                self._output.mux(self._sound.encode(samples))

    def _time_of(self, frame: Frame) -> int:
        """The time of ``frame`` in ticks of this file, later than that of the frame before."""
        ticks = max(round(frame.ticks * frame.tick / self._tick), self._last_ticks + 1)
        self._last_ticks = ticks
        return ticks

    def _start(self, width: int, height: int, tick: Fraction) -> None:
        webm = self._path.suffix.lower() == ".webm"
        codec, options = ("libvpx-vp9", VP9_OPTIONS) if webm else ("libx264", H264_OPTIONS)
        self._size = (width, height)
        self._tick = tick
        if self._path.suffix.lower() == ".avi":  # knows a rate and an order, and no times
            self._tick = 1 / self._source.rate
            options = {**options, "bf": "0"}
        self._video: Any = self._output.add_stream(codec, rate=self._source.rate, options=options)
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.time_base = self._tick
        names = ("colorspace", "color_primaries", "color_trc")
        for name, value in zip(names, self._source.colours, strict=True):
            setattr(context, name, value)
        for packet in self._waiting:
            self.write_sound(packet)
        self._waiting.clear()

    def _finish(self) -> None:
        self._output.mux(self._video.encode(None))
        if self._sound is not None and not self._copies_sound:
            self._output.mux(self._sound.encode(None))


def check_suffix(path: Path) -> str:
    """FFmpeg's name of the container for the suffix of ``path``; ``VideoError`` if none."""
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        names = ", ".join(CONTAINERS)
        raise VideoError(f"{path}: cannot be written as {path.suffix!r}; a video is {names}")
    return container
