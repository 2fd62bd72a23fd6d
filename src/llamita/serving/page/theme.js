// Runs before the first paint, as a classic script: a chosen theme must not flash the other one.
(function () {
  var kept = null;
  try {
    kept = localStorage.getItem("llamita.theme");
  } catch (error) {
    // A browser that keeps nothing follows the system.
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
