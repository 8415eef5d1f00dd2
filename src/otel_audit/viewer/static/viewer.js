// Nothing here writes markup: what comes from the trail becomes text.
"use strict";
(() => {
const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const on = (name, act) => document.addEventListener(name, act);
const fail = (why) => { throw new Error(why); };
// a frame asks with its token
const ask = (url, headers) => (window.viewerFetch || fetch)(url, { headers });
const go = (url) => window.viewerGo ? window.viewerGo(url) : location.assign(url);

on("keydown", (event) => {
  const { key, target } = event, query = one("#q");
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
  if (key === "Escape") return typing ? target.blur() : one(".search") || history.back();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "/" && query) { event.preventDefault(); query.select(); }
  if (key === "?") one("nav a[href$='/help']").click();
  if (key !== "j" && key !== "k") return;
  const rows = all("[data-row]"), now = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[key === "j" ? now + 1 : Math.max(now - 1, 0)];
  if (next) one("a", next).focus();
});

// the brush: a drag over the histogram zooms to the bars that it touches
let brush = null;
on("dragstart", (event) => brush && event.preventDefault());
on("pointerdown", ({ target, button, clientX }) => {
  const svg = target.closest?.("[data-chart] svg");
  if (svg && !button) brush = { svg, chart: svg.parentNode.dataset, from: clientX };
});
on("pointermove", ({ clientX }) => {
  if (!brush || Math.abs(clientX - brush.from) < 5) return;
  const { svg, chart, from } = brush, { left, width } = svg.getBoundingClientRect();
  const [begin, end] = [from, clientX].sort((a, b) => a - b).map((x) => ((x - left) / width) * chart.bars);
  const first = Math.max(Math.floor(begin), 0), last = Math.min(Math.ceil(end), chart.bars);
  brush.bars = [first, last];
  const part = (bars) => `${(bars / chart.bars) * 100}%`;
  Object.assign(one(".brush", svg).style, { x: part(first), width: part(last - first) });
});
on("pointerup", () => {
  const { bars, chart } = brush || {};
  brush = null;
  if (!bars) return;
  const [from, to] = bars.map((bar) => new Date(Number(chart.begin) + bar * chart.step).toISOString());
  const url = new URL(chart.href, location);
  url.searchParams.set("q", `${chart.query} time:>=${from} time:<${to}`.trim());
  go(url.href);
});

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const hex = (raw) => Array.from(raw, (byte) => byte.toString(16).padStart(2, 0)).join("");
const sha256 = async (...parts) =>
  new Uint8Array(await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer()));
const joined = (prefix, ...parts) => sha256(Uint8Array.of(prefix), ...parts);

// the root of a tree of so many leaves, RFC 9162, 2.1.1: the path's last step is its other half
const rootOf = async (leaf, place, size, path) => {
  if (size === 1) return path.length || place ? fail("the proof is too long") : leaf;
  const other = path.at(-1), inner = path.slice(0, -1);
  let half = 1;
  while (half * 2 < size) half *= 2;
  return place < half ? joined(1, await rootOf(leaf, place, half, inner), other)
    : joined(1, other, await rootOf(leaf, place - half, size - half, inner));
};

const checkSigned = async (text, signatures, keys) => {
  let isSigned = false;
  for (const line of signatures.trimEnd().split("\n")) {
    const [, name, encoded] = line.split(" "), signature = bytes(encoded);
    const key = keys.find((known) => known.startsWith(`${name}+${hex(signature.slice(0, 4))}+`));
    if (!key) continue;
    const raw = bytes(key.slice(name.length + 10)).slice(1);
    const known = await crypto.subtle.importKey("raw", raw, "Ed25519", false, ["verify"])
      .catch(() => fail("this browser may not know Ed25519"));
    const signed = new TextEncoder().encode(text);
    if (!await crypto.subtle.verify("Ed25519", known, signature.slice(4), signed))
      fail(`the signature of ${name} does not hold`);
    isSigned = true;
  }
  if (!isSigned) fail("no known key has signed the checkpoint");
};

