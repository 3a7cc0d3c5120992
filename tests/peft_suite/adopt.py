"""Run one of PEFT's test classes over our configurations instead of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import FunctionType
from typing import Any

import pytest

Rows = Sequence[Any]


def adopt(
    cls: type,
    rows: Mapping[str, Rows],
    *,
    in_place_of_lora: tuple[Collection[str], Rows] = ((), ()),
    left_out: Collection[str] = (),
    refused: Mapping[str, str] | None = None,
) -> type:
    """A subclass of `cls` with those of its tests that can run over our configurations.

    Args:
        cls: One of PEFT's test classes.
        rows: Our rows for the argument names of a `parametrize` mark, as PEFT writes them, or for the configurations
            of a single test, by its name. A test that has none of these marks is about one of PEFT's own methods and
            is left out.
        in_place_of_lora: Names of tests that PEFT wrote for `LoraConfig` alone, and our classes. Each class stands in
            LoRA's place once; see the fixture `in_place_of_lora`.
        left_out: Tests that do not concern us although they have such a mark.
        refused: Tests of what we refuse on purpose, with the reason; they are reported as skipped.
    """
    refused = refused or {}
    names = [name for name in dir(cls) if name.startswith("test")]
    asked = {
        *in_place_of_lora[0],
        *left_out,
        *refused,
        *(key for key in rows if key.isidentifier() and key.startswith("test")),
    }
    if unknown := asked - set(names):
        raise LookupError(f"{cls.__name__} of this release of PEFT has no {', '.join(sorted(unknown))}")
    tests: dict[str, Any] = {}
    for name in names:
        function = getattr(cls, name)
        theirs: list[pytest.Mark] = list(getattr(function, "pytestmark", []))
        marks = [_with_our_rows(mark, name, rows) for mark in theirs]
        if name in in_place_of_lora[0]:
            marks.append(pytest.mark.parametrize("in_place_of_lora", in_place_of_lora[1], indirect=True).mark)
            marks.append(pytest.mark.usefixtures("in_place_of_lora").mark)
        elif name in left_out or marks == theirs:
            # What is no function is not collected, and hides the inherited test.
            tests[name] = None
            continue
        if name in refused:
            marks.append(pytest.mark.skip(reason=refused[name]).mark)
        tests[name] = _copy(function, marks)
    return type(cls.__name__, (cls,), tests)


def _with_our_rows(mark: pytest.Mark, test: str, rows: Mapping[str, Rows]) -> pytest.Mark:
    if mark.name != "parametrize":
        return mark
    arguments = mark.args[0]
    if test in rows and "config" in arguments:
        return pytest.mark.parametrize(arguments, rows[test]).mark
    return pytest.mark.parametrize(arguments, rows[arguments]).mark if arguments in rows else mark


def _copy(function: FunctionType, marks: list[pytest.Mark]) -> FunctionType:
    """The same code with other marks; `function` itself belongs to PEFT's class."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__dict__.update(function.__dict__)
    copy.pytestmark = marks  # type: ignore[attr-defined]
    return copy
