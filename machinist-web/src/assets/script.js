// Makes the first page live, and shows times in the zone of the reader. Every page works without it.
"use strict";

// One tab of a browser holds the stream, and hands on what it gets: a browser has few connections for one host.
const CHANNEL = "machinist-live";

function localTimes(part) {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.valueOf())) {
      time.title = time.dateTime;
      time.textContent = at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
    }
  }
}

function isInUse(part) {
  const selection = document.getSelection();
  const isSelected = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return part.contains(document.activeElement) || isSelected || part.querySelector("a:hover");
}

function begin(part) {
  const offer = document.querySelector("p.new");
  let waiting = null;

  function show(html) {
    waiting = null;
    offer.hidden = true;
    part.innerHTML = html;
    for (const link of part.querySelectorAll('a[href^="./"]')) {
      link.setAttribute("href", part.dataset.root + link.getAttribute("href").slice(2));
    }
    localTimes(part);
  }

  // Nothing moves under the hand of the reader: the new values wait.
  function take(html) {
    if (isInUse(part)) {
      waiting = html;
      offer.hidden = false;
    } else {
      show(html);
    }
  }

  document.getElementById("show-new").addEventListener("click", () => waiting !== null && show(waiting));

  const channel = "BroadcastChannel" in window ? new BroadcastChannel(CHANNEL + new URL(part.dataset.live, location)) : null;
  if (channel) channel.addEventListener("message", (message) => document.hidden || take(message.data));

  let release = null;

  function hold() {
    return new Promise((resolve) => {
      const source = new EventSource(part.dataset.live);
      source.addEventListener("overview", (event) => {
        take(event.data);
        if (channel) channel.postMessage(event.data);
      });
      // Too many streams are open, or nobody is logged in any more.
      source.addEventListener("error", () => {
        if (source.readyState === EventSource.CLOSED) setTimeout(() => release && (release(), wake()), 30000);
      });
      release = () => {
        source.close();
        release = null;
        resolve();
      };
      if (document.hidden) release();
    });
  }

  // A hidden tab rests, and lets another one have the stream.
  function wake() {
    if (document.hidden || release) return;
    if (navigator.locks && channel) {
      const ask = new AbortController();
      document.addEventListener("visibilitychange", () => ask.abort(), { once: true });
      navigator.locks.request(CHANNEL + part.dataset.live, { signal: ask.signal }, hold).catch(() => {});
    } else {
      hold();
    }
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? release && release() : wake()));
  wake();
}

localTimes(document);
const live = document.getElementById("live");
if (live && "EventSource" in window) begin(live);
