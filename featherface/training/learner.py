"""The student with what only training needs: its teacher, its adapters, the losses of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherface.anchors import make_anchors
from featherface.data.dataset import Batch
from featherface.errors import ConfigError
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import FeatureMaps, HeadOutputs
from featherface.training.config import RunConfig
from featherface.training.distillation import (
    FeatureAdapters,
    compared_maps,
    output_losses,
    teacher_input,
    twin_distance,
    twin_maps,
    with_two_logits,
)
from featherface.training.half_precision import forward_pass
from featherface.training.losses import (
    Targets,
    anchors_up_to,
    label_losses,
    match_batch,
)
from featherface.training.onnx_teacher import OnnxTeacher
from featherface.training.schedules import TermWeights, term_weights
from featherface.training.twin_teacher import TwinTeacher

Teacher = FeatherFaceV1 | FeatherFaceV2 | TwinTeacher | OnnxTeacher
Taught = tuple[HeadOutputs, FeatureMaps | None]


class Learner(nn.Module):
    """Student, teacher and the losses of one batch."""

    def __init__(
        self,
        student: FeatherFaceV2 | BaselineV1,
        config: RunConfig,
        teacher: Teacher | None,
    ) -> None:
        super().__init__()
        self.student, self.config = student, config
        self.anchors: dict[tuple[int, ...], Tensor] = {}
        self.adapters: FeatureAdapters | None = None
        # Kept out of the module tree: no gradient, no average, no checkpoint.
        self.teacher = [teacher] if teacher is not None else []
        self.teacher_has_detail = has_detail(teacher)
        if self.teacher and config.distillation.adapters and has_features(config):
            parameter = next(student.parameters())
            image = torch.zeros(1, 3, 64, 64, device=parameter.device)
            taught = self.ask_teacher(image, maps=True)[1]
            if taught is not None:
                with torch.no_grad():
                    shown = student.eval().forward_with_features(image)[1]
                self.adapters = FeatureAdapters(
                    [x.shape[1] for x in compared_maps(shown)],
                    [x.shape[1] for x in compared_maps(taught)],
                )

    def forward(
        self, images: Tensor, labels: Batch | Targets, weights: TermWeights
    ) -> dict[str, Tensor]:
        """Loss terms by name; their sum is the loss.

        Args:
            images: RGB 0..255 ``[B, 3, S, S]``, uint8 or float.
            labels: the faces of the batch, or what :meth:`match` made of them.
            weights: of features, outputs and labels. Terms that weigh 0 are not computed; a tensor
                is a weight that is not known yet, and its terms are.
        """
        config = self.config
        # Channels last: a step is an eighth faster on a CPU (oneDNN), and tensor cores want it.
        images = images.float().contiguous(memory_format=torch.channels_last)
        with forward_pass(config, images.device.type):
            prediction, maps = self.student.forward_with_features(images)
        prediction = HeadOutputs(*(x.float() for x in prediction))
        taught = None
        if is_asked(weights.features) or is_asked(weights.outputs):
            taught = self.ask_teacher(images, maps=is_asked(weights.features))
        return self.compare(prediction, maps, self.anchors_of(images), labels, taught, weights)

    def compare(
        self,
        prediction: HeadOutputs,
        maps: FeatureMaps,
        anchors: Tensor,
        labels: Batch | Targets,
        taught: Taught | None,
        weights: TermWeights,
    ) -> dict[str, Tensor]:
        """What :meth:`forward` returns, from what the student made and what its teacher did."""
        config = self.config
        terms: dict[str, Tensor] = {}
        labelled = None
        if is_asked(weights.labels):
            targets = labels if isinstance(labels, Targets) else self.match(labels, prediction)
            for name, value in label_losses(prediction, anchors, targets, config.loss).items():
                terms[name] = weights.labels * value
            if not config.distillation.lowers_labelled:
                labelled = targets.face | ~targets.counted
                labelled &= anchors_up_to(anchors, config.loss.class_largest)
        if taught is not None:
            outputs, taught_maps = taught
            if is_asked(weights.outputs):
                for name, value in output_losses(
                    prediction,
                    outputs,
                    anchors,
                    config.distillation,
                    labelled,
                    config.loss.crop_balance,
                ).items():
                    terms[name] = weights.outputs * value
            if is_asked(weights.features) and taught_maps is not None:
                if self.adapters is not None:
                    distance = self.adapters(compared_maps(maps), compared_maps(taught_maps))
                else:
                    detail = has_detail(self.student) and not self.teacher_has_detail
                    ours, theirs = twin_maps(maps, detail), twin_maps(taught_maps, detail)
                    distance = twin_distance(ours, theirs)
                terms["features"] = weights.features * (config.distillation.features * distance)
        return terms

    def match(self, batch: Batch, prediction: HeadOutputs | None = None) -> Targets:
        """What each anchor should say; only the dynamic matching asks for the ``prediction``."""
        config = self.config
        anchors = self.anchors_of(batch.images)
        return match_batch(prediction, anchors, batch, config.loss.matching, config.data.face_score)

    def finest_loss(self, labels: Batch, outputs: HeadOutputs) -> Tensor:
        """The labels' losses, summed, at the first anchors, those that ``outputs`` are of."""
        count = outputs.logits.shape[1]
        targets = Targets(*(x[:, :count] for x in vars(self.match(labels)).values()))
        anchors = self.anchors_of(labels.images)[:count]
        terms = label_losses(outputs, anchors, targets, self.config.loss)
        return torch.stack(list(terms.values())).sum()

    def anchors_of(self, images: Tensor) -> Tensor:
        """The anchors ``[A, 4]`` of images of this size, copied to their device once."""
        size = tuple(images.shape[2:])
        if size not in self.anchors:
            self.anchors[size] = torch.tensor(make_anchors(*size), device=images.device)
        return self.anchors[size]

    def term_weights(self, progress: float) -> TermWeights:
        """The weights at ``progress`` (0 to 1) of the run; without a teacher labels alone count."""
        if not self.teacher:
            return TermWeights(0.0, 0.0, 1.0)
        return term_weights(progress, self.config.distillation.schedule)

    def can_be_graphed(self) -> bool:
        """Whether a step is the same work for every batch of a size: no prediction is matched, and
        no other library asked.
        """
        teacher = self.teacher[0] if self.teacher else None
        dynamic = self.config.loss.matching == "dynamic"
        return not dynamic and not isinstance(teacher, TwinTeacher | OnnxTeacher)

    @torch.no_grad()
    def ask_teacher(self, images: Tensor, maps: bool) -> Taught:
        """The teacher's outputs for RGB ``images``, and its maps where they are wanted."""
        teacher = self.teacher[0]
        if isinstance(teacher, OnnxTeacher):
            return teacher(images), None
        if isinstance(teacher, TwinTeacher):
            return teacher(images, maps)
        if isinstance(teacher, FeatherFaceV2):
            outputs, shown = teacher.forward_with_features(images)
            return with_two_logits(outputs), shown
        return teacher.forward_with_features(teacher_input(images))

    def maps_of_teacher(self, images: Tensor) -> FeatureMaps:
        """The teacher's maps for RGB ``images``.

        Raises:
            ConfigError: it shows none.
        """
        return self.shown_by_teacher("start.context_crops", images)[1]

    def shown_by_teacher(self, asks: str, images: Tensor) -> tuple[HeadOutputs, FeatureMaps]:
        """The teacher's outputs and maps for RGB ``images``, which the setting ``asks`` for.

        Raises:
            ConfigError: it shows no maps.
        """
        outputs, maps = self.ask_teacher(images, maps=True) if self.teacher else (None, None)
        if outputs is None or maps is None:
            raise ConfigError(
                f"{asks}: needs V1's weights as distillation.teacher, whose maps are learned from"
            )
        return outputs, maps


def refuse_dynamic(config: RunConfig, asks: str, answering: str) -> None:
    """For a setting that ``asks`` for labels where only the anchors of some strides answer.

    Raises:
        ConfigError: the matching is dynamic.
    """
    if config.loss.matching == "dynamic":
        raise ConfigError(
            f"{asks}: loss.matching: dynamic asks anchors of all strides, and only "
            f"those of {answering} answer here; take compensated or retinaface"
        )


def has_detail(model: object) -> bool:
    """Whether ``model`` is a V2 that looks at the image for tiny faces as well."""
    if isinstance(model, TwinTeacher):
        return model.has_detail
    return isinstance(model, FeatherFaceV2) and model.has_detail


def is_asked(weight: float | Tensor) -> bool:
    """Whether a term has to be computed."""
    return isinstance(weight, Tensor) or weight > 0


def has_features(config: RunConfig) -> bool:
    """Whether the schedule asks for the teacher's features at any point."""
    return any(features > 0 for _, features, _, _ in config.distillation.schedule)
