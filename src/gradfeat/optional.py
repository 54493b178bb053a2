"""Optional dependencies, all in one place."""

from __future__ import annotations

import importlib
from types import ModuleType

from gradfeat.errors import MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say how to install it.

    Args:
        module: Name of the module, e.g. ``"timm"``.
        extra: The extra of gradfeat that brings it, e.g. ``"vision"``.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: The module is not installed.
    """
    if module.split(".")[0] in ("torchvision", "timm", "transformers"):
        _declare_torchvision_operators()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{module} is needed for this and is not installed. Install it with: pip install 'gradfeat[{extra}]'"
        ) from error


_library: object | None = None


def _declare_torchvision_operators() -> None:
    """Let a torchvision built for CUDA be imported beside a CPU build of torch.

    Such a torchvision fails at import with "operator torchvision::nms does not exist", and takes timm with it.
    Declaring the operators first makes models, transforms and data sets work; the operators themselves stay
    unavailable.
    """
    global _library
    import importlib.util

    import torch

    if _library is not None or torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library = library  # the declarations live as long as this object
