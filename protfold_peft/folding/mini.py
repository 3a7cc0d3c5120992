"""`protfold-mini`: the built-in model, small enough for a laptop, which ships with the package.

Its weights were trained by this program (`configs/pretrain_mini.yaml`); its model card, `protfold_mini/README.md`, says
on what and how good it is. `protfold-mini-untrained` is what that training started from: the same architecture with
weights drawn from a seed, a baseline, and something to try the program's parts on.

The draws come from NumPy's frozen `RandomState`, so the same weights appear on every machine and torch release.
Residual branches and the backbone update start with small weights rather than with ESMFold's zeros: from zeros every
residue sits at the origin and nothing reaches the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EsmConfig
from transformers.models.esm.configuration_esm import get_default_vocab_list

from protfold_peft.folding.model import EsmFold

MINI_NAME = "protfold-mini"
MINI_FOLDER = Path(__file__).parent / "protfold_mini"
UNTRAINED_NAME = "protfold-mini-untrained"
MINI_SEED = 20_260_101
UNTRAINED_WARNING = (
    f"{UNTRAINED_NAME} has UNTRAINED weights: its structures are noise, for trying the program only. "
    "Use --model facebook/esmfold_v1 (or a local folder) for real predictions."
)

# Weight scale relative to 1/sqrt(fan-in) of layers that end a residual branch or move a frame.
_BRANCH_ENDS = ("o_proj", "linear_o", "linear_z", "linear_out", "linear_2", "linear_3", "mlp.3", "output.dense")
_BRANCH_GAIN = 0.5
_FRAME_GAIN = 0.2


def esmfold_config(*, hidden: int, layers: int, heads: int, folding: dict[str, Any]) -> EsmConfig:
    """An ESMFold of other sizes, with the vocabulary and the switches of the published one.

    Args:
        hidden: Width of the language model.
        layers: Of the language model.
        heads: Of the language model.
        folding: What its `esmfold_config` says; the rest is as published.
    """
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        layer_norm_eps=1e-5,
        token_dropout=True,
        is_folding_model=True,
        vocab_list=list(get_default_vocab_list()),
        esmfold_config={"fp16_esm": False, **folding},
    )


def mini_config() -> EsmConfig:
    """The architecture: an ESM-2 of 6 layers of width 256, and 2 trunk blocks."""
    trunk = {
        "num_blocks": 2,
        "sequence_state_dim": 128,
        "pairwise_state_dim": 32,
        "sequence_head_width": 32,
        "pairwise_head_width": 16,
        "position_bins": 32,
        "max_recycles": 1,
        "chunk_size": None,
        "structure_module": {
            "sequence_dim": 128,
            "pairwise_dim": 32,
            "ipa_dim": 16,
            "resnet_dim": 64,
            "num_heads_ipa": 8,
            "num_blocks": 4,
            "dropout_rate": 0.0,
        },
    }
    return esmfold_config(hidden=256, layers=6, heads=8, folding={"lddt_head_hid_dim": 64, "trunk": trunk})


def build_mini(seed: int = MINI_SEED) -> EsmFold:
    """The untrained model, fp32, in eval mode, the same on every machine."""
    model = EsmFold(mini_config())
    random = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() < 2:
                # Norms, biases and mixing weights keep the architecture's own start (1, 0, equal shares).
                continue
            gain = 1.0
            if ".bb_update." in name:
                gain = _FRAME_GAIN
            elif name.removesuffix(".weight").endswith(_BRANCH_ENDS):
                gain = _BRANCH_GAIN
            scale = 1.0 if "embedding" in name or "recycle_disto" in name else parameter.shape[-1] ** -0.5
            draw = random.standard_normal(parameter.shape).astype(np.float32)
            parameter.copy_(torch.from_numpy(draw) * (gain * scale))
    return model.eval()
