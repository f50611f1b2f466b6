//! Creating and listing keys. Secrets are never shown.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{Folder, Ran};

/// Returns the secrets of all key files of a folder, which no output may hold.
pub(crate) fn secrets(folder: &Folder) -> Vec<String> {
    let mut secrets = Vec::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "key") {
            let text = std::fs::read_to_string(path).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("secret = \"")).unwrap();
            secrets.push(line.trim_end_matches('"').to_owned());
        }
    }
    secrets
}

#[track_caller]
pub(crate) fn hides(secrets: &[String], ran: &Ran) {
    assert!(!secrets.is_empty());
    for secret in secrets {
        // Not even a part of the secret may be shown.
        let shown = [&ran.stdout, &ran.stderr].iter().any(|text| text.contains(&secret[4..20]));
        assert!(!shown, "{ran:?}");
    }
}

pub(crate) fn mode(folder: &Folder, name: &str) -> u32 {
    std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_key_is_made_once_and_says_what_to_do() {
    let folder = Folder::new();
    let made = folder.run(&["keygen"]).ended(0);
    for word in ["machinist.key is written", "hmac-sha256", "--key-file machinist.key", "MACHINIST_KEY_FILE="]
    {
        assert!(made.stdout.contains(word), "{word}: {made:?}");
    }
    assert_eq!(mode(&folder, "machinist.key"), 0o600);
    let before = secrets(&folder);
    hides(&before, &made);
    folder.run(&["keygen"]).ended(78).reports(&["machinist.key", "is not overwritten", "--out"]);
    assert_eq!(secrets(&folder), before);
    folder.run(&["keygen", "--alg", "md5"]).ended(64).reports(&["--alg", "md5", "ed25519"]);
    folder.run(&["keygen", "--id", "two words", "--out", "x"]).ended(64).reports(&["--id", "two words"]);
}

#[test]
fn a_verifier_gets_the_public_half() {
    let folder = Folder::new();
    let line = ["keygen", "--alg", "ed25519", "--id", "shop", "--out", "shop.key", "--json"];
    let made = folder.run(&line).ended(0);
    let told = made.json();
    assert_eq!(
        (&told["id"], &told["alg"], &told["file"]),
        (&json!("shop"), &json!("ed25519"), &json!("shop.key"))
    );
    hides(&secrets(&folder), &made);
    let line = ["keygen", "--alg", "ed25519", "--id", "other", "--out", "other.key"];
    let said = folder.run(&line).ended(0).stdout;
    let ring: Vec<&str> = said.lines().skip_while(|line| !line.contains("[[keys]]")).take(4).collect();
    folder.write("verifier.toml", &ring.join("\n"));
    let keys = folder.run(&["keys", "list", "--config", "verifier.toml", "--json"]).ended(0).json();
    assert_eq!((&keys[0]["id"], &keys[0]["state"]), (&json!("other"), &json!("verify")));
}

#[test]
fn keys_are_listed_with_what_limits_them() {
    let folder = Folder::with(
        "key_file = \"own.key\"\n[[keys]]\nfile = \"mailer.key\"\nstate = \"verify\"\ntasks = [\"mail.*\"]\n\
         queues = [\"mail\"]\nnot_after = 2999-01-01T00:00:00Z\n[[keys]]\nid = \"gone\"\nstate = \"revoked\"\n",
    );
    folder.key("own.key", "own");
    folder.key("mailer.key", "mailer");
    let ran = folder.run(&["keys", "list", "--json"]).ended(0);
    hides(&secrets(&folder), &ran);
    assert_eq!(
        ran.json()[1],
        json!({"id": "mailer", "alg": "hmac-sha256", "state": "verify", "not_before": null,
               "not_after": "2999-01-01T00:00:00Z", "tasks": ["mail.*"], "queues": ["mail"],
               "origin": "machinist.toml:2"})
    );
    let page = folder.run(&["keys", "list"]).ended(0);
    hides(&secrets(&folder), &page);
    assert!(page.stdout.contains("NOT AFTER") && page.stdout.contains("revoked"), "{page:?}");
    let check = folder.run(&["keys", "check"]).ended(0);
    assert!(check.stdout.contains("good     key own: hmac-sha256, active, machinist.toml:1"), "{check:?}");
    let config = folder.run(&["config"]).ended(0);
    hides(&secrets(&folder), &config);
    for word in ["own.key", "file mailer.key, verify", "tasks mail.*", "gone: revoked"] {
        assert!(config.stdout.contains(word), "{word}: {config:?}");
    }
    let one = folder.run(&["keys", "list", "mailer.key", "--json"]).ended(0).json();
    assert_eq!((one.as_array().unwrap().len(), &one[0]["state"]), (1, &json!("active")));
}

#[test]
fn keys_that_will_not_do_are_reported() {
    let folder = Folder::new();
    folder.key("a.key", "a");
    folder.key("b.key", "b");
    let reports = |toml: &str, words: &[&str]| {
        folder.write("machinist.toml", toml);
        let check = folder.run(&["keys", "check"]).ended(78);
        words.iter().for_each(|word| assert!(check.stdout.contains(word), "{word}: {check:?}"));
        hides(&secrets(&folder), &check);
        folder.run(&["worker", "--demo"]).ended(78).reports(words);
        folder.run(&["send", "add"]).ended(78).reports(words);
    };
    reports(
        "key_file = \"no.key\"",
        &["machinist.toml:1", "no.key", "`machinist keygen --out no.key` makes one"],
    );
    reports(
        "key_file = \"a.key\"\n[[keys]]\nfile = \"b.key\"",
        &["machinist.toml:2", "a and b are both active"],
    );
    reports(
        "[[keys]]\nfile = \"a.key\"\n[[keys]]\nfile = \"a.key\"\nstate = \"verify\"",
        &["a is in the ring twice"],
    );
    std::fs::set_permissions(folder.path().join("a.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    reports("key_file = \"a.key\"", &["a.key", "users other than its owner", "mode 0640", "chmod 600"]);
    folder.write("machinist.toml", "");
    folder.run(&["send", "add", "--key-file", "a.key"]).ended(78).reports(&["--key-file", "mode 0640"]);
    folder.run(&["keys", "check", "a.key"]).ended(78);
    folder.run(&["keys", "check", "b.key"]).ended(0);
    folder.write("machinist.toml", "[[keys]]\nfile = \"b.key\"\nstate = \"verify\"");
    folder.run(&["send", "add"]).ended(78).reports(&["no key of the ring that signs is active"]);
    folder.run(&["worker", "--demo"]).ended(78).reports(&["no key of the ring that signs is active"]);
    folder.run(&["queues"]).ended(0);
}

#[test]
fn init_makes_a_key_and_keeps_it_out_of_version_control() {
    let folder = Folder::new();
    folder.write(".gitignore", "/target");
    let sent = folder.send(&["add", "1"]);
    let said = folder.run(&["init"]).ended(0);
    hides(&secrets(&folder), &said);
    assert_eq!(mode(&folder, "machinist.key"), 0o600);
    let ignored = || std::fs::read_to_string(folder.path().join(".gitignore")).unwrap();
    assert_eq!(ignored(), "/target\nmachinist.key\n");
    let made = secrets(&folder);
    folder.run(&["init", "--force"]).ended(0);
    assert_eq!((secrets(&folder), ignored()), (made, "/target\nmachinist.key\n".to_owned()));
    // Messages from before there was a machinist.toml are valid.
    let _worker = folder.worker(&["--demo"]);
    folder.run(&["status", &sent, "--watch"]).ended(0);
}

#[test]
fn a_variable_holds_a_key_where_files_cannot_be_private() {
    let mut folder = Folder::with("[[keys]]\nenv = \"SHOP_KEY\"\n");
    let file = folder.key("shop.key", "shop");
    let text = std::fs::read_to_string(file).unwrap();
    let secrets = secrets(&folder);
    folder.run(&["send", "add", "1"]).ended(78).reports(&["machinist.toml:1", "SHOP_KEY"]);
    folder.set("SHOP_KEY", &text);
    let worker = folder.worker(&["--demo"]);
    assert_eq!(folder.outcome(&["add", "2", "3"])["results"], json!([5]));
    let keys = folder.run(&["keys", "list", "--json"]).ended(0);
    assert_eq!((&keys.json()[0]["id"], &keys.json()[0]["state"]), (&json!("shop"), &json!("active")));
    for ran in [keys, folder.run(&["config"]), folder.run(&["doctor"]), worker.stop().ended(0)] {
        hides(&secrets, &ran);
    }
    folder.set("SHOP_KEY", &text[..text.len() / 2]);
    let broken =
        folder.run(&["send", "add", "1"]).ended(78).reports(&["machinist.toml:1", "the variable SHOP_KEY"]);
    hides(&secrets, &broken);
}

#[test]
fn what_is_encrypted_is_read_with_the_key_and_told_without() {
    let folder = Folder::new();
    let made = folder.run(&["keygen", "--alg", "xchacha20-poly1305", "--id", "hide", "--out", "hide.key"]);
    let made = made.ended(0).reports(&[]);
    assert!(made.stdout.contains("[[keys]]\n  file = \"hide.key\""), "{}", made.stdout);
    folder.key("sign.key", "sign");
    let signs = "key_file = \"sign.key\"\n";
    let toml = format!("{signs}[[keys]]\nfile = \"hide.key\"\n");
    folder.write("machinist.toml", &toml);
    folder.write("without.toml", signs);
    let listed = folder.run(&["keys", "list"]).ended(0).stdout;
    assert!(listed.contains("xchacha20-poly1305"), "{listed}");
    folder.run(&["keys", "check"]).ended(0);

    let worker = folder.worker(&["--demo"]);
    let good = folder.outcome(&["echo", "a-secret-name"]);
    assert_eq!(good["results"], serde_json::json!(["a-secret-name"]));
    let bad = folder.outcome(&["fail"]);
    let good = good["id"].as_str().unwrap();
    let bad = bad["id"].as_str().unwrap();
    let words = ["encrypted with key hide, which is not in the ring here"];
    for (id, code) in [(good, 0), (bad, 1)] {
        let shown = folder.run(&["status", id, "--config", "without.toml"]).ended(code).stdout;
        assert!(shown.contains("locked    it is") && shown.contains(words[0]), "{shown}");
        let json = folder.run(&["status", id, "--config", "without.toml", "--json"]).ended(code).json();
        assert!(json["locked"].as_str().unwrap().contains(words[0]), "{json}");
        assert_eq!(json["results"], serde_json::json!([]));
    }
    folder.run(&["retry", bad, "--config", "without.toml"]).reports(&words);
    // A sender without its encryption key does not send plain text instead.
    std::fs::remove_file(folder.path().join("hide.key")).unwrap();
    folder.run(&["send", "echo", "x"]).ended(78).reports(&["hide.key"]);
    worker.stop().ended(0);

    folder.run(&["keygen", "--alg", "xchacha20-poly1305", "--id", "hide", "--out", "hide.key"]).ended(0);
    folder.write("machinist.toml", &format!("{toml}tasks = [\"mail.*\"]\n"));
    folder.run(&["send", "echo", "x"]).ended(78).reports(&["restrict signing, and this key encrypts"]);
    folder.write("machinist.toml", "key_file = \"hide.key\"\n");
    folder.run(&["send", "echo", "x"]).reports(&["no key of the ring that signs is active"]);
}
