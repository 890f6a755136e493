//! Import mode of a Valkey destination (8.1 and later): nothing expires there by the destination's own clock.
//!
//! A key whose time to live is renewed on the source again and again would end on a destination that lags behind by more than
//! that time, and the renewal would find nothing. With `import-mode yes` the server leaves expiry (and eviction) to the connection that declares
//! itself with CLIENT IMPORT-SOURCE ON; its clients do not see expired keys. What the setting was is kept in a file of the data directory, so that it
//! can be put back also after a crash.

use std::path::{Path, PathBuf};

use super::events::EventLog;
use super::net::{Connection, NetError};
use super::spool::{SpoolError, replace_file};
use crate::rdb::dump::{ServerKind, Target};
use crate::resp::Reply;

/// The destination's import mode, as far as it is ours.
pub struct ImportMode {
    offered: bool,
    /// Exists while we have changed the setting; holds what it was.
    file: PathBuf,
}

impl ImportMode {
    /// For a destination of this kind; nothing is changed yet.
    pub fn new(data_dir: &Path, target: Target) -> Self {
        let offered = target.kind == ServerKind::Valkey && (target.major, target.minor) >= (8, 1);
        ImportMode { offered, file: data_dir.join("import-mode") }
    }

    /// Switches it on, if it is off, and declares this connection. Said in `events` where `said` is set; refusals are no errors.
    pub async fn declare(
        &self,
        connection: &mut Connection,
        events: &EventLog,
        said: bool,
    ) -> Result<(), NetError> {
        if !self.offered {
            return Ok(());
        }
        let refused = match connection.request(&[b"CONFIG", b"GET", b"import-mode"]).await? {
            Reply::Array(pair) if pair.get(1).and_then(Reply::text) == Some("yes") => None,
            Reply::Array(_) => {
                // Noted before it is done: a crash in between puts back what was never changed.
                if let Err(error) = replace_file(&self.file, b"no") {
                    Some(error.to_string())
                } else {
                    match connection.request(&[b"CONFIG", b"SET", b"import-mode", b"yes"]).await? {
                        Reply::Error(error) => Some(error),
                        _ => None,
                    }
                }
            }
            Reply::Error(error) => Some(error),
            other => Some(format!("unexpected answer: {other:?}")),
        };
        let refused = match refused {
            Some(refused) => Some(refused),
            None => match connection.request(&[b"CLIENT", b"IMPORT-SOURCE", b"ON"]).await? {
                Reply::Error(error) => Some(error),
                _ => None,
            },
        };
        let node = format!("writer {}", connection.address);
        match refused {
            _ if !said => {}
            None if self.file.exists() => events.info(&node, "import-mode is set to yes on the destination: until this migration ends for good nothing expires or is evicted there by itself; then it is put back to no"),
            None => events.info(&node, "import-mode is yes on the destination already, and stays so: set it to no there after the migration"),
            Some(refused) => events.warn(&node, format!("import-mode cannot be switched on ({refused}): keys whose time to live is shorter than the lag may end there while the source still renews them; rights +config|get +config|set would cure it")),
        }
        Ok(())
    }

    /// The migration is over: puts the setting back, if we changed it. `last`: no other node of the destination follows.
    pub async fn put_back(
        data_dir: &Path,
        connection: &mut Connection,
        events: &EventLog,
        last: bool,
    ) -> Result<(), NetError> {
        let file = data_dir.join("import-mode");
        if !file.exists() {
            return Ok(());
        }
        let node = format!("writer {}", connection.address);
        match connection.request(&[b"CONFIG", b"SET", b"import-mode", b"no"]).await? {
            Reply::Error(error) => {
                events.error(&node, format!("import-mode could not be put back ({error}): nothing expires on the destination before 'CONFIG SET import-mode no' is done there"));
            }
            _ => events.info(&node, "import-mode is put back to no on the destination"),
        }
        // Another line may have been quicker.
        if let Some(Err(cause)) = last.then(|| std::fs::remove_file(&file))
            && cause.kind() != std::io::ErrorKind::NotFound
        {
            events.warn("", SpoolError { action: "remove", path: file, cause }.to_string());
        }
        Ok(())
    }
}
