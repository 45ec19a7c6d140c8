//! An account of tgtd, told over its own socket: `tgtadm` takes a secret as an argument only, and
//! anybody on the node can read the arguments of a program while it runs.
//!
//! ```text
//! request   0 u32 mode, u32 operation, [u8; 64] driver, u32 length of request and text, i32 target
//!          80 u64 session, u64 unit, u32 connection, host, kind of device, direction, pack, force
//!         120 text: user=NAME,password=SECRET
//! answer    0 u32 error, u32 length of answer and text                 all in the machine's order
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const REQUEST_BYTES: usize = 120;
const ANSWER_BYTES: usize = 8;
const MODE_ACCOUNT: u32 = 7;
const OPERATION_NEW: u32 = 0;
const DRIVER: &[u8] = b"iscsi";

/// Makes the account with the tgtd that listens at `socket`.
pub(super) fn make(socket: &Path, user: &str, secret: &str, patience: Duration) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&request(user, secret))?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer)?;
    match u32::from_ne_bytes(answer[..4].try_into().expect("it has 4 bytes")) {
        0 => Ok(()),
        error => Err(io::Error::other(format!("tgtd refused the account with its error {error}"))),
    }
}

fn request(user: &str, secret: &str) -> Vec<u8> {
    let text = format!("user={user},password={secret}\0");
    let length = u32::try_from(REQUEST_BYTES + text.len()).expect("names and secrets are short");
    let mut request = Vec::with_capacity(REQUEST_BYTES + text.len());
    request.extend_from_slice(&MODE_ACCOUNT.to_ne_bytes());
    request.extend_from_slice(&OPERATION_NEW.to_ne_bytes());
    request.extend_from_slice(DRIVER);
    request.resize(8 + 64, 0);
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&(-1_i32).to_ne_bytes()); // no target
    request.extend_from_slice(&0_u64.to_ne_bytes());
    request.extend_from_slice(&(-1_i64).to_ne_bytes()); // no unit
    request.resize(REQUEST_BYTES, 0);
    request.extend_from_slice(text.as_bytes());
    request
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What the real program sends for the same account.
    #[test]
    fn requires_tgtadm_the_request_is_the_one_of_tgtadm() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("c.0")).unwrap();
        let mut command = super::super::command::command("tgtadm");
        command.args(["--control-port", "0", "--lld", "iscsi", "--mode", "account", "--op", "new"]);
        command.args(["--user", "ankole", "--password", "0123456789abcdef"]);
        let spawned = command.env("TGT_IPC_SOCKET", folder.path().join("c")).spawn();
        let mut tgtadm = match spawned {
            Ok(tgtadm) => tgtadm,
            Err(error) => return eprintln!("SKIPPED: tgtadm: {error} (apt-get install tgt)"),
        };
        let (mut stream, _) = listener.accept().unwrap();
        let ours = request("ankole", "0123456789abcdef");
        let mut theirs = vec![0; ours.len()];
        stream.read_exact(&mut theirs).unwrap();
        stream.write_all(&[0, 0, 0, 0, 8, 0, 0, 0]).unwrap();
        assert!(tgtadm.wait().unwrap().success());
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0, "and nothing more");
        assert_eq!(theirs, ours);
    }

    #[test]
    fn an_account_that_is_refused_is_an_error_without_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("c.0");
        let listener = UnixListener::bind(&socket).unwrap();
        let tgtd = std::thread::spawn(move || {
            for error in [0_u32, 7] {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; REQUEST_BYTES]).unwrap();
                let answer = [error.to_ne_bytes(), 8_u32.to_ne_bytes()].concat();
                stream.write_all(&answer).unwrap();
            }
        });
        let make = || make(&socket, "ankole", "geheim", Duration::from_secs(60));
        make().unwrap();
        let refused = make().unwrap_err().to_string();
        assert!(refused.contains("error 7") && !refused.contains("geheim"), "{refused}");
        tgtd.join().unwrap();
        assert!(make().is_err(), "nobody is there");
    }
}
