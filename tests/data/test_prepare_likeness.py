"""Which sequences resemble each other, against sequences made so, plain loops, and biotite's alignment."""

from __future__ import annotations

import itertools
import os
import shutil
import signal

import biotite.sequence as seq
import biotite.sequence.align as biotite_align
import numpy as np
import pytest
from Bio.Align import substitution_matrices
from made_structures import LETTERS, mutated, random_sequence

from protfold_peft.data.prepare.alignment import Likeness, Match, align
from protfold_peft.data.prepare.parallel import each
from protfold_peft.data.prepare.search import resolve_search, similar_pairs
from protfold_peft.data.prepare.split import clusters, split
from protfold_peft.data.prepare.words import BAND, THRESHOLD, WordIndex, neighbourhoods, words
from protfold_peft.errors import ProtfoldError

BLOSUM62 = substitution_matrices.load("BLOSUM62")
LIKE = Likeness(0.3, 0.5)


# -- one alignment ----------------------------------------------------------------------------------------------------


def test_identity_and_coverage_of_sequences_made_so() -> None:
    parent = random_sequence(120, 1)
    # The ends are kept, so that the alignment reaches them: 30 of 120 residues are changed.
    child = parent[:5] + mutated(parent[5:-5], 1 - 30 / 110, 2) + parent[-5:]
    match = align(parent, child, searched=1000)
    assert match is not None
    assert (match.identity, match.coverage) == (90 / 120, 1.0)
    # Six residues more in the middle: six more columns, none of them identical.
    match = align(parent, parent[:60] + "WWWWWW" + parent[60:], searched=1000)
    assert match is not None
    assert (match.identity, match.coverage) == (120 / 126, 1.0)


def test_coverage_is_of_the_shorter_sequence() -> None:
    domain = random_sequence(60, 3)
    long = random_sequence(200, 4) + domain + random_sequence(140, 5)
    for pair in ((domain, long), (long, domain)):
        match = align(*pair, searched=1000)
        assert match is not None
        assert match.identity == 1.0
        assert match.coverage == 1.0
    # Half of the shorter chain.
    match = align(domain[:30] + "P" * 30, long, searched=1000)
    assert match is not None
    assert match.coverage == pytest.approx(0.5, abs=0.1)


def test_unknown_residues_are_identical_to_nothing() -> None:
    core = random_sequence(40, 7)
    match = align(core[:20] + "XX" + core[20:], core[:20] + "XX" + core[20:], searched=1000)
    assert match is not None
    assert match.identity == 40 / 42


