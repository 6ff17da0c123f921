"""Thousands of damaged bodies, and of requests made from the OpenAPI document, at one server.

    python -m benchmarks.fuzz --bodies 5000 --examples 3000

Every body must be refused by a 4xx, and the server's memory must stay as it was.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from benchmarks.bodies import Body, malformed_bodies
from benchmarks.serving import TINY, our_server, resident_mb


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.fuzz")
    parser.add_argument("--bodies", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=0, help="of schemathesis for each route")
    options = parser.parse_args()
    defaults = argparse.Namespace(dtype="float32", quantization=None, max_batch_tokens=None)
    statuses: Counter[int] = Counter()
    with our_server(TINY, defaults) as (url, pid):
        before = 0.0
        bodies = malformed_bodies(random.Random(options.seed), options.bodies)
        for number, body in enumerate(bodies):
            status = send(url, Body(body.path, body.content.replace(b'"tiny"', b'"m"')))
            statuses[status] += 1
            if not 400 <= status < 500:
                print(f"{status} for {body.path} {body.content[:300]!r}")
            if number == options.bodies // 5:
                before = resident_mb(pid)
        after = resident_mb(pid)
        if options.examples:
            run_schemathesis(url, options.examples, options.seed)
    print(f"{options.bodies} bodies: {dict(statuses)}; {before:.0f} MB after a fifth, {after:.0f}")
    if any(not 400 <= status < 500 for status in statuses):
        raise SystemExit(1)


def run_schemathesis(url: str, num_examples: int, seed: int) -> None:
    """Send requests made from the OpenAPI document; raises unless there is no 5xx."""
    line = ["schemathesis", "run", f"{url}/openapi.json", "--checks", "not_a_server_error"]
    line += ["--max-examples", str(num_examples), "--seed", str(seed), "--phases", "fuzzing"]
    subprocess.run([str(Path(sys.executable).with_name(line[0])), *line[1:]], check=True)


def send(url: str, body: Body) -> int:
    """Return the status of the answer."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + body.path, body.content, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    main()
