"""One data set, one encoder and one way to train: what the cells of a table are computed from."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.backbones import Backbone
from gradfeat.data import Inputs
from gradfeat.data.crops import Crops, views_of
from gradfeat.data.inputs import in_parts
from gradfeat.fit import Fit, Problem
from gradfeat.fit.checkpoint import Checkpoint
from gradfeat.fit.linearize import linearize_backbone
from gradfeat.fit.predict import store_logits
from gradfeat.linearization.capture import FeatureExtractor, evaluation_mode
from gradfeat.losses import Loss
from gradfeat.metrics.evaluation import mean_of_views, metrics_of
from gradfeat.reproduce.ablation import ablation_problem, mixed_network, random_probe
from gradfeat.reproduce.cells import Cell, Result
from gradfeat.reproduce.data import LabelledData
from gradfeat.reproduce.protocols import Protocol, fit
from gradfeat.reproduce.scales import Scale
from gradfeat.samples.store import Batches, SampleStore
from gradfeat.solvers.probe import Probe, fit_probe

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Samples:
    """The labelled draw of a seed, with its activations and probe: the same for all rows.

    Attributes:
        inputs: Training images, as the network takes them.
        y: Their classes, (n,), or labels, (n, c).
        f: Their activations, (n, d).
        test: Test images, or some views of each in a row.
        y_test: (m,) or (m, c).
        f_test: (m · views, d).
        probe: ω̄ on `f`, its penalty chosen by cross-validation.
    """

    inputs: Inputs
    y: Tensor
    f: Tensor
    test: Inputs | Crops
    y_test: np.ndarray
    f_test: Tensor
    probe: Probe


Baseline = Callable[[Samples, Backbone, int, Path | None], Result]
"""A row under a table: from the samples, the encoder, a seed and a folder for finished parts to numbers, those of the
table's metrics among them."""


@dataclass(frozen=True)
class Gradients:
    """The network that gradients are taken of, in one row of a table.

    Attributes:
        depth: Column of the table: how many of the topmost convolutions or blocks are θ₂.
        theta1: "pre-trained" or "random".
        theta2: The same.
        omega: The same.
    """

    depth: int
    theta1: str = "pre-trained"
    theta2: str = "pre-trained"
    omega: str = "pre-trained"

    @property
    def name(self) -> str:
        """For cells."""
        return f"depth{self.depth}.{self.theta1}.{self.theta2}.{self.omega}"


@dataclass(frozen=True)
class Conditions:
    """How all cells of a run are computed.

    Attributes:
        scale: How long schedules may be, and how penalties are chosen.
        protocol: How step 3 is done.
        labelled: Labelled training images in a draw; None: all.
        device: Of the programs and samples.
        parts: Folder for what is finished of a cell that is being computed; None keeps nothing.
    """

    scale: Scale
    protocol: Protocol
    labelled: int | None = None
    device: str = "cpu"
    parts: Path | None = None


