"""Settings: a tree of typed dataclasses, loaded from an experiment file, a method preset and overrides. No torch here.

Precedence, later wins: the defaults in this file, the experiment's YAML, the method's preset, the command line. A section that
a preset sets to null (the geometry-off twin sets `geometric_loss: null`) stays null: overrides below it do not reach that method.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gera_lightning.encoders.settings import EmbedConfig
from gera_lightning.errors import UserError, check_one_of, did_you_mean
from gera_lightning.parts import Part, check_part


def _at_least(where: str, low: float, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and value < low:
            raise UserError(f"{where}{key}={value} must be at least {low}")


@dataclass
class DataConfig:
    """The two stores, and how their items are split, paired and pooled."""

    a: str = ""
    """Folder of modality a's embedding store; empty with `synthetic`."""
    b: str = ""
    """Folder of modality b's embedding store."""
    synthetic: Part | None = None
    """Instead of stores: arguments of `gera_lightning.data.synthetic.SyntheticViews`; the stores are made under `cache_dir`."""
    split: str = "test"
    """What is evaluated: `test`, the sealed items, or `dev`, items split off the train items for design work."""
    test_share: float = 0.15
    """Share of families held out where the stores give no split, and always for `dev`."""
    reserve: int | None = None
    """Items set aside for pairs, pools come from the others; by default the largest budget of the experiment's file."""
    shared_pools: bool = False
    """Draw both pools from the same items; they then hold hidden pairs."""
    pool_size: int | None = None
    """Unpaired rows a modality at most; all by default."""
    extra_views: bool = False
    """Train on all rows of a paired item, not one a modality."""
    center: bool = True
    """Subtract the mean of the training rows between two normalisations; False: normalise only."""

    def __post_init__(self) -> None:
        check_one_of("data.split", self.split, ("test", "dev"))
        _at_least("data.", 1, reserve=self.reserve, pool_size=self.pool_size)
        if not 0 < self.test_share < 1:
            raise UserError(f"data.test_share={self.test_share} must lie between 0 and 1")


@dataclass
class BatchConfig:
    """What one step sees, over all processes together."""

    pairs: int = 256
    """Pairs a step; all of them where the budget is smaller."""
    anchors: int = 256
    """Unpaired anchors a step and modality, each with its patch of neighbours."""
    paired_anchors: bool = False
    """Let paired rows be anchors and neighbours too."""
    unpaired: int = 256
    """Unpaired rows a step and modality, without neighbours, for an `unpaired_loss` that reads them."""

    def __post_init__(self) -> None:
        _at_least("batch.", 2, pairs=self.pairs, unpaired=self.unpaired)
        _at_least("batch.", 1, anchors=self.anchors)


@dataclass
class GraphConfig:
    """The neighbour graph of each modality's pool."""

    k: int = 16
    """Neighbours of a point; a patch has k + 1 points."""
    backend: str = "faiss"
    """`faiss`, on all GPUs it sees or else the CPU, or `torch`."""
    index: str = "Flat"
    """FAISS index factory string; `Flat` is exact."""
    shard: bool = True
    """Several GPUs hold a share of the points each; False: a copy each."""

    def __post_init__(self) -> None:
        _at_least("graph.", 1, k=self.k)
        check_one_of("graph.backend", self.backend, ("faiss", "torch"))


@dataclass
class TuningConfig:
    """Choice of a method's free settings inside the budget, by cross-validation over its own pairs."""

    folds: int = 5
    """Parts of the budget's items, families kept whole."""
    used_folds: int | None = None
    """Train only this many of the folds (trained methods; all by default)."""
    enough: int = 1000
    """Held-out pairs that settle a choice: of a larger budget only as many folds are used as hold so many."""
    settings: int = 8
    """Settings evaluated, the same for every method: strengths of a closed form; of trained maps `grid` times stopping steps."""
    distractors: int = 2000
    """Rows of the target's pool that join the held-out gallery."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Values of a trained method's own keys to choose from, such as `{unpaired_weight: [1, 10], optimizer.lr: [1e-4, 1e-3]}`, the
    simplest first. Their combinations share `settings` with the stopping steps. A later override of a key itself takes it out."""

    def __post_init__(self) -> None:
        _at_least("tuning.", 2, folds=self.folds)
        _at_least("tuning.", 1, settings=self.settings, used_folds=self.used_folds, enough=self.enough)
        _at_least("tuning.", 0, distractors=self.distractors)


