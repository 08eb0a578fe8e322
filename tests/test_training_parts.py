"""Matching, losses, schedules and configuration: what each promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherface.anchors import make_anchors
from featherface.data.dataset import Batch
from featherface.errors import ConfigError
from featherface.models.outputs import HeadOutputs
from featherface.training.box_coding import (
    aligned_iou_loss,
    corners,
    decode_boxes,
    encode_landmarks,
    pairwise_iou,
)
from featherface.training.config import DistillationConfig, LossConfig, read_config
from featherface.training.distillation import FeatureAdapters, output_losses, twin_distance
from featherface.training.losses import (
    a_face,
    box_quality,
    focal_loss,
    hard_negative_losses,
    label_losses,
    match_batch,
)
from featherface.training.matching import (
    BACKGROUND,
    IGNORED,
    ignore_doubtful,
    match_compensated,
    match_dynamic,
    match_retinaface,
)
from featherface.training.schedules import learning_rate, term_weights

ANCHORS = torch.tensor(make_anchors(128, 128))
side = st.floats(4, 100)


def match_fixed(
    boxes: torch.Tensor,
    match: Callable[..., torch.Tensor] = match_retinaface,
    crops: torch.Tensor | None = None,
) -> torch.Tensor:
    """The matching of faces, all on one crop or on those that ``crops`` says."""
    crops = torch.zeros(len(boxes), dtype=torch.long) if crops is None else crops
    count = int(crops.max()) + 1 if len(crops) else 1
    return match(pairwise_iou(boxes, corners(ANCHORS)), boxes, crops, count)


def make_batch(boxes: torch.Tensor, landmarks: torch.Tensor) -> Batch:
    """One crop of sure faces."""
    crops = torch.zeros(len(boxes), dtype=torch.long)
    return Batch(torch.zeros(1, 3, 128, 128), boxes, torch.ones(len(boxes)), landmarks, crops)


@st.composite
def faces(draw: st.DrawFn) -> torch.Tensor:
    """One to five boxes in a picture of 128 pixels."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        width, height = draw(side), draw(side)
        x, y = draw(st.floats(0, 128 - width)), draw(st.floats(0, 128 - height))
        rows.append([x, y, x + width, y + height])
    return torch.tensor(rows)


@settings(deadline=None, max_examples=50)
@given(faces())
def test_retinaface_matches_by_overlap(boxes: torch.Tensor) -> None:
    matched = match_fixed(boxes)[0]
    iou = pairwise_iou(boxes, corners(ANCHORS))
    best = iou.max(0).values
    assert (matched[best >= 0.35] >= 0).all()
    forced = set(iou.argmax(1).tolist())
    others = [i for i in (matched >= 0).nonzero().flatten().tolist() if best[i] < 0.35]
    assert set(others) <= forced
    assert set(matched[list(forced)].tolist()) - {BACKGROUND}


@settings(deadline=None, max_examples=50)
@given(faces())
def test_compensated_matching_adds_to_retinafaces(boxes: torch.Tensor) -> None:
    fixed, matched = match_fixed(boxes)[0], match_fixed(boxes, match_compensated)[0]
    assert (matched[fixed >= 0] == fixed[fixed >= 0]).all()
    iou = pairwise_iou(boxes, corners(ANCHORS))
    added = ((matched >= 0) & (fixed < 0)).nonzero().flatten()
    assert (iou[matched[added], added] >= 0.1).all()
    lone = match_fixed(boxes[:1], match_compensated)[0]
    within_reach = int((iou[0] >= 0.1).sum())
    assert (lone == 0).sum() >= min(3, within_reach)


def test_compensated_matching_gives_a_tiny_face_its_neighbours() -> None:
    tiny = torch.tensor([[43.0, 43, 53, 53]])
    assert (match_fixed(tiny) == 0).sum() == 1
    chosen = ANCHORS[match_fixed(tiny, match_compensated)[0] == 0]
    assert len(chosen) == 3
    assert (chosen[:, 2] == 16).all()


@settings(deadline=None, max_examples=50)
@given(faces())
def test_dynamic_matching_gives_each_lone_face_an_anchor_near_it(boxes: torch.Tensor) -> None:
    boxes = boxes[:1]
    matched = match_dynamic(ANCHORS, boxes, torch.zeros(len(ANCHORS)), corners(ANCHORS))
    assert (matched >= BACKGROUND).all()
    chosen = ANCHORS[matched == 0]
    assert 1 <= len(chosen) <= 10
    centre = (boxes[0, :2] + boxes[0, 2:]) / 2
    assert ((chosen[:, :2] - centre).abs().amax(1) <= 1.5 * 32).all()


