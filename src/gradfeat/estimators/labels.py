"""Labels and weights as users have them, as one numpy array: tensors, sparse and masked arrays, objects, columns."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Iterator, Mapping, Set
from decimal import Decimal
from typing import Any

import numpy as np
import scipy.sparse
import torch

from gradfeat.errors import DataError

_WIDE = (torch.float16, torch.float32, torch.float64)


def as_labels(y: Any) -> np.ndarray:
    """Return y as an array, (n,) or (n, c), that holds what y says: nothing is made text, or left out, on the way.

    Args:
        y: Labels or targets: an array, a tensor, a list, a column of a table, a sparse or masked matrix. A masked or
            missing entry of a matrix of numbers is NaN.

    Raises:
        DataError: Not one row for each sample, or values that are missing, complex, records, or of different kinds.
    """
    if isinstance(y, Mapping | Set | Iterator):
        raise DataError(f"y must be a vector (n,) or a matrix (n, c), one row for each sample, not a {_name(y)}")
    try:
        labels = _array(y)
    except (TypeError, ValueError) as error:
        raise DataError(f"y must be a vector (n,) or a matrix (n, c), one row for each sample: {error}") from error
    if labels.ndim not in (1, 2):
        raise DataError(f"y must be a vector (n,) or a matrix (n, c), not of shape {labels.shape}")
    if labels.ndim == 2 and labels.shape[1] == 0:
        raise DataError(f"y has no columns, its shape is {labels.shape}: give a vector (n,) or a matrix (n, c)")
    if labels.dtype.names is not None:
        fields = ", ".join(labels.dtype.names)
        raise DataError(f"y has several fields, {fields}: give one of them, y[{labels.dtype.names[0]!r}]")
    if labels.dtype.kind == "c":
        raise DataError("y holds complex numbers: give real ones, or the real and imaginary part as two columns")
    if labels.dtype.kind in "mM":
        refuse_missing(labels)
    return _of_objects(labels) if labels.dtype.kind == "O" else labels


def as_weights(weight: Any) -> Any:
    """Return sample weights as scikit-learn reads them: numbers in an array, or one number for all.

    Raises:
        DataError: Weights that are masked, sparse, or no numbers.
    """
    if scipy.sparse.issparse(weight) or isinstance(weight, Mapping | Set | Iterator):
        raise DataError(f"sample_weight must be a vector (n,), one weight for each sample, not a {_name(weight)}")
    try:
        array = _array(weight)
    except (TypeError, ValueError) as error:
        raise DataError(f"sample_weight must be a vector (n,): {error}") from error
    if array.dtype.kind in "mM" or array.dtype.names is not None:
        raise DataError(f"sample_weight must hold numbers, not {array.dtype}")
    if array.dtype.kind == "O":
        refuse_missing(array.ravel(), "sample_weight", "weights")
    return array.item() if array.ndim == 0 else array


def refuse_missing(y: np.ndarray, name: str = "y", what: str = "labels") -> None:
    """Refuse labels that are NaN, infinite, None or another word for "missing"; the message has their number."""
    if y.dtype.kind == "f":
        missing = ~np.isfinite(y)
    elif y.dtype.kind in "mM":
        missing = np.isnat(y)
    elif y.dtype.kind == "O":
        missing = np.array([_is_missing(label) for label in y], dtype=bool)
    else:
        return
    if missing.any():
        count, first = int(missing.sum()), int(missing.argmax())
        raise DataError(
            f"{name} contains NaN, infinite or missing {what}: {count} of {len(y)}, first in sample {first}"
        )


def _array(y: Any) -> np.ndarray:
    """Return an array of any shape, objects as they are."""
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu()
        y = y.to_dense() if y.layout != torch.strided else y
        wide = y.float() if y.is_floating_point() and y.dtype not in _WIDE else y
        return np.asarray(wide.resolve_conj().numpy())
    if scipy.sparse.issparse(y):
        return np.asarray(y.toarray())
    if isinstance(y, np.ma.MaskedArray):
        return _unmasked(y)
    if isinstance(y, list | tuple):
        if y and all(isinstance(item, torch.Tensor) for item in y):
            return np.stack([_array(item) for item in y])
        if _mixed(y):  # which numpy would make text: NaN a class "nan", 1 a class "1"
            return _objects(y)
    return np.asarray(y)


def _mixed(y: list[Any] | tuple[Any, ...]) -> bool:
    return any(0 < sum(isinstance(item, kind) for item in y) < len(y) for kind in (str, bytes))


def _objects(y: list[Any] | tuple[Any, ...]) -> np.ndarray:
    labels = np.empty(len(y), dtype=object)
    labels[:] = y
    return labels


def _unmasked(y: np.ma.MaskedArray) -> np.ndarray:
    masked = np.ma.getmaskarray(y)
    if not masked.any():
        return np.asarray(y.data)
    if y.ndim == 2 and y.dtype.kind in "fiub":
        return np.where(masked, np.nan, y.data.astype(float))
    count, first = int(masked.any(axis=tuple(range(1, y.ndim))).sum()), int(np.argwhere(masked)[0][0])
    raise ValueError(f"{count} of {len(y)} entries are masked, first in sample {first}")


def _of_objects(labels: np.ndarray) -> np.ndarray:
    """Return objects that are all numbers, or all texts, as such."""
    if labels.ndim == 2:
        flat = [np.nan if _is_missing(label) else label for label in labels.ravel()]
        return np.array(flat, dtype=object).reshape(labels.shape)
    refuse_missing(labels)
    kinds = {type(label) for label in labels.tolist()}
    if any(isinstance(label, np.ndarray | list | tuple | Set | Mapping) for label in labels):
        raise DataError(f"y must hold one label for each sample, not a {_name(labels[0])} of them")
    if any(0 < sum(issubclass(kind, text) for kind in kinds) < len(kinds) for text in (str, bytes)):
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"y mixes labels of different kinds ({names}): make all of them texts, or numbers")
    if all(issubclass(kind, bool | np.bool_) for kind in kinds):
        return labels.astype(bool)
    if all(issubclass(kind, numbers.Integral) for kind in kinds):
        whole = np.array([int(label) for label in labels])
        return whole if whole.dtype.kind in "iu" else labels
    if all(issubclass(kind, numbers.Real | Decimal) for kind in kinds):
        return labels.astype(float)
    if any(issubclass(kind, datetime.date | datetime.timedelta) for kind in kinds):
        raise DataError("y holds dates: make them texts for classes, or numbers for regression")
    return labels


def _is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, infinite, or what pandas has for missing: which does not say that it is itself."""
    if label is None:
        return True
    if isinstance(label, np.ndarray | list | tuple | Set | Mapping):
        return False
    try:
        return bool(label != label) or (isinstance(label, float | np.floating) and not np.isfinite(label))
    except (TypeError, ValueError):
        return True


def _name(value: Any) -> str:
    return type(value).__name__
