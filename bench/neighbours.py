"""How long easier searches take beside a thousand hard ones of another client, through gRPC.

usage: neighbours.py OTHERS OWN, two addresses at which a server with room for 1,001 RPCs is reached, so
that whoever calls the one is another client to it than who calls the other. Prints the median of the
calls in milliseconds, for a line each of the two names.
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
# The 450th secret there is, which its caller tries at once, and the 899,147th, which needs turns.
EASIER = ["doc", "docto"]


def request(name):
    """A HashNameRequest with a desired name alone, in protobuf."""
    return bytes([0x0A, len(name)]) + name.encode()


def channel(address, number):
    # With arguments that differ, channels do not share a connection.
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
    # The first calls wait for the connection and for the hard searches to begin.
    medians.append(statistics.median(took[CALLS // 3 :]))
assert not any(search.done() for search in hard), "one of the hard searches has ended"
for search in hard:
    search.cancel()
print(*medians, sep="\n")
