"""`gradfeat pretrain`: images in, an encoder's file out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradfeat.backbones import resolve
from gradfeat.cli.outputs import check_folder, kept_in
from gradfeat.cli.reading import read
from gradfeat.cli.requests import Pretrain
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


def run(request: Pretrain) -> None:
    """Read the images, train, and write the encoder."""
    task, out = request.task, request.out
    if task not in TASKS:
        raise ConfigurationError(f"Unknown task {task!r}. Known: {', '.join(TASKS)}." + did_you_mean(task, TASKS))
    check_folder(out)
    name = request.network or TASKS[task].network
    check_device(request.device)
    network = _network(name, request.seed)
    side = _side(name, request.image_size)
    dataset = _read(request)
    images = to_arrays(dataset.X, None if side is None else (side, side))
    note(
        request.json,
        f"{dataset.name} ({dataset.split}): {len(images):,} images of {images.shape[1]} × {images.shape[2]} pixels",
    )
    start = time.perf_counter()
    encoder, trained = _train(request, network, images, dataset)
    path = save_encoder(
        encoder,
        out / FILE,
        task=task,
        preprocessing=input_scaling(images),
        name=name if name.startswith(_LIBRARIES) else None,
        half=request.half,
    )
    report = _report(request, path, trained, time.perf_counter() - start)
    if request.json:
        print_json(report.to_dict())
    else:
        report.show()


def _side(network: str, image_size: int | None) -> int | None:
    """Return the side that images are brought to; None is arrays' own."""
    side = 32 if network == "bigan" and image_size is None else image_size
    if side is not None and side < 1:
        raise ConfigurationError(f"image_size must be positive, not {side}.")
    return side


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


def _read(request: Pretrain) -> Dataset:
    """Return images; those of a table or of a folder without class folders need no labels, unless the task does."""
    split, source, labelled = request.split, request.source, request.task == "supervised"
    path = existing(request.data)
    if not labelled and path.suffix.lower() in SUFFIXES:
        columns = Columns(image_column=source.image_column, image_root=source.image_root)
        images = load_table_images(path, split, source.data_format, columns=columns, on_error=source.on_error)
        if images is not None:
            return Dataset(images[0], None, [], "multiclass", path.stem, WHOLE)
    loose = not labelled and source.data_format == "auto" and path.is_dir() and any(map(is_image, path.iterdir()))
    if not loose:
        dataset = read(path, split, source)
        if labelled and (dataset.y is None or dataset.task != "multiclass"):
            raise DataError(f"The task 'supervised' needs one class for each image; {dataset.name} is {dataset.task}.")
        return dataset
    whole = Dataset(load_images(path), None, [], "multiclass", path.resolve().name, WHOLE)
    return without_unreadable(whole, source.on_error)


def _train(request: Pretrain, network: Any, images: np.ndarray, dataset: Dataset) -> tuple[Any, int]:
    """Return the trained encoder, and how many epochs this run trained it for.

    Args:
        request: The task and its options.
        network: Its name, or a module.
        images: (n, h, w, c).
        dataset: Where they are from; its labels are for the task "supervised" alone.
    """
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    losses: list[float] = []
    with kept_in(request.out), Progress(not request.json).step(request.task) as done:
        encoder = pretrain_encoder(
            images,
            dataset.y if request.task == "supervised" else None,
            task=request.task,
            network=network,
            epochs=request.epochs,
            batch_size=request.batch_size,
            learning_rate=request.learning_rate,
            options={name: value for name, value in asdict(request.options).items() if value is not None},
            folder=request.out,
            resume=request.resume,
            checkpoint_every=request.checkpoint_every,
            device=device,
            random_state=request.seed,
            progress=lambda epoch, epochs, loss: losses.append(loss),
            step=done,
        )
    return encoder, len(losses)


@dataclass(frozen=True)
class PretrainReport:
    """What `pretrain` says of an encoder that it has trained and written.

    Attributes:
        task: The task.
        encoder: The encoder's file.
        epochs: Of the whole training.
        epochs_resumed: Those of an earlier run.
        losses: By name, of each epoch.
        log: The table of them, as a file.
        pictures: A file of pictures, where the task makes some.
        seconds: That this run took.
    """

    task: str
    encoder: Path
    epochs: int
    epochs_resumed: int
    losses: dict[str, list[float]]
    log: Path
    pictures: Path | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "task": self.task,
            "encoder": str(self.encoder),
            "epochs": self.epochs,
            "epochs_resumed": self.epochs_resumed,
            "losses": self.losses,
            "log": str(self.log),
            "pictures": None if self.pictures is None else str(self.pictures),
            "seconds": self.seconds,
            "torch_threads": torch.get_num_threads(),
        }

    def show(self) -> None:
        """Print it for people."""
        rows = [["encoder", f"{self.encoder} ({self.encoder.stat().st_size / 1e6:.2f} MB)"]]
        if self.epochs_resumed:
            rows.append(["resumed", f"after epoch {self.epochs_resumed} of {self.epochs}"])
        for name, values in self.losses.items():
            rows.append([f"{name}, first and last epoch", f"{values[0]:.4g}, {values[-1]:.4g}"])
        rows.append(["log", str(self.log)])
        if self.pictures is not None:
            rows.append(["pictures", str(self.pictures)])
        rows.append(["time", f"{self.seconds:.1f} s"])
        table(["pre-training", self.task], rows)
        note(False, f"As backbone of the other commands: --backbone {self.encoder}")


def _report(request: Pretrain, encoder: Path, trained: int, seconds: float) -> PretrainReport:
    """Return what there is to say of an encoder's file, of which this run trained some epochs in some seconds."""
    log, pictures = request.out / LOG, request.out / "pictures.png"
    header, *rows = [line.split(",") for line in log.read_text(encoding="utf-8").splitlines()]
    return PretrainReport(
        request.task,
        encoder,
        request.epochs,
        epochs_resumed=request.epochs - trained,
        losses={name: [float(row[i]) for row in rows] for i, name in enumerate(header) if i},
        log=log,
        pictures=pictures if pictures.exists() else None,
        seconds=seconds,
    )
