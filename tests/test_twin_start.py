"""All behind V2's first stage, learned from crops that a teacher answered once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from test_training_loop import make_small_run
from torch import Tensor, nn

from featherface.data.shards import PhotoStore
from featherface.errors import ConfigError
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.training.config import RunConfig
from featherface.training.distillation import teacher_input, twin_distance, twin_maps
from featherface.training.learner import Learner
from featherface.training.loop import train
from featherface.training.short_run import share_gradients
from featherface.training.twin_start import fit_twin


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return make_small_run(
        tmp_path_factory.mktemp("data"),
        start={"twin_crops": 32},
        distillation={"adapters": False, "schedule": [(0.0, 1.0, 0.5, 0.5)]},
    )


def test_all_behind_the_first_stage_learns(config: RunConfig) -> None:
    store = PhotoStore(config.data.shards, config.data.cache)
    torch.manual_seed(0)
    student, teacher = FeatherFaceV2(**config.model.model_dump()), FeatherFaceV1()
    photos = [store[n].image[:96, :96] for n in range(len(store))]
    images = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float()
    for model, shown in ((student, images), (teacher, teacher_input(images))):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(shown)
    teacher.eval()
    learner = Learner(student, config, teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}

    @torch.no_grad()
    def distance() -> float:
        ours = student.eval().forward_with_features(images)[1]
        wanted = teacher.forward_with_features(teacher_input(images))[1]
        return float(twin_distance(twin_maps(ours), twin_maps(wanted)))

    at_first = distance()
    said: list[str] = []
    fit_twin(Fabric(accelerator="cpu"), learner, store, np.arange(len(store)), said.append)
    assert distance() < 0.8 * at_first
    assert said[0].startswith("Twin: 4 batches answered once, 28 steps, loss ")
    same = {n for n, x in student.state_dict().items() if torch.equal(x, before[n])}
    statistics = {n for n in before if "running_" in n or "num_batches" in n}
    learned = {n for n in before if not n.startswith("backbone.stage1.")} - statistics
    assert same >= set(before) - learned
    assert len(learned - same) > 0.9 * len(learned)


def test_processes_go_on_with_the_mean_of_their_gradients() -> None:
    class TwoProcesses:
        world_size = 2

        def all_reduce(self, values: Tensor, reduce_op: str) -> Tensor:
            assert reduce_op == "mean"
            return (values + 1) / 2  # the other has ones

    weight, bias, unused = (nn.Parameter(torch.zeros(n)) for n in (3, 2, 1))
    weight.grad, bias.grad = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([-1.0, 0.0])
    share_gradients(TwoProcesses(), [weight, unused, bias])  # type: ignore[arg-type]
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]
    assert bias.grad.tolist() == [0.0, 0.5]
    assert unused.grad is None


def test_a_second_look_at_the_image_is_refused(config: RunConfig) -> None:
    model = config.model.model_copy(update={"detail_channels": 12})
    with pytest.raises(ConfigError, match=r"start\.twin_crops: needs model\.detail_channels: 0"):
        train(config.model_copy(update={"model": model}), accelerator="cpu")


def test_no_maps_to_learn_from(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"start\.twin_crops: needs V1's weights as distillation"):
        train(config, accelerator="cpu")
