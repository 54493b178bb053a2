"""Choosing how a network is fine-tuned on held-out training data, so that it is a fair rival.

A recipe is what a practitioner would write down: optimizer, rate, decay, length, and where the head starts. The best of
several is that with the fewest errors on validation data, as a practitioner would choose, and among equals that with
the least loss after a temperature that is fitted there too: a scalar that costs nothing and takes no accuracy, and
without which a network that is sure of too much loses to one that is not. Some hundred samples do not tell a dozen
recipes apart, so the usual one, the first of a search, is kept where it is not worse than the best by more than the
standard error of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.losses import Loss
from gradfeat.solvers.schedule import Schedule

EPOCHS, BATCH = 25, 32
"""Passes over the samples, and samples in a minibatch, where nothing else is said."""

HEADS = ("zero", "probe")
"""Where the head starts: at zero, where the network's features move before the head is sure, or as the probe."""

BATCH_NORMS = ("evaluation", "training")
"""Modes of the batch norms of θ₂'s layers: as they were pre-trained, or of each minibatch, with new running values."""

TEMPERATURES = torch.logspace(-1, 1, 81, dtype=torch.float64)
"""Temperatures that are tried, a twentieth of a decade apart and one among them."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fine-tuned.

    Attributes:
        schedule: Optimizer, rate, decay and batch size; its length counts where `epochs` is None.
        head: "probe" or "zero".
        epochs: Passes over the samples; None: as many iterations as the schedule has.
        batch_norms: Mode of those of θ₂'s layers, "evaluation" or "training".

    Example:
        >>> recipe = Recipe(Schedule("adamw", 1e-3, 1, 1, 32, decay="cosine"), head="zero", epochs=25)
        >>> recipe.schedule_of(100).iterations, str(recipe)
        (100, 'adamw 0.001, 25 epochs, head from zero')
    """

    schedule: Schedule
    head: str = "probe"
    epochs: int | None = None
    batch_norms: str = "evaluation"

    def __post_init__(self) -> None:
        for name, known in (("head", HEADS), ("batch_norms", BATCH_NORMS)):
            if getattr(self, name) not in known:
                raise ConfigurationError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def schedule_of(self, n: int) -> Schedule:
        """Return the schedule for n samples."""
        if self.epochs is None:
            return self.schedule
        return replace(self.schedule, iterations=self.epochs * math.ceil(n / self.schedule.batch_size))

    def __str__(self) -> str:
        decay = self.schedule.weight_decay
        parts = [str(self.schedule)]
        if self.epochs is not None:
            parts += [f"{self.epochs} epochs", *([f"weight decay {decay:g}"] if decay > 0.01 else [])]
            parts.append(f"head from {'the probe' if self.head == 'probe' else 'zero'}")
            parts += [f"batch norms in {self.batch_norms} mode"] if self.batch_norms != "evaluation" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Search:
    """What is tried.

    Attributes:
        recipes: Each is tried, the usual one first; one alone is taken as it is.
        trial_length: Length of a trial, as a share of the final run's.
        wider: How many rates above those of the recipes are tried at most, one after another, while the one with the
            fewest errors is the largest of them. Smaller ones than theirs hardly move the network: on a few dozen
            held-out samples the choice falls on them by chance.
        refined: Whether the best is then tried with half and twice the epochs, and with ten times the weight decay.
        batch_norms: Whether it is then tried with batch norms in training mode too, where θ₂ has some.
        tempered: Whether losses are judged, and the final model's outputs divided, by a temperature.
    """

    recipes: tuple[Recipe, ...]
    trial_length: float = 1.0
    wider: int = 0
    refined: bool = False
    batch_norms: bool = False
    tempered: bool = False

    @property
    def most(self) -> int:
        """Trials at most."""
        return (
            len(self.recipes) + self.wider + (3 if self.refined else 0) + self.batch_norms
            if len(self.recipes) > 1
            else 0
        )