def test_matching_nothing_is_all_background() -> None:
    none = torch.zeros(0, 4)
    assert (match_fixed(none) == BACKGROUND).all()
    assert (match_fixed(none, match_compensated) == BACKGROUND).all()
    logits, predicted = torch.zeros(len(ANCHORS)), corners(ANCHORS)
    assert (match_dynamic(ANCHORS, none, logits, predicted) == BACKGROUND).all()


@pytest.mark.parametrize("match", [match_retinaface, match_compensated])
@settings(deadline=None, max_examples=25)
@given(st.lists(faces(), min_size=1, max_size=3))
def test_a_batch_matches_as_its_crops_do(
    match: Callable[..., torch.Tensor], pictures: list[torch.Tensor]
) -> None:
    counts = torch.tensor([len(boxes) for boxes in pictures])
    crops = torch.arange(len(pictures)).repeat_interleave(counts)
    together = match_fixed(torch.cat(pictures), match, crops)
    first = 0
    for matched, boxes in zip(together, pictures, strict=True):
        alone = match_fixed(boxes, match)[0]
        expected = torch.where(alone > BACKGROUND, alone + first, BACKGROUND)
        torch.testing.assert_close(matched, expected)
        first += len(boxes)


def test_the_smaller_of_two_faces_keeps_their_best_anchor() -> None:
    large = torch.tensor([36.0, 36, 60, 60])
    small = torch.tensor([42.0, 42, 54, 54])
    for boxes, index in ((torch.stack([large, small]), 1), (torch.stack([small, large]), 0)):
        matched = match_fixed(boxes)[0]
        at = (ANCHORS[:, 2] == 16) & ((ANCHORS[:, :2] - 44).abs().amax(1) == 0)
        assert matched[at].item() == index


def test_doubtful_faces_take_background_out_and_leave_faces() -> None:
    boxes = torch.tensor([[40.0, 40, 72, 72], [38.0, 38, 70, 70], [100, 100, 106, 106]])
    matched = match_fixed(boxes[:1])
    ignored = ignore_doubtful(
        matched,
        ANCHORS,
        boxes,
        pairwise_iou(boxes, corners(ANCHORS)),
        torch.zeros(3, dtype=torch.long),
        torch.tensor([False, True, True]),
    )
    assert (ignored[matched >= 0] == matched[matched >= 0]).all()
    assert (ignored == IGNORED).any()
    near_tiny = (ANCHORS[:, :2] - 103).abs().amax(1) < 6
    assert (ignored[0, near_tiny & (ANCHORS[:, 2] == 16)] == IGNORED).all()
    far = (ANCHORS[:, 0] < 20) & (ANCHORS[:, 1] > 100) & (ANCHORS[:, 2] <= 32)
    assert (ignored[0, far] == BACKGROUND).all()


@pytest.mark.parametrize("kind", ["eiou", "giou"])
def test_box_loss_is_zero_on_the_target_and_pulls_towards_it(kind: str) -> None:
    target = torch.tensor([[10.0, 10, 30, 40]])
    assert aligned_iou_loss(target, target, kind)[0].item() == pytest.approx(0, abs=1e-6)
    predicted = torch.tensor([[50.0, 50, 60, 60]], requires_grad=True)
    loss = aligned_iou_loss(predicted, target, kind)[0]
    loss.sum().backward()
    closer = aligned_iou_loss(predicted.detach() - 10 * predicted.grad.sign(), target, kind)[0]
    assert closer.item() < loss.item()


def test_perfect_outputs_have_the_least_loss() -> None:
    boxes = torch.tensor([[20.0, 20, 60, 64]])
    landmarks = torch.tensor([[[30.0, 35], [50, 35], [40, 45], [32, 55], [48, 55]]])
    shape = (1, len(ANCHORS))
    guess = HeadOutputs(torch.zeros(shape), torch.zeros(*shape, 4), torch.zeros(*shape, 10))
    targets = match_batch(guess, ANCHORS, make_batch(boxes, landmarks), "retinaface")
    before = label_losses(guess, ANCHORS, targets, LossConfig())
    face = targets.face[0]
    place = ANCHORS[face]
    perfect = HeadOutputs(
        torch.where(targets.face, 9.0, -9.0), torch.zeros(*shape, 4), torch.zeros(*shape, 10)
    )
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = boxes[:, 2:] - boxes[:, :2]
    perfect.box_deltas[0, face, :2] = (centre - place[:, :2]) / (0.1 * place[:, 2:])
    perfect.box_deltas[0, face, 2:] = (size / place[:, 2:]).log() / 0.2
    perfect.landmark_deltas[0, face] = encode_landmarks(landmarks.expand(len(place), 5, 2), place)
    torch.testing.assert_close(
        decode_boxes(perfect.box_deltas[0, face], place), boxes.expand(len(place), 4)
    )
    after = label_losses(perfect, ANCHORS, targets, LossConfig())
    for name, value in after.items():
        assert value.item() < 0.02 * before[name].item(), name


