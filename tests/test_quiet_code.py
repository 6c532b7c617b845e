"""
The code that travels with checkpoints makes no network call of its own, reads no environment variables, unpickles
nothing and starts nothing. Here its text is read; test_remote_code.py and test_hub.py run it under quiet_code.py.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = [path for folder in ("modeling_palette", "trainers") for path in sorted((ROOT / folder).glob("*.py"))]
# Modules of the standard library and of HTTP clients; `urllib.parse` only takes text apart.
FORBIDDEN_MODULES = {
    "aiohttp",
    "asyncio",
    "cloudpickle",
    "ctypes",
    "dill",
    "fsspec",
    "ftplib",
    "http",
    "httpx",
    "joblib",
    "marshal",
    "multiprocessing",
    "pickle",
    "pty",
    "requests",
    "runpy",
    "shelve",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "telnetlib",
    "urllib",
    "urllib3",
    "webbrowser",
    "xmlrpc",
}
ALLOWED_MODULES = {"urllib.parse"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open_code"}
FORBIDDEN_ATTRIBUTES = {
    "environ": None,
    "environb": None,
    "getenv": None,
    "putenv": None,
    "expandvars": None,
    "expanduser": None,
    "system": "os",
    "popen": "os",
    "execv": None,
    "execve": None,
    "fork": "os",
    "load": "torch",
    "hub": "torch",
    "loads": "pickle",
}
CONTROL = {
    "environment": "import os\nos.environ.get('HOME')\n",
    "getenv": "import os\nos.getenv('HOME')\n",
    "iteration": "import os\ndict(os.environ)\n",
    "assignment": "import os\nos.environ['X'] = '1'\n",
    "process": "import subprocess\nsubprocess.run(['true'])\n",
    "connection": "import socket\nsocket.socket().connect_ex(('127.0.0.1', 9))\n",
    "writing": "import sys, shutil\nshutil.copyfile(__file__, sys.argv[1] + '/copy')\n",
    "pickle": "import pickle, fractions\npickle.loads(pickle.dumps(fractions.Fraction(1, 2)))\n",
}
QUIET = """
import pathlib, tempfile
with tempfile.TemporaryDirectory(dir=".") as folder:
    pathlib.Path(folder, "x").write_text("")
"""


def offences(text):
    """What a module may not do, as far as its text says."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES and not any(
                name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED_MODULES
            ):
                found.append(f"{node.lineno}: import of {name}")
            if name.rpartition(".")[0] == "os" and name.rpartition(".")[2] in FORBIDDEN_ATTRIBUTES:
                found.append(f"{node.lineno}: import of {name}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {node.func.id}()")
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            owner = FORBIDDEN_ATTRIBUTES[node.attr]
            if owner is None or (isinstance(node.value, ast.Name) and node.value.id == owner):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=[f"{path.parent.name}/{path.stem}" for path in SHIPPED])
def test_a_shipped_module_says_nothing_of_the_kind(path):
    assert not offences(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        *list(CONTROL.values())[:6],
        "import torch\ntorch.load('x')",
        "eval('1')",
        "from os import environ",
        "from urllib import request",
        "import httpx",
    ],
)
def test_the_reader_sees_it(text):
    assert offences(text)


def run(text, tmp_path):
    """A module as transformers keeps those of checkpoints, in a process that is watched."""
    module = tmp_path / "transformers_modules" / "checkpoint.py"
    module.parent.mkdir()
    module.write_text(text)
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    script = (
        f"import sys; sys.path.append({str(ROOT / 'tests')!r}); import quiet_code; quiet_code.watch()\n"
        f"import runpy; runpy.run_path({str(module)!r})"
    )
    return subprocess.run(
        [sys.executable, "-S", "-c", script, str(tmp_path / "elsewhere")],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", CONTROL)
def test_the_watch_sees_it(name, tmp_path):
    done = run(CONTROL[name], tmp_path)
    assert done.returncode == 70, done.stderr
    assert "transformers_modules/checkpoint.py:" in done.stderr


def test_the_watch_lets_pass_what_is_allowed(tmp_path):
    done = run(QUIET, tmp_path)
    assert done.returncode == 0, done.stderr