const verify = async (url, say) => {
  const answer = await ask(url), { detail, records, checkpoint, keys } = await answer.json();
  if (!answer.ok) fail(detail);
  const [{ payload, recorded_at, leaf, proof }] = records, id = JSON.parse(payload).record_id;
  if (!url.includes(id)) fail("this is the evidence of another record");
  const content = await sha256(payload), moment = new DataView(new ArrayBuffer(8));
  say(`SHA-256 of the text: ${hex(content)}`);
  moment.setBigInt64(0, BigInt(recorded_at));
  const raw = Uint8Array.from(id.replaceAll("-", "").match(/../g), (two) => parseInt(two, 16));
  const hash = await joined(0, "otel-audit leaf 1\n", raw, content, moment);
  const [text, signatures] = checkpoint.split(/(?<=\n)\n/), [origin, size, root] = text.split("\n");
  if (hex(await rootOf(hash, leaf, Number(size), proof.map(bytes))) !== hex(bytes(root)))
    fail("the record is not in the log of the checkpoint");
  say(`leaf ${leaf} leads to the root of ${size} leaves of log ${origin}`);
  if (!keys.length) return say("no public key is set: who signed it was not checked");
  await checkSigned(text, signatures, keys);
  say(`checkpoint signed by ${keys.join(", ")}`);
  say("Verified in this browser. Compare the key with the one that the operator published.");
};
on("click", async ({ target }) => {
  const button = target.closest?.("[data-verify]"), list = one("[data-steps]");
  if (!button) return;
  const say = (textContent, className = "") =>
    list.append(Object.assign(document.createElement("li"), { textContent, className }));
  list.replaceChildren();
  await verify(button.dataset.verify, say).catch(({ message }) => say(`Not verified: ${message}`, "bad"));
});

// the live tail; by fetch, as an EventSource cannot send the frame's token
const listen = async (table, heard) => {
  for (let last = ""; table.isConnected; await new Promise((again) => setTimeout(again, 2000))) {
    try {
      const answer = await ask(table.dataset.tail, last ? { "last-event-id": last } : {});
      if (!answer.ok) fail(`answer ${answer.status}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let left = "", read; !(read = await reader.read()).done;) {
        if (!table.isConnected) return reader.cancel();
        const lines = (left + read.value).split("\n");
        left = lines.pop();
        for (const line of lines) {
          if (line.startsWith("data: ")) heard(JSON.parse(line.slice(6)));
          if (line.startsWith("id: ")) last = line.slice(4);
        }
      }
      fail("the connection has ended");
    } catch ({ message }) { heard({ problem: `Not live: ${message}; trying again` }); }
  }
};
const tail = (table) => {
  const [body] = table.tBodies;
  let waiting = [], paused = false;
  const row = (sent) => {
    const made = one("template").content.firstElementChild.cloneNode(true);
    for (const place of all("[data-field]", made)) place.textContent = sent[place.dataset.field];
    one("a", made).href = sent.href;
    one(".outcome", made).classList.add(`is-${sent.kind}`);
    return made;
  };
  const show = (problem) => {
    if (!paused) body.prepend(...waiting.splice(0).reverse().map(row));
    while (body.rows.length > 500) body.lastElementChild.remove();
    one("[data-state]").textContent = problem || (paused ? `paused, ${waiting.length} new` : "live");
  };
  listen(table, ({ records = [], problem }) => {
    waiting = [...waiting, ...records].slice(-500);
    show(problem);
  });
  one("[data-pause]").onclick = ({ target }) => {
    target.setAttribute("aria-pressed", paused = !paused);
    show();
  };
};

const begin = () => {
  for (const place of all("[data-local]"))
    place.textContent = `${new Date(place.dataset.local).toLocaleString()} here`;
  for (const button of all("[data-verify]")) button.hidden = !window.crypto?.subtle;
  all("[data-tail]").forEach(tail);
};
on("viewer:shown", begin);
begin();
})();
