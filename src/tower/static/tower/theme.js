// A classic script in <head>: the chosen theme must stand before the first paint, and a module comes after it.
document.documentElement.dataset.theme = (() => {
  try {
    return localStorage.getItem("carillon.theme") ?? "auto";
  } catch {
    return "auto"; // storage can be forbidden
  }
})();
