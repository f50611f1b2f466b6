//! How often a task asks for memory, and for how much: in a sender, and in a worker.
//!
//! Counted by an allocator that counts, and so in a build of its own (the feature `allocations`): it takes many times
//! longer than the real one, and nothing else is to be measured with it.

use std::io::Write as _;

use anyhow::{Result, ensure};

use crate::{
    Place,
    order::{Duty, Order, Servers, System, Told},
    report,
    runner::{Bench, Part},
};

#[cfg(feature = "allocations")]
#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const QUEUE: &str = "bench-allocations";
const TASKS: usize = 10_000;

/// Counts from now on, and writes where memory was asked for into this directory when it is dropped, for DHAT's viewer.
#[cfg(feature = "allocations")]
pub(crate) fn begin(place: &Place, order: &Order) -> impl Sized {
    let duty = if matches!(order.duty, Duty::Work { .. }) { "worker" } else { "sender" };
    let name = format!("allocations-{}-{duty}.json", order.system.name());
    dhat::Profiler::builder().file_name(place.dir.join(name)).trim_backtraces(Some(24)).build()
}

/// Counts nothing.
#[cfg(not(feature = "allocations"))]
pub(crate) fn begin(_: &Place, _: &Order) -> impl Sized {}

/// Blocks and bytes that this process has asked for since [`begin`].
pub(crate) fn so_far() -> [u64; 2] {
    #[cfg(feature = "allocations")]
    {
        let stats = dhat::HeapStats::get();
        [stats.total_blocks, stats.total_bytes]
    }
    #[cfg(not(feature = "allocations"))]
    [0; 2]
}

/// Fills a queue and drains it with either pipeline, and prints what each task cost.
pub(crate) async fn run(place: &Place) -> Result<()> {
    ensure!(cfg!(feature = "allocations"), "built without counting: run `cargo xtask bench allocations`");
    let bench = Bench::prepare(place).await?;
    let duties = [
        ("sender, batches of 1000", Duty::SendAll { batch: 1000 }),
        ("worker, concurrency 256", Duty::Work { concurrency: 256, sleep_ms: 0, wakes: false }),
    ];
    let mut told = Vec::new();
    for system in [System::Floor, System::Machinist] {
        for (_, duty) in duties {
            let order = Order {
                system,
                duty,
                servers: Servers::Network { amqp: place.amqp.clone(), redis: place.redis.clone() },
                queue: QUEUE.to_owned(),
                tasks: TASKS,
                payload: 100,
                watched: None,
            };
            told.push(Part::start(&order).await?.done().await?);
        }
        bench.tidy(QUEUE).await?;
    }
    let mut out = std::io::stdout();
    writeln!(out, "| each of {TASKS} tasks | floor, blocks | bytes | machinist, blocks | bytes |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    let each = |told: &Told| {
        let [blocks, bytes] = told.allocated.map(|total| total as f64 / TASKS as f64);
        format!("{blocks:.1} | {bytes:.0}")
    };
    for ((name, _), (floor, ours)) in duties.iter().zip(told[..2].iter().zip(&told[2..])) {
        writeln!(out, "| {name} | {} | {} |", each(floor), each(ours))?;
    }
    report::note(&format!("where: {}/allocations-*.json, for DHAT's viewer", place.dir.display()));
    Ok(())
}
