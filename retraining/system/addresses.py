"""Addresses (URLs) of photos: what they tell, and where their passwords are kept.

A photo's name goes into messages, reports and caches, so it holds no password. This process
remembers the login of each address that it is given, and takes it where it opens an address.
"""

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+://)(?:([^/?#]*)@)?([^/?#]*)")
WEB = ("http", "https")

_LOGINS: dict[str, str] = {}  # {address of a host without the password: user:password}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL. (A single letter before the colon is a Windows drive.)"""
    return ADDRESS.match(os.fspath(path)) is not None


def local(path: str) -> str:
    """Returns the path that a `file://` URL names, or any other path unchanged."""
    if not path.lower().startswith("file://"):
        return path
    from urllib.request import url2pathname  # which imports the web's protocols

    parts = urlsplit(path.replace("?", "%3F").replace("#", "%23"))
    host = "" if parts.netloc in ("", "localhost") else f"//{parts.netloc}"
    return url2pathname(host + parts.path)


def without_secrets(location: str) -> str:
    """Returns a URL without its password, query and fragment; a path as it is."""
    if not is_url(location):
        return location
    parts = urlsplit(without_password(location))
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def dataset_name(location: str) -> str:
    """Returns the last part of the location of photos, a folder or a URL without its query."""
    if is_url(location):
        return without_secrets(location).rstrip("/").rsplit("/", 1)[-1]
    return os.path.basename(os.path.realpath(location)) if location else ""


def without_password(location: str) -> str:
    """Returns a URL without its password; a path as it is.

    The user stays, since some storages have other names there (`abfs://container@account`). On the
    web it may be a token, and goes, too.
    """
    found = ADDRESS.match(location)
    return location if found is None else _host(found) + location[found.end() :]


def _host(found: re.Match[str]) -> str:
    """Returns the address of the host without the password."""
    scheme, login, host = found.groups()
    user = (login or "").partition(":")[0]
    is_shown = user and scheme[:-3].lower() not in WEB
    return f"{scheme}{user}@{host}" if is_shown else f"{scheme}{host}"


def take_login(location: str) -> str:
    """Returns a URL without its password, which this process remembers; a path as it is.

    The last login for a host counts.
    """
    found = ADDRESS.match(location)
    bare = without_password(location)
    if found and bare != location:
        _LOGINS[_host(found)] = found[2]
    return bare


def with_login(url: str) -> str:
    """Returns a URL with the password that `take_login` has taken from one of the same host."""
    found = ADDRESS.match(url)
    if found is None or found[0] not in _LOGINS:
        return url
    return f"{found[1]}{_LOGINS[found[0]]}@{found[3]}{url[found.end() :]}"


def logins() -> dict[str, str]:
    """Returns what this process remembers, for another process to `remember`."""
    return dict(_LOGINS)


def remember(taken: Mapping[str, str]) -> None:
    """Remembers the `logins` of another process."""
    _LOGINS.update(taken)


def without_logins(text: str) -> str:
    """Returns a text, such as the message of another library, without remembered passwords."""
    for login in _LOGINS.values():
        text = text.replace(f"{login}@", "")
    return text
