"""Naive references of what is decided by held-out data: dense, in float64, a few lines for each rule that is stated.

They are of one output under a squared loss, and of a θ₂ whose Kronecker factors are a diagonal, so that nothing in them
is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

GRID = [10 ** (2 - k / 2) for k in range(11)]  # λ₂, in units: from 100 down to 0.001
OMEGAS = (1, 10, 100, 1000)  # penalties of ω̄, and of the probes alone, in units of the best probe's
HEADS = (0.3, 1, 10, 100)  # λ₁, in the same units
FIRST, MORE = ((4, 1), (5, 1)), ((6, 2), (8, 2))  # places of the grid, and iterations there at most
Split = tuple[np.ndarray, np.ndarray]


def activations(network: nn.Module, X: np.ndarray, theta2: dict[str, Tensor]) -> np.ndarray:
    """Return f(x; θ₂), (n, d)."""
    with torch.no_grad():
        found: Tensor = functional_call(network, theta2, (torch.from_numpy(X),))
    return found.numpy()


@dataclass(frozen=True)
class Dense:
    """Activations (n, d), Jacobians (n, d, p), targets (n,) and weights (n,) of some samples."""

    f: np.ndarray
    jacobian: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(network: nn.Module, X: np.ndarray, y: np.ndarray, weight: np.ndarray, theta2: dict[str, Tensor]) -> Dense:
        """Return those of a network at a point θ₂."""

        def features(values: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(network, values, (sample[None],))[0]

        jacobian = vmap(jacrev(features), in_dims=(None, 0))(theta2, torch.from_numpy(X))
        flat = torch.cat([jacobian[name].flatten(2) for name in theta2], 2).detach().numpy()
        return Dense(activations(network, X, theta2), flat, y, weight)

    def rows(self, rows: np.ndarray) -> Dense:
        """Return some of the samples."""
        return Dense(self.f[rows], self.jacobian[rows], self.y[rows], self.weight[rows])

    def features(self, omega: np.ndarray) -> np.ndarray:
        """Return ω̄ᵀJ, (n, p)."""
        return np.einsum("d,ndp->np", omega, self.jacobian)

    @property
    def share(self) -> np.ndarray:
        """Weights of sum one."""
        return self.weight / self.weight.sum()

    def loss(self, logits: np.ndarray) -> float:
        """Return the weighted mean loss."""
        return float(self.share @ (logits - self.y) ** 2 / 2)


def ridge(Z: np.ndarray, data: Dense, penalties: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the minimum of the penalized loss of ``Z a + b``: a, and b."""
    mean, target = data.share @ Z, data.share @ data.y
    centred, root = Z - mean, np.sqrt(data.share)[:, None]
    left = (root * centred).T @ (root * centred) + np.diag(penalties)
    a = np.linalg.solve(left, centred.T @ (data.share * (data.y - target)))
    return a, float(target - mean @ a)


