"""Every setting with its default and what it means, as typed dataclasses. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gera_lightning.config.embed_schema import PRECISIONS, EmbedConfig
from gera_lightning.utils.errors import UserError, check_one_of
from gera_lightning.utils.instantiate import ClassSpec, check_part


def runtime(default: Any) -> Any:
    """A field that says where or how a run is done, not what it computes: not in its hash."""
    return _field(default, hash=False)


def trained(default: Any) -> Any:
    """A field that trained methods read and closed forms do not."""
    return _field(default, trained=True)


def _field(default: Any, **metadata: bool) -> Any:
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


DEFAULT_METHOD = "coupled_ridge"
"""What is taken where no method is named: the best of the presets where they were measured."""


def _at_least(where: str, low: float, **values: float | None) -> None:
    for key, value in values.items():
        if value is not None and value < low:
            raise UserError(f"{where}{key}={value} must be at least {low}")


def _listed(**lists: list[Any]) -> None:
    for key, values in lists.items():
        if not values or len(set(values)) != len(values):
            raise UserError(f"{key}={values} must hold at least one value, none twice")


RESIDENCIES = ("auto", "memory", "disk")
"""Where unpaired rows are kept."""


def _home(path: str) -> str:
    """A path whose `~` is the home folder, as in a shell."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


@dataclass
class DataConfig:
    """The two stores, and how their items are split, paired and pooled."""

    a: str = runtime("")
    """Folder of modality a's embedding store; empty with `synthetic`."""
    b: str = runtime("")
    """Folder of modality b's embedding store."""
    synthetic: ClassSpec | None = runtime(None)
    """Instead of stores: arguments of `gera_lightning.data.synthetic.SyntheticViews`; the stores
    are made under `cache_dir`.
    """
    split: str = "test"
    """What is evaluated: `test`, the sealed items; `dev`, items split off the train items for
    design work; or `folds`, where test items are few: cross-validation over all items, the run of
    seed s on part s of `folds`.
    """
    folds: int = 5
    """Parts of all items under `split: folds`; take as many seeds."""
    test_share: float = 0.15
    """Share of families held out where the stores give no split, and always for `dev`."""
    reserved_pairs: int | None = None
    """Items set aside for pairs, pools come from the others; by default the largest budget of the
    experiment's file.
    """
    shared_pools: bool = False
    """Sample both pools from the same items; they then hold hidden pairs."""
    pool_size: int | None = None
    """Unpaired rows per modality at most; all by default. At 0 what reads them is left out."""
    extra_views: bool = False
    """Train on all rows of a paired item, not one per modality."""
    center: bool = True
    """Subtract the mean of the training rows between two normalisations; False: normalise only."""
    residency: str = runtime("auto")
    """Where unpaired rows are kept while maps train: `memory`, as float32, on a GPU in its memory;
    or `disk`, read for each step from the stores, which may then be larger than memory. `auto` is
    `disk` where both pools as float32 would take more than a quarter of the free memory. Results
    are the same.
    """

    def __post_init__(self) -> None:
        self.a, self.b = _home(self.a), _home(self.b)
        check_one_of("data.residency", self.residency, RESIDENCIES)
        check_one_of("data.split", self.split, ("test", "dev", "folds"))
        _at_least("data.", 2, folds=self.folds)
        _at_least("data.", 1, reserved_pairs=self.reserved_pairs)
        _at_least("data.", 0, pool_size=self.pool_size)
        if not 0 < self.test_share < 1:
            raise UserError(f"data.test_share={self.test_share} must lie between 0 and 1")


@dataclass
class BatchConfig:
    """What one step sees, over all processes together."""

    pairs: int = 256
    """Pairs per step; all of them where the budget is smaller."""
    anchors: int = 32
    """Unpaired anchors per step and modality, each with its patch of neighbours."""
    region: int = 32
    """Anchors of a step that are chosen together, as a region of the neighbour graph: their patches
    share points, and a step maps fewer. 1: each by itself.
    """
    paired_anchors: bool = False
    """Let paired rows be anchors and neighbours too."""
    unpaired: int = 256
    """Unpaired rows per step and modality, without neighbours, for a loss that reads them."""
    min_epochs: int = runtime(0)
    """Passes over a budget's pairs that a run has steps for: where `trainer.max_steps` holds fewer,
    it is as many steps as they take.
    """

    def __post_init__(self) -> None:
        _at_least("batch.", 2, pairs=self.pairs, unpaired=self.unpaired)
        _at_least("batch.", 1, anchors=self.anchors, region=self.region)
        _at_least("batch.", 0, min_epochs=self.min_epochs)


