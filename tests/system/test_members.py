"""members.py: files in archives, good and hostile ones."""

import io
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from retraining.system import members
from retraining.system.archives import ArchiveError
from retraining.system.members import Archive, opened

FILES = {"a/1.jpg": b"one" * 1000, "a/2.jpg": b"", "b/c/3.jpg": os.urandom(5000)}
KINDS = {"x.zip": "", "x.tar": "w", "x.tgz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}


def info(name, **fields):
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tarred(path, *files, mode="w"):
    """Writes a tar of pairs of name and content, or TarInfo objects without content."""
    with tarfile.open(path, mode) as archive:
        for each in files:
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each)
            else:
                archive.addfile(info(each[0], size=len(each[1])), io.BytesIO(each[1]))
    return str(path)


def zipped(path, *files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return str(path)


def packed(path):
    files = FILES.items()
    return tarred(path, *files, mode=KINDS[path.name]) if KINDS[path.name] else zipped(path, *files)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_read_at_random(tmp_path, kind):
    archive = Archive(packed(tmp_path / kind))
    for name, content in reversed(FILES.items()):
        assert archive.read(name) == content
        assert archive.read(name, 100) == content[:100]
    assert set(archive.members) == set(FILES)
    assert archive.folders == {
        "": {"a", "b"},
        "a": {"1.jpg", "2.jpg"},
        "b": {"c"},
        "b/c": {"3.jpg"},
    }
    with pytest.raises(FileNotFoundError):
        archive.read("a")


def test_a_process_opens_an_archive_once_until_it_changes(tmp_path):
    path = packed(tmp_path / "x.zip")
    first = opened(path)
    assert opened(path) is first
    os.utime(path, (1, 1))
    assert opened(path) is not first
    for number in range(members.MOST_OPEN + 1):
        opened(zipped(tmp_path / f"{number}.zip", *FILES.items()))
    assert len(members._OPEN) == members.MOST_OPEN


@pytest.mark.skipif(sys.platform == "win32", reason="an open file has a name there")
def test_decompressing_leaves_no_file(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    archive = Archive(packed(tmp_path / "x.tgz"))
    assert os.listdir(tmp_path / "scratch") == []
    assert archive.read("a/1.jpg") == FILES["a/1.jpg"]


def test_of_members_with_one_name_the_last_counts(tmp_path):
    for path in (tarred(tmp_path / "x.tar", ("a/1", b"x"), ("./a//1", b"yy")),):
        assert Archive(path).read("a/1") == b"yy"


def test_hard_links_in_a_tar_are_the_same_file(tmp_path):
    link = info("b/2", type=tarfile.LNKTYPE, linkname="a/1")
    path = tarred(tmp_path / "x.tar", ("a/1", b"content"), link)
    assert Archive(path).read("b/2") == b"content"


@pytest.mark.parametrize(
    ("name", "flag", "read"),
    [
        ("caf\u00e9/1.jpg".encode(), 0, "caf\u00e9/1.jpg"),  # as zip writes on Linux
        ("caf\u00e9/1.jpg".encode(), 0x800, "caf\u00e9/1.jpg"),
        ("caf\u00e9/1.jpg".encode("cp437"), 0, "caf\u00e9/1.jpg"),  # as old programs of Windows
    ],
)
def test_names_in_utf_8_need_no_flag(tmp_path, name, flag, read):
    content = Path(zipped(tmp_path / "a.zip", ("n" * len(name), b"one"))).read_bytes()
    content = bytearray(content.replace(b"n" * len(name), name))
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # where the flags are
        at = content.index(start) + place
        content[at : at + 2] = flag.to_bytes(2, "little")
    (tmp_path / "a.zip").write_bytes(content)
    archive = Archive(str(tmp_path / "a.zip"))
    assert list(archive.members) == [read]
    assert archive.read(read) == b"one"


def test_backslashes_of_old_windows_programs_part_folders(tmp_path):
    name = zipfile.ZipInfo("a/1")
    name.filename, name.create_system = "a\\1", members.DOS
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"one")
    assert Archive(str(path)).read("a/1") == b"one"


def encrypted(path):
    content = bytearray(Path(zipped(path, ("a/1", b"one"))).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    return str(path)


UNREADABLE = {
    "link": lambda p: tarred(p, info("a/1", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "device": lambda p: tarred(p, info("a/1", type=tarfile.CHRTYPE)),
    "unusual": lambda p: zipped(p, ("a/1", b"one"), compression=zipfile.ZIP_LZMA),
    "encrypted": encrypted,
}


@pytest.mark.parametrize("said", UNREADABLE)
def test_a_member_that_cannot_be_read_says_why(tmp_path, said):
    with pytest.raises(OSError, match=said):
        Archive(UNREADABLE[said](tmp_path / "x")).read("a/1")


def test_damage_in_a_member_is_noticed(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "x.zip"
        zipped(path, ("a/1", b"one two three"), compression=compression)
        content = bytearray(path.read_bytes())
        content[35] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(OSError, match="damaged"):
            Archive(str(path)).read("a/1")


def overlapping(path):
    content = Path(zipped(path, ("a/1", b"one"), ("a/2", b"two"))).read_bytes()
    second = content.rindex(b"PK\1\2")
    path.write_bytes(content[: second + 42] + bytes(4) + content[second + 46 :])
    return str(path)


def cut(path, size):
    Path(path).write_bytes(Path(path).read_bytes()[:size])
    return path


REFUSED = {
    "forbidden path": [
        lambda p: tarred(p, ("../1", b"x")),
        lambda p: zipped(p, ("/etc/1", b"x")),
        lambda p: zipped(p, ("a/../../1", b"x")),
    ],
    "both a file and a folder": [
        lambda p: tarred(p, ("a", b"x"), ("a/1", b"x")),
        lambda p: tarred(p, ("a/b/1", b"x"), ("a", b"x")),
        lambda p: zipped(p, ("a", b"x"), ("a/b/c/1", b"x")),
    ],
    "overlap": [overlapping],
    "damaged": [
        lambda p: cut(tarred(p, ("a/1", b"x" * 5000)), 2000),
        lambda p: cut(tarred(p, ("a/1", b"x" * 5000), mode="w:gz"), 60),
        lambda p: cut(tarred(p, ("a/1", b"x" * 5000), mode="w:xz"), 90),
        lambda p: cut(zipped(p, ("a/1", b"x" * 5000)), 60),
    ],
    "not a zip or tar file but a web page": [lambda p: p.write_text("<html>") and str(p)],
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_hostile_or_broken_archive_is_refused(tmp_path, said):
    for write in REFUSED[said]:
        with pytest.raises(ArchiveError, match=said):
            Archive(write(tmp_path / "x"))


def test_numbers_of_members_and_lengths_of_names_have_bounds(tmp_path, monkeypatch):
    deep = "/".join("a" * 200)
    for path in (tarred(tmp_path / "x.tar", (deep, b"")), zipped(tmp_path / "x.zip", (deep, b""))):
        with monkeypatch.context() as bounds:
            bounds.setattr(members, "MOST_NAMES", 10_000)
            with pytest.raises(ArchiveError, match="names are too long"):
                Archive(path)
    many = [(str(number), b"") for number in range(20)]
    monkeypatch.setattr(members, "MOST_MEMBERS", 10)
    for path in (tarred(tmp_path / "x.tar", *many), zipped(tmp_path / "x.zip", *many)):
        with pytest.raises(ArchiveError, match="more than 10 files"):
            Archive(path)


def test_a_tar_may_have_many_folders_and_long_names(tmp_path):
    folders = [info(f"{number}/{'x' * 150}", type=tarfile.DIRTYPE) for number in range(3000)]
    assert len(Archive(tarred(tmp_path / "x.tar", *folders)).folders) == 6001


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_bomb_is_refused(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(members, "LEAST_ROOM", 1 << 20)
    path = tarred(tmp_path / "x", ("a/1", bytes(8 << 20)), mode=mode)
    with pytest.raises(ArchiveError, match="more bytes than allowed"):
        Archive(path)


def test_the_sizes_that_a_zip_claims_do_not_count(tmp_path):
    path = tmp_path / "x.zip"
    content = bytearray(Path(zipped(path, ("a/1", bytes(1 << 20)))).read_bytes())
    start = content.index(b"PK\1\2") + 24  # the size of the file
    content[start : start + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        Archive(str(path)).read("a/1")


def test_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(members.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(OSError, match=r"No space left on device.*; set TMPDIR"):
        Archive(packed(tmp_path / "x.tgz"))


def test_zstandard_is_read_where_its_package_is_there(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.zst"
    plain = Path(packed(tmp_path / "x.tar")).read_bytes()
    path.write_bytes(b"\x28\xb5\x2f\xfd" + plain)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "zstandard", None)
        with pytest.raises(ArchiveError, match="pip install zstandard"):
            Archive(str(path))
    zstandard = pytest.importorskip("zstandard")
    with pytest.raises(ArchiveError, match="damaged"):
        Archive(str(path))
    path.write_bytes(zstandard.ZstdCompressor().compress(plain))
    assert Archive(str(path)).read("a/1.jpg") == FILES["a/1.jpg"]
