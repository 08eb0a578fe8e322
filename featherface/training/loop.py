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
from featherface.errors import ConfigError, FeatherFaceError, TrainingError
from featherface.models.baseline import BaselineV1
from featherface.models.featherface_v1 import FeatherFaceV1
from featherface.models.featherface_v2 import FeatherFaceV2, parameter_count
from featherface.models.pretrained import load_v1
from featherface.models.pretrained_v2 import load_mean_v2, load_v2
from featherface.models.weight_files import load_mean_weights, read_metadata, save_weights
from featherface.training.batches import make_loader, total_batches
from featherface.training.checkpoint import load_checkpoint, save_checkpoint
from featherface.training.config import RunConfig
from featherface.training.context_start import fit_context
from featherface.training.detail_start import fit_detail
from featherface.training.experiments import append_experiment, experiment_row, is_recorded
from featherface.training.factored_start import start_factored
from featherface.training.graphed_step import GraphedStep
from featherface.training.grown_start import grow
from featherface.training.learner import Learner, Teacher, has_features
from featherface.training.losses import Targets
from featherface.training.matrix_steps import KernelMuon, Part, by_kind
from featherface.training.moving_average import MovingAverage
from featherface.training.onnx_teacher import OnnxTeacher
from featherface.training.progress import RunLog
from featherface.training.schedules import TermWeights, learning_rate, set_learning_rate
from featherface.training.shared_start import start_shared
from featherface.training.twin_start import fit_twin
from featherface.training.twin_teacher import TwinTeacher
from featherface.training.validation import validate_model
from featherface.training.warm_start import warm_start_from_imagenet, warm_start_from_v1
from featherface.training.weight_decay import decay_groups

LOG_EVERY = 20
OUTSIDE_BODY = "student.heads.", "adapters."  # kernels there predict, and are AdamW's


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
    freeze(student, config.start.frozen_blocks)
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
        joined = None
        if config.start.factored_crops:
            joined = start_factored(fabric, student, config, store, training_indices, quiet)
        if config.start.shared_steps:
            start_shared(fabric, student, config, store, training_indices, quiet)
        if config.start.context_crops:
            fit_context(
                student.context, learner.maps_of_teacher, config, store, training_indices, quiet
            )
        if config.start.twin_crops:
            fit_twin(fabric, learner, store, training_indices, quiet, joined)
        if config.start.detail_crops:
            fit_detail(fabric, learner, store, training_indices, quiet)
        average.module.load_state_dict(student.state_dict())
    wrapped, *optimisers = fabric.setup(learner, *made)
    average.to(fabric.device)
    if fabric.is_global_zero:
        report(
            f"{config.name} ({config.fingerprint()}): {parameter_count(student):,} parameters, "
            f"{len(training_indices):,} photos, {steps:,} steps, {fabric.device}"
        )

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
        freeze(student, config.start.frozen_blocks)
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
        record(experiments, config, average.module.cpu(), store, device, done < steps, report)
    return weights


def is_first_process() -> bool:
    """Whether this process writes the files of a run: of several, only one does."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not several or torch.distributed.get_rank() == 0


def record(
    path: Path,
    config: RunConfig,
    model: Any,
    store: Any,
    device: str,
    trained: bool,
    report: Callable[[str], None],
) -> None:
    """Measure ``model`` on the held-out photos and append the run to the table at ``path``.

    A run that had nothing left to do is recorded only if it is not there yet. The weights are
    written by now: what goes wrong here is told, and ends nothing.
    """
    try:
        if not trained and is_recorded(path, config):
            return
        training, held_out = store.split(config.data.validation_fraction, seed=0)
        result = None
        if len(held_out):
            report(f"Measuring on {len(held_out):,} held-out photos")
            result = validate_model(model, store, config.data.validation_fraction)
        row = experiment_row(config, parameter_count(model), len(training), device, result)
        append_experiment(path, row)
        report(f"Experiment: {path}, validation AP {row['ap'] or 'without photos'}")
    except FeatherFaceError as error:
        report(f"Not recorded: {error}")


def describe_device(device: torch.device, count: int) -> str:
    """Such as ``2 x CPU`` or ``1 x NVIDIA H100``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{count} x {name}"