def test_missing_landmarks_cost_nothing_and_break_nothing() -> None:
    shape = (1, len(ANCHORS))
    outputs = HeadOutputs(
        torch.zeros(shape, requires_grad=True),
        torch.zeros(*shape, 4, requires_grad=True),
        torch.zeros(*shape, 10, requires_grad=True),
    )
    box = torch.tensor([[20.0, 20, 60, 64]])
    batch = make_batch(box, torch.full((1, 5, 2), float("nan")))
    targets = match_batch(outputs, ANCHORS, batch)
    losses = label_losses(outputs, ANCHORS, targets, LossConfig())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert losses["landmarks"].item() == 0
    assert torch.isfinite(outputs.landmark_deltas.grad).all()


def test_focal_loss_forgets_what_is_easy() -> None:
    logits, target = torch.tensor([4.0, 0.0]), torch.tensor([1.0, 1.0])
    easy, hard = focal_loss(logits, target)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert easy / hard < 0.01 * entropy[0] / entropy[1]


def test_hard_negatives_are_seven_a_face_and_the_hardest() -> None:
    logits = torch.linspace(-5, 5, 100)[None]
    face = torch.zeros(1, 100, dtype=torch.bool)
    face[0, 99] = True
    found = hard_negative_losses(logits, face, torch.ones_like(face))
    expected = torch.nn.functional.softplus(logits[0, 92:99]).sum()
    expected = expected + torch.nn.functional.softplus(-logits[0, 99])
    torch.testing.assert_close(found, expected[None])


def test_a_faces_score_is_taught_to_be_its_boxs_iou() -> None:
    """The class gradient of a face's anchor vanishes where its score is its box's IoU."""
    box = torch.tensor([[20.0, 20, 60, 64]])
    targets = match_batch(
        None, ANCHORS, make_batch(box, torch.full((1, 5, 2), float("nan"))), "retinaface"
    )
    anchor = int(targets.face[0].nonzero()[0])
    shape = (1, len(ANCHORS))
    deltas = torch.zeros(*shape, 4)
    iou = float(pairwise_iou(corners(ANCHORS[[anchor]]), box))
    size = float(ANCHORS[anchor, 2])
    for quality, largest, wanted in (
        (0.0, 0.0, 1.0),
        (0.5, 0.0, (1 + iou) / 2),
        (1.0, 0.0, iou),
        (1.0, size, iou),
        (1.0, size - 1, 1.0),
    ):
        slopes = []
        for score in (wanted - 0.05, min(wanted + 0.05, 0.999)):
            logits = torch.full(shape, torch.logit(torch.tensor(score)).item(), requires_grad=True)
            config = LossConfig(classification="ohem", quality=quality, quality_largest=largest)
            outputs = HeadOutputs(logits, deltas, torch.zeros(*shape, 10))
            label_losses(outputs, ANCHORS, targets, config)["class"].backward()
            assert logits.grad is not None
            slopes.append(float(logits.grad[0, anchor]))
        assert slopes[0] < 0
        assert (slopes[1] > 0) == (wanted < 1)


def test_a_boxs_quality_is_a_slope_about_half() -> None:
    iou = torch.tensor([0.0, 0.39, 0.45, 0.5, 0.55, 0.61, 1.0])
    torch.testing.assert_close(box_quality(iou, 1.0), iou)
    wanted = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    torch.testing.assert_close(box_quality(iou, 0.6), wanted)


