"""One run: the place where a config becomes parts, a trained or fitted aligner, and one result row."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from gera_lightning import __version__, distributed, tuning
from gera_lightning.aligners.aligner import Aligner
from gera_lightning.config import Config, config_hash, identity
from gera_lightning.data import splits
from gera_lightning.data.datamodule import AlignmentDataModule, TrainingRows, load_rows
from gera_lightning.data.store import EmbeddingStore
from gera_lightning.data.synthetic import SyntheticViews
from gera_lightning.errors import UserError
from gera_lightning.evaluation import HeldOutItems, evaluate
from gera_lightning.files import replace_atomically
from gera_lightning.heads import Identity, Linear
from gera_lightning.module import AlignmentModule
from gera_lightning.parts import build, check_part

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called with (what is under way, done, of how many)."""
CALIBRATION_PATCHES = 512


@dataclass(frozen=True)
class Stores:
    """The two stores of an experiment with their item split; shared by its runs."""

    a: EmbeddingStore
    b: EmbeddingStore
    split: splits.ItemSplit

    @classmethod
    def open(cls, config: Config) -> Stores:
        """Open what `config.data` names.

        Raises:
            UserError: a missing or damaged store, or an impossible split.
        """
        data = config.data
        if data.synthetic is not None:
            part = {"class": "gera_lightning.data.synthetic.SyntheticViews", **data.synthetic}
            check_part(part, "data.synthetic")
            views: SyntheticViews = build(part, "data.synthetic")
            a, b = views.stores(config.cache_dir)
        else:
            for key in ("a", "b"):
                if not getattr(data, key):
                    raise UserError(f"data.{key} is empty: name the folder of an embedding store")
            a, b = EmbeddingStore(data.a), EmbeddingStore(data.b)
        return cls(a, b, splits.split_items(a.rows, b.rows, test_share=data.test_share, dev=data.split == "dev"))

    @property
    def data_hash(self) -> str:
        """Hash of both stores' contents."""
        return f"{self.a.data_hash[:8]}{self.b.data_hash[:8]}"

    @cached_property
    def held_out(self) -> HeldOutItems:
        """The evaluated rows."""
        return HeldOutItems.load(self.a, self.b, self.split)

    def draw(self, config: Config, budget: int, seed: int) -> splits.Draw:
        """Pairs and pools of a budget and seed."""
        data = config.data
        assert data.reserve is not None
        return splits.draw(
            self.a.rows,
            self.b.rows,
            self.split,
            budget=budget,
            reserve=data.reserve,
            seed=seed,
            shared_pools=data.shared_pools,
            pool_size=data.pool_size,
            extra_views=data.extra_views,
        )


@dataclass(frozen=True)
class Run:
    """One method at one budget and seed."""

    experiment: str
    method: str
    budget: int
    seed: int
    config: Config
    stores: Stores

    @cached_property
    def hash(self) -> str:
        """Eight hex digits of settings and data."""
        return config_hash(self.config, data=self.stores.data_hash, budget=self.budget, seed=self.seed)

    @property
    def folder(self) -> Path:
        """Where the finished run lies."""
        return Path(self.config.runs_dir) / self.experiment / self.method / f"b{self.budget}-s{self.seed}-{self.hash}"

    @property
    def partial_folder(self) -> Path:
        """Where it lies while it runs."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def finished(self) -> bool:
        """Whether a whole result is there."""
        return (self.folder / "metrics.json").exists()


@dataclass(frozen=True)
class Fitted:
    """Maps and how they came about."""

    map_a: nn.Module
    map_b: nn.Module
    steps: int
    settings: int
    chosen: dict[str, float]


def execute(run: Run, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Run to the end and return its result row; the folder appears under its final name when it is whole.

    An interrupted run goes on from its last checkpoint. All processes of a multi-process run call this together.
    """
    first = distributed.world()[0] == 0
    folder = run.partial_folder
    if first:
        if run.config.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"experiment": run.experiment, "method": run.method, "budget": run.budget, "seed": run.seed, **identity(run.config)}
        replace_atomically(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False).encode())
    distributed.barrier()
    _reset_peak_memory()
    started = time.perf_counter()
    draw = run.stores.draw(run.config, run.budget, run.seed)
    rows = load_rows(run.stores.a, run.stores.b, draw, center=run.config.data.center)
    fit = fit_closed_form if run.config.closed_form is not None else fit_trained
    fitted = fit(run, rows, progress)
    seconds = time.perf_counter() - started
    if first:
        row = _finish(run, rows, fitted, seconds)
    distributed.barrier()
    return row if first else {}


