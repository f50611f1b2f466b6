//! The dashboard below a path of another application: links, forms and redirects stay there.

use axum::{Router, routing::get};
use machinist_web::{Access, Dashboard};

use crate::support::{House, Site};

#[tokio::test]
async fn every_link_stays_below_the_mount() {
    let house = House::open().await;
    let id = house.failed("no").await;
    let dashboard = Dashboard::new(house.app.clone(), Access::local()).name("shop").router();
    let site = Site::new(Router::new().route("/", get(async || "shop")).nest("/admin/jobs", dashboard));
    assert_eq!(site.get("/").await.is(200).text, "shop");
    site.get("/admin/jobs").await.is(200).has(&[
        "href=\"./jobs/style.css\"",
        "href=\"./jobs/queues\"",
        "data-root=\"./jobs/\"",
    ]);
    site.get("/admin/jobs/tasks").await.is(200).has(&["href=\"./style.css\"", "href=\"./queues\""]);
    let page = site.get(&format!("/admin/jobs/tasks/{id}")).await.is(200);
    let page = page.has(&["href=\"../style.css\"", "action=\"../api/tasks/", "shop"]);
    for attribute in ["href=\"/", "action=\"/", "src=\"/", "href=\"http"] {
        assert!(!page.text.contains(attribute), "{attribute}: {}", page.text);
    }
    let done =
        site.press(&format!("/admin/jobs/api/tasks/{id}/retry"), &format!("back=tasks%2F{id}")).await.is(303);
    assert!(done.header("location").starts_with(&format!("../../../tasks/{id}?done=retry")), "{done:?}");
    site.get("/admin/jobs/style.css").await.is(200);
    site.get("/admin/jobs/nothing").await.is(404).has(&["<html"]);
}
