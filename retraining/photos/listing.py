"""Lists what lies below a URL once, by the rules for folders, without reading any photo."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from retraining.photos import places
from retraining.photos.decode import MAX_PIXELS, ImageFileError, check_size


@dataclass(frozen=True)
class Listing:
    """The files below `url`: {path: Facts}, in the order in which folders are read.

    `reasons` says why a path is not an image, as the listing or a reading of the file shows.
    """

    url: str
    facts: dict[str, places.Facts]
    reasons: dict[str, str] = field(default_factory=dict)

    def folders(self) -> list[str]:
        """Returns the names of the sub-folders, sorted."""
        start = len(places.join(self.url, ""))
        return sorted(folder[start:] for folder in self._names if folder != self.url)

    def files_below(self, folder: str, recursive: bool = True) -> Iterator[tuple[str, bool]]:
        """Yields (path, whether it is a folder not entered) as scan.files_below does.

        `folder` is the URL or one of its sub-folders.
        """
        entered: set[str] = set()
        for name in self._names.get(folder, ()):
            inner = name.split("/")[0]
            if recursive or "/" not in name:
                if name and not name.endswith("/"):  # such a name stands for a folder
                    yield places.join(folder, name), False
            elif inner not in entered:
                entered.add(inner)
                yield places.join(folder, inner), True

    def why_no_image(self, path: str, max_pixels: int = MAX_PIXELS) -> str | None:
        """Returns why a file is not an image, as far as is known, or None."""
        try:
            check_size(self.facts[path].size, max_pixels)
        except ImageFileError as error:
            return str(error)
        return self.reasons.get(path)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """{the URL or that of a sub-folder: names of its files, relative to it}"""
        names: dict[str, list[str]] = defaultdict(list)
        start = len(places.join(self.url, ""))
        for path in self.facts:
            label, slash, name = path[start:].partition("/")
            folder = places.join(self.url, label) if slash else self.url
            names[folder].append(name if slash else label)
        return names


def list_url(url: str) -> Listing:
    """Returns the Listing of a URL.

    Raises:
        PlaceError: it cannot be listed, or nothing is there.
    """
    url = url if url.endswith("://") else url.rstrip("/")
    facts: dict[str, places.Facts] = {}
    reasons: dict[str, str] = {}
    found = places.list_files(url)
    if not found:
        raise places.PlaceError(f"nothing lies at {url}; check its name")
    for name in sorted(found, key=_order):
        parts = name.split("/")
        if any(map(places.passed_over, parts)) or "" in parts[:-1]:
            continue
        path = places.join(url, name)
        facts[path], regular = found[name]
        if not regular:
            reasons[path] = "is a pipe, a socket or a device, not an image file"
    return Listing(url, facts, reasons)


def _order(name: str) -> list[tuple[int, str]]:
    """Returns a sort key that puts a folder's files before its folders, as scan.files_below."""
    *folders, last = name.split("/")
    return [*((1, folder) for folder in folders), (0, last)]
