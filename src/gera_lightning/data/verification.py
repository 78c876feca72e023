"""Which files of a store were read and found to be what its manifest says.

That is kept in the user's cache, so that a large store is checked once and not by every command. A
file whose size, time of change or inode is another is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import cached_property
from pathlib import Path

from gera_lightning.utils.files import file_sha256, replace_atomically


def cache_folder() -> Path:
    """Where it is kept: `gera_lightning/verified` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gera_lightning" / "verified"


class VerifiedFiles:
    """The files of one folder.

    Args:
        folder: that holds them.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "x").write_bytes(b"abc")
    >>> files = VerifiedFiles(folder.name)
    >>> files.check("x", file_sha256(Path(folder.name, "x"))), files.check("x", "0123")
    (True, False)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:24]
        self.path = cache_folder() / f"{name}.json"

    def check(self, name: str, sha256: str, *, again: bool = False) -> bool:
        """Whether a file is there and has this checksum; `again` reads one that was checked too."""
        file = self.folder / name
        try:
            found = file.stat()
        except OSError:
            return False
        state = [sha256, found.st_size, found.st_mtime_ns, found.st_ino]
        if not again and self._kept.get(name) == state:
            return True
        if file_sha256(file) != sha256:
            return False
        self._kept[name] = state
        with contextlib.suppress(OSError):  # no cache to write to: it is read again next time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(self.path, json.dumps(self._kept).encode())
        return True

    @cached_property
    def _kept(self) -> dict[str, list[object]]:
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}
