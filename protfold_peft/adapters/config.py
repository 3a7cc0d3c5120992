"""The configuration of a tensor adapter, as PEFT keeps, saves and loads it.

There is one PEFT type for every network, because PEFT refuses adapters of different types in one model. The field
`network` says which network it is, and each network has a face of its own: `LoRTAConfig` for "cp", and so on.
"""

from __future__ import annotations

import inspect
import math
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import nn

from protfold_peft.adapters.architectures import HeadAxis
from protfold_peft.adapters.cards import fill_card
from protfold_peft.adapters.checkpoint import check_directory
from protfold_peft.adapters.discovery import Targets
from protfold_peft.adapters.networks import NETWORKS, build_networks
from protfold_peft.adapters.site_table import sites_of
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import CheckpointError, ConfigError, did_you_mean

# How the heads of every site lie, by name: their axis (None: the one that the model divides), and whether the elements
# of one head are spread.
HEAD_LAYOUTS: dict[str, tuple[HeadAxis | None, bool]] = {
    "consistent": (None, False),
    "authors_peft": ("input", False),
    "authors_litgpt": ("output", False),
    "interleaved": (None, True),
}


class TensorPeftType(str, Enum):  # noqa: UP042 (PEFT reads the name out of `str(member)`, which StrEnum changes)
    """Our entry beside PEFT's own types. Name and value are equal, so that the string read from a file finds it."""

    TENSOR_NETWORK = "TENSOR_NETWORK"


