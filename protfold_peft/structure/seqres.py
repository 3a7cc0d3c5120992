"""Where the residues of a chain stand in its full sequence."""

from __future__ import annotations

import numpy as np

# Costs of the alignment. A residue of another type is worse than any gap; a gap inside an intact peptide bond is worse
# than a gap elsewhere; a gap as wide as the jump of the author numbers says costs nothing.
_MISMATCH = 8.0
_GAP_IN_BOND = 5.0
_GAP = 1.0
_NO_GAP_AT_BREAK = 0.5
# Above this share of mismatches the full sequence belongs to something else.
_MOST_MISMATCHES = 0.1


def place_in_sequence(
    letters: str, full: str, numbers: np.ndarray, joined: np.ndarray, label_numbers: list[int | None]
) -> tuple[np.ndarray | None, int]:
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
        `(n,)` 0-based places and the number of residues whose letter differs there; None for the places where more
        than a tenth differ or the full sequence is too short.
    """
    n = len(letters)
    observed = np.frombuffer(letters.encode("ascii"), dtype=np.uint8)
    target = np.frombuffer(full.encode("ascii"), dtype=np.uint8)
    if all(number is not None for number in label_numbers):
        stated = np.array(label_numbers, dtype=np.int64) - 1
        if (np.diff(stated) > 0).all() and stated[0] >= 0 and stated[-1] < len(full):
            wrong = int((target[stated] != observed).sum())
            if wrong <= _MOST_MISMATCHES * n:
                return stated, wrong
    if n > len(full):
        return None, n
    places = _align(observed, target, np.diff(numbers), joined)
    wrong = int((target[places] != observed).sum())
    return (places, wrong) if wrong <= _MOST_MISMATCHES * n else (None, wrong)


def _align(observed: np.ndarray, target: np.ndarray, jumps: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """`(n,)` rising places in `target` (`(m,)`) of least cost; the first of equals."""
    n, m = len(observed), len(target)
    cost = np.where(target == observed[0], 0.0, _MISMATCH)
    came_from = np.zeros((n, m), dtype=np.int32)
    everywhere = np.arange(m)
    for i in range(1, n):
        jump = int(jumps[i - 1])
        whole = bool(joined[i])
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
