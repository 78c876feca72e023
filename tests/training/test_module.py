"""The LightningModule and the LightningDataModule in a user's own Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from gera_lightning.config import load
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.experiment.plan import plan
from gera_lightning.experiment.run import execute
from gera_lightning.losses.base import PATCHES
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.module import AlignmentModule
from gera_lightning.utils.errors import UserError

PRESET = {
    "losses": {"pair": "clip", "geometric": {"class": "geometric", "weight": 0.5}},
    "init": {"class": "ridge", "direction": "a_to_b"},
    "head": {"class": "residual_mlp", "hidden": 8, "dropout": 0.1},
    "optimizer": {"lr": 0.01},
}
STREAM = {"batch.pairs": 8, "batch.anchors": 10, "graph.k": 4, "data.reserved_pairs": 20}


@pytest.fixture
def stores(
    make_store: Callable[..., EmbeddingStore], tmp_path: Path, monkeypatch: Any
) -> list[str]:
    """Two noisy views of one cloud, and a trained preset beside them."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(120, 4)).astype(np.float32)
    for name, width in (("left", 7), ("right", 5)):
        noise = rng.normal(size=(120, width)).astype(np.float32)
        make_store(name, latent @ rng.normal(size=(4, width)).astype(np.float32) + 0.1 * noise)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "methods"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(PRESET))
    (folder / "contrastive.yaml").write_text(yaml.safe_dump({"losses": {"pair": "clip"}}))
    (folder / "ridge.yaml").write_text(yaml.safe_dump({"closed_form": "ridge"}))
    return [str(tmp_path / "left"), str(tmp_path / "right")]


def trainer(**flags: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "gradient_clip_val": 1.0,
    }
    return Trainer(**{**quiet, "enable_checkpointing": "callbacks" in flags, **flags})


def test_a_trainer_of_ones_own_gets_the_weights_of_gera_train(stores):
    settings = {
        "data": {"a": stores[0], "b": stores[1], "reserved_pairs": 20},
        "budgets": [16],
        "methods": ["mine"],
        "batch": {"pairs": 8, "anchors": 10},
        "graph": {"k": 4},
        "tuning": {"folds": 2, "max_trials": 2, "used_folds": 1},
        "trainer": {"max_steps": 9, "accelerator": "cpu"},
    }
    [run] = plan(load(settings))
    row = execute(run)
    kept = safetensors.torch.load_file(run.folder / "aligner" / "maps.safetensors")
    data = AlignmentDataModule(*stores, budget=16, seed=0, settings=STREAM)
    tuning = {"tuning.folds": 2, "tuning.max_trials": 2}
    module = AlignmentModule("mine", seed=0, settings=tuning, schedule_steps=9)
    trainer(max_steps=row["steps"]).fit(module, datamodule=data)
    for name, value in module.to_aligner(data).space.state_dict().items():
        assert torch.equal(value, kept[f"space.{name}"]), name


def test_a_checkpoint_is_loaded_without_the_data(stores, tmp_path):
    data = AlignmentDataModule(*stores, budget=16, settings=STREAM)
    module = AlignmentModule("mine", settings={"head.hidden": 6})
    fitting = trainer(max_steps=3)
    fitting.fit(module, datamodule=data)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    again = AlignmentModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert again.hparams["settings"] == {"head.hidden": 6}
    assert set(again.state_dict()) == set(module.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_checkpoints_and_early_stopping_watch_the_held_out_fold(stores, tmp_path):
    data = AlignmentDataModule(*stores, budget=20, settings=STREAM, val_fold=1)
    assert not set(data.positions) & set(data.held)
    best = ModelCheckpoint(tmp_path / "best", monitor="val/r@10", mode="max")
    stop = EarlyStopping("val/score", mode="max", patience=1, min_delta=100.0)
    fitting = trainer(
        max_steps=40, val_check_interval=5, check_val_every_n_epoch=None, callbacks=[best, stop]
    )
    fitting.fit(AlignmentModule("mine"), datamodule=data)
    assert fitting.global_step == 10  # the second validation is no better by 100
    assert Path(best.best_model_path).is_file()
    assert 0 < fitting.callback_metrics["val/r@10"] <= 1
    assert {"val/mrr", "val/score"} <= set(fitting.callback_metrics)


def test_an_epoch_is_a_pass_over_the_pairs(stores):
    data = AlignmentDataModule(*stores, budget=20, settings=STREAM)
    seen: list[int] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
            seen.append(batch.step)

    fitting = trainer(max_epochs=2, callbacks=[Watch()])
    fitting.fit(AlignmentModule("contrastive"), datamodule=data)
    assert seen == list(range(2 * 3))  # 20 pairs, 8 per step


def test_the_data_module_streams_what_the_losses_require(stores):
    for method, required in (("mine", {PATCHES}), ("contrastive", set())):
        data = AlignmentDataModule(*stores, budget=16, settings=STREAM)
        trainer(max_steps=1).fit(AlignmentModule(method), datamodule=data)
        assert data.requires == required
        assert bool(data.graphs) == bool(required)


def test_what_trains_nothing_or_is_unknown_is_refused(stores):
    with pytest.raises(UserError, match="ridge is a closed form"):
        AlignmentModule("ridge")
    with pytest.raises(UserError, match="did you mean"):
        AlignmentModule("mine", settings={"optimiser.lr": 1})
    with pytest.raises(UserError, match="val_fold=7"):
        AlignmentDataModule(*stores, budget=16, settings=STREAM, val_fold=7)
    with pytest.raises(UserError, match="budgets=0 must be at least 2"):
        AlignmentDataModule(*stores, budget=0, settings=STREAM)
