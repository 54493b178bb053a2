"""One HTML file with the samples whose labels fit least: with their pictures or texts, and nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from gradfeat.comparison.sheet import bar, grid, is_texts, page, safe, shown
from gradfeat.estimators.auditing import Audit, Finding

_STYLE = """
li.suspect { border-color: var(--bad); }
.rank { color: var(--soft); font-size: .8rem; }
.label { display: grid; grid-template-columns: 1fr auto; gap: 0 .6rem; }
.label .bar { grid-column: 1 / -1; }
.given { color: var(--bad); } .fitting { color: var(--good); } .same { color: var(--ink); }
"""


def sheet(title: str, audit: Audit, X: Any, count: int) -> str:
    """Return the sheet as HTML.

    Args:
        title: What stands above it.
        audit: Of the samples.
        X: The samples as they were given to `fit`: paths or arrays of images, texts, or anything else, of which names
            are shown alone.
        count: Samples that are shown, those with the least plausible labels.
    """
    found = audit.findings(count)
    items = [_item(rank, one, shown(X, one.index)) for rank, one in enumerate(found, 1)]
    how = f"Each sample is judged by the model without it ({audit.left_out.conditional}). Suspect: {audit.rule}."
    suspects, n = int(audit.suspects.sum()), len(audit.samples)
    said = f"{suspects:,} of {n:,} labels are suspect; the {len(found):,} that fit least are shown, the worst first."
    header = f"<header>\n<h1>{safe(title)}</h1>\n<p>{said}</p>\n<p>{safe(how)}</p>\n</header>"
    return page(title, f"{header}\n<main>\n{grid(items, wide=is_texts(X))}\n</main>", _STYLE)


def _item(rank: int, one: Finding, picture: str) -> str:
    badge = " · suspect" if one.suspect else ""
    which = f"<div>{safe(one.which)}</div>" if one.which else ""
    name = "" if picture.startswith("<p") else f'<div class="name">{safe(one.name)}</div>'
    return (
        f'<li{" class=suspect" if one.suspect else ""}>{picture}<div class="about">'
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
        return f'<div class="label {kind}"><span><small>{what}</small> {safe(label)}</span></div>'
    said = f"<span><small>{what}</small> {safe(label)}</span><span>{100 * p:.1f} %</span>"
    return f'<div class="label {kind}">{said}{bar(p)}</div>'
