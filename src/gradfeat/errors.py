"""Every error that gradfeat raises on purpose; each is a `GradfeatError` and also a standard exception."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class GradfeatError(Exception):
    """Base of all errors that gradfeat raises on purpose."""


class ConfigurationError(GradfeatError, ValueError):
    """An argument, or a combination of arguments, that cannot be meant."""


class Theta2Error(ConfigurationError):
    """The named θ₂ matches no parameter, or does not reach the features."""


class LinearizationError(GradfeatError, RuntimeError):
    """The network cannot be turned into bottom, primal and tangent programs."""


class BatchDependenceError(LinearizationError):
    """The network's output for one sample depends on the other samples of its batch, or on chance."""


class DataError(GradfeatError, ValueError):
    """Data that cannot be read or used: the message names the file, row or value."""


class BackboneError(GradfeatError, ValueError):
    """A backbone that cannot be built, or weights that do not fit it."""


class AdapterError(GradfeatError, ValueError):
    """A saved model that is damaged, of a newer format, or made for another backbone."""


class ConvergenceError(GradfeatError, ArithmeticError):
    """A fit that left the finite numbers; nothing of it is kept."""


class MissingDependencyError(GradfeatError, ImportError):
    """An optional package is needed; the message has the line that installs it."""


class GradfeatWarning(UserWarning):
    """Something that changes cost or numbers, said once."""


def did_you_mean(
    name: str, known: Iterable[str], other_names: Mapping[str, str] | None = None, *, most: int = 5
) -> str:
    """Return a sentence with the known names nearest to `name`, or an empty string.

    Args:
        name: What was written.
        known: What there is.
        other_names: What others call some of them, in small letters, with spaces for hyphens and underscores.
        most: Names in the sentence.

    Example:
        >>> did_you_mean("layer4.1.conv3", ["layer4.1.conv1", "layer4.1.conv2", "fc"])
        ' Did you mean layer4.1.conv2, layer4.1.conv1?'
    """
    known = list(dict.fromkeys(known))
    meant = (other_names or {}).get(" ".join(name.lower().replace("_", " ").replace("-", " ").split()))
    near = [meant] if meant else difflib.get_close_matches(name, known, n=most, cutoff=0.6)
    if not near:  # in other letters
        small = {other.lower(): other for other in known}
        near = [small[other] for other in difflib.get_close_matches(name.lower(), small, n=most, cutoff=0.6)]
    return f" Did you mean {', '.join(near)}?" if near else ""


def refuse_unknown_fields(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse a field that `what` does not have.

    Raises:
        ConfigurationError: The message has the known ones.
    """
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"Unknown field {name!r} of {what}. Known: {', '.join(known)}." + did_you_mean(str(name), known)
            )
