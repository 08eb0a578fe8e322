"""Train or distil V2.

    featherface train   --config configs/v2.yaml
    featherface distill --config configs/v2_light.yaml
    featherface distill --config configs/v2_light.yaml --devices 4     # DDP on four GPUs

A run writes ``runs/NAME``: ``last.ckpt`` and ``average.safetensors`` (the moving average of the
weights so far) every few minutes, ``log.csv``, TensorBoard, and at the end ``model.safetensors``
and a row of ``results/experiments.csv``. The same command goes on where a killed run stopped.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from featherface.data.dataset import Batch
from featherface.data.shards import PhotoStore
from featherface.data.wider_face import WiderFacePhotos
from featherface.errors import ConfigError, TrainingError
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.weight_files import save_weights
from featherface.training.batches import make_loader, total_batches
from featherface.training.checkpoint import load_checkpoint, save_checkpoint
from featherface.training.config import RunConfig
from featherface.training.graphed_step import GraphedStep
from featherface.training.half_precision import refusal
from featherface.training.learner import Learner
from featherface.training.losses import Targets
from featherface.training.moving_average import MovingAverage
from featherface.training.open_teacher import open_teacher
from featherface.training.optimisers import make_optimisers
from featherface.training.progress import RunLog
from featherface.training.recorded_run import describe_device, record_run
from featherface.training.schedules import TermWeights, learning_rate, set_learning_rate
from featherface.training.standing_norms import keep_statistics
from featherface.training.student import build_student, fit_first_weights, freeze

LOG_EVERY = 20


def train(
    config: RunConfig,
    devices: int = 1,
    accelerator: str = "auto",
    resume: bool = True,
    report: Callable[[str], None] = print,
    student: FeatherFaceV2 | BaselineV1 | None = None,
    experiments: Path | None = None,
) -> Path:
    """Run ``config`` to its end and return the weight file.

    ``student`` is trained in place of the model that the configuration describes. ``experiments``
    is the CSV file that gets a row for the run, with its AP on the held-out photos.

    Raises:
        ConfigError, DataError, WeightsError: something to read is missing or wrong.
        TrainingError: the loss is not finite; the message names the batch.
    """
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
    )
    fabric.launch()
    fabric.seed_everything(config.seed, verbose=False)
    student = student if student is not None else build_student(config)
    teacher = open_teacher(config, on_cpu=fabric.device.type == "cpu")
    freeze(student, config.start)
    learner = Learner(student, config, teacher)
    if isinstance(teacher, nn.Module):
        teacher.to(fabric.device)
    on_gpu = fabric.device.type == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # for the teacher, which is not in bfloat16
    # The stubs of PyTorch 2.13 lack this form of the call.
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner.to(fabric.device)
    average = MovingAverage(student, config.optimiser.ema)
    state = restore(config, learner, average) if resume else None
    steps = total_batches(config, fabric.world_size)
    done = batches_done(state, fabric.world_size) if state else 0

    store = open_photos(config)
    training_indices, _ = store.split(config.data.validation_fraction, seed=0)
    loader = make_loader(
        config, store, training_indices, done, fabric.global_rank, fabric.world_size, on_gpu
    )
    graphed = on_gpu and fabric.world_size == 1 and learner.can_be_graphed()
    made = make_optimisers(learner, config, graphed)
    if state:
        for one, kept in zip(made, state["optimisers"], strict=True):
            one.load_state_dict(kept)
    elif isinstance(student, FeatherFaceV2):
        quiet = report if fabric.is_global_zero else lambda _: None
        fit_first_weights(fabric, learner, student, store, training_indices, quiet)
        average.module.load_state_dict(student.state_dict())
    wrapped, *optimisers = fabric.setup(learner, *made)
    average.to(fabric.device)
    if fabric.is_global_zero:
        report(
            f"{config.name} ({config.fingerprint()}): {parameter_count(student):,} parameters, "
            f"{len(training_indices):,} photos, {steps:,} steps, {fabric.device}"
        )
        if line := refusal(config, fabric.device.type):
            report(line)

    snapshots = {round(steps * progress): progress for progress in config.snapshots}

    def take_step(
        images: Tensor, labels: Batch | Targets, weights: TermWeights
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Learn from one batch; the loss terms by name, and the gradient's norm."""
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        terms = wrapped(images, labels, weights)
        fabric.backward(torch.stack(list(terms.values())).sum())
        # AdamW's alone: Muon's steps are of one length, whatever the gradient's is.
        norm = fabric.clip_gradients(
            wrapped, optimisers[0], max_norm=config.optimiser.clip_norm, error_if_nonfinite=False
        )
        for optimiser in optimisers:
            optimiser.step()
        norm = torch.zeros(()) if norm is None else norm
        return {name: value.detach() for name, value in terms.items()}, norm

    step_on = GraphedStep(take_step, learner.match) if graphed else take_step
    images = config.images // fabric.world_size
    seen = done * config.batch
    saved = time.monotonic()
    checked = done
    with RunLog(config.folder, images, seen, fabric.is_global_zero) as log:
        learner.train()
        freeze(student, config.start)
        if config.start.frozen_statistics:
            keep_statistics(student)
        for step, batch in enumerate(loader, start=done):
            progress = step / steps
            rate = learning_rate(
                progress,
                config.optimiser.learning_rate,
                config.optimiser.warmup,
                config.optimiser.final_rate,
            )
            for optimiser in optimisers:
                set_learning_rate(optimiser, rate)
            batch = batch.to(fabric.device)
            terms, norm = step_on(batch.images, batch, learner.term_weights(progress))
            average.update(student)
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes or step + 1 == steps
            logged = step % LOG_EVERY == 0
            values: dict[str, float] = {}
            # To read a loss is to wait for it, and a GPU idles until it hears of the next step.
            if logged or due or not on_gpu:
                values = {name: float(value) for name, value in terms.items()}
                guard(values, range(checked, step + 1), loader.batch_sampler, config)
                checked = step + 1
            log.step(config.batch, values)
            if logged:
                numbers = {"loss": sum(values.values()), "gradient_norm": float(norm)}
                columns = dict.fromkeys(TERMS, 0.0) | values
                log.record((step + 1) * config.batch, numbers | columns)
            if fabric.is_global_zero and step + 1 in snapshots:
                kept = config.folder / f"average_{100 * snapshots[step + 1]:.0f}.safetensors"
                save_weights(average.module, kept, describe(student, config, step + 1))
            if fabric.is_global_zero and due:
                save_checkpoint(
                    {
                        "config": config.fingerprint(),
                        "batches": step + 1,
                        "devices": fabric.world_size,
                        "learner": learner.state_dict(),
                        "average": average.state_dict(),
                        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    },
                    config.folder / "last.ckpt",
                )
                facts = describe(student, config, step + 1)
                save_weights(average.module, config.folder / "average.safetensors", facts)
                saved = time.monotonic()
    weights = config.folder / "model.safetensors"
    if fabric.is_global_zero:
        save_weights(average.module, weights, describe(student, config, steps))
    fabric.barrier()
    if fabric.is_global_zero and experiments is not None:
        device = describe_device(fabric.device, fabric.world_size)
        record_run(experiments, config, average.module.cpu(), store, device, done < steps, report)
    return weights


