"""Which model is best on held-out data, by how much, and what that means: in plain words.

Two models are compared on the same samples: the mean of the samples' differences, and its standard error, in which all
that makes some samples harder than others for both models falls out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import binomtest, t

from gradfeat.fit.penalties import Choice
from gradfeat.model import MODES

if TYPE_CHECKING:
    from gradfeat.fit.steps import Rounds

UNLIKELY = 0.05
"""Chance of so large a difference between models that are equally good, below which it is called likely real."""

LABELS = {"activation": "activation (the probe)"}

_LOWER = ("log_loss", "squared_error")  # metrics of which less is better
_WORDS = {"log_loss": "log loss", "squared_error": "squared error"}


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another, on the same samples.

    Attributes:
        model: The one.
        than: The other.
        metric: "accuracy", "log_loss" or "squared_error".
        value: Mean of the samples' differences; above zero where `model` is better.
        error: Its standard error; NaN for one sample.
        n: Number of samples.
        chance: How often two equally good models are so far apart or farther: McNemar's exact test for accuracy, a
            paired t-test for losses.
    """

    model: str
    than: str
    metric: str
    value: float
    error: float
    n: int
    chance: float

    def __str__(self) -> str:
        size = abs(self.value)
        if self.metric == "accuracy":
            return f"{100 * size:.1f} ± {100 * self.error:.1f} points {'above' if self.value >= 0 else 'below'}"
        return f"{_WORDS[self.metric]} {'lower' if self.value >= 0 else 'higher'} by {size:.3g} ± {self.error:.2g}"


