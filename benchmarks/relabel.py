"""Training shards with better labels: by vote of detectors that see each photo enlarged.

    python -m benchmarks.relabel --data data/train --out data/train_voted --source crowd \\
        v1.onnx peers/centerface.onnx peers/scrfd_2.5g.onnx

Faces of ten pixels are where labels that a detector made are worst: boxes lie a pixel aside, and
half of the faces are doubtful. The same detectors agree far better on a photo at twice its size,
whatever family they are of. Each photo of the chosen sources gets what all of them say of it there,
mirrored too (``featherface.data.pseudo_labels``); other photos keep their labels. An ONNX file that
is named like a detector of ``benchmarks.peers`` is run as that, any other as one of ours. Shards
keep their names, keys and pictures. A crowd takes a second of one core by three detectors, without
its mirror image.
"""

from __future__ import annotations

import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks.comparison import Data, Weights, open_detector
from featherface.data.labelled_photo import FACE_SCORE
from featherface.data.pack import add_file, labels_of
from featherface.data.pseudo_labels import View, look, vote
from featherface.data.shards import find_shards, parse_sample, raw_samples
from featherface.errors import ConfigError
from featherface.faces import Detect

LOWEST_SCORE = 0.15  # of a voted face that is written
LEAST_VOTE = 0.1  # score of a box that votes: dense crowds have tens of thousands below
DETECTORS: list[Detect] = []  # of a process


def main(
    weights: Weights,
    data: Data,
    out: Annotated[Path, typer.Option(help="folder for the new shards")],
    source: Annotated[list[str], typer.Option(help="photos to label anew; repeatable")],
    times: Annotated[float, typer.Option(min=1, help="how much photos are enlarged")] = 2.0,
    mirror: Annotated[bool, typer.Option(help="look at each photo mirrored, too")] = True,
    processes: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Label and write."""
    if out.resolve() == data.resolve():
        raise ConfigError(f"{out}: is the folder of the shards themselves; give another one")
    out.mkdir(parents=True, exist_ok=True)
    before = after = 0
    with ProcessPoolExecutor(processes, initializer=open_all, initargs=(weights,)) as pool:
        for shard in find_shards(data):
            samples = list(raw_samples([shard]))
            labels = [json.loads(sample["json"]) for sample in samples]
            chosen = [i for i, one in enumerate(labels) if one.get("source") in source]
            label = partial(voted_labels, times=times, mirror=mirror)
            voted = pool.map(label, [samples[i] for i in chosen])
            bar = track(voted, f"Labelling {shard.name}", total=len(chosen))
            for i, new in zip(chosen, bar, strict=True):
                before, after = before + sure_faces(labels[i]), after + sure_faces(new)
                samples[i]["json"] = json.dumps(new).encode()
            write_shard(out / shard.name, samples)
    typer.echo(f"{after} sure faces where {before} were, in {out}")


def open_all(weights: list[Path]) -> None:
    """The detectors of a process."""
    DETECTORS[:] = [open_detector(path) for path in weights]


def voted_labels(sample: dict[str, Any], times: float, mirror: bool) -> dict[str, Any]:
    """The sample's labels with faces by vote."""
    photo = parse_sample(sample)
    image = np.ascontiguousarray(photo.image)
    side = round(times * max(image.shape[:2]))
    views = []
    for detect in DETECTORS:
        for view in look(detect, image, [side], mirror):
            sure = view.scores >= LEAST_VOTE
            parts = (view.boxes[sure], view.scores[sure], view.landmarks[sure])
            views.append(View(*parts, view.scale))
    faces = vote(views, LOWEST_SCORE)
    voted = replace(photo, boxes=faces.boxes, scores=faces.scores, landmarks=faces.landmarks)
    return labels_of(voted)


def write_shard(path: Path, samples: list[dict[str, Any]]) -> None:
    """The files of all samples, under the shard's name when it is whole."""
    part = path.with_name(f"{path.name}.partial")
    with tarfile.open(part, "w") as tar:
        for sample in samples:
            for kind, content in sample.items():
                if not kind.startswith("__"):
                    add_file(tar, f"{sample['__key__']}.{kind}", content)
    part.replace(path)


def sure_faces(labels: dict[str, Any]) -> int:
    """Faces that count as sure."""
    return sum(face["score"] >= FACE_SCORE for face in labels["faces"])


if __name__ == "__main__":
    typer.run(main)
