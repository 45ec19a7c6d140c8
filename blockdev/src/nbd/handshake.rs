//! The server's side of the fixed newstyle handshake, as a machine without I/O.
//!
//! Bytes of the client go in, bytes for the client come out; see section "Newstyle negotiation" of
//! the protocol.
//!
//! ```text
//! greeting ──▶ ClientFlags ──▶ Options ──GO, EXPORT_NAME──▶ transmission
//!                                │  ▲ └──ABORT, violation──▶ closed
//!                                └──┘ any other option
//! ```
//!
//! One export is served; it answers to its own name and, as the default export, to the empty one.

use super::wire::{
    self, BASE_ALLOCATION, Fields, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag,
    info, option, option_reply, transmission_flag,
};
use super::{BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX};
use crate::disk::SECTOR_BYTES;

/// Longest data of one option: room for a name and fifteen queries of the longest kind. A client
/// that announces more is turned away before anything is kept.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// Bytes before an option's data: magic, number, length.
const OPTION_HEADER_BYTES: usize = 16;
/// The longest message that [`Handshake::receive`] waits for.
pub const MESSAGE_BYTES_MAX: usize = OPTION_HEADER_BYTES + OPTION_BYTES_MAX;

/// Id of the one metadata context that can be selected.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// What a client is told about the export.
#[derive(Clone, Copy, Debug)]
pub struct ExportDescription<'a> {
    pub name: &'a str,
    pub size_bytes: u64,
    pub is_read_only: bool,
}

impl ExportDescription<'_> {
    fn answers_to(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }

    /// `CAN_MULTI_CONN` holds because a flush of a [`Disk`](crate::disk::Disk) covers every write
    /// answered before it, whichever connection it came by. `SEND_FAST_ZERO` is left out: a disk
    /// doesn't tell in advance whether zeroing is fast.
    pub(super) fn transmission_flags(&self, structured_replies: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
        flags |= match self.is_read_only {
            true => flag::READ_ONLY,
            false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES,
        };
        if structured_replies {
            flags |= flag::SEND_DF;
        }
        flags
    }
}

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    pub structured_replies: bool,
    /// The client may ask for block status, and gets the context `base:allocation`.
    pub base_allocation: bool,
}

/// What became of the bytes given to [`Handshake::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not a whole message yet.
    NeedsBytes,
    /// One message of this many bytes was handled; more may follow.
    Handled { bytes: usize },
    /// As `Handled`, and the transmission phase begins after the reply.
    Transmission { bytes: usize, negotiated: Negotiated },
    /// The client ended the handshake. The connection closes after the reply.
    Ended,
}

/// The connection is closed without a reply.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("client flags {0:#x} weren't offered")]
    UnknownClientFlags(u32),
    #[error("{0:#018x} is not the start of an option")]
    NotAnOption(u64),
    #[error("option {option} announces {bytes} bytes of data, more than {OPTION_BYTES_MAX}")]
    OptionTooLong { option: u32, bytes: u32 },
    #[error("no export has the name that EXPORT_NAME asked for")]
    UnknownExport,
}

/// State of one connection's handshake.
#[derive(Debug, Default)]
pub struct Handshake {
    phase: Phase,
    structured_replies: bool,
    /// Name under which the client selected `base:allocation`; holds only for that name.
    base_allocation_for: Option<String>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    ClientFlags,
    Options {
        no_zeroes: bool,
    },
}

/// One option, its data complete.
struct Request<'a> {
    option: u32,
    data: &'a [u8],
}

