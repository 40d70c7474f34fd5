"""A web server on loopback that stands in for object storage: objects, versions and failures."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ObjectStore:
    """Serves `objects` by path. Used as a context manager.

    Attributes:
      failing: how many of the next downloads fail: `busy` with status 503, `cut` in the middle.
      limit: how many downloads to serve before all others wait, None for no limit.
      downloads: the path of each complete download.
    """

    def __init__(self):
        self.objects, self.downloads = {}, []
        self.busy = self.cut = 0
        self.limit = None
        self.changed = threading.Condition()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                store.respond(self, body=False)

            def do_GET(self):
                store.respond(self, body=True)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def respond(self, request, body):
        name = request.path.strip("/")
        inside = [n for n in self.objects if n.rpartition("/")[0] == name]
        if name not in self.objects and not inside:
            return self.send(request, 404, b"", body)
        if name not in self.objects:  # a folder is a page of links
            links = "".join(f'<a href="/{n}">{n}</a>\n' for n in inside)
            return self.send(request, 200, links.encode(), body)
        if not body:
            return self.send(request, 200, self.objects[name], body)
        with self.changed:
            while self.limit is not None and len(self.downloads) >= self.limit:
                self.changed.wait()
        if self.busy > 0:
            self.busy -= 1
            return self.send(request, 503, b"busy", body)
        if self.cut > 0:
            self.cut -= 1
            return self.send(request, 200, self.objects[name], body, sent=10)
        self.downloads.append(name)
        return self.send(request, 200, self.objects[name], body)

    def allow(self, limit):
        with self.changed:
            self.limit = limit
            self.changed.notify_all()

    def send(self, request, status, content, body, sent=None):
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        request.end_headers()
        if body:
            request.wfile.write(content[:sent])
        if sent is not None:
            request.close_connection = True

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.allow(None)
        self.server.shutdown()
        self.server.server_close()
