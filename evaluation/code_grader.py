"""Runs the code of an answer against tests, in a process that is limited and watched."""

import ast
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .countdown import Grade

MAX_PROGRAM = 200_000  # characters
_FENCE = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_BODY = re.compile(r"\n(?=[A-Za-z@#`<])")


@dataclass(frozen=True)
class CodeProblem:
    """A function to write, and its tests.

    Args:
        question (`str`): The prompt: a task in words, or the beginning of a program that an answer continues.
        entry_point (`str`): Name of the function.
        tests (`str`): Program that raises an exception unless the function is right.
        is_continued (`bool`, *optional*, defaults to `False`): Whether the question is code that the answer continues
            (HumanEval), rather than words (MBPP).
        name (`str`, *optional*, defaults to `""`): Name in reports.
    """

    question: str
    entry_point: str
    tests: str
    is_continued: bool = False
    name: str = ""


@dataclass(frozen=True)
class CodeRun:
    """How a program ended.

    Args:
        status (`str`): `"passed"`, `"failed"` (an exception, or an exit before the end), `"stopped"` (a limit on time
            or memory ended the process).
        detail (`str`): The exception's class, or the signal.
        network_isolated (`bool`): Whether the process had no network; False as well where it was stopped.
    """

    status: str
    detail: str
    network_isolated: bool


class CodeGrader:
    """Runs answers against their tests.

    Each program runs in a new process and session, with an isolated interpreter, an empty environment and a temporary
    folder: its processor time, time, address space, files and open files are limited, it can start neither processes
    nor threads, what it prints is dropped, and it has no network where the system permits to take it away (an
    unprivileged user namespace, or root). Run as root, it becomes nobody first. That stops accidents, floods and
    bombs; it does not stop an attacker, who can read what the user can read. Needs Linux: elsewhere it raises.

    Args:
        cpu_seconds (`int`, *optional*, defaults to 5): Processor time, in seconds.
        wall_seconds (`float`, *optional*, defaults to 20.0): Time, in seconds, for programs that wait.
        memory_gib (`float`, *optional*, defaults to 1.0): Address space, in GiB.
        file_mib (`float`, *optional*, defaults to 1.0): Largest file, in MiB.

    Raises:
        ValueError: If a limit is not above 0.
    """

    def __init__(
        self, cpu_seconds: int = 5, wall_seconds: float = 20.0, memory_gib: float = 1.0, file_mib: float = 1.0
    ):
        limits = {
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_gib": memory_gib,
            "file_mib": file_mib,
        }
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0.")
        self.cpu_seconds, self.wall_seconds = cpu_seconds, wall_seconds
        self.memory_bytes, self.file_bytes = int(memory_gib * 2**30), int(file_mib * 2**20)

    def grade(self, problem: CodeProblem, completion: str) -> Grade:
        """`"correct"` if the tests pass, `"ungradable"` if there is no code in the completion, else `"wrong"`.

        Args:
            problem (`CodeProblem`): The function and its tests.
            completion (`str`): What the model wrote.
        """
        code = answer_code(completion, problem)
        if code is None or len(code) > MAX_PROGRAM:
            return "ungradable"
        return "correct" if self.run(f"{code}\n\n{problem.tests}\n").status == "passed" else "wrong"

    def run(self, program: str) -> CodeRun:
        """Runs a program to its end.

        Args:
            program (`str`): Python.

        Raises:
            RuntimeError: If the limits could not be set; nothing was run then.
        """
        token = secrets.token_hex(16)
        request = {
            "program": program,
            "token": token,
            "cpu_seconds": int(self.cpu_seconds),
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
        }
        with (
            tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as replies,
        ):
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("code_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=replies,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": folder},
                start_new_session=True,
            )
            try:
                process.communicate(json.dumps(request).encode(), timeout=self.wall_seconds)
                ended = ""
            except subprocess.TimeoutExpired:
                ended = "time"
            finally:
                _kill_session(process)
            replies.seek(0)
            outcome = _read(replies.read(4096), token)
        if outcome is None:
            ended = ended or _signal_name(process.returncode)
            return CodeRun("stopped", ended or "exit", network_isolated=False)
        if outcome["status"] == "unlimited":
            raise RuntimeError(
                f"No program can be run: its limits could not be set ({outcome['detail']}). Grade as an ordinary "
                "user, or as root with an interpreter that every user can read."
            )
        return CodeRun(outcome["status"], outcome.get("detail", ""), outcome["network_isolated"])


