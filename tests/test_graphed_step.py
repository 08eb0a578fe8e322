"""Steps on a GPU: what is replayed there, and that a replay learns as a plain step does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from featherface.data.dataset import Batch
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training import graphed_step
from featherface.training.config import RunConfig
from featherface.training.graphed_step import FIRST_STEPS, GraphedStep, Recording
from featherface.training.learner import Learner
from featherface.training.losses import Targets
from featherface.training.schedules import TermWeights


def make_batch(side: int, value: int) -> Batch:
    """Two crops, a face on the first."""
    return Batch(
        torch.full((2, 3, side, side), value, dtype=torch.uint8),
        torch.tensor([[8.0, 8, 40, 40]]) + value,
        torch.ones(1),
        torch.full((1, 5, 2), float("nan")),
        torch.zeros(1, dtype=torch.long),
    )


def make_config(matching: str = "compensated") -> RunConfig:
    return RunConfig.model_validate(
        {
            "loss": {"matching": matching, "classification": "ohem"},
            "distillation": {"adapters": False},
        }
    )


class Replay:
    """Stands in for a graph: it does to the recorded tensors what the GPU would."""

    def __init__(self, step: GraphedStep, recording: Recording) -> None:
        self.step, self.recording = step, recording

    def replay(self) -> None:
        seen = self.recording
        weights = TermWeights(*seen.weights.unbind())
        seen.outcome[0].update(self.step.take_step(seen.images, seen.targets, weights)[0])


def test_a_replay_sees_each_new_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, other: object) -> None: ...

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(graphed_step.torch.cuda, name, Stream)
    monkeypatch.setattr(graphed_step.torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphed_step.torch.cuda, "stream", lambda _: nullcontext())

    def record(
        self: GraphedStep, images: Tensor, targets: Targets, weights: TermWeights
    ) -> Recording:
        recorded.append((images.shape[-1], weights.outputs))
        blank = Targets(*(torch.zeros_like(x) for x in vars(targets).values()))
        made = Recording(None, torch.zeros_like(images), blank, torch.zeros(3), ({}, torch.ones(1)))
        made.graph = Replay(self, made)
        return made

    def take_step(
        images: Tensor, targets: Targets, weights: TermWeights
    ) -> tuple[dict[str, Tensor], Tensor]:
        box = targets.boxes[targets.face].mean(0)
        return {"sum": images.float().mean() + box[0] + weights.labels}, torch.ones(1)

    monkeypatch.setattr(GraphedStep, "record", record)
    recorded: list[tuple[int, float | Tensor]] = []
    match = Learner(FeatherFaceV2(), make_config(), None).match
    step = GraphedStep(take_step, match)
    for value in range(3 * FIRST_STEPS):
        # The teacher's answers end in the midst: the step without them is another one.
        outputs = 1.0 if value < FIRST_STEPS + 2 else 0.0
        for side in (64, 96):
            batch = make_batch(side, value)
            terms, _ = step(batch.images, batch, TermWeights(0.0, outputs, 100.0 + value))
            assert float(terms["sum"]) == pytest.approx(value + (8 + value) + 100 + value)
    assert recorded == [(64, 1.0), (96, 1.0), (64, 0.0), (96, 0.0)]


@pytest.mark.parametrize("matching", ["compensated", "retinaface", "dynamic"])
def test_only_steps_of_the_same_work_are_replayed(matching: str) -> None:
    learner = Learner(FeatherFaceV2(), make_config(matching), FeatherFaceV1())
    assert learner.can_be_graphed() == (matching != "dynamic")


def test_weights_that_are_tensors_give_the_same_losses() -> None:
    torch.manual_seed(0)
    learner = Learner(FeatherFaceV2().eval(), make_config(), FeatherFaceV1().eval())
    batch = make_batch(64, 3)
    plain = learner(batch.images, batch, TermWeights(0.5, 2.0, 0.8))
    tensors = learner(
        batch.images, learner.match(batch), TermWeights(*torch.tensor([0.5, 2.0, 0.8]))
    )
    assert plain.keys() == tensors.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, tensors[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_it_would_do() -> None:
    ends = []
    for graphed in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 1, 3)).cuda()
        optimiser = torch.optim.AdamW(
            net.parameters(), torch.tensor(0.01, device="cuda"), fused=True, capturable=True
        )

        def take_step(
            images: Tensor,
            labels: Batch | Targets,
            weights: TermWeights,
            net: nn.Module = net,
            optimiser: torch.optim.Optimizer = optimiser,
        ) -> tuple[dict[str, Tensor], Tensor]:
            optimiser.zero_grad(set_to_none=True)
            loss = (net(images.float() / 255) - 1).square().mean() * weights.labels
            loss.backward()
            optimiser.step()
            return {"loss": loss.detach()}, loss.detach()

        match = Learner(FeatherFaceV2(), make_config(), None).cuda().match
        step = GraphedStep(take_step, match) if graphed else take_step
        for value in range(12):
            batch = make_batch(64, 20 * value).to(torch.device("cuda"))
            step(batch.images, batch, TermWeights(0.0, 0.0, 1.0))
        ends.append([p.detach().cpu() for p in net.parameters()])
    for plain, replayed in zip(*ends, strict=True):
        torch.testing.assert_close(plain, replayed)
