"""Training with unpaired rows in memory and on disk: peak of a process's anonymous memory, which
is what must fit beside the page cache, and speed.

python benchmarks/bench_memory.py [rows] [width] [preset]    # 200000, 384, structure
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
from lightning import Callback, Trainer

from gera_lightning.data.store import StoreWriter
from gera_lightning.training.datamodule import AlignmentDataModule
from gera_lightning.training.module import AlignmentModule

STEPS, WARM_UP, BUDGET, SHARD = 60, 10, 1000, 50_000
GRAPH = {"graph.index": "IVF256,Flat", "graph.nprobe": 2}
"""A quick graph for presets that read one: it is the steps that are measured."""


def write_stores(folder: Path, rows: int, width: int) -> None:
    """Two stores of the same items, random rows around some centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, width)).astype(np.float32)
    for name in "ab":
        writer = StoreWriter(folder / name)
        for start in range(0, rows, SHARD):
            count = min(SHARD, rows - start)
            x = rng.standard_normal((count, width), dtype=np.float32)
            x += centres[rng.integers(300, size=count)]
            names = [f"item{number:08d}" for number in range(start, start + count)]
            writer.append(x, pd.DataFrame({"row": names, "item": names}))
        writer.finish({"name": "random"}, {"name": "random"})


class PeakMemory:
    """The largest anonymous memory of this process, looked at every 20 ms, in MiB."""

    def __init__(self) -> None:
        self.peak = self.now
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def now(self) -> int:
        """What it is now."""
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("RssAnon:")[1].split()[0]) // 1024

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.now)
            time.sleep(0.02)


def train(folder: str, preset: str, residency: str) -> None:
    """Train for some steps in this process, and print what it took."""
    memory = PeakMemory()
    print(f"{residency:<8} {memory.now} MiB before anything is read", flush=True)
    ended: list[np.ndarray] = []

    class Clock(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            ended.append(np.array([time.perf_counter(), time.process_time()]))

    began = time.perf_counter()
    settings = {"data.residency": residency, "cache_dir": f"{folder}/cache", **GRAPH}
    data = AlignmentDataModule(f"{folder}/a", f"{folder}/b", BUDGET, settings=settings)
    drawn, seconds = memory.peak, time.perf_counter() - began
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = dict.fromkeys(quiet, False)
    trainer = Trainer(max_steps=STEPS, accelerator="cpu", callbacks=[Clock()], **options)
    trainer.fit(AlignmentModule(preset), datamodule=data)
    wall, processor = (ended[-1] - ended[WARM_UP - 1]) / (STEPS - WARM_UP)
    print(
        f"{residency:<8} {1 / wall:.1f} steps/s, {1000 * processor:.1f} ms of a processor a step;"
        f" peak {memory.peak} MiB; when all rows were drawn, which took {seconds:.1f} s, it was"
        f" {drawn} MiB",
        flush=True,
    )


def main(rows: int = 200_000, width: int = 384, preset: str = "structure") -> None:
    """Write the stores into a folder that is removed, and train on them."""
    with tempfile.TemporaryDirectory() as folder:
        write_stores(Path(folder), rows, width)
        print(f"{preset}, {rows:,} rows of width {width} per modality, budget {BUDGET}", flush=True)
        for residency in ("memory", "disk"):
            process = multiprocessing.get_context("fork").Process(
                target=train, args=(folder, preset, residency)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*map(int, words[:2]), *words[2:])
