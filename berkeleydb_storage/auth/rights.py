"""What a user may do. Pure."""

from __future__ import annotations

import enum

from berkeleydb_storage.errors import OptionError

__all__ = ["Rights"]


class Rights(enum.Flag):
    """Rights, of which each higher one includes those below it: parse them, or combine them by ``|``."""

    READ = 1
    """Load objects and learn what changed."""
    WRITE = 2
    """Commit."""
    ADMIN = 4
    """Pack, back up, shut the server down."""

    @classmethod
    def parse(cls, text: str) -> Rights:
        """Return the rights that "read", "write" or "admin" means, with those that it includes.

        Raises:
            OptionError: it is none of the three.
        """
        if text not in _LEVELS:
            raise OptionError(f'rights are "read", "write" or "admin", not {text!r}')
        return _LEVELS[text]

    @property
    def text(self) -> str:
        """The highest of the rights, as `parse` takes it; "none" where there are none."""
        return next((name for name in reversed(_LEVELS) if Rights[name.upper()] in self), "none")


_LEVELS = {
    "read": Rights.READ,
    "write": Rights.READ | Rights.WRITE,
    "admin": Rights.READ | Rights.WRITE | Rights.ADMIN,
}
