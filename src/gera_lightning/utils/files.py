"""Write files so that a reader sees the whole file or none, and compute checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a file's bytes.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "x").write_bytes(b"abc")
    >>> file_sha256(Path(folder.name, "x"))[:12]
    'ba7816bf8f01'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def natural_order(path: str | os.PathLike[str]) -> list[tuple[int, int, str]]:
    """Sort key in which numbers in names sort as numbers.

    >>> sorted(["part.10", "part.2", "part.1"], key=natural_order)
    ['part.1', 'part.2', 'part.10']
    """
    pieces = re.findall(r"\d+|\D+", os.fspath(path))
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in pieces]


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Within it an OSError says which file it is about, and that the disk is full where NumPy does
    not say why it wrote too little.

    Raises:
        OSError: with an errno and the file.
    """
    try:
        yield
    except OSError as error:
        numpy_wrote_too_little = "requested and" in str(error)
        number = errno.ENOSPC if numpy_wrote_too_little else error.errno
        if number is None:
            raise
        raise OSError(number, os.strerror(number), error.filename or str(path)) from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a scratch file to write; at the end it replaces `path` in one step.

    A reader sees the old file or the new one, never a part, and once it is there it survives a loss
    of power. Several writers may be at work, also on other machines of one file system: each has a
    scratch file of its own.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with atomic_write(Path(folder.name, "x.txt")) as scratch:
    ...     _ = scratch.write_text("new")
    >>> [(path.name, path.read_text(encoding="utf-8")) for path in Path(folder.name).iterdir()]
    [('x.txt', 'new')]
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with named_errors(path):
            yield scratch
            put_in_place(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def put_in_place(scratch: Path, path: Path) -> None:
    """Let a whole file take the place of `path`, for good: file and name are on the disk then."""
    flush(scratch)
    os.replace(scratch, path)
    flush(path.parent)


def read_bounded(path: Path, most: int = 2**24) -> bytes:
    """The bytes of a small file.

    Raises:
        ValueError: it has more than `most` bytes.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step, see `atomic_write`."""
    with atomic_write(path) as scratch:
        scratch.write_bytes(data)


def remove_scratch(folder: Path) -> None:
    """Remove the scratch files that killed processes left under a folder.

    No process may be writing there.
    """
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
