// For the application's page: <otel-audit-viewer token-url="/audit-token"></otel-audit-viewer>.
// token-url answers {"token": "…"} to the person who is signed in there; it is asked again when a token ends.
"use strict";
(() => {
  const frameUrl = new URL("../embed", document.currentScript.src);
  customElements.define("otel-audit-viewer", class extends HTMLElement {
    connectedCallback() {
      const frame = document.createElement("iframe");
      frame.title = this.getAttribute("title") || "Audit trail";
      frame.referrerPolicy = "no-referrer";
      frame.style.cssText = "width:100%;height:100%;min-height:40rem;border:0";
      this.listen = async ({ source, origin }) => {
        if (source !== frame.contentWindow || origin !== frameUrl.origin) return;
        const answer = await fetch(this.getAttribute("token-url"), { credentials: "same-origin" });
        if (answer.ok) source.postMessage({ token: (await answer.json()).token }, origin);
      };
      addEventListener("message", this.listen);
      frame.src = frameUrl;
      this.replaceChildren(frame);
    }
    disconnectedCallback() { removeEventListener("message", this.listen); }
  });
})();
