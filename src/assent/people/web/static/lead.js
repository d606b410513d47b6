"use strict";
/* The leads' pages work without this: it brings numbers up to date, and copies what is shown once. */
(() => {
  const one = (selector, within = document) => within.querySelector(selector);

  // ---- numbers that move while annotators label

  const live = one("#live[data-live]");
  async function renew() {
    if (document.hidden || live.contains(document.activeElement) || one("details[open]", live)) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, credentials: "same-origin" });
      if (!answer.ok || answer.redirected) return;
      const fresh = one("#live", new DOMParser().parseFromString(await answer.text(), "text/html"));
      if (fresh && fresh.innerHTML !== live.innerHTML) live.replaceChildren(...fresh.childNodes);
    } catch { /* the next time */ }
  }
  if (live) setInterval(renew, 1000 * Number(live.dataset.live));

  // ---- forms that a choice sends, and secrets to copy

  for (const select of document.querySelectorAll("select[data-submit]")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }
  const copy = one("[data-copy]");
  if (copy) {
    copy.addEventListener("focus", () => copy.select());
    copy.focus();
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(copy.value); button.textContent = "Copied"; } catch { copy.select(); }
    });
    copy.after(button);
  }
})();
