"""Accounts in one line for what a scan passes over, so that nothing vanishes in silence."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from retraining.photos.bounds import ImageFileError, NotAnImageError
from retraining.photos.formats import named_like_image, reason_of
from retraining.photos.tree import Tree, holds
from retraining.system.text import counted, some

LOOSE, EMPTY, DEAD, UNREADABLE = "loose", "empty", "dead", "unreadable"
NESTED, OTHER, EMPTY_LABEL = "nested", "other", "empty label"
DEEPER, BESIDE = "deeper", "beside"
NO_LABEL, SEVERAL, UNLISTED, MISSING = "no label", "several", "unlisted", "missing"

# How the line counts each kind, in its order.
FORMS = {
    LOOSE: ("photo outside the class folders", "photos outside the class folders"),
    DEAD: ("link that leads nowhere", "links that lead nowhere"),
    UNREADABLE: ("folder that cannot be read", "folders that cannot be read"),
    EMPTY: ("empty folder", "empty folders"),
    NESTED: ("folder in a class folder", "folders in class folders"),
    DEEPER: ("folder beside the photos", "folders beside the photos"),
    BESIDE: ("folder beside the split folders", "folders beside the split folders"),
    NO_LABEL: ("photo without a label", "photos without a label"),
    SEVERAL: ("photo with several labels", "photos with several labels"),
    UNLISTED: ("photo that _classes.csv does not list", "photos that _classes.csv does not list"),
    MISSING: ("listed photo that is not there", "listed photos that are not there"),
    EMPTY_LABEL: ("label without photos", "labels without photos"),
    OTHER: ("file that is not an image", "files that are not images"),
}
REMEDIES = dict.fromkeys(
    (NESTED, DEEPER), "; `PhotoSettings.recursive` also takes the photos in them"
)


@dataclass
class PassedOver:
    """What a scan of `tree` passes over: {kind: {name: why, or ''}}."""

    tree: Tree
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, kind: str, names: Sequence[str], why: str = "") -> None:
        """Adds files or folders of one of the kinds; one that is there already counts once."""
        if kind == EMPTY:
            names = [name for name in names if name not in self.found.get(UNREADABLE, ())]
        if names:
            self.found.setdefault(kind, {}).update(dict.fromkeys(names, why))

    def lines(self) -> list[str]:
        """Returns one line that names the first of each kind, or none if nothing was left out."""
        start = self.tree.path_of("")
        parts = []
        for kind, forms in FORMS.items():
            if found := self.found.get(kind):
                named = [
                    name.removeprefix(start) + (f": {why}" if why else "")
                    for name, why in found.items()
                ]
                counts = counted(len(found), *forms)
                parts.append(f"{counts} ({some(named)}{REMEDIES.get(kind, '')})")
        return [f"passed over {'; '.join(parts)}"] if parts else []

    def listed(self, folder: str, recursive: bool) -> list[tuple[str, bool]]:
        """Returns what `Tree.files_below` yields; adds a folder that cannot be read."""
        try:
            return list(self.tree.files_below(folder, recursive))
        except OSError as error:
            self.add(UNREADABLE, [folder], reason_of(error))
            return []

    def add_loose(self, folder: str) -> None:
        """Adds the photos and the unreadable entries of a folder that holds class folders.

        Other files do not count.
        """
        for name, is_folder in self.listed(folder, recursive=False):
            if not is_folder and self.is_photo(name):
                self.add(LOOSE, [name])

    def is_photo(self, name: str, add_others: bool = False) -> bool:
        """Returns whether a file is a photo by its name, or else by how its content begins.

        Opens no file that is named like a photo. Adds a file that cannot be read, and, with
        `add_others`, a file that is not an image.
        """
        if named_like_image(name):
            return True
        try:
            if self.tree.remote:
                raise NotAnImageError
            self.tree.look_at(name, 1)
        except NotAnImageError:
            self.add(OTHER, [name] if add_others else [])
        except ImageFileError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError):
                self.add(DEAD, [name])
            elif isinstance(cause, OSError):
                self.add(UNREADABLE, [name], reason_of(cause))
        else:
            return True
        return False

    def add_folders(self, kind: str, folders: Sequence[str]) -> None:
        """Adds folders that the scan does not enter, each as one of the kind or as an empty one."""
        for folder in folders:
            self.add(kind if holds(self.tree, folder) else EMPTY, [folder])