def paired(model: str, than: str, metric: str, ours: np.ndarray, others: np.ndarray) -> Difference:
    """Compare two models by what each has on the same samples.

    Args:
        model: The one.
        than: The other.
        metric: "accuracy" (1 where a sample's class is right, else 0), "log_loss" or "squared_error".
        ours: Of the one, (n,); samples where either is NaN do not count.
        others: Of the other, (n,).

    Example:
        >>> paired("full", "activation", "accuracy", np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0])).value
        0.5
    """
    known = ~(np.isnan(ours) | np.isnan(others))
    gain = (ours - others)[known].astype(float)
    if metric in _LOWER:
        gain = -gain
    n = len(gain)
    value = float(gain.mean()) if n else math.nan
    error = float(gain.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Difference(model, than, metric, value, error, n, _chance(gain, value, error, metric))


def _chance(gain: np.ndarray, value: float, error: float, metric: str) -> float:
    if metric == "accuracy":
        wins, apart = int((gain > 0).sum()), int((gain != 0).sum())
        return float(binomtest(wins, apart).pvalue) if apart else 1.0
    if not error > 0:
        return 1.0 if not value or math.isnan(error) else 0.0
    return float(2 * t.sf(abs(value) / error, len(gain) - 1))


@dataclass(frozen=True)
class Verdict:
    """What a comparison says.

    Attributes:
        best: The model with the best main metric; None of one model alone.
        ship: The model to take into use.
        text: Why, in plain words.
        differences: Of each model from the simplest one, by each metric that samples have one by one.
    """

    best: str | None
    ship: str
    text: str
    differences: list[Difference] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain Python objects, for JSON, which has no NaN."""
        rows = [asdict(difference) for difference in self.differences]
        clean = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
        return {"best": self.best, "ship": self.ship, "text": self.text, "differences": clean}


def verdict_of(scores: Mapping[str, float], title: str, samples: Mapping[str, Mapping[str, np.ndarray]]) -> Verdict:
    """Judge models by their test data.

    Args:
        scores: The main metric of each model, the higher the better.
        title: Of the main metric.
        samples: Of each model, what each sample has, by metric (`gradfeat.metrics.evaluation.per_sample_of`).

    Returns:
        The verdict: the model with the best main metric is worth its complexity where it is better than the simplest
        one by more than chance explains.
    """
    verdict = _verdict(scores, title, samples)
    if len(scores) > 1 and "squared_error" in next(iter(samples.values())) and max(scores.values()) < 0:
        return replace(
            verdict, text=f"{verdict.text} But no model is better than the mean of the targets (R² below 0)."
        )
    return verdict


def _verdict(scores: Mapping[str, float], title: str, samples: Mapping[str, Mapping[str, np.ndarray]]) -> Verdict:
    modes = sorted(scores, key=lambda mode: MODES.index(mode) if mode in MODES else len(MODES))
    simplest = modes[0]
    if len(modes) == 1:
        return Verdict(None, simplest, "")
    best = max(modes, key=lambda mode: scores[mode])  # among equals the simplest
    differences = [
        paired(mode, simplest, metric, samples[mode][metric], samples[simplest][metric])
        for mode in modes[1:]
        for metric in samples[simplest]
    ]
    main = next(iter(samples[simplest]))
    n = differences[0].n
    name = LABELS.get(simplest, simplest)
    others = {difference.model: difference for difference in differences if difference.metric == main}
    if best == simplest:
        alone = all(scores[mode] < scores[simplest] for mode in modes[1:])
        has = f"{name} has the best {title}" if alone else f"no model has a better {title} than {name}"
        text = f"{has[0].upper()}{has[1:]} on these {n:,} test samples: ship it, it is simpler and faster."
        return Verdict(best, simplest, f"{text}{_also(differences, main)}", differences)
    gain = others[best]
    tried = len(modes) - 1
    said = f"{best} is {gain} {name}"
    if main != "accuracy":
        levels = f"{scores[best]:.3g} ({scores[simplest]:.3g} of {name})"
        said = f"{best} has the best {title}, {levels}, and a {gain}"
    if gain.value < 0 and gain.chance < UNLIKELY:
        text = (
            f"{said} on {n:,} test samples: the two disagree. Ship {name}, which is simpler and faster, unless the "
            f"{title} is all that counts."
        )
        return Verdict(best, simplest, text, differences)
    if gain.value <= 0 or gain.chance >= UNLIKELY:
        text = f"{said}: no difference that these {n:,} test samples can show. Ship {name}: it is simpler and faster."
        return Verdict(best, simplest, f"{text}{_also(differences, main)}", differences)
    text = f"{said} on {n:,} test samples: likely a real gain"
    if tried > 1 and gain.chance * tried >= UNLIKELY:
        text += f", though as the best of {tried} that were tried on the same samples it looks better than it is"
    text += f". Ship {best}{_rivals(best, modes, main, samples)}."
    return Verdict(best, best, text, differences)


def _also(differences: Sequence[Difference], main: str) -> str:
    """Say which model has better probabilities where the main metric shows no difference."""
    rest = [d for d in differences if d.metric != main and d.value > 0]
    if not rest:
        return ""
    best = max(rest, key=lambda difference: difference.value)
    if best.chance * len(rest) >= UNLIKELY:
        return ""
    return f" If you use its probabilities, take {best.model}: its {best}, likely a real gain."


def _rivals(best: str, modes: Sequence[str], main: str, samples: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Name the models that cannot be told from the best one."""
    near = [
        mode
        for mode in modes
        if mode != best and paired(best, mode, main, samples[best][main], samples[mode][main]).chance >= UNLIKELY
    ]
    return f"; {' and '.join(near)} cannot be told from it on these samples" if near else ""


def verdict_of_fit(choice: Choice | None, rounds: Rounds | None = None) -> Verdict | None:
    """Say what moving the network was worth on held-out training data, or the gradient term; None where nothing was.

    Args:
        choice: Of the penalties, or None.
        rounds: How θ̄₂ moved, or None.
    """
    if rounds is None or rounds.chosen is None:
        return None if choice is None else verdict_of_choice(choice)
    text = (
        f"As θ̄₂ moved the loss went from {rounds.start:.4g}, the probe's, to {rounds.last_loss:.4g} on one held-out "
        "part: test data tell what that is worth."
    )
    return Verdict("full", "full", text)


def verdict_of_choice(choice: Choice) -> Verdict:
    """Say what the gradient term was worth on held-out training data, when penalties were chosen."""
    probes = [tried.loss for tried in choice.path if not math.isfinite(tried.lambda2_units)]
    gradients = [tried.loss for tried in choice.path if math.isfinite(tried.lambda2_units)]
    if not probes or not gradients:
        return Verdict(None, choice.mode, "")
    probe, gradient = min(probes), min(gradients)
    levels = f"On held-out training data the loss is {gradient:.4g} with the gradient term and {probe:.4g} without"
    if not choice.gradients:
        same = f"--mode activation --penalty {choice.lambda1:.3g}"
        text = f"{levels}: the model is the probe. {same} gives the same, faster."
        return Verdict("activation", "activation", text)
    if choice.gain is None or choice.gain_error is None:
        return Verdict(choice.mode, choice.mode, f"{levels}; whether that is more than chance, test data tell.")
    error = choice.gain_error
    by = f", lower by {choice.gain:.3g} ± {error:.2g} on the same {choice.n_validation:,} samples"
    flattered = "The same samples chose the penalties, so it looks a little better than it is: test data tell."
    if choice.gain > 2 * error:
        return Verdict(choice.mode, choice.mode, f"{levels}{by}: likely a real gain. {flattered}")
    text = f"{levels}{by}: no difference that these samples can show. The probe (--mode activation) is simpler."
    return Verdict(choice.mode, "activation", text)
