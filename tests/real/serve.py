"""Do what each line of stdin asks for, in a process of its own: forked from one whose imports took seconds.

A request is a JSON object: the keyword arguments of `handle`. What that says comes out on stdout, one JSON
value a line; then {"ended": exit code}. No import may start a thread, or a fork is not safe.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def serve(handle):
    while request := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            try:
                handle(**json.loads(request))
            except BaseException:  # noqa: BLE001  (nothing may come back into the loop below)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say({"ended": os.waitstatus_to_exitcode(status)})


def say(value):
    print(json.dumps(value), flush=True)


def wait_for_go():
    """Until the test has written a line."""
    if not sys.stdin.readline():
        sys.exit("nobody is there to say go on")
