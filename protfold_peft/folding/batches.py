"""Which records are folded together, and which shard of a job array folds which batch.

Padding a sequence changes the last digits of its result, so batches depend on the complete input and on
`max_tokens` alone: not on what is finished already, nor on the number of shards. Any run then gives the same files.
"""

from __future__ import annotations

from collections.abc import Sequence

from protfold_peft.folding.encode import LINKER
from protfold_peft.folding.types import Record

Batch = tuple[Record, ...]

# Padding of a record, as a fraction of its batch's length; short records, whose time is mostly overhead, may have more.
MAX_PADDING = 0.25
MAX_PADDING_SHORT = 16


def n_tokens(record: Record) -> int:
    """Positions that a record takes in the model: its residues, and the linkers between its chains."""
    return len(record) + len(LINKER) * (len(record.chains) - 1)


def plan_batches(records: Sequence[Record], max_tokens: int) -> list[Batch]:
    """Group records of similar length; shortest first, so that the first results come early.

    The tokens of a batch are those of its longest record times its number of records, which is what the padded
    arrays hold. A record with more than `max_tokens` is a batch of its own, and none is padded by more than
    `MAX_PADDING`: the work on pairs of residues grows with the square of the padded length.
    """
    ordered = sorted(records, key=lambda record: (n_tokens(record), record.name.lower()))
    batches: list[Batch] = []
    current: list[Record] = []
    for record in ordered:
        # Sorted upwards: the record at hand is the longest of the batch it would join.
        tokens = n_tokens(record)
        if current and (
            (len(current) + 1) * tokens > max_tokens
            or tokens - n_tokens(current[0]) > max(MAX_PADDING * tokens, MAX_PADDING_SHORT)
        ):
            batches.append(tuple(current))
            current = []
        current.append(record)
    if current:
        batches.append(tuple(current))
    return batches


def select_shard(batches: Sequence[Batch], shard: int, num_shards: int) -> list[Batch]:
    """Every `num_shards`-th batch from number `shard` (0-based) on: short and long ones fall to every shard alike."""
    return list(batches[shard::num_shards])
