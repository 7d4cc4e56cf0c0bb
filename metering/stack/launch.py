"""Starts one server in the background and prints its pid; run by path, in a process of its own.

The server so becomes a child of init, not of whoever called `up`: it outlives that process and
leaves it no zombie to reap.
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Read the order from the first argument (JSON), start the server, print its pid."""
    order = json.loads(sys.argv[1])
    identity = {}
    if os.geteuid() == 0:
        identity = {"user": order["uid"], "group": order["gid"], "extra_groups": []}
    with Path(order["log"]).open("ab") as log:
        os.fchown(log.fileno(), order["uid"], order["gid"])
        process = subprocess.Popen(
            order["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=order["folder"],
            start_new_session=True,
            umask=0o077,
            **identity,
        )
    print(process.pid, flush=True)
    os._exit(0)  # without waiting for the server


if __name__ == "__main__":
    main()
