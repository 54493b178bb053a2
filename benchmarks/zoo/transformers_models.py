"""transformers: a tiny configuration of each architecture, texts with a padding mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.entry import Entry, Subject
from gradfeat.optional import require

_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 32,
}
_LLAMA = {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2}  # grouped-query attention
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
_BART = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 60,
}
_SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 20,
}

TEXT: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": {**_BERT, "embedding_size": 12},
    "albert": {**_BERT, "embedding_size": 12},  # one layer's weights, shared by all
    "mpnet": _BERT,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "vocab_size": 60},
    "deberta-v2": {
        **_BERT,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "modernbert": {**_BERT, "pad_token_id": 0, "global_attn_every_n_layers": 3, "local_attention": 4},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 60, "n_positions": 32},
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "vocab_size": 60,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 16,
    },
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 4,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
        "vocab_size": 60,
        "max_position_embeddings": 32,
    },
    "gpt_neox": _BERT,
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "gemma": {**_LLAMA, "head_dim": 4},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2, "vocab_size": 60},
    "bart": {
        **_BART,
        "max_position_embeddings": 32,
    },
    "clip_text_model": {**_BERT, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 1},
    "siglip_text_model": _BERT,
}

VISION: dict[str, dict[str, Any]] = {
    "vit": _VISION,
    "deit": _VISION,
    "beit": {**_VISION, "use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    "dinov2": _VISION,
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2], "image_size": 32},
    "clip_vision_model": _VISION,
    "siglip_vision_model": _VISION,
}

SPEECH: dict[str, dict[str, Any]] = {
    "wav2vec2": _SPEECH,
    "hubert": _SPEECH,
    "wavlm": _SPEECH,
    "whisper": {
        **_BART,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
    "audio-spectrogram-transformer": {**_VISION, "max_length": 32, "num_mel_bins": 16, "patch_size": 8},
}

_OWN_CLASS = {"siglip_text_model": "SiglipTextModel"}  # AutoModel does not know it
_ENCODER_ONLY = ("t5", "bart", "whisper")  # of an encoder-decoder


def entries() -> list[Entry]:
    """Return transformers' architectures."""
    architectures = [_entry(kind, options, _texts) for kind, options in TEXT.items()]
    architectures += [
        _entry(kind, options, lambda _: {"pixel_values": torch.randn(3, 3, 32, 32)}) for kind, options in VISION.items()
    ]
    inputs: dict[str, Callable[[str], dict[str, Tensor]]] = {
        "whisper": lambda _: {"input_features": torch.randn(3, 8, 24)},
        "audio-spectrogram-transformer": lambda _: {"input_values": torch.randn(3, 32, 16)},
    }
    architectures += [
        _entry(kind, options, inputs.get(kind, lambda _: {"input_values": torch.randn(3, 800)}))
        for kind, options in SPEECH.items()
    ]
    return architectures


def _entry(kind: str, options: dict[str, Any], inputs: Callable[[str], dict[str, Tensor]]) -> Entry:
    def build() -> Subject:
        transformers = require("transformers", extra="text")
        config = transformers.CONFIG_MAPPING[kind](**options)
        if kind in _OWN_CLASS:
            network = getattr(transformers, _OWN_CLASS[kind])(config)
        else:
            network = transformers.AutoModel.from_config(config)
        if kind in _ENCODER_ONLY:
            network = network.get_encoder()
        return Subject(network, inputs(kind), _mean)

    return Entry("transformers", kind, f"{kind}, tiny", build)


def _mean(output: Any) -> Tensor:
    """Return the mean over tokens (or pixels) of a model's last hidden state."""
    hidden = output.last_hidden_state
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))


def _texts(_: str) -> dict[str, Tensor]:
    tokens = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 6:] = 0
    mask[2, 3:] = 0
    return {"input_ids": tokens, "attention_mask": mask}
