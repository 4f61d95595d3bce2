"""The commands of ``durus-bdb``: each module has some, `ALL` lists them. Only these modules print."""

from berkeleydb_storage.commands.archiving import ARCHIVE
from berkeleydb_storage.commands.asking import SERVER
from berkeleydb_storage.commands.backing import BACKUP, BACKUPS, RELEASE
from berkeleydb_storage.commands.command import Command
from berkeleydb_storage.commands.console import Console
from berkeleydb_storage.commands.looking import CENSUS, CHECK, STAT
from berkeleydb_storage.commands.moving import DUMP, EXPORT, LOAD, MIGRATE
from berkeleydb_storage.commands.packing import COMPACT, PACK
from berkeleydb_storage.commands.passwords import PASSWD
from berkeleydb_storage.commands.restoring import RESTORE, VERIFY
from berkeleydb_storage.commands.salvaging import SALVAGE
from berkeleydb_storage.commands.serving import SERVE
from berkeleydb_storage.commands.why import WHY

ALL: tuple[Command, ...] = (
    MIGRATE,
    EXPORT,
    CHECK,
    STAT,
    CENSUS,
    WHY,
    DUMP,
    LOAD,
    PACK,
    COMPACT,
    BACKUP,
    BACKUPS,
    RELEASE,
    RESTORE,
    VERIFY,
    ARCHIVE,
    SALVAGE,
    PASSWD,
    SERVE,
    SERVER,
)

__all__ = ["ALL", "Command", "Console"]
