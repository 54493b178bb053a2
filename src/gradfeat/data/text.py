"""From a text to the network's input: token ids and their attention mask, as one array."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradfeat.contexts import tokenizing
from gradfeat.data.lines import readable
from gradfeat.errors import BackboneError, ConfigurationError, DataError, GradfeatWarning, refuse_unknown_fields
from gradfeat.optional import from_pretrained, offline

LONGEST = 256  # tokens; memory and time grow with the longest text
_MOST_LENGTHS = 4  # each has programs of its own
_WORTH = 20_000  # tokens, whose way through a small transformer takes as long as making one more set of programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPreprocessing:
    """How texts become the input of a transformer.

    Every text gets the same number of tokens: longer ones are cut, shorter ones are padded, and the mask says which
    tokens are the text's own. A fit to many texts chooses several lengths; the network then sees of each text no more
    padding than the shortest of them that holds it asks for.

    Args:
        tokenizer: Folder or id of the tokenizer, as transformers takes it.
        max_length: Most tokens of a text, those that the tokenizer adds among them.
        length: Tokens of every text; None takes the longest text's, `max_length` at most. A fit fixes it.
        lengths: Ascending, the last is `length`: what texts are padded to as the network sees them. None is `length`
            alone. A fit that fixes `length` chooses them.
        limit: Most tokens that the network can take; None where there is no limit.
        lowercase: Whether texts are lowercased before the tokenizer sees them.
        download: Whether a tokenizer that is not on this machine may be fetched; no part of what texts become, and not
            kept in a file.

    Raises:
        ConfigurationError: A value that cannot be meant.
    """

    tokenizer: str
    max_length: int = LONGEST
    length: int | None = None
    lengths: tuple[int, ...] | None = None
    limit: int | None = None
    lowercase: bool = False
    download: bool = dataclasses.field(default=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        wrong = []
        for name in ("max_length", "length", "limit"):
            value = getattr(self, name)
            if value is None and name != "max_length":
                continue
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < 1:
                wrong.append(f"{name} must be a whole number from 1, not {value!r}")
            elif isinstance(self.limit, int) and int(value) > self.limit:
                wrong.append(f"the network takes {self.limit} tokens at most; {name} is {value}")
        if self.lengths is not None:
            object.__setattr__(self, "lengths", tuple(self.lengths))  # JSON has lists
            if not all(isinstance(value, int) and value > 0 for value in self.lengths) or (
                list(self.lengths) != sorted(set(self.lengths)) or self.lengths[-1:] != (self.length,)
            ):
                wrong.append(f"lengths must ascend to length, {self.length}, not be {self.lengths}")
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            wrong.append(f"tokenizer must be a folder or an id, not {self.tokenizer!r}")
        if wrong:
            raise ConfigurationError("Preprocessing of texts: " + "; ".join(wrong))

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, TextPreprocessing]:
        """Return texts as the network's input, and the preprocessing with their length fixed.

        Args:
            texts: n strings.

        Returns:
            (n, 2, length), int64: [:, 0] are token ids, [:, 1] is 1 for a text's own tokens and 0 for padding; and
            the preprocessing that gives other texts the same length.

        Raises:
            DataError: A text without tokens.
        """
        longest = self.max_length if self.length is None else self.length
        texts = readable(texts, [f"text {i}" for i in range(len(texts))])
        cased = [text.lower() for text in texts] if self.lowercase else texts
        rows = self._ids(cased)
        for i, row in enumerate(rows):
            if not row:
                raise DataError(
                    f"text {i} ({texts[i]!r}) has no tokens, and this tokenizer adds none of its own: leave it out"
                )
        long = [i for i, row in enumerate(rows) if len(row) > longest]
        if long:
            warnings.warn(
                f"{len(long):,} of {len(rows):,} texts are cut after {longest} tokens (the longest has "
                f"{max(map(len, rows)):,}); " + self._way(longest),
                GradfeatWarning,
                stacklevel=4,
            )
            # cut by the tokenizer, which keeps its closing token
            short = self._ids([cased[i] for i in long], truncation=True, max_length=longest)
            for i, row in zip(long, short, strict=True):
                rows[i] = row
        fixed = self
        if self.length is None:
            lengths = choose_lengths([len(row) for row in rows])
            fixed = dataclasses.replace(self, length=lengths[-1], lengths=lengths if len(lengths) > 1 else None)
        length = fixed.length or longest
        tokens = np.zeros((len(rows), 2, length), dtype=np.int64)
        tokens[:, 0] = self._tokenizer.pad_token_id or 0
        for token, row in zip(tokens, rows, strict=True):
            token[0, : len(row)] = row
            token[1, : len(row)] = 1
        return tokens, fixed

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        with tokenizing():
            found = self._tokenizer(texts, return_attention_mask=False, verbose=False, **options)
        return [list(row) for row in found["input_ids"]]

    def _way(self, longest: int) -> str:
        if self.length is not None and self.length < self.max_length:
            return "that is the length of the longest text that the model was fitted to"
        if self.limit is not None and longest >= self.limit:
            return "the network takes no more"
        most = "" if self.limit is None else f", {self.limit} at most"
        return f"preprocessing={{'max_length': ...}} (on the command line: --max-length) takes more{most}"

    @functools.cached_property
    def _tokenizer(self) -> Any:
        with offline(not self.download):
            return load_tokenizer(self.tokenizer)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers and strings, for JSON."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "download"}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TextPreprocessing:
        """Return the preprocessing that `to_dict` wrote.

        Args:
            fields: Some of them may be left out where the class has a default.

        Raises:
            ConfigurationError: Unknown or missing fields, or values that cannot be meant.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.name != "download"]
        refuse_unknown_fields(fields, known, "the preprocessing of texts")
        if "tokenizer" not in fields:
            raise ConfigurationError("The preprocessing of texts lacks the tokenizer: a folder or an id")
        return cls(**fields)