def answer_code(completion: str, problem: CodeProblem) -> str | None:
    """The program of a completion; None where there is none.

    Of several fenced blocks it is the last that defines the function, a block that is not closed being one too.
    Without fences it is the completion, if it defines the function, or continues the question, up to the first line
    that is no longer part of the function.

    Args:
        completion (`str`): What the model wrote.
        problem (`CodeProblem`): The function.
    """
    defines = re.compile(
        rf"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+{re.escape(problem.entry_point)}\b", re.MULTILINE
    )
    assigns = re.compile(rf"^{re.escape(problem.entry_point)}[ \t]*=", re.MULTILINE)
    start = problem.question if problem.is_continued else ""
    body = completion.partition("```")[0] if start else ""
    begins_at_once = bool(body.strip()) and body.strip("\n")[:1].isspace()  # a fence behind it only closes
    blocks = [] if begins_at_once else _FENCE.findall(completion)
    if blocks:
        defining = [block for block in blocks if defines.search(block) or assigns.search(block)]
        if defining:
            return f"{start}\n{defining[-1]}"
        return start + blocks[-1] if start else "\n".join(blocks)
    if not begins_at_once and defines.search(completion):
        first = re.search(r"^(?:from|import|def|class|async|@)", completion, re.MULTILINE)
        without_prose = completion[first.start() if first else 0 :]
        code = next((c for c in map(_that_compiles, (completion, without_prose)) if c and defines.search(c)), None)
        return f"{start}\n{code or without_prose}"
    if not start:
        return completion if assigns.search(completion) else None
    if not begins_at_once:
        return None
    return start + _END_OF_BODY.split("\n" + body.strip("\n"), maxsplit=1)[0].removeprefix("\n") + "\n"


def code_vote(completion: str) -> str | None:
    """The code of a completion without comments and layout, which votes in maj@k; None abstains.

    Args:
        completion (`str`): What the model wrote.
    """
    blocks = _FENCE.findall(completion)
    code = blocks[-1] if blocks else completion
    for text in (code, f"def answer():\n{code}"):
        try:
            return ast.unparse(ast.parse(text)) or None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return code.strip() or None


def mbpp_entry_point(tests: Sequence[str]) -> str:
    """The function that the assertions of MBPP call first.

    Args:
        tests (sequence of `str`): Its assertions.

    Raises:
        ValueError: If they call no function by name.
    """
    for test in tests:
        for node in ast.walk(ast.parse(test)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if called and called not in ("set", "sorted", "len", "list", "tuple", "round", "abs", "str", "isinstance"):
                return str(called)
    raise ValueError(f"`tests` call no function by its name: {list(tests)}.")


def _that_compiles(code: str) -> str | None:
    """A beginning of whole lines that is a program: prose may follow code."""
    lines = code.rstrip().split("\n")
    while lines:
        beginning = "\n".join(lines)
        try:
            ast.parse(beginning)
        except SyntaxError as error:
            del lines[min(len(lines), error.lineno or len(lines)) - 1 :]
        except (ValueError, RecursionError, MemoryError):
            return None
        else:
            return beginning
    return None


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Ends the process and what it started; its number stays taken until it is waited for."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _read(written: bytes, token: str) -> dict[str, Any] | None:
    for line in written.decode(errors="replace").splitlines():
        try:
            outcome = json.loads(line)
        except ValueError:
            continue
        if isinstance(outcome, dict) and outcome.get("token") == token:
            return outcome
    return None


def _signal_name(status: int | None) -> str:
    if status is None or status >= 0:
        return ""
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
