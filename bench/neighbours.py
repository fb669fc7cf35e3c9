"""How long an easy search takes beside a thousand hard ones of others, through gRPC.

usage: neighbours.py ADDRESS, where a server with room for 1,001 RPCs listens. Prints the median of its
calls in milliseconds.
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
# The 451st secret there is: its caller tries it at once.
EASY = "doc"


def request(name):
    """A HashNameRequest with a desired name alone, in protobuf."""
    return bytes([0x0A, len(name)]) + name.encode()


def channel(number):
    # With arguments that differ, channels do not share a connection.
    return grpc.insecure_channel(sys.argv[1], options=[("bench.connection", number)])


def as_it_is(message):
    return message


channels = [channel(number) for number in range(CONNECTIONS)]
hard = [
    channels[number % CONNECTIONS].unary_unary(
        "/hash_name.HashFinder/Find", as_it_is, as_it_is
    ).future(request("".join(random.choices(string.ascii_lowercase, k=12))))
    for number in range(HARD)
]
easy = channel(CONNECTIONS).unary_unary("/hash_name.HashFinder/Find", as_it_is, as_it_is)
took = []
for call in range(CALLS):
    began = time.perf_counter()
    easy(request(EASY))
    took.append(1000 * (time.perf_counter() - began))
assert not any(search.done() for search in hard), "one of the hard searches has ended"
for search in hard:
    search.cancel()
# The first calls wait for the connection and for the hard searches to begin.
print(statistics.median(took[CALLS // 3 :]))
