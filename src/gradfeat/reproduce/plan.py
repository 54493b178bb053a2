"""What a table is computed on: its data sets and base networks, one `Setting` after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.backbones import Backbone
from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.pretrain.encoder_file import read_architecture
from gradfeat.reproduce import networks, scenes, table4
from gradfeat.reproduce.ablation import conv_columns
from gradfeat.reproduce.cells import PARTS, Say
from gradfeat.reproduce.data import KNOWN, LabelledData, digits, find_data, load_data
from gradfeat.reproduce.encoders import (
    BIGAN_PLAN,
    TINY_PLAN,
    VAE_PLAN,
    EncoderPlan,
    Pretraining,
    plan_of,
    pretrained_in_place,
    read_encoder,
)
from gradfeat.reproduce.needed import lacking
from gradfeat.reproduce.protocols import Protocol
from gradfeat.reproduce.scales import Scale
from gradfeat.reproduce.setting import Conditions, Setting

SMALL_IMAGES = {"table1": tuple(KNOWN), "table3": tuple(KNOWN)}
SCENES = {"table2": ("voc07",), "table4": ("voc07", "coco2014")}
_PLANS = (BIGAN_PLAN, VAE_PLAN)  # of tables 1 and 3; the published Table 1 is of the first
IMAGENET = "ImageNet"


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        name: Of the table.
        out: Folder of the run.
        scale: How long schedules and pre-training may be.
        protocol: How step 3 is done.
        data: Folder with the data sets, or None.
        file: A network instead of one pre-trained in place or downloaded, or None.
        labelled: Labelled training images, or None for all.
        device: By name.
        say: Takes lines of progress.
        only: Names of the networks whose rows are wanted, or None for all.
        finished: Whether nothing is to be computed, pre-training included.
    """

    name: str
    out: Path
    scale: Scale
    protocol: Protocol
    data: Path | None
    file: Path | None
    labelled: int | None
    device: str
    say: Say
    only: Sequence[str] | None = None
    finished: bool = False

    def check_names(self) -> None:
        """Refuse names of networks that the table has not.

        Raises:
            ConfigurationError: There is one.
        """
        if self.name == "table4":
            known = [*networks.TASKS, *([] if self.scale.digits else [IMAGENET])]
        else:
            plans = (TINY_PLAN,) if self.scale.digits else _PLANS if self.name in SMALL_IMAGES else ()
            known = [plan.name for plan in plans]
        for name in self.only or ():
            if len(known) < 2:
                raise ConfigurationError(f"{self.name} has one network at the scale {self.scale.name!r}: leave it out")
            if name not in known:
                raise ConfigurationError(
                    f"{self.name} has the networks {', '.join(known)}, not {name!r}.{did_you_mean(name, known)}"
                )
        if self.name == "table1" and len(set(self.only or ())) > 1:
            raise ConfigurationError("table1 is of one network: give --only once, and another --out to each network")

    def check_file(self) -> None:
        """Refuse a network's file that cannot be read, or that no row would be computed with.

        Raises:
            BackboneError: It is missing or damaged.
            ConfigurationError: It is of another task or kind than the table's networks, or `only` leaves it out.
        """
        if self.file is None:
            return
        if self.name in SMALL_IMAGES:
            row = _plan_of_file(self, self.file).name
        else:
            task = networks.own_task(self.file)
            if task is None and self.scale.digits:
                raise ConfigurationError(
                    f"{self.file} was not written by `gradfeat pretrain`: expected such a file, for at the scale "
                    f"{self.scale.name!r} {self.name} has no network that takes the weights of others. Leave --encoder "
                    "out, or give another --scale"
                )
            row = task or IMAGENET
        if not self.wants(row):
            raise ConfigurationError(
                f"{self.file} is of the network {row!r}, but only {', '.join(self.only or ())} is wanted: leave out "
                "--encoder, or --only"
            )

    def wants(self, network: str) -> bool:
        """Return whether the rows of a network are wanted."""
        return self.only is None or network in self.only

    def pretraining(self, data: str, network: str) -> Pretraining | None:
        """Return how an encoder is pre-trained in place; None, and say so, if it is to be there and is not."""
        folder = self.out / "encoders" / f"{data}.{network}"
        pretraining = Pretraining(folder, self.scale.epochs[network], self.device, self.say, self.finished)
        if self.finished and not pretraining.file.exists():
            self.say(f"{network}: left out, for its encoder is not there yet")
            return None
        return pretraining

    @property
    def conditions(self) -> Conditions:
        """How all cells are computed."""
        return Conditions(self.scale, self.protocol, self.labelled, self.device, self.out / PARTS)


@dataclass(frozen=True)
class Planned:
    """One setting of a table.

    Attributes:
        network: For the table's row.
        data: The same.
        setting: What its cells are computed from.
        remarks: What a reader of the numbers should know.
    """

    network: str
    data: str
    setting: Setting
    remarks: list[str]


