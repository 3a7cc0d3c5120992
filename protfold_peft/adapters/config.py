"""The configuration of a tensor adapter, as PEFT keeps, saves and loads it.

There is one PEFT type for every network, because PEFT refuses adapters of different types in one model. The field
`network` says which network it is, and each network has a face of its own: `LoRTAConfig` for "cp".
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig

from protfold_peft.adapters.checkpoint import check_directory
from protfold_peft.adapters.networks import NETWORKS
from protfold_peft.adapters.sites import Site
from protfold_peft.errors import CheckpointError, ConfigError


class TensorPeftType(str, Enum):  # noqa: UP042 (PEFT reads the name out of `str(member)`, which StrEnum changes)
    """Our entry beside PEFT's own types. Name and value are equal, so that the string read from a file finds it."""

    TENSOR_NETWORK = "TENSOR_NETWORK"


@dataclass
class TensorAdapterConfig(PeftConfig):
    """What every network has in common; calling it with `network="cp"` gives a `LoRTAConfig`.

    Args:
        network: The tensor network, a key of `NETWORKS`.
        r: Rank.
        alpha: The update is scaled by `alpha / r`.
        use_rslora: Scale by `alpha / sqrt(r)` instead.
        init: How the factors are drawn; see `reset_parameters` of the network.
        head_layout: Which axis heads divide: `consistent`, the one that they divide in the model.
        target_modules: Ends of module paths or whole paths; a string is a regular expression for whole paths, or
            `all-linear`. None takes the query, key, value and output projections.
        dropout: Probability of dropping an input of the update while training.
        bias: `none`; biases are not trained.
        modules_to_save: Modules trained in full and saved with the adapter, such as a new head.
        init_weights: False starts from a random update instead of none (for tests).
        layout: Filled in when the adapter is made, and read when it is loaded: which module is which row and column
            of the shared tensor.

    Raises:
        ConfigError: A key is unknown, or a value is not one that the network takes.
    """

    faces: ClassVar[dict[str, type[TensorAdapterConfig]]] = {}

    network: str = field(default="cp", metadata={"help": "tensor network"})
    r: int = field(default=8, metadata={"help": "rank"})
    alpha: float = field(default=8.0, metadata={"help": "the update is scaled by alpha / r"})
    use_rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(r)"})
    init: str = field(default="authors", metadata={"help": "authors, orthogonal or rank_stable"})
    head_layout: str = field(default="consistent", metadata={"help": "which axis attention heads divide"})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "modules to adapt"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the update's input"})
    bias: str = field(default="none", metadata={"help": "none"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules trained in full"})
    init_weights: bool = field(default=True, metadata={"help": "start from no update"})
    layout: dict[str, Any] | None = field(default=None, metadata={"help": "resolved sites; filled in"})

    def __new__(cls, *args: Any, **kwargs: Any) -> TensorAdapterConfig:
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
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean '{near[0]}'? " if near else ""
                raise ConfigError(f"{cls.__name__} has no key '{key}'; {hint}known keys: {', '.join(sorted(known))}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TensorPeftType.TENSOR_NETWORK
        # A layout given here was read from a file and is binding; one that is filled in later can be made anew.
        self.layout_is_stored = self.layout is not None
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if type(self.r) is not int or self.r < 1:
            raise ConfigError(f"r={self.r!r} is not a rank; use a whole number from 1")
        if not (isinstance(self.alpha, (int, float)) and math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha={self.alpha!r} is not a scale; use a number above 0")
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise ConfigError(f"dropout={self.dropout!r} is not a probability; use 0 or more and less than 1")
        if self.bias != "none":
            raise ConfigError(f"bias='{self.bias}' is not supported: tensor adapters train no biases; use 'none'")
        if self.head_layout != "consistent":
            raise ConfigError(f"head_layout='{self.head_layout}' is not supported yet; use 'consistent'")
        inits = NETWORKS[self.network].inits
        if self.init not in inits:
            raise ConfigError(f"init='{self.init}' is not known to network '{self.network}'; use {', '.join(inits)}")

    @property
    def scale(self) -> float:
        """The factor in front of the update."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def network_options(self) -> dict[str, Any]:
        """The arguments with which the network's factors are made."""
        return {"rank": self.r, "scale": self.scale, "alpha": self.alpha}

    @property
    def sites(self) -> tuple[Site, ...]:
        """The resolved layout.

        Raises:
            CheckpointError: There is none yet, or it is damaged.
        """
        try:
            entries = dict((self.layout or {})["sites"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError("the adapter's configuration holds no layout of sites; save it again") from error
        sites = [Site.from_json(path, entry) for path, entry in entries.items()]
        # JSON sorts by path; put them back into the model's order.
        return tuple(sorted(sites, key=lambda site: (site.layer, site.group, site.column)))

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


@dataclass
class LoRTAConfig(TensorAdapterConfig):
    """LoRTA: one CP tensor for all heads, layers and matrices. See `networks.cp`."""

    network: str = field(default="cp", metadata={"help": "cp"})

    def __post_init__(self) -> None:
        if self.network != "cp":
            raise ConfigError(f"LoRTAConfig is the face of network 'cp', not of '{self.network}'")
        super().__post_init__()


TensorAdapterConfig.faces.update(cp=LoRTAConfig)
