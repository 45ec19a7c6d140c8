//! `ankole demo`: the main job, start to end, on this machine.

use std::path::PathBuf;

use crate::api::size::VolumeSize;

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Where to work [default: a new folder in the system's temporary folder]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Size of the volume
    #[arg(long, default_value = "1GiB", value_parser = VolumeSize::parse)]
    pub size: VolumeSize,
    #[arg(long, default_value_t = 3)]
    pub replicas: u8,
    /// Leave everything in place at the end
    #[arg(long)]
    pub keep: bool,
}

pub fn run(_args: DemoArgs) -> anyhow::Result<()> {
    anyhow::bail!("the demo isn't built yet")
}
