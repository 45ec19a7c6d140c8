//! The protocol between an engine and a replica.

use std::rc::Rc;

use ankole_blockdev::disk::Buffer;
use ankole_replica::message::Request;
use ankole_replica::payload::Payload;
use ankole_replica::wire::{self, Frame, HEADER_BYTES, Header};

const BLOCK: usize = 4096;

/// Bytes as they come: nearly always refused, never a panic.
pub fn raw_header(input: &[u8]) {
    if let Some(bytes) = input.first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::decode(bytes)
    {
        assert!(header.meta_bytes <= wire::META_BYTES_MAX);
        assert!(header.data_bytes <= wire::DATA_BYTES_MAX);
    }
}

/// A frame whose checksums are right and whose content is the input's: what a hostile or broken
/// peer can send. What is taken for a message says the same when it is sent on.
pub fn message(input: &[u8]) {
    let Some((fields, meta)) = input.split_at_checked(24) else { return };
    let blocks = usize::from(fields[23] % 3);
    let data = data_of(blocks, fields[22]);
    let meta = with_sums(meta, &data, fields[22]);
    let head = head_of(fields, &meta, data.len());
    let Ok(header) = Header::decode(&head) else { return };
    if let Ok(request) = wire::decode_request(&header, &meta, Buffer::copy_of(&data)) {
        let sent = sent(header.seq, &request);
        let (again, meta, data) = parts_of(&sent);
        let again = wire::decode_request(&again, &meta, data).expect("what we send is a message");
        assert_eq!(bytes_of(&self::sent(header.seq, &again)), bytes_of(&sent));
    }
    if let Ok(reply) = wire::decode_reply(&header, &meta, Buffer::copy_of(&data)) {
        let sent = wire::encode_reply(header.seq, &reply);
        let (again, meta, data) = parts_of(&sent);
        let again = wire::decode_reply(&again, &meta, data).expect("what we send is a message");
        assert_eq!(bytes_of(&wire::encode_reply(header.seq, &again)), bytes_of(&sent));
    }
}

/// What came as one message goes as one.
fn sent(seq: u64, request: &Request<Rc<Payload>>) -> Frame {
    wire::encode_request(seq, request).expect("it isn't longer than what came")
}

/// A frame's first bytes: kind, flags and numbers from `fields`, lengths and checksums as due.
fn head_of(fields: &[u8], meta: &[u8], data_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut head = [0; HEADER_BYTES];
    head[..4].copy_from_slice(&wire::MAGIC);
    head[4] = wire::VERSION;
    head[5] = fields[0];
    head[6] = fields[1];
    head[8..16].copy_from_slice(&7u64.to_le_bytes());
    // Small numbers reach further than random ones: the upper bytes are the input's only if asked.
    let wide = fields[21] & 1 == 1;
    head[16..24].copy_from_slice(&fields[2..10]);
    head[24..32].copy_from_slice(&fields[10..18]);
    if !wide {
        head[18..24].fill(0);
        head[26..32].fill(0);
    }
    head[32..35].copy_from_slice(&fields[18..21]);
    head[36..40].copy_from_slice(&(meta.len() as u32).to_le_bytes());
    head[40..44].copy_from_slice(&(data_bytes as u32).to_le_bytes());
    head[44..48].copy_from_slice(&crc32c::crc32c(meta).to_le_bytes());
    let crc = crc32c::crc32c(&head[..48]);
    head[48..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn data_of(blocks: usize, fill: u8) -> Vec<u8> {
    vec![fill; blocks * BLOCK]
}

/// Half of the time, sums that fit the data, so that blocks and patches get through.
fn with_sums(meta: &[u8], data: &[u8], choice: u8) -> Vec<u8> {
    let sums = data.chunks_exact(BLOCK).map(ankole_replica::checksum::of_block);
    match choice % 4 {
        0 => sums.flat_map(u32::to_le_bytes).collect(),
        1 => {
            let mut patch = vec![0; 36];
            patch[0] = (1u16 << sums.len()).wrapping_sub(1) as u8;
            for sum in sums {
                patch.push(2);
                patch.extend_from_slice(&sum.to_le_bytes());
            }
            patch
        }
        _ => meta.to_vec(),
    }
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    [&frame.head, frame.data()].concat()
}

fn parts_of(frame: &Frame) -> (Header, Vec<u8>, Buffer) {
    let (head, meta) = frame.head.split_first_chunk::<HEADER_BYTES>().expect("a whole header");
    let header = Header::decode(head).expect("we encoded it");
    (header, meta.to_vec(), Buffer::copy_of(frame.data()))
}

/// What the corpus should contain: one of each message that carries data.
pub fn carries_data(input: &[u8]) -> bool {
    let Some((fields, meta)) = input.split_at_checked(24) else { return false };
    let data = data_of(usize::from(fields[23] % 3), fields[22]);
    let meta = with_sums(meta, &data, fields[22]);
    let head = head_of(fields, &meta, data.len());
    let has_data = |payload: &Rc<Payload>| match &**payload {
        Payload::Blocks(blocks) => !blocks.data.is_empty(),
        Payload::Patch(patch) => !patch.data.is_empty(),
        Payload::Map(_) => false,
    };
    let Ok(header) = Header::decode(&head) else { return false };
    match wire::decode_request(&header, &meta, Buffer::copy_of(&data)) {
        Ok(Request::Write { payload, .. }) => has_data(&payload),
        Ok(Request::Copy { payload, .. }) => has_data(&payload),
        _ => false,
    }
}
