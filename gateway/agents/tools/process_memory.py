"""Measures the memory of a process and its descendants, as Linux counts it (proc(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# The bytes of a file in memory besides its content: an inode, its name, and the kernel's own bookkeeping.
_FILE_BYTES = 2048
# Pages of files on a disk are not counted, since they can be read again. Page tables are counted: if a process takes
# scattered pages, its page tables are larger than these.
_COUNTED_FIELDS = ("RssAnon:", "RssShmem:", "VmSwap:", "VmPTE:", "HugetlbPages:")


def can_measure_memory() -> bool:
    """Returns whether this kernel lists a process's children, which `measure_memory` needs."""
    return Path(f"/proc/self/task/{os.getpid()}/children").exists()


def measure_memory(pid: int, folder: str, folder_bytes: int) -> int:
    """Returns the bytes that a process and its descendants take at this moment.

    folder: the folder in which the descendants have a file system in memory, of which the files count as well.
    folder_bytes: the size of that file system.
    """
    used_bytes = _measure_process(pid)
    descendants = _list_children(pid)
    if descendants:
        used_bytes += _measure_files(descendants[0], folder, folder_bytes)
    while descendants:
        child = descendants.pop()
        used_bytes += _measure_process(child)
        descendants += _list_children(child)
    return used_bytes


def _list_children(pid: int) -> list[int]:
    """Returns the ids of the processes that a process has started."""
    children: list[int] = []
    # A process that ends meanwhile takes nothing, and its children become its parent's.
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return children


def _measure_process(pid: int) -> int:
    """Returns the bytes that one process takes; 0 if it has ended."""
    used_bytes = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(_COUNTED_FIELDS):
                used_bytes += int(line.split()[1]) * 1024
    return used_bytes


def _measure_files(pid: int, folder: str, size_bytes: int) -> int:
    """Returns the bytes of the files in a folder of a process; 0 if the folder is no file system of this size."""
    try:
        file_system = os.statvfs(f"/proc/{pid}/root{folder}")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    if file_system.f_blocks * file_system.f_frsize != size_bytes:
        return 0
    content_bytes = (file_system.f_blocks - file_system.f_bfree) * file_system.f_frsize
    return content_bytes + (file_system.f_files - file_system.f_ffree) * _FILE_BYTES
