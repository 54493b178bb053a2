"""Steps 1 and 2 of the method (Sec. 3.1), on data whose samples are kept: linearize, probe.

`prepare` makes what all four models share (the programs, the kept samples, the probe ω̄). Step 3 is in
`gradfeat.fit.training`, `gradfeat.fit.convex`, `gradfeat.fit.closed_form` and `gradfeat.fit.representer`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.backbones import Backbone
from gradfeat.data.text import TextPreprocessing
from gradfeat.errors import ConfigurationError, ConvergenceError, did_you_mean
from gradfeat.fit.checkpoint import Checkpoint, Part, resumed
from gradfeat.fit.selection import Choice
from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.build import theta2_candidates
from gradfeat.linearization.lengths import linearize_lengths
from gradfeat.linearization.theta2 import Candidate
from gradfeat.losses import Loss
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.samples.store import Batches, SampleStore
from gradfeat.solvers.finetune import Selection
from gradfeat.solvers.first_order import History
from gradfeat.solvers.probe import Probe, fit_probe, folds
from gradfeat.solvers.subspace import Solution

if TYPE_CHECKING:
    from gradfeat.fit.rounds import Rounds

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def check_device(device: Any) -> None:
    """Refuse a device that torch does not have here."""
    if isinstance(device, str) and device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        meant = did_you_mean(str(device), ["cpu", "cuda"], {"gpu": "cuda"})
        raise ConfigurationError(
            f"device must be 'auto' or one that torch has here, not {device!r}: {reason}.{meant}"
        ) from error


def linearize_backbone(
    backbone: Backbone, example: Any, theta2: str | Sequence[str], device: str = "auto", precision: str = "auto"
) -> Linearization:
    """Linearize a resolved backbone, on a device and in a precision by name ("auto": CUDA if there is one; float32)."""
    floating, network_device, example = _as_network(backbone, example)
    check_device(device)
    network = backbone.network
    if floating in (torch.bfloat16, torch.float16):  # whose rounding would hide whether the tangent is right
        network = copy.deepcopy(network).float()
        example = example.float() if isinstance(example, Tensor) and example.is_floating_point() else example
    lengths = backbone.preprocessing.lengths if isinstance(backbone.preprocessing, TextPreprocessing) else None
    if lengths is None:
        linearization = linearize(network, example, theta2, features=backbone.features)
    else:
        linearization = linearize_lengths(network, example, theta2, lengths, features=backbone.features)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and network_device.type == "cpu" else str(network_device)
    dtype = torch.float32 if precision == "auto" and floating != torch.float64 else PRECISIONS.get(precision, floating)
    return linearization.to(device=torch.device(device), dtype=dtype)


def backbone_candidates(backbone: Backbone, example: Any) -> list[Candidate]:
    """Return the choices of θ₂ of a resolved backbone, from the top down."""
    return theta2_candidates(backbone.network, _as_network(backbone, example)[2], features=backbone.features)


def _as_network(backbone: Backbone, example: Any) -> tuple[torch.dtype, torch.device, Any]:
    """Return the network's dtype and device, and the example with them."""
    floating = next((p.dtype for p in backbone.network.parameters() if p.dtype.is_floating_point), torch.float32)
    device = next((p.device for p in backbone.network.parameters()), torch.device("cpu"))
    if isinstance(example, Tensor):
        example = example.to(device, floating if example.is_floating_point() else example.dtype)
    return floating, device, example


def model_from_weights(
    linearization: Linearization,
    mode: str,
    parametrization: str,
    omega: Tensor,
    w1: Tensor,
    b: Tensor,
    w2: dict[str, Tensor],
    theta2: dict[str, Tensor] | None = None,
) -> GradientFeatureModel:
    """Return a model with given weights, w₂ in the units of θ₂; `theta2` is where rounds have moved θ̄₂."""
    if theta2 is not None:
        linearization = linearization.at(theta2)
    model = GradientFeatureModel(
        linearization, omega.to(linearization.device), mode=mode, parametrization=parametrization
    )
    model.set_weights(w1=w1, b=b, w2=w2)
    return model


