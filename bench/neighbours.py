"""Measures the duration of easier searches while another client runs many hard ones, over gRPC.

usage: neighbours.py OTHERS OWN HARD CALLS

OTHERS and OWN are two addresses of the same server. It must identify their callers as different
clients, and accept HARD + 1 RPCs at a time. HARD is the number of hard searches, on OTHERS. CALLS
is the number of searches for each of two easier names, on OWN.

Prints two lines: for each of the easier names, the median duration of a search in milliseconds.
"""

import random
import statistics
import string
import sys
import time

import grpc

CONNECTIONS = 10
# The first is found at the 450th secret, so that the call itself tries all secrets. The second is
# found at the 899,147th, so that it takes turns with the hard searches.
EASIER = ["doc", "docto"]


def request(name):
    """Encodes a HashNameRequest that has only a desired name, in protobuf."""
    return bytes([0x0A, len(name)]) + name.encode()


def channel(address, number):
    # Channels with different arguments do not share a connection.
    return grpc.insecure_channel(address, options=[("bench.connection", number)])


def unchanged(message):
    return message


others, own = sys.argv[1:3]
hard_count, calls = map(int, sys.argv[3:])
channels = [channel(others, number) for number in range(CONNECTIONS)]
hard = [
    channels[number % CONNECTIONS].unary_unary(
        "/hash_name.HashFinder/Find", unchanged, unchanged
    ).future(request("".join(random.choices(string.ascii_lowercase, k=12))))
    for number in range(hard_count)
]
easy = channel(own, CONNECTIONS).unary_unary("/hash_name.HashFinder/Find", unchanged, unchanged)
medians = []
for name in EASIER:
    durations = []
    for call in range(calls):
        began = time.perf_counter()
        easy(request(name))
        durations.append(1000 * (time.perf_counter() - began))
    # Skips the first calls, which wait for the connection and for the hard searches to start.
    medians.append(statistics.median(durations[calls // 3 :]))
assert not any(search.done() for search in hard), "a hard search has ended"
for search in hard:
    search.cancel()
print(*medians, sep="\n")
