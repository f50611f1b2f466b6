//! The graph of a workflow as SVG: a node for each step, a column for each number of steps before it, an arrow for each
//! dependency. Pure.
//!
//! The table of the steps has all of it in words. Of a large workflow the first steps are drawn, and the rest is counted.

use std::collections::{BTreeMap, HashMap};

use machinist::{record::TaskState, view::StepView};
use maud::{Markup, html};

use super::fields::{cell, grouped, state_form};
use crate::{link, visit::Visit};

/// Maximum number of nodes that are drawn.
const MAX_NODES: usize = 50;
/// Maximum number of arrows that are drawn.
const MAX_ARROWS: usize = 150;
/// Maximum length of a line in a node, in characters.
const MAX_LINE: usize = 22;
/// Size of a node.
const NODE: (f64, f64) = (168.0, 58.0);
/// Distance from one node to the next.
const PITCH: (f64, f64) = (222.0, 78.0);
/// Empty space around the graph.
const MARGIN: f64 = 10.0;

/// A step as it is drawn.
struct GraphNode<'a> {
    name: &'a str,
    state: TaskState,
    /// Third line: the members of a group, or the task.
    detail: String,
    /// Names of the steps before it.
    after: Vec<&'a str>,
    /// Page of its task.
    page: Option<String>,
    is_callback: bool,
}

/// The graph of these steps.
pub(super) fn graph(visit: &Visit, steps: &[StepView]) -> Markup {
    let nodes: Vec<GraphNode<'_>> = steps.iter().map(|step| node(&visit.root, step)).collect();
    draw(&nodes)
}

fn node<'a>(root: &str, step: &'a StepView) -> GraphNode<'a> {
    let detail = match step.members {
        None => step.task.clone(),
        Some(members) if members.failed == 0 => {
            format!("{} of {}", grouped(members.done.into()), grouped(members.total.into()))
        }
        Some(members) => {
            let [done, total, failed] =
                [members.done, members.total, members.failed].map(|number| grouped(number.into()));
            format!("{done} of {total}, {failed} failed")
        }
    };
    GraphNode {
        name: &step.name,
        state: step.state,
        detail,
        after: step.after.iter().map(String::as_str).collect(),
        // A group has no task of its own.
        page: step.members.is_none().then(|| format!("{root}{}", link::task(&step.id))),
        is_callback: step.error_callback,
    }
}

/// Places of the nodes that are drawn.
#[derive(Debug, PartialEq)]
struct GraphLayout {
    /// Number of a node with its column and its row. The row is a fraction where a column is short.
    places: Vec<(usize, (f64, f64))>,
    columns: usize,
    rows: usize,
}

/// Returns the column of each node: one more than the largest of the nodes before it. Nodes in a circle, which no workflow has
/// that was sent, get some column.
fn columns(before: &[Vec<usize>]) -> Vec<usize> {
    let mut waits: Vec<usize> = before.iter().map(Vec::len).collect();
    let mut following: Vec<Vec<usize>> = vec![Vec::new(); before.len()];
    for (node, before) in before.iter().enumerate() {
        before.iter().for_each(|earlier| following[*earlier].push(node));
    }
    let mut columns = vec![0; before.len()];
    let mut ready: Vec<usize> = (0..before.len()).filter(|node| waits[*node] == 0).collect();
    while let Some(node) = ready.pop() {
        for later in &following[node] {
            columns[*later] = columns[*later].max(columns[node] + 1);
            waits[*later] -= 1;
            if waits[*later] == 0 {
                ready.push(*later);
            }
        }
    }
    columns
}

/// Places the first nodes, at most this many: column by column, each beside the nodes before it.
fn layout(before: &[Vec<usize>], most: usize) -> GraphLayout {
    let columns = columns(before);
    let mut drawn: Vec<usize> = (0..before.len()).collect();
    drawn.sort_by_key(|node| columns[*node]);
    drawn.truncate(most);
    let of_columns = || drawn.chunk_by(|a, b| columns[*a] == columns[*b]);
    let rows = of_columns().map(<[usize]>::len).max().unwrap_or(0);
    let mut row_of: HashMap<usize, f64> = HashMap::new();
    let mut places = Vec::new();
    for (column, nodes) in of_columns().enumerate() {
        let mut wanted: Vec<(f64, usize)> =
            nodes.iter().map(|node| (mean_row(&before[*node], &row_of), *node)).collect();
        wanted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let above = (rows - nodes.len()) as f64 / 2.0;
        for (index, (_, node)) in wanted.into_iter().enumerate() {
            let row = above + index as f64;
            row_of.insert(node, row);
            places.push((node, (column as f64, row)));
        }
    }
    GraphLayout { places, columns: of_columns().count(), rows }
}