TERMS = (
    "class",
    "box",
    "landmarks",
    "teacher_logits",
    "teacher_boxes",
    "teacher_landmarks",
    "features",
)


def build_student(config: RunConfig) -> FeatherFaceV2:
    """V2 with the first weights that the configuration asks for."""
    model = FeatherFaceV2(**config.model.model_dump())
    start = config.start
    if start.factored_crops or start.shared_steps:
        return model  # fitted to other weights when there are crops
    if start.weights is not None and start.detail_crops and not has_stem(start.weight_files):
        plain = FeatherFaceV2(**config.model.model_dump() | {"detail_channels": 0})
        load_mean_weights(plain, start.weight_files)
        model.load_state_dict(plain.state_dict(), strict=False)  # all but the stem
    elif start.weights is not None and start.grown:
        grow(model, load_mean_v2(start.weight_files), start.v1)
    elif start.weights is not None:
        load_mean_weights(model, start.weight_files)
    elif start.v1 is not None:
        warm_start_from_v1(model, start.v1)
    elif start.imagenet is not None:
        warm_start_from_imagenet(model, start.imagenet)
    return model


def has_stem(weights: list[Path]) -> bool:
    """Whether the V2 in the first of the files has a detail stem."""
    return bool(weights) and load_v2(weights[0]).detail is not None


def open_teacher(config: RunConfig, on_cpu: bool) -> Teacher | None:
    """V1 or a V2 from its weights, or any ONNX file with the same anchors, which shows no features.

    On a CPU the others, too, run in ONNX Runtime.
    """
    path = config.distillation.teacher
    if path is None:
        return None
    if path.suffix == ".onnx":
        if has_features(config):
            raise ConfigError(
                f"distillation.schedule: {path.name} shows no features; let their weight be 0 at "
                "every point"
            )
        return OnnxTeacher(path)
    teacher: FeatherFaceV1 | FeatherFaceV2
    of_v2 = read_metadata(path).get("model") == "FeatherFaceV2"
    teacher = (load_v2 if of_v2 else load_v1)(path).eval().requires_grad_(False)
    return TwinTeacher(teacher) if on_cpu else teacher


def open_photos(config: RunConfig) -> Any:
    """The photos to train on, with random access."""
    data = config.data
    if data.layout == "wider":
        if data.more_shards:
            raise ConfigError("data.more_shards: for layout shards; pack WIDER FACE into some")
        return WiderFacePhotos(data.shards)
    return PhotoStore([data.shards, *data.more_shards], data.cache)


def freeze(student: FeatherFaceV2 | BaselineV1, blocks: int) -> None:
    """Keep the first blocks as they are: the largest maps cost the most and change the least."""
    backbone = student.backbone
    for block in [*backbone.stage1, *backbone.stage2, *backbone.stage3][:blocks]:
        block.eval().requires_grad_(False)


def keep_statistics(student: nn.Module) -> None:
    """Normalise by the statistics that inference uses, and leave them as they are."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def make_optimisers(
    learner: Learner, config: RunConfig, graphed: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for 1x1 kernels behind it if the configuration asks for it.

    Biases and normalisations do not decay, and the backbone may learn more slowly. ``graphed``
    keeps everything that they need on the GPU, for a step that is replayed there.
    """
    parts = [
        Part(
            share,
            [
                parameter
                for name, parameter in learner.named_parameters()
                if parameter.requires_grad and name.startswith("student.backbone.") == of_backbone
            ],
        )
        for of_backbone, share in ((False, 1.0), (True, config.optimiser.backbone_rate))
    ]
    matrices: list[Part] = []
    if config.optimiser.matrix_rate:
        plain = [p for name, p in learner.named_parameters() if name.startswith(OUTSIDE_BODY)]
        matrices, parts = by_kind(parts, plain)
    groups: list[dict[str, Any]] = []
    for share, values in parts:
        groups += [group | {"share": share} for group in decay_groups(values)]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.optimiser.learning_rate,
        weight_decay=config.optimiser.weight_decay,
        fused=graphed or None,
        capturable=graphed,
    )
    if not matrices:
        return [adamw]
    return [adamw, KernelMuon(matrices, config.optimiser.matrix_rate, capturable=graphed)]


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