@dataclass
class TrainerConfig:
    """Lightning's Trainer, the arguments that a run may set."""

    max_steps: int = 1000
    """Optimizer steps at most; tuning may stop earlier."""
    accelerator: str = "auto"
    """`auto`, `cpu`, `gpu`, ..."""
    devices: int = 1
    """Processes on this machine; more than one are started by torchrun. -1: one a GPU."""
    precision: str = "32-true"
    """Lightning's precision word, such as `bf16-mixed`."""
    gradient_clip_val: float | None = 1.0
    """Largest gradient norm."""
    log_every_n_steps: int = 10
    """Steps between TensorBoard points."""
    checkpoint_every_n_steps: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        _at_least("trainer.", 1, max_steps=self.max_steps, log_every_n_steps=self.log_every_n_steps)
        _at_least("trainer.", 1, checkpoint_every_n_steps=self.checkpoint_every_n_steps)
        if self.devices < 1 and self.devices != -1:
            raise UserError(f"trainer.devices={self.devices} must be at least 1, or -1 for every GPU")


@dataclass
class EvaluationConfig:
    """What is measured on the held-out items."""

    overlap_k: int = 10
    """Neighbours compared before and after the map."""
    chunk: int = 4096
    """Query rows scored at once; changes memory, not results."""

    def __post_init__(self) -> None:
        _at_least("evaluation.", 1, overlap_k=self.overlap_k, chunk=self.chunk)


@dataclass
class SweepConfig:
    """What `make sweep` runs beyond `make train`: more methods and seeds, on several processes or machines."""

    methods: list[str] = field(default_factory=list)
    """Presets to run; by default all of `methods/`, or the experiment's own `methods` where it has `variants`."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds to run."""
    extra_budgets: dict[str, list[int]] = field(default_factory=dict)
    """Further budgets of single methods, such as `{contrastive: [1000]}`: a longer curve of the method whose labels are counted. Such
    a run sets its whole budget aside, so its pools are smaller than the others' and may be empty."""
    quick: list[str] = field(
        default_factory=lambda: [
            *("gera", "gera_off", "ridge", "ridge_csls", "kernel_ridge", "kernel_ridge_csls", "cca", "cca_csls", "asif", "asif_csls"),
            *("procrustes", "procrustes_csls", "manifold_ridge", "manifold_kernel_ridge", "self_training"),
        ]
    )
    """The subset that `sweep.only=quick` names: closed forms, minutes instead of hours."""
    only: str = ""
    """`quick`, or some of the methods, separated by commas."""
    shard: str = "1/1"
    """`i/n`: of all runs every n-th, starting with the i-th; n machines with one file system share a sweep."""
    workers: int = 1
    """Processes on this machine, each with its share of the cores."""
    submit: str = ""
    """Hand the sweep to a cluster by submitit: `slurm`, or `local` for jobs of this machine; empty runs it here."""
    jobs: int = 1
    """Jobs that `submit` parts the sweep among, each with its own `workers`."""
    resources: dict[str, Any] = field(default_factory=lambda: {"timeout_min": 1440})
    """What a job asks for, by submitit's names: `timeout_min`, `mem_gb`, `cpus_per_task`, `gpus_per_node`, `slurm_partition`, ..."""
    wait: bool = False
    """Wait for the submitted jobs and show the table; otherwise say what was submitted and how to watch it."""
    dry_run: bool = False
    """List what would run, and stop."""

    def __post_init__(self) -> None:
        _at_least("sweep.", 1, workers=self.workers, jobs=self.jobs)
        for name, budgets in self.extra_budgets.items():
            if not budgets or min(budgets) < 2 or len(set(budgets)) != len(budgets):
                raise UserError(f"sweep.extra_budgets.{name}={budgets} must hold numbers of pairs, at least 2, none twice")
        if self.submit:
            check_one_of("sweep.submit", self.submit, ("slurm", "local"))
        part, _, parts = self.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(f"sweep.shard={self.shard!r} is not of the form i/n with i from 1 to n, such as 1/4")

    @property
    def part(self) -> slice:
        """The runs of the shard, as a slice of all: the shards of a sweep never depend on what is finished."""
        first, step = self._numbers
        return slice(first - 1, None, step)

    def parted(self, count: int) -> list[str]:
        """The shard parted among `count` workers or jobs, one shard each."""
        first, step = self._numbers
        return [f"{first + step * i}/{step * count}" for i in range(count)]

    @property
    def _numbers(self) -> tuple[int, int]:
        first, _, step = self.shard.partition("/")
        return int(first), int(step)


