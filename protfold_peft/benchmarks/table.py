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


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as lines of Markdown."""
    made = []
    for part, title in TITLES.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            heads = ["length" if part != "finetune" else "crop", "", *filter(None, _HEADS[part])]
            made += [f"{title}:", "", _joined(heads), _joined(["---"] * len(heads))]
            made += [*map(_joined, lines(part, own)), ""]
    return made


def aims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The aims for ESMFold's true size on one data-centre GPU, each met, missed by how much, or not measured."""
    told = []
    for length in (256, 512):
        ours = _row(rows, "predict", "ours", length)
        stock = _yardstick("predict", ours, rows) if ours else None
        where = f"prediction at {length} residues"
        told.append(_aim(f"{where}: 3 times stock's speed", _ratio(stock, ours, "seconds"), 3))
        for what in ("peak", "activations"):
            told.append(_aim(f"{where}: half stock's {what}", _ratio(ours, stock, what), 0.5, below=True))
    ours = _row(rows, "finetune", "ours, LoRTA", 256)
    for yardstick in ("plain", "plain, trunk checkpointed"):
        ratio = _ratio(ours, _row(rows, "finetune", yardstick, 256), "seconds")
        told.append(_aim(f"a step at crop 256: half the time of '{yardstick}'", ratio, 0.5, below=True))
    for crop, route, limit in (
        (256, "ours, LoRTA, all twice", 12),
        (256, "ours, LoRTA, all twice, offload", 12),
        (256, "ours, LoRTA, all twice, 4 bits", 8),
        (384, "ours, LoRTA, 24 GB", 24),
    ):
        row = _row(rows, "finetune", route, crop)
        size = row["peak"] / 1e9 if row else None
        told.append(_aim(f"a step at crop {crop}, '{route}': within {limit} GB", size, limit, below=True))
    return told


def _ratio(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None, what: str) -> float | None:
    return one[what] / other[what] if one and other else None


def _row(rows: Sequence[Mapping[str, Any]], part: str, route: str, length: int) -> Mapping[str, Any] | None:
    wanted = (part, route, length)
    found = [row for row in rows if (row["part"], row["route"], row["length"]) == wanted and "seconds" in row]
    return found[0] if found else None


def _aim(what: str, value: float | None, aim: float, *, below: bool = False) -> str:
    if value is None:
        return f"{what}: not measured"
    met = value <= aim if below else value >= aim
    return f"{what}: {'met' if met else 'missed'}, {value:.2f}"


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
