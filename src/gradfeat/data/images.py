"""Image files: which are some, decode them, and name the ones that cannot be decoded."""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile

from gradfeat.data.dataset import Dataset
from gradfeat.data.finding import is_file, is_hidden, is_regular
from gradfeat.data.pixels import BITS, depth_of, eight_bit, to_eight_bits, upright
from gradfeat.data.signatures import kind_of, png_without_texts, starts_like_an_image
from gradfeat.errors import DataError, GradfeatWarning

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "HEIF")
"""Pillow's formats that are opened, HEIF where a plugin brings it: others start programs, or are no photographs."""
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".mpo", ".apng"),
)
_READ = "JPEG, PNG, GIF, WebP, BMP, TIFF, PPM, AVIF, JPEG 2000, ICO"
ON_ERROR = ("raise", "skip")
_NAMED = 10  # files that a message names; the rest are counted
LARGE = 2**25
"""Pixels from which on images are decoded one at a time, so that threads do not fill the memory."""
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LIMIT = re.compile(r"\((\d+) pixels\) exceeds limit of (\d+)")

Item = TypeVar("Item")
Result = TypeVar("Result")
_one_large = threading.RLock()  # a second reading of the same file takes it again


def is_image(path: Path) -> bool:
    """Whether `path` is a file, not hidden, with the suffix of an image in any case."""
    return is_file(path, SUFFIXES)


def is_image_inside(path: Path) -> bool:
    """Whether a file without an image's suffix holds one by its first bytes: ``photo``, ``photo.jpg_large``."""
    return not is_hidden(path.name) and is_regular(path) and starts_like_an_image(path)


def read_image(path: str | os.PathLike[str], *, draft: bool = False) -> Image.Image:
    """Decode an image, turned upright as its EXIF orientation says.

    Args:
        path: The file.
        draft: A JPEG may come back at an eighth of its size, in less time; damage shows all the same.

    Returns:
        The image, fully decoded, as `gradfeat.data.pixels.eight_bit` returns it.

    Raises:
        DataError: It cannot be decoded, or is larger than Pillow's limit; the message names it.
    """
    return with_image(path, lambda image: image, draft=draft)


def with_image(path: str | os.PathLike[str], work: Callable[[Image.Image], Result], *, draft: bool = False) -> Result:
    """Return `work` of a decoded image; very large ones are decoded and worked on one at a time.

    Images of up to twice ``PIL.Image.MAX_IMAGE_PIXELS`` are read, 179 million pixels unless somebody changed it.

    Args:
        path: The file.
        work: Gets the image as `read_image` returns it.
        draft: As of `read_image`.

    Raises:
        DataError: As of `read_image`.
    """
    with ExitStack() as stack:
        try:
            try:
                image = _read(stack, path, draft)
            except ValueError as error:
                if "MAX_TEXT" not in str(error):
                    raise
                image = _read(stack, png_without_texts(path), draft)  # an intact file with a long text in it
        except MemoryError:
            raise
        except Exception as error:  # damaged files make decoders fail in more ways than OSError
            raise DataError(f"{path} cannot be read as an image: {_reason(error, path)}") from error
        return work(image)


def _read(stack: ExitStack, source: str | os.PathLike[str] | IO[bytes], draft: bool) -> Image.Image:
    image = stack.enter_context(_open(source))
    if image.width * image.height > LARGE:
        stack.enter_context(_one_large)
    deep = not draft and _is_deep(image)
    if draft:
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    declared = image.format == "PPM" and bool(image.tile) and image.tile[0][0] != "raw"
    image.load()
    if declared:  # its head says the largest value, and Pillow scales by it
        image.info[BITS] = 16
    whole = _shallow(image, source) if deep else image
    found = eight_bit(upright(whole))
    if whole.info.get(BITS, 16) != 16:
        found.info[BITS] = whole.info[BITS]
    return found


def _open(source: str | os.PathLike[str] | IO[bytes]) -> ImageFile.ImageFile:
    Image.init()
    if not isinstance(source, str | os.PathLike):
        source.seek(0)
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an image has colours of 16 bits, of which Pillow takes the upper 8."""
    return image.mode in ("RGB", "RGBA") and bool(image.tile) and all(";16" in str(tile[3]) for tile in image.tile)


def _shallow(image: Image.Image, source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Return an image of 16 bits a colour whose values need fewer, 12 say, scaled by what it holds."""
    high = np.asarray(image)
    if high[..., :3].max() >= 2**6:  # 15 or 16 bits: Pillow's upper 8 bits are the image
        return image
    with _open(source) as again:
        # with the bytes of each value exchanged, the upper 8 bits that Pillow takes are the lower ones
        again.tile = [_with_arguments(tile, _exchanged(tile[3])) for tile in again.tile]
        again.load()
        low = np.asarray(again)
    values = high[..., :3].astype(np.int64) * 256 + low[..., :3]
    bits = depth_of(int(values.max()))
    pixels = high.copy()
    pixels[..., :3] = to_eight_bits(values, bits)
    found = Image.fromarray(pixels)
    found.info = {**image.info, BITS: bits}
    return found


