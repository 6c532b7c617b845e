"""Serving and rollouts on the real vLLM engine, in an environment of its own: `make test-vllm`.

Every check is a process (vllm_checks.py): an engine is made once per process, and TRL's colocated one is never freed.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM needs an environment of its own: `make test-vllm`")
from vllm_checks import SHORT_LIST, make_checkpoint

CHECKS = Path(__file__).with_name("vllm_checks.py")
GREATEST_DIFFERENCE = 1e-4  # of log-probabilities in float32
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder)
    return folder


def environment():
    # what `torchrun` would set, with a port of its own for every process
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **ranks, "TOKENIZERS_PARALLELISM": "false"}


def run(check, folder, *arguments):
    """The JSON that a check prints."""
    command = [sys.executable, str(CHECKS), check, str(folder), *map(json.dumps, arguments)]
    done = subprocess.run(
        command, env=environment(), cwd=CHECKS.parent, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def assert_same(found, rows):
    assert (found["rows"], found["differing"]) == (rows, 0)
    assert found["logprob_difference"] < GREATEST_DIFFERENCE


def test_the_engine_decodes_as_transformers_does(checkpoint):
    found = run("engine", checkpoint)
    print(found)
    assert_same(found["plain"], 100)
    assert_same(found["cached"], 100)
    assert found["cached"]["cached_tokens"] > found["plain"]["cached_tokens"] == 0
    assert_same(found["other_latents"], 40)
    assert found["other_latents"]["cached_tokens"] == 0  # no block is shared between latents
    assert_same(found["penalised"], 40)
    alone, unknown, beyond, explicit = found["refused"]
    assert "holds latent ids alone" in alone
    assert "Code 20971520 belongs to source 20, but this palette has the prior and 2 fitted domains" in unknown
    assert "to 99, but tokens are 0 to 42" in beyond
    assert "Explicit latents (tensors) have no ids on a server" in explicit


def test_a_palette_only_checkpoint_brings_its_base(tmp_path):
    make_checkpoint(tmp_path, palette_only=True)
    assert_same(run("palette_only", tmp_path), 10)


def test_a_compiled_engine(checkpoint):
    assert_same(run("compiled", checkpoint), 10)


def test_families(tmp_path):
    found = run("families", tmp_path, SHORT_LIST)
    print(found)
    assert set(found) == set(SHORT_LIST)
    for figures in found.values():
        assert_same(figures, 8)


@pytest.mark.parametrize(("algorithm", "adapter"), [("grpo", False), ("grpo", True), ("rloo", False)])
def test_colocated_rollouts(tmp_path, algorithm, adapter):
    found = run("colocate", tmp_path, algorithm, adapter)
    print(found)
    assert [step["guided"] for step in found["steps"]] == [[4, 4], [3, 3], [1, 1]]
    assert found["moved"]
    assert set(found["names"]) == {""}  # what the engine was loaded by was only lent
    if algorithm == "grpo":
        assert all(step["logprob_difference"] < GREATEST_DIFFERENCE for step in found["steps"])


@pytest.fixture
def server(checkpoint, tmp_path):
    process = environment()
    port = process["MASTER_PORT"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--port", port, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    clean = {name: value for name, value in process.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    with open(tmp_path / "server.log", "w+") as log:
        running = subprocess.Popen(command, env={**clean, **settings}, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(240):
                assert running.poll() is None, (tmp_path / "server.log").read_text()[-4000:]
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=1)
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
        finally:
            running.terminate()
            running.wait(60)


def test_server_rollouts(checkpoint, server):
    found = run("server", checkpoint, server)
    print(found)
    assert [step["guided"] for step in found["steps"]] == [[4, 4], [3, 3], [1, 1]]
    # with one prompt per group, as TRL sends them, every other member would be sampled under the first one's latent
    assert all(step["logprob_difference"] < GREATEST_DIFFERENCE for step in found["steps"])
    assert "has another palette than `model`" in found["refused"]