class Setting:
    """What the cells of one data set and encoder share; the samples of one network are kept at a time.

    Args:
        data: The images.
        backbone: The pre-trained network.
        conditions: How it is computed.
        columns: θ₂ of each depth, names of modules or "auto", by the name of the column.
        crops: Views of each test image whose predictions are averaged: 1 is the centre crop.
        prefix: Of the cells' names.
    """

    def __init__(
        self,
        data: LabelledData,
        backbone: Backbone,
        conditions: Conditions,
        *,
        columns: Mapping[str, str | Sequence[str]],
        crops: int = 1,
        prefix: str = "",
    ) -> None:
        self.data, self.backbone, self.conditions = data, backbone, conditions
        self.scale, self.protocol = conditions.scale, conditions.protocol
        self.columns, self.crops, self.prefix = columns, crops, prefix
        self.loss: Loss = data.loss
        self._samples: tuple[int, Samples] | None = None
        self._kept: tuple[Any, Problem, SampleStore] | None = None

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """What the numbers depend on, beside the name of a cell."""
        variables = self.protocol.parametrization
        return {
            "theta2": {name: part if isinstance(part, str) else list(part) for name, part in self.columns.items()},
            "crops": self.crops,
            "data": f"{self.data.name} {self.data.digest()}",
            "encoder": self.backbone.fingerprint,
            "scale": self.scale.name,
            "labelled": self.conditions.labelled,
            "protocol": self.protocol.name,
            "iterations": self.scale.iterations,
            "splits": self.scale.splits,
            **({} if variables == "standard" else {"parametrization": variables}),
        }

    def activation(self, seed: int) -> Cell:
        """Return the cell of the probe itself."""
        return Cell(f"{self.prefix}seed{seed}.activation", partial(self._activation, seed))

    def cell(self, seed: int, mode: str, gradients: Gradients) -> Cell:
        """Return the cell of `gradient`, `full` or `finetune`."""
        name = f"{self.prefix}seed{seed}.{gradients.name}.{mode}"
        parts = self._parts(name)
        return Cell(name, partial(self._fitted, seed, mode, gradients, parts), parts)

    def baseline(self, seed: int, name: str, function: Baseline) -> Cell:
        """Return the cell of another method on the same samples."""
        cell = f"{self.prefix}seed{seed}.baseline.{name.lower().replace(' ', '-')}"
        parts = self._parts(cell)
        return Cell(cell, lambda: function(self.samples(seed), self.backbone, seed, parts), parts)

    def _parts(self, cell: str) -> Path | None:
        """Return the folder for what is finished of a cell."""
        return None if self.conditions.parts is None else self.conditions.parts / cell

    def theta2(self, depth: int) -> str | list[str]:
        """Return θ₂ of a column, counted from 1."""
        theta2 = list(self.columns.values())[depth - 1]
        return theta2 if isinstance(theta2, str) else list(theta2)

    def samples(self, seed: int) -> Samples:
        """Return the draw of a seed."""
        if self._samples is None or self._samples[0] != seed:
            self._samples = (seed, self._draw(seed))
        return self._samples[1]

    def _draw(self, seed: int) -> Samples:
        images, labels = self.data.labelled(self.conditions.labelled, seed)
        inputs = Inputs(images, self.backbone.preprocessing)
        test = views_of(Inputs(self.data.test, self.backbone.preprocessing), self.crops)
        device = torch.device(self.conditions.device)
        f, f_test = (activations_of(self.backbone, part, device) for part in (inputs, test))
        y = torch.from_numpy(labels).to(device)
        probe = fit_probe(f, y, self.loss, random_state=seed)
        return Samples(inputs, y, f, test, self.data.y_test, f_test, probe)

    def problem(self, seed: int, gradients: Gradients) -> tuple[Problem, SampleStore]:
        """Return the problem of a row, and the test samples for it."""
        key = (seed, replace(gradients, omega="pre-trained"))
        samples = self.samples(seed)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            gc.collect()  # the residuals of the network before, which may fill half of the memory
            network = self._network(seed, gradients, samples)
            linearization = linearize_backbone(
                network, samples.inputs.example(3), self.theta2(gradients.depth), self.conditions.device
            )
            store = SampleStore(linearization, samples.inputs, features=samples.f)
            problem = ablation_problem(store, samples.y, self.loss, samples.probe)
            test = SampleStore(linearization, samples.test, features=samples.f_test)
            self._kept = (key, problem, test)
        _, problem, test = self._kept
        if gradients.omega == "random":
            problem = replace(problem, fixed_omega=random_probe(samples.probe, seed))
        return problem, test

    def _network(self, seed: int, gradients: Gradients, samples: Samples) -> Backbone:
        if gradients.theta1 == gradients.theta2 == "pre-trained":
            return self.backbone
        theta2 = self.theta2(gradients.depth)
        mixed = mixed_network(
            self.backbone.network,
            [theta2] if isinstance(theta2, str) else theta2,
            theta1=gradients.theta1,
            theta2=gradients.theta2,
            images=samples.inputs,
            seed=seed,
            device=self.conditions.device,
        )
        return replace(self.backbone, network=mixed)

    def _activation(self, seed: int) -> Result:
        samples = self.samples(seed)
        logits = samples.f_test @ samples.probe.omega + samples.probe.bias
        return {**self._judge(logits, samples.y_test), "penalty": samples.probe.penalty}

    def _fitted(self, seed: int, mode: str, gradients: Gradients, parts: Path | None) -> Result:
        problem, test = self.problem(seed, gradients)
        if parts is not None:
            about = {"activations": problem.store.features, "targets": problem.y}
            checkpoint = Checkpoint(parts, self.configuration).of(problem.linearization.theta2, about)
            problem = replace(problem, checkpoint=checkpoint)
        found = fit(
            problem, mode, self.protocol, iterations=self.scale.iterations, splits=self.scale.splits, random_state=seed
        )
        logits = store_logits(found.model, test, _BATCH)
        return {**self._judge(logits, self.samples(seed).y_test), "how": _how(found), "notes": found.notes}

    def _judge(self, logits: Tensor, truth: np.ndarray) -> dict[str, float]:
        return metrics_of(self.loss, mean_of_views(logits, self.crops, self.loss).double().cpu().numpy(), truth)


def activations_of(backbone: Backbone, inputs: Batches, device: torch.device) -> Tensor:
    """Return f(x) of all samples, (n, d), on a device; the network comes back to where it was."""
    was = next(backbone.network.parameters()).device
    extractor = FeatureExtractor(backbone.network, backbone.features).to(device)
    with torch.no_grad(), evaluation_mode(extractor):
        f = torch.cat([extractor((inputs.batch(part).to(device),), {}) for part in in_parts(len(inputs), _BATCH)])
    extractor.to(was)
    return f


def _how(found: Fit) -> str:
    """Say how a model was fitted, in one line."""
    return "; ".join(str(part) for part in (found.choice, found.solution, found.selection) if part is not None)
