//! The standalone of a demo: a child process with a data folder of its own.
//!
//! It ends when its standard input is closed, so it ends also when the demo is killed. However
//! the demo ends, no engine and no replica is left: a standalone that can't end them is killed,
//! another one adopts what is there and ends it, and what even that leaves is killed by pid.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ankole_agent::layout::{Layout, api_address_path, api_socket_path};
use ankole_agent::{LocalSupervisor, Supervisor, kill};
use ankole_api::ApiError;
use ankole_client::Client;

use super::place::Place;
use super::trouble::{Result, Stop, Trouble, failed};

const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a standalone takes to detach everything.
const END_PATIENCE: Duration = Duration::from_secs(45);

pub(super) struct Server {
    child: Child,
    data: PathBuf,
    program: PathBuf,
    client: Arc<Client>,
    stop: Stop,
    /// It has ended and left nothing.
    is_over: bool,
}

impl Server {
    /// With one disk per replica.
    pub(super) fn start(place: &Place, replicas: u8, program: &Path, stop: &Stop) -> Result<Self> {
        let data = place.data();
        let log_path = place.join("standalone.log");
        let log = File::create(&log_path).map_err(failed("make", &log_path))?;
        let mut command = command(&data, program);
        for number in 1..=replicas {
            command.arg("--disk").arg(place.join(&format!("disk{number}")));
        }
        let child = command
            .env("XDG_RUNTIME_DIR", place.root())
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(failed("start", program))?;
        let client = Arc::new(Client::local(api_socket_path(&data)));
        let (program, stop) = (program.to_owned(), stop.clone());
        let mut server = Self { child, data, program, client, stop, is_over: false };
        server.wait_until_it_listens(&log_path)?;
        // Only now it is known where: with a long path its sockets lie elsewhere.
        server.client = Arc::new(Client::local(api_socket_path(&server.data)));
        Ok(server)
    }

    fn wait_until_it_listens(&mut self, log: &Path) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            self.stop.pause()?;
            if api_address_path(&self.data).exists() {
                return Ok(());
            }
            let ended = self.child.try_wait().map_err(failed("wait for", &self.program))?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it says nothing");
                return Err(
                    ApiError::failed(format!("the standalone doesn't start: {last}")).into()
                );
            }
        }
    }

    /// Asks the API. A demo that shall end doesn't wait for the answer.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Client) -> std::result::Result<T, ApiError> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.client);
        let (send, receive) = mpsc::channel();
        thread::spawn(move || send.send(question(&client)));
        loop {
            match receive.recv_timeout(Stop::LOOK) {
                Ok(answer) => return Ok(answer?),
                Err(mpsc::RecvTimeoutError::Timeout) => self.stop.check()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(ApiError::failed("a question to the API ended early").into());
                }
            }
        }
    }

    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// Detaches everything, in order.
    pub(super) fn end(mut self) -> Result<()> {
        self.finish().map_err(|error| {
            let path = self.data.clone();
            Trouble::Io { what: "end the standalone of", path, source: error }
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.is_over {
            return Ok(());
        }
        self.is_over = true;
        drop(self.child.stdin.take());
        let ended = wait(&mut self.child, END_PATIENCE, || self.stop.in_haste())?;
        if ended.is_some_and(|status| status.success()) && !has_processes(&self.data) {
            return Ok(());
        }
        if ended.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        end_leftover(&self.data, &self.program)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::error!(data = %self.data.display(), %error, "end the demo's processes");
        }
    }
}

/// In a process group of its own: a Ctrl-C is ours to answer.
fn command(data: &Path, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["standalone", "--listen", "127.0.0.1:0", "--until-stdin-closes", "--data"])
        .arg(data)
        .env_remove("ANKOLE_TOKEN")
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Ends what a standalone that isn't there any more has left running.
pub(super) fn end_leftover(data: &Path, program: &Path) -> io::Result<()> {
    if !has_processes(data) {
        return Ok(());
    }
    // It adopts them and detaches in order, devices included.
    let mut child = command(data, program).stdin(Stdio::null()).spawn()?;
    let ended = wait(&mut child, END_PATIENCE, || false)?;
    if ended.is_none() {
        child.kill()?;
        child.wait()?;
    }
    if has_processes(data) {
        let layout = Layout::prepare(data, &[], data).map_err(io::Error::other)?;
        let _lock = layout.lock().map_err(io::Error::other)?;
        let supervisor = LocalSupervisor::open(&layout.run(), &layout.socket_folders())
            .map_err(io::Error::other)?;
        kill::all(&supervisor);
        if !supervisor.list().is_empty() {
            return Err(io::Error::other("a killed process doesn't end"));
        }
    }
    Ok(())
}

/// By the pid files; the process of one may have ended.
fn has_processes(data: &Path) -> bool {
    let files = fs::read_dir(data.join("run")).into_iter().flatten();
    let mut paths = files.filter_map(|entry| Some(entry.ok()?.path()));
    paths.any(|path| path.extension().is_some_and(|extension| extension == "process"))
}

/// None if it runs still, or there is no time to wait.
pub(super) fn wait(
    child: &mut Child,
    patience: Duration,
    hurry: impl Fn() -> bool,
) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        let ended = child.try_wait()?;
        if ended.is_some() || hurry() || Instant::now() > deadline {
            return Ok(ended);
        }
        thread::sleep(Stop::LOOK);
    }
}
