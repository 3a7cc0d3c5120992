"""Which residue of a model stands for which residue of the reference: by number where names agree, else by alignment.

A wrong match gives a score that looks like any other, so a match is made only on evidence: the names at equal numbers,
or an alignment that two unrelated sequences would not give. Everything else is refused, with what was found.

Axis letters: `n` residues of the reference, `m` residues of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from Bio.Align import PairwiseAligner, substitution_matrices

from protfold_peft.errors import StructureError
from protfold_peft.structure.residues import ATOM_INDEX
from protfold_peft.structure.types import Chain

NUMBER = "number"
ALIGNMENT = "alignment"
AUTO = "auto"
WAYS = (AUTO, NUMBER, ALIGNMENT)

# Numbers are believed where at least this fraction of the names at equal numbers agree: point mutations pass, a
# numbering shifted by one does not (unrelated places agree in 6 % of cases, repeats in a third).
NUMBER_AGREEMENT = 0.9
# ... and where they pair at least this fraction of the shorter chain: a few equal names may be chance.
NUMBER_OVERLAP = 0.5

# An alignment is believed from this identity of its pairs on ...
MIN_IDENTITY = 0.4
# ... and if two random sequences would give its score less often than this. Of the 4,186 pairs of CASP14 domains only
# repeats of one protein (T1091-D3 and -D4, 45 % identity) and overlapping domains (T1061-D0) pass both.
MAX_EXPECTATION = 1e-3

# BLOSUM62, and gaps that cost hardly more when they are long: a loop of fifty residues without coordinates is as usual
# as one of five, and the few residues before it must not be given up for it.
_GAP_OPEN, _GAP_EXTEND = -11.0, -0.1
# Whether sequences are related is told by the score under the gap costs of BLAST, for which the statistics are known
# (Altschul & Gish, Methods Enzymol. 266 (1996) 460): expectation = K m n exp(-lambda score).
_BLAST_EXTEND = -1.0
_LAMBDA, _K = 0.267, 0.041

# Residues whose CA are farther apart than this (angstrom) are not neighbours in the chain.
_CA_STEP = 4.4


@dataclass(frozen=True, eq=False)
class Correspondence:
    """The residues of a model that stand for those of a reference.

    Attributes:
        model_index: `(n,)` row in the model of every residue of the reference, -1 where it has none.
        matched_by: `number` or `alignment`.
        identity: Fraction of the matched residues, of those whose names both are known, with the same name; NaN where
            no two names can be compared.
        n_model: `m`, residues of the model.
    """

    model_index: np.ndarray
    matched_by: str
    identity: float
    n_model: int

    @property
    def n_matched(self) -> int:
        """How many of the reference's residues have a partner."""
        return int((self.model_index >= 0).sum())

    @property
    def coverage(self) -> float:
        """Fraction of the reference's residues that have a partner."""
        return self.n_matched / len(self.model_index)


def correspond(
    model: Chain, reference: Chain, *, way: str = AUTO, min_identity: float = MIN_IDENTITY
) -> Correspondence:
    """Match a chain of a model to a chain of the reference.

    By number means by residue number and insertion code. `auto` takes it where the two chains share numbers for at
    least half of the shorter chain, and nine of ten names at shared numbers agree (`X`, an unknown residue, agrees and
    disagrees with nothing; two unknown residues of the same three-letter name agree). Otherwise the sequences are
    aligned: globally, gaps at the ends free, BLOSUM62, 11 for a gap of one and 0.1 for each further one. Where a gap
    could stand in several places, it is put where the shorter chain is broken or its numbers jump.

    Args:
        model: The chain that is judged.
        reference: The chain it is judged by.
        way: `auto`, or `number` or `alignment` to have it so. `number` takes any names: the identity tells.
        min_identity: Identity from which on an alignment is believed, 0..1.

    Raises:
        StructureError: No number is shared (`number`), or the sequences are not those of related chains: the identity
            of the alignment is below `min_identity`, or as good a score is to be expected of random sequences.
        ValueError: `way` is none of the three.
    """
    if way not in WAYS:
        raise ValueError(f"way is '{way}': use {', '.join(WAYS)}")
    by_number = _by_number(model, reference)
    if way == NUMBER:
        if not by_number.n_matched:
            raise StructureError(
                f"no residue number of the model's {_label(model)} ({_span(model)}) is one of the reference's "
                f"{_label(reference)} ({_span(reference)}); match by alignment"
            )
        return by_number
    if way == AUTO and _numbers_hold(by_number, model, reference):
        return by_number
    return _by_alignment(model, reference, by_number, min_identity)


