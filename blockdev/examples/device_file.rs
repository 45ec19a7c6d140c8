//! Serves a file as a block device, /dev/ublkbN, /dev/nbdN or /dev/sdX.
//!
//! ```text
//! device_file DRIVER FILE SIZE_MIB [--id N] [--recover] [--volume NAME]
//!                                                SIGTERM takes the device away,
//!                                                SIGHUP leaves it to the next server,
//!                                                SIGUSR1 doubles the disk and the device
//! device_file DRIVER --check                     what this kernel offers
//! device_file DRIVER --stop N FILE                  stops a device whose server doesn't come back
//! ```
//!
//! DRIVER is ublk, nbd or tgt, for which N is the port, and FILE.nbd the socket. With a file in /dev/shm this is a memory disk that outlives its server,
//! which is what the proof of recovery in ci/vm/tests/devices needs.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use ankole_blockdev::device::{self, Driver, Origin, Volume};
use ankole_blockdev::disk::{Allocation, Buffer, Disk, Durability, Extent, Hold};
use ankole_blockdev::nbd::{self, Export, Limits, Listener};
use ankole_blockdev::{kernel_nbd, namespace, tgt, ublk};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: device_file ublk|nbd|tgt \
    {FILE SIZE_MIB [--id N] [--recover] [--volume NAME] | --check | --stop N FILE}";
/// Whose the device is, unless told otherwise.
const VOLUME: &str = "file";

/// A file; its calls block, which is good enough for a file in memory.
struct FileDisk {
    file: File,
    size_bytes: Cell<u64>,
}

impl FileDisk {
    fn write_all(&self, at: Extent, bytes: &[u8], durability: Durability) -> io::Result<()> {
        self.file.write_all_at(bytes, at.offset_bytes)?;
        if durability == Durability::ForcedUnitAccess {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.get()
    }

    async fn read(&self, at: Extent, mut into: Buffer) -> (io::Result<Hold>, Buffer) {
        let result = self.file.read_exact_at(&mut into, at.offset_bytes);
        (result.map(|()| Hold::none()), into)
    }

    async fn write(&self, at: Extent, from: Buffer, durability: Durability) -> io::Result<Hold> {
        self.write_all(at, &from, durability).map(|()| Hold::none())
    }

    async fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    async fn trim(&self, at: Extent) -> io::Result<Hold> {
        self.write_zeroes(at, Durability::Volatile).await
    }

    async fn write_zeroes(&self, at: Extent, durability: Durability) -> io::Result<Hold> {
        const PIECE_BYTES: u64 = 1 << 20;
        let zeroes = Buffer::zeroed(PIECE_BYTES.min(at.length_bytes) as usize);
        for offset_bytes in (at.offset_bytes..at.end_bytes()).step_by(PIECE_BYTES as usize) {
            let length_bytes = PIECE_BYTES.min(at.end_bytes() - offset_bytes);
            let piece = Extent { offset_bytes, length_bytes };
            self.write_all(piece, &zeroes[..length_bytes as usize], durability)?;
        }
        Ok(Hold::none())
    }

    async fn extents(&self, at: Extent) -> io::Result<Vec<(Extent, Allocation)>> {
        Ok(vec![(at, Allocation::Data)])
    }

    async fn resize(&self, size_bytes: u64) -> io::Result<()> {
        if size_bytes < self.size_bytes.get() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.file.set_len(size_bytes)?;
        self.size_bytes.set(size_bytes);
        Ok(())
    }
}

struct Arguments {
    file: String,
    size_bytes: u64,
    origin: Origin,
    volume: String,
}

fn parse(words: &[String]) -> Option<Arguments> {
    let [file, size_mib, flags @ ..] = words else { return None };
    let size_bytes = size_mib.parse::<u64>().ok()?.checked_mul(1 << 20)?;
    let (mut id, mut recover, mut volume, mut flags) = (None, false, VOLUME, flags.iter());
    while let Some(flag) = flags.next() {
        match flag.as_str() {
            "--id" => id = Some(flags.next()?.parse().ok()?),
            "--recover" => recover = true,
            "--volume" => volume = flags.next()?,
            _ => return None,
        }
    }
    let origin = match (recover, id) {
        (true, id) => Origin::Recovery { id: id? },
        (false, id) => Origin::New { id },
    };
    Some(Arguments { file: file.clone(), size_bytes, origin, volume: volume.to_owned() })
}

type Failure = Box<dyn std::error::Error>;

async fn serve(driver: Driver, arguments: Arguments) -> Result<(), Failure> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&arguments.file)
        .map_err(|error| format!("{}: {error}", arguments.file))?;
    file.set_len(arguments.size_bytes)?;
    let disk = Rc::new(FileDisk { file, size_bytes: Cell::new(arguments.size_bytes) });
    let mut stop = signal(SignalKind::terminate())?;
    let mut leave = signal(SignalKind::hangup())?;
    let mut grow = signal(SignalKind::user_defined1())?;
    let socket = socket(&arguments.file);
    if driver == Driver::Tgt {
        let listener = Listener::bind_unix(&socket).await?;
        let export = Export::new(arguments.volume.clone(), disk.clone());
        let serving = nbd::serve(listener, export, Limits::default(), std::future::pending());
        tokio::task::spawn_local(serving);
    }
    let volume = Volume { identity: &arguments.volume, socket: &socket };
    let mut device = device::serve(driver, disk.clone(), arguments.origin, volume).await?;
    println!("{}", device.path().display());
    loop {
        tokio::select! {
            _ = stop.recv() => match device.stop().await {
                Ok(()) => return Ok(()),
                Err((still_served, error)) => {
                    report(&error);
                    device = still_served;
                }
            },
            _ = grow.recv() => {
                disk.resize(2 * disk.size_bytes()).await?;
                if let Err(error) = device.resize(disk.size_bytes()).await {
                    report(&error);
                }
            }
            _ = leave.recv() => {
                device.hand_over().await;
                return Ok(());
            }
            reason = device.ended() => return Err(format!("the device has ended: {reason:?}").into()),
        }
    }
}

fn socket(file: &str) -> PathBuf {
    PathBuf::from(format!("{file}.nbd"))
}

fn run(words: &[String]) -> Result<(), Failure> {
    let [driver, words @ ..] = words else { return Err(USAGE.into()) };
    let driver: Driver = driver.parse()?;
    match (words, driver) {
        ([flag], Driver::Ublk) if flag == "--check" => {
            let features = ublk::is_available()?;
            println!("features {:#x}, resize {}", features.bits(), features.can_resize());
            Ok(())
        }
        ([flag], Driver::Nbd) if flag == "--check" => {
            kernel_nbd::is_available()?;
            println!("resize true");
            Ok(())
        }
        ([flag], Driver::Tgt) if flag == "--check" => {
            tgt::is_available()?;
            println!("resize true");
            Ok(())
        }
        ([flag, id, file], _) if flag == "--stop" => {
            let volume = Volume { identity: VOLUME, socket: &socket(file) };
            Ok(device::stop(driver, id.parse()?, volume)?)
        }
        _ => {
            let arguments = parse(words).ok_or(USAGE)?;
            namespace::enter_own()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, serve(driver, arguments))
        }
    }
}

fn report(error: &dyn std::error::Error) {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: String = causes.map(|cause| format!(": {cause}")).collect();
    eprintln!("device_file: {error}{causes}");
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}
