"""A server that behaves like the reference server.

It has one servicer thread. A callback frees the thread by setting an event. When the budget is
spent, the servicer cancels the call. Each event is printed on stdout.
"""

import base64
import hashlib
import itertools
import sys
import threading
from concurrent import futures

import grpc

budget, stubs = int(sys.argv[1]), sys.argv[2]
sys.path.insert(0, stubs)
import hash_name_pb2  # noqa: E402
import hash_name_pb2_grpc  # noqa: E402


def report(event):
    print(event, flush=True)


class Stopped(Exception):
    pass


class BudgetSpent(Exception):
    pass


def distance(text, name):
    text, name = text.lower(), name.lower()
    windows = (text[i : i + len(name)] for i in range(len(text) - len(name) + 1))
    return min(sum(a != b for a, b in zip(window, name)) for window in windows)


def search(request, stop):
    tried = 0
    for length in itertools.count():
        # Like the original, this skips the byte 0xFF.
        for values in itertools.product(range(255), repeat=length):
            if stop.is_set():
                raise Stopped
            if tried == budget:
                raise BudgetSpent
            tried += 1
            secret = bytes(values)
            text = base64.b64encode(hashlib.sha1(secret).digest()).decode()
            found = distance(text, request.desired_name)
            ideal = found <= request.ideal_hamming_distance
            if ideal or found <= request.interesting_hamming_distance:
                yield ideal, hash_name_pb2.HashNameResponse(
                    secret=base64.b64encode(secret).decode(),
                    hashed_name=text,
                    hamming_distance=found,
                )
            if ideal:
                return


class HashFinder(hash_name_pb2_grpc.HashFinderServicer):
    def _begin(self, request, context):
        stop = threading.Event()

        def over():
            report("over")
            stop.set()

        context.add_callback(over)
        report("began")
        return search(request, stop)

    def Find(self, request, context):
        request.interesting_hamming_distance = 0
        try:
            for ideal, response in self._begin(request, context):
                if ideal:
                    report("found")
                    return response
        except Stopped:
            report("stopped")
        except BudgetSpent:
            report("budget spent")
            context.cancel()
        return hash_name_pb2.HashNameResponse()

    def FindRange(self, request, context):
        try:
            for _, response in self._begin(request, context):
                yield response
        except Stopped:
            report("stopped")
        except BudgetSpent:
            report("budget spent")
            context.cancel()


server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
hash_name_pb2_grpc.add_HashFinderServicer_to_server(HashFinder(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
report(f"listening on {port}")
server.wait_for_termination()
