"""Serves the interoperability cases with grpcio.

usage: server.py STUBS

Prints on stdout the address on which it listens, when each call begins, and how each call ended:
"Finished" if its handler ran to its end, "Gone" if the call ended before that.
"""

import sys
import threading
from concurrent import futures

import grpc

sys.path.insert(0, sys.argv[1])
import interop_pb2 as proto  # noqa: E402
import interop_pb2_grpc as services  # noqa: E402

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


def report(event):
    print(event, flush=True)


class Observed:
    """Prints when a call begins and how it ends."""

    def __init__(self, method, context):
        self.method, self.context, self.finished = method, context, False
        self.over = threading.Event()
        report(f"began {method}")
        context.add_callback(self.ended)
        for name, value in context.invocation_metadata():
            if name == "x-grpc-test-echo-initial":
                context.send_initial_metadata([(name, value)])
            if name == "x-grpc-test-echo-trailing-bin":
                context.set_trailing_metadata([(name, value)])

    def ended(self):
        self.over.set()
        report(f"ended {self.method} {'Finished' if self.finished else 'Gone'}")

    def echo_status(self, request):
        if request.response_status.code != 0:
            self.finished = True
            code = STATUS_CODES[request.response_status.code]
            self.context.abort(code, request.response_status.message)


def payload(size):
    return proto.Payload(body=bytes(size))


class Testing(services.TestServiceServicer):
    def UnaryCall(self, request, context):
        call = Observed("UnaryCall", context)
        call.echo_status(request)
        call.finished = True
        return proto.SimpleResponse(payload=payload(request.response_size))

    def StreamingInputCall(self, requests, context):
        call = Observed("StreamingInputCall", context)
        size = sum(len(request.payload.body) for request in requests)
        call.finished = True
        return proto.StreamingInputCallResponse(aggregated_payload_size=size)

    def FullDuplexCall(self, requests, context):
        call = Observed("FullDuplexCall", context)
        for request in requests:
            call.echo_status(request)
            for parameters in request.response_parameters:
                if call.over.wait(parameters.interval_us / 1e6):
                    return
                yield proto.StreamingOutputCallResponse(payload=payload(parameters.size))
        call.finished = True


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
services.add_TestServiceServicer_to_server(Testing(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
report(f"listening on 127.0.0.1:{port}")
server.wait_for_termination()
