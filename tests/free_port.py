"""A port for processes that a test starts."""

import socket


def free_port():
    """One that nobody listens at."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
