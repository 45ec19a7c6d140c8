//! What a client of the NBD server may send.

use ankole_blockdev::nbd::handshake::{
    self, ExportDescription, Handshake, MESSAGE_BYTES_MAX, Negotiated,
};
use ankole_blockdev::nbd::intake::{Event, Intake, Progress, READ_BUFFER_BYTES};
use ankole_blockdev::nbd::request::{Request, Terms};
use ankole_blockdev::nbd::{PAYLOAD_BYTES_MAX, STATUS_BYTES_MAX};

const SIZE_BYTES: u64 = 64 << 20;
/// Room for one request's data at a time, so that taking more shows.
const ROOM_BYTES: u64 = 1 << 20;

/// A whole session: the handshake and, if it ends in the transmission phase, the requests after
/// it. Never panics, waits only for messages that may come, and answers every option with at most
/// a few hundred bytes.
pub fn session(input: &[u8]) {
    let export = ExportDescription { name: "v1", size_bytes: SIZE_BYTES, is_read_only: false };
    let mut handshake = Handshake::default();
    let mut rest = input;
    loop {
        let mut reply = Vec::new();
        let progress = handshake.receive(rest, &export, &mut reply);
        assert!(reply.len() <= 256, "a reply of {} bytes", reply.len());
        match progress {
            Ok(handshake::Progress::Handled { bytes }) => rest = &rest[bytes..],
            Ok(handshake::Progress::Transmission { bytes, negotiated }) => {
                return transmission(&rest[bytes..], negotiated, input.len());
            }
            Ok(handshake::Progress::NeedsBytes) => {
                assert!(rest.len() < MESSAGE_BYTES_MAX, "waits for more than a message may have");
                assert!(reply.is_empty(), "half a message was answered");
                return;
            }
            Ok(handshake::Progress::Ended) | Err(_) => return,
        }
    }
}

/// The transmission phase alone, so that the fuzzer needn't find the way through the handshake.
pub fn requests(input: &[u8]) {
    let Some((&choice, stream)) = input.split_first() else { return };
    let structured_replies = choice & 1 != 0;
    let base_allocation = structured_replies && choice & 2 != 0;
    // Pieces of a length that the input chooses: cuts must not matter.
    let piece = usize::from(choice >> 2) * 97 + 1;
    transmission(stream, Negotiated { structured_replies, base_allocation }, piece);
}

/// Feeds `stream` in pieces. Every request lies within the disk, and no more memory is asked for
/// than there is room.
fn transmission(mut stream: &[u8], negotiated: Negotiated, piece: usize) {
    let terms = Terms { size_bytes: SIZE_BYTES, is_read_only: false, negotiated };
    let mut intake = Intake::new(&[]);
    loop {
        match intake.next(&terms, ROOM_BYTES) {
            Ok(Progress::Event(Event::Request { request, data, .. })) => {
                check(request, data.as_ref().map(|data| data.len() as u64));
            }
            Ok(Progress::Event(Event::Refused { .. })) => {}
            Ok(Progress::NeedsBytes) => {
                let space = intake.space();
                assert!(!space.is_empty(), "a stream that can't go on");
                let most = READ_BUFFER_BYTES.max(ROOM_BYTES as usize);
                assert!(space.len() <= most, "{} bytes were allocated", space.len());
                let count = piece.max(1).min(stream.len()).min(space.len());
                if count == 0 {
                    return;
                }
                space[..count].copy_from_slice(&stream[..count]);
                intake.received(count);
                stream = &stream[count..];
            }
            Ok(Progress::Event(Event::Disconnect) | Progress::NeedsRoom) | Err(_) => return,
        }
    }
}

fn check(request: Request, data_bytes: Option<u64>) {
    assert!(request.memory_bytes() <= ROOM_BYTES, "{request:?} takes more than there is room");
    let at = match request {
        Request::Flush => return,
        Request::Write(at, _) => {
            assert_eq!(data_bytes, Some(at.length_bytes));
            at
        }
        Request::BlockStatus { at, .. } => {
            assert!(at.length_bytes <= STATUS_BYTES_MAX);
            at
        }
        Request::Read(at) => {
            assert!(at.length_bytes <= u64::from(PAYLOAD_BYTES_MAX));
            at
        }
        Request::Trim(at, _) | Request::WriteZeroes(at, _) => at,
    };
    assert!(at.is_within(SIZE_BYTES) && at.is_aligned_to(512) && at.length_bytes > 0, "{at:?}");
}
