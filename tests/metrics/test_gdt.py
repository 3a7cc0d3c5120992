"""GDT against stored and live values of TMscore, and cases that can be counted by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pairs import (
    KINDS,
    ca_of_file,
    made_pair,
    perturbed,
    random_rotation,
    real_chains,
    stored_json,
    stored_pairs,
    tmscore_program,
)

from protfold_peft.metrics import gdt, gdt_ha, gdt_ts, tm_and_gdt, tm_score

SEEDS = st.integers(0, 2**32 - 1)


def test_stored_pairs(test_data: Path) -> None:
    compared = 0
    for pair in stored_pairs(test_data):
        expected, length = pair.expected["gdt"], pair.expected["L_ref"]
        results = {"ts": gdt_ts(*pair.ca), "ha": gdt_ha(*pair.ca)}
        for name, result in results.items():
            if expected[f"{name}_best_known"] is not None:
                assert result.score.item() <= expected[f"{name}_best_known"] + 2 / length, pair.name
            if expected[f"{name}_f77"] is None:  # S26, which TMscore cannot match
                continue
            # Four decimals are all that the program prints.
            assert result.score.item() == pytest.approx(expected[f"{name}_f77"], abs=1e-4), pair.name
            for cutoff, fraction in zip(result.cutoffs, result.fractions[0].tolist()):
                assert fraction == pytest.approx(expected["fractions_f77"][f"{cutoff:g}"], abs=1e-4), pair.name
            assert result.score.item() >= expected[f"{name}_at_single_kabsch"]
            compared += 1
    assert compared == 24


def test_stored_short_chains_and_mirror(test_data: Path) -> None:
    cases = {f"short/{name}": value["f77"] for name, value in stored_json(test_data, "short").items()}
    mirror = stored_json(test_data, "mirror")
    cases["mirror"] = {"gdt_ts": mirror["gdt_ts_f77"], "tm": mirror["tm"]}
    for name, expected in cases.items():
        folder = test_data / "metrics" / name
        model, chain = (torch.tensor(ca_of_file(folder / f"{which}.pdb"))[None] for which in ("model", "ref"))
        tm, (ts, ha) = tm_and_gdt(model, chain, torch.ones(chain.shape[:2]))
        assert ts.score.item() == pytest.approx(expected["gdt_ts"], abs=6e-5), name
        if "gdt_ha" in expected:
            assert ha.score.item() == pytest.approx(expected["gdt_ha"], abs=6e-5), name
        assert tm.score.item() == pytest.approx(expected["tm"], abs=6e-5), name


@pytest.mark.skipif(shutil.which("TMscore") is None, reason="the program TMscore (Debian: tm-align) is not installed")
def test_the_program_tmscore(structures: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(21)
    for name, chain in real_chains(structures).items():
        for kind in KINDS:
            model, present = perturbed(chain, kind, rng)
            expected = tmscore_program(tmp_path, model, chain, present)
            model, chain = model.round(3), chain.round(3)
            inputs = torch.tensor(model)[None], torch.tensor(chain)[None], torch.ones(1, len(chain))
            _, (ts, ha) = tm_and_gdt(*inputs, torch.tensor(present)[None])
            # A residue on the very cutoff may fall either side: the program reckons in single precision.
            assert ts.score.item() == pytest.approx(expected["ts"], abs=0.25 / len(chain) + 1e-4), (name, kind)
            assert ha.score.item() == pytest.approx(expected["ha"], abs=0.25 / len(chain) + 1e-4), (name, kind)


def test_counted_by_hand() -> None:
    """A rigid core of 40 residues, three residues 1.5, 3 and 6 A off, one beyond any cutoff, one missing."""
    rng = np.random.default_rng(0)
    chain = np.cumsum(rng.normal(scale=3, size=(45, 3)), axis=0)
    model = chain.copy()
    model[40:44] += np.array([[1.5, 0, 0], [0, 3, 0], [0, 0, 6], [90, 0, 0]])
    present = torch.ones(1, 45)
    present[0, 44] = 0
    ts, ha = (
        score(torch.tensor(model)[None], torch.tensor(chain)[None], torch.ones(1, 45), present)
        for score in (gdt_ts, gdt_ha)
    )
    # Small shifts of the whole may bring residues within the cutoff, so the counts are lower bounds; here they are met.
    assert ts.fractions[0].tolist() == pytest.approx([40 / 45, 41 / 45, 42 / 45, 43 / 45])
    assert ts.score.item() == pytest.approx((40 + 41 + 42 + 43) / 4 / 45)
    assert ha.fractions[0].tolist() == pytest.approx([40 / 45, 40 / 45, 41 / 45, 42 / 45])


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 50))
def test_bounds_order_and_rigid_motion(seed: int, n: int) -> None:
    model, chain, mask, present = made_pair(seed, n)
    ts, ha = gdt_ts(model, chain, mask, present), gdt_ha(model, chain, mask, present)
    assert 0 <= ha.score.item() <= ts.score.item() <= present.sum().item() / n + 1e-12
    assert (ts.fractions.diff(dim=1) >= 0).all()
    torch.testing.assert_close(ts.fractions[:, :3], ha.fractions[:, 1:])
    rng = np.random.default_rng(seed)
    turn = torch.tensor(random_rotation(rng))
    moved = gdt_ts(model @ turn.mT + 30, chain, mask, present).fractions
    # Counts of residues: rounding may move one that is on the cutoff.
    assert ((moved - ts.fractions).abs() <= 1 / n + 1e-12).all()
    assert gdt_ts(chain, chain, mask).score.item() == 1


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 10))
def test_padding_changes_nothing(seed: int, n: int, more: int) -> None:
    model, chain, mask, present = made_pair(seed, n)
    pad, none = torch.full((1, more, 3), math.nan).double(), torch.zeros(1, more, dtype=torch.bool)
    wide = gdt_ts(*(torch.cat([x, y], 1) for x, y in zip((model, chain, mask, present), (pad, pad, none, none))))
    torch.testing.assert_close(wide.fractions, gdt_ts(model, chain, mask, present).fractions)


def test_one_search_gives_all() -> None:
    inputs = made_pair(3, 50)
    tm, (ts, ha) = tm_and_gdt(*inputs)
    assert torch.equal(tm.score, tm_score(*inputs).score)
    assert torch.equal(ts.fractions, gdt_ts(*inputs).fractions)
    assert torch.equal(ha.score, gdt_ha(*inputs).score)
    assert gdt(*inputs, cutoffs=(3.0,)).fractions.shape == (1, 1)


def test_bad_input_is_refused() -> None:
    chain = torch.randn(1, 5, 3)
    with pytest.raises(ValueError, match="reference coordinates of sample 0, residue 0"):
        gdt_ts(chain, chain * math.nan, torch.ones(1, 5))
    with pytest.raises(ValueError, match="gdt takes two"):
        gdt_ha(chain, chain[:, :2], torch.ones(1, 5))
    assert gdt_ts(chain, chain, torch.zeros(1, 5)).score.isnan().all()