@pytest.mark.parametrize("seed", range(12))
def test_score_identity_and_coverage_agree_with_biotite(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parent = random_sequence(int(rng.integers(60, 140)), seed)
    cut = int(rng.integers(10, 40))
    child = mutated(parent, 0.6, seed + 100)
    child = random_sequence(cut, seed + 200) + child[:cut] + child[cut + 4 :]
    sequences = [seq.ProteinSequence(text) for text in (parent, child)]
    matrix = biotite_align.SubstitutionMatrix.std_protein_matrix()
    best = biotite_align.align_optimal(*sequences, matrix, gap_penalty=(-12, -1), local=True, max_number=50)
    match = align(parent, child, searched=5000)
    assert match is not None
    assert match.evalue == pytest.approx(0.041 * len(parent) * 5000 * np.exp(-0.267 * best[0].score), rel=1e-9)
    shorter = int(len(child) < len(parent))
    seen = set()
    for alignment in best:
        trace = alignment.trace
        same = sum(parent[i] == child[j] for i, j in trace if i >= 0 and j >= 0)
        places = trace[:, shorter][trace[:, shorter] >= 0]
        spans = (places[-1] - places[0] + 1) / min(len(parent), len(child))
        seen.add((round(same / len(trace), 9), round(float(spans), 9)))
    # Of several alignments of the best score it is one.
    assert (round(match.identity, 9), round(match.coverage, 9)) in seen


def test_likeness_needs_identity_coverage_and_more_than_chance() -> None:
    assert LIKE.holds(Match(0.3, 0.5, 1e-2))
    assert not LIKE.holds(Match(0.29, 0.5, 1e-9))
    assert not LIKE.holds(Match(0.3, 0.49, 1e-9))
    assert not LIKE.holds(Match(0.8, 1.0, 0.011))
    # A peptide is too short for a low E-value; that it is the same is likeness enough.
    peptide = "GIVEQCCTSICSLYQ"
    assert align(peptide, random_sequence(50, 1) + peptide, searched=10**9, likeness=LIKE) is not None
    assert align("GIVEQAAAAAA", "GIVEQWWWWWW", searched=10**9, likeness=LIKE) is None


# -- candidates -------------------------------------------------------------------------------------------------------


def word_score(one: str, other: str) -> float:
    return sum(BLOSUM62[a, b] for a, b in zip(one, other))


def test_neighbourhoods_are_the_words_of_enough_score() -> None:
    first, neighbours = neighbourhoods()
    every = ["".join(letters) for letters in itertools.product(LETTERS, repeat=3)]
    for word in ("AAA", "WCH", "LLK"):
        (number,) = words(word)
        expected = [i for i, other in enumerate(every) if word_score(word, other) >= THRESHOLD]
        assert neighbours[first[number] : first[number + 1]].tolist() == expected


def test_hits_of_the_best_band_agree_with_plain_loops() -> None:
    query = random_sequence(50, 11)
    targets = [random_sequence(70, 12), mutated(query, 0.6, 13), "AC", random_sequence(10, 14) + query[20:] + "XX"]
    scores, _ = WordIndex(targets).scores(query)
    for target, score in zip(targets, scores):
        hits = [
            j - i
            for i in range(len(query) - 2)
            for j in range(len(target) - 2)
            if "X" not in target[j : j + 3] and word_score(query[i : i + 3], target[j : j + 3]) >= THRESHOLD
        ]
        best = max(
            (sum(d <= hit < d + BAND for hit in hits) for d in range(-len(query) - BAND, len(target))), default=0
        )
        assert score == best


def family(n_families: int, size: int, identity: float) -> tuple[list[str], list[int]]:
    sequences, of = [], []
    for number in range(n_families):
        parent = random_sequence(80 + 5 * number, 1000 + number)
        for member in range(size):
            sequences.append(mutated(parent, identity, 31 * number + member))
            of.append(number)
    return sequences, of


@pytest.mark.parametrize("search", ["builtin", "mmseqs"])
@pytest.mark.parametrize("processes", [1, 2])
def test_search_finds_families_and_nothing_else(search: str, processes: int) -> None:
    if search == "mmseqs" and shutil.which("mmseqs") is None:
        pytest.skip("MMseqs2 is not installed")
    sequences, of = family(12, 4, 0.7)  # two members share about half of their residues
    pairs = similar_pairs(sequences, None, LIKE, search=search, processes=processes, what="testing")
    assert all(pair.query < pair.target for pair in pairs)
    found = {(pair.query, pair.target) for pair in pairs}
    assert {(i, j) for i, j in itertools.combinations(range(len(of)), 2) if of[i] == of[j]} == found


@pytest.mark.parametrize("search", ["builtin", "mmseqs"])
def test_a_domain_is_found_inside_a_longer_chain(search: str) -> None:
    if search == "mmseqs" and shutil.which("mmseqs") is None:
        pytest.skip("MMseqs2 is not installed")
    domain = random_sequence(90, 21)
    long = random_sequence(300, 22) + mutated(domain, 0.6, 23) + random_sequence(200, 24)
    pairs = similar_pairs([long, random_sequence(90, 25)], [domain], LIKE, search=search, processes=1, what="testing")
    assert [(pair.query, pair.target) for pair in pairs] == [(0, 0)]
    assert pairs[0].match.identity == pytest.approx(0.6, abs=0.05)


def test_the_built_in_search_misses_nothing_that_all_alignments_show(test_data) -> None:
    lines = (test_data / "structures" / "manifest.tsv").read_text().splitlines()
    column = lines[0].split("\t").index("sequence")
    sequences = [line.split("\t")[column] for line in lines[1::12]]
    searched = sum(map(len, sequences))
    pairs = similar_pairs(sequences, None, LIKE, search="builtin", processes=2, what="testing")
    found = {(pair.query, pair.target) for pair in pairs}
    every = {
        (i, j)
        for i, j in itertools.combinations(range(len(sequences)), 2)
        if align(sequences[i], sequences[j], searched=searched, likeness=LIKE)
    }
    assert found <= every
    assert len(found) >= 0.99 * len(every) > 0


def test_mmseqs_that_fails_or_is_absent_is_told(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_search("auto") == "builtin"
    with pytest.raises(ProtfoldError, match="install MMseqs2, or use builtin"):
        resolve_search("mmseqs")
    program = tmp_path / "mmseqs"
    program.write_text("#!/bin/sh\necho no space >&2\nexit 3\n")
    program.chmod(0o755)
    assert resolve_search("auto") == "mmseqs"
    with pytest.raises(ProtfoldError, match=r"MMseqs2 failed \(status 3\): no space"):
        similar_pairs(["ACDEF"], None, LIKE, search="mmseqs", processes=1, what="testing")


def _die(item: int) -> int:
    if item == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_results_come_in_order_and_a_killed_process_is_told() -> None:
    items = range(100)
    assert list(each(str, items, processes=3, what="testing", unit="items")) == [str(item) for item in items]
    with pytest.raises(ProtfoldError, match="testing: a process was killed"):
        list(each(_die, items, processes=2, what="testing", unit="items"))


# -- clusters and split -----------------------------------------------------------------------------------------------


def test_clusters_are_what_paths_join() -> None:
    assert clusters(7, [(4, 2), (0, 4), (5, 6)]).tolist() == [0, 1, 0, 2, 0, 3, 3]
    assert clusters(2, []).tolist() == [0, 1]
    chain = [(i, i + 1) for i in range(499)]
    np.random.default_rng(0).shuffle(chain)
    assert set(clusters(500, chain).tolist()) == {0}


def test_a_split_cuts_no_cluster_and_hangs_on_sequences_and_seed_only() -> None:
    rng = np.random.default_rng(5)
    n = 400
    cluster = np.unique(rng.integers(0, 90, n), return_inverse=True)[1]
    sequences = [random_sequence(30, i) for i in range(n)]
    chosen = split(cluster, sequences, 0.15, seed=3)
    assert chosen.sum() == pytest.approx(60, abs=2)
    assert not set(cluster[chosen]) & set(cluster[~chosen])
    # In another order, with the clusters numbered otherwise, the same sequences are chosen.
    order = rng.permutation(n)
    renumbered = rng.permutation(cluster.max() + 1)[cluster[order]]
    again = split(renumbered, [sequences[i] for i in order], 0.15, seed=3)
    assert again.tolist() == chosen[order].tolist()
    other = split(cluster, sequences, 0.15, seed=4)
    assert other.tolist() != chosen.tolist()
    assert not split(cluster, sequences, 0.0, seed=3).any()


def test_a_split_of_large_or_few_clusters() -> None:
    sequences = [random_sequence(30, i) for i in range(10)]
    # Nothing is as small as a tenth: the smaller of two is taken; of one none.
    assert split(np.array([0] * 7 + [1] * 3), sequences, 0.1, seed=0).tolist() == [False] * 7 + [True] * 3
    assert not split(np.zeros(10, dtype=int), sequences, 0.1, seed=0).any()
