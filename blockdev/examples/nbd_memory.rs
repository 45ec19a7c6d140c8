//! Serves a disk in memory on a unix socket, for trying tools and for measuring the protocol.
//!
//! ```text
//! cargo run --release -p ankole-blockdev --example nbd_memory -- /tmp/memory.sock 1024
//! fio --name=try --ioengine=nbd --uri='nbd+unix:///?socket=/tmp/memory.sock' --rw=randread \
//!     --bs=4k --iodepth=32 --runtime=5 --time_based
//! ```

use std::rc::Rc;

use ankole_blockdev::disk::MemoryDisk;
use ankole_blockdev::nbd::{Export, Limits, Listener, serve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(size_mib)) = (arguments.next(), arguments.next()) else {
        return Err("usage: nbd_memory SOCKET SIZE_MIB".into());
    };
    let disk = Rc::new(MemoryDisk::new(size_mib.parse::<u64>()? << 20));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = Listener::bind_unix(path).await?;
        println!("{}", listener.uri());
        let export = Export::new("memory", disk);
        serve(listener, export, Limits::default(), async {
            // Without a handler for Ctrl-C the process just dies of it.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
        .await;
        Ok(())
    })
}
