"""url.py: URLs, listings, one reading per photo. Against a real S3 server where moto is there."""

import base64
import hashlib
import io
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from retraining.photos import url as url_module
from retraining.photos.archive_url import fetch_archive
from retraining.photos.dataset import load_dataset
from retraining.photos.exclude import without
from retraining.photos.reader import ImageError, read_file
from retraining.photos.registry import hash_file, kind_of, open_source
from retraining.photos.source import DatasetError, Facts, Photo, ScanOptions, SourceError
from retraining.photos.url import UrlSource
from retraining.system.addresses import is_url, local
from retraining.system.download import DownloadError
from retraining.system.observer import Silent
from tests import tiny
from tests.photos.files import JPEG

SETTLED = Facts(5, 1, True)


@pytest.fixture
def listed(monkeypatch):
    """Makes the UrlSource of s3://b/p from the names of its files, of 5 bytes if not told."""

    def source(*names, **facts):
        files = {name: (facts.get(name, SETTLED), True) for name in names}
        monkeypatch.setattr(url_module, "list_files", lambda url: files)
        return UrlSource("s3://b/p")

    return source


def names_at(url):
    """The URLs of the files that lie there."""
    source = UrlSource(url)
    return [source.path_of(name) for name in source.files]


# -- paths and URLs ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["s3://b/x", "gs://b", "memory://", "HTTPS://host/a"])
def test_urls(path):
    assert is_url(path)


@pytest.mark.parametrize("path", ["/a/b", "a", "C://x", "C:\\x", "a:b", "s3:/b", "", Path("x")])
def test_other_paths_are_no_urls(path):
    assert not is_url(path)


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_a_file_url_is_a_path_of_this_machine():
    assert local("file:///a%20b/ü?#c") == "/a b/ü?#c"
    assert local("file://localhost/a") == "/a"
    assert local("s3://b/a%20b") == "s3://b/a%20b"
    assert local("a/b") == "a/b"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("s3://b/p", "s3://b/p/x"),
        ("s3://b/p/", "s3://b/p/x"),
        ("memory://", "memory://x"),
        ("a", os.path.join("a", "x")),
    ],
)
def test_paths_below_a_location(location, path):
    source = open_source(location)
    assert source.path_of("x") == path
    assert type(source) is kind_of(path)


# -- listings ---------------------------------------------------------------------------------


def test_a_url_is_read_by_the_rules_for_folders(listed):
    source = listed("a/1.jpg", "a/2.jpg", "a/in/3.jpg", "a/in/", "b/", "b/4.jpg", "LICENSE")
    scan = source.scan()
    assert scan.names == {"a": ["s3://b/p/a/1.jpg", "s3://b/p/a/2.jpg"], "b": ["s3://b/p/b/4.jpg"]}
    assert scan.photos["b"] == [Photo("s3://b/p/b/4.jpg", "b", None, SETTLED)]
    assert scan.bad == []
    assert scan.warnings == [
        "passed over 1 folder in a class folder (a/in; `PhotoSettings.recursive` also takes the "
        "photos in them)"
    ]
    scan = source.scan(ScanOptions(recursive=True))
    assert scan.names["a"][2:] == ["s3://b/p/a/in/3.jpg"]
    assert scan.warnings == []


def test_a_url_of_one_class_or_none_is_refused(listed):
    with pytest.raises(DatasetError, match=r"s3://b/p must hold .* has only one \(a\)"):
        listed("a/1.jpg").scan()
    with pytest.raises(DatasetError, match=r"s3://b/p must hold .* has none"):
        listed(".hidden/1.jpg").scan()
    with pytest.raises(DatasetError, match=r"has only one \(a\); it holds images itself"):
        listed("a/1.jpg", "2.jpg").scan()


def test_an_empty_class_folder_is_no_class(listed):
    said = r"has only one \(a\); passed over 1 empty folder \(b\)"
    with pytest.raises(DatasetError, match=said):
        load_dataset(listed("a/1.jpg", "b/"), None, lambda photo: "0" * 40)


