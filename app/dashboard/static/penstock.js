// What a page does by itself: the viewer's own time beside UTC, pauses while nobody looks, menus, copying.
(() => {
  "use strict";
  const zoned = new Intl.DateTimeFormat(undefined, {
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", timeZoneName: "short",
  });

  const showTimes = (root) => {
    for (const each of root.querySelectorAll("time[datetime]:not([data-shown])")) {
      const at = new Date(each.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      each.title = `${zoned.format(at)}, where you are`;
      each.dataset.shown = "";
    }
  };

  // A swap begins its tables anew: they stay where they were scrolled to.
  const places = new Map();
  const noteScroll = (root) => {
    places.clear();
    for (const each of root.querySelectorAll(".scroll")) places.set(each.getAttribute("aria-label"), each.scrollLeft);
  };
  const restoreScroll = (root) => {
    for (const each of root.querySelectorAll(".scroll")) each.scrollLeft = places.get(each.getAttribute("aria-label")) ?? 0;
  };

  const trouble = () => document.querySelector("[data-trouble]");
  const body = document.body;
  const isLive = (event) => event.detail.elt?.matches?.("[data-live]");

  // Nobody looks, or somebody has opened a question in it: what is live waits.
  body.addEventListener("htmx:beforeRequest", (event) => {
    if (isLive(event) && (document.hidden || event.detail.elt.querySelector("details.confirm[open]"))) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) for (const each of document.querySelectorAll("[data-live]")) window.htmx?.trigger(each, "wake");
  });
  body.addEventListener("htmx:beforeSwap", (event) => noteScroll(event.detail.target));
  body.addEventListener("htmx:afterSwap", (event) => {
    const root = event.detail.target.isConnected ? event.detail.target : document;
    showTimes(document);
    restoreScroll(root);
  });
  for (const name of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
    body.addEventListener(name, () => { trouble().hidden = false; });
  }
  body.addEventListener("htmx:afterOnLoad", (event) => { if (event.detail.successful) trouble().hidden = true; });

  document.addEventListener("click", (event) => {
    for (const each of document.querySelectorAll("details.confirm[open]")) if (!each.contains(event.target)) each.open = false;
    const at = event.target.closest("button, a");
    if (!at) return;
    if (at.matches("[data-theme-switch]")) {
      const root = document.documentElement;
      const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = isDark ? "light" : "dark";
      try { localStorage.setItem("penstock-theme", root.dataset.theme); } catch { /* for this page only, then */ }
      document.dispatchEvent(new Event("penstock:theme"));
    } else if (at.matches("[data-menu]")) {
      const open = at.getAttribute("aria-expanded") !== "true";
      at.setAttribute("aria-expanded", String(open));
      document.getElementById(at.getAttribute("aria-controls")).classList.toggle("open", open);
    } else if (at.matches("[data-copy]")) {
      const from = at.parentElement.querySelector("[data-copy-from]");
      navigator.clipboard?.writeText(from.textContent).then(() => { at.textContent = "Copied"; }, () => select(from));
    } else if (at.matches("[data-close]")) {
      at.closest("details")?.removeAttribute("open");
    }
  });
  // One question at a time, and Escape closes it.
  document.addEventListener("toggle", (event) => {
    if (!event.target.matches?.("details.confirm") || !event.target.open) return;
    for (const each of document.querySelectorAll("details.confirm[open]")) if (each !== event.target) each.open = false;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const each of document.querySelectorAll("details.confirm[open]")) { each.open = false; each.querySelector("summary").focus(); }
  });

  const select = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  };

  showTimes(document);
})();
