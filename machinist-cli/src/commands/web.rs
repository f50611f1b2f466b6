//! `machinist web`: serves the dashboard, makes lines of the password file, ends sessions.

use std::io::{BufRead, IsTerminal, Read as _, Stdin};

use machinist::{App, settings::Settings};
use machinist_web::{Access, AccessError, Dashboard, UserRole, end_sessions, hash_password, serve};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{net::TcpListener, signal::unix::SignalKind};

use super::{connect, connect_reader, verifies, worker::listen};
use crate::{
    args::{WebArgs, WebCommand},
    exit::{CliError, Code},
    output,
};

/// Maximum size of a password that is read, in bytes.
const MAX_INPUT: u64 = 4096;

pub(super) async fn run(args: WebArgs, settings: &Settings, json: bool) -> Result<Code, CliError> {
    match args.command {
        None => open(settings).await,
        Some(WebCommand::User { name, role }) => user(&name, &role, json),
        Some(WebCommand::Logout { name }) => logout(&name, settings, json).await,
    }
}

async fn open(settings: &Settings) -> Result<Code, CliError> {
    let web = &settings.web;
    let access = access(settings)?;
    let address = web.listen.value;
    let cannot = |error: &std::io::Error| {
        CliError::from_error(Code::Configuration, error)
            .context(format!("{}: {address} cannot be served", web.listen.origin))
    };
    let listener = TcpListener::bind(address).await.map_err(|error| cannot(&error))?;
    let address = listener.local_addr().map_err(|error| cannot(&error))?;
    // What it changes is signed; looking needs no key.
    let app = if web.read_only.value { connect_reader(settings).await? } else { connect(settings).await? };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    output::note(&format!("machinist: the dashboard is ready at http://{address}/"));
    serve(listener, dashboard(app.clone(), access, settings)?.router(), stop).await;
    app.flush_events().await;
    app.broker().close().await;
    Ok(Code::Success)
}

fn dashboard(app: App, access: Access, settings: &Settings) -> Result<Dashboard, CliError> {
    let hidden =
        settings.tasks.iter().filter(|(_, task)| task.hide_args.as_ref().is_some_and(|hidden| hidden.value));
    let mut dashboard = Dashboard::new(app, access)
        .queues(settings.worker.named_queues())
        .hide_args(hidden.map(|(name, _)| name.clone()));
    if let Some(name) = &settings.web.name {
        dashboard = dashboard.name(&name.value);
    }
    if let Some(link) = &settings.trace_link {
        dashboard = dashboard.trace_link(link.value.clone());
    }
    if settings.web.read_only.value {
        dashboard = dashboard.read_only();
    }
    if verifies(settings)? {
        dashboard = dashboard.verifies_outcomes();
    }
    Ok(dashboard)
}

/// Returns who has access. Without a way to log in, the address has to be one of this host alone.
///
/// # Errors
/// A file of users cannot be used, or the address is open to a network and nobody would have to log in.
fn access(settings: &Settings) -> Result<Access, CliError> {
    let web = &settings.web;
    let wrong = |place: &str| {
        let place = place.to_owned();
        move |error: AccessError| CliError::from_error(Code::Configuration, &error).context(place)
    };
    let mut access = Access::new();
    if let Some(file) = &web.password_file {
        access = access.password_file(&file.value).map_err(wrong("web.password_file"))?;
    }
    if let Some(file) = &web.token_file {
        access = access.token_file(&file.value).map_err(wrong("web.token_file"))?;
    }
    if let Some(header) = &web.proxy_header {
        let addresses =
            web.proxy_addresses.as_ref().map(|addresses| addresses.value.clone()).unwrap_or_default();
        let role: UserRole = web
            .proxy_role
            .value
            .parse()
            .map_err(|problem: String| CliError::new(Code::Configuration, problem))?;
        access = access.proxy(&header.value, addresses, role).map_err(|error| {
            wrong("web.proxy_header")(error)
                .remedy("set web.proxy_addresses = [\"10.0.0.1\"], the addresses of the proxy")
        })?;
    }
    if access.is_authenticated() {
        return Ok(access);
    }
    let address = web.listen.value;
    if !address.ip().is_loopback() {
        let text =
            format!("{}: {address} is open to a network, and nobody would have to log in", web.listen.origin);
        return Err(CliError::new(Code::Configuration, text)
            .remedy("set web.password_file, web.token_file or web.proxy_header, or listen at 127.0.0.1"));
    }
    Ok(Access::local())
}

fn user(name: &str, role: &str, json: bool) -> Result<Code, CliError> {
    let input = std::io::stdin();
    let hidden = HiddenInput::begin(&input);
    if input.is_terminal() {
        output::note(&format!("machinist: password of {name}:"));
    }
    let mut password = String::new();
    let read = input.lock().take(MAX_INPUT).read_line(&mut password);
    read.map_err(|error| CliError::from_error(Code::Usage, &error).context("the password cannot be read"))?;
    drop(hidden);
    let password = password.trim_end_matches(['\n', '\r']);
    let hash = hash_password(password).map_err(|error| {
        CliError::from_error(Code::Usage, &error).remedy(format!("echo PASSWORD | machinist web user {name}"))
    })?;
    if json {
        output::json(&serde_json::json!({ "name": name, "role": role, "hash": hash }))?;
    } else {
        output::line(&format!("{name}:{role}:{hash}"))?;
    }
    Ok(Code::Success)
}

/// A terminal that does not show what is typed, until this is dropped.
struct HiddenInput<'a> {
    input: &'a Stdin,
    before: Termios,
}

impl<'a> HiddenInput<'a> {
    /// Hides what is typed; `None` if the input is no terminal.
    fn begin(input: &'a Stdin) -> Option<Self> {
        let before = tcgetattr(input).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(input, OptionalActions::Flush, &hidden).ok()?;
        Some(Self { input, before })
    }
}

impl Drop for HiddenInput<'_> {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(self.input, OptionalActions::Flush, &self.before) {
            output::note(&format!("machinist: the terminal may not show what you type: {error}"));
        }
    }
}

async fn logout(name: &str, settings: &Settings, json: bool) -> Result<Code, CliError> {
    let app = connect_reader(settings).await?;
    end_sessions(&app, name).await?;
    if json {
        output::json(&serde_json::json!({ "name": name, "ended": true }))?;
    } else {
        output::line(&format!("all sessions of {name} have ended"))?;
    }
    app.broker().close().await;
    Ok(Code::Success)
}
