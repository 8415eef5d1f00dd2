// Keys, local times, the brush on the histogram, the live tail, and verification in the browser.
// Nothing here writes markup: what comes from the trail becomes text.
"use strict";
(() => {
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const on = (name, told) => document.addEventListener(name, told);
const make = (name, text, kind) => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

on("keydown", (event) => {
  const { key, target } = event, query = one("#q");
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
  if (key === "Escape") {
    if (typing) target.blur();
    else if (!query || !location.pathname.endsWith(one(".brand")?.pathname || "/")) history.back();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "/" && query) { event.preventDefault(); query.focus(); query.select(); }
  if (key === "?") all("nav a").find((a) => a.pathname.endsWith("/help"))?.click();
  if (key === "j" || key === "k") {
    const rows = all("[data-row]").filter((row) => one("a", row));
    const now = rows.findIndex((row) => row.contains(document.activeElement));
    const next = rows[key === "j" ? now + 1 : Math.max(now - 1, 0)];
    if (next) one("a", next).focus();
  }
});

// the brush; a drag is no click
let brush = null;
on("dragstart", (event) => { if (event.target.closest?.("[data-chart]")) event.preventDefault(); });
on("pointerdown", (event) => {
  const svg = event.target.closest?.("[data-chart] svg");
  if (!svg || event.button) return;
  const box = svg.getBoundingClientRect();
  const at = (x) => ((x - box.left) / box.width) * 1000;
  brush = { svg, at, begin: at(event.clientX) };
});
on("pointermove", (event) => {
  if (!brush) return;
  const { svg, at, begin } = brush, now = at(event.clientX), width = Math.abs(now - begin);
  if (!brush.mark) {
    if (width < 8) return;
    brush.mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    svg.append(brush.mark);
  }
  brush.end = now;
  const told = { class: "brush", height: 76, x: Math.min(begin, now), width };
  for (const name in told) brush.mark.setAttribute(name, told[name]);
});
on("pointerup", () => {
  const { svg, mark, begin, end } = brush || {};
  brush = null;
  if (!mark) return;
  mark.remove();
  const bars = all("a[data-begin]", svg).filter((bar) => {
    const { x, width } = one(".hit", bar);
    const left = x.baseVal.value;
    return left + width.baseVal.value > Math.min(begin, end) && left < Math.max(begin, end);
  });
  if (!bars.length) return;
  const short = (text) => new Date(text).toISOString().slice(0, 19) + "Z";
  const query = (new URL(bars[0].href.baseVal, location).searchParams.get("q") || "")
    .split(/ (?=time:)/).filter((term) => !term.startsWith("time:")).join(" ");
  const time = `time:>=${short(bars[0].dataset.begin)} time:<${short(bars.at(-1).dataset.end)}`;
  const url = new URL(svg.closest("[data-chart]").dataset.href, location);
  url.searchParams.set("q", `${query} ${time}`.trim());
  const go = new CustomEvent("viewer:go", { detail: url.href, cancelable: true });
  if (document.dispatchEvent(go)) location.assign(url);
});

// verification
const fail = (why) => { throw new Error(why); };
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const utf8 = (text) => new TextEncoder().encode(text);
const sha256 = async (...parts) =>
  new Uint8Array(await crypto.subtle.digest("SHA-256", await new Blob(parts.map((part) => Uint8Array.from(part))).arrayBuffer()));

// RFC 9162, 2.1.3.2
const rootOf = async (hash, place, size, path) => {
  let last = size - 1;
  const half = () => { place = Math.floor(place / 2); last = Math.floor(last / 2); };
  for (const step of path) {
    if (!last) fail("the proof is too long");
    if (place % 2 || place === last) {
      hash = await sha256([1], step, hash);
      while (place % 2 === 0 && place) half();
    } else hash = await sha256([1], hash, step);
    half();
  }
  if (last) fail("the proof is too short");
  return hash;
};

const signedBy = async (note, keys) => {
  const cut = note.lastIndexOf("\n\n"), names = [];
  for (const line of note.slice(cut + 2).trimEnd().split("\n")) {
    const [, name, encoded] = line.split(" ");
    for (const key of keys.filter((known) => known.startsWith(name + "+"))) {
      const raw = bytes(key.slice(name.length + 10)).slice(1);
      const known = await crypto.subtle.importKey("raw", raw, "Ed25519", false, ["verify"]);
      await crypto.subtle.verify("Ed25519", known, bytes(encoded).slice(4), utf8(note.slice(0, cut + 1)))
        || fail(`the signature of ${name} does not hold`);
      names.push(name);
    }
  }
  return names;
};

const verify = async (url, say) => {
  const answer = await (window.viewerFetch || fetch)(url), bundle = await answer.json();
  if (!answer.ok) fail(bundle.detail);
  const [record] = bundle.records, { payload } = record, id = JSON.parse(payload).record_id;
  const shown = location.pathname.split("/").at(-1).toLowerCase();
  if (!url.includes(id) && id !== shown) fail("this is the evidence of another record");
  const content = await sha256(utf8(payload));
  const hex = [...content].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  say(`text hashed: SHA-256 ${hex}`);
  const moment = new DataView(new ArrayBuffer(8));
  moment.setBigInt64(0, BigInt(record.recorded_at));
  const raw = id.replaceAll("-", "").match(/../g).map((two) => parseInt(two, 16));
  const leaf = await sha256([0], utf8("otel-audit leaf 1\n"), raw, content, new Uint8Array(moment.buffer));
  const [origin, size, root] = bundle.checkpoint.split("\n");
  const found = await rootOf(leaf, record.leaf, Number(size), record.proof.map(bytes));
  if (`${found}` !== `${bytes(root)}`) fail("the record is not in the log that the checkpoint signs");
  say(`leaf ${record.leaf} leads to the root of ${size} leaves of log ${origin}`);
  if (!bundle.keys.length) return say("no public key is set: who signed it was not checked");
  let names;
  try { names = await signedBy(bundle.checkpoint, bundle.keys); } catch (error) {
    if (error.name !== "NotSupportedError") throw error;
    return say("this browser does not know Ed25519: the signature was not checked here");
  }
  if (!names.length) fail("no known key has signed the checkpoint");
  say(`checkpoint signed by ${bundle.keys.join(", ")}`);
  say("Verified in this browser. Compare the key with the one that the log's operator published.");
};
on("click", async (event) => {
  const button = event.target.closest?.("[data-verify]");
  if (!button) return;
  const list = one("[data-steps]");
  const say = (text, kind) => list.append(make("li", text, kind));
  list.replaceChildren();
  button.disabled = true;
  try { await verify(button.dataset.verify, say); } catch (error) {
    say(`Does not hold: ${error.message}`, "bad");
  }
  button.disabled = false;
});

const tail = (table) => {
  const body = table.tBodies[0], state = one("[data-state]"), button = one("[data-pause]");
  let waiting = [], paused = false, seen = 0;
  const row = (told) => {
    const made = make("tr", "", "fresh");
    made.dataset.row = "";
    made.setAttribute("role", "row");
    const when = make("a", told.time.replace("T", " ").replace(/\+00:00$/, ""));
    when.href = told.href;
    const kind = ["success", "failure"].includes(told.outcome) ? told.outcome : "unknown";
    const outcome = make("span", told.outcome, `outcome is-${kind}`);
    const { event, actor, target, tenant, status } = told;
    for (const [name, text] of Object.entries({ when, event, "": outcome, actor, target, tenant, status })) {
      const cell = make("td", "", name);
      cell.setAttribute("role", "cell");
      cell.append(text);
      made.append(cell);
    }
    return made;
  };
  const tell = () => {
    if (!paused) body.prepend(...waiting.splice(0).reverse().map(row));
    while (body.rows.length > 500) body.lastElementChild.remove();
    state.textContent = paused ? `paused, ${waiting.length} new` : `live, ${seen} since you opened this page`;
  };
  const source = new EventSource(table.dataset.tail);
  const told = (name, then) => source.addEventListener(name, (event) => then(JSON.parse(event.data)));
  told("begin", tell);
  told("records", (found) => {
    seen += found.length;
    waiting = [...waiting, ...found].slice(-500);
    tell();
  });
  told("problem", ({ message }) => { state.textContent = message; });
  source.onerror = () => { state.textContent = "the connection was lost; it is tried again"; };
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", paused);
    tell();
  });
};

const begin = () => {
  for (const place of all("[data-local]")) {
    const moment = new Date(place.dataset.local), style = { dateStyle: "medium", timeStyle: "long" };
    if (!isNaN(moment)) place.textContent = moment.toLocaleString(undefined, style) + " here";
  }
  for (const button of all("[data-verify]")) button.hidden = !window.crypto?.subtle;
};
on("viewer:shown", begin);
begin();
all("[data-tail]").forEach(tail);
})();
