"""V2 from a weight file, built as the file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from featherface.errors import WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.ssh import NEGATIVE_SLOPE
from featherface.models.weight_files import load_mean_weights, load_weights, read_metadata

# What files from before these arguments leave out.
EARLIER_SHAPE = {
    "stage3_channels": 64,
    "weighted": False,
    "light_ssh": 0,
    "stage2_rank": 0,
    "stage3_rank": 0,
    "lateral_rank": 0,
    "context_rank": 0,
    "detail_channels": 0,
    "shared_stem": False,
    "negative_slope": NEGATIVE_SLOPE,
    "detail_branch": False,
    "entry_rank": 0,
    "interpolative": False,
    "branch_strides": 1,
    "folded_norms": False,
    "coarse_context_rank": 0,
}
SHIPPED = Path(__file__).parents[1] / "weights" / "featherface_v2.safetensors"


def load_v2(path: Path | None = None) -> FeatherFaceV2:
    """The model in ``path`` (default: the weights in the package), in evaluation mode.

    Raises:
        WeightsError: missing or corrupt file, or one of another model.
    """
    path = Path(path or SHIPPED)
    metadata = read_metadata(path)
    if metadata.get("model", "FeatherFaceV2") != "FeatherFaceV2":
        raise WeightsError(f"{path}: weights of {metadata['model']}, not of FeatherFaceV2")
    told = metadata.get("arguments")
    model = FeatherFaceV2(**EARLIER_SHAPE | json.loads(told)) if told else FeatherFaceV2()
    load_weights(model, path)
    return model.eval()


def load_mean_v2(paths: Sequence[Path]) -> FeatherFaceV2:
    """The mean of V2s of one shape, of at least one file, in evaluation mode.

    Raises:
        WeightsError: as :func:`load_v2`, or the files are of different shapes.
    """
    model = load_v2(paths[0])
    load_mean_weights(model, paths)
    return model