@dataclass
class TensorAdapterConfig(PeftConfig):
    """What every network has in common; calling it with `network="cp"` gives a `LoRTAConfig`.

    Args:
        network: The tensor network, a key of `NETWORKS`.
        r: Rank.
        init: How the factors are drawn; see `reset_parameters` of the network. With `rank_stable` the first Adam step
            changes the weights equally at every rank.
        target_modules: Ends of module paths or whole paths; a string is a regular expression for whole paths, or
            `all-linear`. None takes the query, key, value and output projections of a known architecture.
        exclude_modules: Modules to leave out, in the same forms.
        layers_to_transform: Indices of the layers to adapt; None: all.
        layers_pattern: Name of the module list that `layers_to_transform` counts in, for models we do not know.
        dropout: Probability of dropping an input of the update while training.
        bias: Which biases of the base model are trained and saved too: `none`, `all`, or `tensor_network_only`, those
            of the adapted modules. One adapter of a model can have them, and disabling it does not undo them.
        modules_to_save: Modules trained in full and saved with the adapter, such as a new head.
        init_weights: False starts from a random update instead of none (for tests).
        head_layout: How attention heads divide the axes: `consistent`, as in the model.
        layout: Filled in when the adapter is made, and read when it is loaded: which module is which row and column
            of the shared tensor.

    Raises:
        ConfigError: A key is unknown, or a value is not one that the network takes.
    """

    faces: ClassVar[dict[str, type[TensorAdapterConfig]]] = {}
    head_layouts: ClassVar[tuple[str, ...]] = ("consistent",)

    network: str = field(default="cp", metadata={"help": "tensor network"})
    r: int = field(default=8, metadata={"help": "rank"})
    init: str = field(default="authors", metadata={"help": "authors, orthogonal or rank_stable"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to leave out"})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layers to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "module list of the layers"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the update's input"})
    bias: str = field(default="none", metadata={"help": "none, all or tensor_network_only"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained in full"})
    init_weights: bool = field(default=True, metadata={"help": "start from no update"})
    head_layout: str = field(default="consistent", metadata={"help": "how attention heads divide the axes"})
    layout: dict[str, Any] | None = field(default=None, metadata={"help": "resolved sites; filled in"})

    def __new__(cls, *args: Any, **kwargs: Any) -> TensorAdapterConfig:
        """Choose the face of the network, and refuse unknown keys."""
        # PEFT builds the class that it has registered for the type, and drops keys that it does not know with no
        # more than a warning: the right face is chosen and the keys are checked here, before it can.
        if cls is TensorAdapterConfig:
            network = kwargs.get("network", "cp")
            if network not in cls.faces:
                raise ConfigError(f"network='{network}' is not known; use one of {', '.join(cls.faces)}")
            cls = cls.faces[network]
        known = list(inspect.signature(cls.__init__).parameters)[1:]
        for key in kwargs:
            if key not in known:
                hint = did_you_mean(key, known)
                raise ConfigError(f"{cls.__name__} has no key '{key}'; {hint}known keys: {', '.join(sorted(known))}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the values that all networks have."""
        super().__post_init__()
        self.peft_type = TensorPeftType.TENSOR_NETWORK
        face = self.faces.get(self.network)
        if face is not None and not isinstance(self, face):
            raise ConfigError(f"{type(self).__name__} is not the face of network '{self.network}'; use {face.__name__}")
        self._site_paths: tuple[Any, frozenset[str]] = (None, frozenset())
        # A layout given here was read from a file and is binding; one that is filled in later can be made anew.
        self.layout_is_stored = self.layout is not None
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), (set, tuple)):
                setattr(self, name, sorted(value))
        if type(self.r) is not int or self.r < 1:
            raise ConfigError(f"r={self.r!r} is not a rank; use a whole number from 1")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ConfigError(f"dropout={self.dropout!r} is not a probability; use 0 or more and less than 1")
        check_choice("bias", self.bias, ("none", "all", f"{self.peft_type.value.lower()}_only"))
        check_choice("head_layout", self.head_layout, self.head_layouts)
        check_choice("init", self.init, NETWORKS[self.network].inits)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "layers_pattern is given without layers_to_transform; name the layers too, or leave it out"
            )

    @property
    def scaling(self) -> float:
        """The factor in front of the update."""
        raise NotImplementedError

    @property
    def targets(self) -> Targets:
        """Which maps of a model the adapter is for."""
        return Targets(self.target_modules, self.exclude_modules, self.layers_to_transform, self.layers_pattern)

    def network_options(self) -> dict[str, Any]:
        """The arguments with which the factors of every group are made."""
        return {"scale": self.scaling}

    def plan_options(self) -> dict[str, Any]:
        """What the network's `plan` is told, beside the groups."""
        return {}

    def build(self) -> nn.ModuleDict:
        """The factors of all groups, allocated but not drawn.

        Raises:
            CheckpointError: The stored layout is damaged.
        """
        sites = self.sites
        try:
            settings = {name: group.get("settings", {}) for name, group in (self.layout or {})["groups"].items()}
            return build_networks(self.network, sites, self.network_options(), settings)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, (CheckpointError, ConfigError)):
                raise
            raise CheckpointError(f"the groups of the adapter's layout are damaged ({error}); save it again") from error

    @property
    def sites(self) -> tuple[Site, ...]:
        """The resolved layout.

        Raises:
            CheckpointError: There is none yet, or it is damaged.
        """
        return sites_of(self.layout)

    @property
    def site_paths(self) -> frozenset[str]:
        """The modules that have sites; PEFT asks for it once for every module of the model."""
        if self._site_paths[0] is not self.layout:
            self._site_paths = self.layout, frozenset(site.path for site in self.sites)
        return self._site_paths[1]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and fill in the model card beside it if it is PEFT's empty one.

        Raises:
            CheckpointError: The weights beside it were saved as a pickle, which could not be loaded again.
        """
        folder = Path(save_directory)
        if (folder / WEIGHTS_NAME).is_file() and not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise CheckpointError(
                f"{folder / WEIGHTS_NAME} is a pickle, and pickled adapters are not loaded; save with "
                "safe_serialization=True"
            )
        super().save_pretrained(save_directory, **kwargs)
        if self.layout is not None:
            fill_card(Path(save_directory), self)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> TensorAdapterConfig:
        """Read an adapter's configuration, and check the weights beside it before anyone opens them.

        Raises:
            ConfigError: The file holds an unknown key or value.
            CheckpointError: A file is truncated, a pickle, or not of this configuration.
        """
        folder = Path(os.fspath(pretrained_model_name_or_path), subfolder or "")
        if folder.is_dir():
            check_directory(folder, weights_required=False)
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if folder.is_dir():
            check_directory(folder, config, weights_required=False)
        return config


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(name: str, value: Any) -> None:
    """Refuse a scale that is no number above 0.

    Raises:
        ConfigError: It is not.
    """
    if not (_is_number(value) and value > 0):
        raise ConfigError(f"{name}={value!r} is not a scale; use a number above 0")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ConfigError: It is not; the message names the nearest.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ConfigError(f"{name}='{value}' is not known; {hint}use {', '.join(choices)}")
