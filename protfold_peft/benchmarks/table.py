"""The rows of a benchmark as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

TITLES = {
    "predict": "Prediction, one sequence, no recycles",
    "finetune": "A fine-tuning step, one sample, no recycles",
    "scores": "Scoring, 256 pairs at a time",
}
# Which rows of a part and length the others are compared with: the fastest of these.
_YARDSTICKS = {
    "predict": ("stock, whole", "stock, chunks of 64"),
    "finetune": ("plain",),
}
_PEERS = {"TM-score, ours": "tmtools", "CA lDDT, ours": "biotite"}
_HEADS = {
    "predict": ("residues/s", "speed", "activations", "ratio", "peak"),
    "finetune": ("s a step", "speed", "activations", "ratio", "peak"),
    "scores": ("pairs/s", "speed", "memory", "", ""),
}


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for every part that has rows.

    Speed is how many times faster than the yardstick (stock's fastest setting, the plain route, the program beside);
    the ratio is that of activations to the yardstick's. Both are empty where the yardstick could not be measured.
    """
    made = []
    for part, title in TITLES.items():
        own = [row for row in rows if row["part"] == part]
        if not own:
            continue
        table = Table(title=title, title_justify="left")
        table.add_column("length" if part != "finetune" else "crop", justify="right")
        table.add_column("")
        for head in _HEADS[part]:
            if head:
                table.add_column(head, justify="right")
        for line in lines(part, own):
            table.add_row(*line)
        made.append(table)
    return made


def lines(part: str, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a part's table, by length."""
    found = []
    for length in sorted({row["length"] for row in rows}):
        for row in [row for row in rows if row["length"] == length]:
            cells = [str(length), row["route"]]
            width = len([head for head in _HEADS[part] if head])
            found.append(cells + (_cells(part, row, rows) if "seconds" in row else [row["error"]] + [""] * (width - 1)))
    return found


def _cells(part: str, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    yardstick = _yardstick(part, row, rows)
    if part == "scores":
        rate = row["pairs_per_second"]
        speed = f"{rate / yardstick['pairs_per_second']:.1f}x" if yardstick else ""
        return [f"{rate:,.0f}", speed, _size(row["activations"])]
    speed = f"{yardstick['seconds'] / row['seconds']:.2f}x" if yardstick else ""
    ratio = ""
    if yardstick and yardstick["activations"] and row["activations"] is not None:
        ratio = f"{row['activations'] / yardstick['activations']:.2f}x"
    first = f"{row['residues_per_second']:,.1f}" if part == "predict" else f"{row['seconds']:.3f}"
    return [first, speed, _size(row["activations"]), ratio, _size(row["peak"])]


def _yardstick(part: str, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    names = _YARDSTICKS.get(part) or (_PEERS.get(row["route"]),)
    there = [one for one in rows if one["route"] in names and one["length"] == row["length"] and "seconds" in one]
    return min(there, key=lambda one: one["seconds"], default=None)


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
