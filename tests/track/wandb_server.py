"""A loopback server that implements enough of wandb's protocol to store and resume runs.

GraphQL: Viewer, GetDefaultEntity, ServerFeaturesQuery, RunResumeStatus, UpsertBucket,
CreateRunFiles, and Run of the public API. Rows arrive at
POST /files/ENTITY/PROJECT/RUN/file_stream as lines with the offset of the first.
"""

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

HISTORY = "wandb-history.jsonl"
ENTITY = "somebody"


@dataclass
class StoredRun:
    """The data that a run has sent; `arrivals` counts how often each history line arrived."""

    project: str
    name: str
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    lines: dict = field(default_factory=dict)  # of history, by offset
    arrivals: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    exit_code: int | None = None
    job_type: str | None = None

    def history(self):
        return [json.loads(self.lines[i]) for i in sorted(self.lines)]

    def bucket(self):
        last = [self.lines[max(self.lines)]] if self.lines else []
        owner = {"id": "e", "name": ENTITY}
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.name,
            "config": json.dumps(self.config),
            "wandbConfig": json.dumps({"t": 1}),
            "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.lines),
            "historyTail": json.dumps(last),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": [],
            "project": {"id": "p", "name": self.project, "entity": owner},
        }

    def public(self):
        """Returns the run in the format of the public API."""
        empty = dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes"))
        return {
            **self.bucket(), **empty, "projectId": "1", "state": "finished", "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:00:00Z",
            "systemMetrics": "{}", "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {"lastStep": -1},
        }  # fmt: skip


class WandbServer:
    """`with WandbServer() as server:` listens on `server.url`; `server.runs` by run id.

    Args:
      streams: whether rows are accepted; otherwise the response is status 404.
    """

    def __init__(self, streams=True):
        self.streams = streams
        self.runs: dict[str, StoredRun] = {}
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a killed client breaks its connection
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def graphql(self, query, values):
        operation = query.removeprefix("#graphql").replace("(", " ").replace("{", " ").split()[1]
        project = values.get("project") or "none"
        match operation:
            case "Viewer":
                teams = {"edges": []}
                user = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
                return {"viewer": user | {"teams": teams}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "RunResumeStatus":
                run = self.runs.get(values["name"])
                return {
                    "model": {
                        "id": "p",
                        "name": project,
                        "entity": {"id": "e", "name": ENTITY},
                        "bucket": run.bucket() if run else None,
                    }
                }
            case "UpsertBucket":
                new = values["name"] not in self.runs
                run = self.runs.setdefault(values["name"], StoredRun(project, values["name"]))
                if values.get("config"):
                    run.config = json.loads(values["config"])
                run.job_type = values.get("jobType") or run.job_type
                return {"upsertBucket": {"bucket": run.bucket(), "inserted": new}}
            case "GetDefaultEntity":
                return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY}}
            case "Run":  # of the public API
                run = self.runs.get(values["name"])
                known = {"internalId": "1", "run": run.public() if run else None}
                return {"project": known}
            case "CreateRunFiles":
                base = f"{self.url}/upload/{values['run']}/"
                files = [{"name": name, "uploadUrl": base + name} for name in values["files"]]
                return {
                    "createRunFiles": {
                        "runID": values["run"], "uploadHeaders": [], "files": files
                    }
                }  # fmt: skip
        return None

    def stream(self, run, body):
        files = body.get("files") or {}
        for i, line in enumerate(files.get(HISTORY, {}).get("content", [])):
            offset = files[HISTORY]["offset"] + i
            run.lines[offset] = line
            run.arrivals[offset] = run.arrivals.get(offset, 0) + 1
        if "wandb-summary.json" in files:
            run.summary = json.loads(files["wandb-summary.json"]["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)

    def answer(self, path, body):
        parts = [unquote(part) for part in urlparse(path).path.strip("/").split("/")]
        if parts == ["graphql"]:
            request = json.loads(body)
            data = self.graphql(request["query"], request.get("variables") or {})
            return {"data": data} if data else {"data": None, "errors": [{"message": "unknown"}]}
        if parts[0] == "files" and not self.streams:
            return None
        if parts[0] == "files" and parts[-1] == "file_stream" and parts[3] in self.runs:
            self.stream(self.runs[parts[3]], json.loads(body))
            return {"exitcode": None, "limits": {}}
        if parts[0] == "upload" and parts[1] in self.runs:
            self.runs[parts[1]].files["/".join(parts[2:])] = body
            return {}
        return None

    def _handler(server):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with server.lock:
                    out = server.answer(self.path, body)
                data = json.dumps(out or {}).encode()
                self.send_response(404 if out is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = handle_any

        return Handler
