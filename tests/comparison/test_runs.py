"""How cells run: learning rates chosen, failures kept and retried, interruptions gone on from, leaks refused."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from comparison.conftest import stretch, write

from protfold_peft.comparison import (
    ComparisonConfig,
    listing,
    prepare,
    processes,
    run_all,
    run_one,
    runs,
    sweep,
    workplace,
)
from protfold_peft.comparison.budgets import largest_rank, ranks_of_budgets
from protfold_peft.comparison.cells import TRAIN, TUNE, Arm, training_config
from protfold_peft.comparison.config import TargetsConfig
from protfold_peft.comparison.leakage import load
from protfold_peft.comparison.runs import chosen_rate
from protfold_peft.comparison.targets import parse_span, read_targets
from protfold_peft.configuration import read_config
from protfold_peft.errors import ConfigError, ProtfoldError
from protfold_peft.structure import read_structure
from protfold_peft.training import output, trainer

LORTA = {"lorta": {"method": "lorta", "ranks": [1, 4]}}


def made(settings: Any, out: Path, **changes: Any) -> sweep.Sweep:
    content = settings(**{"lora": None, "methods": LORTA, **changes})
    return prepare(ComparisonConfig.model_validate({**content, "out": str(out)}))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[float, int], float | str]:
    """Validation scores by learning rate and seed (a text: the training fails so), instead of trainings."""
    table: dict[tuple[float, int], float | str] = {}

    def run(place: Any, cell: Any, rate: float | None) -> dict[str, Any]:
        score = table.get((rate, cell.seed), 0.5) if rate is not None else 0.5
        if isinstance(score, str):
            raise ProtfoldError(score)
        of = workplace.cell_fingerprint(place, cell, rate)
        return {
            "cell": runs._described(cell, rate),
            "of": of,
            "facts": {"validation": {"lddt_ca": score}, "judge_seconds": 0.0},
            "rows": [],
        }

    monkeypatch.setattr(runs, "_run", run)
    return table


def test_cells_have_one_order(settings, tmp_path: Path) -> None:
    found = made(settings, tmp_path / "out", learning_rates=[0.01, 0.1], seeds=[3, 4], tuning_seeds=1)
    assert [cell.name for cell in found.cells] == [
        "base",
        "tune_lorta_r1_lr0.01_s3", "tune_lorta_r1_lr0.1_s3", "tune_lorta_r4_lr0.01_s3", "tune_lorta_r4_lr0.1_s3",
        "lorta_r1_s3", "lorta_r1_s4", "lorta_r4_s3", "lorta_r4_s4",
    ]  # fmt: skip
    assert [cell.index for cell in found.cells] == list(range(9))


def test_the_learning_rate_is_chosen_for_every_rank_by_the_mean_over_seeds(settings, tmp_path: Path, scored) -> None:
    """0.1 wins at seed 0 alone and 0.02 over both; 0.5 fails from one seed, and what it has from the other is void."""
    found = made(settings, tmp_path / "out", learning_rates=[0.02, 0.1, 0.5], seeds=[0, 1], tuning_seeds=2)
    scored |= {(0.02, 0): 0.40, (0.02, 1): 0.44, (0.1, 0): 0.50, (0.1, 1): 0.30, (0.5, 0): 0.9, (0.5, 1): "diverged"}
    with pytest.raises(ConfigError, match="the learning rate of lorta_r1 is not chosen yet: run cell tune_lorta_r1_lr"):
        run_one(found, next(cell.index for cell in found.cells if cell.kind == TRAIN))
    assert not any(found.place.failure_file(cell).exists() for cell in found.cells)
    for cell in found.cells:
        if cell.kind == TUNE and (cell.learning_rate, cell.seed) == (0.5, 1):
            with pytest.raises(ProtfoldError, match="diverged"):
                run_one(found, cell.index)
        elif cell.kind == TUNE:
            assert run_one(found, cell.index) == "done"
    assert chosen_rate(found.place, Arm("lorta", 1)) == 0.02
    rows = sweep.learning_rates(found)
    assert [(r["rank"], r["learning_rate"], r["validation_lddt_ca"], r["chosen"]) for r in rows[:3]] == [
        (1, 0.02, pytest.approx(0.42), True),
        (1, 0.1, pytest.approx(0.40), False),
        (1, 0.5, None, False),
    ]
    assert rows[0]["at_end"]
    cell = next(cell for cell in found.cells if cell.kind == TRAIN)
    assert run_one(found, cell.index) == "done"
    assert json.loads(found.place.scores_file(cell).read_text())["cell"]["learning_rate"] == 0.02


def test_no_learning_rate_is_chosen_on_training_chains(settings, tmp_path: Path) -> None:
    changes = settings()
    changes["finetune"]["data"]["validation"] = None
    with pytest.raises(ConfigError, match=r"never on the targets: set finetune.data.validation"):
        made(settings, tmp_path / "out", finetune=changes["finetune"], learning_rates=[0.01, 0.1])
    assert not (tmp_path / "out").exists()


def test_a_failed_cell_is_listed_left_alone_and_tried_again_on_request(settings, tmp_path: Path, scored) -> None:
    found = made(settings, tmp_path / "out")
    scored[(0.03, 0)] = "no gradient reaches the adapter"
    with pytest.raises(ProtfoldError, match="no gradient"):
        run_one(found, 1)
    assert listing(found)[1].split() == ["1", "lorta_r1_s0", "failed:", "no", "gradient", "reaches", "the", "adapter"]
    assert run_one(found, 1, retry=False) == "failed"
    scored.clear()
    assert run_one(found, 1) == "done"
    assert "failed" not in "".join(listing(found))
    with pytest.raises(ConfigError, match="--cell 7: this comparison has cells 0 to 2"):
        run_one(found, 7)


# A worker: it answers every line but those it is told otherwise of. `$out` gets the lines that each process was told.
ANSWERS = 'while read line; do echo "$line" >> "$out"; {}; echo "$line"; done'


def shell(script: str, log: Path, out: Path, slot: int = 0) -> subprocess.Popen[str]:
    return processes.start_logged(["sh", "-c", f"out='{out}'; {script}"], log, slot, 1)


def test_a_process_that_dies_takes_no_other_cell_with_it(settings, tmp_path: Path, monkeypatch, scored) -> None:
    """The cell it was doing has failed; the next goes to a new process, and a living one does many."""
    found = made(settings, tmp_path / "out", methods={"lorta": {"method": "lorta", "ranks": [1, 2, 3]}})
    started: list[Path] = []

    def start(own: Any, cell: Any, slot: int, at_a_time: int) -> subprocess.Popen[str]:
        assert (slot, at_a_time) == (0, 1)
        started.append(tmp_path / f"told{len(started)}")
        return shell(ANSWERS.format('[ "$line" = 2 ] && kill -9 $$'), tmp_path / "log", started[-1])

    told = sweep._told

    def tell(own: Any, cell: Any, judge: bool) -> str:
        if cell.index != 2:
            run_one(own, cell.index)
        return told(own, cell, judge)

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(sweep, "_told", tell)
    run_all(found)
    assert [line.split(maxsplit=2)[2] for line in listing(found)] == [
        "done",
        "done",
        "failed: its process was killed (signal 9), perhaps for want of memory",
        "done",
    ]
    assert [path.read_text().split() for path in started] == [["0", "1", "2"], ["3"]]
    monkeypatch.setattr(sweep, "_start", lambda *_: pytest.fail("a cell was started"))
    run_all(found)


def test_cells_wait_for_those_that_they_need(settings, tmp_path: Path) -> None:
    """All but the base for its validation chains; a run that counts for the learning rates of its own arm."""
    found = made(settings, tmp_path / "out", learning_rates=[0.01, 0.1])
    base, one, two, other, _, *trained = found.cells
    assert [cell.arm.rank for cell in (one, two, other, *trained)] == [1, 1, 4, 1, 4]
    assert sweep._ready(found, base, found.cells)
    assert not sweep._ready(found, one, [base])
    assert sweep._ready(found, one, [two, other])
    assert not sweep._ready(found, trained[0], [two])
    assert sweep._ready(found, trained[0], [other, trained[1]])
    file = runs.base_file(tmp_path / "out", found.place.config.finetune)
    file.parent.mkdir(parents=True)
    file.touch()
    assert sweep._ready(found, one, [base])


def test_an_interruption_stops_all_processes_and_fails_no_cell(settings, tmp_path: Path, monkeypatch) -> None:
    found = made(settings, tmp_path / "out", processes=2, methods={"lorta": {"method": "lorta", "ranks": [1, 2, 3]}})
    started: list[subprocess.Popen[str]] = []

    def start(*_: Any) -> subprocess.Popen[str]:
        started.append(shell("exec sleep 20", tmp_path / "log", tmp_path / "told"))
        if len(started) == 2:
            main = threading.main_thread().ident
            threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        return started[-1]

    monkeypatch.setattr(sweep, "_start", start)
    # The base is done, so that two of the others run.
    monkeypatch.setattr(sweep.Sweep, "state", lambda self, cell: "waiting" if cell.index else "done")
    # A shell may have told this process to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all(found)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [process.returncode for process in started] == [-15, -15]
    assert not list((tmp_path / "out").glob("cells/*.failed.txt"))


def test_the_end_of_a_log_is_the_reason(settings, tmp_path: Path, monkeypatch) -> None:
    found = made(settings, tmp_path / "out")

    def start(own: Any, cell: Any, slot: int, at_a_time: int) -> subprocess.Popen[str]:
        script = "echo working >&2; echo 'error: no space left' >&2; exit 2"
        return shell(script, tmp_path / "out" / "logs" / f"{cell.name}.log", tmp_path / "told")

    monkeypatch.setattr(sweep, "_start", start)
    run_all(found)
    assert {line.split(maxsplit=2)[2] for line in listing(found)} == {"failed: no space left"}


def test_what_is_trained_alone_is_judged_later(settings, tmp_path: Path) -> None:
    """The training is not done again, and the base's validation chains are folded without its targets."""
    found = made(settings, tmp_path / "out", methods={"lorta": {"method": "lorta", "ranks": [1]}})
    assert [run_one(found, index, judge=False) for index in (0, 1)] == ["waiting", "waiting"]
    assert not (tmp_path / "out" / "models").exists()
    assert runs.base_file(tmp_path / "out", found.place.config.finetune).is_file()
    weights = found.place.training_folder(Arm("lorta", 1), 0.03, 0) / output.ADAPTER_WEIGHTS
    before = weights.stat().st_mtime_ns
    assert not (weights.parent / output.REPORT).exists()
    assert [run_one(found, index) for index in (0, 1)] == ["done", "done"]
    assert weights.stat().st_mtime_ns == before
    assert len(json.loads(found.place.scores_file(found.cells[1]).read_text())["rows"]) == 2


