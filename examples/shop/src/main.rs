//! The service and its worker in one program.
//!
//! ```text
//! cargo run -p machinist-example-shop -- serve
//! cargo run -p machinist-example-shop -- worker
//! curl -d '{"email": "ada@example.org", "cents": [5, 7]}' -H 'content-type: application/json' localhost:3000/orders
//! ```

use machinist_example_shop::{routes, tasks};

fn main() -> std::process::ExitCode {
    machinist_cli::Program::new()
        .command("serve", "Serve the shop at 127.0.0.1:3000", async |settings, _arguments| {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
            Ok(axum::serve(listener, routes(machinist::LazyApp::from_settings(settings)?)).await?)
        })
        .run(async |worker| Ok(tasks::with_tasks(worker, tasks::Charges::default())))
}