def _by_number(model: Chain, reference: Chain) -> Correspondence:
    rows = {place: row for row, place in enumerate(_places(model))}
    index = np.array([rows.get(place, -1) for place in _places(reference)], dtype=np.int64)
    return _correspondence(index, NUMBER, model, reference)


def _places(chain: Chain) -> list[tuple[int, str]]:
    return [(int(number), code) for number, code in zip(chain.residue_numbers, chain.insertion_codes, strict=True)]


def _numbers_hold(found: Correspondence, model: Chain, reference: Chain) -> bool:
    """Whether numbers alone may be believed; unknown names (identity NaN) speak against it."""
    enough = found.n_matched >= NUMBER_OVERLAP * min(len(model), len(reference))
    return enough and found.n_matched > 0 and found.identity >= NUMBER_AGREEMENT


def _by_alignment(model: Chain, reference: Chain, by_number: Correspondence, min_identity: float) -> Correspondence:
    """Residues matched by alignment, if the sequences are alike beyond chance.

    Raises:
        StructureError: They are not.
    """
    strict, score = _align(model, reference, _BLAST_EXTEND)
    expectation = _K * len(model) * len(reference) * math.exp(-_LAMBDA * score)
    # Short peptides cannot reach significance; two that are equal in full need none.
    same = model.sequence == reference.sequence and set(model.sequence) != {"X"}
    if same or (strict.identity >= min_identity and expectation <= MAX_EXPECTATION):
        found, _ = _align(model, reference, _GAP_EXTEND)
        _settle_gaps(found.model_index, model, reference)
        return _correspondence(found.model_index, ALIGNMENT, model, reference)
    numbers = ""
    if by_number.n_matched:
        numbers = f"; by number {by_number.n_matched} residues match, {_percent(by_number.identity)} of them by name"
    raise StructureError(
        f"the model's {_label(model)} ({len(model)} residues) does not match the reference's {_label(reference)} "
        f"({len(reference)} residues): {_percent(strict.identity)} identity over {strict.n_matched} aligned residues"
        f"{numbers}; compare the right chains, or force it with --match number or a lower --min-identity"
    )


def _align(model: Chain, reference: Chain, gap_extend: float) -> tuple[Correspondence, float]:
    """The first of the best alignments, and its score."""
    letters = _plain(model.sequence), _plain(reference.sequence)
    alignment = _aligner(gap_extend).align(*letters)[0]
    index = np.full(len(reference), -1, dtype=np.int64)
    for (model_start, model_end), (start, end) in zip(*alignment.aligned, strict=True):
        index[start:end] = np.arange(model_start, model_end)
    return _correspondence(index, ALIGNMENT, model, reference), float(alignment.score)


@cache
def _aligner(gap_extend: float) -> PairwiseAligner:
    matrix = substitution_matrices.load("BLOSUM62").select("ARNDCQEGHILKMFPSTWYVX")
    # An unknown residue is evidence of nothing.
    matrix["X", :] = 0.0
    matrix[:, "X"] = 0.0
    aligner = PairwiseAligner(mode="global", substitution_matrix=matrix)
    aligner.open_gap_score = _GAP_OPEN
    aligner.extend_gap_score = gap_extend
    aligner.end_gap_score = 0.0
    return aligner


def _plain(sequence: str) -> str:
    """The sequence in the aligner's letters: anything but the twenty is `X`."""
    return "".join(letter if letter in "ARNDCQEGHILKMFPSTWYV" else "X" for letter in sequence)


def _correspondence(index: np.ndarray, way: str, model: Chain, reference: Chain) -> Correspondence:
    agree = compared = 0
    for row, partner in enumerate(index):
        if partner < 0:
            continue
        one, other = model.sequence[partner], reference.sequence[row]
        if one == other == "X":
            same_name = model.residue_names[partner] == reference.residue_names[row]
            agree += same_name
            compared += same_name
        elif "X" not in (one, other):
            agree += one == other
            compared += 1
    return Correspondence(index, way, agree / compared if compared else math.nan, len(model))


