//! A Chromium without a window, driven through its WebDriver.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::http::Method;
use fantoccini::{
    Client, ClientBuilder, Locator,
    elements::Element,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use hyper_util::client::legacy::connect::HttpConnector;
use machinist_web::Dashboard;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use url::{ParseError, Url};

use crate::support::SOON;

/// Programs that have to be in the PATH.
const PROGRAMS: [&str; 2] = ["chromium", "chromedriver"];

/// A browser with one dashboard. Both end with it.
pub(super) struct Browser {
    pub(super) page: Client,
    /// Address of the dashboard, without the last slash.
    pub(super) address: String,
    _profile: TempDir,
    _driver: Driver,
    _server: DropGuard,
}

/// A process of the driver. Its browser ends with it.
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Browser {
    /// Starts a browser and the server of a dashboard. `None` where no Chromium is installed and `MACHINIST_REQUIRE_SERVICES` is not
    /// `1`: the test is skipped, and says so.
    pub(super) async fn open(dashboard: Dashboard, has_script: bool) -> Option<Self> {
        if !PROGRAMS.into_iter().all(runs) {
            machinist_conformance::skip(
                "chromium and chromedriver are not installed (`cargo xtask services install` installs them)",
            );
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move { machinist_web::serve(listener, dashboard.router(), stopped).await });
        let profile = TempDir::new().unwrap();
        let (driver, driver_address) = start_driver();
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities(&profile, has_script))
            .connect(&driver_address)
            .await
            .unwrap();
        let server = stop.drop_guard();
        let browser = Self { page, address, _profile: profile, _driver: driver, _server: server };
        browser.size(1280, 900).await;
        Some(browser)
    }

    /// Opens a page by its path.
    pub(super) async fn visit(&self, path: &str) {
        self.page.goto(&format!("{}{path}", self.address)).await.unwrap();
    }

    pub(super) async fn size(&self, width: u32, height: u32) {
        self.page.set_window_size(width, height).await.unwrap();
    }

    /// Waits for the element of an XPath.
    pub(super) async fn find(&self, path: &str) -> Element {
        let found =
            self.page.wait().at_most(SOON).every(Duration::from_millis(50)).for_element(Locator::XPath(path));
        match found.await {
            Ok(element) => element,
            Err(error) => panic!("{path}: {error}\n{}", self.text().await),
        }
    }

    /// Presses a link or a button with this text.
    pub(super) async fn press(&self, text: &str) {
        self.press_at(&format!("//*[self::a or self::button][contains(normalize-space(), \"{text}\")]"))
            .await;
    }

    /// Presses a button, and waits until the next page says what it has done.
    pub(super) async fn press_and_see(&self, button: &str, notice: &str) {
        self.press(button).await;
        self.shows(notice).await;
    }

    /// Presses the element of an XPath.
    pub(super) async fn press_at(&self, path: &str) {
        self.find(path).await.click().await.unwrap();
    }

    /// Waits until the page shows this text.
    pub(super) async fn shows(&self, text: &str) {
        self.find(&format!("//body[contains(normalize-space(), \"{text}\")]")).await;
    }

    /// Opens a page again until it shows this text.
    pub(super) async fn visit_until(&self, path: &str, text: &str) {
        let found = machinist_conformance::eventually(SOON, async || {
            self.visit(path).await;
            self.text().await.contains(text)
        });
        assert!(found.await, "{path}: {text:?} is missing: {}", self.text().await);
    }

    /// Returns the text of the page.
    pub(super) async fn text(&self) -> String {
        self.page.find(Locator::Css("body")).await.unwrap().text().await.unwrap()
    }

    /// Runs a function of JavaScript, and returns its value.
    pub(super) async fn ask(&self, body: &str) -> Value {
        self.page.execute(body, Vec::new()).await.unwrap()
    }

    /// Returns what the console of the page has said since the last call, errors and reports of the content policy included.
    pub(super) async fn complaints(&self) -> Vec<String> {
        let entries = self.page.issue_cmd(ConsoleLog).await.unwrap();
        let entries = entries.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Ends the browser.
    pub(super) async fn close(self) {
        self.page.close().await.unwrap();
    }
}

/// Starts a driver on a free port, and returns its address.
fn start_driver() -> (Driver, String) {
    let mut child = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let driver = Driver(child);
    let port = lines
        .by_ref()
        .map(Result::unwrap)
        .find_map(|line| Some(line.strip_suffix('.')?.split_once("successfully on port ")?.1.to_owned()))
        .unwrap();
    // A driver that nobody listens to would end.
    std::thread::spawn(move || lines.for_each(drop));
    (driver, format!("http://127.0.0.1:{port}"))
}

fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Options of a browser that asks nobody but the dashboard.
fn capabilities(profile: &TempDir, has_script: bool) -> Capabilities {
    let mut arguments: Vec<String> = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        "--lang=en",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--user-data-dir={}", profile.path().display()));
    let mut options = json!({ "args": arguments });
    if !has_script {
        options["prefs"] = json!({ "profile.managed_default_content_settings.javascript": 2 });
    }
    let mut capabilities = Capabilities::new();
    capabilities.insert("browserName".to_owned(), json!("chrome"));
    capabilities.insert("goog:chromeOptions".to_owned(), options);
    capabilities.insert("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL" }));
    capabilities
}

/// Command of Chromium that returns the log of the console.
#[derive(Debug)]
struct ConsoleLog;

impl WebDriverCompatibleCommand for ConsoleLog {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}
