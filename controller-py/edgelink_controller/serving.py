"""How uvicorn is set up, in one place for the program and the tests."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from edgelink_controller.core import MAX_MESSAGE_BYTES

# Open WebSockets get this long to close; the whole stop stays under 3 s.
STOP_S = 1
# Room above the limit, so that a message just over it is refused with ERROR 2003 and not by the WebSocket library.
WS_MAX_BYTES = 2 * MAX_MESSAGE_BYTES


class Server(uvicorn.Server):
    """Ends at a signal without raising it again, so that whoever serves can stop the rest in order."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def make_server(app: FastAPI, cert: str | None = None, key: str | None = None) -> Server:
    """A server without sockets of its own: `serve` is given bound ones."""
    return Server(
        uvicorn.Config(
            app,
            ssl_certfile=cert,
            ssl_keyfile=key,
            ws="websockets-sansio",
            ws_max_size=WS_MAX_BYTES,
            # The protocol has its own PING, compression and limits.
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=STOP_S,
            log_config=None,
            access_log=False,
            server_header=False,
            # Which proxies to believe is decided in kit/http.py.
            proxy_headers=False,
        )
    )
