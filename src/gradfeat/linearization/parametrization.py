"""Standard and NTK parametrization of θ₂ (Jacot et al., 2018).

In the NTK parametrization a weight is ``sqrt(1 / fan) · weight'`` and a bias ``sqrt(0.1) · bias'``, with gradients
taken in the primed variables: ``J' = J · scale``. It rescales w₂ tensor by tensor and changes nothing else.
"""

from __future__ import annotations

import math

from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.linearization.linearization import Linearization

PARAMETRIZATIONS = ("standard", "ntk_fan_in", "ntk_fan_out")
"""``ntk_fan_in`` as in Jacot et al. (``ntk`` means it too); ``ntk_fan_out``: output channels, the paper's code."""


def parametrization_scales(linearization: Linearization, parametrization: str) -> dict[str, float]:
    """Return the factor of each tensor of θ₂ between w₂' and w₂ = factor · w₂'.

    Args:
        linearization: Says which layer each name of θ₂ belongs to.
        parametrization: One of `PARAMETRIZATIONS`.

    Raises:
        ConfigurationError: The parametrization is unknown.
    """
    kind = "ntk_fan_in" if parametrization == "ntk" else parametrization
    if kind not in PARAMETRIZATIONS:
        raise ConfigurationError(
            f"parametrization must be one of {', '.join(PARAMETRIZATIONS)}, not {parametrization!r}."
            f"{did_you_mean(str(parametrization), PARAMETRIZATIONS)}"
        )
    if kind == "standard":
        return dict.fromkeys(linearization.theta2, 1.0)
    return {
        name: _ntk_scale(tuple(value.shape), linearization.layer_kinds.get(name, ""), name, kind)
        for name, value in linearization.theta2.items()
    }


def _ntk_scale(shape: tuple[int, ...], use: str, name: str, kind: str) -> float:
    if use.endswith(".bias") or (not use and name.endswith("bias")):
        return math.sqrt(0.1)
    if len(shape) < 2:
        return 1.0  # the gain of a normalization layer multiplies single values: its fan is one
    receptive = math.prod(shape[2:])
    transposed = "conv_transpose" in use
    inputs, outputs = (shape[0], shape[1]) if transposed else (shape[1], shape[0])
    return math.sqrt(1.0 / (inputs * receptive if kind == "ntk_fan_in" else outputs))
