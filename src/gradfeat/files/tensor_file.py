"""A safetensors file as bytes, the same ones for the same content."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

_PADDING = 8  # the header's length is a multiple of it, so that tensors are aligned


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file of tensors and texts.

    The library writes the texts in the order of a hash table, another one in each process; here they are sorted.

    Args:
        tensors: By name; on any device, in any layout, also parts of one memory.
        metadata: Texts by name.

    Example:
        >>> import torch
        >>> content = tensor_file({"w": torch.zeros(2)}, {"b": "1", "a": "2"})
        >>> content[8:41].decode()
        '{"__metadata__":{"a":"2","b":"1"}'
    """
    separate: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, value in tensors.items():  # the library refuses what shares memory, or does not lie in order
        value = value.detach().cpu()
        alone = value.untyped_storage().nbytes() == value.nbytes and value.data_ptr() not in addresses
        separate[name] = (
            value if alone and value.is_contiguous() else value.clone(memory_format=torch.contiguous_format)
        )
        addresses.add(separate[name].data_ptr())
    content = safetensors.torch.save(separate, dict(metadata) or None)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    texts = dict(sorted(header.pop("__metadata__", {}).items()))
    text = json.dumps(
        {**({"__metadata__": texts} if texts else {}), **header}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    text += b" " * (-len(text) % _PADDING)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[8 + length :]])
