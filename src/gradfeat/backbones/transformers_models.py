"""Networks of transformers and sentence-transformers, by name: "hf/<folder or id>", "sentence-transformers/<...>"."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from gradfeat.backbones.contents import some
from gradfeat.backbones.encoders import (
    IMAGE_POOLINGS,
    SOUND_POOLINGS,
    TEXT_POOLINGS,
    ImageEncoder,
    SoundEncoder,
    TextEncoder,
)
from gradfeat.backbones.names import Name
from gradfeat.backbones.weights import load_file
from gradfeat.data.text import LONGEST, load_tokenizer
from gradfeat.errors import BackboneError, ConfigurationError, did_you_mean
from gradfeat.optional import from_pretrained, is_offline, require

_SENTENCE = "sentence-transformers"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def build_transformers(name: Name, *, random: bool) -> tuple[nn.Module, dict[str, Any] | None, str, list[str]]:
    """Build an encoder of texts, images or recordings whose output is f(x), without heads.

    Args:
        name: A local folder (as `save_pretrained` writes it) or an id, with the option `pooling`.
        random: Whether the weights are to be random; else they are loaded, and fetched when they are not on this
            machine.

    Returns:
        The network; the fields of its preprocessing, None where they are not known; the name in a form that holds in
        any working directory; and what was decided on the way.

    Raises:
        ConfigurationError: An unknown option or pooling, or a network that is no encoder of texts or images.
        BackboneError: The files are not there, or do not fit.
    """
    for option in name.options:
        if option != "pooling":
            raise ConfigurationError(
                f"{name.library}/... has no option {option!r}; known is pooling.{did_you_mean(option, ['pooling'])}"
            )
    source, full_name = _source(name)
    notes: list[str] = []
    stated: dict[str, Any] = {}
    if name.library == _SENTENCE:
        source, stated = _sentence_modules(source, notes)
    transformer, missing = _load(source, random, notes)
    pooling = name.options.get("pooling", stated.pop("pooling", None))
    kind = getattr(transformer, "main_input_name", "input_ids")
    known = {"pixel_values": IMAGE_POOLINGS, "input_values": SOUND_POOLINGS}.get(kind, TEXT_POOLINGS)
    if pooling is not None and pooling not in known:
        raise ConfigurationError(
            f"pooling must be one of {', '.join(known)}, not {pooling!r}.{did_you_mean(str(pooling), known)}"
        )
    network: nn.Module
    fields: dict[str, Any] | None
    if kind == "pixel_values":
        network, fields = _image_encoder(transformer, source, pooling, missing, notes)
    elif kind == "input_values":
        network, fields = _sound_encoder(transformer, source, pooling or "mean", missing, notes), None
    else:
        _without_pooler(transformer, missing, source)
        network = _text_encoder(transformer, pooling or "mean", stated.pop("normalize", False), notes)
        fields = {"tokenizer": source, "limit": _limit(transformer, source)}
        if fields["limit"] is not None:
            stated["max_length"] = min(stated.get("max_length", LONGEST), fields["limit"])
        fields.update(stated)
    return network.eval(), fields, full_name, notes


def _source(name: Name) -> tuple[str, str]:
    """Return the folder or id that transformers takes, and the backbone's name."""
    query = "&".join(f"{option}={value}" for option, value in name.options.items())
    source, folder = name.model, Path(name.model).expanduser()
    if folder.is_dir():
        source = str(folder.absolute())
    elif source.startswith(("/", ".", "~")):
        raise BackboneError(f"There is no folder {folder}, which the backbone {name.library}/{name.model} names.")
    stored = f"{name.library}/{source}" + (f"?{query}" if query else "")
    if name.library == _SENTENCE and "/" not in source:
        source = f"{_SENTENCE}/{source}"  # their own models, whose ids begin so
    return source, stored


def _load(source: str, random: bool, notes: list[str]) -> tuple[Any, set[str]]:
    """Return a model without heads, in float32, and the names of parameters that its checkpoint lacks."""
    missing: set[str] = set()
    if random:
        config = from_pretrained("AutoConfig", source)
        model: Any = require("transformers", extra="text").AutoModel.from_config(config, trust_remote_code=False)
    else:
        model, info = from_pretrained("AutoModel", source, output_loading_info=True)
        missing = set(info["missing_keys"])
        if len(missing) == len(model.state_dict()) and Path(source).is_dir():
            # saved inside of torch.compile or DataParallel, whose names transformers does not know
            with contextlib.suppress(BackboneError):  # what is missing is said by the caller
                notes.extend(load_file(model, source)[0])
                missing = set()
        elif beyond := _beyond(model, info["unexpected_keys"]):
            notes.append(f"The network of config.json is smaller than the checkpoint; not used of it: {some(beyond)}.")
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
        missing = {key.removeprefix("encoder.") for key in missing if not key.startswith("decoder.")}
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # the memory of a text generator, which plays no part here
    return model.float(), missing


