// The frame within the application's page: it holds the token in memory, and asks with it.
"use strict";
(() => {
  const origins = document.body.dataset.origins.split(" ");
  const root = new URL(document.body.dataset.root, location);
  const place = document.getElementById("frame");
  const policy = window.trustedTypes?.createPolicy("otel-audit", { createHTML: (text) => text });
  let token = null, host = null, now = root.href;

  const ask = () => { if (host) window.parent.postMessage({ type: "otel-audit:token-please" }, host); };
  window.viewerFetch = (url) => fetch(url, { headers: token ? { authorization: `Bearer ${token}` } : {}, credentials: "omit" });

  const download = async (url) => {
    const answer = await window.viewerFetch(url);
    if (!answer.ok) return show(await answer.text());
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))?.[1] || "export";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  // the server's own page, in which everything is escaped; a document parsed so runs nothing
  const show = (text) => {
    const page = new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");
    place.replaceChildren(...[".ask", "main"].map((one) => page.querySelector(one)).filter(Boolean).map((one) => document.adoptNode(one)));
    document.dispatchEvent(new CustomEvent("viewer:shown"));
    document.getElementById("main")?.focus();
  };
  const go = async (url) => {
    now = url;
    const answer = await window.viewerFetch(url);
    if (answer.status === 401) ask();
    show(await answer.text());
  };

  window.addEventListener("message", (event) => {
    if (event.source !== window.parent || !origins.includes(event.origin) || event.data?.type !== "otel-audit:token") return;
    const first = token === null;
    token = String(event.data.token);
    host = event.origin;
    if (first || event.data.reload) go(now);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    const href = link && (link.href.baseVal ?? link.href);
    if (!href || new URL(href, location).origin !== location.origin || link.target) return;
    event.preventDefault();
    const url = new URL(href, location);
    if (url.hash && url.pathname === location.pathname) return;
    if (link.hasAttribute("download")) download(url.href); else go(url.href);
  });
  document.addEventListener("submit", (event) => {
    event.preventDefault();
    const url = new URL(event.target.action);
    url.search = new URLSearchParams(new FormData(event.target));
    if (url.pathname.endsWith("/export")) download(url.href); else go(url.href);
  });
  document.addEventListener("viewer:go", (event) => { event.preventDefault(); go(event.detail); });
  for (const origin of origins) window.parent.postMessage({ type: "otel-audit:ready" }, origin);
})();
