"""The site has every page and every public name. Whether its links lead somewhere, `make docs` says."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

import layerfold
from layerfold.cli import build_parser

_ROOT = Path(__file__).resolve().parents[2]
_DOCS = _ROOT / "docs"


def _contents(page: Path) -> list[Path]:
    """Return the pages that a page's tables of contents name, and those that these name."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"^\.\. toctree::\n((?:\n|   .*\n?)*)", text, re.MULTILINE)
    found = []
    for line in (line.strip() for block in blocks for line in block.splitlines()):
        if line and not line.startswith(":"):
            target = page.parent / re.sub(r".*<(.*)>$", r"\1", line)
            pages = [path for suffix in (".md", ".rst") if (path := target.with_name(target.name + suffix)).is_file()]
            assert len(pages) == 1, f"{page.name}: {line}"
            found += [pages[0].resolve(), *_contents(pages[0])]
    return found


def test_every_page_is_in_the_table_of_contents_once() -> None:
    named = _contents(_DOCS / "index.md")
    assert len(named) == len(set(named))
    written = {*_DOCS.rglob("*.md"), *_DOCS.rglob("*.rst")} - {_DOCS / "index.md"}
    assert len(written) > 20
    assert written <= set(named)
    assert set(named) - written == {
        _ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
    }


def test_every_public_name_is_in_the_reference_once() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (_DOCS / "reference").glob("*.rst"))
    named = re.findall(r"^\.\. auto(?:function|class|exception):: layerfold\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(set(layerfold.__all__) - {"__version__"})


def test_links_of_pages_lead_to_files_of_the_repository() -> None:
    for page in _DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_site_needs_an_extra_of_its_own() -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    assert any(need.startswith("sphinx") for need in project["optional-dependencies"]["docs"])
    assert "-e '.[docs]'" in makefile


_PAGES = sorted(_DOCS.glob("*.md"))


@pytest.mark.parametrize("page", _PAGES, ids=[page.name for page in _PAGES])
def test_commands_of_a_page_are_understood(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    for line in re.findall(r"^\$ layerfold (.*?)(?: {2,}#.*)?$", text, re.MULTILINE):
        build_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("page", _PAGES, ids=[page.name for page in _PAGES])
def test_python_of_a_page_uses_public_names(page: Path) -> None:
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(example, str(page), "exec")
        assert set(re.findall(r"\blf\.(\w+)", example)) <= set(layerfold.__all__)
