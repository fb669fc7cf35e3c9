// Runs one interoperability case with grpc-js as the client.
//
// usage: client.js PROTO --port N --case NAME [--timeout-ms N]
//
// Like all clients of these tests, it prints "passed" and waits until its stdin ends, so that the
// server sees a cancellation and not a lost connection.
"use strict";

const assert = require("node:assert");
const readline = require("node:readline");
const { parseArgs } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    port: { type: "string" },
    case: { type: "string" },
    "timeout-ms": { type: "string", default: "1" },
  },
});
const [proto] = positionals;
const { testing } = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true })).grpc;
const connect = (Service) =>
  new Service(`127.0.0.1:${options.port}`, grpc.credentials.createInsecure());
const client = connect(testing.TestService);
const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

const { status } = grpc;
const payload = (size) => ({ body: Buffer.alloc(size) });

// Resolves to the error or the response of a call with one response.
function outcome(start) {
  return new Promise((resolve) => start((error, response) => resolve({ error, response })));
}

// Resolves to the messages, the status and the initial metadata of a stream.
function collect(call, onMessage = () => {}) {
  return new Promise((resolve) => {
    const seen = { messages: [], metadata: undefined };
    call.on("metadata", (metadata) => (seen.metadata = metadata));
    call.on("data", (message) => {
      seen.messages.push(message);
      onMessage();
    });
    call.on("error", () => {});
    call.on("status", (end) => resolve({ ...seen, end }));
  });
}

async function checkStatus(message) {
  const response_status = { code: status.UNKNOWN, message };
  const { error } = await outcome((done) => client.UnaryCall({ response_status }, done));
  assert.deepStrictEqual([error.code, error.details], [status.UNKNOWN, message]);
  const call = client.FullDuplexCall();
  const collected = collect(call);
  call.write({ response_status });
  call.end();
  const { end } = await collected;
  assert.deepStrictEqual([end.code, end.details], [status.UNKNOWN, message]);
}

const cases = {
  async cancel_after_begin() {
    let call;
    const ended = outcome((done) => (call = client.StreamingInputCall(done)));
    await input.next();
    call.cancel();
    assert.strictEqual((await ended).error.code, status.CANCELLED);
  },

  async cancel_after_first_response() {
    const call = client.FullDuplexCall();
    const collected = collect(call, () => call.cancel());
    call.write({ response_parameters: [{ size: 31415 }], payload: payload(27182) });
    const { messages, end } = await collected;
    assert.deepStrictEqual(messages.map((message) => message.payload.body.length), [31415]);
    assert.strictEqual(end.code, status.CANCELLED);
  },

  // An additional case: the client has ended its half when it cancels the server's response.
  async cancel_while_responding() {
    const call = client.FullDuplexCall();
    const collected = collect(call, () => call.cancel());
    const response_parameters = [{ size: 31415 }, { size: 31415, interval_us: 600000000 }];
    call.write({ response_parameters });
    call.end();
    const { messages, end } = await collected;
    assert.strictEqual(messages.length, 1);
    assert.strictEqual(end.code, status.CANCELLED);
  },

  async timeout_on_sleeping_server() {
    const deadline = Date.now() + Number(options["timeout-ms"]);
    const call = client.FullDuplexCall({ deadline });
    const collected = collect(call);
    call.write({ payload: payload(27182) });
    assert.strictEqual((await collected).end.code, status.DEADLINE_EXCEEDED);
  },

  status_code_and_message: () => checkStatus("test status message"),

  special_status_message: () =>
    checkStatus("\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \u{1f608}\t\n"),

  async unimplemented_method() {
    const { error } = await outcome((done) => client.UnimplementedCall({}, done));
    assert.strictEqual(error.code, status.UNIMPLEMENTED);
  },

  async unimplemented_service() {
    const other = connect(testing.UnimplementedService);
    const { error } = await outcome((done) => other.UnimplementedCall({}, done));
    assert.strictEqual(error.code, status.UNIMPLEMENTED);
    other.close();
  },

  async custom_metadata() {
    const initial = ["x-grpc-test-echo-initial", "test_initial_metadata_value"];
    const trailing = ["x-grpc-test-echo-trailing-bin", Buffer.from("ababab", "hex")];
    const metadata = new grpc.Metadata();
    metadata.set(...initial);
    metadata.set(...trailing);
    const check = (first, last) => {
      assert.deepStrictEqual(first.get(initial[0]), [initial[1]]);
      assert.deepStrictEqual(last.get(trailing[0]), [trailing[1]]);
    };

    let first, last;
    const { error, response } = await outcome((done) => {
      const request = { response_size: 314159, payload: payload(271828) };
      const call = client.UnaryCall(request, metadata, (...result) => setImmediate(done, ...result));
      call.on("metadata", (metadata) => (first = metadata));
      call.on("status", (end) => (last = end.metadata));
    });
    assert.ifError(error);
    assert.strictEqual(response.payload.body.length, 314159);
    check(first, last);

    const call = client.FullDuplexCall(metadata);
    const collected = collect(call);
    call.write({ response_parameters: [{ size: 314159 }], payload: payload(27182) });
    call.end();
    const seen = await collected;
    assert.strictEqual(seen.end.code, status.OK);
    assert.deepStrictEqual(seen.messages.map((message) => message.payload.body.length), [314159]);
    check(seen.metadata, seen.end.metadata);
  },
};

async function main() {
  await cases[options.case]();
  console.log("passed");
  while (!(await input.next()).done);
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
