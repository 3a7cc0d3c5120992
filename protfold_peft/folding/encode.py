"""Sequences to model input: letters to indices, chains joined by a linker, right padding.

ESMFold folds one chain. Complexes are folded as Meta's code folds them: the chains are joined by 25 glycines, and the
residue index jumps by 512 at every chain so that the trunk sees them as far apart in sequence.

Axis letters: `b` batch, `n` positions (linkers included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protfold_peft.errors import SequenceError
from protfold_peft.structure.residues import RESTYPES, sequence_to_restypes

UNKNOWN_LETTERS = "XBUOZ"
LINKER = "G" * 25
CHAIN_OFFSET = 512


@dataclass(frozen=True, eq=False)
class EncodedSequence:
    """One sequence, ready to be batched.

    Attributes:
        aatype: `(n,)` int64, AlphaFold order, 20 for unknown residues (`X B U O Z`).
        residue_index: `(n,)` int64 place along the chain, with a jump between chains.
        chain_index: `(n,)` int64 chain of every position; -1 at linkers.
    """

    aatype: Tensor
    residue_index: Tensor
    chain_index: Tensor

    def __len__(self) -> int:
        return len(self.aatype)


def encode_sequence(sequence: str) -> EncodedSequence:
    """Encode one-letter codes, `:` between chains.

    Raises:
        SequenceError: The sequence or a chain is empty, or a letter is not an amino acid (lower case, gaps and digits
            are refused here: reading FASTA is the place to clean them).
    """
    chains = sequence.split(":")
    if not all(chains):
        raise SequenceError("the sequence is empty" if len(chains) == 1 else "a chain is empty: check the ':'")
    for place, letter in enumerate(sequence, start=1):
        if letter not in RESTYPES + UNKNOWN_LETTERS + ":":
            raise SequenceError(f"letter '{letter}' at position {place} is not an amino acid code")
    letters = LINKER.join(chains)
    members: list[int] = []
    for i, chain in enumerate(chains):
        members += ([-1] * len(LINKER) if i else []) + [i] * len(chain)
    chain_index = torch.tensor(members)
    # A linker is numbered on from the chain before it, so the jump comes where the next chain starts.
    chain_or_before = torch.cummax(chain_index, dim=0).values
    return EncodedSequence(
        aatype=torch.from_numpy(sequence_to_restypes(letters)),
        residue_index=torch.arange(len(letters)) + CHAIN_OFFSET * chain_or_before,
        chain_index=chain_index,
    )


def collate(sequences: Sequence[EncodedSequence], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad on the right and stack: `input_ids`, `attention_mask`, `position_ids`, each `(b, n)` int64."""
    n = max(len(sequence) for sequence in sequences)
    batch = {key: torch.zeros(len(sequences), n, dtype=torch.int64) for key in ("input_ids", "attention_mask")}
    # Padding counts on, as it does in stock transformers; nothing reads it.
    batch["position_ids"] = torch.arange(n).repeat(len(sequences), 1)
    for row, sequence in enumerate(sequences):
        batch["input_ids"][row, : len(sequence)] = sequence.aatype
        batch["attention_mask"][row, : len(sequence)] = 1
        batch["position_ids"][row, : len(sequence)] = sequence.residue_index
    return {key: value.to(device) for key, value in batch.items()}
