//! One step of a workflow file: its task, its members, its options. Pure.

use machinist_core::{
    Arg, QueueName, Signature, TaskName,
    worker::Tag,
    workflow::{Policy, StepPlan},
};

use crate::settings::{parse_backoff, parse_duration};

use super::{
    node::{check_keys, find, list, number, parsed, proposal, string, table, truth},
    tree::{Node, Problem, TreeEntry},
};

const STEP_KEYS: [&str; 24] = [
    "task",
    "args",
    "named",
    "each",
    "after",
    "on_failure",
    "immutable",
    "on_error",
    "queue",
    "requires",
    "retries",
    "retry_for",
    "retry_timeouts",
    "timeout",
    "soft_timeout",
    "backoff",
    "priority",
    "limit_key",
    "limit_cost",
    "fair_key",
    "headers",
    "labels",
    "countdown",
    "expires",
];

pub(super) fn step(
    entry: &TreeEntry,
    names: &[&str],
    configured: &dyn Fn(&str) -> Signature,
) -> Result<StepPlan, Problem> {
    let name = &entry.key;
    let in_step = |problem: Problem| Problem { why: format!("step \"{name}\": {}", problem.why), ..problem };
    read_step(entry, names, configured).map_err(in_step)
}

fn read_step(
    entry: &TreeEntry,
    names: &[&str],
    configured: &dyn Fn(&str) -> Signature,
) -> Result<StepPlan, Problem> {
    let keys = table(&entry.node, "a table with a task, like { task = \"resize\" }")?;
    check_keys(keys, &STEP_KEYS, "a step has ")?;
    let node = |key: &str| find(keys, key).map(|entry| &entry.node);
    let task = node("task").ok_or_else(|| Problem::new(entry.at, "it has no task; write task = \"…\""))?;
    let task = parsed(task, "task", |text| TaskName::parse(text).map_err(|e| e.to_string()))?;
    let mut signature = configured(task.as_str());
    for value in node("args").map(|args| list(args, "args", "[\"a\", 2]")).transpose()?.unwrap_or_default() {
        signature = signature.arg(value.value());
    }
    for named in node("named")
        .map(|named| table(named, "a table, like { width = 640 }"))
        .transpose()?
        .unwrap_or_default()
    {
        signature = signature.named_arg(&named.key, named.node.value());
    }
    signature = options(signature, &node)?;
    let mut plan = StepPlan::new(&entry.key, signature);
    if let Some(each) = node("each") {
        plan = plan.each(members(each)?);
    }
    if let Some(after) = node("after") {
        plan = plan.after(references(after, "after", names)?);
    }
    if let Some(caught) = node("on_error") {
        plan = plan.on_error(references(caught, "on_error", names)?);
    }
    if let Some(on_failure) = node("on_failure") {
        plan = plan.on_failure(parsed(on_failure, "on_failure", policy)?);
    }
    if node("immutable").map(|immutable| truth(immutable, "immutable")).transpose()? == Some(true) {
        plan = plan.immutable();
    }
    Ok(plan)
}