def test_an_interrupted_cell_goes_on_from_its_checkpoint(settings, tmp_path: Path, monkeypatch) -> None:
    """The same bits come out as of a run in one go, and the base's validation is the one that cell 0 made."""
    changes = settings()["finetune"]
    changes["training"] |= {"steps": 5, "checkpoint_every": 2}
    found = made(settings, tmp_path / "out", finetune=changes, methods={"lorta": {"method": "lorta", "ranks": [1]}})
    whole = made(settings, tmp_path / "whole", finetune=changes, methods={"lorta": {"method": "lorta", "ranks": [1]}})
    assert run_one(found, 0) == run_one(whole, 1) == "done"
    plain, steps = trainer.StructureTrainer.training_step, []

    def interrupted(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(inputs["step"])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.StructureTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_one(found, 1)
    assert found.state(found.cells[1]) == "waiting"
    assert run_one(found, 1) == "done"
    assert steps == [0, 1, 2, 3, 2, 3, 4]
    folders = [one.place.training_folder(Arm("lorta", 1), 0.03, 0) for one in (found, whole)]
    assert (folders[0] / output.ADAPTER_WEIGHTS).read_bytes() == (folders[1] / output.ADAPTER_WEIGHTS).read_bytes()
    lent, own = (json.loads((folder / output.RESULTS).read_text()) for folder in folders)
    assert lent["base"] == own["base"]
    assert lent["adapted"] == own["adapted"]


def test_relatives_of_targets_are_refused_and_listed(settings, small_data: Path, structures: Path, tmp_path: Path):
    """A training chain that holds a target: 35 of its 40 residues, under another name and other numbers."""
    leaky = tmp_path / "leaky"
    whole = read_structure(structures / "1A8O_A.pdb").chains[0]
    write(stretch(whole, 16, 60, numbers_from=900), leaky / "innocent.pdb")
    write(read_structure(small_data / "train" / "1LCD.pdb").chains[0], leaky / "1LCD.pdb")
    changes = settings()["finetune"]
    changes["data"] |= {"folder": str(leaky)}
    with pytest.raises(ConfigError) as refused:
        made(settings, tmp_path / "out", finetune=changes)
    assert "1 of 2 targets resemble" in str(refused.value)
    assert "small/T0001-D1: train chain innocent has 100 % identity over 88 % of the shorter" in str(refused.value)
    answer = load(tmp_path / "out" / "leakage.json")
    assert answer is not None
    assert [(one.part, one.chain, one.target, one.target_released) for one in answer.offenders] == [
        ("train", "innocent", "T0001-D1", "1998-09-16")
    ]
    config = ComparisonConfig.model_validate({**settings(finetune=changes), "out": str(tmp_path / "out")})
    allowed = prepare(config, allow_leakage=True)
    assert allowed.leakage.stamp.startswith("LEAKAGE: 1 of 2 targets resemble")


def test_dates_of_chains_are_compared_with_those_of_targets(settings, small_data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("name,release_date\n1A7G,1994-01-31\n1LCD,1990-01-01\n")
    changes = settings()["finetune"]
    changes["data"] |= {"table": str(table)}
    found = made(settings, tmp_path / "out", finetune=changes)
    assert found.leakage.later == ("1A7G",)
    assert found.leakage.undated == (1, 0)
    assert "1 of the chains were released after the first target, such as 1A7G" in found.leakage.note


def test_budgets_become_the_largest_rank_that_fits(settings) -> None:
    methods = {
        "lora": {"method": "peft_lora", "init": "authors", "budgets": [12_288, 40_000]},
        "lorta": {"method": "lorta", "budgets": [1_000]},
    }
    config = ComparisonConfig.model_validate(settings(methods=methods))
    # By hand: 12,288 parameters for each rank of LoRA, 306 for LoRTA.
    assert ranks_of_budgets(config) == {"lora": [1, 3], "lorta": [3]}
    assert largest_rank(lambda rank: 10 * rank, 1_234, "key") == 123
    with pytest.raises(ConfigError, match="key: 9 parameters are fewer than rank 1 has: 10"):
        largest_rank(lambda rank: 10 * rank, 9, "key")


def test_targets_are_read_as_their_table_says(small_data: Path, tmp_path: Path) -> None:
    folder = str(small_data / "targets")
    first, second = read_targets("x", TargetsConfig(folder=folder))
    assert (first.name, first.kind, first.span, first.pdb_id) == ("T0001-D1", "FM", ((11, 50),), "1a8o")
    assert first.judged_sequence == first.reference.chains[0].sequence
    assert (second.span, len(second.sequence)) == (None, 30)
    assert [t.name for t in read_targets("x", TargetsConfig(folder=folder, max_length=69))] == ["T0002-D1"]
    assert [t.name for t in read_targets("x", TargetsConfig(folder=folder, leave_out=["T0002-D1"]))] == ["T0001-D1"]
    assert [t.name for t in read_targets("x", TargetsConfig(folder=folder, where={"class": "FM"}))] == ["T0001-D1"]
    with pytest.raises(ConfigError, match="has no target that the settings let through"):
        read_targets("x", TargetsConfig(folder=folder, where={"class": "none"}))
    with pytest.raises(ConfigError, match="there is no column 'kind'"):
        read_targets("x", TargetsConfig(folder=folder, where={"kind": "FM"}))
    short = tmp_path / "short.fasta"
    short.write_text(">T0001\nACDEFGHIKL\n")
    with pytest.raises(ConfigError, match="T0001-D1 ends at residue 50, and its target's sequence has 10"):
        read_targets("x", TargetsConfig(folder=folder, sequences=str(short)))
    assert parse_span("2-50, 100-150", "") == ((2, 50), (100, 150))
    with pytest.raises(ConfigError, match="the range '5-2' is not as"):
        parse_span("5-2", "table")


def test_full_training_is_of_the_parts_that_are_named(settings) -> None:
    methods = {"full": {"method": "full", "learning_rates": [1e-4]}}
    config = ComparisonConfig.model_validate(settings(methods=methods, lora=None))
    made_of = training_config(config, Arm("full", None), 1e-4, 7)
    assert (made_of.mode, made_of.training.full_parts, made_of.training.seed) == ("full", ["esm"], 7)
    assert made_of.data == config.finetune.data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": "lorra"}, "lora: 'lorra' is none of the methods: lora, lorta"),
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"tuning_seeds": 2}, "there are only 1 seeds"),
        ({"methods": {"a/b": {"method": "lorta"}}, "lora": None}, "'a/b' cannot be a name"),
        ({"methods": {"a": {"method": "lorta", "ranks": [1], "budgets": [5]}}, "lora": None}, "not both"),
        ({"methods": {"a": {"method": "full", "ranks": [1]}}, "lora": None}, "full has no rank"),
        ({"learning_rate": [1]}, "unknown key 'learning_rate'; did you mean 'learning_rates'"),
    ],
)
def test_mistakes_in_the_configuration_are_told(config_file, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config(ComparisonConfig, config_file(**change))
