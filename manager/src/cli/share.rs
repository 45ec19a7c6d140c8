//! `ankole share …`

use clap::Subcommand;

use crate::roles::share::ShareArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ShareCommand {
    /// Serve a directory over NFSv4; needs no server and no volume
    Serve(ShareArgs),
}
