"""Measures easier searches beside a thousand hard ones of another client, through gRPC.

usage: neighbours.py OTHERS OWN, two addresses of one server with room for 1,001 RPCs, which must
see callers at OTHERS and OWN as different clients. Prints the median duration of the calls in
milliseconds, one line for each of the two names.
"""

import random
import statistics
import string
import sys
import time

import grpc

HARD = 1000
CONNECTIONS = 10
CALLS = 300
# Found at the 450th secret, which the call itself tries, and at the 899,147th, which takes turns.
EASIER = ["doc", "docto"]


def request(name):
    """Encodes a HashNameRequest that has only a desired name, in protobuf."""
    return bytes([0x0A, len(name)]) + name.encode()


def channel(address, number):
    # Channels with different arguments do not share a connection.
    return grpc.insecure_channel(address, options=[("bench.connection", number)])


def as_it_is(message):
    return message


others, own = sys.argv[1:]
channels = [channel(others, number) for number in range(CONNECTIONS)]
hard = [
    channels[number % CONNECTIONS].unary_unary(
        "/hash_name.HashFinder/Find", as_it_is, as_it_is
    ).future(request("".join(random.choices(string.ascii_lowercase, k=12))))
    for number in range(HARD)
]
easy = channel(own, CONNECTIONS).unary_unary("/hash_name.HashFinder/Find", as_it_is, as_it_is)
medians = []
for name in EASIER:
    took = []
    for call in range(CALLS):
        began = time.perf_counter()
        easy(request(name))
        took.append(1000 * (time.perf_counter() - began))
    # Skips the first calls, which wait for the connection and for the hard searches to start.
    medians.append(statistics.median(took[CALLS // 3 :]))
assert not any(search.done() for search in hard), "one of the hard searches has ended"
for search in hard:
    search.cancel()
print(*medians, sep="\n")
