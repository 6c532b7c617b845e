"""Processes that answer requests and may be lost: each is replaced when a request ends or outlasts it."""

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class WorkerLost(Exception):
    """The process ended, or had to be ended, before it replied."""


class KillableWorkers:
    """Worker processes that speak JSON, a line each way, shared by the threads of a process.

    They are started when they are needed and belong to the process that started them: after a fork, or in a copy that
    a pickle made, there are none yet, so the workers of a data loader have their own.

    Args:
        script (`Path`): File that a worker runs. Its first line says that it is ready, or has an `error`.
        arguments (sequence of `str`): Its command line.
        max_workers (`int`): Most processes at a time; further threads wait.
        wall_seconds (`float`): Longest wait for a reply, for what processor time does not bound.
    """

    def __init__(self, script: Path, arguments: Sequence[str], max_workers: int, wall_seconds: float):
        self.script, self.arguments = script, list(arguments)
        self.max_workers, self.wall_seconds = max_workers, wall_seconds
        self._reset()

    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sends a message to an idle worker and returns its reply.

        Raises:
            WorkerLost: If the worker was lost over it. The next request finds another.
            RuntimeError: If no worker can be started.
        """
        if self._owner != os.getpid():
            self._reset()  # pipes of a process before the fork are not ours to use
        with self._places:
            process = self._idle.pop() if self._idle else self._start()
            try:
                reply = self._exchange(process, message)
            except BaseException:
                _end(process)
                raise
            self._idle.append(process)
            return reply

    def close(self) -> None:
        """Ends the idle workers."""
        while self._idle:
            _end(self._idle.pop())

    def __getstate__(self) -> dict[str, Any]:
        names = ("script", "arguments", "max_workers", "wall_seconds")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._idle: list[subprocess.Popen[str]] = []
        self._places = threading.BoundedSemaphore(self.max_workers)
        weakref.finalize(self, _end_all, self._idle, self._owner)

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(self.script), *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        reply = json.loads(first) if first else {"error": f"it ended with status {process.wait()}"}
        if "error" in reply:
            _end(process)
            raise RuntimeError(f"`{self.script.name}` did not start: {reply['error']}.")
        return process

    def _exchange(self, process: subprocess.Popen[str], message: Mapping[str, Any]) -> Mapping[str, Any]:
        assert process.stdin is not None and process.stdout is not None
        alarm = threading.Timer(self.wall_seconds, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line.endswith("\n"):
            raise WorkerLost(f"status {process.wait()}")
        return json.loads(line)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            assert pipe is not None
            pipe.close()
        except (BrokenPipeError, OSError):
            pass  # what was not sent has nobody to go to


def _end_all(processes: list[subprocess.Popen[str]], owner: int) -> None:
    if os.getpid() == owner:
        while processes:
            _end(processes.pop())
