"""The site of the documentation: built strictly, every audit has its page, and a dead link is an error."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parent.parent


def build(to, *more):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(to), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    to = tmp_path_factory.mktemp("site")
    done = build(to)
    assert done.returncode == 0, done.stderr
    return to


def test_every_audit_has_a_page_with_its_faults_and_its_fix(site):
    from kdbench.harness.cli.audit_catalogue import by_id
    from kdbench.harness.faults import FAULTS

    listed = (site / "rules" / "index.html").read_text(encoding="utf-8")
    for same in by_id():
        page = (site / "rules" / f"{same[0].id}.html").read_text(encoding="utf-8")
        assert same[0].name in page and "Fix." in page and f"{same[0].id}.html" in listed
        for name, fault in FAULTS.items():
            assert (f">{name}<" in page) == (same[0].name in fault.caught_by), (name, same[0].id)


def test_no_page_loads_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img)[^>]+src=.https?:|<link[^>]+rel=.stylesheet.[^>]+href=.https?:", text), (
            page
        )


def test_links_between_files_of_the_repository_are_links_between_pages(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="audit.html"' in text and 'href="docs/audit.md' not in text
    assert 'href="reports/audits.html' in (site / "audit.html").read_text(encoding="utf-8")


def test_a_dead_link_is_an_error(site, tmp_path):
    """In a copy of the pages, one of which points at a page that is not there."""
    import shutil

    for name in ("docs", "studies", "reports"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.json", "*.csv"))
    for name in ("README.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("kd", "audits", "harness", "kdbench", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs" / "paper.md").open("a").write("\n[gone](no-such-page.md)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "no-such-page.md" in done.stderr
