"""How fast files go through the one port of a Ray head, up and down.

Against a head on this machine:

    ray start --head --include-dashboard=true
    python scripts/bench/submit.py --address http://127.0.0.1:8265 --megabytes 200

Up: parts of several sizes, stored and taken out by a job on the cluster; down: one stream from the folder of logs.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import sys
import tempfile
import time
from pathlib import Path

from dino_ray.submit import parcels
from dino_ray.submit.connection import named
from dino_ray.submit.dashboard import Dashboard
from dino_ray.submit.parcels import BLOCK, Facts, fetch, mail, receive, send, sha256_of

MB = 10**6


def there(job: str, size: int, part: int) -> None:
    """The cluster's side: receive a file, offer it again, wait until it was fetched."""
    from dino_ray.submit.inbox import Inbox, log_folder

    parcels.PART = part
    box, links = Inbox(), log_folder() / "dino-ray"
    with tempfile.TemporaryDirectory() as folder:
        receive(Path(folder, "file"), size, box, lambda number: mail(job, number))
        links.mkdir(exist_ok=True)
        (links / job).symlink_to(Path(folder, "file"))
        print("received", flush=True)
        while box.take(mail(job, "fetched")) is None:
            time.sleep(0.1)
        (links / job).unlink()


def here(dashboard: Dashboard, folder: Path, size: int, part: int) -> tuple[float, float]:
    """Rates up and down, in MB/s."""
    parcels.PART = part
    job = f"bench-{secrets.token_hex(4)}"
    source = folder / "source"
    source.write_bytes(os.urandom(size))
    command = shlex.join([sys.executable, __file__, "--there", job, str(size), str(part)])
    dashboard.start(job, f"exec {command}", {}, {})
    while dashboard.job(job).state == "PENDING":
        time.sleep(0.1)
    started = time.monotonic()
    send(
        str(source), size, dashboard, lambda number: mail(job, number), check=lambda: dashboard.job(job).over
    )
    while "received" not in dashboard.last_lines(dashboard.job(job), 5):
        time.sleep(0.05)
    up, started = time.monotonic() - started, time.monotonic()
    facts, node = Facts(size, sha256_of(source)), dashboard.job(job).node or ""
    fetch(dashboard.file(node, f"dino-ray/{job}", BLOCK), facts, folder / "result", packed=False)
    down = time.monotonic() - started
    dashboard.put(mail(job, "fetched"), b"yes")
    return size / up / MB, size / down / MB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", help="of the dashboard")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--there", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.there:
        job, size, part = options.there
        there(job, int(size), int(part))
        return
    dashboard = Dashboard(named(options.address))
    print("part MiB   up MB/s   down MB/s")
    for mib in (1, 4, 8, 16, 32):
        with tempfile.TemporaryDirectory() as folder:
            up, down = here(dashboard, Path(folder), options.megabytes * MB, mib * 2**20)
        print(f"{mib:8} {up:9.0f} {down:11.0f}", flush=True)


if __name__ == "__main__":
    main()