def _settle_gaps(index: np.ndarray, model: Chain, reference: Chain) -> None:
    """Move gaps, in place, to where the chain that lacks the residues is broken, as far as the letters allow.

    `AGG--T` and `AG--GT` score the same; only the coordinates and numbers tell which G is missing.
    """
    rows = np.flatnonzero(index >= 0)
    for place in range(len(rows) - 1):
        row, after = int(rows[place]), int(rows[place + 1])
        model_skips, reference_skips = int(index[after] - index[row] - 1), after - row - 1
        if (model_skips > 0) == (reference_skips > 0):
            continue
        if reference_skips:
            _settle_missing_in_model(index, rows, place, model, reference)
        else:
            _settle_missing_in_reference(index, rows, place, model, reference)


def _settle_missing_in_model(index: np.ndarray, rows: np.ndarray, place: int, model: Chain, reference: Chain) -> None:
    """One gap after pair `place`: residues of the reference that the model lacks."""
    row, after = int(rows[place]), int(rows[place + 1])
    skipped = after - row - 1
    cut = int(index[row])
    shifts = _shifts(
        model.sequence, cut, reference.sequence, row, skipped, _run(rows, index, place, -1), _run(rows, index, place, 1)
    )
    shift = max(shifts, key=lambda k: (_evidence(model, cut + k, skipped), -abs(k)))
    if shift < 0:
        index[row + shift + 1 : row + 1] = -1
        index[after + shift : after] = np.arange(cut + shift + 1, cut + 1)
    elif shift > 0:
        index[after : after + shift] = -1
        index[row + 1 : row + shift + 1] = np.arange(cut + 1, cut + shift + 1)
    rows[:] = np.flatnonzero(index >= 0)


def _settle_missing_in_reference(
    index: np.ndarray, rows: np.ndarray, place: int, model: Chain, reference: Chain
) -> None:
    """One gap after pair `place`: residues of the model that the reference lacks."""
    row = int(rows[place])
    cut = int(index[row])
    skipped = int(index[row + 1]) - cut - 1
    shifts = _shifts(
        reference.sequence, row, model.sequence, cut, skipped, _run(rows, index, place, -1), _run(rows, index, place, 1)
    )
    shift = max(shifts, key=lambda k: (_evidence(reference, row + k, skipped), -abs(k)))
    if shift < 0:
        index[row + shift + 1 : row + 1] += skipped
    elif shift > 0:
        index[row + 1 : row + shift + 1] -= skipped


def _run(rows: np.ndarray, index: np.ndarray, place: int, step: int) -> int:
    """Pairs of the ungapped block before (`step` -1) or after (1) the gap behind pair `place`."""
    at = place if step < 0 else place + 1
    length = 1
    while 0 <= at + step < len(rows) and rows[at + step] - rows[at] == step == index[rows[at + step]] - index[rows[at]]:
        at += step
        length += 1
    return length


def _shifts(short: str, cut: int, long: str, row: int, skipped: int, before: int, after: int) -> list[int]:
    """How far the gap may move (residues, negative to the front) without changing a matched letter.

    `short` is joined after `cut`, where `long` has `skipped` residues more after `row`. At least one pair of each
    neighbouring block stays.
    """
    shifts = [0]
    for k in range(1, before):
        if short[cut - k + 1] != long[row + skipped - k + 1]:
            break
        shifts.append(-k)
    for k in range(1, after):
        if short[cut + k] != long[row + k]:
            break
        shifts.append(k)
    return shifts


def _evidence(chain: Chain, row: int, skipped: int) -> int:
    """How much speaks for `skipped` residues missing in `chain` after `row`: a break counts most, then the numbers."""
    ca = ATOM_INDEX["CA"]
    jump = int(chain.residue_numbers[row + 1] - chain.residue_numbers[row]) - 1
    both = chain.atom_mask[row, ca] and chain.atom_mask[row + 1, ca]
    step = np.linalg.norm(chain.atom_positions[row + 1, ca] - chain.atom_positions[row, ca])
    return 4 * bool(both and step > _CA_STEP) + 2 * (jump == skipped) + (jump > 0)


def _label(chain: Chain) -> str:
    return f"chain {chain.id}" if chain.id.strip() else "chain without id"


def _span(chain: Chain) -> str:
    return f"{chain.residue_numbers[0]}..{chain.residue_numbers[-1]}"


def _percent(fraction: float) -> str:
    return "an unknown part" if math.isnan(fraction) else f"{100 * fraction:.0f} %"
