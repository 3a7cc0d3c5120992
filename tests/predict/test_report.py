"""The report: all data inside, nothing from outside, bounded, and safe against the texts it shows."""

from __future__ import annotations

import base64
import json
from importlib import util
from pathlib import Path

import pytest
from html_pages import Page, check_asks_for_nothing_outside, in_browser, unpack
from readable_pages import check_readable

from protfold_peft import pages
from protfold_peft.folding import report
from protfold_peft.folding.inputs import Rejected, gather
from protfold_peft.folding.plots import PLDDT_BANDS
from protfold_peft.folding.run import run_prediction
from protfold_peft.folding.settings import RunSettings
from protfold_peft.folding.summary import collect_rows

TEXT = ">mono\nMKTAYIAKQR\n>duo\nMKTA:YIAKQ\n>broken\nMK1\n"


@pytest.fixture
def out(tmp_path, stand_in) -> Path:
    (tmp_path / "in.fasta").write_text(TEXT)
    run_prediction(RunSettings((str(tmp_path / "in.fasta"),), tmp_path / "out", device="cpu"))
    return tmp_path / "out"


def test_the_page_holds_structures_plots_table_and_viewer(out):
    page = Page((out / "report.html").read_text())
    data = json.loads(page.texts["data"])
    assert [(row["name"], row["status"]) for row in data["rows"]] == [
        ("mono", "done"),
        ("duo", "done"),
        ("broken", "invalid"),
    ]
    assert data["viewer"] is True
    assert any("UNTRAINED" in text for text in data["warnings"])
    for name in ("mono", "duo"):
        entry = data["structures"][name]
        assert unpack(entry["packed"]) == (out / f"{name}.pdb").read_bytes()
        assert entry["format"] == "pdb"
        drawn = [base64.b64decode(plot["png"]) for plot in entry["plots"]]
        assert drawn == [(out / f"{name}{suffix}").read_bytes() for suffix in ("_plddt.png", "_pae.png")]
        assert all((out / file).is_file() for file in entry["files"])
        # Every residue is in the band of its pLDDT, once.
        scores = json.loads((out / f"{name}_scores.json").read_text())
        bands = []
        for chain in scores["chain_ids"]:
            parts = [part for part in entry["parts"] if part["chain"] == chain]
            assert [part["start"] for part in parts[1:]] == [part["end"] + 1 for part in parts[:-1]]
            bands += [part["band"] for part in parts for _ in range(part["start"], part["end"] + 1)]
        edges = [lower for lower, _, _ in PLDDT_BANDS]
        assert bands == [sum(value <= edge for edge in edges) for value in scores["plddt"]]
    package = Path(util.find_spec("ipymolstar").submodule_search_locations[0])
    assert unpack(page.texts["molstar"]) == (package / "static" / "molviewspec.js").read_bytes()


def test_the_page_asks_for_nothing_outside(out):
    check_asks_for_nothing_outside(Page((out / "report.html").read_text()))


def test_a_browser_draws_the_first_molecule(out, tmp_path):
    page, seen = in_browser(out / "report.html", tmp_path)
    assert seen == []
    assert [tag for tag, _ in page.elements].count("canvas") > 0
    # The title of the page, and of the record that is shown.
    assert page.texts["title"] in ("protfold reportmono", "protfold reportduo")


def test_texts_of_users_cannot_leave_their_place(out):
    evil = "</script><script>alert(1)</script><!-- @@DATA@@"
    rows = collect_rows(out, [], [Rejected("x", 0, evil)])
    report.write_report(out / "evil.html", out, rows)
    text = (out / "evil.html").read_text()
    page = Page(text)
    assert json.loads(page.texts["data"])["rows"][0]["error"] == evil
    assert sum(tag == "script" for tag, _ in page.elements) == 3


def test_the_page_is_the_same_every_time(out):
    first = (out / "report.html").read_bytes()
    rows = collect_rows(
        out, gather([str(out.parent / "in.fasta")]).records, gather([str(out.parent / "in.fasta")]).rejected
    )
    report.write_report(out / "report.html", out, rows)
    assert (out / "report.html").read_bytes() == first


def test_a_large_run_is_cut_to_the_best_and_says_so(out, monkeypatch):
    monkeypatch.setattr(report, "MAX_STRUCTURES", 1)
    monkeypatch.setattr(report, "MAX_ROWS", 1)
    rows = collect_rows(out, [], [])
    report.write_report(out / "cut.html", out, rows)
    data = json.loads(Page((out / "cut.html").read_text()).texts["data"])
    assert list(data["structures"]) == [max(rows, key=lambda row: row.plddt).name]
    assert len(data["rows"]) == 1
    assert "1 of 2 structures" in data["notes"][0]
    assert "first 1 of 2 records" in data["notes"][1]


def test_without_the_viewer_the_page_says_what_to_install(out, monkeypatch):
    monkeypatch.setattr(pages.util, "find_spec", lambda name: None)
    report.write_report(out / "bare.html", out, collect_rows(out, [], []))
    data = json.loads(Page((out / "bare.html").read_text()).texts["data"])
    assert data["viewer"] is False
    assert "install the package ipymolstar" in data["notes"][0]
    assert set(data["structures"]) == {"mono", "duo"}


def test_a_structure_that_is_gone_or_damaged_costs_only_itself(out):
    (out / "mono.pdb").write_text("nothing of use")
    report.write_report(out / "report.html", out, collect_rows(out, [], []))
    data = json.loads(Page((out / "report.html").read_text()).texts["data"])
    assert set(data["structures"]) == {"duo"}
    assert len(data["rows"]) == 2


def test_the_page_is_readable_on_a_phone_on_paper_and_by_keyboard(out, browser):
    check_readable(out / "report.html", browser, sorts="#head th:nth-child(3) button")