def _beyond(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Return the names in a checkpoint that lie inside of the network's own parts, as those of a layer too many."""
    parts = {name for name, _ in model.named_children()} - {"pooler"}
    names = sorted(name.removeprefix(f"{model.base_model_prefix}.") for name in unexpected)
    return [name for name in names if name.partition(".")[0] in parts and name.endswith(".weight")]


def _without_pooler(transformer: Any, missing: set[str], source: str) -> None:
    """Take the pooler off: nothing of it is read, and checkpoints often lack its weights."""
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None
    _check_complete({key for key in missing if not key.startswith("pooler.")}, source)


def _check_complete(missing: set[str], source: str) -> None:
    if missing:
        names = sorted(missing)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise BackboneError(f"The checkpoint of {source} lacks {', '.join(names[:8])}{more}: is it damaged?")


# ---- texts ----------------------------------------------------------------------------------------------------------


def _text_encoder(transformer: Any, pooling: str, normalize: bool, notes: list[str]) -> nn.Module:
    length = ", brought to length 1" if normalize else ""
    notes.append(f"f(x) is the {_POOLED[pooling]} of the transformer's last states{length}.")
    return TextEncoder(transformer, pooling, normalize)


_POOLED = {"mean": "mean under the attention mask", "cls": "first token's part", "last": "last token's part"}


def _limit(transformer: Any, source: str) -> int | None:
    """Return the most tokens that both the tokenizer and the positions of the network allow."""
    limits = [load_tokenizer(source).model_max_length]
    if (positions := getattr(transformer.config, "max_position_embeddings", None)) is not None:
        limits.append(positions)
    for path, module in transformer.named_modules():
        # RoBERTa and its kin count positions from behind the padding's own
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    least = int(min(limits))
    return least if 0 < least < 1_000_000 else None  # a tokenizer without a limit states an enormous one


def _sentence_modules(source: str, notes: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the transformer's folder or id, and what a sentence-transformers model says about all else.

    That is pooling, whether the features are brought to length 1, most tokens and lower case.
    """
    modules = _read_json(source, "modules.json")
    if modules is None:
        notes.append("There is no modules.json; pooling is the mean, as in sentence-transformers.")
        return source, {}
    try:
        paths = {str(module["type"]).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    except (TypeError, KeyError) as error:
        raise BackboneError(f"modules.json of {source} cannot be read: expected a list of modules.") from error
    unknown = [kind for kind in paths if kind not in ("Transformer", "Pooling", "Normalize", "Dropout")]
    if unknown or "Transformer" not in paths:
        raise ConfigurationError(
            f"{source} is made of {', '.join(paths)}; gradfeat reads a Transformer with a Pooling. Its transformer "
            "alone: hf/<the same folder>"
        )
    folder = paths["Transformer"]
    if folder and not Path(source).is_dir():
        raise ConfigurationError(f"{source} keeps its transformer in {folder}/: download it, and give the folder.")
    stated: dict[str, Any] = {"pooling": _stated_pooling(source, paths.get("Pooling"))}
    if "Normalize" in paths:
        stated["normalize"] = True
    if folder:
        source = str(Path(source) / folder)
    about = _read_json(source, "sentence_bert_config.json") or {}
    if about.get("max_seq_length"):
        stated["max_length"] = min(LONGEST, int(about["max_seq_length"]))
    if about.get("do_lower_case"):
        stated["lowercase"] = True
    return source, stated


def _stated_pooling(source: str, folder: str | None) -> str:
    """Return the pooling of ``1_Pooling/config.json``, in either of its two forms."""
    if folder is None:
        return "mean"
    about = _read_json(source, f"{folder}/config.json")
    if about is None:
        raise BackboneError(f"{source} lacks {folder}/config.json, which states the pooling: download it too.")
    modes = about.get("pooling_mode")
    if modes is None:
        modes = [
            key.removeprefix("pooling_mode_") for key, on in about.items() if key.startswith("pooling_mode_") and on
        ]
    names = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last"}
    found = [names.get(mode) for mode in ([modes] if isinstance(modes, str) else modes)]
    if len(found) != 1 or found[0] is None:
        raise ConfigurationError(
            f"{source} pools by {modes}; gradfeat knows mean, cls and last. Choose one: "
            "hf/<the same folder>?pooling=mean"
        )
    return found[0]


def _read_json(source: str, file: str) -> Any:
    """Return a JSON file of a folder or of a published model; None where it has no such file."""
    path: Path | None = Path(source) / file
    if not Path(source).is_dir():
        path = _fetched(source, file)
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read as JSON: {error}") from error


def _fetched(source: str, file: str) -> Path | None:
    require("transformers", extra="text")
    if is_offline():
        return _fetched_before(source, file)
    hub, errors = require("huggingface_hub", extra="text"), require("huggingface_hub.errors", extra="text")
    try:
        return Path(hub.hf_hub_download(source, file))
    except errors.LocalEntryNotFoundError as error:
        reason: Exception = error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # no network, no such model, a refused token
        reason = error
    raise BackboneError(
        f"{file} of {source} could not be fetched ({type(reason).__name__}). Without a network: download all files of "
        f"https://huggingface.co/{source} on another machine, and give the folder: {_SENTENCE}/<folder>."
    ) from reason


def _fetched_before(source: str, file: str) -> Path | None:
    """Return a file that has been downloaded; None where it is known that the model has no such file."""
    hub = require("huggingface_hub", extra="text")
    found = hub.try_to_load_from_cache(source, file)
    if found is None:
        raise BackboneError(
            f"{file} of {source} is not on this machine, and may not be fetched unless allow_download=True (on the "
            "command line: --allow-download) says so."
        )
    return Path(found) if isinstance(found, str) else None


# ---- sound ----------------------------------------------------------------------------------------------------------


def _sound_encoder(transformer: Any, source: str, pooling: str, missing: set[str], notes: list[str]) -> nn.Module:
    extractor = from_pretrained("AutoFeatureExtractor", source)
    if "Wav2Vec2" not in type(extractor).__name__:
        raise ConfigurationError(
            f"{source} takes the output of a {type(extractor).__name__}, not waveforms: compute that first, and pass "
            "the network itself (an nn.Module) and the arrays"
        )
    _check_complete({key for key in missing if "masked_spec_embed" not in key}, source)
    notes.append(f"f(x) is the {'mean' if pooling == 'mean' else 'first part'} of the transformer's last states.")
    notes.append(f"Recordings must have {extractor.sampling_rate:,} samples a second.")
    return SoundEncoder(transformer, pooling, bool(extractor.do_normalize))


# ---- images ---------------------------------------------------------------------------------------------------------


def _image_encoder(
    transformer: Any, source: str, pooling: Any, missing: set[str], notes: list[str]
) -> tuple[nn.Module, dict[str, Any] | None]:
    untrained = any(key.startswith("pooler.") for key in missing)
    if pooling == "pooler" and untrained:
        raise ConfigurationError(f"{source} has no weights of a pooler: say ?pooling=cls or ?pooling=mean.")
    if pooling is None:
        # a pooler without parameters is an average; a class token is there where there is no pooler
        has_pooler = getattr(transformer, "pooler", None) is not None or "Conv" in type(transformer).__name__
        pooling = "pooler" if has_pooler and not untrained else "cls"
    if pooling != "pooler":
        _without_pooler(transformer, missing, source)
    else:
        _check_complete(missing, source)
    notes.append(f"f(x) is {_IMAGE_POOLED[pooling]}.")
    fields = _image_fields(from_pretrained("AutoImageProcessor", source))
    if fields is None:
        notes.append("Its images are prepared in a way that gradfeat does not know: give preprocessing=.")
    return ImageEncoder(transformer, pooling), fields


_IMAGE_POOLED = {
    "pooler": "the model's own pooled output",
    "cls": "the first token's part of the last states",
    "mean": "the mean of the last states",
}


def _image_fields(processor: Any) -> dict[str, Any] | None:
    """Return the fields of an image processor's work, or None where `Preprocessing` cannot do the same."""

    def get(name: str) -> Any:
        return getattr(processor, name, None)

    size, crop = dict(get("size") or {}), dict(get("crop_size") or {}) if get("do_center_crop") else {}
    edge = size.get("shortest_edge")
    factor = get("rescale_factor")
    interpolation = _RESAMPLE.get(get("resample"))
    if not get("do_resize") or interpolation is None or factor is None or abs(255 * factor - 1) > 1e-6:
        return None
    fields: dict[str, Any] = {"interpolation": interpolation}
    if edge and crop.get("height") and crop["height"] <= edge:
        fields |= {"size": [crop["height"], crop["width"]], "crop_pct": crop["height"] / edge}
    elif edge and get("crop_pct"):  # ConvNeXt's
        fields |= {"size": [edge, edge], "crop_pct": get("crop_pct")} if edge < 384 else {"size": [edge, edge]}
        fields |= {"resize": "squash"} if edge >= 384 else {}
    elif size.get("height") and not crop:
        fields |= {"size": [size["height"], size["width"]], "resize": "squash"}
    else:
        return None
    mean, std = (get("image_mean"), get("image_std")) if get("do_normalize") else ([0.0] * 3, [1.0] * 3)
    return {**fields, "mean": list(mean), "std": list(std), "channels": len(mean)}
