"""An in-memory Hub on the loopback interface for the real client: the part of the API that pushing and pulling a model or data set needs,
and that reading and ending its earlier revisions needs.

It records every byte that it receives. `HF_ENDPOINT` is read when the client is imported, so run the client in a separate process, with
`HF_HUB_DISABLE_XET=1`. It tests that our calls are correct, not that huggingface.co would accept them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_owner": "owner", "hf_other": "other", "hf_user": "USER"}  # the last is the name in the documentation
KINDS = ("datasets", "spaces")  # what the names of repositories that are no models begin with
PAGE = 50  # commits in one answer
EMPTY = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repo:
    """A repository: branches, tags and pull requests, and all commits with their files and parents.

    Attributes:
        private: Whether only its owner can read it.
        branches: Commit by name of the branch.
        tags: Commit by name of the tag.
        pulls: Commit by reference of the pull request.
        commits: Files by commit.
        parents: Parent by commit; None for the first one of a branch.
        deleted: SHA-256 of the large files that were deleted.
    """

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def commit(self, branch: str, files: dict[str, bytes], *, squash: bool = False) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[oid] = files
        self.parents[oid] = None if squash else self.branches.get(branch)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        named = self.branches | self.tags | self.pulls
        return named.get(revision) or (revision if revision in self.commits else None)

    def history(self, commit: str | None) -> list[str]:
        """Return a commit and those before it, the newest first."""
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.parents[commit]
        return found

    def large_files(self) -> dict[str, tuple[str, int]]:
        """Return path and size of every large file that was committed and not deleted, by SHA-256; squashed commits included."""
        files = [(path, data) for files in self.commits.values() for path, data in files.items() if _is_large(path)]
        return {oid: (path, len(data)) for path, data in files if (oid := _blob(path, data)) not in self.deleted}


@dataclass
class Request:
    """A received request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def parts(self) -> Iterator[bytes]:
        """Yield its whole content, raw and with base64 decoded."""
        yield f"{self.method} {unquote(self.path)} {self.headers}".encode()
        yield self.body
        for line in self.body.splitlines() if b'"' in self.body else ():
            try:
                yield from _decoded(json.loads(line))
            except ValueError:
                continue


