"""One TCP transfer with a digest at both ends: `python -m canal_udp.lab.transfer send|receive ...` inside a namespace.

Structure  the receiver prints `{"port": n}` when it listens and both print `{"bytes", "sha256", "seconds"}` at the end;
           the data is one seeded block again and again, each with its number in front, so that a block that is lost,
           doubled or moved changes the digest
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import sys
import time

BLOCK_SIZE = 1 << 20
TIMEOUT_S = 60.0  # without a byte


def send(address: str, port: int, size: int, seed: int) -> dict[str, object]:
    digest, left, number = hashlib.sha256(), size, 0
    block = bytearray(random.Random(seed).randbytes(BLOCK_SIZE))
    started = time.monotonic()
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as sock:
        while left:
            block[:8] = number.to_bytes(8, "big")
            part = memoryview(block)[: min(left, BLOCK_SIZE)]
            digest.update(part)
            sock.sendall(part)
            left -= len(part)
            number += 1
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)  # the receiver closes when it has everything
    return {"bytes": size, "sha256": digest.hexdigest(), "seconds": time.monotonic() - started}


def receive(address: str) -> dict[str, object]:
    digest, size = hashlib.sha256(), 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(TIMEOUT_S)
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        sock, _ = server.accept()
        started = time.monotonic()
        with sock:
            sock.settimeout(TIMEOUT_S)
            buffer = bytearray(BLOCK_SIZE)
            while count := sock.recv_into(buffer):
                digest.update(memoryview(buffer)[:count])
                size += count
    return {"bytes": size, "sha256": digest.hexdigest(), "seconds": time.monotonic() - started}


def main() -> int:
    parser = argparse.ArgumentParser(prog="canal-lab-transfer")
    ways = parser.add_subparsers(dest="way", required=True)
    sender = ways.add_parser("send")
    sender.add_argument("address")
    sender.add_argument("port", type=int)
    sender.add_argument("size", type=int)
    sender.add_argument("seed", type=int)
    ways.add_parser("receive").add_argument("address")
    arguments = parser.parse_args()
    if arguments.way == "send":
        result = send(arguments.address, arguments.port, arguments.size, arguments.seed)
    else:
        result = receive(arguments.address)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