def orthonormal(directions: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return a basis of the span of some directions, (size, r); what is rounding alone is none."""
    lengths = [np.linalg.norm(own) for own in directions]
    given = [own / length for own, length in zip(directions, lengths, strict=True) if length > 0]
    basis: list[np.ndarray] = []
    for own in given:
        for _ in range(2):
            for other in basis:
                own = own - (own @ other) * other
        if np.linalg.norm(own) > 1e-9:
            basis.append(own / np.linalg.norm(own))
    return np.array(basis).T if basis else np.zeros((size, 0))


class Span:
    """Some directions of w₁, each (d,), and of w₂, each (p,), of one ω̄ on the samples that are fitted to."""

    def __init__(self, data: Dense, omega: np.ndarray, w1: Sequence[np.ndarray], w2: Sequence[np.ndarray] = ()) -> None:
        self.data, self.omega, self.phi = data, omega, data.features(omega)
        self.diagonal = data.share @ self.phi**2
        self.length = float(self.diagonal.sum())
        self.w1, self.w2 = list(w1), list(w2)

    def weights(self, head: float, place: int) -> tuple[np.ndarray, float, np.ndarray]:
        """Return w₁, b and w₂ at the minimum."""
        first, second = (
            orthonormal(part, size) for part, size in ((self.w1, len(self.omega)), (self.w2, self.phi.shape[1]))
        )
        k = first.shape[1]
        penalties = np.r_[[head] * k, [self.penalty(place)] * second.shape[1]]
        a, b = ridge(np.hstack([self.data.f @ first, self.phi @ second]), self.data, penalties)
        return first @ a[:k], b, second @ a[k:]

    def penalty(self, place: int) -> float:
        """Return λ₂ at a place of the grid."""
        return GRID[place] * self.length / len(self.data.y)

    def grow(self, head: float, place: int, most: int, tolerance: float = 1e-2) -> None:
        """Add preconditioned gradients in w₁ and w₂ until they promise little."""
        data, light = self.data, self.penalty(place)
        centred = data.f - data.share @ data.f
        hessian = centred.T @ (data.share[:, None] * centred) + head * np.eye(len(self.omega))
        for _ in range(most):
            w1, b, w2 = self.weights(head, place)
            slope = data.share * (data.f @ w1 + b + self.phi @ w2 - data.y)
            gradient1, gradient2 = centred.T @ slope + head * w1, self.phi.T @ slope + light * w2
            step1, step2 = np.linalg.solve(hessian, gradient1), gradient2 / (self.diagonal + light)
            self.w1.append(step1)
            self.w2.append(step2)
            w1, b, w2 = self.weights(head, place)
            value = data.loss(data.f @ w1 + b + self.phi @ w2) + (head * w1 @ w1 + light * w2 @ w2) / 2
            if gradient1 @ step1 + gradient2 @ step2 <= tolerance * value:
                break

    def held_out(self, data: Dense, heads: Sequence[float]) -> np.ndarray:
        """Return the loss of other samples for each λ₁ and λ₂."""
        phi = data.features(self.omega)

        def loss(head: float, place: int) -> float:
            w1, b, w2 = self.weights(head, place)
            return data.loss(data.f @ w1 + b + phi @ w2)

        return np.array([[loss(head, place) for place in range(len(GRID))] for head in heads])


def choice(data: Dense, splits: Sequence[Split], light: float) -> tuple[dict[tuple[float, ...], float], int]:
    """Choose penalties as the documentation says, under ‖w₂‖².

    Returns:
        The mean held-out loss by the penalties (ω̄, λ₁, λ₂ in units), and how many directions were grown at most.
    """
    heads = [light * factor for factor in HEADS]
    path: dict[tuple[float, ...], float] = {}
    losses: dict[float, np.ndarray] = {}
    spans: dict[float, list[Span]] = {}
    stopped = False
    fitted = [(data.rows(seen), data.rows(held)) for seen, held in splits]

    def judged(own: list[Span]) -> np.ndarray:
        return np.mean([span.held_out(held, heads) for span, (_, held) in zip(own, fitted, strict=True)], 0)

    for omega in (light * factor for factor in OMEGAS):
        probes = [ridge(seen.f, seen, np.full(seen.f.shape[1], omega)) for seen, _ in fitted]
        alone = [held.loss(held.f @ w1 + b) for (w1, b), (_, held) in zip(probes, fitted, strict=True)]
        path[omega, omega, np.inf] = float(np.mean(alone))
        if stopped:
            continue
        own = [Span(seen, w1, np.eye(len(w1))) for (w1, _), (seen, _) in zip(probes, fitted, strict=True)]
        length = float(np.mean([span.length for span in own]))  # so that a place means the same in all splits
        for span in own:
            span.length = length
            for place, most in FIRST:
                span.grow(light, place, most)
        found = judged(own)
        stopped = bool(losses) and found.min() >= min(loss.min() for loss in losses.values())  # try no heavier ones
        losses[omega], spans[omega] = found, own
    best = min(losses, key=lambda omega: losses[omega].min())
    iterations, before = 2, FIRST[-1][0]
    for place, most in MORE:
        if losses[best].min(0).argmin() < before - 1:  # lighter penalties only do harm
            break
        for span in spans[best]:
            span.grow(light, place, most)
        found = judged(spans[best])
        if found.min() > losses[best].min() * (1 - 1e-3):  # growing further does not help
            break
        losses[best], before = found, place
        iterations += most
    for omega, found in losses.items():
        for j, k in np.ndindex(*found.shape):
            path[omega, heads[j], GRID[k]] = float(found[j, k])
    return path, iterations


@dataclass(frozen=True)
class Move:
    """A step of θ₂ that was taken: λ₁, λ₂ times the number of samples, and how many directions had been grown."""

    w1: float
    w2: float
    directions: int


def follow(
    network: nn.Module,
    theta2: dict[str, Tensor],
    samples: tuple[np.ndarray, np.ndarray, np.ndarray],
    split: Split,
    penalty: float,
    moves: Sequence[Move],
) -> list[np.ndarray]:
    """Repeat the steps of rounds from their penalties.

    Returns:
        Of each step the network's loss on what was held out, after the step and after those with the λ₂ of the grid
        beside it, heavier and lighter: (3,). Before them the loss that the rounds start from, (1,).
    """
    X, y, weight = samples
    seen, held = split
    judge = Dense(np.zeros(0), np.zeros(0), y[held], weight[held])

    def loss(values: dict[str, Tensor], w1: np.ndarray, b: float) -> float:
        return judge.loss(activations(network, X[held], values) @ w1 + b)

    def moved(step: np.ndarray) -> dict[str, Tensor]:
        parts = torch.from_numpy(step).split([value.numel() for value in theta2.values()])
        return {name: value + part.view_as(value) for (name, value), part in zip(theta2.items(), parts, strict=True)}

    data = Dense.of(network, X[seen], y[seen], weight[seen], theta2)
    w1, b = ridge(data.f, data, np.full(data.f.shape[1], penalty))
    losses = [np.array([loss(theta2, w1, b)])]
    last: list[np.ndarray] = []  # the step before is a direction
    for move in moves:
        span = Span(Dense.of(network, X[seen], y[seen], weight[seen], theta2), w1, [w1], last)
        for _ in range(move.directions):  # under the penalty of the first ω̄, at one unit of λ₂
            span.grow(penalty, 4, 1, tolerance=-1.0)
        place = int(np.argmin(np.abs(np.log(np.array(GRID) * span.length / move.w2))))
        places = (place, max(place - 1, 0), min(place + 1, len(GRID) - 1))
        found = [span.weights(move.w1, k) for k in places]
        losses.append(np.array([loss(moved(step), w, bias) for w, bias, step in found]))
        w1, b, step = found[0]
        theta2, last = moved(step), [step]
    return losses