def test_an_object_too_large_is_left_out_unread(listed):
    facts = {"a/large.tif": Facts(10 * 5 + (64 << 20) + 1, 1, True)}
    scan = listed("a/large.tif", "a/1.jpg", "b/2.jpg", **facts).scan(ScanOptions(max_pixels=10))
    assert scan.names["a"] == ["s3://b/p/a/1.jpg"]
    assert [(i.path, i.claimed) for i in scan.bad] == [("s3://b/p/a/large.tif", True)]
    assert "more than any image that `max_pixels` allows" in scan.bad[0].reason


def test_a_file_that_turned_out_to_be_no_image_is_left_out(listed):
    scan = listed("a/1", "a/2.jpg", "b/3.jpg").scan(ScanOptions(not_images={"s3://b/p/a/1"}))
    assert scan.names["a"] == ["s3://b/p/a/2.jpg"]
    assert [(i.path, i.claimed) for i in scan.bad] == [("s3://b/p/a/1", False)]
    assert scan.warnings == ["passed over 1 file that is not an image (a/1)"]


@pytest.mark.parametrize(("recursive", "count"), [(False, 2), (True, 3)])
def test_split_folders_below_a_url(listed, recursive, count):
    names = ("train/a/1.jpg", "train/a/deep/2.jpg", "train/b/1.jpg", "train/loose.jpg")
    scan = listed(*names, "trainer.txt", "test/a/9.jpg", "test/b/9.jpg").scan(
        ScanOptions(recursive=recursive)
    )
    assert [(p.name, p.split) for p in scan.photos["b"]] == [
        ("s3://b/p/test/b/9.jpg", "testing"),
        ("s3://b/p/train/b/1.jpg", "training"),
    ]
    assert len(scan.photos["a"]) == count
    (line,) = scan.warnings
    assert line.startswith("passed over 1 photo outside the class folders (train/loose.jpg)")


def test_other_layouts_below_a_url(listed, monkeypatch):
    scan = listed("in/a/1.jpg", "in/b/2.jpg", "in/c/3.jpg", "README").scan(
        ScanOptions(classes=("c", "a"))
    )
    assert scan.names == {"c": ["s3://b/p/in/c/3.jpg"], "a": ["s3://b/p/in/a/1.jpg"]}
    assert scan.notes == ["taking the photos in s3://b/p/in, the only folder in s3://b/p"]
    scan = listed("a.1.jpg", "b.1.jpg", "more/b.2.jpg", "README").scan(
        ScanOptions(recursive=True, label_from="name")
    )
    assert scan.names["b"] == ["s3://b/p/b.1.jpg", "s3://b/p/more/b.2.jpg"]
    source = listed("train/1.jpg", "train/2.jpg", "train/_classes.csv", "README.txt")
    monkeypatch.setattr(UrlSource, "check", staticmethod(lambda name, most: None))
    content = b"filename,a,b\n1.jpg,1,0\n2.jpg,0,1\n"
    monkeypatch.setattr(UrlSource, "read", staticmethod(lambda name: content))
    assert source.scan().names == {"a": ["s3://b/p/train/1.jpg"], "b": ["s3://b/p/train/2.jpg"]}


def test_urls_are_excluded_as_printed_or_from_the_location():
    photos = {"a": [Photo(f"s3://b/p/a/{n}.jpg") for n in (1, 2, 3)]}
    left, count, _ = without(photos, ["s3://b/p/a/1.jpg", "a/3.jpg"], UrlSource("s3://b/p"))
    assert left == {"a": [Photo("s3://b/p/a/2.jpg")]}
    assert count == 2


# -- against a server -------------------------------------------------------------------------


def test_the_listing_tells_sizes_and_etags(object_store):
    for name in ("a/1.jpg", "a/odd #?%20 ü.jpg", ".hidden/2.jpg", "a/Thumbs.db", "c/"):
        object_store.put(f"listed/{name}", b"hello")
    object_store.asked.clear()
    source = UrlSource("s3://photos/listed/")
    assert list(source.files) == ["a/1.jpg", "a/odd #?%20 ü.jpg", "c/"]
    assert source.class_folders() == ["a", "c"]
    before, _ = source.files["a/1.jpg"]
    assert (before.size, before.settled) == (5, True)
    assert sum(object_store.asked.values()) == 1  # no request for any object
    object_store.put("listed/a/1.jpg", b"world")
    after, _ = UrlSource("s3://photos/listed").files["a/1.jpg"]
    assert after.size == before.size
    assert after.stamp != before.stamp
    assert read_file("s3://photos/listed/a/odd #?%20 ü.jpg") == b"hello"


