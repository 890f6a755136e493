#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Command::try_parse_from(line.split_whitespace())
}

fn action(line: &str) -> Action {
    match parse(line).unwrap() {
        Command::Ctl(ctl) => ctl.action,
        other => panic!("{other:?}"),
    }
}

#[test]
fn clap_finds_no_contradiction() {
    Root::command().debug_assert();
}

#[test]
fn a_file_alone_is_a_migration_with_defaults() {
    let Command::Migrate(migrate) = parse("shakedeck shake.toml").unwrap() else { panic!() };
    assert_eq!(migrate.config, PathBuf::from("shake.toml"));
    assert_eq!(
        migrate.headless,
        Headless {
            headless: false,
            log_format: LogFormat::Plain,
            cutover_when_ready: false,
            exit_when: None,
            timeout: None
        }
    );
    assert_eq!(migrate.screen, Screen { ascii: false, theme: None, read_only: false, mouse: false });
}

#[test]
fn every_option_of_a_migration_is_understood() {
    let line = "shakedeck --headless --log-format json --cutover-when-ready --exit-when caught-up --timeout 30m \
                --ascii --theme mono --read-only --mouse dir/shake.toml";
    let Command::Migrate(migrate) = parse(line).unwrap() else { panic!() };
    assert_eq!(migrate.config, PathBuf::from("dir/shake.toml"));
    assert_eq!(
        migrate.headless,
        Headless {
            headless: true,
            log_format: LogFormat::Json,
            cutover_when_ready: true,
            exit_when: Some(ExitWhen::CaughtUp),
            timeout: Some(Duration::from_secs(1_800)),
        }
    );
    assert_eq!(
        migrate.screen,
        Screen { ascii: true, theme: Some(Theme::Mono), read_only: true, mouse: true }
    );
}

