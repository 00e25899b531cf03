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
# A full disk has less than this left, and rarely is full to the last page. Not 64 KiB: a single turn may be larger.
_LITTLE_ROOM_BYTES = 1 << 20


def find_network_type(path: str) -> str | None:
    """Returns the type of the network file system of a file, such as "nfs4".

    path: the file, or where it will be.

    None is also returned where that cannot be known: the directory is missing, or this is no Linux.
    """
    with suppress(OSError):
        device = os.stat(os.path.dirname(os.path.realpath(path))).st_dev
        device_number = f"{os.major(device)}:{os.minor(device)}"
        for line in MOUNTS.read_text("utf-8", "replace").splitlines():
            # proc_pid_mountinfo(5): the third field is the device, major:minor.
            # Those after the lone hyphen are the type, the source and its options.
            mount, _, options = line.partition(" - ")
            if mount.split()[2] == device_number and (file_system := options.split()[0]) in _NETWORK:
                return file_system
    return None


def is_disk_doubtful(path: str) -> bool:
    """Returns whether the disk below a file has little room, or is mounted read-only. Touches no file."""
    try:
        status = os.statvfs(path)
    except OSError:
        return True
    return bool(status.f_flag & os.ST_RDONLY) or status.f_bavail * status.f_frsize < _LITTLE_ROOM_BYTES
