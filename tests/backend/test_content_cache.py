"""Whole or not at all, and equal contents once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from active_learning.ports import ToolUnavailableError
from backend.content_cache import ContentCache


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_put_and_get_and_equal_contents_are_kept_once(tmp_path):
    cache = ContentCache(tmp_path / "new" / "cache")
    assert cache.get("a") is None
    one = cache.put("a", iter([b"xy", b"z"]))
    two = cache.put("b", [b"xyz"])
    assert one == two == cache.get("a") == cache.get("b")
    assert one.read_bytes() == b"xyz"
    assert len(files(tmp_path)) == 3  # one content, two keys


def test_what_breaks_off_leaves_nothing(tmp_path):
    def broken():
        yield b"half"
        raise ValueError("gone")

    cache = ContentCache(tmp_path)
    with pytest.raises(ValueError, match="gone"):
        cache.put("a", broken())
    assert files(tmp_path) == []
    assert cache.get("a") is None


def test_a_lost_content_counts_as_absent(tmp_path):
    cache = ContentCache(tmp_path)
    cache.put("a", [b"x"]).unlink()
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolUnavailableError, match="cannot be written"):
        ContentCache(tmp_path / "file" / "cache").put("a", [b"x"])

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ToolUnavailableError, match=r"No space left.*free some space"):
        ContentCache(tmp_path).put("a", [b"x"])
    assert files(tmp_path) == [tmp_path / "file"]
