//! Real sentinels that watch one master and its replicas.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::client::{Client, Reply};
use super::server::Server;
use super::servers::ServerBinary;
use super::wait_until;

const MINUTES: Duration = Duration::from_secs(120);

/// Three sentinels of one master; ended when dropped.
pub struct Sentinels {
    name: String,
    password: Option<String>,
    processes: Vec<(Child, u16)>,
    // The last field: dropped after the processes have ended.
    _folder: TempDir,
}

impl Sentinels {
    /// Starts them and waits until they know each other and all replicas. With a password, they want it, and the user
    /// `asker` with the password `asks` may do nothing but ask where the master is.
    #[track_caller]
    pub fn start(
        binary: &ServerBinary,
        name: &str,
        master: &Server,
        replicas: usize,
        password: Option<&str>,
    ) -> Sentinels {
        let folder = tempfile::Builder::new().prefix("shakedeck-sentinels-").tempdir().unwrap();
        let listeners: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|it| it.local_addr().unwrap().port()).collect();
        drop(listeners);
        let processes = ports.iter().map(|port| {
            let text = configuration(name, *port, master.port(), password, folder.path());
            let file = folder.path().join(format!("{port}.conf"));
            std::fs::write(&file, text).unwrap();
            let process = Command::new(&binary.path)
                .arg(&file)
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            (process, *port)
        });
        let sentinels = Sentinels {
            name: name.to_owned(),
            password: password.map(str::to_owned),
            processes: processes.collect(),
            _folder: folder,
        };
        for port in ports {
            wait_until(MINUTES, "the sentinels know each other and the replicas", || {
                let Some(master) = sentinels.try_fields(port) else { return false };
                let is = |name: &str, value: usize| master(name).as_deref() == Some(&value.to_string());
                is("num-other-sentinels", 2) && is("num-slaves", replicas)
            });
        }
        sentinels
    }

    /// Their addresses, as `shake.toml` takes them.
    pub fn addresses(&self) -> Vec<String> {
        self.processes.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect()
    }

    /// Port of the present master, as the last of them says.
    pub fn master(&self) -> u16 {
        let mut client = self.client(self.processes[2].1).unwrap();
        let told = client.list(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.name]);
        String::from_utf8_lossy(&told[1]).parse().unwrap()
    }

    /// How many other sentinels each of them knows.
    pub fn others_known(&self) -> Vec<String> {
        let known =
            |(_, port): &(Child, u16)| self.try_fields(*port).unwrap()("num-other-sentinels").unwrap();
        self.processes.iter().map(known).collect()
    }

    /// Asks for a failover and waits until every sentinel names another master.
    #[track_caller]
    pub fn fail_over(&self) -> u16 {
        let before = self.master();
        let mut client = self.client(self.processes[0].1).unwrap();
        wait_until(MINUTES, "a failover is begun", || {
            client
                .try_cmd(&["SENTINEL", "FAILOVER", &self.name])
                .is_ok_and(|reply| !matches!(reply, Reply::Error(_)))
        });
        self.wait_other_than(before)
    }

    /// Waits until every sentinel names another master than this one.
    #[track_caller]
    pub fn wait_other_than(&self, before: u16) -> u16 {
        for (_, port) in &self.processes {
            wait_until(MINUTES, "the sentinels name another master", || {
                let now = self.try_fields(*port).and_then(|master| master("port"));
                now.is_some_and(|port| port != before.to_string())
            });
        }
        self.master()
    }

    fn client(&self, port: u16) -> std::io::Result<Client> {
        let mut client = Client::try_connect((Ipv4Addr::LOCALHOST, port).into())?;
        if let Some(password) = &self.password {
            client.try_cmd(&["AUTH", password])?;
        }
        Ok(client)
    }

    /// What a sentinel says of the master, by field.
    fn try_fields(&self, port: u16) -> Option<impl Fn(&str) -> Option<String> + use<>> {
        let reply = self.client(port).ok()?.try_cmd(&["SENTINEL", "MASTER", &self.name]).ok()?;
        let Reply::Array(fields) = reply else { return None };
        let text = |reply: &Reply| match reply {
            Reply::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => format!("{other:?}"),
        };
        let fields: Vec<String> = fields.iter().map(text).collect();
        Some(move |name: &str| fields.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone()))
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (process, _) in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn configuration(name: &str, port: u16, master: u16, password: Option<&str>, folder: &Path) -> String {
    let folder = folder.display();
    let mut lines = vec![
        format!("port {port}"),
        "bind 127.0.0.1".into(),
        format!("dir {folder}"),
        format!("logfile {folder}/{port}.log"),
        format!("sentinel monitor {name} 127.0.0.1 {master} 2"),
        format!("sentinel down-after-milliseconds {name} 2000"),
        format!("sentinel failover-timeout {name} 10000"),
    ];
    if let Some(password) = password {
        lines.push(format!("requirepass {password}"));
        lines.push(format!("sentinel sentinel-pass {password}"));
        lines.push("user asker on >asks +sentinel|get-master-addr-by-name".into());
    }
    lines.join("\n") + "\n"
}