@dataclass
class GraphConfig:
    """The neighbour graph of each modality's pool."""

    k: int = 16
    """Neighbours of a point; a patch has k + 1 points."""
    backend: str = "faiss"
    """`faiss`, on all GPUs it sees or else the CPU, or `torch`."""
    index: str = "auto"
    """FAISS index factory string; `Flat` is exact. `auto` is `Flat` up to 65,536 rows, and beyond
    that an inverted file of 4 sqrt(n) lists for n rows: how much of the neighbours it finds is
    measured and printed, 95 % at least. Distances are exact in any case.
    """
    nprobe: int | None = None
    """Lists of an inverted file (`IVF...`) that a search visits; by default one in 16, under `auto`
    as many as find 95 % of the neighbours.
    """
    shard: bool = True
    """Several GPUs hold a share of the points each; False: a copy each."""

    def __post_init__(self) -> None:
        _at_least("graph.", 1, k=self.k, nprobe=self.nprobe)
        check_one_of("graph.backend", self.backend, ("faiss", "torch"))


@dataclass
class TuningConfig:
    """Choice of a method's settings inside the budget, by cross-validation over its pairs."""

    folds: int = 5
    """Parts of the budget's items, families kept whole."""
    used_folds: int | None = 2
    """Train only this many of the folds (trained methods); null: all of them."""
    max_heldout_pairs: int = 1000
    """Held-out pairs that settle a choice: of a larger budget only as many folds are used as hold
    so many.
    """
    max_trials: int = 8
    """Settings evaluated, the same for every method: strengths of a closed form; of trained maps
    `grid` times stopping steps.
    """
    distractors: int = 2000
    """Rows of the target's pool that join the held-out gallery."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Values of a trained method's own keys to choose from, such as `{losses.geometric.weight:
    [1, 10], optimizer.lr: [1e-4, 1e-3]}`, the simplest first. Their combinations share `max_trials`
    with the stopping steps. A later override of a key itself takes it out.
    """

    def __post_init__(self) -> None:
        _at_least("tuning.", 2, folds=self.folds)
        _at_least(
            "tuning.",
            1,
            max_trials=self.max_trials,
            used_folds=self.used_folds,
            max_heldout_pairs=self.max_heldout_pairs,
        )
        _at_least("tuning.", 0, distractors=self.distractors)


@dataclass
class TrainerConfig:
    """Flags of Lightning's Trainer; those that are not listed here are passed on as they are."""

    max_steps: int = 100
    """Optimizer steps at most; tuning may stop earlier."""
    accelerator: str = runtime("auto")
    """What maps are trained on and closed forms computed on: `auto`, `cpu`, `gpu`, ..."""
    devices: int = runtime(1)
    """Processes on this machine; more than one are started by torchrun. -1: one per GPU."""
    precision: str = "32-true"
    """`32-true`, `bf16-mixed` or `16-mixed`."""
    gradient_clip_val: float | None = 1.0
    """Largest gradient norm."""
    log_every_n_steps: int = runtime(10)
    """Steps between two points of a log."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Any other flag of `lightning.Trainer`; `trainer.deterministic=true` is one of them."""

    def __post_init__(self) -> None:
        _at_least("trainer.", 1, max_steps=self.max_steps, log_every_n_steps=self.log_every_n_steps)
        check_one_of("trainer.precision", self.precision, PRECISIONS)
        if self.devices < 1 and self.devices != -1:
            raise UserError(
                "must be at least 1, or -1 for every GPU", key="trainer.devices", value=self.devices
            )


@dataclass
class EvaluationConfig:
    """What is measured on the held-out items."""

    overlap_k: int = 10
    """Neighbours compared before and after the map."""
    chunk: int = runtime(4096)
    """Query rows scored at once; changes memory, not results."""
    metrics: list[Any] = field(default_factory=list)
    """Metrics of your own, such as `[{class: my_package.MyMetric, k: 3}]`: each object is called
    with an `evaluation.evaluate.Evaluated` and returns names and numbers for the result row.
    """

    def __post_init__(self) -> None:
        _at_least("evaluation.", 1, overlap_k=self.overlap_k, chunk=self.chunk)
        for number, metric in enumerate(self.metrics):
            check_part(metric, f"evaluation.metrics[{number}]")


