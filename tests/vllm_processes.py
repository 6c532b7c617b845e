"""Processes on the vLLM engine, for its tests: checks that print JSON, and the OpenAI-compatible server."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

# What `torchrun` sets and a server must not see.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_check(script, *arguments, **variables):
    """The JSON that a script prints last, run beside itself with more environment variables."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **variables},
        cwd=script.parent,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def serving(checkpoint, log_path, *flags, **variables):
    """The address of vLLM's server of a checkpoint, in float32, for the length of the block."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--port", port]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", *flags]
    clean = {name: value for name, value in os.environ.items() if name not in RANKS}
    environment = {**clean, "TOKENIZERS_PARALLELISM": "false", "VLLM_CPU_KVCACHE_SPACE": "1", **variables}
    with open(log_path, "w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 300
            while not _is_healthy(url):
                assert running.poll() is None and time.monotonic() < deadline, log_path.read_text()[-4000:]
                time.sleep(0.5)
            yield url
        finally:
            running.terminate()
            running.wait(60)


def _is_healthy(url):
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=1).status == 200
    except OSError:
        return False
