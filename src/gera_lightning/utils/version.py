"""The installed version, in one place."""

from __future__ import annotations

from functools import cache


@cache
def package_version() -> str:
    """Version of the installed package; `0.0.0` in a source tree that was not installed."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of a second

    try:
        return version("gera-lightning")
    except PackageNotFoundError:
        return "0.0.0"
