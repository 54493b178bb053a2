"""Whatever a user may mean by a backbone, made into one thing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradfeat.backbones import preprocessing as scaling
from gradfeat.backbones.fingerprint import difference, fingerprint, fingerprint_of, summary
from gradfeat.backbones.head import classifier_left, features_of, head_of, is_published, without_heads
from gradfeat.backbones.names import Name, parse_name
from gradfeat.backbones.own_models import build_own
from gradfeat.backbones.timm_models import build_timm
from gradfeat.backbones.torchvision_models import build_torchvision
from gradfeat.backbones.transformers_models import build_transformers
from gradfeat.backbones.weights import load_file
from gradfeat.contexts import alone, callers_device, plain
from gradfeat.errors import BackboneError, ConfigurationError, GradfeatWarning
from gradfeat.linearization.capture import refuse_modules
from gradfeat.linearization.copies import copied
from gradfeat.pretrain.encoder_file import load_encoder, read_architecture
from gradfeat.pretrain.loop import seeded

if TYPE_CHECKING:
    from gradfeat.data import Preprocessing, TextPreprocessing

BackboneLike = nn.Module | str | Path | Callable[[tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Backbone:
    """A pre-trained network, and what must be known to use it.

    Args:
        network: The network.
        features: Where f(x) is read: None (its output), "input:<module>", or a module's name (its output).
        name: The name it was made from; None for a module.
        preprocessing: How images or texts become its input; None when that is not known.
        head: Name of the classifier that the network still wears, or None.
        fingerprint: Digest of architecture, weights and features.
        notes: What was decided on the way and may surprise.
        about: The network's `summary`, which says what was changed where the fingerprint is another later.
    """

    network: nn.Module
    features: str | None
    name: str | None
    preprocessing: Preprocessing | TextPreprocessing | None
    head: str | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def kept(self) -> Backbone:
        """Return the backbone with a copy of the network, which stays as it is whatever is done to the given one.

        A network that cannot be copied stays the given one; `check_unchanged` says later whether it still is.
        """
        try:
            with alone():
                return replace(self, network=copied(self.network))
        except Exception:  # of any part of a module: an open file, a lock, a handle of another library
            return self

    def is_of(self, network: nn.Module) -> bool:
        """Say whether a network has the layers and weights of this one; not where it has no values, say."""
        try:
            return fingerprint(network, self.features) == self.fingerprint
        except Exception:  # of whatever became of the caller's network: on the meta device, freed, taken apart
            return False

    def check_unchanged(self) -> None:
        """Refuse a network that is no longer what it was.

        Raises:
            BackboneError: The message says what was changed.
        """
        about = summary(self.network)
        if fingerprint_of(about, self.features) != self.fingerprint:
            lines = difference(self.about, about)
            raise BackboneError(
                "the network that this model was fitted to has been changed since:\n  "
                + "\n  ".join(lines)
                + "\nPut its weights and layers back as they were, or fit again"
            )


@dataclass
class _Draft:
    """A network on its way: what the builders of the several kinds hand over."""

    network: nn.Module
    fields: dict[str, Any] | None = None
    features: str | None = None
    name: str | None = None
    notes: list[str] = field(default_factory=list)


@alone()
@plain()
def resolve(
    backbone: BackboneLike,
    *,
    weights: str | Path | None = None,
    X_shape: tuple[int, ...] | None = None,
    random_state: int | None = None,
    preprocessing: Mapping[str, Any] | Preprocessing | TextPreprocessing | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Return the network that `backbone` means, with its features, preprocessing and fingerprint.

    Args:
        backbone: One of

            - an nn.Module, used as it is and never modified;
            - "timm/<model>" or "torchvision/<model>", with or without the tag of its weights (".a1_in1k") and options
              for the library's constructor ("?pad_type=same"); the classifier is removed;
            - "hf/<folder or id>" or "sentence-transformers/<folder or id>", a transformer of texts or images, with the
              option "?pooling=cls" (or mean, last; for images pooler); heads are left out;
            - "gradfeat/<file>", or the path of an encoder that `gradfeat.pretrain` wrote;
            - "gradfeat/resnet20" (32, 56, ...), the ResNet for images of 32 × 32, with weights from a file;
            - a callable that takes the shape of X and returns a module whose output is f(x). It may fit models of its
              own, but not wait for another thread that does: that one waits for the callable.
        weights: For a name. None loads the library's own (and downloads them when they are not on this machine); a file
            of safetensors or torch.save, whatever its name, or a folder with its shards, loads that ("FILE::part" the
            named part of it, where several fit); "random" leaves random initial weights.
        X_shape: Shape of X, for a callable.
        random_state: Seed of random initial weights; None draws from PyTorch's global stream.
        preprocessing: Replaces the network's own preprocessing, whole or (a dict) in some fields.
        image_size: Replaces the side of the input, in pixels; no border is cut off then, unless `preprocessing` has a
            crop_pct (None in it is the network's own).

    Returns:
        The backbone.

    Raises:
        ConfigurationError: A name, option or combination that cannot be meant.
        BackboneError: Weights that are missing, damaged or do not fit.
        MissingDependencyError: timm, torchvision or transformers is not installed.

    Example:
        >>> import torch
        >>> resolve(torch.nn.Linear(4, 2)).features is None
        True
        >>> resolve(lambda shape: torch.nn.Linear(shape[1], 2), X_shape=(10, 4), random_state=0).network.in_features
        4
    """
    if isinstance(backbone, nn.Module):
        draft = _from_module(backbone, weights)
    elif isinstance(backbone, str | Path):
        with _building(random_state, keep_stream=weights != "random"):
            draft = _from_name(str(backbone), weights)
    elif callable(backbone) and not isinstance(backbone, torch.export.ExportedProgram):
        with _building(random_state):
            draft = _from_callable(backbone, weights, X_shape)
    else:
        raise ConfigurationError(
            "Expected a backbone as nn.Module, name, path or callable (shape of X -> nn.Module); "
            f"got {type(backbone).__name__}."
            + (
                " Weights alone are no network: build it, network.load_state_dict(...), and pass the network."
                if isinstance(backbone, Mapping)
                else ""
            )
        )
    refuse_modules(draft.network)
    _check_image_size(draft, image_size)
    about = summary(draft.network)
    return Backbone(
        network=draft.network,
        features=draft.features,
        name=draft.name,
        preprocessing=scaling.build(draft.fields, preprocessing, image_size),
        head=head_of(draft.network),
        fingerprint=fingerprint_of(about, draft.features),
        notes=tuple(draft.notes),
        about=about,
    )


