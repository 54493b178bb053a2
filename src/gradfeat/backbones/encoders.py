"""Networks of transformers as gradfeat takes them: one tensor in, f(x) of shape (n, d) out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradfeat.errors import ConfigurationError

TEXT_POOLINGS = ("mean", "cls", "last")
SOUND_POOLINGS = ("mean", "cls")
IMAGE_POOLINGS = ("pooler", "cls", "mean")


class Pooling(nn.Module):
    """How the states of all tokens become one f(x); a module of its own, so that fingerprints tell poolings apart.

    Args:
        mode: "mean" (of the tokens under the mask), "cls" (the first token) or "last" (the last under the mask).
    """

    __constants__ = ("mode",)

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (n, d) of states (n, length, d) and a mask (n, length) of 0 and 1."""
        if self.mode == "cls":
            return states[:, 0]
        if mask is None:
            return states.mean(1)
        if self.mode == "last":
            mask = mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))
        weight = mask.unsqueeze(2).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)


class Normalize(nn.Module):
    """The features brought to length 1, as models of sentence-transformers may end."""

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, d) of features (n, d)."""
        return features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)


class TextEncoder(nn.Module):
    """A transformer of texts.

    Args:
        transformer: A model of transformers, without a head: its output has `last_hidden_state`.
        pooling: "mean", "cls" or "last".
        normalize: Whether f(x) has length 1.
    """

    def __init__(self, transformer: nn.Module, pooling: str, normalize: bool = False) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = Pooling(pooling)
        self.normalize = Normalize() if normalize else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return f(x), (n, d).

        Args:
            tokens: (n, 2, length), int64: token ids, and the attention mask.
        """
        ids, mask = tokens[:, 0], tokens[:, 1]
        output = self.transformer(input_ids=ids, attention_mask=mask, return_dict=True)
        features: Tensor = self.pooling(_states(output, self.transformer), mask)
        return features if self.normalize is None else self.normalize(features)


class ImageEncoder(nn.Module):
    """A transformer (or another network of transformers) of images.

    Args:
        transformer: A model of transformers, without a head.
        pooling: "pooler" (the model's own), "cls" or "mean".
    """

    def __init__(self, transformer: nn.Module, pooling: str) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = Pooling(pooling)

    def forward(self, images: Tensor) -> Tensor:
        """Return f(x), (n, d), of images (n, c, h, w)."""
        output = self.transformer(pixel_values=images, return_dict=True)
        if self.pooling.mode != "pooler":
            return self.pooling(_states(output, self.transformer))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ConfigurationError(
                f"{type(self.transformer).__name__} has no pooled output: say ?pooling=cls or ?pooling=mean"
            )
        return pooled.flatten(1)


class SoundEncoder(nn.Module):
    """A transformer of waveforms (wav2vec 2.0, HuBERT, WavLM).

    Args:
        transformer: A model of transformers, without a head.
        pooling: "mean" or "cls".
        normalize: Whether each recording is brought to mean 0 and variance 1, as the network was trained.
    """

    def __init__(self, transformer: nn.Module, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = Pooling(pooling)
        self.normalize = normalize

    def forward(self, sound: Tensor) -> Tensor:
        """Return f(x), (n, d), of recordings (n, samples)."""
        if self.normalize:
            centred = sound - sound.mean(1, keepdim=True)
            sound = centred / (centred.square().mean(1, keepdim=True) + 1e-7).sqrt()
        output = self.transformer(input_values=sound, return_dict=True)
        return self.pooling(_states(output, self.transformer))


def _states(output: Any, transformer: nn.Module) -> Tensor:
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor) or states.ndim != 3:
        raise ConfigurationError(
            f"{type(transformer).__name__} gives no states of single tokens (last_hidden_state), so its f(x) is not "
            "known: pass the network itself (an nn.Module) and features="
        )
    return states
