//! `machinist keygen`: writes a key file, and prints its use.

use machinist::{
    clock,
    keys::fresh_id,
    sign::{Key, KeyError},
};

use crate::{
    args::KeygenArgs,
    exit::{CliError, Code},
    output,
};

pub(super) fn run(args: &KeygenArgs, json: bool) -> Result<Code, CliError> {
    let id = args.id.as_ref().map_or_else(today, ToString::to_string);
    let key = Key::generate(args.alg, &id).map_err(|error| CliError::from_error(Code::Usage, &error))?;
    key.write_new(&args.out).map_err(|error| cannot_write(&error))?;
    let file = args.out.display();
    let alg = key.algorithm();
    let public = key.public_base64();
    if json {
        output::json(&serde_json::json!({ "file": args.out, "id": id, "alg": alg, "public": public }))?;
        return Ok(Code::Success);
    }
    if key.encrypts() {
        output::line(&format!("{file} is written: key {id}, {alg}. It encrypts arguments and results."))?;
        output::line(
            "Senders, workers and readers of results need it in machinist.toml, with the key that signs:",
        )?;
        output::line(&format!("  [[keys]]\n  file = \"{file}\""))?;
        output::line(
            "First give it to all of them with state = \"verify\", which only decrypts: then no message is sent that",
        )?;
        output::line(
            "one of them cannot read yet. Keep it as long as its messages and results: without it they are lost.",
        )?;
        return Ok(Code::Success);
    }
    output::line(&format!(
        "{file} is written: key {id}, {alg}. Configure it for workers and senders by one of"
    ))?;
    output::line(&format!("  --key-file {file}"))?;
    output::line(&format!("  MACHINIST_KEY_FILE={file}"))?;
    output::line(&format!("  key_file = \"{file}\"    (in machinist.toml)"))?;
    output::line(
        "Make another key for each environment: a key of tests that production trusts runs tasks there.",
    )?;
    if let Some(public) = public {
        output::line(
            "A process that verifies its signatures but does not sign needs this in machinist.toml, without the secret:",
        )?;
        output::line(&format!("  [[keys]]\n  id = \"{id}\"\n  alg = \"{alg}\"\n  public = \"{public}\""))?;
        output::line("A worker signs retries and results, so it also needs an active key.")?;
    }
    Ok(Code::Success)
}

/// Returns a unique id that sorts by age: `2026-11-21-5f0c77ab`.
pub(super) fn today() -> String {
    let now = clock::wall().to_string();
    fresh_id(now.split('T').next().unwrap_or_default())
}

pub(super) fn cannot_write(error: &KeyError) -> CliError {
    CliError::from_error(Code::Configuration, error).remedy("--out names another file")
}
