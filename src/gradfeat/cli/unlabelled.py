"""Samples to predict, which need no labels; read as those were that a saved model was fitted to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.reading import read
from gradfeat.cli.requests import Predict, Source
from gradfeat.data import Dataset, TextPreprocessing, load_images
from gradfeat.data.audio import RATE, SECONDS, load_recordings
from gradfeat.data.audio import SUFFIXES as SOUND
from gradfeat.data.folder import part_folder
from gradfeat.data.images import SUFFIXES as IMAGES
from gradfeat.data.images import without_unreadable
from gradfeat.data.load import TABLES, existing, is_sound, official
from gradfeat.data.table import SUFFIXES, Columns, is_table, load_table_images, load_texts
from gradfeat.errors import ConfigurationError, DataError, did_you_mean


def samples_of(estimator: Any, request: Predict) -> tuple[Any, list[str]]:
    """Return samples and their names; texts, and images or recordings in a folder, need no labels."""
    data, split, source = request.data.expanduser(), request.split, request.source
    if isinstance(estimator.backbone_.preprocessing, TextPreprocessing) and source.data_format in ("auto", *TABLES):
        if _of_images(source):
            raise ConfigurationError("the model reads texts: --image-column and --image-root are for models of images")
        texts = load_texts(
            existing(data), split, source.data_format, text_column=source.text_column, encoding=source.encoding
        )
        return texts, list(texts)
    if source.data_format in TABLES or (source.data_format == "auto" and _may_list_images(data, source)):
        images = _images_of_table(data, split, source)
        if images is not None:
            return images
    part = part_folder(data, split, (*IMAGES, *SOUND))
    if "split" in request.given and part == data:
        _check_has_parts(data, split)
    if is_recordings(part, source):
        recordings, files = load_recordings(part, seconds=as_fitted(estimator, part, source).seconds or SECONDS)
        return recordings, [str(file) for file in files]
    if _is_layout(data, source):
        X = read(data, split, source).X
    else:
        loose = Dataset(list(load_images(part)), None, [], "multiclass", data.resolve().name, split)
        X = without_unreadable(loose, source.on_error).X
    return X, [str(i) for i in range(len(X))] if isinstance(X, np.ndarray) else [str(sample) for sample in X]


def _images_of_table(data: Path, split: str, source: Source) -> tuple[Any, list[str]] | None:
    """Return the images that a table lists, and what it calls them; None where it is not one of images."""
    about = Columns(
        text_column=source.text_column,
        image_column=source.image_column,
        image_root=source.image_root,
        encoding=source.encoding,
    )
    return load_table_images(existing(data), split, source.data_format, columns=about, on_error=source.on_error)


def _check_has_parts(data: Path, split: str) -> None:
    """Refuse a part, which the user named, of data in no known layout that have none."""
    if not data.exists() or (data.is_dir() and official(data) is not None):
        return
    if data.suffix.lower() not in (".npz", *SUFFIXES) and not is_table(data):
        parts = [folder.name for folder in data.iterdir() if folder.is_dir()] if data.is_dir() else []
        raise DataError(f"{data} has no part {split!r}: leave out --split.{did_you_mean(split, parts)}")


def _is_layout(data: Path, source: Source) -> bool:
    """Whether data are to be read as a known layout is, rather than as files of images."""
    if source.data_format != "auto" or _of_images(source) or not data.exists():
        return True
    return data.suffix.lower() in (".npz", *SUFFIXES) or official(data) is not None


def _of_images(source: Source) -> bool:
    """Whether a table of images is asked for."""
    return source.image_column is not None or source.image_root is not None


def _may_list_images(data: Path, source: Source) -> bool:
    """Whether data may be a table of images: by its suffix, or because that is asked for of a folder with tables."""
    return data.suffix.lower() in SUFFIXES or (_of_images(source) and data.is_dir())


def is_recordings(data: Path, source: Source) -> bool:
    """Whether data are read as recordings."""
    if data.is_file():
        return data.suffix.lower() in SOUND
    return source.data_format == "wav" or (source.data_format == "auto" and data.is_dir() and is_sound(data))


def as_fitted(estimator: Any, data: Path, source: Source) -> Source:
    """Let recordings have the length that the model was fitted to, unless another one is asked for."""
    if source.seconds is not None or not is_recordings(data, source) or estimator.example_.ndim != 2:
        return source
    return dataclasses.replace(source, seconds=estimator.example_.shape[1] / RATE)
