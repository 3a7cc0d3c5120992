"""Downloading files that can be trusted: whole, what they claim to be, and the same as last time.

A download goes on where it was broken off, is tried again with pauses, and counts only once its length is right and
its first bytes are those of its kind. `downloads.json` keeps the SHA-256 of every file: one that is there and intact is
not asked for again, one that was damaged on the disk is fetched anew, and one that is another at its source than it was
is refused, since results could not be compared any more.
"""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

from protfold_peft.data.casp.sources import ARCHIVE, DOMAINS, FASTA, TARGETS, Source
from protfold_peft.errors import DataError
from protfold_peft.files import write_text
from protfold_peft.runtime import LOGGER
from protfold_peft.version import __version__

RECORDS = "downloads.json"
_CHUNK = 1 << 16
# Statuses that another try may mend.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Download:
    """A file that is there.

    Attributes:
        name: Of the file.
        url: Where it came from.
        sha256: Of its bytes.
        size: In bytes.
        fetched: UTC time.
    """

    name: str
    url: str
    sha256: str
    size: int
    fetched: str


def fetch_all(
    sources: Sequence[Source], folder: Path, *, tries: int = 5, pause: float = 1.0, accept_changes: bool = False
) -> dict[str, Download]:
    """Download what is not there yet.

    Args:
        sources: What to download.
        folder: Where to.
        tries: How often each is tried.
        pause: Seconds before the second try; doubled for each further one.
        accept_changes: Take a file that is another at its source than it was.

    Returns:
        What is there, by name; without the files that are not needed and cannot be had.

    Raises:
        DataError: A needed file cannot be had, is not what it should be, or has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = read_records(folder)
    for source in sources:
        path, before = folder / source.name, records.get(source.name)
        if path.is_file() and before is not None and sha256(path) == before.sha256:
            continue
        if path.is_file() and before is not None:
            LOGGER.warning("%s is damaged on the disk: fetched again", path)
        try:
            _download(source, path, tries=tries, pause=pause, known=None if accept_changes else before)
        except DataError as error:
            if source.needed:
                raise
            LOGGER.warning("%s; going on without it", error)
            continue
        now = datetime.now(UTC).isoformat(timespec="seconds")
        records[source.name] = Download(source.name, source.url, sha256(path), path.stat().st_size, now)
        write_text(
            folder / RECORDS, json.dumps({name: asdict(one) for name, one in sorted(records.items())}, indent=1) + "\n"
        )
    return {source.name: records[source.name] for source in sources if source.name in records}


def read_records(folder: Path) -> dict[str, Download]:
    """What was downloaded before.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / RECORDS
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Download(**one) for name, one in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove it to download everything again") from error


def sha256(path: Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _download(source: Source, path: Path, *, tries: int, pause: float, known: Download | None) -> None:
    """Download one file, going on with a part that is there, and check it against what is known of it."""
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, tries + 1):
        try:
            _stream(source.url, part)
            break
        except urllib.error.HTTPError as error:
            reason = f"the server says {error.code} {error.reason}"
            if error.code == 416:  # what is there is not a beginning of the file
                part.unlink(missing_ok=True)
            elif error.code not in _AGAIN:
                raise DataError(f"{source.url}: cannot be downloaded: {reason}") from error
        except (OSError, HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        if attempt == tries:
            raise DataError(
                f"{source.url}: cannot be downloaded after {tries} tries: {reason}; run the same command again to go "
                "on, or give a folder that holds the files with --from"
            )
        LOGGER.info("%s: %s; trying again", source.url, reason)
        time.sleep(pause * 2 ** (attempt - 1))
    wrong = what_is_wrong(part, source.kind)
    if wrong:
        part.unlink()
        raise DataError(f"{source.url}: {wrong}: the address may have moved; see data/casp/sources.py")
    if known is not None and (found := sha256(part)) != known.sha256:
        part.unlink()
        raise DataError(
            f"{source.url}: has changed since {known.fetched}: its SHA-256 was {known.sha256[:12]}... and is "
            f"{found[:12]}...; take the new one with --accept-changes"
        )
    part.replace(path)


def _stream(url: str, part: Path) -> None:
    """Append to `part` what it lacks.

    Raises:
        OSError: The connection broke, or the file is shorter than announced.
        urllib.error.HTTPError: The server refused.
    """
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"protfold-peft/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        going_on = answer.status == 206
        announced = answer.headers.get("Content-Length")
        with part.open("ab" if going_on else "wb") as handle:
            had = start if going_on else 0
            while block := answer.read(_CHUNK):
                handle.write(block)
                had += len(block)
        if announced is not None and had < (wanted := int(announced) + (start if going_on else 0)):
            raise OSError(f"broken off after {had:,} of {wanted:,} bytes")


def what_is_wrong(path: Path, kind: str) -> str:
    """Why a file cannot be of its kind; empty if it can."""
    with path.open("rb") as handle:
        head = handle.read(4096)
    text = head.lstrip().lower()
    if not head:
        return "it is empty"
    if kind == ARCHIVE and not head.startswith(b"\x1f\x8b"):
        return "it is no gzipped archive"
    if kind == FASTA and not text.startswith(b">"):
        return "it is no FASTA"
    if kind == TARGETS and not text.startswith((b"{", b"[")):
        return "it is no JSON"
    if kind == DOMAINS and b"<" not in text:
        return "it is no page"
    if kind not in (DOMAINS, TARGETS) and text.startswith((b"<!doctype", b"<html")):
        return "it is an HTML page"
    return ""