def find(request: Request) -> tuple[dict[str, Path | None], list[str]]:
    """Return where the data sets of a table are (None: made here), and a line for each that is not there or not whole.

    Raises:
        DataError: None is there and whole; the message says what to download and where to put it.
    """
    if request.scale.digits:
        return {"digits": None}, []
    if request.name in SCENES:
        advice = {key: scenes.ADVICE[key] for key in SCENES[request.name]}
        look: Callable[[str, Path], Path | None] = scenes.find_scenes
    else:
        advice = {key: KNOWN[key].advice for key in SMALL_IMAGES[request.name]}
        look = find_data
    if request.data is None:
        lines = "".join(f"\n  {_title(key)}: {text}" for key, text in advice.items())
        raise DataError(f"scale {request.scale.name!r} needs real images: give their folder with --data.{lines}")
    folder = request.data.expanduser()
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found: dict[str, Path | None] = {}
    missing, broken = [], []
    for key, text in advice.items():
        path = look(key, folder)
        gaps = [] if path is None else lacking(path, training="extra" if request.scale.name == "full" else "train")
        if path is None:
            missing.append(f"{_title(key)}: not found in the data folder: {text}")
        elif gaps:
            broken.append(f"{_title(key)}: left out, for {path} lacks {', '.join(gaps)}: {text}")
        else:
            found[key] = path
            if request.name == "table1":  # it is of one data set, the first that is there
                return found, broken
    if not found:
        raise DataError("no data set of the table was found.\n  " + "\n  ".join([*broken, *missing]))
    return found, [*broken, *missing]


def settings(request: Request, found: Mapping[str, Path | None]) -> Iterator[Planned]:
    """Yield the settings of a table, each with its network ready.

    Raises:
        ConfigurationError: A network of another architecture.
        DataError: Data that are damaged, or others.
    """
    for key, path in found.items():
        yield from (_of_scenes if request.name in SCENES else _of_small_images)(request, key, path)


def _of_small_images(request: Request, key: str, path: Path | None) -> Iterator[Planned]:
    """Tables 1 and 3: encoders pre-trained on the data's own images."""
    scale = request.scale
    images = digits() if path is None else load_data(key, path, extra=scale.name == "full")
    remarks = _introduced(request, key, images)
    for plan in _plans(request):
        if request.file is not None:
            backbone = read_encoder(request.file, plan, images.train.shape[-1])
            about = _from_file(request.file, read_architecture(request.file)[1]["task"], backbone)
        else:
            pretraining = request.pretraining(images.name, plan.name)
            if pretraining is None:
                continue
            backbone = pretrained_in_place(plan, images.unlabelled(scale.unlabelled), pretraining)
            about = _in_place(scale, plan.name, plan.task)
        prefix = "" if request.name == "table1" else f"{key}.{plan.name}."
        encoder: Any = backbone.network
        setting = Setting(
            images,
            backbone,
            request.conditions,
            columns=conv_columns(encoder, 3 if request.name == "table1" else 1),
            prefix=prefix,
        )
        yield Planned(plan.name, key, setting, [*remarks, f"{key}, encoder {plan.name}: {about}"])
        remarks = []


def _plans(request: Request) -> list[EncoderPlan]:
    """Return the encoders that are wanted."""
    if request.file is not None:
        return [_plan_of_file(request, request.file)]
    plans = _all_plans(request)
    if request.name == "table1" and request.only is None:
        plans = plans[:1]
    return [plan for plan in plans if request.wants(plan.name)]


def _all_plans(request: Request) -> Sequence[EncoderPlan]:
    return (TINY_PLAN,) if request.scale.digits else _PLANS


def _plan_of_file(request: Request, file: Path) -> EncoderPlan:
    plans = _all_plans(request)
    return plan_of(file, plans, other=plans[0] if request.name == "table1" else None)


def _of_scenes(request: Request, key: str, path: Path | None) -> Iterator[Planned]:
    """Tables 2 and 4: networks that have seen other images."""
    first = None
    if path is None:
        data, first = scenes.digit_scenes()
    else:
        data = scenes.load_scenes(key, path)
    remarks = _introduced(request, key, data)
    crops = table4.CROPS if request.name == "table4" else 1
    for network in _networks_for_scenes(request, data, first):
        name, columns = network.name, network.columns
        setting = Setting(
            data,
            network.backbone,
            request.conditions,
            columns=columns,
            crops=crops,
            prefix="" if request.name == "table2" else f"{key}.{name}.",
        )
        about = f"{key}, network {name}: {network.origin}; θ₂: {_columns(columns)}"
        yield Planned(name, key, setting, [*remarks, about])
        remarks = []


