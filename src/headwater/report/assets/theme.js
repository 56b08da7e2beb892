"use strict";
// Light, dark, or as the system has it: shared by every page.

const THEMES = ["auto", "light", "dark"];
function remembered() {
  try { return localStorage.getItem("headwater-theme"); } catch { return null; }
}
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = `Theme: ${name}`;
  try { localStorage.setItem("headwater-theme", name); } catch { /* a page opened from a file may have no storage */ }
}
function startTheme() {
  const button = document.getElementById("theme");
  const next = () => THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  button.hidden = false;
  button.addEventListener("click", () => setTheme(next()));
  setTheme(THEMES.includes(remembered()) ? remembered() : "auto");
}

startTheme();
