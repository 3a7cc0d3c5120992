"""The folder of a LoRA adapter of PEFT's, read as one pair of matrices for each module."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from protfold_peft.adapters.checkpoint import check_directory, read_config
from protfold_peft.adapters.folders.saved import MODULES, existing_folder
from protfold_peft.errors import CheckpointError

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# With these the update is not the product of the two matrices, or the base weights were changed.
_REFUSED = {
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "a bias of its own (lora_bias)",
    "use_qalora": "QALoRA (use_qalora)",
    "use_bdlora": "BD-LoRA (use_bdlora)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "parameters as targets (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "arrow_config": "Arrow routing (arrow_config)",
    "kasa_config": "KaSA (kasa_config)",
    "monteclora_config": "MonteCLoRA (monteclora_config)",
    "velora_config": "VeLoRA (velora_config)",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class SavedLoRA:
    """A LoRA adapter as it was saved.

    Attributes:
        config: Its configuration.
        pairs: By module path, `down (q, d_in)` and `up (d_out, q)`, float64: `dW = up @ down`, with the scale in `up`.
        modules: The other weights, of what was trained in full, under their names in the file.
    """

    config: LoraConfig
    pairs: dict[str, tuple[Tensor, Tensor]]
    modules: dict[str, Tensor]

    @property
    def parameters(self) -> int:
        """Numbers in all pairs."""
        return sum(down.numel() + up.numel() for down, up in self.pairs.values())


def read_lora(folder: str | os.PathLike[str]) -> SavedLoRA:
    """Read a LoRA adapter whose updates are plain products.

    Raises:
        CheckpointError: It is no such adapter, is damaged, or is of a kind whose update is more than `scale B A`.
    """
    folder = existing_folder(folder)
    content = read_config(folder)
    if content["peft_type"] != "LORA":
        raise CheckpointError(f"{folder} is an adapter of type {content['peft_type']}, not a LoRA; give a LoRA adapter")
    check_directory(folder)
    for key, name in _REFUSED.items():
        if content.get(key):
            raise CheckpointError(f"{folder} is a LoRA with {name}: its update is not the product of two matrices")
    if content.get("bias", "none") != "none":
        raise CheckpointError(f"{folder} trains biases (bias='{content['bias']}'), which a tensor adapter cannot hold")
    init = content.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{folder} was started by {init}, which changes the base weights; save it from PEFT with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA"
        )
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME} cannot be read: {' '.join(str(error).split())}") from error
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    paths = [name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]
    if not paths:
        raise CheckpointError(f"{folder / SAFETENSORS_WEIGHTS_NAME} holds no LoRA matrices of linear modules")
    pairs = {}
    for full in paths:
        path = full.removeprefix(MODULES)
        down, up = tensors.pop(full + _DOWN), tensors.pop(full + _UP, None)
        if up is None or down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
            shapes = f"{tuple(down.shape)} and {None if up is None else tuple(up.shape)}"
            raise CheckpointError(f"{folder}: '{path}' has LoRA matrices of shapes {shapes}; linear modules only")
        pairs[path] = (down.double(), _scale(config, path, len(down)) * up.double())
    if strange := sorted(name for name in tensors if "lora_" in name):
        raise CheckpointError(f"{folder}: '{strange[0]}' is not of a linear module; only those can be fitted")
    return SavedLoRA(config, pairs, tensors)


def _scale(config: LoraConfig, path: str, rank: int) -> float:
    """`alpha / r` or `alpha / sqrt(r)`, with what the patterns say of this module."""
    stated = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
    if stated != rank:
        raise CheckpointError(f"'{path}' has LoRA rank {rank} in the weights and {stated} in {CONFIG_NAME}")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
