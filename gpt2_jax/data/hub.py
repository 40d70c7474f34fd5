"""Whether the Hugging Face hub is there: its libraries retry for a minute, or wait without end."""

from __future__ import annotations

import socket
import urllib.request
from http.client import HTTPException

HUB_SECONDS = 30.0  # that the hub has to begin its answer


def find_hub_fault() -> str | None:
    """Returns why the hub cannot be asked; None if it answers in any way, or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=HUB_SECONDS).close()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"{constants.ENDPOINT} does not answer"
        if isinstance(reason, ConnectionError | socket.gaierror):
            return f"{constants.ENDPOINT} cannot be reached ({reason})"
    return None
