"""fair-esm checkpoints to transformers' format: ESM-2, ESMFold v0 / v1, and the structure-module-only models.

An ESMFold `.pt` holds the trunk and the heads only; its language model is a file of its own and is given beside it.
Parameter names of the trunk and the heads are the same in both formats. ESM-2's rotary frequencies are copied, not
recomputed: they were rounded to fp16 in training, and recomputed ones give other outputs.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer
from transformers.models.esm.configuration_esm import get_default_vocab_list

from protfold_peft.errors import CheckpointError
from protfold_peft.folding.fair_esm import FairEsmCheckpoint, read_checkpoint
from protfold_peft.folding.model import EsmFold

# fair-esm's name -> transformers' name, inside an ESM-2 encoder.
_ESM2_NAMES = [
    (r"^embed_tokens\.", "embeddings.word_embeddings."),
    (r"^layers\.(\d+)\.self_attn\.q_proj\.", r"encoder.layer.\1.attention.self.query."),
    (r"^layers\.(\d+)\.self_attn\.k_proj\.", r"encoder.layer.\1.attention.self.key."),
    (r"^layers\.(\d+)\.self_attn\.v_proj\.", r"encoder.layer.\1.attention.self.value."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layer.\1.attention.LayerNorm."),
    (r"^layers\.(\d+)\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"encoder.layer.\1.LayerNorm."),
    (r"^emb_layer_norm_after\.", "encoder.emb_layer_norm_after."),
    (r"^contact_head\.", "contact_head."),
]
_FREQUENCIES = re.compile(r"^layers\.(\d+)\.self_attn\.rot_emb\.inv_freq$")

# OpenFold's names of the structure module's sizes -> transformers'.
_STRUCTURE_MODULE_NAMES = {
    "c_s": "sequence_dim",
    "c_z": "pairwise_dim",
    "c_ipa": "ipa_dim",
    "c_resnet": "resnet_dim",
    "no_heads_ipa": "num_heads_ipa",
    "no_qk_points": "num_qk_points",
    "no_v_points": "num_v_points",
    "dropout_rate": "dropout_rate",
    "no_blocks": "num_blocks",
    "no_transition_layers": "num_transition_layers",
    "no_resnet_blocks": "num_resnet_blocks",
    "no_angles": "num_angles",
    "trans_scale_factor": "trans_scale_factor",
    "epsilon": "epsilon",
    "inf": "inf",
}
_TRUNK_NAMES = (
    "num_blocks",
    "sequence_state_dim",
    "pairwise_state_dim",
    "sequence_head_width",
    "pairwise_head_width",
    "position_bins",
    "dropout",
    "layer_drop",
    "cpu_grad_checkpoint",
    "max_recycles",
    "chunk_size",
)
# Constants that OpenFold's structure module may have saved with its weights.
_CONSTANTS = re.compile(r"^trunk\.structure_module\.(default_frames|group_idx|atom_mask|lit_positions)$")


def convert_checkpoint(source: str | Path, out: str | Path, *, esm2: str | Path | None = None) -> list[str]:
    """Convert a fair-esm `.pt` to a folder that `from_pretrained` loads.

    Args:
        source: ESMFold or ESM-2 `.pt`. `NAME-contact-regression.pt` beside an ESM-2 is read too.
        out: Folder to make; it must not exist, or be empty.
        esm2: The language model's `.pt`, for an ESMFold that does not carry it (the published ones do not).

    Returns:
        What was done, one sentence each.

    Raises:
        CheckpointError: A damaged or incomplete file, sizes that do not fit together, an architecture transformers
            does not have, or a non-empty `out`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"output folder {out} exists and is not empty: choose another, or remove it")
    checkpoint = read_checkpoint(source)
    notes: list[str] = []
    if checkpoint.is_folding:
        language = _language_model_of(checkpoint, esm2)
        config, weights = _folding(checkpoint, language, notes)
        model: Any = _assembled(EsmFold, config, weights, checkpoint.path)
    else:
        if esm2 is not None:
            raise CheckpointError(f"{source} is an ESM-2 itself: --esm2 belongs to an ESMFold checkpoint")
        config, weights = _masked_lm(checkpoint, notes)
        model = _assembled(EsmForMaskedLM, config, weights, checkpoint.path)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(temporary, save_original_format=False)
        _tokenizer(checkpoint.is_folding).save_pretrained(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return [*notes, f"{type(model).__name__}, {parameters:,} parameters, written to {out}"]


def _assembled(kind: Any, config: EsmConfig, weights: dict[str, Tensor], path: Path) -> Any:
    """A model whose parameters are the checkpoint's own tensors.

    Raises:
        CheckpointError: One is missing, not known, or of another shape.
    """
    # On the meta device nothing is drawn or held twice; the checkpoint's own tensors become the parameters.
    with torch.device("meta"):
        model = kind(config)
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys())
    if missing or unexpected:
        problem = f"lacks {missing[0]}" if missing else f"has the unknown weight {unexpected[0]}"
        raise CheckpointError(f"{path} {problem} ({len(missing)} missing, {len(unexpected)} unknown in all)")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, its configuration says {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(weights, assign=True)
    return model


def _language_model_of(checkpoint: FairEsmCheckpoint, esm2: str | Path | None) -> FairEsmCheckpoint:
    """The ESM-2 inside an ESMFold checkpoint, or the one that was given for it."""
    inside = {
        name.removeprefix("esm."): tensor for name, tensor in checkpoint.weights.items() if name.startswith("esm.")
    }
    if inside and esm2 is not None:
        raise CheckpointError(f"{checkpoint.path} carries its own language model: leave --esm2 out")
    if inside:
        return FairEsmCheckpoint(checkpoint.path, {}, inside)
    if esm2 is None:
        wanted = checkpoint.config.get("esm_type", "esm2_3B")
        raise CheckpointError(
            f"{checkpoint.path} holds no language model: give its ESM-2 ({wanted}) .pt file with --esm2"
        )
    language = read_checkpoint(esm2)
    if language.is_folding:
        raise CheckpointError(f"--esm2 {esm2} is an ESMFold, not an ESM-2")
    return language


def _esm2(language: FairEsmCheckpoint, notes: list[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and renamed encoder weights (without the masked-LM head) of an ESM-2."""
    renamed: dict[str, Tensor] = {}
    frequencies: dict[int, Tensor] = {}
    for name, tensor in language.weights.items():
        if match := _FREQUENCIES.match(name):
            frequencies[int(match[1])] = tensor
            continue
        if name.startswith("lm_head.") or name.endswith("._float_tensor") or name == "version":
            continue
        new = name
        for pattern, replacement in _ESM2_NAMES:
            new, found = re.subn(pattern, replacement, name)
            if found:
                break
        renamed[new] = tensor
    if "embeddings.word_embeddings.weight" not in renamed or not frequencies:
        raise CheckpointError(f"{language.path} is no ESM-2: it has no embed_tokens.weight or no rotary frequencies")
    first = frequencies[min(frequencies)]
    if any(not torch.equal(first, other) for other in frequencies.values()):
        raise CheckpointError(
            f"{language.path}: rotary frequencies differ between layers, which transformers cannot hold"
        )
    renamed["rotary_embeddings.inv_freq"] = first.float()
    vocabulary, width = renamed["embeddings.word_embeddings.weight"].shape
    n_layers = len(frequencies)
    n_heads = width // (2 * len(first))
    stated = language.config.get("encoder_attention_heads", n_heads)
    if stated != n_heads:
        raise CheckpointError(f"{language.path}: its configuration says {stated} heads, its rotary table {n_heads}")
    if "contact_head.regression.weight" not in renamed:
        notes.append(
            "no contact-regression file beside the ESM-2: its contact head is all zeros (folding has no use for it)"
        )
        renamed["contact_head.regression.weight"] = torch.zeros(1, n_layers * n_heads)
        renamed["contact_head.regression.bias"] = torch.zeros(1)
    inner = renamed.get("encoder.layer.0.intermediate.dense.weight", torch.empty(4 * width, 0)).shape[0]
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": inner,
        "token_dropout": bool(language.config.get("token_dropout", True)),
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
    }
    return sizes, renamed


def _masked_lm(checkpoint: FairEsmCheckpoint, notes: list[str]) -> tuple[EsmConfig, dict[str, Tensor]]:
    sizes, encoder = _esm2(checkpoint, notes)
    weights = {f"esm.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in checkpoint.weights.items():
        if name == "lm_head.weight":
            weights["lm_head.decoder.weight"] = tensor
        elif name.startswith("lm_head."):
            weights[name] = tensor
    return EsmConfig(**sizes), weights


def _folding(
    checkpoint: FairEsmCheckpoint, language: FairEsmCheckpoint, notes: list[str]
) -> tuple[EsmConfig, dict[str, Tensor]]:
    """Configuration and weights of an ESMFold in transformers' names."""
    config = checkpoint.config
    if config.get("use_esm_attn_map"):
        raise CheckpointError(f"{checkpoint.path} feeds ESM-2's attention maps to the trunk, which transformers cannot")
    sizes, encoder = _esm2(language, notes)
    combined = checkpoint.weights.get("esm_s_combine")
    if combined is not None and len(combined) != sizes["num_hidden_layers"] + 1:
        raise CheckpointError(
            f"{checkpoint.path} mixes {len(combined) - 1} language-model layers, {language.path} has "
            f"{sizes['num_hidden_layers']}: give the matching ESM-2 ({config.get('esm_type', 'esm2_3B')})"
        )
    weights = {f"esm.{name}": tensor for name, tensor in encoder.items()}
    for name, tensor in checkpoint.weights.items():
        if not name.startswith("esm.") and not _CONSTANTS.match(name):
            weights[name] = tensor
    vocabulary = list(get_default_vocab_list())
    if "af2_to_esm" not in weights:
        weights["af2_to_esm"] = EsmFold._af2_to_esm_from_vocab_list(vocabulary)
    esmfold = {
        "esm_type": config.get("esm_type", "esm2_3B"),
        "fp16_esm": True,
        "embed_aa": "embedding.weight" in weights,
        "bypass_lm": bool(config.get("bypass_lm", False)),
        "esm_ablate_sequence": bool(config.get("esm_ablate_sequence", False)),
        "lddt_head_hid_dim": config.get("lddt_head_hid_dim", 128),
        "trunk": _trunk_sizes(config.get("trunk") or {}),
    }
    return EsmConfig(**sizes, is_folding_model=True, vocab_list=vocabulary, esmfold_config=esmfold), weights


def _trunk_sizes(trunk: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {name: trunk[name] for name in _TRUNK_NAMES if name in trunk}
    module = trunk.get("structure_module") or {}
    sizes["structure_module"] = {new: module[old] for old, new in _STRUCTURE_MODULE_NAMES.items() if old in module}
    return sizes


def _tokenizer(folding: bool) -> EsmTokenizer:
    """ESM-2's tokenizer; for ESMFold the one transformers publishes with it, whose ids are AlphaFold's order."""
    letters = [*"ARNDCQEGHILKMFPSTWYVX", "<pad>", "<mask>", "<cls>", "<sep>", "<eos>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(letters if folding else get_default_vocab_list()), encoding="utf-8")
        return EsmTokenizer(vocab_file=str(vocabulary))
