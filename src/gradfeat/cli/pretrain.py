"""`gradfeat pretrain`: images in, an encoder's file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gradfeat.backbones import resolve
from gradfeat.cli.commands import Source, read
from gradfeat.cli.outputs import check_folder, kept_in
from gradfeat.cli.show import note, print_json, table
from gradfeat.data import Dataset, load_images
from gradfeat.data.dataset import WHOLE
from gradfeat.data.images import is_image, without_unreadable
from gradfeat.data.load import existing
from gradfeat.data.table import SUFFIXES, Columns, load_table_images
from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.fit.linearize import check_device
from gradfeat.pretrain import NETWORKS, TASKS, input_scaling, pretrain_encoder, save_encoder
from gradfeat.pretrain.checkpoint import LOG
from gradfeat.pretrain.encoder_file import FILE
from gradfeat.pretrain.images import to_arrays
from gradfeat.progress import Progress

_LIBRARIES = ("timm/", "torchvision/")


def run(
    task: str,
    data: Path,
    out: Path,
    *,
    network: str | None,
    image_size: int | None,
    split: str,
    source: Source,
    half: bool,
    json: bool,
    device: str,
    **arguments: Any,
) -> None:
    """Read the images, train, and write the encoder.

    Args:
        task: The pre-training task.
        data: Where the images are.
        out: The folder.
        network: Name; None is the task's own.
        image_size: Side that images are brought to.
        split: Part of the data.
        source: How they are read.
        half: Whether the encoder's file has half precision.
        json: Whether to print JSON.
        device: By name; "auto" is CUDA where there is one.
        arguments: Of `pretrain_encoder`.
    """
    if task not in TASKS:
        raise ConfigurationError(f"Unknown task {task!r}. Known: {', '.join(TASKS)}." + did_you_mean(task, TASKS))
    check_folder(out)
    name = network or TASKS[task].network
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = _network(name, arguments["random_state"])
    side = 32 if name == "bigan" and image_size is None else image_size
    if side is not None and side < 1:
        raise ConfigurationError(f"image_size must be positive, not {side}.")
    labelled = task == "supervised"
    dataset = _read(data, split, source, labelled)
    images = to_arrays(dataset.X, None if side is None else (side, side))
    note(
        json,
        f"{dataset.name} ({dataset.split}): {len(images):,} images of {images.shape[1]} × {images.shape[2]} pixels",
    )
    start = time.perf_counter()
    losses: list[float] = []
    progress = Progress(not json)
    with kept_in(out), progress.step(task) as done:
        encoder = pretrain_encoder(
            images,
            dataset.y if labelled else None,
            task=task,
            network=encoder,
            folder=out,
            device=device,
            progress=lambda epoch, of, loss: losses.append(loss),
            step=done,
            **arguments,
        )
    path = save_encoder(
        encoder,
        out / FILE,
        task=task,
        preprocessing=input_scaling(images),
        name=name if name.startswith(_LIBRARIES) else None,
        half=half,
    )
    _show(task, path, out, len(losses), arguments["epochs"], time.perf_counter() - start, json)


def _network(name: str, seed: int) -> Any:
    """Return the name of an own network, or another library's network with random weights."""
    if name in NETWORKS:
        return name
    if not name.startswith(_LIBRARIES):
        raise ConfigurationError(
            f"Unknown network {name!r}. Known: {', '.join(NETWORKS)}, timm/<name>, torchvision/<name>."
            + did_you_mean(name, NETWORKS)
        )
    return resolve(name, weights="random", random_state=seed).network


def _read(data: Path, split: str, source: Source, labelled: bool) -> Dataset:
    """Return images; those of a table or of a folder without class folders need no labels, unless the task does."""
    path = existing(data)
    on_error = "skip" if source.skip_unreadable else "raise"
    if not labelled and path.suffix.lower() in SUFFIXES:
        columns = Columns(image_column=source.image_column, image_root=source.image_root)
        images = load_table_images(path, split, source.format, columns=columns, on_error=on_error)
        if images is not None:
            return Dataset(images[0], None, [], "multiclass", path.stem, WHOLE)
    loose = not labelled and source.format == "auto" and path.is_dir() and any(map(is_image, path.iterdir()))
    if not loose:
        dataset = read(path, split, source)
        if labelled and (dataset.y is None or dataset.task != "multiclass"):
            raise DataError(f"The task 'supervised' needs one class for each image; {dataset.name} is {dataset.task}.")
        return dataset
    found = Dataset(load_images(path), None, [], "multiclass", path.resolve().name, WHOLE)
    return without_unreadable(found, on_error)


def _show(task: str, path: Path, out: Path, trained: int, epochs: int, seconds: float, json: bool) -> None:
    names, *rows = [line.split(",") for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    picture = out / "pictures.png"
    result: dict[str, Any] = {
        "task": task,
        "encoder": str(path),
        "epochs": epochs,
        "epochs_resumed": epochs - trained,
        "losses": {name: [float(row[i]) for row in rows] for i, name in enumerate(names) if i},
        "log": str(out / LOG),
        "pictures": str(picture) if picture.exists() else None,
        "seconds": seconds,
        "torch_threads": torch.get_num_threads(),
    }
    if json:
        print_json(result)
        return
    shown = [["encoder", f"{path} ({path.stat().st_size / 1e6:.2f} MB)"]]
    if result["epochs_resumed"]:
        shown.append(["resumed", f"after epoch {result['epochs_resumed']} of {epochs}"])
    for name, values in result["losses"].items():
        shown.append([f"{name}, first and last epoch", f"{values[0]:.4g}, {values[-1]:.4g}"])
    shown += [["log", result["log"]], *([["pictures", result["pictures"]]] if result["pictures"] else [])]
    shown.append(["time", f"{seconds:.1f} s"])
    table(["pre-training", task], shown)
    note(False, f"As backbone of the other commands: --backbone {path}")
