// A click (or Enter) on a number of the matrix shows its photos; Escape or Close hides them.
"use strict";
document.documentElement.classList.add("script");
let opener = null;

function close() {
  if (!opener) return;
  document.getElementById(opener.getAttribute("aria-controls")).classList.remove("open");
  opener.setAttribute("aria-expanded", "false");
  const button = opener;
  opener = null;
  return button;
}

function open(button) {
  const same = close() === button;
  if (same) return;
  opener = button;
  button.setAttribute("aria-expanded", "true");
  const panel = document.getElementById(button.getAttribute("aria-controls"));
  panel.classList.add("open");
  panel.querySelector("h3").focus({ preventScroll: true });
  panel.scrollIntoView({ block: "nearest" });
}

document.querySelectorAll(".matrix button").forEach((button) => {
  button.addEventListener("click", () => open(button));
});
document.querySelectorAll(".cell .close").forEach((button) => {
  button.addEventListener("click", () => close()?.focus());
});
document.querySelectorAll(".switch input").forEach((input) => {
  input.addEventListener("change", close);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") close()?.focus();
});