def test_reading_is_one_request(object_store):
    object_store.put("read/1", b"hello")
    assert UrlSource.read("s3://photos/read/1") == b"hello"
    object_store.asked.clear()
    assert hash_file("s3://photos/read/1") == hashlib.sha1(b"hello").hexdigest()
    assert object_store.asked == {("GET", "/photos/read/1"): 1}


def test_a_file_too_large_is_not_fetched(object_store):
    object_store.put("large/1", bytes((64 << 20) + 81))
    object_store.asked.clear()
    with pytest.raises(ImageError, match="has 67108945 bytes, more than any image"):
        read_file("s3://photos/large/1", 10)
    assert object_store.fetched("large") == {}


def test_an_object_that_is_gone(object_store):
    with pytest.raises(ImageError, match=r"^cannot be read: No such file or directory$"):
        read_file("s3://photos/no/photo.jpg", None)


def one_line(error):
    return str(error.value).splitlines() == [str(error.value)]


def test_a_missing_bucket(object_store):
    with pytest.raises(SourceError, match=r"cannot list s3://nosuch/p: .*exist.*check") as error:
        names_at("s3://nosuch/p")
    assert one_line(error)


def test_wrong_credentials(object_store):
    with pytest.raises(SourceError, match=r"cannot list s3://closed/p: .*not for.*check") as error:
        names_at("s3://closed/p")
    assert one_line(error)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken", "SignatureDoesNotMatch"])
def test_credentials_that_are_not_valid_are_no_fault_of_a_photo(object_store, monkeypatch, code):
    monkeypatch.setitem(object_store.refused, "/photos/later/1.jpg", code)
    with pytest.raises(SourceError, match=r"cannot read s3://photos/later/1.jpg: .*credentials"):
        read_file("s3://photos/later/1.jpg", None)


def test_an_object_that_must_not_be_read_is_a_bad_photo(object_store, monkeypatch):
    monkeypatch.setitem(object_store.refused, "/photos/denied/1.jpg", "AccessDenied")
    with pytest.raises(ImageError, match=r"^cannot be read: .*not for you"):
        read_file("s3://photos/denied/1.jpg", None)


def test_names_with_an_empty_part_are_passed_over(object_store):
    for key in ("empty/red/1.jpg", "empty//2.jpg", "empty/red//3.jpg"):
        object_store.put(key, b"hello")
    assert names_at("s3://photos/empty") == ["s3://photos/empty/red/1.jpg"]


def test_no_server(object_store, monkeypatch):
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(SourceError, match=r"cannot read s3://photos/p: .*127.0.0.1:9.*check"):
        names_at("s3://photos/p")
    with pytest.raises(SourceError, match=r"cannot read s3://photos/p/1.jpg: "):
        read_file("s3://photos/p/1.jpg", None)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("nosuch://b/p", "give a folder, or a URL that begins with s3://, gs:// or"),
        ("zip://p::s3://photos/a.zip", "unpack the photos first"),
    ],
)
def test_urls_that_are_not_understood(url, remedy):
    pytest.importorskip("fsspec")
    with pytest.raises(SourceError, match=f"^{url}: .*{remedy}") as error:
        names_at(url)
    assert one_line(error)


@pytest.mark.parametrize("name", ["fsspec", "gcsfs"])
def test_a_package_that_is_not_there(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SourceError, match=r"pip install -r requirements-remote.txt$"):
        names_at("gs://photos/p")


def test_a_name_with_two_colons_is_a_name(object_store):
    object_store.put("colons/a::b.jpg", b"hello")
    assert names_at("s3://photos/colons") == ["s3://photos/colons/a::b.jpg"]
    assert UrlSource.read("s3://photos/colons/a::b.jpg") == b"hello"


# -- a web server -----------------------------------------------------------------------------


