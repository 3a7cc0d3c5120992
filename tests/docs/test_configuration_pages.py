"""The reference of the configurations says of every key what it is, and says it rightly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.configuration import known_keys
from protfold_peft.language.config import CONFIGS
from protfold_peft.training.config import FinetuneConfig

pages = pytest.importorskip(
    "site_pages.configuration", reason="the extra 'docs' is not installed", exc_type=ImportError
)

KINDS: dict[str, type[BaseModel]] = {"finetune": FinetuneConfig, "compare": ComparisonConfig, **CONFIGS}


def keys(kind: type[BaseModel]) -> list[Any]:
    return [key for group in pages.groups_of(kind, {}) for key in group.keys]


@pytest.mark.parametrize("name", KINDS)
def test_every_key_is_there_with_a_meaning(name: str) -> None:
    found = {key.name: key.meaning for key in keys(KINDS[name])}
    assert set(known_keys(KINDS[name])) <= set(found)
    assert not [key for key, meaning in found.items() if not meaning.strip()]


def test_defaults_are_those_of_a_configuration_without_keys() -> None:
    defaults = FinetuneConfig().model_dump()
    seen = 0
    for key in keys(FinetuneConfig):
        value: Any = defaults
        for part in key.name.split("."):
            value = value[part] if isinstance(value, dict) and part in value else None
        if key.default.startswith("`") and value is not None:
            assert yaml.safe_load(key.default.strip("`")) == value, key
            seen += 1
    assert seen > 40


def test_types_in_words() -> None:
    assert pages.in_words(Annotated[int, Field(ge=1)] | None) == "whole number, at least 1 or `null`"
    assert pages.in_words(Annotated[Annotated[float, Field(allow_inf_nan=False)], Field(gt=0)]) == "number, above 0"
    assert pages.in_words(Annotated[float, Field(ge=0, lt=1)]) == "number, at least 0, below 1"
    assert pages.in_words(Literal["one", "two"] | None) == "`one` or `two` or `null`"
    assert pages.in_words(list[Literal["a", "b", "c"]]) == "list of `a`, `b` or `c`"
    assert pages.in_words(dict[str, str]) == "keys with text each"


def test_a_page_has_a_group_for_names_of_the_user_and_a_link_for_keys_explained_elsewhere() -> None:
    text = pages.page("Comparison", "", ComparisonConfig, {FinetuneConfig: "[elsewhere](finetune.md)"})
    assert "## methods.NAME { #methods-name }" in text
    assert "| `finetune` | [elsewhere](finetune.md) |" in text
    assert "finetune.model" not in text.split("## methods.NAME")[0]
