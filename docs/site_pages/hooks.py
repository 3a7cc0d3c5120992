"""What MkDocs runs while it builds: pages that are made of other files, and links that lead out of `docs/`.

The pages in `docs/` are written to be read in the repository too, with links such as `../configs/first_run.yaml`. Files
that are named like this get pages of their own, and the links are turned to them.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from site_pages import commands, configuration, modules  # noqa: E402

# Which file of the repository a page was made of; links in it are relative to that one. Others are in docs/.
_origins: dict[str, str] = {}
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml"}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_CODE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    _origins.clear()
    for uri, text in {**configuration.pages(), "reference/commands.md": commands.page(), **modules.pages()}.items():
        _add(files, config, uri, text)
    for name, uri in (("README.md", "index.md"), ("CONTRIBUTING.md", "contributing.md")):
        _add(files, config, uri, (ROOT / name).read_text(encoding="utf-8"), name)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _add_notebook(files, config, path)
    for path in sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        fence = f"```{_LANGUAGES[path.suffix]}\n{path.read_text(encoding='utf-8')}```\n"
        _add(files, config, _site_uri(name), f"# {name}\n\n{fence}", name)
    listing = "".join(f"- [{path.stem}]({path.name})\n" for path in sorted((ROOT / "configs" / "glue").glob("*.yaml")))
    _add(files, config, _site_uri("configs/glue"), f"# configs/glue\n\n{listing}", "configs/glue/index")
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository to their pages; links to what has none are left, and told by MkDocs."""
    uri = page.file.src_uri
    folder = posixpath.dirname(_origins.get(uri, f"docs/{uri}"))

    def turned(match: re.Match[str]) -> str:
        target = match[2]
        if "://" in target or target.startswith(("mailto:", "/")):
            return match[0]
        there = _site_uri(posixpath.normpath(posixpath.join(folder, target)))
        if files.get_file_from_path(there) is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(there, posixpath.dirname(uri) or '.')}{match[3] or ''}{match[4]}"

    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(turned, part) for number, part in enumerate(parts))


def _site_uri(name: str) -> str:
    """Where a file of the repository is in the site."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name in {"README.md", "CONTRIBUTING.md"}:
        return {"README.md": "index.md"}.get(name, name.lower())
    if name.startswith("notebooks/") and name.endswith(".ipynb"):
        return f"tutorials/{Path(name).stem}.md"
    if name == "configs/glue":
        return "files/configs/glue/index.md"
    return f"files/{name}.md"


def _add(files: Files, config: MkDocsConfig, uri: str, text: str, origin: str | None = None) -> None:
    if origin is not None:
        _origins[uri] = origin
    files.append(File.generated(config, uri, content=text))


def _add_notebook(files: Files, config: MkDocsConfig, path: Path) -> None:
    """A page of a notebook as it was last run, and its pictures."""
    name = path.relative_to(ROOT).as_posix()
    notebook = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    for picture, data in resources["outputs"].items():
        own = f"{path.stem}_{picture}"
        text = text.replace(f"]({picture})", f"]({own})")
        files.append(File.generated(config, f"tutorials/{own}", content=data))
    _add(files, config, _site_uri(name), text, name)
