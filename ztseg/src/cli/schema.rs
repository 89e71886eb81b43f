//! `ztseg schema`

use clap::Args;

use super::{Failure, output};
use crate::policy::parse::schema::SCHEMA;

#[derive(Debug, Args)]
pub(super) struct Schema {}

impl Schema {
    #[expect(clippy::unused_self, reason = "as every verb is executed")]
    pub(super) fn execute(self) -> Result<(), Failure> {
        output::print(SCHEMA)
    }
}
