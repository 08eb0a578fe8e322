"""V2 from a weight file, built as the file says."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.weight_files import first_line, load_weights

SHIPPED = Path(__file__).parents[1] / "weights" / "featherface_v2.safetensors"


def load_v2(path: Path | None = None) -> FeatherFaceV2:
    """The model in ``path`` (default: the weights in the package), in evaluation mode.

    Raises:
        WeightsError: missing or corrupt file, or one of another model.
    """
    path = Path(path or SHIPPED)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({first_line(error)})"
        ) from None
    if metadata.get("model", "FeatherFaceV2") != "FeatherFaceV2":
        raise WeightsError(f"{path}: weights of {metadata['model']}, not of FeatherFaceV2")
    model = FeatherFaceV2(**json.loads(metadata.get("arguments", "{}")))
    load_weights(model, path)
    return model.eval()