def test_labels_leave_the_class_of_larger_anchors_alone() -> None:
    """With ``class_largest`` smaller anchors alone learn a class; all learn boxes."""
    box = torch.tensor([[20.0, 20, 60, 64]])
    targets = match_batch(
        None, ANCHORS, make_batch(box, torch.full((1, 5, 2), float("nan"))), "retinaface"
    )
    shape = (1, len(ANCHORS))
    logits = torch.zeros(shape, requires_grad=True)
    deltas = torch.zeros(*shape, 4, requires_grad=True)
    config = LossConfig(classification="ohem", class_largest=16, least_negatives=shape[1])
    outputs = HeadOutputs(logits, deltas, torch.zeros(*shape, 10))
    losses = label_losses(outputs, ANCHORS, targets, config)
    (losses["class"] + losses["box"]).backward()
    assert logits.grad is not None
    assert deltas.grad is not None
    small = ANCHORS[:, 2] <= 16
    assert (logits.grad[0, small] != 0).all()
    assert (logits.grad[0, ~small] == 0).all()
    assert (deltas.grad[0, ~small] != 0).any()


def test_a_face_with_a_box_beside_it_is_no_hard_negative() -> None:
    logits = torch.full((1, 20), -9.0)
    logits[0, 0] = 4.0
    face = torch.zeros(1, 20, dtype=torch.bool)
    face[0, 0] = True
    found = hard_negative_losses(logits, face, torch.ones_like(face), 7, torch.zeros(1, 20))
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(found, softplus(logits[0, 0])[None] + 7 * softplus(logits[0, 1]))


def test_a_crop_without_faces_gives_its_hardest_negatives() -> None:
    logits = torch.stack([torch.linspace(-5, 5, 100), torch.linspace(-5, 5, 100)])
    face = torch.zeros(2, 100, dtype=torch.bool)
    counted = torch.ones_like(face)
    counted[1] = False
    for least in (7, 64):
        found = hard_negative_losses(logits, face, counted, least)
        expected = torch.nn.functional.softplus(logits[0, -least:]).sum()
        torch.testing.assert_close(found, torch.stack([expected, torch.tensor(0.0)]))


def test_balance_gives_crops_their_say() -> None:
    """An alarm in a crop with one face, beside a crowd of 320: its share of all losses."""
    faces = torch.tensor([320, 1])
    shares = []
    for balance in (0.0, 0.5, 1.0):
        losses = torch.ones(2, requires_grad=True)
        a_face(losses, faces, balance).backward()
        assert losses.grad is not None
        shares.append(float(losses.grad[1] / losses.grad[0]))
    assert shares == pytest.approx([1.0, 40**0.5, 40.0])
    assert float(a_face(8.0 * torch.tensor([320.0, 8.0]), torch.tensor([320, 8]), 0.5)) == 8.0
    assert float(a_face(torch.zeros(2), torch.zeros(2), 0.0)) == 0.0


def test_the_teachers_answers_are_balanced_as_the_labels_are() -> None:
    anchors = torch.tensor(make_anchors(64, 64))
    margins = torch.stack([torch.full((len(anchors),), m) for m in (4.0, -20.0)])
    zeros = torch.zeros(2, len(anchors), 14)
    teacher = HeadOutputs(
        torch.stack([torch.zeros_like(margins), margins], -1), zeros[..., :4], zeros[..., 4:]
    )
    slopes = []
    for balance in (0.0, 0.5):
        logits = torch.zeros(2, len(anchors), requires_grad=True)
        student = HeadOutputs(logits, zeros[..., :4], zeros[..., 4:])
        config = DistillationConfig(temperature=1.0)
        losses = output_losses(student, teacher, anchors, config, crop_balance=balance)
        slopes.append(torch.autograd.grad(losses["teacher_logits"], logits)[0][:, 0].abs())
    crowd, empty = slopes[1] / slopes[0]
    teacher_faces = len(anchors) * torch.tensor(4.0).sigmoid()
    torch.testing.assert_close(empty / crowd, (teacher_faces / 8).sqrt())


def test_schedules_meet_their_points() -> None:
    assert learning_rate(0.03, 1e-3, 0.03, 0.02) == pytest.approx(1e-3)
    assert learning_rate(1.0, 1e-3, 0.03, 0.02) == pytest.approx(2e-5)
    schedule = [(0.0, 1.0, 0.5, 0.0), (0.5, 0.0, 1.0, 0.5), (1.0, 0.0, 0.0, 1.0)]
    assert term_weights(0.0, schedule) == (1.0, 0.5, 0.0)
    assert term_weights(0.25, schedule) == pytest.approx((0.5, 0.75, 0.25))
    assert term_weights(1.0, schedule) == pytest.approx((0.0, 0.0, 1.0))


