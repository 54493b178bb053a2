"""One HTML file with the samples whose labels fit least: with their pictures or texts, and nothing from elsewhere."""

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
from gradfeat.estimators.auditing import Audit, Finding
from gradfeat.files.terminal import printable

_SIDE = 240  # pixels of a picture at most
_TEXT = 2000  # characters of a text at most

_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #dfe3e8;
  --bad: #b3261e; --good: #1a6f3c; --bar: #e7eaee; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1e2227; --ink: #e6e9ed; --soft: #9aa4b0;
  --line: #333a42; --bad: #ff8a80; --good: #7bd8a0; --bar: #2d333a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem clamp(.75rem, 3vw, 2.5rem); background: var(--back); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
header p { margin: .2rem 0; color: var(--soft); max-width: 70ch; }
ol { list-style: none; margin: 1.2rem 0 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
ol.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; display: flex;
  flex-direction: column; }
li.suspect { border-color: var(--bad); }
img { width: 100%; height: 12rem; object-fit: contain; background: var(--bar); display: block; }
img[src^="data:image/png"] { image-rendering: pixelated; }
.text { margin: 0; padding: .8rem .8rem 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem;
  overflow-y: auto; }
.about { padding: .6rem .8rem .8rem; display: grid; gap: .35rem; }
.name, .rank { color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.label { display: grid; grid-template-columns: 1fr auto; gap: 0 .6rem; overflow-wrap: anywhere; }
.bar { grid-column: 1 / -1; height: .35rem; border-radius: .2rem; background: var(--bar); }
.bar i { display: block; height: 100%; border-radius: .2rem; background: currentColor; }
.given { color: var(--bad); } .fitting { color: var(--good); } .same { color: var(--ink); }
small { color: var(--soft); }
"""


def sheet(title: str, audit: Audit, X: Any, count: int) -> str:
    """Return the sheet as HTML: it asks for nothing from elsewhere, and nothing of the data is taken for HTML.

    Args:
        title: What stands above it.
        audit: Of the samples.
        X: The samples as they were given to `fit`: paths or arrays of images, texts, or anything else, of which names
            are shown alone.
        count: Samples that are shown, those with the least plausible labels.
    """
    found = audit.findings(count)
    texts = isinstance(X, list) and bool(X) and isinstance(X[0], str)
    items = "\n".join(_item(rank, one, _shown(X, one.index)) for rank, one in enumerate(found, 1))
    how = f"Each sample is judged by the model without it ({audit.left_out.conditional}). Suspect: {audit.rule}."
    suspects, n = int(audit.suspects.sum()), len(audit.samples)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{_safe(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_safe(title)}</h1>
<p>{suspects:,} of {n:,} labels are suspect; the {len(found):,} that fit least are shown, the worst first.</p>
<p>{_safe(how)}</p>
</header>
<main>
<ol{' class="wide"' if texts else ""}>
{items}
</ol>
</main>
</body>
</html>
"""


def _item(rank: int, one: Finding, shown: str) -> str:
    badge = " · suspect" if one.suspect else ""
    which = f"<div>{_safe(one.which)}</div>" if one.which else ""
    name = "" if shown.startswith("<p") else f'<div class="name">{_safe(one.name)}</div>'
    return (
        f'<li{" class=suspect" if one.suspect else ""}>{shown}<div class="about">'
        f'<div class="rank">{rank}{badge} · sample {one.index}</div>{name}{which}{_labels(one)}</div></li>'
    )


def _labels(one: Finding) -> str:
    if one.p_given is None or one.p_fitting is None:
        far = f"<small>{one.distance:.1f} standard deviations</small>"
        value, prediction = _line("given", "given", f"{one.given:.6g}"), _line("fitting", "fits", f"{one.fitting:.6g}")
        return value + prediction + far
    if one.given == one.fitting:
        return _line("same", "label", str(one.given), one.p_given)
    given = _line("given", "label", str(one.given), one.p_given)
    return given + _line("fitting", "fits", str(one.fitting), one.p_fitting)


def _line(kind: str, what: str, label: str, p: float | None = None) -> str:
    if p is None:
        return f'<div class="label {kind}"><span><small>{what}</small> {_safe(label)}</span></div>'
    bar = f'<span class="bar"><i style="width:{100 * p:.1f}%"></i></span>'
    said = f"<span><small>{what}</small> {_safe(label)}</span><span>{100 * p:.1f} %</span>"
    return f'<div class="label {kind}">{said}{bar}</div>'


def _shown(X: Any, index: int) -> str:
    """Return a sample as HTML: a picture, a text, or nothing."""
    if isinstance(X, list) and isinstance(X[index], str):
        text = X[index] if len(X[index]) <= _TEXT else X[index][:_TEXT] + " …"
        return f'<p class="text">{_safe(text, keep=chr(10))}</p>'
    picture = _picture(X, index)
    if picture is None:
        return ""
    return f'<img alt="" loading="lazy" src="data:image/{picture[0]};base64,{picture[1]}">'


def _picture(X: Sequence[Path] | np.ndarray, index: int) -> tuple[str, str] | None:
    """Return a small picture of a sample, its format and its bytes in base64; None where it is none."""
    if isinstance(X, np.ndarray):
        if X.dtype != np.uint8 or X.ndim != 4 or X.shape[3] not in (1, 3):
            return None
        return _small(Image.fromarray(X[index][:, :, 0] if X.shape[3] == 1 else X[index]))
    try:
        return with_image(X[index], _small, draft=True)
    except DataError:  # it could be read for the fit, and is gone now
        return None


def _small(image: Image.Image) -> tuple[str, str]:
    image = image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    kind = "png" if max(image.size) <= 64 else "jpeg"  # of few pixels each counts
    image.save(stream, kind, **({} if kind == "png" else {"quality": 80}))
    return kind, base64.b64encode(stream.getvalue()).decode("ascii")


def _safe(text: str, keep: str = "") -> str:
    """Return a text as HTML shows it, controls spelled out."""
    return escape(printable(text, keep=keep), quote=True)