@dataclass
class Config:
    """One experiment: stores, budgets, methods, and how a trained method trains."""

    data: DataConfig = field(default_factory=DataConfig)
    """Stores, split, pairs and pools."""
    budgets: list[int] = field(default_factory=lambda: [100, 300, 1000])
    """Numbers of paired items, swept over."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each seed fixes pairs, pools, start and batches."""
    methods: list[str] = field(default_factory=lambda: ["gera_plain", "contrastive", "ridge"])
    """Presets in `methods/` beside the experiment's file, and names of `variants`."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Methods that differ from a preset in a few keys, such as `{plain_k4: {of: gera_plain, graph.k: 4}}`."""
    filters: dict[str, Any] = field(default_factory=dict)
    """Filters of modality `a`'s and `b`'s features, fitted on its pool: a list of choices, each a list of parts that are applied in turn
    (`[]` leaves the features as they are). Tuning takes the best choice of each modality for the pairs. Empty: no filter."""
    closed_form: Part | None = None
    """A closed-form aligner instead of a trained one: class and arguments."""
    head: Part = field(default_factory=lambda: {"class": "gera_lightning.heads.ResidualMLP"})
    """The map of each modality."""
    dim: int = 256
    """Shared width."""
    start: Part | None = None
    """Closed form that the maps' linear parts start from; random orthogonal by default. Sets the shared width."""
    correction: Part | None = None
    """Score correction, such as `gera_lightning.aligners.space.Csls`; null ranks by cosine."""
    pair_loss: Part = field(default_factory=lambda: {"class": "gera_lightning.objectives.contrastive.ClipLoss"})
    """Loss of the pairs."""
    geometric_loss: Part | None = field(default_factory=lambda: {"class": "gera_lightning.objectives.geometric.GeometricLoss"})
    """Loss of the unpaired patches; null trains on the pairs alone."""
    geometric_weight: float = 1.0
    """Weight of each modality's geometric loss."""
    mixup: Part | None = None
    """Mixes the pairs of a step before the maps, such as `gera_lightning.objectives.mixup.FuseMix`; null leaves them."""
    unpaired_loss: Part | None = None
    """One more loss of a step, of unpaired rows or of unpaired rows and pairs: a published peer's; null for none."""
    unpaired_weight: float = 1.0
    """Weight of `unpaired_loss`."""
    optimizer: Part = field(default_factory=lambda: {"class": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01})
    """Optimizer; its learning rate falls to 0 by a cosine over `trainer.max_steps`."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    """Neighbour graph."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Size of a step."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Tuning inside the budget."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Steps and hardware."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measures."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Raw data and encoders that `gera embed` makes `data.a` and `data.b` of; a run reads nothing of it."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """What `make sweep` runs."""
    runs_dir: str = "runs"
    """Where runs and results go."""
    cache_dir: str = ".cache"
    """Where neighbour graphs and synthetic stores are kept."""
    overwrite: bool = False
    """Run again what is finished already."""

    def __post_init__(self) -> None:
        for key, values in (("budgets", self.budgets), ("seeds", self.seeds), ("methods", self.methods)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"{key}={values} must hold at least one value, none twice")
        _at_least("", 2, **{"budgets": min(self.budgets)})
        _at_least("", 0, **{"seeds": min(self.seeds), "geometric_weight": self.geometric_weight, "unpaired_weight": self.unpaired_weight})
        _at_least("", 1, dim=self.dim)
        for side, choices in self.filters.items():
            check_one_of("filters: modality", side, ("a", "b"))
            if not isinstance(choices, list) or not all(isinstance(choice, list) for choice in choices):
                raise UserError(
                    f"filters.{side}={choices!r} must be a list of choices, each a list of parts, such as [[], [{{class: ...}}]]"
                )