def _decoded(value: Any) -> Iterator[bytes]:
    """Yield all text of a JSON value without escapes, and the content of texts that are base64."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key.encode()
            yield from _decoded(item)
    elif isinstance(value, list):
        for item in value:
            yield from _decoded(item)
    elif isinstance(value, str):
        yield value.encode()
        try:
            yield base64.b64decode(value, validate=True)
        except ValueError:
            return


class ErrorResponse(Exception):  # noqa: N818 - raised to end the handling of a request
    """An error response."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class Hub:
    """The server. `with Hub() as hub:` runs it; `hub.url` is its address."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def sent(self) -> bytes:
        """Return everything that clients have sent, raw and decoded."""
        return b"\n".join(part for request in list(self.requests) for part in request.parts())

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository."""
        repo = self.repos[repo_id]
        return repo.commits[repo.resolve(revision) or ""]

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = True) -> None:
        """Add files to a repository, and create it if necessary."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        before = self.files(repo_id) if "main" in repo.branches else EMPTY
        repo.commit("main", before | files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _serve(self) -> None:
        body = self._body()
        with self.hub.lock:
            self.hub.requests.append(Request(self.command, self.path, dict(self.headers), body))
            try:
                status, headers, answer = self._answer(urlsplit(self.path), body)
            except ErrorResponse as error:
                headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
                status, answer = error.status, json.dumps({"error": error.message or error.code}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **{k: v for k, v in headers.items() if v}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise ErrorResponse(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _repo(self, repo_id: str, *, write: bool = False) -> Repo:
        """Return a repository that the caller can access; to others, a private one is reported as not found.

        The name of a data set begins with "datasets/", that of a Space with "spaces/".
        """
        user, repo = self._user(), self.hub.repos.get(repo_id)
        owner = repo_id.split("/")[-2]
        if repo is None or (repo.private and user != owner):
            raise ErrorResponse(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise ErrorResponse(403, message="You may not write here")
        return repo

    def _answer(self, url: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        words = [unquote(word) for word in url.path.strip("/").split("/")]
        kind = ""
        for name in KINDS:
            if words[0] == name or words[:2] == ["api", name]:
                kind = f"{name}/"
                words = words[1:] if words[0] == name else ["api", "models", *words[2:]]
        match (self.command, words):
            case ("PUT", ["lfs", oid]):
                if hashlib.sha256(body).hexdigest() != oid:
                    raise ErrorResponse(400, message="Wrong content")
                self.hub.large[oid] = body
                return 200, {}, b""
            case ("POST", ["lfs", "verify"]):
                return 200, {}, b"{}"
            case ("GET", ["api", "whoami-v2"]):
                if (user := self._user()) is None:
                    raise ErrorResponse(401)
                return _json({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})
            case ("POST", ["api", "validate-yaml"]):
                return _json({"errors": [], "warnings": []})
            case ("POST", ["api", "repos", "create"]):
                return self._create(json.loads(body))
            case ("POST", [owner, name, "info", "lfs", "objects", "batch"]):
                if self._user() is None:  # the content is stored by its hash; a commit refers to it
                    raise ErrorResponse(401)
                self._repo(f"{kind}{owner}/{name.removesuffix('.git')}")
                return _json({"transfer": "basic", "objects": [self._place(o) for o in json.loads(body)["objects"]]})
            case ("GET", ["api", "models"]):
                return self._models(parse_qs(url.query))
            case ("GET" | "HEAD", [owner, name, "resolve", revision, *path]):
                return self._file(f"{kind}{owner}/{name}", revision, "/".join(path))
            case (_, ["api", "models", owner, name, *rest]):
                return self._repository(f"{kind}{owner}/{name}", rest, url, body)
        raise ErrorResponse(404, message=f"No such address: {self.path}")

    def _create(self, requested: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        user = self._user()
        owner = requested.get("organization") or user
        if user is None:
            raise ErrorResponse(401, message="Log in first")
        if owner != user:
            raise ErrorResponse(403, message=f"You may not write to {owner}")
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(requested.get("type", ""), "")
        repo_id = f"{kind}{owner}/{requested['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repos:
            return _json(url, 409)
        repo = self.hub.repos[repo_id] = Repo(requested.get("visibility") == "private")
        repo.commit("main", dict(EMPTY))
        return _json(url)

    def _place(self, large: dict[str, Any]) -> dict[str, Any]:
        if large["oid"] in self.hub.large:
            return large
        upload = {"href": f"{self.hub.url}/lfs/{large['oid']}"}
        return large | {"actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/verify"}}}

    def _repository(self, repo_id: str, rest: list[str], url: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        match (self.command, rest):
            case ("GET", []):
                return self._info(repo_id, "main")
            case ("GET", ["revision", revision]):
                return self._info(repo_id, revision)
            case ("GET", ["tree", revision, *path]):
                files = self._files(repo_id, revision)[1]
                return _json(_tree(files, "/".join(path), parse_qs(url.query).get("recursive", [""])[0].lower() == "true"))
            case ("POST", ["paths-info", revision]):
                files = self._files(repo_id, revision)[1]
                requested = parse_qs(body.decode()).get("paths", []) if b"paths=" in body else json.loads(body)["paths"]
                tree = [entry for entry in _tree(files, "", recursive=True) if entry["path"] in requested]
                return _json(tree)
            case ("POST", ["preupload", revision]):
                self._repo(repo_id, write=not _opens_pull_request(url))
                self._files(repo_id, revision)
                return _json({"files": [_mode(file) for file in json.loads(body)["files"]]})
            case ("POST", ["branch", name]):
                repo = self._repo(repo_id, write=True)
                if name in repo.branches:
                    return _json({}, 409)
                start = json.loads(body or b"{}").get("startingPoint", "main")
                repo.branches[name] = repo.resolve(start) or ""
                return _json({})
            case ("POST", ["commit", revision]):
                return self._commit(repo_id, revision, body, pull_request=_opens_pull_request(url))
            case ("GET", ["refs"]):
                return self._refs(repo_id)
            case ("GET", ["commits", revision]):
                return self._commits(repo_id, revision, url)
            case ("POST", ["super-squash", branch]):
                repo = self._repo(repo_id, write=True)
                repo.commit(branch, repo.commits[repo.branches[branch]], squash=True)
                return _json({})
            case ("GET", ["lfs-files"]):
                large = self._repo(repo_id, write=True).large_files()
                date = "2026-01-01T00:00:00.000Z"
                # As on the Hub, the number of the object is another one than the hash of the file.
                return _json(
                    [
                        {"fileOid": oid, "oid": oid[::-1], "filename": path, "size": size, "pushedAt": date, "ref": "refs/heads/main"}
                        for oid, (path, size) in large.items()
                    ]
                )
            case ("POST", ["lfs-files", "batch"]):
                self._repo(repo_id, write=True).deleted |= set(json.loads(body)["deletions"]["sha"])
                return _json({})
        raise ErrorResponse(404, message=f"No such address: {url.path} {parse_qs(url.query)}")

    def _refs(self, repo_id: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(repo_id)
        branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in repo.branches.items()]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
        pulls = [{"name": name.rpartition("/")[2], "ref": name, "targetCommit": oid} for name, oid in repo.pulls.items()]
        return _json({"branches": branches, "converts": [], "tags": tags, "pullRequests": pulls})

    def _commits(self, repo_id: str, revision: str, url: Any) -> tuple[int, dict[str, str], bytes]:
        """Return a page of commits, the newest first, and the address of the next page."""
        repo, start = self._repo(repo_id), int(parse_qs(url.query).get("p", ["0"])[0])
        known, numbers = repo.history(self._files(repo_id, revision)[0]), list(repo.commits)
        page = [
            {"id": oid, "date": f"2026-01-01T00:00:00.{numbers.index(oid):03d}Z", "title": "t", "message": "", "authors": []}
            for oid in known[start : start + PAGE]
        ]
        status, headers, body = _json(page)
        if len(known) > start + PAGE:
            headers["Link"] = f'<{self.hub.url}{url.path}?p={start + PAGE}>; rel="next"'
        return status, headers, body

    def _models(self, query: dict[str, list[str]]) -> tuple[int, dict[str, str], bytes]:
        """Return the models whose card has all requested tags, of those that the caller may read."""
        user, found = self._user(), []
        for repo_id, repo in self.hub.repos.items():
            tags = _card_tags(repo.commits[repo.branches["main"]].get("README.md", b""))
            if set(query.get("filter", [])) <= set(tags) and (not repo.private or repo_id.split("/")[0] == user):
                found.append({"id": repo_id, "private": repo.private, "tags": tags})
        return _json(found[: int(query.get("limit", ["1000"])[0])])

    def _files(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(repo_id)
        if (oid := repo.resolve(revision)) is None:
            raise ErrorResponse(404, "RevisionNotFound", "Invalid rev id")
        return oid, repo.commits[oid]

    def _info(self, repo_id: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        oid, files = self._files(repo_id, revision)
        siblings = [{"rfilename": name} for name in sorted(files)]
        private = self.hub.repos[repo_id].private
        return _json(
            {
                "id": repo_id.removeprefix("datasets/").removeprefix("spaces/"),
                "sha": oid,
                "private": private,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _commit(self, repo_id: str, revision: str, body: bytes, *, pull_request: bool) -> tuple[int, dict[str, str], bytes]:
        repo, files = self._repo(repo_id, write=not pull_request), dict(self._files(repo_id, revision)[1])
        for line in body.splitlines():
            key, value = (operation := json.loads(line))["key"], operation["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
                repo.deleted.discard(value["oid"])
            elif key == "deletedFile":
                del files[value["path"]]
        number = len(repo.pulls) + 1
        branches = dict(repo.branches)
        oid = repo.commit(revision, files)
        if pull_request:
            repo.branches, repo.pulls[f"refs/pr/{number}"] = branches, oid
        url = f"{self.hub.url}/{repo_id}"
        opened = f"{url}/discussions/{number}" if pull_request else None
        return _json({"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": "", "pullRequestUrl": opened})

    def _file(self, repo_id: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        oid, files = self._files(repo_id, revision)
        if path not in files:
            raise ErrorResponse(404, "EntryNotFound", "Entry not found")
        data = files[path]
        if _is_large(path) and _blob(path, data) in self.hub.repos[repo_id].deleted:
            raise ErrorResponse(404, "EntryNotFound", "The large file was deleted")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_blob(path, data)}"', "Content-Type": "application/octet-stream"}
        if _is_large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        return 200, headers, data


def _json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _opens_pull_request(url: Any) -> bool:
    return parse_qs(url.query).get("create_pr") == ["1"]


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".parquet"))


def _blob(path: str, data: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _card_tags(card: bytes) -> list[str]:
    """Return the tags that the Hub derives from the base model of a card."""
    header: dict[str, Any] = yaml.safe_load(card.decode().split("---")[1]) if card.startswith(b"---") else {}
    base, relation = header.get("base_model"), header.get("base_model_relation")
    return [f"base_model:{base}", *([f"base_model:{relation}:{base}"] if relation else [])] if base else []


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the files and folders below a folder."""
    inside = {path: data for path, data in files.items() if not folder or path.startswith(f"{folder}/")}
    folders = {path[:end] for path in inside for end in range(len(path)) if path[end] == "/" and end > len(folder)}
    entries: list[dict[str, Any]] = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
    entries += [_entry(path, data) for path, data in inside.items()]
    depth = folder.count("/") + 1 if folder else 0
    return sorted((e for e in entries if recursive or e["path"].count("/") == depth), key=lambda e: e["path"])


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": _blob(path, data), "size": len(data)}
    if _is_large(path):
        entry["lfs"] = {"oid": entry["oid"], "size": len(data), "pointerSize": 130}
    return entry


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if _is_large(file["path"]) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