@dataclass(frozen=True)
class Problem:
    """A data set, a network and a loss, ready for any of the four models.

    Attributes:
        store: The samples, as the programs need them.
        y: Targets: (n,) class indices, or (n, c).
        weight: A weight for each sample, (n,), or None.
        loss: The task's loss.
        probe: ω̄ and its intercept, from the activations (step 2).
        seconds: Time that making this took, by part.
        views: How many versions of each sample there are (2 with mirror images): sample i of the store is a version of
            sample ``i % (n / views)``.
        checkpoint: Where finished parts of a fit are kept, or None.
        head: ω of the gradients where it is fixed from outside, as in an ablation; None: a probe, as the method says.
        omegas: Places in `HEAVIER` of the penalties of ω̄ that a choice tries, by mode, where they
            are known (`gradfeat.fit.depth`); a mode that is not there tries all.
    """

    store: SampleStore
    y: Tensor
    weight: Tensor | None
    loss: Loss
    probe: Probe
    seconds: dict[str, float]
    views: int = 1
    checkpoint: Checkpoint | None = None
    head: Probe | None = None
    omegas: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of samples, versions not counted."""
        return len(self.store) // self.views

    def all_views(self, samples: Tensor) -> Tensor:
        """Return the places in the store of all versions of some samples."""
        return torch.cat([samples + view * self.n for view in range(self.views)])

    def random_views(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Return the places in the store of one version of each of some samples."""
        if self.views == 1:
            return samples
        return samples + self.n * torch.randint(0, self.views, (len(samples),), generator=generator)

    def weight_of(self, rows: Tensor) -> Tensor | None:
        """Return the weights of some samples, or None where all count the same."""
        return None if self.weight is None else self.weight[rows]

    @property
    def linearization(self) -> Linearization:
        """The network's programs."""
        return self.store.linearization


@dataclass(frozen=True)
class Fit:
    """A fitted model of one mode.

    Attributes:
        model: The model with its trained weights.
        history: Loss and time by epoch; None where nothing was trained by epochs.
        selection: For fine-tuning, the learning rates tried and their scores on held-out training data.
        seconds: Time of training this model alone, with its selection.
        notes: What the user should know.
        choice: Penalties that were chosen, and the path; None where none were.
        solution: How the solver of a linear model ended; None for the probe, for fine-tuning, and where no gradient
            term was chosen.
        rounds: The moves of θ̄₂ before the last linearization; None where there was one linearization.
    """

    model: GradientFeatureModel
    history: History | None
    selection: Selection | None
    seconds: float
    notes: list[str] = field(default_factory=list)
    choice: Choice | None = None
    solution: Solution | None = None
    rounds: Rounds | None = None


def prepare(
    linearization: Linearization,
    inputs: Batches,
    y: Tensor,
    loss: Loss,
    *,
    weight: Tensor | None = None,
    penalty: float | str = "auto",
    cv: Any = 5,
    cache: str = "auto",
    batch_size: int = 64,
    views: int = 1,
    random_state: int | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    probe: Probe | None = None,
) -> Problem:
    """Run the bottom once for each sample, keep what fits, and fit the probe ω̄ (step 2).

    Args:
        linearization: The network's programs.
        inputs: The samples; with several views all first versions, then all second ones.
        y: Targets for `loss`, one for each sample.
        loss: The task's loss.
        weight: Sample weights, (n,).
        penalty: The probe's penalty, or "auto": chosen by cross-validation.
        cv: Folds, a scikit-learn splitter, or pairs of indices.
        cache: What to keep of each sample (see `SampleStore`).
        batch_size: Samples at a time.
        views: Versions of each sample.
        random_state: Seed of the folds.
        progress: Shows how far it is.
        checkpoint: Where finished parts are kept.
        probe: The probe of these samples, where it is known from another θ₂ of the same network.

    Raises:
        ConfigurationError: The checkpoint is of other data.
    """
    progress = progress or Progress(False)
    start = time.perf_counter()
    with progress.step("activations") as done:
        store = SampleStore(linearization, inputs, cache=cache, batch_size=batch_size, progress=done)
    if checkpoint is not None:
        checkpoint = checkpoint.of(
            linearization.theta2, {"activations": store.features, "targets": y, "sample weights": weight}
        )
    after_store = time.perf_counter()
    own = slice(None)  # what the probe is fitted to
    if views > 1:
        n = len(y)
        if isinstance(penalty, str):
            pairs = folds(y.cpu(), loss, cv, random_state)[0]
            cv = [(np.concatenate([seen + view * n for view in range(views)]), held) for seen, held in pairs] or cv
            if not pairs:  # too few samples for folds; versions of one sample would not be held out from each other
                own = slice(0, n)
        y = torch.cat([y] * views)
        weight = None if weight is None else torch.cat([weight] * views)
    with progress.step("probe") as done:
        found = resumed(
            checkpoint,
            "probe",
            lambda: (
                probe
                or fit_probe(
                    store.features[own],
                    y[own],
                    loss,
                    sample_weight=None if weight is None else weight[own],
                    penalty=penalty,
                    cv=cv,
                    random_state=random_state,
                    report=done,
                )
            ),
            _pack_probe,
            lambda part: _unpack_probe(part, store.features),
        )
    seconds = {"activations": after_store - start, "probe": time.perf_counter() - after_store}
    return Problem(store, y, weight, loss, found, seconds, views, checkpoint)


