"""What the documents point to is there: files, headings, and every path of the tree that they name."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*map(ROOT.joinpath, ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/**/*.md"))]
TOP = ("gateway", "worker", "protocol", "tests", "scripts", "docs", "demo", "examples", ".github")
"""Folders at the root: what begins with one of them and a slash is a path."""

_NEW_PLACES = pytest.mark.skipif(
    not (ROOT / "worker" / "supervisor" / "lifecycle.py").exists(), reason="the pages name the folders to come"
)
_CODE = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(rf"(?:{'|'.join(map(re.escape, TOP))})/[\w./-]*")


def anchors(text: str) -> set[str]:
    """The names under which the headings of a page can be linked to, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", _CODE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Links of a page to files or headings that are not there. Links that lead elsewhere are not looked at."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", text)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file
        exists = not file or target.exists()
        if not exists or (anchor and anchor not in anchors(target.read_text() if file else text)):
            broken.append(link)
    return broken


def missing_paths(text: str, tracked: set[str]) -> list[str]:
    """Paths in backticks that are neither a tracked file nor a folder of some; file names without a folder, too."""
    folders = {str(parent) for path in tracked for parent in Path(path).parents}
    names = {Path(path).name for path in tracked}
    missing = []
    for span in re.findall(r"`([^`\n]+)`", _CODE.sub("", text)):
        path = span.split()[0].partition(":")[0]
        if _PATH.fullmatch(path):
            known = path in tracked or path.rstrip("/") in folders
        elif re.fullmatch(r"\w+\.py", path):
            known = path in names
        else:
            continue
        if not known:
            missing.append(path)
    return missing


def tracked_files() -> set[str]:
    """The files of the tree, as git knows them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n")) - {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_when_they_stay_in_the_tree(page: Path) -> None:
    """Every relative link names a file that exists, and a heading that it has."""
    assert not broken_links(page, page.read_text())


@_NEW_PLACES
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist_when_a_page_names_them(page: Path) -> None:
    """Every path in backticks is a file or a folder of the tree."""
    assert not missing_paths(page.read_text(), tracked_files())


def test_link_is_found_out_when_it_leads_nowhere(tmp_path: Path) -> None:
    """A missing file, a missing heading, and nothing else."""
    (tmp_path / "a.md").write_text("# One `thing`, twice\n\n## Über\n```\n# no heading\n```\n")
    good = "[a](a.md) [b](a.md#one-thing-twice) [c](#here) [d](https://example.org/x) [e](a.md#über)"
    bad = "[f](b.md) [g](a.md#two) [h](#there) [i](a.md#no-heading)"
    page = tmp_path / "page.md"
    text = f"# Here\n{good} {bad}\n```\n[j](c.md)\n```\n"
    assert broken_links(page, text) == ["b.md", "a.md#two", "#there", "a.md#no-heading"]


def test_path_is_found_out_when_the_tree_lacks_it() -> None:
    """Files, folders and names of files, with what may stand behind them; other words in backticks are none."""
    tracked = {"worker/batch/row.py", "scripts/bench", "docs/api.md"}
    good = "`worker/batch/row.py` `worker/batch/` `row.py` `scripts/bench drafts` `worker/batch/row.py:Row` `docs`"
    other = "`/v1/models` `adapters/sql` `a.b` `worker/*.py` `mlx-community/Qwen3`"
    bad = "`worker/row.py` `sampler.py` `gateway/http/` `docs/none.md::test`"
    missing = missing_paths(f"{good} {other} {bad}", tracked)
    assert missing == ["worker/row.py", "sampler.py", "gateway/http/", "docs/none.md"]