impl Handshake {
    /// What the server sends first.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        bytes[16..18].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Handles the message at the start of `input`, if it is whole, and appends the answer to
    /// `reply`.
    pub fn receive(
        &mut self,
        input: &[u8],
        export: &ExportDescription<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Progress, Violation> {
        match self.phase {
            Phase::ClientFlags => self.receive_client_flags(input),
            Phase::Options { no_zeroes } => self.receive_option(input, no_zeroes, export, reply),
        }
    }

    fn receive_client_flags(&mut self, input: &[u8]) -> Result<Progress, Violation> {
        let Some(flags) = Fields(input).u32() else { return Ok(Progress::NeedsBytes) };
        let offered = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !offered != 0 {
            return Err(Violation::UnknownClientFlags(flags));
        }
        let no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.phase = Phase::Options { no_zeroes };
        Ok(Progress::Handled { bytes: 4 })
    }

    fn receive_option(
        &mut self,
        input: &[u8],
        no_zeroes: bool,
        export: &ExportDescription<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Progress, Violation> {
        let mut fields = Fields(input);
        match fields.u64() {
            None => return Ok(Progress::NeedsBytes),
            Some(OPTION_MAGIC) => {}
            Some(other) => return Err(Violation::NotAnOption(other)),
        }
        let (Some(option), Some(length)) = (fields.u32(), fields.u32()) else {
            return Ok(Progress::NeedsBytes);
        };
        if length as usize > OPTION_BYTES_MAX {
            return Err(Violation::OptionTooLong { option, bytes: length });
        }
        let Some(data) = fields.bytes(length as usize) else { return Ok(Progress::NeedsBytes) };
        let bytes = OPTION_HEADER_BYTES + data.len();
        let request = Request { option, data };
        match option {
            option::EXPORT_NAME => {
                self.export_name(data, no_zeroes, export, reply)?;
                Ok(self.begin_transmission(bytes, data))
            }
            option::GO | option::INFO => {
                let name = self.describe(&request, export, reply);
                Ok(match name {
                    Some(name) if option == option::GO => {
                        self.begin_transmission(bytes, name.as_bytes())
                    }
                    _ => Progress::Handled { bytes },
                })
            }
            option::ABORT => {
                request.reply(reply, option_reply::ACK, &[]);
                Ok(Progress::Ended)
            }
            _ => {
                self.haggle(&request, export, reply);
                Ok(Progress::Handled { bytes })
            }
        }
    }

    fn begin_transmission(&self, bytes: usize, name: &[u8]) -> Progress {
        let selected_for = self.base_allocation_for.as_deref();
        Progress::Transmission {
            bytes,
            negotiated: Negotiated {
                structured_replies: self.structured_replies,
                base_allocation: selected_for.is_some_and(|chosen| chosen.as_bytes() == name),
            },
        }
    }

    /// The old way to begin: it has no room for an error, so the connection is closed instead.
    fn export_name(
        &self,
        name: &[u8],
        no_zeroes: bool,
        export: &ExportDescription<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        if !str::from_utf8(name).is_ok_and(|name| export.answers_to(name)) {
            return Err(Violation::UnknownExport);
        }
        reply.extend(export.size_bytes.to_be_bytes());
        reply.extend(export.transmission_flags(self.structured_replies).to_be_bytes());
        if !no_zeroes {
            reply.extend([0; 124]);
        }
        Ok(())
    }

    /// Options that leave the connection in the handshake.
    fn haggle(&mut self, request: &Request<'_>, export: &ExportDescription<'_>, to: &mut Vec<u8>) {
        match request.option {
            option::LIST if request.data.is_empty() => {
                request.reply(to, option_reply::SERVER, &string(export.name));
                request.reply(to, option_reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if request.data.is_empty() => {
                self.structured_replies = true;
                request.reply(to, option_reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                request.refuse(to, option_reply::ERR_INVALID, "this option has no data");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(request, export, to);
            }
            option::STARTTLS => {
                request.refuse(to, option_reply::ERR_POLICY, "this server has no TLS");
            }
            _ => request.refuse(to, option_reply::ERR_UNSUP, "unknown option"),
        }
    }

    /// Answers `INFO` and `GO`. Returns the name that was asked for if the export has it.
    fn describe<'a>(
        &self,
        request: &Request<'a>,
        export: &ExportDescription<'_>,
        to: &mut Vec<u8>,
    ) -> Option<&'a str> {
        let Some((name, wanted)) = parse_info_request(request.data) else {
            request.refuse(to, option_reply::ERR_INVALID, "malformed request for information");
            return None;
        };
        if !export.answers_to(name) {
            request.refuse(to, option_reply::ERR_UNKNOWN, "no export has this name");
            return None;
        }
        let mut item = Vec::with_capacity(16);
        item.extend(info::EXPORT.to_be_bytes());
        item.extend(export.size_bytes.to_be_bytes());
        item.extend(export.transmission_flags(self.structured_replies).to_be_bytes());
        request.reply(to, option_reply::INFO, &item);

        // Sent unasked too: a client that knows it can keep to it.
        item.clear();
        item.extend(info::BLOCK_SIZE.to_be_bytes());
        item.extend((SECTOR_BYTES as u32).to_be_bytes());
        item.extend(BLOCK_BYTES_PREFERRED.to_be_bytes());
        item.extend(PAYLOAD_BYTES_MAX.to_be_bytes());
        request.reply(to, option_reply::INFO, &item);

        if wanted.chunks_exact(2).any(|kind| kind == info::NAME.to_be_bytes()) {
            item.clear();
            item.extend(info::NAME.to_be_bytes());
            item.extend(export.name.as_bytes());
            request.reply(to, option_reply::INFO, &item);
        }
        request.reply(to, option_reply::ACK, &[]);
        Some(name)
    }

    fn meta_context(
        &mut self,
        request: &Request<'_>,
        export: &ExportDescription<'_>,
        to: &mut Vec<u8>,
    ) {
        let selects = request.option == option::SET_META_CONTEXT;
        if selects {
            // A new selection replaces the old one even when it fails.
            self.base_allocation_for = None;
        }
        if !self.structured_replies {
            let reason = "metadata contexts need structured replies";
            return request.refuse(to, option_reply::ERR_INVALID, reason);
        }
        let Some(query) = MetaQuery::parse(request.data) else {
            return request.refuse(to, option_reply::ERR_INVALID, "malformed query");
        };
        if !export.answers_to(query.export_name) {
            return request.refuse(to, option_reply::ERR_UNKNOWN, "no export has this name");
        }
        let matches = match selects {
            true => query.names_allocation,
            false => query.names_allocation || query.is_wildcard,
        };
        if matches {
            // In a list the id is reserved.
            let id = if selects { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend(BASE_ALLOCATION.as_bytes());
            request.reply(to, option_reply::META_CONTEXT, &context);
        }
        if selects && matches {
            self.base_allocation_for = Some(query.export_name.to_owned());
        }
        request.reply(to, option_reply::ACK, &[]);
    }
}

impl Request<'_> {
    fn reply(&self, to: &mut Vec<u8>, kind: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).expect("a reply is a name and a few numbers");
        to.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        to.extend(self.option.to_be_bytes());
        to.extend(kind.to_be_bytes());
        to.extend(length.to_be_bytes());
        to.extend(data);
    }

    fn refuse(&self, to: &mut Vec<u8>, kind: u32, reason: &str) {
        self.reply(to, kind, reason.as_bytes());
    }
}

fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("names are at most 4096 bytes");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// The name and the list of wanted items, two bytes each.
fn parse_info_request(data: &[u8]) -> Option<(&str, &[u8])> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = fields.bytes(usize::from(count) * 2)?;
    fields.is_empty().then_some((name, wanted))
}

/// What a client asks about metadata contexts.
struct MetaQuery<'a> {
    export_name: &'a str,
    /// One of the queries is `base:allocation`.
    names_allocation: bool,
    /// No query, which asks for everything, or `base:`. Both select nothing.
    is_wildcard: bool,
}

