"""A training step as a CUDA graph: a net this small keeps a GPU waiting for its next kernel.

A step of V2 with V1 as its teacher is some 2,500 kernels, most of them shorter than the time that
Python takes to start one. Recorded once for each size of crop and replayed, they follow each other
at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from featherface.data.dataset import Batch
from featherface.training.losses import Targets
from featherface.training.schedules import TermWeights

FIRST_STEPS = 3

Kind = tuple[int, ...]
Outcome = tuple[dict[str, Tensor], Tensor]


@dataclass
class Recording:
    """A graph, the tensors that it reads, and what it leaves behind."""

    graph: Any
    images: Tensor
    targets: Targets
    weights: Tensor
    outcome: Outcome


class GraphedStep:
    """``take_step`` for batches of a few sizes; the first of each size are stepped as they are.

    Faces are matched before, outside the graph, as their number differs from batch to batch. Where
    the schedule lets a term begin or end, steps are recorded anew. What a step returns holds until
    the next one.
    """

    def __init__(
        self,
        take_step: Callable[[Tensor, Targets, TermWeights], Outcome],
        match: Callable[[Batch], Targets],
    ) -> None:
        self.take_step, self.match = take_step, match
        self.steps: Counter[Kind] = Counter()
        self.recordings: dict[Kind, Recording] = {}
        self.stream = torch.cuda.Stream()
        self.memory = torch.cuda.graph_pool_handle()

    def __call__(self, images: Tensor, batch: Batch, weights: TermWeights) -> Outcome:
        kind = images.shape[-1], *(int(weight > 0) for weight in weights)
        targets = self.match(batch)
        self.steps[kind] += 1
        if self.steps[kind] <= FIRST_STEPS:
            # Libraries choose their ways and make their work spaces in these, not while recording.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outcome = self.take_step(images, targets, weights)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outcome
        if kind not in self.recordings:
            self.recordings[kind] = self.record(images, targets, weights)
        recording = self.recordings[kind]
        recording.images.copy_(images)
        for field in fields(Targets):
            getattr(recording.targets, field.name).copy_(getattr(targets, field.name))
        for place, weight in zip(recording.weights, weights, strict=True):
            place.fill_(weight)
        recording.graph.replay()
        return recording.outcome

    def record(self, images: Tensor, targets: Targets, weights: TermWeights) -> Recording:
        """Record a step for batches of this size and terms of these, without taking it."""
        images = images.clone()
        targets = Targets(*(getattr(targets, field.name).clone() for field in fields(Targets)))
        places = torch.ones(len(TermWeights._fields), device=images.device)
        asked = (x if weight > 0 else 0.0 for x, weight in zip(places, weights, strict=True))
        terms = TermWeights(*asked)
        graph = torch.cuda.CUDAGraph()
        # Another thread pins the next batches meanwhile, which a global check would forbid.
        with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):
            outcome = self.take_step(images, targets, terms)
        return Recording(graph, images, targets, places, outcome)
