from __future__ import annotations

import hashlib
import os

import pytest

from gera_lightning.utils.files import file_sha256, replace_atomically


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256_is_that_of_the_bytes(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_file_is_made_or_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "x.json"
    for data in (b"old", b"new and longer", b""):
        replace_atomically(path, data)
        assert path.read_bytes() == data
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_old_file_stays_whole_when_writing_is_cut_off(tmp_path, monkeypatch, call):
    path = tmp_path / "x.json"
    path.write_bytes(b"old")

    def cut_off(*_: object) -> None:
        assert path.read_bytes() == b"old"  # also while the new one is being written
        raise OSError("disk full")

    monkeypatch.setattr(os, call, cut_off)
    with pytest.raises(OSError, match="disk full"):
        replace_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_bytes_are_on_the_disk_before_the_name_is_theirs_and_then_the_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: order.append("fsync") or fsync(*a))
    monkeypatch.setattr(os, "replace", lambda *a: order.append("replace") or replace(*a))
    replace_atomically(tmp_path / "x", b"data")
    assert order == ["fsync", "replace", "fsync"]


def test_a_reader_that_has_the_old_file_open_keeps_it(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        replace_atomically(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
