"""Sheets: pages that ask for nothing from elsewhere, and never take data for HTML."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from gradfeat.comparison.sheet import LONGEST, SIDE, bar, grid, page, shown, text_cell, thumbnail

EVIL = '<script>alert(1)</script> & "x" \'\u202e'


class Page(HTMLParser):
    """What a browser takes a page for: its elements with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def decoded(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_data_is_no_html() -> None:
    found = Page(page(EVIL, grid([f"<li>{text_cell(EVIL)}</li>"], wide=True)))
    tags = [tag for tag, _ in found.elements]
    assert "script" not in tags
    assert tags.count("p") == tags.count("li") == 1
    assert any('<script>alert(1)</script> & "x" \'' in text for text in found.said)
    assert not any("\u202e" in text for text in found.said)
    assert not any(key in ("href", "src") for _, attributes in found.elements for key in attributes)


def test_it_fits_a_phone_and_the_dark() -> None:
    text = page("a", "b")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text


def test_small_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert (np.asarray(decoded(thumbnail(pixels))) == pixels).all()  # few pixels are kept as they are
    grey = decoded(thumbnail(pixels[:, :, :1]))
    assert (np.asarray(grey) == pixels[:, :, :1]).all()
    Image.new("RGBA", (900, 300)).save(tmp_path / "large.png")
    assert decoded(thumbnail(tmp_path / "large.png")).size == (SIDE, SIDE // 3)
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "none.png") is None
    assert thumbnail(tmp_path / "gone.png") is None


def test_what_is_shown_of_a_sample(tmp_path: Path) -> None:
    assert shown(["a\nb"], 0) == '<p class="text">a\nb</p>'
    assert len(shown(["a" * 3 * LONGEST], 0)) < LONGEST + 50
    assert shown(np.zeros((2, 4, 4, 3), np.uint8), 1).startswith("<img")
    assert shown(np.zeros((2, 4)), 1) == ""
    assert shown([tmp_path / "gone.png"], 0) == ""


def test_a_bar_stays_in_its_place() -> None:
    assert "width:100.0%" in bar(7)
    assert "width:0.0%" in bar(-1)
