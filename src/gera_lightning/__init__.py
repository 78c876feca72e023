"""Align two frozen embedding spaces from few pairs and many unpaired samples.

The map of the package:

- `geometry`    neighbour graphs, kernels, diffusion operators (plain torch; `neighbors` alone
  imports FAISS)
- `objectives`  losses: contrastive on the pairs, geometric on the unpaired points
- `heads`       trainable maps; `aligners` closed forms, and the `Aligner` that is saved, loaded and
  searched with
- `data`        embedding stores, item splits, budgets and pools, the LightningDataModule
- `encoders`    frozen pretrained encoders: raw items to embedding stores
- `module`      the LightningModule; `metrics` retrieval and neighbourhood metrics
- `statistics`  intervals and corrections; `comparisons` of finished runs; `report` tables, figures
  and the page of an experiment
- `config`      the typed settings; `task` what a method is fitted on; `fit` closed forms;
                `assembly` and `train` trained maps; `run` one run and its folder; `results` of
                finished runs; `planning` and `sweep` many runs, `display` of their progress,
                `cluster` as jobs; `cli` the command
- `doctor`      whether two stores can be aligned; `align` the aligner to put to use, of all pairs;
  `finished` the run that a name stands for, `search` with it, `export` it
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gera-lightning")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
