"""The user that workers run as."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from sockway.errors import ConfigError


@dataclass(frozen=True)
class User:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """Supplementary groups."""
    name: str | None = None
    home: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """HOME, USER and LOGNAME, as far as they are known."""
        known = {"USER": self.name, "LOGNAME": self.name, "HOME": self.home}
        return {variable: value for variable, value in known.items() if value}


def find_user(text: str) -> User:
    """The user that `USER` or `USER:GROUP` means, by names or numbers.

    Raises:
        ConfigError: there is no such user or group.

    """
    word, _, group = text.partition(":")
    entry = _user_entry(word)
    if entry is None and not word.isdecimal():
        raise ConfigError(f"there is no user {word!r}", hint="`getent passwd` lists them")
    gid = _group_id(group) if group else entry.pw_gid if entry else None
    if gid is None:
        raise ConfigError(
            f"user {word} is not in the user database, so it has no group",
            hint=f"write {word}:GROUP",
        )
    if entry is None:
        return User(int(word), gid, (gid,))
    groups = tuple(os.getgrouplist(entry.pw_name, gid))
    return User(entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir)


def _user_entry(word: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(word)) if word.isdecimal() else pwd.getpwnam(word)
    except (KeyError, OverflowError):
        return None


def _group_id(word: str) -> int:
    if word.isdecimal():
        return int(word)
    try:
        return grp.getgrnam(word).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {word!r}", hint="`getent group` lists them") from None
