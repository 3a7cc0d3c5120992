"""The report of a fine-tuning run: its tables, curves and structures hold what went in, whatever the texts are."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from html_pages import Page, check_asks_for_nothing_outside, in_browser, unpack
from readable_pages import check_readable

from protfold_peft import pages
from protfold_peft.pages import charts
from protfold_peft.training import report
from protfold_peft.training.report import RunReport, TargetReport, write_report

EVIL = "<b>x</b></script><script>alert(1)</script><!-- @@DATA@@ \"'"
SCORES = ("lddt_ca", "lddt", "tm_score", "gdt_ts", "plddt")
NOTHING = "\N{EN DASH}"
# How far a shown number may be from the true one, with room for the last digit.
ROUNDING = {"plddt": 0.0501} | dict.fromkeys(SCORES[:4], 0.000501)


def scores(generator: random.Random) -> dict[str, float | None]:
    return {name: generator.random() * (100 if name == "plddt" else 1) for name in SCORES}


def run_report(structures: Path) -> RunReport:
    """A run with four proteins: one with hostile texts, one with missing scores, two with structures."""
    generator = random.Random(20)
    texts = [(structures / name).read_text() for name in ("1LCD_A.pdb", "1A8O_A.pdb", "2BEG_A.pdb")]
    targets = [
        TargetReport(EVIL, 70, scores(generator), scores(generator), (texts[0], texts[1], texts[2])),
        TargetReport("plain", 51, scores(generator), scores(generator)),
        TargetReport("T10", 9, {"lddt_ca": None, "plddt": 50.0}, {"lddt_ca": 0.4, "plddt": math.nan}),
        TargetReport("T9", 3, scores(generator), scores(generator), (texts[1], texts[1], texts[0])),
    ]
    return RunReport(
        title="lorta adapter of facebook/esmfold_v1",
        facts={"method": "lorta", "rank": "8", "command": "protfold <finetune>"},
        warnings=("UNTRAINED & <odd>",),
        judged_on="the training chains (this says nothing about other proteins)",
        training=[
            {"step": s, "loss": 3 / s, "learning_rate": 1e-4, "grad_norm": 2.0, "seconds": s, "fape": 1.5 + s, "chi": 1}
            for s in range(1, 61)
        ],
        validation=[{"step": s, **scores(generator)} for s in (0, 20, 40, 60)],
        base=scores(generator),
        adapted=scores(generator),
        targets=targets,
        outside=(scores(generator), scores(generator)),
        confidence=(
            {"pearson": 0.51, "spearman": 0.4, "error": 12.3, "bias": -4.0},
            {"pearson": 0.62, "spearman": 0.3, "error": 10.1, "bias": 2.0},
        ),
    )


@pytest.fixture
def full(structures) -> RunReport:
    return run_report(structures)


@pytest.fixture
def written(full, tmp_path) -> str:
    write_report(tmp_path / "report.html", full)
    return (tmp_path / "report.html").read_text()


def text_of(path: Path, given: RunReport) -> str:
    write_report(path, given)
    return path.read_text()


def tables(text: str) -> dict[str, ElementTree.Element]:
    """Every table by its caption; they are well-formed XML."""
    found = [ElementTree.fromstring(table) for table in re.findall(r"<table.*?</table>", text, flags=re.DOTALL)]
    return {table.find("caption").text: table for table in found}


def rows(table: ElementTree.Element) -> list[list[str]]:
    """The texts of all cells below the head."""
    lines = table.findall("tbody/tr") or table.findall("tr")
    return [["".join(cell.itertext()) for cell in line] for line in lines]


class Chart:
    """A drawn chart, read back: coordinates are undone by the axes' own ticks."""

    def __init__(self, text: str, title: str) -> None:
        drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]
        [self.svg] = [svg for svg in drawn if svg.find("text[@class='chart-title']").text == title]
        grid = [path.get("d") for path in self.svg.findall("path[@class='grid']")]
        values = [float(t.text) for t in self.svg.findall("text") if re.fullmatch(r"-?[\d.e+-]+", t.text or "")]
        assert len(grid) == len(values) >= 2
        places = [re.match(r"M([\d.]+),([\d.]+) ([VH])", line).groups() for line in grid]
        self.x_ticks = [(float(x), value) for (x, _, way), value in zip(places, values) if way == "V"]
        self.y_ticks = [(float(y), value) for (_, y, way), value in zip(places, values) if way == "H"]

    @staticmethod
    def undo(ticks: list[tuple[float, float]], place: float) -> float:
        (first, low), (last, high) = ticks[0], ticks[-1]
        return low + (place - first) / (last - first) * (high - low)

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.undo(self.x_ticks, x), self.undo(self.y_ticks, y)

    @property
    def lines(self) -> list[list[tuple[float, float]]]:
        found = self.svg.findall("path[@class='line']")
        pairs = [[pair.split(",") for pair in line.get("d")[1:].split(" L")] for line in found]
        return [[self.point(float(x), float(y)) for x, y in line] for line in pairs]

    def points(self, kind: str) -> list[tuple[float, float]]:
        circles = self.svg.findall(f"circle[@class='{kind}']")
        return [self.point(float(c.get("cx")), float(c.get("cy"))) for c in circles]

    @property
    def reference(self) -> float:
        return self.undo(self.y_ticks, float(self.svg.find("line[@class='reference']").get("y1")))


