"""A suggestion as the files that a user reads and changes."""

from __future__ import annotations

import csv
import io
import shlex
import textwrap

import yaml

from protfold_peft.training.suggestion.family import SHORTEST
from protfold_peft.training.suggestion.suggest import Suggestion

_WIDTH = 110


def config_text(suggestion: Suggestion, path: str) -> str:
    """The YAML file: every setting below the reason for it.

    Args:
        suggestion: What to write.
        path: Where it will be, for the command in its first lines.
    """
    lines = _comment(_about(suggestion), "")
    lines += [
        "#",
        f"#     protfold finetune {shlex.quote(path)} --dry-run",
        f"#     protfold finetune {shlex.quote(path)}",
        "#",
    ]
    lines += _comment("configs/first_run.yaml of the source, and docs/finetuning.md, explain every other key.", "")
    group = ""
    for key, setting in suggestion.settings.items():
        prefix, _, name = key.rpartition(".")
        if prefix != group or not prefix:
            lines.append("")
        if prefix != group and prefix:
            lines.append(f"{prefix}:")
        group = prefix
        indent = "  " if prefix else ""
        if setting.why:
            lines += _comment(setting.why, indent)
        lines.append(f"{indent}{name}: {_value(setting.value)}")
    return "\n".join(lines) + "\n"


def split_text(suggestion: Suggestion) -> str | None:
    """The CSV table of the split, None where there is none."""
    if suggestion.split is None:
        return None
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", "part"])
    held = set(suggestion.split.validation)
    for name in sorted([*suggestion.split.train, *suggestion.split.validation]):
        writer.writerow([name, "validation" if name in held else "train"])
    return file.getvalue()


def _about(suggestion: Suggestion) -> str:
    family = suggestion.family
    parts = [f"{len(family.chains)} chains of {family.folder}"]
    parts += [f"{family.with_gaps} with gaps in the structure, which the losses leave out"] if family.with_gaps else []
    parts += [f"{family.with_unknown} with unknown residues"] if family.with_unknown else []
    parts += [f"{family.duplicates} duplicates by sequence"] if family.duplicates else []
    parts += [f"{family.short} of fewer than {SHORTEST} resolved residues, not learnt"] if family.short else []
    parts += [f"{len(family.unreadable)} files that cannot be read"] if family.unreadable else []
    return f"Fine-tuning, fitted to these data and this machine by protfold init. {'; '.join(parts)}."


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width=_WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _value(value: object) -> str:
    """On one line, as YAML reads it back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