CLOSED_FORMS = (
    *(DEFAULT_METHOD, "coupled_ridge_off", "ridge", "ridge_csls", "ridge_filters_csls"),
    *("kernel_ridge", "kernel_ridge_csls", "kernel_ridge_filters_csls", "cca", "cca_csls", "csa"),
    *("asif", "asif_csls", "procrustes", "procrustes_csls"),
    *("manifold_ridge", "manifold_kernel_ridge", "self_training"),
)
"""The shipped presets that train nothing."""


@dataclass
class SweepConfig:
    """What `make sweep` runs beyond `make train`: more methods and seeds, on several processes or
    machines.
    """

    methods: list[str] = field(default_factory=list)
    """Presets to run; by default all of `methods/`, or the experiment's own `methods` where it has
    `variants`.
    """
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Seeds to run."""
    extra_budgets: dict[str, list[int]] = field(default_factory=dict)
    """Further budgets of single methods, such as `{contrastive: [1000]}`: a longer curve of the
    method whose labels are counted. Such a run sets its whole budget aside, so its pools are
    smaller than the others' and may be empty.
    """
    quick: list[str] = field(default_factory=lambda: list(CLOSED_FORMS))
    """The subset that `sweep.only=quick` names: closed forms, minutes instead of hours."""
    only: Any = ""
    """`quick`, or some of the methods, separated by commas or as a list; a list of names here."""
    shard: str = "1/1"
    """`i/n`: of all runs every n-th, starting with the i-th; n machines with one file system share
    a sweep.
    """
    workers: int = 1
    """Processes on this machine, each with its share of the cores."""
    submit: str = ""
    """Hand the sweep to a cluster by submitit: `slurm`, or `local` for jobs of this machine; empty
    runs it here.
    """
    jobs: int = 1
    """Jobs that `submit` parts the sweep among, each with its own `workers`."""
    resources: dict[str, Any] = field(default_factory=lambda: {"timeout_min": 1440})
    """What a job asks for, by submitit's names: `timeout_min`, `mem_gb`, `cpus_per_task`,
    `gpus_per_node`, `slurm_partition`, ...
    """
    wait: bool = False
    """Wait for the submitted jobs and show the table; otherwise say what was submitted and how to
    watch it.
    """
    dry_run: bool = False
    """List what would run, and stop."""

    def __post_init__(self) -> None:
        _at_least("sweep.", 1, workers=self.workers, jobs=self.jobs)
        words = (
            self.only if isinstance(self.only, list) else [] if self.only is None else [self.only]
        )
        self.only = [
            name.strip() for word in words for name in str(word).split(",") if name.strip()
        ]
        _listed(**{"sweep.seeds": self.seeds})
        _at_least("sweep.", 0, seeds=min(self.seeds))
        for name, budgets in self.extra_budgets.items():
            if not budgets or min(budgets) < 2 or len(set(budgets)) != len(budgets):
                raise UserError(
                    f"sweep.extra_budgets.{name}={budgets} must hold numbers of pairs, at least 2,"
                    " none twice"
                )
        if self.submit:
            check_one_of("sweep.submit", self.submit, ("slurm", "local"))
        part, _, parts = self.shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(
                f"sweep.shard={self.shard!r} is not of the form i/n with i from 1 to n, such as 1/4"
            )

    @property
    def part(self) -> slice:
        """The runs of the shard, as a slice of all (`planning.of_shard`): the shards of a sweep
        never depend on what is finished.
        """
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
    budgets: list[int] = runtime(lambda: [100, 300, 1000])
    """Numbers of paired items, of labelled rows where items are classes; swept over."""
    seeds: list[int] = runtime(lambda: [0])
    """Each seed fixes pairs, pools, start and batches."""
    methods: list[str] = runtime(lambda: [DEFAULT_METHOD, "gera", "contrastive", "ridge"])
    """Presets in `methods/` beside the experiment's file, and names of `variants`."""
    variants: dict[str, dict[str, Any]] = runtime(dict)
    """Methods that differ from a preset in a few keys, such as `{plain_k4: {of: gera,
    graph.k: 4}}`.
    """
    filters: dict[str, Any] = field(default_factory=dict)
    """Filters of modality `a`'s and `b`'s features, fitted on its pool: a list of choices, each a
    list of parts that are applied in turn (`[]` leaves the features as they are). Tuning takes the
    best choice of each modality for the pairs. Empty: no filter.
    """
    closed_form: ClassSpec | None = None
    """A closed-form aligner instead of trained maps, such as `ridge`."""
    head: ClassSpec = trained(lambda: {"class": "residual_mlp"})
    """The map of each modality."""
    dim: int = trained(256)
    """Shared width."""
    init: ClassSpec | None = trained(None)
    """Closed form that the maps' linear parts start from; random orthogonal by default. Sets the
    shared width.
    """
    losses: dict[str, Any] = trained(lambda: {"pair": {"class": "clip"}})
    """Losses by name, each a class with its arguments and a `weight` (1 by default), such as
    `{pair: clip, geometric: {class: geometric, weight: 0.1}}`; null takes one out.
    """
    mixup: ClassSpec | None = trained(None)
    """Mixes the pairs of a step before the maps, such as `fusemix`; null leaves them."""
    optimizer: ClassSpec = trained(
        lambda: {"class": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.01}
    )
    """Optimizer; its learning rate falls to 0 by a cosine over `trainer.max_steps`."""
    correction: ClassSpec | None = None
    """Score correction, such as `csls`; null ranks by cosine."""
    graph: GraphConfig = trained(GraphConfig)
    """Neighbour graph."""
    batch: BatchConfig = trained(BatchConfig)
    """Size of a step."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Tuning inside the budget."""
    trainer: TrainerConfig = trained(TrainerConfig)
    """Flags of Lightning's Trainer: steps, hardware, and any other."""
    callbacks: list[Any] = trained(list)
    """Lightning callbacks of the last training, each a class with its arguments."""
    loggers: list[Any] = runtime(lambda: [{"class": "tensorboard"}])
    """Where trainings log: `tensorboard`, `csv`, `wandb`, `mlflow`, or a class with its arguments.
    """
    checkpoint_every_n_steps: int = runtime(200)
    """Steps between checkpoints, from which an interrupted training goes on."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Measures."""
    embed: EmbedConfig = runtime(EmbedConfig)
    """Raw data and encoders that `gera embed` makes `data.a` and `data.b` of; a run reads nothing
    of it.
    """
    sweep: SweepConfig = runtime(SweepConfig)
    """What `make sweep` runs."""
    runs_dir: str = runtime("runs")
    """Where runs and results go."""
    cache_dir: str = runtime(".cache")
    """Where neighbour graphs and synthetic stores are kept."""
    overwrite: bool = runtime(False)
    """Run again what is finished already."""

    def __post_init__(self) -> None:
        self.runs_dir, self.cache_dir = _home(self.runs_dir), _home(self.cache_dir)
        _listed(budgets=self.budgets, seeds=self.seeds, methods=self.methods)
        _at_least("", 2, budgets=min(self.budgets))
        _at_least("", 0, seeds=min(self.seeds))
        _at_least("", 1, dim=self.dim, checkpoint_every_n_steps=self.checkpoint_every_n_steps)
        for name, spec in self.losses.items():
            _at_least("", 0, **{f"losses.{name}.weight": spec.get("weight", 1)})
        for side, choices in self.filters.items():
            check_one_of("filters: modality", side, ("a", "b"))
            if not isinstance(choices, list) or not all(isinstance(c, list) for c in choices):
                raise UserError(
                    "must be a list of choices, each a list of filters, such as"
                    " [[], [local_centering]]",
                    key=f"filters.{side}",
                    value=choices,
                )


PARTS = {
    "closed_form": (),
    "init": (),
    "correction": ("pool_a", "pool_b"),
    "head": ("dim_in", "dim", "weight", "generator"),
    "mixup": (),
    "optimizer": (),
}
"""Sections that name a class, with the arguments that the program fills in."""
RUNTIME_KEYS = tuple(f.name for f in dataclasses.fields(Config) if f.metadata.get("hash") is False)
"""Keys that say what to run or where, not what a run computes: no part of a run's identity."""
TRAINED_KEYS = tuple(f.name for f in dataclasses.fields(Config) if f.metadata.get("trained"))
"""Keys that a closed form does not read."""
