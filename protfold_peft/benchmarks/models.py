"""Folding models with random weights, ours and stock transformers', the same numbers in both.

Axis letters: `b` batch, `n` residues.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import EsmConfig
from transformers.initialization import no_init_weights
from transformers.models.esm import modeling_esmfold

from protfold_peft.errors import ConfigError
from protfold_peft.folding.mini import esmfold_config, mini_config
from protfold_peft.folding.model import EsmFold
from protfold_peft.folding.quantize import halve_frozen_trunk

StockEsmFold = modeling_esmfold.EsmForProteinFolding

# Smaller than 1/sqrt(fan-in): the pair state of 48 random blocks has to stay finite in half precision.
_GAIN = 0.3


@dataclass(frozen=True)
class Size:
    """Widths of a model and what is measured with it.

    Attributes:
        hidden: Width of the language model; 0 for the architecture of `protfold-mini`.
        layers: Of the language model.
        heads: Of the language model.
        blocks: Of the trunk, whose widths are ESMFold's.
        lengths: Residues of predictions.
        crops: Residues of training samples.
    """

    hidden: int
    layers: int
    heads: int
    blocks: int
    lengths: tuple[int, ...]
    crops: tuple[int, ...]


SIZES = {
    "mini": Size(0, 6, 8, 2, lengths=(64, 128), crops=(64,)),
    # The trunk's true widths, on an ESM-2 of the size of its 35M model.
    "medium": Size(480, 12, 20, 4, lengths=(64, 128, 256), crops=(64, 128)),
    "full": Size(2560, 36, 40, 48, lengths=(128, 256, 512), crops=(256, 384)),
}


def configuration(name: str) -> EsmConfig:
    """The configuration of a size of `SIZES`."""
    size = SIZES[name]
    if not size.hidden:
        return mini_config()
    trunk = {"num_blocks": size.blocks}
    return esmfold_config(hidden=size.hidden, layers=size.layers, heads=size.heads, folding={"trunk": trunk})


def build(kind: type[nn.Module], config: EsmConfig, device: torch.device) -> Any:
    """A model of `kind` (`EsmFold`, `StockEsmFold` or `connected()`) on its device, the same weights for every kind.

    The weights are drawn where they will be: billions of them take seconds on a GPU and minutes on a CPU.
    """
    with torch.device(device), no_init_weights():
        model: Any = kind(config)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(std=_GAIN * parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    # Found while the model was made without weights of its own.
    model.af2_to_esm.copy_(model._af2_to_esm_from_vocab_list(config.vocab_list))
    model.esm.set_attn_implementation("sdpa")
    return model.eval()


def halve(model: Any) -> None:
    """Half precision as each program has it: the language model in bf16; ours does the trunk's products in bf16 too.

    Stock code does those in an autocast region around the call.
    """
    if isinstance(model, EsmFold):
        model.set_precision(language_model=torch.bfloat16, trunk=torch.bfloat16)
        halve_frozen_trunk(model.requires_grad_(False))
    else:
        model.esm.to(torch.bfloat16)


def connected() -> type[nn.Module]:
    """Stock `EsmForProteinFolding` without the line that detaches the language model's features.

    Raises:
        ConfigError: transformers' code has changed.
    """
    cut = "esm_s = esm_s.detach()"
    source = textwrap.dedent(inspect.getsource(StockEsmFold.forward))
    if cut not in source:
        raise ConfigError("this release of transformers detaches the features in another way: the plain route is off")
    # Its decorators make documentation.
    source = source[source.index("def forward") :]
    names: dict[str, Any] = {}
    exec(source.replace(cut, "pass"), vars(modeling_esmfold) | {}, names)
    return type("Connected", (StockEsmFold,), {"forward": names["forward"]})
