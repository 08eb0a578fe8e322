"""The configuration of a run: one YAML file holds what differs from these defaults."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from featherface.anchors import SIZES
from featherface.data.crop_settings import CropSettings
from featherface.errors import ConfigError

# Added since runs were recorded: out of the fingerprint at these values, so that those runs keep
# theirs.
LATER_FIELDS: dict[tuple[str, ...], Any] = {
    ("model", "stage2_rank"): 0,
    ("model", "stage3_rank"): 0,
    ("model", "lateral_rank"): 0,
    ("model", "context_rank"): 0,
    ("model", "detail_channels"): 0,
    ("model", "shared_stem"): False,
    ("model", "negative_slope"): 0.1,
    ("model", "detail_branch"): False,
    ("model", "entry_rank"): 0,
    ("model", "interpolative"): False,
    ("model", "branch_strides"): 1,
    ("model", "folded_norms"): False,
    ("model", "coarse_context_rank"): 0,
    ("start", "grown"): False,
    ("start", "frozen_branch"): False,
    ("start", "shared_steps"): 0,
    ("start", "factored_crops"): 0,
    ("start", "factored_steps"): 0,
    ("start", "twin_crops"): 0,
    ("start", "detail_crops"): 0,
    ("start", "detail_passes"): [6, 16, 8],
    ("start", "detail_teachers"): [],
    ("start", "shortened"): 0,
    ("start", "shortened_passes"): 8,
    ("start", "joined_crops"): 0,
    ("start", "joined_passes"): 8,
    ("start", "joined_v1"): [],
    ("start", "joined_way_rate"): 0.0,
    ("start", "council"): None,
    ("start", "branch_crops"): 0,
    ("start", "branch_passes"): [2, 2, 4],
    ("start", "branch_teacher"): None,
    ("loss", "quality"): 0.0,
    ("loss", "quality_full"): 1.0,
    ("loss", "quality_largest"): 0.0,
    ("loss", "class_largest"): 0.0,
    ("data", "more_shards"): [],
    ("optimiser", "matrix_rate"): 0.0,
    ("optimiser", "branch_rate"): 1.0,
    ("data", "crop", "masks"): 0.0,
}


class Section(BaseModel):
    """Unknown keys are refused, so that a misspelt one cannot pass unseen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Arguments of ``FeatherFaceV2``."""

    stage3_channels: int = Field(80, gt=0)
    weighted: bool = Field(
        True, description="fusion as in V1: weighed edges, swish, second laterals"
    )
    light_ssh: int = Field(
        2, ge=0, description="separable blocks of context a level; 0: grouped SSH and a tower"
    )
    channels: int = Field(64, gt=0, multiple_of=8)
    fusions: int = Field(3, ge=1)
    ssh_groups: int = Field(4, ge=1)
    head_groups: int = Field(2, ge=1)
    attention: bool = True
    stage2_rank: int = Field(0, ge=0, description="of the 1x1 convolutions in two factors; 0: one")
    stage3_rank: int = Field(0, ge=0, description="the same in the last stage")
    lateral_rank: int = Field(0, ge=0, description="the same of stride 32's lateral")
    context_rank: int = Field(0, ge=0, description="the same of the context, at all strides")
    detail_channels: int = Field(
        0, ge=0, multiple_of=3, description="of a second stem for tiny faces, at stride 4; 0: none"
    )
    shared_stem: bool = Field(
        False, description="the backbone begins at that stem's map of stride 4, which is faster"
    )
    negative_slope: float = Field(
        0.1, ge=0, description="of the activations; 0 is a ReLU, which runtimes compute faster"
    )
    detail_branch: bool = Field(
        False,
        description="a second way from the image, whose map of stride 8 the heads read beside the "
        "other",
    )
    entry_rank: int = Field(0, ge=0, description="that of the first convolution of stage 2")
    interpolative: bool = Field(
        False,
        description="convolutions of lower rank with a basis of their own outputs, not in factors",
    )
    folded_norms: bool = Field(
        False, description="batch normalisations are a part of the convolutions before them"
    )
    branch_strides: Literal[1, 2] = Field(
        1, description="where the detail branch speaks: at stride 8, or at 8 and 16"
    )
    coarse_context_rank: int = Field(
        0, ge=0, description="that of the context at strides 16 and 32; 0: as at stride 8"
    )

    @model_validator(mode="after")
    def _has_what_it_shares(self) -> ModelConfig:
        if self.shared_stem and not self.detail_channels:
            raise ValueError("shared_stem: true needs detail_channels, those of the stem to share")
        if self.branch_strides > 1 and not self.detail_branch:
            raise ValueError("branch_strides: 2 needs detail_branch: true, the branch that speaks")
        return self


class MapTeacherConfig(Section):
    """Maps inside a detector's ONNX file, by the names they have there.

    It takes pixels minus ``mean`` over ``scale``, in BGR order where ``bgr`` says so.
    """

    path: Path
    maps: list[str] = Field(min_length=1)
    bgr: bool = False
    mean: float = 0.0
    scale: float = Field(1.0, gt=0)


def one_of_each_size(values: list[float]) -> list[float]:
    """``values``, if there is one for each size of anchors."""
    if len(values) != SIZES:
        raise ValueError(f"{len(values)} values for six sizes of anchors")
    return values


OfSizes = Annotated[list[float], AfterValidator(one_of_each_size)]
Shares = Annotated[list[Annotated[float, Field(ge=0, le=1)]], AfterValidator(one_of_each_size)]


class MemberConfig(Section):
    """A detector of a council, and its ``shares`` of what is said at anchors of 16, 32, 64, 128,
    256 and 512 pixels.

    ``slope`` and ``shifts`` make its logits as large as the others' mean of the same.
    """

    path: Path
    outputs: Literal["featherface", "scrfd"] = "featherface"
    shares: Shares
    slope: float = Field(1.0, gt=0)
    shifts: OfSizes = [0.0] * SIZES


class CouncilConfig(Section):
    """What a student learns from: detectors that speak together of ``crops``, each seen
    ``passes`` times.
    """

    members: list[MemberConfig] = Field(min_length=1)
    crops: int = Field(gt=0)
    passes: int = Field(8, gt=0)

    @field_validator("members")
    @classmethod
    def _all_said(cls, members: list[MemberConfig]) -> list[MemberConfig]:
        totals = [sum(shares) for shares in zip(*(x.shares for x in members), strict=True)]
        if not all(abs(total - 1) < 1e-6 for total in totals):
            given = ", ".join(f"{total:g}" for total in totals)
            raise ValueError(f"the members' shares come to {given}; each size needs 1 in all")
        return members


class StartConfig(Section):
    """First weights: ``weights`` (a V2 file, or the mean of several), else ``v1``, else
    ``imagenet``, else chance.
    """

    weights: Path | list[Path] | None = None
    grown: bool = Field(
        False,
        description="``weights`` are of a smaller V2, which the model computes at first; new "
        "channels of its last stage are V1's, ``v1``",
    )
    shared_steps: int = Field(
        0,
        ge=0,
        description="steps in which one stem for both learns what those of ``weights`` make, where "
        "the backbone has its own",
    )
    v1: Path | None = None
    imagenet: Path | None = None
    context_crops: int = Field(
        0, ge=0, description="crops whose maps of V1 the context learns from before the first step"
    )
    factored_crops: int = Field(
        0,
        ge=0,
        description="crops on which convolutions in two factors are fitted to whole ones, those of "
        "``weights``, whose last stage is V1's, ``v1``, if it has fewer channels, or all of V1's",
    )
    factored_steps: int = Field(
        0,
        ge=0,
        description="steps in which they then learn from ``weights`` of the same last stage",
    )
    twin_crops: int = Field(
        0,
        ge=0,
        description="crops, answered by V1 once, from which all behind the first stage learns "
        "before the first step",
    )
    detail_crops: int = Field(
        0,
        ge=0,
        description="crops by whose labels and ``detail_teachers`` the detail stem learns before "
        "the first step; ``weights`` may be of a V2 without one",
    )
    detail_passes: tuple[int, int, int] = Field(
        (6, 16, 8),
        description="how often it sees them: what reads the teachers' maps, the stem alone, and "
        "the stem with the labels",
    )
    detail_teachers: list[MapTeacherConfig] = []
    shortened: int = Field(
        0,
        ge=0,
        description="``weights`` are of a V2 with one way; by so many crops what is left of "
        "it beside a detail branch learns the maps of the whole",
    )
    shortened_passes: int = Field(8, gt=0, description="how often it sees them")
    joined_crops: int = Field(
        0,
        ge=0,
        description="crops by which the ends of both ways learn what the whole V2 and the branch "
        "say together",
    )
    joined_passes: int = Field(8, gt=0, description="how often they see them")
    joined_v1: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [],
        description="V1's share of that, at anchors of 16, 32, 64, 128, 256 and 512 pixels; V1 is "
        "``distillation.teacher``",
    )
    joined_way_rate: float = Field(
        0.0,
        ge=0,
        description="rate at which V1's way learns as well then, of the ends'; 0: it stands still",
    )
    council: CouncilConfig | None = None
    branch_crops: int = Field(
        0,
        ge=0,
        description="crops by which the detail branch learns ``branch_teacher``'s maps and labels",
    )
    branch_passes: tuple[int, int, int] = Field(
        (2, 2, 4), description="how often its units, the whole and its heads see them"
    )
    branch_teacher: MapTeacherConfig | None = None
    frozen_blocks: int = Field(
        0, ge=0, le=14, description="first blocks of the backbone to keep: 6, 6 and 2 a stage"
    )
    frozen_branch: bool = Field(
        False, description="the detail branch is kept up to stride 4, where its maps are largest"
    )
    frozen_statistics: bool = Field(
        False, description="batch normalisations learn by the statistics that inference uses"
    )

    @field_validator("joined_v1")
    @classmethod
    def _one_each(cls, shares: list[float]) -> list[float]:
        return one_of_each_size(shares) if shares else shares

    @property
    def fits_factors(self) -> bool:
        """Whether the first weights are fitted to those of a V2 without factors, or of fewer."""
        return bool(self.factored_crops or self.shared_steps or self.shortened)

    @property
    def weight_files(self) -> list[Path]:
        """``weights`` as a list, empty for none."""
        if self.weights is None:
            return []
        return self.weights if isinstance(self.weights, list) else [self.weights]


class DataConfig(Section):
    """What to train on. ``sizes`` are (crop side, share); a batch has as many pixels at each."""

    shards: Path = Path("data/train")
    more_shards: list[Path] = Field(
        [], description="further folders, such as `featherface data false-alarms` writes"
    )
    layout: Literal["shards", "wider"] = "shards"
    cache: Path = Path("cache")
    sizes: list[tuple[int, float]] = [(320, 1.0)]
    crop: CropSettings = CropSettings()
    source_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="chance of a photo of a source, over those of data.augmentation"
    )
    workers: int = Field(1, ge=0)
    validation_fraction: float = Field(0.04, ge=0, lt=1)
    face_score: float = Field(0.5, ge=0, le=1)


class LossConfig(Section):
    """Matching, losses and their weights."""

    matching: Literal["retinaface", "compensated", "dynamic"] = "dynamic"
    classification: Literal["quality_focal", "focal", "ohem"] = "quality_focal"
    box: Literal["eiou", "giou"] = "eiou"
    landmark: Literal["smooth_l1", "wing"] = "smooth_l1"
    least_negatives: int = Field(
        7, ge=1, description="OHEM: hardest negatives of a crop with few faces or none"
    )
    quality: float = Field(
        0.0,
        ge=0,
        le=1,
        description="OHEM: how far a face's score is to be its box's IoU, instead of 1",
    )
    quality_full: float = Field(
        1.0,
        gt=0.5,
        le=1,
        description="IoU from which on a box's quality is 1; it falls to 0 as far below 0.5",
    )
    quality_largest: float = Field(
        0.0, ge=0, description="largest anchor that quality holds for, pixels; 0: all"
    )
    class_largest: float = Field(
        0.0,
        ge=0,
        description="OHEM: largest anchor whose class the labels teach, pixels; 0: all",
    )
    crop_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="0: every face weighs as much in class losses, 1: every crop, crowded or not",
    )
    class_weight: float = Field(1.0, ge=0)
    box_weight: float = Field(2.0, ge=0)
    landmark_weight: float = Field(0.2, ge=0)


class DistillationConfig(Section):
    """Teacher and the weights of its terms.

    ``teacher``: weights of V1 or of a V2 (safetensors), or an ONNX file with the same outputs and
    anchors, which teaches without features.

    ``schedule`` lists (progress, features, outputs, labels): the weights are linear between the
    points. A teacher whose terms weigh nothing is not run.
    """

    teacher: Path | None = None
    adapters: bool = Field(
        True, description="without: neck and context are compared channel by channel"
    )
    temperature: float = Field(1.5, gt=0)
    features: float = Field(1.0, ge=0)
    logits: float = Field(1.0, ge=0)
    boxes: float = Field(0.5, ge=0)
    landmarks: float = Field(0.1, ge=0)
    lowers_labelled: bool = Field(
        True, description="the teacher may lower the score of a labelled face, doubtful or not"
    )
    least_anchor: float = Field(0, ge=0, description="the teacher answers at anchors from here on")
    schedule: list[tuple[float, float, float, float]] = [
        (0.0, 1.0, 0.5, 0.5),
        (0.3, 0.5, 1.0, 0.5),
        (0.7, 0.1, 0.5, 1.0),
        (1.0, 0.0, 0.0, 1.0),
    ]


class OptimiserConfig(Section):
    """AdamW, and Muon if asked for, with a linear warm-up and a cosine to ``final_rate``."""

    learning_rate: float = Field(1e-3, gt=0)
    backbone_rate: float = Field(
        1.0, gt=0, description="the backbone's learning rate as a share of the others'"
    )
    branch_rate: float = Field(1.0, gt=0, description="the same of the detail branch")
    matrix_rate: float = Field(
        0.0, ge=0, description="Muon's rate for 1x1 kernels, of AdamW's; 0: AdamW for all"
    )
    final_rate: float = Field(0.02, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.03, ge=0, le=1)
    clip_norm: float = Field(5.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)


class RunConfig(Section):
    """One experiment."""

    name: str = "v2"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    start: StartConfig = StartConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig = DistillationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    images: int = Field(
        200_000, ge=0, description="crops of the first size to see; 0: the run is its start"
    )
    batch: int = Field(16, gt=0, description="crops of the first size in a batch, a device")
    checkpoint_minutes: float = Field(3.0, gt=0)
    snapshots: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="progress at which the moving average is kept, as average_40.safetensors"
    )
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    output: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs go."""
        return self.output / self.name

    def fingerprint(self) -> str:
        """Eight hexadecimal digits that change with any value, but for what is kept on the way."""
        values = self.model_dump(mode="json", exclude={"snapshots"})
        for (*sections, name), unused in LATER_FIELDS.items():
            section = reduce(getitem, sections, values)
            if section[name] == unused:
                del section[name]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a run from YAML; ``overrides`` are ``section.key=value`` texts that win over it.

    A key ``base`` names another YAML file, relative to this one, that is read first.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or an impossible value.
    """
    values = read_values(Path(path))
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r}: write it as section.key=value")
        *sections, last = key.strip().split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(text)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None


def read_values(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, over its base's."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not a YAML file ({line})") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys at the top")
    base = values.pop("base", None)
    return merge(read_values(path.parent / base), values) if base else values


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
