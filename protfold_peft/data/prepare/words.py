"""Which sequences may resemble each other: similar words on nearby diagonals, as BLAST seeds its search.

Two positions hit each other where their words of three residues score 11 or more by BLOSUM62. Hits of related
sequences gather on a few diagonals (place in one minus place in the other), chance hits are spread over all. What
passes is only a candidate: `alignment` judges it.

Source: Altschul et al., Nucleic Acids Res. 25, 3389 (1997), word size and threshold; the count over a band of
diagonals takes the place of their two-hit rule, so that it can be done for a whole set at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from Bio.Align import substitution_matrices

ALPHABET = "ACDEFGHIKLMNPQRSTVWY"
WORD = 3
# BLAST's threshold for words of three under BLOSUM62.
THRESHOLD = 11
# Diagonals counted together: a gap moves an alignment to a diagonal nearby.
BAND = 8
# A target is a candidate where its best band holds this many standard deviations of chance hits above their mean.
DEVIATIONS = 2.5

# Selenocysteine and pyrrolysine count as what they replace; B, J, Z and X match nothing here.
_ALIASES = str.maketrans("UO", "CK")


class WordIndex:
    """The words of a set of sequences, to be asked which of them share hits with a query.

    Args:
        sequences: `t` upper-case sequences, the targets.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self.lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        codes = [words(sequence) for sequence in sequences]
        owner = np.repeat(np.arange(len(sequences)), [len(code) for code in codes])
        place = np.concatenate([start + np.arange(len(code)) for start, code in zip(self.starts, codes)] or [[]])
        code = np.concatenate([*codes, np.zeros(0, dtype=np.int64)])
        known = code >= 0
        order = np.argsort(code[known], kind="stable")
        # Of each word in turn: where it stands in the concatenated targets, and in which target.
        self._place = place[known][order].astype(np.int64)
        self._owner = owner[known][order]
        self._first = np.searchsorted(code[known][order], np.arange(len(ALPHABET) ** WORD + 1))

    def candidates(self, query: str) -> np.ndarray:
        """Indices of the targets that may resemble `query`, rising."""
        scores, expected = self.scores(query)
        return np.flatnonzero(scores > expected + DEVIATIONS * np.sqrt(expected) + 1)

    def scores(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        """`(t,)` hits in the best band of every target, and `(t,)` how many chance puts into a band."""
        first, neighbours = neighbourhoods()
        code = words(query)
        at = np.flatnonzero(code >= 0)
        counts = first[code[at] + 1] - first[code[at]]
        near = neighbours[_ranges(first[code[at]], counts)]
        offset = np.repeat(at, counts)
        counts = self._first[near + 1] - self._first[near]
        hits = _ranges(self._first[near], counts)
        offset = np.repeat(offset, counts)
        # Every target has its own stretch of diagonals, `length + len(query)` of them, and a band's width to spare.
        room = len(query) + BAND
        owner = self._owner[hits]
        diagonal = self._place[hits] - offset + len(query) + owner * room
        starts = self.starts + np.arange(len(self.starts)) * room
        total = int(self.lengths.sum()) + len(self.starts) * room
        on_diagonal = np.bincount(diagonal, minlength=total)
        sums = np.concatenate([[0], np.cumsum(on_diagonal)])
        band = sums[BAND:] - sums[:-BAND]
        best = np.maximum.reduceat(np.concatenate([band, np.zeros(BAND - 1, dtype=band.dtype)]), starts)
        per_target = np.bincount(owner, minlength=len(self.starts))
        diagonals = np.maximum(self.lengths + len(query), 1)
        # The longest diagonals hold more of the hits than the mean one: the shorter length of the longer product.
        longest = np.minimum(self.lengths, len(query)) * diagonals / np.maximum(self.lengths * len(query), 1)
        return best, per_target * BAND / diagonals * longest


def words(sequence: str) -> np.ndarray:
    """`(n - 2,)` numbers of the words of a sequence, -1 where one has a letter that is no amino acid."""
    letters = np.array([_NUMBER.get(letter, -1) for letter in sequence.translate(_ALIASES)], dtype=np.int64)
    n = len(letters) - WORD + 1
    if n <= 0:
        return np.zeros(0, dtype=np.int64)
    parts = np.stack([letters[i : i + n] for i in range(WORD)])
    code = (parts * (len(ALPHABET) ** np.arange(WORD - 1, -1, -1))[:, None]).sum(axis=0)
    return np.where((parts < 0).any(axis=0), -1, code)


@cache
def neighbourhoods() -> tuple[np.ndarray, np.ndarray]:
    """The similar words of every word: `neighbours[first[w]:first[w + 1]]` are those of word `w`."""
    table = substitution_matrices.load("BLOSUM62")
    matrix = np.array([[table[a, b] for b in ALPHABET] for a in ALPHABET]).astype(np.int16)
    n = len(ALPHABET)
    pairs = (matrix[:, None, :, None] + matrix[None, :, None, :]).reshape(n * n, n * n)
    first = [0]
    neighbours = []
    for head in range(n * n):
        for last in range(n):
            near = np.flatnonzero((pairs[head][:, None] + matrix[last][None, :]).reshape(-1) >= THRESHOLD)
            neighbours.append(near)
            first.append(first[-1] + len(near))
    return np.array(first), np.concatenate(neighbours)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The concatenation of `start, start + 1, ...` of every count."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


_NUMBER = {letter: i for i, letter in enumerate(ALPHABET)}
