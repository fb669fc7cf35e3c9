"""`hash_name.HashFinder` as its contract defines it, called by the stock client."""

import base64

import grpc
import pytest
from conftest import FIRST_DOCTOR, decoded, distance, oracle
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

# A name that no search finds while a test runs.
HARD = "hashfinderhashfinder"


def details(error, kind):
    """Returns the detail of this kind in an error's status, read by the stock package."""
    status = rpc_status.from_call(error)
    assert status.code == error.code().value[0]
    found = [detail for detail in status.details if detail.Is(kind.DESCRIPTOR)]
    assert len(found) == 1, status
    message = kind()
    found[0].Unpack(message)
    return message


@pytest.mark.parametrize("workers", ["1", "2", "5"])
def test_find_returns_the_first_secret(serve, connect, stubs, workers):
    stub = connect(serve("--workers", workers))
    for name, ideal in [("doc", 0), ("DOC", 0), ("aa", 0), ("doctor", 2), ("c=", 0), ("naïve", 2)]:
        response = stub.Find(stubs.Request(desired_name=name, ideal_hamming_distance=ideal))
        assert decoded(response) == oracle(name, ideal)[-1]


def test_find_returns_the_first_secret_that_spells_doctor(serve, connect, stubs):
    server = serve()
    response = connect(server).Find(stubs.Request(desired_name="doctor"))
    assert decoded(response) == (FIRST_DOCTOR, 0)
    server.call_ended(method='"Find"', code="Ok", cause='"completed"', work='"found"')


@pytest.mark.parametrize("workers", ["1", "2", "5"])
def test_find_range_streams_in_enumeration_order(serve, connect, stubs, workers):
    stub = connect(serve("--workers", workers))
    for name, ideal, interesting in [("doc", 0, 2), ("doctor", 2, 4), ("abcd", 1, 3), ("ab", 0, 9)]:
        stream = stub.FindRange(
            stubs.Request(
                desired_name=name,
                ideal_hamming_distance=ideal,
                interesting_hamming_distance=interesting,
            )
        )
        assert [decoded(response) for response in stream] == oracle(name, ideal, interesting)
        assert stream.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("interesting", [-(2**31) + 0, 0, 1])
def test_an_interesting_distance_up_to_the_ideal_adds_no_candidates(
    serve, connect, stubs, interesting
):
    stub = connect(serve())
    request = stubs.Request(
        desired_name="doc",
        ideal_hamming_distance=1,
        interesting_hamming_distance=max(interesting, 0),
    )
    assert [decoded(response) for response in stub.FindRange(request)] == oracle("doc", 1)
    # Find ignores this field.
    request.interesting_hamming_distance = interesting
    assert decoded(stub.Find(request)) == oracle("doc", 1)[-1]


@pytest.mark.parametrize("ideal", [6, 28, 2**31 - 1])
def test_a_distance_of_the_whole_name_matches_the_first_secret(serve, connect, stubs, ideal):
    stub = connect(serve())
    request = stubs.Request(desired_name="doctor", ideal_hamming_distance=ideal)
    for response in [stub.Find(request), *stub.FindRange(request)]:
        assert (response.secret, response.hashed_name) == ("", "2jmj7l5rSw0yVb/vlWAYkK/YBwk=")


BAD = [
    ("", 0, "desired_name", "empty"),
    ("a" * 29, 0, "desired_name", "29 characters"),
    ("doc-tor", 0, "desired_name", "'-' appears in no hash (sha1 in base64); it can match in base64url"),
    ("-", 0, "desired_name", "'-' appears in no hash (sha1 in base64); it can match in base64url"),
    ("\U0001f980", 0, "desired_name", "'\U0001f980' appears in no hash (sha1 in base64)"),
    ("==", 0, "desired_name", "'=' occurs only at the end"),
    ("b=", 0, "desired_name", "AEIMQUYcgkosw048"),
    ("a\0b", 0, "desired_name", r"'\0' appears in no hash"),
    ("naïve", 0, "desired_name", "'ï' appears in no hash"),
    ("a\x1b[2Jb", 1, "desired_name", r"\u{1b}"),
    ("doctor", -1, "ideal_hamming_distance", "-1"),
    ("doctor", -(2**31), "ideal_hamming_distance", "-2147483648"),
]


