"""From a YAML file and `key=value` words to a checked configuration of any class; errors point at the place."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from protfold_peft.errors import ConfigError

Key = tuple[str, ...]
Config = TypeVar("Config", bound=BaseModel)


class Group(BaseModel):
    """A configuration or a group of its keys: no other keys, no conversion of values, no change once it is made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def read_config(kind: type[Config], path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """Read a configuration of class `kind`; `overrides` are `group.key=value`, with values written as in YAML.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, missing, given twice or of the wrong type. The
            message names the file and line (or the override), the key, and for an unknown one the nearest there is.
    """
    data, lines = read_yaml(path)
    places = {key: f"{path}, line {line}" for key, line in lines.items()}
    for override in overrides:
        places[_apply(override, data)] = f"override '{override}'"
    return check(kind, data, places, str(path))


def read_yaml(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping in a YAML file, and the line of every key.

    Raises:
        ConfigError: As in `read_config`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        data = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a list of 'key: value' lines, this is a {type(data).__name__}")
    return data, _lines(node, path)


def check(kind: type[Config], data: Mapping[str, Any], places: Mapping[Key, str], source: str) -> Config:
    """Validate `data`; `places` says where a key stands, `source` where all of it came from.

    Raises:
        ConfigError: As in `read_config`; the first mistake, and how many more there are.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # What stands there and is wrong comes before what is missing, which may follow from it.
        first = next((mistake for mistake in mistakes if mistake["type"] != "missing"), mistakes[0])
        key = tuple(str(part) for part in first["loc"])
        place = next((places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in places), source)
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise ConfigError(f"{place}: {_describe(kind, key, first)}{more}") from error


def check_unchanged(old: BaseModel, new: BaseModel, free: Collection[Key], working: Path) -> None:
    """Check that a run goes on with the settings it began with.

    Args:
        old: The settings it began with.
        new: Those it is asked to go on with.
        free: Keys that may differ.
        working: The folder of the run.

    Raises:
        ConfigError: Another key differs.
    """
    changed = [
        f"{'.'.join(key)} was {was!r} and is {value!r}"
        for key, was, value in _differences(old.model_dump(), new.model_dump())
        if key not in free
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{working}: {changed[0]}{more}: resume with the settings of the run, or start anew with --overwrite"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: Key = ()) -> list[tuple[Key, Any, Any]]:
    found: list[tuple[Key, Any, Any]] = []
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, (*prefix, name))
        elif a != b:
            found.append(((*prefix, name), a, b))
    return found


def _describe(kind: type[BaseModel], key: Key, mistake: Any) -> str:
    dotted = ".".join(key)
    if mistake["type"] == "extra_forbidden":
        near = nearest_key(known_keys(kind), dotted)
        return f"unknown key '{dotted}'; " + (f"did you mean '{near}'?" if near else _siblings(kind, key))
    if mistake["type"] == "missing":
        return f"key '{dotted}' is missing"
    if mistake["type"] == "value_error":
        return f"{dotted}: {mistake['ctx']['error']}"
    if mistake["type"] in {"model_type", "model_attributes_type"}:
        return f"'{dotted}' is a group of keys, not a value; {_siblings(kind, (*key, ''))}"
    message = mistake["msg"][:1].lower() + mistake["msg"][1:]
    return f"{dotted}={mistake['input']!r}: {message}"


def known_keys(model: type[BaseModel], prefix: Key = ()) -> list[str]:
    """All keys, dotted: `out`, `model.name`, ..."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += known_keys(kind, (*prefix, name))
        else:
            keys.append(".".join((*prefix, name)))
    return keys


def nearest_key(keys: list[str], dotted: str) -> str | None:
    """The known key most like `dotted`: by its last word wherever that stands, or else by all of it."""
    by_last = {key.rpartition(".")[2]: key for key in reversed(keys)}
    for wanted, pool in ((dotted, {key: key for key in keys}), (dotted.rpartition(".")[2], by_last)):
        found = difflib.get_close_matches(wanted, pool, n=1, cutoff=0.75)
        if found:
            return pool[found[0]]
    return None


def _siblings(kind: type[BaseModel], key: Key) -> str:
    group = ".".join(key[:-1])
    keys = known_keys(kind)
    inside = [known for known in keys if known.rpartition(".")[0] == group]
    groups = [] if group else sorted({known.partition(".")[0] for known in keys if "." in known})
    return f"known: {', '.join(inside + groups)}"


def _lines(node: yaml.Node | None, path: str | os.PathLike[str], prefix: Key = ()) -> dict[Key, int]:
    """Line (from 1) of every key below `node`.

    Raises:
        ConfigError: A key is given twice, of which YAML would silently take the last.
    """
    lines: dict[Key, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*prefix, str(key_node.value))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(f"{path}, line {line}: '{'.'.join(key)}' is given twice, first in line {lines[key]}")
            lines[key] = line
            lines |= _lines(value_node, path, key)
    return lines


def _apply(override: str, data: dict[str, Any]) -> Key:
    """Put `a.b=value` into nested `data`; the key it set."""
    dotted, equals, text = override.partition("=")
    key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        raise ConfigError(f"override '{override}': write it as group.key=value, e.g. training.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error
    group = data
    for name in key[:-1]:
        if group.get(name) is None:
            group[name] = {}
        group = group[name]
        if not isinstance(group, dict):
            raise ConfigError(f"override '{override}': '{name}' is not a group of keys")
    group[key[-1]] = value
    return key
