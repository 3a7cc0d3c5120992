"""The dataset on disk: Arrow tables of Hugging Face `datasets`, mapped into memory, one row for a chain.

Coordinates are stored for the atoms that were seen, in the order of the mask, so that a chain of N, CA and C does not
take the room of 37 atoms: `positions[mask] = row["coordinates"]`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from datasets import Dataset, Features, List, Value, load_from_disk
from datasets.arrow_writer import ArrowWriter

from protfold_peft.data.chains import TrainingChain
from protfold_peft.data.prepare.records import Record
from protfold_peft.errors import ConfigError
from protfold_peft.structure.residues import ATOM_TYPES, RESTYPE_INDEX, UNKNOWN

REPORT = "report.json"
SPLITS_FILE = "dataset_dict.json"
_ATOMS = len(ATOM_TYPES)

FEATURES = Features(
    {
        "name": Value("string"),
        "sequence": Value("string"),
        "residue_index": List(Value("int32")),
        "atom_mask": List(Value("bool")),
        "coordinates": List(Value("float32")),
        "resolution": Value("float32"),
        "date": Value("string"),
        "file": Value("string"),
        "chain": Value("string"),
        "resolved": Value("int32"),
    }
)


class RecordWriter:
    """Records to one Arrow file, row by row, so that they need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=256)

    def write(self, record: Record, name: str) -> None:
        """Append a record under this name."""
        chain = record.chain
        row = {
            "name": name,
            "sequence": chain.sequence,
            "residue_index": chain.residue_index.astype(np.int32),
            "atom_mask": chain.atom_mask.reshape(-1),
            "coordinates": chain.atom_positions[chain.atom_mask].reshape(-1),
            "resolution": record.resolution,
            "date": record.date,
            "file": record.file,
            "chain": record.chain_id,
            "resolved": int(chain.has_frame.sum()),
        }
        self._writer.write(row)

    def close(self) -> None:
        """Finish the file."""
        self._writer.finalize()
        self._writer.close()


def chain_of(row: Mapping[str, Any]) -> TrainingChain:
    """A row of the dataset as a training chain."""
    sequence = row["sequence"]
    mask = np.asarray(row["atom_mask"], dtype=bool).reshape(-1, _ATOMS)
    positions = np.zeros((*mask.shape, 3), dtype=np.float32)
    positions[mask] = np.asarray(row["coordinates"], dtype=np.float32).reshape(-1, 3)
    return TrainingChain(
        name=row["name"],
        sequence=sequence,
        aatype=np.array([RESTYPE_INDEX.get(letter, UNKNOWN) for letter in sequence], dtype=np.int64),
        residue_index=np.asarray(row["residue_index"], dtype=np.int64),
        atom_positions=positions,
        atom_mask=mask,
    )


class PreparedChains(Sequence[TrainingChain]):
    """The chains of one split, read from the mapped file when they are asked for.

    Attributes:
        dataset: The rows, with all their columns.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._rows = dataset.with_format("numpy", columns=_CHAIN_COLUMNS)

    def column(self, name: str) -> list[Any]:
        """One value for each chain."""
        return list(self.dataset.with_format(None)[name])

    def lengths(self) -> list[int]:
        """Residues of every chain."""
        return [len(sequence) for sequence in self.column("sequence")]

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, place: int) -> TrainingChain: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[TrainingChain]: ...

    def __getitem__(self, place: int | slice) -> TrainingChain | Sequence[TrainingChain]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"chain {place} of {len(self)}")
        return chain_of(self._rows[place % len(self)])

    def __iter__(self) -> Iterator[TrainingChain]:
        return (self[i] for i in range(len(self)))


def is_prepared(folder: str | os.PathLike[str]) -> bool:
    """The folder is a dataset that `protfold prepare` wrote."""
    return (Path(folder) / SPLITS_FILE).is_file() and (Path(folder) / REPORT).is_file()


def load_prepared(folder: str | os.PathLike[str], split: str = "train") -> PreparedChains:
    """The chains of a prepared dataset.

    Args:
        folder: What `protfold prepare --out` wrote.
        split: `train` or `validation`.

    Raises:
        ConfigError: The folder is no such dataset, is damaged, or has no such split.
    """
    if not is_prepared(folder):
        raise ConfigError(f"{folder}: is no dataset of 'protfold prepare'")
    try:
        splits = load_from_disk(os.fspath(folder))
    except Exception as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{folder}: the dataset is damaged: {what}; prepare it again") from error
    if split not in splits:
        raise ConfigError(f"{folder}: the dataset has no split '{split}'; it has {', '.join(splits)}")
    return PreparedChains(splits[split])


_CHAIN_COLUMNS = ["name", "sequence", "residue_index", "atom_mask", "coordinates"]
