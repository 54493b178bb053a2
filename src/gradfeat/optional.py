"""Optional dependencies, all in one place."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from gradfeat.errors import BackboneError, MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say how to install it.

    Args:
        module: Name of the module, e.g. ``"timm"``.
        extra: The extra of gradfeat that brings it, e.g. ``"vision"``.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The module is not installed, or cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingDependencyError(
            f"{module} is needed for this and is not installed. Install it with: pip install 'gradfeat[{extra}]'"
            if missing == package
            else f"{module} is needed for this, and itself needs {error.name}, which is not installed: "
            f"pip install {missing}"
        ) from error
    except Exception as error:  # what a package of another version, or for another torch, says while it is imported
        raise MissingDependencyError(
            f"{module} is needed for this and is installed, but cannot be imported ({type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0][:300]}). Its version does not go with the others here: install "
            f"it again, beside the torch that is here, with: pip install --force-reinstall --no-deps {package}"
        ) from error


_OFFLINE: ContextVar[bool] = ContextVar("offline", default=False)


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Let no builder of networks, nor of tokenizers, ask another machine in one block; what is on this one is used.

    Args:
        wanted: False leaves it as it is around the block.
    """
    token = _OFFLINE.set(wanted or _OFFLINE.get())
    try:
        yield
    finally:
        _OFFLINE.reset(token)


def is_offline() -> bool:
    """Whether no other machine may be asked: see `offline`."""
    return _OFFLINE.get()


_hub_lock = threading.RLock()


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep the hub's library from all requests in an offline block: it makes some of its own beside those for files.

    Its switch is one for the whole process, so it is turned for the time of a call alone.
    """
    if not is_offline():
        yield
        return
    constants: Any = require("huggingface_hub.constants", extra="text")
    with _hub_lock:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def cached_on_hub(source: str, files: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the first of some files of a published model that is on this machine; None where none is."""
    hub = require("huggingface_hub", extra="text")
    for file in files:
        found = hub.try_to_load_from_cache(source, file, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def from_pretrained(kind: str, source: str, **options: Any) -> Any:
    """Load a part of a published transformer: its files are read, no code of its own is run.

    Args:
        kind: Class of transformers: "AutoModel", "AutoConfig", "AutoTokenizer" or "AutoImageProcessor".
        source: A folder, or the model's id.
        **options: For its `from_pretrained`.

    Raises:
        BackboneError: The files are not there, cannot be fetched or cannot be read; the message says which are needed.
        MissingDependencyError: transformers is not installed.
    """
    transformers = require("transformers", extra="text")
    if is_offline():
        options["local_files_only"] = True
    try:
        with _quiet(transformers), _hub_offline():
            return getattr(transformers, kind).from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # missing files, a missing network and damaged files come as errors of several libraries
        raise BackboneError(_not_had(kind, source, error)) from error


def _not_had(kind: str, source: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0][:300]
    files = {
        "AutoTokenizer": "the tokenizer's files (tokenizer.json or vocab.txt, tokenizer_config.json)",
        "AutoImageProcessor": "preprocessor_config.json",
        "AutoConfig": "config.json",
    }.get(kind, "config.json and model.safetensors")
    failed = f"transformers could not load {files} from {source} ({type(error).__name__}: {reason})."
    if Path(source, "adapter_config.json").is_file():
        return (
            f"{source} holds an adapter (PEFT, LoRA) without its network: merge it into the network "
            f"(model.merge_and_unload().save_pretrained(folder)), and give that folder. {failed}"
        )
    if Path(source).is_dir():
        there = ", ".join(sorted(os.listdir(source))[:12]) or "nothing"
        return f"{failed} The folder has {there}; it needs what the model's save_pretrained and its tokenizer's wrote."
    allowed = "It may not be fetched unless allow_download=True (--allow-download) says so. " if is_offline() else ""
    return (
        f"{failed} {allowed}Without a network: download config.json, model.safetensors and the tokenizer's files (for "
        f"images preprocessor_config.json) from https://huggingface.co/{source} on another machine, put them into one "
        "folder, and give the folder in place of the id."
    )


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Leave out progress bars and remarks: gradfeat says itself what is missing."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# What torchvision describes to torch without asking whether its compiled part, which defines them, could be loaded.
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = globals().get("_library")  # a module that is loaded again keeps it


class _TorchvisionOperators:
    """Declares torchvision's operators in the middle of its import, where its compiled part has just failed to load.

    A torchvision that was built for another torch (for CUDA, beside a CPU build; or for another version) fails there
    with "operator torchvision::nms does not exist", and takes timm and half of transformers with it. With the operators
    declared, models, transforms and data sets work; a call of the operators themselves fails with torchvision's own
    words. Nothing is declared for a torchvision that is whole, and nothing is imported before somebody asks for it.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find nothing: the import goes on as it would."""
        if fullname == "torchvision._meta_registrations":
            _declare_operators(sys.modules.get("torchvision.extension"))


def _declare_operators(extension: Any) -> None:
    global _library
    has_operators = getattr(extension, "_has_ops", None)
    if _library is not None or has_operators is None or has_operators():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _OPERATORS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _library = library  # the declarations live as long as this object


def mend_imports() -> None:
    """Let torchvision, and what needs it, be imported from now on, whatever was tried before."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _TorchvisionOperators) for f in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionOperators())
    for package in ("torchvision", "timm"):
        if package not in sys.modules:  # an import that failed leaves those of its modules that were complete
            for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
                del sys.modules[name]
