//! State of a dashboard that its pages share: the application, the access, the panels, the options.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use machinist::{
    App, Client, FailureGroups, HistorySelection, QueueName, RegisteredName, ResultError, TaskId,
    WorkerFilter, WorkerInfo,
    periodic::PeriodicTask,
    record::Record,
    settings::TraceLink,
    view::{ArgsView, QueueView, TaskView},
};
use tokio::sync::Semaphore;

use crate::{
    access::Access,
    day::{DAY, DayHistory},
    overview::Overview,
    panel::{Panel, PanelView},
    redaction::Redaction,
    sight::Sight,
    web_error::{WebError, chain},
};

/// Maximum number of open event streams.
pub(crate) const MAX_STREAMS: usize = 200;
/// Maximum time of a look that a page or a request of the API waits for.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// Time before now from which the history of a day is read. It is more than a day, so that the longest buckets are read.
const READ_DAY: Duration = Duration::from_secs(DAY.as_secs() + 600);
/// Time for which the history of a day counts as new.
const FRESH_DAY: Duration = Duration::from_secs(60);

/// State of a dashboard.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) app: App,
    pub(crate) access: Access,
    pub(crate) options: SiteOptions,
    pub(crate) streams: Arc<Semaphore>,
    queues: Arc<Panel<Vec<QueueView>>>,
    workers: Arc<Panel<Vec<WorkerInfo>>>,
    failures: Arc<Panel<FailureGroups>>,
    periodic: Arc<Panel<Vec<PeriodicTask>>>,
    registered: Arc<Panel<Vec<RegisteredName>>>,
    day: Arc<Panel<DayHistory>>,
}

/// Options of a dashboard.
#[derive(Debug, Clone, Default)]
pub(crate) struct SiteOptions {
    /// Name of the installation, on every page.
    pub(crate) name: Option<String>,
    pub(crate) read_only: bool,
    /// `true` if a key verifies every outcome that is read.
    pub(crate) verifies: bool,
    pub(crate) trace_link: Option<TraceLink>,
    /// Tasks whose arguments are not shown.
    pub(crate) hidden_args: BTreeSet<String>,
    pub(crate) redaction: Redaction,
    /// Queues that are listed though nobody has used them yet.
    pub(crate) queues: Vec<QueueName>,
}

