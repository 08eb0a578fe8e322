"""FeatherFace V2: at most 250,000 parameters, no operator that a phone or a browser lacks.

    image [B, 3, H, W]  RGB, 0..255, H and W multiples of 32
      backbone          MobileNetV1 x0.25, third stage cut from 256 to 80 channels, it and the
                        second of rank 38 to 44
      laterals          1x1 convolutions to 64 channels at strides 8, 16, 32, second ones on them
      light BiFPN x3    top-down and bottom-up, weighted
      CBAM-lite         one channel gate, one spatial gate
      detail branch     a second way from the image, YuNet-n's; its map of stride 8 is added here
      light SSH         two separable blocks a level, of rank 32 and 24
      grouped heads     one 1x1 convolution a level for class, box and landmarks; those of strides
                        8 and 16 read both ways
    HeadOutputs         logits [B, A], box deltas [B, A, 4], landmark deltas [B, A, 10]

Follows FeatherFace (Kim, Jung, Kim, Electronics 2025, 14(3), 517), whose anchors it keeps, so that
every logit has its twin in V1. The input is not normalised: the first batch normalisation absorbs
mean and scale, and an 8-bit image is an 8-bit network's input as it is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from featherface.anchors import STRIDES
from featherface.models.backbone import MobileNetV1
from featherface.models.modules.cbam_lite import CBAMLite
from featherface.models.modules.channel_permutation import ShuffledPointwise
from featherface.models.modules.detail_branch import BranchMaps, DetailBranch
from featherface.models.modules.detail_stem import DetailStem
from featherface.models.modules.factored_pointwise import pointwise
from featherface.models.modules.folded_bifpn import fold_edges
from featherface.models.modules.folded_norms import fold_norms
from featherface.models.modules.grouped_heads import GroupedHeads
from featherface.models.modules.grouped_ssh import GroupedSSH
from featherface.models.modules.interpolative_pointwise import replace_factors
from featherface.models.modules.light_bifpn import LightBiFPN
from featherface.models.modules.light_ssh import LightSSH
from featherface.models.modules.ssh import NEGATIVE_SLOPE
from featherface.models.outputs import FeatureMaps, HeadOutputs

Detail = Tensor | BranchMaps | None


class FeatherFaceV2(nn.Module):
    """The student; the package ships ``stage2_rank=44, entry_rank=38, stage3_rank=42,
    context_rank=32, coarse_context_rank=24, detail_branch=True, branch_strides=2,
    interpolative=True, folded_norms=True``.

    Without arguments it is the V2 that most of the runs teach.

    A rank is that of the two factors in place of a 1x1 convolution; 0 leaves it whole.
    ``interpolative`` writes them with fewer values, in a basis of their outputs. ``folded_norms``
    leaves a bias of each batch normalisation, for a V2 whose statistics stand still anyway.
    ``detail_channels`` are those of a second stem at stride 4, for tiny faces; 0: none.
    ``shared_stem`` lets the backbone begin at that stem's map of stride 4, not at the image.
    ``detail_branch`` is a second detector in their place, which the heads of stride 8 hear as well,
    with ``branch_strides`` 2 those of stride 16, too. ``coarse_context_rank`` is that of the
    context at strides 16 and 32 where it is not ``context_rank``.
    ``negative_slope`` is that of the activations of backbone and context, as in V1.
    ``weighted=False`` and ``light_ssh=0`` with 64 channels in the last stage are the grouped V2:
    plain sums, grouped SSH in ``ssh_groups``, a tower that the levels share in ``head_groups``.
    """

    def __init__(
        self,
        stage3_channels: int = 80,
        channels: int = 64,
        fusions: int = 3,
        ssh_groups: int = 4,
        head_groups: int = 2,
        attention: bool = True,
        weighted: bool = True,
        light_ssh: int = 2,
        stage2_rank: int = 0,
        stage3_rank: int = 0,
        lateral_rank: int = 0,
        context_rank: int = 0,
        detail_channels: int = 0,
        shared_stem: bool = False,
        negative_slope: float = NEGATIVE_SLOPE,
        detail_branch: bool = False,
        entry_rank: int = 0,
        interpolative: bool = False,
        branch_strides: int = 1,
        coarse_context_rank: int = 0,
        folded_norms: bool = False,
    ) -> None:
        super().__init__()

        def lateral(inputs: int, rank: int = 0) -> nn.Sequential:
            return nn.Sequential(pointwise(inputs, channels, rank), nn.BatchNorm2d(channels))

        self.backbone = MobileNetV1(
            stage3_channels,
            negative_slope,
            stage2_rank=stage2_rank,
            stage3_rank=stage3_rank,
            entry_rank=entry_rank,
            stem_channels=detail_channels if shared_stem else 0,
        )
        self.laterals = nn.ModuleList(
            [lateral(64), lateral(128), lateral(stage3_channels, lateral_rank)]
        )
        self.second_laterals = nn.ModuleList(
            lateral(channels) for _ in (STRIDES[1:] if weighted else ())
        )
        self.fusions = nn.ModuleList(LightBiFPN(channels, weighted) for _ in range(fusions))
        self.attention = nn.ModuleList(
            CBAMLite(channels) if attention else nn.Identity() for _ in STRIDES
        )
        self.context = nn.ModuleList(
            LightSSH(channels, light_ssh, rank, negative_slope)
            if light_ssh
            else GroupedSSH(channels, ssh_groups)
            for rank in (context_rank, *[coarse_context_rank or context_rank] * len(STRIDES[1:]))
        )
        spoken = branch_strides if detail_branch else 0
        ways = [2 if place < spoken else 1 for place, _ in enumerate(STRIDES)]
        self.heads = GroupedHeads([n * channels for n in ways], None if light_ssh else head_groups)
        self.branch = DetailBranch(channels, branch_strides) if detail_branch else None
        self.detail = DetailStem(detail_channels, channels) if detail_channels else None
        self.shared_stem = shared_stem and self.detail is not None
        self.interpolative = interpolative
        if interpolative:  # but for a lateral, whose channels the fusion sums in their order
            replace_factors(self.backbone, self.context, self.branch)
        self.folded_norms = folded_norms
        if folded_norms:
            fold_norms(self)

    @property
    def has_detail(self) -> bool:
        """Whether a second way from the image adds to the neck at stride 8."""
        return self.detail is not None or self.branch is not None

    def both_laterals(self, backbone: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What enters the way down, and what the way up adds at strides 16 and 32."""
        maps = [x.relu() for x in backbone]
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        again = [lateral(x) for lateral, x in zip(self.second_laterals, levels[1:], strict=False)]
        return levels, again

    def fused(self, levels: list[Tensor], again: list[Tensor]) -> list[Tensor]:
        """The neck, of what the laterals and the second laterals gave."""
        return [x.relu() for x in self.gated(levels, again)]

    def gated(self, levels: list[Tensor], again: list[Tensor]) -> list[Tensor]:
        """The same before its ReLU, where the detail stem adds to it."""
        for fusion in self.fusions:
            levels, again = fusion(levels, again), []
        return [gate(x) for gate, x in zip(self.attention, levels, strict=True)]

    def behind_neck(self, neck: list[Tensor]) -> tuple[HeadOutputs, list[Tensor]]:
        """Head outputs, and what the heads read."""
        towers = self.heads.towers(self.contexts(neck))
        return self.heads.predict(towers), towers

    def contexts(self, neck: list[Tensor]) -> list[Tensor]:
        """What the context makes of the neck."""
        return [ssh(x) for ssh, x in zip(self.context, neck, strict=True)]

    def forward_with_features(self, image: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """Head outputs and the maps that distillation compares with V1's.

        V1 has no detail stem: the neck's map at stride 8 is told without what that adds to it.
        """
        return self.behind_backbone(*self.seen(image))

    def seen(self, image: Tensor) -> tuple[list[Tensor], Detail]:
        """The backbone's three maps, and what the second way from the image gave if there is one.

        A detail stem gives what it adds at stride 8, a detail branch that and maps of its own.
        """
        if self.branch is not None:
            return self.backbone(image), self.branch(image)
        if self.detail is None:
            return self.backbone(image), None
        if self.shared_stem:
            stride_4, detail = self.detail.on_the_way(image)
            return self.backbone(stride_4), detail
        return self.backbone(image), self.detail(image)

    def behind_first_stage(self, stride_8: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """The same, from the first stage's map ``[B, 64, H / 8, W / 8]``; without detail stem."""
        return self.behind_backbone(self.backbone.behind_first_stage(stride_8))

    def behind_backbone(
        self, backbone: list[Tensor], detail: Detail = None
    ) -> tuple[HeadOutputs, FeatureMaps]:
        """The same, from the backbone's three maps and what the second way gave."""
        if isinstance(detail, BranchMaps):
            return self.in_two_ways(backbone, detail)
        neck, read = self.necks(backbone, detail)
        outputs, towers = self.behind_neck(read)
        return outputs, FeatureMaps(list(backbone), neck, towers)

    def necks(
        self, backbone: list[Tensor], detail: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The neck as V1 has it, and what the context reads: the same and what a stem adds."""
        gated = self.gated(*self.both_laterals(backbone))
        neck = [x.relu() for x in gated]
        return neck, neck if detail is None else [(gated[0] + detail).relu(), *neck[1:]]

    def in_two_ways(
        self, backbone: list[Tensor], branch: BranchMaps
    ) -> tuple[HeadOutputs, FeatureMaps]:
        """The same with a detail branch: where that speaks the heads read both ways.

        The maps are those of the way that V1 has as well.
        """
        neck, read = self.necks(backbone, branch.detail)
        context = self.contexts(read)
        outputs = self.heads.predict(read_by_heads(context, branch.towers))
        return outputs, FeatureMaps(list(backbone), neck, context)

    def forward(self, image: Tensor) -> HeadOutputs:
        return self.forward_with_features(image)[0]

    def deployed(self) -> FeatherFaceV2:
        """A copy in evaluation mode whose shuffles are folded into dense 1x1 convolutions, whose
        edge weights and batch normalisations into those around them; activations without a slope
        are ReLUs.
        """
        model = copy.deepcopy(self).eval()
        fold_norms(model)
        model.fusions = fold_edges(model.laterals, model.second_laterals, model.fusions)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ShuffledPointwise):
                    setattr(module, name, child.folded())
                elif isinstance(child, nn.LeakyReLU) and not child.negative_slope:
                    setattr(module, name, nn.ReLU(inplace=True))
        return model


def read_by_heads(context: list[Tensor], towers: list[Tensor]) -> list[Tensor]:
    """Both ways' maps side by side where the branch speaks, else those of V1's way."""
    both = [torch.cat(maps, 1) for maps in zip(context, towers, strict=False)]
    return [*both, *context[len(both) :]]


def parameter_count(model: nn.Module) -> int:
    """Learned values, shared ones counted once."""
    return sum(p.numel() for p in model.parameters())
