"""Work by several threads: same results, same order, settings left as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from scored_pairs import made_pair

from protfold_peft.metrics import lddt, tm_score
from protfold_peft.metrics.side_by_side import n_workers, one_core, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_in_order_one_thread_each_without_gradients(n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    result = side_by_side(lambda x: (x * x, torch.get_num_threads()), list(range(20)), CPU)
    assert [square for square, _ in result] == [x * x for x in range(20)]
    assert {used for _, used in result} == {1}
    assert torch.get_num_threads() == n_threads
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert not any(y.requires_grad for y in side_by_side(lambda x: x * weight, [1, 2, 3], CPU))
    assert side_by_side(lambda x: x, [], CPU) == []


def test_one_core_for_what_is_around_and_all_for_the_work() -> None:
    torch.set_num_threads(3)
    with one_core(CPU):
        assert (torch.get_num_threads(), n_workers(CPU)) == (1, 3)
        with one_core(CPU):
            assert n_workers(CPU) == 3
        names = side_by_side(lambda _: threading.current_thread().name, range(30), CPU)
        assert threading.current_thread().name not in names
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), n_workers(CPU)) == (3, 3)


def test_an_error_of_one_is_the_error_of_all() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 / x, [1, 0, 2], CPU)
    assert torch.get_num_threads() == 2


def test_scores_do_not_depend_on_threads() -> None:
    batch = [torch.cat(tensors) for tensors in zip(*(made_pair(seed, 40) for seed in range(12)))]
    results = []
    for n_threads in (1, 2, 5):
        torch.set_num_threads(n_threads)
        results.append((tm_score(*batch).score, tm_score(*batch, search="irls").score, lddt(*batch).score))
    for result in results[1:]:
        for value, expected in zip(result, results[0]):
            torch.testing.assert_close(value, expected, atol=1e-9, rtol=0)
