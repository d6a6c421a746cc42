"""A measuring process: JSON requests in on stdin, a line each, and answers out on what was stdout.

Started with thread counts in its environment, before anything is imported that reads them. When stdin ends, whoever
asked is gone, and so is this process, whatever it is doing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from bpcli.errors import BpError


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked gets it too, and decides
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()

    from bpcli.benching.measure import Session

    session = Session()
    print(json.dumps({"ready": True}), file=out, flush=True)
    while True:
        print(json.dumps(_answer(session, json.loads(requests.get())), default=float), file=out, flush=True)


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _answer(session: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The answer, or what stood in its way."""
    try:
        answer: dict[str, Any] = session.answer(request)
    except BpError as error:
        return {"refused": [{"code": d.code, "what": d.what, "help": d.help} for d in error.diagnostics]}
    except MemoryError:
        advice = "smaller sizes, a batch of fewer samples or a method that holds less"
        return {"refused": [{"code": "memory", "what": "out of memory", "help": advice}]}
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return {"refused": [{"code": "internal", "what": what, "help": "a bug in bp: please report it"}]}
    return answer


if __name__ == "__main__":
    main()
