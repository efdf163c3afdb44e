"""An S3 server in this process, for tests: moto's, behind weather that can be made bad."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from moto.s3.models import s3_backends
from moto.server import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

KEY, SECRET = "AKIAPIXSIMTESTS", "s3cr3t+of/the==tests"
BUCKET = "images"

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


def answer(status, code, message):
    return Response(_ERROR.format(code, message), status, content_type="application/xml")


@dataclass
class Weather:
    """A WSGI application before another: it answers some requests itself, or late, or never.

    Attributes
    ----------
    storm
        What becomes of the requests one after the other, again and again: `ok`, `slow`, `dropped`,
        or a status (503, 500, 429).
    requests
        The method, path and range of each request that reached the application.
    """

    application: object
    storm: list = field(default_factory=lambda: ["ok"])
    requests: list = field(default_factory=list)
    bad: int = 0

    def __post_init__(self):
        self._lock, self._turns = threading.Lock(), itertools.cycle(self.storm)

    def change(self, *storm):
        with self._lock:
            self.storm, self.bad = list(storm), 0
            self._turns = itertools.cycle(storm)
            self.requests.clear()

    def __call__(self, environ, start_response):
        with self._lock:
            turn = next(self._turns)
            self.bad += turn != "ok"
        if KEY + "/" not in environ.get("HTTP_AUTHORIZATION", ""):
            refused = answer(403, "InvalidAccessKeyId", "The access key is not known.")
            return refused(environ, start_response)
        if turn == "dropped":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return Response()(environ, start_response)
        if isinstance(turn, int):
            code = {503: "SlowDown", 500: "InternalError", 429: "TooManyRequests"}[turn]
            return answer(turn, code, "Please reduce your request rate.")(environ, start_response)
        if turn == "slow":
            time.sleep(0.06)
        request = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE"))
        self.requests.append(request)
        return self.application(environ, start_response)


class _Quiet(WSGIRequestHandler):
    def log(self, *_args, **_keywords):
        pass


@contextmanager
def object_store():
    """Run an empty server on a free port; yield its weather and the options that open it."""
    s3_backends.reset()  # those of an earlier server of this process
    weather = Weather(create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, weather, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield (
            weather,
            {
                "key": KEY,
                "secret": SECRET,
                "endpoint_url": f"http://127.0.0.1:{server.port}",
            },
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
