"""Backups: a place that holds copies of a storage and the log after them, and what is made of it again.

`catalog` and `retention` know what is there and what is needed, `stores` keep it, `source` is where it comes from;
`making` adds to it, `restoring` and `verifying` read it.
"""

from berkeleydb_storage.backup.making import Backup
from berkeleydb_storage.backup.policy import Every
from berkeleydb_storage.backup.recalling import list_backups, restore
from berkeleydb_storage.backup.restoring import Restored
from berkeleydb_storage.backup.retention import Keep
from berkeleydb_storage.backup.verifying import Verified, verify_backups

__all__ = ["Backup", "Every", "Keep", "Restored", "Verified", "list_backups", "restore", "verify_backups"]