def check_compared(cells: list[str], name: str, base: object, adapted: object) -> None:
    """Three cells hold the numbers and their difference, or a dash where a number is missing."""
    known = [isinstance(value, float) and math.isfinite(value) for value in (base, adapted)]
    expected = [base, adapted, adapted - base if all(known) else None]
    for cell, value, is_known in zip(cells, expected, [*known, all(known)], strict=True):
        if is_known:
            assert float(cell) == pytest.approx(value, abs=ROUNDING[name])
        else:
            assert cell == NOTHING
    if all(known):
        assert cells[2].startswith(("+", "-")) == (float(cells[2]) != 0)


def test_mean_scores_are_those_given(full, written):
    found = tables(written)
    for caption, base, adapted in (
        ("Mean scores", full.base, full.adapted),
        ("Mean scores on proteins unlike the trained ones", *full.outside),
    ):
        lines = rows(found[caption])
        assert [line[0] for line in lines] == ["lDDT-CA", "lDDT, all atoms", "TM-score", "GDT-TS", "pLDDT"]
        for name, line in zip(SCORES, lines, strict=True):
            check_compared(line[1:4], name, base[name], adapted[name])
    # Of how many proteins with both scores the value rose, counted here.
    known = [(t.base["lddt_ca"], t.adapted["lddt_ca"]) for t in full.targets if t.name != "T10"]
    assert rows(found["Mean scores"])[0][4] == f"{sum(b < a for b, a in known)} of 3"


def test_every_protein_has_its_row(full, written):
    table = tables(written)["Every protein; a title sorts"]
    heads = ["".join(cell.itertext()) for cell in table.findall("thead/tr")[1]]
    assert heads == ["protein", "residues", *["base", "adapted", "difference"] * 5]
    lines = rows(table)
    assert [line[0] for line in lines] == [EVIL, "plain", "T10", "T9"]
    for target, line in zip(full.targets, lines, strict=True):
        assert line[1] == str(target.residues)
        for place, name in enumerate(SCORES):
            cells = line[2 + 3 * place : 5 + 3 * place]
            check_compared(cells, name, target.base.get(name), target.adapted.get(name))
    # What the script sorts by is the number itself, and nothing where there is none.
    values = [cell.get("data-value") for cell in table.findall("tbody/tr")[1]]
    assert values[:4] == [
        "plain",
        "51",
        repr(full.targets[1].base["lddt_ca"]),
        repr(full.targets[1].adapted["lddt_ca"]),
    ]
    assert table.findall("tbody/tr")[2][2].get("data-value") == ""


def test_gains_and_losses_are_told_apart(full, written):
    found = tables(written)
    kinds = {line.get("data-measure"): line[3].get("class") for line in found["pLDDT beside lDDT-CA"].find("tbody")}
    assert kinds == {"pearson": "better", "spearman": "worse", "error": "better", "bias": "better"}
    lines = found["Mean scores"].find("tbody")
    for line, name in zip(lines, SCORES, strict=True):
        rose = full.adapted[name] > full.base[name]
        # A higher pLDDT alone is no gain.
        assert line[3].get("class") == (None if name == "plddt" else "better" if rose else "worse")


def test_curves_go_through_the_logged_values(full, written):
    for title, column in (("loss (total)", "loss"), ("fape (unweighted)", "fape"), ("learning rate", "learning_rate")):
        [line] = Chart(written, title).lines
        truth = [row[column] for row in full.training]
        reach = max(truth) - min(truth) or truth[0]
        assert [x for x, _ in line] == pytest.approx(range(1, 61), abs=0.05)
        assert [y for _, y in line] == pytest.approx(truth, abs=0.005 * reach)
    assert "seconds" not in re.findall(r'chart-title"[^>]*>([^<]*)', written)


def test_validation_curves_show_the_base_model_as_a_line(full, written, tmp_path):
    titles = ("lDDT-CA", "lDDT, all atoms", "TM-score", "GDT-TS", "pLDDT")
    for title, name in zip(titles, SCORES, strict=True):
        chart = Chart(written, title)
        truth = [row[name] for row in full.validation]
        assert [y for _, y in chart.points("dot")] == pytest.approx(truth, abs=0.01 * (max(truth) - min(truth)))
        assert chart.reference == pytest.approx(truth[0], abs=0.01 * (max(truth) - min(truth)))
    later = text_of(tmp_path / "later.html", replace(full, validation=full.validation[1:]))
    assert Chart(later, "lDDT-CA").reference == pytest.approx(full.base["lddt_ca"], abs=0.01)