impl<'a> MetaQuery<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(data);
        let export_name = fields.string()?;
        let count = fields.u32()?;
        let mut found = Self { export_name, names_allocation: false, is_wildcard: count == 0 };
        for _ in 0..count {
            // Ends at the data's end at the latest, whatever the count says.
            match fields.string()? {
                wire::BASE_ALLOCATION => found.names_allocation = true,
                "base:" => found.is_wildcard = true,
                _ => {} // other namespaces and leaf names are ignored, as the protocol demands
            }
        }
        fields.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPORT: ExportDescription<'static> =
        ExportDescription { name: "v1", size_bytes: 1 << 20, is_read_only: false };

    fn option(option: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn go(name: &str) -> Vec<u8> {
        option(option::GO, &[&string(name)[..], &[0, 1, 0, 3]].concat())
    }

    fn meta(number: u32, name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = string(name);
        data.extend((queries.len() as u32).to_be_bytes());
        data.extend(queries.iter().flat_map(|query| string(query)));
        option(number, &data)
    }

    /// Past the client flags.
    fn haggling() -> Handshake {
        let mut handshake = Handshake::default();
        let progress = handshake.receive(&[0, 0, 0, 3], &EXPORT, &mut Vec::new());
        assert_eq!(progress, Ok(Progress::Handled { bytes: 4 }));
        handshake
    }

    /// Kinds of the replies to one message, and how it ended.
    fn answer(handshake: &mut Handshake, message: &[u8]) -> (Vec<u32>, Progress) {
        let mut reply = Vec::new();
        let progress = handshake.receive(message, &EXPORT, &mut reply).expect("no violation");
        (kinds(&reply), progress)
    }

    fn kinds(reply: &[u8]) -> Vec<u32> {
        let mut fields = Fields(reply);
        let mut kinds = Vec::new();
        while !fields.is_empty() {
            assert_eq!(fields.u64(), Some(OPTION_REPLY_MAGIC));
            fields.u32().expect("the option");
            kinds.push(fields.u32().expect("the kind"));
            let length = fields.u32().expect("the length") as usize;
            fields.bytes(length).expect("the data");
        }
        kinds
    }

    #[test]
    fn every_option_gets_the_reply_that_the_protocol_names() {
        use option_reply as reply;
        let mut handshake = haggling();
        let cases: &[(Vec<u8>, &[u32])] = &[
            (option(99, b"whatever"), &[reply::ERR_UNSUP]),
            (option(11, &[]), &[reply::ERR_UNSUP]), // extended headers
            (option(option::STARTTLS, &[]), &[reply::ERR_POLICY]),
            (option(option::LIST, &[]), &[reply::SERVER, reply::ACK]),
            (option(option::LIST, &[1]), &[reply::ERR_INVALID]),
            (meta(option::SET_META_CONTEXT, "v1", &[BASE_ALLOCATION]), &[reply::ERR_INVALID]),
            (option(option::STRUCTURED_REPLY, &[0]), &[reply::ERR_INVALID]),
            (option(option::STRUCTURED_REPLY, &[]), &[reply::ACK]),
            (meta(option::LIST_META_CONTEXT, "v1", &[]), &[reply::META_CONTEXT, reply::ACK]),
            (meta(option::LIST_META_CONTEXT, "", &["base:"]), &[reply::META_CONTEXT, reply::ACK]),
            (meta(option::LIST_META_CONTEXT, "v1", &["x-a:b"]), &[reply::ACK]),
            (meta(option::SET_META_CONTEXT, "v1", &["base:"]), &[reply::ACK]),
            (meta(option::SET_META_CONTEXT, "v2", &[BASE_ALLOCATION]), &[reply::ERR_UNKNOWN]),
            (go("v2"), &[reply::ERR_UNKNOWN]),
            (option(option::GO, &[0, 0, 0, 9]), &[reply::ERR_INVALID]),
            (
                option(option::INFO, &[&string("v1")[..], &[0, 1, 0, 1]].concat()),
                &[reply::INFO, reply::INFO, reply::INFO, reply::ACK],
            ),
        ];
        for (message, expected) in cases {
            let (kinds, progress) = answer(&mut handshake, message);
            assert_eq!(kinds, *expected, "{message:?}");
            assert_eq!(progress, Progress::Handled { bytes: message.len() });
        }
        let (kinds, progress) = answer(&mut handshake, &option(option::ABORT, b"ignored"));
        assert_eq!((kinds, progress), (vec![reply::ACK], Progress::Ended));
    }

    /// Block status for an export under another name would describe the wrong disk.
    #[test]
    fn a_metadata_context_holds_only_for_the_name_it_was_selected_for() {
        for (selected, entered, failed_later, expected) in
            [("v1", "v1", false, true), ("v1", "", false, false), ("v1", "v1", true, false)]
        {
            let mut handshake = haggling();
            answer(&mut handshake, &option(option::STRUCTURED_REPLY, &[]));
            let set = option::SET_META_CONTEXT;
            answer(&mut handshake, &meta(set, selected, &["x-a:b", BASE_ALLOCATION]));
            if failed_later {
                answer(&mut handshake, &option(set, b"malformed"));
            }
            let message = go(entered);
            let negotiated = Negotiated { structured_replies: true, base_allocation: expected };
            let bytes = message.len();
            let (_, progress) = answer(&mut handshake, &message);
            assert_eq!(progress, Progress::Transmission { bytes, negotiated });
        }
    }

    #[test]
    fn the_old_way_in_pads_with_zeroes_unless_told_not_to() {
        for (client_flags, expected) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
            let mut handshake = Handshake::default();
            let mut reply = Vec::new();
            handshake.receive(&[0, 0, 0, client_flags], &EXPORT, &mut reply).expect("known flags");
            let message = option(option::EXPORT_NAME, b"v1");
            handshake.receive(&message, &EXPORT, &mut reply).expect("the name is right");
            assert_eq!(reply.len(), expected);
            assert_eq!(reply[..8], EXPORT.size_bytes.to_be_bytes());
        }
        let wrong = option(option::EXPORT_NAME, b"v2");
        let refused = haggling().receive(&wrong, &EXPORT, &mut Vec::new());
        assert_eq!(refused, Err(Violation::UnknownExport));
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_connection() {
        let mut reply = Vec::new();
        let flags = Handshake::default().receive(&[0, 0, 0, 4], &EXPORT, &mut reply);
        assert_eq!(flags, Err(Violation::UnknownClientFlags(4)));
        let magic = haggling().receive(&[7; 16], &EXPORT, &mut reply);
        assert_eq!(magic, Err(Violation::NotAnOption(0x0707_0707_0707_0707)));
        let mut long = option(option::LIST, &[]);
        long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        let long = haggling().receive(&long, &EXPORT, &mut reply);
        let expected = Violation::OptionTooLong { option: option::LIST, bytes: u32::MAX };
        assert_eq!(long, Err(expected));
        assert!(reply.is_empty());
    }

    /// TCP cuts messages anywhere: a cut one must wait for its rest and change nothing.
    #[test]
    fn every_prefix_of_a_message_waits_for_the_rest() {
        let messages = [
            go("v1"),
            option(option::LIST, &[]),
            meta(option::SET_META_CONTEXT, "v1", &[BASE_ALLOCATION]),
            option(option::EXPORT_NAME, b"v1"),
        ];
        for message in messages {
            for end in 0..message.len() {
                let mut reply = Vec::new();
                let progress = haggling().receive(&message[..end], &EXPORT, &mut reply);
                assert_eq!(progress, Ok(Progress::NeedsBytes));
                assert!(reply.is_empty());
            }
        }
    }

    proptest! {
        /// Lengths and counts inside an option lie; reading past its end would be a panic.
        #[test]
        fn any_option_data_is_answered(
            number in 0_u32..12,
            data in proptest::collection::vec(prop_oneof![Just(0_u8), 0..8_u8, any::<u8>()], 0..64),
        ) {
            let mut handshake = haggling();
            answer(&mut handshake, &option(option::STRUCTURED_REPLY, &[]));
            let mut reply = Vec::new();
            match handshake.receive(&option(number, &data), &EXPORT, &mut reply) {
                Ok(Progress::Transmission { .. }) if number == option::EXPORT_NAME => {}
                Ok(_) => prop_assert!(!kinds(&reply).is_empty()),
                Err(violation) => prop_assert_eq!(violation, Violation::UnknownExport),
            }
        }
    }
}
