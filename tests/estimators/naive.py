"""Naive references of what is decided by validation data: dense, in float64, a few lines for each rule that is stated.

Those of penalties are of one output under a squared loss, and of a θ₂ whose Kronecker factors are a diagonal, so that
nothing in them is drawn at random. That of rounds is of any loss, and draws its minibatches as torch does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

GRID = [10 ** (2 - k / 2) for k in range(11)]  # λ₂, in units: from 100 down to 0.001
OMEGAS = (1, 10, 100, 1000)  # penalties of ω̄, and of the probes alone, in units of the best probe's
LAMBDA1 = (0.3, 1, 10, 100)  # λ₁, in the same units
FIRST, MORE = ((4, 1),), ((5, 1), (6, 2))  # indices into the grid, and iterations there at most
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


def choice(
    data: Dense, splits: Sequence[Split], light: float, first: int | None = None
) -> tuple[dict[tuple[float, ...], float], int]:
    """Choose penalties as the documentation says, under ‖w₂‖², ω̄ by the first splits alone (None: by all).

    Returns:
        The mean validation loss by the penalties (ω̄, λ₁, λ₂ in units), and how many directions were grown at most.
    """
    lambda1s = [light * factor for factor in LAMBDA1]
    path: dict[tuple[float, ...], float] = {}
    losses: dict[float, np.ndarray] = {}
    spans: dict[float, list[Span]] = {}
    stopped, of_first = False, slice(first)
    fitted = [(data.rows(train), data.rows(validation)) for train, validation in splits]

    def judged(group: list[Span]) -> np.ndarray:
        pairs = zip(group, fitted[: len(group)], strict=True)
        return np.mean([span.validation_losses(validation, lambda1s) for span, (_, validation) in pairs], 0)

    for omega in (light * factor for factor in OMEGAS):
        probes = [ridge(train.f, train, np.full(train.f.shape[1], omega)) for train, _ in fitted]
        alone = [part.loss(part.f @ w1 + b) for (w1, b), (_, part) in zip(probes, fitted, strict=True)]
        path[omega, omega, np.inf] = float(np.mean(alone))
        if stopped:
            continue
        of_omega = [Span(train, w1, np.eye(len(w1))) for (w1, _), (train, _) in zip(probes, fitted, strict=True)]
        # so that an index means the same in all splits
        length = float(np.mean([span.length for span in of_omega[of_first]]))
        for span in of_omega:
            span.length = length
            for index, most in FIRST:
                span.grow(light, index, most)
        grid = judged(of_omega[of_first])
        stopped = bool(losses) and grid.min() >= min(loss.min() for loss in losses.values())  # try no heavier ones
        losses[omega], spans[omega] = grid, of_omega
    best = min(losses, key=lambda omega: losses[omega].min())
    if first is not None:  # the others are not judged by all splits
        losses = {best: judged(spans[best])}
    iterations, before = 1, FIRST[-1][0]
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


# ---- rounds: plain torch, with any loss -----------------------------------------------------------------------------

TEMPERATURES = np.logspace(-1, 1, 81)
Head = tuple[Tensor, Tensor]  # (d, c) and (c,)
Each = Callable[[Tensor, Tensor], Tensor]  # the loss of each sample, (m,)


@dataclass(frozen=True)
class Samples:
    """Samples (n, ...), targets (n, ...) and weights (n,)."""

    X: Tensor
    y: Tensor
    weight: Tensor

    def rows(self, rows: Tensor) -> Samples:
        """Return some of them."""
        return Samples(self.X[rows], self.y[rows], self.weight[rows])


@dataclass
class Rounds:
    """Held-out losses of the probe and of each rate, which one is taken, its temperature, and where all ends."""

    start: float
    losses: list[float]
    best: int
    temperature: float
    training: list[list[float]]
    network: nn.Module
    head: Head


def trained(
    network: nn.Module, head: Head, samples: Samples, each: Each, rate: float, passes: int, seed: int
) -> tuple[nn.Module, Head, list[float]]:
    """Return a copy of the network and its head after some passes of AdamW, and the mean loss of each pass."""
    network, (w1, b) = copy.deepcopy(network), (value.clone().requires_grad_() for value in head)
    n = len(samples.y)
    batch = max(4, min(32, n // 8))
    steps = passes * -(-n // batch)
    warm = round(0.1 * steps)
    weight = samples.weight / samples.weight.mean()
    optimizer = torch.optim.AdamW([w1, b, *network.parameters()], weight_decay=0.01)
    generator = torch.Generator().manual_seed(int(np.random.RandomState(seed).randint(2**31 - 1)))
    k, losses = 0, []
    for _ in range(passes):
        total = 0.0
        for rows in torch.randperm(n, generator=generator).split(batch):
            cosine = (1 + math.cos(math.pi * (k - warm) / (steps - warm))) / 2
            optimizer.param_groups[0]["lr"] = rate * ((k + 1) / warm if k < warm else cosine)
            loss = (weight[rows] * each(network(samples.X[rows]) @ w1 + b, samples.y[rows])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
            k += 1
        losses.append(total / n)
    return network, (w1.detach(), b.detach()), losses


def tempered(
    network: nn.Module, head: Head, samples: Samples, each: Each, temperatures: Sequence[float]
) -> tuple[float, float, Tensor]:
    """Return the least weighted mean loss over temperatures, the temperature, and each sample's loss there."""
    with torch.no_grad():
        logits = network(samples.X) @ head[0] + head[1]
    share = samples.weight / samples.weight.sum()
    losses = {float(share @ each(logits / value, samples.y)): value for value in temperatures}
    return min(losses), losses[min(losses)], each(logits / losses[min(losses)], samples.y)


def rounds(
    network: nn.Module,
    probe: Callable[[Samples, float], Head],
    samples: Samples,
    split: tuple[Tensor, Tensor],
    each: Each,
    plan: tuple[int, Sequence[float], int],
    temperatures: Sequence[float] = TEMPERATURES.tolist(),
) -> Rounds:
    """Move the whole network as the documentation says: by passes, rates and a seed, all θ₂.

    `probe` is given so many times the best one's penalty.
    """
    passes, rates, seed = plan
    train, validation = (samples.rows(rows) for rows in split)
    share = validation.weight / validation.weight.sum()
    head, heavier = probe(train, 1), probe(train, 30 if len(train.X) >= 600 else 1)
    start, temperature, best_each = tempered(network, head, validation, each, temperatures)
    found = Rounds(start, [], -1, temperature, [], network, head)
    for k, rate in enumerate(rates):
        moved, moved_head, training = trained(network, heavier, train, each, rate, passes, seed)
        loss, temperature, losses = tempered(moved, moved_head, validation, each, temperatures)
        found.losses.append(loss)
        found.training.append(training)
        gain = best_each - losses
        error = math.sqrt(float(share**2 @ (gain - share @ gain) ** 2))
        best_loss = found.start if found.best < 0 else found.losses[found.best]
        if float(share @ gain) > error and loss < 0.999 * best_loss:
            found.best, found.temperature, best_each = k, temperature, losses
            found.network, found.head = moved, moved_head
    if found.best < 0:
        return found
    again = min(rates[found.best], 1e-3), max(1, round(passes / 2)), seed
    moved, moved_head, _ = trained(found.network, found.head, samples, each, *again)
    least = found.losses[found.best]
    if tempered(moved, moved_head, validation, each, temperatures)[0] <= least + 0.05 * (start - least):
        found.network, found.head = moved, moved_head
    found.head = (found.head[0] / found.temperature, found.head[1] / found.temperature)
    return found
