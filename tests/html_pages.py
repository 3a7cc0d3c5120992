"""Reading the pages that commands write: their elements, their data, and what a browser makes of them."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Page(HTMLParser):
    """The elements of a page, and the text of every script and style element by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") or tag

    def handle_data(self, data):
        self.texts[self.inside] = self.texts.get(self.inside, "") + data

    def handle_endtag(self, tag):
        self.inside = ""


def unpack(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


def check_asks_for_nothing_outside(page: Page) -> None:
    """No element names another file, and the page's policy lets the browser ask for none."""
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    [policy] = [a["content"] for tag, a in page.elements if tag == "meta" and "content" in a and "http-equiv" in a]
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for allowed in rules.values():
        assert set(allowed.split()) <= {"'none'", "'unsafe-inline'", "'unsafe-eval'", "blob:", "data:"}
    assert not re.search(r"@import|url\((?!['\"]?data:)", page.texts["style"])


# Runs before the page's own script, so that an error there is seen too.
_WATCH = """<script>
const seen = [];
addEventListener("error", event => seen.push(`error: ${event.message}`));
addEventListener("unhandledrejection", event => seen.push(`rejected: ${event.reason}`));
addEventListener("securitypolicyviolation", event => seen.push(`refused: ${event.blockedURI}`));
for (const kind of ["error", "warn"]) console[kind] = (...texts) => seen.push(`${kind}: ${texts.join(" ")}`);
</script>"""
_TELL = """<script>
addEventListener("load", () => setTimeout(() => {
  try { %s } catch (error) { seen.push(`script: ${error}`); }
  for (const entry of performance.getEntriesByType("resource")) seen.push(`asked for: ${entry.name}`);
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = ["ran", ...seen].join("\\n");
  document.body.append(told);
}, 8000));
</script>"""


def in_browser(path: Path, folder: Path, script: str = "") -> tuple[Page, list[str]]:
    """The page as a headless Chromium has it after some seconds, and errors, warnings and requests to anywhere.

    Args:
        path: The page; a copy is opened.
        folder: For the copy and the browser's files.
        script: Run at the end.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: the page was read as text only")
    text = path.read_text().replace("<head>", "<head>" + _WATCH).replace("</body>", _TELL % script + "</body>")
    copy = folder / "watched.html"
    copy.write_text(text)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader", "--disable-background-networking", "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run([browser, *options, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    page = Page(done.stdout)
    ran, *seen = page.texts.get("told", "").split("\n")
    assert ran == "ran", done.stderr[-2000:]
    return page, seen