PARTS = {
    "closed_form": (),
    "start": (),
    "correction": ("pool_a", "pool_b"),
    "head": ("dim_in", "dim", "weight", "generator"),
    "pair_loss": (),
    "geometric_loss": (),
    "mixup": (),
    "unpaired_loss": (),
    "optimizer": (),
}
"""Sections that name a class, with the arguments that the program fills in."""

RUNTIME_KEYS = ("budgets", "seeds", "methods", "variants", "runs_dir", "cache_dir", "overwrite", "embed", "sweep")
"""Keys that say what to run or where, not what a run computes: no part of a run's identity."""
TRAINED_KEYS = (
    *("head", "dim", "start", "pair_loss", "geometric_loss", "geometric_weight", "mixup", "unpaired_loss", "unpaired_weight"),
    *("optimizer", "graph", "batch", "trainer"),
)
"""Keys that a closed form does not read."""


@dataclass(frozen=True)
class Experiment:
    """A loaded experiment: its name, the settings common to all methods, one method's settings each, and methods' budgets beyond them."""

    name: str
    common: Config
    methods: Mapping[str, Config]
    extra_budgets: Mapping[str, Sequence[int]] = field(default_factory=dict)


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide a run's result, as plain values: what its hash is taken of."""
    values = dataclasses.asdict(config)
    skip = RUNTIME_KEYS + (TRAINED_KEYS if config.closed_form else ("closed_form",))
    values = {key: value for key, value in values.items() if key not in skip}
    if not config.filters:
        values.pop("filters")
    if not config.tuning.grid:
        values["tuning"].pop("grid")
    if config.mixup is None:  # a peer's section that a run lacks is no part of it, so runs from before there was one keep their hash
        values.pop("mixup", None)
    if config.unpaired_loss is None:
        values.pop("unpaired_loss", None)
        values.pop("unpaired_weight", None)
    if config.unpaired_loss is None and "batch" in values:
        values["batch"].pop("unpaired")
    if "trainer" in values:  # how often it logs, and on what it runs, is not what it computes
        for key in ("log_every_n_steps", "checkpoint_every_n_steps", "accelerator", "devices"):
            values["trainer"].pop(key)
    values["evaluation"].pop("chunk")
    for key in ("a", "b", "synthetic"):  # the data's own hash stands for them
        values["data"].pop(key)
    return values