def _finish(run: Run, rows: TrainingRows, fitted: Fitted, seconds: float) -> dict[str, Any]:
    """Evaluate, write everything, and give the folder its final name."""
    folder, stores = run.partial_folder, run.stores
    about = {
        "experiment": run.experiment,
        "method": run.method,
        "budget": run.budget,
        "seed": run.seed,
        "data_hash": stores.data_hash,
        **{f"{key}_{side}": value for side, store in (("a", stores.a), ("b", stores.b)) for key, value in _encoder_facts(store).items()},
    }
    aligner = Aligner(rows.a.preprocess, rows.b.preprocess, fitted.map_a.cpu(), fitted.map_b.cpu(), about)
    aligner.save(folder / "aligner")
    measures, ranks = evaluate(aligner, stores.held_out, run.config.evaluation)
    scratch = folder / ".ranks.parquet.tmp"
    ranks.to_parquet(scratch, index=False)
    os.replace(scratch, folder / "ranks.parquet")
    row: dict[str, Any] = {
        "experiment": run.experiment,
        "method": run.method,
        "budget": run.budget,
        "seed": run.seed,
        "config_hash": run.hash,
        "data_hash": stores.data_hash,
        **measures,
        "seconds": round(seconds, 3),
        "steps": fitted.steps,
        "settings": fitted.settings,
        "chosen": fitted.chosen,
        "split": run.config.data.split,
        "peak_rss_mb": _peak_memory(),
        "version": __version__,
    }
    logger = TensorBoardLogger(folder, name="", version="")
    logger.log_metrics(measures, step=fitted.steps)
    logger.log_hyperparams(_flat({"method": run.method, "budget": run.budget, "seed": run.seed, **identity(run.config)}), measures)
    logger.finalize("success")
    replace_atomically(folder / "metrics.json", (json.dumps(row, indent=1) + "\n").encode())
    if run.folder.exists():
        shutil.rmtree(run.folder)
    os.replace(folder, run.folder)
    return row


