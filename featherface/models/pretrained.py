"""V1 from the public code's weight file.

Its names, ``body.stage1.0.0`` and so on, become ours by the table below; nothing may be left over
on either side, because copies of the file without CBAM exist and would leave it random.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from featherface.errors import WeightsError
from featherface.models.backbone import MobileNetV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.weight_files import first_line

LEVELS = {"3": "0", "4": "1", "5": "2", "1": "0", "2": "1"}
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^body\.", r"backbone."),
    (r"^bacbkbone_(\d)_cbam\.", r"backbone_attention.\1."),
    (r"^bif_cbam_(\d)\.", r"neck_attention.\1."),
    (r"ChannelGate\.mlp\.1\.", r"perceptron.0."),
    (r"ChannelGate\.mlp\.3\.", r"perceptron.2."),
    (r"SpatialGate\.spatial\.conv\.", r"spatial.0."),
    (r"SpatialGate\.spatial\.bn\.", r"spatial.1."),
    (r"^bifpn\.", r"fusions."),
    (r"\.conv4_up\.", r".down_16."),
    (r"\.conv3_up\.", r".out_8."),
    (r"\.conv4_down\.", r".out_16."),
    (r"\.conv5_down\.", r".out_32."),
    (r"\.depthwise_conv\.conv\.", r".depthwise."),
    (r"\.pointwise_conv\.conv\.", r".pointwise."),
    (r"^(fusions\.\d\.\w+)\.bn\.", r"\1.norm."),
    (r"\.p4_w1$", r".weights_down_16"),
    (r"\.p3_w1$", r".weights_out_8"),
    (r"\.p4_w2$", r".weights_out_16"),
    (r"\.p5_w2$", r".weights_out_32"),
    (r"\.p3_down_channel\.", r".laterals.0."),
    (r"\.p4_down_channel\.", r".laterals.1."),
    (r"\.p5_down_channel\.", r".laterals.2."),
    (r"\.p4_down_channel_2\.", r".second_laterals.0."),
    (r"\.p5_down_channel_2\.", r".second_laterals.1."),
    (r"(laterals\.\d\.0)\.conv\.", r"\1."),
    (r"^ssh1_cs\.(\d)", r"shuffle.0.bottleneck.#\1"),
    (r"^ssh2_cs\.(\d)", r"shuffle.1.bottleneck.#\1"),
    (r"^ssh3_cs\.(\d)", r"shuffle.2.bottleneck.#\1"),
    (r"^ssh1\.", r"context.0."),
    (r"^ssh2\.", r"context.1."),
    (r"^ssh3\.", r"context.2."),
    (r"\.conv3X3\.", r".context_3."),
    (r"\.conv5X5_1\.", r".reduce."),
    (r"\.conv5X5_2\.", r".context_5."),
    (r"\.conv7X7_2\.", r".widen."),
    (r"\.conv7x7_3\.", r".context_7."),
    (r"\.offset_conv\.", r".offset."),
    (r"\.modulator_conv\.", r".mask."),
    (r"\.regular_conv\.", r".kernel."),
    (r"^ClassHead\.(\d)\.conv1x1\.", r"heads.classes.\1."),
    (r"^BboxHead\.(\d)\.conv1x1\.", r"heads.boxes.\1."),
    (r"^LandmarkHead\.(\d)\.conv1x1\.", r"heads.landmarks.\1."),
)


def our_name(public_name: str) -> str:
    """The name of a public tensor in ``FeatherFaceV1``."""
    name = public_name
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    # The public shuffle block counts the shuffle itself as layer 0.
    return re.sub(r"#(\d)", lambda match: str(int(match[1]) - 1), name)


def load_v1(path: Path) -> FeatherFaceV1:
    """V1 with the weights in ``path`` (safetensors, public names), in evaluation mode.

    Raises:
        WeightsError: missing or corrupt file, or tensors missing, left over or of another shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: no readable safetensors file ({first_line(error)})") from None
    state = {our_name(name): tensor for name, tensor in tensors.items()}
    width = state.get("heads.classes.0.weight")
    if width is None:
        raise WeightsError(f"{path}: no class head in it; is it FeatherFace V1?")
    model = FeatherFaceV1(width.shape[1])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip()
        raise WeightsError(f"{path}: not all of FeatherFace V1's weights ({detail})") from None
    return model.eval()


def load_imagenet_backbone(backbone: MobileNetV1, path: Path) -> None:
    """Fill V1's ``backbone`` from a MobileNetV1 x0.25 classifier (safetensors), in place.

    Raises:
        WeightsError: missing or corrupt file, or one of another network.
    """
    try:
        tensors = load_file(path)
        state = {name: tensor for name, tensor in tensors.items() if name.startswith("stage")}
        backbone.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: no MobileNetV1 x0.25 of ImageNet in it ({first_line(error)})"
        ) from None
