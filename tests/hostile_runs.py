"""Builds the hostile checkpoints and has hostile_checks.py load them, in a process with the stand-in for a Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_weights  # noqa: F401 (each module brings its cases)
from hostile_checkpoints import cases, make_sound
from hostile_names import MODULE
from hub_stand_in import HubStandIn

CHECKS = Path(__file__).with_name("hostile_checks.py")
CONTROL = "control"  # a case that does all that the guard must see
ENOUGH = 256 << 20  # bytes that any of them may take


def outcomes(folder):
    """What came of each case, by name."""
    folder = Path(folder)
    with HubStandIn() as hub:
        make_sound(folder, str(folder / "base"))
        hub.put("mallory/code", {"hostile.py": MODULE.encode()})
        calls = [build(each, folder, hub) for each in cases()]
        shutil.copytree(folder / "palette", folder / CONTROL / "checkpoint")
        calls.append(call(CONTROL, "misbehave", str(folder / CONTROL / "checkpoint"), folder))
        (folder / "calls.json").write_text(json.dumps(calls))
        done = subprocess.run(
            [sys.executable, str(CHECKS), str(folder / "calls.json"), str(folder / "found.json")],
            env={**os.environ, **hub.environment(folder / "home")},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def build(case, folder, hub):
    """A case, in a folder of its name; on the Hub it is mallory's."""
    checkpoint, name = folder / case.name / "checkpoint", f"mallory/{case.name}"
    shutil.copytree(folder / case.on, checkpoint)
    case.damage(checkpoint)
    if case.through_hub:
        hub.put(name, checkpoint)
        if (checkpoint.parent / "base").is_dir():
            hub.put(f"{name}-base", checkpoint.parent / "base")
    return call(case.name, case.how, name if case.through_hub else str(checkpoint), folder, case.arguments)


def call(name, how, source, folder, arguments=None):
    return {"name": name, "how": how, "source": source, "folder": str(folder / name), "arguments": arguments or {}}
