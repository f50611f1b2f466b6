//! Tasks that run or wait for longer than the broker lets a worker hold a delivery: on a RabbitMQ that the test starts
//! with a `consumer_timeout` of three seconds.

use lapin::{Connection, ConnectionProperties, options::QueueDeleteOptions};
use nix::sys::signal::Signal;
use serde_json::json;
use xtask::{interrupt::Interrupt, services::Services};

use crate::support::{Folder, eventually, eventually_else};

/// RabbitMQ and Redis that end with their test.
#[derive(Debug)]
pub(crate) struct Private {
    pub(crate) services: Services,
    pub(crate) folder: Folder,
    amqp_url: String,
}

impl Private {
    /// Starts the servers. Returns `None` if no RabbitMQ is installed, and fails if servers are required.
    pub(crate) fn start(test: &str, toml: &str) -> Option<Self> {
        let mut folder = Folder::with(toml);
        let services = Services::at(&folder.path().join("servers")).unwrap();
        let up = match services.up(&Interrupt::listen().unwrap()) {
            Ok(up) => up,
            Err(error) if std::env::var("MACHINIST_REQUIRE_SERVICES").is_ok_and(|value| value == "1") => {
                panic!("{test}: {error:#}")
            }
            Err(error) => {
                eprintln!("SKIPPED: {test}: no servers can be started: {error:#}");
                return None;
            }
        };
        folder.set("MACHINIST_BROKER", &up.endpoints.amqp_url);
        folder.set("MACHINIST_BACKEND", &up.endpoints.redis_url);
        folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
        Some(Self { services, folder, amqp_url: up.endpoints.amqp_url })
    }

    /// Deletes a queue at once. `rabbitmqctl` starts an Erlang node first, which has taken 24 s on a busy host.
    pub(crate) fn delete_queue(&self, queue: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deleted = runtime.block_on(async {
            let connection = Connection::connect(&self.amqp_url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
            connection.close(200, "deleted".into()).await
        });
        deleted.unwrap();
    }

    /// Returns the number of starts of a task.
    fn runs(&self, id: &str) -> usize {
        let runs = std::fs::read_to_string(self.folder.path().join("runs")).unwrap_or_default();
        runs.lines().filter(|run| *run == id).count()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(error) = self.services.down() {
            eprintln!("servers of a test stay behind: {error:#}");
        }
    }
}

const TOML: &str = r#"
[worker]
consumer_timeout = "3s"
concurrency = 2

[tasks.long]
command = ["sh", "-c", "echo $MACHINIST_TASK_ID >> runs; sleep 10"]
"#;

#[test]
fn tasks_far_longer_than_the_consumer_timeout_run_once() {
    let Some(private) = Private::start("tasks_far_longer_than_the_consumer_timeout_run_once", TOML) else {
        return;
    };
    // The broker checks four times a second instead of once a minute.
    let limits = "application:set_env(rabbit, consumer_timeout, 3000), \
                  application:set_env(rabbit, channel_tick_interval, 250).";
    private.services.rabbitmqctl(&["eval", limits]).unwrap();
    let folder = &private.folder;

    // Two tasks run for three timeouts, two wait in the queue for the same time.
    let steady = folder.worker(&["--queue", "steady"]);
    let sent: Vec<String> = (0..4).map(|_| folder.send(&["long", "--queue", "steady"])).collect();

    // One task is killed with its worker, after a copy has replaced its delivery.
    let mut killed = folder.worker(&["--queue", "killed"]);
    let unlucky = folder.send(&["long", "--queue", "killed"]);
    eventually("a guard is out", || folder.facts(&unlucky).has("g:1:1").then_some(()));
    killed.signal(Signal::SIGKILL);
    killed.stderr.rest();
    let heir = folder.worker(&["--queue", "killed"]);

    // A copy in the delays replaces the delivery of each that runs, so that the broker does not take it back. On a slow
    // machine that can be too late, and changes nothing but the subscription.
    let guarded = || sent.iter().filter(|id| folder.facts(id).has("g:1:1")).count();
    eventually("two guards are out", || (guarded() >= 2).then_some(()));
    for id in &sent {
        folder.run(&["status", id, "--watch"]).ended(0);
        assert_eq!((private.runs(id), &folder.status(id)["attempt"]), (1, &json!(1)));
    }
    steady.stop().ended(0);

    // More often than twice if the machine is so slow that a session is lost.
    let runs = || private.runs(&unlucky);
    let missing = || format!("it runs again after {} runs: {}", runs(), folder.status(&unlucky));
    eventually_else(missing, || (runs() >= 2).then_some(()));
    folder.run(&["status", &unlucky, "--watch"]).ended(0);
    assert_eq!(folder.status(&unlucky)["attempt"], json!(1));
    heir.stop().ended(0);
}
