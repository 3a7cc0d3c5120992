"""Reading FASTA: the records of a file as they stand, and what makes a sequence fit to be folded.

A file that is no FASTA raises; a record that cannot be used is a matter of `clean_sequence`, so that one bad record
never costs the others of its file.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from protfold_peft.errors import SequenceError

FASTA_SUFFIXES = (".fa", ".fasta", ".faa")
STANDARD_INPUT = "-"

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
AMBIGUOUS = "XBUOZ"
CHAIN_SEPARATOR = ":"

_LETTERS = frozenset(AMINO_ACIDS + AMBIGUOUS)
_NUCLEOTIDES = frozenset("ACGTUN")
# Shorter all-ACGTN peptides exist; a real protein of this length without any of the other letters hardly does.
_NUCLEOTIDE_MIN_LENGTH = 30

_GZIP_MAGIC = b"\x1f\x8b"
_LOOKS_LIKE = (
    (("<",), "an HTML or XML page"),
    (("HEADER ", "ATOM  ", "HETATM", "REMARK ", "TITLE ", "CRYST1", "MODEL ", "SEQRES"), "a PDB file"),
    (("data_", "loop_"), "an mmCIF file"),
    (("{", "["), "JSON"),
    (("@",), "FASTQ"),
    (("CLUSTAL",), "a Clustal alignment"),
    (("# STOCKHOLM",), "a Stockholm alignment"),
    (("LOCUS ",), "a GenBank file"),
)


@dataclass(frozen=True)
class FastaEntry:
    """One record of a FASTA file, before any judgement of its letters.

    Attributes:
        header: The header line without `>` and without spaces around it; may be empty.
        sequence: The letters of all its lines, white space removed, case as written; may be empty.
        source: The file as the user named it, `standard input` for `-`.
        position: 1 for the first record of the file.
        line: The line of the header, 1-based.
    """

    header: str
    sequence: str
    source: str
    position: int
    line: int


def is_fasta_name(path: Path) -> bool:
    """Whether a file in a folder counts as FASTA: `.fa`, `.fasta`, `.faa`, each also with `.gz`, and not hidden."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(FASTA_SUFFIXES) and not name.startswith(".")


def read_fasta(path: str | Path) -> list[FastaEntry]:
    """The records of a FASTA file, plain or gzip (told by content, not by name); `-` reads standard input.

    Byte order marks, CRLF line ends, blank lines and `;` comment lines are accepted.

    Raises:
        SequenceError: The file is missing, unreadable, empty, binary, damaged or not FASTA; one line that names it.
    """
    if str(path) == STANDARD_INPUT:
        source = "standard input"
        data = sys.stdin.buffer.read()
    else:
        source = str(path)
        data = _read_bytes(Path(path), source)
    return parse_fasta(_decode(data, source), source)


def parse_fasta(text: str, source: str) -> list[FastaEntry]:
    """The records of FASTA text; `source` names it in errors.

    Raises:
        SequenceError: No text, or text before the first `>`.
    """
    entries: list[FastaEntry] = []
    header: str | None = None
    header_line = 0
    parts: list[str] = []

    def finish() -> None:
        if header is not None:
            entries.append(FastaEntry(header, "".join(parts), source, len(entries) + 1, header_line))

    # Not splitlines(): that also breaks at form feeds and Unicode separators, which real headers contain.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.startswith(">"):
            finish()
            header, header_line, parts = line[1:].strip(), number, []
        elif not line.strip() or line.startswith(";"):
            continue
        elif header is None:
            raise SequenceError(f"{source}: not FASTA: line {number} {_describe(line)}")
        else:
            parts.append("".join(line.split()))
    finish()
    if not entries:
        raise SequenceError(f"{source}: the file is empty: no '>' header in it")
    return entries


def clean_sequence(raw: str) -> tuple[str, tuple[str, ...]]:
    """The sequence as the model takes it, and a note on everything that was changed or looks odd.

    Lower case becomes upper case, a stop sign `*` at the end of a chain is dropped. The letters left are the 20 amino
    acids, `X B U O Z`, and `:` between chains.

    Raises:
        SequenceError: Nothing there, an empty chain, or another letter; the position is 1-based, colons counted.
    """
    if not raw:
        raise SequenceError("the sequence is empty")
    notes = []
    chains = raw.split(CHAIN_SEPARATOR)
    if any(chain.endswith("*") for chain in chains):
        notes.append("a stop sign '*' at the end was dropped")
    stripped = [chain.removesuffix("*") for chain in chains]
    if not any(stripped):
        raise SequenceError("the sequence is empty")
    start = 1
    for number, (chain, kept) in enumerate(zip(chains, stripped), start=1):
        for offset, letter in enumerate(kept):
            # The ASCII test comes first: str.upper() turns some other letters into amino acids ('ß' into 'SS').
            if not letter.isascii() or letter.upper() not in _LETTERS:
                raise SequenceError(_letter_message(letter, start + offset))
        if not kept:
            raise SequenceError(f"chain {number} of {len(chains)} is empty: one ':' stands between two chains")
        start += len(chain) + 1
    joined = CHAIN_SEPARATOR.join(stripped)
    sequence = joined.upper()
    if sequence != joined:
        notes.append("lower case was read as upper case")
    if len(sequence) >= _NUCLEOTIDE_MIN_LENGTH and set(sequence) - {CHAIN_SEPARATOR} <= _NUCLEOTIDES:
        notes.append("only letters of nucleic acids: is this DNA or RNA? it is folded as a protein")
    return sequence, tuple(notes)


def _letter_message(letter: str, position: int) -> str:
    if letter in "-.":
        return f"gap '{letter}' at position {position}: give the sequence without the gaps of an alignment"
    if letter == "*":
        return f"stop sign '*' at position {position}, inside the sequence"
    shown = letter if letter.isprintable() else f"U+{ord(letter):04X}"
    kind = "digit" if letter.isdigit() else "letter"
    return f"{kind} '{shown}' at position {position} is no amino acid (20 letters, X B U O Z, ':' between chains)"


def _read_bytes(path: Path, source: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SequenceError(f"{source}: no such file") from None
    except OSError as error:
        raise SequenceError(f"{source}: cannot be read: {error.strerror or error}") from None
    if path.suffix.lower() == ".gz" and data and not data.startswith(_GZIP_MAGIC):
        raise SequenceError(f"{source}: not a gzip file although its name ends in .gz")
    return data


def _decode(data: bytes, source: str) -> str:
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SequenceError(f"{source}: damaged gzip file: {error}") from None
    if not data.strip():
        raise SequenceError(f"{source}: the file is empty")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise SequenceError(f"{source}: not FASTA: a binary file") from None
    head = data[:4096]
    if sum(byte < 32 and byte not in b"\t\n\r\f\v\x1b\x1a\x01" for byte in head):
        raise SequenceError(f"{source}: not FASTA: a binary file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Headers in old databases are Latin-1; every byte is a letter there, and sequences are checked anyway.
        return data.decode("latin-1")


def _describe(line: str) -> str:
    for starts, kind in _LOOKS_LIKE:
        if line.lstrip().startswith(starts):
            return f"looks like {kind}"
    text = line.strip()
    shown = "".join(character if character.isprintable() else "?" for character in text[:30])
    return f"is '{shown}{'...' if len(text) > 30 else ''}' where a '>' header was expected"
