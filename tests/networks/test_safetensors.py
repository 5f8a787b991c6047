"""safetensors.py: whole files are read, all others are refused in one line."""

import numpy as np
import pytest

from retraining.networks.safetensors import SafetensorsError, read_entries, read_tensors
from tests.networks.dinov2_weights import safetensors_bytes, with_header

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float32(7).reshape(()),
    "c": np.zeros((0, 4), np.float32),
}


def write(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def read(path):
    return read_tensors(path, read_entries(path))


def test_a_file_is_read(tmp_path):
    found = read(write(tmp_path, safetensors_bytes(TENSORS, {"format": "pt"})))
    assert list(found) == ["a", "b", "c"]
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_files_of_the_package_are_read(tmp_path, kind):
    package = pytest.importorskip("safetensors.numpy", exc_type=ImportError)
    types = pytest.importorskip("ml_dtypes")
    dtype = types.bfloat16 if kind == "bfloat16" else np.dtype(kind)
    values = {"x": np.array([[1.5, -2.25], [0.0, 96.0]], dtype)}
    path = write(tmp_path, package.save(values, {"format": "pt"}))
    np.testing.assert_array_equal(read(path)["x"], np.float32(values["x"]), strict=True)


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WHOLE = safetensors_bytes(TENSORS)
DAMAGED = {
    "empty": (b"", "cut short, or not a safetensors file"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(100), "cut short, or not a safetensors file"),
    "cut in the header": (WHOLE[:40], "cut short, or not a safetensors file"),
    "cut in the numbers": (WHOLE[:-3], "end at byte .*, the file at byte"),
    "longer": (WHOLE + b"\0", "end at byte .*, the file at byte"),
    "a header of 2**63 bytes": ((1 << 63).to_bytes(8, "little") + WHOLE[8:], "cut short"),
    "no JSON": (with_header(b"{'a': 1}"), "header is damaged"),
    "no UTF-8": (with_header(b'{"\xff": 1}'), "header is damaged"),
    "deep JSON": (with_header(b"[" * 200_000), "header is damaged"),
    "a huge number": (with_header(b'{"a": ' + b"9" * 5000 + b"}"), "header is damaged"),
    "a list": (with_header([1]), "lists no tensors"),
    "a name twice": (
        with_header(b'{"a": {}, "a": {}}'),
        "header is damaged",
    ),
    "no entry": (with_header({"a": 1}), "'a' is malformed"),
    "no type": (with_header({"a": entry(0, 4, dtype="C64")}, bytes(4)), "'a' is malformed"),
    "a type that is a list": (with_header({"a": entry(0, 4, dtype=[])}, bytes(4)), "malformed"),
    "three offsets": (
        with_header({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 4]}}, bytes(4)),
        "malformed",
    ),
    "another size": (with_header({"a": entry(0, 4, (2,))}, bytes(4)), "of its tensor 'a' differ"),
    "a negative side": (with_header({"a": entry(0, 4, (-1, -1))}, bytes(4)), "'a' differ"),
    "a side that is true": (with_header({"a": entry(0, 4, (True,))}, bytes(4)), "'a' differ"),
    "a fraction": (with_header({"a": entry(0, 4.0)}, bytes(4)), "'a' differ"),
    "many axes": (with_header({"a": entry(0, 4, (1,) * 9)}, bytes(4)), "'a' differ"),
    "from before the start": (with_header({"a": entry(-4, 0)}, bytes(4)), "'a' differ"),
    "an overlap": (
        with_header({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)),
        "overlap, or leave gaps",
    ),
    "a gap": (with_header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "leave gaps"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_all_else_is_refused_in_one_line(tmp_path, name):
    content, reason = DAMAGED[name]
    with pytest.raises(SafetensorsError, match=reason) as error:
        read_entries(write(tmp_path, content))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_integers_are_no_weights(tmp_path):
    path = write(tmp_path, with_header({"a": entry(0, 4, dtype="I32")}, bytes(4)))
    with pytest.raises(SafetensorsError, match="its a is of type I32, not of F32, F16, BF16"):
        read(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(SafetensorsError, match="cannot read it: No such file"):
        read_entries(tmp_path / "none")
    with pytest.raises(SafetensorsError, match="cannot read it"):
        read_entries(tmp_path)
