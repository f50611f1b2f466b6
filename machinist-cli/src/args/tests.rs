//! Tests of the syntax of the command line.

use std::{fs, path::Path};

use super::value::{expiry, instant};
use super::*;
use clap::{CommandFactory, error::ErrorKind};
use machinist::settings::setting_infos;

fn send(line: &str) -> Result<SendArgs, clap::Error> {
    match Cli::try_parse_from(["machinist", "send"].into_iter().chain(line.split(' ')))?.command {
        CliCommand::Send(send) => Ok(*send),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definitions_hold() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_that_is_a_setting_is_accepted_and_has_its_help() {
    let mut command = Cli::command();
    let worker = command.find_subcommand("worker").unwrap();
    let mut flags: Vec<_> = command.get_arguments().chain(worker.get_arguments()).collect();
    #[cfg(feature = "web")]
    flags.extend(command.find_subcommand("web").unwrap().get_arguments());
    for info in setting_infos().filter(|info| info.flag.is_some()) {
        let name = info.flag.unwrap().strip_prefix("--");
        let flag = flags.iter().find(|flag| flag.get_long() == name);
        let help = flag.unwrap_or_else(|| panic!("{info:?}")).get_help().unwrap().to_string();
        assert_eq!(help, info.help());
    }
    assert!(flags.iter().all(|flag| flag.get_help().is_some_and(|help| !help.to_string().is_empty())));
    command.build();
}

#[test]
fn a_negative_number_is_an_argument() {
    assert_eq!(send("add 2 -1").unwrap().args, ["2", "-1"]);
    assert_eq!(send("add -1.5 -2").unwrap().args, ["-1.5", "-2"]);
    assert_eq!(send("add --queue q -1").unwrap().args, ["-1"]);
    assert_eq!(send("add -- -x").unwrap().args, ["-x"]);
    assert!(send("add -x").is_err());
}

#[test]
fn a_name_after_wait_is_no_duration() {
    let given = send("--wait add 2 3").unwrap();
    assert_eq!((given.name.as_deref(), given.args.len()), (Some("add"), 2));
    assert!(given.wait.is_some());
    assert_eq!(send("add 2 3 --wait=20s").unwrap().wait, Some(Duration::from_secs(20)));
    assert_eq!(send("add 2 3").unwrap().wait, None);
    assert!(send("add --wait=soon").unwrap_err().to_string().contains("is not a duration"));
}

#[test]
fn settings_are_accepted_after_every_command() {
    for command in [
        "init",
        "worker",
        "send add",
        "status 1",
        "revoke 1",
        "retry 1",
        "scheduled",
        "periodic list",
        "periodic pause x",
        "periodic add x add --every 1s",
        "queues",
        "workers",
        "workers pause --all",
        "registered",
        "limits list",
        "limits reset task:a",
        "why 1",
        "dead list",
        "dead show 1",
        "dead replay --all",
        "dead purge --all",
        "keygen",
        "keys list",
        "doctor",
        "config",
        "completions bash",
    ] {
        let line = format!(
            "machinist {command} --broker b --backend c --config f --namespace n --json --allow-unsigned \
             --insecure-plaintext --key-file k"
        );
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(cli.global.json);
        let flags = cli.global.overrides(None);
        assert_eq!(flags.broker.as_deref(), Some("b"));
        assert!(flags.allow_unsigned && flags.insecure_plaintext && flags.key_file.is_some());
    }
}

#[test]
fn options_of_a_worker_are_settings() {
    let worker = |line: &str| {
        let cli = Cli::try_parse_from(["machinist", "worker"].into_iter().chain(line.split(' ')))?;
        let CliCommand::Worker(worker) = &cli.command else { panic!("{cli:?}") };
        Ok::<_, clap::Error>(cli.global.overrides(Some(worker)))
    };
    let flags = worker("--name w --tag gpu --tag zone:eu --look-ahead 0").unwrap();
    assert_eq!((flags.name.as_deref(), flags.look_ahead), (Some("w"), Some(0)));
    assert_eq!(flags.tags, [Tag::parse("gpu").unwrap(), Tag::parse("zone:eu").unwrap()]);
    let error = |line: &str| worker(line).unwrap_err().to_string();
    assert!(error("--tag GPU").contains("is not a word like gpu or zone:eu"));
    for port in ["8080", ":8080"] {
        let error = error(&format!("--health {port}"));
        assert!(error.contains("write 127.0.0.1:8080, or [::]:8080 to answer other hosts"), "{error}");
    }
    assert!(error("--health here").contains("is not an address with its port"));
}

#[test]
fn a_periodic_task_has_one_schedule_and_the_options_of_send() {
    let add = |line: &str| {
        let line = ["machinist", "periodic", "add"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(line)?.command {
            CliCommand::Periodic(PeriodicCommand::Add(add)) => Ok::<_, clap::Error>(*add),
            other => panic!("{other:?}"),
        }
    };
    let given = add("beat --every 1s add 2 -1 --retries 3 --queue q").unwrap();
    assert_eq!((given.periodic.as_str(), given.task.as_deref()), ("beat", Some("add")));
    assert_eq!((&given.args[..], given.options.retries), (&["2".to_owned(), "-1".to_owned()][..], Some(3)));
    assert!(given.refused.given().is_none());
    for refused in ["--wait", "--wait=1s", "--count 2", "--id x", "--eta x", "--countdown 1s"] {
        let given = add(&format!("beat --every 1s add {refused}")).unwrap();
        assert!(refused.starts_with(given.refused.given().unwrap().0), "{refused}");
    }
    for wrong in ["beat add", "beat --every 1s --cron @daily add", "beat --every 1s --time-zone UTC add"] {
        assert!(add(wrong).is_err(), "{wrong}");
    }
    let error = add("beat --every 1s --misfire twice add").unwrap_err().to_string();
    assert!(error.contains("write one of skip, once, all"), "{error}");
}

#[test]
fn many_tasks_are_selected_by_criteria_or_one_by_its_id() {
    let parse = |line: &str| Cli::try_parse_from(["machinist"].into_iter().chain(line.split(' ')));
    for command in ["revoke", "retry"] {
        for fine in
            ["t-1", "--queue mail --state retry --error timeout --older-than 1h --yes", "--name x --dry-run"]
        {
            parse(&format!("{command} {fine}")).unwrap_or_else(|error| panic!("{command} {fine}: {error}"));
        }
        for wrong in
            ["", "t-1 --queue mail", "--yes", "--dry-run", "--queue mail --count 0", "--state started"]
        {
            assert!(parse(format!("{command} {wrong}").trim_end()).is_err(), "{command} {wrong}");
        }
    }
    assert!(parse("retry t-1 --arg width=640").is_ok());
    assert!(parse("retry --queue mail --arg width=640").is_err());
}

#[test]
fn instants_need_an_offset() {
    assert_eq!(instant("2026-11-20T23:37:14Z"), instant("2026-11-21T00:37:14+01:00"));
    assert!(instant("2026-11-20T23:37:14").is_err());
    assert_eq!(expiry("10s"), Ok(ExpiryArg::In(Duration::from_secs(10))));
    assert!(matches!(expiry("2026-11-20T23:37:14Z"), Ok(ExpiryArg::At(_))));
    assert!(expiry("later").is_err());
}

#[test]
fn what_contradicts_itself_is_refused() {
    assert!(send("add --countdown 1s --eta 2026-11-20T23:37:14Z").is_err());
    assert!(send("add --id x --count 2").is_err());
    assert!(send("add --priority 10").is_err());
    assert!(send("add --count 0").is_err());
    assert!(send("add --queue x.dead").is_err());
}

/// Returns the commands of machinist in a line of a shell, without what the shell does with them.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let (mut word, mut quote, mut redirected) = (None::<String>, None, false);
    for c in line.chars().chain([' ']) {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if matches!(c, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            // The rest is a comment.
            None if c == '#' && word.is_none() => break,
            None if c.is_whitespace() || matches!(c, '&' | '|' | ';' | '>') => {
                if let (Some(word), false, Some(command)) = (word.take(), redirected, all.last_mut()) {
                    command.push(word);
                }
                if matches!(c, '&' | '|' | ';') {
                    all.push(Vec::new());
                }
                redirected = c == '>' || redirected && c.is_whitespace();
            }
            None => word.get_or_insert_default().push(c),
        }
    }
    all.retain(|command| command.first().is_some_and(|program| program == "machinist"));
    all
}

#[test]
fn a_line_of_a_shell_has_commands() {
    let line = "machinist keygen && export A=b; machinist send a 'b c' \"d\" > out.txt & # machinist no";
    let words = |line: &str| commands(line).iter().map(|command| command.join("_")).collect::<Vec<_>>();
    assert_eq!(words(line), ["machinist_keygen", "machinist_send_a_b c_d"]);
    assert!(words("machinist: the dashboard is ready").is_empty());
}

/// Returns the commands of a page that a reader types, and those that its text names.
fn commands_of(page: &str) -> (Vec<Vec<String>>, Vec<Vec<String>>) {
    let (mut typed, mut prose, mut fence) = (Vec::new(), String::new(), None);
    for line in page.lines().map(str::trim) {
        match (line.strip_prefix("```"), fence) {
            (Some(language), None) => fence = Some(language),
            (Some(_), Some(_)) => fence = None,
            // The other lines are what the commands print.
            (None, Some("console")) => typed.extend(line.strip_prefix("$ ").into_iter().flat_map(commands)),
            (None, Some("sh" | "text")) => typed.extend(commands(line.trim_start_matches("$ "))),
            (None, Some(_)) => {}
            (None, None) => prose = prose + line + " ",
        }
    }
    // Spans of code, without those that stand for several commands.
    let named = prose.split('`').skip(1).step_by(2).filter(|span| !span.contains(['|', '[', '…']));
    (typed, named.flat_map(commands).collect())
}

#[cfg(all(feature = "web", feature = "sqlite", feature = "postgres"))]
#[test]
fn the_program_understands_the_commands_of_all_pages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = |folder: &str| -> Vec<_> {
        let paths = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect()
    };
    let readmes = ["README.md", "machinist-cli/README.md"].map(|page| root.join(page));
    let mut number = 0;
    for page in pages("docs").into_iter().chain(pages("docs/book")).chain(readmes) {
        let (typed, named) = commands_of(&fs::read_to_string(&page).unwrap());
        number += typed.len();
        for command in typed {
            if let Err(error) = Cli::try_parse_from(&command) {
                panic!("{}: {command:?}: {error}", page.display());
            }
        }
        for command in named {
            // The text may leave out arguments, and names values in capitals.
            let kind = Cli::try_parse_from(&command).err().map(|error| error.kind());
            let unknown = matches!(kind, Some(ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand));
            assert!(!unknown, "{}: {command:?}: {kind:?}", page.display());
        }
    }
    assert!(number > 60, "{number} commands are on the pages");
}
