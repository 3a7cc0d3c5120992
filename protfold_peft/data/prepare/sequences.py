"""Full sequences from FASTA files, given to structures and chains of the same name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.data.prepare.inputs import Source, is_named_fasta
from protfold_peft.data.prepare.records import NO_STRUCTURE, UNREADABLE, Record, Rejection
from protfold_peft.errors import ConfigError, SequenceError
from protfold_peft.structure.fasta import CHAIN_SEPARATOR, clean_sequence, read_fasta
from protfold_peft.structure.source import short_name


@dataclass(frozen=True)
class NamedSequence:
    """A record of a FASTA file.

    Attributes:
        name: First word of its header.
        sequence: Checked letters, with `:` between the chains.
        file: The file as the user named it.
    """

    name: str
    sequence: str
    file: str


class NamedSequences:
    """Sequences by name, and which of them found a structure.

    A record `NAME` is of the structure called so: by the table's `name`, else by its file without suffixes.
    `NAME_CHAIN` is of one chain of it, unless another structure has that very name.

    Args:
        structures: What the user named; FASTA files among it are read.

    Raises:
        ConfigError: A FASTA file cannot be read, a record has no name or other letters, or two of one name differ.
    """

    def __init__(self, structures: Sequence[Path]) -> None:
        self.files = [path for path in structures if is_named_fasta(path)]
        self.records: dict[str, NamedSequence] = {}
        for path in self.files:
            for record in _read(path):
                other = self.records.setdefault(record.name, record)
                if other.sequence != record.sequence:
                    raise ConfigError(
                        f"{path}: '{record.name}' has another sequence here than before in {other.file}: keep one"
                    )
        # Names of chains without a sequence, for a warning.
        self.without: list[str] = []
        self._used: set[str] = set()
        self._chain_of: dict[str, tuple[str, str]] = {}

    def give(self, sources: Sequence[Source]) -> list[Source]:
        """The sources with the sequences that are called after them; what a table says of a sequence stands."""
        if not self.records:
            return list(sources)
        names = {_name(source) for source in sources}
        of_chains: dict[str, list[tuple[str, str]]] = {}
        for record in self.records.values():
            structure, mark, chain = record.name.rpartition("_")
            if mark and record.name not in names and structure in names:
                self._chain_of[record.name] = (structure, chain)
                of_chains.setdefault(structure, []).append((chain, record.sequence))
        given = []
        for source in sources:
            whole = self.records.get(_name(source))
            if whole is not None:
                self._used.add(whole.name)
            if source.sequence is None:
                source = dataclasses.replace(
                    source,
                    sequence=None if whole is None else whole.sequence,
                    chain_sequences=tuple(of_chains.get(_name(source), ())),
                )
            given.append(source)
        return given

    def see(self, source: Source, results: Sequence[Record | Rejection]) -> None:
        """Note which sequences the chains of a source took, and which chains there were none for."""
        if not self.records:
            return
        if any(isinstance(result, Rejection) and result.reason == UNREADABLE for result in results):
            # That is told already: nothing is known of its chains.
            self._used.update(f"{_name(source)}_{chain}" for chain, _ in source.chain_sequences)
            return
        own = dict(source.chain_sequences)
        for result in results:
            chain, name = (
                (result.chain, result.name) if isinstance(result, Rejection) else (result.chain_id, result.chain.name)
            )
            self._used.add(f"{_name(source)}_{chain}")
            if source.sequence is None and chain not in own:
                self.without.append(name)

    def left(self) -> list[Rejection]:
        """The sequences that no chain took."""
        rejections = []
        for record in self.records.values():
            if record.name in self._used:
                continue
            detail = f"no structure is called '{record.name}'"
            if record.name in self._chain_of:
                structure, chain = self._chain_of[record.name]
                detail = f"structure '{structure}' has no chain '{chain}' that is read"
            n = len(record.sequence.replace(CHAIN_SEPARATOR, ""))
            rejections.append(Rejection(record.name, record.file, "", n, NO_STRUCTURE, detail))
        return rejections


def _name(source: Source) -> str:
    return source.name or short_name(source.path)


def _read(path: Path) -> list[NamedSequence]:
    try:
        entries = read_fasta(path)
    except SequenceError as error:
        raise ConfigError(str(error)) from None
    records = []
    for entry in entries:
        place = f"{path}: line {entry.line}"
        if not entry.header:
            raise ConfigError(f"{place}: the record has no name: call it after its structure")
        name = entry.header.split()[0]
        try:
            sequence, _ = clean_sequence(entry.sequence)
        except SequenceError as error:
            raise ConfigError(f"{place}: '{name}': {error}") from None
        records.append(NamedSequence(name, sequence, str(path)))
    return records