def is_first_process() -> bool:
    """Whether this process writes the files of a run: of several, only one does."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not several or torch.distributed.get_rank() == 0


TERMS = (
    "class",
    "box",
    "landmarks",
    "teacher_logits",
    "teacher_boxes",
    "teacher_landmarks",
    "features",
)


def open_photos(config: RunConfig) -> Any:
    """The photos to train on, with random access."""
    data = config.data
    if data.layout == "wider":
        if data.more_shards:
            raise ConfigError("data.more_shards: for layout shards; pack WIDER FACE into some")
        return WiderFacePhotos(data.shards)
    return PhotoStore([data.shards, *data.more_shards], data.cache)


def restore(config: RunConfig, learner: nn.Module, average: nn.Module) -> dict[str, Any] | None:
    """Load the last checkpoint of the run, if there is one, and return it."""
    path = config.folder / "last.ckpt"
    if not path.exists():
        return None
    state = load_checkpoint(path)
    if state.get("config") != config.fingerprint():
        raise ConfigError(
            f"{path} is of another configuration; give the run another name, or use --restart"
        )
    learner.load_state_dict(state["learner"])
    average.load_state_dict(state["average"])
    return state


def batches_done(state: dict[str, Any], devices: int) -> int:
    """Steps that ``devices`` would have taken for the images that the checkpoint has seen."""
    return round(int(state["batches"]) * int(state.get("devices", devices)) / devices)


def guard(values: dict[str, float], steps: range, sampler: Any, config: RunConfig) -> None:
    """Stop on a loss that is not a number, and say which batches were looked at last."""
    wrong = [name for name, value in values.items() if not np.isfinite(value)]
    if not wrong:
        return
    numbers = [number for step in steps for number, _ in sampler.batch(step)]
    raise TrainingError(
        f"step {steps[-1]}: {', '.join(wrong)} not finite in the batch of samples {numbers[0]} to "
        f"{numbers[-1]} of seed {config.seed} (CropDataset gives them again); the last checkpoint "
        f"in {config.folder} is from before it"
    )


def describe(student: nn.Module, config: RunConfig, steps: int) -> dict[str, str]:
    """What a weight file says of itself."""
    model = copy.deepcopy(config.model)
    return {
        "model": type(student).__name__,
        "arguments": model.model_dump_json(),
        "run": config.name,
        "config": config.fingerprint(),
        "images": str(config.images),
        "steps": str(steps),
    }
