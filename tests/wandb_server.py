"""A server on loopback that speaks as much of W&B's protocol as its client asks of isbench's runs.

What it knows of W&B's real server: rows of history stand at the line that the client names, and the client goes on
after those that the server says it has, whatever they are.
"""

import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ENTITY = "somebody"


@dataclass
class ServedRun:
    """What the server has of a run."""

    project: str
    about: dict[str, Any] = field(default_factory=dict)  # what the client last said of each property
    lines: list[str] = field(default_factory=list)  # history
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, without what W&B adds to them, and with values that are not finite in words."""
        rows = [json.loads(line, parse_constant=str) for line in self.lines]
        assert [row["_step"] for row in rows] == [row["updates"] for row in rows]
        return [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]

    @property
    def config(self) -> dict[str, Any]:
        config = json.loads(self.about["config"])
        return {key: item["value"] for key, item in config.items() if key[0] != "_"}


class WandbServer(ThreadingHTTPServer):
    """`runs` by id. Once it has `breaks_after` rows of one, it answers everything with an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, ServedRun] = {}
        self.breaks_after: int | None = None
        self.not_understood: list[str] = []

    def answer(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL operation."""
        match operation:
            case "Viewer" | "GetViewer" | "GetDefaultEntity":
                return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}"}}
            case "ServerInfo":
                return {"serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "UpsertBucket":
                return {"upsertBucket": {"bucket": self.upsert(asked), "inserted": True}}
            case "RunResumeStatus":
                run = self.runs.get(asked["name"])
                return {"model": {"bucket": run and self.progress(asked["name"], run)}}
            case "RunStoppedStatus":
                return {"project": {"run": {"stopped": False}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": self.address(asked["run"], name)} for name in asked["files"]]
                return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
            case "Runs":
                return {"project": self.listed(asked)}
            case "RunFiles":
                return {"project": {"internalId": "1", "run": self.files(asked)}}
        self.not_understood.append(operation)
        return {}

    def upsert(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"]
        run = self.runs.setdefault(name, ServedRun(asked["project"]))
        run.about |= {key: value for key, value in asked.items() if value is not None}
        place = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
        return {**self.progress(name, run), "displayName": run.about.get("displayName"), "project": place}

    def progress(self, name: str, run: ServedRun) -> dict[str, Any]:
        return {
            "id": name,
            "name": name,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(run.lines[-1:]),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.summary),
            "config": run.about.get("config"),
            "tags": run.about.get("tags", []),
            "wandbConfig": '{"t": 1}',
        }

    def listed(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        runs = {name: run for name, run in self.runs.items() if run.project == asked["project"]}
        if not runs or asked["entity"] != ENTITY:
            return None
        group = json.loads(asked["filters"])["group"]
        nodes = [
            {"id": name, "name": name, "displayName": run.about.get("displayName", name), "projectId": "1", "tags": []}
            for name, run in runs.items()
            if run.about.get("groupName") == group
        ]
        begun = int(asked.get("cursor") or 0)
        end = begun + asked["perPage"]
        return {
            "internalId": "1",
            "runCount": len(nodes),
            "readOnly": False,
            "runs": {
                "edges": [{"node": node, "cursor": str(end)} for node in nodes[begun:end]],
                "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(nodes)},
            },
        }

    def files(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = self.runs[asked["name"]].files
        edges = [
            {
                "node": {
                    "id": name,
                    "name": name,
                    "url": self.address(asked["name"], name),
                    "directUrl": self.address(asked["name"], name),
                    "sizeBytes": len(content),
                    "mimetype": "",
                    "updatedAt": None,
                    "md5": "",
                },
                "cursor": name,
            }
            for name, content in files.items()
            if name in asked["fileNames"]
        ]
        return {"fileCount": len(edges), "files": {"edges": edges, "pageInfo": {"hasNextPage": False}}}

    def address(self, run: str, name: str) -> str:
        return f"{self.url}/storage/{run}/{name}"

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Take rows, the summary and the end of a run."""
        run = self.runs[name]
        for file, chunk in sent.get("files", {}).items():
            begun, content = chunk["offset"], chunk["content"]
            if file == "wandb-history.jsonl":
                assert begun <= len(run.lines), "a gap"
                run.lines[begun : begun + len(content)] = content
                run.lines = run.lines[: self.breaks_after]
            elif file == "wandb-summary.json":
                run.summary = json.loads(content[-1])
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


class Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content = self.body()
        if self.is_broken():
            self.send_error(403)
        elif self.path.startswith("/sdk/otel/"):
            self.reply(b"")  # how W&B's client is used
        elif self.path == "/graphql":
            sent = json.loads(content)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            data = self.server.answer(operation[1] if operation else sent["query"], sent.get("variables") or {})
            self.reply(json.dumps({"data": data}).encode())
        elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.server.stream(found[1], json.loads(content))
            if self.is_broken():
                self.send_error(403)
            else:
                self.reply(b"{}")
        else:
            self.server.not_understood.append(self.path)
            self.send_error(404)

    def do_PUT(self) -> None:
        _, run, name = unquote(self.path).removeprefix("/").split("/", 2)
        self.server.runs[run].files[name] = self.body()
        self.reply(b"")

    def do_GET(self) -> None:
        _, run, name = unquote(self.path).removeprefix("/").split("/", 2)
        self.reply(self.server.runs[run].files[name])

    def is_broken(self) -> bool:
        limit = self.server.breaks_after
        return limit is not None and any(len(run.lines) >= limit for run in self.server.runs.values())

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing."""
