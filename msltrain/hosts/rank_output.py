"""Which of several processes speaks: the first one, but a mistake is reported by whichever meets it first."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta

from msldata.console import err, out
from msldata.errors import UserError

_SAID = "msl/mistake-said"
_OTHERS_SECONDS = 2.0


class LostPeer(UserError):
    """Another process of this run has ended; its own error says why."""

    exit_code = 1


def is_first_process() -> bool:
    """Whether this process is the one that prints; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def quiet_others() -> None:
    """Let only the first process show results and progress, and only one process per host warnings about speed."""
    out.quiet = err.quiet = not is_first_process()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger("msltrain").setLevel(logging.ERROR)


def may_speak(error: BaseException) -> bool:
    """Whether this process should show what went wrong: the first to ask should, as long as these processes live. The
    loss of another process is only worth reporting if nobody says why it was lost; our own launcher does.
    """
    if "LOCAL_RANK" not in os.environ:
        return True
    if isinstance(error, LostPeer):
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return False
        time.sleep(_OTHERS_SECONDS)
    if not _is_first_to_ask():
        return False
    out.quiet = err.quiet = False
    return True


def _is_first_to_ask() -> bool:
    from torch.distributed import TCPStore

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(*place, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"{_SAID}/{attempt}", 1) == 1
    except (RuntimeError, KeyError, ValueError):  # nobody to ask: better to report it twice than never
        return True
