"""Comparisons made from a table of known scores: what is paired with what, against scipy and values by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from protfold_peft.comparison import ComparisonConfig, Results, plots
from protfold_peft.comparison.analysis import EQUAL_PARAMETERS, EQUAL_RANK, TO_BASE, Analysis, analyse
from protfold_peft.comparison.results import load, save
from protfold_peft.comparison.scoring import MEASURES
from protfold_peft.comparison.summary import summary
from protfold_peft.comparison.tables import Table, latex, markdown, number, tables_of, tex, text

TARGETS = [f"T{place:02d}" for place in range(30)]
# Rank and parameters of every arm, and by how much it is better than the base.
ARMS = {
    ("lora", 1): (1_000, 0.010),
    ("lora", 4): (4_000, 0.050),
    ("lorta", 1): (50, 0.000),
    ("lorta", 4): (200, 0.050),
    ("lorta", 64): (3_000, -0.060),
}
LABELS = [f"{method}_r{rank}" for method, rank in ARMS]


def made_rows() -> list[dict[str, Any]]:
    """Luck of a seed is shared by all arms and targets, as the order of the data is: it cancels within a seed."""
    rng = np.random.default_rng(7)
    base = rng.uniform(0.3, 0.7, size=len(TARGETS))
    luck = {0: 0.03, 1: -0.02, 2: 0.0}
    rows = []

    def add(method: str, rank: int | None, seed: int | None, parameters: int, scores: np.ndarray) -> None:
        for place, (target, score) in enumerate(zip(TARGETS, scores)):
            row = dict.fromkeys(MEASURES, 0.5) | {
                "method": method, "rank": rank, "seed": seed, "parameters": parameters, "learning_rate": 0.01,
                "file_bytes": 4 * parameters, "step_seconds": 0.1, "train_seconds": 5.0, "peak_memory_bytes": 2**30,
                "set": "made", "target": target, "class": "FM" if place < 10 else "TBM-easy", "length": 50 + place,
                "folded": 50 + place, "lddt_ca": float(score), "leaked": False, "clashes": 3,
            }  # fmt: skip
            rows.append(row)

    add("base", None, None, 0, base)
    for (method, rank), (parameters, gain) in ARMS.items():
        for seed, own in luck.items():
            add(method, rank, seed, parameters, base + gain + own + rng.normal(0, 0.01, size=len(TARGETS)))
    return rows


@pytest.fixture(scope="module")
def results() -> Results:
    config = {
        "methods": {
            "lora": {"method": "peft_lora", "ranks": [1, 4]},
            "lorta": {"method": "lorta", "ranks": [1, 4, 64]},
        },
        "targets": {"made": {"folder": "x"}},
        "lora": "lora",
        "report": {"draws": 2000},
    }
    facts = {
        "config": ComparisonConfig.model_validate(config).model_dump(), "learning_rates": [{"method": "lora"}],
        "stamp": "", "leakage": "", "failed": {}, "missing": [], "seconds": 1.0, "trainings": 15, "version": "0",
    }  # fmt: skip
    return Results(made_rows(), facts, {"made/T00": {"experiment": "ATOM"}})


@pytest.fixture(scope="module")
def analysis(results: Results) -> Analysis:
    return analyse(results, "made")


def scores(results: Results, method: str, rank: int | None) -> np.ndarray:
    """`(s, t)`, taken from the rows in another way than the code does."""
    own = {(r["seed"], r["target"]): r["lddt_ca"] for r in results.rows if (r["method"], r["rank"]) == (method, rank)}
    return np.array([[own[seed, target] for target in TARGETS] for seed in dict.fromkeys(seed for seed, _ in own)])


def test_each_arm_is_compared_with_what_it_should_be(analysis: Analysis) -> None:
    pairs = [(one.arm, one.other, one.kind) for one in analysis.comparisons]
    assert pairs == [
        *((label, "base", TO_BASE) for label in LABELS),
        ("lorta_r1", "lora_r1", EQUAL_RANK),
        ("lorta_r4", "lora_r4", EQUAL_RANK),
        # Of no LoRA in reach the smallest; 3,000 lies nearer to 4,000 than to 1,000.
        ("lorta_r1", "lora_r1", EQUAL_PARAMETERS),
        ("lorta_r4", "lora_r1", EQUAL_PARAMETERS),
        ("lorta_r64", "lora_r4", EQUAL_PARAMETERS),
    ]
    near = analysis.of("lorta_r64", EQUAL_PARAMETERS)
    assert near is not None
    assert near.ratio == pytest.approx(4 / 3)


def test_differences_and_tests_are_scipys(results: Results, analysis: Analysis) -> None:
    stats = pytest.importorskip("scipy.stats")
    base = scores(results, "base", None)[0]
    p_values = []
    for (method, rank), label in zip(ARMS, LABELS):
        found = analysis.of(label)
        assert found is not None
        differences = scores(results, method, rank).mean(axis=0) - base
        assert found.interval.mean == pytest.approx(differences.mean(), abs=1e-12)
        assert found.better == (differences > 0).sum()
        theirs = stats.wilcoxon(differences, method="exact").pvalue
        assert found.p_value == pytest.approx(theirs, rel=1e-9)
        p_values.append(theirs)
    order = np.argsort(p_values)
    by_hand = np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(order), 0, -1)).clip(max=1)
    adjusted = [analysis.of(LABELS[place]).p_adjusted for place in order]  # type: ignore[union-attr]
    assert adjusted == pytest.approx(by_hand.tolist(), rel=1e-9)


def test_seeds_are_paired_so_that_their_shared_luck_cancels(results: Results, analysis: Analysis) -> None:
    """Each LoRTA against the LoRA of the same seed: what is left is noise of 0.01 times root 2 over 90 values."""
    found = analysis.of("lorta_r4", EQUAL_RANK)
    assert found is not None
    expected = 1.96 * 0.01 * np.sqrt(2) / np.sqrt(90)
    for interval in (found.interval, found.shared):
        assert 0.8 * expected < (interval.high - interval.low) / 2 < np.sqrt(3) * expected
    # Against the base it does not cancel: three seeds of luck make the honest interval wide.
    alone = analysis.of("lorta_r4")
    assert alone is not None
    assert alone.shared.high - alone.shared.low > 3 * (found.shared.high - found.shared.low)
    assert alone.interval.high - alone.interval.low < alone.shared.high - alone.shared.low


def test_verdicts_are_what_was_put_in(results: Results, analysis: Analysis) -> None:
    verdicts = {(one.arm, one.kind): one.verdict for one in analysis.comparisons}
    assert verdicts[("lorta_r4", TO_BASE)] == verdicts[("lora_r4", TO_BASE)] == "higher"
    assert verdicts[("lorta_r64", TO_BASE)] == "lower"
    assert verdicts[("lorta_r4", EQUAL_RANK)] == "no difference was shown"
    assert verdicts[("lorta_r1", EQUAL_RANK)] == "lower"
    said = "\n".join(summary([analysis], "lora"))
    assert (
        "lorta at rank 4: beside lora at rank 4, which has 20 times as many parameters, no difference was shown" in said
    )
    assert "lorta at rank 64: beside lora at rank 4, the nearest in parameters (about as many), it is lower" in said
    assert "does not mean that there is none" in said
    assert "no adjusted p can be below" not in said
    assert analysis.front[0] == "base"
    assert "lorta_r64" not in analysis.front


def test_classes_are_means_over_their_targets(results: Results, analysis: Analysis) -> None:
    masks = analysis.classes()
    assert [(kind, int(mask.sum())) for kind, mask in masks.items()] == [
        ("FM", 10),
        ("TBM-easy", 20),
        ("up to 64 residues", 15),
        ("over 64 residues", 15),
    ]
    one = analysis.arms[0]
    assert one.mean("lddt_ca", masks["FM"]) == pytest.approx(scores(results, "lora", 1)[:, :10].mean())
    assert one.spread("lddt_ca") == pytest.approx(scores(results, "lora", 1).mean(axis=1).std(ddof=1))


def test_results_come_back_from_their_file(results: Results, tmp_path) -> None:
    save(results, tmp_path)
    again = load(tmp_path / "results.parquet")
    columns = list(again.rows[0])
    assert [dict(row) for row in again.rows] == [{name: row.get(name) for name in columns} for row in results.rows]
    assert (again.facts, again.structures) == (results.facts, results.structures)


def test_tables_escape_what_their_formats_need(analysis: Analysis) -> None:
    rows = ((text("x|y & z"), number(0.5, ".2f")), (text(""), number(None, "d")))
    table = Table("t", "50 % of {x}", ("a_b", "n"), rows)
    lines = markdown(table).splitlines()
    assert lines[2:6] == ["| a_b | n |", "|---|---:|", "| x\\|y & z | 0.50 |", "|  | \N{EN DASH} |"]
    assert r"\caption{50 \% of \{x\}. }" in latex(table)
    assert r"x|y \& z & 0.50 \\" in latex(table)
    assert r"\begin{tabular}{lr}" in latex(table)
    assert tex("a_1 < 2^3\\") == r"a\_1 $<$ 2\textasciicircum{}3\textbackslash{}"
    for one in tables_of(analysis):
        assert {len(row) for row in one.rows} == {len(one.columns)}, one.name


def test_a_stamp_and_the_legend_have_places_of_their_own(analysis: Analysis, tmp_path, monkeypatch) -> None:
    """With as many methods as a plot ever has, and so many bars that their names need two columns."""
    one = analysis.arms[0]
    methods = [f"tensor_network_{number}" for number in range(7)]
    many = [replace(one, arm=replace(one.arm, method=method, rank=rank)) for method in methods for rank in range(1, 6)]
    drawn: list[Figure] = []
    save = Figure.savefig

    def watched(figure: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", watched)
    stamp = "LEAKAGE: 1 of 2 targets resemble chains that were learnt from or chosen by"
    plots.write_plots(replace(analysis, arms=many), tmp_path, stamp)
    named = [(figure, legend) for figure in drawn for legend in figure.findobj(Legend)]
    assert len(named) == 4  # two plots with names, as PNG and PDF
    for figure, legend in named:
        above = next(found for found in figure.findobj(Text) if found.get_text() == stamp).get_window_extent()
        names = legend.get_window_extent()
        assert names.y1 < above.y0
        assert figure.bbox.x0 <= names.x0
        assert names.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= names.y0
