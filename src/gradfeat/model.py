"""Eq. 2 of Mu, Liang & Li (2020): ``ĝ(x) = w₁ᵀ f(x) + b + ω̄ᵀ J(x) w₂``, and the three models it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradfeat.contexts import plain, single_precision
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.linearization import Linearization, parametrization_scales
from gradfeat.linearization.linearization import Residuals

MODES = ("activation", "gradient", "full", "finetune")

OTHER_NAMES = {
    **dict.fromkeys(("probe", "probing", "linear", "linear probe", "linear probing", "features"), "activation"),
    **dict.fromkeys(("gradients", "ntk", "tangent", "jacobian"), "gradient"),
    **dict.fromkeys(("both", "combined", "all", "linearized"), "full"),
    **dict.fromkeys(("fine tune", "fine tuning", "finetuning", "finetuned", "ft"), "finetune"),
}
"""What others call the modes, with spaces for hyphens and underscores."""


class GradientFeatureModel(nn.Module):
    """A linear model over the activations and gradients of a network.

    ============  ======================  =================
    mode          logits                  trained
    ============  ======================  =================
    activation    w₁ᵀf + b                w₁, b
    gradient      ω̄ᵀJ w₂ + b              w₂, b
    full          w₁ᵀf + b + ω̄ᵀJ w₂       w₁, b, w₂ (Eq. 2)
    finetune      w₁ᵀf(x; θ̄₂ + w₂) + b    w₁, b, θ₂
    ============  ======================  =================

    w₁ starts at ω̄ and w₂ at zero, so that `full` starts as the probe (and `finetune` at the pre-trained network with
    the probe as its head). ω̄ and θ̄₂ never move.

    Args:
        linearization: The network's three programs.
        omega: The probe ω̄, (d, c); copied.
        mode: One of the four.
        parametrization: "standard", "ntk_fan_in" or "ntk_fan_out": the variables that w₂ is trained in.
        bias: The probe's intercept, (c,), where b starts; zero if not given. (`gradient` starts at zero: it has no
            probe in it.)

    Raises:
        ConfigurationError: An unknown mode or parametrization, or an ω̄ of another shape.
    """

    omega: Tensor

    # of this class itself: a trace in another thread replaces those of nn.Module meanwhile
    __call__: Callable[..., Any] = nn.Module.__call__
    __getattr__ = nn.Module.__getattr__

    @plain()
    def __init__(
        self,
        linearization: Linearization,
        omega: Tensor,
        *,
        mode: str = "full",
        parametrization: str = "standard",
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ConfigurationError(
                f"mode must be one of {', '.join(MODES)}, not {mode!r}.{did_you_mean(str(mode), MODES, OTHER_NAMES)}"
            )
        omega = torch.as_tensor(omega)
        if omega.ndim != 2:
            raise ConfigurationError(f"omega must have the shape (d, c), not {tuple(omega.shape)}")
        self.mode = mode
        self.parametrization = parametrization
        self.linearization = linearization
        self.register_buffer("omega", omega.detach().clone())
        self.w1 = nn.Parameter(omega.detach().clone())
        start = torch.zeros(omega.shape[1], dtype=omega.dtype, device=omega.device)
        if bias is not None and mode != "gradient":
            start = start + torch.as_tensor(bias).to(start)
        self.b = nn.Parameter(start)
        self._scales = parametrization_scales(linearization, parametrization)
        if mode == "finetune":
            self._scales = dict.fromkeys(self._scales, 1.0)  # fine-tuning is of the network as it is
        self._names = list(self._scales)
        theta2 = linearization.theta2
        self._trained = nn.ParameterList(
            theta2[name].detach().to(omega.dtype).clone()
            if mode == "finetune"
            else torch.zeros_like(theta2[name], dtype=omega.dtype)
            for name in self._names
        )

    @property
    def w2(self) -> dict[str, Tensor]:
        """w₂ by the names of θ₂, in the units of θ₂ whatever the parametrization; for `finetune`, θ₂ - θ̄₂."""
        if self.mode == "finetune":
            theta2 = self.linearization.theta2
            return {
                name: value - theta2[name].to(value) for name, value in zip(self._names, self._trained, strict=True)
            }
        return {
            name: value if self._scales[name] == 1.0 else value * self._scales[name]
            for name, value in zip(self._names, self._trained, strict=True)
        }

    @plain()
    def set_weights(self, *, w1: Tensor, b: Tensor, w2: Mapping[str, Tensor]) -> None:
        """Put fitted weights in place; w₂ in the units of θ₂."""
        with torch.no_grad():
            self.w1.copy_(w1)
            self.b.copy_(b)
            theta2 = self.linearization.theta2
            for name, parameter in zip(self._names, self._trained, strict=True):
                value = w2[name].to(parameter) / self._scales[name]
                parameter.copy_(value + theta2[name].to(parameter) if self.mode == "finetune" else value)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that this mode trains."""
        if self.mode == "activation":
            return [self.w1, self.b]
        if self.mode == "gradient":
            return [self.b, *self._trained]
        return [self.w1, self.b, *self._trained]

    def forward(self, x: Any) -> Tensor:
        """Return the logits of a batch, (n, c)."""
        z0 = self.linearization.bottom(x)
        if self.mode == "finetune":
            return self.finetuned(z0)
        return self.logits(*self.linearization.primal(z0))

    @single_precision()
    def logits(self, f: Tensor, residuals: Residuals) -> Tensor:
        """Return the logits of samples whose features and residuals are known, (n, c): what a training pass calls.

        Args:
            f: Features, (n, d).
            residuals: From `Linearization.primal`, for the same samples.
        """
        if self.mode == "activation":
            return f.to(self.w1) @ self.w1 + self.b
        tangent = self.linearization.tangent(self.w2, residuals).to(self.omega)  # J(x) w₂, (n, d)
        if self.mode == "gradient":
            return tangent @ self.omega + self.b
        return f.to(self.w1) @ self.w1 + self.b + tangent @ self.omega

    @single_precision()
    def finetuned(self, z0: Tensor | Residuals) -> Tensor:
        """Return the logits of the network itself at the trained θ₂ and head, (n, c)."""
        theta2 = dict(zip(self._names, self._trained, strict=True))
        return self.linearization.network(theta2, z0).to(self.w1) @ self.w1 + self.b
