"""The problem that steps 2 and 3 are about: samples, targets, a loss, and the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradfeat.fit.checkpoint import Checkpoint
from gradfeat.linearization import Linearization
from gradfeat.losses import Loss
from gradfeat.samples import SampleStore
from gradfeat.solvers.probe import Probe


@dataclass(frozen=True)
class Problem:
    """A data set, a network and a loss, ready for any of the four models.

    Attributes:
        store: The samples, as the programs need them.
        y: Targets of all rows of the store: (n,) class indices, or (n, c).
        weight: A weight for each row, (n,), or None.
        loss: The task's loss.
        probe: ω̄ and its intercept, from the activations (step 2).
        seconds: Time that making this took, by part.
        views: How many versions of each sample there are (2 with mirror images): row i of the store is a version of
            sample ``i % (n / views)``.
        checkpoint: Where finished parts of a fit are kept, or None.
        fixed_omega: The ω of the gradients where it is given from outside, as in an ablation; None: a probe, as the
            method says.
        omega_penalties: Penalties of ω̄ that a choice tries, by mode, in units of the best probe's, where they are known
            (`gradfeat.fit.depth`); a mode that is not there tries all of `gradfeat.fit.penalties.GRID`.
    """

    store: SampleStore
    y: Tensor
    weight: Tensor | None
    loss: Loss
    probe: Probe
    seconds: dict[str, float] = field(default_factory=dict)
    views: int = 1
    checkpoint: Checkpoint | None = None
    fixed_omega: Probe | None = None
    omega_penalties: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of samples, versions not counted."""
        return len(self.store) // self.views

    @property
    def outputs(self) -> int:
        """Number of outputs, c."""
        return self.probe.omega.shape[1]

    @property
    def linearization(self) -> Linearization:
        """The network's programs."""
        return self.store.linearization

    def subset(self, rows: Tensor, *, views: int = 1) -> Problem:
        """Return the problem of some rows of the store, without a checkpoint; the probe is still that of all.

        Args:
            rows: Indices into the store, (m,).
            views: Versions of each sample among them; 1: each row is a sample.
        """
        return replace(
            self,
            store=self.store.rows(rows),
            y=self.y[rows],
            weight=self.weight_of(rows),
            views=views,
            checkpoint=None,
        )

    def at(self, linearization: Linearization) -> Problem:
        """Return the problem where θ̄₂ has moved to another linearization of the same network."""
        return self if linearization is self.linearization else replace(self, store=self.store.at(linearization))

    def all_views(self, samples: Tensor) -> Tensor:
        """Return the rows of all versions of some samples."""
        return torch.cat([samples + view * self.n for view in range(self.views)])

    def random_views(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Return the rows of one version of each of some samples."""
        if self.views == 1:
            return samples
        return samples + self.n * torch.randint(0, self.views, (len(samples),), generator=generator)

    def weight_of(self, rows: Tensor) -> Tensor | None:
        """Return the weights of some rows, or None where all count the same."""
        return None if self.weight is None else self.weight[rows]
