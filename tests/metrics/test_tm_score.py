"""TM-score against stored values, live TMscore and tmtools on fresh perturbations, and what must hold for any input."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace
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
    padded,
    perturbed,
    random_rotation,
    random_walk,
    real_chains,
    stored_json,
    stored_pairs,
    tmscore_program,
    write_ca_pdb,
)

from protfold_peft.errors import NonFiniteError
from protfold_peft.metrics import gdt_ha, gdt_ts, tm_score
from protfold_peft.metrics import states as states_module
from protfold_peft.metrics.states import seeds

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}
SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.integers(1, 60)


def tmtools_score(model: np.ndarray, chain: np.ndarray, present: np.ndarray) -> float:
    """TM-score of the fixed correspondence by tmtools, normalised by the length of the chain."""
    tmtools = pytest.importorskip("tmtools")
    aligned = "".join("A" if there else "-" for there in present)
    result = tmtools.tm_align(
        np.ascontiguousarray(model[present]),
        chain,
        "A" * int(present.sum()),
        "A" * len(chain),
        alignment=[aligned, "A" * len(chain)],
    )
    return float(result.tm_norm_chain2)


class TestStored:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_pairs(self, test_data: Path, dtype: torch.dtype) -> None:
        for pair in stored_pairs(test_data, dtype):
            expected = pair.expected["tm_score"]
            result = tm_score(*pair.ca)
            assert result.score.item() == pytest.approx(expected["value"], abs=TOLERANCE[dtype]), pair.name
            if expected["TMscore_f77_4dp"] is not None:
                assert result.score.item() == pytest.approx(expected["TMscore_f77_4dp"], abs=1e-4), pair.name
            assert result.d0.item() == pytest.approx(expected["d0"], abs=1e-6)
            assert result.length.item() == pair.expected["L_ref"]
            assert result.n_matched.item() == pair.expected["n_matched"]
            by_model = tm_score(*pair.ca, normalise=pair.model_length)
            assert by_model.score.item() == pytest.approx(expected["norm_by_model_length"], abs=TOLERANCE[dtype])

    def test_reweighted_search_is_never_below_and_reaches_the_best_known(self, test_data: Path) -> None:
        for pair in stored_pairs(test_data):
            expected = pair.expected["tm_score"]
            score = tm_score(*pair.ca, search="irls").score.item()
            assert score >= expected["value"] - 1e-9, pair.name
            if expected["best_known"] is not None:
                assert score == pytest.approx(expected["best_known"], abs=2e-6), pair.name

    def test_one_batch_of_all(self, test_data: Path) -> None:
        """Padding changes nothing, whatever stands in it."""
        pairs = stored_pairs(test_data)
        columns = [
            padded([tensor[0].numpy() for tensor in column], fill)
            for column, fill in zip(zip(*(pair.ca for pair in pairs)), (math.nan, math.nan, False, False))
        ]
        together = tm_score(*columns)
        for row, pair in enumerate(pairs):
            assert together.score[row].item() == pytest.approx(pair.expected["tm_score"]["value"], abs=1e-7), pair.name
            alone = tm_score(*pair.ca)
            torch.testing.assert_close(together.superposition.rotation[row], alone.superposition.rotation[0])

    def test_short_chains(self, test_data: Path) -> None:
        for name, expected in stored_json(test_data, "short").items():
            folder = test_data / "metrics" / "short" / name
            model, chain = (torch.tensor(ca_of_file(folder / f"{which}.pdb"))[None] for which in ("model", "ref"))
            assert chain.shape[1] == expected["L"]
            result = tm_score(model, chain, torch.ones(chain.shape[:2]))
            assert result.score.item() == pytest.approx(expected["f77"]["tm"], abs=6e-5), name
            assert result.d0.item() == pytest.approx(expected["f77"]["d0"], abs=5e-3)
            stronger = tm_score(model, chain, torch.ones(chain.shape[:2]), search="irls").score.item()
            assert stronger >= result.score.item() - 1e-12

    def test_mirror_image(self, test_data: Path) -> None:
        expected = stored_json(test_data, "mirror")
        folder = test_data / "metrics" / "mirror"
        model, chain = (torch.tensor(ca_of_file(folder / f"{which}.pdb"))[None] for which in ("model", "ref"))
        result = tm_score(model, chain, torch.ones(chain.shape[:2]))
        assert result.score.item() == pytest.approx(expected["tm"], abs=1e-7)
        assert torch.linalg.det(result.superposition.rotation).item() == pytest.approx(1)

    def test_ensembles_against_their_first_model(self, test_data: Path) -> None:
        for name, ensemble in stored_json(test_data, "ensembles").items():
            path = test_data / "metrics" / "ensembles" / f"{name}.pdb"
            models = torch.tensor(np.stack([ca_of_file(path, k) for k in range(ensemble["n_models"])]))
            first = models[:1].expand_as(models)
            scores = tm_score(models, first, torch.ones(models.shape[:2])).score
            np.testing.assert_allclose(scores, [value["tm"] for value in ensemble["values"]], atol=1e-7)


class TestLivePrograms:
    def cases(self, structures: Path, extra: Path | None = None, count: int | None = None):
        rng = np.random.default_rng(7)
        for name, chain in list(real_chains(structures, extra).items())[:count]:
            for kind in KINDS:
                yield f"{name} {kind}", chain, *perturbed(chain, kind, rng)

    def compare(self, cases) -> None:
        names, chains, models, present = zip(*cases)
        scores = tm_score(
            padded(list(models), math.nan),
            padded(list(chains), math.nan),
            padded([np.ones(len(chain), dtype=bool) for chain in chains], False),
            padded(list(present), False),
        ).score
        for name, chain, model, there, score in zip(names, chains, models, present, scores.tolist()):
            assert score == pytest.approx(tmtools_score(model, chain, there), abs=1e-6), name

    def test_tmtools_on_examples(self, structures: Path) -> None:
        self.compare(self.cases(structures))

    def test_tmtools_on_casp14(self, structures: Path, test_data: Path) -> None:
        self.compare(self.cases(structures, test_data / "casp14", count=25))

    @pytest.mark.slow
    def test_tmtools_on_all_of_casp14(self, structures: Path, test_data: Path) -> None:
        self.compare(self.cases(structures, test_data / "casp14"))

    @pytest.mark.skipif(
        shutil.which("TMscore") is None, reason="the program TMscore (Debian: tm-align) is not installed"
    )
    def test_the_program_tmscore(self, structures: Path, tmp_path: Path) -> None:
        for name, chain, model, present in self.cases(structures):
            score = tmscore_program(tmp_path, model, chain, present)["tm"]
            mask = torch.ones(1, len(chain))
            ours = tm_score(
                *(torch.tensor(x)[None].round(decimals=3) for x in (model, chain)), mask, torch.tensor(present)[None]
            )
            assert ours.score.item() == pytest.approx(score, abs=1e-4), name

    @pytest.mark.skipif(
        shutil.which("TMalign") is None, reason="the program TMalign (Debian: tm-align) is not installed"
    )
    def test_tmalign_agrees_where_its_alignment_is_ours(self, structures: Path, tmp_path: Path) -> None:
        """A free alignment finds the fixed one again when a structure is only a little shaken."""
        rng = np.random.default_rng(3)
        compared = 0
        for name, chain in real_chains(structures).items():
            if len(chain) < 40:
                continue
            model = chain + rng.normal(scale=0.4, size=chain.shape)
            write_ca_pdb(tmp_path / "model.pdb", model)
            write_ca_pdb(tmp_path / "ref.pdb", chain)
            command = ["TMalign", str(tmp_path / "model.pdb"), str(tmp_path / "ref.pdb")]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            theirs = float(re.findall(r"TM-score=\s*([0-9.]+)", output)[1])
            mask = torch.ones(1, len(chain))
            ours = tm_score(torch.tensor(model)[None], torch.tensor(chain)[None], mask).score.item()
            assert ours == pytest.approx(theirs, abs=2e-3), name
            compared += 1
        assert compared


class TestAnyInput:
    @settings(max_examples=25, deadline=None)
    @given(SEEDS, LENGTHS)
    def test_bounds_and_what_is_missing_counts_against(self, seed: int, n: int) -> None:
        model, chain, mask, present = made_pair(seed, n)
        result = tm_score(model, chain, mask, present)
        assert 0 < result.score.item() <= present.sum().item() / n + 1e-12
        assert tm_score(chain, chain, mask).score.item() == pytest.approx(1)
        assert torch.linalg.det(result.superposition.rotation).item() == pytest.approx(1)

    @settings(max_examples=25, deadline=None)
    @given(SEEDS, LENGTHS)
    def test_reweighted_search_is_never_below(self, seed: int, n: int) -> None:
        inputs = made_pair(seed, n)
        assert tm_score(*inputs, search="irls").score.item() >= tm_score(*inputs).score.item() - 1e-12

    @settings(max_examples=25, deadline=None)
    @given(SEEDS, st.integers(3, 60))
    def test_rigid_motion_of_either_changes_nothing(self, seed: int, n: int) -> None:
        model, chain, mask, present = made_pair(seed, n)
        rng = np.random.default_rng(seed)
        turn, shift = torch.tensor(random_rotation(rng)), torch.tensor(rng.normal(scale=50, size=3))
        expected = tm_score(model, chain, mask, present)
        moved = tm_score(model @ turn.mT + shift, chain, mask, present)
        also = tm_score(model, chain @ turn.mT - shift, mask, present)
        torch.testing.assert_close(moved.score, expected.score, atol=1e-8, rtol=0)
        torch.testing.assert_close(also.score, expected.score, atol=1e-8, rtol=0)

    @settings(max_examples=25, deadline=None)
    @given(SEEDS, LENGTHS)
    def test_symmetric_when_both_have_every_residue(self, seed: int, n: int) -> None:
        model, chain, mask, _ = made_pair(seed, n)
        torch.testing.assert_close(
            tm_score(model, chain, mask).score, tm_score(chain, model, mask).score, atol=1e-8, rtol=0
        )

    @settings(max_examples=25, deadline=None)
    @given(SEEDS, LENGTHS, st.integers(0, 20))
    def test_padding_changes_nothing(self, seed: int, n: int, more: int) -> None:
        model, chain, mask, present = made_pair(seed, n)
        pad = torch.full((1, more, 3), math.nan).double()
        none = torch.zeros(1, more, dtype=torch.bool)
        alone = tm_score(model, chain, mask, present)
        wide = tm_score(
            torch.cat([pad, model], 1),
            torch.cat([pad, chain], 1),
            torch.cat([none, mask], 1),
            torch.cat([none, present], 1),
        )
        torch.testing.assert_close(wide.score, alone.score, atol=1e-9, rtol=0)

    @settings(max_examples=15, deadline=None)
    @given(SEEDS, st.integers(2, 40))
    def test_the_superposition_has_the_score(self, seed: int, n: int) -> None:
        model, chain, mask, present = made_pair(seed, n)
        for search in ("tmscore", "irls"):
            result = tm_score(model, chain, mask, present, search=search)
            square = (result.superposition.apply(model) - chain).square().sum(-1)
            total = ((1 / (1 + square / result.d0**2)) * present).sum() / n
            assert total.item() == pytest.approx(result.score.item(), abs=1e-9)
            rmsd = (square * present).sum() / present.sum()
            assert rmsd.sqrt().item() == pytest.approx(result.superposition.rmsd.item(), abs=1e-7)


class TestHowItIsComputed:
    def test_blocks_and_groups_of_any_size_give_the_same(
        self, structures: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(11)
        chains = list(real_chains(structures).values())
        models = [perturbed(chain, kind, rng)[0] for chain, kind in zip(chains, KINDS * 2)]
        inputs = padded(models, 0.0), padded(chains, 0.0), padded([np.ones(len(c), dtype=bool) for c in chains], False)
        expected = {search: tm_score(*inputs, search=search).score for search in ("tmscore", "irls")}
        monkeypatch.setattr(states_module, "BLOCK_CPU", 1000)
        monkeypatch.setattr(states_module, "SEEDS_CPU", 300)
        for search, score in expected.items():
            torch.testing.assert_close(tm_score(*inputs, search=search).score, score, atol=1e-9, rtol=0)

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 64, 65, 66, 130])
    def test_seeds_are_tmscores(self, n: int) -> None:
        """Counted as the program does: L, L/2, ... down to 4 (L where shorter), at most six, at every start."""
        lengths = []
        for halving in range(5):
            lengths.append(n // 2**halving)
            if lengths[-1] <= min(4, n):
                lengths[-1] = min(4, n)
                break
        else:
            lengths.append(4)
        fragments = sorted((length, start) for length in lengths for start in range(n - length + 1))
        x = torch.zeros(1, n, 3).double()
        number = torch.arange(n).double()
        pairs = states_module.Pairs.of(x, x, torch.ones(1, n, dtype=torch.bool), torch.ones(1).double())
        sums = pairs.sums.clone()
        sums[0, :, 0] = number
        states = seeds(replace(pairs, sums=sums))
        found = sorted(
            (round(count), round((total - count * (count - 1) / 2) / count))
            for total, count in zip(states.sums[:, 0].tolist(), states.sums[:, -1].tolist())
        )
        assert found == fragments


class TestEdges:
    def test_one_residue_superposes_perfectly(self) -> None:
        chain = torch.randn(1, 1, 3)
        result = tm_score(chain + 5, chain, torch.ones(1, 1))
        assert result.score.item() == pytest.approx(1)
        assert result.superposition.rmsd.item() == pytest.approx(0, abs=1e-5)

    def test_no_match_is_zero_and_no_reference_is_nan(self) -> None:
        chain = torch.randn(2, 5, 3)
        mask = torch.tensor([[True] * 5, [False] * 5])
        result = tm_score(chain, chain, mask, torch.zeros(2, 5))
        assert result.score[0].item() == 0
        assert result.score[1].isnan()
        assert result.n_matched.tolist() == [0, 0]
        assert tm_score(chain, chain, mask, torch.zeros(2, 5), search="irls").score[0].item() == 0

    def test_an_empty_batch(self) -> None:
        assert tm_score(torch.zeros(0, 5, 3), torch.zeros(0, 5, 3), torch.zeros(0, 5)).score.shape == (0,)

    def test_points_that_coincide_or_lie_on_a_line(self) -> None:
        line = torch.arange(10.0)[None, :, None] * torch.tensor([3.8, 0, 0])
        mask = torch.ones(1, 10)
        assert tm_score(line, line.flip(-1), mask).score.item() == pytest.approx(1)
        for search in ("tmscore", "irls"):
            assert tm_score(torch.zeros_like(line), line, mask, search=search).score.isfinite().all()

    def test_normalisation_by_the_model_counts_its_rows(self) -> None:
        chain = torch.tensor(random_walk(40, np.random.default_rng(0)))[None]
        present = torch.ones(1, 40)
        present[0, 30:] = 0
        assert tm_score(chain, chain, torch.ones(1, 40), present).score.item() == pytest.approx(0.75)
        assert tm_score(chain, chain, torch.ones(1, 40), present, normalise="model").score.item() == pytest.approx(1)
        lengths = torch.tensor([60])
        assert tm_score(chain, chain, torch.ones(1, 40), normalise=lengths).score.item() == pytest.approx(40 / 60)

    def test_of_all_atoms_the_ca_are_taken(self) -> None:
        model, chain, mask, present = made_pair(5, 30)
        atoms = [torch.full((1, 30, 37, 3), math.nan, dtype=torch.float64) for _ in range(2)]
        masks = [torch.zeros(1, 30, 37, dtype=torch.bool) for _ in range(2)]
        for into, ca in zip((*atoms, *masks), (model, chain, mask, present), strict=True):
            into[:, :, 1] = ca
        for score in (tm_score, gdt_ts, gdt_ha):
            assert torch.equal(score(*atoms, *masks).score, score(model, chain, mask, present).score)
        by_model = tm_score(*atoms, *masks, normalise="model")
        assert by_model.length.item() == present.sum().item()
        with pytest.raises(ValueError, match="tm_score takes CA or all 37 atoms, got 4"):
            tm_score(atoms[0][:, :, :4], atoms[1][:, :, :4], masks[0][:, :, :4])

    def test_bad_input_is_refused(self) -> None:
        chain = torch.randn(2, 8, 3)
        mask = torch.ones(2, 8)
        spoilt = chain.clone()
        spoilt[1, 3, 1] = math.nan
        for error in (ValueError, NonFiniteError):
            with pytest.raises(error, match="predicted coordinates of sample 1, residue 3"):
                tm_score(spoilt, chain, mask)
        with pytest.raises(ValueError, match="reference coordinates"):
            tm_score(chain, torch.where(spoilt.isnan(), math.inf, spoilt), mask)
        for bad in ({"search": "best"}, {"normalise": "shorter"}, {"normalise": 0}, {"normalise": torch.ones(3)}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                tm_score(chain, chain, mask, **bad)
        with pytest.raises(ValueError, match="tm_score takes two"):
            tm_score(chain[0], chain[0], mask)
        with pytest.raises(ValueError, match="mask"):
            tm_score(chain, chain, mask[:, :4])
