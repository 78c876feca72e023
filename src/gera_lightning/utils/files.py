"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch file to write, which is `path` afterwards: a reader sees the old file or the whole
    new one, never a part.

    Its name is that of no other writer, on this machine or another one of the same file system.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def replace_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`, as `atomic_write`."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(data)


def remove_scratch(folder: Path) -> None:
    """Remove what `atomic_write` of processes that were killed left under a folder, in which nobody
    may be writing.
    """
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
