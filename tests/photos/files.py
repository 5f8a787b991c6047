"""Files that begin like photos, for what never decodes them."""

JPEG = b"\xff\xd8\xff\xe0"


def write(folder, label, names):
    """Files that begin like a JPEG, each of its own content."""
    (folder / label).mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / label / name).write_bytes(JPEG + f"{label}/{name}".encode())


def fill(folder, counts):
    for label, count in counts.items():
        write(folder, label, [f"{n:03d}.jpg" for n in range(count)])
    return str(folder)


def split_folders(tmp_path, **folders):
    """Folders of classes, each photo of its own content."""
    for name, classes in folders.items():
        fill(tmp_path / name, classes)
        for path in (tmp_path / name).rglob("*.jpg"):
            path.write_bytes(path.read_bytes() + name.encode())
    return str(tmp_path)