def test_a_student_that_equals_its_teacher_pays_little() -> None:
    torch.manual_seed(0)
    teacher = HeadOutputs(
        torch.randn(1, len(ANCHORS), 2),
        torch.randn(1, len(ANCHORS), 4),
        torch.randn(1, len(ANCHORS), 10),
    )
    from featherface.training.config import DistillationConfig

    margin = teacher.logits[..., 1] - teacher.logits[..., 0]
    same = HeadOutputs(margin, teacher.box_deltas, teacher.landmark_deltas)
    other = HeadOutputs(-margin, teacher.box_deltas + 1, teacher.landmark_deltas + 1)
    low = output_losses(same, teacher, ANCHORS, DistillationConfig())
    high = output_losses(other, teacher, ANCHORS, DistillationConfig())
    for name in low:
        assert low[name].item() == pytest.approx(0, abs=1e-5)
        assert high[name].item() > 0.01


def test_a_teacher_need_not_lower_the_score_of_a_labelled_face() -> None:
    from featherface.training.config import DistillationConfig

    flat = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 10)
    unsure, sure = torch.full((1, len(ANCHORS)), -3.0), torch.full((1, len(ANCHORS)), 3.0)
    labelled = torch.zeros(1, len(ANCHORS), dtype=torch.bool)
    labelled[0, :5] = True

    def gradient(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        logits = student.clone().requires_grad_()
        answers = HeadOutputs(torch.stack([torch.zeros_like(teacher), teacher], -1), *flat)
        config = DistillationConfig()
        losses = output_losses(HeadOutputs(logits, *flat), answers, ANCHORS, config, labelled)
        (slope,) = torch.autograd.grad(losses["teacher_logits"], logits)
        return slope[0]

    lowering, raising = gradient(sure, unsure), gradient(unsure, sure)
    assert (lowering[:5] == 0).all()
    assert (lowering[5:] > 0).all()
    assert (raising < 0).all()


def test_a_teacher_may_keep_to_large_anchors() -> None:
    from featherface.training.config import DistillationConfig

    logits = torch.zeros(1, len(ANCHORS), requires_grad=True)
    flat = torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 10)
    answers = HeadOutputs(torch.tensor([-3.0, 3.0]).expand(1, len(ANCHORS), 2), *flat)
    losses = output_losses(
        HeadOutputs(logits, *flat), answers, ANCHORS, DistillationConfig(least_anchor=32)
    )
    (slope,) = torch.autograd.grad(losses["teacher_logits"], logits)
    assert ((slope[0] < 0) == (ANCHORS[:, 2] >= 32)).all()


def test_twins_are_compared_in_the_teachers_units() -> None:
    torch.manual_seed(0)
    quiet, loud = 1.0, 50.0
    teacher = torch.randn(4, 2, 32, 32) * torch.tensor([quiet, loud])[None, :, None, None]
    assert twin_distance([teacher], [teacher]).item() == 0
    off_by_one_unit = [teacher.clone() for _ in range(2)]
    off_by_one_unit[0][:, 0] += quiet
    off_by_one_unit[1][:, 1] += loud
    distances = [twin_distance([student], [teacher]).item() for student in off_by_one_unit]
    assert distances[1] == pytest.approx(0.5, rel=0.1)  # one of two channels
    assert 0 < distances[0] < 0.1  # a channel that hardly moves counts for little


def test_adapters_compare_patterns_not_scales() -> None:
    torch.manual_seed(0)
    adapters = FeatureAdapters([4], [4])
    x = torch.randn(2, 4, 8, 8)
    assert adapters([x], [3 * x + 5]).item() == pytest.approx(0, abs=1e-3)


def test_config_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nlos:\n  box: giou\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: los"):
        read_config(path)
    path.write_text("loss:\n  box: round\n")
    with pytest.raises(ConfigError, match=r"loss\.box"):
        read_config(path)
    path.write_text("[1, 2")
    with pytest.raises(ConfigError, match="YAML"):
        read_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "absent.yaml")


def test_config_holds_only_its_differences(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: base\nbatch: 4\nloss:\n  box: giou\n  box_weight: 3\n"
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\nname: run\nloss:\n  box: eiou\n")
    config = read_config(tmp_path / "run.yaml", ["images=64", "optimiser.ema=0.9"])
    assert (config.name, config.batch, config.images) == ("run", 4, 64)
    assert (config.loss.box, config.loss.box_weight, config.optimiser.ema) == ("eiou", 3, 0.9)
    assert config.fingerprint() != read_config(tmp_path / "base.yaml").fingerprint()
