"""Naive references of what is decided by validation data: dense, in float64, a few lines for each rule that is stated.

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
LAMBDA1 = (0.3, 1, 10, 100)  # λ₁, in the same units
FIRST, MORE = ((4, 1), (5, 1)), ((6, 2), (8, 2))  # indices into the grid, and iterations there at most
Split = tuple[np.ndarray, np.ndarray]


def activations(network: nn.Module, X: np.ndarray, theta2: dict[str, Tensor]) -> np.ndarray:
    """Return f(x; θ₂), (n, d)."""
    with torch.no_grad():
        f: Tensor = functional_call(network, theta2, (torch.from_numpy(X),))
    return f.numpy()


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
    lengths = [np.linalg.norm(vector) for vector in directions]
    given = [vector / length for vector, length in zip(directions, lengths, strict=True) if length > 0]
    basis: list[np.ndarray] = []
    for vector in given:
        for _ in range(2):
            for other in basis:
                vector = vector - (vector @ other) * other
        if np.linalg.norm(vector) > 1e-9:
            basis.append(vector / np.linalg.norm(vector))
    return np.array(basis).T if basis else np.zeros((size, 0))


class Span:
    """Some directions of w₁, each (d,), and of w₂, each (p,), of one ω̄ on the samples that are fitted to."""

    def __init__(self, data: Dense, omega: np.ndarray, w1: Sequence[np.ndarray], w2: Sequence[np.ndarray] = ()) -> None:
        self.data, self.omega, self.phi = data, omega, data.features(omega)
        self.diagonal = data.share @ self.phi**2
        self.length = float(self.diagonal.sum())
        self.w1, self.w2 = list(w1), list(w2)

    def weights(self, lambda1: float, index: int) -> tuple[np.ndarray, float, np.ndarray]:
        """Return w₁, b and w₂ at the minimum."""
        first, second = (
            orthonormal(part, size) for part, size in ((self.w1, len(self.omega)), (self.w2, self.phi.shape[1]))
        )
        k = first.shape[1]
        penalties = np.r_[[lambda1] * k, [self.penalty(index)] * second.shape[1]]
        a, b = ridge(np.hstack([self.data.f @ first, self.phi @ second]), self.data, penalties)
        return first @ a[:k], b, second @ a[k:]

    def penalty(self, index: int) -> float:
        """Return λ₂ at an index of the grid."""
        return GRID[index] * self.length / len(self.data.y)

    def grow(self, lambda1: float, index: int, most: int, tolerance: float = 1e-2) -> None:
        """Add preconditioned gradients in w₁ and w₂ until they promise little."""
        data, light = self.data, self.penalty(index)
        centred = data.f - data.share @ data.f
        hessian = centred.T @ (data.share[:, None] * centred) + lambda1 * np.eye(len(self.omega))
        for _ in range(most):
            w1, b, w2 = self.weights(lambda1, index)
            slope = data.share * (data.f @ w1 + b + self.phi @ w2 - data.y)
            gradient1, gradient2 = centred.T @ slope + lambda1 * w1, self.phi.T @ slope + light * w2
            step1, step2 = np.linalg.solve(hessian, gradient1), gradient2 / (self.diagonal + light)
            self.w1.append(step1)
            self.w2.append(step2)
            w1, b, w2 = self.weights(lambda1, index)
            value = data.loss(data.f @ w1 + b + self.phi @ w2) + (lambda1 * w1 @ w1 + light * w2 @ w2) / 2
            if gradient1 @ step1 + gradient2 @ step2 <= tolerance * value:
                break

    def validation_losses(self, data: Dense, lambda1s: Sequence[float]) -> np.ndarray:
        """Return the loss of other samples for each λ₁ and λ₂."""
        phi = data.features(self.omega)

        def loss(lambda1: float, index: int) -> float:
            w1, b, w2 = self.weights(lambda1, index)
            return data.loss(data.f @ w1 + b + phi @ w2)

        return np.array([[loss(lambda1, index) for index in range(len(GRID))] for lambda1 in lambda1s])


def choice(data: Dense, splits: Sequence[Split], light: float) -> tuple[dict[tuple[float, ...], float], int]:
    """Choose penalties as the documentation says, under ‖w₂‖².

    Returns:
        The mean validation loss by the penalties (ω̄, λ₁, λ₂ in units), and how many directions were grown at most.
    """
    lambda1s = [light * factor for factor in LAMBDA1]
    path: dict[tuple[float, ...], float] = {}
    losses: dict[float, np.ndarray] = {}
    spans: dict[float, list[Span]] = {}
    stopped = False
    fitted = [(data.rows(train), data.rows(validation)) for train, validation in splits]

    def judged(group: list[Span]) -> np.ndarray:
        return np.mean(
            [span.validation_losses(validation, lambda1s) for span, (_, validation) in zip(group, fitted, strict=True)],
            0,
        )

    for omega in (light * factor for factor in OMEGAS):
        probes = [ridge(train.f, train, np.full(train.f.shape[1], omega)) for train, _ in fitted]
        alone = [part.loss(part.f @ w1 + b) for (w1, b), (_, part) in zip(probes, fitted, strict=True)]
        path[omega, omega, np.inf] = float(np.mean(alone))
        if stopped:
            continue
        of_omega = [Span(train, w1, np.eye(len(w1))) for (w1, _), (train, _) in zip(probes, fitted, strict=True)]
        length = float(np.mean([span.length for span in of_omega]))  # so that an index means the same in all splits
        for span in of_omega:
            span.length = length
            for index, most in FIRST:
                span.grow(light, index, most)
        grid = judged(of_omega)
        stopped = bool(losses) and grid.min() >= min(loss.min() for loss in losses.values())  # try no heavier ones
        losses[omega], spans[omega] = grid, of_omega
    best = min(losses, key=lambda omega: losses[omega].min())
    iterations, before = 2, FIRST[-1][0]
    for index, most in MORE:
        if losses[best].min(0).argmin() < before - 1:  # lighter penalties only do harm
            break
        for span in spans[best]:
            span.grow(light, index, most)
        grid = judged(spans[best])
        if grid.min() > losses[best].min() * (1 - 1e-3):  # growing further does not help
            break
        losses[best], before = grid, index
        iterations += most
    for omega, grid in losses.items():
        for j, k in np.ndindex(*grid.shape):
            path[omega, lambda1s[j], GRID[k]] = float(grid[j, k])
    return path, iterations


@dataclass(frozen=True)
class Move:
    """A step of θ₂ that was taken: λ₁ and λ₂, and how many directions had been grown."""

    lambda1: float
    lambda2: float
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
        Of each step the network's loss on the validation part, after the step and after those with the λ₂ of the grid
        beside it, heavier and lighter: (3,). Before them the loss that the rounds start from, (1,).
    """
    X, y, weight = samples
    train, validation = split
    judge = Dense(np.zeros(0), np.zeros(0), y[validation], weight[validation])

    def loss(values: dict[str, Tensor], w1: np.ndarray, b: float) -> float:
        return judge.loss(activations(network, X[validation], values) @ w1 + b)

    def moved(step: np.ndarray) -> dict[str, Tensor]:
        parts = torch.from_numpy(step).split([value.numel() for value in theta2.values()])
        return {name: value + part.view_as(value) for (name, value), part in zip(theta2.items(), parts, strict=True)}

    data = Dense.of(network, X[train], y[train], weight[train], theta2)
    w1, b = ridge(data.f, data, np.full(data.f.shape[1], penalty))
    losses = [np.array([loss(theta2, w1, b)])]
    last: list[np.ndarray] = []  # the step before is a direction
    for move in moves:
        span = Span(Dense.of(network, X[train], y[train], weight[train], theta2), w1, [w1], last)
        for _ in range(move.directions):  # under the penalty of the first ω̄, at one unit of λ₂
            span.grow(penalty, 4, 1, tolerance=-1.0)
        index = int(np.argmin([abs(np.log(span.penalty(k) / move.lambda2)) for k in range(len(GRID))]))
        indices = (index, max(index - 1, 0), min(index + 1, len(GRID) - 1))
        minima = [span.weights(move.lambda1, k) for k in indices]
        losses.append(np.array([loss(moved(step), w, bias) for w, bias, step in minima]))
        w1, b, step = minima[0]
        theta2, last = moved(step), [step]
    return losses
