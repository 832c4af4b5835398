"""Images from where tasks say they are."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from active_learning.ports import ImageUnavailableError
from backend.media import MediaStore
from backend.settings import LabelStudioSettings, MediaSettings, Settings


def png(value: int = 7, size: tuple[int, int] = (5, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "imgs").mkdir(parents=True)
    (folder / "imgs" / "a b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png(99))
    (folder / "leak.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "imgs" / "a b.png")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


def store(tmp_path: Path, url: str | None = None, root: Path | None = None, **limits) -> MediaStore:
    return MediaStore(MediaSettings(**limits), url, "legacy", root, tmp_path / "cache")


def test_local_files_are_read_where_they_lie(tmp_path, root):
    images = store(tmp_path, "http://127.0.0.1:9", root)
    path = images.fetch("/data/local-files/?d=imgs/a%20b.png")
    assert path == root / "imgs" / "a b.png"
    assert images.fetch("http://127.0.0.1:9/data/local-files/?d=imgs/a%20b.png") == path
    assert images.fetch("/data/local-files/?d=inside.png") == path
    raster = images.open("/data/local-files/?d=imgs/a%20b.png")
    assert raster.pixels.shape == (4, 5, 3)
    assert (raster.pixels[..., 0] == 7).all()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", ["../secret.png", "imgs/../../secret.png", "leak.png", "/../secret.png"])
def test_what_lies_outside_the_root_is_left_to_label_studio(tmp_path, root, server, path):
    with pytest.raises(ImageUnavailableError, match="no local storage"):
        store(tmp_path, server.url, root).fetch(f"/data/local-files/?d={path}")
    assert server.requests[0][0].startswith("/data/local-files/")
    assert "Authorization" in server.requests[0][1]


def test_paths_that_no_file_can_have(tmp_path, root, server):
    for path in ["a%00b", "x" * 5000, "loop"]:
        with pytest.raises(ImageUnavailableError):
            store(tmp_path, server.url, root).fetch(f"/data/local-files/?d={path}")


def test_uploads_are_fetched_once_and_kept(tmp_path, server):
    server.answers["/data/upload/1/a.png"] = (200, {}, png())
    images = store(tmp_path, server.url)
    first = images.fetch("/data/upload/1/a.png")
    assert images.fetch(" /data/upload/1/a.png ") == first
    assert store(tmp_path, server.url).fetch("/data/upload/1/a.png") == first
    assert len(server.requests) == 1
    assert images.open("/data/upload/1/a.png").pixels.shape == (4, 5, 3)


def test_label_studio_under_a_sub_path(tmp_path, server):
    server.answers["/ls/data/upload/a.png"] = (200, {}, png())
    images = store(tmp_path, f"{server.url}/ls")
    assert images.fetch("/data/upload/a.png") == images.fetch("/ls/data/upload/a.png")


def test_what_is_no_image_or_too_large_names_the_address(tmp_path, root, server):
    server.answers["/data/upload/a.png"] = (200, {}, b"<html>login</html>")
    with pytest.raises(ImageUnavailableError, match=r"/data/upload/a\.png"):
        store(tmp_path, server.url).open("/data/upload/a.png")
    with pytest.raises(ImageUnavailableError, match="larger than 10 bytes"):
        store(tmp_path, None, root, max_bytes=10).open("/data/local-files/?d=imgs/a b.png")
    with pytest.raises(ImageUnavailableError, match="pixels"):
        store(tmp_path, None, root, max_pixels=10).open("/data/local-files/?d=imgs/a b.png")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "names no image"),
        ("file:///etc/passwd", "only"),
        ("/etc/passwd", "set ELNET_LABEL_STUDIO__URL"),
        ("imgs/a.png", "only"),
        ("//evil.example/a.png", "only"),
        ("gs://bucket/a.png", "only"),
        ("data:image/png;base64,AAAA", "only"),
        ("http://evil.example/a.png", "not allowed"),
        ("http://[::1/a.png", "address"),
    ],
)
def test_other_addresses_are_refused(tmp_path, uri, message):
    with pytest.raises(ImageUnavailableError, match=message):
        store(tmp_path).fetch(uri)


class FakeS3(MemoryFileSystem):
    protocol = "s3"
    cachable = False


def test_s3_goes_through_fsspec(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", FakeS3)  # and gone afterwards
    FakeS3().pipe_file("s3://bucket/a.png", png())
    images = store(tmp_path)
    assert images.open("s3://bucket/a.png").pixels.shape == (4, 5, 3)
    with pytest.raises(ImageUnavailableError, match=r"s3://bucket/b.png.*credentials"):
        images.open("s3://bucket/b.png")
    with pytest.raises(ImageUnavailableError, match="larger than 10 bytes"):
        store(tmp_path / "other", max_bytes=10).open("s3://bucket/a.png")


def test_s3_without_its_driver(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(ImageUnavailableError, match=r"elnet-loop\[s3\]"):
        store(tmp_path).fetch("s3://bucket/a.png")


def test_from_settings(tmp_path, root):
    settings = Settings(
        state=tmp_path,
        label_studio=LabelStudioSettings(url="http://127.0.0.1:9", token="t"),
        media=MediaSettings(document_root=root),
    )
    raster = MediaStore.from_settings(settings).open("/data/local-files/?d=inside.png")
    assert np.array_equal(raster.pixels[0, 0], [7, 0, 0])
