"""
A stand-in of the Hub for the tests: Python's standard library only, on the loopback interface only.

It speaks that part of the HTTP API with which huggingface_hub creates repositories, commits, lists and downloads:
branches, tags, pull requests, private repositories and tokens. Every file is an ordinary git blob (`uploadMode:
regular`), so neither LFS nor xet takes part. With [`HubStandIn.fail`] it fails on purpose.

huggingface_hub reads `HF_ENDPOINT` when it is imported, so whoever talks to the stand-in runs in a process of its own,
with [`HubStandIn.environment`].
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

INITIAL_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
API_PATH = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([^/]+))?(?:/([^/]+))?(?:/(.+))?")
Action: TypeAlias = int | str | Callable[[str], bool]
FILE_PATH = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubError(Exception):
    """An answer that is an error, with the headers by which huggingface_hub tells errors apart."""

    def __init__(
        self, status: int, message: str, code: str | None = None, commit: str | None = None, body: dict | None = None
    ):
        super().__init__(message)
        self.status, self.body = status, body or {}
        self.headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    files: dict[str, bytes]
    message: str
    parent: str | None = None


@dataclass
class Repository:
    """Commits, and what points to them: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""

    name: str
    kind: str = "models"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("refs/heads/main", INITIAL_FILES, "initial commit")

    def resolve(self, revision: str) -> Commit:
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[revision]

    def commit(self, ref: str, files: dict[str, bytes], message: str, parent: str | None = None) -> Commit:
        content = sorted((path, blob_id(data)) for path, data in files.items())
        # the number of commits stands for the date that git would hash
        oid = hashlib.sha1(repr((self.name, content, message, parent, len(self.commits))).encode()).hexdigest()
        self.commits[oid] = Commit(oid, dict(files), message, parent)
        self.refs[ref] = oid
        return self.commits[oid]


@dataclass
class Fault:
    """What is to go wrong, and where."""

    method: str
    path: re.Pattern
    action: Action
    times: int

    def fits(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method, method) and self.path.search(path))


