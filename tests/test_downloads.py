"""What a load asks of the Hub: each file of weights once, also where it is looked at before; the stand-in counts."""

import os
import subprocess
import sys
from collections import Counter

import pytest
from hub_stand_in import FILE_PATH, HubStandIn
from trainer_testing import tiny_palette_model

REPOS = ("alice/whole", "alice/shards")
LOADS = """
import sys
from reasoning_palette.modeling_palette import PaletteForCausalLM

for more in ({}, {"force_download": True}, {}, {"revision": "main"}):
    for repo in ("alice/whole", "alice/shards"):
        PaletteForCausalLM.from_pretrained(repo, **more)
"""


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("downloads")
    model = tiny_palette_model()
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    with HubStandIn() as hub:
        hub.put("alice/whole", folder / "whole")
        hub.put("alice/shards", folder / "shards")
        environment = {**os.environ, **hub.environment(folder / "home")}
        subprocess.run([sys.executable, "-c", LOADS], env=environment, check=True)
        asked = [request.split()[:2] for request in hub.requests]
        found = [(method, FILE_PATH.fullmatch(path)) for method, path in asked if path.endswith(".safetensors")]
        counts = Counter((method, match[2], match[4]) for method, match in found)
        weights = {repo: [name for name in hub.files(repo) if name.endswith(".safetensors")] for repo in REPOS}
        return weights, counts


@pytest.mark.parametrize("repo", REPOS)
def test_weights_are_downloaded_once_and_once_again_where_that_is_forced(requests, repo):
    weights, counts = requests
    assert len(weights[repo]) == 1 if repo == "alice/whole" else len(weights[repo]) > 2
    assert [counts["GET", repo, name] for name in weights[repo]] == [2] * len(weights[repo])


@pytest.mark.parametrize("repo", REPOS)
def test_weights_in_the_cache_are_not_asked_for(requests, repo):
    weights, counts = requests
    assert all(counts["HEAD", repo, name] <= 2 for name in weights[repo])
