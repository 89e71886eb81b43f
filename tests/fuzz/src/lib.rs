//! What must hold for any input, one module a fuzz target. `ztseg/tests/corpus.rs` compiles these
//! files too, and replays the corpus.

pub mod event;
pub mod packet;
pub mod policy;
