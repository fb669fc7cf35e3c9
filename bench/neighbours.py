"""Measures easier searches beside many hard ones of another client, through gRPC.

usage: neighbours.py OTHERS OWN HARD CALLS

OTHERS and OWN are two addresses of one server, which must see callers there as different clients
and have room for HARD + 1 RPCs. HARD is the number of hard searches, CALLS that of easier ones of
each name. Prints the median duration of the calls in milliseconds, one line for each of the two
names.
"""

import random
import statistics
import string
import sys
import time

import grpc

CONNECTIONS = 10
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


others, own = sys.argv[1:3]
hard_count, calls = map(int, sys.argv[3:])
channels = [channel(others, number) for number in range(CONNECTIONS)]
hard = [
    channels[number % CONNECTIONS].unary_unary(
        "/hash_name.HashFinder/Find", as_it_is, as_it_is
    ).future(request("".join(random.choices(string.ascii_lowercase, k=12))))
    for number in range(hard_count)
]
easy = channel(own, CONNECTIONS).unary_unary("/hash_name.HashFinder/Find", as_it_is, as_it_is)
medians = []
for name in EASIER:
    took = []
    for call in range(calls):
        began = time.perf_counter()
        easy(request(name))
        took.append(1000 * (time.perf_counter() - began))
    # Skips the first calls, which wait for the connection and for the hard searches to start.
    medians.append(statistics.median(took[calls // 3 :]))
assert not any(search.done() for search in hard), "one of the hard searches has ended"
for search in hard:
    search.cancel()
print(*medians, sep="\n")
