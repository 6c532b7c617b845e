"""The stand-in answers huggingface_hub as the Hub does: judged by the client's own results and errors."""

import json
import os
import subprocess
import sys

from card_schema import text_errors
from hub_stand_in import HubStandIn

CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download

api, found = HfApi(), {}
folder = Path(sys.argv[1])
(folder / "trainers").mkdir()
(folder / "a.txt").write_text("first")
(folder / "trainers" / "x.py").write_text("x" * 1000)
(folder / "README.md").write_text("---\\nlibrary_name: transformers\\ntags:\\n- a\\n- b\\n---\\n# Card")


def read(repo, revision=None, **arguments):
    return Path(hf_hub_download(repo, "a.txt", revision=revision, **arguments)).read_text()


def error(function, *arguments, **keywords):
    try:
        return f"no error: {function(*arguments, **keywords)}"
    except Exception as said:
        return f"{type(said).__name__} {getattr(getattr(said, 'response', None), 'status_code', None)}"


found["who"] = api.whoami()["name"]
found["made"] = [api.create_repo("new").repo_id, api.create_repo("alice/new", exist_ok=True).repo_id]
first = api.upload_folder(repo_id="alice/new", folder_path=folder).oid
info = api.model_info("alice/new")
found["info"] = [info.sha == first, info.tags, info.library_name]
found["files"] = api.list_repo_files("alice/new")
found["trees"] = [[entry.path for entry in api.list_repo_tree("alice/new", under)] for under in (None, "trainers")]
found["snapshot"] = Path(snapshot_download("alice/new"), "trainers", "x.py").read_text() == "x" * 1000
api.create_branch("alice/new", branch="dev")
api.create_tag("alice/new", tag="v1")
api.upload_file(path_or_fileobj=b"second", path_in_repo="a.txt", repo_id="alice/new", revision="dev")
api.upload_file(path_or_fileobj=b"third", path_in_repo="a.txt", repo_id="alice/new", create_pr=True)
found["revisions"] = [read("alice/new", revision) for revision in (None, "dev", "v1", first, "refs/pr/1")]
api.delete_files("alice/new", ["trainers/x.py"], revision="dev")
found["left"] = api.list_repo_files("alice/new", revision="dev")
found["commits"] = [commit.title for commit in api.list_repo_commits("alice/new", revision="dev")]
found["private"] = read("bob/private", token="bob-token")
found["errors"] = [
    error(hf_hub_download, "alice/new", "nope"),
    error(read, "alice/new", "nope"),
    error(read, "alice/nowhere"),
    error(read, "nowhere"),
    error(read, "bob/closed"),
    error(read, "bob/closed", token=False),
    error(read, "bob/closed", token="unknown"),
    error(api.create_repo, "bob/new"),
    error(api.create_repo, "alice/new"),
    error(api.create_branch, "alice/new", branch="dev"),
    error(api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="bob/public"),
    error(api.delete_file, "a.txt", "alice/new", revision="dev", parent_commit=first),
]
found["cut"] = read("bob/cut")
ModelCard.load(folder / "README.md").validate()
cards = ["---\\npipeline_tag: reasoning\\n---\\n", "---\\nbase_model: /data/base\\n---\\n", "---\\na: b: c\\n---\\n"]
found["cards"] = [error(ModelCard(card, ignore_metadata_errors=True).validate) for card in cards[:2]]
commit = {"path_in_repo": "README.md", "repo_id": "alice/new"}
found["cards"] += [error(api.upload_file, path_or_fileobj=card.encode(), **commit) for card in cards]
print(json.dumps(found))
"""


def test_what_the_client_finds(tmp_path):
    (tmp_path / "folder").mkdir()
    with HubStandIn({"alice-token": "alice", "bob-token": "bob"}, text_errors) as hub:
        for name in ("private", "closed"):
            hub.put(f"bob/{name}", {"a.txt": b"secret"}, private=True)
        hub.put("bob/public", {"a.txt": b"open"})
        hub.put("bob/cut", {"a.txt": b"whole" * 100})
        with hub.fail("GET", "bob/cut/resolve", "cut"):
            done = subprocess.run(
                [sys.executable, "-c", CLIENT, str(tmp_path / "folder")],
                env={**os.environ, **hub.environment(tmp_path / "home", "alice-token")},
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        assert sum("GET /bob/cut/resolve" in line for line in hub.requests) == 2  # the second asks for the rest
        assert hub.files("alice/new")["a.txt"] == b"first"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "who": "alice",
        "made": ["alice/new", "alice/new"],
        "info": [True, ["a", "b"], "transformers"],
        "files": [".gitattributes", "README.md", "a.txt", "trainers/x.py"],
        "trees": [[".gitattributes", "README.md", "a.txt", "trainers"], ["trainers/x.py"]],
        "snapshot": True,
        "revisions": ["first", "second", "first", "first", "third"],
        "left": [".gitattributes", "README.md", "a.txt"],
        "commits": [
            "Delete files trainers/x.py with huggingface_hub",
            "Upload a.txt with huggingface_hub",
            "Upload folder using huggingface_hub",
            "initial commit",
        ],
        "private": "secret",
        "errors": [
            "RemoteEntryNotFoundError 404",
            "RevisionNotFoundError 404",
            "RepositoryNotFoundError 404",
            "RepositoryNotFoundError 404",
            "RepositoryNotFoundError 404",
            "RepositoryNotFoundError 401",
            "HfHubHTTPError 401",
            "HfHubHTTPError 403",
            "HfHubHTTPError 409",
            "HfHubHTTPError 409",
            "HfHubHTTPError 403",
            "HfHubHTTPError 412",
        ],
        "cut": "whole" * 100,
        "cards": ["ValueError None"] * 5,
    }
