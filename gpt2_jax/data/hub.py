"""Checks that the Hugging Face hub is reachable, because its libraries may wait forever."""

from __future__ import annotations

import socket
import urllib.request
from http.client import HTTPException

HUB_TIMEOUT_SECONDS = 30.0  # for the first byte of a response


def hub_error() -> str | None:
    """Returns why the hub is unreachable, or None if it responds or HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS).close()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"{constants.ENDPOINT} does not respond"
        if isinstance(reason, ConnectionError | socket.gaierror):
            return f"{constants.ENDPOINT} cannot be reached ({reason})"
    return None
