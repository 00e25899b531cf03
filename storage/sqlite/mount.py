"""The disk and the file system on which a database file lies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
# Other machines may have these mounted as well. `flock` need not hold between them, and SQLite's log needs memory that
# all its processes share (https://sqlite.org/howtocorrupt.html, 2.1, and https://sqlite.org/wal.html).
_NETWORK: Final = frozenset({
    "9p", "afs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "lustre", "nfs", "nfs4",
    "smb3", "smbfs",
})  # fmt: skip
# A disk with less free space counts as full, since a disk is rarely full to the last page. 64 KiB would be too little:
# a single turn may be larger.
_MIN_FREE_BYTES = 1 << 20


def find_network_type(path: str) -> str | None:
    """Returns the type of the network file system of a file, such as "nfs4".

    None is also returned if the type cannot be known: the directory is missing, or the system is not Linux.

    path: the file, which need not exist yet.
    """
    with suppress(OSError):
        device = os.stat(os.path.dirname(os.path.realpath(path))).st_dev
        device_number = f"{os.major(device)}:{os.minor(device)}"
        for line in MOUNTS.read_text("utf-8", "replace").splitlines():
            # proc_pid_mountinfo(5): the third field is the device, major:minor. The first field after the lone hyphen
            # is the type.
            mount_fields, _, type_fields = line.partition(" - ")
            if mount_fields.split()[2] == device_number and (file_type := type_fields.split()[0]) in _NETWORK:
                return file_type
    return None


def is_disk_doubtful(path: str) -> bool:
    """Returns whether the disk below a file has little room, or is mounted read-only. Touches no file."""
    try:
        status = os.statvfs(path)
    except OSError:
        return True
    return bool(status.f_flag & os.ST_RDONLY) or status.f_bavail * status.f_frsize < _MIN_FREE_BYTES