def test_a_value_that_is_not_finite_breaks_the_curve(full, tmp_path):
    training = [dict(row) for row in full.training]
    training[20]["loss"], training[40]["loss"], training[41]["loss"] = math.nan, math.inf, None
    lines = Chart(text_of(tmp_path / "r.html", replace(full, training=training)), "loss (total)").lines
    assert [len(line) for line in lines] == [20, 19, 18]


def test_a_long_run_is_drawn_by_means(full, tmp_path):
    training = [{"step": s, "loss": float(s % 2)} for s in range(10 * charts.MAX_POINTS)]
    [line] = Chart(text_of(tmp_path / "r.html", replace(full, training=training)), "loss (total)").lines
    assert len(line) == charts.MAX_POINTS
    assert [y for _, y in line] == pytest.approx([0.5] * len(line), abs=0.01)


def test_the_scatter_shows_each_protein_before_and_after(full, written):
    chart = Chart(written, "lDDT-CA: above the line, the adapter helped")
    known = [target for target in full.targets if target.name != "T10"]
    expected = [(target.base["lddt_ca"], target.adapted["lddt_ca"]) for target in known]
    assert chart.points("point") == [pytest.approx(pair, abs=0.005) for pair in expected]
    labels = [circle.find("title").text for circle in chart.svg.findall("circle")]
    assert labels == [f"{t.name}: {b:.3f} before, {a:.3f} after" for t, (b, a) in zip(known, expected)]
    # The diagonal runs through equal values.
    diagonal = chart.svg.find("line[@class='reference']")
    for end in "12":
        x, y = chart.point(float(diagonal.get(f"x{end}")), float(diagonal.get(f"y{end}")))
        assert x == pytest.approx(y, abs=0.005)


def test_structures_are_in_the_page_in_three_colours(full, written):
    page = Page(written)
    data = json.loads(page.texts["data"])
    assert list(data["structures"]) == ["0", "3"]
    for place, style in ((0, "cartoon"), (3, "ball_and_stick")):
        entry = data["structures"][str(place)]
        assert entry["name"] == full.targets[place].name
        assert entry["style"] == style
        assert [unpack(packed).decode() for packed in entry["packed"]] == list(full.targets[place].structures)
    colors = {entry["name"]: entry["color"] for entry in data["colors"]}
    assert list(colors) == ["experiment", "base", "adapted"]
    boxes = [a for tag, a in page.elements if tag == "input" and a.get("type") == "checkbox"]
    assert [box["data-structure"] for box in boxes] == ["0", "1", "2"]
    for (name, color), called in zip(colors.items(), ("grey", "orange", "blue")):
        assert f'<i style="background: {color}"></i> {name} ({called})</label>' in written


def test_texts_of_users_cannot_leave_their_place(full, tmp_path):
    given = replace(full, title=EVIL, warnings=(EVIL,), facts={EVIL: EVIL}, judged_on=EVIL)
    given = replace(given, training=[{"step": 1, "loss": 1.0, EVIL: 2.0}])
    text = text_of(tmp_path / "evil.html", given)
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert not any(tag == "b" for tag, _ in page.elements)
    assert page.texts["h1"].strip() == EVIL
    assert rows(tables(text)["The run"]) == [[EVIL, EVIL]]
    assert Chart(text, f"{EVIL} (unweighted)").points("dot")
    assert json.loads(page.texts["data"])["structures"]["0"]["name"] == EVIL


def test_warnings_come_first_and_facts_are_told(written):
    page = Page(written)
    [warning] = re.findall(r'<p class="warning">(.*?)</p>', written)
    assert warning == "UNTRAINED &amp; &lt;odd&gt;"
    assert written.index("UNTRAINED") < written.index("<table")
    assert rows(tables(written)["The run"])[2] == ["command", "protfold <finetune>"]
    assert "this says nothing about other proteins" in written
    assert page.texts["h1"] == "lorta adapter of facebook/esmfold_v1"


def test_tables_and_charts_can_be_read_aloud(written):
    for table in tables(written).values():
        assert table.find("caption").text
        heads = list(table.iter("th"))
        assert heads
        assert all(head.get("scope") in ("col", "row", "colgroup") for head in heads)
    for svg in re.findall(r"<svg [^>]*>", written):
        assert 'role="img"' in svg
        assert re.search(r'aria-label="[^"]{10,}"', svg)
    assert '<html lang="en">' in written
    assert "prefers-color-scheme: dark" in written


