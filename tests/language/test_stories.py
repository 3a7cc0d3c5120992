"""A real language model with grouped-query attention learns another text through each method."""

from __future__ import annotations

import pytest
import torch
from adapter_methods import METHODS
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


def halves(data, method: str, test: list[torch.Tensor], steps: int) -> None:
    """Train on e2e_valid.txt; compare with the model that never had an adapter, on e2e_test.txt."""
    stock = load_stories(data)
    before = perplexity(stock, test)
    config, rate = config_of(method)
    model = adapt(data, config)
    assert perplexity(model, test[:8]) == perplexity(stock, test[:8])
    lines, _ = split_by_table(data, 0)
    train(model, lines, learning_rate=rate, steps=steps)
    after = perplexity(model, test)
    print(f"{method}: {before:.1f} -> {after:.2f} after {steps} steps, {model.get_nb_trainable_parameters()[0]:,}")
    assert after <= before / 2
    with torch.no_grad(), model.disable_adapter():
        for start in range(0, min(len(test), 64), 16):
            batch = batch_of(test[start : start + 16])
            assert torch.equal(model(**batch).loss, stock(**batch).loss)
    with model.disable_adapter():
        assert perplexity(model, test) == before
    for name, parameter in model.base_model.model.named_parameters():
        assert torch.equal(parameter, stock.get_parameter(name.replace(".base_layer.", ".")))


@pytest.mark.parametrize("method", METHODS)
def test_perplexity_halves_and_returns(language_data, method):
    halves(language_data, method, spread(tokenize_lines(language_data, "test"), 64), steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_perplexity_halves_on_the_whole_test_set(language_data, method):
    halves(language_data, method, tokenize_lines(language_data, "test"), steps=300)
