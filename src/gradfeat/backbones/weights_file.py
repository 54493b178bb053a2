"""What a file of weights is, by its content rather than by its name, and what it holds. Nothing in it is executed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import safetensors

from gradfeat.backbones.torch_file import printable, read_torch
from gradfeat.errors import BackboneError

_EXPECTED = "safetensors or torch.save (mostly ending in .safetensors, .pth, .pt, .bin or .ckpt)"
_SHARDS = "{}.index.json"
_COMPLETE = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_FOLDERS = {  # what a file in a folder says about it
    ".metadata": "is a distributed checkpoint: make one file of it, "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, 'weights.pth')",
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed: make one file of it with the zero_to_fp32.py in it",
    "saved_model.pb": "holds a network of TensorFlow, not the weights of a PyTorch network.",
}
_STARTS = (  # the first bytes of what is now and then taken for a file of weights
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself: run `git lfs pull` in its repository"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes it: the weights of a network of another library"),
    (b"\x93NUMPY", "a NumPy array, not the weights of a PyTorch network"),
    (b"GGUF", "a GGUF file, whose weights are quantized: take the same network's .safetensors file"),
    (b"ggjt", "a GGML file, whose weights are quantized: take the same network's .safetensors file"),
    (b"\x1f\x8b", "compressed (gzip): unpack it first"),
    (b"BZh", "compressed (bzip2): unpack it first"),
    (b"\xfd7zXZ", "compressed (xz): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstandard): unpack it first"),
    (b"7z\xbc\xaf", "a 7-zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"%PDF", "a PDF document"),
)
_OTHERS = (".pb", ".tflite", ".msgpack", ".keras", ".h5", ".index", ".meta")  # TensorFlow, Flax, Keras
_LONGEST_HEADER = 100_000_000  # bytes; the bound of safetensors


def read_weights(path: str | Path) -> tuple[object, dict[str, str]]:
    """Read a file that `safetensors` or `torch.save` wrote, whatever its name, or a folder with its shards.

    Args:
        path: The file; the index of a checkpoint in several files (``model.safetensors.index.json``); or a folder with
            one of these.

    Returns:
        What the file holds (`gradfeat.backbones.contents.tensors_of` finds the tensors in it), and its metadata (empty
        but for safetensors). Objects of other classes than torch's own are `StandIn`.

    Raises:
        BackboneError: No such file, another format, a damaged file, or a pickle that asks for what no weights need.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            path = _file_in(path)
        if not path.is_file():
            raise BackboneError(f"No weights file at {path}.{_hint_of_path(str(path))}")
        with path.open("rb") as file:
            head, size = file.read(512), path.stat().st_size
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error.strerror or error}") from error
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head.lstrip()[:1] in (b"{", b"["):
        return _read_json(path)
    if path.suffix.lower() == ".safetensors" and not _known(head, size):
        return _read_safetensors(path)  # whose own words say what is wrong
    _refuse_others(path, head, size)
    return read_torch(path), {}


def _hint_of_path(text: str) -> str:
    if text.startswith(("http:/", "https:/", "s3:/", "gs:/", "hf:/")):
        return " Weights are read from files: download it first, and give the path."
    return ""


# ---- what it is -----------------------------------------------------------------------------------------------------


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins as safetensors do: with the length of a JSON header, and the header's brace."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _known(head: bytes, size: int) -> bool:
    starts = (b"PK\x03\x04", b"\x80", *(start for start, _ in _STARTS))
    return size == 0 or head.startswith(starts) or _is_page(head)


def _is_page(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error"))


def _refuse_others(path: Path, head: bytes, size: int) -> None:
    """Say what a file is that is neither safetensors nor of torch.save."""
    if size == 0:
        raise BackboneError(f"{path} is damaged: it is empty (0 bytes). Download or copy it again.")
    if _is_page(head):
        raise BackboneError(
            f"{path} is a web page, not weights: the download was answered with a page (to log in, or an error). Open "
            "it in a browser to see which, and download the file itself."
        )
    for start, what in _STARTS:
        if head.startswith(start):
            raise BackboneError(f"{path} is {what}. Expected a file of {_EXPECTED}.")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
    elif head[257:262] == b"ustar":
        raise BackboneError(f"{path} is a tar archive: unpack it, and give the file of weights in it.")
    elif not head.startswith(b"\x80"):
        what = "damaged or holds no weights"
        if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"\x12" in head[:4]):
            what = "an ONNX file, not the weights of a PyTorch network"
        elif path.suffix.lower() in _OTHERS or ".ckpt.data-" in path.name:
            what = "of another library (TensorFlow, Flax or Keras), not the weights of a PyTorch network"
        raise BackboneError(f"{path} is {what}: expected a file of {_EXPECTED}.")


