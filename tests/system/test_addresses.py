"""addresses.py: no name of a photo holds the password of its address."""

import pytest

from retraining.system import addresses
from retraining.system.addresses import (
    dataset_name,
    take_login,
    with_login,
    without_logins,
    without_password,
    without_secrets,
)


@pytest.fixture(autouse=True)
def no_logins(monkeypatch):
    monkeypatch.setattr(addresses, "_LOGINS", {})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:s3cret@host:8080/a@b/c.jpg?d=@", "https://host:8080/a@b/c.jpg?d=@"),
        ("https://t0ken@host/a", "https://host/a"),
        ("https://:s3cret@host/a", "https://host/a"),
        ("ftp://me:s3c:r@t@host", "ftp://me@host"),
        ("SFTP://me:s3cret@host/a", "SFTP://me@host/a"),
        ("hdfs://me@host/a", "hdfs://me@host/a"),
        ("abfs://container@account.dfs.core.windows.net/a", None),
        ("s3://bucket/me:you@home.jpg", None),
        ("https://host/?a=b:c@d", None),
        ("C:\\me:you@home", None),
        ("photos/me:you@home.jpg", None),
        ("", None),
    ],
)
def test_a_password_goes_and_comes_back_where_the_address_is_opened(url, shown):
    shown = url if shown is None else shown
    assert without_password(url) == shown
    assert with_login(shown) == shown  # nothing is known of it yet
    assert take_login(url) == shown
    assert with_login(shown) == url
    assert with_login(f"{shown}/1.jpg") == f"{url}/1.jpg"
    assert take_login(shown) == shown  # which does not forget it
    assert with_login(shown) == url


def test_a_login_is_for_its_host_alone():
    take_login("https://me:s3cret@host/a")
    for other in ("https://other/a", "http://host/a", "https://host:8080/a"):
        assert with_login(other) == other
    assert with_login("https://you:own@host/a") == "https://you:own@host/a"
    known = addresses.logins()
    addresses._LOGINS.clear()
    addresses.remember(known)
    assert with_login("https://host/b") == "https://me:s3cret@host/b"


def test_messages_of_other_libraries_lose_remembered_passwords():
    take_login("https://me:s3cret@host/a")
    assert without_logins("no https://me:s3cret@host/a there") == "no https://host/a there"


@pytest.mark.parametrize(
    ("location", "bare", "name"),
    [
        ("https://me:s3cret@host/my/pets/?token=x#y", "https://host/my/pets/", "pets"),
        ("s3://bucket/pets.zip?version=1", "s3://bucket/pets.zip", "pets.zip"),
        ("in/pets?x#y", "in/pets?x#y", "pets?x#y"),
        ("", "", ""),
    ],
)
def test_records_have_no_secrets(location, bare, name):
    assert without_secrets(location) == bare
    assert dataset_name(location) == name
