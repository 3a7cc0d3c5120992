"""Reference pages of the configurations, from the pydantic models: every key with its type, default and meaning.

The meaning of a key is what the `Attributes` section of its class says, or that of the nearest class above it.
"""

from __future__ import annotations

import inspect
import logging
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

import griffe
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from protfold_peft.comparison.config import ComparisonConfig
from protfold_peft.language.config import CONFIGS
from protfold_peft.training.config import FinetuneConfig

logging.getLogger("griffe").setLevel(logging.ERROR)  # it misses types in the docstrings; they are the models'

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_SIMPLE = {str: "text", bool: "`true` or `false`", int: "whole number", float: "number", type(None): "`null`"}


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: Dotted, as on the command line; `NAME` stands for a name that the user gives.
        type: What may be written, in words.
        default: As it is written in YAML, in backticks; empty for a group, `required` where there is none.
        meaning: From the docstring; empty where it has none.
    """

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """Keys that stand together, under one dotted name (empty at the top)."""

    name: str
    summary: str
    keys: list[Key]


def groups_of(model: type[BaseModel], elsewhere: Mapping[type[BaseModel], str], name: str = "") -> Iterator[Group]:
    """The groups of a configuration, outer ones first.

    Args:
        model: The class of the group.
        elsewhere: Classes whose keys another page explains, with a link to it.
        name: The group's dotted name.
    """
    hints = typing.get_type_hints(model, include_extras=True)
    meanings = meanings_of(model)
    keys, inner = [], []
    for field_name, field in model.model_fields.items():
        dotted = f"{name}.{field_name}" if name else field_name
        meaning = meanings.get(field_name, "")
        kind, named = _group_in(hints[field_name])
        if kind is None:
            keys.append(Key(dotted, in_words(hints[field_name]), default_of(field), meaning))
            continue
        inside = f"{dotted}.NAME" if named else dotted
        link = elsewhere.get(kind, f"[group of keys](#{anchor(inside)})")
        keys.append(Key(dotted, link, default_of(field), meaning or summary_of(kind)))
        if kind not in elsewhere:
            inner.append((kind, inside))
    yield Group(name, summary_of(model), keys)
    for kind, inside in inner:
        yield from groups_of(kind, elsewhere, inside)


def page(title: str, text: str, model: type[BaseModel], elsewhere: Mapping[type[BaseModel], str]) -> str:
    """The reference of one configuration, in Markdown."""
    lines = [f"# {title}", "", text, ""]
    for group in groups_of(model, elsewhere):
        lines += [f"## {group.name or 'At the top'} {{ #{anchor(group.name)} }}", "", group.summary, ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in group.keys:
            cells = (f"`{key.name}`", key.type, key.default, re.sub(r"\bNone\b", "`null`", key.meaning))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def anchor(name: str) -> str:
    """The link target of a group's heading."""
    return name.replace(".", "-").lower() or "top"


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and of the classes above it say about its keys."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        for section in _sections(kind):
            if section.kind is griffe.DocstringSectionKind.attributes:
                found |= {item.name: " ".join(item.description.split()) for item in section.value}
    return found


def summary_of(model: type[BaseModel]) -> str:
    """The docstring of a model without its attributes."""
    texts = [section for section in _sections(model) if section.kind is griffe.DocstringSectionKind.text]
    return str(texts[0].value).strip() if texts else ""


def _sections(kind: type) -> list[Any]:
    text = vars(kind).get("__doc__")
    return griffe.Docstring(inspect.cleandoc(text), lineno=1).parse("google") if text else []


def _group_in(hint: Any) -> tuple[type[BaseModel] | None, bool]:
    """The configuration class that a key holds, and whether it holds several by name."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint, False
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return _group_in(arguments[1])[0], True
    if typing.get_origin(hint) in (typing.Annotated, Union, types.UnionType):
        return next((found for found in map(_group_in, arguments) if found[0] is not None), (None, False))
    return None, False


def default_of(field: FieldInfo) -> str:
    """The default as YAML writes it; that of a group is that of its keys."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")
    return f"`{text}`"


def in_words(hint: Any, limits: str = "") -> str:
    """The type of a key in words, with the limits of numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return in_words(arguments[0], limits + _limits_in(arguments[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in arguments)
    if origin is Literal:
        values = [f"`{value}`" for value in arguments]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    if origin is list:
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return "keys and values" if arguments[1] is Any else f"keys with {in_words(arguments[1])} each"
    return _SIMPLE[hint] + limits


def _limits_in(metadata: tuple[Any, ...]) -> str:
    """`, at least 0, below 1` of a `Field(ge=0, lt=1)`."""
    constraints = [part for field in metadata for part in getattr(field, "metadata", ())]
    found = [(word, getattr(part, name, None)) for part in constraints for name, word in _LIMITS.items()]
    return "".join(f", {word} {limit}" for word, limit in found if limit is not None)


def pages() -> dict[str, str]:
    """Markdown by place in the site, for every kind of configuration."""
    given = "Keys stand in a YAML file, in groups, or follow it on the command line as `group.key=value`. "
    finetune = page(
        "Configuration of `protfold finetune`",
        f"{given}[configs/first_run.yaml](../../../configs/first_run.yaml) is a file with all of them; "
        "[Fine-tuning](../../finetuning.md) is the guide.",
        FinetuneConfig,
        {},
    )
    compare = page(
        "Configuration of `protfold compare`",
        f"{given}[configs/compare_casp14.yaml](../../../configs/compare_casp14.yaml) is an example; "
        "[Comparing methods](../../comparison.md) is the guide.",
        ComparisonConfig,
        {FinetuneConfig: "[keys of protfold finetune](finetune.md)"},
    )
    found = {"finetune": finetune, "compare": compare}
    for task, kind in CONFIGS.items():
        text = f"{given}[Language models](../../language.md) is the guide."
        found[f"lm_{task}"] = page(f"Configuration of `protfold lm {task}`", text, kind, {})
    return {f"reference/configuration/{name}.md": text for name, text in found.items()}
