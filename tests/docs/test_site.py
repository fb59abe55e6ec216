"""The script that builds the site fails where a page, a link or an anchor leads nowhere."""

import subprocess
from pathlib import Path

import pytest
from documentation import ROOT


def build(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """``tools/docs.sh`` on one page, with this repository's rules for links."""
    own = (ROOT / "mkdocs.yml").read_text()
    rules = own[own.index("validation:") : own.index("\nnav:\n")]
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(text)
    (folder / "mkdocs.yml").write_text(f"site_name: one page\nplugins: []\n{rules}")
    command = [str(path) for path in (ROOT / "tools" / "docs.sh", "-f", folder / "mkdocs.yml", "-d", folder / "site")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sound_page_is_built(tmp_path: Path) -> None:
    done = build(tmp_path, "# One\n\n[here](#one)\n")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.parametrize("link", ["#two", "nothing.md"])
def test_a_link_to_nothing_fails(tmp_path: Path, link: str) -> None:
    done = build(tmp_path, f"# One\n\n[there]({link})\n")
    assert done.returncode != 0
    assert link in done.stderr
