"""Networks of plain torch layers: recurrent networks and attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import Entry, Subject


class Recurrent(nn.Module):
    """A recurrent network; f(x) is its output at the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool | int) -> None:
        super().__init__()
        self.recurrent = kind(5, 6, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, d) of (n, steps, 5)."""
        return self.recurrent(x)[0][:, -1]


class Encoder(nn.Module):
    """Transformer layers with a padding mask; f(x) is their mean over what is not padded."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        """Return (n, d) of (n, steps, 8) and booleans (n, steps)."""
        present = (~padded).to(x.dtype)[:, :, None]
        return (self.encoder(x, src_key_padding_mask=padded) * present).sum(1) / present.sum(1)


class Attention(nn.Module):
    """Two attention layers of torch, the second with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, d) of (n, steps, 8)."""
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for layer, mask in zip(self.layers, (None, causal), strict=True):
            x = x + layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        return x.mean(1)


class Bags(nn.Module):
    """A bag of embeddings below two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(20, 8, mode="mean")
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, d) of whole numbers (n, length)."""
        return self.layers(self.embed(x))


def entries() -> list[Entry]:
    """Return torch's own layers."""
    padded = torch.tensor([[False] * 7, [False] * 4 + [True] * 3, [False] * 2 + [True] * 5])
    sequence, tokens = torch.randn(3, 7, 5), torch.randint(0, 20, (3, 7))
    wide = torch.randn(3, 7, 8)
    networks: dict[str, tuple[Callable[[], nn.Module], object]] = {
        "RNN": (lambda: Recurrent(nn.RNN, num_layers=2), sequence),
        "GRU": (lambda: Recurrent(nn.GRU, num_layers=2), sequence),
        "GRU, bidirectional": (lambda: Recurrent(nn.GRU, bidirectional=True), sequence),
        "LSTM": (lambda: Recurrent(nn.LSTM, num_layers=2), sequence),
        "LSTM, bidirectional": (lambda: Recurrent(nn.LSTM, bidirectional=True), sequence),
        "TransformerEncoder": (lambda: Encoder(False), (wide, padded)),
        "TransformerEncoder, norm first": (lambda: Encoder(True), (wide, padded)),
        "MultiheadAttention": (Attention, wide),
        "EmbeddingBag": (Bags, tokens),
    }
    return [
        Entry("torch", family, family, lambda build=build, example=example: Subject(build(), example))  # type: ignore[misc]
        for family, (build, example) in networks.items()
    ]
