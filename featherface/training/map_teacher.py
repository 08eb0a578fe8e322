"""Maps from inside a detector's ONNX file, for the detail stem to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from featherface.errors import ConfigError, WeightsError
from featherface.models.weight_files import first_line
from featherface.training.config import MapTeacherConfig
from featherface.training.teacher_session import open_session


class MapTeacher:
    """The maps ``config.maps`` of the network ``config.path``, by one thread of ONNX Runtime.

    Raises:
        WeightsError: the file cannot be read as ONNX.
        ConfigError: it has no map of such a name.
    """

    def __init__(self, config: MapTeacherConfig) -> None:
        self.config = config
        self._session = open_session(cut_off(config.path, config.maps).SerializeToString())
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Maps ``[B, C, H / s, W / s]`` for RGB ``images`` ``[B, 3, H, W]``, 0..255."""
        config = self.config
        pixels = images.detach().cpu().flip(1) if config.bgr else images.detach().cpu()
        blob = np.ascontiguousarray((pixels.numpy() - config.mean) / config.scale, np.float32)
        # One image at a time: files of other makers often say that they take no more.
        shown = [self._session.run(config.maps, {self._input: one[None]}) for one in blob]
        maps = (np.concatenate(level) for level in zip(*shown, strict=True))
        return [torch.from_numpy(x).to(images.device) for x in maps]


def cut_off(path: Path, maps: list[str]) -> onnx.ModelProto:
    """The part of the network in ``path`` that leads to ``maps``."""
    try:
        whole = onnx.shape_inference.infer_shapes(onnx.load(path))
    except Exception as error:  # protobuf's own, without a common base class
        raise WeightsError(f"{path}: cannot be read as ONNX ({first_line(error)})") from None
    made = {name for node in whole.graph.node for name in node.output}
    for name in maps:
        if name not in made:
            raise ConfigError(
                f"start.detail_teachers: {path.name} has no map {name!r} inside; a viewer for ONNX "
                "files shows their names"
            )
    weights = {x.name for x in whole.graph.initializer}
    inputs = [x.name for x in whole.graph.input if x.name not in weights]
    return onnx.utils.Extractor(whole).extract_model(inputs, maps)
