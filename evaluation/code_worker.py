"""The process that runs one answer for `code_grader.py`: limits itself, runs the program, says how it ended.

It reads a JSON request from its input and writes one line to what was its output when it began. It is run as a file,
isolated (`-I`), and imports the standard library alone.
"""

import ctypes
import json
import os
import resource
import sys
import types

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NOBODY = 65534
PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION = 8, 2, 0x20080522


def isolate_network() -> bool:
    """Moves the process into a network without devices, where the system permits it."""
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)  # Linux alone has it
    if unshare is None:
        return False
    return unshare(CLONE_NEWNET) == 0 or unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def drop_root() -> None:
    """Becomes nobody, where it is root: the number of root's processes cannot be limited.

    An interpreter in root's home stays readable by the one capability that is kept for that, where there is it.
    """
    if os.getuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    readable = os.access(os.__file__, os.R_OK)
    kept = 0 if readable else 1 << CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    # two words of effective, permitted and inheritable capabilities
    if libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capabilities cannot be given up")
    with open(os.__file__, "rb"):
        pass


def limit(cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Sets limits, which the program cannot raise again."""
    for which, soft, hard in (
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes, file_bytes),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),  # neither processes nor threads
    ):
        resource.setrlimit(which, (soft, hard))


def main() -> None:
    """Runs one program."""
    request = json.loads(sys.stdin.read())
    reply_to = os.dup(1)
    os.set_inheritable(reply_to, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)

    def reply(**outcome: object) -> None:
        os.write(reply_to, (json.dumps({"token": request["token"], **outcome}) + "\n").encode())

    try:
        isolated = isolate_network()
        drop_root()
        limit(request["cpu_seconds"], request["memory_bytes"], request["file_bytes"])
    except (OSError, ValueError) as error:
        reply(status="unlimited", detail=f"{type(error).__name__}: {error}")
        os._exit(0)
    # a module of its own: dataclasses look theirs up, and `if __name__ == "__main__"` is for scripts
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    try:
        exec(compile(request["program"], "<answer>", "exec"), module.__dict__)
        outcome = {"status": "passed"}
    except MemoryError:
        outcome = {"status": "failed", "detail": "MemoryError"}
    except BaseException as error:  # a program that exits has not run its tests
        outcome = {"status": "failed", "detail": type(error).__name__}
    reply(network_isolated=isolated, **outcome)
    os._exit(0)  # neither exit handlers nor threads of the program run


if __name__ == "__main__":
    main()
