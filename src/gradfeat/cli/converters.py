"""How the text of an option becomes the estimator's parameter."""

from __future__ import annotations

from collections.abc import Sequence

from gradfeat.errors import ConfigurationError


def numbers(flag: str, text: str) -> float | tuple[float, ...]:
    """Return the number, or the numbers between commas, that a text has.

    Raises:
        ConfigurationError: It has something else.

    Example:
        >>> numbers("--mean", "0.5"), numbers("--mean", "0.485,0.456,0.406")
        (0.5, (0.485, 0.456, 0.406))
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"{flag} must be numbers separated by commas, not {text!r}") from None
    return values[0] if len(values) == 1 else values


def penalties(flag: str, text: str) -> str | float | tuple[float, ...]:
    """Return the penalties that a text has; "auto" stays."""
    return text if text == "auto" else numbers(flag, text)


def rounds(flag: str, text: str | None) -> int | str | None:
    """Return the rounds that a text says; a word stays, and the estimator knows it or not; None is by effort.

    Example:
        >>> rounds("--rounds", "3"), rounds("--rounds", "auto")
        (3, 'auto')
    """
    return int(text) if text is not None and text.isdecimal() else text


def augment(flag: str, text: str) -> str | None:
    """Return what is added to images: nothing for "none"; another word stays, and the estimator knows it or not."""
    return None if text == "none" else text


def names_of(flag: str, theta2: Sequence[str] | None) -> list[str]:
    """Return the names of θ₂, which may be given in several options or separated by commas; none of them is "auto".

    Raises:
        ConfigurationError: It was given, and names nothing.

    Example:
        >>> names_of("--theta2", ["layer4.1, layer4.0", "conv1"])
        ['layer4.1', 'layer4.0', 'conv1']
    """
    names = [name for given in theta2 or [] for part in given.split(",") if (name := part.strip())]
    if theta2 and not names:
        raise ConfigurationError(f"{flag} names nothing: give modules or parameters, or leave it out")
    return [] if names == ["auto"] else names


def theta2(flag: str, given: Sequence[str]) -> list[str] | str:
    """Return the estimator's `theta2`."""
    return names_of(flag, given) or "auto"