/// Returns the mean of the rows of these nodes; zero if none is drawn.
fn mean_row(nodes: &[usize], row_of: &HashMap<usize, f64>) -> f64 {
    let rows: Vec<f64> = nodes.iter().filter_map(|node| row_of.get(node).copied()).collect();
    if rows.is_empty() { 0.0 } else { rows.iter().sum::<f64>() / rows.len() as f64 }
}

fn draw(nodes: &[GraphNode<'_>]) -> Markup {
    let numbers: HashMap<&str, usize> = nodes.iter().enumerate().map(|(at, node)| (node.name, at)).collect();
    let before: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| node.after.iter().filter_map(|name| numbers.get(name).copied()).collect())
        .collect();
    let layout = layout(&before, MAX_NODES);
    let corner = |(column, row): (f64, f64)| (MARGIN + column * PITCH.0, MARGIN + row * PITCH.1);
    let corners: HashMap<usize, (f64, f64)> =
        layout.places.iter().map(|(node, place)| (*node, corner(*place))).collect();
    let arrows: Vec<(usize, usize)> = layout
        .places
        .iter()
        .flat_map(|(node, _)| before[*node].iter().map(|earlier| (*earlier, *node)))
        .filter(|(from, to)| from != to && corners.contains_key(from))
        .collect();
    let width = MARGIN * 2.0 + NODE.0 + layout.columns.saturating_sub(1) as f64 * PITCH.0;
    let height = MARGIN * 2.0 + NODE.1 + layout.rows.saturating_sub(1) as f64 * PITCH.1;
    html! {
        div.wide {
            svg.graph width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } role="group" aria-label="Graph of the workflow. The table of the steps has the same in words." {
                @for (from, to) in arrows.iter().take(MAX_ARROWS) {
                    @let class = if nodes[*to].is_callback { "callback" } else { "follows" };
                    path.(class) d=(arrow(corners[from], corners[to])) {}
                }
                @for (node, place) in &layout.places { (box_of(&nodes[*node], corner(*place))) }
            }
        }
        @if arrows.len() > MAX_ARROWS { p.hint { (grouped((arrows.len() - MAX_ARROWS) as u64)) " more arrows are not drawn." } }
        @if nodes.len() > layout.places.len() { p.hint { (left_out(nodes, &layout)) } }
    }
}

