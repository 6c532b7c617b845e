"""Writes docs/transformers_tests.md: how many of transformers' own tests a base and its palette pass.

python tests/transformers_page.py docs/transformers_tests.md
"""

import collections
import platform
import re
import sys
from pathlib import Path

import torch
import transformers
from test_transformers_common import DIFFERENCES
from transformers_checks import FAMILIES, run

TITLES = {"base": "the base", "palette": "its palette", "latent_ids": "its palette, latent ids in the prompts"}
KINDS = ("passed", "skipped", "failed")


def page(outcomes_of_family):
    lines = [
        "# transformers' own model tests",
        "",
        "What a plain base passes, its palette passes, but for the second table;",
        "`tests/test_transformers_common.py` asserts it.",
        "Written by `python tests/transformers_page.py docs/transformers_tests.md` with the tests of transformers",
        f"{transformers.__version__} (`ModelTesterMixin`, `ConfigTester`, `TrainingTesterMixin`, the plans of tensor "
        "parallelism",
        f"and FSDP), torch {torch.__version__.split('+')[0]} and Python {platform.python_version()}, on a machine "
        "without an accelerator.",
        "",
        "| family | model | " + " | ".join(KINDS) + " |",
        "| --- | --- | " + " | ".join("---" for _ in KINDS) + " |",
    ]
    for family, outcomes in outcomes_of_family.items():
        for name, title in TITLES.items():
            counts = collections.Counter(outcome.split(":")[0] for outcome, _ in outcomes[name].values())
            lines.append(f"| {family} | {title} | " + " | ".join(str(counts[kind]) for kind in KINDS) + " |")
    lines += [
        "",
        "## Passed by the base and not by its palette",
        "",
        "| test | families | ends with | why |",
        "| --- | --- | --- | --- |",
    ]
    for test, (_, why) in DIFFERENCES.items():
        found = [name for name, outcomes in outcomes_of_family.items() if outcomes["base"][test][0] == "passed"]
        if found:
            ends = outcomes_of_family[found[0]]["palette"][test][0].split("\n")[0]
            ends = re.sub(r"'/[^']*'", "'...'", ends)  # a temporary folder
            ends = ends if len(ends) <= 120 else ends[:117] + "..."
            lines.append(f"| `{test}` | {', '.join(found)} | {ends.replace('|', ' ')} | {why} |")
    lines += ["", "## Skipped for the base, passed by its palette", ""]
    gained = {
        test
        for outcomes in outcomes_of_family.values()
        for test, (outcome, _) in outcomes["base"].items()
        if outcome != "passed" and outcomes["palette"][test][0] == "passed"
    }
    lines += [f"- `{test}`" for test in sorted(gained)]
    family, outcomes = next(iter(outcomes_of_family.items()))
    lines += ["", f"## Skipped for both ({family})", "", "| reason | tests |", "| --- | --- |"]
    reasons = collections.Counter(
        re.sub(r"\b\w*(Test|For\w+LM)\b", "...", outcome.removeprefix("skipped: ")).split("\n")[0]
        for test, (outcome, _) in outcomes["base"].items()
        if outcome.startswith("skipped") and outcomes["palette"][test][0].startswith("skipped")
    )
    lines += [f"| {reason.replace('|', ' ')} | {count} |" for reason, count in reasons.most_common()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page({family: run(family) for family in FAMILIES}))