def _pack_probe(probe: Probe) -> Part:
    values = {name: value for name, value in vars(probe).items() if not isinstance(value, Tensor)}
    return Part(values, {"omega": probe.omega, "bias": probe.bias})


def _unpack_probe(part: Part, f: Tensor) -> Probe:
    omega, bias = (part.tensors[name].to(f.device) for name in ("omega", "bias"))
    return Probe(omega, bias, **{**part.values, "path": [tuple(tried) for tried in part.values["path"]]})


def new_model(problem: Problem, mode: str, parametrization: str, probe: Probe | None = None) -> GradientFeatureModel:
    """Return an untrained model of a mode: of the problem's probe, or of another.

    Raises:
        ConfigurationError: `finetune` of an ablation, whose head is no head of the network.
    """
    if problem.head is not None and mode == "finetune":
        raise ConfigurationError("an ablation has no finetune: its head and its network are not of one model")
    probe = probe or problem.probe
    dtype = torch.float64 if problem.linearization.dtype == torch.float64 else torch.float32
    omega = (problem.head or probe).omega.to(problem.linearization.device, dtype)
    model = GradientFeatureModel(
        problem.linearization, omega, mode=mode, parametrization=parametrization, bias=probe.bias
    )
    with torch.no_grad():
        model.w1.copy_(probe.omega)  # w₁ starts as the probe also where ω̄ is another
    return model.to(omega.device)


def store_of(model: GradientFeatureModel, store: SampleStore) -> SampleStore:
    """Return the samples as the model's linearization needs them, which rounds may have moved."""
    return store if model.linearization is store.linearization else store.at(model.linearization)


def batch_logits(model: GradientFeatureModel, store: SampleStore, batch: Tensor) -> Tensor:
    """Return the logits of some kept samples, (n, c), by the shortest way that the mode allows."""
    if model.mode == "finetune":
        return model.finetuned(store.z0(batch))
    if model.mode == "activation":
        return model.logits(store.all_features(batch), ())
    return model.logits(*store.primal(batch))


def predict_logits(
    model: GradientFeatureModel, inputs: Batches, batch_size: int, progress: Progress | None = None
) -> Tensor:
    """Return the logits of new samples, (n, c)."""
    n = len(inputs)
    rows: list[Tensor] = []
    with (progress or Progress(False)).step("predict") as done, torch.no_grad():
        for start in range(0, n, batch_size):
            indices = range(start, min(start + batch_size, n))
            rows.append(model(inputs.batch(indices)))
            done(indices.stop, n)
    logits = torch.cat(rows)
    if not bool(torch.isfinite(logits).all()):
        raise ConvergenceError("the model's outputs are not finite")
    return logits


def hold_out(problem: Problem, random_state: int | None, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Split the samples in two, to choose by the second part, by class where there are classes."""
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit

    n = problem.n
    y = problem.y[:n].cpu().numpy()
    held = max(1, round(share * n))
    if n < 5:
        return torch.arange(n), torch.arange(0)
    if y.ndim == 1 and y.dtype.kind in "iu":
        counts = np.bincount(y)
        classes = int((counts > 0).sum())
        if counts[counts > 0].min() < 2 or held < classes or n - held < classes:
            return _spare_last(y, held, random_state)
        splitter: Any = StratifiedShuffleSplit(1, test_size=held, random_state=random_state)
    else:
        splitter = ShuffleSplit(1, test_size=held, random_state=random_state)
    seen, unseen = next(splitter.split(np.zeros(n), y))
    return torch.from_numpy(np.sort(seen)), torch.from_numpy(np.sort(unseen))


def _spare_last(y: np.ndarray, held: int, random_state: int | None) -> tuple[Tensor, Tensor]:
    """Hold out samples at random, but of no class its last one: for classes too rare to be stratified."""
    left = np.bincount(y)
    unseen: list[int] = []
    for i in np.random.RandomState(random_state).permutation(len(y)):
        if len(unseen) < held and left[y[i]] > 1:
            left[y[i]] -= 1
            unseen.append(int(i))
    seen = np.setdiff1d(np.arange(len(y)), unseen)
    return torch.from_numpy(seen), torch.from_numpy(np.sort(np.array(unseen, dtype=np.int64)))


def loss_at(problem: Problem, model: GradientFeatureModel, indices: Tensor, batch_size: int = 256) -> float:
    """Return the mean loss of some kept samples."""
    store = store_of(model, problem.store.rows(indices))
    with torch.no_grad():
        parts = torch.arange(len(store)).split(batch_size)
        logits = torch.cat([batch_logits(model, store, part) for part in parts])
        weight = problem.weight_of(indices)
        return float(problem.loss.value(logits, problem.y[indices], weight))