class Pages(BaseHTTPRequestHandler):
    """A folder of one photo, one that the server fails to list, and what is for a user only."""

    def do_GET(self):
        allowed = "Basic " + base64.b64encode(b"me:s3cret").decode()
        if self.path.startswith("/own") and self.headers.get("Authorization") != allowed:
            self.send_error(401)
            return
        links = {"/photos": "red/", "/photos/red": "1.jpg", "/torn": "no/", "/own": "a.jpg"}
        found = links.get(path := self.path.rstrip("/"))
        others = {"/own/a.jpg": 200, "/torn/no": 500, "/closed.jpg": 403}
        self.send_response(200 if found else others.get(path, 404))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if path == "/own/a.jpg":
            self.wfile.write(JPEG)
        for link in (found or "").split():
            self.wfile.write(f'<a href="{link}">{link}</a>'.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(params=["127.0.0.1", "::1"])
def web(request):
    """The URL of a web server, by an address of version 4 or 6."""
    pytest.importorskip("aiohttp")

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in request.param else socket.AF_INET

    try:
        server = Server((request.param, 0), Pages)
    except OSError:
        pytest.skip("no such address here")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"[{request.param}]" if ":" in request.param else request.param
    yield f"http://{host}:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_page_of_links_is_a_folder(web):
    assert names_at(f"{web}/photos") == [f"{web}/photos/red/1.jpg"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(web):
    with pytest.raises(SourceError, match=f"{web}/torn/no".replace("[", r"\[")) as error:
        names_at(f"{web}/torn")
    assert one_line(error)


def test_a_password_of_an_address_is_in_no_name_and_no_message(web, monkeypatch, tmp_path):
    monkeypatch.setattr("retraining.system.addresses._LOGINS", {})
    with pytest.raises(SourceError, match="cannot list"):
        names_at(f"{web}/own")
    secret = web.replace("://", "://me:s3cret@")
    assert names_at(f"{secret}/own") == [f"{web}/own/a.jpg"]
    assert read_file(f"{web}/own/a.jpg", None) == JPEG
    with pytest.raises(DownloadError, match="it is not a zip or tar file") as error:
        fetch_archive(f"{web}/own/a.jpg", tmp_path / "kept.zip", Silent())
    assert f"cannot download {web}/own/a.jpg: " in str(error.value)
    assert "s3cret" not in str(error.value)
    with pytest.raises(SourceError) as error:
        names_at(f"{secret}/gone")
    assert f"cannot list {web}/gone" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_what_a_web_server_refuses_is_said(web):
    for most_pixels in (None, 1000):  # whose size is asked for first
        with pytest.raises(ImageError, match=r"^cannot be read: 403, message='Forbidden'"):
            read_file(f"{web}/closed.jpg", most_pixels)
    with pytest.raises(ImageError, match=r"^cannot be read: No such file or directory$"):
        read_file(f"{web}/gone.jpg", None)


def test_a_url_where_nothing_lies(object_store):
    with pytest.raises(
        SourceError, match=r"^there is nothing at s3://photos/nothing; check the URL$"
    ):
        names_at("s3://photos/nothing")


def test_a_web_server_that_does_not_answer_is_no_empty_folder():
    pytest.importorskip("aiohttp")
    with pytest.raises(SourceError, match=r"cannot read http://127.0.0.1:9/photos: .*onnect"):
        names_at("http://127.0.0.1:9/photos")


def test_a_web_server_that_does_not_answer_is_no_missing_photo():
    pytest.importorskip("aiohttp")
    for most_pixels in (None, 1000):
        with pytest.raises(SourceError, match=r"cannot read http://127.0.0.1:9/a.jpg: .*onnect"):
            read_file("http://127.0.0.1:9/a.jpg", most_pixels)


# -- whole runs -------------------------------------------------------------------------------


def outcome(folder, capsys):
    """(what was printed, less the paths; labels and splits by file name; vectors by key)."""
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(folder / "vectors.parquet").to_pylist()
    lines = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    splits = {tuple(r["path"].split("/")[-2:]): (r["label"], r["split"], r["key"]) for r in rows}
    return lines["test_accuracy"], splits, {row["key"]: row["vector"] for row in rows}


@pytest.fixture(scope="module")
def odd_photos(tmp_path_factory):
    """Photos of three classes, among them a copy, a note, a picture that breaks off."""
    folder = Path(tiny.write_photos(tmp_path_factory.mktemp("odd"), {"red": 9, "blue": 9}))
    tiny.write_photos(folder / "red", {"green": 2}, seed=2)  # skipped
    first = (folder / "red" / "photo_00.jpg").read_bytes()
    (folder / "red" / "copy.jpg").write_bytes(first)
    (folder / "red" / "notes.txt").write_text("no photo")
    (folder / "blue" / "broken.jpg").write_bytes(first[:300])
    (folder / "blue" / "photo.png").write_bytes(png_bytes())
    (folder / "blue" / ".hidden.jpg").write_bytes(first)
    return folder


def png_bytes():
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(file, "PNG")
    return file.getvalue()


def test_a_bucket_gives_what_the_folder_gives(
    tmp_path, odd_photos, object_store, run_retrain, capsys
):
    url = object_store.upload(odd_photos, "odd")
    object_store.asked.clear()
    results = {}
    for name, place in (("near", odd_photos), ("far", url)):
        flags = ("--export_vectors", tmp_path / name / "vectors.parquet", "--no_report")
        assert run_retrain(tmp_path / name, place, *flags, "--projector_photos", 0) == 0
        results[name] = outcome(tmp_path / name, capsys)
    assert results["far"] == results["near"]
    tested = {key for key, (_, split, _) in results["far"][1].items() if split == "testing"}
    fetched = object_store.fetched("odd")
    # Beside its one reading, up to 16 test photos are read again for the exported graph; others
    # only for small pictures, of which there are none here.
    again = [path for path, count in fetched.items() if count > 1]
    assert {tuple(path.split("/")[-2:]) for path in again} == tested
    assert sum(fetched.values()) == len(fetched) + len(tested)
    listed = {f"/photos/odd/{p.relative_to(odd_photos).as_posix()}" for p in odd_photos.rglob("*")}
    unread = {path for path in listed if "/green" in path or "/." in path}
    assert set(fetched) == listed - unread - {"/photos/odd/red", "/photos/odd/blue"}
    reasons = (tmp_path / "far" / "models" / "bad_images.tsv").read_text().replace(url, "")
    expected = (tmp_path / "near" / "models" / "bad_images.tsv").read_text()
    assert reasons == expected.replace(str(odd_photos), "")


def test_the_second_run_reads_no_photo_that_is_as_it_was(
    tmp_path, photos, object_store, run_retrain
):
    url = object_store.upload(photos, "again")
    flags = ("--no_report", "--projector_photos", 0, "--testing_percentage", 0)
    object_store.asked.clear()
    assert run_retrain(tmp_path, url, *flags) == 0
    assert sorted(object_store.fetched("again").values()) == [1] * 90
    object_store.asked.clear()
    object_store.put("again/red/photo_03.jpg", png_bytes())
    assert run_retrain(tmp_path, url, *flags) == 0
    assert object_store.fetched("again") == {"/photos/again/red/photo_03.jpg": 1}


def test_an_object_that_vanishes_in_mid_run_is_left_out(
    tmp_path, photos, object_store, run_retrain, capfd
):
    url = object_store.upload(photos, "vanishing")
    object_store.gone.add("/photos/vanishing/red/photo_05.jpg")
    assert run_retrain(tmp_path, url, "--no_report") == 0
    lost = f"left out: {url}/red/photo_05.jpg cannot be read: No such file or directory"
    assert lost in capfd.readouterr().err


def test_labelling_takes_urls(object_store, finished, capsys):
    import label_image

    object_store.put("one/photo.jpg", Path(finished.photos, "red", "photo_00.jpg").read_bytes())
    assert label_image.main(["--graph", finished.graph, "s3://photos/one/photo.jpg"]) == 0
    assert capsys.readouterr().out.startswith("red (score=0.9")
    assert label_image.main(["--graph", finished.graph, "s3://photos/one/none.jpg"]) == 1
    assert "s3://photos/one/none.jpg cannot be read: No such file" in capsys.readouterr().err


def test_a_file_url_needs_nothing(tmp_path, photos, run_retrain, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert run_retrain(tmp_path, Path(photos).as_uri(), "--no_report") == 0
    assert "test_accuracy" in capsys.readouterr().out


def test_sorting_takes_no_urls(tmp_path, finished, capsys):
    import label_image

    flags = ["--graph", finished.graph, "--sort_into", str(tmp_path)]
    assert label_image.main([*flags, "s3://photos/one/photo.jpg"]) == 2
    assert "--sort_into takes images of this machine, no URLs" in capsys.readouterr().err
