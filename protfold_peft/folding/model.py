"""ESMFold that trains: transformers' `EsmForProteinFolding` with a gradient path into its language model.

Stock code freezes the language model and detaches its features, so an adapter in ESM-2 gets no gradient from any
structure loss, and nothing says so. `EsmFold` keeps every parameter name, so that published checkpoints load, and
gives the same numbers on frozen weights; it differs where `docs/folding.md` says so.

Axis letters: `b` batch, `n` residues, `m` structure-module steps (8), `k` bins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmForProteinFolding, EsmForProteinFoldingOutput

from protfold_peft.errors import ConfigError
from protfold_peft.folding import confidence
from protfold_peft.folding.language_model import last_hidden_state, weighted_hidden_states
from protfold_peft.folding.masked_lm import save_head
from protfold_peft.folding.structure_module import atom_masks
from protfold_peft.folding.trunk import GLYCINE, FoldingTrunk, without_blocks
from protfold_peft.structure.residues import UNKNOWN

# What a masked-LM loss skips: cross-entropy's own default.
IGNORE_INDEX = -100

# The trunk's pair state has grown past 65,504 by its last blocks.
_FP16_TRUNK = "the folding trunk overflows to NaN in fp16: use fp32, or bf16 where memory or speed matters"


@dataclass
class EsmFoldOutput(EsmForProteinFoldingOutput):
    """Stock output with these differences.

    Attributes:
        plddt: `(b, n, 37)` per atom, 0..100 (stock: 0..1).
        ptm: `(b,)`, one for each sequence, padding left out (stock: one scalar for the batch).
        predicted_aligned_error: `(b, n, n)` angstrom.
        max_predicted_aligned_error: The largest value the head can give, angstrom.
        aligned_confidence_probs: Always None: it is the softmax of `ptm_logits`.
        mlm_targets: `(b, n)` true residue types at masked places, -100 elsewhere; None without a masking pattern.
        masked_lm_logits: `(b, n, v)` of the language model's own head for `masked_ids`; None without these.
        masked_lm_tokens: `(b, n)` the words that are right there: those of `input_ids`.
    """

    mlm_targets: Tensor | None = None
    masked_lm_logits: Tensor | None = None
    masked_lm_tokens: Tensor | None = None


class EsmFold(EsmForProteinFolding):
    """ESMFold with gradients into ESM-2, less memory, and confidence per sequence.

    Attributes:
        language_model_gradients: False cuts the features off as stock code does, to train the trunk alone.
        masked_lm_head: The language model's own head, once `masked_lm.attach_head` gave it; else None.
    """

    _supports_sdpa = True
    # Loading in half precision means the language model: everything after it, and the rotary frequencies, stay fp32.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012 (transformers reads a list)
        "rotary_embeddings",
        "esm_s_combine",
        "esm_s_mlp",
        "embedding",
        "trunk",
        "distogram_head",
        "ptm_head",
        "lm_head",
        "lddt_head",
    ]

    def __init__(self, config: Any) -> None:
        with without_blocks(config.esmfold_config.trunk):
            super().__init__(config)
        # Stock code halves the language model here whatever was asked for; precision is set in one place instead.
        if config.esmfold_config.fp16_esm:
            self.esm.to(self.esm_s_combine.dtype)
        self.trunk = FoldingTrunk(config.esmfold_config.trunk)
        self.language_model_gradients = True
        self.masked_lm_head: Any = None
        self.post_init()

    @property
    def default_recycles(self) -> int:
        """Passes after the first that the weights were trained with (`max_recycles` of the configuration less one)."""
        return max(1, self.config.esmfold_config.trunk.max_recycles) - 1

    def set_chunk_size(self, chunk_size: int | None) -> None:
        """Set how many rows of the pair state inference works on at once; None chooses from the length."""
        self.trunk.chunk_size = chunk_size

    def set_precision(self, *, language_model: torch.dtype = torch.float32, trunk: torch.dtype = torch.float32) -> None:
        """Choose number formats. Call before adapters are injected, whose factors stay fp32.

        Args:
            language_model: The format of ESM-2's weights and arithmetic: fp32, bf16, or fp16 (inference only).
            trunk: The format of the trunk's matrix products: fp32, or bf16 (autocast; its weights, the states between
                blocks, the structure module and the heads stay fp32).

        Raises:
            ConfigError: fp16 for the trunk, or another format.
        """
        if trunk == torch.float16:
            raise ConfigError(_FP16_TRUNK)
        if trunk not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"trunk precision {trunk} is not supported: use fp32 or bf16")
        if language_model not in (torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(f"language-model precision {language_model} is not supported: use fp32, bf16 or fp16")
        rotary = self.esm.rotary_embeddings
        frequencies = None if rotary is None else rotary.inv_freq.float()
        self.esm.to(language_model)
        if rotary is not None:
            rotary.inv_freq = frequencies
        self.trunk.autocast_dtype = None if trunk == torch.float32 else trunk

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        masking_pattern: Tensor | None = None,
        recycles: int | None = None,
        masked_ids: Tensor | None = None,
        fold: bool = True,
        **kwargs: Any,
    ) -> EsmFoldOutput:
        """Fold a batch.

        Args:
            input_ids: `(b, n)` int64 residue types in AlphaFold order (`folding.encode`), 20 = unknown.
            attention_mask: `(b, n)` bool or integer, nonzero at residues; padding may only be on the right.
                Unresolved residues are residues: they stay in, and are masked in the loss.
            position_ids: `(b, n)` int64 residue index, by default 0..n-1.
            masking_pattern: `(b, n)` bool or integer, nonzero where the residue type is hidden from the model.
            recycles: Passes after the first, 0 or more; None: `default_recycles`. Gradients flow through the last.
            masked_ids: `(b, n)` residue types of which some are hidden (21): asked of the language model's own head in
                a pass of its own, which the structure does not depend on. Needs `masked_lm_head`.
            fold: False leaves the structure out: only what `masked_ids` asks for is computed.
            kwargs: Refused, but for flags that transformers' own tools pass along.

        Returns:
            Frames, atoms, logits and confidence; see `EsmFoldOutput`.

        Raises:
            ValueError: Padding that is not on the right, negative recycles, or an unknown argument.
        """
        if torch.is_inference_mode_enabled():
            # Stock code keeps constants it makes on the first call; made here they could never be trained through.
            with torch.inference_mode(False), torch.no_grad():
                return self(
                    input_ids, attention_mask, position_ids, masking_pattern, recycles, masked_ids, fold, **kwargs
                )
        for name in kwargs.keys() - {"return_dict", "output_hidden_states", "output_attentions", "labels"}:
            raise ValueError(f"EsmFold.forward() got an unknown argument '{name}'")
        aatype = input_ids
        mask = torch.ones_like(aatype) if attention_mask is None else attention_mask.long()
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError(
                "attention_mask has a hole: pad on the right only, and mask unresolved residues in the loss"
            )
        if position_ids is None:
            position_ids = torch.arange(aatype.shape[1], device=aatype.device).expand_as(aatype)
        recycles = self.default_recycles if recycles is None else recycles
        if recycles < 0:
            raise ValueError(f"recycles must be 0 or more, got {recycles}")

        tokens = self.af2_idx_to_esm_idx(aatype, mask)
        logits = None if masked_ids is None else self.masked_lm_logits(masked_ids, mask)
        if not fold:
            return EsmFoldOutput(aatype=aatype, masked_lm_logits=logits, masked_lm_tokens=tokens)
        seen, targets = aatype, None
        if masking_pattern is not None:
            hidden = masking_pattern.bool() & mask.bool()
            seen = aatype.masked_fill(hidden, self.mask_idx)
            tokens = tokens.masked_fill(hidden, self.esm_dict_mask_idx)
            targets = aatype.masked_fill(~hidden, IGNORE_INDEX)

        features = self.esm_s_mlp(self.language_model_features(tokens))
        if self.config.esmfold_config.embed_aa:
            features = features + self.embedding(seen)
        structure = self.trunk(features, aatype, position_ids, mask.to(features.dtype), recycles)
        output = self._output(structure, aatype, mask, position_ids, targets)
        if logits is not None:
            output.masked_lm_logits, output.masked_lm_tokens = logits, tokens
        return output

    def masked_lm_logits(self, masked_ids: Tensor, mask: Tensor) -> Tensor:
        """Logits `(b, n, v)` of the language model's own head.

        Args:
            masked_ids: `(b, n)` residue types 0..20, 21 for a hidden one.
            mask: `(b, n)` int64, 1 at residues, padded on the right.
        """
        if self.masked_lm_head is None:
            raise ValueError("the model has no masked-LM head: attach one with folding.masked_lm.attach_head")
        hidden = (masked_ids == UNKNOWN + 1) & mask.bool()
        tokens = self.af2_idx_to_esm_idx(masked_ids.clamp_max(UNKNOWN), mask)
        tokens = tokens.masked_fill(hidden, self.esm_dict_mask_idx)
        state = last_hidden_state(self.esm, self._framed(tokens), self.esm_dict_padding_idx)
        return self.masked_lm_head(state[:, 1:-1], self.esm.embeddings.word_embeddings.weight)

    def _framed(self, tokens: Tensor) -> Tensor:
        """`(b, n + 2)`: tokens `(b, n)` between the start and the end word."""
        ends = tokens.new_full((tokens.shape[0], 1), self.esm_dict_padding_idx)
        framed = torch.cat([torch.full_like(ends, self.esm_dict_cls_idx), tokens, ends], dim=1)
        lengths = (framed != self.esm_dict_padding_idx).sum(1, keepdim=True)
        return framed.scatter(1, lengths, self.esm_dict_eos_idx)

    def language_model_features(self, tokens: Tensor) -> Tensor:
        """ESM-2's hidden states summed with the learnt weights: `(b, n, c)` from token ids `(b, n)` of residues."""
        config = self.config.esmfold_config
        b, n = tokens.shape
        weights = self.esm_s_combine.softmax(0)
        if config.bypass_lm or config.esm_ablate_sequence:
            return weights.new_zeros(b, n, self.esm_feats)
        framed = self._framed(tokens)
        # Whatever in ESM-2 is trained decides what is recorded. Adapters may keep their parameters elsewhere, so
        # nothing is guessed here from ESM-2's own.
        features = weighted_hidden_states(
            self.esm, framed, weights, self.esm_dict_padding_idx, gradients=self.language_model_gradients
        )
        return features[:, 1:-1]

    def _output(
        self, structure: dict[str, Tensor], aatype: Tensor, mask: Tensor, position_ids: Tensor, targets: Tensor | None
    ) -> EsmFoldOutput:
        """The heads' outputs beside the structure."""
        b, n = aatype.shape
        pair, states = structure["s_z"], structure["states"]
        distogram = self.distogram_head(pair)
        ptm_logits = self.ptm_head(pair)
        lddt_logits = self.lddt_head(states).reshape(states.shape[0], b, n, -1, self.lddt_bins)

        # An unknown residue has a backbone: that of glycine.
        atoms = atom_masks(aatype.masked_fill(aatype == UNKNOWN, GLYCINE))
        for key in ("atom14_atom_exists", "atom37_atom_exists"):
            atoms[key] = atoms[key] * mask.unsqueeze(-1)
        return EsmFoldOutput(
            **{key: value for key, value in structure.items() if key != "single"},
            **atoms,
            aatype=aatype,
            distogram_logits=(distogram + distogram.transpose(1, 2)) / 2,
            lm_logits=self.lm_head(structure["s_s"]),
            residue_index=position_ids,
            lddt_head=lddt_logits,
            plddt=confidence.plddt(lddt_logits[-1]),
            ptm_logits=ptm_logits,
            ptm=confidence.ptm(ptm_logits.detach(), mask),
            predicted_aligned_error=confidence.predicted_aligned_error(ptm_logits.detach()),
            max_predicted_aligned_error=confidence.pae_bin_centres(self.distogram_bins)[-1],
            mlm_targets=targets,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save in transformers' format under the stock architecture's name, so that other programs load it too."""
        # The head has a file of its own: other programs know of none in a folding model.
        head, self.masked_lm_head = self.masked_lm_head, None
        try:
            # transformers' "original format" gives the rotary frequencies a name with a literal asterisk.
            super().save_pretrained(save_directory, **({"save_original_format": False} | kwargs))
        finally:
            self.masked_lm_head = head
        if head is not None:
            save_head(self, Path(save_directory))
        self.config.architectures = [EsmForProteinFolding.__name__]
        self.config.save_pretrained(save_directory)
