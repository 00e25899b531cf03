"""The filter of system calls in a sandbox (docs.kernel.org, seccomp_filter).

Namespaces and limits do not reach all of the kernel: a namespace does not separate keys (keyrings(7)), memory in an
anonymous file, a segment or a pipe belongs to no process, AF_VSOCK knows no network namespace. The filter refuses the
calls that reach these, and calls that only debuggers, containers and databases need.
"""

from __future__ import annotations

import errno
import mmap
import platform
import socket
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

# linux/filter.h: BPF_LD, BPF_ALU and BPF_RET, each with its operand in the instruction; BPF_JEQ, BPF_JGE.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST = 0x15, 0x35
# linux/seccomp.h: the offsets in `struct seccomp_data` of a call's number, its architecture, and the low halves of its
# first and fourth argument, as little endian architectures have them; all below are.
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARG0, _OFFSET_ARG3 = 0, 4, 16, 40
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# The highest number in Linux 6.10. Later calls are refused, and so are the calls of x32, whose numbers have bit 30 set.
_NEWEST_SYSCALL: Final = 462


class _Architecture(NamedTuple):
    """An architecture of processors, as the kernel knows it."""

    audit_number: int  # AUDIT_ARCH_… of linux/audit.h
    column: int  # the index of the architecture's column in the tables below


_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {
    "x86_64": _Architecture(0xC000003E, 0),
    "aarch64": _Architecture(0xC00000B7, 1),
    "riscv64": _Architecture(0xC00000F3, 1),
    "ppc64le": _Architecture(0xC0000015, 2),
}
# The numbers of system calls in three of the kernel's tables: x86-64, generic (aarch64, riscv64) and powerpc. None: the
# table does not have this call.
REFUSED_SYSCALLS: Final[Mapping[str, tuple[int | None, ...]]] = {
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
    "vmsplice": (278, 75, 285),  # with it one slot of a pipe can hold two megabytes
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
    # All sockets but pairs. What is sent to a socket that listens or has an address stays in memory after its sender is
    # closed, and counts for no process. A pair holds only its own two buffers.
    "socket": (41, 198, 326),
    "bind": (49, 200, 327),
    "connect": (42, 203, 328),
    "listen": (50, 201, 329),
    "setsockopt": (54, 208, 339),  # it makes buffers larger, and gives addresses (SO_PASSCRED)
    "socketcall": (None, None, 102),  # another call for all of these
}
_SOCKETPAIR: Final = (53, 199, 333)
_MMAP: Final = (9, 222, 90)
# Shared memory without a file stays whole while one page of it is mapped, and the unmapped rest counts for no process.
_SHARED_FLAGS: Final = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS

# A `struct sock_filter`: the code, how many instructions to skip if a test holds and if it does not, the operand.
_Instruction = tuple[int, int, int, int]


def make_filter() -> bytes | None:
    """Returns the filter for this machine; None for an unknown architecture, which can have no sandbox."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return None
    column = architecture.column
    # A kernel without the call gives this error, so libraries go on without the call.
    refuse = _fail(errno.ENOSYS)
    program = [
        _load(_OFFSET_ARCH),
        # Refuses calls of another architecture, such as those of 32 bits.
        *_unless(_EQUAL, architecture.audit_number, refuse),
        _load(_OFFSET_NR),
        *_if(_AT_LEAST, _NEWEST_SYSCALL + 1, refuse),
    ]
    for numbers in REFUSED_SYSCALLS.values():
        if (number := numbers[column]) is not None:
            program += _if(_EQUAL, number, refuse)
    program += [
        *_if(
            _EQUAL,
            _SOCKETPAIR[column],
            _load(_OFFSET_ARG0),
            # The error of a kernel without the family.
            *_unless(_EQUAL, socket.AF_UNIX, _fail(errno.EAFNOSUPPORT)),
            (_RETURN, 0, 0, _ALLOW),
        ),
        *_if(
            _EQUAL,
            _MMAP[column],
            _load(_OFFSET_ARG3),
            (_AND, 0, 0, _SHARED_FLAGS),
            *_if(_EQUAL, _SHARED_FLAGS, _fail(errno.EPERM)),  # not ENOSYS: other uses of the call are allowed
        ),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _load(offset: int) -> _Instruction:
    return (_LOAD, 0, 0, offset)


def _fail(error: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | error)


def _if(test: int, operand: int, *then: _Instruction) -> list[_Instruction]:
    """Returns a test of the loaded value, and the instructions that run only if it holds."""
    return [(test, 0, len(then), operand), *then]


def _unless(test: int, operand: int, *then: _Instruction) -> list[_Instruction]:
    """Returns a test of the loaded value, and the instructions that run only if it does not hold."""
    return [(test, len(then), 0, operand), *then]
