"""A real language model with grouped-query attention learns another text through each method."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS, TWO
from stories import (
    RECIPES,
    adapt,
    batch_of,
    load_stories,
    perplexity,
    split_by_table,
    spread,
    tokenize_lines,
    train,
)

from protfold_peft.adapters import TensorAdapterConfig


def config_of(method: str) -> tuple[TensorAdapterConfig, float]:
    config, own = METHODS[method]
    recipe = dict(RECIPES[method])
    rate = recipe.pop("learning_rate")
    return config(**recipe, **own), rate


@pytest.fixture(scope="module")
def before(language_data):
    """The perplexity of the model that never had an adapter, on every so many lines of e2e_test.txt."""
    test = tokenize_lines(language_data, "test")
    known: dict[int, float] = {}

    def make(count: int) -> float:
        if count not in known:
            known[count] = perplexity(load_stories(language_data), spread(test, count))
        return known[count]

    return make


def halves(data, method: str, before, count: int, steps: int) -> None:
    """Train on e2e_valid.txt, compare on `count` lines of e2e_test.txt."""
    stock = load_stories(data)
    test = spread(tokenize_lines(data, "test"), count)
    some = spread(test, 64)
    config, rate = config_of(method)
    model = adapt(data, config)
    assert perplexity(model, some) == before(len(some))
    lines, _ = split_by_table(data, 0)
    train(model, lines, learning_rate=rate, steps=steps)
    after = perplexity(model, test)
    print(
        f"{method} {RECIPES[method]}, {model.get_nb_trainable_parameters()[0]:,} parameters: "
        f"{before(count):.1f} -> {after:.2f} after {steps} steps"
    )
    assert after <= before(count) / 2
    with torch.no_grad(), model.disable_adapter():
        for start in range(0, len(some), 16):
            batch = batch_of(some[start : start + 16])
            assert torch.equal(model(**batch).loss, stock(**batch).loss)
        assert perplexity(model, some) == before(len(some))
    for name, parameter in model.base_model.model.named_parameters():
        assert torch.equal(parameter, stock.get_parameter(name.replace(".base_layer.", ".")))


@pytest.mark.parametrize("method", TWO)
def test_perplexity_halves_and_returns(language_data, before, method):
    halves(language_data, method, before, count=64, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_perplexity_halves_on_the_whole_test_set(language_data, before, method):
    halves(language_data, method, before, count=len(tokenize_lines(language_data, "test")), steps=300)
