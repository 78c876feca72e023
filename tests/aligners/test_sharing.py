from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml

from gera_lightning import cli
from gera_lightning.aligners import Aligner, Ridge
from gera_lightning.aligners.sharing import model_card
from gera_lightning.commands.push import push
from gera_lightning.utils.errors import UserError


@pytest.fixture
def aligner() -> Aligner:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    made = Ridge().fit(x, x[:, :4]).aligner_
    made.about |= {
        "method": "ridge",
        "modalities": ["speech", "text"],
        "encoders": {"a": {"name": "whisper", "revision": "7"}, "b": {"name": "minilm"}},
        "sources": {"a": {"name": "talks", "licence": "CC-BY 4.0"}},
    }
    return made


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder in the place of the hub."""
    folder = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, name, private, exist_ok):
            if "/" not in name:
                raise huggingface_hub.errors.HFValidationError(f"{name} is no name")
            return f"hub://{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    def snapshot(name, revision, token, allow_patterns):
        if not (folder / name).is_dir():
            raise OSError(f"there is no {name}")
        assert allow_patterns == ["aligner.json", "maps.safetensors"]
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return folder


def test_a_shared_aligner_comes_back_as_it_was(aligner, hub, tmp_path):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert aligner.push_to_hub("me/mine") == "hub://me/mine"
    again = Aligner.from_pretrained("me/mine")
    assert torch.equal(again.encode_a(x), aligner.encode_a(x))
    aligner.save(tmp_path / "mine")
    assert torch.equal(Aligner.from_pretrained(tmp_path / "mine").encode_a(x), aligner.encode_a(x))
    with pytest.raises(UserError, match="no repository of the hub"):
        Aligner.from_pretrained("me/none")
    with pytest.raises(UserError, match="name it USER/NAME"):
        aligner.push_to_hub("mine")


def test_the_card_says_what_it_was_fitted_on_and_how_well_it_finds(aligner):
    measures = {
        f"{way}/{key}": 0.25 for way in ("ab", "ba") for key in ("r@1", "r@10", "chance@10")
    }
    card = model_card(aligner.about, measures)
    head = yaml.safe_load(card.split("---")[1])
    assert head["tags"][-2:] == ["speech", "text"]
    assert "| speech | whisper | 7 | talks | CC-BY 4.0 |" in card
    assert "| text | minilm | not recorded | not recorded | not recorded |" in card
    assert "| text → speech | 0.250 | 0.250 | 0.250 |" in card
    assert "fitted on 40 pairs" in card
    assert "## Recall" not in model_card(aligner.about)


def test_a_runs_recall_is_on_the_card(aligner, hub, tmp_path, capsys):
    aligner.save(tmp_path / "run" / "aligner")
    row = {f"{way}/{key}": 0.5 for way in ("ab", "ba") for key in ("r@1", "r@10", "chance@10")}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(row))
    assert cli.main(["push", str(tmp_path / "run"), "me/run", "private=true"]) == 0
    assert capsys.readouterr().out == "hub://me/run\n"
    assert "| speech → text | 0.500 |" in (hub / "me/run" / "README.md").read_text()
    with pytest.raises(UserError, match="holds no aligner"):
        push(tmp_path / "none", "me/none")
