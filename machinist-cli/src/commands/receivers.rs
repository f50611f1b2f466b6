//! Note to a sender whose task nobody receives now: a wrong name is told at once, and not when the wait is over.

use machinist::{Client, NoReceiver, QueueName, TaskName};

use crate::{exit::chain, output};

/// Prints a note if no worker consumes this queue, or none of its workers knows this task. The task is sent: a question
/// that fails is no error.
pub(super) async fn note(client: &Client, queue: &QueueName, task: Option<&TaskName>) {
    let Some(task) = task else { return };
    match client.no_receiver(queue, task).await {
        Ok(None) => {}
        Ok(Some(lack)) => {
            let (problem, remedy) = texts(queue.as_str(), task.as_str(), &lack);
            output::note(&format!("machinist: {problem}"));
            output::note(&format!("  {remedy}"));
        }
        Err(error) => tracing::debug!(error = chain(&error), "nobody says whether a worker takes the task"),
    }
}

/// Returns the problem and the remedy.
fn texts(queue: &str, task: &str, lack: &NoReceiver) -> (String, String) {
    let elsewhere = |queues: &std::collections::BTreeSet<String>| {
        let queues: Vec<_> = queues.iter().map(String::as_str).collect();
        (!queues.is_empty()).then(|| format!("workers of queue {} know {task};", queues.join(", ")))
    };
    match lack {
        NoReceiver::NoConsumer { nearest, task_is_in } => {
            let meant = nearest.as_ref().map(|name| format!("did you mean --queue {name}?"));
            let start = format!("`machinist worker --queue {queue}` starts one");
            (
                format!("no worker consumes queue {queue}; the task waits there"),
                meant
                    .or_else(|| elsewhere(task_is_in))
                    .map_or_else(|| start.clone(), |hint| format!("{hint} {start}")),
            )
        }
        NoReceiver::UnknownTask { nearest, task_is_in } => {
            let meant = nearest.as_ref().map(|name| format!("did you mean {name}?"));
            let registered = "`machinist registered` lists the known ones".to_owned();
            (
                format!("no worker of queue {queue} knows the task {task}; it waits for one that does"),
                meant
                    .or_else(|| elsewhere(task_is_in))
                    .map_or_else(|| registered.clone(), |hint| format!("{hint} {registered}")),
            )
        }
        NoReceiver::NoTag { queue, tags } => {
            let flags: String = tags.iter().map(|tag| format!(" --tag {tag}")).collect();
            (
                format!(
                    "no worker of queue {queue} has the tags {}; the task waits for one",
                    tags.join(", ")
                ),
                format!("`machinist worker --queue {queue}{flags}` starts one"),
            )
        }
        _ => (
            format!("no worker takes the task {task} from queue {queue}"),
            "`machinist why ID` says more".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_note_names_the_problem_and_the_remedy() {
        let none = BTreeSet::new;
        let mail = || BTreeSet::from(["mail".to_owned()]);
        let typo = NoReceiver::NoConsumer { nearest: Some("mail".into()), task_is_in: none() };
        assert_eq!(
            texts("mial", "send", &typo),
            (
                "no worker consumes queue mial; the task waits there".to_owned(),
                "did you mean --queue mail? `machinist worker --queue mial` starts one".to_owned()
            )
        );
        let wrong_queue = NoReceiver::NoConsumer { nearest: None, task_is_in: mail() };
        assert!(texts("video", "send", &wrong_queue).1.starts_with("workers of queue mail know send; `mach"));
        let alone = NoReceiver::NoConsumer { nearest: None, task_is_in: none() };
        assert_eq!(texts("q", "send", &alone).1, "`machinist worker --queue q` starts one");
        let unknown = NoReceiver::UnknownTask { nearest: Some("send".into()), task_is_in: none() };
        let (problem, remedy) = texts("mail", "sned", &unknown);
        assert_eq!(problem, "no worker of queue mail knows the task sned; it waits for one that does");
        assert_eq!(remedy, "did you mean send? `machinist registered` lists the known ones");
    }
}
