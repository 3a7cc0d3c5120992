"""What was read of every file, kept beside the dataset, so that a later run reads only what is new or changed.

The cache is a folder of Arrow files, its parts. A part is called by the SHA-256 of its bytes, so one that is damaged no
longer fits its name, and holds in its schema what program wrote it; a part of which either is wrong is left out. What
is in it stands under a key: the SHA-256 of a file's content and of all that the user said of the file. Nothing in the
cache depends on filters.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import protfold_peft
from protfold_peft.data.chains import TrainingChain
from protfold_peft.data.prepare.inputs import Source
from protfold_peft.data.prepare.records import Record, Rejection
from protfold_peft.files import write_bytes
from protfold_peft.structure.residues import ATOM_TYPES, sequence_to_restypes
from protfold_peft.version import __version__

# A part is written when it holds so many files or bytes: what a killed run loses.
PART_FILES = 256
_PART_BYTES = 8 * 2**20
# Parts held in memory: files come in the order of the run before, but for new ones in between.
_PARTS_OPEN = 8
# What is left of a part whose writer was killed is removed when it is this old: a run beside this one may be writing.
_ABANDONED_SECONDS = 3600
_PART_NAME = re.compile(r"[0-9a-f]{64}\.arrow")
_UNFINISHED_NAME = re.compile(r"\.[0-9a-f]{8}\.tmp\.[0-9a-f]{64}\.arrow")

# One row for a chain, or for the error of a file. Arrays are little-endian bytes: int32 places, the bits of the mask,
# and float32 coordinates of the atoms seen.
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("name", pa.string()),
        ("file", pa.string()),
        ("chain", pa.string()),
        ("length", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("resolution", pa.float64()),
        ("date", pa.string()),
        ("sequence", pa.string()),
        ("residue_index", pa.binary()),
        ("atom_mask", pa.binary()),
        ("coordinates", pa.binary()),
    ]
)


def cache_folder(out: Path) -> Path:
    """Where the cache of a dataset is."""
    return out.with_name(f"{out.name}.parsed")


def key_of(source: Source) -> str | None:
    """Names the content of a source's file and all that was said of it; None where the file cannot be read."""
    try:
        with source.path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    said = asdict(source) | {"path": str(source.path), "content": content}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Place:
    """The rows of a file in a part."""

    part: Path
    start: int
    stop: int


class ReadingCache:
    """Records and rejections of files, as they were before any filter.

    As a context it writes what was added when it is left, by an error too.

    Args:
        folder: Of the parts; made when the first is written. Files of other names in it are left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, _Place] = {}
        self._tables: OrderedDict[Path, pa.Table] = OrderedDict()
        self._used: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._files = self._bytes = 0
        for path in sorted(self._parts()):
            table = _open(path)
            if table is not None:
                self._index(path, table.column("key").to_pylist())

    def __enter__(self) -> ReadingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def keys(self) -> frozenset[str]:
        """What the cache has."""
        return frozenset(self._places)

    def get(self, key: str) -> list[Record | Rejection] | None:
        """What was read under this key, in the order of the file; None where the cache has lost it."""
        place = self._places.get(key)
        table = None if place is None else self._table(place.part)
        if place is None or table is None:
            self._places.pop(key, None)
            return None
        self._used.add(key)
        return [_result(row) for row in table.slice(place.start, place.stop - place.start).to_pylist()]

    def add(self, key: str, results: Sequence[Record | Rejection]) -> None:
        """Keep what was read; it is on disk when its part is full. What the cache has already stands."""
        self._used.add(key)
        if key not in self._places and all(row["key"] != key for row in self._rows):
            self._append(key, results)

    def flush(self) -> None:
        """Write what was added since the last part."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=_schema())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.arrow"
        write_bytes(path, data)
        self._index(path, [row["key"] for row in self._rows])
        self._rows, self._files, self._bytes = [], 0, 0

    def tidy(self) -> None:
        """Put together parts that are less than half in use, and remove those of which this run used nothing."""
        self.flush()
        used: dict[Path, list[str]] = {}
        rows: dict[Path, int] = {}
        for key, place in self._places.items():
            rows[place.part] = max(rows.get(place.part, 0), place.stop)
            if key in self._used:
                used.setdefault(place.part, []).append(key)
        rows_used = {
            part: sum(self._places[key].stop - self._places[key].start for key in keys) for part, keys in used.items()
        }
        thin = [
            part
            for part, keys in used.items()
            if len(keys) < PART_FILES / 2 and part.stat().st_size * rows_used[part] / rows[part] < _PART_BYTES / 2
        ]
        if len(thin) > 1 or any(rows_used[part] < rows[part] for part in thin):
            for part in thin:
                for key in used[part]:
                    results = self.get(key)
                    if results is not None:
                        self._append(key, results)
            self.flush()
        kept = {self._places[key].part for key in self._used if key in self._places}
        for path in self._parts() - kept:
            path.unlink(missing_ok=True)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _UNFINISHED_NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)

    def _append(self, key: str, results: Sequence[Record | Rejection]) -> None:
        for result in results:
            row = _row(key, result)
            self._rows.append(row)
            self._bytes += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        self._files += 1
        if self._files >= PART_FILES or self._bytes >= _PART_BYTES:
            self.flush()

    def _parts(self) -> set[Path]:
        if not self.folder.is_dir():
            return set()
        return {path for path in self.folder.iterdir() if _PART_NAME.fullmatch(path.name)}

    def _index(self, path: Path, keys: list[str]) -> None:
        start = 0
        for key, rows in groupby(keys):
            stop = start + sum(1 for _ in rows)
            self._places[key] = _Place(path, start, stop)
            start = stop

    def _table(self, part: Path) -> pa.Table | None:
        if part not in self._tables:
            table = _open(part)
            if table is None:
                return None
            self._tables[part] = table
            if len(self._tables) > _PARTS_OPEN:
                self._tables.popitem(last=False)
        self._tables.move_to_end(part)
        return self._tables[part]


