"""Stops a process at each system call that changes files below a folder, to kill it or fail that.

The kernel asks a supervisor before such a call (seccomp_unotify(2); Linux 5.5 on x86-64; no
privileges needed). That covers calls of C code, all threads, and child processes. Whatever the
process maps into memory and changes there, as SQLite does with its -shm file, goes unseen.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

IS_SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"

# {number on x86-64: (name, what each argument that names a file is)}; see syscalls(2).
FD, PATH, AT = "descriptor", "path", "descriptor of a folder, then path"
CALLS = {
    1: ("write", FD),
    18: ("pwrite64", FD),
    20: ("writev", FD),
    296: ("pwritev", FD),
    328: ("pwritev2", FD),
    40: ("sendfile", FD),
    326: ("copy_file_range", None),  # its second descriptor
    74: ("fsync", FD),
    75: ("fdatasync", FD),
    77: ("ftruncate", FD),
    285: ("fallocate", FD),
    76: ("truncate", PATH),
    82: ("rename", PATH),
    83: ("mkdir", PATH),
    84: ("rmdir", PATH),
    86: ("link", PATH),
    87: ("unlink", PATH),
    263: ("unlinkat", AT),
    264: ("renameat", AT),
    265: ("linkat", AT),
    316: ("renameat2", AT),
    258: ("mkdirat", AT),
    257: ("openat", AT),  # only where it creates or empties a file
    2: ("open", PATH),
}
TAKE_ROOM = {
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"),
    *("fallocate", "mkdir", "mkdirat"),
}
OPEN_FLAGS = {257: 2, 2: 1}  # which argument of the call
CHANGING = os.O_CREAT | os.O_TRUNC

# From linux/seccomp.h, linux/filter.h and linux/prctl.h.
SECCOMP, SET_MODE_FILTER, NEW_LISTENER = 317, 1, 1 << 3
USER_NOTIF, ALLOW = 0x7FC00000, 0x7FFF0000
RECEIVE, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
NO_NEW_PRIVILEGES = 38
NOTICE = struct.Struct("=QIIiIQ6Q")  # id, process, flags, call, architecture, pointer, arguments
ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # operations of the filter
KILLED = -1
ARGUMENTS = 16  # offset in struct seccomp_data


def _filter():
    """Returns the BPF program that asks the supervisor about CALLS."""
    code = [(LOAD, 0, 0, 0)]
    for number in CALLS:
        if number in OPEN_FLAGS:
            offset = ARGUMENTS + 8 * OPEN_FLAGS[number]
            code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, offset), (ANY_BIT, 0, 1, CHANGING)]
            code += [(RETURN, 0, 0, USER_NOTIF), (RETURN, 0, 0, ALLOW)]
        else:
            code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, USER_NOTIF)]
    return b"".join(struct.pack("=HBBI", *step) for step in [*code, (RETURN, 0, 0, ALLOW)])


def _ask_before_calls():
    """Puts the filter on this process and its children; returns the supervisor's descriptor."""
    program = _filter()
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer := _buffer(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    descriptor = libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER, header)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    del buffer
    return descriptor


def _buffer(content):
    return (ctypes.c_char * len(content)).from_buffer_copy(content)


@dataclass
class Course:
    """How a supervised process went."""

    calls: int = 0  # that changed files below the folder
    hit: str = ""  # the call at which the fault was put; "" if it ended before
    code: int | None = None  # exit code of the process, negative for a signal
    outlived: bool = False  # a child process was there long after it
    names: list[str] = field(default_factory=list)  # of all calls: name and path


def supervise(work, folder, number, fault, patience=60.0):
    """Runs `work()` in a forked process, with a fault at its n-th call that changes files.

    The faults: `kill` kills the process that was forked, `kill child` the one that calls (one of
    its children's calls count only), `full` fails this call and all later ones that need room.
    Returns a Course. Reaps the process; its children have `patience` seconds to end by themselves.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            socket.send_fds(theirs, [b"x"], [_ask_before_calls()])
            os._exit(work())
        os._exit(99)
    with ours:
        theirs.close()
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    try:
        return _Supervisor(pid, listener, os.path.realpath(folder), number, fault).run(patience)
    finally:
        os.close(listener)


class _Supervisor:
    def __init__(self, pid, listener, folder, number, fault):
        self.pid, self.listener, self.folder = pid, listener, folder
        self.number, self.fault, self.course = number, fault, Course()

    def run(self, patience):
        poll, end = select.poll(), None
        poll.register(self.listener, select.POLLIN)
        while True:
            ((_, event),) = poll.poll(200) or [(0, 0)]
            if event & select.POLLIN:
                self._answer()
            elif event:  # all processes with the filter have ended
                break
            if self.course.code is None:
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    self.course.code = os.waitstatus_to_exitcode(status)
                    end = time.monotonic() + patience
            elif time.monotonic() > end:
                self.course.outlived = True
                break
        if self.course.code is None:
            self.course.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.course

    def _answer(self):
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(self.listener, RECEIVE, notice, True)
        except OSError:  # it has been killed meanwhile
            return
        identity, process, _, call, _, _, *arguments = NOTICE.unpack(notice)
        error = self._decide(process, *CALLS[call], arguments)
        if error == KILLED:  # an answer could let the call go on before the signal arrives
            return
        answer = ANSWER.pack(identity, 0, -error, 0 if error else CONTINUE)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.listener, SEND, bytearray(answer), True)

    def _decide(self, process, name, kind, arguments):
        """Returns the error to fail the call with, or 0; KILLED if it has killed the caller."""
        try:
            paths, caller = _paths(process, name, kind, arguments), _group(process)
        except OSError:  # it has been killed meanwhile
            return 0
        if not any(path.startswith(self.folder + "/") for path in paths):
            return 0
        if self.fault == "kill child" and caller == self.pid:
            return 0
        if self.fault == "full" and (name not in TAKE_ROOM or os.path.isdir(paths[-1])):
            return 0
        self.course.calls += 1
        self.course.names.append(f"{name} {paths[-1].removeprefix(self.folder + '/')}")
        if self.course.calls == self.number:
            self.course.hit = self.course.names[-1]
            if self.fault != "full":
                killed = self.pid if self.fault == "kill" else caller
                os.kill(killed, signal.SIGKILL)
                return KILLED * (killed == caller)
        return errno.ENOSPC * (self.fault == "full" and bool(self.course.hit))


def _group(process):
    """Returns the process of a thread."""
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Tgid"))


def _paths(process, name, kind, arguments):
    """Returns the paths of the files that a call would change."""
    if kind is PATH:
        count = 2 if name in ("rename", "link") else 1
        return [_path(process, "cwd", pointer) for pointer in arguments[:count]]
    if kind is AT:
        count = 2 if name in ("renameat", "renameat2", "linkat") else 1
        pairs = [arguments[2 * number : 2 * number + 2] for number in range(count)]
        return [_path(process, _place(folder), pointer) for folder, pointer in pairs]
    return [os.readlink(f"/proc/{process}/fd/{arguments[0 if kind else 2]}")]


def _place(descriptor):
    number = ctypes.c_int(descriptor & 0xFFFFFFFF).value
    return "cwd" if number == -100 else f"fd/{number}"  # AT_FDCWD


def _path(process, place, pointer):
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        memory.seek(pointer)
        text = memory.read(min(4096, 4096 - pointer % 4096) or 4096)
        if b"\0" not in text:
            text += memory.read(4096)
    name = os.fsdecode(text.split(b"\0", 1)[0])
    return os.path.normpath(os.path.join(os.readlink(f"/proc/{process}/{place}"), name))
