// The frame within the application's page: it holds the token in memory, and asks with it.
"use strict";
(() => {
  const { origins, root } = document.body.dataset;
  const policy = window.trustedTypes?.createPolicy("otel-audit", { createHTML: (text) => text });
  let token = null, renewal = null, came = null;

  // asks the application for a token; what does not come in ten seconds is not waited for
  const renewed = () => renewal ??= new Promise((resolve) => {
    came = () => { renewal = null; resolve(); };
    setTimeout(came, 10000);
    for (const origin of origins.split(" ")) parent.postMessage("otel-audit:token-please", origin);
  });
  addEventListener("message", ({ source, origin, data }) => {
    if (source !== parent || !origins.split(" ").includes(origin) || !data?.token) return;
    token = String(data.token);
    came?.();
  });
  window.viewerFetch = async (url, { headers } = {}) => {
    const send = () => fetch(url, { headers: { ...headers, authorization: `Bearer ${token}` }, credentials: "omit" });
    if (!token) await renewed();
    const answer = await send();
    if (answer.status !== 401) return answer;
    await renewed();
    return send();
  };

  // the server's own page, in which everything is escaped; a document parsed so runs nothing
  const show = (text) => {
    const page = new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");
    const parts = [".ask", "nav", "main"].flatMap((part) => page.querySelector(part) ?? []);
    document.getElementById("frame").replaceChildren(...parts.map((part) => document.adoptNode(part)));
    document.dispatchEvent(new CustomEvent("viewer:shown"));
    document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  };
  const load = async (url) => show(await (await window.viewerFetch(url)).text());
  const download = async (url) => {
    const answer = await window.viewerFetch(url);
    if (!answer.ok) return show(await answer.text());
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))?.[1] || "export";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  // the browser's "back" leads back within the frame, whose own address never changes
  const go = (url) => { history.pushState(url, ""); load(url); };
  addEventListener("popstate", (event) => load(event.state ?? root));

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    const url = link && new URL(link.href.baseVal ?? link.href, location);
    if (url?.origin !== location.origin || link.target || url.hash) return;
    event.preventDefault();
    (link.hasAttribute("download") ? download : go)(url.href);
  });
  document.addEventListener("submit", (event) => {
    event.preventDefault();
    const url = new URL(event.target.action);
    url.search = new URLSearchParams(new FormData(event.target));
    (url.pathname.endsWith("/export") ? download : go)(url.href);
  });
  window.viewerGo = go;
  load(root);
})();
