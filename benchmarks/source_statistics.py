"""Which training photos look like WIDER FACE to V1, by what its batch normalisations remember.

    python -m benchmarks.source_statistics --data data/train \
        --teacher featherface_v1_wider.safetensors

V1 was trained on WIDER FACE, whose photos are not at hand, but its batch normalisations keep mean
and variance of every channel over them. Photos of each source are cut as V1's training cut them
(squares of 0.3 to 1 of the short side), and their channels' means are compared: the squared shift
in units of the remembered variance, a mean over channels and layers; 0 is WIDER FACE itself. Writes
``source_statistics.json`` and ``source_statistics.md``, with the mixture of sources that shifts
least. Two minutes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.comparison import Cache, Data, Out, detector_table, write_comparison
from featherface.data.shards import PhotoStore
from featherface.evaluation.validation import VALIDATION_FRACTION, VALIDATION_SEED
from featherface.models.pretrained import load_v1
from featherface.training.distillation import teacher_input

SIDE = 480
SHARES = (0.3, 0.45, 0.6, 0.8, 1.0)  # of the photo's short side
SEED = 0
LEAST_VARIANCE = 1e-6

Floats = NDArray[np.float64]


class RememberedShift:
    """How far the channels of a model's batch normalisations are shifted on other images."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self._remembered = [(m.running_mean, m.running_var) for m in norms]
        self._sums = [torch.zeros(m.num_features) for m in norms]
        self._images = 0
        self._model = model
        for number, norm in enumerate(norms):
            norm.register_forward_pre_hook(lambda _, inputs, n=number: self._add(n, inputs[0]))

    def _add(self, number: int, x: Tensor) -> None:
        self._sums[number] += x.mean((2, 3)).sum(0)

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Let the model see the images ``[B, 3, H, W]``, in its own units."""
        self._model(images)
        self._images += len(images)

    def taken(self) -> Floats:
        """The shifts since the last call, by channel; their squares add up to the mean shift."""
        parts = []
        for (mean, variance), total in zip(self._remembered, self._sums, strict=True):
            assert mean is not None
            assert variance is not None
            shift = (total / max(self._images, 1) - mean) / (variance + LEAST_VARIANCE).sqrt()
            parts.append((shift / (len(shift) * len(self._sums)) ** 0.5).double().numpy())
            total.zero_()
        self._images = 0
        return np.concatenate(parts)


def least_shift(shifts: Floats) -> Floats:
    """Shares ``[S]`` of the rows of ``shifts`` ``[S, C]`` whose mixture is shifted least.

    A mixture's means are the mixture of the means, so for each choice of rows the best shares solve
    a linear system; of those without a negative share the least shifted are the answer.
    """
    products = shifts @ shifts.T
    best = np.zeros(len(shifts))
    least = np.inf
    for count in range(1, len(shifts) + 1):
        for chosen in itertools.combinations(range(len(shifts)), count):
            rows = list(chosen)
            own = products[np.ix_(rows, rows)]
            system = np.pad(own, (0, 1), constant_values=1.0)  # the shares add up to 1
            system[count, count] = 0
            shares = np.linalg.lstsq(system, np.eye(count + 1)[count])[0][:count]
            shift = shares @ own @ shares
            if shares.min() >= 0 and shift < least:
                least = shift
                best = np.zeros(len(shifts))
                best[rows] = shares
    return best


def random_square(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square somewhere in ``image``, as RetinaFace's training cuts it, of ``SIDE`` pixels."""
    height, width = image.shape[:2]
    side = round(min(height, width) * float(rng.choice(SHARES)))
    x, y = rng.integers(width - side + 1), rng.integers(height - side + 1)
    square = np.ascontiguousarray(image[y : y + side, x : x + side])
    return np.asarray(cv2.resize(square, (SIDE, SIDE)), np.uint8)


def main(
    data: Data,
    teacher: Annotated[Path, typer.Option(help="V1's weights, trained on WIDER FACE")],
    photos: Annotated[int, typer.Option(min=1, help="of each source")] = 48,
    cache: Cache = Path("cache"),
    out: Out = Path("results"),
) -> None:
    """Measure and write."""
    store = PhotoStore(data, cache)
    training, _ = store.split(VALIDATION_FRACTION, VALIDATION_SEED)
    remembered = RememberedShift(load_v1(teacher).eval())
    rng = np.random.default_rng(SEED)
    shifts: dict[str, Floats] = {}
    for source in np.unique(store.sources[training]).tolist():
        own = training[store.sources[training] == source]
        for index in rng.choice(own, min(photos, len(own)), replace=False):
            square = torch.from_numpy(random_square(store[int(index)].image, rng))
            remembered.add(teacher_input(square.permute(2, 0, 1)[None].float()))
        shifts[source] = remembered.taken()
    rows = np.stack(list(shifts.values()))
    shares = least_shift(rows)
    mixture = shares @ rows
    written = {
        "photos": photos,
        "shift": {name: float(row @ row) for name, row in shifts.items()},
        "least": {
            "shift": float(mixture @ mixture),
            "shares": dict(zip(shifts, shares.tolist(), strict=True)),
        },
    }
    write_comparison(out, "source_statistics", written, markdown(written))


def markdown(result: dict[str, Any]) -> str:
    """The table: how far each source is shifted, and its share of the best mixture."""
    least = result["least"]
    rows = {
        name: [f"{shift:.3f}", f"{100 * least['shares'][name]:.0f} %"]
        for name, shift in result["shift"].items()
    }
    rows["mixture"] = [f"{least['shift']:.3f}", ""]
    note = (
        f"Squared shift of V1's channels from WIDER FACE's, in units of their variance there, on "
        f"{result['photos']} squares of each source; and the mixture that shifts least."
    )
    return detector_table(["shift", "share of the mixture"], rows, note, of="source")


if __name__ == "__main__":
    typer.run(main)
