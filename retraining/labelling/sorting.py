"""Puts images into one folder for each label. Overwrites nothing; a second run changes nothing."""

import filecmp
import hashlib
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from retraining.errors import RetrainingError
from retraining.photos.registry import hash_file
from retraining.system.atomic import is_within
from retraining.system.text import as_path

NAME_BYTES = 120  # of the name of a label's folder; file systems allow 143 to 255
STEM_BYTES = 180  # of a file's name before its mark, which tells it from others of that name
MARK_DIGITS = 8  # of a SHA-1, in hex

# Windows refuses these characters, and a dot or space at the end. A dot at the start hides a
# folder. `%` is escaped where it looks like an escape.
UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]|%(?=[0-9A-Fa-f]{2})|^\.|[. ]\Z')
# learn.microsoft.com, "Naming Files, Paths, and Namespaces"
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|\Z)", re.IGNORECASE)


class SortError(RetrainingError):
    """An image cannot be put into the folder of its label; the message says why."""


class Sorter:
    """Puts images into `folder/<label>/`, as copies or as hard links.

    `placed` counts the images that were put there, `known` those that were there already.
    """

    def __init__(self, folder: str | Path, labels: Iterable[str], by: str = "copy") -> None:
        """`by` is `copy` or `link`. Raises SortError if the folder cannot be made."""
        self.folder, self.placed, self.known = Path(folder), 0, 0
        self._put = WAYS[by]
        self._folders = {
            label: self.folder / as_path(name) for label, name in folder_names(labels).items()
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SortError(f"cannot make the folder {folder}: {error.strerror}") from error

    def check_apart(self, sources: Iterable[str]) -> None:
        """Refuses to sort into folders that are yet to be read: the search would find the copies.

        The sorted folder itself may lie inside a source, since the search leaves it out.

        Raises:
            SortError: the folder of a label lies in one of the folders `sources`.
        """
        for source in map(os.path.realpath, sources):
            here = os.path.realpath(self.folder)
            if here != source and is_within(here, source):
                continue
            for target in self._folders.values():
                if is_within(os.path.realpath(target), source):
                    raise SortError(
                        f"{target} lies in {source}, which holds the images to label; choose "
                        f"another folder to sort into"
                    )

    def place(self, path: str, label: str) -> None:
        """Puts the image at `path` into the folder of the label, unless it is there already.

        If another image there has the same name, adds a part of the SHA-1 to the name.

        Raises:
            SortError: the image cannot be read, copied or linked.
        """
        folder = self._folders[label]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for target in _targets(folder, path):
                if not os.path.lexists(target):
                    self._put(path, target)
                    self.placed += 1
                    return
                if os.path.isfile(target) and filecmp.cmp(path, target, shallow=False):
                    self.known += 1
                    return
        except OSError as error:
            raise SortError(f"cannot put {path} into {folder}: {error.strerror}") from error
        raise SortError(f"every possible name for {path} in {folder} is already in use")


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """Returns {label: name of its folder}: the label itself if every system allows that name.

    Unsafe characters are percent-encoded (RFC 3986, 2.1), and long labels are cut. Some systems
    ignore differences in case or in the form of accents. Labels that differ only so, and labels
    that were cut, end in a part of their SHA-1, so that no two labels share a folder.
    """
    names = {label: safe_name(label) for label in labels}
    alike = Counter(_as_some_systems_see(name) for name in names.values())
    return {
        label: f"{name}~{_mark(label)}" if alike[_as_some_systems_see(name)] > 1 else name
        for label, name in names.items()
    }


def safe_name(label: str) -> str:
    """Returns the label as the name of a folder, percent-encoded and cut as needed."""
    name = UNSAFE.sub(lambda found: _percent(found[0]), label) or "%"
    if RESERVED.match(name):
        name = _percent(name[0]) + name[1:]
    cut = _cut(name, NAME_BYTES)
    return name if cut == name else f"{cut}~{_mark(label)}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _utf8(character))


def _utf8(text: str) -> bytes:
    """Returns the text in UTF-8, lone surrogates as the bytes they stand for, or as themselves."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _as_some_systems_see(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _mark(label: str) -> str:
    return hashlib.sha1(_utf8(label)).hexdigest()[:MARK_DIGITS]


def _cut(text: str, size: int) -> str:
    """Returns the text, or its first part, of at most `size` bytes of UTF-8."""
    encoded = _utf8(text)
    return text if len(encoded) <= size else encoded[:size].decode("utf-8", "ignore")


def _targets(folder: Path, path: str) -> Iterator[Path]:
    """Yields the paths for an image, the first choice first; all others need its SHA-1."""
    name = os.path.basename(path)
    yield folder / name
    stem, suffix = os.path.splitext(name)
    key = hash_file(path)
    for digits in (MARK_DIGITS, len(key)):
        yield folder / f"{_cut(stem, STEM_BYTES)}~{key[:digits]}{suffix}"


def copy(path: str, target: Path) -> None:
    """Copies a file with its times; `target` appears once complete, if the name is free."""
    temporary = target.with_name(f".sort-{os.getpid()}.part")
    try:
        with open(path, "rb") as source, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.copystat(path, temporary)
        _name(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, target: Path) -> None:
    """Gives a file its final name. Raises FileExistsError if the name is taken."""
    if os.name != "nt":  # here a rename would replace a file of that name, so link first
        try:
            os.link(temporary, target)
            return
        except FileExistsError:
            raise
        except OSError:  # FAT, for example, has no links
            if os.path.lexists(target):
                raise
    os.rename(temporary, target)


def link(path: str, target: Path) -> None:
    """Gives a file a second name on the same disk. Raises OSError, which says what to do."""
    try:
        os.link(os.path.realpath(path), target)
    except FileExistsError:
        raise
    except OSError as error:
        reason = f"it cannot be linked ({error.strerror}); use `Sorter.by` copy"
        raise OSError(error.errno, reason, path) from error


WAYS: dict[str, Callable[[str, Path], None]] = {"copy": copy, "link": link}
