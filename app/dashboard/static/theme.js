// Before anything is painted: the viewer's own choice of light or dark, where they made one.
(() => {
  try {
    const chosen = localStorage.getItem("penstock-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch { /* storage is switched off: the system's preference holds */ }
})();
