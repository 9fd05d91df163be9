"""Settings of the gunicorn under test."""

import os
import sys

preload_app = True
workers = 2
bind = "127.0.0.1:0"
control_socket_disable = True


def post_worker_init(worker: object) -> None:
    """Say that a worker takes signals from now on: gunicorn loses one that comes earlier."""
    del worker
    os.write(sys.stderr.fileno(), f"app: ready in {os.getpid()}\n".encode())
