"""What the reports of all commands share: one HTML file that holds all it shows and asks no network for anything.

A page is a template whose placeholders stand between two `@@`. `head.html` forbids the browser to ask for anything,
`page.css` is the common style (light, dark, on a phone, on paper), `page.js` the common script: small helpers, sorting
of tables, and the 3D viewer Mol*, whose own script the package `ipymolstar` brings along. That script is stored once,
compressed, and unpacked by the browser.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources, util
from pathlib import Path

# What a page says where Mol* is not installed.
NO_VIEWER = "The 3D viewer is missing: install the package ipymolstar 0.1 and run the same command again."


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced: those of `values`, and what all pages share.

    One pass over the template, so that no text of a record is taken for a placeholder.

    Raises:
        KeyError: A placeholder without a value.
    """
    shared = {"PAGE_HEAD": "head.html", "PAGE_CSS": "page.css", "PAGE_JS": "page.js"}
    values = {**{name: _file(file).rstrip("\n") for name, file in shared.items()}, **values}
    parts = template.split("@@")
    return "".join(values[part] if number % 2 else part for number, part in enumerate(parts))


def molstar() -> tuple[str, str]:
    """The viewer's script, packed, and its style sheet; empty strings where the package has none."""
    package = util.find_spec("ipymolstar")
    for location in (package.submodule_search_locations or []) if package else []:
        static = Path(location) / "static"
        script, style = static / "molviewspec.js", static / "molviewspec.css"
        if script.is_file() and style.is_file():
            return _packed(script), style.read_text(encoding="utf-8").replace("</", "<\\/")
    return "", ""


def pack(data: bytes) -> str:
    """Base64 of gzip, the same bytes at every call; `unpack` of `page.js` reads it."""
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


@cache
def _packed(path: Path) -> str:
    """A file of a package, which stays as it is: megabytes that every report of a process has."""
    return pack(path.read_bytes())


def scrolled(table: str, name: str) -> str:
    """A table that scrolls where it is too wide; the keyboard reaches it under its name.

    Args:
        table: Its element.
        name: What it shows, as plain text.
    """
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{table}</div>'


def json_for_script(content: object) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment.

    Raises:
        ValueError: NaN or infinity, which no browser reads.
    """
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return resources.files("protfold_peft.pages").joinpath(name).read_text(encoding="utf-8")
