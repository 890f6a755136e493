//! Runs the operator's executables at the moments of a cutover.
//!
//! They are told where things stand by `SHAKEDECK_…` variables and as one JSON object on stdin; never a password. What
//! they print becomes events: escaped, and no more than [`MAX_LINES`] of it. A hook is a process group of its own, so
//! that ending it ends what it started too.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::cutover::Hook;
use crate::engine::events::EventLog;
use crate::format;

/// Lines of a hook's output that become events.
const MAX_LINES: usize = 20;
/// Bytes of its output that are looked at.
const MAX_OUTPUT: u64 = 16 * 1024;

/// What a hook is told.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Context {
    /// The moment.
    pub hook: &'static str,
    /// Names the migration.
    pub run_id: String,
    /// The address that clients leave.
    pub source: String,
    /// The address that they go to.
    pub destination: String,
    /// Data directory of the run.
    pub data_dir: String,
    /// Why it went back (`on_abort`).
    pub reason: Option<String>,
    /// Offset of each source master at the fence, and what the destination has confirmed.
    pub nodes: Vec<NodeContext>,
}

/// One source master, for a hook.
#[derive(Debug, Clone, Serialize)]
pub struct NodeContext {
    /// Its address.
    pub address: String,
    /// Its offset, read after the fence.
    pub fenced_offset: Option<u64>,
    /// What the destination has confirmed.
    pub applied_offset: u64,
}

/// Runs one hook to its end. The error is the reason of a veto in words.
pub async fn run(path: &Path, context: &Context, limit: Duration, events: &EventLog) -> Result<(), String> {
    let hook = context.hook;
    let name = path.display();
    let nodes: Vec<String> = context
        .nodes
        .iter()
        .map(|node| {
            let fenced = node.fenced_offset.map_or("-".into(), |offset| offset.to_string());
            format!("{}={fenced}", node.address)
        })
        .collect();
    let mut child = Command::new(path)
        .env("SHAKEDECK_HOOK", hook)
        .env("SHAKEDECK_RUN_ID", &context.run_id)
        .env("SHAKEDECK_SOURCE", &context.source)
        .env("SHAKEDECK_DESTINATION", &context.destination)
        .env("SHAKEDECK_DATA_DIR", &context.data_dir)
        .env("SHAKEDECK_REASON", context.reason.as_deref().unwrap_or_default())
        .env("SHAKEDECK_OFFSETS", nodes.join(","))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("hook {hook} '{name}' cannot be started: {error}"))?;
    // Ends the whole group, also when the cutover is aborted while the hook runs and this future is dropped.
    let _group = Group(child.id());
    let input = serde_json::to_vec(context).unwrap_or_default();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talking = async {
        if let Some(mut stdin) = stdin {
            // A hook that does not read its input has closed it: no harm.
            let _ = stdin.write_all(&input).await;
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let reading = async {
            tokio::join!(read_some(stdout, &mut out), read_some(stderr, &mut err));
        };
        let (status, ()) = tokio::join!(child.wait(), reading);
        out.push(b'\n');
        out.extend_from_slice(&err);
        (status, out)
    };
    let (status, output) = match timeout(limit, talking).await {
        Ok((status, output)) => (status, output),
        Err(_) => {
            return Err(format!(
                "hook {hook} '{name}' did not end within {}",
                format::spoken_duration(limit.as_secs_f64())
            ));
        }
    };
    let text = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in lines.iter().take(MAX_LINES) {
        events.info("", format!("hook {hook}: {}", format::escape(line, 300)));
    }
    if lines.len() > MAX_LINES {
        events.info("", format!("hook {hook}: {} more lines", lines.len() - MAX_LINES));
    }
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("hook {hook} '{name}' ended with {status}")),
        Err(error) => Err(format!("hook {hook} '{name}' was lost: {error}")),
    }
}

/// Reads to the end, but keeps only the beginning: a hook that talks must not be blocked by a full pipe.
async fn read_some(stream: Option<impl AsyncReadExt + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(kept).await;
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
}

struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        // A group whose members have all ended no longer exists, which is an error that says so and nothing else.
        if let Some(group) = self.0.and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Context {
    /// The same for another moment.
    pub fn at(mut self, hook: Hook, reason: Option<String>) -> Context {
        self.hook = hook.word();
        self.reason = reason;
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn context() -> Context {
        let node = NodeContext { address: "a:1".into(), fenced_offset: Some(7), applied_offset: 7 };
        Context { source: "a:1".into(), destination: "b:2".into(), nodes: vec![node], ..Context::default() }
            .at(Hook::AfterDrain, None)
    }

    #[tokio::test]
    async fn a_hook_is_told_where_things_stand_and_its_words_become_events() {
        let (_dir, path) = script(
            "echo \"$SHAKEDECK_HOOK $SHAKEDECK_SOURCE $SHAKEDECK_DESTINATION $SHAKEDECK_OFFSETS\"; cat; printf '\\033[31mred\\n' >&2",
        );
        let events = EventLog::default();
        run(&path, &context(), Duration::from_secs(20), &events).await.unwrap();
        let texts: Vec<String> = events.view().events.into_iter().map(|event| event.text).collect();
        assert_eq!(texts[0], "hook after_drain: after_drain a:1 b:2 a:1=7");
        assert!(texts[1].contains("\"fenced_offset\":7"), "{texts:?}");
        assert_eq!(texts[2], "hook after_drain: \\x1b[31mred");
    }

    #[tokio::test]
    async fn an_exit_code_is_a_veto_and_too_much_output_is_bounded() {
        let (_dir, path) = script("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit 3");
        let events = EventLog::default();
        let error = run(&path, &context(), Duration::from_secs(20), &events).await.unwrap_err();
        assert!(error.contains("after_drain") && error.contains("exit status: 3"), "{error}");
        assert_eq!(events.view().events.len(), MAX_LINES + 1);
        let error = run(Path::new("/no/such/hook"), &context(), Duration::from_secs(20), &events).await;
        assert!(error.unwrap_err().contains("cannot be started"));
    }

    #[tokio::test]
    async fn a_hook_that_does_not_end_is_ended_with_all_that_it_started() {
        let (dir, path) = script("sleep 600 & echo $! > \"$(dirname \"$0\")/child\"; wait");
        let events = EventLog::default();
        let began = Instant::now();
        let error = run(&path, &context(), Duration::from_secs(1), &events).await.unwrap_err();
        assert!(error.contains("did not end within"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(30));
        let child = std::fs::read_to_string(dir.path().join("child")).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(began.elapsed() < Duration::from_secs(30), "the hook's child still runs");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
