// A classic script in <head>: the chosen theme must stand before the first paint, and a module comes after it.

// It also stands when the network goes while the modules are loaded: without one of them nothing would ever be shown.
addEventListener("error", ({ target }) => {
  if (target.localName !== "script") return;
  // Not so often where that has not helped: something on the way may refuse the module for good.
  const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
  setTimeout(() => location.reload(), again ? 60_000 : 3000);
  const tell = () => (document.getElementById("main").textContent = "The page was not loaded whole. It is loaded again.");
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", tell);
  else tell();
}, true); // it does not bubble

document.documentElement.dataset.theme = (() => {
  try {
    return localStorage.getItem("carillon.theme") ?? "auto";
  } catch {
    return "auto"; // storage can be forbidden
  }
})();