@dataclass(frozen=True)
class _BaseNetwork:
    """A network of Tables 2 and 4.

    Attributes:
        name: For the table's row.
        backbone: The network.
        columns: θ₂ by the name of the column.
        origin: Where its weights are from, for a reader of the numbers.
    """

    name: str
    backbone: Backbone
    columns: networks.Columns
    origin: str


def _networks_for_scenes(request: Request, data: scenes.SceneData, first: np.ndarray | None) -> Iterator[_BaseNetwork]:
    """Yield the networks of Tables 2 and 4; arguments as of `_pretrained_small`."""
    depths = 2 if request.name == "table2" else 1
    own = None if request.file is None else networks.own_network(request.file)
    if own is not None and request.file is not None:
        name, backbone = own
        columns = networks.columns_of(backbone.network, depths)
        if len(columns) < depths:
            raise ConfigurationError(
                f"{request.file}: table2 takes an encoder of `gradfeat pretrain` with the small networks' layers, or "
                "weights of the ImageNet network"
            )
        yield _BaseNetwork(name, backbone, columns, _from_file(request.file, name, backbone))
        if request.name == "table2":
            return
    if request.scale.digits or (request.name == "table4" and request.scale.name != "full"):
        tasks = networks.TASKS if request.name == "table4" else ("rotation",)
        left = [task for task in tasks if request.wants(task) and (own is None or task != own[0])]
        if left:
            yield from _pretrained_small(request, data, first, left, depths)
    elif request.name == "table4" and own is None:
        request.say("jigsaw: left out; train one with `gradfeat pretrain jigsaw`, and give its file with --encoder")
    if not request.scale.digits and request.wants(IMAGENET):
        plan = networks.RESNET if request.scale.name == "full" else networks.MOBILENET
        backbone = networks.imagenet_network(plan, None if own is not None else request.file)
        columns = dict(list(plan.columns.items())[:depths])
        source = "weights of its library" if own is not None or request.file is None else request.file.name
        yield _BaseNetwork(IMAGENET, backbone, columns, f"{plan.backbone}, {source}")


def _pretrained_small(
    request: Request, data: scenes.SceneData, first: np.ndarray | None, tasks: Sequence[str], depths: int
) -> Iterator[_BaseNetwork]:
    """Yield small networks of the same layers, pre-trained on other images (CIFAR-10), or on the scenes of digits.

    Args:
        request: What is computed.
        data: The scenes.
        first: One label of each scene of digits, (n,), for the supervised task; None for other scenes.
        tasks: What the networks are pre-trained by.
        depths: Number of columns.
    """
    if first is not None:
        name, images, labels, arguments = "digits", data.train, first, networks.TINY
    else:
        place = None if request.data is None else find_data("cifar10", request.data.expanduser())
        if place is None:
            request.say(
                f"{', '.join(tasks)}: left out, for they are pre-trained on CIFAR-10, which is not there: "
                f"{KNOWN['cifar10'].advice}"
            )
            return
        images, labels = load_data("cifar10", place).labelled(request.scale.unlabelled, 0)
        name, arguments = "cifar10", networks.SMALL
    for task in tasks:
        pretraining = request.pretraining(name, task)
        if pretraining is None:
            continue
        backbone = networks.small_network(task, arguments, images, labels, pretraining)
        columns = networks.columns_of(backbone.network, depths)
        yield _BaseNetwork(task, backbone, columns, f"{_in_place(request.scale, task)} of {name}")


def _introduced(request: Request, key: str, data: LabelledData) -> list[str]:
    """Say what the data are; return what a reader should know of them."""
    everything = len(data.labelled(None, 0)[1])
    n = everything if request.labelled is None else min(request.labelled, everything)
    request.say(
        f"{data.name}: {everything:,} training images, {n:,} of them with labels; {len(data.test):,} test images"
    )
    return [f"{key}: {data.note}"] if data.note else []


def _from_file(file: Path, task: str, backbone: Backbone) -> str:
    return f"{file.name}, pre-trained by {task}; fingerprint {backbone.fingerprint[:16]}"


def _in_place(scale: Scale, plan: str, task: str | None = None) -> str:
    images = "all" if scale.unlabelled is None else f"at most {scale.unlabelled:,}"
    return f"{scale.epochs[plan]} epochs of {task or plan} on {images} training images"


def _columns(columns: networks.Columns) -> str:
    shown = {name: theta2 if isinstance(theta2, str) else " ".join(theta2) for name, theta2 in columns.items()}
    return " | ".join(f"{name} ({theta2})" if theta2 != name else name for name, theta2 in shown.items())


def _title(key: str) -> str:
    return KNOWN[key].title if key in KNOWN else {"voc07": "VOC 2007", "coco2014": "COCO 2014"}[key]
