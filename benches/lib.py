"""What the measurements share: servers on free ports, a RESP client, the tool under test, and the table.

Every pair of runs uses the same two kinds of server on the same machine: once REPLICAOF, once shakedeck, in turns, so
that a slow minute of the machine hits both. Only Python's standard library is used.
"""

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 600  # seconds until a run counts as hung


class Client:
    """A blocking RESP2 connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb", buffering=65536)

    def send(self, *arguments):
        self.socket.sendall(encode(*arguments))

    def read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        if kind == b"-":
            return RuntimeError(rest.decode())
        return rest

    def __call__(self, *arguments):
        self.send(*arguments)
        return self.read()


def encode(*arguments):
    words = [word if isinstance(word, bytes) else str(word).encode() for word in arguments]
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def cpu_seconds(pid):
    """User and system time of a process and all its threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def free_port():
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # The bus of a cluster node listens 10,000 higher.
        if port <= 55_535:
            return port


class Process:
    """Something that was started here and is ended here, by its own handle."""

    def __init__(self, command, folder):
        self.folder = folder
        self.output = open(os.path.join(folder, "output"), "w+b")
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT
        )
        self.pid = self.process.pid

    def must_run(self):
        if self.process.poll() is not None:
            self.output.seek(0)
            sys.exit(f"ended with {self.process.returncode}:\n{self.output.read().decode(errors='replace')}")

    def end(self, how):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self


class Server(Process):
    """No persistence, diskless replication without delay."""

    def __init__(self, program, more=()):
        self.port = free_port()
        settings = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": 0,
            **dict(more),
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        super().__init__([program, *words], tempfile.mkdtemp(prefix="shakedeck-bench-"))
        until(lambda: self.must_run() or connects(self.port), "the server listens")
        self.client = Client(self.port)
        until(lambda: self.client("PING") == b"PONG", "PONG")

    def __exit__(self, *_):
        self.end(signal.SIGKILL)


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Shakedeck(Process):
    """The tool under test, from one server to another, without console. `writer`: more lines of [redis_writer]."""

    def __init__(self, binary, source, destination, writer=""):
        folder = tempfile.mkdtemp(prefix="shakedeck-bench-")
        with open(os.path.join(folder, "shake.toml"), "w") as file:
            file.write(
                f'[sync_reader]\naddress = "127.0.0.1:{source.port}"\n'
                f'[redis_writer]\naddress = "127.0.0.1:{destination.port}"\n{writer}'
                '[advanced]\ndir = "data"\n'
            )
        super().__init__([binary, "--headless", "shake.toml"], folder)

    def __exit__(self, *_):
        self.end(signal.SIGTERM)


class Replicaof:
    """The yardstick: the destination itself as a replica of the source."""

    def __init__(self, source, destination):
        self.pid = None
        self.client = destination.client
        self.client("REPLICAOF", "127.0.0.1", source.port)

    def must_run(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client("REPLICAOF", "NO", "ONE")


def start(kind, options, source, destination):
    if kind == "REPLICAOF":
        return Replicaof(source, destination)
    return Shakedeck(options.binary, source, destination)


def until(condition, what, pause=0.002):
    """Polls until a condition holds; ends the program when it never does."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            sys.exit(f"waited {PATIENCE} s in vain for: {what}")
        time.sleep(pause)


def wait_streaming(mover, source, destination):
    """Until a write on the source reaches the destination: the full sync is over."""
    source.client("SET", "bench:marker", "streaming")
    until(
        lambda: mover.must_run() or destination.client("GET", "bench:marker") == b"streaming",
        "the stream phase",
    )


def arguments(description, pairs=True, **numbers):
    """The command line: programs, number of pairs, and the numbers of the measurement with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    server = shutil.which("redis-server") or shutil.which("valkey-server")
    parser.add_argument("--source-server", default=server, help="program")
    parser.add_argument("--destination-server", default=server, help="program")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target/release/shakedeck"), help="the tool")
    if pairs:
        parser.add_argument("--pairs", type=int, default=5, help="runs of each of the two")
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    options = parser.parse_args()
    if not options.source_server or not options.destination_server:
        sys.exit("no redis-server on PATH: name one with --source-server and --destination-server")
    if not os.access(options.binary, os.X_OK):
        sys.exit(f"{options.binary} is missing: cargo build --release")
    options.binary = os.path.abspath(options.binary)
    return options


def version(program):
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"{words[0].lower()} {next(word[2:] for word in words if word.startswith('v='))}"


def headline(title, options):
    servers = f"{version(options.source_server)} -> {version(options.destination_server)}"
    print(f"{title}; {servers}, {options.pairs} pairs, {os.cpu_count()} processors", flush=True)


def table(rows, samples):
    """rows: (name, unit); samples: {kind: {name: [values]}}. Prints min / median / max of each."""
    print(f"\n{'':34}{'REPLICAOF':>30}{'shakedeck':>30}{'ratio of':>10}")
    print(f"{'':34}" + 2 * f"{'min / median / max':>30}" + f"{'medians':>10}")
    for name, unit in rows:
        cells, medians = [], []
        for kind in ("REPLICAOF", "shakedeck"):
            values = samples[kind].get(name)
            if values:
                medians.append(statistics.median(values))
                cells.append(" / ".join(short(value) for value in (min(values), medians[-1], max(values))))
            else:
                cells.append("-")
        ratio = f"{medians[1] / medians[0]:.2f}" if len(medians) == 2 and medians[0] else ""
        print(f"{name + ' (' + unit + ')':34}" + "".join(f"{cell:>30}" for cell in cells) + f"{ratio:>10}")
    print()


def short(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def verdict(name, value, limit, at_least=False):
    """Prints whether a goal was met; True if it was."""
    met = value >= limit if at_least else value <= limit
    print(f"{'met   ' if met else 'MISSED'}  {name}: {short(value)} (goal {'>=' if at_least else '<='} {short(limit)})")
    return met
