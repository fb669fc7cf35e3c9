//! Fuzzes a whole server with the bytes of one connection.

#![no_main]

mod frames;
mod server;

use std::cell::LazyCell;

use arbitrary::Arbitrary;
use frames::{Frame, Writer};
use libfuzzer_sys::fuzz_target;
use server::{Server, Step};

thread_local! {
    // Shared by all inputs, because starting a server takes longer than a connection.
    static SERVER: LazyCell<Server> = const { LazyCell::new(Server::start) };
}

#[derive(Arbitrary, Debug)]
struct Conversation<'a> {
    has_no_preface: bool,
    acts: Vec<Act<'a>>,
    /// Arbitrary bytes at the end, as from a client of another protocol.
    rest: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Act<'a> {
    Frame(Frame<'a>),
    Wait,
}

fuzz_target!(|conversation: Conversation<'_>| {
    let mut steps = Vec::new();
    let mut writer = Writer::default();
    if !conversation.has_no_preface {
        writer.preface();
    }
    for act in &conversation.acts {
        match act {
            Act::Frame(frame) => writer.frame(frame),
            Act::Wait => steps.extend([Step::Send(writer.take()), Step::Wait]),
        }
    }
    steps.push(Step::Send([&writer.take(), conversation.rest].concat()));
    SERVER.with(|server| server.connection(steps));
});