/// Adds the options that `send` has too.
fn options<'a>(
    mut signature: Signature,
    node: &impl Fn(&str) -> Option<&'a Node>,
) -> Result<Signature, Problem> {
    let duration = |key: &str| node(key).map(|given| parsed(given, key, parse_duration)).transpose();
    if let Some(queue) = node("queue") {
        let queue = parsed(queue, "queue", |text| QueueName::parse(text).map_err(|e| e.to_string()))?;
        signature = signature.queue(queue.as_str());
    }
    if let Some(tags) = node("requires") {
        let mut required = Vec::new();
        for tag in list(tags, "requires", "[\"gpu\"]")? {
            required.push(parsed(tag, "requires", |text| Tag::parse(text).map_err(|e| e.to_string()))?);
        }
        signature = signature.requires(required.iter().map(Tag::as_str));
    }
    if let Some(retries) = node("retries") {
        signature = signature.retries(number(retries, "retries", u32::MAX)?);
    }
    if let Some(limit) = duration("retry_for")? {
        signature = signature.retry_for(limit);
    }
    if node("retry_timeouts").map(|given| truth(given, "retry_timeouts")).transpose()? == Some(true) {
        signature = signature.retry_timeouts();
    }
    for key in ["timeout", "soft_timeout"] {
        let Some(limit) = duration(key)? else { continue };
        if limit.is_zero() {
            let at = node(key).map_or(0, |node| node.at);
            let why = format!("{key}: 0s would end every run at once; leave it out for no timeout");
            return Err(Problem::new(at, why));
        }
        signature = if key == "timeout" { signature.timeout(limit) } else { signature.soft_timeout(limit) };
    }
    if let Some(backoff) = node("backoff") {
        signature = signature.backoff(parsed(backoff, "backoff", parse_backoff)?);
    }
    if let Some(priority) = node("priority") {
        let priority = number(priority, "priority", 9)?;
        signature = signature.priority(u8::try_from(priority).unwrap_or(u8::MAX));
    }
    if let Some(key) = node("limit_key") {
        signature = signature.limit_key(string(key, "limit_key")?);
    }
    if let Some(cost) = node("limit_cost") {
        signature = signature.limit_cost(number(cost, "limit_cost", 1_000_000)?);
    }
    if let Some(key) = node("fair_key") {
        signature = signature.fair_key(string(key, "fair_key")?);
    }
    if let Some(headers) = node("headers") {
        for header in table(headers, "a table of texts, like { tenant = \"a\" }")? {
            signature = signature.header(&header.key, string(&header.node, "headers")?);
        }
    }
    if let Some(labels) = node("labels") {
        for label in table(labels, "a table of texts, like { team = \"a\" }")? {
            signature = signature.label(&label.key, string(&label.node, "labels")?);
        }
    }
    if let Some(countdown) = duration("countdown")? {
        signature = signature.countdown(countdown);
    }
    if let Some(expires) = duration("expires")? {
        signature = signature.expires_in(expires);
    }
    Ok(signature)
}

fn members(each: &Node) -> Result<Vec<Vec<Arg>>, Problem> {
    let member = |member: &Node| {
        let args = list(member, "each", "[[\"a\"], [\"b\"]]: one list of arguments for each member")?;
        Ok(args.iter().map(|arg| Arg::from_value(arg.value())).collect())
    };
    list(each, "each", "[[\"a\"], [\"b\"]]")?.iter().map(member).collect()
}

/// Reads the names of other steps.
fn references(node: &Node, key: &str, names: &[&str]) -> Result<Vec<String>, Problem> {
    let reference = |item: &Node| {
        let name = string(item, key)?;
        if names.contains(&name) {
            return Ok(name.to_owned());
        }
        let why = format!("{key}: there is no step \"{name}\"; {}", proposal(name, names, "the steps are "));
        Err(Problem::new(item.at, why))
    };
    list(node, key, "[\"first\", \"second\"]")?.iter().map(reference).collect()
}

fn policy(text: &str) -> Result<Policy, String> {
    let number = |text: &str| text.parse::<u32>().ok();
    let known = match text {
        "fail" => Some(Policy::Fail),
        "cancel_rest" => Some(Policy::CancelRest),
        "collect" => Some(Policy::Collect),
        "hold" => Some(Policy::Hold),
        _ => text.strip_prefix("tolerate:").and_then(|tolerated| match tolerated.strip_suffix('%') {
            Some(percent) => number(percent)
                .filter(|n| *n <= 100)
                .and_then(|n| u8::try_from(n).ok())
                .map(Policy::ToleratePercent),
            None => number(tolerated).map(Policy::Tolerate),
        }),
    };
    known.ok_or_else(|| {
        format!("\"{text}\" is no policy; write fail, cancel_rest, collect, tolerate:2, tolerate:10% or hold")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_words() {
        for (text, known) in [
            ("fail", Policy::Fail),
            ("cancel_rest", Policy::CancelRest),
            ("collect", Policy::Collect),
            ("hold", Policy::Hold),
            ("tolerate:3", Policy::Tolerate(3)),
            ("tolerate:100%", Policy::ToleratePercent(100)),
        ] {
            assert_eq!(policy(text), Ok(known));
        }
        for wrong in ["", "tolerate", "tolerate:", "tolerate:-1", "tolerate:101%", "tolerate:1%%", "Fail"] {
            assert!(policy(wrong).unwrap_err().contains("write fail, cancel_rest"), "{wrong}");
        }
    }
}