def test_the_page_asks_for_nothing_outside(written):
    check_asks_for_nothing_outside(Page(written))


def test_the_page_is_the_same_every_time(full, tmp_path):
    assert text_of(tmp_path / "a.html", full) == text_of(tmp_path / "b.html", full)


EMPTY = RunReport(
    title="t", facts={}, warnings=(), judged_on="validation chains", training=[], validation=[], base={}, adapted={},
    targets=[],
)  # fmt: skip
MEAGRE = {
    "nothing": EMPTY,
    "one row": replace(EMPTY, training=[{"step": 1, "loss": 2.0}], validation=[{"step": 0, "lddt_ca": 0.5}]),
    "one target": replace(EMPTY, targets=[TargetReport("a", 5, {"lddt_ca": 0.5}, {"lddt_ca": 0.5})]),
    "no scores": replace(EMPTY, base={"lddt_ca": math.nan}, targets=[TargetReport("a", 5, {}, {"tm_score": None})]),
    "huge": replace(EMPTY, training=[{"step": s, "loss": v} for s, v in enumerate((1e308, -1e308, 1e38, 1e-300))]),
}


@pytest.mark.parametrize("name", MEAGRE)
def test_a_meagre_run_has_its_page_too(name, tmp_path):
    text = text_of(tmp_path / "r.html", MEAGRE[name])
    tables(text)
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL))
    assert "No step was logged." in text or MEAGRE[name].training
    # Without a structure there is no viewer to carry.
    assert len(text) < 50_000


def test_a_difference_of_nothing_has_no_sign(tmp_path):
    text = text_of(tmp_path / "r.html", replace(EMPTY, base={"lddt_ca": 0.5}, adapted={"lddt_ca": 0.49999}))
    line = tables(text)["Mean scores"].find("tbody/tr")
    assert (line[3].text, line[3].get("class")) == ("0.000", None)


def test_a_large_run_is_cut_to_the_greatest_changes_and_says_so(full, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_STRUCTURES", 1)
    monkeypatch.setattr(report, "MAX_TARGETS", 2)
    targets = [replace(t, structures=full.targets[0].structures) for t in full.targets]
    text = text_of(tmp_path / "cut.html", replace(full, targets=targets))
    changes = [abs(t.adapted["lddt_ca"] - t.base["lddt_ca"]) if t.name != "T10" else 0 for t in targets]
    assert list(json.loads(Page(text).texts["data"])["structures"]) == [str(changes.index(max(changes)))]
    assert "1 of 4 structures are shown" in text
    assert "first 2 of 4 proteins" in text
    assert len(rows(tables(text)["Every protein; a title sorts"])) == 2


def test_without_the_viewer_the_page_says_what_to_install(full, tmp_path, monkeypatch):
    monkeypatch.setattr(pages.util, "find_spec", lambda name: None)
    text = text_of(tmp_path / "bare.html", full)
    assert json.loads(Page(text).texts["data"])["viewer"] is False
    assert "install the package ipymolstar" in text


def test_a_browser_draws_sorts_and_hides(full, tmp_path):
    write_report(tmp_path / "report.html", full)
    script = """
      const names = () => [...document.querySelectorAll("#targets tbody tr")].map(row => row.dataset.target).join("");
      const told = [];
      for (const column of [0, 0, 1, 2, 2]) {
        document.querySelector(`[data-column="${column}"]`).click();
        told.push(names());
      }
      document.querySelector('[data-structure="0"]').click();
      document.querySelector('circle[data-target="3"]').dispatchEvent(new MouseEvent("click"));
      told.push(document.querySelector("#target").value, document.querySelectorAll("#viewer canvas").length);
      document.querySelector("h1").textContent = told.join(" ");
    """
    page, seen = in_browser(tmp_path / "report.html", tmp_path, script)
    assert seen == []
    by_score = sorted("013", key=lambda place: -full.targets[int(place)].base["lddt_ca"])
    # Names in their order ("T9" before "T10"), and back; most residues first; scores down, then up, the missing last.
    expected = ["0132", "2310", "0123", "".join(by_score) + "2", "".join(reversed(by_score)) + "2", "3"]
    *orders, n_canvas = page.texts["h1"].split()
    assert orders == expected
    assert int(n_canvas) >= 1


def test_a_browser_shows_an_empty_run_without_an_error(tmp_path):
    write_report(tmp_path / "report.html", EMPTY)
    _, seen = in_browser(tmp_path / "report.html", tmp_path)
    assert seen == []


def test_the_page_is_readable_on_a_phone_on_paper_and_by_keyboard(full, tmp_path, browser):
    write_report(tmp_path / "report.html", full)
    check_readable(tmp_path / "report.html", browser, sorts='#targets [data-column="2"]')