@contextmanager
def _building(random_state: int | None, keep_stream: bool = False) -> Iterator[None]:
    """Build a network where the caller builds, of random numbers that no other thread draws from meanwhile.

    Args:
        random_state: Seed of them; None draws from PyTorch's global stream.
        keep_stream: Whether that stream is left as it was also then: what is drawn is overwritten by weights from a
            file.
    """
    stream = torch.random.fork_rng(devices=[]) if keep_stream else nullcontext()
    with callers_device(), stream, seeded(random_state):
        yield


def _from_module(network: nn.Module, weights: str | Path | None) -> _Draft:
    if weights is not None:
        raise ConfigurationError(
            "weights= belongs to a backbone given by name; load them into the module yourself: "
            "network.load_state_dict(...)."
        )
    draft = _Draft(network, features=features_of(network))
    if type(network).__module__.startswith("timm."):
        draft.fields = scaling.from_timm(network) if getattr(network, "pretrained_cfg", None) else None
    if draft.features is not None:
        draft.notes.append(f"f(x) is the input of the network's classifier {head_of(network)!r}.")
    elif (bare := without_heads(network)) is not None:
        draft.network = bare
        draft.notes.append("f(x) is what the network's several classifiers take: it is used without them.")
    elif (left := classifier_left(network)) is not None:
        note = (
            f"f(x) is the network's output, which {left} ends. If that is a classifier, put nn.Identity() in its place."
        )
        draft.notes.append(note)
        if is_published(network):
            warnings.warn(note, GradfeatWarning, stacklevel=4)
    return draft


