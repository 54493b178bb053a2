"""A network of one's own: a copy that nothing reaches that is done to the given one."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradfeat.contexts import plain


def copied(network: nn.Module) -> nn.Module:
    """Return a copy of a network: memory layout, shared parameters, hooks and training modes stay as they are.

    Tensors that were made in inference mode become ordinary ones.

    Args:
        network: Any module; not changed.

    Raises:
        Exception: Whatever a module's own parts raise that cannot be copied (an open file, a lock).

    Example:
        >>> network = nn.Linear(2, 1)
        >>> own = copied(network)
        >>> _ = network.weight.data.zero_()
        >>> bool(own.weight.any())
        True
    """
    memo: dict[int, Any] = {}
    with plain():
        for module in network.modules():
            for value in vars(module).values():
                # what a hook computed last, as weight normalization does; torch copies no such tensor by itself
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        return copy.deepcopy(network, memo)


def with_ordinary_tensors(network: nn.Module) -> nn.Module:
    """Return the network itself, or a copy where some of its tensors were made in inference mode."""
    tensors = [*network.parameters(), *network.buffers()]
    tensors += [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    made = [value for value in tensors if not is_lazy(value)]
    return copied(network) if any(value.is_inference() for value in made) else network
