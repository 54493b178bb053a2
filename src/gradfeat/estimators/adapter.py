"""The fitted model as one safetensors file: `save` writes it, `read` says what it holds, `load` makes an estimator.

Nothing in a file is ever executed. It holds what was fitted (`gradfeat.estimators.fitted`), and not the backbone.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradfeat.contexts import plain
from gradfeat.estimators.adapter_file import FORMAT_VERSION, read
from gradfeat.estimators.adapter_reader import Given, read_fitted
from gradfeat.estimators.adapter_writer import save
from gradfeat.estimators.classes import GradientFeatureClassifier, GradientFeatureRegressor

__all__ = ["FORMAT_VERSION", "load", "read", "save"]


@plain()
def load(
    path: str | Path,
    backbone: Any = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    allow_download: bool = False,
) -> GradientFeatureClassifier | GradientFeatureRegressor:
    """Read a saved model, which predicts as the one that was saved.

    What a new `fit` would need beside what the model is (solver, penalty, metric, cv, epochs, clip_norm, class_weight,
    random_state) is not in the file, and at its default. Nothing in the file is executed, and no other machine is asked
    for anything unless that is allowed: weights that a library has on this machine are used.

    Args:
        path: File that `save` wrote.
        backbone: The network it was made for: a module, a name or a callable; None takes the name in the file.
        weights: File of the backbone's weights, for a name; None takes the one that the file names.
        device: Where it predicts: "auto", "cpu", "cuda", ...
        allow_download: Whether weights and tokenizers that are not on this machine may be fetched.

    Returns:
        The fitted estimator. The attributes that say how it was fitted are as they were; of a file of an older version
        they are None or empty.

    Raises:
        AdapterError: The file is damaged, of a newer format, or made for another backbone (the message says what
            differs), or the backbone that it names is not to be had.
        ConfigurationError: An argument that cannot be meant.
    """
    stored = read_fitted(path, Given(backbone, weights, device, allow_download))
    fitted = stored.fitted
    cls = GradientFeatureClassifier if fitted.targets.classes is not None else GradientFeatureRegressor
    estimator = cls(
        stored.backbone,
        theta2=fitted.network.modules,
        batch_size=stored.batch_size,
        device=device,
        weights=fitted.network.weights,
        preprocessing=stored.preprocessing,
        **asdict(fitted.settings),
    )
    estimator.restore(fitted, stored.model)
    return estimator
