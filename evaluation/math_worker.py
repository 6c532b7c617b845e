"""A process that compares mathematical answers for `math_grader.py`: one JSON request per line, one JSON reply each.

It is run as a file and imports nothing of the package, so that it starts in a second and not in ten. A comparison that
takes too long in processor time ends the process: no Python handler would be heard inside a power of long integers.
"""

import json
import logging
import re
import resource
import signal
import sys

if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules are not top-level ones

from math_verify import parse, verify
from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig
from sympy import Basic, MatrixBase

_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?)[eE]([-+]?\d+)(?!\w)")  # 4.5e33, as MinervaMath has it
LIMITS = {"parsing_timeout": None}  # both limits are this process's own


def compare(gold: str, answer: str, is_delimited: bool) -> str:
    """Grades an answer, given as the text that holds it and nothing else, or as a text that it has to be found in."""
    gold, answer = (_SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text) for text in (gold, answer))
    expected = parse(f"\\boxed{{{gold}}}", **LIMITS)
    targets = (LatexExtractionConfig(), ExprExtractionConfig())
    found = parse(f"\\boxed{{{answer}}}" if is_delimited else answer, targets, **LIMITS)
    if not expected or not found:
        return "ungradable"
    if is_delimited and _are_other_things(gold, answer):
        return "wrong"
    if verify(expected, found, allow_set_relation_comp=True, timeout_seconds=None):
        return "correct"
    # a text beside an expression says nothing about its value
    return "wrong" if _kinds(expected) & _kinds(found) else "ungradable"


def _are_other_things(gold: str, answer: str) -> bool:
    """A pair or an interval against a set: math-verify 0.9 takes the open interval (1, 2) for the set {1, 2}."""
    opened = [text.replace("\\left", "").strip()[:2] for text in (gold, answer)]
    return {"\\{"} < set(opened) and any(text[0] in "([" for text in opened if text)


def _kinds(extracted: list) -> set[str]:
    """Whether there is an expression; a text counts where there is no expression."""
    is_expression = any(isinstance(item, (Basic, MatrixBase)) for item in extracted)
    return {"expression" if is_expression else "text"}


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Answers until its input ends."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its own limits are off
    if sys.platform != "darwin":  # macOS has no limit on address space; there the one on time has to do
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # the parser's tables are built by its first use, which is nobody's time
    if compare("\\frac{1}{2}", "0.5", True) != "correct":
        print(json.dumps({"error": f"math-verify does not work with {memory_bytes / 2**30:g} GiB"}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends a process that does not handle it
        try:
            reply = {"grade": compare(**request)}
        except (MemoryError, RecursionError, OverflowError) as error:
            reply = {"grade": "ungradable", "reason": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