def _encoder_facts(store: EmbeddingStore) -> dict[str, Any]:
    return {"dim": store.dim, "encoder": store.encoder.get("name"), "revision": store.encoder.get("revision")}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def _reset_peak_memory() -> None:
    try:  # Linux: forget the process's peak so far, so that each run reports its own
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak_memory() -> int:
    """Peak resident memory in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# ---- tuning inside the budget ----


def _distractors(rows: TrainingRows, count: int) -> tuple[Tensor, Tensor]:
    """The first rows of each pool; pools are shuffled, and no pool row has its partner in the other gallery."""
    return rows.a.pool[:count], rows.b.pool[:count]


def fit_closed_form(run: Run, rows: TrainingRows, progress: Progress) -> Fitted:
    """Fit a closed form, its strength chosen by cross-validation."""
    assert run.config.closed_form is not None
    return _closed_form(run, build(run.config.closed_form, "closed_form"), rows, np.arange(len(rows.items)), progress)


def _closed_form(run: Run, method: Any, rows: TrainingRows, positions: np.ndarray, progress: Progress) -> Fitted:
    settings = method.settings(run.config.tuning.settings)
    chosen = 0
    if len(settings) > 1:
        scores = []
        parts = splits.folds(rows.items[positions], run.stores.split.families, run.config.tuning.folds, run.seed)
        pools = _distractors(rows, run.config.tuning.distractors)
        for number, part in enumerate(parts):
            progress("tuning fold", number, len(parts))
            held, kept = positions[part], np.delete(positions, part)
            maps = method.candidates(rows.a.pairs[kept], rows.b.pairs[kept], settings)
            fold = [tuning.held_out_score(a, b, rows.a.pairs[held], rows.b.pairs[held], rows.item_numbers[held], *pools) for a, b in maps]
            scores.append(torch.stack(fold))
        chosen = tuning.choose(torch.cat(scores, dim=1).numpy())
    [(map_a, map_b)] = method.candidates(rows.a.pairs[positions], rows.b.pairs[positions], [settings[chosen]])
    return Fitted(map_a, map_b, 0, len(settings), settings[chosen])


def stopping_steps(max_steps: int, count: int) -> list[int]:
    """`count` stopping steps up to `max_steps`, quadratically spaced: over-fitting to few pairs starts early."""
    return sorted({max(1, round(max_steps * (number / count) ** 2)) for number in range(1, count + 1)})


def fit_trained(run: Run, rows: TrainingRows, progress: Progress) -> Fitted:
    """Train maps, the stopping step chosen by cross-validation; the last training is on all pairs of the budget."""
    config, folder = run.config, run.partial_folder
    steps = stopping_steps(config.trainer.max_steps, config.tuning.settings)
    kept = folder / "tuning.json"
    if not kept.exists():
        parts = splits.folds(rows.items, run.stores.split.families, config.tuning.folds, run.seed)[: config.tuning.used_folds]
        scores = []
        for number, part in enumerate(parts):
            positions = np.delete(np.arange(len(rows.items)), part)
            watch = HeldOutWatch(rows, part, _distractors(rows, config.tuning.distractors), steps)
            _train(run, rows, positions, config.trainer.max_steps, folder / "tuning" / f"fold{number}", partial(progress, f"fold {number + 1}/{len(parts)}"), watch)
            scores.append(np.stack([watch.scores[step] for step in steps]))
        choice = steps[tuning.choose(np.concatenate(scores, axis=1))] if len(steps) > 1 else steps[0]
        choice = distributed.broadcast_object(choice)
        if distributed.world()[0] == 0:
            replace_atomically(kept, json.dumps({"steps": choice}).encode())
        distributed.barrier()
    chosen = int(json.loads(kept.read_text())["steps"])
    module = _train(run, rows, np.arange(len(rows.items)), chosen, folder, partial(progress, "training"))
    return Fitted(module.map_a, module.map_b, chosen, len(steps), {"steps": chosen})


# ---- one training ----


def _train(
    run: Run, rows: TrainingRows, positions: np.ndarray, stop: int, folder: Path, progress: Callable[[int, int], None], *callbacks: Callback
) -> AlignmentModule:
    """Train on some pairs up to step `stop`, going on from a checkpoint where there is one."""
    config = run.config
    geometric = config.geometric_loss is not None
    data = AlignmentDataModule(
        rows,
        positions=positions,
        pairs_per_step=config.batch.pairs,
        anchors_per_step=config.batch.anchors,
        k=config.graph.k if geometric else None,
        paired_anchors=config.batch.paired_anchors,
        max_steps=stop,
        seed=run.seed,
        cache_dir=Path(config.cache_dir) / "knn",
        backend=config.graph.backend,
        index=config.graph.index,
        shard=config.graph.shard,
    )
    if distributed.world()[0] == 0:
        data.prepare_data()
    distributed.barrier()
    data.setup("fit")
    module = build_module(run, rows, positions, data)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    final = not callbacks
    saver = [LastCheckpoint(checkpoint, config.trainer.checkpoint_every_n_steps)] if final else []
    trainer = make_trainer(config, folder, stop, [StepProgress(progress), *saver, *callbacks])
    trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if final and checkpoint.exists() else None)
    if not trainer.state.finished:
        raise KeyboardInterrupt
    return module


def build_module(run: Run, rows: TrainingRows, positions: np.ndarray, data: AlignmentDataModule) -> AlignmentModule:
    """The LightningModule of a run: maps from their start, losses, bandwidths chosen on frozen patches."""
    config = run.config
    torch.manual_seed(run.seed)
    starts: dict[str, Tensor | None] = {"a": None, "b": None}
    dim = config.dim
    if config.start is not None:
        fitted = _closed_form(run, build(config.start, "start"), rows, positions, lambda *_: None)
        starts = {"a": _start_weight(fitted.map_a), "b": _start_weight(fitted.map_b)}
        assert starts["a"] is not None
        dim = starts["a"].shape[1]
    maps = {}
    for number, side in enumerate("ab"):
        generator = torch.Generator().manual_seed(2 * run.seed + number)
        width = getattr(rows, side).pairs.shape[1]
        maps[side] = build(config.head, "head", width, dim, weight=starts[side], generator=generator)
    losses: dict[str, Any] = {"a": None, "b": None}
    scales = {"a": 1.0, "b": 1.0}
    for side, graph in data.graphs.items():
        assert config.geometric_loss is not None
        scales[side] = graph.edge_scale
        sample = graph.patches(torch.arange(min(CALIBRATION_PATCHES, len(graph))))
        losses[side] = build(config.geometric_loss, "geometric_loss").calibrated(data.points(side)[sample], graph.edge_scale)
    return AlignmentModule(
        maps["a"],
        maps["b"],
        build(config.pair_loss, "pair_loss"),
        geometric_a=losses["a"],
        geometric_b=losses["b"],
        scale_a=scales["a"],
        scale_b=scales["b"],
        weight=config.geometric_weight,
        optimizer=lambda groups: build(config.optimizer, "optimizer", groups),
        schedule_steps=config.trainer.max_steps,
        seed=run.seed,
    )


def _start_weight(mapping: nn.Module) -> Tensor:
    if isinstance(mapping, Linear):
        return mapping.weight.detach()
    if isinstance(mapping, Identity):
        return torch.eye(mapping.dim)
    raise UserError("start: maps start from a one-way closed form, such as start.direction=a_to_b")


def make_trainer(config: Config, folder: Path, stop: int, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer for one training."""
    settings = config.trainer
    size = distributed.world()[1]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Trainer(
        max_steps=stop,
        max_epochs=-1,
        accelerator=settings.accelerator,
        devices=local if size > 1 else 1,
        num_nodes=size // local if size > 1 else 1,
        strategy="ddp" if size > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=settings.gradient_clip_val,
        log_every_n_steps=settings.log_every_n_steps,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


class StepProgress(Callback):
    """Passes each step on to a progress display."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Report the step."""
        self.report(trainer.global_step, int(trainer.max_steps))


class LastCheckpoint(Callback):
    """Keeps one checkpoint, replaced atomically: a kill at any moment leaves a whole one."""

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save every `every` steps and at the last."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            scratch = self.path.with_suffix(".tmp")
            trainer.save_checkpoint(scratch)
            if trainer.is_global_zero:
                os.replace(scratch, self.path)


class HeldOutWatch(Callback):
    """Scores held-out pairs at given steps."""

    def __init__(self, rows: TrainingRows, held: np.ndarray, pools: tuple[Tensor, Tensor], steps: list[int]) -> None:
        self.held = rows.a.pairs[held], rows.b.pairs[held], rows.item_numbers[held]
        self.pools, self.steps = pools, set(steps)
        self.scores: dict[int, np.ndarray] = {}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Score at one of the steps."""
        if trainer.global_step not in self.steps:
            return
        assert isinstance(module, AlignmentModule)
        module.eval()
        tensors = [t.to(module.device) for t in (*self.held, *self.pools)]
        scores = tuning.held_out_score(module.map_a, module.map_b, *tensors)
        module.train()
        self.scores[trainer.global_step] = scores.cpu().numpy()
        module.log("tuning/mrr", float(scores.mean()), rank_zero_only=True)
