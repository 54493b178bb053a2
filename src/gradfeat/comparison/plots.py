"""Pictures of results."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradfeat.errors import ConfigurationError
from gradfeat.files.terminal import printable
from gradfeat.files.writing import is_stream, write_whole

if TYPE_CHECKING:
    from gradfeat.fit.penalties import Choice, Tried
    from gradfeat.fit.steps import Rounds

INK = "#222222"
COLOURS = {"activation": "#7b8794", "gradient": "#4fa3d1", "full": "#1f5fa8", "finetune": "#d9772b"}


def dot_chart(
    path: str | Path,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    errors: Sequence[float] | None = None,
    title: str = "",
) -> Path:
    """Draw one point for each model, with its value beside it.

    Points rather than bars: a scale that does not begin at zero shows small differences, and makes the lengths of bars
    mean nothing.

    Args:
        path: The PNG to write.
        names: A name for each point.
        values: Their heights.
        label: What the height is.
        errors: Half the length of each error bar.
        title: Above the picture.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    width = 1.2 * len(names) + 2.4
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = COLOURS.get(name, INK)
        axes.errorbar([i], [value], None if errors is None else [errors[i]], fmt="o", color=colour, ms=8, capsize=4)
        axes.annotate(f"{value:.2f}", (i, value), (9, 0), textcoords="offset points", va="center", color=INK)
    axes.set_xticks(range(len(names)), list(map(printable, names)), parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.2)
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylabel(printable(label), parse_math=False)
    if title:
        axes.set_title(textwrap.fill(printable(title), int(11 * width)), fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def path_chart(path: str | Path, tried: Sequence[Tried], title: str = "") -> Path:
    """Draw the held-out loss against the penalty of w₂: a line for each penalty of ω̄, at its best λ₁.

    Args:
        path: The PNG to write.
        tried: The penalty path, from `gradfeat.fit.penalties`.
        title: Above the picture.
    """
    axes, save = _axes(title)
    for i, omega in enumerate(sorted({point.omega_penalty for point in tried})):
        best: dict[float, float] = {}
        for point in tried:
            if point.omega_penalty == omega and point.lambda2_units < float("inf"):
                best[point.lambda2_units] = min(point.loss, best.get(point.lambda2_units, float("inf")))
        if best:
            shades = list(best)
            colour = _SHADES[min(i, len(_SHADES) - 1)]
            axes.plot(shades, [best[w2] for w2 in shades], "o-", ms=3, color=colour, label=f"penalty of ω̄ {omega:.2g}")
    plain = [point.loss for point in tried if point.lambda2_units == float("inf")]
    if plain:
        axes.axhline(min(plain), color=INK, ls="--", lw=1, label="best probe")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("penalty of w₂, in units of the gradient features (heavy to light)")
    axes.set_ylabel("loss on held-out training data")
    axes.legend(frameon=False, fontsize=8)
    return save(path)


def rounds_chart(path: str | Path, rounds: Rounds) -> Path:
    """Draw the training loss of each pass in which θ̄₂ moves, by trial, and the held-out losses at their ends.

    Args:
        path: The PNG to write.
        rounds: From `gradfeat.fit.rounds`.
    """
    axes, save = _axes("Rounds: θ̄₂ moves in many small steps")
    axes.axhline(rounds.start, color=INK, linestyle=":", label="the probe, held-out loss")
    for k, trial in enumerate(rounds.trials):
        best = k == rounds.best
        colour, training = (COLOURS["full"] if best else "0.6"), trial.training
        axes.plot(range(1, len(training) + 1), training, "o-", color=colour, label=trial.name)
        axes.plot(len(training), trial.loss, "D", color=colour, label=f"{trial.name}, held-out loss")
        if best and rounds.more:
            passes = range(len(training) + 1, len(training) + len(rounds.more) + 1)
            axes.plot(passes, rounds.more, "s-", color=colour, label="on all samples")
    axes.set_xlabel("passes over the samples")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    return save(path)


def choice_charts(folder: Path, mode: str, choice: Choice | None, rounds: Rounds | None) -> list[Path]:
    """Draw the penalty path and the rounds of a mode, where it has them; return the pictures' paths."""
    written = []
    if choice is not None:
        written.append(path_chart(folder / f"penalty_{mode}.png", choice.path, f"penalty path of {mode}"))
    if rounds is not None:
        written.append(rounds_chart(folder / f"rounds_{mode}.png", rounds))
    return written


def remainder_chart(path: str | Path, remainder: Sequence[tuple[float, float]]) -> Path:
    """Draw the Taylor remainder along w₂.

    Args:
        path: The PNG to write.
        remainder: (r, relative error), from `gradfeat.comparison.approximation`.
    """
    axes, save = _axes("The network beside its linearization, along w₂")
    axes.plot(
        [0, *(r for r, _ in remainder)], [0, *(100 * error for _, error in remainder)], "o-", color=COLOURS["full"]
    )
    axes.set_xlabel("share r of w₂")
    axes.set_ylabel("remainder, % of the linear step")
    axes.set_ylim(bottom=0)
    return save(path)


def save_figure(figure: Any, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a picture, whole or not at all; the same picture is the same bytes.

    Args:
        figure: Of Matplotlib.
        path: Its suffix is the picture's format: .png, .pdf, .svg ...; a name without one gets ".png".
        dpi: Dots per inch.

    Returns:
        The path.

    Raises:
        ConfigurationError: There is no such format.
        OSError: It cannot be written.
    """
    import matplotlib

    path = Path(path)
    if not path.suffix and not is_stream(path):
        path = path.with_name(f"{path.name}.png")
    form = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if form not in known:
        raise ConfigurationError(f"{path}: no picture is of the format {form!r}. Known: {', '.join(sorted(known))}.")
    undated = {"pdf": "CreationDate", "ps": "CreationDate", "eps": "CreationDate", "svg": "Date", "svgz": "Date"}
    metadata = {undated[form]: None} if form in undated else None
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gradfeat"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")  # drawn as an empty box
        figure.savefig(stream, format=form, dpi=dpi, metadata=metadata)
    return write_whole(path, stream.getvalue())


_SHADES = ("#9ecae1", "#4fa3d1", "#1f5fa8", "#0b2f5c")


def _axes(title: str) -> tuple[Any, Callable[[str | Path], Path]]:
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(textwrap.fill(printable(title), 66), fontsize=9, parse_math=False)
    return axes, lambda path: save_figure(figure, path)