def honest_search(
    *, epochs: int = EPOCHS, batch_size: int = BATCH, fixed: bool = False, clip_norm: float | None = None
) -> Search:
    """Return what a good practitioner tries: AdamW, warm-up and cosine, three rates, head from zero and from the probe.

    Then larger rates while the best one is the largest, half and twice the epochs, and more weight decay.

    Args:
        epochs: Of the first trials.
        batch_size: Samples in a minibatch.
        fixed: Whether the number of epochs is given, and no other is tried, nor another weight decay.
        clip_norm: Largest norm of the gradient; None does not clip.
    """
    base = Schedule(
        "adamw", 1e-3, 1, 1, batch_size, weight_decay=0.01, decay="cosine", warmup=0.05, clip_norm=clip_norm
    )
    recipes = tuple(
        Recipe(replace(base, learning_rate=rate), head, epochs) for head in HEADS for rate in (1e-3, 3e-3, 3e-4)
    )
    return Search(recipes, wider=2, refined=not fixed, batch_norms=not fixed, tempered=True)


@dataclass(frozen=True)
class Trial:
    """How a trial ended.

    Attributes:
        loss: On validation data, after the temperature; infinite where training diverged.
        temperature: Its outputs are best divided by it.
        errors: Share of wrong classes; 0 where targets are no classes, so that the loss alone decides.
        each: What decides, of each validation sample, (n,): 1 where its class is wrong and 0 elsewhere, or its loss
            where targets are no classes. None where it is not known.
        share: Weight of each, (n,), of sum one. Both are on the CPU, wherever the network is: a checkpoint's are too.
    """

    loss: float
    temperature: float = 1.0
    errors: float = 0.0
    each: Tensor | None = field(default=None, compare=False, repr=False)
    share: Tensor | None = field(default=None, compare=False, repr=False)

    def clearly_worse(self, other: Trial) -> bool:
        """Whether the mean of `each` is higher by more than the standard error of the paired difference.

        Where one of both is not known, whether the errors are, or with as many errors the loss.
        """
        if self.each is None or other.each is None or self.share is None:
            return (self.errors, self.loss) > (other.errors, other.loss)
        mean, error = paired(self.each - other.each, self.share)
        return mean > error


def paired(difference: Tensor, share: Tensor) -> tuple[float, float]:
    """Return the mean of a difference of two models on the same samples, and its standard error.

    Args:
        difference: Of each sample, (n,).
        share: Weight of each, (n,), of sum one.

    Example:
        >>> paired(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.full((4,), 0.25))
        (0.5, 0.25)
    """
    mean = share @ difference
    return float(mean), float((share.square() @ (difference - mean).square()).sqrt())


@dataclass(frozen=True)
class Selection:
    """What was tried, and what won.

    Attributes:
        best: The winner.
        scores: Each recipe's score on validation data, less its loss there; -inf where training diverged. The winner
            has the fewest errors, or is the usual one with hardly more, which may not be the least loss.
        temperature: The winner's outputs are divided by it.
        seconds: Time of the search.
    """

    best: Recipe
    scores: list[tuple[Recipe, float]]
    temperature: float = 1.0
    seconds: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        tempered = "" if self.temperature == 1 else f", temperature {self.temperature:.2f}"
        return f"{self.best}{tempered}, the best of {len(self.scores)}"


def trial_of(number: int) -> str:
    """Return the name of the run that tries a recipe, counted from 1."""
    return f"trial {number}"


def beyond(best: Recipe, tried: Sequence[Recipe]) -> Recipe | None:
    """Return a recipe with the next rate where the best one has the largest of its kind; else None."""
    rate = best.schedule.learning_rate
    rates = [
        other.schedule.learning_rate
        for other in tried
        if replace(other, schedule=replace(other.schedule, learning_rate=rate)) == best
    ]
    if len(rates) < 2 or rate < max(rates):
        return None
    return replace(best, schedule=replace(best.schedule, learning_rate=float(f"{3 * rate:.0e}")))


