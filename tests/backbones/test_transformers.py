from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradfeat.backbones import resolve
from gradfeat.data import Inputs, TextPreprocessing
from gradfeat.errors import BackboneError, ConfigurationError
from gradfeat.linearization import linearize
from gradfeat.optional import require
from gradfeat.testing import check_linearization

transformers = require("transformers", extra="text")
TEXTS = ["a good film", "bad", "the plot was very very bad", ""]
SIZES: dict[str, Any] = {"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 16, "initializer_range": 0.5}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def tokens(backbone, texts=TEXTS, **changes) -> torch.Tensor:
    preprocessing = TextPreprocessing.from_dict({**backbone.preprocessing.to_dict(), **changes})
    inputs = Inputs(texts, preprocessing)
    return inputs.batch(range(len(inputs)))


def states_of_single_texts(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """The last states of each text alone, without padding, by transformers itself."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture
def sentence_folder(tiny_bert, tmp_path):
    """A folder as sentence-transformers writes it."""
    folder = tmp_path / "sentence"
    shutil.copytree(tiny_bert, folder)
    kinds = {"0": ("Transformer", ""), "1": ("Pooling", "1_Pooling"), "2": ("Normalize", "2_Normalize")}
    modules = [
        {"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in kinds.items()
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    change_json(folder / "1_Pooling/config.json", **pooling)
    change_json(folder / "sentence_bert_config.json", max_seq_length=12, do_lower_case=False)
    return folder


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]), ("last", lambda h: h[-1])],
)
def test_features_are_those_of_each_text_alone(tiny_bert, pooling, expected):
    backbone = resolve(f"hf/{tiny_bert}?pooling={pooling}")
    with torch.no_grad():
        f = backbone.network(tokens(backbone))
    alone = torch.stack([expected(states) for states in states_of_single_texts(tiny_bert, TEXTS)])
    torch.testing.assert_close(f, alone, rtol=1e-4, atol=1e-5)


def test_more_padding_changes_nothing(tiny_bert):
    backbone = resolve(f"hf/{tiny_bert}")
    network = backbone.network.double()
    with torch.no_grad():
        short, long = network(tokens(backbone)), network(tokens(backbone, length=16))
    assert tokens(backbone).shape == (4, 2, 8)
    torch.testing.assert_close(short, long, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_linearization_is_exact(tiny_bert, pooling):
    backbone = resolve(f"hf/{tiny_bert}?pooling={pooling}")
    lin = check_linearization(backbone.network, tokens(backbone), "auto")
    assert all(name.startswith("transformer.encoder.layer.1.") for name in lin.theta2)
    assert len(lin.theta2) == 16  # four of attention and two of the rest, each with a bias, and two norms
    assert not lin.report().fallbacks


@pytest.mark.parametrize(
    ("config", "auto"),
    [
        (
            transformers.DistilBertConfig(vocab_size=14, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
            "transformer.layer.1",
        ),
        (transformers.MPNetConfig(**SIZES), "encoder.layer.1"),
        (
            transformers.GPT2Config(
                vocab_size=14, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=2, eos_token_id=3
            ),
            "h.1",
        ),
    ],
    ids=["DistilBERT", "MPNet", "GPT-2"],
)
def test_other_architectures(config, auto, tmp_path, save_tokenizer):
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    backbone = resolve(f"hf/{tmp_path}")
    x = tokens(backbone)
    lin = check_linearization(backbone.network, x, "auto", batch_sizes=(3,))
    assert all(name.startswith(f"transformer.{auto}.") for name in lin.theta2)
    with torch.no_grad():
        f = backbone.network(x)
    alone = torch.stack([states.mean(0) for states in states_of_single_texts(tmp_path, TEXTS)])
    torch.testing.assert_close(f, alone, rtol=1e-4, atol=1e-5)


def test_t5_is_used_by_its_encoder(tmp_path, save_tokenizer):
    config = transformers.T5Config(vocab_size=14, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    model = transformers.T5Model(config).eval()
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    backbone = resolve(f"hf/{tmp_path}")
    x = tokens(backbone, ["a good film"])
    with torch.no_grad():
        expected = model.encoder(input_ids=x[:, 0]).last_hidden_state.mean(1)
        torch.testing.assert_close(backbone.network(x), expected)
    assert not any("decoder" in name for name, _ in backbone.network.named_parameters())


def test_preprocessing_and_notes(tiny_bert):
    backbone = resolve(f"hf/{tiny_bert}", preprocessing={"max_length": 5})
    assert backbone.name == f"hf/{tiny_bert}"
    assert backbone.preprocessing == TextPreprocessing(tokenizer=str(tiny_bert), max_length=5, limit=16)
    assert any("mean under the attention mask" in note for note in backbone.notes)
    assert resolve(f"hf/{tiny_bert}").preprocessing.max_length == 16  # the network's limit, below the usual 256


def test_positions_of_roberta_begin_behind_the_padding(tmp_path, save_tokenizer):
    transformers.RobertaModel(transformers.RobertaConfig(**SIZES, pad_token_id=1)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert resolve(f"hf/{tmp_path}").preprocessing.limit == 14


def test_heads_and_unused_poolers_are_left_out(tiny_bert, tmp_path, save_tokenizer):
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))  # its checkpoint has no pooler
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    first, second = resolve(f"hf/{tmp_path}"), resolve(f"hf/{tmp_path}")
    assert first.fingerprint == second.fingerprint  # a pooler with random weights would make them differ
    names = [name for name, _ in first.network.named_parameters()]
    assert not any("pooler" in name or "cls" in name for name in names)
    x = tokens(first)
    with torch.no_grad():
        expected = model.eval().bert(x[:, 0], attention_mask=x[:, 1]).last_hidden_state[:, 0]
        f = resolve(f"hf/{tmp_path}?pooling=cls").network(x)
    torch.testing.assert_close(f, expected)
    with pytest.raises(Exception, match="pooler"):
        linearize(first.network, x, "transformer.pooler")


def test_fingerprint_tells_poolings_apart(tiny_bert):
    mean, cls = (resolve(f"hf/{tiny_bert}?pooling={pooling}").fingerprint for pooling in ("mean", "cls"))
    assert mean != cls


def test_half_precision_checkpoints_become_float32(tiny_bert, tmp_path, save_tokenizer):
    transformers.AutoModel.from_pretrained(tiny_bert).half().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert {value.dtype for value in resolve(f"hf/{tmp_path}").network.parameters()} == {torch.float32}


def test_random_weights_follow_the_seed(tiny_bert):
    def at(seed):
        return resolve(f"hf/{tiny_bert}", weights="random", random_state=seed)

    assert at(0).fingerprint == at(0).fingerprint != at(1).fingerprint
    assert "The weights are random." in at(0).notes


# ---- sentence-transformers ------------------------------------------------------------------------------------------


def test_sentence_folder_states_pooling_and_length(sentence_folder, tiny_bert):
    backbone = resolve(f"sentence-transformers/{sentence_folder}")
    assert backbone.network.pooling.mode == "cls"
    assert backbone.preprocessing.max_length == 12
    assert any("brought to length 1" in note for note in backbone.notes)
    assert resolve(f"sentence-transformers/{sentence_folder}?pooling=mean").network.pooling.mode == "mean"


def test_sentence_folder_agrees_with_sentence_transformers(sentence_folder):
    library = pytest.importorskip("sentence_transformers")
    (sentence_folder / "2_Normalize").mkdir()
    expected = library.SentenceTransformer(str(sentence_folder), device="cpu").encode(TEXTS)
    backbone = resolve(f"sentence-transformers/{sentence_folder}")
    with torch.no_grad():
        f = backbone.network(tokens(backbone))
    np.testing.assert_allclose(f.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_length_one_is_of_a_folder_that_says_so(sentence_folder):
    modules = sentence_folder / "modules.json"
    normalized = resolve(f"sentence-transformers/{sentence_folder}")
    modules.write_text(
        json.dumps([part for part in json.loads(modules.read_text()) if "Normalize" not in part["type"]])
    )
    plain = resolve(f"sentence-transformers/{sentence_folder}")
    x = tokens(plain)
    with torch.no_grad():
        torch.testing.assert_close(normalized.network(x), torch.nn.functional.normalize(plain.network(x), dim=1))
        assert not torch.allclose(plain.network(x).norm(dim=1), torch.ones(len(x)))
    assert normalized.fingerprint != plain.fingerprint


def test_gradient_features_go_through_the_length(sentence_folder):
    backbone = resolve(f"sentence-transformers/{sentence_folder}")
    check_linearization(backbone.network, tokens(backbone), ["transformer.encoder.layer.*"])


def test_newer_form_of_sentence_folder(sentence_folder):
    (sentence_folder / "1_Pooling/config.json").write_text('{"embedding_dimension": 16, "pooling_mode": "lasttoken"}')
    inner = sentence_folder / "0_Transformer"
    inner.mkdir()
    for file in [file for file in sentence_folder.iterdir() if file.is_file() and file.name != "modules.json"]:
        file.rename(inner / file.name)
    modules = json.loads((sentence_folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (sentence_folder / "modules.json").write_text(json.dumps(modules))
    backbone = resolve(f"sentence-transformers/{sentence_folder}")
    assert backbone.network.pooling.mode == "last"
    assert backbone.preprocessing.tokenizer == str(inner)
    assert backbone.preprocessing.max_length == 12


def test_folder_without_modules_is_pooled_by_the_mean(tiny_bert):
    backbone = resolve(f"sentence-transformers/{tiny_bert}")
    assert backbone.network.pooling.mode == "mean"
    assert any("no modules.json" in note for note in backbone.notes)


def test_sentence_folders_that_cannot_be_meant(sentence_folder):
    config, modules = sentence_folder / "1_Pooling/config.json", sentence_folder / "modules.json"
    config.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}')
    with pytest.raises(ConfigurationError, match="knows mean, cls and last"):
        resolve(f"sentence-transformers/{sentence_folder}")
    config.unlink()
    with pytest.raises(BackboneError, match=r"lacks 1_Pooling/config\.json"):
        resolve(f"sentence-transformers/{sentence_folder}")
    modules.write_text(modules.read_text().replace("Normalize", "Dense"))
    with pytest.raises(ConfigurationError, match="Dense"):
        resolve(f"sentence-transformers/{sentence_folder}")
    modules.write_text("{")
    with pytest.raises(BackboneError, match="cannot be read as JSON"):
        resolve(f"sentence-transformers/{sentence_folder}")


# ---- names and files that cannot be meant ---------------------------------------------------------------------------


def test_missing_models_say_what_to_download(offline, tmp_path):
    with pytest.raises(BackboneError, match="There is no folder"):
        resolve(f"hf/{tmp_path}/nothing")
    with pytest.raises(BackboneError, match=r"(?s)model\.safetensors.*https://huggingface\.co/nobody/nothing"):
        resolve("hf/nobody/nothing")
    with pytest.raises(BackboneError, match="sentence-transformers/nothing"):
        resolve("sentence-transformers/nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BackboneError, match=r"The folder has notes\.txt"):
        resolve(f"hf/{tmp_path}")


def test_checkpoint_that_lacks_weights(tiny_bert, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_bert, tmp_path / "cut")
    file = tmp_path / "cut/model.safetensors"
    state = load_file(file)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight"):
        resolve(f"hf/{tmp_path}/cut")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.bert."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_checkpoint_of_a_wrapped_network(tiny_bert, tmp_path, prefix, file):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_bert, tmp_path / "wrapped")
    state = {f"{prefix}{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    if file == "model.safetensors":
        save_file(state, folder / file, metadata={"format": "pt"})
    else:
        torch.save(state, folder / file)
    plain, wrapped = resolve(f"hf/{tiny_bert}"), resolve(f"hf/{folder}")
    assert wrapped.fingerprint == plain.fingerprint
    assert any(f"under {prefix[:-1]!r}" in note for note in wrapped.notes)


def test_layers_beyond_the_configuration_are_said(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "cut")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    (note,) = [note for note in resolve(f"hf/{folder}").notes if "smaller than the checkpoint" in note]
    assert "encoder.layer.1.attention.output.LayerNorm.weight" in note
    assert not any("smaller" in note for note in resolve(f"hf/{tiny_bert}").notes)


def test_an_adapter_alone_is_said(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}')
    with pytest.raises(BackboneError, match=r"adapter.*without its network.*merge_and_unload"):
        resolve(f"hf/{tmp_path}")


def test_folder_without_tokenizer(tiny_bert, tmp_path, offline):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_bert / name, tmp_path)
    with pytest.raises(BackboneError, match="tokenizer"):
        resolve(f"hf/{tmp_path}")


@pytest.mark.parametrize(
    ("query", "arguments", "message"),
    [
        ("?poling=cls", {}, "Did you mean pooling"),
        ("?pooling=max", {}, "pooling must be one of mean, cls, last"),
        ("", {"weights": "file.pth"}, "brings its own weights"),
        ("", {"image_size": 32}, "reads texts"),
        ("", {"preprocessing": {"size": [2, 2]}}, "Unknown field 'size'"),
        ("", {"preprocessing": {"max_length": 17}}, "takes 16 tokens at most; max_length is 17"),
        ("", {"preprocessing": {"max_length": 0}}, "whole number from 1"),
    ],
)
def test_bad_arguments(tiny_bert, query, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(f"hf/{tiny_bert}{query}", **arguments)


# ---- images ---------------------------------------------------------------------------------------------------------


def save_vision(folder: Path, config: Any, **processor: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    kind = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True}
    values = {"rescale_factor": 1 / 255, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**kind, **values, **processor}))
    return model


VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VIT |= {"image_size": 16, "patch_size": 8}


def test_vision_transformer(tmp_path):
    model = save_vision(tmp_path, transformers.ViTConfig(**VIT), size={"height": 16, "width": 16})
    backbone = resolve(f"hf/{tmp_path}")
    assert backbone.preprocessing.size == (16, 16)
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.preprocessing.resize == "squash"
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        output = model(x)
        torch.testing.assert_close(backbone.network(x), output.pooler_output)
        for pooling, expected in (("cls", output.last_hidden_state[:, 0]), ("mean", output.last_hidden_state.mean(1))):
            torch.testing.assert_close(resolve(f"hf/{tmp_path}?pooling={pooling}").network(x), expected)
    lin = check_linearization(resolve(f"hf/{tmp_path}?pooling=cls").network, x, "auto", batch_sizes=(2,))
    assert all(".layer" in name and ".1." in name for name in lin.theta2)


def test_vision_checkpoint_without_pooler(tmp_path):
    save_vision(tmp_path, transformers.ViTConfig(**VIT), size={"height": 16, "width": 16})
    transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path)
    backbone = resolve(f"hf/{tmp_path}")
    assert backbone.network.pooling.mode == "cls"
    with pytest.raises(ConfigurationError, match="no weights of a pooler"):
        resolve(f"hf/{tmp_path}?pooling=pooler")


def test_convolutional_network(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    crop = {"do_center_crop": True, "size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    model = save_vision(tmp_path, config, image_processor_type="CLIPImageProcessor", **crop)
    backbone = resolve(f"hf/{tmp_path}")
    assert backbone.preprocessing.size == (16, 16)
    assert backbone.preprocessing.crop_pct == pytest.approx(0.8)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(x), model(x).last_hidden_state.mean((2, 3)))
