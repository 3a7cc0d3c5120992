"""What it means that two sequences resemble each other: one local alignment, its identity, coverage and E-value.

Defined as BLAST and MMseqs2 count them, but for the coverage, which is of the **shorter** sequence: a domain that also
stands inside a longer chain is then found, where the longer one's coverage would hide it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from Bio.Align import PairwiseAligner, substitution_matrices

# BLAST's costs for BLOSUM62: 11 for a gap and 1 for each residue of it, and the constants of its statistics for them.
_OPEN, _EXTEND = -12.0, -1.0
_LAMBDA, _K = 0.267, 0.041
# A likeness expected by chance less often than this, in a search of the whole set. Nothing is taken off the lengths for
# alignments that would run over an end: for short chains BLAST and MMseqs2, which do so, say 1e-3 where this says 1e-2.
MAX_EVALUE = 1e-2
# Short sequences reach no low E-value even where they are the same: from here on likeness needs none.
SURE_IDENTITY, SURE_COVERAGE = 0.9, 0.9

_UNKNOWN = ord("X")
# Letters that BLOSUM62 does not have.
_ALIASES = str.maketrans("UOJ", "CKL")


@dataclass(frozen=True)
class Match:
    """How two sequences align.

    Attributes:
        identity: Identical residues among the columns of the alignment, gaps counted, 0..1; `X` is like nothing.
        coverage: From the first to the last aligned residue of the shorter sequence, by its length, 0..1.
        evalue: How many alignments as good chance gives in a search of the whole set.
    """

    identity: float
    coverage: float
    evalue: float


@dataclass(frozen=True)
class Likeness:
    """From where on two sequences resemble each other.

    Attributes:
        identity: Lowest identity, 0..1.
        coverage: Lowest coverage of the shorter sequence, 0..1.
    """

    identity: float = 0.3
    coverage: float = 0.5

    def holds(self, match: Match) -> bool:
        """Identity and coverage suffice, and chance does not explain them."""
        if match.identity < self.identity or match.coverage < self.coverage:
            return False
        sure = match.identity >= SURE_IDENTITY and match.coverage >= SURE_COVERAGE
        return sure or match.evalue <= MAX_EVALUE


def align(one: str, other: str, *, searched: int, likeness: Likeness | None = None) -> Match | None:
    """The best local alignment of two sequences.

    Args:
        one: The query.
        other: The target.
        searched: Residues of all targets, for the E-value.
        likeness: Leave off early, with None, where this cannot hold.

    Returns:
        None where nothing aligns, or the likeness does not hold.
    """
    one, other = one.translate(_ALIASES), other.translate(_ALIASES)
    if not one or not other:
        return None
    aligner = _aligner()
    shorter = min(len(one), len(other))
    score = aligner.score(one, other)
    evalue = _K * len(one) * searched * float(np.exp(-_LAMBDA * score))
    # A chain of the surest identity scores at least 3 for each residue that it matches.
    hopeless = likeness is not None and evalue > MAX_EVALUE and score < 3 * SURE_COVERAGE * SURE_IDENTITY * shorter
    if score <= 0 or hopeless:
        return None
    a, b = np.frombuffer(one.encode("ascii"), np.uint8), np.frombuffer(other.encode("ascii"), np.uint8)
    blocks_one, blocks_other = aligner.align(one, other)[0].aligned
    same = 0
    pairs = 0
    for (start, stop), (start_other, stop_other) in zip(blocks_one, blocks_other):
        left, right = a[start:stop], b[start_other:stop_other]
        same += int(((left == right) & (left != _UNKNOWN)).sum())
        pairs += stop - start
    span_one = int(blocks_one[-1][1] - blocks_one[0][0])
    span_other = int(blocks_other[-1][1] - blocks_other[0][0])
    columns = span_one + span_other - int(pairs)
    spans = [span for span, sequence in ((span_one, one), (span_other, other)) if len(sequence) == shorter]
    match = Match(identity=same / columns, coverage=max(spans) / shorter, evalue=evalue)
    return match if likeness is None or likeness.holds(match) else None


@cache
def _aligner() -> PairwiseAligner:
    aligner = PairwiseAligner(mode="local", open_gap_score=_OPEN, extend_gap_score=_EXTEND)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    return aligner