def refinements(best: Recipe, search: Search) -> list[Recipe]:
    """Return what a search tries of a recipe beside it: its length, its weight decay, its batch norms."""
    norms = [replace(best, batch_norms="training")] if search.batch_norms else []
    if not search.refined:
        return norms
    epochs = best.epochs or 1
    heavier = replace(best.schedule, weight_decay=10 * best.schedule.weight_decay)
    return [
        *(replace(best, epochs=other) for other in (max(1, epochs // 2), 2 * epochs)),
        replace(best, schedule=heavier),
        *norms,
    ]


def select(search: Search, run: Callable[[Recipe], Trial]) -> Selection:
    """Train by each recipe and return the best, or the first where it is not clearly worse.

    The best has the fewest errors, and among equals the least loss; clearly worse is by more than one standard error.

    Args:
        search: At least one recipe.
        run: Trains by a recipe and judges it on held-out data; of a run that diverges the loss is infinite.

    Raises:
        ConfigurationError: There is no recipe.
        ConvergenceError: Every one diverged.

    Example:
        >>> found = select(honest_search(fixed=True), lambda recipe: Trial(abs(recipe.schedule.learning_rate - 0.002)))
        >>> found.best.schedule.learning_rate, len(found.scores)
        (0.001, 6)
    """
    if not search.recipes:
        raise ConfigurationError("there must be at least one recipe to choose from")
    tried = [(recipe, _tried(run, recipe)) for recipe in search.recipes]
    best, trial = _best(tried)
    if _diverged(trial):
        raise ConvergenceError(f"fine-tuning diverged with every one of: {', '.join(map(str, search.recipes))}")
    for _ in range(search.wider):
        further = beyond(_fewest_errors(tried)[0], [recipe for recipe, _ in tried])
        if further is None:
            break
        tried.append((further, _tried(run, further)))
        best, trial = _best(tried)
    tried += [(recipe, _tried(run, recipe)) for recipe in refinements(best, search)]
    best, trial = _best(tried)
    return Selection(best, [(recipe, -each.loss) for recipe, each in tried], trial.temperature)


def _best(tried: Sequence[tuple[Recipe, Trial]]) -> tuple[Recipe, Trial]:
    """Return the usual recipe, which is the first, where it is not clearly worse than the best of all."""
    best, (_, usual) = _fewest_errors(tried), tried[0]
    return best if _diverged(usual) or usual.clearly_worse(best[1]) else tried[0]


def _fewest_errors(tried: Sequence[tuple[Recipe, Trial]]) -> tuple[Recipe, Trial]:
    return min(tried, key=lambda pair: (_diverged(pair[1]), pair[1].errors, pair[1].loss))


def _diverged(trial: Trial) -> bool:
    return trial.loss == math.inf


def _tried(run: Callable[[Recipe], Trial], recipe: Recipe) -> Trial:
    try:
        trial = run(recipe)
    except ConvergenceError:
        return Trial(math.inf)
    return trial if math.isfinite(trial.loss) else Trial(math.inf)


def judged(logits: Tensor, y: Tensor, loss: Loss, weight: Tensor | None, *, tempered: bool) -> Trial:
    """Return the loss of validation samples, by the best temperature of those that are tried.

    Args:
        logits: (n, c).
        y: Targets.
        loss: The task's loss; of a regression there is no temperature.
        weight: A weight for each sample, or None.
        tempered: Whether a temperature is fitted; else it is one.
    """
    logits, temperature = logits.double(), 1.0
    value = float(loss.value(logits, y, weight))
    if tempered and loss.task != "regression":
        losses = torch.stack([loss.value(logits / one, y, weight) for one in TEMPERATURES.tolist()])
        best = int(losses.argmin())
        value, temperature = float(losses[best]), float(TEMPERATURES[best])
    share = torch.ones(len(logits), dtype=torch.float64) if weight is None else weight.double().cpu()
    share = share / share.sum()
    if loss.task != "multiclass":
        return Trial(value, temperature, 0.0, loss.per_sample(logits / temperature, y).cpu(), share)
    wrong = (logits.argmax(1) != y).double().cpu()
    return Trial(value, temperature, float(share @ wrong), wrong, share)
