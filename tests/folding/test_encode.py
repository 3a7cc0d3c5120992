"""Sequences to model input."""

from __future__ import annotations

import pytest
import torch
from transformers.models.esm.openfold_utils import residue_constants

from protfold_peft.errors import SequenceError
from protfold_peft.folding.encode import collate, encode_sequence


def test_indices_are_alphafolds() -> None:
    letters = "ARNDCQEGHILKMFPSTWYVX"
    wanted = [residue_constants.restype_order_with_x[letter] for letter in letters]
    assert encode_sequence(letters).aatype.tolist() == wanted
    assert encode_sequence("ABUOZX").aatype.tolist() == [0, 20, 20, 20, 20, 20]


def test_chains_are_joined_as_meta_joins_them() -> None:
    encoded = encode_sequence("MK:LVW:AC")
    assert len(encoded) == 2 + 25 + 3 + 25 + 2
    assert encoded.aatype[2:27].tolist() == [7] * 25  # glycine
    assert encoded.chain_index.tolist() == [0, 0] + [-1] * 25 + [1] * 3 + [-1] * 25 + [2] * 2
    # Meta: residues and their following linker of chain i are shifted by 512 i.
    wanted = [i + 512 * ((i >= 27) + (i >= 55)) for i in range(57)]
    assert encoded.residue_index.tolist() == wanted


@pytest.mark.parametrize(
    ("sequence", "problem"),
    [
        ("", "empty"),
        ("MK::A", "chain is empty"),
        (":MK", "chain is empty"),
        ("MK1A", "'1' at position 3"),
        ("mk", "'m'"),
    ],
)
def test_what_is_no_sequence_is_refused(sequence, problem) -> None:
    with pytest.raises(SequenceError, match=problem):
        encode_sequence(sequence)


def test_padding_is_on_the_right() -> None:
    batch = collate([encode_sequence("MKV"), encode_sequence("W")])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"][1].tolist() == [17, 0, 0]
    assert torch.equal(batch["position_ids"], torch.arange(3).repeat(2, 1))
