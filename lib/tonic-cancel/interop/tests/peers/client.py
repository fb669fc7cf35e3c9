"""Runs one interoperability case with grpcio as the client.

usage: client.py STUBS --port N --case NAME [--timeout-ms N]

Like all clients of these tests, it prints "passed" and waits until its stdin ends, so that the
server sees a cancellation and not a lost connection.
"""

import argparse
import sys
import threading

import grpc

arguments = argparse.ArgumentParser()
arguments.add_argument("stubs")
arguments.add_argument("--port", type=int)
arguments.add_argument("--case")
arguments.add_argument("--timeout-ms", type=int, default=1)
arguments = arguments.parse_args()
sys.path.insert(0, arguments.stubs)
import interop_pb2 as proto  # noqa: E402
import interop_pb2_grpc as services  # noqa: E402

channel = grpc.insecure_channel(f"127.0.0.1:{arguments.port}")
stub = services.TestServiceStub(channel)

INITIAL = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
TRAILING = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")

over = threading.Event()


def payload(size):
    return proto.Payload(body=bytes(size))


def duplex_request(*sizes):
    parameters = [proto.ResponseParameters(size=size) for size in sizes]
    return proto.StreamingOutputCallRequest(
        response_parameters=parameters, payload=payload(27182)
    )


def requests_without_end(*requests):
    """Yields requests, and then waits, so that the client does not end its half of the stream."""
    yield from requests
    over.wait()


def failure(attempt):
    """Makes a call that must fail, and returns its error."""
    try:
        attempt()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def cancel_after_begin():
    call = stub.StreamingInputCall.future(requests_without_end())
    sys.stdin.readline()
    assert call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED, call.code()


def cancel_after_first_response():
    call = stub.FullDuplexCall(requests_without_end(duplex_request(31415)))
    assert len(next(call).payload.body) == 31415
    assert call.cancel()
    assert failure(lambda: next(call)).code() == grpc.StatusCode.CANCELLED


def cancel_while_responding():
    """An additional case: the client has ended its half when it cancels the server's response."""
    request = duplex_request(31415, 31415)
    request.response_parameters[1].interval_us = 600_000_000
    call = stub.FullDuplexCall(iter([request]))
    next(call)
    assert call.cancel()
    assert failure(lambda: next(call)).code() == grpc.StatusCode.CANCELLED


def timeout_on_sleeping_server():
    timeout_s = arguments.timeout_ms / 1000
    call = stub.FullDuplexCall(requests_without_end(duplex_request()), timeout=timeout_s)
    assert failure(lambda: next(call)).code() == grpc.StatusCode.DEADLINE_EXCEEDED


def check_status(message):
    status = proto.EchoStatus(code=2, message=message)
    error = failure(lambda: stub.UnaryCall(proto.SimpleRequest(response_status=status)))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, message), error
    request = proto.StreamingOutputCallRequest(response_status=status)
    error = failure(lambda: next(stub.FullDuplexCall(iter([request]))))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, message), error


def status_code_and_message():
    check_status("test status message")


def special_status_message():
    check_status("\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n")


def unimplemented_method():
    error = failure(lambda: stub.UnimplementedCall(proto.Empty()))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def unimplemented_service():
    other = services.UnimplementedServiceStub(channel)
    error = failure(lambda: other.UnimplementedCall(proto.Empty()))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def custom_metadata():
    def check(call):
        assert INITIAL in call.initial_metadata(), call.initial_metadata()
        assert TRAILING in call.trailing_metadata(), call.trailing_metadata()

    metadata = (INITIAL, TRAILING)
    request = proto.SimpleRequest(response_size=314159, payload=payload(271828))
    response, call = stub.UnaryCall.with_call(request, metadata=metadata)
    assert len(response.payload.body) == 314159
    check(call)

    call = stub.FullDuplexCall(iter([duplex_request(314159)]), metadata=metadata)
    assert [len(response.payload.body) for response in call] == [314159]
    check(call)


cases = [
    cancel_after_begin,
    cancel_after_first_response,
    cancel_while_responding,
    timeout_on_sleeping_server,
    status_code_and_message,
    special_status_message,
    unimplemented_method,
    unimplemented_service,
    custom_metadata,
]
{case.__name__: case for case in cases}[arguments.case]()
print("passed", flush=True)
sys.stdin.read()
over.set()
channel.close()