def _from_callable(
    build: Callable[[tuple[int, ...]], nn.Module], weights: str | Path | None, X_shape: tuple[int, ...] | None
) -> _Draft:
    if weights is not None:
        raise ConfigurationError("weights= belongs to a backbone given by name; load them inside the callable.")
    if X_shape is None:
        raise ConfigurationError("A backbone given as a callable needs X_shape, the shape of X.")
    try:
        network = build(tuple(X_shape))
    except TypeError as error:
        if not isinstance(build, type):
            raise
        raise ConfigurationError(
            f"The class {build.__name__} cannot be made from the shape of X alone ({error}): pass a network, "
            f"{build.__name__}(...), not the class."
        ) from error
    name = f"{getattr(build, '__module__', '')}.{getattr(build, '__qualname__', type(build).__qualname__)}"
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"The callable {name} must return an nn.Module; it returned {type(network).__name__}.")
    return _Draft(network, name=name)


def _from_name(text: str, weights: str | Path | None) -> _Draft:
    name = parse_name(text)
    if name.library == "gradfeat" and not name.architecture:
        return _from_encoder(name, weights)
    if name.library in ("hf", "sentence-transformers"):
        return _from_transformers(name, weights)
    random = weights == "random"
    transforms: Any = None
    fields: dict[str, Any] | None
    if name.architecture:
        network, head_keys = build_own(name, pretrained=weights is None)
        fields = None
    elif name.library == "timm":
        network, head_keys = build_timm(name, pretrained=weights is None)
        in_channels = name.options.get("in_chans")
        fields = scaling.from_timm(network, int(in_channels) if in_channels else None)
    else:
        network, head_keys, transforms = build_torchvision(name, pretrained=weights is None, random=random)
        fields = None if transforms is None else scaling.from_torchvision(transforms)
    draft = _Draft(network.eval(), fields, name=text)
    if random:
        draft.notes.append("The weights are random.")
    elif weights is not None:
        notes, metadata = load_file(network, weights, head=head_keys)
        draft.notes.extend(notes)
        stated = scaling.from_metadata(metadata, str(weights))
        if stated:
            draft.fields = {**(fields or {}), **stated}
            draft.notes.append(f"The preprocessing's {', '.join(stated)} come from the weights file.")
    return draft


def _from_transformers(name: Name, weights: str | Path | None) -> _Draft:
    if weights not in (None, "random"):
        raise ConfigurationError(
            f"The folder or id after {name.library}/ brings its own weights; weights= may only be 'random' beside it."
        )
    network, fields, full_name, notes = build_transformers(name, random=weights == "random")
    if weights == "random":
        notes.append("The weights are random.")
    return _Draft(network, fields, name=full_name, notes=notes)


def _from_encoder(name: Name, weights: str | Path | None) -> _Draft:
    if weights not in (None, "random"):
        raise ConfigurationError("The encoder's file holds its weights; weights= may only be 'random' beside it.")
    built_by, metadata = read_architecture(name.model)
    if built_by is not None:
        network = _from_name(built_by, weights or Path(name.model).expanduser()).network
    else:
        network, _ = load_encoder(name.model)
        if weights == "random":
            network = type(network)(**metadata["arguments"]).eval()
    notes = ["The weights are random."] if weights == "random" else []
    return _Draft(network, dict(metadata["preprocessing"]), name=f"gradfeat/{name.model}", notes=notes)


def _check_image_size(draft: _Draft, image_size: int | None) -> None:
    """Refuse another image size where timm says that the network is built for one size."""
    config = getattr(draft.network, "pretrained_cfg", None)
    fixed = isinstance(config, dict) and config.get("fixed_input_size") and draft.fields is not None
    if image_size is None or not fixed or getattr(draft.network, "dynamic_img_size", False):
        return
    size = list((draft.fields or {})["size"])
    if size != [image_size, image_size]:
        raise ConfigurationError(
            f"The network is built for images of {size[0]} × {size[1]}, not {image_size}. Give the size to its "
            f"constructor: {draft.name or 'timm/<model>'}?img_size={image_size}"
        )
