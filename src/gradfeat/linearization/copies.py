"""A network of one's own: a copy that nothing reaches that is done to the given one."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

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
    # what a hook computed last, as weight normalization does; torch copies no such tensor by itself
    computed = (value for value in _tensors(network) if not value.is_leaf)
    with plain():
        return copy.deepcopy(network, {id(value): value.detach().clone() for value in computed})


def with_ordinary_tensors(network: nn.Module) -> nn.Module:
    """Return the network itself, or a copy where torch would not copy, or train, some of its tensors.

    Those are tensors that were made in inference mode, and those that were computed from others with gradients.
    """
    made = [value for value in _tensors(network) if not is_lazy(value)]
    return copied(network) if any(value.is_inference() or not value.is_leaf for value in made) else network


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return all tensors of a network's modules: parameters, buffers and attributes, also in lists and dicts."""
    leaves = (leaf for module in network.modules() for leaf in pytree.tree_leaves(vars(module)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