def _check_zip(path: Path) -> None:
    """Refuse a zip file that is not of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            declared = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BackboneError(
            f"{path} is damaged: it begins as a file of torch.save and has no proper end ({error}). Was its "
            "download or copy interrupted?"
        ) from error
    if declared > 100 * path.stat().st_size:
        raise BackboneError(f"{path} is no file of torch.save: it declares {declared:,} bytes, packed into far fewer.")
    if any(name.endswith(("/constants.pkl", "/data.pkl.debug_pkl")) or "/code/" in name for name in names):
        _refuse_program(path, "a TorchScript archive (torch.jit.save)", "torch.jit.load")
    if any(name.rpartition("/")[2] in ("archive_format", "archive_version") for name in names):
        _refuse_program(path, "a program of torch.export", "torch.export.load")
    if any(name.endswith("data.pkl") and name.count("/") == 1 for name in names):
        _check_sums(path)
        return
    if names and all(name.endswith(".npy") for name in names):
        raise BackboneError(f"{path} is a NumPy archive (.npz), not the weights of a PyTorch network.")
    inside = [name for name in names if name.endswith((*_SUFFIXES, ".h5"))]
    raise BackboneError(
        f"{path} is a zip archive"
        + (f" with {', '.join(inside[:4])}: unpack it, and give that file." if inside else " without PyTorch weights.")
    )


def _check_sums(path: Path) -> None:
    """Refuse a file of which a part has another checksum than the file says, which torch.load does not compare."""
    broken, whole = [], 0
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as part:
                    while part.read(1 << 20):
                        pass
                whole += entry.file_size > 0
            except (zipfile.BadZipFile, EOFError, ValueError, OSError, NotImplementedError, RuntimeError, zlib.error):
                broken.append(entry.filename)
    if broken and whole:  # where none is right, checksums were off when it was written (torch.serialization)
        names = printable(", ".join(broken[:3]))
        raise BackboneError(f"{path} is damaged: the checksum of {names} is another one. Download or copy it again.")


def _refuse_program(path: Path, what: str, load: str) -> NoReturn:
    raise BackboneError(
        f"{path} is {what}: a compiled program with its weights. Take the weights out of it, where you trust it: "
        f"torch.save({load}({path.name!r}).state_dict(), 'weights.pth')"
    )


# ---- folders and shards ---------------------------------------------------------------------------------------------


def _file_in(folder: Path) -> Path:
    """Return the file of weights in a folder: the usual names first, then the only one."""
    names = sorted(entry.name for entry in folder.iterdir())
    for name in _COMPLETE:
        for known in (name, _SHARDS.format(name)):
            if known in names:
                return folder / known
    found = [name for name in names if name.lower().endswith(_SUFFIXES)]
    if len(found) == 1:
        return folder / found[0]
    if "snapshots" in names and len(versions := list((folder / "snapshots").iterdir())) == 1:
        return _file_in(versions[0])  # a model in Hugging Face's cache
    for name, what in _FOLDERS.items():
        if name in names:
            raise BackboneError(f"{folder} {what}")
    if "data.pkl" in names or any((folder / name / "data.pkl").is_file() for name in names):
        raise BackboneError(
            f"{folder} is a file of torch.save that was unpacked as a zip archive: give the file as it was."
        )
    if any(name.endswith(".index") for name in names):
        raise BackboneError(f"{folder} holds a network of TensorFlow, not the weights of a PyTorch network.")
    what = f"several files of weights, {', '.join(found[:6])}: name one" if found else "no file of weights"
    raise BackboneError(f"{folder} is a folder with {what}. Expected a file of {_EXPECTED}.")


def _read_json(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    """Read the shards that an index names."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{path} is a JSON text, not weights, and cannot be read as the index of a checkpoint in several files."
        ) from error
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise BackboneError(f"{path} is a JSON text without weights: give the file of {_EXPECTED} that lies beside it.")
    files = sorted(set(names.values()))
    missing = [name for name in files if Path(name).name != name or not (path.parent / name).is_file()]
    if missing:
        raise BackboneError(
            f"{path} names {len(files)} files, of which {', '.join(missing[:4])} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it: download all of them."
        )
    content: dict[str, object] = {}
    metadata: dict[str, str] = {}
    for name in files:
        if (path.parent / name).read_bytes()[:1] in (b"{", b"["):
            raise BackboneError(f"{path} names {name}, which is an index itself.")
        shard, about = read_weights(path.parent / name)
        content.update(dict.items(shard) if isinstance(shard, dict) else {})
        metadata.update(about)
    return content, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise BackboneError(f"{path} is damaged or not a safetensors file: {error}") from error