def choose_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Return what texts should be padded to: one length, or up to four where that saves enough tokens.

    Args:
        lengths: Tokens of each text.

    Returns:
        Ascending lengths, the last that of the longest text. Of all choices of so many, they leave the fewest tokens;
        one more is worth its linearization if it saves a tenth of the tokens, and 20,000 of them.

    Example:
        >>> choose_lengths([5, 8, 8, 6])
        (8,)
        >>> choose_lengths([5] * 9000 + [40] * 1000)
        (5, 40)
    """
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # padded[i]: fewest tokens of all texts up to values[i], with one more length in each round
    padded = values * below[1:]
    back: list[np.ndarray] = []
    while len(back) + 1 < _MOST_LENGTHS:
        costs = padded[:, None] + values[None, :] * (below[None, 1:] - below[1:, None])  # [a, b]: a, then b on top
        costs[np.tril_indices(len(values))] = np.iinfo(np.int64).max
        best = costs.argmin(0)
        next_padded = np.minimum(costs[best, np.arange(len(values))], padded)
        saved = padded[-1] - next_padded[-1]
        if saved < max(_WORTH, padded[-1] // 10):
            break
        back.append(np.where(costs[best, np.arange(len(values))] < padded, best, -1))
        padded = next_padded
    chosen = [len(values) - 1]
    for step in reversed(back):
        if step[chosen[0]] >= 0:
            chosen.insert(0, int(step[chosen[0]]))
    return tuple(int(values[i]) for i in chosen)


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a folder or id.

    Raises:
        BackboneError: It is not to be had. (For a folder without its files transformers makes one that knows no word.)
    """
    tokenizer = from_pretrained("AutoTokenizer", source)
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise BackboneError(
            f"The tokenizer of {source} knows no words: its files (tokenizer.json, or vocab.txt and the like) are "
            "missing or empty. Put what the tokenizer's save_pretrained wrote beside the model."
        )
    return tokenizer
