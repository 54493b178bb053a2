from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gradfeat.optional import require

WORDS = ("good", "bad", "film", "a", "the", "very", "was", "it", "plot", "##s")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data and weights, which is no part of the repository."""
    folder = Path(os.environ.get("GRADFEAT_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set GRADFEAT_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def save_tokenizer() -> Callable[..., None]:
    """Write the tokenizer of a few words; with [CLS] and [SEP] around a text, or without."""
    tokenizers, transformers = require("tokenizers", extra="text"), require("transformers", extra="text")

    def save(folder: Path, *, special: bool = True, limit: int | None = None) -> None:
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
        vocabulary = {word: i for i, word in enumerate((*names, *WORDS))}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        if special:
            tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        limits = {} if limit is None else {"model_max_length": limit}
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            **limits,
        ).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, save_tokenizer: Callable[..., None]) -> Path:
    """A folder with a random BERT of two layers that knows fourteen tokens and takes sixteen at a time."""
    import torch

    transformers = require("transformers", extra="text")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
