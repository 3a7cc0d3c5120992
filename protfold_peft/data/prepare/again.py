"""Whether a run may write to its folder: one that is new, or that the same command wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from protfold_peft.data.prepare.cache import cache_folder
from protfold_peft.data.prepare.settings import AUTO, PrepareSettings
from protfold_peft.data.prepare.store import REPORT, is_prepared
from protfold_peft.errors import ConfigError


def asked_for(settings: PrepareSettings) -> dict[str, Any]:
    """What decides on the dataset besides the files, as `report.json` holds it."""
    return {
        "structures": [str(path) for path in settings.structures],
        "filters": asdict(settings.filters),
        "exclude": [str(path) for path in settings.exclude],
        "identity": settings.likeness.identity,
        "coverage": settings.likeness.coverage,
        "validation_fraction": settings.validation,
        "seed": settings.seed,
    }


def check_free(settings: PrepareSettings) -> None:
    """The dataset's folder and its cache's can be written.

    The same command again brings its dataset up to date; what another command made is replaced on request only, and
    what is no dataset never.

    Raises:
        ConfigError: They cannot; the message says why.
    """
    out = settings.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the dataset with --out")
    cache = cache_folder(out)
    if cache.exists() and not cache.is_dir():
        raise ConfigError(f"{cache} is a file where a folder is needed: move it, or name another folder with --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_prepared(out):
        raise ConfigError(f"{out} holds something else than a prepared dataset: name another folder with --out")
    if not settings.overwrite:
        _check_same(settings)
    for path in (*settings.structures, *settings.exclude):
        if path.resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{path} is inside {out}, which would be replaced: name another folder with --out")


def _check_same(settings: PrepareSettings) -> None:
    try:
        before = json.loads((settings.out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    remedy = "name another folder with --out, or replace it with --overwrite"
    if not isinstance(before, dict):
        raise ConfigError(f"{settings.out} holds a dataset whose {REPORT} is damaged: {remedy}")
    now = asked_for(settings) | ({} if settings.search == AUTO else {"search": settings.search})
    changed = _changed_options(before, now)
    if changed:
        raise ConfigError(f"{settings.out} holds a dataset made with other {', '.join(changed)}: {remedy}")


def _changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The command's names of what differs."""
    names = {"structures": "STRUCTURES", "validation_fraction": "--validation"}
    changed = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, dict):
            changed += _changed_options(old if isinstance(old, dict) else {}, value)
        elif name not in before or old != value:
            changed.append(names.get(name, f"--{name.replace('_', '-')}"))
    return changed