def _with_arguments(tile: Any, arguments: Any) -> Any:
    """Return a tile of Pillow with other arguments for its decoder; older Pillows have plain tuples."""
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _exchanged(arguments: Any) -> Any:
    """Return the arguments of a decoder with the other order of bytes."""
    if isinstance(arguments, tuple | list):
        return type(arguments)(map(_exchanged, arguments))
    return arguments[:-1] + _OTHER[arguments[-1]] if isinstance(arguments, str) and ";16" in arguments else arguments


def warn_of_depth(found: Mapping[int, object]) -> None:
    """Warn of images of more than 8 bits that are scaled by what they hold.

    Args:
        found: One image for each number of bits.
    """
    bits = ", ".join(map(str, sorted(found)))
    example = next((f", e.g. {item}" for item in found.values() if isinstance(item, Path)), "")
    warnings.warn(
        f"images of 16 or 32 bits have values that need {bits} bits only, and are scaled by these, each image by its "
        f"own{example}. Where their brightness must stay comparable, save all with 8 bits, or with the full 16",
        GradfeatWarning,
        stacklevel=4,
    )


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `work` of every item in order, from a few threads: Pillow and numpy let others run while they decode."""
    workers = min(8, os.cpu_count() or 1, len(items))
    if workers < 2:
        return [work(item) for item in items]
    # A pool of its own for each call costs little beside decoding, and leaves nothing behind that a fork could break.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the files that cannot be decoded, with the reason of each.

    Args:
        paths: Images; every one of them is decoded once.
    """

    def reason(path: Path) -> str | None:
        try:
            read_image(path, draft=True)
        except DataError as error:
            return _reason(error.__cause__ or error, path)
        return None

    return {path: why for path, why in zip(paths, in_threads(reason, paths), strict=True) if why is not None}


def without_unreadable(dataset: Dataset, on_error: str) -> Dataset:
    """Decode every image of a data set once, so that a damaged file is known before any long work.

    Args:
        dataset: Data whose X is a list of paths.
        on_error: "raise" names all damaged files in one error; "skip" leaves them out and warns once.

    Returns:
        The data set, or its readable part.

    Raises:
        DataError: Files cannot be decoded, or leaving them out leaves a class without images.
    """
    bad = unreadable([Path(path) for path in dataset.X])
    if on_error == "raise":
        wrong = {path: why for path, why in bad.items() if path.suffix.lower() in SUFFIXES}
        if wrong:
            raise DataError(
                f"{dataset.name}: {len(wrong)} of {len(dataset)} images cannot be read:{_listed(wrong)}\n"
                "Repair, convert or remove them, or leave them out: on_error='skip' (on the command line: "
                "--skip-unreadable)."
            )
    return _without(dataset, bad)  # of a file without an image's suffix only the first bytes said that it is one


def _without(dataset: Dataset, bad: Mapping[Path, str]) -> Dataset:
    """Return a data set less the images that cannot be read, with a warning; none may be the last of its class."""
    if not bad:
        return dataset
    files = f"{len(bad)} of {len(dataset)} images"
    rest = dataset.subset([i for i, path in enumerate(dataset.X) if Path(path) not in bad])
    if rest.task == "multiclass" and rest.y is not None:
        left = set(rest.y.astype(str))
        lost = [name for name in dataset.classes if name not in left]
        if lost:
            raise DataError(
                f"{dataset.name}: class {lost[0]!r} has no readable image: {files} cannot be read:{_listed(bad)}"
            )
    if not len(rest):
        raise DataError(f"{dataset.name}: no image can be read:{_listed(bad)}")
    warnings.warn(
        f"{dataset.name}: {files} cannot be read and are left out:{_listed(bad)}", GradfeatWarning, stacklevel=4
    )
    return rest


def _listed(bad: Mapping[Path, str]) -> str:
    return names(f"{path} ({why})" for path, why in bad.items())


def names(items: Iterable[object]) -> str:
    r"""Return the first items, one on each line, and how many more there are.

    Example:
        >>> names(["a.jpg", "b.jpg"])
        '\n  a.jpg\n  b.jpg'
    """
    lines = [str(item) for item in items]
    more = [f"... and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "".join(f"\n  {line}" for line in [*lines[:_NAMED], *more])


def _reason(error: BaseException, path: str | os.PathLike[str]) -> str:
    """Return in words why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning) and (
        found := _LIMIT.search(text)
    ):
        pixels, limit = (int(number) for number in found.groups())
        return (
            f"it has {pixels:,} pixels, and images of up to {limit:,} are read, so that no file fills the memory: "
            "shrink it, or in Python, where you trust your files, set PIL.Image.MAX_IMAGE_PIXELS = None first"
        )
    if "cannot identify image file" in text:
        kind = kind_of(path)
        return f"it is {kind}" if kind else f"not an image of a kind that is read ({_READ})"
    return text or type(error).__name__
