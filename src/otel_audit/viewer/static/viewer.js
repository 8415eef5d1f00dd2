// Keys, local times, the brush on the histogram, the live tail, and verification in the browser.
// Nothing here writes markup: what comes from the trail becomes text.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  // Keys ------------------------------------------------------------------------------------------
  const rows = () => all("[data-row]").map((row) => row.querySelector("a")).filter(Boolean);
  document.addEventListener("keydown", (event) => {
    const query = document.getElementById("q");
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "Escape") {
      if (typing) event.target.blur();
      else if (!query || !location.pathname.endsWith(document.querySelector(".brand")?.pathname || "/")) history.back();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && query) { event.preventDefault(); query.focus(); query.select(); }
    if (event.key === "?") all("nav a").filter((a) => a.pathname.endsWith("/help")).forEach((a) => a.click());
    if (event.key === "j" || event.key === "k") {
      const links = rows();
      const now = links.findIndex((link) => link.closest("[data-row]").contains(document.activeElement));
      const next = links[event.key === "j" ? now + 1 : Math.max(now - 1, 0)];
      if (next) next.focus();
    }
  });

  // Local times -----------------------------------------------------------------------------------
  const localTimes = () => all("[data-local]").forEach((place) => {
    const moment = new Date(place.dataset.local);
    if (!isNaN(moment)) place.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" }) + " here";
  });

  // Brush -----------------------------------------------------------------------------------------
  let brush = null;
  document.addEventListener("pointerdown", (event) => {
    const svg = event.target.closest?.("[data-chart] svg");
    if (!svg || event.button) return;
    const box = svg.getBoundingClientRect();
    const at = (x) => ((x - box.left) / box.width) * 1000;
    brush = { svg, at, begin: at(event.clientX), mark: null };
  });
  document.addEventListener("pointermove", (event) => {
    if (!brush) return;
    const now = brush.at(event.clientX);
    if (!brush.mark && Math.abs(now - brush.begin) < 8) return;
    if (!brush.mark) {
      brush.mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      brush.mark.setAttribute("class", "brush");
      brush.mark.setAttribute("height", "76");
      brush.svg.append(brush.mark);
    }
    brush.end = now;
    brush.mark.setAttribute("x", Math.min(brush.begin, now));
    brush.mark.setAttribute("width", Math.abs(now - brush.begin));
  });
  document.addEventListener("pointerup", () => {
    const { svg, mark, begin, end } = brush || {};
    brush = null;
    if (!mark) return;
    mark.remove();
    const [low, high] = [Math.min(begin, end), Math.max(begin, end)];
    const bars = all("a[data-begin]", svg).filter((bar) => {
      const hit = bar.querySelector(".hit");
      const x = Number(hit.getAttribute("x"));
      return x + Number(hit.getAttribute("width")) > low && x < high;
    });
    if (!bars.length) return;
    const short = (text) => new Date(text).toISOString().slice(0, 19) + "Z";
    const query = (new URL(bars[0].href.baseVal, location).searchParams.get("q") || "")
      .split(/ (?=time:)/).filter((term) => !term.startsWith("time:")).join(" ");
    const time = `time:>=${short(bars[0].dataset.begin)} time:<${short(bars.at(-1).dataset.end)}`;
    const url = new URL(svg.closest("[data-chart]").dataset.href, location);
    url.searchParams.set("q", `${query} ${time}`.trim());
    document.dispatchEvent(new CustomEvent("viewer:go", { detail: url.href, cancelable: true })) && location.assign(url);
  });
  // a drag is no click
  document.addEventListener("dragstart", (event) => { if (event.target.closest?.("[data-chart]")) event.preventDefault(); });

  // Verification ----------------------------------------------------------------------------------
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const join = (...parts) => {
    const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
    return whole;
  };
  const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", join(...parts)));
  const same = (a, b) => a.length === b.length && a.every((value, place) => value === b[place]);
  const utf8 = (text) => new TextEncoder().encode(text);
  const node = (left, right) => sha256([1], left, right);

  // RFC 9162, 2.1.3.2
  const rootOf = async (leaf, index, size, path) => {
    let place = index, last = size - 1;
    for (const step of path) {
      if (last === 0) throw new Error("the proof is too long");
      if (place % 2 || place === last) {
        leaf = await node(step, leaf);
        while (place % 2 === 0 && place) { place = Math.floor(place / 2); last = Math.floor(last / 2); }
      } else leaf = await node(leaf, step);
      place = Math.floor(place / 2); last = Math.floor(last / 2);
    }
    if (last !== 0) throw new Error("the proof is too short");
    return leaf;
  };

  const signedBy = async (note, keys) => {
    const cut = note.lastIndexOf("\n\n");
    const text = utf8(note.slice(0, cut + 1));
    const names = [];
    for (const line of note.slice(cut + 2).trimEnd().split("\n")) {
      const [, name, encoded] = line.split(" ");
      const blob = bytes(encoded);
      for (const key of keys.filter((one) => one.startsWith(name + "+"))) {
        const raw = bytes(key.slice(name.length + 10)).slice(1);
        const known = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
        if (!(await crypto.subtle.verify({ name: "Ed25519" }, known, blob.slice(4), text))) throw new Error(`the signature of ${name} does not hold`);
        names.push(name);
      }
    }
    return names;
  };

  const verify = async (url, say, fetched) => {
    const answer = await fetched(url);
    const bundle = await answer.json();
    if (!answer.ok) throw new Error(bundle.detail);
    const [record] = bundle.records;
    const id = JSON.parse(record.payload).record_id;
    const shown = location.pathname.split("/").at(-1).toLowerCase();
    if (!url.includes(id) && id !== shown) throw new Error("this is the evidence of another record");
    const content = await sha256(utf8(record.payload));
    say(`text hashed: SHA-256 ${[...content].map((b) => b.toString(16).padStart(2, "0")).join("")}`);
    const moment = new DataView(new ArrayBuffer(8));
    moment.setBigInt64(0, BigInt(record.recorded_at));
    const raw = Uint8Array.from(id.replaceAll("-", "").match(/../g), (two) => parseInt(two, 16));
    const leaf = await sha256([0], utf8("otel-audit leaf 1\n"), raw, content, new Uint8Array(moment.buffer));
    const [origin, size, root] = bundle.checkpoint.split("\n");
    const found = await rootOf(leaf, record.leaf, Number(size), record.proof.map(bytes));
    if (!same(found, bytes(root))) throw new Error("the record is not in the log that the checkpoint signs");
    say(`leaf ${record.leaf} leads to the root of ${size} leaves of log ${origin}`);
    if (!bundle.keys.length) return say("no public key is set: who signed it was not checked");
    let names;
    try { names = await signedBy(bundle.checkpoint, bundle.keys); } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      return say("this browser does not know Ed25519: the signature was not checked here");
    }
    if (!names.length) throw new Error("no known key has signed the checkpoint");
    say(`checkpoint signed by ${bundle.keys.join(", ")}`);
    say("Verified in this browser. Compare the key with the one that the log's operator published.");
  };
  const fetched = (url) => (window.viewerFetch || fetch)(url);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-verify]");
    if (!button) return;
    const list = document.querySelector("[data-steps]");
    list.replaceChildren();
    button.disabled = true;
    try { await verify(button.dataset.verify, (text) => list.append(make("li", text)), fetched); } catch (error) {
      list.append(make("li", `Does not hold: ${error.message}`, "bad"));
    }
    button.disabled = false;
  });

  // Tail ------------------------------------------------------------------------------------------
  const tail = () => {
    const table = document.querySelector("[data-tail]");
    if (!table) return;
    const body = table.tBodies[0], state = document.querySelector("[data-state]"), button = document.querySelector("[data-pause]");
    let waiting = [], paused = false, seen = 0;
    const row = (one) => {
      const made = make("tr", "", "fresh");
      made.dataset.row = "";
      made.setAttribute("role", "row");
      const link = make("a", one.time.replace("T", " ").replace(/\+00:00$/, ""));
      link.href = one.href;
      const kind = ["success", "failure"].includes(one.outcome) ? one.outcome : "unknown";
      for (const [text, name] of [[link, "when"], [one.event, "event"], [make("span", one.outcome, `outcome is-${kind}`), ""], [one.actor, "actor"], [one.target, "target"], [one.tenant, "tenant"], [one.status, "status"]]) {
        const cell = make("td", "", name);
        cell.setAttribute("role", "cell");
        cell.append(text);
        made.append(cell);
      }
      return made;
    };
    const show = () => {
      body.prepend(...waiting.splice(0).reverse().map(row));
      while (body.rows.length > 500) body.lastElementChild.remove();
    };
    const tell = () => { state.textContent = paused ? `paused, ${waiting.length} new` : `live, ${seen} since you opened this page`; };
    const source = new EventSource(table.dataset.tail);
    source.addEventListener("begin", tell);
    source.addEventListener("records", (event) => {
      const found = JSON.parse(event.data);
      seen += found.length;
      waiting.push(...found);
      waiting = waiting.slice(-500);
      if (!paused) show();
      tell();
    });
    source.addEventListener("problem", (event) => { state.textContent = JSON.parse(event.data).message; });
    source.onerror = () => { state.textContent = "the connection was lost; it is tried again"; };
    button.addEventListener("click", () => {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      if (!paused) show();
      tell();
    });
  };

  const begin = () => {
    localTimes();
    all("[data-verify]").forEach((button) => { button.hidden = !window.crypto?.subtle; });
  };
  document.addEventListener("viewer:shown", begin);
  begin();
  tail();
})();
