//! `machinist keygen`: a key file, and what to do with it.

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

pub(super) fn run(what: &KeygenArgs, json: bool) -> Result<Code, CliError> {
    let id = what.id.as_ref().map_or_else(today, ToString::to_string);
    let key = Key::generate(what.alg, &id).map_err(|error| CliError::from_error(Code::Usage, &error))?;
    key.write_new(&what.out).map_err(|error| cannot_write(&error))?;
    let (file, alg, public) = (what.out.display(), key.algorithm(), key.public_base64());
    if json {
        output::json(&serde_json::json!({ "file": what.out, "id": id, "alg": alg, "public": public }))?;
        return Ok(Code::Success);
    }
    if key.encrypts() {
        output::line(&format!(
            "{file} is written: key {id}, {alg}. It encrypts what arguments and results say."
        ))?;
        output::line(
            "Senders, workers and whoever reads results have it in machinist.toml, beside the key that signs:",
        )?;
        output::line(&format!("  [[keys]]\n  file = \"{file}\""))?;
        output::line(
            "Give it to all of them with state = \"verify\" first, which decrypts only: then nothing is sent that",
        )?;
        output::line(
            "somebody cannot read yet. Without it what it hid is lost: keep it for as long as that.",
        )?;
        return Ok(Code::Success);
    }
    output::line(&format!("{file} is written: key {id}, {alg}. Name it to workers and senders by one of"))?;
    output::line(&format!("  --key-file {file}"))?;
    output::line(&format!("  MACHINIST_KEY_FILE={file}"))?;
    output::line(&format!("  key_file = \"{file}\"    (in machinist.toml)"))?;
    if let Some(public) = public {
        output::line(
            "Who is to verify what it signs and not to sign itself has this in machinist.toml, and no secret:",
        )?;
        output::line(&format!("  [[keys]]\n  id = \"{id}\"\n  alg = \"{alg}\"\n  public = \"{public}\""))?;
        output::line("A worker signs retries and results, and so has an active key of its own beside it.")?;
    }
    Ok(Code::Success)
}

/// `2026-11-21-5f0c77ab`: sorts by age, and no two are the same.
pub(super) fn today() -> String {
    let now = clock::wall().to_string();
    fresh_id(now.split('T').next().unwrap_or_default())
}

pub(super) fn cannot_write(error: &KeyError) -> CliError {
    CliError::from_error(Code::Configuration, error).remedy("--out names another file")
}
