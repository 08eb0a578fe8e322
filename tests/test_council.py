"""Detectors that teach together: each at the student's anchors, mixed by share, then learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from lightning_fabric import Fabric
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from test_featherface_v2 import TWO_WAYS, unsettled
from test_training_loop import make_config, make_small_run
from torch import Tensor

from featherface.anchors import STRIDES, decode_boxes, decode_landmarks, make_anchors
from featherface.data.dataset import Batch
from featherface.data.shards import PhotoStore
from featherface.errors import WeightsError
from featherface.export.onnx_file import export_onnx
from featherface.faces import MIRRORED_LANDMARKS
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.modules.grouped_heads import outputs_of
from featherface.models.outputs import HeadOutputs
from featherface.models.pretrained_v2 import load_v2
from featherface.models.weight_files import save_weights
from featherface.training import council_start
from featherface.training.answers import mirrored
from featherface.training.config import CouncilConfig, MemberConfig, RunConfig
from featherface.training.council import Member, open_member, said_together
from featherface.training.council_start import crops_a_step, learn_from_council, masked
from featherface.training.loop import train
from featherface.training.scrfd_teacher import ScrfdTeacher

FAIR = [0.5] * 6
LEVELS = [slice(0, 192), slice(192, 240), slice(240, 252)]  # anchors of 64x96 pixels, by stride


@pytest.fixture(scope="module")
def corner_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine outputs as SCRFD's: a cell's score is the red of the pixel at its corner."""
    nodes, constants = [], {}

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(name: str, values: list[int]) -> str:
        constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    scale = numpy_helper.from_array(np.float32(8.0), "scale")
    outputs: dict[str, list[str]] = {"score": [], "sides": [], "points": []}
    for stride in STRIDES:
        bounds = (
            constant(f"start_{stride}", [0, 0, 0]),
            constant(f"end_{stride}", [1, 2**31, 2**31]),
            constant("axes", [1, 2, 3]),
            constant(f"steps_{stride}", [1, stride, stride]),
        )
        corner = add("Slice", ["image", *bounds], f"corner_{stride}")
        column = add("Reshape", [corner, constant("column", [-1, 1])], f"column_{stride}")
        both = add("Concat", [column, column], f"both_{stride}", axis=1)
        logit = add("Reshape", [both, "column"], f"anchors_{stride}")
        steep = add("Mul", [logit, "scale"], f"steep_{stride}")
        outputs["score"].append(add("Sigmoid", [steep], f"score_{stride}"))
        nothing = add("Sub", [logit, logit], f"nothing_{stride}")
        one = add("Exp", [nothing], f"one_{stride}")
        outputs["sides"].append(add("Concat", [one] * 4, f"sides_{stride}", axis=1))
        outputs["points"].append(add("Concat", [nothing] * 10, f"points_{stride}", axis=1))
    graph = helper.make_graph(
        nodes,
        "corners",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None])
            for names in outputs.values()
            for name in names
        ],
        [*constants.values(), scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("peers") / "corners.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("level", range(3))
def test_scrfd_answers_where_v2_has_its_anchors(corner_detector: Path, level: int) -> None:
    stride = STRIDES[level]
    image = torch.zeros(1, 3, 64, 96)
    row, column = 1, 2
    image[0, 0, row * stride + stride // 2, column * stride + stride // 2] = 255.0
    found = ScrfdTeacher(corner_detector)(image)
    anchors = make_anchors(64, 96)
    first = LEVELS[level].start + 2 * (row * (96 // stride) + column)
    of_stride = found.logits[0, LEVELS[level], 1] > 0
    assert torch.nonzero(of_stride).flatten().tolist() == [
        first - LEVELS[level].start,
        first - LEVELS[level].start + 1,
    ]
    centre = np.array([(column + 0.5) * stride, (row + 0.5) * stride])
    boxes = decode_boxes(found.box_deltas[0].numpy(), anchors)[first : first + 2]
    expected = np.tile(np.concatenate([centre - stride, centre + stride]), (2, 1))
    np.testing.assert_allclose(boxes, expected, atol=1e-4)
    landmarks = decode_landmarks(found.landmark_deltas[0].numpy(), anchors)[first]
    np.testing.assert_allclose(landmarks, np.tile(centre, (5, 1)), atol=1e-4)


def test_strides_that_nobody_asks_for_say_nothing(corner_detector: Path) -> None:
    image = torch.full((2, 3, 64, 96), 255.0)
    member = open_member(
        MemberConfig(path=corner_detector, outputs="scrfd", shares=[0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    )
    logits = member.ask(image).logits[..., 1]
    assert logits.shape == (2, 252)
    assert (logits[:, LEVELS[1]] > 0).any()
    assert (logits[:, LEVELS[0]] < -10).all()
    assert (logits[:, LEVELS[2]] < -10).all()


def test_files_of_others_are_refused(tmp_path: Path, corner_detector: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    export_onnx(unsettled(), tmp_path / "ours.onnx")
    for name, problem in (
        ("none.onnx", "cannot be read"),
        ("broken.onnx", "cannot be read as ONNX"),
        ("ours.onnx", "3 outputs where SCRFD has 9"),
    ):
        with pytest.raises(WeightsError, match=problem):
            ScrfdTeacher(tmp_path / name)
    with pytest.raises(WeightsError):
        open_member(MemberConfig(path=corner_detector, shares=FAIR))


def fixed(logit: float, box: float) -> Any:
    """A detector that says the same of every anchor of an image of 64x96 pixels."""

    def ask(images: Tensor) -> HeadOutputs:
        flat = torch.ones(len(images), 252, 1)
        logits = torch.cat([0 * flat, logit * flat], -1)
        return HeadOutputs(logits, (box * flat).repeat(1, 1, 4), (box * flat).repeat(1, 1, 10))

    return ask


def test_shares_weigh_logits_and_sureness_weighs_boxes() -> None:
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    shifts = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    members = [
        Member(fixed(2.0, 1.0), shares, 1.5, shifts),
        Member(fixed(-1.0, 5.0), [1 - x for x in shares], 1.0, [0.0] * 6),
    ]
    images = torch.zeros(2, 3, 64, 96)
    maps = said_together(members, images)
    assert [x.shape for x in maps] == [(2, 30, 64 // s, 96 // s) for s in STRIDES]
    for size, share in enumerate(shares):
        level, anchor = divmod(size, 2)
        own = 1.5 * 2.0 + shifts[size]
        logit = share * own - (1 - share)
        sure, other = share / (1 + np.exp(-own)), (1 - share) / (1 + np.exp(1.0))
        box = (sure + 5 * other) / (sure + other)
        one = maps[level][1, :, 0, 1]
        assert float(one[anchor]) == pytest.approx(logit, abs=1e-5)
        of_boxes = one[2:10].reshape(2, 4)[anchor]
        of_landmarks = one[10:].reshape(2, 10)[anchor]
        torch.testing.assert_close(of_boxes, torch.full((4,), box, dtype=torch.float32))
        torch.testing.assert_close(of_landmarks, torch.full((10,), box, dtype=torch.float32))


def test_shares_that_do_not_come_to_one_are_refused() -> None:
    one = {"path": "a.onnx", "shares": [0.5, 0.5, 0.5, 0.5, 0.5, 0.4]}
    with pytest.raises(ValidationError, match=r"come to 1, 1, 1, 1, 1, 0\.8; each size needs 1"):
        CouncilConfig.model_validate({"members": [one, one], "crops": 8})
    with pytest.raises(ValidationError, match="5 values for six sizes of anchors"):
        MemberConfig(path=Path("a.onnx"), shares=[0.2] * 5)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        MemberConfig(path=Path("a.onnx"), shares=[1.5] * 6)


def council_of(folder: Path, corner_detector: Path) -> dict[str, Any]:
    """Another V2 and something with SCRFD's outputs."""
    torch.manual_seed(5)
    export_onnx(FeatherFaceV2(**TWO_WAYS).eval(), folder / "other.onnx")
    return {
        "crops": 16,
        "passes": 6,
        "members": [
            {"path": folder / "other.onnx", "shares": [0.5, 0.5, 0.75, 1.0, 1.0, 1.0]},
            {
                "path": corner_detector,
                "outputs": "scrfd",
                "shares": [0.5, 0.5, 0.25, 0.0, 0.0, 0.0],
            },
        ],
    }


def test_mirrored_answers_are_the_mirrored_faces() -> None:
    torch.manual_seed(3)
    height, width = 64, 96
    maps = [torch.randn(1, 30, height // s, width // s) for s in STRIDES]
    anchors = make_anchors(height, width)

    def faces(said: list[Tensor]) -> list[np.ndarray]:
        """Logits, boxes and landmarks, a grid ``[H, W, 2, ...]`` for each stride."""
        logits, boxes, landmarks = (x[0].numpy() for x in outputs_of(said))
        values = logits, decode_boxes(boxes, anchors), decode_landmarks(landmarks, anchors)
        return [
            x[part].reshape(height // s, width // s, 2, *x.shape[1:])
            for x in values
            for s, part in zip(STRIDES, LEVELS, strict=True)
        ]

    for one, other in zip(faces(maps), faces([mirrored(x) for x in maps]), strict=True):
        expected = one[:, ::-1].copy()
        if one.ndim == 4:
            expected[..., [0, 2]] = width - expected[..., [2, 0]]
        elif one.ndim == 5:
            expected = expected[..., MIRRORED_LANDMARKS, :]
            expected[..., 0] = width - expected[..., 0]
        np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-3)


def test_all_of_a_student_learns_what_a_council_says(
    tmp_path: Path, corner_detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(council_start, "LEARNING_RATE", 4e-3)  # few steps
    monkeypatch.setattr(council_start, "PIXELS_A_STEP", 4 * 64 * 64)
    run = make_small_run(tmp_path)
    council = CouncilConfig.model_validate(council_of(tmp_path, corner_detector))
    store = PhotoStore(run.data.shards, run.data.cache)
    student = unsettled(**TWO_WAYS)
    first = {n: x.clone() for n, x in student.named_parameters()}
    lines: list[str] = []
    indices = np.arange(len(store))
    fabric = Fabric(accelerator="cpu")
    learn_from_council(fabric, student, council, run, store, indices, lines.append)
    before, after = (float(x) for x in lines[0].split("loss ")[1].split(" to "))
    assert after < 0.8 * before
    moved = {n for n, x in student.named_parameters() if not torch.equal(x, first[n])}
    parts = ("backbone.stage1.", "backbone.stage3.", "branch.stem.", "context.2.", "heads.")
    assert all(any(n.startswith(part) for n in moved) for part in parts)


def test_a_run_that_a_council_teaches_ends_in_a_basis(
    tmp_path: Path, corner_detector: Path
) -> None:
    torch.manual_seed(1)
    metadata = {"model": "FeatherFaceV2", "arguments": json.dumps(TWO_WAYS)}
    save_weights(unsettled(**TWO_WAYS), tmp_path / "factored.safetensors", metadata)
    council = council_of(tmp_path, corner_detector) | {"passes": 1}
    config = make_small_run(tmp_path)
    run: RunConfig = make_config(
        config.data.shards,
        tmp_path / "runs",
        (64,),
        images=0,
        model=TWO_WAYS | {"interpolative": True, "folded_norms": True},
        start={"weights": tmp_path / "factored.safetensors", "council": council},
    )
    lines: list[str] = []
    path = train(run, accelerator="cpu", report=lines.append)
    assert any(line.startswith("Council: ") for line in lines)
    learned = load_v2(path)
    assert learned.interpolative
    assert learned.folded_norms


def test_masks_are_drawn_on_some_crops_and_the_kept_ones_stay() -> None:
    images = torch.full((40, 3, 64, 64), 200, dtype=torch.uint8)
    count = len(images)
    boxes = torch.tensor([[12.0, 8.0, 52.0, 60.0]]).repeat(count, 1)
    points = torch.tensor([[24.0, 26], [40, 26], [32, 36], [26, 46], [38, 46]])
    batch = Batch(images, boxes, torch.ones(count), points.repeat(count, 1, 1), torch.arange(count))
    shown = masked(batch, np.random.default_rng(0))
    changed = (shown != 200).flatten(1).any(1).float().mean()
    assert 0.02 < float(changed) < 0.5  # about 0.5 * 0.35
    assert (images == 200).all()
    unsure = Batch(images, boxes, torch.full((count,), 0.3), batch.landmarks, batch.crops)
    assert (masked(unsure, np.random.default_rng(0)) == 200).all()


@pytest.mark.parametrize(("side", "crops"), [(320, 8), (512, 3), (640, 2), (960, 2)])
def test_steps_cost_alike_at_every_size(side: int, crops: int) -> None:
    images = torch.empty(16, 3, side, side, dtype=torch.uint8, device="meta")
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5, 2), torch.zeros(0).long()
    assert crops_a_step(Batch(images, *nothing)) == crops
