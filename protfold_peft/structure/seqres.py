"""Where the residues of a chain stand in its full sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Costs of the alignment. A residue of another type is worse than any gap; a gap inside an intact peptide bond is worse
# than a gap elsewhere; a gap as wide as the jump of the author numbers says costs nothing.
_MISMATCH = 8.0
_GAP_IN_BOND = 5.0
_GAP = 1.0
_NO_GAP_AT_BREAK = 0.5
# Above this share of mismatches the full sequence belongs to something else.
_MOST_MISMATCHES = 0.1


@dataclass(frozen=True, eq=False)
class Placement:
    """Where residues stand in a full sequence.

    Attributes:
        places: `(n,)` 0-based, rising.
        n_wrong: How many residues differ from the full sequence there.
        n_open: How many residues fit equally well elsewhere (repeats); the first fit is taken.
    """

    places: np.ndarray
    n_wrong: int
    n_open: int = 0


def place_in_sequence(
    letters: str, full: str, numbers: np.ndarray, joined: np.ndarray, label_numbers: list[int | None]
) -> Placement | None:
    """Places of the residues of a chain in the full sequence.

    mmCIF says it (`label_seq_id`); otherwise the observed residues are aligned as a subsequence of the full sequence,
    exactly: every residue gets a place, places rise, gaps go where bonds are broken and numbers jump.

    Args:
        letters: `n` observed one-letter codes.
        full: The full sequence.
        numbers: `(n,)` author residue numbers.
        joined: `(n,)` bool, the residue is bonded to the one before.
        label_numbers: `n` 1-based places where the file states them.

    Returns:
        None where more than a tenth of the residues differ or the full sequence is too short: it is of something else.
    """
    n, m = len(letters), len(full)
    most_wrong = _MOST_MISMATCHES * n
    observed = np.frombuffer(letters.encode("ascii"), dtype=np.uint8)
    target = np.frombuffer(full.encode("ascii"), dtype=np.uint8)
    if all(number is not None for number in label_numbers):
        stated = np.array(label_numbers, dtype=np.int64) - 1
        if (np.diff(stated) > 0).all() and stated[0] >= 0 and stated[-1] < m:
            wrong = int((target[stated] != observed).sum())
            if wrong <= most_wrong:
                return Placement(stated, wrong)
    if n > m:
        return None
    jumps = np.diff(numbers)
    places = _align(observed, target, jumps, joined[1:])
    wrong = int((target[places] != observed).sum())
    if wrong > most_wrong:
        return None
    # From the other end the same costs break ties the other way: where both agree there is no other fit as good.
    last = m - 1 - _align(observed[::-1], target[::-1], jumps[::-1], joined[:0:-1])[::-1]
    return Placement(places, wrong, int((places != last).sum()))


def _align(observed: np.ndarray, target: np.ndarray, jumps: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """`(n,)` rising places in `target` `(m,)` of least cost; the first of equals.

    `jumps` and `joined`, `(n - 1,)`, say of each pair of neighbours how far their numbers are apart and whether they
    are bonded.
    """
    n, m = len(observed), len(target)
    cost = np.where(target == observed[0], 0.0, _MISMATCH)
    came_from = np.zeros((n, m), dtype=np.int32)
    everywhere = np.arange(m)
    for i in range(1, n):
        jump = int(jumps[i - 1])
        whole = bool(joined[i - 1])
        options = [
            (1, 0.0 if whole or jump == 1 else _NO_GAP_AT_BREAK),
            (jump, 0.0 if jump == 1 or not whole else _GAP_IN_BOND),
        ]
        # A gap of any width: the cheapest place at least two before.
        lowest = np.minimum.accumulate(cost)
        first_lowest = _first_of_runs(lowest)
        step = np.full(m, np.inf)
        origin = np.zeros(m, dtype=np.int64)
        step[2:] = lowest[:-2] + (_GAP_IN_BOND if whole else _GAP)
        origin[2:] = first_lowest[:-2]
        for width, price in options:
            if 1 <= width < m:
                direct = np.full(m, np.inf)
                direct[width:] = cost[:-width] + price
                better = direct <= step
                step = np.where(better, direct, step)
                origin = np.where(better, everywhere - width, origin)
        came_from[i] = origin
        cost = step + np.where(target == observed[i], 0.0, _MISMATCH)
    places = np.empty(n, dtype=np.int64)
    places[-1] = int(np.argmin(cost))
    for i in range(n - 1, 0, -1):
        places[i - 1] = came_from[i, places[i]]
    return places


def _first_of_runs(lowest: np.ndarray) -> np.ndarray:
    """For a falling staircase, the place where each step begins."""
    starts = np.concatenate([[True], lowest[1:] < lowest[:-1]])
    return np.maximum.accumulate(np.where(starts, np.arange(len(lowest)), 0))
