"""Getting targets: against a server of this machine that truncates, loses, refuses and changes files, and real ones."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protfold_peft.cli.main import app
from protfold_peft.comparison.config import TargetsConfig
from protfold_peft.comparison.targets import read_targets
from protfold_peft.data.casp import cameo_source, from_cameo, from_casp, from_folder, source_of
from protfold_peft.data.casp.assemble import domains_of, entries_of, unpack
from protfold_peft.data.casp.fetch import fetch_all, read_records
from protfold_peft.data.casp.sources import ARCHIVE, FASTA, Source
from protfold_peft.errors import ConfigError, DataError
from protfold_peft.structure import read_structure

FAST = {"pause": 0.0}


@dataclass
class Server:
    """Files by path, and what goes wrong with them.

    Attributes:
        files: Content by path.
        cut: Answers still to be broken off after so many bytes, by path.
        refuse: Statuses still to be answered, by path.
        ranges: Whether it knows the header Range.
        asked: Path and Range of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    refuse: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            span = self.headers.get("Range")
            state.asked.append((self.path, span))
            if state.refuse.get(self.path):
                self.send_error(state.refuse[self.path].pop(0))
                return
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(span.removeprefix("bytes=").rstrip("-")) if span and state.ranges else 0
            if start >= len(content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            body = content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cuts = state.cut.get(self.path)
            self.wfile.write(body[: cuts.pop(0)] if cuts else body)

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield state
    listening.shutdown()
    listening.server_close()
    thread.join()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


SEQUENCE = Source("seq.txt", "", FASTA)
TEXT = b">T1\n" + b"ACDEFGHIKL\n" * 500


def sequence_at(server: Server, **changes: object) -> Source:
    server.files["/seq.txt"] = TEXT
    return Source("seq.txt", f"{server.url}/seq.txt", FASTA, **changes)  # type: ignore[arg-type]


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    server.cut["/seq.txt"] = [1000, 2000]
    have = fetch_all([source], tmp_path, **FAST)
    assert (tmp_path / "seq.txt").read_bytes() == TEXT
    assert server.asked == [("/seq.txt", None), ("/seq.txt", "bytes=1000-"), ("/seq.txt", "bytes=3000-")]
    assert have["seq.txt"].sha256 == hashlib.sha256(TEXT).hexdigest()
    assert have["seq.txt"].size == len(TEXT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads.json", "seq.txt"]


def test_a_server_that_knows_no_ranges_sends_it_again(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    server.ranges, server.cut["/seq.txt"] = False, [1000]
    fetch_all([source], tmp_path, **FAST)
    assert (tmp_path / "seq.txt").read_bytes() == TEXT


def test_what_was_left_by_a_run_that_was_killed_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    (tmp_path / "seq.txt.part").write_bytes(TEXT[:700])
    fetch_all([source], tmp_path, **FAST)
    assert server.asked == [("/seq.txt", "bytes=700-")]
    assert (tmp_path / "seq.txt").read_bytes() == TEXT
    # A rest that is no beginning of the file is thrown away.
    (tmp_path / "seq.txt").unlink()
    (tmp_path / "seq.txt.part").write_bytes(TEXT + b"more")
    fetch_all([source], tmp_path, **FAST)
    assert (tmp_path / "seq.txt").read_bytes() == TEXT


def test_a_busy_server_is_asked_again_and_an_absent_file_is_not(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    server.refuse["/seq.txt"] = [503, 429]
    fetch_all([source], tmp_path, **FAST)
    assert len(server.asked) == 3
    server.asked.clear()
    absent = Source("absent.txt", f"{server.url}/absent.txt", FASTA)
    with pytest.raises(DataError, match=r"absent.txt: cannot be downloaded: the server says 404"):
        fetch_all([absent], tmp_path, **FAST)
    assert len(server.asked) == 1
    assert fetch_all([Source("absent.txt", absent.url, FASTA, needed=False)], tmp_path, **FAST) == {}
    server.refuse["/seq.txt"] = [500] * 9
    (tmp_path / "seq.txt").unlink()
    with pytest.raises(DataError, match=r"after 3 tries: the server says 500 .*; run the same command again"):
        fetch_all([source], tmp_path, tries=3, **FAST)


def test_what_is_there_and_whole_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    fetch_all([source], tmp_path, **FAST)
    server.asked.clear()
    fetch_all([source], tmp_path, **FAST)
    assert server.asked == []
    (tmp_path / "seq.txt").write_bytes(TEXT[:-5])
    fetch_all([source], tmp_path, **FAST)
    assert (tmp_path / "seq.txt").read_bytes() == TEXT


def test_a_file_that_changed_at_its_source_is_refused_until_that_is_wanted(server: Server, tmp_path: Path) -> None:
    source = sequence_at(server)
    fetch_all([source], tmp_path, **FAST)
    (tmp_path / "seq.txt").unlink()
    server.files["/seq.txt"] = TEXT.replace(b"ACD", b"CCD")
    with pytest.raises(DataError, match=r"has changed since .*SHA-256 was [0-9a-f]{12}.*--accept-changes"):
        fetch_all([source], tmp_path, **FAST)
    assert not (tmp_path / "seq.txt").exists()
    fetch_all([source], tmp_path, accept_changes=True, **FAST)
    assert read_records(tmp_path)["seq.txt"].sha256 == hashlib.sha256(server.files["/seq.txt"]).hexdigest()


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"<!DOCTYPE html><html>moved</html>", ARCHIVE, "it is no gzipped archive"),
        (b"<html>moved</html>", FASTA, "it is no FASTA"),
        (b"", FASTA, "it is empty"),
    ],
)
def test_a_page_in_the_place_of_a_file_is_not_taken(server: Server, tmp_path: Path, content, kind, words) -> None:
    server.files["/x"] = content
    with pytest.raises(DataError, match=f"/x: {words}: the address may have moved"):
        fetch_all([Source("x", f"{server.url}/x", kind)], tmp_path, **FAST)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_writes_nowhere_else_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    content = archive({"../../evil.pdb": b"x", "a/T1-D1.pdb": b"y", "a/._T1-D1.pdb": b"z", "readme.txt": b"r"})
    (tmp_path / "a.tgz").write_bytes(content)
    assert [path.name for path in unpack(tmp_path / "a.tgz", tmp_path / "in")] == ["T1-D1.pdb", "evil.pdb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "in"]
    (tmp_path / "a.tgz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a.tgz: is damaged"):
        unpack(tmp_path / "a.tgz", tmp_path / "in")


PAGE = """<html><table><tr><th>#</th><th>Target</th><th>Residues</th><th>Class</th></tr>
<tr><td>1</td><td><a href="x">T1024-D1</a></td><td>2-194 (193)</td><td>TBM-easy</td></tr>
<tr><td>2</td><td>T1024-D2: 203-300, 310-406</td><td></td><td>FM/TBM</td></tr>
<tr><td>3</td><td>T1027-D1</td><td>19-117</td><td> FM </td></tr></table></html>"""


def test_pages_and_lists_are_read() -> None:
    classes, ranges = domains_of(PAGE)
    assert classes == {"T1024-D1": "TBM-easy", "T1024-D2": "FM/TBM", "T1027-D1": "FM"}
    assert ranges == {"T1024-D1": "2-194", "T1024-D2": "203-300,310-406", "T1027-D1": "19-117"}
    table = "Target;Type;Res;Description\nT1024;All;408;LmrP 6t1z\nT1027;All;168;no entry yet\n"
    assert entries_of(table) == {"T1024": "6t1z"}


def test_an_edition_becomes_a_folder_of_targets(server: Server, test_data: Path, tmp_path: Path) -> None:
    """Real CASP14 domains, packed as the Prediction Center packs them; the comparison reads what comes out."""
    casp = test_data / "casp14"
    domain, single = (casp / f"{name}.pdb" for name in ("T1024-D1", "T1027-D1"))
    second = (casp / "T1024-D2.pdb").read_bytes()
    area = "/download_area/CASP14"
    sources = source_of("casp14", server.url)
    paths = {source.kind + source.name: source.url.removeprefix(server.url) for source in sources}
    server.files = {
        f"{area}/targets/casp14.targets.T-dom.public_11.29.2020.tar.gz": archive(
            {"T1024-D1.pdb": domain.read_bytes(), "T1024-D2.pdb": second}
        ),
        # The whole of a target with one domain, and that of one with several, which is not wanted.
        f"{area}/targets/casp14.targets.T.public_11.29.2020.tar.gz": archive(
            {"T1027.pdb": single.read_bytes(), "T1024.pdb": second}
        ),
        f"{area}/sequences/casp14.seq.txt": b">T1024 LmrP, 408 residues\nAAAA\n>T9999 other\nCCCC\n",
        "/casp14/domains_summary.cgi": PAGE.encode(),
        "/casp14/targetlist.cgi?type=csv": b"Target;Description\nT1024;LmrP 6t1z\nT1027;x\n",
        "/entry/6t1z": json.dumps({"rcsb_accession_info": {"initial_release_date": "2020-11-11T00:00:00Z"}}).encode(),
    }
    assert set(server.files) - {"/entry/6t1z"} == set(paths.values())
    server.cut[f"{area}/targets/casp14.targets.T-dom.public_11.29.2020.tar.gz"] = [5000]
    done = from_casp(sources, tmp_path / "casp14", entry_url=f"{server.url}/entry/{{id}}", **FAST)
    assert done.skipped == ()
    with (tmp_path / "casp14" / "manifest.tsv").open(newline="") as file:
        rows = {row["target"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert {name: (row["class"], row["range"], row["pdb_id"]) for name, row in rows.items()} == {
        "T1024-D1": ("TBM-easy", "2-194", "6t1z"),
        "T1024-D2": ("FM/TBM", "203-300,310-406", "6t1z"),
        "T1027-D1": ("FM", "19-117", ""),
    }
    assert rows["T1024-D1"]["release_date"] == "2020-11-11"
    assert rows["T1024-D1"]["length"] == "193"
    assert rows["T1024-D1"]["sha256"] == hashlib.sha256(domain.read_bytes()).hexdigest()
    assert (tmp_path / "casp14" / "targets.fasta").read_text() == ">T1024\nAAAA\n"
    # A second time nothing is asked for, and the same comes out.
    manifest = (tmp_path / "casp14" / "manifest.tsv").read_bytes()
    server.asked.clear()
    from_casp(sources, tmp_path / "casp14", entry_url=f"{server.url}/entry/{{id}}", **FAST)
    assert server.asked == []
    assert (tmp_path / "casp14" / "manifest.tsv").read_bytes() == manifest


def test_cameo_gives_chains_of_entries(server: Server, structures: Path, tmp_path: Path) -> None:
    source = cameo_source("2022-12-31", "1m", server.url)
    assert source.url == f"{server.url}/modeling/targets/1-month/ajax/?to_date=2022-12-31"
    path = source.url.removeprefix(server.url)
    listed = [{"pdbid": "3jqh", "pdbid_chain": "A"}, {"pdbid": "9zzz", "pdbid_chain": "B"}]
    server.files[path] = json.dumps({"aaData": listed}).encode()
    server.files["/3JQH.cif.gz"] = gzip.compress((structures / "3JQH_A.cif").read_bytes())
    done = from_cameo(source, tmp_path / "cameo", file_url=f"{server.url}/{{id}}.cif.gz", **FAST)
    assert [row["target"] for row in done.targets] == ["3jqh_A"]
    mine = read_structure(tmp_path / "cameo" / "3jqh_A.pdb").chains[0]
    theirs = read_structure(structures / "3JQH_A.cif").chains[0]
    assert mine.sequence == theirs.sequence
    assert mine.atom_positions == pytest.approx(theirs.atom_positions, abs=1e-3)
    server.files["/other"] = b'{"data": []}'
    with pytest.raises(DataError, match="is not a list of CAMEO's targets"):
        from_cameo(Source("o.json", f"{server.url}/other", "targets"), tmp_path / "other", **FAST)


def test_a_local_folder_becomes_targets_that_a_comparison_reads(test_data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["data", "casp14", "--from", str(test_data / "casp14"), "--out", str(tmp_path / "casp14")]
    )
    assert result.exit_code == 0, result.output
    assert "92 targets" in result.output
    targets = read_targets("casp14", TargetsConfig(folder=str(tmp_path / "casp14")))
    assert len(targets) == 91
    assert "T1061-D0" not in {target.name for target in targets}
    assert {target.kind for target in targets} == {"FM", "FM/TBM", "TBM-hard", "TBM-easy"}
    with (test_data / "casp14" / "manifest.tsv").open(newline="") as file:
        rows = {row["target"]: row for row in csv.DictReader(file, delimiter="\t")}
    for target in targets:
        assert target.length == int(rows[target.name]["resolved"]), target.name
        assert len(target.sequence) == int(rows[target.name]["length"]), target.name


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'casp9' is not known: use casp13"):
        source_of("casp9")
    with pytest.raises(ConfigError, match="write the day as"):
        cameo_source("last week", "1m")
    with pytest.raises(DataError, match=r"there is no such folder \(--from\)"):
        from_folder(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "bad.pdb").write_text("<html>")
    with pytest.raises(DataError, match=r"mine holds something that is no folder of targets"):
        from_folder(tmp_path / "from", tmp_path / "mine")
    with pytest.raises(DataError, match=r"no target can be made .*bad.pdb"):
        from_folder(tmp_path / "from", tmp_path / "out")
    assert (tmp_path / "mine" / "thesis.txt").is_file()
