//! The dashboard in a real browser, against a real worker: what a person sees, presses, and waits for.

mod chromium;

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use machinist::{
    DeadFilter, TaskDef, TaskError, WorkerBuilder,
    periodic::{Periodic, Schedule},
    workflow::chain,
};
use machinist_web::{Access, Dashboard};
use tokio::sync::{Mutex, MutexGuard};

use self::chromium::Browser;
use crate::{
    pages,
    support::{ECHO, FAIL, House, SOON},
};

/// Task that fails until its cause is mended.
const IMPORT: TaskDef<u32, ()> = TaskDef::new("import").queue("mail");
/// Number of tasks among which the failed ones are found; `MACHINIST_BROWSER_TASKS` sets another one.
static TASKS: LazyLock<u32> =
    LazyLock::new(|| std::env::var("MACHINIST_BROWSER_TASKS").map_or(2_000, |count| count.parse().unwrap()));
/// Number of tasks that fail for one reason.
const FAILED: u32 = 300;
/// Widths and heights of a phone, a laptop and a wide screen.
const SIZES: [(&str, u32, u32); 3] = [("phone", 390, 844), ("laptop", 1280, 900), ("wide", 1920, 1080)];

/// One browser at a time: each is as much as the machine can bear.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// An application with a worker whose import fails until it is mended.
struct Shop {
    house: House,
    mended: Arc<AtomicBool>,
}

impl Shop {
    async fn open() -> Self {
        let mended = Arc::new(AtomicBool::new(false));
        let import = {
            let mended = Arc::clone(&mended);
            move |file: u32| {
                let is_mended = mended.load(Ordering::SeqCst);
                let problem = || TaskError::permanent(format!("cannot import file {file}: the disk is full"));
                std::future::ready(if is_mended { Ok(()) } else { Err(problem()) })
            }
        };
        let report = ECHO.call("the report".to_owned());
        let nightly = Periodic::new("nightly-report", Schedule::cron("0 3 * * *").unwrap(), report).unwrap();
        let more =
            |worker: WorkerBuilder| worker.name("one").concurrency(64).task(IMPORT, import).periodic(nightly);
        Self { house: House::with(more).await, mended }
    }

    fn dashboard(&self) -> Dashboard {
        Dashboard::new(self.house.app.clone(), Access::local()).name("shop").verifies_outcomes()
    }

    /// Sends a workflow whose second step fails, and returns its path.
    async fn workflow(&self) -> String {
        let steps = chain(ECHO.call("the network is down".to_owned())).then(FAIL.with(()));
        let sent = self.house.app.client().send(steps).await.unwrap();
        sent.wait_record(SOON).await.unwrap();
        format!("/workflows/{}", sent.workflow_id().unwrap())
    }

    /// Returns the paths of all pages that are about something.
    async fn pages(&self) -> Vec<String> {
        let task = self.house.failed("the disk is full").await;
        let others = ["/workers/one".to_owned(), "/send?task=echo".to_owned(), format!("/tasks/{task}")];
        let fixed = pages::FIXED.map(str::to_owned).into_iter();
        fixed.chain(others).chain([self.workflow().await]).collect()
    }
}

