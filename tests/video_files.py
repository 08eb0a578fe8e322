"""Tiny videos for the tests: a red square that the stand-in detector takes for a face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 10


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    sound_rate: int = 0,
    rotation: int = 0,
    first_index: bool = True,
    **tags: str,
) -> Path:
    """RGB ``frames`` at 10 a second, H.264 without loss of the square; with a tone if asked for."""
    import av

    options = {"movflags": "faststart"} if first_index and path.suffix == ".mp4" else {}
    codec_options = {"crf": "10", "g": "5", "bf": "0" if path.suffix == ".avi" else "2"}
    with av.open(str(path), "w", container_options=options) as output:
        output.metadata.update(tags)
        video: Any = output.add_stream("libx264", rate=RATE, options=codec_options)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if rotation:
            video.set_display_rotation(rotation)
        sound: Any = output.add_stream("aac", rate=sound_rate) if sound_rate else None
        for number, image in enumerate(frames):
            frame: Any = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = number
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if sound is not None:
            count = sound_rate * len(frames) // RATE
            tone = np.sin(np.arange(count) * 440 * 2 * np.pi / sound_rate) * 8000
            for start in range(0, count, 1024):
                samples = tone[None, start : start + 1024].astype(np.int16)
                part: Any = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                part.sample_rate, part.pts = sound_rate, start
                output.mux(sound.encode(part))
            output.mux(sound.encode(None))
    return path


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], list[float], Any]:
    """The RGB frames, their times in seconds, and the names of codecs and the tags."""
    import av

    with av.open(str(path)) as source:
        frames = list(source.decode(video=0))
        about = {
            "codecs": {stream.type: stream.codec_context.name for stream in source.streams},
            "tags": dict(source.metadata),
            "seconds": (source.duration or 0) / 1e6,
        }
    images = [frame.to_ndarray(format="rgb24") for frame in frames]
    return images, [float(frame.time or 0) for frame in frames], about
