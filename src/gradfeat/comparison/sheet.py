"""Sheets: one HTML file with samples as small pictures or texts, which asks for nothing from elsewhere.

Names, labels and texts are data, and never taken for HTML. A sheet follows the light or dark colours of its reader,
and is as wide as a phone or a desktop.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradfeat.data.images import with_image
from gradfeat.errors import DataError
from gradfeat.files.terminal import printable

SIDE = 240
"""Pixels of a small picture, at most."""

LONGEST = 2000
"""Characters of a text that a sheet shows, at most."""

_FEW_PIXELS = 64  # up to which each one counts, and a picture is small without loss

_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dfe3e8;
  --bad: #b3261e; --good: #1a6f3c; --bar: #e7eaee; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1e2227; --ink: #e6e9ed; --soft: #9aa4b0;
  --line: #333a42; --bad: #ff8a80; --good: #7bd8a0; --bar: #2d333a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem); background: var(--back); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; margin: 0 0 .3rem; }
header p { margin: .2rem 0; color: var(--soft); max-width: 70ch; }
section { margin-top: 2rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
ol { list-style: none; margin: 1.2rem 0 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
ol.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
li, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden;
  display: flex; flex-direction: column; }
img { width: 100%; height: 12rem; object-fit: contain; background: var(--bar); display: block; }
img[src^="data:image/png"] { image-rendering: pixelated; }
.text { margin: 0; padding: .8rem .8rem 0; white-space: pre-wrap; max-height: 16rem; overflow-y: auto; }
.about { padding: .6rem .8rem .8rem; display: grid; gap: .35rem; }
.name, small { color: var(--soft); font-size: .8rem; }
.bar { height: .35rem; border-radius: .2rem; background: var(--bar); }
.bar i { display: block; height: 100%; border-radius: .2rem; background: currentColor; }
.good { color: var(--good); } .bad { color: var(--bad); }
"""


def page(title: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: As plain text.
        body: HTML, made of `safe` texts.
        style: Further CSS.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{safe(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def safe(text: object, keep: str = "") -> str:
    r"""Return a text as HTML shows it, controls spelled out.

    Args:
        text: Anything that has a text.
        keep: Controls that stay, e.g. line ends.

    Example:
        >>> safe('<b>"a" & b</b>')
        '&lt;b&gt;&quot;a&quot; &amp; b&lt;/b&gt;'
    """
    return escape(printable(str(text), keep=keep), quote=True)


def bar(share: float) -> str:
    """Return a bar of the colour of its surroundings.

    Args:
        share: Of the whole width, in [0, 1].
    """
    return f'<div class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>'


def grid(items: Sequence[str], *, wide: bool = False) -> str:
    """Return items, as HTML, side by side; texts want to be wide."""
    inner = "\n".join(items)
    kind = ' class="wide"' if wide else ""
    return f"<ol{kind}>\n{inner}\n</ol>"


def shown(X: Any, index: int) -> str:
    """Return a sample as HTML: a picture, a text, or nothing.

    Args:
        X: Samples as they are given to `fit`: a list of texts or paths, an array of images, or anything else.
        index: Which one.
    """
    if isinstance(X, list) and isinstance(X[index], str):
        return text_cell(X[index])
    if isinstance(X, np.ndarray) and not (X.dtype == np.uint8 and X.ndim == 4 and X.shape[3] in (1, 3)):
        return ""
    source = thumbnail(X[index]) if isinstance(X, (list, np.ndarray)) else None
    return "" if source is None else f'<img alt="" loading="lazy" src="{source}">'


def is_texts(X: Any) -> bool:
    """Whether samples are texts, which a sheet shows in wide cells."""
    return isinstance(X, list) and bool(X) and isinstance(X[0], str)


def text_cell(text: str) -> str:
    """Return a text as HTML, its line ends kept; what is longer than `LONGEST` is cut."""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + " …"
    return f'<p class="text">{safe(cut, keep=chr(10))}</p>'


def thumbnail(picture: str | Path | np.ndarray | Image.Image) -> str | None:
    """Return a small picture as a data URI; None where it cannot be read, or is no image.

    Args:
        picture: A file, an array of bytes, (h, w, 1) or (h, w, 3), or an image.
    """
    if isinstance(picture, np.ndarray):
        return _small(Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    if isinstance(picture, Image.Image):
        return _small(picture)
    try:
        return with_image(picture, _small, draft=True)
    except DataError:  # it could be read for the fit, and is gone now
        return None


def _small(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    if max(image.size) <= _FEW_PIXELS:
        image.save(stream, "png")
        kind = "png"
    else:
        image.save(stream, "jpeg", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