/// Runs a test in a browser with the dashboard of a shop. Skips it, and says so, where no browser is installed.
macro_rules! in_browser {
    ($shop:ident, $browser:ident, script: $script:expr) => {
        let _turn = turn().await;
        let $shop = Shop::open().await;
        let Some($browser) = Browser::open($shop.dashboard(), $script).await else { return };
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_complains_or_is_wider_than_the_screen() {
    in_browser!(shop, browser, script: true);
    browser.visit_until("/workers/one", "Drain and stop").await;
    for (size, width, height) in SIZES {
        browser.size(width, height).await;
        for path in shop.pages().await {
            browser.visit(&path).await;
            let wider = browser.ask("return document.documentElement.scrollWidth - innerWidth").await;
            assert!(
                wider.as_i64().unwrap() <= 0,
                "{path} at the size of a {size} is {wider} pixels too wide"
            );
            assert_eq!(browser.complaints().await, [""; 0], "{path} at the size of a {size}");
        }
    }
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_finds_what_fails_and_why_and_replays_it() {
    in_browser!(shop, browser, script: true);
    find_and_replay(&shop, &browser, *TASKS).await;
    assert_eq!(browser.complaints().await, [""; 0]);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_goes_without_script() {
    in_browser!(shop, browser, script: false);
    find_and_replay(&shop, &browser, 20).await;
    browser.close().await;
}

/// From the first page to the reason of the failures and back to a queue without dead letters, by links and buttons alone.
async fn find_and_replay(shop: &Shop, browser: &Browser, tasks: u32) {
    let failed = FAILED.min(tasks);
    let client = shop.house.app.client();
    for sent in client.send_all((failed..tasks).map(|number| ECHO.call(number.to_string())).collect()).await {
        sent.unwrap();
    }
    for sent in client.send_all((0..failed).map(|file| IMPORT.call(file)).collect()).await {
        sent.unwrap().wait_record(SOON).await.unwrap();
    }
    shop.house.app.flush_events().await;
    // What is wrong is on the first page, and leads to the failures.
    browser.visit_until("/", "failed within").await;
    browser.press_at("//ul[@class='troubles']//a[contains(., 'failed within')]").await;
    browser.shows("the disk is full").await;
    // The number leads to the tasks, and a task to its reason.
    browser.press_at(&format!("//tr[contains(., 'import')]//a[normalize-space() = '{failed}']")).await;
    browser.press_at("(//main//td//a[contains(@class, 'id')])[1]").await;
    browser.shows("the disk is full").await;
    browser.shows("FAILURE").await;
    // The disk has room again. The dead letters of this cause are replayed, and nothing else.
    shop.mended.store(true, Ordering::SeqCst);
    browser.press("Failures").await;
    browser.press_at("//tr[contains(., 'import')]//a[normalize-space() = 'Show']").await;
    while !client.dead_letters(&DeadFilter::default(), 1).await.unwrap().is_empty() {
        browser.press("Select all of these").await;
        browser.press_and_see("Replay the selected", "The dead letters were replayed.").await;
    }
    browser.shows("There is no such dead letter.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_button_does_what_it_says() {
    in_browser!(shop, browser, script: true);
    browser.visit_until("/workers/one", "Drain and stop").await;
    // A queue and a worker.
    browser.visit("/queues/mail").await;
    browser.press_and_see("Pause", "It is paused.").await;
    browser.press_and_see("Resume", "It is resumed.").await;
    browser.press("Look at the first messages").await;
    browser.visit("/workers/one").await;
    browser.press("Pause").await;
    browser.visit_until("/workers/one", "asleep").await;
    browser.press("Resume").await;
    browser.visit_until("/workers/one", "awake").await;
    // A task is sent by a form, fails, and is sent again.
    browser.visit("/send").await;
    browser.press("fail").await;
    browser.find("//input[@name='arg']").await.send_keys("<b>no</b>").await.unwrap();
    browser.press_at("//main//button[. = 'Send']").await;
    browser.shows("It was sent.").await;
    browser.press("Show the task").await;
    let task = browser.page.current_url().await.unwrap().path().to_owned();
    browser.visit_until(&task, "FAILURE").await;
    browser.shows("<b>no</b>").await;
    browser.press_at("//button[. = 'Retry']").await;
    browser.shows("It was sent again.").await;
    // A cause is silenced and listed again.
    shop.house.app.flush_events().await;
    browser.visit_until("/failures", "<b>no</b>").await;
    browser.press_and_see("Silence for a week", "The group is silenced").await;
    browser.press("Show 1 silenced groups").await;
    browser.press_and_see("List it again", "The group is listed again.").await;
    // Dead letters are selected one by one, and purged.
    browser.visit_until("/dead", "<b>no</b>").await;
    browser.press_at("(//input[@type='checkbox'])[1]").await;
    browser.press_and_see("Purge the selected", "The dead letters were purged.").await;
    // A periodic task.
    browser.visit_until("/periodic", "nightly-report").await;
    browser.press_and_see("Trigger", "An extra tick was sent.").await;
    browser.press_and_see("Pause", "It is paused.").await;
    browser.press_and_see("Resume", "It is resumed.").await;
    assert_eq!(browser.complaints().await, [""; 0]);
    browser.visit("/workers/one").await;
    browser.press("Drain and stop").await;
    browser.visit_until("/workers", "0 live workers").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_moves_under_the_hand_and_the_rest_is_live() {
    in_browser!(shop, browser, script: true);
    browser.visit_until("/", "1 live workers").await;
    shop.house.failed("one").await;
    // Nobody touches the page: it changes.
    browser.shows("dead letter").await;
    // A link has the focus: the page stands, and offers what is new.
    browser.ask("document.querySelector('#live table a').focus()").await;
    let before = browser.ask("return document.getElementById('live').innerHTML").await;
    shop.house.failed("two").await;
    let offer = browser.find("//p[contains(@class, 'new') and not(@hidden)]/button").await;
    assert_eq!(browser.ask("return document.getElementById('live').innerHTML").await, before);
    offer.click().await.unwrap();
    browser.shows("2 dead letters").await;
    assert_eq!(browser.complaints().await, [""; 0]);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_tabs_are_alive_and_a_form_still_posts() {
    in_browser!(shop, browser, script: true);
    browser.visit_until("/", "1 live workers").await;
    for _ in 1..20 {
        let tab = browser.page.new_window(true).await.unwrap();
        browser.page.switch_to_window(tab.handle).await.unwrap();
        browser.visit("/").await;
    }
    let tabs = browser.page.windows().await.unwrap();
    assert_eq!(tabs.len(), 20);
    for (number, tab) in tabs.into_iter().enumerate() {
        browser.page.switch_to_window(tab).await.unwrap();
        shop.house.failed("no").await;
        browser.shows(&format!("{} dead letter", number + 1)).await;
    }
    browser.visit("/queues/mail").await;
    browser.press_and_see("Pause", "It is paused.").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_reaches_the_content_first() {
    in_browser!(shop, browser, script: true);
    browser.visit_until("/queues", "mail").await;
    let tab = '\u{e004}'.to_string();
    browser.find("//body").await.send_keys(&tab).await.unwrap();
    let skip = browser.page.active_element().await.unwrap();
    assert_eq!(skip.text().await.unwrap(), "Skip to the content");
    skip.send_keys("\u{e007}").await.unwrap();
    assert!(browser.page.current_url().await.unwrap().as_str().ends_with("#content"));
    browser.close().await;
}
