"""A module dictionary that points at modules without owning them.

The tuner owns each adapter's factors once. A layer must reach them through an attribute that PEFT takes for an
adapter container (`nn.ModuleDict`), but if the layer owned them too, every layer would save its own copy.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

from torch import nn


class ModuleReferences(nn.ModuleDict):
    """Adapter name to module; nothing in it is a child, a parameter or part of a state dict.

    The entries are kept in an ordinary dictionary, so copying or pickling a whole model keeps them pointing at the
    copied owner's modules.
    """

    def __init__(self) -> None:
        super().__init__()
        self._references: dict[str, nn.Module] = {}

    def __getitem__(self, key: str) -> nn.Module:
        return self._references[key]

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._references[key] = module

    def __delitem__(self, key: str) -> None:
        del self._references[key]

    def __len__(self) -> int:
        return len(self._references)

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __contains__(self, key: object) -> bool:
        return key in self._references

    def clear(self) -> None:
        """As of a dictionary."""
        self._references.clear()

    def pop(self, key: str, *default: Any) -> nn.Module:
        """As of a dictionary."""
        return self._references.pop(key, *default)

    def keys(self) -> KeysView[str]:
        """As of a dictionary."""
        return self._references.keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """As of a dictionary."""
        return self._references.items()

    def values(self) -> ValuesView[nn.Module]:
        """As of a dictionary."""
        return self._references.values()