/// Says how many steps are not drawn, by their states.
fn left_out(nodes: &[GraphNode<'_>], layout: &GraphLayout) -> String {
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    nodes.iter().for_each(|node| *states.entry(node.state.as_str()).or_default() += 1);
    for (node, _) in &layout.places {
        if let Some(count) = states.get_mut(nodes[*node].state.as_str()) {
            *count -= 1;
        }
    }
    let counts = states.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = counts.map(|(state, count)| format!("{} {state}", grouped(*count))).collect();
    let more = nodes.len() - layout.places.len();
    format!("{} more steps are not drawn: {}.", grouped(more as u64), counts.join(", "))
}

/// Returns the path of an arrow from the right of one node to the left of another.
fn arrow(from: (f64, f64), to: (f64, f64)) -> String {
    let (x, y) = (from.0 + NODE.0, from.1 + NODE.1 / 2.0);
    let (end, end_y) = (to.0, to.1 + NODE.1 / 2.0);
    let middle = (x + end) / 2.0;
    format!("M{x} {y}C{middle} {y} {middle} {end_y} {end} {end_y}m-7-4l7 4l-7 4")
}

/// A node, as a link to its task if it has one.
fn box_of(node: &GraphNode<'_>, (x, y): (f64, f64)) -> Markup {
    let (class, shape) = state_form(node.state);
    let lines = html! {
        rect x=(x) y=(y) width=(NODE.0) height=(NODE.1) rx="5" {}
        text.title x=(x + 9.0) y=(y + 18.0) { (cut(node.name)) }
        text x=(x + 9.0) y=(y + 34.0) { (shape) " " (node.state.as_str()) }
        text.detail x=(x + 9.0) y=(y + 50.0) { (cut(&node.detail)) }
    };
    let whole = format!("{}: {}, {}", cell(node.name), node.state.as_str(), cell(&node.detail));
    html! {
        g.node.(class) {
            title { (whole) }
            @match &node.page {
                Some(page) => a href=(page) aria-label=(whole) { (lines) },
                None => (lines),
            }
        }
    }
}

/// Returns the begin of a line that has room in a node.
fn cut(text: &str) -> String {
    let line = cell(text);
    if line.chars().count() <= MAX_LINE {
        return line;
    }
    line.chars().take(MAX_LINE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the places by node, each as column and row.
    fn places(before: &[&[usize]], most: usize) -> BTreeMap<usize, (f64, f64)> {
        let before: Vec<Vec<usize>> = before.iter().map(|before| before.to_vec()).collect();
        layout(&before, most).places.into_iter().collect()
    }

    #[test]
    fn a_step_is_in_the_column_after_the_last_one_before_it() {
        // 0 → 1 → 3, 0 → 2 → 3, 0 → 3, and 4 after 3.
        let found = places(&[&[], &[0], &[0], &[1, 2, 0], &[3]], 50);
        let columns: Vec<f64> = found.values().map(|(column, _)| *column).collect();
        assert_eq!(columns, [0.0, 1.0, 1.0, 2.0, 3.0]);
        assert_eq!((found[&1].1, found[&2].1), (0.0, 1.0));
        assert_eq!((found[&0].1, found[&3].1), (0.5, 0.5), "a single step is in the middle");
    }

    #[test]
    fn steps_are_beside_those_before_them() {
        // Two chains, whose second steps were given in the other order.
        let found = places(&[&[], &[], &[1], &[0]], 50);
        assert_eq!((found[&3].1, found[&2].1), (0.0, 1.0));
    }

    #[test]
    fn the_first_steps_are_drawn_with_all_before_them() {
        let chain: Vec<Vec<usize>> =
            (0..100_usize).map(|node| node.checked_sub(1).into_iter().collect()).collect();
        let layout = layout(&chain, 10);
        assert_eq!(layout.places.iter().map(|(node, _)| *node).collect::<Vec<_>>(), Vec::from_iter(0..10));
        assert_eq!((layout.columns, layout.rows), (10, 1));
    }

    #[test]
    fn circles_and_nothing_at_all_do_no_harm() {
        assert_eq!(places(&[&[1], &[0], &[2], &[0, 0]], 50).len(), 4);
        assert_eq!(layout(&[], 50), GraphLayout { places: Vec::new(), columns: 0, rows: 0 });
    }

    fn drawn<'a>(name: &'a str, state: TaskState, after: &[&'a str]) -> GraphNode<'a> {
        GraphNode {
            name,
            state,
            detail: "resize".to_owned(),
            after: after.to_vec(),
            page: Some("../tasks/x".to_owned()),
            is_callback: false,
        }
    }

    #[test]
    fn states_are_words_and_shapes_and_names_are_text() {
        let hostile = "<script>alert(1)</script> and more";
        let nodes = [
            drawn("first", TaskState::Success, &[]),
            drawn(hostile, TaskState::Failure, &["first", "unknown"]),
            GraphNode { is_callback: true, page: None, ..drawn("callback", TaskState::Pending, &["first"]) },
        ];
        let svg = draw(&nodes).into_string();
        for part in ["✓ SUCCESS", "✕ FAILURE", "○ PENDING", "class=\"callback\"", "href=\"../tasks/x\""]
        {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert!(!svg.contains("<script") && !svg.contains("style="), "{svg}");
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (3, 2));
        assert_eq!(svg.matches("<a ").count(), 2, "a step without a task is no link");
    }

    #[test]
    fn a_large_graph_is_bounded_and_the_rest_is_counted() {
        let names: Vec<String> =
            (0..1000).map(|number| format!("a-step-with-a-long-name-{number}")).collect();
        let all: Vec<&str> = names.iter().take(30).map(String::as_str).collect();
        let nodes: Vec<GraphNode<'_>> = names
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let state = if number < 45 { TaskState::Success } else { TaskState::Pending };
                drawn(name, state, if number < 30 { &all[..0] } else { &all[..] })
            })
            .collect();
        let svg = draw(&nodes).into_string();
        assert_eq!(svg.matches("<rect").count(), MAX_NODES);
        assert!(svg.contains("950 more steps are not drawn: 950 PENDING."), "{svg}");
        assert!(svg.contains("450 more arrows are not drawn."), "{svg}");
        assert!(svg.len() < 50_000, "{} bytes", svg.len());
    }
}
