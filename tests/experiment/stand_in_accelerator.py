"""A stand-in accelerator: a torch device whose kernels run on the CPU, but which refuses what a
CUDA device refuses.

Tensors on it hold a CPU tensor. An operation on rows of both devices is an error, as is NumPy's
view of its rows; a scalar read back, or a size that depends on values, is counted, for there a CUDA
device makes the host wait. So on a machine without a GPU this tells whether everything is where it
belongs, and gives the very results of the CPU. It says nothing about CUDA's own kernels:
`test_cuda.py` does, where there is one.

As a script (`FOLDER EXPERIMENT METHOD...`) it runs each method on the CPU and on the stand-in, by
Lightning's own Trainer, and writes what came of it to FOLDER/found.json. It changes torch for its
whole process: import it in no other.
"""

from __future__ import annotations

import collections
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

MIXING = (
    "aten::_to_copy",
    "aten::copy_",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
)
"""Operations that a CUDA device does with rows of the CPU too: copies, and indexing by them."""
WAITING = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::equal",
    "aten::masked_select",
)
waits: collections.Counter[str] = collections.Counter()
"""Where the host waited for the device, by the innermost line of the package."""
operations = 0
"""On rows of the device."""


class Backend:
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        pass

    manual_seed_all = manual_seed

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("stand_in", backend_module=Backend())
DEVICE = torch.device("stand_in", 0)


class Rows(torch.Tensor):
    """A tensor on the stand-in; `inner` holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Rows:
        shape = {
            "strides": inner.stride(),
            "storage_offset": inner.storage_offset(),
            "dtype": inner.dtype,
            "layout": inner.layout,
        }
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **shape)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


class StandIn(TorchDispatchMode):
    """Within it tensors can be made on and moved to `DEVICE`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    global operations
    name = func._schema.name
    if (
        name == "aten::_has_compatible_shallow_copy_type"
    ):  # `Module.to` asks whether to replace data or tensor
        return type(args[0]) is type(args[1])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, Rows)]
    strangers = [t for t in tensors if not isinstance(t, Rows) and t.ndim > 0]
    misplaced = name == "aten::index" and not isinstance(args[0], Rows)
    if here and (misplaced or (strangers and name not in MIXING)):
        raise RuntimeError(
            f"Expected all tensors on one device: {func} of"
            f" {[(tuple(t.shape), str(t.device)) for t in tensors]}"
        )
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if here:
        operations += 1
        by_mask = name == "aten::index" and any(
            isinstance(i, torch.Tensor) and i.dtype is torch.bool for i in args[1]
        )
        if name in WAITING or by_mask or (device is not None and device.type == "cpu"):
            waits[_line()] += 1
    values = tree_map(lambda t: t.inner if isinstance(t, Rows) else t, (args, kwargs))
    if device is not None:
        values[1]["device"] = torch.device("cpu")
    out = func(*values[0], **values[1])
    if name == "aten::_local_scalar_dense":
        return out
    if func._schema.is_mutable and isinstance(
        out, torch.Tensor
    ):  # in place: the very tensor that was given
        return next(t for t in tensors if (t.inner if isinstance(t, Rows) else t) is out)
    if bool(here) if device is None else device.type == DEVICE.type:
        return tree_map(lambda t: Rows(t) if isinstance(t, torch.Tensor) else t, out)
    return out


def _line() -> str:
    frames = [
        f
        for f in traceback.extract_stack()
        if "/gera_lightning/" in f.filename or "/lightning/" in f.filename
    ]
    return f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "elsewhere"


def prepare() -> None:
    """What is written in C++ and passes the stand-in by is replaced; call it before the package is
    imported.
    """
    made = {"tensor": torch.tensor, "as_tensor": torch.as_tensor}

    def moved(name: str) -> Any:
        def make(data: Any, *, device: Any = None, **how: Any) -> torch.Tensor:
            out = made[name](data, **how)
            return out if device is None else out.to(device)

        return make

    torch.tensor, torch.as_tensor = moved("tensor"), moved("as_tensor")
    torch.inference_mode = torch.no_grad  # inference tensors know no such subclasses
    torch.__future__.set_swap_module_params_on_conversion(True)


def main(experiment: str, methods: list[str]) -> None:
    prepare()
    from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

    from gera_lightning.aligners import Aligner
    from gera_lightning.commands.export import export
    from gera_lightning.config import load
    from gera_lightning.data.store import EmbeddingStore
    from gera_lightning.experiment.run import execute
    from gera_lightning.experiment.runner import plan
    from gera_lightning.utils import distributed

    class Accelerator(CPUAccelerator):
        @staticmethod
        def get_parallel_devices(devices: Any) -> list[torch.device]:
            return [DEVICE]

        def setup_device(self, device: torch.device) -> None:
            pass

    AcceleratorRegistry.register("stand_in", Accelerator)
    strategy = _AcceleratorConnector._choose_strategy
    _AcceleratorConnector._choose_strategy = lambda self: (
        SingleDeviceStrategy(device=DEVICE)
        if self._accelerator_flag == "stand_in"
        else strategy(self)
    )
    distributed.device = lambda accelerator: (
        DEVICE if accelerator == "stand_in" else torch.device("cpu")
    )

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for method in methods:
        found[method] = {}
        for accelerator in ("cpu", "stand_in"):
            words = {
                "methods": [method],
                "trainer.accelerator": accelerator,
                "runs_dir": accelerator,
            }
            [run] = plan(load(experiment, words))
            before = operations
            waits.clear()
            with StandIn():
                row = execute(run)
            found[method][accelerator] = {
                "row": row,
                "waits": dict(waits),
                "operations": operations - before,
            }
        aligner, x = Aligner.load(run.folder / "aligner"), run.stores.held_out
        here = aligner.search(x.a.x, x.b.x, k=3)
        with StandIn():
            there = aligner.to(DEVICE).search(x.a.x, x.b.x, k=3)
            found[method]["searched there"] = {t.device.type for t in there} == {DEVICE.type}
            scores, rows = (t.cpu() for t in there)
            found[method]["search"] = torch.allclose(scores, here[0], atol=1e-5) and torch.equal(
                rows, here[1]
            )
        exported = {}
        for accelerator in ("cpu", "stand_in"):
            before = operations
            with StandIn():
                out = export(
                    str(run.folder),
                    [f"trainer.accelerator={accelerator}"],
                    out=f"exported/{accelerator}/{method}",
                )
            exported[accelerator] = [
                torch.from_numpy(EmbeddingStore(out / side).read()) for side in "ab"
            ]
        found[method]["exported there"] = operations - before
        found[method]["export"] = all(
            torch.allclose(*rows, atol=1e-5) for rows in zip(*exported.values(), strict=True)
        )
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
