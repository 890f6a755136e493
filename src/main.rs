//! The program; everything is in the library.

fn main() -> std::process::ExitCode {
    shakedeck::app::run(shakedeck::cli::Command::parse())
}