def blob_id(data: bytes) -> str:
    """The object id that git gives a file: the Hub's ETag of a file outside of LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubStandIn:
    r"""
    The stand-in, running for as long as the `with` block is open.

    Args:
        users (`dict[str, str]`, *optional*): Token -> name. A user may write in the namespace of that name, and sees
            its private repositories.
        card_errors (callable, *optional*): From the text of a model's card to a list of what is wrong with its
            metadata; a card with errors is refused. Without one every card passes.

    Attributes:
        url (`str`): What `HF_ENDPOINT` is to be.
        repositories (`dict[str, Repository]`): By id.
        requests (`list[str]`): `"METHOD /path status"` of every request that was answered.
    """

    def __init__(self, users: dict[str, str] | None = None, card_errors: Callable[[str], list[str]] | None = None):
        self.users = dict(users or {})
        self.card_errors = card_errors or (lambda text: [])
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "HubStandIn":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """Environment variables of a process that takes this for the Hub and keeps its caches in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def put(
        self,
        repo_id: str,
        files: str | Path | dict[str, bytes],
        revision: str = "main",
        private: bool = False,
        under: str = "",
        message: str = "put",
    ) -> str:
        """Add files, or those of a folder, in one commit, without a request; returns the commit's id."""
        if not isinstance(files, dict):
            folder = Path(files)
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(repo_id, Repository(repo_id, private=private))
        start = repository.refs.get(f"refs/heads/{revision}", repository.refs["refs/heads/main"])
        changed = {f"{under}/{path}".lstrip("/"): data for path, data in files.items()}
        changed = {**repository.commits[start].files, **changed}
        return repository.commit(f"refs/heads/{revision}", changed, message, start).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Content of a repository, without what every new one holds."""
        files = self.repositories[repo_id].resolve(revision).files
        return {path: data for path, data in files.items() if path not in INITIAL_FILES}

    @contextlib.contextmanager
    def fail(
        self, method: str, path: str, action: int | str | Callable[[str], bool], times: int = 1
    ) -> Iterator[None]:
        """
        Let matching requests fail.

        Args:
            method (`str`): HTTP methods, as a regular expression.
            path (`str`): Regular expression that is searched for in the path.
            action (`int`, `str` or callable): A status to answer with instead; `"hang up"`, without having done
                anything; `"lose"` the answer, after having done it; `"cut"` the answer off in its middle; or a
                function that is called with `"asked"` before anything is done and with `"done"` before it is answered,
                and says whether to hang up.
            times (`int`, *optional*, defaults to 1): How many of them.
        """
        fault = Fault(method, re.compile(path), action, times)
        self._faults.append(fault)
        try:
            yield
        finally:
            self._faults.remove(fault)

    def _take_faults(self, method: str, path: str) -> list[Action]:
        with self._lock:
            faults = [fault for fault in self._faults if fault.times > 0 and fault.fits(method, path)]
            for fault in faults:
                fault.times -= 1
        return [fault.action for fault in faults]

    # Who may do what. The Hub does not tell a stranger whether a private repository exists.

    def _user(self, headers: dict[str, str]) -> str | None:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users.get(token)

    def _repository(self, kind: str, name: str, user: str | None, write: bool = False) -> Repository:
        repository = self.repositories.get(name)
        is_own = user == name.split("/")[0]
        if repository is None or repository.kind != kind or (repository.private and not is_own):
            # The client takes a 401 from https for a missing repository; from http it needs to be told.
            status, message = (401, "Invalid username or password.") if user is None else (404, "Repository not found")
            raise HubError(status, message, "RepoNotFound")
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and not is_own:
            raise HubError(403, f"Forbidden: {user} has no write access to {name}")
        return repository

    # The answers: JSON, or a file with its headers.

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> "tuple[int, dict, bytes]":
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        user = self._user(headers)
        with self._lock:
            match = FILE_PATH.fullmatch(parts.path)
            if match and method in ("GET", "HEAD"):
                kind, name, revision, path = match.groups()
                commit = self._repository(kind or "models", name, user).resolve(unquote(revision))
                return self._file(commit, unquote(path), headers)
            match = API_PATH.fullmatch(parts.path)
            if match:
                kind, name, verb, revision, path = (unquote(part) if part else part for part in match.groups())
                answer = getattr(self, f"_{method.lower()}_{(verb or 'revision').replace('-', '_')}", None)
                if answer is not None:
                    is_own = query.get("create_pr") != "1"  # a pull request may be anyone's who has a name
                    repository = self._repository(kind, name, user, verb in WRITES and (is_own or user is None))
                    return _json(answer(repository, revision, path, body, query))
            name = re.sub(r"\W", "_", parts.path)
            answer = getattr(self, f"_{method.lower()}{name}", None)
            is_known = match is not None and match.group(2) in self.repositories
            if (
                answer is None
                and not is_known
                and re.match(r"/api/(models|datasets|spaces)/|/[^/]+/resolve/", parts.path)
            ):
                raise HubError(404, "Repository not found", "RepoNotFound")  # one without a namespace
            if answer is None:
                raise HubError(404, f"The stand-in does not know {method} {parts.path}")
            return _json(answer(user, json.loads(body or b"{}")))

    def _file(self, commit: Commit, path: str, headers: dict[str, str]) -> "tuple[int, dict, bytes]":
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        data = commit.files[path]
        found = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob_id(data)}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if start is None:
            return 200, found, data
        first = int(start.group(1))
        return 206, {**found, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, data[first:]

    def _get_api_whoami_v2(self, user: str | None, _: dict) -> dict:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def _post_api_repos_create(self, user: str | None, fields: dict) -> dict:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        namespace = fields.get("organization") or user
        if namespace != user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        name = f"{namespace}/{fields['name']}"
        kind = f"{fields.get('type', 'model')}s"
        url = f"{self.url}/{'' if kind == 'models' else f'{kind}/'}{name}"
        if name in self.repositories:
            error = HubError(409, "You already created this model repo")
            error.headers["X-Repo-Url"] = url
            raise error
        is_private = fields.get("visibility") == "private" or bool(fields.get("private"))
        self.repositories[name] = Repository(name, kind, is_private)
        return {"url": url, "name": name, "id": name}

    def _delete_api_repos_delete(self, user: str | None, fields: dict) -> dict:
        name = f"{fields.get('organization') or user}/{fields['name']}"
        repository = self._repository(f"{fields.get('type', 'model')}s", name, user, write=True)
        del self.repositories[repository.name]
        return {}

    def _post_api_validate_yaml(self, user: str | None, fields: dict) -> dict:
        if not re.match(r"---\n", fields["content"]):
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        errors = self.card_errors(fields["content"]) if fields["repoType"] == "model" else []
        body = {"errors": [{"message": error} for error in errors], "warnings": []}
        if errors:
            raise HubError(400, "Invalid metadata", body=body)
        return body

    def _get_revision(self, repository: Repository, revision: str | None, *_: object) -> dict:
        commit = repository.resolve(revision or "main")
        card = _metadata(commit.files.get("README.md", b"").decode())
        return {
            "_id": repository.name,
            "id": repository.name,
            "modelId": repository.name,
            "sha": commit.oid,
            "private": repository.private,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "cardData": card,
            "tags": [],
            **{name: card[name] for name in ("pipeline_tag", "library_name", "tags") if name in card},
        }

    def _get_tree(
        self, repository: Repository, revision: str, under: str | None, _: bytes, query: dict[str, str]
    ) -> list[dict]:
        commit = repository.resolve(revision)
        start = f"{under}/" if under else ""
        entries: dict[str, dict] = {}
        for path, data in sorted(commit.files.items()):
            rest = path.removeprefix(start)
            if not path.startswith(start):
                continue
            *folders, _name = rest.split("/")
            is_recursive = query.get("recursive", "").lower() == "true"
            for depth in range(len(folders) if is_recursive else min(len(folders), 1)):
                folder = start + "/".join(folders[: depth + 1])
                entries[folder] = {"type": "directory", "path": folder, "oid": blob_id(folder.encode()), "size": 0}
            if is_recursive or not folders:
                entries[path] = {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
        if under and not entries:
            raise HubError(404, f"{under} does not exist on {revision!r}", "EntryNotFound", commit.oid)
        return list(entries.values())

    def _post_paths_info(self, repository: Repository, revision: str, _: None, body: bytes, __: dict) -> list[dict]:
        wanted = parse_qs(body.decode()).get("paths", [])
        return [
            entry
            for entry in self._get_tree(repository, revision, None, b"", {"recursive": "true"})
            if entry["path"] in wanted
        ]

    def _get_commits(self, repository: Repository, revision: str, *_: object) -> list[dict]:
        commit: Commit | None = repository.resolve(revision)
        found = []
        while commit is not None:
            found.append(
                {
                    "id": commit.oid,
                    "title": commit.message,
                    "message": "",
                    "authors": [],
                    "date": "2026-01-01T00:00:00Z",
                }
            )
            commit = repository.commits.get(commit.parent or "")
        return found

    def _get_refs(self, repository: Repository, *_: object) -> dict:
        def those(kind: str) -> list[dict]:
            start = f"refs/{kind}/"
            named = [(ref, oid) for ref, oid in repository.refs.items() if ref.startswith(start)]
            return [{"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid} for ref, oid in named]

        return {"branches": those("heads"), "tags": those("tags"), "pullRequests": those("pr"), "converts": []}

    def _post_branch(self, repository: Repository, branch: str, _: None, body: bytes, __: dict) -> dict:
        if f"refs/heads/{branch}" in repository.refs:
            raise HubError(409, f"Reference already exists: {branch}")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repository.refs[f"refs/heads/{branch}"] = repository.resolve(start).oid
        return {}

    def _delete_branch(self, repository: Repository, branch: str, *_: object) -> dict:
        repository.resolve(f"refs/heads/{branch}")
        del repository.refs[f"refs/heads/{branch}"]
        return {}

    def _post_tag(self, repository: Repository, revision: str, _: None, body: bytes, __: dict) -> dict:
        tag = f"refs/tags/{json.loads(body)['tag']}"
        if tag in repository.refs:
            raise HubError(409, f"Reference already exists: {tag}")
        repository.refs[tag] = repository.resolve(revision).oid
        return {}

    def _put_settings(self, repository: Repository, _: None, __: None, body: bytes, ___: dict) -> dict:
        fields = json.loads(body)
        repository.private = fields.get("visibility") == "private" or bool(fields.get("private"))
        return {"private": repository.private}

    def _post_preupload(self, repository: Repository, revision: str, _: None, body: bytes, __: dict) -> dict:
        files = repository.resolve(revision).files
        wanted = [entry["path"] for entry in json.loads(body)["files"]]
        oids = {path: blob_id(files[path]) if path in files else None for path in wanted}
        modes = [
            {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oid} for path, oid in oids.items()
        ]
        return {"files": modes}

    def _post_commit(self, repository: Repository, revision: str, _: None, body: bytes, query: dict[str, str]) -> dict:
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        start = repository.resolve(revision)
        if header.get("parentCommit") not in (None, start.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(start.files)
        for line in lines:
            path = line["value"].get("path")
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                if path not in files:
                    raise HubError(400, f"{path} does not exist")
                del files[path]
            elif line["key"] == "deletedFolder":
                files = {name: data for name, data in files.items() if not name.startswith(f"{path}/")}
            elif line["key"] != "header":
                raise HubError(400, f"The stand-in does not know {line['key']}")
        ref = revision if revision in repository.refs else f"refs/heads/{revision}"
        answer = {}
        if query.get("create_pr") == "1":
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.url}/{repository.name}/discussions/{number}"
        elif ref not in repository.refs:
            raise HubError(404, f"{revision} is not a branch", "RevisionNotFound")
        commit = repository.commit(ref, files, header["summary"], start.oid)
        url = f"{self.url}/{repository.name}/commit/{commit.oid}"
        return {**answer, "success": True, "commitOid": commit.oid, "commitUrl": url}


WRITES = ("branch", "tag", "settings", "preupload", "commit")


def _json(value: object) -> "tuple[int, dict, bytes]":
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _metadata(card: str) -> dict:
    """The metadata of a card: the strings and lists at the top level of its YAML."""
    found: dict = {}
    block = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    name = None
    for line in block.group(1).splitlines() if block else []:
        if line.startswith("- ") and name:
            found[name] = [*(found[name] or []), line[2:].strip()]
        elif ":" in line and not line.startswith(" "):
            name, value = (part.strip() for part in line.split(":", 1))
            found[name] = value or None
    return {name: value for name, value in found.items() if value is not None}


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        faults = self.hub._take_faults(self.command, unquote(self.path))
        asked = [fault for fault in faults if callable(fault)]
        if "hang up" in faults or any(hangs_up("asked") for hangs_up in asked):
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            for status in faults:
                if isinstance(status, int):
                    raise HubError(status, "Failing on purpose")
            status, answer_headers, data = self.hub.answer(self.command, self.path, headers, body)
        except HubError as error:
            status, answer_headers = error.status, {**error.headers, "Content-Type": "application/json"}
            fields = {"error": str(error), "url": error.headers.get("X-Repo-Url"), **error.body}
            data = json.dumps(fields).encode()
        self.hub.requests.append(f"{self.command} {unquote(self.path)} {status}")
        if "lose" in faults or any(hangs_up("done") for hangs_up in asked):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in answer_headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            if "cut" in faults:
                data, self.close_connection = data[: len(data) // 2], True
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *arguments: object) -> None:
        """Nothing: `HubStandIn.requests` is the log."""
