"""What the reports of all commands share: one HTML file that holds all it shows and asks no network for anything.

A page is a template whose placeholders stand between two `@@`. `page.css` is the common style (light and dark),
`page.js` the common script: small helpers, sorting of tables, and the 3D viewer Mol*, whose own script the package
`ipymolstar` brings along. That script is stored once, compressed, and unpacked by the browser.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources, util
from pathlib import Path

# What a page says where Mol* is not installed.
NO_VIEWER = "The 3D viewer is missing: install the package ipymolstar 0.1 and run the same command again."


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced: those of `values`, and the shared ones, `PAGE_CSS` and `PAGE_JS`.

    One pass over the template, so that no text of a record is taken for a placeholder.

    Raises:
        KeyError: A placeholder without a value.
    """
    values = {"PAGE_CSS": _file("page.css"), "PAGE_JS": _file("page.js"), **values}
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


def json_for_script(content: object) -> str:
    """JSON that may stand in a script element: no text in it can end the element or open a comment.

    Raises:
        ValueError: NaN or infinity, which no browser reads.
    """
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")


def _file(name: str) -> str:
    return resources.files("protfold_peft.pages").joinpath(name).read_text(encoding="utf-8")
