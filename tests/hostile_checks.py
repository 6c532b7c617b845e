"""
Loads the cases of hostile_checkpoints.py, each in a fork of its own, and writes down what came of it:

    python hostile_checks.py CASES OUTPUT

The fork may allocate little, and an audit hook writes down what it does to the rest of the machine: files written,
processes started, connections, and pickles read.
"""

import contextlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

GIB = 1 << 30
PROMPT = [[5, 6, 7]]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events: which of their arguments are paths that they change, and the folders that those are relative to.
CHANGES = {
    "os.mkdir": [(0, 2)],
    "os.rename": [(0, 2), (1, 3)],
    "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)],
    "os.link": [(1, 3)],
    "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)],
    "os.chmod": [(0, 2)],
}
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")


class Guard:
    """The audit hook: what a process did beyond the folders that it may write to."""

    def __init__(self, allowed):
        self.allowed = [os.path.realpath(folder) for folder in allowed]
        self.written, self.started, self.connected, self.unpickled = [], [], [], []
        self.watching = True

    def __call__(self, event, arguments):
        if not self.watching:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, str | bytes) and (any(c in (mode or "") for c in "wax+") or (flags or 0) & WRITING):
                self._changes(path, follow=True)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._changes(arguments[path], -1 if folder is None else arguments[folder])
        elif event in STARTS:
            self.started.append(f"{event} {arguments[:1]}")
        elif event == "socket.connect":
            self.connected.append(str(arguments[1]))
        elif event == "pickle.find_class":
            self.unpickled.append(f"{arguments[0]}.{arguments[1]}")

    def _changes(self, path, folder=-1, follow=False):
        if not isinstance(path, str | bytes | os.PathLike):
            return  # an open file
        parent = "" if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
        path = Path(parent, os.fsdecode(path))
        # a link is made and removed where it is, and written where it leads
        real = os.path.realpath(path) if follow else os.path.join(os.path.realpath(path.parent), path.name)
        if real != os.devnull and not any(real == root or real.startswith(root + os.sep) for root in self.allowed):
            self.written.append(real)


def load(source, **arguments):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, **arguments)


def load_and_generate(source, **arguments):
    import torch

    model = load(source, **arguments)
    assert type(model).__name__ == "PaletteQwen3ForCausalLM"
    ids = model.generate(torch.tensor(PROMPT), num_prefix_tokens=2, latent_seed=1, max_new_tokens=2, do_sample=False)
    assert ids.shape == (1, len(PROMPT[0]) + 2)
    return model


def load_and_save(source, target, **arguments):
    import warnings

    model = load_and_generate(source, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(target)
    return load(target)


def save_over(source, **arguments):
    sound = load(Path(source).parent.parent / "palette")
    sound.save_pretrained(source, palette_only=True)


def load_adapter(source, **arguments):
    load(source).load_adapter(f"{source}/adapter")


def load_without_the_package(source, **arguments):
    """With the code of the checkpoint."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")


def misbehave(source, target, **arguments):
    """What the guard is there for: all of it."""
    import pickle
    import socket
    import subprocess

    import torch

    class Harmful:
        def __reduce__(self):
            return exec, ("import os; open(os.environ['HOSTILE_MARKER'], 'w').close()",)

    pickle.loads(pickle.dumps(Harmful()))
    torch.load("anything")
    subprocess.run(["true"], check=False)
    os.mkdir(f"{target}-beside")
    os.symlink("config.json", f"{source}/link")
    with socket.socket() as connection, contextlib.suppress(OSError):
        connection.connect(("127.0.0.1", 9))
    bytearray(300 << 20)
    bytearray(2 * GIB)


def run(case):
    """A case, here: the error, or None; and what the guard saw."""
    import torch

    guard = Guard([os.environ["HF_HOME"], f"{case['folder']}/saved"])
    load_file, torch.load = torch.load, lambda *found, **more: guard.unpickled.append("torch.load")
    arguments = dict(case["arguments"])
    if case["how"] in ("load_and_save", "misbehave"):
        arguments["target"] = f"{case['folder']}/saved"
    files = listing(case["folder"])
    before = status()
    limit = before["VmData"] + GIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sys.addaudithook(guard)
    error = None
    try:
        globals()[case["how"]](case["source"], **arguments)
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
        if isinstance(raised, AssertionError):
            error = traceback.format_exc()
    guard.watching = False
    torch.load = load_file
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    guard.written += sorted(set(listing(case["folder"]).items()) ^ set(files.items()))  # other languages have no hook
    return {
        "error": error,
        "growth": max(peak - before["VmRSS"], 0),
        "ran": os.path.exists(os.environ["HOSTILE_MARKER"]),
        "written": guard.written,
        "started": guard.started,
        "connected": guard.connected,
        "unpickled": guard.unpickled,
    }


def listing(folder):
    """Size and time of all that lies in the folder of a case, links not followed, beside what may be written there."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if parent == folder and "saved" in folders:
            folders.remove("saved")
        for name in files:
            path = os.path.join(parent, name)
            if path != os.environ["HOSTILE_MARKER"]:
                found[path] = [os.lstat(path).st_size, os.lstat(path).st_mtime_ns]
    return {path: str(content) for path, content in found.items()}


def status():
    """Memory of this process in bytes, by the kernel's names."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value[:-3]) << 10
    return found


def forget_the_package():
    """In a fork: what imports it finds the code of checkpoints alone."""
    import transformers

    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_palette"]:
        del sys.modules[name]
    mappings = [transformers.CONFIG_MAPPING, transformers.MODEL_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING]
    for mapping in mappings:
        mapping._extra_content.clear()
    sys.modules["reasoning_palette"] = None


def in_a_fork(case, output):
    child = os.fork()
    if child == 0:
        try:
            os.environ["HOSTILE_MARKER"] = f"{case['folder']}/ran"
            if case["how"] == "load_without_the_package":
                forget_the_package()
            found = run(case)
        except BaseException:
            found = {"failed": traceback.format_exc()}
        Path(output).write_text(json.dumps(found))
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(Path(output).read_text())


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # of modules that transformers imports when they are needed
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401 (once for all forks)

    import reasoning_palette.modeling_palette  # noqa: F401

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    given, output = sys.argv[1:]
    findings = {}
    for case in json.loads(Path(given).read_text()):
        Path(f"{output}.part").unlink(missing_ok=True)
        findings[case["name"]] = in_a_fork(case, f"{output}.part")
    Path(output).write_text(json.dumps(findings))
