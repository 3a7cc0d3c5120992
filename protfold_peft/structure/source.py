"""Getting the text of a structure file, whatever it is called: compression and format are told by the content."""

from __future__ import annotations

import gzip
import re
import zlib
from contextlib import suppress
from pathlib import Path

from protfold_peft.errors import StructureError

# First bytes of files that people mistake for structures, and what to say of them.
_FOREIGN = (
    (b"BZh", "is compressed with bzip2: decompress it, or use gzip"),
    (b"\xfd7zXZ", "is compressed with xz: decompress it, or use gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: decompress it, or use gzip"),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (b"%PDF", "is a PDF document, not a structure"),
)
_RECORDS = re.compile(
    r"^(ATOM|HETATM|HEADER|SEQRES|MODEL |CRYST1|COMPND|REMARK|TITLE|EXPDTA|CONECT|TER|END)", re.MULTILINE
)
SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")


def is_structure_name(path: Path) -> bool:
    """The name ends like that of a PDB or mmCIF file, gzipped or not."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(SUFFIXES) and not name.startswith(".")


def short_name(path: Path) -> str:
    """The file's name without `.gz` and the format's suffix."""
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def read_text(path: Path) -> tuple[str, str]:
    """The text of a file and its format, `pdb` or `mmcif`.

    Line ends are `\\n` in the result. Bytes that are not UTF-8 (old remarks in Latin-1) are read as Latin-1; PDB files
    always are, since their columns count bytes.

    Raises:
        StructureError: There is no such file, it cannot be read, it is empty or damaged, or it is something else.
    """
    data = _decompress(path, _read_bytes(path))
    if not data.strip():
        raise StructureError(f"{path}: the file is empty; download or write it again")
    for start, what in _FOREIGN:
        if data.startswith(start):
            raise StructureError(f"{path}: the file {what}")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\x00" in data:
        raise StructureError(f"{path}: the file is binary, not PDB or mmCIF text; BinaryCIF and UTF-16 are not read")
    text = data.decode("latin-1")
    kind = _format(path, text)
    if kind == "mmcif":
        with suppress(UnicodeDecodeError):  # otherwise the Latin-1 reading stands
            text = data.decode("utf-8")
    return text, kind


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StructureError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise StructureError(f"{path}: this is a folder; name a PDB or mmCIF file in it") from None
    except OSError as error:
        raise StructureError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the name
        raise StructureError(f"{str(path)!r}: is not a file name: {error}") from None


def _decompress(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except EOFError:
        raise StructureError(f"{path}: the gzip stream is cut short; download it again") from None
    except (OSError, zlib.error) as error:
        raise StructureError(f"{path}: the gzip stream is damaged ({error}); download it again") from None


def _format(path: Path, text: str) -> str:
    """`pdb` or `mmcif`, from the first line that says something and, failing that, from any PDB record."""
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        lower = line.lower()
        if lower.startswith("data_") or lower in ("loop_", "global_") or lower.startswith("_atom_site."):
            return "mmcif"
        if lower.startswith(("<!doctype", "<html", "<head", "<body")):
            raise StructureError(f"{path}: the file is an HTML page, not a structure; download it again")
        if lower.startswith("<"):
            raise StructureError(f"{path}: the file is XML, not PDB or mmCIF; convert it")
        if lower.startswith(("{", "[")):
            raise StructureError(f"{path}: the file is JSON, not PDB or mmCIF; convert it")
        if line.startswith(">") and not _RECORDS.search(text):
            raise StructureError(f"{path}: the file is FASTA, which has no coordinates; name a PDB or mmCIF file")
        break
    if _RECORDS.search(text):
        return "pdb"
    raise StructureError(f"{path}: no PDB record and no mmCIF data block found: this is not a structure file")
