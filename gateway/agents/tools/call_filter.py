"""The filter of system calls that a sandbox is given (docs.kernel.org, seccomp_filter).

Namespaces and limits do not reach all of the kernel: a namespace keeps no keys apart (keyrings(7)), memory that lies in
an anonymous file, a segment or a pipe belongs to no process, AF_VSOCK knows no network namespace. What reaches these is
refused, and so is what only debuggers, containers and databases need.
"""

from __future__ import annotations

import errno
import mmap
import platform
import socket
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

# linux/filter.h
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
# linux/seccomp.h: where a call has its number, its machine, and the low halves of its first and fourth argument. All of
# the machines below have these first.
_NUMBER, _MACHINE, _FIRST, _FOURTH = 0, 4, 16, 40
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NEWEST: Final = 462  # of Linux 6.10; what came later is refused unseen, and so is the x32 form of each call


class _Machine(NamedTuple):
    audit: int  # linux/audit.h
    column: int  # of the tables below


_MACHINES: Final[Mapping[str, _Machine]] = {
    "x86_64": _Machine(0xC000003E, 0),
    "aarch64": _Machine(0xC00000B7, 1),
    "riscv64": _Machine(0xC00000F3, 1),
    "ppc64le": _Machine(0xC0000015, 2),
}
# The numbers of calls, a column for each table of calls; None: it does not have this one.
_Numbers = tuple[int | None, ...]
REFUSED: Final[Mapping[str, _Numbers]] = {
    # keys
    "add_key": (248, 217, 269),
    "request_key": (249, 218, 270),
    "keyctl": (250, 219, 271),
    # memory that no limit of a process counts
    "memfd_create": (319, 279, 360),
    "memfd_secret": (447, 447, 447),
    "shmget": (29, 194, 395),
    "msgget": (68, 186, 399),
    "semget": (64, 190, 393),
    "ipc": (None, None, 117),
    "mq_open": (240, 180, 262),
    "vmsplice": (278, 75, 285),  # a slot of a pipe may hold two megabytes so
    "userfaultfd": (323, 282, 364),
    "setxattr": (188, 5, 209),  # of files in memory
    "lsetxattr": (189, 6, 210),
    "fsetxattr": (190, 7, 211),
    "landlock_create_ruleset": (444, 444, 444),
    "io_setup": (206, 0, 227),
    "io_uring_setup": (425, 425, 425),
    "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427),
    # other processes, and the kernel itself
    "ptrace": (101, 117, 26),
    "process_vm_readv": (310, 270, 351),
    "process_vm_writev": (311, 271, 352),
    "pidfd_getfd": (438, 438, 438),
    "process_madvise": (440, 440, 440),
    "kcmp": (312, 272, 354),
    "perf_event_open": (298, 241, 319),
    "bpf": (321, 280, 361),
    "fanotify_init": (300, 262, 323),
    "inotify_init": (253, None, 275),  # each watch keeps a file in memory
    "inotify_init1": (294, 26, 318),
    "personality": (135, 92, 136),
    # namespaces and mounts
    "unshare": (272, 97, 282),
    "setns": (308, 268, 350),
    "mount": (165, 40, 21),
    "umount2": (166, 39, 52),
    "pivot_root": (155, 41, 203),
    "open_tree": (428, 428, 428),
    "move_mount": (429, 429, 429),
    "fsopen": (430, 430, 430),
    "fsconfig": (431, 431, 431),
    "fsmount": (432, 432, 432),
    "fspick": (433, 433, 433),
    "mount_setattr": (442, 442, 442),
    "name_to_handle_at": (303, 264, 345),
    "open_by_handle_at": (304, 265, 346),
    # All sockets but pairs. What was sent to a socket that listens, or that has an address, waits there in memory that
    # belongs to no process, after its sender has closed its own; a pair holds its two buffers alone.
    "socket": (41, 198, 326),
    "bind": (49, 200, 327),
    "connect": (42, 203, 328),
    "listen": (50, 201, 329),
    "setsockopt": (54, 208, 339),  # it makes buffers larger, and gives addresses (SO_PASSCRED)
    "socketcall": (None, None, 102),  # another call for all of these
}
_PAIR: Final[_Numbers] = (53, 199, 333)  # socketpair
# Shared memory without a file. All of it stays while a page of it is mapped, or none by a process that is counted.
_MAP: Final[_Numbers] = (9, 222, 90)  # mmap
_SHARED: Final = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS


def filter_program() -> bytes | None:
    """Returns the filter for this machine; None: its calls are not known."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return None
    refuse = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _MACHINE),
        (_IF_EQUAL, 1, 0, machine.audit),
        refuse,  # calls of another machine, as those of 32 bits are
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _NEWEST + 1),
        refuse,
    ]
    for numbers in REFUSED.values():
        if (number := numbers[machine.column]) is not None:
            lines += [(_IF_EQUAL, 0, 1, number), refuse]
    lines += [
        (_IF_EQUAL, 0, 3, _PAIR[machine.column] or 0),
        (_LOAD, 0, 0, _FIRST),
        (_IF_EQUAL, 6, 0, socket.AF_UNIX),
        (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT),
        (_IF_EQUAL, 0, 4, _MAP[machine.column] or 0),
        (_LOAD, 0, 0, _FOURTH),
        (_AND, 0, 0, _SHARED),
        (_IF_EQUAL, 0, 1, _SHARED),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
