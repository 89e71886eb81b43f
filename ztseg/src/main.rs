//! The `ztseg` command; see `ztseg::cli`.

fn main() -> std::process::ExitCode {
    ztseg::cli::main()
}
