"""A stand-in for the Hugging Face hub on loopback: the part of its HTTP interface that publishing and reading use.

    with hubserver.running() as hub:
        environment["HF_ENDPOINT"], environment["HF_TOKEN"] = hub.url, hubserver.TOKEN

Large files (tars, weights, parquet) are stored apart from the repository, as the hub does: uploads go through the LFS
batch interface, and downloads are redirected to another host name, which refuses whoever shows it a token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_standin"
_LARGE = (".safetensors", ".tar", ".parquet", ".onnx", ".pt2")


@dataclass
class Repository:
    """Every commit's files, the last one being ``main``."""

    private: bool = False
    sdk: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.branches["main"] = dict(files), sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """What the server holds; tests look into it, and may set ``failing`` to let it fail."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failing: dict[str, int] = {}
        """Pattern of a path → status that it answers with."""

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches["main"]]


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer("GET")

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def _answer(self, method: str) -> None:
            path = unquote(urlsplit(self.path).path)
            self.query = parse_qs(urlsplit(self.path).query)
            hub.requests.append((method, path))
            self.body = self._read_body()
            try:
                for pattern, status in hub.failing.items():
                    if re.search(pattern, path):
                        raise _Refused(status)
                for pattern, verb, function in _ROUTES:
                    if (match := re.fullmatch(pattern, path)) and method in verb:
                        return function(self, *match.groups())
                raise _Refused(404)
            except _Refused as refused:
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message} if refused.code else {}
                self._send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

        def _read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _is_known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _require_token(self) -> None:
            if not self._is_known():
                raise _Refused(401, "", "Invalid username or password.")

        def _repository(self, kind: str, name: str) -> Repository:
            found = hub.repositories.get((kind.removesuffix("s") or "model", name))
            if found is None or (found.private and not self._is_known()):
                raise _Refused(401 if not self._is_known() else 404, "RepoNotFound", "Repository not found")
            return found

        def _at(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
            found = self._repository(kind, name).at(revision)
            if found is None:
                raise _Refused(404, "RevisionNotFound", "Invalid rev id")
            return found

        def whoami(self) -> None:
            self._require_token()
            self._json({"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": {"type": "access_token"}})

        def create(self) -> None:
            self._require_token()
            asked = json.loads(self.body)
            owner, kind = asked.get("organization") or "me", asked.get("type", "model")
            if owner not in ("me", "lab"):
                raise _Refused(403, "", f"You don't have the rights to create a {kind} under the namespace {owner}")
            key = (kind, f"{owner}/{asked['name']}")
            front = "" if kind == "model" else f"{kind}s/"
            answer = {"url": f"{hub.url}/{front}{key[1]}", "name": key[1], "id": key[1]}
            if key in hub.repositories:
                return self._send(409, json.dumps(answer | {"error": "You already created this repo"}).encode())
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.repositories[key] = Repository(bool(private), asked.get("sdk", ""))
            hub.repositories[key].commit({".gitattributes": b""})
            return self._json(answer)

        def validate(self) -> None:
            content = json.loads(self.body)["content"]
            match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
            try:
                if not isinstance(yaml.safe_load(match[1]) if match else None, dict):
                    raise _Refused(400, "", "no front matter")
            except yaml.YAMLError as error:
                raise _Refused(400, "", str(error)) from None
            self._json({"errors": [], "warnings": []})

        def preupload(self, kind: str, name: str, revision: str) -> None:
            self._require_token()
            self._repository(kind, name)
            asked = json.loads(self.body)["files"]
            modes = [(one["path"], "lfs" if one["path"].endswith(_LARGE) else "regular") for one in asked]
            self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

        def batch(self, kind: str | None, name: str) -> None:
            self._require_token()
            self._repository((kind or "models/").removesuffix("/"), name)
            objects = []
            for one in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/upload/{one['oid']}", "header": {}}}
                objects.append(one if one["oid"] in hub.large else one | {"actions": upload})
            self._json({"transfer": "basic", "objects": objects})

        def upload(self, oid: str) -> None:
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Refused(400, "", "digest")
            hub.large[oid] = self.body
            self._send(200, b"")

        def commit(self, kind: str, name: str, revision: str) -> None:
            self._require_token()
            repository = self._repository(kind, name)
            files = dict(repository.at(revision)[1])
            for line in self.body.splitlines():
                item = json.loads(line)
                value = item["value"]
                match item["key"]:
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.large[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            sha = repository.commit(files)
            self._json({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"})

        def info(self, kind: str, name: str, revision: str | None = None) -> None:
            sha, files = self._at(kind, name, revision or "main")
            self._json({"id": name, "sha": sha, "private": False, "siblings": [{"rfilename": path} for path in files]})

        def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
            _, files = self._at(kind, name, revision)
            front = f"{folder}/" if folder else ""
            found = {path: data for path, data in files.items() if path.startswith(front)}
            if folder and not found:
                raise _Refused(404, "EntryNotFound", "no such folder")
            self._json([_entry(path, data) for path, data in found.items()])

        def paths(self, kind: str, name: str, revision: str) -> None:
            _, files = self._at(kind, name, revision)
            asked = parse_qs(self.body.decode())["paths"]
            self._json([_entry(path, files[path]) for path in asked if path in files])

        def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
            sha, files = self._at((kind or "models/").removesuffix("/"), name, revision)
            if path not in files:
                raise _Refused(404, "EntryNotFound", "Entry not found")
            data = files[path]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            if not path.endswith(_LARGE):
                return self._ranged(data, headers)
            oid = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{oid}"'}
            elsewhere = hub.url.replace("127.0.0.1", "localhost")
            return self._send(302, b"", headers | {"Location": f"{elsewhere}/stored/{oid}?signature=1"})

        def stored(self, oid: str) -> None:
            if self.headers.get("Authorization") or self.query.get("signature") != ["1"]:
                raise _Refused(403, "", "the token was shown to another host")
            self._ranged(hub.large[oid], {"Accept-Ranges": "bytes", "ETag": f'"{oid}"'})

        def _ranged(self, data: bytes, headers: dict[str, str]) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked is None:
                return self._send(200, data, headers)
            start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers = headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            return self._send(206, data[start : end + 1], headers)

    kinds, name = r"(models|datasets|spaces)", r"([\w.-]+/[\w.-]+)"
    _ROUTES = [
        (r"/api/whoami-v2", "GET", Handler.whoami),
        (r"/api/repos/create", "POST", Handler.create),
        (r"/api/validate-yaml", "POST", Handler.validate),
        (rf"/api/{kinds}/{name}/preupload/(.+)", "POST", Handler.preupload),
        (rf"/api/{kinds}/{name}/commit/(.+)", "POST", Handler.commit),
        (rf"/api/{kinds}/{name}", "GET", Handler.info),
        (rf"/api/{kinds}/{name}/revision/(.+)", "GET", Handler.info),
        (rf"/api/{kinds}/{name}/tree/([^/]+)(?:/(.+))?", "GET", Handler.tree),
        (rf"/api/{kinds}/{name}/paths-info/(.+)", "POST", Handler.paths),
        (rf"/(datasets/|spaces/)?{name}\.git/info/lfs/objects/batch", "POST", Handler.batch),
        (r"/upload/(\w+)", "PUT", Handler.upload),
        (r"/stored/(\w+)", "GET HEAD", Handler.stored),
        (rf"/(datasets/|spaces/)?{name}/resolve/([^/]+)/(.+)", "GET HEAD", Handler.resolve),
    ]  # fmt: skip
    return Handler


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(_LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def running() -> Iterator[Hub]:
    """Start it on a free port of loopback."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
