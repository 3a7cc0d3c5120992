"""What `protfold adapter info` prints: facts of an adapter, and a table of its groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protfold_peft.adapters.folders.info import AdapterInfo


def print_info(found: AdapterInfo) -> None:
    """Print what was found, the groups of a large adapter in part."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _facts(found):
        facts.add_row(name, value, style=None)
    console.print(facts)
    if not found.groups:
        return
    many = len(found.groups) > 12
    groups = Table("group", "maps", "kinds", "modes", "ranks", "factors", "parameters")
    for group in found.groups[:8] if many else found.groups:
        groups.add_row(
            group.name,
            str(len(group.sites)),
            ", ".join(group.kinds),
            _named(group.modes),
            _named(group.ranks),
            "\n".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in group.factors.items()),
            f"{group.parameters:,}",
        )
    console.print(groups)
    if many:
        console.print(f"and {len(found.groups) - 8} more groups; --json lists all")


def _facts(found: AdapterInfo) -> list[tuple[str, str]]:
    share = "" if found.share is None else f" ({100 * found.share:.3g} % of the base model's {found.base_parameters:,})"
    facts = [("method", found.method)]
    facts += [(name, str(value)) for name, value in (("rank", found.rank), ("init", found.init)) if value is not None]
    if found.scale is not None:
        facts.append(("scale", f"{found.scale:g}"))
    facts += [("adapted modules", str(found.modules)), ("parameters", f"{found.parameters:,}{share}")]
    if found.saved_in_full_parameters:
        names = ", ".join(found.saved_in_full) or "unnamed"
        facts.append(("trained in full", f"{names} ({found.saved_in_full_parameters:,} parameters)"))
    facts += [("task", found.task_type)] if found.task_type else []
    facts.append(("base model", found.base_name or "not named"))
    if found.base:
        facts.append(("base structure", _named(found.base)))
    facts.append(("weights file", f"{found.file_bytes:,} bytes"))
    return facts


def _named(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