impl Site {
    pub(crate) fn new(app: App, access: Access, options: SiteOptions) -> Self {
        Self {
            app,
            access,
            options,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            queues: Arc::new(Panel::new("the queues")),
            workers: Arc::new(Panel::new("the workers")),
            failures: Arc::new(Panel::new("the failures")),
            periodic: Arc::new(Panel::new("the periodic tasks")),
            registered: Arc::new(Panel::new("the tasks of the workers")),
            day: Arc::new(Panel::new("the history").fresh_for(FRESH_DAY)),
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.app.client()
    }

    /// Returns the known queues with their numbers.
    pub(crate) async fn queues(&self, sight: &Sight) -> PanelView<Vec<QueueView>> {
        let (client, configured) = (self.client(), self.options.queues.clone());
        let seen = self
            .queues
            .see(move || async move {
                let listed = client.listed_queues().await.map_err(|error| chain(&error))?;
                let names: BTreeSet<QueueName> = listed.into_keys().chain(configured).collect();
                let names: Vec<QueueName> = names.into_iter().collect();
                let details = client.queue_details(&names).await.map_err(|error| chain(&error))?;
                Ok(details.iter().map(QueueView::from).collect())
            })
            .await;
        sight.of(seen, |queues| queues.retain(|queue: &QueueView| sight.queue(&queue.queue)))
    }

    /// Returns the live workers.
    pub(crate) async fn workers(&self, sight: &Sight) -> PanelView<Vec<WorkerInfo>> {
        let client = self.client();
        let seen =
            self.workers
                .see(move || async move {
                    client.workers(&WorkerFilter::new()).await.map_err(|error| chain(&error))
                })
                .await;
        sight.of(seen, |workers| workers.retain_mut(|worker| sight.reduce_worker(worker)))
    }

    /// Returns the groups of failures.
    pub(crate) async fn failures(&self, sight: &Sight) -> PanelView<FailureGroups> {
        let client = self.client();
        let seen = self
            .failures
            .see(move || async move { client.failures(None).await.map_err(|error| chain(&error)) })
            .await;
        sight.of(seen, |failures| failures.groups.retain(|group| sight.group(group)))
    }

    /// Lets the next page read everything again that an action can have changed.
    pub(crate) fn expire(&self) {
        self.queues.expire();
        self.workers.expire();
        self.failures.expire();
        self.periodic.expire();
        self.registered.expire();
    }

    /// Returns the periodic tasks.
    pub(crate) async fn periodic(&self, sight: &Sight) -> PanelView<Vec<PeriodicTask>> {
        let client = self.client();
        let seen = self
            .periodic
            .see(move || async move { client.periodic_tasks().await.map_err(|error| chain(&error)) })
            .await;
        sight.of(seen, |tasks| tasks.retain(|task| sight.periodic(task)))
    }

    /// Returns the tasks that live workers know.
    pub(crate) async fn registered(&self, sight: &Sight) -> PanelView<Vec<RegisteredName>> {
        let client = self.client();
        let seen = self
            .registered
            .see(move || async move { client.registered_tasks().await.map_err(|error| chain(&error)) })
            .await;
        sight.of(seen, |tasks| tasks.retain_mut(|task| sight.reduce_registered(task)))
    }

    /// Returns the history of the last 24 hours.
    pub(crate) async fn day(&self) -> PanelView<DayHistory> {
        let (client, now) = (self.client(), self.app.clock().now());
        self.day
            .see(move || async move {
                let read = client.history(now.minus(READ_DAY), &HistorySelection::new()).await;
                read.map(|history| DayHistory::of(&history, now)).map_err(|error| chain(&error))
            })
            .await
    }

    /// Returns all that the live part of the first page shows.
    pub(crate) async fn overview(&self, sight: &Sight) -> Overview {
        let (queues, workers, failures) =
            tokio::join!(self.queues(sight), self.workers(sight), self.failures(sight));
        Overview { queues, workers, failures }
    }

    /// Returns the record of a task.
    ///
    /// # Errors
    /// There is none that is seen, it is not believed, or the backend does not answer.
    pub(crate) async fn record(&self, sight: &Sight, id: &TaskId) -> Result<Record, WebError> {
        let record = look("the record", self.app.result(id.clone()).record()).await?;
        if sight.record(&record) { Ok(record) } else { Err(ResultError::Unknown { id: id.clone() }.into()) }
    }

    /// Refuses a task that is not seen, for those who do not see everything.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub(crate) async fn check_task(&self, sight: &Sight, id: &TaskId) -> Result<(), WebError> {
        if sight.is_whole() { Ok(()) } else { self.record(sight, id).await.map(drop) }
    }

    /// Returns the view of a record, without its arguments.
    pub(crate) fn task_view(&self, record: &Record, root: Option<String>) -> TaskView {
        // Of a task whose record has expired, nothing proves what was listed.
        let is_stored = record.sent_at.is_some() || record.started_at.is_some();
        let verified = self.options.verifies && !record.mirrored && is_stored;
        let view = TaskView::from(record).verified(verified).at(record, self.app.clock().now());
        let mut view = view.of_workflow(root);
        if let Some(link) = &self.options.trace_link {
            link.add_to(&mut view);
        }
        view
    }

    /// Returns the arguments of a task, unless they are hidden, as the application redacts them.
    ///
    /// # Errors
    /// The backend cannot be asked.
    pub(crate) async fn args(&self, record: &Record) -> Result<ArgsView, WebError> {
        let known = self.client().arguments(std::slice::from_ref(&record.id)).await?.pop();
        let is_hidden = record.name.as_ref().is_some_and(|name| self.options.hidden_args.contains(name));
        let args = known.map_or_else(ArgsView::default, |known| ArgsView::of(known, is_hidden));
        Ok(self.options.redaction.apply(record, args))
    }
}

/// Waits for a look at the stores, for a bounded time.
///
/// # Errors
/// The error of the look, or that there was no answer in time.
pub(crate) async fn look<T, E: Into<WebError>>(
    what: &str,
    looking: impl Future<Output = Result<T, E>>,
) -> Result<T, WebError> {
    within(LOOK_LIMIT, what, looking).await
}

/// Waits for a part of a page, for a second.
///
/// # Errors
/// As [`look`].
pub(crate) async fn glance<T, E: Into<WebError>>(
    what: &str,
    looking: impl Future<Output = Result<T, E>>,
) -> Result<T, WebError> {
    within(crate::panel::PATIENCE, what, looking).await
}

async fn within<T, E: Into<WebError>>(
    limit: Duration,
    what: &str,
    looking: impl Future<Output = Result<T, E>>,
) -> Result<T, WebError> {
    match tokio::time::timeout(limit, looking).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(WebError::away(format!("{what}: no answer within {} s", limit.as_secs()))),
    }
}