def test_bad_requests_are_rejected_before_any_work(serve, connect, stubs):
    server = serve()
    stub = connect(server)
    for name, ideal, field, reason in BAD:
        request = stubs.Request(desired_name=name, ideal_hamming_distance=ideal)
        for call in [lambda: stub.Find(request), lambda: list(stub.FindRange(request))]:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            error = raised.value
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, name
            assert reason in error.details(), (name, error.details())
            [violation] = details(error, error_details_pb2.BadRequest).field_violations
            assert violation.field == field
            assert violation.description == error.details()
            server.wait_for("call rejected")
    for interesting in [-1, -(2**31)]:
        request = stubs.Request(desired_name=HARD, interesting_hamming_distance=interesting)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.FindRange(request))
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        [violation] = details(raised.value, error_details_pb2.BadRequest).field_violations
        assert violation.field == "interesting_hamming_distance"
    server.assert_idle()
    # No work was started: this is the first search whose end is logged.
    stub.Find(stubs.Request(desired_name="aa"))
    server.call_ended(names="1", characters="2")
    assert not any("call ended" in line for line in server.log[:-1])


def test_impossible_characters_are_accepted_if_the_distance_covers_them(serve, connect, stubs):
    stub = connect(serve())
    for name, ideal in [("naïve", 3), ("d-c", 1), ("a\0", 1), ("==", 1), ("b=", 1)]:
        response = stub.Find(stubs.Request(desired_name=name, ideal_hamming_distance=ideal))
        assert decoded(response) == oracle(name, ideal)[-1]
    # The ideal distance covers the impossible character, so this search takes a random time, like
    # any other.
    request = stubs.Request(desired_name="naïve", ideal_hamming_distance=1)
    secret, least = decoded(stub.Find(request))
    assert least <= 1 and distance(secret, "naïve")[0] == least


@pytest.mark.parametrize("length", [4097, 100_000, 10_000_000])
def test_a_message_that_is_too_long_is_rejected(serve, connect, stubs, length):
    server = serve()
    stub = connect(server)
    request = stubs.Request(desired_name="x" * length)
    for call in [lambda: stub.Find(request), lambda: list(stub.FindRange(request))]:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4096" in raised.value.details()
    assert stub.Find(stubs.Request(desired_name="a")).hamming_distance == 0


@pytest.mark.parametrize("path", ["/hash_name.HashFinder/Lose", "/other.Service/Method", "/x"])
def test_an_unknown_method_is_unimplemented(serve, path):
    with grpc.insecure_channel(serve().address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(path)(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert path in raised.value.details()


def test_a_malformed_message_is_rejected(serve):
    with grpc.insecure_channel(serve().address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/hash_name.HashFinder/Find")(b"\xff\xff\xff")
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_health_service_knows_the_contract(serve):
    with grpc.insecure_channel(serve().address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ["", "hash_name.HashFinder"]:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="no.Such"))
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_contract(serve):
    with grpc.insecure_channel(serve().address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {"hash_name.HashFinder", "grpc.health.v1.Health"} <= services
        file = database.FindFileContainingSymbol("hash_name.HashFinder")
        [service] = file.service
        assert [method.name for method in service.method] == ["Find", "FindRange"]


def test_two_servers_share_a_port(serve, connect, stubs):
    first = serve("--reuse-port")
    port = int(first.address.rsplit(":", 1)[1])
    second = serve("--reuse-port", port=port)
    assert second.address == first.address
    assert decoded(connect(first).Find(stubs.Request(desired_name="aa"))) == oracle("aa", 0)[-1]


def test_secrets_are_in_standard_base64(serve, connect, stubs):
    # The first few thousand candidates use every character of base64.
    stream = connect(serve()).FindRange(
        stubs.Request(desired_name=HARD, interesting_hamming_distance=21)
    )
    letters = set("".join(response.secret for response, _ in zip(stream, range(5000))))
    stream.cancel()
    assert {"+", "/", "="} <= letters
    assert base64.b64decode("+/8=", validate=True) == b"\xfb\xff"
