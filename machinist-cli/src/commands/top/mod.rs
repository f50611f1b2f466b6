//! `machinist top`: queues, workers, tasks and failures on the whole terminal, alive.
//!
//! The parts depend on each other in one direction: [`state`] decides, [`draw`] draws, [`ask`] and [`act`] speak to the
//! servers, and only this file does all of it.

mod act;
mod action;
mod ask;
mod draw;
mod draw_list;
mod draw_page;
mod entries;
mod filter;
mod keys;
mod listing;
mod paint;
mod question;
mod screen;
mod state;
#[cfg(test)]
mod tests;
mod views;

use std::{env, io::IsTerminal, time::Duration};

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use machinist::{App, settings::Settings};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use self::{
    ask::Asker,
    draw::draw,
    paint::Paint,
    screen::{Screen, lost},
    state::{TopEvent, TopState, TopStep},
};
use super::{connect, connect_reader};
use crate::{
    exit::{CliError, Code},
    people::is_coloured,
};

/// Interval at which ages are drawn again.
const TICK: Duration = Duration::from_millis(500);

pub(super) async fn run(settings: &Settings, json: bool) -> Result<Code, CliError> {
    check_terminal(json)?;
    let mut signals = EndSignals::listen()?;
    // Looking needs no key.
    let refusal = refusal(settings)?;
    let app = if refusal.is_none() { connect(settings).await? } else { connect_reader(settings).await? };
    let mut screen = Screen::open()?;
    let watched = watch(&app, settings, refusal, &mut screen, &mut signals).await;
    drop(screen);
    app.flush_events().await;
    app.broker().close().await;
    watched.map(|()| Code::Success)
}

/// Refuses to start where nobody sees a screen.
fn check_terminal(json: bool) -> Result<(), CliError> {
    let problem = if json {
        "--json: top is for people, and prints no JSON"
    } else if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        "top needs a terminal, and standard input or output is none"
    } else {
        return Ok(());
    };
    Err(CliError::new(Code::Usage, problem)
        .remedy("`machinist queues --watch`, `machinist workers --watch` and `machinist events` print, with --json too"))
}

/// Returns the reason that nothing can be done here; `None` if actions can be signed.
fn refusal(settings: &Settings) -> Result<Option<String>, CliError> {
    let can_sign = settings.keyring()?.is_some() || settings.allow_unsigned.value;
    let reason = "there is no key here that signs an action; --key-file FILE names one";
    Ok((!can_sign).then(|| reason.to_owned()))
}

/// Signals that end the program.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl EndSignals {
    fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                CliError::from_error(Code::Fault, &error).context("signals cannot be received")
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Returns the namespace and the servers, which tell one installation from another.
fn title(settings: &Settings) -> String {
    let (broker, backend) = (settings.broker.value.to_string(), settings.backend.value.to_string());
    let servers = if broker == backend { broker } else { format!("{broker}  {backend}") };
    format!("{}  {servers}", settings.namespace.value)
}

/// Shows the state and changes it, until a key or a signal ends that.
async fn watch(
    app: &App,
    settings: &Settings,
    refusal: Option<String>,
    screen: &mut Screen,
    signals: &mut EndSignals,
) -> Result<(), CliError> {
    let asker = Asker {
        app: app.clone(),
        configured: settings.worker.named_queues().collect(),
        events: settings.events.value,
    };
    let paint = Paint { coloured: is_coloured(true, |name| env::var_os(name)) };
    let mut state = TopState::new(title(settings), refusal, app.clock().now());
    let mut keys = EventStream::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let panicked = screen.panicked();
    let (sender, mut received) = unbounded_channel();
    // Dropped at the end, which ends what is still asked.
    let mut work = JoinSet::new();
    loop {
        for question in state.due(app.clock().now()) {
            let (asker, sender) = (asker.clone(), sender.clone());
            work.spawn(async move {
                let answer = asker.ask(&question).await;
                tell(&sender, TopEvent::Answered(question, answer));
            });
        }
        screen.draw(|frame| draw(frame, &state, paint))?;
        let event = tokio::select! {
            // First, so that a busy server or keyboard keeps nobody from ending it.
            biased;
            () = signals.received() => TopEvent::Stop,
            () = panicked.notified() => return Err(CliError::new(Code::Fault, "a part of top has panicked, see above")),
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) => TopEvent::Key(key),
                Some(Ok(Event::Paste(text))) => TopEvent::Pasted(text),
                Some(Ok(_)) => TopEvent::Tick,
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(CliError::new(Code::Fault, "the terminal was closed")),
            },
            // Never `None`: a sender is here.
            Some(event) = received.recv() => event,
            Some(_ended) = work.join_next() => continue,
            _ = tick.tick() => TopEvent::Tick,
        };
        match state.update(event, app.clock().now()) {
            TopStep::Draw => {}
            TopStep::End => return Ok(()),
            TopStep::Act(action) => {
                let (app, sender) = (app.clone(), sender.clone());
                work.spawn(async move {
                    let progress = |text| tell(&sender, TopEvent::Progress(text));
                    let done = act::perform(&app, &action, progress).await;
                    tell(&sender, TopEvent::Acted(done));
                });
            }
        }
    }
}

fn tell(sender: &UnboundedSender<TopEvent>, event: TopEvent) {
    // Nobody receives after the end.
    let _ = sender.send(event);
}
