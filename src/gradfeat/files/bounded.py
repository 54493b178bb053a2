"""Reading what strangers wrote: JSON, tables of checks with bounds, and values shown in a message.

Whoever damages or forges a file chooses every number in it. So what a file says is checked as a whole, against what can
be meant, before anything is built from it; and a message never grows with what it complains about.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], None]
"""Refuses a value at a place, by a `ValueError` that says what was expected there."""

_LARGEST = 2**1023  # a larger whole number is no float
_NAMES = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 2, 60, 60, 40


def shown(value: Any) -> str:
    """Return a value as a message can have it: short, and whatever it holds.

    Example:
        >>> shown("x" * 1000)
        "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    try:
        return _SHOWN.repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits are not written out
        return f"a {type(value).__name__} too large to show"


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Return what JSON says.

    Args:
        text: The JSON; bytes are UTF-8, -16 or -32.
        finite: Whether the words NaN and Infinity, which are no JSON, are refused.

    Raises:
        ValueError: It is no JSON, is nested too deep to be read, or has a number with thousands of digits.

    Example:
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested too deep
    """

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(text, parse_constant=refuse if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def number_to_json(value: float) -> float | str:
    """Return a number as JSON has it: with all its digits; "inf", "-inf" or "nan" where it is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))


def number_from_json(value: float | str) -> float:
    """Return what `number_to_json` was given."""
    return _NAMES[value] if isinstance(value, str) else float(value)


# ---- checks ---------------------------------------------------------------------------------------------------------


def flag(value: Any, where: str) -> None:
    """Expect true or false."""
    _expect(isinstance(value, bool), where, "true or false", value)


def whole(least: int, most: int) -> Check:
    """Expect a whole number from `least` to `most`."""

    def check(value: Any, where: str) -> None:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        _expect(good, where, f"a whole number from {least} to {most}", value)

    return check


def real(least: float = -math.inf, most: float = math.inf, *, finite: bool = True) -> Check:
    """Expect a number from `least` to `most`; one that is not finite may be its name, as `number_to_json` writes it."""

    def check(value: Any, where: str) -> None:
        number: Any = _NAMES.get(value) if isinstance(value, str) and not finite else value
        good = isinstance(number, int | float) and not isinstance(number, bool) and _is_float(number)
        good = good and (not finite or math.isfinite(number)) and (math.isnan(number) or least <= number <= most)
        within = f" from {least:g} to {most:g}" if math.isfinite(most) else f" from {least:g}" if least > -1e300 else ""
        _expect(good, where, f"a {'finite ' if finite else ''}number{within}", value)

    return check


def text(longest: int, *, empty: bool = True) -> Check:
    """Expect a string of `longest` characters at most."""

    def check(value: Any, where: str) -> None:
        good = isinstance(value, str) and len(value) <= longest and (empty or bool(value))
        _expect(good, where, f"a string of at most {longest:,} characters", value)

    return check


def one_of(*known: Any) -> Check:
    """Expect one of some values, of the same type."""

    def check(value: Any, where: str) -> None:
        good = any(type(value) is type(other) and value == other for other in known)
        _expect(good, where, f"one of {', '.join(map(repr, known))}", value)

    return check


def either(first: Check, second: Check) -> Check:
    """Expect what one of two checks lets pass."""

    def check(value: Any, where: str) -> None:
        try:
            first(value, where)
        except ValueError:
            second(value, where)

    return check


def nullable(inner: Check) -> Check:
    """Expect null, or what `inner` lets pass."""
    return lambda value, where: None if value is None else inner(value, where)


def listing(inner: Check, least: int, most: int) -> Check:
    """Expect a list of `least` to `most` entries."""

    def check(value: Any, where: str) -> None:
        good = isinstance(value, list) and least <= len(value) <= most
        _expect(good, where, f"a list of {least} to {most:,} entries", value)
        for i, item in enumerate(value):
            inner(item, f"{where}[{i}]")

    return check


def row(*inner: Check) -> Check:
    """Expect a list with one entry for each check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, list) and len(value) == len(inner), where, f"a list of {len(inner)} entries", value)
        for i, (one, item) in enumerate(zip(inner, value, strict=True)):
            one(item, f"{where}[{i}]")

    return check


def fields(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, closed: bool = False
) -> Check:
    """Expect an object with some fields; others are let pass, unless it is closed."""
    optional = optional or {}

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), where, "an object", value)
        missing = [name for name in required if name not in value]
        _expect(not missing, where, f"the fields {', '.join(missing)} too", sorted(value))
        for name, one in (*required.items(), *optional.items()):
            if name in value:
                one(value[name], f"{where}.{name}" if where else name)
        surplus = [name for name in value if name not in required and name not in optional] if closed else []
        _expect(not surplus, where, f"no fields besides {', '.join((*required, *optional))}", surplus)

    return check


def table(inner: Check, longest: int, most: int) -> Check:
    """Expect an object of at most `most` names, of `longest` characters at most, each with what `inner` lets pass."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict) and len(value) <= most, where, f"an object of at most {most:,} names", value)
        for name, item in value.items():
            text(longest)(name, f"a name in {where}")
            inner(item, f"{where}.{shown(name)}")

    return check


def distinct(values: Sequence[Any], where: str) -> None:
    """Expect values of which none is there twice."""
    _expect(len(set(values)) == len(values), where, "no value twice", list(values))


IMAGE_FIELDS: dict[str, Check] = {
    "size": listing(real(1, 1 << 16), 2, 2),
    "crop_pct": real(0.01, 1),
    "mean": listing(real(-1e8, 1e8), 1, 1 << 16),
    "std": listing(real(1e-8, 1e8), 1, 1 << 16),
    "channels": whole(1, 1 << 16),
}
"""Bounds of the preprocessing of images: a picture of more pixels, or a smaller part of one, fills the memory."""


def _is_float(number: float) -> bool:
    return isinstance(number, float) or abs(number) <= _LARGEST


def _expect(good: bool, where: str, expected: str, value: Any) -> None:
    if not good:
        raise ValueError(f"{where or 'it'}: expected {expected}, found {shown(value)}")
