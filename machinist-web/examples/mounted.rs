//! The dashboard in an axum application, below `/jobs`, for the people of a password file.
//!
//! `machinist web user ada --role admin > users.txt` makes the file.

use std::{net::SocketAddr, path::Path};

use axum::{Router, routing::get};
use machinist::{App, AppExt as _};
use machinist_web::{Access, Dashboard};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = App::from_env().await?;
    let access = Access::new().password_file(Path::new("users.txt"))?;
    let dashboard = Dashboard::new(app, access).name("shop").router();
    let router: Router = Router::new().route("/", get(async || "shop")).nest("/jobs", dashboard);
    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    // With the addresses of clients, for the log and the bound on wrong passwords.
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
