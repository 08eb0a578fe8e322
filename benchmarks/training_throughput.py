"""Where a training step spends its time, one process on one core of the CPU.

    python -m benchmarks.training_throughput --data data/train --v1 V1.safetensors

Cuts the crops of a run's first batches and takes each batch through the parts of a step one by
one: V1's answers, V2 forward, matching and losses, backward, optimiser. The same batches are timed
in turn with the channels first and last in memory, in half precision, and with batch normalisations
that stand still. Writes ``training_throughput.json`` and ``.md``: medians in milliseconds a crop. A
minute on an idle core.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.progress import track

from benchmarks.quantization import processor
from featherface.anchors import make_anchors
from featherface.data.dataset import Batch
from featherface.data.shards import PhotoStore
from featherface.evaluation.result_files import write_result_json, write_result_text
from featherface.models.featherface_v2 import FeatherFaceV2
from featherface.models.outputs import HeadOutputs
from featherface.models.pretrained import load_v1
from featherface.training.batches import make_loader
from featherface.training.config import RunConfig, read_config
from featherface.training.losses import label_losses, match_batch
from featherface.training.standing_norms import keep_statistics
from featherface.training.twin_teacher import TwinTeacher


class Kind(NamedTuple):
    """A way to take a step."""

    title: str
    memory: torch.memory_format = torch.channels_last
    half: bool = False
    standing: bool = False


KINDS = {
    "first": Kind("channels first", torch.contiguous_format),
    "last": Kind("channels last"),
    "half": Kind("and bfloat16", half=True),
    "standing": Kind("and norms that stand still", half=True, standing=True),
}
PARTS = {
    "crops": "cutting and changing crops",
    "teacher": "V1's answers and maps, ONNX Runtime",
    "forward": "V2 forward",
    "losses": "matching and losses",
    "backward": "backward",
    "optimiser": "optimiser",
}


def main(
    data: Annotated[Path, typer.Option(help="folder of shards")],
    v1: Annotated[Path | None, typer.Option(help="V1's weights: time its answers too")] = None,
    config: Annotated[Path, typer.Option(help="the run")] = Path("configs/v2.yaml"),
    cache: Annotated[Path, typer.Option(help="where decoded photos are kept")] = Path("cache"),
    batches: Annotated[int, typer.Option(help="timed batches of each kind", min=1)] = 20,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("results"),
) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    overrides = [f"data.shards={data}", f"data.cache={cache}", "data.workers=0"]
    run = read_config(config, [*overrides, "data.sizes=[[320, 1.0]]"])
    store = PhotoStore(data, cache)
    indices, _ = store.split(run.data.validation_fraction, seed=0)
    teacher = TwinTeacher(load_v1(v1)) if v1 else None
    loader = iter(make_loader(run, store, indices, 0, 0, 1))
    steps = {name: Step(run, kind) for name, kind in KINDS.items()}
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in KINDS}
    for number in track(range(batches + 2), "Timing"):
        begin = time.perf_counter()
        batch = next(loader)
        shared = {"crops": time.perf_counter() - begin}
        if teacher:
            begin = time.perf_counter()
            teacher(batch.images.float(), maps=True)
            shared["teacher"] = time.perf_counter() - begin
        for name, step in steps.items():
            spent = shared | step(batch)
            if number >= 2:  # the first steps allocate
                for part, seconds in spent.items():
                    times[name][part].append(1000 * seconds / run.batch)
    result = {
        "milliseconds_per_crop": {
            name: {part: float(np.median(values)) for part, values in parts.items()}
            for name, parts in times.items()
        },
        "crop_side": 320,
        "crops_in_a_batch": run.batch,
        "batches": batches,
        "processor": processor(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
    write_result_json(out / "training_throughput.json", result)
    write_result_text(out / "training_throughput.md", markdown(result))
    print(markdown(result))


class Step:
    """One step of V2 on a batch, timed part by part."""

    def __init__(self, run: RunConfig, kind: Kind) -> None:
        torch.manual_seed(0)
        self.run, self.kind = run, kind
        self.model = FeatherFaceV2(**run.model.model_dump()).train()
        if kind.standing:
            keep_statistics(self.model)
        # The stubs of PyTorch 2.13 lack this form of the call.
        self.model.to(memory_format=kind.memory)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=run.optimiser.learning_rate)

    def __call__(self, batch: Batch) -> dict[str, float]:
        """Seconds of forward, losses, backward and optimiser."""
        marks = [time.perf_counter()]
        images = batch.images.float().contiguous(memory_format=self.kind.memory)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.kind.half, cache_enabled=False):
            outputs = self.model(images)
        outputs = HeadOutputs(*(x.float() for x in outputs))
        marks.append(time.perf_counter())
        anchors = torch.tensor(make_anchors(*images.shape[2:]))
        loss = self.run.loss
        targets = match_batch(outputs, anchors, batch, loss.matching, self.run.data.face_score)
        terms = label_losses(outputs, anchors, targets, loss)
        marks.append(time.perf_counter())
        torch.stack(list(terms.values())).sum().backward()
        marks.append(time.perf_counter())
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
        spent = np.diff(marks)
        return dict(zip(("forward", "losses", "backward", "optimiser"), spent, strict=True))


def markdown(result: dict[str, Any]) -> str:
    """The table, and the sum in words."""
    times = result["milliseconds_per_crop"]
    total = {name: sum(parts.values()) for name, parts in times.items()}
    lines = [
        f"| part of a step | {' | '.join(kind.title for kind in KINDS.values())} | share |",
        f"|---|{'---|' * len(KINDS)}---|",
    ]
    best = list(KINDS)[-1]
    for part in (part for part in PARTS if part in times[best]):
        cells = " | ".join(f"{times[name][part]:.1f}" for name in KINDS)
        lines.append(f"| {PARTS[part]} | {cells} | {times[best][part] / total[best]:.0%} |")
    lines += [
        f"| together | {' | '.join(f'{total[name]:.1f}' for name in KINDS)} | |",
        "",
        f"Milliseconds a crop of {result['crop_side']} pixels, {result['crops_in_a_batch']} in a "
        f"batch, medians of {result['batches']} batches; one thread of {result['processor']}, "
        f"PyTorch {result['torch']}. The trainer keeps the channels last and cuts crops in a "
        "worker beside the network; the rest is `precision: bf16-mixed` and "
        "`start.frozen_statistics: true`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
