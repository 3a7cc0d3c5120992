"""The reference of the Python interface: a page for every package, of what it exports."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    "protfold_peft": "What most programs need",
    "protfold_peft.adapters": "Adapters",
    "protfold_peft.adapters.networks": "Tensor networks",
    "protfold_peft.structure": "Structures",
    "protfold_peft.metrics": "Scores",
    "protfold_peft.losses": "Losses",
    "protfold_peft.data": "Training samples",
    "protfold_peft.data.prepare": "Prepared datasets",
    "protfold_peft.training": "Fine-tuning",
    "protfold_peft.comparison": "Comparisons",
    "protfold_peft.language": "Language models",
}


def pages() -> dict[str, str]:
    """Markdown by place in the site; the docstrings are put in by mkdocstrings."""
    return {f"reference/python/{name}.md": _page(name, title) for name, title in PACKAGES.items()}


def _page(package: str, title: str) -> str:
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree) or ""
    places = exports_of(tree)
    entries = "\n".join(f"::: {module}.{name}\n" for name, module in sorted(places.items(), key=lambda item: item[0]))
    return f"# {title}\n\n`{package}`: {doc}\n\n{entries}"


def exports_of(tree: ast.Module) -> dict[str, str]:
    """The modules that a package's `__init__` imports its names from; constants are left out."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("protfold_peft."):
            found |= {alias.name: node.module for alias in node.names if not alias.name.isupper()}
    return found
