"""Sources behind s3:// and https:// stream in, fail in one line, and never show a credential."""

import http.server
import importlib
import io
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dino_ray.errors import JobError, UsageError
from dino_ray.places import is_url, shown
from dino_ray.plan.geometry import Rect
from dino_ray.raster import remote
from dino_ray.raster.source import ReadOptions, Source, ingest, open_source, probe

pytest.importorskip("aiohttp")


def noise(height=400, width=500, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


def everything(source):
    return source.read(Rect(0, 0, source.info.width, source.info.height))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; counts bytes; may know no ranges, refuse, or drop connections."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server, path = self.server, self.path.split("?")[0]
        if path in server.statuses:
            self.send_error(server.statuses[path])
            return
        data = server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        start, end, status = 0, len(data), 200
        if server.ranges and "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start, end, status = int(first), min(int(last) + 1, end), 206
        if status == 206 and start in server.broken and server.failures_left > 0:
            server.failures_left -= 1
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            server.sent += end - start
            self.wfile.write(data[start:end])


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.statuses, server.sent, server.ranges = {}, {}, 0, True
    server.broken, server.failures_left = range(0), 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in files that are quick to make."""
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 64 * 1024)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)


FORMATS = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "webp": {"format": "WEBP"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_on_the_web_comes_in_as_it_does_from_a_disk(tmp_path, server, small_blocks, name):
    data = encoded(noise(), **FORMATS[name])
    server.files[f"/some%20folder/a.{name}"] = data
    (tmp_path / f"a.{name}").write_bytes(data)
    url = f"{server.url}/some%20folder/a.{name}"
    source, local = ingest(url, tmp_path / "s"), ingest(tmp_path / f"a.{name}", tmp_path / "l")
    np.testing.assert_array_equal(everything(source), everything(local))
    assert source.info == local.info == probe(url)


def test_tiled_and_float_tiffs_and_their_pages_come_in_from_the_web(tmp_path, server, small_blocks):
    first, second = noise(seed=1).astype(np.float32), noise(seed=2).astype(np.float64)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(first, photometric="rgb", tile=(64, 64))
        tiff.write(second, photometric="rgb", compression="zlib", rowsperstrip=32)
    server.files["/a.tif"] = (tmp_path / "a.tif").read_bytes()
    for page in (1, 2):
        options = ReadOptions(page=page)
        far = ingest(f"{server.url}/a.tif", tmp_path / "far", options)
        near = ingest(tmp_path / "a.tif", tmp_path / "near", options)
        np.testing.assert_array_equal(everything(far), everything(near))


def test_a_probe_fetches_a_part_of_a_large_file(server, small_blocks):
    server.files["/a.png"] = encoded(noise(1500, 1500), format="PNG")
    assert probe(f"{server.url}/a.png").width == 1500
    assert server.sent < len(server.files["/a.png"]) / 4


def test_a_file_is_fetched_about_once(tmp_path, server, small_blocks):
    server.files["/a.png"] = encoded(noise(1500, 1500), format="PNG")
    ingest(f"{server.url}/a.png", tmp_path / "s")
    assert server.sent < 1.3 * len(server.files["/a.png"])


def test_a_remote_file_is_never_read_window_by_window(tmp_path, server):
    server.files["/a.png"] = encoded(noise(), format="PNG")
    assert isinstance(open_source(f"{server.url}/a.png", tmp_path / "s"), Source)


def test_a_server_without_ranges_streams(tmp_path, server, small_blocks):
    server.ranges = False
    for name in ("a.png", "a.jpg", "a.webp"):
        data = encoded(noise(), format={"a.png": "PNG", "a.jpg": "JPEG", "a.webp": "WEBP"}[name])
        server.files[f"/{name}"] = data
        (tmp_path / name).write_bytes(data)
        source = ingest(f"{server.url}/{name}", tmp_path / "s")
        np.testing.assert_array_equal(everything(source), everything(ingest(tmp_path / name, tmp_path / "l")))


def test_a_tiff_on_a_server_without_ranges_is_refused_and_the_way_out_named(server, small_blocks):
    server.ranges = False
    server.files["/a.tif"] = encoded(noise(), format="TIFF")
    with pytest.raises(UsageError, match="download it first"):
        probe(f"{server.url}/a.tif")


def test_a_connection_that_breaks_now_and_then_is_mended(tmp_path, server, small_blocks):
    server.files["/a.png"] = encoded(noise(), format="PNG")
    server.broken, server.failures_left = range(100_000, 300_000), 2
    source = ingest(f"{server.url}/a.png", tmp_path / "s")
    np.testing.assert_array_equal(everything(source), noise())
    assert server.failures_left == 0


def test_a_connection_that_stays_broken_is_an_error_of_the_job(tmp_path, server, small_blocks):
    server.files["/a.png"] = encoded(noise(), format="PNG")
    server.broken, server.failures_left = range(100_000, 300_000), 10**9
    with pytest.raises(JobError, match=r"a\.png: could not be read to its end: .*can't be reached"):
        ingest(f"{server.url}/a.png", tmp_path / "s")


def test_a_truncated_file_on_the_web_is_refused(tmp_path, server, small_blocks):
    whole = encoded(noise(), format="PNG")
    server.files["/a.png"] = whole[: len(whole) // 2]
    with pytest.raises(UsageError, match="truncated"):
        ingest(f"{server.url}/a.png", tmp_path / "s")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "no such file"),
        (403, "access is denied"),
        (401, "access is denied"),
        (500, "HTTP status 500"),
    ],
)
def test_what_a_server_refuses_is_one_clear_line(server, status, words):
    server.statuses["/a.png"] = status
    with pytest.raises(UsageError, match=words) as caught:
        probe(f"{server.url}/a.png")
    assert "\n" not in str(caught.value)


def test_an_empty_file_on_the_web_is_named(server):
    server.files["/a.png"] = b""
    with pytest.raises(UsageError, match="empty"):
        probe(f"{server.url}/a.png")


def test_a_server_that_is_not_there_is_one_clear_line():
    with pytest.raises(UsageError, match="can't be reached"):
        probe("http://127.0.0.1:9/a.png")


def test_credentials_never_appear_in_a_message(tmp_path, server, caplog, small_blocks):
    server.files["/a.gif"] = encoded(noise(30, 40), format="GIF")
    server.files["/half.png"] = encoded(noise(), format="PNG")[:200_000]
    server.statuses["/no.png"] = 403
    host = server.url.removeprefix("http://")
    with caplog.at_level(logging.DEBUG, logger="dino_ray"):
        for name in ("missing.png", "no.png", "half.png"):
            with pytest.raises(UsageError) as caught:
                ingest(
                    f"http://user:SECRET@{host}/{name}?X-Amz-Signature=SECRET&b=c:SECRET#SECRET",
                    tmp_path / "s",
                )
            assert "SECRET" not in str(caught.value)
            assert name in str(caught.value)
        info = probe(f"{server.url}/a.gif?token=SECRET")
    assert info.name == "a.gif"
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("https://host/a%20b.png", "https://host/a%20b.png"),
        ("https://u:p@host:80/a.png?k=v#f", "https://host:80/a.png"),
        ("https://u:p@host/a.png?next=https://x:y@z/", "https://host/a.png"),
        ("zip://in/side.png::https://u:p@host/a.zip?token=1", "zip://in/side.png::https://host/a.zip"),
        ("s3://key:secret@bucket/a.png", "s3://bucket/a.png"),
    ],
)
def test_urls_are_shown_without_what_opens_them(url, redacted):
    assert shown(url) == redacted


def test_files_in_a_bucket_come_in(tmp_path, s3_bucket):
    s3fs = pytest.importorskip("s3fs")
    files = s3fs.S3FileSystem()
    files.pipe_file(f"{s3_bucket}/folder/a.png", encoded(noise(), format="PNG"))
    url = f"{s3_bucket}/folder/a.png"
    source = open_source(url, tmp_path / "s")
    np.testing.assert_array_equal(everything(source), noise())
    assert source.info == probe(url)
    assert source.info.name == "a.png"


@pytest.mark.parametrize(
    ("address", "words"),
    [("{}/missing.png", "no such file"), ("s3://no-such-bucket-x/a.png", "no such file")],
)
def test_what_is_not_in_a_bucket_is_one_clear_line(s3_bucket, address, words):
    with pytest.raises(UsageError, match=words):
        probe(address.format(s3_bucket))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'dino-ray\[remote\]'"):
        probe("s3://bucket/a.png")


def test_an_unknown_kind_of_url_is_named():
    with pytest.raises(UsageError, match="of no known kind"):
        probe("gopher-ish://host/a.png")


@pytest.mark.parametrize(
    ("path", "remote_one"),
    [
        ("s3://bucket/a.png", True),
        ("https://host/a.png", True),
        ("zip://a.png::s3://bucket/b.zip", True),
        ("file:///tmp/a.png", False),
        ("a b [1] 50%?.png", False),
        ("a::b.png", False),
        ("C:\\a.png", False),
        (Path("https://host/a.png"), False),
        ("odd folder/x://y.png", False),
    ],
)
def test_only_addresses_are_taken_for_addresses(path, remote_one):
    assert is_url(path) == remote_one


def test_a_file_url_is_the_file(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a b.png")
    url = (tmp_path / "a b.png").as_uri()
    assert "%20" in url
    assert probe(url).name == "a b.png"


def test_names_are_shown_on_one_line():
    assert shown("a\nb\x1b[31m ünï 画.png") == "a\\nb\\x1b[31m ünï 画.png"
