"""
Watches the code of checkpoints in the process that calls `watch`: it may read no environment variables, start no
processes, open no connections of its own, and write nothing beside where the process works.

What counts as done by that code: whatever it asks Python, or the standard library, for; what torch, transformers and
huggingface_hub do when they are called is theirs.
"""

import atexit
import os
import sys
import sysconfig

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")
NETWORK = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.sendto",
    "urllib.Request",
    "http.client.connect",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FOUND = []
_STANDARD = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))
_SITE = f"{os.sep}site-packages{os.sep}"
# What stands between a read of a variable and who reads it. Of other modules (tempfile, pathlib) the reads are theirs.
_OF_THE_ENVIRONMENT = (os.__file__, "<frozen os>", "<frozen _collections_abc>", "_collections_abc.py")


def watch(allowed=None):
    """Start; what is found is listed in FOUND, and ends the process with status 70 when it exits."""
    folder = os.path.realpath(allowed or os.getcwd())

    def hook(event, arguments):
        if event in NETWORK or event in STARTS or event in ("os.putenv", "os.unsetenv"):
            _note(event, arguments, _ours())
        elif event == "open" and isinstance(arguments[0], str):
            path, mode, flags = arguments
            if any(letter in (mode or "") for letter in "wax+") or (flags or 0) & WRITING:
                real = os.path.realpath(path)
                is_allowed = real == folder or real.startswith(folder + os.sep) or real == os.devnull
                if not is_allowed:
                    _note(event, arguments, _ours())
        elif event == "pickle.find_class":
            _note(event, arguments, _ours())

    sys.addaudithook(hook)
    for name in ("__getitem__", "__iter__", "__setitem__", "__delitem__"):
        _watch_environment(name)
    atexit.register(_end)


def is_ours(path):
    """Whether a file is code of a checkpoint."""
    return f"{os.sep}transformers_modules{os.sep}" in path


def _note(event, arguments, ours):
    if ours is not None:
        FOUND.append(f"{ours}: {event} {arguments!r:.200}")


def _ours():
    """Where a checkpoint's code called the standard library; None if something else did."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if is_ours(path):
            return f"{path}:{frame.f_lineno}"
        is_standard = path.startswith(("<frozen", *_STANDARD)) and _SITE not in path
        if not is_standard or path.startswith("<frozen importlib"):  # an import, which keeps what it has compiled
            return None
        frame = frame.f_back
    return None


def _watch_environment(name):
    method = getattr(os._Environ, name)

    def watched(self, *arguments):
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.endswith(_OF_THE_ENVIRONMENT):
            frame = frame.f_back
        if frame is not None and is_ours(frame.f_code.co_filename):
            FOUND.append(f"{frame.f_code.co_filename}:{frame.f_lineno}: os.environ.{name} {arguments[:1]!r}")
        return method(self, *arguments)

    setattr(os._Environ, name, watched)


def _end():
    if FOUND:
        print("The code of a checkpoint did what it may not do:", *FOUND, sep="\n", file=sys.stderr, flush=True)
        os._exit(70)