def _open(path: Path) -> pa.Table | None:
    """The table of a part; None where it is damaged, gone, or another program's."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != path.stem:
            return None
        # Without threads of Arrow's: processes are forked after this.
        options = pa.ipc.IpcReadOptions(use_threads=False)
        with pa.ipc.open_file(pa.BufferReader(data), options=options) as reader:
            table = reader.read_all()
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(_schema(), check_metadata=True) else None


@cache
def _schema() -> pa.Schema:
    """The columns, marked with what reads files here: the version, and the very code, which may be under work."""
    package = Path(protfold_peft.__file__).parent
    code = [*sorted(package.glob("structure/*.py")), package / "data" / "chains.py"]
    code += [Path(__file__).with_name(name) for name in ("cache.py", "inputs.py", "records.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()
    return _SCHEMA.with_metadata({"protfold_peft": f"{__version__} {digest} gemmi {version('gemmi')}"})


def _row(key: str, result: Record | Rejection) -> dict[str, Any]:
    if isinstance(result, Rejection):
        return asdict(result) | {"key": key}
    chain = result.chain
    return {
        "key": key,
        "name": chain.name,
        "file": result.file,
        "chain": result.chain_id,
        "resolution": result.resolution,
        "date": result.date,
        "sequence": chain.sequence,
        "residue_index": chain.residue_index.astype("<i4").tobytes(),
        "atom_mask": np.packbits(chain.atom_mask).tobytes(),
        "coordinates": chain.atom_positions[chain.atom_mask].astype("<f4").tobytes(),
    }


def _result(row: dict[str, Any]) -> Record | Rejection:
    if row["reason"] is not None:
        return Rejection(**{name: row[name] for name in ("name", "file", "chain", "length", "reason", "detail")})
    sequence = row["sequence"]
    shape = (len(sequence), len(ATOM_TYPES))
    bits = np.unpackbits(np.frombuffer(row["atom_mask"], np.uint8), count=shape[0] * shape[1])
    mask = bits.astype(bool).reshape(shape)
    positions = np.zeros((*shape, 3), dtype=np.float32)
    positions[mask] = np.frombuffer(row["coordinates"], "<f4").reshape(-1, 3)
    chain = TrainingChain(
        name=row["name"],
        sequence=sequence,
        aatype=sequence_to_restypes(sequence),
        residue_index=np.frombuffer(row["residue_index"], "<i4").astype(np.int64),
        atom_positions=positions,
        atom_mask=mask,
    )
    return Record(chain, row["file"], row["chain"], row["resolution"], row["date"])
