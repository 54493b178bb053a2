"""Linearizations of one network for several lengths of text: no sample is padded to the longest of all.

A program has its shapes built in. So each length has programs of its own, which share the network's weights, and a
batch is split by the length of its samples. What lies behind a text's end is masked, so the values are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from gradfeat.contexts import alone, plain
from gradfeat.linearization.build import linearize
from gradfeat.linearization.capture import Features
from gradfeat.linearization.layout import agree
from gradfeat.linearization.linearization import Linearization
from gradfeat.linearization.per_sample import SampleGradients
from gradfeat.linearization.record import LayerCall


class Split(NamedTuple):
    """z₀ or residuals of a batch, group by group.

    Attributes:
        rows: For each group the places of its samples in the batch.
        parts: For each group what its programs made of them; None where there are none.
    """

    rows: tuple[Tensor, ...]
    parts: tuple[Any, ...]

    def sample(self, i: int) -> Split:
        """Return what belongs to sample i of the batch."""
        own = [rows == i for rows in self.rows]
        return Split(
            tuple(torch.zeros(int(found.sum()), dtype=torch.int64) for found in own),
            tuple(
                tuple(value[found] for value in part) if bool(found.any()) else None
                for part, found in zip(self.parts, own, strict=True)
            ),
        )


@alone()
@plain()
def linearize_lengths(
    network: nn.Module,
    example: Tensor,
    theta2: str | Sequence[str],
    lengths: Sequence[int],
    *,
    features: Features = None,
) -> Linearization:
    """Linearize a network of texts for each of several lengths.

    Args:
        network: A module from texts (n, 2, length), ids and mask, to features (n, d).
        example: Texts, (n, 2, longest).
        theta2: As of `linearize`.
        lengths: Ascending; the last is the longest.
        features: As of `linearize`.

    Returns:
        The linearization of all lengths; of the longest alone if the network does not give the same features of a text
        without its padding.
    """
    longest = linearize(network, example, theta2, features=features)
    members = []
    for length in lengths[:-1]:
        short = example[:, :, :length].clone()
        short[:, 1, 0] = 1
        member = linearize(network, short, theta2, features=features, check=False)
        padded = torch.zeros_like(example)
        padded[:, :, :length] = short
        if not agree(longest(padded), member(short)):
            return longest
        member.share_constants(longest)
        members.append(member)
    return LengthGroups([*members, longest], lengths) if members else longest


class LengthGroups(Linearization):
    """The linearizations of a network for texts of several lengths, as one.

    It has the interface of a `Linearization`, but what `bottom` and `primal` return is a `Split`.

    Args:
        members: One for each length, at the same θ̄₂.
        lengths: Ascending.
    """

    def __init__(self, members: Sequence[Linearization], lengths: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self._blueprint = members[-1]._blueprint  # of the longest, whose report is shown
        self.members = nn.ModuleList(members)
        self.lengths = tuple(lengths)
        self.eval()

    @property
    def theta2(self) -> dict[str, Tensor]:
        """Names and values of θ̄₂."""
        return self._longest.theta2

    @property
    def programs(self) -> dict[str, fx.GraphModule]:
        """The programs of the longest texts; those of others are their members'."""
        return self._longest.programs

    @property
    def _longest(self) -> Linearization:
        return self._of(len(self.members) - 1)

    def _of(self, group: int) -> Linearization:
        return cast(Linearization, self.members[group])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LengthGroups:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for group in range(len(self.members) - 1):
            self._of(group).share_constants(self._longest)
        return self

    def group_of(self, x: Tensor) -> Tensor:
        """Return for each text, (n, 2, length), the place of the shortest length that holds all its tokens, (n,)."""
        places = torch.arange(1, x.shape[2] + 1, device=x.device)
        used = (x[:, 1].ne(0) * places).amax(1)
        return torch.bucketize(used, torch.tensor(self.lengths, device=x.device)).clamp_max(len(self.lengths) - 1).cpu()

    def bytes_of(self, group: Tensor) -> dict[str, int]:
        """Return the mean memory of "z0" and "residuals" for samples of these groups, bytes."""
        counts = torch.bincount(group, minlength=len(self.members)).tolist()
        total = dict.fromkeys(("z0", "residuals"), 0)
        for i, count in enumerate(counts):
            for name, size in self._of(i).bytes_per_sample.items():
                total[name] += count * size
        return {name: size // max(1, len(group)) for name, size in total.items()}

    @plain()
    def bottom(self, x: Any) -> Any:
        """Run what lies below θ₂ on texts (n, 2, length), each without the padding that its group does not need."""
        group = self.group_of(x)
        rows = tuple((group == i).nonzero()[:, 0] for i in range(len(self.members)))
        return Split(
            rows,
            tuple(
                self._of(i).bottom(x[own][:, :, : self.lengths[i]]) if len(own) else None for i, own in enumerate(rows)
            ),
        )

    @plain()
    def primal(self, z0: Any) -> tuple[Tensor, Any]:
        """Return f(x), (n, d), and the residuals, a `Split`."""
        found = [None if part is None else self._of(i).primal(part) for i, part in enumerate(z0.parts)]
        residuals = tuple(None if pair is None else pair[1] for pair in found)
        return _in_order(z0.rows, [pair[0] for pair in found if pair is not None]), Split(z0.rows, residuals)

    def tangent(self, w2: Mapping[str, Tensor], residuals: Any) -> Tensor:
        """Return J(x) w₂, (n, d)."""
        return _in_order(residuals.rows, [self._of(i).tangent(w2, part) for i, part in _present(residuals)])

    def network(self, theta2: Mapping[str, Tensor], z0: Any) -> Tensor:
        """Return f(x; θ₂), (n, d)."""
        return _in_order(z0.rows, [self._of(i).network(theta2, part) for i, part in _present(z0)])

    def at(self, theta2: Mapping[str, Tensor]) -> LengthGroups:
        """Return the linearization of the same network at another θ̄₂; z₀ is the same."""
        return LengthGroups([self._of(i).at(theta2) for i in range(len(self.members))], self.lengths)

    def full_precision(self) -> LengthGroups:
        """Return the linearization in the precision of the captured network, at its θ̄₂, where this one is in half."""
        return LengthGroups([self._of(i).full_precision() for i in range(len(self.members))], self.lengths)

    def sample_gradients(self, cotangents: Sequence[Tensor], residuals: Any) -> list[SampleGradients]:
        """Return J(xₙ)ᵀ u of each sample by itself, of texts of one group, as a store's batches are."""
        present = _present(residuals)
        if len(present) > 1:
            raise ValueError(f"the samples must be of one group of lengths, not of {len(present)}")
        return [found for i, part in present for found in self._of(i).sample_gradients(cotangents, part)]

    @plain()
    def _pull(self, u: Tensor, residuals: Any, layers: bool) -> tuple[dict[str, Tensor], list[LayerCall]]:
        total: dict[str, Tensor] = {}
        calls: list[LayerCall] = []
        for i, part in _present(residuals):
            found, own = self._of(i)._pull(u[residuals.rows[i]], part, layers)
            calls += own
            total = {name: value + total[name] if total else value for name, value in found.items()}
        return total, calls


def _present(split: Split) -> list[tuple[int, Any]]:
    return [(i, part) for i, part in enumerate(split.parts) if part is not None]


def _in_order(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Join what groups returned, in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts))[torch.argsort(torch.cat(list(rows))).to(parts[0].device)]
