"""Structure files made for a sequence, of which everything is known: residues, gaps, resolution, date."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from protfold_peft.structure.residues import ONE_TO_THREE

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
# Percent of each in proteins (Robinson and Robinson 1991), which the statistics of alignments are for: where all are
# as likely, W and C, which score highest, stand far too often.
_PERCENT = (7.8, 1.9, 5.4, 6.3, 3.9, 7.4, 2.2, 5.1, 5.7, 9.0, 2.2, 4.5, 5.2, 4.3, 5.1, 7.1, 5.8, 6.4, 1.3, 3.2)


def random_sequence(n: int, seed: int) -> str:
    """`n` amino acids, as often as in proteins."""
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), n, p=np.array(_PERCENT) / sum(_PERCENT)))


def mutated(sequence: str, identity: float, seed: int) -> str:
    """The sequence with `1 - identity` of its residues, rounded, spread evenly and replaced by others."""
    rng = np.random.default_rng(seed)
    letters = list(sequence)
    n_changed = round((1 - identity) * len(sequence))
    for place in np.linspace(0, len(sequence) - 1, n_changed).round().astype(int):
        letters[place] = rng.choice([letter for letter in LETTERS if letter != letters[place]])
    return "".join(letters)


def pdb_text(
    *sequences: str,
    missing: Collection[int] = (),
    seqres: bool = True,
    resolution: float | None = None,
    date: str | None = None,
) -> str:
    """A PDB file of a chain for every sequence (A, B, ...), N, CA and C on a zigzag.

    `missing` are 0-based places without coordinates, in every chain; `date` is as in the file, `07-MAR-19`.
    """
    lines = []
    if date is not None:
        lines.append(f"REVDAT   1   {date} 1ABC    0")
    if resolution is not None:
        lines.append(f"REMARK   2 RESOLUTION. {resolution:7.2f} ANGSTROMS.")
    for chain, sequence in zip("ABCDEFGH", sequences):
        for start in range(0, len(sequence) if seqres else 0, 13):
            names = " ".join(ONE_TO_THREE[letter] for letter in sequence[start : start + 13])
            lines.append(f"SEQRES {start // 13 + 1:3d} {chain} {len(sequence):4d}  {names}")
    serial = 0
    for number, (chain, sequence) in enumerate(zip("ABCDEFGH", sequences)):
        for i, letter in enumerate(sequence):
            if i in missing:
                continue
            for name, shift in (("N", -1.2), ("CA", 0.0), ("C", 1.25)):
                serial += 1
                x, y = 3.7 * i + shift, 0.8 * ((i + (name == "CA")) % 2) + 30 * number
                lines.append(
                    f"ATOM  {serial % 100000:5d}  {name:<3s} {ONE_TO_THREE[letter]} {chain}{i + 1:4d}    "
                    f"{x:8.3f}{y:8.3f}{0.1:8.3f}  1.00  0.00           {name[0]}"
                )
        lines.append("TER")
    return "\n".join([*lines, "END", ""])
