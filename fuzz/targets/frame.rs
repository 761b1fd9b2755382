//! A WebSocket message as any peer may send it: walked, routed, reassembled, and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshdp::proto::wire::data;
use meshdp::proto::wire::frame::{Frame, FrameHeader, FrameType, Frames, HEADER_LEN, write_frame};
use meshdp::proto::wire::reassembly::{Message, Reassembler, write_control};

/// Small, so that the fuzzer reaches it.
const LIMIT: usize = 1 << 16;

fuzz_target!(|message: &[u8]| {
    let mut reassembler = Reassembler::with_limit(LIMIT);
    let mut walked = 0;
    for frame in Frames::new(message) {
        let Ok(frame) = frame else { return };
        walked += frame.header.frame_len();
        write_again(&frame);
        inspect(&frame);
        let whole = match reassembler.push(frame) {
            Ok(Some(whole)) => whole,
            Ok(None) => continue,
            Err(_) => return,
        };
        if whole.kind.is_control() {
            assert!(whole.payload.len() <= LIMIT);
            fragment_again(&whole);
        }
        let _ = reassembler.acknowledge(&whole);
    }
    assert_eq!(walked, message.len(), "a message without error is frames and nothing else");
});

fn write_again(frame: &Frame<'_>) {
    let mut bytes = Vec::new();
    write_frame(frame.header.kind, frame.header.flags, frame.payload(), &mut bytes).expect("it was parsed");
    assert_eq!(FrameHeader::parse(&bytes), Ok(frame.header));
    assert_eq!(&bytes[HEADER_LEN..], frame.payload());
}

fn fragment_again(whole: &Message) {
    let mut bytes = Vec::new();
    write_control(whole.kind, whole.flags, &whole.payload, &mut bytes).expect("it came out of one");
    let mut reassembler = Reassembler::with_limit(LIMIT);
    let again: Vec<Message> = Frames::new(&bytes)
        .filter_map(|frame| reassembler.push(frame.expect("we wrote it")).expect("within the limit"))
        .collect();
    assert_eq!(again.as_slice(), std::slice::from_ref(whole));
}

fn inspect(frame: &Frame<'_>) {
    let bytes = frame.bytes;
    if let Ok(route) = data::route(bytes) {
        assert_eq!(route.to_bytes(), bytes[HEADER_LEN..HEADER_LEN + data::ROUTE_LEN]);
    }
    if let Ok(nonce) = data::Nonce::of_frame(bytes) {
        assert_eq!(nonce.to_bytes(), bytes[data::AAD_LEN..data::DATA_HEADROOM]);
    }
    if frame.header.kind == FrameType::Via
        && let Ok((_, inner)) = data::split_via(frame.payload())
    {
        for inner in Frames::new(inner) {
            let Ok(inner) = inner else { return };
            let _ = data::route(inner.bytes);
        }
    }
}
