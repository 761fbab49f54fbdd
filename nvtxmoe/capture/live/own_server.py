"""A server of our own for /metrics, where vLLM serves none. A client that hangs holds one thread for a while."""

from __future__ import annotations

import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

#: Seconds after which a client that says nothing is let go.
CLIENT_S = 10.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_S  # of the socket

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the server's log is vLLM's."""


def serve(host: str, port: int, collector: Any) -> _Server:
    """Serve the collector's series, and nothing else, from a thread.

    Raises:
        OSError: the port is in use, or the host is not this machine's.
        ImportError: there is no prometheus_client.
    """
    from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415  an extra

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server = make_server(host, port, make_wsgi_app(registry), _Server, _Handler)
    threading.Thread(target=server.serve_forever, name="nvtxmoe-http", daemon=True).start()
    return server
