//! `machinist backup`: copies the embedded file while processes use it.

use machinist::{
    settings::Settings,
    sqlite::{BackUpError, back_up},
};

use crate::{
    args::BackupArgs,
    exit::{CliError, Code},
    output,
};

pub(super) async fn run(args: &BackupArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let urls = [&settings.broker.value, &settings.backend.value];
    let mut files: Vec<_> = urls.into_iter().filter_map(|url| url.file()).collect();
    files.dedup();
    let [file] = &files[..] else {
        let text = match files.len() {
            0 => {
                format!("broker {} and backend {} are no file", settings.broker.value, settings.backend.value)
            }
            _ => "broker and backend are two files".to_owned(),
        };
        return Err(CliError::new(Code::Configuration, text).remedy(
            "name the file with --broker sqlite://FILE --backend sqlite://FILE; other servers have their own backups",
        ));
    };
    let bytes = back_up(file, &args.file).await.map_err(|error| {
        let code = match error {
            BackUpError::File(_) | BackUpError::NoFile { .. } => Code::Configuration,
            _ => Code::Usage,
        };
        CliError::from_error(code, &error)
    })?;
    if json {
        output::json(&serde_json::json!({ "file": args.file, "of": file, "bytes": bytes }))?;
    } else {
        output::line(&format!(
            "{} is a copy of {}, {bytes} bytes. Keys are separate files: copy them too",
            args.file.display(),
            file.display()
        ))?;
    }
    Ok(Code::Success)
}
