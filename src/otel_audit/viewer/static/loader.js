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
      const hand = async (reload) => {
        const answer = await fetch(this.getAttribute("token-url"), { credentials: "same-origin" });
        const { token } = await answer.json();
        frame.contentWindow.postMessage({ type: "otel-audit:token", token, reload }, frameUrl.origin);
      };
      this.listen = (event) => {
        if (event.source !== frame.contentWindow || event.origin !== frameUrl.origin) return;
        if (event.data?.type === "otel-audit:ready") hand(true);
        if (event.data?.type === "otel-audit:token-please") hand(true);
      };
      window.addEventListener("message", this.listen);
      frame.src = frameUrl;
      this.replaceChildren(frame);
    }
    disconnectedCallback() { window.removeEventListener("message", this.listen); }
  });
})();
