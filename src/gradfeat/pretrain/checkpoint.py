"""A training run on disk: all that the next epoch depends on, without pickle.

Tensors (weights, moments of Adam, the state of the random numbers) are the tensors of one safetensors file; all else is
JSON in its metadata. JSON writes a float with all its digits, so nothing is rounded.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.files.bounded import parse_json
from gradfeat.files.digests import checksum
from gradfeat.files.tensor_file import tensor_file
from gradfeat.files.writing import write_whole

FORMAT = "gradfeat.pretraining"
FORMAT_VERSION = 1
FILE, LOG = "checkpoint.safetensors", "losses.csv"
WEIGHTS = "initial_weights"
"""Name in a configuration: the digest of a module's weights before the run. Older checkpoints are without it."""
CHECKSUM = "sha256"
"""Name of the checksum, in the metadata of the file."""
ASIDE = "checkpoint.before.safetensors"
"""An earlier run's state, until the one that was started instead of it is finished."""


@dataclass(frozen=True)
class State:
    """What moves in training, beside the random numbers.

    Args:
        task: The module with all weights.
        optimizers: One for each turn.
        schedules: Of their learning rates; None where it is constant.
    """

    task: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler | None]


class Checkpoint:
    """The last finished epoch of a run, in a folder.

    Args:
        folder: Gets `checkpoint.safetensors` and `losses.csv`.
        configuration: What the run is: JSON-able, in one level. A run goes on only where all of it is the same.
        restart: Whether the run starts again. A checkpoint that is there is set aside, as
            `checkpoint.before.safetensors`, until the new run is finished: then it goes.
        every: Epochs from one writing to the next; the last epoch is always written.
    """

    def __init__(
        self, folder: str | Path, configuration: Mapping[str, Any], *, restart: bool = False, every: int = 1
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.configuration = json.loads(json.dumps(dict(configuration)))  # tuples become lists, as in the file
        self.restart = restart
        self.every = every

    def write(self, state: State, history: list[dict[str, float]]) -> None:
        """Write the state after an epoch, whole or not at all, and the losses as a table.

        Raises:
            OSError: It cannot be written; what was there before still is, and the same run goes on from there.
        """
        tensors = {f"task/{name}": value for name, value in state.task.state_dict().items()}
        tensors |= {f"random/{name}": value for name, value in _random_state().items()}
        groups = []
        for i, optimizer in enumerate(state.optimizers):
            content = optimizer.state_dict()
            for k, moments in content["state"].items():
                tensors |= {f"optimizer/{i}/{k}/{name}": value for name, value in moments.items()}
            groups.append(content["param_groups"])
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "configuration": json.dumps(self.configuration),
            "history": json.dumps(history),
            "optimizers": json.dumps(groups),
            "schedules": json.dumps([None if s is None else s.state_dict() for s in state.schedules]),
        }
        metadata[CHECKSUM] = _checksum(metadata, tensors)
        # The table first: if the second file fails, the epoch comes again, and its row with it.
        write_whole(self.folder / LOG, _table(history))
        write_whole(self.folder / FILE, tensor_file(tensors, metadata))

    def resume(self, state: State) -> list[dict[str, float]]:
        """Bring a fresh state, PyTorch's random numbers and the table of losses to where the run stopped.

        Returns:
            The losses so far; empty, and the state is as it was, where there is no checkpoint or it is not wanted.

        Raises:
            ConfigurationError: The checkpoint is of another configuration; the message names what differs.
            DataError: The file is damaged, or not a checkpoint.
        """
        path = self.folder / FILE
        if self.restart:
            self._set_aside()
        if not path.exists():
            return []
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                raw = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if CHECKSUM in raw and raw[CHECKSUM] != _checksum(raw, tensors):  # older checkpoints have none
                raise ValueError("its content is not what its checksum is of")
            if raw.get("format") != FORMAT or int(raw["format_version"]) > FORMAT_VERSION:
                raise ValueError("not written by this version of gradfeat")
            configuration, history, groups, schedules = (
                parse_json(raw[name]) for name in ("configuration", "history", "optimizers", "schedules")
            )
            if not isinstance(configuration, dict) or not all(isinstance(row, dict) for row in history):
                raise ValueError("its configuration or its losses cannot be read")
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged or no checkpoint: {error}. {self._way_out()}") from error
        self._compare(configuration)
        try:
            _load(state, tensors, groups, schedules)
        except (KeyError, ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{path} does not fit its own configuration: {error}. {self._way_out()}") from error
        self._restore_log(history)
        return history

    def finish(self) -> None:
        """Remove what a new start had set aside: the run that replaces it is finished."""
        (self.folder / ASIDE).unlink(missing_ok=True)

    def _set_aside(self) -> None:
        """Take the old run's state away: a new one that is killed early would else go on as the old one."""
        old, aside = self.folder / FILE, self.folder / ASIDE
        if aside.exists():  # then `old` is of a new start that was not finished either, and `aside` is what it replaces
            old.unlink(missing_ok=True)
        elif old.exists():
            old.rename(aside)

    def _restore_log(self, history: list[dict[str, float]]) -> None:
        """Write the losses again if they are not there as they were: a finished run writes no other epoch."""
        path, table = self.folder / LOG, _table(history)
        if not path.exists() or path.read_bytes() != table:
            write_whole(path, table)

    def _compare(self, other: Mapping[str, Any]) -> None:
        configuration = dict(self.configuration)
        if WEIGHTS not in other:
            configuration.pop(WEIGHTS, None)  # nothing there says that they were others
        names = [*configuration, *(name for name in other if name not in configuration)]
        differing = [name for name in names if other.get(name) != configuration.get(name)]
        if differing:
            said = "; ".join(f"{name} {other.get(name)} there, {configuration.get(name)} now" for name in differing)
            again = "" if WEIGHTS not in differing else "To go on, give the network as it was before that run. "
            raise ConfigurationError(
                f"{self.folder} holds the checkpoint of another run: {said}. {again}{self._way_out()}"
            )

    def _way_out(self) -> str:
        return "Choose another folder, or start again with resume=False (on the command line: --no-resume)."


def _load(state: State, tensors: Mapping[str, Tensor], groups: list[Any], schedules: list[Any]) -> None:
    state.task.load_state_dict(_part(tensors, "task/"))
    for i, optimizer in enumerate(state.optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, f"optimizer/{i}/").items():
            k, _, field = name.partition("/")
            moments.setdefault(int(k), {})[field] = value
        optimizer.load_state_dict({"state": moments, "param_groups": groups[i]})
        for parameter, content in optimizer.state.items():  # moments as their weights lie in memory
            for field, value in content.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    content[field] = torch.empty_like(parameter).copy_(value)
    for schedule, content in zip(state.schedules, schedules, strict=True):
        if schedule is not None:
            schedule.load_state_dict(content)
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    rest = {name: metadata[name] for name in metadata if name != CHECKSUM}
    return checksum(json.dumps(rest, sort_keys=True), tensors)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _table(history: list[dict[str, float]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["epoch", *(history[0] if history else ())])
    writer.writerows([epoch, *losses.values()] for epoch, losses in enumerate(history, 1))
    return stream.getvalue().encode()