def config_hash(config: Config, **more: Any) -> str:
    """Eight hex digits of the identity of a run."""
    text = json.dumps({**identity(config), **more}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def load(
    experiment: str | Mapping[str, Any],
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    folder: str | Path = "experiments",
    sweep: bool = False,
) -> Experiment:
    """Load `folder/<experiment>.yaml` (or a path to a YAML file), its method presets and overrides.

    Args:
        experiment: name of a file in `folder`, a path ending in `.yaml`, or what such a file would hold.
        overrides: `key=value` words as on the command line, or a mapping of dotted keys.
        folder: where experiments lie; presets lie in `methods/` beside the file (or in `folder`).
        sweep: take methods, seeds and extra budgets from the `sweep` section.

    Raises:
        UserError: an unknown experiment, preset or key (with the nearest known one), or a value that is refused.
    """
    path = _experiment_path(experiment, Path(folder)) if isinstance(experiment, str) else Path(folder) / "settings.yaml"
    words = _parse_overrides(overrides)
    base = _read_yaml(path) if isinstance(experiment, str) else dict(experiment)
    common = _typed(_merge([base, *words]), str(path))
    if common.data.reserve is None:
        base_budgets = base.get("budgets") or Config().budgets
        common.data.reserve = max(*base_budgets, *common.budgets)
    if sweep:
        common.methods, common.seeds = _swept_methods(common, path.parent / "methods"), common.sweep.seeds
    methods = {}
    for name in common.methods:
        preset = _preset(name, path.parent / "methods", common.variants)
        common_only = [key for key in RUNTIME_KEYS if key in preset]
        if common_only:
            raise UserError(f"method {name}: {common_only[0]} is no setting of a method: set it in {path}")
        unreachable = {key for key, value in preset.items() if value is None} | _classless([base, preset, *words])
        reachable = [word for word in words if next(iter(word)) not in unreachable]
        settings = _typed(_merge([base, preset, *reachable]), f"method {name}")
        settings.data.reserve = common.data.reserve
        settings.tuning.grid = _grid_left(settings.tuning.grid, [*_parse_overrides(common.variants.get(name, {})), *reachable])
        _check_parts(settings)
        combinations(settings)
        _check_same_data(name, settings.data, common.data)
        methods[name] = settings
    _check_unused(words, methods)
    extra = {name: budgets for name, budgets in common.sweep.extra_budgets.items() if sweep and name in methods}
    return Experiment(path.stem, common, methods, extra)


def combinations(config: Config) -> list[tuple[dict[str, float], Config]]:
    """The combinations of `tuning.grid`, the first key slowest, each with the settings that it makes; one without values where there is none.

    Raises:
        UserError: a key that no trained method has, or values that are refused.
    """
    grid = _flat_grid(config.tuning.grid)
    if grid and config.closed_form is not None:
        raise UserError(f"tuning.grid: a closed form brings its own settings and reads no {next(iter(grid))}: remove it")
    for key, values in grid.items():
        if not isinstance(values, list) or not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            raise UserError(f"tuning.grid.{key}={values!r} must be a list of numbers, such as [1, 10]")
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(found) > config.tuning.settings:
        raise UserError(
            f"tuning.grid has {len(found)} combinations of {', '.join(grid)}, more than tuning.settings={config.tuning.settings}: "
            "take fewer values, or raise tuning.settings for all methods"
        )
    return [(values, _with_values(config, values)) for values in found]


GRID_KEYS = ("geometric_weight", "unpaired_weight", "head", "pair_loss", "geometric_loss", "mixup", "unpaired_loss", "optimizer")
"""Where `tuning.grid` may choose values: weights, and arguments of parts."""


def _with_values(config: Config, values: Mapping[str, float]) -> Config:
    """The settings with some of `GRID_KEYS` replaced."""
    out = copy.deepcopy(config)
    for key, value in values.items():
        section, _, inner = key.partition(".")
        known = [name for name in GRID_KEYS if (name in PARTS) == bool(inner)]
        if section not in known or inner == "class":
            raise UserError(
                f"tuning.grid.{key}: {key!r} is no value to choose{did_you_mean(section, known)}: take one of {', '.join(GRID_KEYS)}"
            )
        if not inner:
            loss = section.replace("weight", "loss")
            if getattr(out, loss) is None:
                raise UserError(f"tuning.grid.{key}: the method has no {loss}")
            setattr(out, section, float(value))
            continue
        part = getattr(out, section)
        if part is None:
            raise UserError(f"tuning.grid.{key}: the method has no {section}")
        *path, last = inner.split(".")
        for name in path:
            part = part.setdefault(name, {})
        part[last] = value
        try:
            check_part(getattr(out, section), section, PARTS[section])
        except UserError as error:
            raise UserError(f"tuning.grid: {error}") from error
    out.__post_init__()
    return out


def _grid_left(grid: Mapping[str, Any], later: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The grid with dotted keys, less the keys that later layers set themselves and do not put into the grid."""
    own = _flat_grid(_merge(later).get("tuning", {}).get("grid", {}))
    return {key: values for key, values in _flat_grid(grid).items() if key in own or not any(_holds(word, key) for word in later)}


def _flat_grid(grid: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; sections may be nested or dotted."""
    out: dict[str, Any] = {}
    for key, value in grid.items():
        out |= _flat_grid(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def _swept_methods(common: Config, presets: Path) -> list[str]:
    sweep = common.sweep
    methods = sweep.methods or (common.methods if common.variants else sorted(path.stem for path in presets.glob("*.yaml")))
    known = [*common.variants, *(path.stem for path in presets.glob("*.yaml"))]
    for name in sweep.extra_budgets:
        if name not in known:
            raise UserError(f"sweep.extra_budgets.{name}: there is no such method{did_you_mean(name, known)}")
    if not sweep.only:
        return methods
    return list(sweep.quick) if sweep.only == "quick" else [name.strip() for name in sweep.only.split(",") if name.strip()]


def _experiment_path(experiment: str, folder: Path) -> Path:
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    if not experiment:
        raise UserError(
            f"EXP is empty: name an experiment, such as EXP={known[0] if known else 'speech_text'} (there are: {', '.join(known)})"
        )
    path = Path(experiment) if experiment.endswith((".yaml", ".yml")) else folder / f"{experiment}.yaml"
    if not path.is_file():
        raise UserError(f"experiment {experiment!r}: there is no {path}{did_you_mean(experiment, known)}")
    return path


def _preset(name: str, folder: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a method sets: its file, or a variant's changes over the file of the preset it is `of`."""
    if name in variants:
        changes = dict(variants[name])
        of = changes.pop("of", None)
        if not isinstance(of, str):
            raise UserError(f"variants.{name}.of={of!r}: name the preset that it changes, such as of: gera")
        return _merge([_preset(of, folder, {}), *_parse_overrides(changes)])
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = [*variants, *(p.stem for p in folder.glob("*.yaml"))]
        raise UserError(f"methods: {name!r} has no preset {path}{did_you_mean(name, known)}")
    return _read_yaml(path)


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-3 is a number, not a word."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789"))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold keys and values")
    return values


def _parse_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each override as a nested mapping."""
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = []
        for word in overrides:
            key, equals, text = word.partition("=")
            if not equals or not key:
                raise UserError(f"{word!r} is not of the form key=value, such as budgets=[100,300]")
            pairs.append((key, _parse_value(key, text)))
    pairs.sort(key=lambda pair: not pair[0].endswith(".class"))  # first, since a new class drops the arguments set before it
    nested = []
    for key, value in pairs:
        for name in reversed(key.split(".")):
            value = {name: value}
        nested.append(value)
    return nested


def _parse_value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}={text}: the value cannot be read; quote it, or write lists as [1,2]") from error


def _merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Deep merge, later layers win; a part whose class is replaced keeps no arguments of the old class."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = out.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping) and not ("class" in value and value["class"] != old.get("class")):
                out[key] = _merge([old, value])
            else:
                out[key] = value
    return out


def _defaults_of_parts(values: dict[str, Any]) -> dict[str, Any]:
    """Fill part sections from the dataclass's defaults, unless another class is named."""
    defaults = dataclasses.asdict(Config())
    parts = {key: defaults[key] for key in PARTS if defaults[key] is not None and key in values and values[key] is not None}
    return _merge([parts, values])


def _typed(values: dict[str, Any], where: str) -> Config:
    _check_keys(Config, values, "")
    schema = OmegaConf.structured(Config)
    try:
        merged = OmegaConf.merge(schema, OmegaConf.create(_defaults_of_parts(values)))
        assert isinstance(merged, DictConfig)
        for key in PARTS:  # structured merging keeps the default's arguments; the layers decide, not the schema
            if key in values:
                merged[key] = _defaults_of_parts(values)[key]
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "a value"
        given = OmegaConf.select(OmegaConf.create(values), key, throw_on_resolution_failure=False) if key != "a value" else ""
        reason = str(error).splitlines()[0]
        raise UserError(f"{key}={given}: {reason} ({where})") from error
    assert isinstance(config, Config)
    return config


def _check_keys(cls: type, values: Mapping[str, Any], prefix: str) -> None:
    """Every key stands in the dataclass tree; parts check their own keys later.

    Raises:
        UserError: naming the nearest known key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in fields:
            raise UserError(f"{full}={value!r}: there is no key {full!r}{did_you_mean(full, [prefix + n for n in fields])}")
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            if not isinstance(value, Mapping):
                raise UserError(f"{full}={value!r} is a section: set its keys, such as {full}.{dataclasses.fields(factory)[0].name}=...")
            _check_keys(factory, value, f"{full}.")
        elif factory is not dataclasses.MISSING and isinstance(factory(), list) and not isinstance(value, list):
            raise UserError(f"{full}={value!r} is a list: write {full}=[{'...' if value is None else value}]")
        elif key in (*PARTS, "synthetic", "corpus", "encoder") and not (value is None or isinstance(value, Mapping)):
            raise UserError(f"{full}={value!r} is a part: set {full}.class=... and its arguments")


def _classless(layers: Sequence[Mapping[str, Any]]) -> set[str]:
    """Parts that no layer and no default names a class of: an argument in an override is meant for the methods that have the part."""
    values = _defaults_of_parts(_merge(layers))
    return {key for key in PARTS if isinstance(values.get(key), Mapping) and "class" not in values[key]}


def _check_parts(config: Config) -> None:
    for key, runtime in PARTS.items():
        part = getattr(config, key)
        if part is not None:
            check_part(part, key, runtime)


def _check_unused(words: Sequence[Mapping[str, Any]], methods: Mapping[str, Config]) -> None:
    """An override of a section that no chosen method has or reads is a mistake.

    Raises:
        UserError: naming it.
    """
    for word in words:
        key = next(iter(word))
        if key in PARTS and word[key] is not None and all(getattr(c, key) is None for c in methods.values()):
            raise UserError(f"{key}: none of the methods {', '.join(methods)} has this section, so the override would do nothing")
        for name in ("unpaired_weight", "batch.unpaired"):
            if _holds(word, name) and all(c.unpaired_loss is None for c in methods.values()):
                raise UserError(f"{name}: none of the methods {', '.join(methods)} has an unpaired_loss, so the override would do nothing")
        if key in TRAINED_KEYS and all(c.closed_form is not None for c in methods.values()):
            raise UserError(
                f"{key}: all of the methods {', '.join(methods)} are closed forms and read no {key}, so the override would do nothing"
            )


def _check_same_data(name: str, mine: DataConfig, common: DataConfig) -> None:
    """Methods are compared on the same stores and items.

    Raises:
        UserError: a preset or a variant asks for others.
    """
    for key in ("a", "b", "synthetic", "split", "test_share"):
        if getattr(mine, key) != getattr(common, key):
            raise UserError(f"data.{key}={getattr(mine, key)!r} of method {name} is not that of all methods: set it in the experiment")


def _holds(values: Any, key: str) -> bool:
    """Whether a nested mapping has a dotted key."""
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True
