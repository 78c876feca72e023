"""The documentation is built without a warning, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gera_lightning
from gera_lightning.commands import VERBS
from gera_lightning.config.reference import reference


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, root = tmp_path_factory.mktemp("site"), Path(__file__).parents[1]
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_setting_method_and_command_has_its_place(site):
    shown = (site / "api/index.html").read_text()
    for name in gera_lightning.__all__:
        if callable(getattr(gera_lightning, name)):
            assert re.search(rf'id="gera_lightning\.[\w.]*\b{name}"', shown), name
    settings = (site / "reference/settings/index.html").read_text()
    assert all(f"<code>{one.key}</code>" in settings for one in reference())
    commands = (site / "reference/commands/index.html").read_text()
    assert all(f"gera {verb}" in commands for verb in VERBS)
    methods = (site / "reference/methods/index.html").read_text()
    for path in (Path(gera_lightning.__file__).parent / "config/presets").glob("*.yaml"):
        assert f'id="{path.stem}"' in methods


def test_links_lead_to_pages_that_are_there(site):
    broken = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"[a-z]+:|//", target) and not (page.parent / target).exists():
                broken.append((page.relative_to(site), target))
    assert not broken


def test_it_is_read_without_a_network(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)', page.read_text()
        )
        assert not [one for one in fetched if "canonical" not in one], page
