"""The configuration of every method: the face of each tensor network, and the name that a person gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from protfold_peft.adapters.config import TensorAdapterConfig, check_choice, check_positive
from protfold_peft.adapters.networks import NETWORKS, TensorNetwork
from protfold_peft.adapters.networks.tucker import MODES, VARIANTS
from protfold_peft.errors import ConfigError


@dataclass
class _AlphaConfig(TensorAdapterConfig):
    """Networks whose update is scaled by `alpha / r`.

    Args:
        alpha: Numerator of the scale.
        use_rslora: Scale by `alpha / sqrt(r)` instead.
    """

    alpha: float = field(default=8.0, metadata={"help": "the update is scaled by alpha / r"})
    use_rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(r)"})

    def __post_init__(self) -> None:
        """Check `alpha` too."""
        super().__post_init__()
        check_positive("alpha", self.alpha)

    @property
    def scaling(self) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` with `use_rslora`."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def network_options(self) -> dict[str, Any]:
        """Rank, scale and `alpha`, from which some starts are drawn."""
        return {"rank": self.r, "scale": self.scaling, "alpha": self.alpha}


@dataclass
class LoRTAConfig(_AlphaConfig):
    """LoRTA: one CP tensor for all heads, layers and matrices. See `networks.cp`.

    Learning rates to start from, as measured on a language model of 260,000 parameters (docs/adapters.md): with
    `init="rank_stable"` 1e-1 up to rank 4, 3e-2 above; with `authors` 1e-2 at rank 1, 1e-1 from rank 4 on.

    Args:
        head_layout: `consistent`: heads divide the output axis of query, key and value and the input axis of the
            output projection, as in the model. `authors_peft` and `authors_litgpt`: the input axis, or the output
            axis, of every matrix, as in the authors' two code bases; for loading their adapters.
    """

    head_layouts: ClassVar[tuple[str, ...]] = ("consistent", "authors_peft", "authors_litgpt")

    network: str = field(default="cp", metadata={"help": "cp"})


@dataclass
class LoTRConfig(_AlphaConfig):
    """LoTR: shared left and right factors, a small core for each site. See `networks.tucker2`.

    Learning rates to start from (docs/adapters.md): with `init="rank_stable"` 3e-2 up to rank 4, 1e-2 above; with
    `authors` 1e-2 at rank 1, 3e-3 at 4, 1e-3 from 8 on, and lower for wider models.
    """

    network: str = field(default="tucker2", metadata={"help": "tucker2"})


@dataclass
class TensorTrainConfig(_AlphaConfig):
    """Tensor-Train: a chain of small matrices for layer and kind between shared ends. See `networks.tensor_train`.

    Learning rates to start from (docs/adapters.md): 3e-2 at ranks 1 to 8; at 32 3e-2, with `rank_stable` 1e-2.

    Args:
        heads: Split attention projections into heads, with a small matrix for each head: fewer parameters.
    """

    network: str = field(default="tensor_train", metadata={"help": "tensor_train"})
    heads: bool = field(default=False, metadata={"help": "a core for each attention head"})

    def network_options(self) -> dict[str, Any]:
        """As of the others, and whether heads have cores."""
        return super().network_options() | {"heads": self.heads}


@dataclass
class SiteLoRAConfig(_AlphaConfig):
    """LoRA in this tuner, to mix with tensor adapters in one model and one batch. See `networks.lora`.

    Learning rates to start from (docs/adapters.md): 1e-2 to 3e-2 on a small model; on large ones far lower.

    Alone, PEFT's own `LoraConfig` does the same.
    """

    network: str = field(default="lora", metadata={"help": "lora"})


@dataclass
class TensLoRAConfig(TensorAdapterConfig):
    """TensLoRA: the Tucker family. See `networks.tucker`.

    Learning rates to start from (docs/adapters.md), for one rank in every mode: 1e-1 at rank 1, 3e-2 at 4 and 8.

    Args:
        r: Rank of every mode (isorank), where `ranks` says nothing else.
        variant: Which modes share a tensor: att, qkv, depth, att_qkv, att_depth, qkv_depth or att_qkv_depth.
        scale: Multiplies the update.
        ranks: Ranks by mode: model, head_width, heads (or output, input), kinds, layers.
        budget: Choose the mode ranks so that the adapter has at most this many parameters.
        match_lora_rank: The same, with the parameters that LoRA of this rank has on the same modules as the budget.
        head_layout: `consistent`: the elements of a head are neighbours, as in the model. `interleaved`: they are
            spread, `index = j * heads + head`, as in the authors' code.
    """

    head_layouts: ClassVar[tuple[str, ...]] = ("consistent", "interleaved")

    network: str = field(default="tucker", metadata={"help": "tucker"})
    variant: str = field(default="att_qkv_depth", metadata={"help": "which modes share a tensor"})
    scale: float = field(default=1.0, metadata={"help": "multiplies the update"})
    ranks: dict[str, int] | None = field(default=None, metadata={"help": "ranks by mode"})
    budget: int | None = field(default=None, metadata={"help": "parameters to choose the ranks for"})
    match_lora_rank: int | None = field(default=None, metadata={"help": "LoRA's rank to match in parameters"})

    def __post_init__(self) -> None:
        """Check the variant and that the mode ranks are chosen in one way only."""
        super().__post_init__()
        check_choice("variant", self.variant, VARIANTS)
        check_positive("scale", self.scale)
        for mode, rank in (self.ranks or {}).items():
            check_choice("ranks: mode", mode, MODES)
            if type(rank) is not int or rank < 1:
                raise ConfigError(f"ranks: {mode}={rank!r} is not a rank; use a whole number from 1")
        if sum(value is not None for value in (self.ranks, self.budget, self.match_lora_rank)) > 1:
            raise ConfigError("ranks, budget and match_lora_rank each choose the mode ranks; give one of them")
        for name in ("budget", "match_lora_rank"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"{name}={value!r} is not a number of parameters or a rank; use a whole number from 1"
                )

    @property
    def scaling(self) -> float:
        """`scale`, whatever the ranks are."""
        return self.scale

    def network_options(self) -> dict[str, Any]:
        """Variant and scale; the mode ranks of each group come from its plan."""
        return {"variant": self.variant, "scale": self.scale}

    def plan_options(self) -> dict[str, Any]:
        """All that the mode ranks are chosen from."""
        return {
            "variant": self.variant,
            "r": self.r,
            "ranks": self.ranks,
            "budget": self.budget,
            "match_lora_rank": self.match_lora_rank,
        }


@dataclass
class TeRAConfig(TensorAdapterConfig):
    """TeRA: a frozen random tensor network with trained vectors. See `networks.random_tucker`.

    Learning rates to start from (docs/adapters.md): with `init="rank_stable"` 3e-2 at rank 1, 1e-1 at 4, 3e-1 at 8.

    Args:
        r: Rank of every mode, at most the mode's length. Rank of an update: up to `r ** axis_factors`.
        scale: Multiplies the update.
        axis_factors: Into how many modes each axis of a weight is factored.
        seed: Of the frozen tensors.
        save_frozen: Keep the frozen tensors in saved files. They are drawn again from the seed otherwise.
    """

    network: str = field(default="random_tucker", metadata={"help": "random_tucker"})
    scale: float = field(default=1.0, metadata={"help": "multiplies the update"})
    axis_factors: int = field(default=2, metadata={"help": "modes of each axis"})
    seed: int = field(default=0, metadata={"help": "of the frozen tensors"})
    save_frozen: bool = field(default=False, metadata={"help": "keep the frozen tensors in saved files"})

    def __post_init__(self) -> None:
        """Check scale, factors and seed too."""
        super().__post_init__()
        check_positive("scale", self.scale)
        if type(self.axis_factors) is not int or not 1 <= self.axis_factors <= 8:
            raise ConfigError(f"axis_factors={self.axis_factors!r}: use a whole number from 1 to 8")
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed!r}: use a whole number from 0 to 2^32 - 1")

    @property
    def scaling(self) -> float:
        """`scale`, whatever the ranks are."""
        return self.scale

    def network_options(self) -> dict[str, Any]:
        """Scale, and what the frozen tensors are drawn from."""
        return {"scale": self.scale, "seed": self.seed, "init": self.init, "save_frozen": self.save_frozen}

    def plan_options(self) -> dict[str, Any]:
        """Rank, and into how many modes an axis is factored."""
        return {"r": self.r, "axis_factors": self.axis_factors}


def register_network(name: str, network: type[TensorNetwork], face: type[TensorAdapterConfig]) -> None:
    """Make a network known: `face`, whose `network` is `name` by default, then is a PEFT method like the others.

    See docs/adding_a_method.md.
    """
    NETWORKS[name] = network
    TensorAdapterConfig.faces[name] = face


# What the methods are called where a person names one: in run configurations and on the command line.
METHODS: dict[str, type[TensorAdapterConfig]] = {
    "lorta": LoRTAConfig,
    "lotr": LoTRConfig,
    "tenslora": TensLoRAConfig,
    "tera": TeRAConfig,
    "tensor_train": TensorTrainConfig,
    "lora": SiteLoRAConfig,
}

for _face in METHODS.values():
    register_network(_face.network, NETWORKS[_face.network], _face)
