"""The documentation site: every page can be reached, no link or anchor is broken, nothing comes from elsewhere."""

from __future__ import annotations

import html.parser
import importlib.util
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / ".ci/site/mkdocs.yml"
DOCS = ROOT / "docs"
CODE = re.compile(r"^ *(```|~~~).*?^ *\1|(`+).*?\2", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]*)>?(?: \"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
ADDRESS = re.compile(r"https?://[a-z0-9.-]+\.[a-z]{2,}(?::\d+)?(?:[/?#][^\s<>\"]*)?", re.IGNORECASE)
built = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("material", "mkdocs", "mkdocstrings")),
    reason="needs the extra docs; stage site of .ci/run has it",
)


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """The hook that writes the pages nobody writes."""
    spec = importlib.util.spec_from_file_location("generated", CONFIG.with_name("generated.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- navigation


def leaves(nav: Any) -> Iterator[str]:
    """The pages that a navigation names, in order."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(entry)


def test_every_page_is_in_the_navigation_once(generated: ModuleType) -> None:
    """Those that were written and those that are generated, and no others."""
    said = Counter(leaves(yaml.safe_load(CONFIG.read_text("utf-8"))["nav"]))
    pages = Counter([p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")] + list(generated.texts()))
    assert list(pages - said) == [], f"add to the navigation in {CONFIG.relative_to(ROOT)}"
    assert list(said - pages) == [], "named twice, or not there"


def test_generated_pages_leave_nothing_out(generated: ModuleType) -> None:
    """Every command, device, policy, variant, scheduler, router and reader that ships has its place."""
    import hardware_profiles
    from sim.cli import app
    from sim.plugin import discover

    texts = {name.removeprefix("reference/").removesuffix(".md"): text for name, text in generated.texts().items()}
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert len(commands) > 15 and all(f"\n## decodesim {name}\n" in texts["command-line"] for name in commands)
    assert all(f"\n| `{name}` |" in texts["devices"] for name in hardware_profiles.names())
    for kind in ("policies", "variants", "schedulers", "routers"):
        modules = {plugin.__module__ for plugin in discover(f"sim.{kind}").values()}
        assert modules and all(f"::: {module}\n" in texts[kind] + "\n" for module in modules), kind
    assert "::: workloads.readers.vidur" in texts["readers"]


# --- links of the pages as they are written


def slug(heading: str) -> str:
    """The anchor that a heading gets (Python-Markdown's rule, which GitHub's agrees with on our headings)."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def prose(path: Path) -> str:
    """A page without its code."""
    return CODE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """What can be linked to on a page."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(h) for h in HEADING.findall(text)} | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def broken(page: Path, root: Path) -> Iterator[str]:
    """Links of a page that lead nowhere, or outside the project; addresses are looked at, not visited."""
    for target in LINK.findall(prose(page)):
        address, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            if not ADDRESS.fullmatch(target):
                yield f"{page.name}: {target} is no address"
            continue
        file = (page.parent / address).resolve() if address else page
        if not file.is_relative_to(root) or not file.exists():
            yield f"{page.name}: {target} is not there"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "notebooks/README.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)  # fmt: skip
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings exist; addresses look like addresses."""
    assert list(broken(page, ROOT)) == []


PLANTED = {
    "[a](gone.md)": "page.md: gone.md is not there",
    "[a](../../../etc/hosts)": "page.md: ../../../etc/hosts is not there",
    "![a](gone.svg)": "page.md: gone.svg is not there",
    "[a](other.md#gone)": "page.md: other.md#gone: no such heading",
    "[a](#gone)": "page.md: #gone: no such heading",
    "[a](https://nowhere)": "page.md: https://nowhere is no address",
}


@pytest.mark.parametrize("text", PLANTED)
def test_a_broken_link_is_named(text: str, tmp_path: Path) -> None:
    """Planted, it is caught; in code, or mended, it is none."""
    (tmp_path / "other.md").write_text("# Other\n\n## A `part`, of (it)\n", "utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nSee {text}.\n", "utf-8")
    assert list(broken(page, tmp_path)) == [PLANTED[text]]
    page.write_text(f"# Page\n\n```\n{text}\n```\n`{text}` [b](other.md#a-part-of-it) [c](#page)\n", "utf-8")
    assert list(broken(page, tmp_path)) == []


# --- the site as it is built


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build strictly, as a process of its own."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built strictly."""
    target = tmp_path_factory.mktemp("site")
    done = build(CONFIG, target)
    assert done.returncode == 0, done.stderr
    return target


class Outside(html.parser.HTMLParser):
    """Collects what a browser would fetch from another host when it opens the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Scripts, styles, pictures, frames; not links that wait for a click."""
        said = dict(attrs)
        urls = [said.get("src"), said.get("srcset"), said.get("href") if tag == "link" else None]
        self.found += [url for url in urls if url and urlsplit(url).netloc and said.get("rel") != "canonical"]


def fetched(text: str) -> list[str]:
    """Addresses on other hosts that a page or a style sheet would load."""
    reader = Outside()
    reader.feed(text)
    return reader.found + re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')]+)", text)


@built
@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """No page and no style sheet loads a byte from another host, nor has what makes the theme's script load one."""
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        text = path.read_text("utf-8")
        assert fetched(text) == [], path.name
        assert 'class="mermaid"' not in text and 'data-md-component="source"' not in text, path.name


@pytest.mark.parametrize("text", [
    '<script src="https://cdn.example.org/a.js"></script>', '<img src="//example.org/a.png">',
    '<link rel="stylesheet" href="https://fonts.example.org/a.css">', "@import 'https://fonts.example.org/a.css'",
    "a { background: url(https://example.org/a.png) }",
])  # fmt: skip
def test_what_comes_from_elsewhere_is_seen(text: str) -> None:
    """Planted scripts, pictures, styles and fonts are named; a link that waits for a click is none."""
    assert len(fetched(text)) == 1
    assert fetched('<a href="https://example.org">b</a><img src="a.png"><link rel="icon" href="i.svg">') == []


@built
@pytest.mark.slow
def test_the_reference_is_the_docstrings(site: Path) -> None:
    """What the code says of itself stands on the page, by name, without another tool's markup."""
    page = (site / "reference/scenario.html").read_text("utf-8")
    assert 'id="sim.run.simulate"' in page and 'id="sim.scenario.Scenario.load"' in page
    assert 'id="sim.policies.ngram.Ngram.oracle_tokens"' in (site / "reference/policies.html").read_text("utf-8")
    assert not any(re.search(r":(?:meth|func|class):<code>", p.read_text("utf-8")) for p in site.rglob("*.html"))


@built
@pytest.mark.slow
@pytest.mark.parametrize(("text", "named"), [("[a](gone.md)", "gone.md"), ("[a](other.md#gone)", "#gone")])
def test_a_strict_build_refuses(text: str, named: str, tmp_path: Path) -> None:
    """Under our settings a broken link or anchor stops the build; mended, it passes."""
    (tmp_path / "docs").mkdir()
    for name in ("index", "other"):
        (tmp_path / f"docs/{name}.md").write_text("# Title\n\n## Part\n", "utf-8")
    settings = yaml.safe_load(CONFIG.read_text("utf-8"))
    ours = {key: settings[key] for key in ("theme", "validation", "markdown_extensions", "use_directory_urls")}
    config = tmp_path / "mkdocs.yml"
    config.write_text(yaml.safe_dump({"site_name": "planted", "nav": ["index.md", "other.md"], **ours}), "utf-8")
    (tmp_path / "docs/index.md").write_text(f"# Title\n\n{text}\n", "utf-8")
    done = build(config, tmp_path / "site")
    assert done.returncode != 0 and named in done.stderr
    (tmp_path / "docs/index.md").write_text("# Title\n\n[a](other.md#part)\n", "utf-8")
    assert build(config, tmp_path / "site").returncode == 0