#[test]
fn usage_errors_have_exit_code_2_and_help_has_0() {
    for line in [
        "shakedeck",
        "shakedeck --headless",
        "shakedeck --exit-when soon shake.toml",
        "shakedeck --timeout never shake.toml",
        "shakedeck --no-such shake.toml",
        "shakedeck a.toml b.toml",
        "shakedeck --headless ctl status",
        "shakedeck ctl",
        "shakedeck ctl throttle",
        "shakedeck ctl throttle fast",
        "shakedeck ctl throttle 0",
        "shakedeck ctl throttle --ops 0",
        "shakedeck ctl cutover",
        "shakedeck ctl wait --for happiness",
        "shakedeck ctl wait",
        "shakedeck ctl pause --timeout 5s",
        "shakedeck rdb",
        "shakedeck quarantine",
        "shakedeck quarantine replay",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
    for line in ["shakedeck --help", "shakedeck --version", "shakedeck help ctl", "shakedeck ctl wait --help"]
    {
        assert_eq!(parse(line).unwrap_err().exit_code(), 0, "{line}");
    }
}

#[test]
fn throttle_takes_sizes_counts_and_off() {
    let throttle = |bytes, ops| Action::Throttle(Throttle { bytes_per_second: bytes, ops_per_second: ops });
    assert_eq!(action("shakedeck ctl throttle 50MB"), throttle(Some(50_000_000), None));
    assert_eq!(action("shakedeck ctl throttle 50mb/s"), throttle(Some(50_000_000), None));
    assert_eq!(action("shakedeck ctl throttle 512KiB"), throttle(Some(524_288), None));
    assert_eq!(action("shakedeck ctl throttle --ops 10k"), throttle(None, Some(10_000)));
    assert_eq!(action("shakedeck ctl throttle 1GB --ops 800"), throttle(Some(1_000_000_000), Some(800)));
    assert_eq!(action("shakedeck ctl throttle off"), throttle(None, None));
    assert!(parse("shakedeck ctl throttle 99999999999GB").is_err(), "more than 64 bits");
}

#[test]
fn ctl_knows_its_verbs_and_takes_dir_on_either_side() {
    for line in ["shakedeck ctl --dir there status --json", "shakedeck ctl status --json --dir there"] {
        let expected = Ctl { dir: "there".into(), action: Action::Status { json: true } };
        assert_eq!(parse(line).unwrap(), Command::Ctl(expected), "{line}");
    }
    assert_eq!(action("shakedeck ctl pause"), Action::Pause { wait: None });
    let minute = Some(Duration::from_secs(60));
    assert_eq!(action("shakedeck ctl resume --wait --timeout 1m"), Action::Resume { wait: minute });
    let ten_minutes = Duration::from_secs(600);
    assert_eq!(
        action("shakedeck ctl stop --forget --wait"),
        Action::Stop { forget: true, wait: Some(ten_minutes) }
    );
    assert_eq!(
        action("shakedeck ctl wait --for caught_up"),
        Action::Wait { goal: State::CaughtUp, timeout: ten_minutes }
    );
    assert_eq!(
        action("shakedeck ctl cutover --yes-i-mean 10.0.2.21:6379"),
        Action::Cutover { confirmation: "10.0.2.21:6379".into(), writes_stopped: false }
    );
    let Command::Ctl(ctl) = parse("shakedeck ctl events --follow").unwrap() else { panic!() };
    assert_eq!(ctl.dir, PathBuf::from("data"));
    assert_eq!(ctl.action, Action::Events { follow: true, format: LogFormat::Plain });
}

#[test]
fn verify_takes_its_options() {
    let line = "shakedeck verify a.toml --mode full --sample 0.1 --rounds 5 --rate 100k --ttl-tolerance 2s --wait 5s \
                --repair --delete-extra --restart --json --output b.jsonl";
    let Command::Verify(verify) = parse(line).unwrap() else { panic!() };
    assert_eq!((verify.mode, verify.sample, verify.rounds, verify.rate), (Mode::Full, 0.1, 5, Some(100_000)));
    assert_eq!((verify.ttl_tolerance, verify.wait), (Duration::from_secs(2), Duration::from_secs(5)));
    assert!(verify.repair && verify.delete_extra && verify.restart && verify.json);
    assert_eq!(verify.output, Some(PathBuf::from("b.jsonl")));
    for bad in ["--sample 0", "--sample 2", "--rounds 0", "--mode all", "--delete-extra", "--rate 0"] {
        assert_eq!(parse(&format!("shakedeck verify a.toml {bad}")).unwrap_err().exit_code(), 2, "{bad}");
    }
    assert_eq!(action("shakedeck ctl verify"), Action::Verify { wait: true, format: LogFormat::Plain });
    assert_eq!(
        action("shakedeck ctl verify --no-wait --json"),
        Action::Verify { wait: false, format: LogFormat::Json }
    );
}

#[test]
fn the_other_subcommands_are_understood() {
    let Command::Demo(demo) =
        parse("shakedeck demo --seconds 3 --keys 20k --rate 500 --real --headless").unwrap()
    else {
        panic!()
    };
    assert_eq!((demo.seconds, demo.keys, demo.rate), (Some(3), Some(20_000), Some(500)));
    assert!(demo.real && demo.headless.headless);
    let rdb = Rdb { file: "dump.rdb".into(), format: RdbFormat::Json };
    assert_eq!(parse("shakedeck rdb dump.rdb --format json").unwrap(), Command::Rdb(rdb));
    let check = Check { config: "shake.toml".into() };
    assert_eq!(parse("shakedeck check shake.toml").unwrap(), Command::Check(check));
    let Command::Attach(attach) = parse("shakedeck attach --dir there --read-only").unwrap() else {
        panic!()
    };
    assert_eq!((attach.dir, attach.screen.read_only), (PathBuf::from("there"), true));
    let list = Quarantine::List { dir: "data".into(), json: true };
    assert_eq!(parse("shakedeck quarantine list --json").unwrap(), Command::Quarantine(list));
    let replay = Quarantine::Replay { dir: "there".into(), config: "shake.toml".into() };
    assert_eq!(
        parse("shakedeck quarantine replay --dir there shake.toml").unwrap(),
        Command::Quarantine(replay)
    );
    assert_eq!(
        parse("shakedeck completions bash").unwrap(),
        Command::Completions(clap_complete::Shell::Bash)
    );
}

#[test]
fn what_does_not_exist_yet_is_not_listed() {
    let mut root = Root::command();
    let help = root.render_long_help().to_string();
    for verb in ["check", "verify", "rdb", "demo", "attach", "ctl", "quarantine", "completions"] {
        assert!(help.contains(&format!("  {verb} ")), "{verb} in\n{help}");
    }
    assert!(!help.contains("  filter-test "), "{help}");
}

#[test]
fn completions_name_the_subcommands() {
    let mut script = Vec::new();
    write_completions(clap_complete::Shell::Bash, &mut script);
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains("attach") && script.contains("--exit-when"));
}
