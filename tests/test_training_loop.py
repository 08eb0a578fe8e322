"""A run from shards to weights: it learns, goes on after a kill, and names a bad batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featherface.data.labelled_photo import LabelledPhoto
from featherface.data.pack import pack
from featherface.errors import ConfigError, TrainingError, WeightsError
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import HeadOutputs
from featherface.models.pretrained_v2 import load_v2
from featherface.training import learner, loop
from featherface.training.batches import make_loader
from featherface.training.checkpoint import load_checkpoint, save_checkpoint
from featherface.training.config import RunConfig
from featherface.training.moving_average import MovingAverage
from featherface.training.optimisers import make_optimisers
from featherface.training.student import build_student


def draw_photo(number: int) -> LabelledPhoto:
    """A noisy ground with one bright disc; the disc is the face."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (96, 96, 3)).astype(np.uint8)
    size = int(rng.integers(16, 40))
    x, y = rng.integers(0, 96 - size, 2)
    rows, columns = np.mgrid[:96, :96]
    centre = np.array([x, y]) + size / 2
    image[(columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < (size / 2) ** 2] = (220, 180, 150)
    box = np.array([[x, y, x + size, y + size]], np.float32)
    landmarks = box[:, None, :2] + size * np.array(
        [[[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]], np.float32
    )
    return LabelledPhoto(f"disc-{number}", "crowd", image, box, np.ones(1, np.float32), landmarks)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    pack([draw_photo(n) for n in range(24)], folder)
    return folder


def make_config(
    shards: Path, output: Path, sides: tuple[int, ...] = (64, 96), **changes: object
) -> RunConfig:
    """A run of seconds on crops of these sides, each as often."""
    values: dict[str, object] = {
        "name": "run",
        "output": output,
        "images": 48,
        "batch": 8,
        "checkpoint_minutes": 1e-9,
        "data": {
            "shards": shards,
            "cache": shards.parent / "cache",
            "sizes": [(side, 1 / len(sides)) for side in sides],
            "workers": 0,
        },
    }
    return RunConfig.model_validate(values | changes)


def make_small_run(folder: Path, sides: tuple[int, ...] = (64, 96), **changes: object) -> RunConfig:
    """A run of a step on six photos, which are packed into ``folder``."""
    pack([draw_photo(n) for n in range(6)], folder / "train")
    return make_config(folder / "train", folder / "runs", sides, images=8, **changes)


def test_muon_steps_the_kernels_of_the_students_body_alone(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, optimiser={"matrix_rate": 3.0, "backbone_rate": 0.5})
    student = build_student(config)
    adamw, muon = make_optimisers(learner.Learner(student, config, None), config)
    of_adamw, of_muon = (
        {id(p) for group in one.param_groups for p in group["params"]} for one in (adamw, muon)
    )
    assert not of_adamw & of_muon
    assert of_adamw | of_muon == {id(p) for p in student.parameters()}
    assert of_adamw > {id(p) for p in student.heads.parameters()}
    assert of_muon > {id(lateral[0].weight) for lateral in student.laterals}
    assert of_muon < {id(p) for p in student.parameters() if p.shape[2:] == (1, 1)}
    assert {group["share"] for group in muon.param_groups} == {0.5, 1.0}


def test_a_run_writes_weights_log_and_checkpoint(shards: Path, tmp_path: Path) -> None:
    path = loop.train(make_config(shards, tmp_path), accelerator="cpu", report=lambda _: None)
    assert path == tmp_path / "run" / "model.safetensors"
    model = load_v2(path)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert rows[0].startswith("images,seconds,images_per_second,loss")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert not list((tmp_path / "run").glob("*.partial"))


def test_snapshots_of_the_average_are_kept(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, snapshots=[0.5])
    final = load_file(loop.train(config, accelerator="cpu", report=lambda _: None))
    kept = load_file(tmp_path / "run" / "average_50.safetensors")
    assert kept.keys() == final.keys()
    assert any(not torch.equal(kept[name], final[name]) for name in final)


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


@pytest.mark.parametrize("matrix_rate", [0.0, 3.0])
def test_a_killed_run_goes_on_with_the_same_samples(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, matrix_rate: float
) -> None:
    optimiser = {"matrix_rate": matrix_rate}
    whole = loop.train(
        make_config(shards, tmp_path / "whole", optimiser=optimiser),
        accelerator="cpu",
        report=lambda _: None,
    )
    config = make_config(shards, tmp_path / "killed", optimiser=optimiser)
    original = loop.RunLog.step
    steps = 0

    def kill_at_fourth(self: loop.RunLog, images: int, terms: dict[str, float]) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        original(self, images, terms)

    monkeypatch.setattr(loop.RunLog, "step", kill_at_fourth)
    with pytest.raises(Killed):
        loop.train(config, accelerator="cpu", report=lambda _: None)
    monkeypatch.setattr(loop.RunLog, "step", original)
    assert load_checkpoint(config.folder / "last.ckpt")["batches"] == 3
    assert load_v2(config.folder / "average.safetensors").training is False
    resumed = loop.train(config, accelerator="cpu", report=lambda _: None)
    expected, found = load_file(whole), load_file(resumed)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_a_run_goes_on_with_another_number_of_devices(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, images=16)
    loop.train(config, accelerator="cpu", report=lambda _: None)
    checkpoint = config.folder / "last.ckpt"
    state = load_checkpoint(checkpoint)
    assert state["devices"] == 1
    # Two devices take half the steps for the same images, so here nothing is left to do.
    save_checkpoint({**state, "devices": 2, "batches": state["batches"] // 2}, checkpoint)
    loop.train(config, accelerator="cpu", report=lambda _: None)
    assert load_checkpoint(checkpoint)["devices"] == 2


def test_a_checkpoint_of_another_configuration_is_refused(shards: Path, tmp_path: Path) -> None:
    loop.train(make_config(shards, tmp_path, images=8), accelerator="cpu", report=lambda _: None)
    other = make_config(shards, tmp_path, images=16)
    with pytest.raises(ConfigError, match="another configuration"):
        loop.train(other, accelerator="cpu", report=lambda _: None)
    loop.train(other, accelerator="cpu", resume=False, report=lambda _: None)


def test_a_loss_that_is_not_a_number_names_its_batch(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, torch.Tensor]:
        return {"box": torch.tensor(float("nan"), requires_grad=True)}

    monkeypatch.setattr(learner, "label_losses", broken)
    with pytest.raises(TrainingError, match=r"step 0: box not finite .* samples 0 to 7"):
        loop.train(make_config(shards, tmp_path), accelerator="cpu", report=lambda _: None)


def test_frozen_blocks_stay_as_they_are(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, start={"frozen_blocks": 4})
    torch.manual_seed(config.seed)
    path = loop.train(config, accelerator="cpu", report=lambda _: None)
    tensors = load_file(path)
    assert (tensors["backbone.stage1.0.1.running_mean"] == 0).all()
    assert (tensors["backbone.stage2.0.1.running_mean"] != 0).any()


def test_whole_stages_can_be_frozen(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, images=8, start={"frozen_blocks": 12})
    tensors = load_file(loop.train(config, accelerator="cpu", report=lambda _: None))
    assert (tensors["backbone.stage2.5.1.running_mean"] == 0).all()
    assert (tensors["backbone.stage3.0.1.running_mean"] != 0).any()


def test_frozen_statistics_stay_while_weights_learn(shards: Path, tmp_path: Path) -> None:
    config = make_config(shards, tmp_path, start={"frozen_statistics": True})
    tensors = load_file(loop.train(config, accelerator="cpu", report=lambda _: None))
    means = [values for name, values in tensors.items() if name.endswith("running_mean")]
    assert all((values == 0).all() for values in means)
    scales = [tensors[f"{side}.norm.weight"] for side in ("fusions.0.out_8", "fusions.0.out_16")]
    assert all((values != 1).any() for values in scales)


def test_a_foreign_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"junk")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        load_checkpoint(path)


def test_it_learns_to_find_discs(shards: Path, tmp_path: Path) -> None:
    """Sixty steps from chance: the loss of the labels falls well below where it began."""
    config = make_config(
        shards,
        tmp_path,
        images=480,
        optimiser={"learning_rate": 0.005},
        data={
            "shards": shards,
            "cache": shards.parent / "cache",
            "sizes": [(64, 1.0)],
            "workers": 0,
        },
    )
    loop.train(config, accelerator="cpu", report=lambda _: None)
    rows = (config.folder / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < 0.8 * losses[0]


def test_the_backbone_may_learn_more_slowly(shards: Path, tmp_path: Path) -> None:
    """From the same chance, a backbone at a millionth of the rate stays where it began."""

    def stem(share: float) -> torch.Tensor:
        config = make_config(
            shards,
            tmp_path / str(share),
            images=24,
            optimiser={"learning_rate": 0.005, "backbone_rate": share, "ema": 0.0},
        )
        path = loop.train(config, accelerator="cpu", report=lambda _: None)
        return load_file(path)["backbone.stage2.0.0.weight"]

    still, slow, quick = stem(1e-9), stem(1e-6), stem(1.0)
    torch.testing.assert_close(slow, still, atol=1e-6, rtol=0)
    assert (quick - still).abs().max() > 1e-4


def test_a_source_that_weighs_nothing_is_never_drawn(tmp_path: Path) -> None:
    photos = [replace(draw_photo(n), source="lfw" if n % 2 else "crowd") for n in range(8)]
    pack(photos, tmp_path / "train")
    config = make_config(tmp_path / "train", tmp_path)
    data = config.data.model_copy(update={"source_weights": {"crowd": 0.0}})
    store = loop.open_photos(config)
    indices = np.arange(len(store))
    loader = make_loader(config.model_copy(update={"data": data}), store, indices, 0, 0, 1)
    crops = loader.dataset.by_side[64]  # type: ignore[attr-defined]
    drawn = np.diff(crops.cumulative, prepend=0) > 0
    assert set(store.sources) == {"crowd", "lfw"}
    assert set(store.sources[drawn]) == {"lfw"}


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_mixed_precision_is_the_students_alone_and_of_processors_that_have_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> None:
    kinds: set[tuple[torch.dtype, ...]] = set()
    losses, forward = learner.label_losses, FeatherFaceV2.forward_with_features
    mixed: list[bool] = []
    said: list[str] = []

    def watch(self: FeatherFaceV2, image: torch.Tensor) -> Any:
        mixed.append(torch.is_autocast_enabled("cpu"))
        return forward(self, image)

    monkeypatch.setattr(FeatherFaceV2, "forward_with_features", watch)
    has = {"architecture": "x86_64", "avx512_bf16": has_bfloat16}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)

    def listen(prediction: HeadOutputs, anchors: torch.Tensor, *rest: Any) -> Any:
        kinds.add((*(x.dtype for x in prediction), anchors.dtype, rest[0].boxes.dtype))
        return losses(prediction, anchors, *rest)

    monkeypatch.setattr(learner, "label_losses", listen)
    config = make_config(shards, tmp_path, images=16, precision="bf16-mixed")
    path = loop.train(config, accelerator="cpu", report=said.append)
    assert has_bfloat16 in mixed
    assert has_bfloat16 or not any(mixed)
    assert any("no bfloat16" in line for line in said) is not has_bfloat16
    assert kinds == {(torch.float32,) * 5}
    assert {x.dtype for x in load_file(path).values() if x.is_floating_point()} == {torch.float32}


def test_the_moving_average_is_quick_at_first_and_slow_later() -> None:
    net = torch.nn.BatchNorm2d(2)
    average = MovingAverage(net, decay=0.5)
    expected = 1.0
    for count in range(1, 20):
        with torch.no_grad():
            net.weight.fill_(float(count))
            net.running_mean.fill_(float(count))
            net.num_batches_tracked.fill_(count)
        average.update(net)
        share = min(0.5, count / (9 + count))
        expected = share * expected + (1 - share) * count
        assert average.module.weight[0].item() == pytest.approx(expected)
        assert average.module.num_batches_tracked.item() == count
    again = MovingAverage(net, decay=0.5)
    again.load_state_dict(average.state_dict())
    assert again.updates == 19
    torch.testing.assert_close(again.module.running_mean, average.module.running_mean)
